"""Kernels of random Fourier features (Tancik et al., 2020, https://arxiv.org/abs/2006.10739).

k(p) = W_o h_L + b_o,    h_l = σ(W_l h_{l-1} + b_l),    h_0 = [cos(F p + φ), sin(F p + φ)]

F ~ N(0, (2π ω)²) is drawn once and never trained.
"""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...config import require, require_choice, require_positive
from ...initializers import constant, normal, split
from ...parameters import Buffer
from ...precision import linear
from .base import AbstractImplicitKernel, AbstractImplicitKernelConfig


_ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@dataclass(frozen=True)
class RandomFourierKernelConfig(AbstractImplicitKernelConfig):
    """A network of random waves.

    - `hidden_features`, `hidden_layers`: its size; half of the features that it reads are cosines.
    - `frequency`: ω, the spread of the waves' frequencies, in turns over the extent.
    - `activation`: σ.
    """

    hidden_features: int = 32
    hidden_layers: int = 2
    frequency: float = 10.0
    activation: Literal["gelu", "relu", "silu"] = "gelu"

    def __post_init__(self):
        require_positive(self, "hidden_features", "hidden_layers", "frequency")
        require_choice(self, "activation")
        require(self.hidden_features % 2 == 0, self, "hidden_features", "even")

    def build(
        self, in_features: int, out_features: int, key: PRNGKeyArray
    ) -> "RandomFourierKernel":
        return RandomFourierKernel(in_features, out_features, self, key)


class RandomFourierKernel(AbstractImplicitKernel):
    """A network of fixed waves of the coordinates."""

    config: RandomFourierKernelConfig = eqx.field(static=True)
    waves: Buffer  # F, (hidden / 2, axes)
    phases: Float[Array, " waves"]  # φ
    weights: tuple[Float[Array, "hidden hidden"], ...]  # W_l
    biases: tuple[Float[Array, " hidden"], ...]
    out_weight: Float[Array, "channels hidden"]
    out_bias: Float[Array, " channels"]

    def __init__(
        self, axes: int, channels: int, cfg: RandomFourierKernelConfig, key: PRNGKeyArray
    ):
        wave_key, *keys = split(key, cfg.hidden_layers + 2)
        hidden, gain = cfg.hidden_features, math.sqrt(2 / cfg.hidden_features)
        self.config = cfg
        waves = normal(wave_key, (hidden // 2, axes), 2 * math.pi * cfg.frequency)
        self.waves = Buffer(waves)
        self.phases = constant(0, (hidden // 2,))
        self.weights = tuple(normal(k, (hidden, hidden), gain) for k in keys[:-1])
        self.biases = tuple(constant(0, (hidden,)) for _ in self.weights)
        self.out_weight = normal(keys[-1], (channels, hidden), gain)
        self.out_bias = constant(0, (channels,))

    @property
    def uses_condition(self) -> bool:
        return False

    def waves_at(
        self,
        coordinates: Float[Array, "lags axes"],
        condition: Float[Array, " condition"] | None = None,
    ) -> Float[Array, "lags hidden"]:
        activate = _ACTIVATIONS[self.config.activation]
        with jax.default_matmul_precision("highest"):
            angles = linear(coordinates, self.waves.value, self.phases)
            h = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
            for weight, bias in zip(self.weights, self.biases, strict=True):
                h = activate(linear(h, weight, bias))
            return h

    def flop_count(self, points: int) -> int:
        weights = (self.waves.array, *self.weights, self.out_weight)
        return 2 * points * sum(weight.size for weight in weights)
