import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import unitscale as us
from compress import trained
from growth import tiny
from unitscale.compress.mask import masked_layers
from unitscale.compress.search import mean_loss

ONE = {"num_hidden_layers": 1}


def inputs_of(model):
    return {"input_ids": tiny.batch_for(model)["input_ids"]}


def test_the_smallest_weights_of_each_matrix_are_zero():
    model = tiny.llama()
    before = copy.deepcopy(model.state_dict())
    us.compress.mask_smallest(model, 0.5)
    assert us.compress.sparsity(model) == pytest.approx(0.5, abs=0.01)
    assert len(masked_layers(model)) == 2 * 7 + 1
    for name, module in masked_layers(model).items():
        size, hidden = before[f"{name}.weight"].abs(), module.weight_mask == 0
        assert size[hidden].max() <= size[~hidden].min()
        assert (module.weight[hidden] == 0).all()


def test_embeddings_and_what_is_tied_to_them_have_no_mask():
    model = tiny.llama(tie_word_embeddings=True)
    us.compress.mask_smallest(model, 0.5)
    assert "lm_head" not in masked_layers(model)
    assert "model.embed_tokens" not in masked_layers(model)


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("llama", "before"),
        pytest.param("gpt2", "before", marks=pytest.mark.slow),
        # Every module's graph is made anew.
        pytest.param("llama", "after a step", marks=pytest.mark.slow),
        pytest.param("gpt2", "after a step", marks=pytest.mark.slow),
    ],
)
def test_masks_stay_in_force_under_a_recipe(name, when):
    model = tiny.MODELS[name](**(ONE if name == "llama" else {"n_layer": 1}))
    given = inputs_of(model)
    if when == "before":
        us.compress.mask_smallest(model, 0.5)
    us.unit_scale(model, "fp8")
    model(**given).logits.square().mean().backward()
    if when != "before":
        us.compress.mask_smallest(model, 0.5)
    model.zero_grad()
    model(**given).logits.square().mean().backward()
    number = us.compress.check_masks(model, given)
    total = sum(m.weight.numel() for m in masked_layers(model).values())
    assert number == pytest.approx(total / 2, abs=20)
    for module in masked_layers(model).values():
        assert (module.weight_orig.grad[module.weight_mask == 0] == 0).all()
    assert us.coverage(model) > 0.9


def test_a_mask_that_is_not_in_force_is_found():
    model = tiny.llama(**ONE)
    us.compress.mask_smallest(model, 0.5)
    module = model.model.layers[0].mlp.up_proj
    before = module.weight_orig.detach().clone()
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod):
            del module._forward_pre_hooks[key]
    module.weight = module.weight_orig  # as a library would that knows nothing of masks
    with pytest.raises(ValueError, match=r"mask of model.layers.0.mlp.up_proj is not in force"):
        us.compress.check_masks(model, inputs_of(model))
    assert module.weight_orig.equal(before)


def test_rounds_with_training_between_beat_one_shot():
    batches = list(trained.batches(7, 2))
    dense = mean_loss(trained.teacher(), batches)
    once = us.compress.mask_smallest(trained.teacher(), 0.8)
    damage = mean_loss(once, batches) - dense
    model = trained.teacher()

    def recover(own, number):
        trained.train(own, lambda batch: own(**batch).loss, trained.batches(20 + number, 12), 3e-3)

    found = us.compress.sparsify(model, 0.8, rounds=4, recover=recover)
    assert found == pytest.approx([1 - 0.2 ** (r / 4) for r in (1, 2, 3, 4)], abs=0.01)
    assert us.compress.sparsity(model) == pytest.approx(0.8, abs=0.01)
    us.compress.check_masks(model, batches[0])
    assert mean_loss(model, batches) - dense < damage / 2


def test_zeros_can_be_made_permanent():
    model = tiny.llama(**ONE)
    names = set(model.state_dict())
    before = model(**inputs_of(model)).logits
    us.compress.mask_smallest(model, 0.5)
    masked = model(**inputs_of(model)).logits
    us.compress.make_permanent(model)
    assert set(model.state_dict()) == names
    assert model(**inputs_of(model)).logits.equal(masked)
    assert not masked.equal(before)


def test_bad_input_is_one_line_and_changes_nothing():
    model = tiny.llama(**ONE)
    with pytest.raises(ValueError, match="amount is 1; expected from 0 to below 1"):
        us.compress.mask_smallest(model, 1)
    with pytest.raises(ValueError, match="'mlp' is no module with a matrix"):
        us.compress.mask_smallest(model, 0.5, layers=["lm_head", "mlp"])
    with pytest.raises(ValueError, match="has no mask"):
        us.compress.check_masks(model, inputs_of(model))
    with pytest.raises(ValueError, match="has no mask"):
        us.compress.make_permanent(model)
    with pytest.raises(ValueError, match="rounds is 0"):
        us.compress.sparsify(model, 0.5, rounds=0, recover=print)
    assert not masked_layers(model)
    us.compress.mask_smallest(model, 0.5)
    with pytest.raises(ValueError, match=r"amount is 0.3, and 0.5 of .* is zero"):
        us.compress.mask_smallest(model, 0.3)
    assert us.compress.sparsity(model) == pytest.approx(0.5, abs=0.01)

    def forget(own, _):
        us.compress.make_permanent(own)

    with pytest.raises(ValueError, match="recover must leave the masks"):
        us.compress.sparsify(model, 0.9, rounds=2, recover=forget)


