"""Classification head: logits for a sequence, or for every position of it."""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require_choice
from ..context import SequenceContext
from ..initializers import constant, linear_weight
from ..precision import linear, upcast
from ..types import Aux, Grid
from .base import AbstractHead, AbstractHeadConfig, Logits


Pooling = Literal["mean", "last", "none"]


@dataclass(frozen=True)
class ClassificationHeadConfig(AbstractHeadConfig):
    """Logits, not log-probabilities.

    - `pooling`: `"mean"` over the real positions, the `"last"` real position, or `"none"`: logits
        for every position.
    """

    pooling: Pooling = "mean"

    def __post_init__(self):
        require_choice(self, "pooling")

    def build(
        self, in_features: int, out_features: int, key: PRNGKeyArray
    ) -> "ClassificationHead":
        return ClassificationHead(in_features, out_features, self, key)


class ClassificationHead(AbstractHead):
    """Maps `(*space, in_features)` to logits `(out_features,)`, or `(*space, out_features)`."""

    config: ClassificationHeadConfig = eqx.field(static=True)
    weight: Float[Array, "classes features"]
    bias: Float[Array, " classes"]

    def __init__(
        self, in_features: int, out_features: int, cfg: ClassificationHeadConfig, key: PRNGKeyArray
    ):
        self.config = cfg
        self.weight = linear_weight(key, in_features, out_features)
        self.bias = constant(0, (out_features,))

    def __call__(self, x: Grid, aux: Aux, *, context: SequenceContext) -> Logits:
        pooled = pool(x, self.config.pooling, context)
        return Logits(upcast(linear(pooled, self.weight)) + self.bias, aux)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        return readout_flops(self.weight.shape, self.config.pooling, spatial_dims, inference)


def pool(x: Grid, pooling: Pooling, context: SequenceContext) -> Float[Array, "*pooled features"]:
    """One vector for the sequence or grid, padding left out; or `x` itself for `"none"`."""
    if pooling == "none":
        return x
    mask = jnp.ones(x.shape[:-1], bool) if context.mask is None else context.mask
    x, mask = x.reshape(-1, x.shape[-1]), mask.reshape(-1)
    if pooling == "mean":
        total, count = jnp.sum(upcast(x), axis=0, where=mask[:, None]), jnp.sum(mask)
        if context.axis_name is not None:
            total, count = jax.lax.psum((total, count), context.axis_name)
        return (total / jnp.maximum(count, 1)).astype(x.dtype)
    last = x[jnp.max(jnp.where(mask, jnp.arange(len(x)), 0))]
    if context.axis_name is None:
        return last
    real, lasts = jax.lax.all_gather((mask.any(), last), context.axis_name)
    return lasts[jnp.max(jnp.where(real, jnp.arange(len(real)), 0))]


def readout_flops(
    shape: tuple[int, ...], pooling: Pooling, spatial_dims: tuple[int, ...], inference: bool
) -> int:
    """Of a read-out of pooled features by a matrix of this shape."""
    positions, pooled = math.prod(spatial_dims), 0
    if pooling != "none":
        pooled, positions = (positions * shape[1] if pooling == "mean" else 0), 1
    forward = pooled + 2 * positions * math.prod(shape)
    return forward if inference else 3 * forward
