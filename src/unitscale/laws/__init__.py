"""Laws of precision: the loss over size, tokens and precision, fitted to one's own runs.

Which recipe, which size and how many tokens reach the lowest loss for a budget? Needs numpy alone.
"""

from unitscale.laws.advice import Plan
from unitscale.laws.answer import Critical, ExtrapolationWarning, Prediction
from unitscale.laws.file import load_law as load
from unitscale.laws.fit import fit
from unitscale.laws.law import Law
from unitscale.laws.preset import published
from unitscale.laws.read import read_rows
from unitscale.laws.row import Row, Table, rows_of

__all__ = [
    "Critical",
    "ExtrapolationWarning",
    "Law",
    "Plan",
    "Prediction",
    "Row",
    "Table",
    "fit",
    "load",
    "published",
    "read_rows",
    "rows_of",
]
