"""Linear encoder: one projection of every position."""

import math
from dataclasses import dataclass

import equinox as eqx
from jaxtyping import Array, Float, Num, PRNGKeyArray

from ..context import SequenceContext
from ..initializers import constant, linear_weight
from ..precision import linear
from ..types import Signal
from .base import AbstractEncoder, AbstractEncoderConfig


@dataclass(frozen=True)
class LinearEncoderConfig(AbstractEncoderConfig):
    """A projection, with a bias because raw input is rarely centred.

    - `use_bias`: add a learned vector.
    """

    use_bias: bool = True

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "LinearEncoder":
        return LinearEncoder(in_features, out_features, self, key)


class LinearEncoder(AbstractEncoder):
    """Projects `(time, in_features)` to `(time, out_features)`."""

    config: LinearEncoderConfig = eqx.field(static=True)
    weight: Float[Array, "out in"]
    bias: Float[Array, " out"] | None

    def __init__(
        self, in_features: int, out_features: int, cfg: LinearEncoderConfig, key: PRNGKeyArray
    ):
        self.config = cfg
        self.weight = linear_weight(key, in_features, out_features)
        self.bias = constant(0, (out_features,)) if cfg.use_bias else None

    @property
    def uses(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, x: Num[Array, "time in"], *, context: SequenceContext) -> Signal:
        if x.shape[-1] != self.weight.shape[1]:
            raise ValueError(
                f"`LinearEncoder` takes a sequence of shape (time, {self.weight.shape[1]}). "
                f"Received {x.shape}."
            )
        y = linear(context.blank_padding(x), self.weight)
        y = y if self.bias is None else y + self.bias.astype(y.dtype)
        return context.blank_padding(y)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        forward = 2 * math.prod(spatial_dims) * self.weight.size
        return forward if inference else 3 * forward
