"""The element-wise modules of `torch.nn`, softmax and GLU, unit-scaled, with u-muP's `mult`."""

from typing import ClassVar

from torch import Tensor, nn

import unitscale.functional as U

from .constrained import Constrained, counterpart

ReLU = counterpart(nn.ReLU, U.relu, "mult")
ReLU6 = counterpart(nn.ReLU6, U.relu6, "mult")
LeakyReLU = counterpart(nn.LeakyReLU, U.leaky_relu, "negative_slope", "mult")
GELU = counterpart(nn.GELU, U.gelu, "approximate", "mult")
SiLU = counterpart(nn.SiLU, U.silu, "mult")
Mish = counterpart(nn.Mish, U.mish, "mult")
ELU = counterpart(nn.ELU, U.elu, "alpha", "mult")
CELU = counterpart(nn.CELU, U.celu, "alpha", "mult")
SELU = counterpart(nn.SELU, U.selu, "mult")
Tanh = counterpart(nn.Tanh, U.tanh, "mult")
Sigmoid = counterpart(nn.Sigmoid, U.sigmoid, "mult")
LogSigmoid = counterpart(nn.LogSigmoid, U.logsigmoid, "mult")
Softplus = counterpart(nn.Softplus, U.softplus, "beta", "threshold", "mult")
Softsign = counterpart(nn.Softsign, U.softsign, "mult")
Hardtanh = counterpart(nn.Hardtanh, U.hardtanh, "min_val", "max_val", "mult")
Hardsigmoid = counterpart(nn.Hardsigmoid, U.hardsigmoid, "mult")
Hardswish = counterpart(nn.Hardswish, U.hardswish, "mult")
Hardshrink = counterpart(nn.Hardshrink, U.hardshrink, "lambd", "mult")
Softshrink = counterpart(nn.Softshrink, U.softshrink, "lambd", "mult")
Tanhshrink = counterpart(nn.Tanhshrink, U.tanhshrink, "mult")
Threshold = counterpart(nn.Threshold, U.threshold, "threshold", "value", "mult")
GLU = counterpart(nn.GLU, U.glu, "dim", "mult")
Softmax = counterpart(nn.Softmax, U.softmax, "dim", "mult")
Softmin = counterpart(nn.Softmin, U.softmin, "dim", "mult")


class PReLU(Constrained, nn.PReLU):
    """torch.nn.PReLU's arguments and `constraint`; at unit scale while slopes are as they start."""

    parameter_kinds: ClassVar[dict[str, str]] = {"weight": "norm"}

    def reset_parameters(self) -> None:
        """Set every slope to `init`."""
        nn.PReLU.reset_parameters(self)

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, channels, ...], or any shape with one slope."""
        return U.prelu(x, self.weight, init=self.init, constraint=self.constraint)
