"""Recordings: statistics of every tensor of a run, and what one training step says of a model."""

from unitscale.record.recorder import Recorder, record

__all__ = ["Recorder", "record"]
