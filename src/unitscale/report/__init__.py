"""Rows to tables, figures and one HTML file. Imports no torch."""

from unitscale.report.html import write_comparison
from unitscale.report.plot import Curve, draw_losses
from unitscale.report.summary import Summary, summarize
from unitscale.report.table import comparison_table, headline, plain_table

__all__ = [
    "Curve",
    "Summary",
    "comparison_table",
    "draw_losses",
    "headline",
    "plain_table",
    "summarize",
    "write_comparison",
]
