"""Hierarchical model: stages on ever coarser grids of ever wider patches
(https://arxiv.org/abs/2103.14030).

    patches → stage → merge → stage → merge → … → head,    the features double with every merge
"""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ..complexity import total
from ..config import AbstractConfig, require, require_choice, require_positive
from ..context import SequenceContext
from ..encoders import PatchEmbedding, PatchEmbeddingConfig, PatchMerging, PatchMergingConfig
from ..heads import AbstractHead, AbstractHeadConfig, ClassificationHeadConfig, Logits, Values
from ..initializers import split
from ..stack import Stack, StackConfig
from ..types import no_aux
from .base import Dtype, open_context


@dataclass(frozen=True)
class HierarchicalModelConfig(AbstractConfig):
    """Stages of blocks of grids, with patches merged between them.

    - `in_features`: channels of a pixel.
    - `features`: width of the first stage.
    - `out_features`: number of classes, or of values.
    - `embedding`: of patches, in the layout `"grid"`.
    - `stages`: a stack for each size of the grid.
    - `merging`: how patches become fewer.
    - `dtype`: of the residual stream. Parameters are float32 in any case.
    """

    in_features: int
    features: int
    out_features: int
    embedding: PatchEmbeddingConfig
    stages: tuple[StackConfig, ...]
    merging: PatchMergingConfig = PatchMergingConfig()
    head: AbstractHeadConfig = ClassificationHeadConfig()
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_positive(self, "in_features", "features", "out_features")
        require_choice(self, "dtype")
        require(len(self.stages) > 0, self, "stages", "at least one stack")
        require(self.embedding.layout == "grid", self, "embedding", 'of layout="grid"')
        law = "as many numbers as the `patch_size` of the embedding"
        same = len(self.merging.factor) == len(self.embedding.patch_size)
        require(same, self, "merging", law)

    def build(self, key: PRNGKeyArray) -> "HierarchicalModel":
        return HierarchicalModel(self, key)


class HierarchicalModel(eqx.Module):
    """Maps one image `(*space, in_features)` to the output of its head."""

    config: HierarchicalModelConfig = eqx.field(static=True)
    embedding: PatchEmbedding
    stages: tuple[Stack, ...]
    merges: tuple[PatchMerging, ...]
    head: AbstractHead

    def __init__(self, cfg: HierarchicalModelConfig, key: PRNGKeyArray):
        embedding_key, head_key, *keys = split(key, 2 + 2 * len(cfg.stages))
        widths = [cfg.features * 2**i for i in range(len(cfg.stages))]
        self.config = cfg
        self.embedding = cfg.embedding.build(cfg.in_features, cfg.features, embedding_key)
        self.stages = tuple(
            stage.build(width, key) for stage, width, key in zip(cfg.stages, widths, keys)
        )
        self.merges = tuple(
            cfg.merging.build(width, 2 * width, key)
            for width, key in zip(widths[:-1], keys[len(widths) :])
        )
        self.head = cfg.head.build(widths[-1], cfg.out_features, head_key)

    def __call__(
        self,
        x: Float[Array, "*image channels"],
        key: PRNGKeyArray | None = None,
        *,
        context: SequenceContext | None = None,
    ) -> Logits | Values:
        """Reads one image.

        - `key`: turns dropout on, in training.
        - `context`: its `mask` has the shape of the grid of patches.
        """
        uses = frozenset().union(*(stage.uses for stage in self.stages))
        context = open_context(self, context, uses, x.size)
        x = self.embedding(x, context=context).astype(jnp.dtype(self.config.dtype))
        aux, keys = no_aux(), [None] * len(self.stages)
        if key is not None:
            keys = list(jr.split(key, len(self.stages)))
        for stage, merge, key in zip(self.stages, (None, *self.merges), keys, strict=True):
            if merge is not None:
                x, context = (
                    merge(x, context=context),
                    context.replace(mask=merge.coarse_mask(context.mask)),
                )
            x, stage_aux = stage(x, key, context=context)
            aux = aux.plus(stage_aux)
        return self.head(x, aux, context=context)

    @property
    def complexity(self) -> str:
        """How the work grows; depth, and the sizes of input and output, are constants."""
        return total(*(stage.complexity for stage in self.stages))

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one pass over a grid of so many patches."""
        count = self.embedding.flop_count(spatial_dims, inference)
        for stage, merge in zip(self.stages, (None, *self.merges), strict=True):
            if merge is not None:
                count += merge.flop_count(spatial_dims, inference)
                pairs = zip(spatial_dims, self.config.merging.factor, strict=True)
                spatial_dims = tuple(-(-size // factor) for size, factor in pairs)
            count += stage.flop_count(spatial_dims, inference)
        return count + self.head.flop_count(spatial_dims, inference)
