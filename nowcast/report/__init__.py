"""The report of a verification: one HTML file that needs nothing else, and its figures."""

from nowcast.report.writing import figures, figures_of, write_report

__all__ = ["figures", "figures_of", "write_report"]
