"""Every model of `coverage.py` by name, in the order of its tables; none is in the zoo."""

from coverage_code import CODE
from coverage_flow import FLOW
from coverage_senses import SENSES
from coverage_text import TEXT
from coverage_torch import LAYERS
from zoo_entry import Entry

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in (*TEXT, *SENSES, *LAYERS, *CODE, *FLOW)}
