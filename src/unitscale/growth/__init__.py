"""A larger model from a trained one: wider, deeper, or a mixture; its optimizer and units as well.

`plan` says what will be done, `apply` does it beside the old model, `verify` proves that the new
one computes the same before anything trains.
"""

from unitscale.growth.apply import apply
from unitscale.growth.plan import Plan, plan
from unitscale.growth.shape import Shape
from unitscale.growth.verify import Proof, verify

__all__ = ["Plan", "Proof", "Shape", "apply", "plan", "verify"]
