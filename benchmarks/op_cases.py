"""Every operation of `unitscale.functional`, at least once, and what its tensors should measure."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from op_case import (
    Case,
    activation,
    attention,
    cell,
    convolution,
    distribution,
    fill,
    gated,
    ids,
    loss,
    normal,
    ones,
    recurrent,
    softmax,
    tied,
    zeros,
)
from torch import Tensor

import unitscale.functional as U
from unitscale.scaling.factors import activation_factors, logsumexp_factors


def cases() -> Iterator[Case]:
    """Every operation, at least once."""
    linear = {"input": normal(1024, 256), "weight": normal(512, 256), "bias": zeros(512)}
    readout = "muP: small logits at the start; legal after the last residual add"
    yield Case(op="linear", shape="1024x256 -> 512", operands=linear, given_up={"input": 2**0.5})
    yield Case(
        op="linear_readout",
        shape="1024x256 -> 512",
        operands=linear,
        constraints=(None,),
        plain=F.linear,
        expected={"output": (1 / 16, readout)},
    )
    yield Case(
        op="matmul",
        shape="4x128x256 @ 256x512",
        operands={"input": normal(4, 128, 256), "other": normal(256, 512)},
        given_up={"input": 2**0.5, "other": 2**0.5},
    )
    yield Case(
        op="bmm",
        shape="8x128x256 @ 8x256x64",
        operands={"input": normal(8, 128, 256), "mat2": normal(8, 256, 64)},
        given_up={"input": 0.5, "mat2": 0.5**0.5},
    )
    yield Case(
        op="einsum",
        shape="bhqd,bhkd->bhqk, 4x4x64x32 and 4x4x128x32",
        operands={"left": normal(4, 4, 64, 32), "right": normal(4, 4, 128, 32)},
        run=lambda a, b, **kw: U.einsum("bhqd,bhkd->bhqk", a, b, **kw),
        plain=lambda a, b: torch.einsum("bhqd,bhkd->bhqk", a, b),
        given_up={"left": 2.0, "right": 2**0.5},
    )
    yield Case(
        op="embedding",
        shape="8192 ids, table 1024x64",
        operands={"input": ids(1024, 8192), "weight": normal(1024, 64)},
        constraints=(),
    )

    yield convolution("conv1d", (256,), (64, 96), 7)
    yield convolution("conv1d", (256,), (64, 64), 7, groups=8)
    yield convolution("conv2d", (32, 32), (32, 48), 3)
    yield convolution("conv2d", (33, 33), (32, 64), 3, stride=2)
    yield convolution("conv2d", (8, 8), (32, 32), 3, padding=1)
    yield convolution("conv3d", (12, 12, 12), (16, 48), 2)
    yield convolution("conv_transpose1d", (128,), (64, 96), 5)
    yield convolution("conv_transpose2d", (24, 24), (32, 48), 4, stride=2)
    yield convolution("conv_transpose3d", (11, 11, 11), (16, 48), 2)

    yield activation("relu")
    yield activation("relu6")
    yield activation("leaky_relu", negative_slope=0.2)
    yield activation("rrelu")
    yield activation("threshold", threshold=0.5, value=0.1)
    yield activation("gelu")
    yield activation("gelu", approximate="tanh")
    yield activation("silu")
    yield activation("mish")
    yield activation("elu", alpha=0.5)
    yield activation("celu", alpha=2.0)
    yield activation("selu")
    yield activation("softplus", beta=2.0)
    yield activation("logsigmoid")
    yield activation("tanh")
    yield activation("sigmoid")
    yield activation("softsign")
    yield activation("hardtanh", min_val=-0.5, max_val=2.0)
    yield activation("hardsigmoid")
    yield activation("hardswish")
    yield activation("tanhshrink")
    yield activation("softshrink")
    yield activation("hardshrink")
    yield Case(
        op="prelu",
        shape="64x32x64, slope 0.25 per channel",
        operands={"input": normal(64, 32, 64), "weight": fill(0.25, 32)},
        given_up={"input": tied(activation_factors("leaky_relu", negative_slope=0.25))},
    )
    snake = lambda x: x + torch.sin(x) ** 2
    yield Case(
        op="elementwise",
        shape="256x1024, x + sin(x)^2",
        operands={"input": normal(256, 1024)},
        run=lambda x, **kw: U.elementwise(snake, **kw)(x),
        plain=snake,
        given_up={"input": 1.15697},  # E f^2 - (E f)^2 = 1.12046, E f'^2 = 1.49983
    )
    yield Case(
        op="glu",
        shape="256x2048",
        operands={"input": normal(256, 2048)},
        expected={},
        given_up={"input": ((1 + (1.846229 / 4.722646) ** 2) / 2) ** 0.5},
    )
    yield gated("silu_glu", "silu", F.silu)
    yield gated("gelu_glu", "gelu", F.gelu)
    yield gated("relu_glu", "relu", F.relu)
    yield gated("mish_glu", "mish", F.mish)

    row = {"input": normal(256, 512)}
    yield softmax("softmax", 256, 512)
    yield softmax("softmin", 256, 16)
    yield Case(op="log_softmax", shape="256x512", operands=row, options={"dim": -1}, constraints=())
    yield attention((8, 256, 64))
    yield attention((8, 256, 64), is_causal=True)
    yield attention((2, 256, 32), enable_gqa=True)
    yield attention((8, 128, 32), mult=8.0)

    yield Case(
        op="layer_norm",
        shape="512x512",
        operands={"input": normal(512, 512)},
        run=lambda x: U.layer_norm(x, 512),
        plain=lambda x: F.layer_norm(x, (512,)),
        constraints=(),
    )
    yield Case(
        op="layer_norm",
        shape="512x512, gain and bias",
        operands={"input": normal(512, 512), "weight": ones(512), "bias": zeros(512)},
        run=lambda x, w, b: U.layer_norm(x, 512, w, b),
        plain=lambda x, w, b: F.layer_norm(x, (512,), w, b),
        constraints=(),
    )
    yield Case(
        op="rms_norm",
        shape="512x512, gain",
        operands={"input": normal(512, 512), "weight": ones(512)},
        run=lambda x, w: U.rms_norm(x, 512, w),
        plain=lambda x, w: F.rms_norm(x, (512,), w),
        constraints=(),
    )
    channels = {"weight": ones(128), "bias": zeros(128)}
    yield Case(
        op="group_norm",
        shape="4x128x512, 8 groups",
        operands={"input": normal(4, 128, 512), **channels},
        run=lambda x, w, b: U.group_norm(x, 8, w, b),
        plain=lambda x, w, b: F.group_norm(x, 8, w, b),
        constraints=(),
    )
    yield Case(
        op="batch_norm",
        shape="4x128x512, training",
        operands={"input": normal(4, 128, 512), **channels},
        run=lambda x, w, b: U.batch_norm(x, None, None, w, b, training=True),
        plain=lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        constraints=(),
    )
    yield Case(
        op="instance_norm",
        shape="4x128x512",
        operands={"input": normal(4, 128, 512), **channels},
        run=lambda x, w, b: U.instance_norm(x, weight=w, bias=b),
        plain=lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        constraints=(),
    )

    for op, shape in (
        ("dropout", (256, 1024)),
        ("dropout1d", (64, 512, 8)),
        ("dropout2d", (64, 512, 2, 4)),
        ("dropout3d", (64, 512, 2, 2, 2)),
    ):
        text = "x".join(map(str, shape))
        yield Case(
            op=op,
            shape=f"{text}, p=0.25",
            operands={"input": normal(*shape)},
            options={"p": 0.25},
            constraints=(),
        )
    mean_of_training = (0.75**0.5, "the mean over what training computes")
    yield Case(
        op="dropout",
        shape="256x1024, p=0.25, training=False",
        operands={"input": normal(256, 1024)},
        options={"p": 0.25, "training": False},
        constraints=(),
        expected={"output": mean_of_training, "input": mean_of_training},
    )

    pair = {"input": normal(256, 512), "other": normal(256, 512)}
    half = 2**-0.5
    yield Case(op="add", shape="256x512", operands=pair, given_up={"input": half, "other": half})
    yield Case(
        op="add",
        shape="256x512, weights (3, 1)",
        operands=pair,
        options={"weights": (3.0, 1.0)},
        plain=lambda x, y, weights: 3 * x + y,
        given_up={"input": 0.9**0.5, "other": 0.1**0.5},
    )
    yield Case(
        op="add",
        shape="256x512 and 512",
        operands={"input": normal(256, 512), "other": normal(512)},
        given_up={"input": half, "other": half * 16},
    )
    for tau in (0.5, 1.0, 2.0):
        yield Case(
            op="residual_add",
            shape=f"256x512, tau={tau}",
            operands={"branch": normal(256, 512), "skip": normal(256, 512)},
            options={"tau": tau},
            plain=lambda branch, skip, tau: tau * branch + skip,
            constraints=(),
        )
    yield Case(
        op="residual_split",
        shape="256x512, gradients of both sides",
        operands={"input": normal(256, 512)},
        run=lambda x: torch.cat(U.residual_split(x)),
        plain=lambda x: torch.cat((x, x)),
        constraints=(),
    )
    yield Case(
        op="residual_apply",
        shape="256x512, branch of a fixed rotation",
        operands={"input": normal(256, 512)},
        run=lambda x: U.residual_apply(lambda h: h.roll(1, -1), x, 0.5),
        plain=lambda x: 0.5 * x.roll(1, -1) + x,
        constraints=(),
    )
    yield Case(op="mul", shape="256x512", operands=pair)
    yield Case(
        op="sum",
        shape="256x512, dim=1",
        operands=row,
        options={"dim": 1},
        given_up={"input": 512**-0.5},
    )
    yield Case(
        op="mean",
        shape="256x512, dim=1",
        operands=row,
        options={"dim": 1},
        given_up={"input": 512**-0.5},
    )
    yield Case(
        op="logsumexp",
        shape="1024x256, dim=1",
        operands={"input": normal(1024, 256)},
        options={"dim": 1},
        given_up={"input": tied(logsumexp_factors(256))},
    )
    yield Case(
        op="cumsum", shape="1024x64, dim=1", operands={"input": normal(1024, 64)},
        options={"dim": 1},
    )  # fmt: skip

    for axes, size in ((1, (512,)), (2, (32, 32)), (3, (16, 16, 16))):
        images = {"input": normal(16, 16, *size)}
        text = "16x16x" + "x".join(map(str, size))
        window = 2**axes
        yield Case(
            op=f"avg_pool{axes}d",
            shape=f"{text}, kernel 2",
            operands=images,
            options={"kernel_size": 2},
            given_up={"input": window**-0.5},
        )
        yield Case(
            op=f"max_pool{axes}d",
            shape=f"{text}, kernel 2",
            operands=images,
            options={"kernel_size": 2},
            given_up={"input": {2: 1.2112, 4: 1.4261, 8: 1.6376}[window] / window**0.5},
        )
        yield Case(
            op=f"adaptive_avg_pool{axes}d",
            shape=f"{text} -> {'x'.join('4' * axes)}",
            operands=images,
            options={"output_size": 4},
            given_up={"input": ((size[0] // 4) ** axes) ** -0.5},
        )

    tokens = {"input": zeros(1024, 256), "target": ids(256, 1024)}
    for reduction in ("mean", "sum", "none"):
        options = {"reduction": reduction}
        yield loss("cross_entropy", f"1024x256, {reduction}", tokens, options=options)
    yield loss(
        "cross_entropy",
        "1024x16, unit logits",
        {"input": normal(1024, 16), "target": ids(16, 1024)},
        expected={"input": (1.035, "exact at logits of 0")},
    )
    yield loss(
        "cross_entropy",
        "16x256x64, label_smoothing=0.1",
        {"input": zeros(16, 256, 64), "target": ids(256, 16, 64)},
        options={"label_smoothing": 0.1},
    )
    yield loss(
        "cross_entropy",
        "1024x256, class weights",
        tokens | {"weight": lambda: torch.rand(256) ** 2 * 10},
    )
    yield loss(
        "cross_entropy",
        "1024x256, half of the tokens ignored",
        {"input": zeros(1024, 256), "target": ids(256, 1024)},
        run=lambda x, target: U.cross_entropy(x, half_ignored(target)),
        plain=lambda x, target: F.cross_entropy(x, half_ignored(target)),
        expected={"input": (2**0.5, "a valid token has 2: the mean divides by half of the rows")},
    )
    yield loss(
        "cross_entropy",
        "1024x256, probabilities",
        {"input": zeros(1024, 256), "target": distribution(1024, 256)},
    )
    yield loss("nll_loss", "1024x256", tokens | {"input": normal(1024, 256)})
    binary = {"input": zeros(4096, 16), "target": lambda: (torch.rand(4096, 16) < 0.1).float()}
    yield loss("binary_cross_entropy_with_logits", "4096x16, 10 % positive", binary)
    yield loss(
        "binary_cross_entropy_with_logits",
        "4096x16, pos_weight 9",
        binary | {"pos_weight": fill(9.0, 16)},
        run=lambda x, y, w: U.binary_cross_entropy_with_logits(x, y, pos_weight=w),
        plain=lambda x, y, w: F.binary_cross_entropy_with_logits(x, y, pos_weight=w),
    )
    points = {"input": normal(256, 512), "target": normal(256, 512)}
    yield loss("mse_loss", "256x512", points)
    yield loss("l1_loss", "256x512", points)
    yield loss("huber_loss", "256x512, delta=0.5", points, options={"delta": 0.5})
    yield loss("smooth_l1_loss", "256x512, beta=2", points, options={"beta": 2.0})
    yield loss(
        "kl_div",
        "1024x256, batchmean",
        {"input": normal(1024, 256), "target": distribution(1024, 256)},
        options={"reduction": "batchmean"},
    )

    yield recurrent("rnn_tanh", 1, input=1.17, w_ih=1.69, w_hh=1.68)
    yield recurrent("rnn_relu", 1, output=0.94, input=1.17, w_ih=1.69, w_hh=1.89)
    yield recurrent("lstm", 4, input=1.16, w_ih=0.825, w_hh=0.977)
    yield recurrent("gru", 3, input=1.11, w_ih=0.9, w_hh=0.6)
    yield recurrent("recurrent_highway", 2, input=1.13, w_ih=1.13, w_hh=1.68)
    yield cell("rnn_tanh_cell", 1, output=1.0, input=0.766, h=0.769, w_ih=1.083, w_hh=1.088)
    yield cell("rnn_relu_cell", 1, output=0.823, input=0.708, h=0.71, w_ih=1.0, w_hh=1.2)
    yield cell("lstm_cell", 4, output=0.34, input=0.156, h=0.394, w_ih=0.11, w_hh=0.7)
    yield cell("gru_cell", 3, output=0.622, input=0.335, h=0.591, w_ih=0.273, w_hh=0.578)
    yield Case(
        op="pad_and_shift",
        shape="64x256x128",
        operands={"input": normal(64, 256, 128), "pad": normal(128)},
        plain=lambda x, pad: torch.cat((pad.expand(64, 1, 128), x), 1)[:, :256],
        constraints=(),
    )
    yield Case(
        op="rnn_output",
        shape="1024x128, of an LSTM",
        operands={"h": lambda: torch.randn(1024, 128) / 6.4},
        run=lambda h: U.rnn_output(h, "lstm"),
        plain=lambda h: h,
        constraints=(),
        expected={"h": (6.4, "constrained: the factor of both passes")},
    )


def half_ignored(target: Tensor) -> Tensor:
    """Every second token to be ignored, the others of class 0 to 255 in turn."""
    positions = torch.arange(target.numel(), device=target.device)
    return torch.where(positions % 2 == 0, positions % 256, -100)
