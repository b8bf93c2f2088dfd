"""The model of transformers that is found in a model, and what is refused around it."""

import pytest
import torch
from torch import Tensor, nn

from deploy.small import Gated, evaluated
from unitscale import deploy
from unitscale.deploy.pretrained import exported_part


class PreTrainedModel(nn.Module):
    """Known by its name and that of its package, as that of transformers is."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


PreTrainedModel.__module__ = "transformers.modeling_utils"


def test_the_outermost_one_is_found_wherever_it_is() -> None:
    inner = PreTrainedModel(base=PreTrainedModel())
    wrapper = nn.ModuleDict({"head": nn.Linear(2, 2), "model": inner})
    for model, path in ((inner, ""), (wrapper, "model")):
        found = exported_part(model, any_module=False)
        assert (found.module, found.path) == (inner, path)
    assert exported_part(wrapper, any_module=True).module is wrapper


def test_paths_are_those_within_it() -> None:
    found = exported_part(nn.ModuleDict({"model": PreTrainedModel()}), any_module=False)
    assert found.within("model.layers.0") == "layers.0"
    with pytest.raises(ValueError, match="'head' is rounded and is outside of 'model'"):
        found.within("head")
    assert found.dtype == torch.float32


def test_two_models_are_refused() -> None:
    two = nn.ModuleDict({"a": PreTrainedModel(), "b": PreTrainedModel()})
    with pytest.raises(ValueError, match="has 2 models of transformers inside; servers load one"):
        exported_part(two, any_module=False)


def test_a_model_that_holds_codes_already_is_refused() -> None:
    model = PreTrainedModel()
    model.hf_quantizer = object()
    with pytest.raises(ValueError, match="was loaded from quantized files"):
        exported_part(model, any_module=False)


def test_layers_outside_of_the_model_are_refused(tmp_path: object) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.extra = PreTrainedModel(mlp=Gated()), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.extra(self.model.mlp(x))

    with pytest.raises(ValueError, match="'extra' is rounded and is outside of 'model'"):
        deploy.export(evaluated(Around()), f"{tmp_path}/out")
