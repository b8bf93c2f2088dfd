import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import unitscale.functional as U
from unitscale import nn as unn
from unitscale import optim


class Declared(nn.Module):
    """Stands for the modules of unitscale.nn: parameters plus what they say about them."""

    def __init__(self, parameter_kinds, **parameters):
        super().__init__()
        self.parameter_kinds = parameter_kinds
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


class Stack(nn.ModuleList):
    @property
    def residual_branches(self):
        return len(self)


def linear(*shape, kind="hidden"):
    return Declared({"weight": kind, "bias": "bias"}, weight=shape, bias=shape[:1])


def embedding(entries, width):
    table = Declared({"weight": "input"}, weight=(entries, width))
    table.embedding_dim = width
    return table


def language_model(width=16, depth=4):
    model = nn.Module()
    model.embedding = embedding(100, width)
    model.stack = Stack(linear(width, width) for _ in range(depth))
    model.norm = Declared({"weight": "norm"}, weight=(width,))
    model.readout = Declared({"weight": "output"}, weight=(100, width))
    return model


def rates(model, lr=1.0, **options):
    groups = optim.param_groups(model, lr, **options)
    return {name: group["lr"] for group in groups for name in group["param_names"]}


def test_rates_follow_kind_width_and_depth():
    assert rates(language_model(width=16, depth=4), lr=2.0) == {
        "embedding.weight": 2.0 / 4,
        **{f"stack.{i}.weight": 2.0 / 4 / 2 for i in range(4)},
        **{f"stack.{i}.bias": 2.0 / 128 / 2 for i in range(4)},
        "norm.weight": 2.0 / 128,
        "readout.weight": 2.0,
    }


def test_a_kind_may_have_a_rate_of_its_own():
    plain = rates(language_model(), lr=2.0)
    own = rates(language_model(), lr=2.0, rates={"input": 0.25, "output": 3.0})
    assert own == plain | {"embedding.weight": 2.0 / 4 / 4, "readout.weight": 6.0}
    (group,) = (
        group
        for group in optim.AdamW(language_model(), 2.0, rates={"output": 3.0}).param_groups
        if group["kind"] == "output"
    )
    assert (group["lr"], group["lr_factor"]) == (6.0, 3.0)


def test_each_parameter_is_in_one_group_with_its_name_and_factor():
    model = language_model()
    groups = optim.param_groups(model, 0.5)
    named = [pair for g in groups for pair in zip(g["param_names"], g["params"], strict=True)]
    assert sorted(named) == sorted(model.named_parameters())
    assert all(group["lr"] == 0.5 * group["lr_factor"] for group in groups)


@pytest.mark.parametrize(
    ("module", "factor"),
    [
        (linear(8, 4), 4**-0.5),
        (linear(8, 4, 3), 12**-0.5),
        (linear(8, 4, 3, 3), 36**-0.5),
        (linear(8, 4, 3, 3, 3), 108**-0.5),
        (linear(64, 4, kind="input"), 64**-0.5),
        (embedding(64, 4), 4**-0.5),
        (linear(8, 4, kind="output"), 1.0),
    ],
    ids=["linear", "conv1d", "conv2d", "conv3d", "input linear", "embedding", "readout"],
)
def test_width_is_read_from_the_shape(module, factor):
    assert rates(module)["weight"] == factor


def test_transposed_convolution_reads_fan_in_from_its_first_axis():
    module = nn.ConvTranspose2d(8, 6, 3, groups=2, bias=False)  # weight: (8, 3, 3, 3)
    module.parameter_kinds = {"weight": "hidden"}
    assert rates(module) == {"weight": (4 * 3 * 3) ** -0.5}


def test_depths_of_nested_stacks_multiply():
    model = Stack([Stack([linear(4, 4)] + [nn.Identity()] * 3)] + [nn.Identity()] * 3)
    assert rates(model)["0.0.weight"] == 4**-0.5 / 16**0.5


def test_metadata_survives_deepcopy():
    model = language_model()
    assert rates(copy.deepcopy(model)) == rates(model)


