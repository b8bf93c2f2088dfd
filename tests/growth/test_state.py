import pytest
import torch

import unitscale as us
from growth import tiny

ADAMW = (torch.optim.AdamW, {})
KINDS = [
    ADAMW,
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (us.optim.AdamW, {"rules": None}),
    (us.optim.AdamW, {"rules": None, "states": "fp32"}),
    (us.optim.SGD, {"rules": None, "states": "fp32", "momentum": 0.9}),
]


def stepped(kind, options, model, batch, steps=3):
    """An optimizer that made some steps of a rate of 0: moments, and the same weights."""
    optimizer = kind(model.parameters(), lr=0.0, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_states_are_those_of_the_grown_model_after_the_same_steps(kind, options):
    small = tiny.llama()
    batch, made = tiny.batch_for(small), us.growth.plan(small, width=24, noise=0.0)
    grown = us.growth.apply(small, made)
    old, lived = stepped(kind, options, small, batch), stepped(kind, options, grown, batch)
    new = kind(grown.parameters(), lr=0.1, **options)
    us.growth.grow_optimizer(old, new, small=small, grown=grown, plan=made)
    assert new.param_groups[0]["lr"] == 0.1
    found, expected = new.state_dict()["state"], lived.state_dict()["state"]
    assert found.keys() == expected.keys()
    for index, state in expected.items():
        assert found[index].keys() == state.keys()
        for key, value in state.items():
            # Two dozen sums in FP32, and squares of them.
            torch.testing.assert_close(found[index][key], value, rtol=1e-3, atol=1e-7)
    new.step()


@pytest.mark.parametrize("states", ["fp8-lm", "coat"])
def test_states_in_codecs_grow_by_way_of_float32(states):
    small = tiny.llama()
    batch, made = tiny.batch_for(small), us.growth.plan(small, width=24, noise=0.0)
    grown = us.growth.apply(small, made)
    plain = {"rules": None, "states": "fp32"}
    old = stepped(us.optim.AdamW, {"rules": None, "states": states}, small, batch)
    new = us.optim.AdamW(grown.parameters(), lr=0.0, rules=None, states=states)
    us.growth.grow_optimizer(old, new, small=small, grown=grown, plan=made)
    back = us.optim.AdamW(grown.parameters(), lr=0.0, **plain)
    back.load_state_dict(new.state_dict())
    lived = stepped(us.optim.AdamW, plain, grown, batch)
    for parameter in grown.parameters():
        found, expected = back.state[parameter]["exp_avg"], lived.state[parameter]["exp_avg"]
        error = (found - expected).norm() / expected.norm()
        assert error < 2 * 2**-4  # rounded twice to three bits of mantissa, or four in groups
    assert sum(row.states == states for row in new.state_rows()) > 0


def test_new_blocks_and_padding_have_no_mean_and_some_square():
    small = tiny.gpt2()
    made = us.growth.plan(small, width=18, depth=4)
    grown = us.growth.apply(small, made)
    new = torch.optim.AdamW(grown.parameters(), lr=0.1)
    old = stepped(*ADAMW, small, tiny.batch_for(small))
    us.growth.grow_optimizer(old, new, small=small, grown=grown, plan=made)
    fc = [new.state[block.mlp.c_fc.weight] for block in grown.transformer.h]
    assert fc[0]["exp_avg"].abs().max() > 0
    assert fc[1]["exp_avg"].abs().max() == 0
    assert fc[1]["exp_avg_sq"].min() > 0
    # The last position predicts nothing.
    table = new.state[grown.transformer.wpe.weight]
    assert table["exp_avg"][:, 12:].abs().max() == 0
    assert table["exp_avg_sq"][:6, 12:].min() > 0
    assert {int(state["step"]) for state in new.state.values()} == {3}


def test_a_mixture_begins_with_the_states_of_its_mlp():
    small = tiny.llama()
    made = us.growth.plan(small, experts=4)
    grown = us.growth.apply(small, made)
    new = torch.optim.AdamW(grown.parameters(), lr=0.1)
    old = stepped(*ADAMW, small, tiny.batch_for(small))
    us.growth.grow_optimizer(old, new, small=small, grown=grown, plan=made)
    own = old.state[small.model.layers[0].mlp.up_proj.weight]
    for expert in grown.model.layers[0].mlp.experts:
        assert new.state[expert.up_proj.weight]["exp_avg"].equal(own["exp_avg"] / 4)
    assert not new.state[grown.model.layers[0].mlp.router.weight]


def test_what_does_not_fit_is_refused_and_the_optimizer_stays():
    small = tiny.gpt2()
    made = us.growth.plan(small, width=24, noise=0.0)
    grown = us.growth.apply(small, made)
    old = stepped(*ADAMW, small, tiny.batch_for(small))
    fresh = torch.optim.AdamW(grown.parameters())
    models = {"small": small, "grown": grown, "plan": made}
    with pytest.raises(ValueError, match="AdamW and SGD; expected two of a kind"):
        us.growth.grow_optimizer(old, torch.optim.SGD(grown.parameters(), 0.1), **models)
    with pytest.raises(ValueError, match="is a Rprop; expected Adam, AdamW or SGD"):
        us.growth.grow_optimizer(torch.optim.Rprop(small.parameters()), fresh, **models)
    with pytest.raises(ValueError, match=r"parameter 0 of the new optimizer.*none of the GPT2"):
        us.growth.grow_optimizer(old, torch.optim.AdamW(small.parameters()), **models)
    with pytest.raises(ValueError, match="has a state already"):
        us.growth.grow_optimizer(old, old, **models)
    assert not fresh.state
