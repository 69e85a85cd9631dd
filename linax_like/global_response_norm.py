"""Global response normalisation (https://arxiv.org/abs/2301.00808): features compete by how strong they
are over a whole image.

    g = √(Σ_space x²)        n = g / (mean_features(g) + ε)        y = x + γ ⊙ n ⊙ x + β
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .config import AbstractConfig, require_positive
from .context import SequenceContext
from .initializers import constant
from .precision import upcast
from .types import Grid


@dataclass(frozen=True)
class GlobalResponseNormConfig(AbstractConfig):
    """The hyperparameters of a global response normalisation.

    - `eps`: added to the mean response.
    """

    eps: float = 1e-6

    def __post_init__(self):
        require_positive(self, "eps")

    def build(self, in_features: int, key: PRNGKeyArray) -> "GlobalResponseNorm":
        return GlobalResponseNorm(in_features, self, key)


class GlobalResponseNorm(eqx.Module):
    """Strengthens strong features. A fresh one is the identity; nothing is random.

    Padding has no part in the responses, and becomes zero.
    """

    config: GlobalResponseNormConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    weight: Float[Array, " features"]  # γ
    bias: Float[Array, " features"]  # β

    def __init__(self, in_features: int, cfg: GlobalResponseNormConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features
        self.weight = constant(0, (in_features,))
        self.bias = constant(0, (in_features,))

    def __call__(self, x: Grid, *, context: SequenceContext | None = None) -> Grid:
        context = SequenceContext() if context is None else context
        if context.segment_ids is not None:
            raise ValueError(
                "`GlobalResponseNorm` is about one whole example: it cannot honour "
                "`context.segment_ids`. Leave them out."
            )
        wide = upcast(context.blank_padding(x))
        energy = jnp.sum(wide * wide, axis=tuple(range(x.ndim - 1)))
        if context.axis_name is not None:
            energy = jax.lax.psum(energy, context.axis_name)
        # No gradient through the root of zero: it is infinite, and nothing is there to respond.
        silent = energy == 0
        response = jnp.where(silent, 0, jnp.sqrt(jnp.where(silent, 1, energy)))
        relative = response / (jnp.mean(response) + self.config.eps)
        y = wide + self.weight * relative * wide + self.bias
        return context.blank_padding(y.astype(x.dtype))

    def flop_count(self, positions: int, inference: bool = False) -> int:
        forward = 5 * positions * self.in_features
        return forward if inference else 3 * forward
