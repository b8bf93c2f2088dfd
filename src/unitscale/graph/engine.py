"""What is read of torch while a model runs that torch does not document: one function each.

`graph.dynamo` is the same for captured graphs. Each docstring says what is assumed and the version
on which it was last seen to hold; each has a test in `tests/graph`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo import config, lookup_backend
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchRuntimeError
from torch._dynamo.utils import counters
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)

__all__ = [
    "FailOnRecompileLimitHit",
    "TorchRuntimeError",
    "active_ddp",
    "address",
    "break_reasons",
    "calling_module",
    "captures_recurrent",
    "compiler",
    "compiler_is_disabled",
    "errors_are_suppressed",
    "forget",
    "fsdp_mesh",
    "global_hooks",
    "has_uncaptured_hooks",
    "in_backward",
    "in_forward_mode",
    "in_transform",
    "modes",
    "modes_set_aside",
    "recompile_limit",
    "saves_elsewhere",
    "strict_compilation",
]


def in_backward() -> bool:
    """Whether autograd is in the middle of a backward pass, in this thread.

    Assumed: `torch._C._current_graph_task_id()` is -1 outside of one. Seen on torch 2.13.
    """
    return torch._C._current_graph_task_id() != -1


def modes() -> list[TorchDispatchMode]:
    """The dispatch modes that are active, the outermost first.

    Assumed: `_get_current_dispatch_mode_stack`. Seen on torch 2.13.
    """
    return list(_get_current_dispatch_mode_stack())


def modes_set_aside() -> AbstractContextManager[list[TorchDispatchMode]]:
    """A context in which no dispatch mode sees what is computed.

    What we read of a tensor is no op of the model: a selective checkpoint that keeps the results
    of ops one by one, or a counter of operations, must not see it.

    Assumed: `_disable_current_modes`. Seen on torch 2.13.
    """
    return _disable_current_modes()


def in_transform() -> bool:
    """Whether a function transform (torch.func.grad, vmap, jvp) is running around this call.

    Dynamo captures nothing within one, and would skip the same code for ever after.

    Assumed: `torch._C._functorch.peek_interpreter_stack`. Seen on torch 2.13.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None


