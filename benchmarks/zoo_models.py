"""Every model of the zoo by name, in the order of the tables."""

from zoo_entry import Entry
from zoo_senses import SENSES
from zoo_text import DECODERS, ENCODER_DECODERS, ENCODERS, EXPERTS, STATE_SPACE
from zoo_torch import TORCH

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        *DECODERS,
        *EXPERTS,
        *STATE_SPACE,
        *ENCODERS,
        *ENCODER_DECODERS,
        *SENSES,
        *TORCH,
    )
}
