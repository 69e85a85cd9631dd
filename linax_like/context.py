"""`SequenceContext`: what is known about a sequence beside its values."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped


class SequenceContext(eqx.Module):
    """Side information about a sequence. Every field is optional.

    `prefill` and `__call__` take arrays over time; `step` takes scalars, the values at its position.

    - `timesteps`: time since the previous sample, in units of the usual one, for irregular sampling.
        Not negative.
    - `segment_ids`: the document that a position belongs to, when several are packed into one
        sequence. Documents are contiguous; an id, once left, is not used again.
    - `mask`: False at padding. Padding has no influence, wherever it stands and whatever it holds.
    - `positions`: the place of a position in its document. By default counted, without padding.
    - `condition`: a vector that modulates the blocks (FiLM).
    - `condition_tokens`, `condition_mask`: vectors that every position may read, such as those of a
        text, and False where they are padding. Their order makes no difference.
    - `previous_segment_id`: the document of the last position before this chunk. A stack keeps it
        in its state; without it a chunk continues the document that its state comes from.
    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`.

    **Raises:** `ValueError` if timesteps are negative, or an id comes back after it was left. Only
    arrays with values can be checked: nothing is inside `jax.jit`.
    """

    timesteps: Float[Array, "*time"] | None = None
    segment_ids: Int[Array, "*time"] | None = None
    mask: Bool[Array, "*time"] | None = None
    positions: Int[Array, "*time"] | None = None
    condition: Float[Array, " condition"] | None = None
    condition_tokens: Float[Array, "tokens token_features"] | None = None
    condition_mask: Bool[Array, " tokens"] | None = None
    previous_segment_id: Int[Array, ""] | None = None
    axis_name: str | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        for name in ("mask", "condition_mask"):
            value = getattr(self, name)
            if isinstance(value, jax.Array | np.ndarray) and value.dtype != bool:
                raise ValueError(
                    f"`context.{name}` must be boolean, True where it is real. Received {value.dtype}: "
                    "compare it with 0."
                )
        mask = known(self.mask)
        if self.mask is not None and mask is None:
            return
        timesteps, segment_ids = known(self.timesteps), known(self.segment_ids)
        if timesteps is not None:
            check_timesteps(timesteps, mask)
        if segment_ids is not None:
            check_segment_ids(segment_ids, mask)

    @classmethod
    def from_lengths(
        cls, lengths: Int[Array | np.ndarray, "*batch"] | int, time: int
    ) -> "SequenceContext":
        """The context of one sequence, or of a batch, padded at the end to `time` positions.

        **Raises:** `ValueError` that names a length that is negative or above `time`, if known.
        """
        lengths = jnp.asarray(lengths)
        values = known(lengths)
        if values is not None and np.any((values < 0) | (values > time)):
            wrong = values[(values < 0) | (values > time)][0]
            raise ValueError(
                f"`lengths` must be at least 0 and at most the {time} positions of the padded "
                f"sequences. Received {wrong}."
            )
        return cls(mask=jnp.arange(time) < lengths[..., None])

    def over_time(self) -> dict[str, Array]:
        """The given fields that have a value per position."""
        names = ("timesteps", "segment_ids", "mask", "positions")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def map_time(self, fn) -> "SequenceContext":
        """A copy with `fn` applied to every field that has a value per position."""
        return self.replace(**{name: fn(value) for name, value in self.over_time().items()})

    def replace(self, **changes) -> "SequenceContext":
        """A copy with other values in the named fields."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return SequenceContext(**(fields | changes))

    def blank_padding(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        """`x` with zeros at padding: selected, so that NaN there leaves no trace, gradients included.

        **Raises:** `ValueError` if the mask is not one of these positions.
        """
        if self.mask is None:
            return x
        if self.mask.shape != x.shape[: self.mask.ndim]:
            raise ValueError(
                f"`context.mask` says of every position whether it is real. Received shape "
                f"{self.mask.shape}, for an input of shape {x.shape}."
            )
        mask = self.mask.reshape(self.mask.shape + (1,) * (x.ndim - self.mask.ndim))
        return jnp.where(mask, x, jnp.zeros_like(x))

    def forget(self, state: PyTree) -> PyTree:
        """In `step`: `state`, or zeros if a new document begins here."""
        if self.segment_ids is None or self.previous_segment_id is None:
            return state
        new = self.segment_ids != self.previous_segment_id
        return jax.tree.map(lambda leaf: jnp.where(new, jnp.zeros_like(leaf), leaf), state)

    def previous_segment_ids(self) -> Int[Array, " time"]:
        """The document of the last real position before each position (its own if there is none)."""
        assert self.segment_ids is not None
        ids = jnp.asarray(self.segment_ids)
        real = jnp.ones(ids.shape, bool) if self.mask is None else self.mask
        index = jnp.where(real, jnp.arange(ids.size, dtype=jnp.int32), -1)
        latest = jax.lax.cummax(index)
        latest_before = jnp.concatenate([jnp.full_like(latest[:1], -1), latest[:-1]])
        first = ids if self.previous_segment_id is None else self.previous_segment_id
        if self.axis_name is not None:
            has_real, last_id = jax.lax.all_gather((real.any(), ids[latest[-1]]), self.axis_name)
            shards = jnp.arange(has_real.size)
            earlier = has_real & (shards < jax.lax.axis_index(self.axis_name))
            source = jnp.max(jnp.where(earlier, shards, -1))
            first = jnp.where(source >= 0, last_id[source], first)
        return jnp.where(latest_before >= 0, ids[latest_before], first).astype(ids.dtype)

    def resets(self) -> Bool[Array, " time"] | None:
        """True where a new document begins; None if there are no documents."""
        if self.segment_ids is None:
            return None
        if self.segment_ids.size == 0:
            return jnp.zeros(self.segment_ids.shape, bool)
        new = self.segment_ids != self.previous_segment_ids()
        return new if self.mask is None else new & self.mask

    @property
    def is_plain(self) -> bool:
        """Whether there are neither documents nor padding, nor other devices with a part of time."""
        return all(rule is None for rule in self.rules().values())

    def rules(self) -> dict[str, Any]:
        """What ops need to know of documents, padding and devices."""
        return {"resets": self.resets(), "mask": self.mask, "axis_name": self.axis_name}

    def positions_from(self, offset: Int[Array, ""], length: int) -> Int[Array, " time"]:
        """`positions` if given; else each position's count within its document.

        - `offset`: how many positions of the current document came before this chunk.
        """
        if self.positions is not None:
            return self.positions
        real = jnp.ones((length,), jnp.int32) if self.mask is None else self.mask.astype(jnp.int32)
        count = jnp.cumsum(real) - real  # real positions before this one
        earlier = None
        if self.axis_name is not None:
            totals = jax.lax.all_gather(real.sum(), self.axis_name)
            earlier = jnp.arange(totals.size) < jax.lax.axis_index(self.axis_name)
            count = count + jnp.sum(jnp.where(earlier, totals, 0))
        resets = self.resets()
        if resets is None:
            return (count + offset).astype(jnp.int32)
        start = jnp.where(resets, count, -offset)  # the count at which the document began
        start = jax.lax.cummax(start)
        if earlier is not None and length > 0:
            starts = jax.lax.all_gather(start[-1], self.axis_name)
            start = jnp.maximum(start, jnp.max(jnp.where(earlier, starts, -offset)))
        return (count - start).astype(jnp.int32)

    def last(self, values: PyTree[Array], before: PyTree[Array]) -> PyTree[Array]:
        """`values` at the last real position, on whichever device it is; `before` if there is none."""
        length = jax.tree.leaves(values)[0].shape[0]
        if length == 0:
            return before
        real = jnp.ones((length,), bool) if self.mask is None else self.mask
        last = jnp.max(jnp.where(real, jnp.arange(length, dtype=jnp.int32), -1))
        found, end = last >= 0, jax.tree.map(lambda value: value[last], values)
        if self.axis_name is not None:  # the last device with a real position knows
            found, ends = jax.lax.all_gather((found, end), self.axis_name)
            last = jnp.max(jnp.where(found, jnp.arange(found.size), -1))
            found, end = found.any(), jax.tree.map(lambda value: value[last], ends)
        pick = lambda end, before: jnp.where(found, end, before).astype(before.dtype)
        return jax.tree.map(pick, end, before)


class Cursor(NamedTuple):
    """Where a sequence stands between two chunks. The stack's state holds the one there is.

    - `position`: positions of the current document so far, padding not counted.
    - `segment_id`: the current document.
    """

    position: Int[Array, ""]
    segment_id: Int[Array, ""]


def start_cursor() -> Cursor:
    return Cursor(jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32))


def advance(
    cursor: Cursor, context: SequenceContext | None, length: int
) -> tuple[Cursor, SequenceContext]:
    """The cursor after a chunk of `length` positions, and the chunk's context made complete."""
    context = SequenceContext() if context is None else context
    if context.segment_ids is not None and context.previous_segment_id is None:
        context = context.replace(previous_segment_id=cursor.segment_id)
    counted = context.replace(positions=None).positions_from(cursor.position, length)
    if context.positions is None:
        context = context.replace(positions=counted)
    ids = context.segment_ids
    if ids is None:
        ids = jnp.broadcast_to(cursor.segment_id, counted.shape)
    return context.last(Cursor(counted + 1, ids), cursor), context


def advance_one(cursor: Cursor, context: SequenceContext | None) -> tuple[Cursor, SequenceContext]:
    """`advance` by one position, whose context holds scalars."""
    context = SequenceContext() if context is None else context
    cursor, context = advance(cursor, context.map_time(lambda value: value[None]), 1)
    return cursor, context.map_time(lambda value: value[0])


def check_timesteps(timesteps: np.ndarray, mask: np.ndarray | None = None) -> None:
    """Checks, on the host, that no time runs backwards, but at padding.

    **Raises:** `ValueError` that names the first negative timestep (or NaN).
    """
    wrong = ~(timesteps >= 0)
    wrong = wrong if mask is None else wrong & mask
    if np.any(wrong):
        raise ValueError(
            "`timesteps` must not be negative: they are the time since the previous sample. "
            f"Received {timesteps[wrong][0]}. Sort the samples by time and take differences."
        )


def check_segment_ids(segment_ids: np.ndarray, mask: np.ndarray | None = None) -> None:
    """Checks, on the host, that every document of a packed sequence is contiguous, but for padding.

    - `segment_ids`: shape `(time,)`, or with a batch before it `(*batch, time)`.

    **Raises:** `ValueError` that names the id that comes back after it was left.
    """
    mask = np.ones(segment_ids.shape, bool) if mask is None else mask
    for index in np.ndindex(segment_ids.shape[:-1]):
        sequence = segment_ids[index][mask[index]]
        starts = sequence[np.flatnonzero(np.diff(sequence, prepend=sequence[:1] - 1))]
        values, counts = np.unique(starts, return_counts=True)
        if np.any(counts > 1):
            again = values[np.argmax(counts > 1)]
            raise ValueError(
                f"`segment_ids` must be contiguous: the id {again} comes back after it was left. "
                "Give every document of a sequence its own id."
            )


def known(array: Array | None) -> np.ndarray | None:
    """The values on this host, if there are any and all of them are here."""
    if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer):
        return np.asarray(array) if array.is_fully_addressable else None
    return array if isinstance(array, np.ndarray) else None