def saves_elsewhere() -> bool:
    """Whether what autograd saves goes through hooks, as in a checkpoint that computes it again.

    Assumed: `torch._C._autograd._top_saved_tensors_default_hooks`. Seen on torch 2.13.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def address(x: Tensor) -> int:
    """Where a tensor begins in memory; the identity of one without memory (a fake tensor).

    Assumed: `data_ptr` raises, but of a fake tensor it warns, and of one on "meta" it is 0. Seen on
    torch 2.13.
    """
    if isinstance(x, FakeTensor) or x.is_meta:
        return id(x)
    try:
        return x.data_ptr()
    except (NotImplementedError, RuntimeError):
        return id(x)


def compiler(name: str) -> Any:
    """The torch.compile backend of that name. Assumed: `lookup_backend`. Seen on torch 2.13."""
    return lookup_backend(name)


def compiler_is_disabled() -> bool:
    """Whether torch.compile does nothing: by the environment, or by its setting.

    Assumed: Dynamo reads `torch._dynamo.config.disable`, which TORCH_COMPILE_DISABLE=1 sets, at
    every call, and the variable TORCHDYNAMO_DISABLE as well. Seen on torch 2.13.
    """
    return bool(config.disable) or os.environ.get("TORCHDYNAMO_DISABLE") == "1"


def errors_are_suppressed() -> bool:
    """Whether code that cannot be captured runs as plain Python, and nothing is said.

    Assumed: `torch._dynamo.config.suppress_errors`. Seen on torch 2.13.
    """
    return bool(config.suppress_errors)


def forget(code: CodeType) -> None:
    """Drop what Dynamo compiled for a code object; it keeps some hundred of these itself.

    Assumed: `torch._dynamo.eval_frame.reset_code`. Seen on torch 2.13.
    """
    reset_code(code)


def captures_recurrent() -> bool:
    """Whether Dynamo captures nn.RNN, nn.GRU and nn.LSTM. Assumed: `config.allow_rnn`."""
    return bool(config.allow_rnn)


def recompile_limit() -> int:
    """How often Dynamo compiles one frame. Assumed: `config.recompile_limit`."""
    return int(config.recompile_limit)


@contextmanager
def strict_compilation(limit: int) -> Iterator[None]:
    """A context in which a frame is compiled up to `limit` times, and then fails aloud.

    Integers that a model counts up in an attribute become inputs, instead of one graph a value, and
    hooks that are registered later are seen. Assumed: the four settings. Seen on torch 2.13.
    """
    with config.patch(
        fail_on_recompile_limit_hit=True,
        recompile_limit=limit,
        allow_unspec_int_on_nn_module=True,
        skip_nnmodule_hook_guards=False,
    ):
        yield


def break_reasons() -> dict[str, int]:
    """Why Dynamo broke graphs or skipped frames in this process, and how often.

    `torch.compiler.reset` does not forget them, so only what is new between two looks tells of what
    ran between them.

    Assumed: `torch._dynamo.utils.counters`, by "graph_break" and "unimplemented". Seen on 2.13.
    """
    return {**counters["unimplemented"], **counters["graph_break"]}


def active_ddp() -> DistributedDataParallel | None:
    """The DDP wrapper whose forward is running, unless it evens out unequal numbers of batches.

    Under `Join` processes make different numbers of calls, and no other collective may be made.

    Assumed: `_get_active_ddp_module`, `_join_config`. Seen on torch 2.13.
    """
    wrapper = DistributedDataParallel._get_active_ddp_module()
    if wrapper is None or getattr(wrapper._join_config, "enable", False):
        return None
    return wrapper


def timeout_of(group: Any) -> timedelta | None:
    """How long a process group waits for the others; None where it does not say.

    Assumed: `ProcessGroup._get_backend` and the `options._timeout` of gloo's and NCCL's. Seen on
    torch 2.13.
    """
    for kind in ("cpu", "cuda"):
        try:
            options = group._get_backend(torch.device(kind)).options
        except (AttributeError, RuntimeError):
            continue
        found = getattr(options, "_timeout", None)
        if isinstance(found, timedelta):
            return found
    return None


def fsdp_mesh(model: nn.Module) -> Any:
    """The device mesh over which `fully_shard` shares a model's batch, or None.

    Within the model's forward its parameters are whole, so they do not tell.

    Assumed: `FSDPModule._get_fsdp_state` and the `mesh_info.mesh` of its `_fsdp_param_groups`. Seen
    on torch 2.13.
    """
    for module in model.modules():
        state = getattr(module, "_get_fsdp_state", None)
        for group in state()._fsdp_param_groups if state is not None else ():
            return group.mesh_info.mesh
    return None


def global_hooks() -> tuple[int, ...]:
    """Which hooks on all modules are registered now: Dynamo does not look again.

    Assumed: the four dicts of `torch.nn.modules.module`. Seen on torch 2.13.
    """
    found = (
        module_hooks._global_forward_hooks,
        module_hooks._global_forward_pre_hooks,
        module_hooks._global_backward_hooks,
        module_hooks._global_backward_pre_hooks,
    )
    return tuple(id(hook) for hooks in found for hook in hooks.values())


def in_forward_mode() -> bool:
    """Whether derivatives are taken forward. Assumed: `forward_ad._current_level` is -1 if not."""
    return forward_ad._current_level >= 0


def calling_module() -> nn.Module | None:
    """The module whose call is the innermost that runs, or None: what `forward` is called on.

    Assumed: `Module._call_impl` is on the stack, with the module as its `self`. Seen on torch 2.13.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not nn.Module._call_impl.__code__:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]


def has_uncaptured_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks that Dynamo does not capture: on its backward pass, or FSDP2's.

    Assumed: `fully_shard` gives a module's class the method `_get_fsdp_state`. Seen on torch 2.13.
    """
    on_backward = bool(module._backward_hooks or module._backward_pre_hooks)
    return on_backward or hasattr(type(module), "_get_fsdp_state")


def compiled_call(module: nn.Module) -> Any:
    """What a module runs instead of its forward, or None. Assumed: `_compiled_call_impl`."""
    return module.__dict__.get("_compiled_call_impl")


def set_compiled_call(module: nn.Module, call: Any) -> None:
    """Let a module run something instead; None takes it away.

    Where Dynamo captures a parent, it goes to the module's forward all the same. A copy or pickle
    of the module does not have it. Assumed: `Module.__call__` looks for `_compiled_call_impl` and
    `Module.__getstate__` drops it. Seen on torch 2.13.
    """
    if call is None:
        module.__dict__.pop("_compiled_call_impl", None)
    else:
        module.__dict__["_compiled_call_impl"] = call
