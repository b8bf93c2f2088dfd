"""The published law, for a look at what laws say. Its constants hold for its own models alone."""

import math

from unitscale.laws.damage import Damage
from unitscale.laws.form import Form
from unitscale.laws.law import Law
from unitscale.laws.row import TENSORS
from unitscale.laws.scope import Scope

NAME = "published"
"""What the command line calls it."""

DEMO = (
    "demo: published constants of other models, text and rounding (arXiv 2411.04330); not for your "
    "runs"
)

VALUES = {
    "A": 4299.0,
    "B": 18060.0,
    "E": 2.7648,
    "alpha": 0.4965,
    "gamma_w": 2.6745,
    "gamma_a": 2.2102,
    "gamma_kv": 0.9578,
    "n_w": 0.3037,
    "n_a": 1.4072,
    "n_kv": 2.4185,
}

POST_BIAS = 1.1277
"""In the exponent of the damage; one with `C_T`."""


def published() -> Law:
    """The law of Kumar et al., Scaling Laws for Precision: integers, N of 30 to 220 million.

    Every answer of it says that it is a demo, and has no interval. It has no `C_x`: what it says of
    rounding after training is of models that were trained without.

    Source: arXiv 2411.04330, Appendix K. Its table names neither the row of activations nor the
    last two constants (`gamma_post` and the bias); they are taken so because the results that the
    paper states follow from that.
    """
    return Law(
        form=Form(tied=True, tensors=TENSORS, offsets=TENSORS),
        values=VALUES,
        damage=Damage(
            c=0.0598 * math.exp(POST_BIAS),
            by_tokens=0.5068,
            by_size=0.3439,
            by_bits=0.5907,
            robust={},
        ),
        scope=Scope(
            rows=465,
            sizes=(30e6, 220e6),
            tokens=(1.5e9, 26e9),
            n_sizes=4,
            n_tokens=5,
            bits=dict.fromkeys(TENSORS, (3.0, 16.0)),
            post_bits=(3.0, 16.0),
        ),
        demo=DEMO,
    )
