"""A smaller model from a trained one: pruned by importance, then trained to give the same.

`measure` says what matters, `plan` what will be kept, `apply` cuts it out beside the old model with
its units, and `Distillation` is the loss against the old model. `mask_smallest` and `sparsify` set
single weights to zero instead.
"""

from unitscale.anatomy.shape import Shape
from unitscale.compress.apply import Report, apply, prune_optimizer, verify
from unitscale.compress.distil import Distillation, distil, hidden_loss, logit_loss
from unitscale.compress.importance import Importance, drawn, layer_losses, magnitude, measure
from unitscale.compress.mask import (
    check_masks,
    make_permanent,
    mask_smallest,
    sparsify,
    sparsity,
)
from unitscale.compress.plan import Plan, plan
from unitscale.compress.search import Candidate, candidates, search

__all__ = [
    "Candidate",
    "Distillation",
    "Importance",
    "Plan",
    "Report",
    "Shape",
    "apply",
    "candidates",
    "check_masks",
    "distil",
    "drawn",
    "hidden_loss",
    "layer_losses",
    "logit_loss",
    "magnitude",
    "make_permanent",
    "mask_smallest",
    "measure",
    "plan",
    "prune_optimizer",
    "search",
    "sparsify",
    "sparsity",
    "verify",
]
