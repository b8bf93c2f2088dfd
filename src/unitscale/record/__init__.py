"""Recordings: statistics of every tensor of a run, and what one training step says of a model."""

from unitscale.record.recorder import Recorder, record
from unitscale.record.skip import suggest_skip

__all__ = ["Recorder", "record", "suggest_skip"]
