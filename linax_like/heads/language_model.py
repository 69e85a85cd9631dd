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

    - `tied`: reuse the embedding table; the logits are then divided by the square root of the width,
        since the rows of the table have unit variance.
    - `soft_cap`: bound the logits smoothly to `±soft_cap`, `soft_cap · tanh(logits / soft_cap)`.
    """

    tied: bool = True
    soft_cap: float | None = None

    def __post_init__(self):
        require(self.soft_cap is None or self.soft_cap > 0, self, "soft_cap", "positive or None")

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
        if self.weight is None:
            logits = linear(x * x.shape[-1] ** -0.5, table)
        else:
            logits = linear(x, self.weight)
        logits, cap = upcast(logits), self.config.soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)
