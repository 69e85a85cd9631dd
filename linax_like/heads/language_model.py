"""Language-model head: logits over the vocabulary at every position."""

import math
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from ..config import AbstractConfig, require
from ..initializers import linear_weight
from ..ops.cross_entropy import linear_cross_entropy, SummedLoss
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
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)
    weight: Float[Array, "vocabulary features"] | None

    def __init__(
        self, in_features: int, out_features: int, cfg: LanguageModelHeadConfig, key: PRNGKeyArray
    ):
        self.config = cfg
        self.in_features = in_features
        self.out_features = out_features
        self.weight = None if cfg.tied else linear_weight(key, in_features, out_features)

    def __call__(
        self, x: Float[Array, "*time features"], table: Float[Array, "vocabulary features"]
    ) -> Float[Array, "*time vocabulary"]:
        """The logits; `table` is the embedding table that a tied head uses."""
        logits, cap = upcast(linear(*self._factors(x, table))), self.config.soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def loss(
        self,
        x: Float[Array, "*shape features"],
        table: Float[Array, "vocabulary features"],
        labels: Integer[Array, "*shape"],
        *,
        mask: Bool[Array, "*shape"] | None = None,
        vocab_size: int | None = None,
        chunk: int | None = None,
        z_loss: float = 0.0,
    ) -> SummedLoss:
        """The cross-entropy of labels, without all logits at once: see `linear_cross_entropy`."""
        return linear_cross_entropy(
            *self._factors(x, table),
            labels,
            mask=mask,
            vocab_size=vocab_size,
            chunk=chunk,
            z_loss=z_loss,
            soft_cap=self.config.soft_cap,
        )

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of the logits of so many positions."""
        forward = 2 * math.prod(spatial_dims) * self.in_features * self.out_features
        return forward if inference else 3 * forward

    def _factors(self, x: Array, table: Array) -> tuple[Array, Array]:
        """The features and the matrix whose product is the logits."""
        scale = self.config.scale
        if scale is None:
            scale = x.shape[-1] ** -0.5 if self.config.tied else 1.0
        return x * scale, table if self.weight is None else self.weight
