"""Guidance: the terms made from factors (prototypes, regression, reversal, balance)."""
