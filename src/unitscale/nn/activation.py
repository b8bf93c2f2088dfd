"""The element-wise modules of `torch.nn`, unit-scaled."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import unitscale.functional as U

from .constrained import Constrained


def counterpart(
    module: type[nn.Module], function: Callable[..., Tensor], *attributes: str
) -> type[nn.Module]:
    """The unit-scaled counterpart of a torch module that only calls a function.

    `function` gets the input, the named attributes of the module and its constraint; the class
    keeps the constructor of `module` and adds `constraint`.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        arguments = {name: getattr(self, name) for name in attributes}
        return function(x, **arguments, constraint=self.constraint)

    return type(
        module.__name__, (Constrained, module), {"forward": forward, "__module__": __name__}
    )


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
