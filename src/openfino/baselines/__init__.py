"""Supervised baselines: fine-tuning, from scratch, DANN, CORAL and Group-DRO (fino.md section 7)."""
