"""`linax-like train`."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..config import AbstractConfig
from ..freezing import count_parameters
from ..training import digits_run, Interrupted, read_config, RunConfig, text_run, train
from .report import report


PRESETS: dict[str, Callable[[], RunConfig]] = {"text": text_run, "digits": digits_run}


@dataclass(frozen=True)
class Train:
    """Train a model: `text`, a language model on English text (the default), or `digits`, a
    classifier of handwritten digits."""

    preset: tyro.conf.Positional[str | None] = None
    """What to train: text or digits."""
    steps: int | None = None
    """How many steps to train for."""
    seed: int | None = None
    """Decides the initial weights, the order of the data, and dropout."""
    parallelism: str | None = None
    """How the devices share a batch: jit or pmap. The losses are the same, up to rounding."""
    directory: str | None = None
    """The run's folder. By default a new one, runs/<task>-<date>-<number>."""
    resume: bool = False
    """Go on with the run in --directory, from its newest checkpoint."""
    data: str | None = None
    """A text file to train on."""
    overrides: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="PATH=VALUE")
    ] = ()
    """Another value for any field of the config, such as model.features=256. May be repeated."""

    def run(self) -> None:
        start = time.monotonic()
        config = self._config()
        try:
            run = train(config, self.directory, resume=self.resume)
        except Interrupted as interruption:
            interruption.args = (
                f"{interruption}. Go on with: linax-like train --directory "
                f"{interruption.directory} --resume",
            )
            raise
        results = report(run, config.task.load())
        parameters, seconds = count_parameters(run.model), time.monotonic() - start
        print(
            f"{parameters:,} parameters, {seconds:.0f} seconds from start to end, {run.directory}"
        )
        summary = results | {"parameters": parameters, "seconds": seconds}
        (run.directory / "results.json").write_text(json.dumps(summary, indent=2) + "\n")

    def _config(self) -> RunConfig:
        config = self._base()
        given = {"steps": self.steps, "seed": self.seed, "parallelism": self.parallelism}
        for path, value in given.items():
            config = config if value is None else config.updated(path, value)
        if self.data is not None:
            config = config.updated("task.path", str(Path(self.data).absolute()))
        for override in self.overrides:
            config = apply_override(config, override)
        return config

    def _base(self) -> RunConfig:
        """The preset, or with `--resume` what the run was begun with."""
        if not self.resume:
            return preset(self.preset or "text")
        if self.directory is None:
            raise ValueError("`--resume` needs the run's folder: add `--directory RUN`.")
        config = read_config(self.directory)
        if self.preset is not None and type(preset(self.preset).task) is not type(config.task):
            raise ValueError(
                f"`{self.directory}` is not a run of the preset `{self.preset}`: its task "
                f"is a `{type(config.task).__name__}`. Leave the preset out to resume it."
            )
        return config


def preset(name: str) -> RunConfig:
    """The run of that name. Raises `ValueError` that lists the names there are."""
    if name not in PRESETS:
        names = " and ".join(f"`{known}`" for known in PRESETS)
        raise ValueError(f"There is no preset `{name}`: there are {names}.")
    return PRESETS[name]()


def apply_override[Config: AbstractConfig](config: Config, override: str) -> Config:
    """A copy of `config` changed by `path=value`, where the value is JSON, else a string."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ValueError(
            f"`--set {override}` must have the form PATH=VALUE, as in `--set model.features=256`."
        )
    return config.updated(path.strip(), _parse(text))


def _parse(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)  # NaN and Infinity are no JSON

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError:
        return text
