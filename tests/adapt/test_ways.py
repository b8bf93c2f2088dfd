"""Adapting models as people have them: compiled, copied, pickled, of few bits, masked, frozen."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import unitscale as us


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, x):
        return 2 * x


def compiled_in_place(model):
    plain = copy.deepcopy(model)
    model.compile(backend="eager")
    with torch.no_grad():
        model(torch.zeros(6, 1, 8, 8))  # a graph without the hooks of an adapter
    return model, plain


def compiled_around(model):
    return torch.compile(copy.deepcopy(model), backend="eager"), model


def copied(model):
    return copy.deepcopy(model), model


def pickled(model):
    return pickle.loads(pickle.dumps(model)), model


def frozen(model):
    return copy.deepcopy(model).requires_grad_(False), model


def masked(model):
    plain = us.compress.mask_smallest(copy.deepcopy(model), 0.5)
    return us.compress.mask_smallest(model, 0.5), us.compress.make_permanent(plain)


def parametrized(model):
    plain = copy.deepcopy(model)
    for name in ("classifier", "vit.layers.0.mlp.fc1"):
        parametrize.register_parametrization(model.get_submodule(name), "weight", Doubled())
        plain.get_submodule(name).weight.data.mul_(2)
    return model, plain


def answers(model, source_images, images):
    foa = us.adapt.FOA(model, source_images, n_prompts=1, population=4)
    return [foa(images), us.adapt.T3A(model)(images)]


@pytest.mark.parametrize(
    "way",
    [compiled_in_place, compiled_around, copied, pickled, frozen, masked, parametrized],
    ids=lambda way: way.__name__,
)
def test_adapters_answer_as_for_the_plain_model(way, vit, images, source_images):
    model, plain = way(vit(num_hidden_layers=1))
    found, expected = (answers(one.eval(), source_images[:6], images) for one in (model, plain))
    if way not in (compiled_in_place, compiled_around):  # whose backward pass takes long to capture
        found.append(us.adapt.TENT(model)(images))
        expected.append(us.adapt.TENT(plain)(images))
    for own, wanted in zip(found, expected, strict=True):
        assert own.equal(wanted)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (way is not frozen), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_few_bits_are_adapted_in_them(dtype, vit, images, source_images):
    model = vit(num_hidden_layers=1).to(dtype)
    for answer in answers(model, source_images.to(dtype), images.to(dtype)):
        assert answer.isfinite().all()
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_module_around_the_model_is_refused_by_name(vit, source_images):
    model = nn.DataParallel(vit(num_hidden_layers=1)).eval()
    for adapter in (lambda: us.adapt.FOA(model, source_images), lambda: us.adapt.T3A(model)):
        with pytest.raises(ValueError, match="around a model; give the model: model"):
            adapter()
