"""Positions on a grid, as vectors that are added to the features.

    joint     p[i, j] = table[i, j]
    per axis  p[i, j] = [rows[i], columns[j]]
    fixed     p[i, j] = [sinusoidal(i), sinusoidal(j)]        https://arxiv.org/abs/2104.02057

and likewise on one axis or three: every axis has an equal part of the features.
"""

import abc
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .config import AbstractConfig, require, require_choice, require_positive
from .initializers import normal, split
from .positions import sinusoidal
from .types import Grid


@dataclass(frozen=True)
class AbstractGridPositionsConfig(AbstractConfig):
    """The hyperparameters of positions on a grid."""

    @abc.abstractmethod
    def build(self, in_features: int, key: PRNGKeyArray) -> "AbstractGridPositions":
        """New position vectors of width `in_features`."""


@dataclass(frozen=True)
class SinusoidalGridPositionsConfig(AbstractGridPositionsConfig):
    """Sines and cosines of the place along every axis; there is no largest grid.

    - `base`: the longest wavelength is about `2π · base` positions.
    """

    base: float = 10000.0

    def __post_init__(self):
        require_positive(self, "base")

    def build(self, in_features: int, key: PRNGKeyArray) -> "SinusoidalGridPositions":
        return SinusoidalGridPositions(in_features, self, key)


@dataclass(frozen=True)
class LearnedGridPositionsConfig(AbstractGridPositionsConfig):
    """A learned vector for every place of a grid.

    - `grid`: the sizes of the largest grid; a smaller one takes its first places along each axis.
    - `tables`: `"joint"`, one vector for each place; or `"axes"`, one for each place of each axis,
        side by side.
    - `init_std`: standard deviation of a fresh table, small beside features of unit variance.
    """

    grid: tuple[int, ...]
    tables: Literal["joint", "axes"] = "joint"
    init_std: float = 0.02

    def __post_init__(self):
        law = "one to three positive sizes"
        require(0 < len(self.grid) <= 3 and min(self.grid) > 0, self, "grid", law)
        require_choice(self, "tables")
        require_positive(self, "init_std")

    def build(self, in_features: int, key: PRNGKeyArray) -> "LearnedGridPositions":
        return LearnedGridPositions(in_features, self, key)


class AbstractGridPositions(eqx.Module):
    """A vector for every place of a grid."""

    in_features: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, sizes: tuple[int, ...]) -> Grid:
        """Vectors in float32 for a grid of these sizes.

        **Raises:** `ValueError` if there are none for it.
        """


class SinusoidalGridPositions(AbstractGridPositions):
    """Sines and cosines. Nothing is random: the key is not used."""

    config: SinusoidalGridPositionsConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)

    def __init__(self, in_features: int, cfg: SinusoidalGridPositionsConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features

    def __call__(self, sizes: tuple[int, ...]) -> Grid:
        part = _part(self, self.in_features, 2 * len(sizes)) * 2
        return _side_by_side(
            [sinusoidal(jnp.arange(size), part, self.config.base) for size in sizes]
        )


class LearnedGridPositions(AbstractGridPositions):
    """Rows of tables: of one of the whole grid, or of one for every axis."""

    config: LearnedGridPositionsConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    tables: tuple[Float[Array, "*places features"], ...]

    def __init__(self, in_features: int, cfg: LearnedGridPositionsConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features
        shapes = [(*cfg.grid, in_features)]
        if cfg.tables == "axes":
            part = _part(self, in_features, len(cfg.grid))
            shapes = [(size, part) for size in cfg.grid]
        keys = split(key, len(shapes))
        self.tables = tuple(
            normal(key, shape, cfg.init_std) for key, shape in zip(keys, shapes, strict=True)
        )

    def __call__(self, sizes: tuple[int, ...]) -> Grid:
        grid = self.config.grid
        if len(sizes) != len(grid) or any(s > g for s, g in zip(sizes, grid, strict=True)):
            raise ValueError(
                f"`LearnedGridPositions` has vectors for grids of {len(grid)} axes, at most {grid}. "
                f"Received a grid of {sizes}. Build it with a larger `grid`, or use "
                "`SinusoidalGridPositionsConfig`."
            )
        if self.config.tables == "joint":
            return self.tables[0][tuple(slice(size) for size in sizes)]
        pairs = zip(self.tables, sizes, strict=True)
        return _side_by_side([table[:size] for table, size in pairs])


def _part(positions: AbstractGridPositions, in_features: int, parts: int) -> int:
    """The features of each of so many parts."""
    if in_features % parts:
        raise ValueError(
            f"`{type(positions).__name__}` gives every axis an equal part of the features: their "
            f"number must be a multiple of {parts}. Received {in_features}."
        )
    return in_features // parts


def _side_by_side(axes: list[Float[Array, "_ part"]]) -> Grid:
    """The vectors of the axes, each repeated along the others."""
    sizes = tuple(len(vectors) for vectors in axes)
    spread = [
        jnp.broadcast_to(
            jnp.expand_dims(vectors, [i for i in range(len(sizes)) if i != axis]),
            (*sizes, vectors.shape[-1]),
        )
        for axis, vectors in enumerate(axes)
    ]
    return jnp.concatenate(spread, axis=-1)
