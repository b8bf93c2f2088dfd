"""The element-wise modules of `torch.nn`, softmax and GLU, unit-scaled."""

from typing import ClassVar

from torch import Tensor, nn

import unitscale.functional as U

from .constrained import Constrained, counterpart

ReLU = counterpart(nn.ReLU, U.relu)
ReLU6 = counterpart(nn.ReLU6, U.relu6)
LeakyReLU = counterpart(nn.LeakyReLU, U.leaky_relu, "negative_slope")
GELU = counterpart(nn.GELU, U.gelu, "approximate")
SiLU = counterpart(nn.SiLU, U.silu)
Mish = counterpart(nn.Mish, U.mish)
ELU = counterpart(nn.ELU, U.elu, "alpha")
CELU = counterpart(nn.CELU, U.celu, "alpha")
SELU = counterpart(nn.SELU, U.selu)
Tanh = counterpart(nn.Tanh, U.tanh)
Sigmoid = counterpart(nn.Sigmoid, U.sigmoid)
LogSigmoid = counterpart(nn.LogSigmoid, U.logsigmoid)
Softplus = counterpart(nn.Softplus, U.softplus, "beta", "threshold")
Softsign = counterpart(nn.Softsign, U.softsign)
Hardtanh = counterpart(nn.Hardtanh, U.hardtanh, "min_val", "max_val")
Hardsigmoid = counterpart(nn.Hardsigmoid, U.hardsigmoid)
Hardswish = counterpart(nn.Hardswish, U.hardswish)
Hardshrink = counterpart(nn.Hardshrink, U.hardshrink, "lambd")
Softshrink = counterpart(nn.Softshrink, U.softshrink, "lambd")
Tanhshrink = counterpart(nn.Tanhshrink, U.tanhshrink)
Threshold = counterpart(nn.Threshold, U.threshold, "threshold", "value")
GLU = counterpart(nn.GLU, U.glu, "dim")
Softmax = counterpart(nn.Softmax, U.softmax, "dim")
Softmin = counterpart(nn.Softmin, U.softmin, "dim")


class PReLU(Constrained, nn.PReLU):
    """torch.nn.PReLU's arguments and `constraint`; at unit scale while slopes are as they start."""

    parameter_kinds: ClassVar[dict[str, str]] = {"weight": "norm"}

    def reset_parameters(self) -> None:
        """Set every slope to `init`."""
        nn.PReLU.reset_parameters(self)

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, channels, ...], or any shape with one slope."""
        return U.prelu(x, self.weight, init=self.init, constraint=self.constraint)
