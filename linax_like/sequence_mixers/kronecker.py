"""Kronecker mixing: a learned matrix over time, of Kronecker products of small ones.

Time is cut into blocks of n positions: t = i n + j is place j of block i. Causal, with R terms,

    y[i, j] = Σ_r Σ_{p < i} A_r[i, p] Σ_k B_r[j, k] x[p, k]  +  a[i] Σ_{k ≤ j} C[j, k] x[i, k]

which as a matrix is Σ_r stril(A_r) ⊗ B_r + diag(a) ⊗ tril(C); and not causal, Σ_r A_r ⊗ B_r. Such
matrices are Monarch matrices with tied blocks (https://arxiv.org/abs/2204.00595). With n = √length
they cost length^1.5, and hold about 3 length numbers. The n is that of the longest sequence, so that
every prefix is mixed by the same matrix.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..config import require_positive
from ..context import SequenceContext
from ..initializers import constant, normal, split
from ..ops.blocks import Blocks
from ..ops.take import take
from ..precision import accumulation_dtype, einsum
from ..types import Frame, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    keep_at_padding,
    refuse_axis_name,
    require_causal,
)
from .learned_length import places, require_length, require_state_length
from .padding import compact, reorder


@dataclass(frozen=True)
class KroneckerSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A matrix over time of Kronecker products, shared by all features.

    - `max_length`: of a sequence, or of a document in it. Longer ones are an error, and where only
        the running program knows, NaN.
    - `rank`: how many products are summed.
    - `causal`: a position sees no later one.
    - `block_size`: n; by default the square root of `max_length`, rounded up, which costs least.
    - `max_documents`: how many packed documents a sequence holds at most, as each begins a block of
        its own. Outputs of further ones may be NaN.
    """

    max_length: int = 1024
    rank: int = 1
    causal: bool = True
    block_size: int | None = None
    max_documents: int = 8

    def __post_init__(self):
        require_positive(self, "max_length", "rank", "max_documents")
        if self.block_size is not None:
            require_positive(self, "block_size")

    def build(self, in_features: int, key: PRNGKeyArray) -> "KroneckerSequenceMixer":
        return KroneckerSequenceMixer(in_features, self, key)


class KroneckerState(NamedTuple):
    """What the current document has given to its blocks, in at least float32.

    - `earlier`: of every block, Σ_p A_r[i, p] x[p, k] over the positions before it so far.
    - `block`: the inputs of the last position's block, and zeros where there was none.
    - `length`: positions of the document so far.
    """

    earlier: Float[Array, "rank blocks block features"]
    block: Float[Array, "block features"]
    length: Int[Array, ""]


