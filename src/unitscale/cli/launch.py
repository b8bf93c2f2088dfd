"""A command on the ranks that torchrun starts: they meet, agree on what is asked, and end together.

torchrun says in the environment which rank a process is. Without it, or with one process, nothing
here does anything.
"""

import gc
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from unitscale.cli.exit import STOPPED, one_line, reporting

if TYPE_CHECKING:
    from unitscale.data import Corpus
    from unitscale.train import TrainConfig
    from unitscale.train.spread import Spread

Checked = TypeVar("Checked")

MOST_SECONDS = 86_400


def world_size() -> int:
    """How many ranks torchrun has started; 1 without it.

    Raises:
        ValueError: as `number_in`.
    """
    return number_in("WORLD_SIZE", least=1) if "WORLD_SIZE" in os.environ else 1


def rank() -> int:
    """The number of this one.

    Raises:
        ValueError: as `number_in`.
    """
    return number_in("RANK", least=0) if world_size() > 1 else 0


def number_in(name: str, *, least: int) -> int:
    """A number of the environment, which a scheduler may have set otherwise than torchrun does.

    Raises:
        ValueError: it is missing, or is no such number.
    """
    text = os.environ.get(name, "")
    if not text.isdecimal() or int(text) < least:
        raise ValueError(
            f"the environment has {name}={text!r}; expected a number from {least} on, as torchrun "
            "sets it: start the ranks with torchrun, or unset it"
        )
    return int(text)


@contextmanager
def joined(parallel: str | None, accumulate: int, *, device: str, wait: int) -> Iterator["Spread"]:
    """How the batch is spread, with the process group of all ranks inside of the context.

    Args:
        parallel: None is DDP, where there are several ranks.
        accumulate: micro-batches of a rank.
        wait: seconds after which a rank that does not answer counts as gone.
    Raises:
        ValueError: a wrong argument; more ranks than GPUs.
    """
    from unitscale.train.spread import PARALLEL, Spread

    count = world_size()
    if parallel is not None and parallel not in PARALLEL:
        raise ValueError(f"--parallel is {parallel!r}; expected {' or '.join(PARALLEL)}")
    if parallel is not None and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            f"--parallel is {parallel}, and this is one process; start the ranks with "
            "torchrun --nproc-per-node N -m unitscale ..."
        )
    if not 1 <= wait <= MOST_SECONDS:
        raise ValueError(f"--rank-timeout is {wait}; expected from 1 to {MOST_SECONDS} seconds")
    try:
        spread = Spread(
            ranks=count,
            rank=rank(),
            micro_batches=accumulate,
            parallel="ddp" if parallel is None else parallel,
        )
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    if count == 1:
        yield spread
        return
    # DDP says in C++ that it looked for parameters without a gradient, and gloo who hung up.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    if not spread.leads:
        warnings.simplefilter("ignore")  # rank 0 has the same
    import torch.distributed as dist

    with ending_at_once():
        meet(backend_of(device), wait, spread)
        yield spread
    gc.collect()  # what holds a group has to be gone before it
    dist.destroy_process_group()


def meet(backend: str, wait: int, spread: "Spread") -> None:
    """Make the process group of all ranks.

    Raises:
        RankError: the others, or the address where they meet, are not there: a port that is taken,
            a rank that never came.
        ValueError: the environment does not say where they meet.
    """
    import torch.distributed as dist

    from unitscale.train import RankError

    try:
        dist.init_process_group(
            backend,
            rank=spread.rank,
            world_size=spread.ranks,
            timeout=timedelta(seconds=wait),
        )
    except RuntimeError as error:  # what torch raises for its network and its store are such
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RankError(
            f"the {spread.ranks} ranks did not meet at {address} within {wait} s ({reason[:200]}); "
            "is the port taken, or a rank missing? torchrun --master-port takes another"
        ) from error


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Have SIGTERM, which torchrun sends when a rank has failed, end this one with a line.

    The training loop puts its own handler in place of this one.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        sys.stderr.flush()
        os.write(2, (one_line("stopped by torchrun, or by a signal") + "\n").encode())
        os._exit(STOPPED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def backend_of(device: str) -> str:
    """gloo for tensors on CPUs, and NCCL for those on GPUs; each rank takes a GPU of its own.

    Raises:
        ValueError: there are not enough, or a device that all ranks would share.
    """
    import torch

    if device.startswith("cuda:"):
        raise ValueError(
            f"--device is {device}, which all ranks would share; use cuda, which gives each its own"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return "gloo"
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= count:
        raise ValueError(
            f"torchrun has started rank {local} of this machine, and torch sees {count} GPUs; "
            "start as many ranks, or use --device cpu"
        )
    torch.cuda.set_device(local)
    return "cpu:gloo,cuda:nccl"


def hold(held: ExitStack, spread: "Spread", context: AbstractContextManager[Any]) -> None:
    """Enter a context until `held` ends, on rank 0 alone; its error is one of all ranks."""
    if spread.is_alone:
        held.enter_context(context)
        return
    from unitscale.train.ranks import held_by_lead

    held.enter_context(held_by_lead(spread, context))


def reported(spread: "Spread", write: Callable[[], object]) -> None:
    """Have rank 0 write the reports; the others wait, for torchrun ends all when one has failed."""
    from unitscale.train.ranks import ending_together, from_lead

    def made() -> None:
        write()

    with reporting(), ending_together(spread):
        from_lead(spread, made)


def agreed(
    command: str, spread: "Spread", check: Callable[[], Checked], options: Mapping[str, Any]
) -> Checked:
    """What `check` returns, once it has not failed on any rank and all were asked for the same.

    Args:
        check: looks at the arguments; gives the configurations and the text first.
        options: what has to be the same, beside those.
    Raises:
        ValueError: it failed on a rank, or ranks differ; on every rank, before anything is written.
    """
    if spread.is_alone:
        return check()
    from unitscale.distributed.agreement import agree
    from unitscale.train.ranks import ending_together

    found: Any = None
    fault: str | None = None
    given = {"--" + name.replace("_", "-"): repr(value) for name, value in options.items()}
    given |= versions() | {"--parallel": spread.parallel}
    given["--accumulate"] = str(spread.micro_batches)
    try:
        found = check()
    except (ValueError, TypeError, OSError, OverflowError, RecursionError) as error:
        fault = str(error)
    else:
        configs, corpus = found
        given |= asked([configs] if not isinstance(configs, Sequence) else configs, corpus)
    with ending_together(spread):
        agree(command, given, fault, None)
    return found


def versions() -> dict[str, str]:
    """Of what computes."""
    import torch

    from unitscale import __version__

    return {
        "the version of unitscale": __version__,
        "the version of torch": torch.__version__,
        "the version of Python": platform.python_version(),
    }


def asked(configs: Sequence["TrainConfig"], corpus: "Corpus") -> dict[str, str]:
    """The configurations value by value, the rules of their recipes, and the text."""
    found = {"the text": corpus.fingerprint, "the number of runs": str(len(configs))}
    for number, config in enumerate(configs):
        of = f" of run {number}" if len(configs) > 1 else ""
        found |= {f"{key}{of}": repr(value) for key, value in config.to_json().items()}
        found[f"the recipe{of}"] = str(config.numerics)
    return found
