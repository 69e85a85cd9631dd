"""Multilayer perceptron, its hidden layers plain or gated (https://arxiv.org/abs/2002.05202).

    h = φ(W x + b)                    plain: gelu, gelu_tanh, relu, silu, tanh
    h = φ(V x + c) ⊙ (W x + b)        gated: geglu, geglu_tanh, glu (a sigmoid), reglu, swiglu
    y = U h + d

with as many hidden layers h as `depth` says.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require_choice, require_positive
from ..initializers import constant, normal, split
from ..ops.gelu import gelu
from ..precision import linear
from .base import AbstractChannelMixer, AbstractChannelMixerConfig, require_width


PlainActivation = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]
GatedActivation = Literal["geglu", "geglu_tanh", "glu", "reglu", "swiglu"]


@dataclass(frozen=True)
class MLPConfig(AbstractChannelMixerConfig):
    """Expand, apply a nonlinearity, contract.

    - `depth`: number of hidden layers.
    - `expand`: width of a hidden layer relative to the input's, rounded to a multiple of 8.
    - `activation`: the nonlinearity. `gelu` is the exact one, `gelu_tanh` its approximation by
        tanh; the gated ones multiply a linear branch by a second, nonlinear one.
    - `use_bias`: add a learned bias after every projection.
    """

    depth: int = 1
    expand: float = 4.0
    activation: Literal[PlainActivation, GatedActivation] = "gelu"
    use_bias: bool = True

    def __post_init__(self):
        require_positive(self, "depth", "expand")
        require_choice(self, "activation")

    def build(self, in_features: int, key: PRNGKeyArray) -> "MLP":
        return MLP(in_features, self, key)


class HiddenLayer(eqx.Module):
    """A projection and, if gated, the gate beside it."""

    weight: Float[Array, "hidden in"]  # W
    bias: Float[Array, " hidden"] | None  # b
    gate_weight: Float[Array, "hidden in"] | None  # V
    gate_bias: Float[Array, " hidden"] | None  # c


class MLP(AbstractChannelMixer):
    """Multilayer perceptron."""

    config: MLPConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    hidden_layers: tuple[HiddenLayer, ...]
    out_proj: Float[Array, "features hidden"]  # U
    out_bias: Float[Array, " features"] | None  # d

    def __init__(self, in_features: int, cfg: MLPConfig, key: PRNGKeyArray):
        hidden = 8 * max(1, round(cfg.expand * in_features / 8))
        gated = cfg.activation in get_args(GatedActivation)
        _, mean_square = _NONLINEARITIES[cfg.activation]
        *keys, out_key = split(key, cfg.depth + 1)
        layers, width, size = [], in_features, 1.0  # size: mean square of the layer's input
        for layer_key in keys:
            weight_key, gate_key = split(layer_key, 2)
            draw = partial(normal, shape=(hidden, width), std=1 / math.sqrt(width * size))
            bias = constant(0, (hidden,)) if cfg.use_bias else None
            gate_bias = constant(0, (hidden,)) if cfg.use_bias and gated else None
            gate_weight = draw(gate_key) if gated else None
            layers.append(HiddenLayer(draw(weight_key), bias, gate_weight, gate_bias))
            width, size = hidden, mean_square
        self.config = cfg
        self.in_features = in_features
        self.hidden_layers = tuple(layers)
        self.out_proj = normal(out_key, (in_features, width), 1 / math.sqrt(width * size))
        self.out_bias = constant(0, (in_features,)) if cfg.use_bias else None

    def __call__(
        self, x: Float[Array, "*shape features"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*shape features"]:
        require_width(self, x)
        nonlinearity, _ = _NONLINEARITIES[self.config.activation]
        for layer in self.hidden_layers:
            h = linear(x, layer.weight, layer.bias)
            if layer.gate_weight is None:
                x = nonlinearity(h)
            else:
                x = nonlinearity(linear(x, layer.gate_weight, layer.gate_bias)) * h
        return linear(x, self.out_proj, self.out_bias)

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, positions: int, inference: bool = False) -> int:
        arrays = jax.tree.leaves((self.hidden_layers, self.out_proj))
        forward = positions * sum(2 * weight.size for weight in arrays if weight.ndim == 2)
        return forward if inference else 3 * forward


# Each with E[φ(z)²] for z of unit variance, by which the next layer's weights keep the variance.
_NONLINEARITIES: dict[str, tuple[Callable, float]] = {
    "gelu": (gelu, 0.4252),
    "gelu_tanh": (jax.nn.gelu, 0.4252),
    "relu": (jax.nn.relu, 0.5),
    "silu": (jax.nn.silu, 0.3556),
    "tanh": (jnp.tanh, 0.3943),
    "geglu": (gelu, 0.4252),
    "geglu_tanh": (jax.nn.gelu, 0.4252),
    "glu": (jax.nn.sigmoid, 0.2934),
    "reglu": (jax.nn.relu, 0.5),
    "swiglu": (jax.nn.silu, 0.3556),
}
