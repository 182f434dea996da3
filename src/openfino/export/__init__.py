"""A run's result in the forms that other tools open."""

from openfino.export.writing import ExportReport, export

__all__ = ["ExportReport", "export"]
