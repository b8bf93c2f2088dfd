"""What every test gets, and what it is spared."""

import torch
from torch._dynamo import guards


def test_random_numbers_are_those_of_seed_0():
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert drawn.equal(torch.rand(3))


def test_no_graph_times_its_guards():
    """Dynamo calls it by a name of its module, so that another function can stand there."""
    assert guards.profile_guard_manager.__name__ == "no_latency"
    init = guards.CheckFunctionManager.__init__
    assert "profile_guard_manager" in init.__code__.co_names
    assert init.__globals__ is vars(guards)


def test_a_compiled_function_is_still_guarded():
    compiled = torch.compile(lambda x: x + 1, backend="eager", dynamic=False)
    for size in (2, 3):
        assert compiled(torch.zeros(size)).shape == (size,)
