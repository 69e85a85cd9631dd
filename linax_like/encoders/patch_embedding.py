"""Patch embedding (https://arxiv.org/abs/2010.11929): an image is cut into patches, each of which is
projected to the features.

    y[i, j] = W vec(x[p i : p i + p, q j : q j + q]) + b + position[i, j]
"""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
from jaxtyping import Array, Float, Num, PRNGKeyArray

from ..config import require, require_choice
from ..context import SequenceContext
from ..grid_embedding import AbstractGridPositions, AbstractGridPositionsConfig
from ..initializers import constant, linear_weight, split
from ..ops.patches import patchify
from ..precision import linear
from ..types import Grid
from .base import AbstractEncoder, AbstractEncoderConfig


@dataclass(frozen=True)
class PatchEmbeddingConfig(AbstractEncoderConfig):
    """A projection of patches.

    - `patch_size`: pixels of a patch along every axis; one to three axes.
    - `positions`: vectors added to the patches by their place; none by default, since convolutions
        and rotary attention know places by themselves.
    - `layout`: `"grid"` keeps the axes; `"sequence"` puts the patches one after the other, row by
        row, for mixers of sequences.
    - `use_bias`: add a learned vector.
    """

    patch_size: tuple[int, ...]
    positions: AbstractGridPositionsConfig | None = None
    layout: Literal["grid", "sequence"] = "grid"
    use_bias: bool = True

    def __post_init__(self):
        sizes = self.patch_size
        law = "one to three positive sizes"
        require(0 < len(sizes) <= 3 and min(sizes) > 0, self, "patch_size", law)
        require_choice(self, "layout")

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "PatchEmbedding":
        return PatchEmbedding(in_features, out_features, self, key)


class PatchEmbedding(AbstractEncoder):
    """Maps pixels `(*space, in_features)` to patches `(*grid, out_features)`.

    The context is about the patches: `mask` has their shape.
    """

    config: PatchEmbeddingConfig = eqx.field(static=True)
    weight: Float[Array, "out pixels"]  # W
    bias: Float[Array, " out"] | None  # b
    positions: AbstractGridPositions | None

    def __init__(
        self, in_features: int, out_features: int, cfg: PatchEmbeddingConfig, key: PRNGKeyArray
    ):
        weight_key, position_key = split(key, 2)
        self.config = cfg
        pixels = math.prod(cfg.patch_size) * in_features
        self.weight = linear_weight(weight_key, pixels, out_features)
        self.bias = constant(0, (out_features,)) if cfg.use_bias else None
        positions = cfg.positions
        self.positions = None if positions is None else positions.build(out_features, position_key)

    @property
    def uses(self) -> frozenset[str]:
        return frozenset()

    def __call__(self, x: Num[Array, "*image in"], *, context: SequenceContext) -> Grid:
        self._check(x)
        patches = patchify(x, self.config.patch_size)
        grid = patches.shape[:-1]
        flat = self.config.layout == "sequence"
        places = (math.prod(grid),) if flat else grid
        patches = context.blank_padding(patches.reshape(*places, patches.shape[-1]))
        y = linear(patches, self.weight, self.bias)
        if self.positions is not None:
            y = y + self.positions(grid).reshape(y.shape).astype(y.dtype)
        return context.blank_padding(y)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations for a grid of so many patches (pixels have no gradient)."""
        forward = 2 * math.prod(spatial_dims) * self.weight.size
        return forward if inference else 2 * forward

    def _check(self, x: Array) -> None:
        sizes, patch = x.shape[:-1], self.config.patch_size
        channels = self.weight.shape[1] // math.prod(patch)
        fits = len(sizes) == len(patch) and all(s % p == 0 for s, p in zip(sizes, patch))
        if not fits or x.shape[-1] != channels:
            raise ValueError(
                f"`PatchEmbedding` takes an image of {len(patch)} axes, each a multiple of its "
                f"`patch_size` {patch}, with {channels} channels last. Received {x.shape}. Crop or "
                "pad the image; use `jax.vmap` for a batch."
            )
