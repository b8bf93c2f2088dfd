"""The training loop: plain torch, and a run folder that is usable at any moment.

Several ranks make the same steps, each on its share of the batch (`spread`). All of them know every
record; rank 0 alone writes.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from unitscale.data import Corpus
from unitscale.train.checkpoint import load_checkpoint, step_of
from unitscale.train.config import TrainConfig
from unitscale.train.initial import check_output, initial_state
from unitscale.train.paper import check_recipes
from unitscale.train.ranks import ending_together, from_lead, held_by_lead
from unitscale.train.result import RunResult, finished, result_of
from unitscale.train.run import OnRecord, Run, shard, to_inputs
from unitscale.train.run_folder import (
    CHECKPOINT,
    CHECKPOINTS,
    LOG,
    RECORDING,
    RESULT,
    Record,
    claimed,
    identity,
    write_json,
)
from unitscale.train.run_log import HeardLog, Mark, RunLog, check_recording
from unitscale.train.spread import WHOLE, Spread
from unitscale.train.tensorboard import Board

if TYPE_CHECKING:
    from unitscale.train.sharded import Sound

__all__ = ["OnRecord", "Run", "initial_state", "run_claimed", "to_inputs", "train"]


def train(
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    *,
    resume: bool = False,
    on_record: OnRecord = lambda record: None,
    tensorboard: bool = False,
    spread: Spread = WHOLE,
) -> RunResult:
    """Train one model and leave its run folder behind.

    With `resume`, a run that this folder holds goes on from its checkpoint, and its parameters end
    bit-equal to those of a run that was never stopped; a finished one only has its result read. A
    loss that is not finite, or explodes, ends the run early as diverged.

    Args:
        on_record: called with every record that is added to the log; on every rank.
        tensorboard: write event files as well, see `tensorboard.Board`.
        spread: over which ranks and micro-batches; every rank calls this with its own.

    Raises:
        ValueError: a batch that the shares do not divide, a recording of shares, text shorter than
            a batch, a folder of another run, no package tensorboard, no such device.
        FileExistsError: the folder holds a run, and `resume` is off.
        InUseError: another process is writing to the folder.
        CheckpointError: the checkpoint, the log or the result cannot be trusted.
        ModelError: the factory of the model failed, or its model does not give a loss.
        RankError: another rank has ended, or does not answer.
        KeyboardInterrupt: a rank was stopped by a signal; the last finished step is in the
            checkpoint.
    """
    corpus.require(batch_size=config.batch_size, length=config.sequence_length + 1)
    spread.check(config)
    with held_by_lead(spread, claimed(folder, config, corpus, resume=resume)):
        return run_claimed(
            config, corpus, folder, on_record=on_record, tensorboard=tensorboard, spread=spread
        )


def run_claimed(
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    *,
    on_record: OnRecord = lambda record: None,
    tensorboard: bool = False,
    spread: Spread = WHOLE,
) -> RunResult:
    """`train` in a folder that the caller holds (`run_folder.claimed`): begin, go on, or read.

    Every file is checked before any is changed.
    """
    with ending_together(spread):
        return begun(config, corpus, folder, on_record, spread, tensorboard=tensorboard)


def begun(
    config: TrainConfig,
    corpus: Corpus,
    folder: Path,
    on_record: OnRecord,
    spread: Spread,
    *,
    tensorboard: bool,
) -> RunResult:
    """What `run_claimed` says."""
    if from_lead(spread, (folder / RESULT).exists):
        return from_lead(spread, lambda: finished(config, folder))
    state = initial_state(config)
    check_recipes([config], state.model)
    state.run = identity(config, corpus)
    found = from_lead(spread, lambda: newest(folder, state.run))
    if found is None:
        check_output(config, state.model)
    else:
        if spread.is_sharded:
            shard(config, state, spread)
        if isinstance(found, Path):
            load_checkpoint(state, found)
        else:
            from unitscale.train.sharded import load_sharded

            load_sharded(state, found, spread)
    log = opened_log(folder / LOG, state.log, spread)
    if config.record_every is not None:
        check_recording(folder / RECORDING)
    shown = tensorboard and spread.leads
    board = Board(folder, first_step=state.step + 1) if shown else None
    try:
        with log:
            run = Run(config, corpus, folder, state, log, on_record, board, spread)
            if found is not None and not isinstance(found, Path) and found.passed_over:
                run.news["passed_over"] = found.passed_over
            run.to_end()
            log.sync()
    finally:
        if board is not None:
            board.close()
    result = result_of(config, log.records)

    def write() -> RunResult:
        write_json(folder / RESULT, asdict(result))
        return result

    return from_lead(spread, write)


def newest(folder: Path, run: str) -> "Path | Sound | None":
    """The checkpoint to go on from: the file of one process, or what several ranks left.

    Raises:
        CheckpointError: there is one, and none is sound.
    """
    file = folder / CHECKPOINT
    if not (folder / CHECKPOINTS).exists():
        return file if file.exists() else None
    from unitscale.train.sharded import newest_sound  # slow to import, so only where ranks were

    found = newest_sound(folder, run)
    if file.exists() and (found is None or step_of(file) >= found.rest.step):
        return file
    return found


def opened_log(path: Path, mark: Mark, spread: Spread) -> RunLog | HeardLog:
    """The log up to a mark: on rank 0 to be continued, elsewhere to be known.

    Raises:
        CheckpointError: its lines are not those that the checkpoint knows.
    """
    own: list[RunLog] = []

    def read() -> list[Record]:
        own.append(RunLog(path, mark))
        return own[0].records

    records = from_lead(spread, read)
    return own[0] if own else HeardLog(records, mark)
