"""One test for each thing that torch does not document and a running model relies on."""

import copy
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from unitscale.formats.batched import is_batched
from unitscale.graph import engine


class Told(torch.autograd.Function):
    """Calls a function on each gradient that comes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tell: Any) -> Tensor:
        ctx.tell = tell
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.tell(grad)
        return grad, None


def test_is_batched_knows_gradients_under_is_grads_batched() -> None:
    found: list[bool] = []
    x = torch.ones(3, requires_grad=True)
    y = Told.apply(x, lambda grad: found.append(is_batched(grad)))
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y.sum(), x)
    assert found == [True, False]


def test_is_batched_knows_tensors_of_vmap() -> None:
    found: list[bool] = []

    def function(x: Tensor) -> Tensor:
        found.append(is_batched(x))
        return x

    torch.vmap(function)(torch.ones(2, 3))
    assert found == [True]


def test_in_backward_is_within_a_backward_pass_only() -> None:
    found: list[bool] = []
    x = torch.ones(3, requires_grad=True)
    y = Told.apply(x, lambda grad: found.append(engine.in_backward()))
    assert not engine.in_backward()
    y.sum().backward()
    assert found == [True]
    assert not engine.in_backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_in_backward_tells_a_recomputation_from_a_first_computation(use_reentrant: bool) -> None:
    found: list[bool] = []

    def body(x: Tensor) -> Tensor:
        found.append(engine.in_backward())
        return x.sin()

    checkpoint(
        body, torch.ones(3, requires_grad=True), use_reentrant=use_reentrant
    ).sum().backward()
    assert found == [False, True]


def test_in_backward_is_false_after_a_backward_pass_that_failed() -> None:
    def fail(grad: Tensor) -> None:
        raise ValueError("in backward")

    with pytest.raises(ValueError, match="in backward"):
        Told.apply(torch.ones(3, requires_grad=True), fail).sum().backward()
    assert not engine.in_backward()


def test_modes_are_those_that_are_active_the_outermost_first() -> None:
    assert engine.modes() == []
    with FlopCounterMode(display=False), FlopCounterMode(display=False):
        outer, inner = engine.modes()
        assert outer is not inner
        with FlopCounterMode(display=False):
            assert engine.modes()[:2] == [outer, inner]
    assert engine.modes() == []


def test_modes_set_aside_see_nothing_and_come_back() -> None:
    x = torch.ones(4, 4)
    with FlopCounterMode(display=False) as counter:
        with engine.modes_set_aside():
            assert engine.modes() == []
            x @ x
        assert counter.get_total_flops() == 0
        x @ x
    assert counter.get_total_flops() == 2 * 4**3


@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap, torch.func.jacrev])
def test_in_transform_is_within_a_function_transform_only(transform: Any) -> None:
    found: list[bool] = []

    def function(x: Tensor) -> Tensor:
        found.append(engine.in_transform())
        return x.sin().sum()

    transform(function)(torch.ones(3))
    assert found == [True]
    assert not engine.in_transform()
    torch.autograd.functional.jacobian(function, torch.ones(3), vectorize=True)
    assert found == [True, False]


def test_saves_elsewhere_within_a_checkpoint_that_computes_again() -> None:
    found: list[bool] = []

    def body(x: Tensor) -> Tensor:
        found.append(engine.saves_elsewhere())
        return x.sin()

    assert not engine.saves_elsewhere()
    checkpoint(body, torch.ones(3, requires_grad=True), use_reentrant=False).sum().backward()
    assert found == [True, True]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert engine.saves_elsewhere()
    assert not engine.saves_elsewhere()


def test_address_is_where_a_tensor_begins() -> None:
    x = torch.ones(4)
    assert engine.address(x) == engine.address(x.view(2, 2)) == engine.address(x[1:]) - 4
    assert engine.address(x) != engine.address(x.clone())


def test_address_of_a_tensor_without_memory_is_its_identity() -> None:
    for context in (torch._subclasses.FakeTensorMode(), torch.device("meta")):
        with context:
            x, y = torch.ones(4), torch.ones(4)
        assert engine.address(x) == engine.address(x)
        assert engine.address(x) != engine.address(y)
    sparse = torch.eye(3).to_sparse()
    assert engine.address(sparse) == id(sparse)


@pytest.mark.parametrize("name", ["eager", "aot_eager", "inductor", "unitscale"])
def test_compiler_finds_a_backend_by_name(name: str) -> None:
    assert callable(engine.compiler(name))


def test_compiler_refuses_an_unknown_name() -> None:
    with pytest.raises(Exception, match="no_such_compiler"):
        engine.compiler("no_such_compiler")


def test_compiler_is_disabled_by_its_setting() -> None:
    assert not engine.compiler_is_disabled()
    calls: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        calls.append(1)
        return module.forward

    with torch._dynamo.config.patch(disable=True):
        assert engine.compiler_is_disabled()
        torch.compile(lambda x: x.sin(), backend=backend)(torch.ones(3))
    assert calls == []
    torch.compile(lambda x: x.cos(), backend=backend)(torch.ones(3))
    assert calls == [1]


@pytest.mark.slow  # units/test_in_force sees both in processes of its own
@pytest.mark.parametrize(("value", "expected"), [("1", "True"), ("0", "False")])
def test_compiler_is_disabled_by_the_environment(value: str, expected: str) -> None:
    code = "from unitscale.graph import engine; print(engine.compiler_is_disabled())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "TORCH_COMPILE_DISABLE": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("allowed", [False, True])
def test_captures_recurrent_is_what_dynamo_does(allowed: bool) -> None:
    """Also that a skipped module gets no graph: else the warning of it would be wrong."""
    graphs: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(1)
        return module.forward

    with torch._dynamo.config.patch(allow_rnn=allowed):
        assert engine.captures_recurrent() == allowed
        torch.compile(nn.LSTM(3, 4), backend=backend)(torch.ones(2, 3))
    assert bool(graphs) == allowed


def flag_compiler() -> tuple[Any, list[int]]:
    """A compiled function with one graph for each flag, and the graphs."""
    graphs: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(1)
        return module.forward

    def function(x: Tensor, flag: str) -> Tensor:
        return x.sin() if flag == "0" else x.cos()

    return torch.compile(function, backend=backend), graphs


def test_recompile_limit_is_how_often_a_frame_is_compiled() -> None:
    compiled, graphs = flag_compiler()
    with torch._dynamo.config.patch(recompile_limit=3):
        assert engine.recompile_limit() == 3
        for flag in "012345":
            compiled(torch.ones(3), flag)
    assert len(graphs) == 3


def test_strict_compilation_fails_where_torch_gives_up() -> None:
    compiled, graphs = flag_compiler()
    with engine.strict_compilation(2):
        for flag in "01":
            compiled(torch.ones(3), flag)
        with pytest.raises(engine.FailOnRecompileLimitHit):
            compiled(torch.ones(3), "2")
    assert len(graphs) == 2


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


def test_strict_compilation_makes_a_counter_one_graph_and_not_one_a_value() -> None:
    model, graphs = Counting(), []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(1)
        return module.forward

    compiled = torch.compile(Counting.forward, backend=backend)
    for step in range(6):
        with engine.strict_compilation(64):
            assert torch.equal(compiled(model, torch.ones(3)), torch.full((3,), step + 1.0))
    assert len(graphs) <= 3


def test_strict_compilation_sees_hooks_that_come_later() -> None:
    model, calls = nn.Sequential(nn.Linear(3, 3)), []
    compiled = torch.compile(lambda x: model(x), backend="eager")
    with engine.strict_compilation(64):
        compiled(torch.ones(3))
        model[0].register_forward_hook(lambda *_: calls.append(1))
        compiled(torch.ones(3))
    assert calls == [1]


def test_strict_compilation_leaves_the_settings_as_they_were() -> None:
    names = ("fail_on_recompile_limit_hit", "recompile_limit", "skip_nnmodule_hook_guards")
    before = [getattr(torch._dynamo.config, name) for name in names]
    with pytest.raises(KeyError), engine.strict_compilation(3):
        raise KeyError
    assert [getattr(torch._dynamo.config, name) for name in names] == before


def test_break_reasons_name_what_broke_a_graph() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    before = engine.break_reasons()
    torch.compile(torch.sin, backend="eager")(torch.ones(3))
    assert engine.break_reasons() == before
    torch.compile(function, backend="eager")(torch.ones(3))
    now = engine.break_reasons()
    new = [reason for reason in now if now[reason] > before.get(reason, 0)]
    assert any("graph_break" in reason for reason in new)
    torch._dynamo.reset()
    assert engine.break_reasons() == now  # which is why two looks are compared


class Asking(nn.Module):
    """Notes the wrapper whose forward is running."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.found = nn.Linear(3, 3), []

    def forward(self, x: Tensor) -> Tensor:
        self.found.append(engine.active_ddp())
        return self.layer(x).sum()