def test_frozen_parameters_are_left_out_even_of_unknown_kind():
    model = language_model()
    model.backbone = nn.Linear(4, 4).requires_grad_(False)
    assert not any(name.startswith("backbone") for name in rates(model))


def test_unknown_kind_names_the_parameter_its_class_and_the_fix():
    model = language_model()
    model.head = nn.Linear(16, 2)
    message = (
        r"no kind is known for 'head\.weight' \(in torch\.nn\..*Linear\).*kinds=\{'head\.weight'"
    )
    with pytest.raises(ValueError, match=message):
        optim.param_groups(model, 1.0)
    kinds = {"head.bias": "bias", "head.*": "output"}
    assert rates(model, kinds=kinds)["head.weight"] == 1.0
    assert rates(model, kinds={**kinds, "readout.weight": "hidden"})["readout.weight"] == 1 / 4


def test_tied_parameter_of_one_kind_is_listed_once():
    model = nn.ModuleDict({"one": linear(4, 4), "two": linear(4, 4)})
    model["two"].weight = model["one"].weight
    assert sorted(rates(model)) == ["one.bias", "one.weight", "two.bias"]


def test_tied_parameter_of_two_kinds_is_an_error_until_one_is_chosen():
    model = language_model()
    model.readout.weight = model.embedding.weight
    message = r"'embedding\.weight' \(input\) and 'readout\.weight' \(output\) are one tied"
    with pytest.raises(ValueError, match=message):
        optim.param_groups(model, 1.0)
    chosen = {"embedding.weight": "input", "readout.weight": "input"}
    assert rates(model, kinds=chosen)["embedding.weight"] == 1 / 4


def test_tied_parameter_at_two_depths_is_an_error():
    model = nn.ModuleDict({"outside": linear(4, 4), "stack": Stack([linear(4, 4), linear(4, 4)])})
    model["stack"][0].weight = model["outside"].weight
    message = r"'outside\.weight' \(depth 1\) and 'stack\.0\.weight' \(depth 2\)"
    with pytest.raises(ValueError, match=message):
        optim.param_groups(model, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr is -1\.0; expected a finite number >= 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": 1.0, "weight_decay": -0.1}, r"weight_decay is -0\.1"),
        ({"lr": 1.0, "optimizer": "adamax"}, "optimizer is 'adamax'; expected one of adam, adamw"),
        ({"lr": 1.0, "kinds": {"stak.*": "hidden"}}, r"kinds\['stak\.\*'\] matched no parameter"),
        ({"lr": 1.0, "kinds": {"readout.weigth": "output"}}, r"nearest: 'readout\.weight'"),
        (
            {"lr": 1.0, "kinds": {"norm.*": "gain"}},
            "kind of 'norm.weight' is 'gain'; the kinds are",
        ),
        (
            {"lr": 1.0, "rates": {"embedding": 2.0}},
            "rates names the kind 'embedding'; the kinds are",
        ),
        ({"lr": 1.0, "rates": {"input": -1.0}}, r"rates\['input'\] is -1\.0; expected a finite"),
        ({"lr": 1.0, "kinds": {"norm.*": "hidden"}}, r"at least 2 dimensions.*shape \(16,\)"),
    ],
)
def test_bad_value_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        optim.param_groups(language_model(), **options)


@pytest.mark.parametrize("count", [0, True, 2.0, "4"])
def test_bad_number_of_branches_is_named(count):
    model = nn.ModuleDict({"stack": linear(4, 4)})
    model["stack"].residual_branches = count
    with pytest.raises(ValueError, match=f"branches of 'stack' is {count!r}; it counts"):
        optim.param_groups(model, 1.0)


@pytest.mark.parametrize("depth", [4, 0, "deep"])
def test_an_attribute_called_depth_is_the_models_own(depth):
    """A depth of an image, a tree or a queue has nothing to do with learning rates."""
    model, plain = language_model(), rates(language_model())
    model.depth = model.stack[0].depth = depth
    assert rates(model) == plain


class ByHand(nn.Module):
    """A block that writes its residual sum itself."""

    def __init__(self):
        super().__init__()
        self.layer = unn.Linear(4, 4, bias=False)

    def forward(self, x):
        return U.residual_apply(lambda branch: self.layer(branch), x)


