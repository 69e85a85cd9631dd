"""`linax-like inspect`."""

import math
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import tyro
from jaxtyping import PyTree

from ..freezing import count_parameters
from ..models import LanguageModel, SequenceModel
from ..paths import named_arrays
from ..training import init_state, read_config, RunConfig
from .train import preset, PRESETS


@dataclass(frozen=True)
class Inspect:
    """Show a model's parameters, its state, the memory it takes and the work it does."""

    target: tyro.conf.Positional[str]
    """A preset (text or digits), or the folder of a run."""

    size: tuple[int, ...] = (1024,)
    """The length of the sequence, or the sizes of the grid, that work and state are counted for."""

    def run(self) -> None:
        if not self.size or min(self.size) < 1:
            sizes = " ".join(map(str, self.size)) or "nothing"
            raise ValueError(f"`--size` takes one or more positive numbers. Received {sizes}.")
        config = _find(self.target)
        model = eqx.filter_eval_shape(config.model.build, jr.key(0))
        _print_parameters(self.target, model)
        rows = [("parameters", f"{count_parameters(model):,}", _bytes(model))]
        if isinstance(model, LanguageModel) and model.stack.causal:
            for length in (1, math.prod(self.size)):
                state = eqx.filter_eval_shape(lambda m, n=length: m.init_state(n), model)
                rows.append((f"state after {length:,} tokens", f"{_size(state):,}", _bytes(state)))
        training = eqx.filter_eval_shape(_training_state, model, config)
        gradients = 4 * count_parameters(model)
        rows.append(
            ("training, without activations", f"{_size(training):,}", _bytes(training) + gradients)
        )
        _print_totals(rows)
        _print_work(model, self.size)


def _find(target: str) -> RunConfig:
    if target in PRESETS:
        return preset(target)
    if Path(target).exists():
        return read_config(target)
    names = " or ".join(f"`{name}`" for name in PRESETS)
    raise ValueError(
        f"`{target}` is neither a preset nor the folder of a run: give {names}, or the folder "
        "that `linax-like train` named."
    )


def _training_state(model: PyTree, config: RunConfig) -> PyTree:
    optimizer = config.optimizer.build(model, config.steps, config.frozen)
    return init_state(model, optimizer, config.optimizer.average is not None, config.frozen)


def _print_parameters(title: str, model: PyTree) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("parameter", "shape", title=title)
    table.add_column("count", justify="right")
    for name, leaf in named_arrays(model).items():
        table.add_row(
            name, " × ".join(map(str, leaf.shape)) or "scalar", f"{math.prod(leaf.shape):,}"
        )
    Console().print(table)


def _print_totals(rows: list[tuple[str, str, int]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("")
    table.add_column("numbers", justify="right")
    table.add_column("memory", justify="right")
    for name, count, size in rows:
        table.add_row(name, count, f"{size / 2**20:,.2f} MiB")
    Console().print(table)


def _print_work(model: LanguageModel | SequenceModel, size: tuple[int, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    over = " × ".join(f"{length:,}" for length in size)
    table = Table(f"work over {over} positions, {model.complexity}")
    table.add_column("FLOPs", justify="right")
    table.add_row("forward", f"{model.flop_count(size, inference=True):,}")
    table.add_row("forward and backward", f"{model.flop_count(size):,}")
    Console().print(table)


def _size(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
