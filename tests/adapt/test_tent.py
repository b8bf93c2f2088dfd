import pytest
import torch
from torch import nn

import unitscale as us
from unitscale.adapt.score import entropy


def test_one_step_of_sgd_on_the_entropy_of_norms_alone(vit, images):
    model, by_hand = vit(), vit()
    tent = us.adapt.TENT(model, lr=0.1, momentum=0.9)
    norms = [m for m in by_hand.modules() if isinstance(m, nn.LayerNorm)]
    optimizer = torch.optim.SGD([p for m in norms for p in m.parameters()], lr=0.1, momentum=0.9)
    for _ in range(2):
        expected = by_hand(images).logits
        optimizer.zero_grad()
        entropy(expected).mean().backward()
        optimizer.step()
        assert torch.equal(tent(images), expected)
    for mine, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert len(tent.parameters) == 2 * len(norms) == 10
    assert not torch.equal(model.vit.layernorm.bias, torch.zeros(16))


def test_what_needs_gradients_stays_and_a_reset_gives_the_model_back(vit, images):
    model = vit()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.classifier.weight.requires_grad_(False)
    model.vit.layernorm.bias.grad = torch.ones(16)
    tent = us.adapt.TENT(model, lr=0.1)
    first = tent(images)
    assert torch.equal(model.vit.layernorm.bias.grad, torch.ones(16))
    assert model.vit.layernorm.weight.grad is None
    assert not model.classifier.weight.requires_grad
    assert model.classifier.bias.requires_grad
    tent.reset()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(tent(images), first)


def test_it_steps_inside_of_no_grad(vit, images):
    model = vit()
    tent = us.adapt.TENT(model, lr=0.1)
    with torch.no_grad():
        tent(images)
    assert not torch.equal(model.vit.layernorm.bias, torch.zeros(16))


@pytest.mark.parametrize("make", [lambda x: x[:0], lambda x: x * torch.nan, lambda x: x[..., :4]])
def test_a_bad_batch_changes_nothing(vit, images, make):
    model = vit()
    tent = us.adapt.TENT(model)
    tent(images)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"TENT: .*(empty|NaN|size)"):
        tent(make(images))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_model_that_gives_nan_is_left_as_it_was(vit, images):
    model = vit()
    tent = us.adapt.TENT(model, lr=0.1)
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="the entropy of ViTForImageClassification is nan"):
        tent(images)
    assert torch.equal(model.vit.layernorm.bias, torch.zeros(16))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda vit: us.adapt.TENT("vit"), TypeError, "got str"),
        (lambda vit: us.adapt.TENT(nn.Linear(2, 2).eval()), ValueError, "no norm with parameters"),
        (lambda vit: us.adapt.TENT(vit().train()), ValueError, "training mode"),
        (lambda vit: us.adapt.TENT(vit(), lr=0), ValueError, "lr is 0"),
        (lambda vit: us.adapt.TENT(vit(), lr="1"), ValueError, "lr is '1'"),
        (lambda vit: us.adapt.TENT(vit(), momentum=1), ValueError, "momentum is 1"),
    ],
)
def test_bad_arguments(vit, make, error, message):
    with pytest.raises(error, match=message):
        make(vit)


class Small(nn.Module):
    """A classifier of two norms that share their gain."""

    def __init__(self, classes=3):
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        return self.head(self.second(self.first(images.flatten(1)[:, :8]).relu()))


class Bypassed(Small):
    def forward(self, images):
        return self.head(images.flatten(1)[:, :8])


class Tuple(Small):
    def forward(self, images):
        return (super().forward(images),)


def test_a_gain_that_norms_share_is_trained_once(images):
    torch.manual_seed(0)
    tent = us.adapt.TENT(Small().eval())
    assert len(tent.parameters) == 3
    tent(images)  # torch warns of a parameter that is there twice


def test_it_steps_inside_of_inference_mode(vit, images):
    model, other = vit(), vit()
    with torch.inference_mode():
        us.adapt.TENT(model, lr=0.1)(images * 1)
    us.adapt.TENT(other, lr=0.1)(images)
    assert torch.equal(model.vit.layernorm.bias, other.vit.layernorm.bias)
    assert not torch.equal(model.vit.layernorm.bias, torch.zeros(16))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Small(classes=1), ValueError, r"the logits of Small are \(6, 1\)"),
        (Bypassed(), ValueError, "Bypassed depends on no gain or bias"),
        (Tuple(), TypeError, "Tuple returns a tuple"),
    ],
)
def test_what_would_adapt_nothing_is_refused(images, model, error, message):
    with pytest.raises(error, match=message):
        us.adapt.TENT(model.eval())(images)


def test_a_gradient_that_overflows_changes_nothing(images):
    torch.manual_seed(0)
    model = Small().eval()
    model.first.bias.register_hook(lambda grad: grad * torch.inf)
    tent = us.adapt.TENT(model, lr=0.1)
    with pytest.raises(ValueError, match="a gradient of Small is NaN or infinite"):
        tent(images)
    assert all(torch.equal(p, q) for p, q in zip(tent.parameters, tent.original, strict=True))
