"""FiLM on a kernel (Perez et al., 2018, https://arxiv.org/abs/1709.07871).

h ← γ ⊙ h + β        after the layers of a kernel;  (γ, β) = W₁ gelu(W₀ condition + b₀) + b₁
"""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ...config import AbstractConfig, require_choice, require_positive
from ...initializers import constant, linear_weight, normal, split, stack
from ...precision import linear


@dataclass(frozen=True)
class KernelFiLMConfig(AbstractConfig):
    """A small network that makes factors and shifts of a condition.

    - `condition_features`: the size of `context.condition`.
    - `hidden_features`: of the network.
    - `modulate_embedding`: modulate the first layer of the kernel as well.
    - `init`: `"identity"` starts without any effect. Its gradient starts at zero but for the last
        layer, which optimisers that scale a step by the weights' norm never leave: `"small_random"`.
    - `std`: of the last layer's weights in `"small_random"`.
    """

    condition_features: int
    hidden_features: int = 64
    modulate_embedding: bool = False
    init: Literal["identity", "small_random"] = "identity"
    std: float = 1e-4

    def __post_init__(self):
        require_positive(self, "condition_features", "hidden_features", "std")
        require_choice(self, "init")

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "KernelFiLM":
        return KernelFiLM(in_features, out_features, self, key)


class KernelFiLM(eqx.Module):
    """Factors and shifts for every feature of `in_features` layers of width `out_features`."""

    config: KernelFiLMConfig = eqx.field(static=True)
    layers: int = eqx.field(static=True)
    in_weight: Float[Array, "hidden condition"]
    in_bias: Float[Array, " hidden"]
    out_weight: Float[Array, "out hidden"]
    out_bias: Float[Array, " out"]

    def __init__(self, layers: int, features: int, cfg: KernelFiLMConfig, key: PRNGKeyArray):
        in_key, out_key = split(key, 2)
        shape = (2 * layers * features, cfg.hidden_features)
        identity = stack([constant(1, (features,)), constant(0, (features,))] * layers)
        self.config = cfg
        self.layers = layers
        self.in_weight = linear_weight(in_key, cfg.condition_features, cfg.hidden_features)
        self.in_bias = constant(0, (cfg.hidden_features,))
        small = cfg.init == "small_random"
        self.out_weight = normal(out_key, shape, cfg.std) if small else constant(0, shape)
        self.out_bias = identity.reshape(-1)

    def __call__(self, condition: Array | None) -> Float[Array, "layers 2 features"]:
        size = self.config.condition_features
        if condition is None or condition.shape != (size,):
            came = "none" if condition is None else f"one of shape {condition.shape}"
            raise ValueError(
                f"`KernelFiLMConfig(condition_features={size})` needs `context.condition` of shape "
                f"({size},). Received {came}."
            )
        hidden = jax.nn.gelu(linear(condition, self.in_weight, self.in_bias), approximate=False)
        return linear(hidden, self.out_weight, self.out_bias).reshape(self.layers, 2, -1)

    def flop_count(self) -> int:
        """Floating-point operations of one forward pass."""
        return 2 * (self.in_weight.size + self.out_weight.size)


def modulate(h: Array, film: Float[Array, "2 features"] | None) -> Array:
    """γ ⊙ h + β, or `h` itself without a condition."""
    return h if film is None else film[0] * h + film[1]
