"""Language-model head: logits over the vocabulary at every position."""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import AbstractConfig, require
from ..initializers import linear_weight
from ..precision import linear, upcast


@dataclass(frozen=True)
class LanguageModelHeadConfig(AbstractConfig):
    """Logits by a matrix of its own, or by the embedding table.

    - `tied`: reuse the embedding table.
    - `scale`: factor of the logits; by default 1, or with a tied table, whose rows have unit variance,
        one over the square root of the width.
    - `soft_cap`: bound the logits smoothly to `±soft_cap`, `soft_cap · tanh(logits / soft_cap)`.
    """

    tied: bool = True
    soft_cap: float | None = None
    scale: float | None = None

    def __post_init__(self):
        for field in ("soft_cap", "scale"):
            value = getattr(self, field)
            require(value is None or value > 0, self, field, "positive or None")

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "LanguageModelHead":
        return LanguageModelHead(in_features, out_features, self, key)


class LanguageModelHead(eqx.Module):
    """Maps features `(*time, in_features)` to logits `(*time, out_features)` in at least float32."""

    config: LanguageModelHeadConfig = eqx.field(static=True)
    weight: Float[Array, "vocabulary features"] | None

    def __init__(
        self, in_features: int, out_features: int, cfg: LanguageModelHeadConfig, key: PRNGKeyArray
    ):
        self.config = cfg
        self.weight = None if cfg.tied else linear_weight(key, in_features, out_features)

    def __call__(
        self, x: Float[Array, "*time features"], table: Float[Array, "vocabulary features"]
    ) -> Float[Array, "*time vocabulary"]:
        """The logits; `table` is the embedding table that a tied head uses."""
        scale = self.config.scale
        if scale is None:
            scale = x.shape[-1] ** -0.5 if self.config.tied else 1.0
        logits = linear(x * scale, table if self.weight is None else self.weight)
        logits, cap = upcast(logits), self.config.soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)
