"""Softmax attention by head, without projections: what a mixer and a QKV operator share.

    y[t] = Σ_s softmax(scale · q[t] · k[s]) v[s]          over the s that t sees

As a recurrence its state is the past itself: a ring buffer of keys and values.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ..context import SequenceContext
from ..ops.attention import attention
from ..ops.attention.one_query import attend_once
from ..ops.attention.ring_buffer import append, chronological
from ..ops.compact import arrange
from .base import keep_at_padding
from .padding import compact, reorder


class AttentionState(NamedTuple):
    """A ring buffer: position p of the current document is in slot `p % capacity`.

    - `keys`, `values`: zeros where nothing of the current document is stored. Keys are stored
        after RoPE.
    - `length`: positions of the current document so far.
    """

    keys: Float[Array, "capacity kv_heads head"]
    values: Float[Array, "capacity kv_heads head"]
    length: Int[Array, ""]


class AttentionCore(NamedTuple):
    """Who sees whom, and the forms of that: a whole sequence, many positions from a state, one.

    - `causal`, `window`: which keys a query sees.
    - `soft_cap`: bound the scores smoothly, `soft_cap · tanh(score / soft_cap)`.
    - `scale`: the factor of `q · k`; by default `1 / √head`.

    Positions of one span, a number of 0 or more, see each other in any case, within one chunk.
    """

    causal: bool
    window: int | None = None
    soft_cap: float | None = None
    scale: float | None = None

    def __call__(
        self,
        q: Float[Array, "time heads head"],
        k: Float[Array, "time kv_heads head"],
        v: Float[Array, "time kv_heads head"],
        context: SequenceContext,
        spans: Int[Array, " time"] | None = None,
    ) -> Float[Array, "time heads head"]:
        (q, k, v), packed, permutation = compact((q, k, v), context)
        spans = None if spans is None else arrange(spans, permutation)
        y = self._attend(q, k, v, packed.segment_ids, packed.mask, spans, padding_last=True)
        return reorder(y, permutation)

    def init_state(
        self, max_length: int, kv_heads: int, head: int, dtype: DTypeLike | None
    ) -> AttentionState:
        capacity = max_length if self.window is None else min(self.window, max_length)
        empty = jnp.zeros((capacity, kv_heads, head), dtype or jnp.float32)
        return AttentionState(empty, empty, jnp.zeros((), jnp.int32))

    def prefill(
        self,
        state: AttentionState,
        q: Float[Array, "time heads head"],
        k: Float[Array, "time kv_heads head"],
        v: Float[Array, "time kv_heads head"],
        context: SequenceContext,
        spans: Int[Array, " time"] | None = None,
    ) -> tuple[AttentionState, Float[Array, "time heads head"]]:
        if len(q) == 0:
            return state, q
        (q, k, v), packed, permutation = compact((q, k, v), context)
        counts = packed.replace(positions=None).positions_from(state.length, len(q))
        # Rounded to the cache's dtype, as later chunks will see them.
        k, v = k.astype(state.keys.dtype), v.astype(state.values.dtype)
        slots, stored = chronological(len(state.keys), state.length)
        real = jnp.ones((len(q),), bool) if packed.mask is None else packed.mask
        resets = packed.resets()
        documents = None if resets is None else jnp.cumsum(resets, dtype=jnp.int32)
        if documents is not None:  # what is stored belongs to document 0
            documents = jnp.concatenate([jnp.zeros(slots.shape, jnp.int32), documents])
        if spans is not None:  # what is stored belongs to none
            outside = jnp.full(slots.shape, -1, jnp.int32)
            spans = jnp.concatenate([outside, arrange(spans, permutation)])
        y = self._attend(
            q,
            jnp.concatenate([state.keys[slots], k]),
            jnp.concatenate([state.values[slots], v]),
            documents,
            jnp.concatenate([stored, real]),
            spans,
            padding_last=False,
        )
        y = self._refuse_overflow(y, counts, real, len(state.keys))
        return self._store(state, k, v, counts, real, resets), reorder(y, permutation)

    def step(
        self,
        state: AttentionState,
        q: Float[Array, "heads head"],
        k: Float[Array, "kv_heads head"],
        v: Float[Array, "kv_heads head"],
        context: SequenceContext,
    ) -> tuple[AttentionState, Float[Array, "heads head"]]:
        keys, values, length = context.forget(state)
        capacity = len(keys)
        keys = keys.at[length % capacity].set(k.astype(keys.dtype))
        values = values.at[length % capacity].set(v.astype(values.dtype))
        stored = jnp.arange(capacity) <= length
        y = attend_once(q, keys, values, stored, soft_cap=self.soft_cap, scale=self.scale)
        real = jnp.ones((), bool) if context.mask is None else context.mask
        y = self._refuse_overflow(y, length, real, capacity)
        return keep_at_padding(context, AttentionState(keys, values, length + 1), state), y

    def pairs(self, time: int) -> int:
        """How many pairs of a query and a key it sees there are."""
        reach = time if self.window is None else min(self.window, time)
        behind = reach * (reach + 1) // 2 + (time - reach) * reach
        return behind if self.causal else 2 * behind - time

    def _attend(
        self,
        q: Float[Array, "time heads head"],
        k: Float[Array, "keys kv_heads head"],
        v: Float[Array, "keys kv_heads head"],
        segment_ids: Int[Array, " keys"] | None,
        mask: Bool[Array, " keys"] | None,
        spans: Int[Array, " keys"] | None,
        padding_last: bool,
    ) -> Float[Array, "time heads head"]:
        return attention(
            q,
            k,
            v,
            causal=self.causal,
            window=self.window,
            segment_ids=segment_ids,
            mask=mask,
            padding_last=padding_last,
            spans=spans,
            soft_cap=self.soft_cap,
            scale=self.scale,
        )

    def _store(self, state, k, v, counts, real, resets) -> AttentionState:
        """The state after a chunk whose padding is last."""
        end = jnp.sum(real, dtype=jnp.int32)
        length = jnp.where(end > 0, counts[end - 1] + 1, state.length)
        start = state.length if resets is None else jnp.where(resets.any(), 0, state.length)
        keys, values = (
            append(buffer, chunk, start, length, end)
            for buffer, chunk in ((state.keys, k), (state.values, v))
        )
        return AttentionState(keys, values, length)

    def _refuse_overflow(
        self,
        y: Float[Array, "*time heads head"],
        position: Int[Array, "*time"],
        real: Bool[Array, "*time"],
        capacity: int,
    ) -> Float[Array, "*time heads head"]:
        """NaN where a document has outgrown a state in which it should be whole."""
        if self.window is not None and self.window <= capacity:
            return y
        lost = real & (position >= capacity)
        return jnp.where(lost[..., None, None], jnp.nan, y)
