"""A block that sees only the patches of a sequence of patches and tokens.

    x = (patches, row by row; tokens)          patches = block(grid of patches),   tokens as they were

The tokens of a vision model (class token, registers) have no place on the grid: what mixes over the
grid passes them over, and attention in between reads and writes them.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray, PyTree

from ..config import require
from ..context import SequenceContext
from ..types import Aux, Frame, Signal
from .base import AbstractBlock, AbstractBlockConfig


@dataclass(frozen=True)
class PatchBlockConfig(AbstractBlockConfig):
    """A block for the patches of a sequence that ends with tokens.

    - `block`: what works on the grid.
    - `grid`: how many patches there are along every axis; one to three axes.
    """

    block: AbstractBlockConfig
    grid: tuple[int, ...]

    def __post_init__(self):
        law = "one to three positive sizes"
        require(0 < len(self.grid) <= 3 and min(self.grid) > 0, self, "grid", law)

    def build(self, in_features: int, key: PRNGKeyArray) -> "PatchBlock":
        return PatchBlock(in_features, self, key)


class PatchBlock(AbstractBlock):
    """Applies its block to the first positions as a grid, and leaves the others as they are."""

    config: PatchBlockConfig = eqx.field(static=True)
    block: AbstractBlock

    def __init__(self, in_features: int, cfg: PatchBlockConfig, key: PRNGKeyArray):
        self.config = cfg
        self.block = cfg.block.build(in_features, key)

    @property
    def causal(self) -> bool:
        return False

    @property
    def uses(self) -> frozenset[str]:
        return self.block.uses

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> tuple[Signal, Aux]:
        grid = self.config.grid
        patches = math.prod(grid)
        if len(x) < patches:
            raise ValueError(
                f"`PatchBlock` takes a sequence that begins with the {patches} patches of the grid "
                f"{grid}. Received {len(x)} positions. Build it with the `grid` of your images."
            )
        if context is not None:
            self._check(context)
            context = context.map_time(lambda values: values[:patches].reshape(grid))
        y, aux = self.block(x[:patches].reshape(*grid, -1), key, context=context)
        return jnp.concatenate([y.reshape(patches, -1), x[patches:]]), aux

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> PyTree:
        return self._refuse_steps()

    def prefill(
        self, state: PyTree, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[PyTree, Signal]:
        return self._refuse_steps()

    def step(
        self, state: PyTree, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[PyTree, Frame]:
        return self._refuse_steps()

    @property
    def complexity(self) -> str:
        return self.block.complexity

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        return self.block.flop_count(self.config.grid, inference)

    def _check(self, context: SequenceContext) -> None:
        for name in ("segment_ids", "axis_name"):
            if getattr(context, name) is not None:
                raise ValueError(
                    f"`PatchBlock` reads one whole image: it cannot honour `context.{name}`. Leave "
                    "it out."
                )

    def _refuse_steps(self):
        raise ValueError(
            "`PatchBlock` reads a whole grid, so it cannot advance step by step. Use a block of a "
            "causal mixer of sequences."
        )
