"""Regression head: real values for a sequence, or for every position of it."""

from dataclasses import dataclass

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require_choice
from ..context import SequenceContext
from ..initializers import constant, linear_weight
from ..precision import linear, upcast
from ..types import Aux, Grid
from .base import AbstractHead, AbstractHeadConfig, Values
from .classification import pool, Pooling, readout_flops


@dataclass(frozen=True)
class RegressionHeadConfig(AbstractHeadConfig):
    """A linear read-out.

    - `pooling`: `"none"` gives values for every position; `"mean"` over the real positions; or the
        `"last"` real position.
    """

    pooling: Pooling = "none"

    def __post_init__(self):
        require_choice(self, "pooling")

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "RegressionHead":
        return RegressionHead(in_features, out_features, self, key)


class RegressionHead(AbstractHead):
    """Maps `(*space, in_features)` to values `(*space, out_features)`, or `(out_features,)`."""

    config: RegressionHeadConfig = eqx.field(static=True)
    weight: Float[Array, "out features"]
    bias: Float[Array, " out"]

    def __init__(
        self, in_features: int, out_features: int, cfg: RegressionHeadConfig, key: PRNGKeyArray
    ):
        self.config = cfg
        self.weight = linear_weight(key, in_features, out_features)
        self.bias = constant(0, (out_features,))

    def __call__(self, x: Grid, aux: Aux, *, context: SequenceContext) -> Values:
        pooled = pool(x, self.config.pooling, context)
        return Values(upcast(linear(pooled, self.weight)) + self.bias, aux)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        return readout_flops(self.weight.shape, self.config.pooling, spatial_dims, inference)
