"""Positions as angles: rotary and sinusoidal encodings; and as a learned table.

    angle[t, i] = t · base^(-2i / size),   i = 0 … size/2 - 1

    rotary      (a, b) → (a cos - b sin, b cos + a sin)       https://arxiv.org/abs/2104.09864
    sinusoidal  (sin, cos)                                    https://arxiv.org/abs/1706.03762

for every pair of features: i and i + size/2, or, interleaved, 2i and 2i + 1. Models trained on short
texts reach longer ones with slower angles: all of them, or, as in Llama 3, the slow ones
(https://arxiv.org/abs/2407.21783).
"""

import abc
import math
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpy.typing import NDArray

from .config import AbstractConfig, require, require_positive
from .initializers import normal
from .precision import upcast
from .types import Signal


Turns = tuple[Float[Array, "*time half"], Float[Array, "*time half"]]  # cosines and sines


@dataclass(frozen=True)
class AbstractRopeScalingConfig(AbstractConfig):
    """How the angles of rotary positions are slowed down for long sequences."""

    @abc.abstractmethod
    def apply(self, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
        """The frequencies to turn by, from those that the base gives."""


@dataclass(frozen=True)
class LinearRopeScalingConfig(AbstractRopeScalingConfig):
    """All angles slower, as if positions were closer together (https://arxiv.org/abs/2306.15595).

    - `factor`: how much slower.
    """

    factor: float

    def __post_init__(self):
        require_positive(self, "factor")

    def apply(self, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3RopeScalingConfig(AbstractRopeScalingConfig):
    """Slow angles slower, fast ones as they were, and between them a smooth passage.

    - `factor`: how much slower.
    - `low_frequency`, `high_frequency`: angles that turn at most, or at least, so many times in the
        original length are slow, or fast.
    - `original_length`: the longest sequence that the model was trained on before.
    """

    factor: float = 8.0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        require_positive(self, "factor", "low_frequency", "original_length")
        law = "above low_frequency"
        require(self.low_frequency < self.high_frequency, self, "high_frequency", law)

    def apply(self, frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
        turns = self.original_length * frequencies / (2 * math.pi)
        fast = (turns - self.low_frequency) / (self.high_frequency - self.low_frequency)
        fast = np.clip(fast, 0, 1)
        return fast * frequencies + (1 - fast) * frequencies / self.factor


def rope(
    x: Float[Array, "*time heads head"],
    positions: Int[Array, "*time"],
    base: float = 10000.0,
    *,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    scaling: AbstractRopeScalingConfig | None = None,
) -> Float[Array, "*time heads head"]:
    """Rotary position embedding: turns pairs of features by angles that grow with the position.

    The product of a query and a key turned so depends on positions by their difference alone.

    - `base`: the slowest pair turns once in about `2π · base` positions.
    - `rotary_dim`: turn only the first so many features; all by default.
    - `interleaved`: pair neighbours, as GPT-J does; by default the two halves, as Llama does.
    - `scaling`: how the angles are slowed down.
    """
    size = x.shape[-1] if rotary_dim is None else rotary_dim
    if size % 2 or not 0 <= size <= x.shape[-1]:
        raise ValueError(
            f"`rope` turns pairs: it takes an even number of features, at most the head's "
            f"{x.shape[-1]}. Received {size}. Choose an even head size or another `rotary_dim`."
        )
    wide = upcast(x)
    angles = _angles(positions, size, base, wide.dtype, scaling)
    turned = turn(wide[..., :size], jnp.cos(angles), jnp.sin(angles), interleaved=interleaved)
    return jnp.concatenate([turned, wide[..., size:]], axis=-1).astype(x.dtype)


def turn(
    x: Float[Array, "*time heads head"],
    cos: Float[Array, "*time half"],
    sin: Float[Array, "*time half"],
    *,
    interleaved: bool = False,
) -> Float[Array, "*time heads head"]:
    """Turns pairs of features by angles whose cosines and sines are given, in at least float32."""
    a, b = _split_pairs(upcast(x), interleaved)
    cos, sin = cos[..., None, :].astype(a.dtype), sin[..., None, :].astype(a.dtype)
    turned = _join_pairs(a * cos - b * sin, b * cos + a * sin, interleaved)
    return turned.astype(x.dtype)


def sinusoidal(
    positions: Int[Array, "*time"],
    size: int,
    base: float = 10000.0,
    *,
    interleaved: bool = False,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*time size"]:
    """Sines and cosines of every position, in geometrically spaced frequencies.

    - `interleaved`: sine and cosine alternate; by default all sines come first.
    """
    if size % 2:
        raise ValueError(f"Sinusoidal positions need an even number of features. Received {size}.")
    angles = _angles(positions, size, base, dtype)
    return _join_pairs(jnp.sin(angles), jnp.cos(angles), interleaved)


@dataclass(frozen=True)
class AbstractPositionsConfig(AbstractConfig):
    """The hyperparameters of position vectors."""

    @abc.abstractmethod
    def build(self, in_features: int, key: PRNGKeyArray) -> "AbstractPositions":
        """New position vectors of width `in_features`."""


@dataclass(frozen=True)
class SinusoidalPositionsConfig(AbstractPositionsConfig):
    """The fixed encoding of the Transformer; it has no longest sequence.

    - `base`: the longest wavelength is about `2π · base` positions.
    - `interleaved`: sine and cosine alternate; by default all sines come first.
    """

    base: float = 10000.0
    interleaved: bool = False

    def __post_init__(self):
        require_positive(self, "base")

    def build(self, in_features: int, key: PRNGKeyArray) -> "SinusoidalPositions":
        return SinusoidalPositions(in_features, self, key)


@dataclass(frozen=True)
class LearnedPositionsConfig(AbstractPositionsConfig):
    """A learned vector for every position.

    - `max_length`: positions from there on give NaN, so that they cannot pass unnoticed.
    - `init_std`: standard deviation of a fresh table, small beside features of unit variance.
    """

    max_length: int
    init_std: float = 0.02

    def __post_init__(self):
        require_positive(self, "max_length", "init_std")

    def build(self, in_features: int, key: PRNGKeyArray) -> "LearnedPositions":
        return LearnedPositions(in_features, self, key)


class AbstractPositions(eqx.Module):
    """A vector for every position, to be added to the features."""

    in_features: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(self, positions: Int[Array, " time"]) -> Signal:
        """Vectors in float32."""


class SinusoidalPositions(AbstractPositions):
    """Sines and cosines. Nothing is random: the key is not used."""

    config: SinusoidalPositionsConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)

    def __init__(self, in_features: int, cfg: SinusoidalPositionsConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features

    def __call__(self, positions: Int[Array, " time"]) -> Signal:
        base, interleaved = self.config.base, self.config.interleaved
        return sinusoidal(positions, self.in_features, base, interleaved=interleaved)


class LearnedPositions(AbstractPositions):
    """Rows of a table."""

    config: LearnedPositionsConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    table: Float[Array, "max_length features"]

    def __init__(self, in_features: int, cfg: LearnedPositionsConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features
        self.table = normal(key, (cfg.max_length, in_features), cfg.init_std)

    def __call__(self, positions: Int[Array, " time"]) -> Signal:
        inside = (positions >= 0) & (positions < self.config.max_length)
        rows = self.table.at[positions].get(mode="clip")
        return jnp.where(inside[:, None], rows, jnp.nan)


def _angles(
    positions: Int[Array, "*time"],
    size: int,
    base: float,
    dtype: DTypeLike,
    scaling: AbstractRopeScalingConfig | None = None,
) -> Float[Array, "*time half"]:
    frequencies = np.float64(base) ** (-np.arange(0, size, 2) / max(size, 1))
    frequencies = frequencies if scaling is None else scaling.apply(frequencies)
    return positions[..., None].astype(dtype) * jnp.asarray(frequencies, dtype)


def _split_pairs(
    x: Float[Array, "*shape size"], interleaved: bool
) -> tuple[Float[Array, "*shape half"], Float[Array, "*shape half"]]:
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _join_pairs(
    a: Float[Array, "*shape half"], b: Float[Array, "*shape half"], interleaved: bool
) -> Float[Array, "*shape size"]:
    if interleaved:
        return jnp.stack([a, b], axis=-1).reshape(*a.shape[:-1], 2 * a.shape[-1])
    return jnp.concatenate([a, b], axis=-1)
