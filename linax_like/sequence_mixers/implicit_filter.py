"""Implicit filters (Poli et al., 2023, https://arxiv.org/abs/2302.10866): kernels as functions of time.

z(t) = [t, cos(2π f₁ t), …, -sin(2π f₁ t), …]           t = lag / time_scale
k(t) = W_L sin(ω ⊙ (… sin(ω ⊙ (W₀ z(t) + b₀)) …)) ⊙ (exp(-δ t) + shift)
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import AbstractConfig, require, require_positive
from ..initializers import constant, linear_weight, normal, split, uniform
from ..precision import linear


@dataclass(frozen=True)
class ImplicitFilterConfig(AbstractConfig):
    """A small network of the time, under an exponential window.

    - `hidden_features`, `hidden_layers`: the size of the network.
    - `bands`: frequencies of the cosines and sines that it reads, up to `bands - 1` turns per unit of
        time.
    - `sine_frequency`: where ω starts; the larger, the rougher the kernels start.
    - `time_scale`: lags in a unit of time, about the length of the sequences. It is fixed, so that a
        kernel does not depend on how long a sequence happens to be.
    - `fast_decay`, `slow_decay`: the time in which the window of the channel that decays fastest
        (slowest) falls to `decay_target`.
    - `decay_shift`: what remains of the window in the far past.
    """

    hidden_features: int = 64
    hidden_layers: int = 3
    bands: int = 16
    sine_frequency: float = 10.0
    time_scale: int = 1024
    fast_decay: float = 0.3
    slow_decay: float = 1.5
    decay_target: float = 0.01
    decay_shift: float = 0.0

    def __post_init__(self):
        require_positive(self, "hidden_features", "hidden_layers", "bands", "sine_frequency")
        require_positive(self, "fast_decay", "slow_decay")
        require(self.time_scale >= 2, self, "time_scale", "at least 2")
        require(0 < self.decay_target < 1, self, "decay_target", "between 0 and 1")

    def build(self, in_features: int, key: PRNGKeyArray) -> "ImplicitFilter":
        return ImplicitFilter(in_features, self, key)


class ImplicitFilter(eqx.Module):
    """A kernel for each of `in_features` channels, at any lags."""

    config: ImplicitFilterConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    weights: tuple[Float[Array, "out in"], ...]  # W₀ … W_L
    biases: tuple[Float[Array, " out"], ...]  # b₀ …
    frequency: Float[Array, " hidden"]  # ω

    def __init__(self, in_features: int, cfg: ImplicitFilterConfig, key: PRNGKeyArray):
        out_key, *keys = split(key, 2 * cfg.hidden_layers + 1)
        sizes = [1 + 2 * cfg.bands, *(cfg.hidden_layers * [cfg.hidden_features])]
        # Windows of different lengths, each filter with an energy of about 1: a sine's is 1/2.
        energy = 2 * _decay_rates(cfg, in_features) / cfg.time_scale
        std = np.sqrt(2 * np.minimum(energy, 1) / cfg.hidden_features)
        self.config = cfg
        self.in_features = in_features
        self.weights = (
            *(linear_weight(k, *pair) for k, pair in zip(keys, _pairs(sizes), strict=False)),
            normal(out_key, (in_features, cfg.hidden_features), std[:, None]),
        )
        self.biases = tuple(
            uniform(k, (cfg.hidden_features,), -1 / math.sqrt(size), 1 / math.sqrt(size))
            for k, size in zip(keys[cfg.hidden_layers :], sizes[:-1], strict=True)
        )
        self.frequency = constant(cfg.sine_frequency, (cfg.hidden_features,))

    def __call__(
        self, length: int, dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "lags channels"]:
        """The kernels at the lags 0, 1, …, length - 1."""
        lags = jnp.arange(length, dtype=dtype)
        hidden, frequency = positional_features(self.config, lags), self.frequency.astype(dtype)
        # Every layer multiplies what the one before it rounded off by ω.
        with jax.default_matmul_precision("highest"):
            for weight, bias in zip(self.weights, self.biases, strict=False):
                hidden = jnp.sin(frequency * linear(hidden, weight, bias))
            kernels = linear(hidden, self.weights[-1])
        rates = jnp.asarray(_decay_rates(self.config, self.in_features), dtype)
        return kernels * (jnp.exp(-_time(self.config, lags) * rates) + self.config.decay_shift)


def positional_features(
    cfg: ImplicitFilterConfig, lags: Float[Array, " lags"]
) -> Float[Array, "lags size"]:
    """z: time, cosines and negated sines."""
    frequencies = 2 * np.pi / cfg.time_scale * np.linspace(1e-4, cfg.bands - 1, cfg.bands)
    angles = lags[:, None] * jnp.asarray(frequencies, lags.dtype)
    return jnp.concatenate([_time(cfg, lags), jnp.cos(angles), -jnp.sin(angles)], axis=1)


def _time(cfg, lags):
    """The time of each lag, a column; 1 at the last lag of a sequence of `time_scale` positions."""
    return lags[:, None] / (cfg.time_scale - 1)


def _decay_rates(cfg, channels):
    """δ"""
    slowest, fastest = (
        math.log(cfg.decay_target) / time for time in (cfg.slow_decay, cfg.fast_decay)
    )
    return np.abs(np.linspace(slowest, fastest, channels))


def _pairs(sizes):
    return zip(sizes[:-1], sizes[1:], strict=True)
