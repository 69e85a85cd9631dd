"""The loop around the training step: data in; metrics, checkpoints and a picture out."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.random as jr
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from ..freezing import count_parameters
from ..parallel import DATA, data_mesh, jit_step, pmap_step, replicate, shard_batch
from ..tasks import AbstractTask
from .checkpoint import CheckpointStore
from .metrics import MetricsLog, read_records, Record, to_record
from .plots import plot_loss
from .progress import Progress
from .run import open_directory, Run, RunConfig
from .step import init_state, make_train_step, Report, TrainState


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C, after a checkpoint."""

    def __init__(self, directory: Path, step: int):
        super().__init__(f"`{directory}` was stopped after step {step}")
        self.directory = directory


def train(
    config: RunConfig,
    directory: str | os.PathLike | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Trains a model, and keeps all that comes of it in a folder.

    Ctrl-C, or a request to terminate, ends the run after the step at hand with a checkpoint.

    - `directory`: the run's folder; None for a new one, `runs/<task>-<date>-<number>`.
    - `resume`: go on with the run in the folder, from its newest checkpoint.
    - `progress`: print what the run is, and show how it goes.

    **Raises:** `ValueError` if the config does not fit together, or if the folder holds something
    that would be written over, or another run; `FloatingPointError` if the loss is not finite;
    `Interrupted` after Ctrl-C.
    """
    task, mesh, optimizer, state = _prepare(config)
    directory = open_directory(directory, config, resume)
    store = CheckpointStore(directory, config)
    if resume:
        state = state._replace(**store.load(store.latest_step(), _items(state)))
    if progress:
        devices = f"{mesh.size} × {mesh.devices.item(0).device_kind}"
        print(task.describe())
        print(
            f"{count_parameters(state.model):,} parameters on {devices}, in {directory}",
            flush=True,
        )
    step, start = _compile(config, task, mesh, optimizer), int(state.step)
    state = replicate(mesh, state)
    with (
        MetricsLog(directory, start) as log,
        Progress(start, config.steps, progress) as bar,
        _interruption() as interrupted,
    ):
        meter = _Meter(config, task.tokens_per_example, (log.write, bar.update))
        for index in range(start, config.steps):
            state, report = step(state, task.batch(config.seed, index, config.batch_size))
            meter.add(index + 1, report)
            stopped, done = interrupted.is_set(), index + 1 == config.steps
            if stopped or done or (index + 1) % config.checkpoint_every == 0:
                meter.flush()
                store.save(index + 1, _items(state))
            if stopped:
                raise Interrupted(directory, index + 1)
    plot_loss(directory / "loss.png", read_records(directory))
    return Run(config, state.result, directory, config.steps)


class _Meter:
    """Reports every step one behind, so that the device need not wait for what is written down.

    - `sinks`: what takes the records, every `log_every` steps.
    """

    def __init__(
        self,
        config: RunConfig,
        tokens_per_example: int,
        sinks: tuple[Callable[[Record], None], ...],
    ):
        self._config = config
        self._tokens_per_step = config.batch_size * tokens_per_example
        self._sinks = sinks
        self._pending: tuple[int, Report] | None = None
        self._steps = 0  # since the last record
        self._time = time.monotonic()  # of the last record

    def add(self, step: int, report: Report) -> None:
        self.flush()
        self._pending = step, report

    def flush(self) -> None:
        """Waits for the pending step, and writes it down."""
        if self._pending is None:
            return
        (step, report), self._pending = self._pending, None
        record = to_record(step, report)
        self._steps += 1
        for quantity in (
            "loss",
            "gradient_norm",
        ):  # of which NaN is in the model, but not in its loss
            if not math.isfinite(record[quantity]):
                raise FloatingPointError(
                    f"The training diverged: its {quantity} is {record[quantity]} at step {step}. Lower "
                    "`optimizer.learning_rate`, and train in another folder."
                )
        if step % self._config.log_every == 0 or step in (1, self._config.steps):
            now = time.monotonic()
            rate = self._steps * self._tokens_per_step / max(now - self._time, 1e-9)
            self._steps, self._time = 0, now
            for sink in self._sinks:
                sink(record | {"tokens_per_second": rate})


def _prepare(
    config: RunConfig,
) -> tuple[AbstractTask, Mesh, optax.GradientTransformation, TrainState]:
    """What a run needs. Whatever is wrong with its config shows here, and nothing is written."""
    task, mesh = config.task.load(), data_mesh()
    task.check(config.model)
    shard_batch(mesh, np.zeros(config.batch_size // config.accumulation))
    model = config.model.build(jr.key(config.seed))
    optimizer = config.optimizer.build(model, config.steps, config.frozen)
    average = config.optimizer.average is not None
    state = init_state(model, optimizer, average, config.frozen)
    return task, mesh, optimizer, state


def _compile(
    config: RunConfig, task: AbstractTask, mesh: Mesh, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, PyTree], tuple[TrainState, Report]]:
    mapped = config.parallelism == "pmap"
    step = make_train_step(
        task.loss,
        optimizer,
        seed=config.seed,
        accumulation=config.accumulation,
        average=config.optimizer.average,
        frozen=config.frozen,
        axis_name=DATA if mapped else None,
    )
    return pmap_step(mesh, step) if mapped else jit_step(mesh, step)


def _items(state: TrainState) -> dict[str, PyTree]:
    """The parts of a state, kept apart so that a model can be read alone."""
    return {name: item for name, item in state._asdict().items() if item is not None}


@contextlib.contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, or a request to terminate. A second one acts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread alone
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(*_) -> None:
        event.set()
        restore()

    for number in signals:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        restore()
