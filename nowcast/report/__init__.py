"""The report of a verification: one HTML file that needs nothing else, and its figures."""

from nowcast.report.writing import figures, write_report

__all__ = ["figures", "write_report"]
