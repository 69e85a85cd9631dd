"""A run: all that decides how a model is trained, and the folder that holds what came of it.

config.json       the `RunConfig`
metrics.jsonl     a line per logged step
events.out.…      the same for TensorBoard
loss.png          the loss over the steps
checkpoints/      the newest states, one folder each
"""

import contextlib
import datetime
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import equinox as eqx
import jax.random as jr
from jaxtyping import PyTree

from ..config import AbstractConfig, classes_in, require, require_choice, require_positive
from ..files import write_atomically
from ..models import LanguageModelConfig, SequenceModelConfig
from ..tasks import AbstractTaskConfig
from .checkpoint import CheckpointStore
from .optimizers import OptimizerConfig


@dataclass(frozen=True)
class RunConfig(AbstractConfig):
    """A model, a task, and how the one learns the other.

    - `batch_size`: examples per step, over all devices.
    - `accumulation`: parts that a batch is computed in, to save memory.
    - `frozen`: patterns of public names, such as `"stack/*/channel_mixer/*"`. What fits one is not
        trained, and does not change by one bit.
    - `parallelism`: how the devices share a batch. `"jit"` leaves it to the compiler, `"pmap"` gives
        each its part with `jax.pmap`. The losses are the same, up to rounding.
    - `seed`: decides the initial weights, the order of the data, and dropout.
    - `log_every`, `checkpoint_every`: in steps. The last step is logged and kept in any case.
    """

    model: LanguageModelConfig | SequenceModelConfig
    task: AbstractTaskConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = 1000
    batch_size: int = 16
    accumulation: int = 1
    frozen: tuple[str, ...] = ()
    parallelism: Literal["jit", "pmap"] = "jit"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 100

    def __post_init__(self):
        require_positive(self, "steps", "batch_size", "accumulation")
        require_positive(self, "log_every", "checkpoint_every")
        require_choice(self, "parallelism")
        require(0 <= self.seed < 2**63, self, "seed", "from 0 to 2^63 - 1")
        divides = self.batch_size % self.accumulation == 0
        require(divides, self, "batch_size", f"a multiple of accumulation={self.accumulation}")


class Run(NamedTuple):
    """A trained model, with what it was trained by and where."""

    config: RunConfig
    model: PyTree
    directory: Path
    step: int

    def evaluate(self) -> dict[str, float]:
        """The results on the data that the task holds out."""
        return self.config.task.load().evaluate(self.model)


def load_run(directory: str | os.PathLike, classes: Iterable[type[AbstractConfig]] = ()) -> Run:
    """The newest model in the folder of a run.

    - `classes`: configs of your own that are in the run's, such as a mixer's.

    **Raises:** `ValueError` if the folder is missing, incomplete or damaged.
    """
    config = read_config(directory, classes)
    store = CheckpointStore(Path(directory), config)
    skeleton = eqx.filter_eval_shape(config.model.build, jr.key(0))
    item = "model" if config.optimizer.average is None else "average"
    step = store.latest_step()
    return Run(config, store.load(step, {item: skeleton})[item], Path(directory), step)


def open_directory(directory: str | os.PathLike | None, config: RunConfig, resume: bool) -> Path:
    """The folder for a run: a new one, or with `resume` the one that the same run began in.

    - `directory`: None for a new folder under `runs`.

    **Raises:** `ValueError` if a new run would write over something, or an old one is another.
    """
    if directory is None:
        path = _new_directory(config)
    elif resume:
        _require_same(Path(directory), config, read_config(directory, classes_in(config)))
        return Path(directory)
    else:
        path = Path(directory)
        _require_unused(path)
        path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / "config.json", config.to_json().encode())
    return path


def read_config(
    directory: str | os.PathLike, classes: Iterable[type[AbstractConfig]] = ()
) -> RunConfig:
    """The config of the run in a folder.

    - `classes`: as in `load_run`.

    **Raises:** `ValueError` if the folder does not hold one.
    """
    path = Path(directory) / "config.json"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        problem = "lacks a readable `config.json`" if path.parent.is_dir() else "does not exist"
        raise ValueError(
            f"`{directory}` is not the folder of a run: it {problem}. Give the folder that "
            "`linax-like train` named."
        ) from None
    try:
        return RunConfig.from_json(text, classes)
    except ValueError as error:
        raise ValueError(f"`{path}` is damaged or from another version: {error}") from None


def _new_directory(config: RunConfig) -> Path:
    task = type(config.task).__name__.removesuffix("TaskConfig").lower()
    for number in itertools.count(1):
        path = Path("runs") / f"{task}-{datetime.date.today():%Y%m%d}-{number}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError


def _require_unused(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        held = (
            "already holds a run" if (path / "config.json").exists() else "is not an empty folder"
        )
        raise ValueError(
            f"`{path}` {held}, and nothing is written over: name another folder with "
            "`--directory`, or go on with the run in it with `--resume`."
        )


def _require_same(path: Path, config: RunConfig, earlier: RunConfig) -> None:
    differences = _differences(config.to_dict(), earlier.to_dict(), "")
    if differences:
        where, now, before = differences[0]
        raise ValueError(
            f"The run in `{path}` was begun with another config: its `{where}` is {before!r}, not "
            f"{now!r}. Resume it with the same options (or none), or train in another folder."
        )


def _differences(now, before, where: str) -> list[tuple[str, object, object]]:
    """The places at which two encoded configs differ, and what stands there."""
    if isinstance(now, dict) and isinstance(before, dict) and now.keys() == before.keys():
        pairs = [(key, now[key], before[key]) for key in now]
    elif isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(now, before, strict=True))]
    else:
        return [] if now == before else [(where, now, before)]
    nested = (_differences(a, b, f"{where}.{key}".lstrip(".")) for key, a, b in pairs)
    return [difference for differences in nested for difference in differences]
