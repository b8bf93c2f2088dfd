"""Mixtures."""

from torch import nn

from unitscale.growth.plan import Plan


def replace_mlps(grown: nn.Module, made: Plan) -> None:
    """TODO."""
