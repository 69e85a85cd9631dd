"""Sinusoidal kernels (Sitzmann et al., 2020, https://arxiv.org/abs/2006.09661).

k(p) = W_o h_L + b_o,    h_l = sin(W_l h_{l-1} + b_l),    h_0 = sin(W_0 p + b_0)

The rows of W_0 start uniform on ±2π ω over the number of axes. ω may differ between groups of rows,
and the later weights may start nearly block-diagonal over these groups, so that every group of channels
has its own band. If ω is learned, h_0 = sin(2π ω_max s ⊙ (W_0 p + b_0)), and s is.
"""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...config import require, require_choice, require_positive
from ...initializers import constant, rescale, split, uniform
from ...ops.sine import sine
from ...precision import linear
from .base import AbstractImplicitKernel, AbstractImplicitKernelConfig, pass_straight
from .film import KernelFiLM, KernelFiLMConfig, modulate


@dataclass(frozen=True)
class SIRENKernelConfig(AbstractImplicitKernelConfig):
    """A network of sines.

    - `hidden_features`, `hidden_layers`: its size; the layer that reads the coordinates is one more.
    - `frequencies`: ω, in turns over the extent; several divide the rows of the first layer into
        equal groups.
    - `off_block_scale`: with several frequencies, a factor on the initial weights between groups; 1
        for none, 0 for separate networks.
    - `frequency`: whether ω is `"fixed"`, or `"learned"` between `scale_bounds` times the largest.
    - `film`: how `context.condition` modulates the kernel.
    """

    hidden_features: int = 32
    hidden_layers: int = 2
    frequencies: tuple[float, ...] = (10.0,)
    off_block_scale: float = 1.0
    frequency: Literal["fixed", "learned"] = "fixed"
    scale_bounds: tuple[float, float] = (0.01, 2.0)
    film: KernelFiLMConfig | None = None

    def __post_init__(self):
        require_positive(self, "hidden_features", "hidden_layers")
        require_choice(self, "frequency")
        groups = len(self.frequencies)
        positive = groups > 0 and min(self.frequencies) > 0
        require(positive, self, "frequencies", "at least one number, all positive")
        divides = self.hidden_features % groups == 0
        require(divides, self, "frequencies", "as many as divide `hidden_features`")
        require(0 <= self.off_block_scale <= 1, self, "off_block_scale", "between 0 and 1")
        low, high = self.scale_bounds
        require(0 < low <= 1 <= high, self, "scale_bounds", "positive, with 1 between them")

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "SIRENKernel":
        divides = self.off_block_scale == 1 or out_features % len(self.frequencies) == 0
        require(divides, self, "frequencies", f"as many as divide the {out_features} channels")
        return SIRENKernel(in_features, out_features, self, key)


@jax.checkpoint
def _layer(h, weight, bias, scale, film):
    """One layer of sines. Its gradient computes their angles again: there are many lags."""
    return modulate(sine(linear(h, weight, bias) * scale), film)


class SIRENKernel(AbstractImplicitKernel):
    """Sines of sines of the coordinates."""

    config: SIRENKernelConfig = eqx.field(static=True)
    in_weight: Float[Array, "hidden axes"]  # W_0
    in_bias: Float[Array, " hidden"]
    frequency_scale: Float[Array, " hidden"] | None  # s
    weights: tuple[Float[Array, "hidden hidden"], ...]  # W_l
    biases: tuple[Float[Array, " hidden"], ...]
    out_weight: Float[Array, "channels hidden"]
    out_bias: Float[Array, " channels"]
    film: KernelFiLM | None

    def __init__(self, axes: int, channels: int, cfg: SIRENKernelConfig, key: PRNGKeyArray):
        in_key, film_key, *keys = split(key, cfg.hidden_layers + 3)
        hidden, learned = cfg.hidden_features, cfg.frequency == "learned"
        omega = np.repeat(cfg.frequencies, hidden // len(cfg.frequencies))
        *weights, out_weight = (
            rescale(uniform(k, (rows, hidden), -bound, bound), _block_scale(cfg, rows))
            for k, rows in zip(keys, cfg.hidden_layers * [hidden] + [channels], strict=True)
            for bound in [math.sqrt(6 / hidden)]
        )
        self.config = cfg
        in_weight = uniform(in_key, (hidden, axes), -1 / axes, 1 / axes)
        self.in_weight = in_weight if learned else rescale(in_weight, 2 * np.pi * omega[:, None])
        self.in_bias = constant(0, (hidden,))
        self.frequency_scale = constant(omega / omega.max()) if learned else None
        self.weights = tuple(weights)
        self.biases = tuple(constant(0, (hidden,)) for _ in weights)
        self.out_weight = out_weight
        self.out_bias = constant(0, (channels,))
        layers = cfg.hidden_layers + (cfg.film is not None and cfg.film.modulate_embedding)
        self.film = None if cfg.film is None else cfg.film.build(layers, hidden, film_key)

    @property
    def uses_condition(self) -> bool:
        return self.film is not None

    def waves_at(
        self,
        coordinates: Float[Array, "lags axes"],
        condition: Float[Array, " condition"] | None = None,
    ) -> Float[Array, "lags hidden"]:
        films = self._films(condition, coordinates.dtype)
        # A rounded product of a high frequency and a coordinate is another phase.
        with jax.default_matmul_precision("highest"):
            scale = self._multiplier(coordinates.dtype)
            h = _layer(coordinates, self.in_weight, self.in_bias, scale, films[0])
            for weight, bias, film in zip(self.weights, self.biases, films[1:], strict=True):
                h = _layer(h, weight, bias, 1.0, film)
            return h

    def flop_count(self, points: int) -> int:
        weights = (self.in_weight, *self.weights, self.out_weight)
        layers = 0 if self.film is None else self.film.layers
        per_point = 2 * sum(w.size for w in weights) + (2 * layers) * self.config.hidden_features
        return points * per_point + (0 if self.film is None else self.film.flop_count())

    def _multiplier(self, dtype) -> Float[Array, " hidden"] | float:
        if self.frequency_scale is None:
            return 1.0
        bounded = jnp.clip(self.frequency_scale, *self.config.scale_bounds)
        scale = pass_straight(self.frequency_scale, bounded)
        return 2 * np.pi * max(self.config.frequencies) * scale.astype(dtype)

    def _films(self, condition, dtype) -> list[Array | None]:
        """What modulates the first layer, and each of the others."""
        if self.film is None:
            return [None] * (1 + len(self.weights))
        films = self.film(None if condition is None else condition.astype(dtype))
        unmodulated = 1 + len(self.weights) - self.film.layers
        return [None] * unmodulated + list(films)


def _block_scale(cfg: SIRENKernelConfig, rows: int) -> np.ndarray:
    """1 between features of one group, `off_block_scale` between those of different ones."""
    groups = len(cfg.frequencies)
    if cfg.off_block_scale == 1:
        return np.ones((1, 1))
    of_row, of_column = (np.arange(n) * groups // n for n in (rows, cfg.hidden_features))
    return np.where(of_row[:, None] == of_column, 1.0, cfg.off_block_scale)
