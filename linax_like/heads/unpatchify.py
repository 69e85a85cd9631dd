"""Unpatchify head: values for every pixel, read off the features of the patch around it.

vec(y[p i : p i + p, q j : q j + q]) = W x[i, j] + b,    b the same for all pixels
"""

import math
from dataclasses import dataclass

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require
from ..context import SequenceContext
from ..initializers import constant, linear_weight
from ..ops.patches import unpatchify
from ..precision import linear, upcast
from ..types import Aux, Grid
from .base import AbstractHead, AbstractHeadConfig, Values


@dataclass(frozen=True)
class UnpatchifyHeadConfig(AbstractHeadConfig):
    """A linear read-out of patches.

    - `patch_size`: pixels of a patch along every axis, as in the `PatchEmbeddingConfig`.
    """

    patch_size: tuple[int, ...]

    def __post_init__(self):
        sizes = self.patch_size
        law = "one to three positive sizes"
        require(0 < len(sizes) <= 3 and min(sizes) > 0, self, "patch_size", law)

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "UnpatchifyHead":
        return UnpatchifyHead(in_features, out_features, self, key)


class UnpatchifyHead(AbstractHead):
    """Maps patches `(*grid, in_features)` to pixels `(*space, out_features)`."""

    config: UnpatchifyHeadConfig = eqx.field(static=True)
    weight: Float[Array, "pixels features"]  # W
    bias: Float[Array, " out"]  # b

    def __init__(
        self, in_features: int, out_features: int, cfg: UnpatchifyHeadConfig, key: PRNGKeyArray
    ):
        self.config = cfg
        pixels = math.prod(cfg.patch_size) * out_features
        self.weight = linear_weight(key, in_features, pixels)
        self.bias = constant(0, (out_features,))

    def __call__(self, x: Grid, aux: Aux, *, context: SequenceContext) -> Values:
        pixels = unpatchify(upcast(linear(x, self.weight)), self.config.patch_size)
        return Values(pixels + self.bias, aux)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations for a grid of so many patches."""
        forward = 2 * math.prod(spatial_dims) * self.weight.size
        return forward if inference else 3 * forward
