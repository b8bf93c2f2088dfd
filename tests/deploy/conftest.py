"""One exported Llama for all tests of this folder: capturing a model is what takes time here."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import unitscale as us
from deploy.tiny import ids, logits, made
from unitscale import deploy


@dataclass(frozen=True)
class Served:
    """A Llama trained for two steps, what its evaluation gives, and its export."""

    folder: Path
    export: deploy.Export
    state: dict[str, Tensor]
    units: dict[str, tuple[int, int]]
    ours: Tensor
    full_precision: Tensor


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Served:
    model = made("llama").train()
    us.unit_scale(model, "fp8-serve")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(ids(), labels=ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    ours = logits(model.eval(), ids())
    folder = tmp_path_factory.mktemp("served") / "llama"
    export = deploy.export(model, folder)
    units = {
        row.path: (row.weight_log2, row.input_log2)
        for row in us.units.layer_units(model)
        if row.weight_log2 is not None and row.input_log2 is not None
    }
    state = {name: value.clone() for name, value in model.state_dict().items()}
    us.unscale(model)
    return Served(folder, export, state, units, ours, logits(model, ids()))
