"""Many runs from one file: a grid of configurations, each trained once, and what they say together.

What plans a sweep and what reads its results imports no torch; the processes that train do.
"""

from unitscale.sweep.grid import read_grid
from unitscale.sweep.point import Point
from unitscale.sweep.summary import summarize

__all__ = ["Point", "read_grid", "summarize"]
