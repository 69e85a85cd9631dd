"""Vision model: patches and a few tokens, a stack, logits (https://arxiv.org/abs/2010.11929,
registers: https://arxiv.org/abs/2309.16588).

    x = (patches of the image, row by row; registers; class token)
    logits = W readout(stack(x)) + b
"""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..blocks import PatchBlockConfig
from ..config import AbstractConfig, configs_in, require, require_choice, require_positive
from ..context import SequenceContext
from ..encoders import PatchEmbedding, PatchEmbeddingConfig
from ..heads import (
    ClassificationHead,
    ClassificationHeadConfig,
    Logits,
    pool,
    RegisterPooling,
)
from ..initializers import normal, split
from ..sequence_mixers import AttentionOperatorConfig
from ..stack import Stack, StackConfig
from .base import Dtype, open_context


Readout = Literal["mean", "class", "registers"]


@dataclass(frozen=True)
class VisionModelConfig(AbstractConfig):
    """A classifier of images, volumes too, by patches and tokens.

    - `in_features`: channels of a pixel.
    - `features`: width of the residual stream.
    - `out_features`: number of classes.
    - `embedding`: of patches, in the layout `"sequence"`.
    - `stack`: of blocks that see all positions, and `PatchBlockConfig`s that see the patches alone.
    - `registers`: how many learned tokens come after the patches.
    - `readout`: `"mean"`, of the patches; `"class"`, one more token; or `"registers"`, their mean by
        learned weights.
    - `dtype`: of the residual stream. Parameters are float32 in any case.
    """

    in_features: int
    features: int
    out_features: int
    embedding: PatchEmbeddingConfig
    stack: StackConfig
    registers: int = 0
    readout: Readout = "mean"
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_positive(self, "in_features", "features", "out_features")
        require_choice(self, "readout", "dtype")
        require(self.registers >= 0, self, "registers", "at least 0")
        some = self.readout != "registers" or self.registers > 0
        require(some, self, "registers", 'positive with `readout="registers"`')
        law = 'of layout="sequence", after which the tokens come'
        require(self.embedding.layout == "sequence", self, "embedding", law)

    def build(self, key: PRNGKeyArray) -> "VisionModel":
        return VisionModel(self, key)


class VisionModel(eqx.Module):
    """Maps one image `(*space, in_features)` to logits `(out_features,)`."""

    config: VisionModelConfig = eqx.field(static=True)
    embedding: PatchEmbedding
    tokens: Float[Array, "tokens features"]
    stack: Stack
    pooling: RegisterPooling | None
    head: ClassificationHead

    def __init__(self, cfg: VisionModelConfig, key: PRNGKeyArray):
        embedding_key, token_key, stack_key, head_key = split(key, 4)
        tokens = cfg.registers + (cfg.readout == "class")
        self.config = cfg
        self.embedding = cfg.embedding.build(cfg.in_features, cfg.features, embedding_key)
        self.tokens = normal(token_key, (tokens, cfg.features), 0.02)
        self.stack = cfg.stack.build(cfg.features, stack_key)
        self.pooling = RegisterPooling(cfg.registers) if cfg.readout == "registers" else None
        head = ClassificationHeadConfig("none")
        self.head = head.build(cfg.features, cfg.out_features, head_key)

    def __call__(
        self,
        x: Float[Array, "*image channels"],
        key: PRNGKeyArray | None = None,
        *,
        context: SequenceContext | None = None,
    ) -> Logits:
        """Reads one image.

        - `key`: turns dropout on, in training.
        - `context`: its `mask` has the shape of the grid of patches.
        """
        context = open_context(self, context, self.stack.uses, math.prod(x.shape))
        context = self._flatten(context)
        features = self.embedding(x, context=context).astype(jnp.dtype(self.config.dtype))
        self._check_grid(x.shape[:-1])
        patches, mask = len(features), context.mask
        if mask is not None:
            mask = jnp.concatenate([mask, jnp.ones((len(self.tokens),), bool)])
        features = jnp.concatenate([features, self.tokens.astype(features.dtype)])
        features, aux = self.stack(features, key, context=context.replace(mask=mask))
        return self.head(self._read(features, patches, context), aux, context=SequenceContext())

    @property
    def complexity(self) -> str:
        """How the work grows; depth, and the sizes of input and output, are constants."""
        return self.stack.complexity

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one pass over a grid of so many patches."""
        positions = math.prod(spatial_dims) + len(self.tokens)
        return (
            self.embedding.flop_count(spatial_dims, inference)
            + self.stack.flop_count((positions,), inference)
            + self.head.flop_count((1,), inference)
        )

    def _check_grid(self, image: tuple[int, ...]) -> None:
        """A layer for another grid would take tokens for patches, or patches for others."""
        grid = tuple(size // part for size, part in zip(image, self.config.embedding.patch_size))
        for config in configs_in(self.config.stack):
            aware = isinstance(config, PatchBlockConfig | AttentionOperatorConfig)
            if aware and config.grid not in (None, grid):
                raise ValueError(
                    f"`VisionModel` has layers for a grid of {config.grid} patches. Received an image "
                    f"of {image}, whose grid is {grid}. Build the model for the size of its images."
                )

    def _flatten(self, context: SequenceContext) -> SequenceContext:
        """What is known about the patches, row by row."""
        for name in ("segment_ids", "axis_name"):
            if getattr(context, name) is not None:
                raise ValueError(
                    f"`{type(self).__name__}` reads one whole image: it cannot honour "
                    f"`context.{name}`. Leave it out."
                )
        return context.map_time(lambda values: values.reshape(-1))

    def _read(
        self, x: Float[Array, "positions features"], patches: int, context: SequenceContext
    ) -> Float[Array, " features"]:
        match self.config.readout:
            case "mean":
                return pool(x[:patches], "mean", context)
            case "class":
                return x[-1]
            case "registers":
                assert self.pooling is not None
                return self.pooling(x[patches:])
