import copy
import math

import pytest
import torch
import torch.utils.checkpoint

import unitscale as us
from growth import tiny
from unitscale.growth.experts import Mixture, expert_shares, mixtures


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit"])
@pytest.mark.parametrize("top", [1, 2])
def test_an_upcycled_model_computes_the_same(name, top):
    small = tiny.MODELS[name]()
    grown = us.growth.apply(small, us.growth.plan(small, experts=4, top=top))
    proof = us.growth.verify(small, grown, tiny.batch_for(small))
    assert proof.difference <= 1e-5
    assert proof.preserved
    assert len(list(mixtures(grown))) == 2


def test_weights_that_do_not_sum_to_one_change_the_function():
    small = tiny.gpt2()
    grown = us.growth.apply(small, us.growth.plan(small, experts=4))
    for _, mixture in mixtures(grown):
        mixture.forward = lambda x, own=mixture: Mixture.forward(own, x) * 0.6
    assert not us.growth.verify(small, grown, tiny.batch_for(small)).preserved


def mixture(experts=4, width=8):
    generator = torch.Generator().manual_seed(0)
    made = {"experts": experts, "top": 2, "router_std": 0.02, "generator": generator}
    return Mixture(torch.nn.Linear(width, width), width, **made)


def test_a_token_takes_the_experts_that_its_router_likes_best():
    model = mixture()
    with torch.no_grad():
        for number, expert in enumerate(model.experts):
            expert.weight.zero_()
            expert.bias.fill_(float(10**number))
        model.router.weight.zero_()
        model.router.weight[1, 0], model.router.weight[3, 0] = 1.0, 1.0
        out = model(torch.tensor([[1.0] + [0.0] * 7]))
    assert out.flatten().tolist() == pytest.approx([505.0] * 8)


def test_losses_of_a_router_are_the_formulas():
    model = mixture()
    x = torch.randn(50, 8)
    model(x)
    logits = model.logits
    shares, probabilities = expert_shares(logits, 2), logits.softmax(-1).mean(0)
    assert shares.sum().item() == pytest.approx(1.0)
    even = 4 * (shares * probabilities).sum()
    found = us.growth.router_loss(model, balance=1.0, z=0.0)
    torch.testing.assert_close(found, even)
    largest = us.growth.router_loss(model, balance=0.0, z=1.0)
    torch.testing.assert_close(largest, logits.max(-1).values.square().mean())
    whole = us.growth.router_loss(model, balance=0.0, z=1.0, form="logsumexp")
    torch.testing.assert_close(whole, logits.logsumexp(-1).square().mean())


def test_the_balance_loss_is_one_for_even_shares_and_as_many_as_experts_for_one_expert():
    model = mixture()
    model.top = 1
    logits = torch.full((4, 4), -100.0)
    model.router.requires_grad_(False)
    model.logits = logits + 200 * torch.eye(4)
    assert us.growth.router_loss(model, balance=1.0, z=0.0).item() == pytest.approx(1.0)
    model.logits = logits + 200 * torch.eye(4)[:1]
    assert us.growth.router_loss(model, balance=1.0, z=0.0).item() == pytest.approx(4.0)


def test_the_balance_loss_spreads_tokens():
    share = {}
    for balance in (0.0, 0.1):
        model = mixture()
        with torch.no_grad():
            model.router.weight[0, 0] = 0.5
        x = torch.cat([torch.ones(64, 1), torch.randn(64, 7)], 1)
        optimizer = torch.optim.SGD(model.router.parameters(), lr=1.0)
        for _ in range(60):
            optimizer.zero_grad()
            model(x)
            us.growth.router_loss(model, balance=balance, z=0.0).backward()
            optimizer.step()
        model(x)
        share[balance] = expert_shares(model.logits, 2).max().item()
    assert share[0.0] == pytest.approx(0.5, abs=0.02)  # every token takes the first
    assert share[0.1] < 0.4


def test_a_model_without_mixtures_and_one_that_was_not_called_are_refused():
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no mixture of experts"):
        us.growth.router_loss(tiny.gpt2())
    with pytest.raises(ValueError, match="'' was not called yet"):
        us.growth.router_loss(mixture())
    with pytest.raises(ValueError, match="form is 'mean'; expected 'max' or 'logsumexp'"):
        us.growth.router_loss(mixture(), form="mean")
    assert math.isfinite(us.growth.router_loss(called(mixture())).item())


def called(model):
    model(torch.randn(3, 8))
    return model


def test_a_mixture_can_be_copied_after_a_call():
    """The logits that it keeps belong to a graph, which torch does not copy."""
    model = called(mixture())
    again = copy.deepcopy(model)
    x = torch.randn(3, 8)
    assert torch.equal(again(x), model(x))
    assert model.logits.requires_grad


def test_a_router_loss_after_an_evaluation_is_refused_and_not_without_gradient():
    batch = torch.randn(5, 8)
    model = mixture()
    model(batch)
    before = us.growth.router_loss(model)
    (expected,) = torch.autograd.grad(before, model.router.weight, retain_graph=True)
    assert expected.any()
    with torch.no_grad():
        model.eval()(batch)
        assert us.growth.router_loss(model).item() == before.item()  # its value can be looked at
    model.train()
    with pytest.raises(ValueError, match="router_loss: '' was last called without gradients, in"):
        us.growth.router_loss(model)
    model(batch)
    (found,) = torch.autograd.grad(us.growth.router_loss(model), model.router.weight)
    assert found.equal(expected)


def test_a_frozen_router_needs_no_gradient():
    model = mixture()
    model.router.requires_grad_(False)
    model(torch.randn(5, 8))
    assert not us.growth.router_loss(model).requires_grad


def test_a_router_in_a_reentrant_checkpoint_is_refused_and_in_another_learns():
    model, x = mixture(), torch.randn(5, 8, requires_grad=True)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=True)
    with pytest.raises(ValueError, match="or a reentrant checkpoint"):
        us.growth.router_loss(model)
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    assert us.growth.router_loss(model).requires_grad
