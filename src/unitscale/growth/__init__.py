"""A larger model from a trained one: wider, deeper, or a mixture; its optimizer and units as well.

`plan` says what will be done, `apply` does it beside the old model, `verify` proves that the new
one computes the same before anything trains.
"""

from unitscale.anatomy.shape import Shape
from unitscale.growth.apply import apply
from unitscale.growth.experts import Mixture, router_loss
from unitscale.growth.plan import Plan, plan
from unitscale.growth.state import grow_optimizer
from unitscale.growth.verify import Proof, verify

__all__ = [
    "Mixture",
    "Plan",
    "Proof",
    "Shape",
    "apply",
    "grow_optimizer",
    "plan",
    "router_loss",
    "verify",
]
