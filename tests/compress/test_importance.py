import pytest
import torch

import unitscale as us
from compress import trained
from growth import tiny
from unitscale.compress.importance import over_tokens
from unitscale.units.forward import session_of


def inputs_of(model):
    return {name: value for name, value in tiny.batch_for(model).items() if name != "labels"}


@pytest.mark.parametrize("name", tiny.MODELS)
def test_scores_are_norms_of_what_flows_through(name):
    model = tiny.MODELS[name]()
    found = us.compress.measure(model, [inputs_of(model)])
    known = us.compress.plan(model, importance=found, depth=1).known
    seen = {}
    for space, star in zip(("heads", "neurons"), known.ends, strict=True):
        module = model.get_submodule(star.replace("*", "1"))
        module.register_forward_pre_hook(
            lambda _, given, space=space: seen.update({space: given[0]})
        )
    with torch.no_grad():
        model.eval()(**inputs_of(model))
    neurons = seen["neurons"].double().abs().mean(1).norm(dim=0)
    torch.testing.assert_close(found.neurons[1], neurons)
    heads = seen["heads"].double().unflatten(-1, (found.heads.shape[1], -1)).norm(dim=-1)
    torch.testing.assert_close(found.heads[1], heads.mean(1).norm(dim=0))
    assert found.channels.shape == (12,)
    assert (found.layers > 0).all()


def test_tokens_that_the_mask_leaves_out_do_not_count():
    x = torch.tensor([[[1.0], [3.0], [100.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert over_tokens(x, mask, "mean").item() == 2
    assert over_tokens(x, mask, "l2").item() == pytest.approx(5**0.5)
    assert over_tokens(x, mask, "variance").item() == pytest.approx(1)


def test_a_model_under_a_recipe_gives_the_scores_of_the_plain_one():
    model = tiny.gpt2(n_layer=1)
    batch = inputs_of(model)
    plain = us.compress.measure(model, [batch])
    us.unit_scale(model, "fp8")
    scaled = us.compress.measure(model, [batch])
    assert plain.neurons.equal(scaled.neurons)
    assert session_of(model) is not None
    assert session_of(model).store.step == 0


def test_both_measures_of_layers_agree_on_the_most_important():
    model = trained.teacher()
    given = list(trained.batches(2, 3))
    losses = us.compress.layer_losses(model, given)
    blocks = us.compress.measure(model, given).layers
    assert losses.argmax() == blocks.argmax()
    assert (losses > 0).all()
    assert len(model.model.layers) == 2


def test_magnitude_and_random_scores_have_the_shape_of_the_model():
    model = tiny.llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = 100.0
    by_size = us.compress.magnitude(model)
    assert by_size.neurons[0].argmax() == 3
    assert by_size.heads.shape == (2, 4)
    one, other = us.compress.drawn(model, 1), us.compress.drawn(model, 2)
    assert not one.channels.equal(other.channels)
    assert one.channels.equal(us.compress.drawn(model, 1).channels)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there is no batch"),
        ([{"pixel_values": torch.full((1, 1, 8, 8), float("nan"))}], "batch 0 holds NaN"),
        ([{"pixel_values": torch.zeros(0, 1, 8, 8)}], "batch 0 is empty"),
    ],
)
def test_streams_that_show_nothing_are_refused(batches, message):
    model = tiny.vit()
    with pytest.raises(ValueError, match=message):
        us.compress.measure(model, batches)
    assert not any(module._forward_hooks for module in model.modules())


def test_other_bad_input_is_one_line():
    model = tiny.vit()
    with pytest.raises(ValueError, match="sequence is 'max'; expected mean, l2, variance"):
        us.compress.measure(model, [], sequence="max")
    with pytest.raises(ValueError, match="there is no batch"):
        us.compress.layer_losses(model, [])
    with pytest.raises(ValueError, match="gives no loss; batches need labels"):
        us.compress.layer_losses(model, [inputs_of(model)])
    with pytest.raises(ValueError, match="Linear is no architecture that compress knows"):
        us.compress.measure(torch.nn.Linear(2, 2), [])
    with torch.no_grad():
        model.vit.layernorm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="channels holds NaN"):
        us.compress.magnitude(model)


def test_graphs_that_were_compiled_before_hide_nothing():
    """A batch that fits such a graph runs through no hook, and did not count beside others."""
    model = tiny.gpt2().eval()
    batches = [tiny.batch_for(model), {"input_ids": torch.arange(10).view(2, 5)}]
    expected = us.compress.measure(model, batches)
    model.compile(backend="eager")
    with torch.no_grad():
        model(**batches[0])
    found = us.compress.measure(model, batches)
    for name in ("heads", "neurons", "channels", "layers"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda batch: batch, TypeError, "batches is a dict; expected several"),
        (lambda batch: batch["input_ids"], TypeError, "batches is a Tensor"),
        (lambda batch: None, TypeError, "batches is a NoneType"),
        (lambda batch: [batch, 3], TypeError, "batch 1 is a int"),
        (
            lambda batch: [{**batch, "attention_mask": torch.zeros(3, 7).long()}],
            ValueError,
            "attention_mask of batch 0 leaves no token",
        ),
    ],
)
def test_what_is_no_stream_of_batches_is_refused(make, error, message):
    model = tiny.gpt2()
    batches = make(tiny.batch_for(model))
    for measured in (us.compress.measure, us.compress.layer_losses):
        with pytest.raises(error, match=message):
            measured(model, batches)


def test_plans_take_scores_and_apply_takes_plans():
    model = tiny.gpt2()
    with pytest.raises(ValueError, match="seed is -1; expected a whole number"):
        us.compress.drawn(model, -1)
    with pytest.raises(TypeError, match="importance is a NoneType"):
        us.compress.plan(model, importance=None, ffn=9)
    with pytest.raises(TypeError, match="got a GPT2LMHeadModel and a NoneType"):
        us.compress.apply(model, None)
