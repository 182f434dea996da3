"""A run's result in the form that other tools open."""

from openfino.export.hf import ExportReport, export_huggingface

__all__ = ["ExportReport", "export_huggingface"]
