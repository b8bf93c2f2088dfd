"""How many tokens a model takes at once, where its configuration says so."""

from typing import Any

__all__ = ["POSITIONS", "positions_of"]

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
"""What configurations of transformers call the most tokens that a model takes at once."""


def positions_of(model: Any) -> int | None:
    """The most tokens that a model takes at once; None if it does not say.

    Args:
        model: with a `config` of transformers or of ours, or within a `NextByte`.
    """
    for one in (model, getattr(model, "model", None)):
        config = getattr(one, "config", None)
        for name in (*POSITIONS, "context"):
            found = getattr(config, name, None)
            if type(found) is int and found > 0:
                return found
    return None
