import pytest
import torch

import unitscale as us
from growth import tiny
from unitscale.anatomy.architecture import TO, read, write
from unitscale.growth.space import copied, padded
from unitscale.growth.tensor import Growth

ASKED = [
    ("gpt2", {"width": 24}),
    ("gpt2", {"width": 18}),
    ("gpt2", {"ffn": 70}),
    ("llama", {"width": 18, "heads": 9, "kv_heads": 3, "ffn": 33}),
    ("llama", {"width": 36}),
    ("bert", {"width": 24}),
    ("vit", {"width": 30}),
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("name", "asked"), ASKED)
def test_grown_gradients_obey_the_chain_rule(name, asked, tied):
    """The old gradient is what comes back of the new one through the map of the values."""
    more = {} if name == "vit" else {"tie_word_embeddings": tied}
    model = tiny.MODELS[name](**more)
    made = us.growth.plan(model, **asked)
    for key, parameter in model.named_parameters():
        growth = made.growth(key)
        old = parameter.detach().double().requires_grad_()
        gradient = torch.randn(old.shape, dtype=torch.float64)
        growth.values(old).backward(growth.moment(gradient, "first"))
        torch.testing.assert_close(old.grad, gradient, rtol=1e-12, atol=1e-12)


def test_a_doubled_layer_is_the_example_of_the_page():
    spaces = {"q": copied(1, 2), "ffn": copied(1, 2)}
    matrix = Growth(uses=(write("ffn"), read("q")), spaces=spaces, norm="rms")
    bias = Growth(uses=(write("ffn"),), spaces=spaces, norm="rms")
    assert matrix.values(torch.tensor([[8.0]])).tolist() == [[4.0, 4.0], [4.0, 4.0]]
    assert matrix.moment(torch.tensor([[8.0]]), "first").tolist() == [[4.0, 4.0], [4.0, 4.0]]
    assert matrix.moment(torch.tensor([[8.0]]), "second").tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert bias.values(torch.tensor([8.0])).tolist() == [8.0, 8.0]
    assert bias.moment(torch.tensor([8.0]), "first").tolist() == [4.0, 4.0]


@pytest.mark.parametrize("new", [4, 5, 6])
def test_noise_sums_to_zero_over_copies(new):
    growth = Growth(uses=(TO, read("ffn")), spaces=spaces_to(new), norm="rms")
    grown = growth.values(torch.randn(3, 2, dtype=torch.float64))
    noisy = growth.noise(grown, 0.1, torch.Generator().manual_seed(0))
    difference = noisy - grown
    source = growth.spaces["ffn"].source
    sums = torch.zeros(3, 2, dtype=torch.float64).index_add_(1, source, difference)
    assert sums.abs().max() <= 1e-15
    assert difference.abs().min() > 0
    relative = difference.square().mean().sqrt() / grown.square().mean().sqrt()
    assert 0.02 < relative < 0.2


def test_padding_and_what_stays_get_no_noise():
    growth = Growth(uses=(None, read("residual")), spaces={"residual": padded(2, 3)}, norm="rms")
    grown = growth.values(torch.randn(3, 2))
    assert growth.noise(grown, 0.1, torch.Generator()).equal(grown)
    growth = Growth(uses=(TO, read("ffn")), spaces=spaces_to(2), norm="rms")
    assert growth.noise(torch.ones(3, 2), 0.1, torch.Generator()).equal(torch.ones(3, 2))


def spaces_to(new):
    return {"residual": padded(3, 3), "ffn": copied(2, new)}
