"""The kinds of parameters, in u-muP's words; `optim.rules` says which rate follows from each.

- input: a table of embeddings or positions, or a layer whose inputs do not grow with the model;
- hidden: a matrix between two sizes that both grow;
- output: the read-out, whose outputs do not grow;
- bias: what is added; norm: a gain.

The first three start as N(0, 1), a bias at 0 and a gain at 1.
"""

from typing import Literal, get_args

Kind = Literal["hidden", "input", "output", "bias", "norm"]

KINDS: tuple[Kind, ...] = get_args(Kind)