def test_a_stack_says_what_it_cannot_count():
    blocks = [ByHand() for _ in range(4)]
    with pytest.warns(UserWarning, match=r"Stack 'the model' counts 1 .*layers 0, 1, 2, 3, which"):
        optim.param_groups(unn.Stack(*blocks), 1.0)
    mixed = nn.ModuleDict({"stack": unn.Stack(unn.Residual(unn.Linear(4, 4)), blocks[0])})
    with pytest.warns(UserWarning, match=r"Stack 'stack' counts 1 .*layers 1, which"):
        optim.param_groups(mixed, 1.0)
    assert rates(unn.Stack(*blocks, branches=4))["0.layer.weight"] == 4**-0.5 / 4**0.5
    counted = unn.Stack(*(unn.Residual(unn.Linear(4, 4, bias=False)) for _ in range(4)))
    assert rates(counted)["0.body.weight"] == 4**-0.5 / 4**0.5


@pytest.mark.parametrize("branches", [0, -1, True, 2.0])
def test_a_bad_number_of_branches_is_refused_by_a_stack(branches):
    with pytest.raises(ValueError, match=f"Stack: branches is {branches!r}; expected"):
        unn.Stack(ByHand(), branches=branches)


def test_the_stack_of_a_transformer_is_counted():
    model = unn.TransformerDecoder(3, 16, 2)  # a warning is an error here
    factors = {group["lr_factor"] for group in optim.param_groups(model, 1.0)}
    assert any(factor == pytest.approx(16**-0.5 / 6**0.5) for factor in factors)


@pytest.mark.parametrize("lr", [0.5, 2.0])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_independent_decay_is_the_same_share_at_every_rate_and_width(lr, optimizer):
    groups = optim.param_groups(language_model(), lr, weight_decay=0.1, optimizer=optimizer)
    for group in groups:
        expected = 0.1 if group["kind"] in ("hidden", "input", "output") else 0.0
        assert group["lr"] * group["weight_decay"] == pytest.approx(expected, rel=1e-15)


def test_dependent_decay_and_the_decay_of_adam_are_passed_on():
    for options in ({"independent_weight_decay": False}, {"optimizer": "adam"}):
        groups = optim.param_groups(language_model(), 0.5, weight_decay=0.1, **options)
        assert {g["weight_decay"] for g in groups if g["kind"] == "hidden"} == {0.1}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("lr", [0.0, 5e-324])
def test_an_independent_decay_with_no_rate_to_be_a_share_of_is_refused(optimizer, lr):
    model = language_model()
    with pytest.raises(ValueError, match=rf"lr is {lr!r} with weight_decay=0.1; expected the peak"):
        optim.param_groups(model, lr, weight_decay=0.1, optimizer=optimizer)
    still = [{"params": [("w", model.stack[0].weight)], "lr": lr}]
    with pytest.raises(ValueError, match=rf"lr is {lr!r} with weight_decay=0.1"):
        optim.param_groups(still, 0.5, within=model, weight_decay=0.1, optimizer=optimizer)


def test_a_rate_of_zero_is_taken_where_no_decay_depends_on_it():
    model = language_model()
    for options in (
        {"weight_decay": 0.0},
        {"weight_decay": 0.1, "independent_weight_decay": False},
        {"weight_decay": 0.1, "optimizer": "adam"},
    ):
        groups = optim.param_groups(model, 0.0, **options)
        assert {group["lr"] for group in groups} == {0.0}
        decays = {g["weight_decay"] for g in groups if g["kind"] == "hidden"}
        assert decays == {options["weight_decay"]}
    still = optim.param_groups(model, 0.5, weight_decay=0.1, rates={"hidden": 0.0})
    assert {g["weight_decay"] for g in still if g["kind"] == "hidden"} == {0.0}


@pytest.fixture
def one_process_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
def test_kinds_and_widths_survive_sharding():
    model = language_model()
    before = rates(model)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    for layer in model.stack:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert isinstance(model.stack[0].weight, DTensor)
    assert rates(model) == before