def test_active_ddp_is_the_wrapper_whose_forward_runs(tmp_path: Any) -> None:
    model = Asking()
    model(torch.ones(3))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'r'}", rank=0, world_size=1)
    try:
        wrapper = DistributedDataParallel(model)
        wrapper(torch.ones(3)).backward()
        model(torch.ones(3))
        with Join([wrapper]):
            wrapper(torch.ones(3)).backward()
    finally:
        dist.destroy_process_group()
    assert [found is wrapper for found in model.found] == [False, True, False, False]


def test_fsdp_mesh_is_known_within_the_forward_too(tmp_path: Any) -> None:
    class Sharded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.found = nn.Linear(3, 3), []

        def forward(self, x: Tensor) -> Tensor:
            self.found.append(engine.fsdp_mesh(self))
            return self.layer(x).sum()

    model = Sharded()
    assert engine.fsdp_mesh(model) is None
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'r'}", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        fully_shard(model.layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model(torch.ones(2, 3)).backward()
        assert engine.fsdp_mesh(model) == mesh
    finally:
        dist.destroy_process_group()
    assert model.found == [mesh]


def test_compiled_call_runs_instead_of_the_forward_of_a_module() -> None:
    module = nn.Linear(3, 3)
    assert engine.compiled_call(module) is None
    engine.set_compiled_call(module, lambda x: "instead")
    assert module(torch.ones(3)) == "instead"
    assert engine.compiled_call(module)(0) == "instead"
    engine.set_compiled_call(module, None)
    assert module(torch.ones(3)).shape == (3,)
    assert "_compiled_call_impl" not in module.__dict__


def test_compiled_call_is_where_torch_keeps_its_own() -> None:
    module = nn.Linear(3, 3)
    module.compile(backend="eager")
    assert engine.compiled_call(module) is not None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_compiled_call_is_not_copied(duplicate: Any) -> None:
    module = nn.Linear(3, 3)
    engine.set_compiled_call(module, lambda x: "instead")
    assert engine.compiled_call(duplicate(module)) is None


def test_dynamo_captures_a_parent_by_the_forward_of_its_child() -> None:
    """As it looks at the function of a child, this stands beside it and calls the module itself."""
    model, graphs = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), []

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append([n.target for n in module.graph.nodes if n.op == "call_function"])
        return module.forward

    outside: list[int] = []
    child = model[0]

    def call(x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return child._call_impl(x)
        outside.append(1)
        return child._call_impl(x)

    engine.set_compiled_call(child, call)
    torch.compile(lambda x: model(x), backend=backend)(torch.ones(3))
    assert [len(graph) for graph in graphs] == [2]
    assert outside == []
