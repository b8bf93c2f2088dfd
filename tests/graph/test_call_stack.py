"""What is read of the stack of a call, which torch does not document."""

import torch
from torch import Tensor, nn

from unitscale.graph import engine


class Asks(nn.Module):
    """Its forward tells on which module it was called."""

    def __init__(self, found: list[nn.Module | None]) -> None:
        super().__init__()
        self.found = found

    def forward(self, x: Tensor) -> Tensor:
        self.found.append(engine.calling_module())
        return x


def test_calling_module_is_the_innermost_whose_call_runs() -> None:
    found: list[nn.Module | None] = []
    asks = Asks(found)
    parent = nn.Sequential(asks)
    parent(torch.ones(1))
    asks.register_forward_hook(lambda *args: None)  # torch calls `forward` elsewhere then
    parent(torch.ones(1))
    asks.forward(torch.ones(1))
    assert found == [asks, asks, None]
