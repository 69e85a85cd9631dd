"""Patch merging (https://arxiv.org/abs/2103.14030): neighbouring patches become one, with more features.

y[i, j] = W norm([x[2 i, 2 j], x[2 i, 2 j + 1], x[2 i + 1, 2 j], x[2 i + 1, 2 j + 1]])
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..config import require
from ..context import SequenceContext
from ..initializers import linear_weight, split
from ..norms import AbstractNorm, AbstractNormConfig, LayerNormConfig
from ..ops.patches import patchify
from ..precision import linear
from ..types import Grid
from .base import AbstractEncoder, AbstractEncoderConfig


@dataclass(frozen=True)
class PatchMergingConfig(AbstractEncoderConfig):
    """A projection of normalised neighbours.

    - `factor`: how many patches become one along every axis; one to three axes. A size that is no
        multiple is filled up with zeros.
    - `norm`: over all that is merged.
    """

    factor: tuple[int, ...] = (2, 2)
    norm: AbstractNormConfig = LayerNormConfig()

    def __post_init__(self):
        law = "one to three positive numbers"
        require(0 < len(self.factor) <= 3 and min(self.factor) > 0, self, "factor", law)

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "PatchMerging":
        return PatchMerging(in_features, out_features, self, key)


class PatchMerging(AbstractEncoder):
    """Maps patches `(*grid, in_features)` to fewer of them, `(*coarse, out_features)`.

    The context is about the patches that come in; `coarse_mask` is what it is about those that go out.
    """

    config: PatchMergingConfig = eqx.field(static=True)
    norm: AbstractNorm
    weight: Float[Array, "out merged"]  # W

    def __init__(
        self, in_features: int, out_features: int, cfg: PatchMergingConfig, key: PRNGKeyArray
    ):
        weight_key, norm_key = split(key, 2)
        merged = math.prod(cfg.factor) * in_features
        self.config = cfg
        self.norm = cfg.norm.build(merged, norm_key)
        self.weight = linear_weight(weight_key, merged, out_features)

    @property
    def uses(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, x: Grid, *, context: SequenceContext) -> Float[Array, "*coarse out"]:
        in_features = self.weight.shape[1] // math.prod(self.config.factor)
        if x.ndim - 1 != len(self.config.factor) or x.shape[-1] != in_features:
            raise ValueError(
                f"`PatchMerging` takes a grid of {len(self.config.factor)} axes, one for each entry of "
                f"its `factor`, of width {in_features}. Received {x.shape}. Use `jax.vmap` for a batch."
            )
        merged = patchify(self._fill(context.blank_padding(x)), self.config.factor)
        y = linear(self.norm(merged), self.weight)
        mask = self.coarse_mask(context.mask)
        return y if mask is None else jnp.where(mask[..., None], y, jnp.zeros_like(y))

    def coarse_mask(self, mask: Bool[Array, "*grid"] | None) -> Bool[Array, "*coarse"] | None:
        """Which merged patches have something real in them."""
        if mask is None:
            return None
        return patchify(self._fill(mask[..., None]), self.config.factor).any(-1)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations for a grid of so many patches that come in."""
        pairs = zip(spatial_dims, self.config.factor, strict=True)
        coarse = math.prod(-(-size // factor) for size, factor in pairs)
        forward = 2 * coarse * self.weight.size
        norm = self.norm.flop_count(coarse, inference)
        return norm + (forward if inference else 3 * forward)

    def _fill(self, x: Array) -> Array:
        pairs = zip(x.shape[:-1], self.config.factor, strict=True)
        missing = [-size % factor for size, factor in pairs]
        return jnp.pad(x, [(0, m) for m in missing] + [(0, 0)]) if any(missing) else x