class KroneckerSequenceMixer(AbstractRecurrentMixer[KroneckerState]):
    """Mixes blocks, and the places within a block.

    Every input is given to all later blocks when it comes, so that a step takes time in proportion
    to √max_length, the first of a block no longer than the others; the state keeps `rank`
    `max_length` positions.
    """

    config: KroneckerSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    block_weight: Float[Array, "rank blocks blocks"]  # A
    place_weight: Float[Array, "rank block block"]  # B
    own_block_gain: Float[Array, " blocks"] | None  # a, if causal
    own_block_weight: Float[Array, "block block"] | None  # C, if causal

    def __init__(self, in_features: int, cfg: KroneckerSequenceMixerConfig, key: PRNGKeyArray):
        block_key, place_key = split(key, 2)
        size = cfg.block_size or math.isqrt(cfg.max_length - 1) + 1
        blocks = -(-cfg.max_length // size)
        self.config = cfg
        self.in_features = in_features
        std = 1 / math.sqrt(cfg.rank * blocks)
        self.block_weight = normal(block_key, (cfg.rank, blocks, blocks), std)
        self.place_weight = normal(place_key, (cfg.rank, size, size), 1 / math.sqrt(size))
        self.own_block_gain = constant(1, (blocks,)) if cfg.causal else None
        self.own_block_weight = constant(np.eye(size)) if cfg.causal else None

    @property
    def causal(self) -> bool:
        return self.config.causal

    @property
    def block_size(self) -> int:
        return self.place_weight.shape[1]

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        x, context = enter(self, x, context)
        require_length(self, x, context, self.config.max_length)
        refuse_axis_name(self, context)
        if len(x) == 0:
            return x
        x, packed, permutation = compact(x, context)
        blocks = self._cut(jnp.zeros((), jnp.int32), packed, len(x), begun=False)
        inputs = blocks.gather(x)
        earlier = self._give(inputs, blocks, blocks.row, blocks.document)
        y = blocks.scatter(self._read(earlier, inputs, blocks.row), self.config.max_length)
        return context.blank_padding(reorder(y, permutation))

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> KroneckerState:
        require_causal(self, "build it with `causal=True`")
        require_state_length(self, max_length, self.config.max_length)
        size, dtype = self.block_size, accumulation_dtype(dtype or jnp.float32)
        shape = (self.config.rank, -(-max_length // size), size, self.in_features)
        block = jnp.zeros((size, self.in_features), dtype)
        return KroneckerState(jnp.zeros(shape, dtype), block, jnp.zeros((), jnp.int32))

    def prefill(
        self, state: KroneckerState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[KroneckerState, Signal]:
        require_causal(self, "build it with `causal=True`")
        x, context = enter(self, x, context)
        refuse_axis_name(self, context)
        if len(x) == 0:
            return state, x
        x, packed, permutation = compact(x, context)
        blocks = self._cut(state.length, packed, len(x), begun=True)
        inputs = blocks.gather(x)
        earlier = self._give(inputs, blocks, blocks.row, blocks.document)
        continues = (blocks.document == 0)[:, None, None]
        earlier = earlier + jnp.where(continues, take(state.earlier, blocks.row, 1), 0)
        is_before = jnp.arange(self.block_size) < state.length % self.block_size
        block = jnp.where(is_before[:, None], state.block, 0)
        is_first = (jnp.arange(len(inputs)) == 0)[:, None, None]
        whole = inputs.astype(block.dtype) + jnp.where(is_first & continues, block, 0)
        y = self._read(earlier, whole.astype(x.dtype), blocks.row)
        y = blocks.scatter(y, self._capacity(state)).astype(x.dtype)
        state = self._store(state, inputs, whole, blocks, packed)
        return state, context.blank_padding(reorder(y, permutation))

    def step(
        self, state: KroneckerState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[KroneckerState, Frame]:
        require_causal(self, "build it with `causal=True`")
        x, context = enter_step(self, x, context)
        refuse_axis_name(self, context)
        earlier, block, length = context.forget(state)
        i, j = length // self.block_size, length % self.block_size
        now, rows = x.astype(block.dtype), jnp.arange(earlier.shape[1])
        block = jnp.where(j > 0, block, 0).at[j].set(now)
        y = einsum("rk,rkf->f", take(self.place_weight, j, 1), take(earlier, i, 1))
        gain, own = self._own()
        own = jnp.where(jnp.arange(len(block)) <= j, take(own, j), 0)
        y = y + take(gain, i) * (own @ block)
        given = jnp.where(rows > i, take(self.block_weight[:, : len(rows)], i, 2), 0)
        earlier = earlier.at[:, :, j].add(given[:, :, None] * now)
        y = jnp.where(length < self._capacity(state), y, jnp.nan).astype(x.dtype)
        new = KroneckerState(earlier, block, length + 1)
        return keep_at_padding(context, new, state), context.blank_padding(y)

    @property
    def complexity(self) -> str:
        return "O(L^1.5 · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        rank, size, time = self.config.rank, self.block_size, math.prod(spatial_dims)
        blocks = -(-time // size)
        products = rank * (blocks + size) + (size if self.causal else 0)
        forward = 2 * blocks * size * self.in_features * products
        return forward if inference else 3 * forward

    def _cut(
        self, length: Int[Array, ""], context: SequenceContext, time: int, begun: bool
    ) -> Blocks:
        """The blocks of a chunk, padding last, of whose document `length` positions came before."""
        position, documents = places(length, context, time)
        most = 1 if context.segment_ids is None else self.config.max_documents
        spare = most if begun else most - 1
        return Blocks.of(position, documents, context.mask, self.block_size, spare)

    def _give(
        self,
        inputs: Float[Array, "chunk block features"],
        blocks: Blocks,
        rows: Int[Array, " rows"],
        documents: Int[Array, "*rows"],
    ) -> Float[Array, "rank rows block features"]:
        """What a chunk's blocks give to the blocks in these rows of these documents."""
        weight = take(take(self.block_weight, rows, 1), blocks.row, 2)
        reaches = documents[..., None] == blocks.document
        if self.causal:
            reaches = reaches & (rows[:, None] > blocks.row)
        weight = jnp.where(reaches, weight, 0).astype(inputs.dtype)
        return einsum("rab,bkf->rakf", weight, inputs)

    def _read(
        self,
        earlier: Float[Array, "rank chunk block features"],
        inputs: Float[Array, "chunk block features"],
        rows: Int[Array, " chunk"],
    ) -> Float[Array, "chunk block features"]:
        """The outputs, from what other blocks gave and from the inputs of the same block."""
        dtype = inputs.dtype
        y = einsum("rjk,rbkf->bjf", self.place_weight.astype(dtype), earlier.astype(dtype))
        if self.causal:
            gain, own = self._own()
            within = einsum("jk,bkf->bjf", jnp.tril(own).astype(dtype), inputs)
            y = y + take(gain, rows)[:, None, None] * within
        return y.astype(dtype)

    def _store(
        self,
        state: KroneckerState,
        inputs: Float[Array, "chunk block features"],
        whole: Float[Array, "chunk block features"],
        blocks: Blocks,
        context: SequenceContext,
    ) -> KroneckerState:
        """The state after a chunk; `whole` has what came before in its first block as well."""
        before = (jnp.full_like(state.length, -1), state.length)
        end, length = context.last((blocks.slot // self.block_size, blocks.position + 1), before)
        document = jnp.where(end >= 0, blocks.document[end], 0)
        given = self._give(inputs, blocks, jnp.arange(state.earlier.shape[1]), document)
        earlier = jnp.where(document == 0, state.earlier, 0) + given
        earlier = jnp.where(end < len(whole), earlier, jnp.nan)  # too many documents
        block = jnp.where(end >= 0, whole[end], state.block)
        return KroneckerState(earlier, block, length)

    def _capacity(self, state: KroneckerState) -> int:
        """How many positions of a document the state is for."""
        return min(state.earlier.shape[1] * self.block_size, self.config.max_length)

    def _own(self) -> tuple[Float[Array, " blocks"], Float[Array, "block block"]]:
        assert self.own_block_gain is not None and self.own_block_weight is not None
        return self.own_block_gain, self.own_block_weight
