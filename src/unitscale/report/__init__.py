"""Rows to tables, figures and one HTML file. Imports no torch, and what draws when it draws."""

from unitscale.report.curve import Curve
from unitscale.report.folder import write_report
from unitscale.report.html import write_html
from unitscale.report.plot import draw_losses
from unitscale.report.recording import FormatLimits, Recording, group, read_recording
from unitscale.report.summary import Summary, headline, summarize
from unitscale.report.table import comparison_table, cost_table, plain_table
from unitscale.report.verdict import Verdict, judge

__all__ = [
    "Curve",
    "FormatLimits",
    "Recording",
    "Summary",
    "Verdict",
    "comparison_table",
    "cost_table",
    "draw_losses",
    "group",
    "headline",
    "judge",
    "plain_table",
    "read_recording",
    "summarize",
    "write_html",
    "write_report",
]
