"""What is said of shapes, and whom the verdict speaks for."""

import pytest
import torch
from torch import nn

from unitscale.gemm.payoff import Shape
from unitscale.units import weigh as room
from unitscale.units.weigh import model_on_paper, speaks_for, weigh


def test_layers_of_one_shape_are_one_row():
    found = weigh([("a", Shape(64, 32, 32)), ("b", Shape(64, 32, 32)), ("c", Shape(64, 32, 64))])
    assert [(row["count"], row["layers"]) for row in found["shapes"]] == [
        (2, ["a", "b"]),
        (1, ["c"]),
    ]
    single, double = found["shapes"][1]["bf16_s"], found["shapes"][0]["bf16_s"]
    assert found["total"]["bf16_s"] == pytest.approx(2 * double + single)


def test_total_with_fp8_where_it_pays_is_never_slower():
    """Everywhere it may be: a small layer loses."""
    large, little = Shape(8192, 8192, 8192), Shape(16, 4096, 4096)
    total = weigh([("", large), *[("", little)] * 200], "h100")["total"]
    assert total["tensorwise"]["everywhere"] < 1 < total["tensorwise"]["where yes"]


def test_model_is_made_without_its_values():
    model = model_on_paper(lambda: nn.Linear(100_000, 100_000))
    assert model.weight.device.type == "meta"
    model = model_on_paper(lambda: (nn.Linear(4, 4), torch.ones(2, 4)))  # as `analyse` takes it
    assert model.in_features == 4
    with pytest.raises(ValueError, match="made a int; expected a torch module"):
        model_on_paper(lambda: 3)
    with pytest.raises(ValueError, match="made a tuple; expected a torch module"):
        model_on_paper(lambda: (3, nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"failed on the meta device: RuntimeError: .*--shapes"):
        model_on_paper(lambda: torch.ones(1).item())


def test_nothing_to_weigh_is_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        weigh([])


@pytest.mark.parametrize(
    ("gpu", "title", "words"),
    [
        (None, "H100 SXM", "no FP8 hardware; --device-name"),
        ("NVIDIA H200", "H200 SXM", "the device of this machine, NVIDIA H200"),
        ("NVIDIA T4", "H100 SXM", "NVIDIA T4 is not in the table"),
    ],
)
def test_it_says_for_which_hardware_it_speaks(monkeypatch, gpu, title, words):
    monkeypatch.setattr(room.torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(room.torch.cuda, "get_device_name", lambda index: gpu)
    device, decided = speaks_for(None)
    assert (device.title, words in decided) == (title, True)
    assert speaks_for("mi300x")[1] == "named by --device-name"
