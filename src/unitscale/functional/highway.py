"""The recurrent highway layer of the 2023 paper's character models."""

import torch
from torch import Tensor

from unitscale.functional.recurrent import check_recurrent, project
from unitscale.scaling import scaled
from unitscale.scaling.factors import recurrent_factors


def recurrent_highway(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    constraint: str | None = "to_output_scale",
    *,
    rebias: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`h = (1 - u) h + u c` over a sequence, with `u = sigmoid(. - rebias)` and `c = tanh(.)`.

    Returns the output [batch, time, hidden] at unit scale, and the last plain state. The state is
    kept plain (0.26 at rebias 1), because a factor inside the loop would raise the loop's gain; the
    output is multiplied by 3.84, its exact inverse, outside.

    Args:
        input: [batch, time, features].
        hx: plain state [batch, hidden]; None starts from 0.
        w_ih, w_hh: [2 * hidden, features] and [2 * hidden, hidden], the update gate's rows first.
        constraint: ties output and input of the product with `w_ih`.
        rebias: taken from the update gate; above 0 the state changes slowly at the start, and
            gradients reach far back. It also sets the factor of the output.
    Source: arXiv 1607.03474; the cell and its rebias of 1 as in the demo of Blake et al. 2023.
    """
    states = None if hx is None else (hx,)
    check_recurrent("recurrent_highway", "rhn", input, 3, states, w_ih, w_hh, b_ih, b_hh)
    batch, time, features = input.shape
    hidden = w_hh.shape[-1]
    factors = recurrent_factors("rhn", features, hidden, batch * time, bias=-rebias)
    projected, product = project("rhn", input, w_ih, w_hh, b_ih, b_hh, factors, constraint)
    h, outputs = input.new_zeros(batch, hidden) if hx is None else hx, []
    for x in projected.unbind(1):
        update, candidate = (x + product(h)).chunk(2, -1)
        update = torch.sigmoid(update - rebias)
        h = h + update * (torch.tanh(candidate) - h)
        outputs.append(h)
    return scaled(torch.stack(outputs, 1), factors.emit_scale, factors.emit_scale), h