def test_a_weight_that_is_computed_takes_no_mask_and_nothing_is_changed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parametrizations.weight_norm(model[1])
    with pytest.raises(ValueError, match="the weight of '1' is no parameter but computed") as error:
        us.compress.mask_smallest(model, 0.5)
    assert "\n" not in str(error.value)
    assert not masked_layers(model)
    us.compress.mask_smallest(model, 0.5, layers=["0"])
    assert list(masked_layers(model)) == ["0"]


def test_a_part_under_a_recipe_keeps_its_masks():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    us.compress.mask_smallest(model, 0.5)
    us.unit_scale(model[0], "fp8")
    with pytest.raises(ValueError, match="the model is under a recipe"):
        us.compress.make_permanent(model)
    assert list(masked_layers(model)) == ["0", "1"]


@pytest.mark.parametrize("recipe", [None, "fp8"])
def test_a_masked_model_is_copied_and_pickled(recipe):
    """Before a call and after one, its weight being a result of autograd; with units if it has."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    us.compress.mask_smallest(model, 0.5)
    if recipe:
        us.unit_scale(model, recipe, inner="eager")
    x = torch.randn(4, 8)
    for _ in range(2):
        copied = copy.deepcopy(model)
        assert list(masked_layers(copied)) == ["0", "2"]
        assert copied(x).equal(model(x))
        copied(x).sum().backward()
        assert model[0].weight_orig.grad is None
        assert (copied[0].weight_orig.grad[copied[0].weight_mask == 0] == 0).all()
        copied[0].weight_orig.data.zero_()
        assert not copied(x).equal(model(x))
        assert recipe is None or us.coverage(copied) == 1.0
    assert torch.optim.swa_utils.AveragedModel(model)(x).equal(model(x))
    if recipe is None:  # that of a scaled one is plain, and says so
        loaded = copy.deepcopy(pickle.loads(pickle.dumps(model)))
        assert loaded(x).equal(model(x))
        assert list(masked_layers(loaded)) == ["0", "2"]
    copied = copy.deepcopy(us.compress.make_permanent(model))
    assert copied(x).equal(model(x))
    assert set(copied.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("recipe", ["fp8", "fp8-delayed"])
def test_units_stay_when_masks_become_zeros(recipe):
    """Nothing that is rounded changes, so no output does: the call does not measure."""
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    us.compress.mask_smallest(model, 0.5)
    scale = us.unit_scale if recipe == "fp8" else us.apply_recipe
    scale(model, recipe, inner="eager")
    for _ in range(4):
        model(torch.randn(32, 8)).square().mean().backward()
    x = torch.randn(32, 8)
    with torch.no_grad():
        before = model(x)
        units = {row.name: (row.s, row.phi) for row in us.unit_rows(model)}
        us.compress.make_permanent(model)
        assert model(x).equal(before)
    after = {row.name: (row.s, row.phi) for row in us.unit_rows(model)}
    assert after["0.weight"] == units["0.mul"]
    assert after["2.weight"] == units["2.mul"]
    assert {n: after[n] for n in units.keys() & after} == {
        n: units[n] for n in units.keys() & after
    }
    assert us.coverage(model) == 1.0
    model(x).square().mean().backward()
    assert model[0].weight.grad is not None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_mask_on_the_model_itself_becomes_zeros_under_its_units():
    model = us.unit_scale(us.compress.mask_smallest(nn.Linear(8, 4), 0.5), "fp8", inner="eager")
    x = torch.randn(32, 8)
    model(x).square().mean().backward()
    before = model(x)
    assert us.compress.make_permanent(model)(x).equal(before)
    with us.full_precision(model), pytest.raises(ValueError, match="has no mask"):
        us.compress.make_permanent(model)
    us.compress.mask_smallest(model, 0.5)
    with us.full_precision(model), pytest.raises(ValueError, match="inside of us"):
        us.compress.make_permanent(model)


def test_weights_that_something_else_makes_have_no_mask():
    own, shared = nn.Linear(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    model = us.compress.mask_smallest(nn.Sequential(own, shared), 0.5, layers="0")
    assert list(masked_layers(model)) == ["0"]
    quantized = us.deploy.quantize(nn.Sequential(nn.Linear(8, 8)), "fp8-dynamic")
    with pytest.raises(ValueError, match="or quantized"):
        us.compress.mask_smallest(quantized, 0.5)


def test_attention_of_torch_trains_on_under_masks():
    """It reads the weight of `out_proj` without a call, by which a mask would be applied."""
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    us.compress.mask_smallest(model, 0.5)
    assert sorted(masked_layers(model)) == ["linear1", "linear2"]
    optimizer, x = torch.optim.SGD(model.parameters(), 0.1), torch.randn(2, 3, 8)
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
    assert us.compress.check_masks(model, x) == 2 * 64


@pytest.mark.parametrize(
    ("amount", "recover", "message"),
    [
        ("0.5", print, "amount is '0.5'"),
        (2.0, print, "amount is 2.0"),
        (-1.0, print, "amount is -1.0"),
        (0.5, None, "recover is None; expected a function"),
    ],
)
def test_rounds_are_checked_before_the_first(amount, recover, message):
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises((ValueError, TypeError), match=message):
        us.compress.sparsify(model, amount, rounds=2, recover=recover)
    assert not masked_layers(model)
