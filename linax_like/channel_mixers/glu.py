"""Gated linear unit (https://arxiv.org/abs/1612.08083) and the gated feed-forward layers after it.

GLU(x)    = (W x + b) ⊙ σ(V x + c)               keeps the width, no hidden layer
SwiGLU(x) = U (W x ⊙ silu(V x))                  https://arxiv.org/abs/2002.05202
GeGLU(x)  = U (W x ⊙ gelu(V x))
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require_positive
from ..initializers import constant, linear_weight, normal, split
from ..precision import linear
from .base import AbstractChannelMixer, AbstractChannelMixerConfig, require_width
from .mlp import MLP, MLPConfig


@dataclass(frozen=True)
class GLUConfig(AbstractChannelMixerConfig):
    """A linear map times a gate, as in S5 and the LRU.

    - `use_bias`: add a learned bias to the map and to the gate.
    """

    use_bias: bool = True

    def build(self, in_features: int, key: PRNGKeyArray) -> "GLU":
        return GLU(in_features, self, key)


@dataclass(frozen=True)
class SwiGLUConfig(AbstractChannelMixerConfig):
    """The feed-forward layer of Llama: an `MLP` with one hidden layer gated by silu.

    - `expand`: width of the hidden layer relative to the input's, rounded to a multiple of 8. With
        8/3 its three matrices have as many parameters as the two of an MLP with 4.
    - `use_bias`: add a learned bias after every projection.
    """

    expand: float = 8 / 3
    use_bias: bool = False

    def __post_init__(self):
        require_positive(self, "expand")

    def build(self, in_features: int, key: PRNGKeyArray) -> MLP:
        return MLP(in_features, MLPConfig(1, self.expand, "swiglu", self.use_bias), key)


@dataclass(frozen=True)
class GeGLUConfig(AbstractChannelMixerConfig):
    """The same with the exact gelu. `MLPConfig(activation="geglu_tanh")` has the approximate one.

    - `expand`, `use_bias`: as in `SwiGLUConfig`.
    """

    expand: float = 8 / 3
    use_bias: bool = False

    def __post_init__(self):
        require_positive(self, "expand")

    def build(self, in_features: int, key: PRNGKeyArray) -> MLP:
        return MLP(in_features, MLPConfig(1, self.expand, "geglu", self.use_bias), key)


class GLU(AbstractChannelMixer):
    """Gated linear unit."""

    config: GLUConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    weight: Float[Array, "features features"]  # W
    bias: Float[Array, " features"] | None  # b
    gate_weight: Float[Array, "features features"]  # V
    gate_bias: Float[Array, " features"] | None  # c

    def __init__(self, in_features: int, cfg: GLUConfig, key: PRNGKeyArray):
        weight_key, gate_key = split(key, 2)
        # E[σ(z)²] = 0.2934 for z of unit variance, which the weight makes good.
        std = 1 / math.sqrt(0.2934 * in_features)
        self.config = cfg
        self.in_features = in_features
        self.weight = normal(weight_key, (in_features, in_features), std)
        self.bias = constant(0, (in_features,)) if cfg.use_bias else None
        self.gate_weight = linear_weight(gate_key, in_features, in_features)
        self.gate_bias = constant(0, (in_features,)) if cfg.use_bias else None

    def __call__(
        self, x: Float[Array, "*shape features"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*shape features"]:
        require_width(self, x)
        gate = linear(x, self.gate_weight, self.gate_bias)
        return linear(x, self.weight, self.bias) * jax.nn.sigmoid(gate)

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, positions: int, inference: bool = False) -> int:
        forward = positions * 4 * self.in_features**2
        return forward if inference else 3 * forward
