"""The units of a grown model, from those of the small one."""

from typing import Any

from torch import nn

from unitscale.growth.plan import Plan
from unitscale.units.session import Session


def carry_units(session: Session, grown: nn.Module, made: Plan) -> None:
    """TODO."""


Any
