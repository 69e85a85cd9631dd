"""Several streams, one for each modality, and the one order in which their positions come.

Streams are a dict of sequences. What mixes them takes their positions in one joint order: all of the
first modality, then all of the second, and so on; with documents, one document after the other; or
interleaved, as `places` says. Read chunk by chunk, the chunks come one after the other.
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from .context import advance, Cursor, known, SequenceContext, start_cursor
from .ops.compact import arrange, Permutation, permute


Streams = dict[str, Float[Array, "_ features"]]  # by modality; one that is left out is empty
Frames = dict[str, Float[Array, " features"]]  # the next position, of the one modality it has

Counting = Literal["restart", "continue"]


class StreamsContext(eqx.Module):
    """Side information about several streams. Every field is optional.

    - `streams`: what is known of a modality's positions: their `mask`, `segment_ids`, `timesteps`
        and `positions`. With `segment_ids`, which all streams then need, the joint order is that of
        the ids, which must not fall along a stream.
    - `places`: for every position its place in the joint order, every number from 0 on being given
        once; padding has a place too.
    - `rope`: for a modality the cosines and sines by which its queries and keys are turned, each
        `(time, head / 2)`, in place of those that its positions give.

    **Raises:** `ValueError` for places that are not every number once, ids that fall, or fields of a
    stream that it cannot have. Only arrays with values can be checked: nothing is inside `jax.jit`.
    """

    streams: dict[str, SequenceContext] = eqx.field(default_factory=dict)
    places: dict[str, Int[Array, "*time"]] | None = None
    rope: dict[str, tuple[Array, Array]] = eqx.field(default_factory=dict)

    def __check_init__(self):
        for name, context in self.streams.items():
            for field in ("condition", "condition_tokens", "condition_mask", "axis_name"):
                if getattr(context, field) is not None:
                    raise ValueError(
                        f"A stream cannot have `{field}` yet: leave it out of the context of "
                        f"{name!r}."
                    )
            _check_ids_rise(name, context)
        if self.places is not None:
            _check_places(self.places)

    def of(self, name: str) -> SequenceContext:
        """What is known of a modality's positions."""
        return self.streams.get(name, SequenceContext())

    def blank_padding(self, streams: Streams) -> Streams:
        """The streams with zeros at padding."""
        return {name: self.of(name).blank_padding(x) for name, x in streams.items()}

    def lift(self) -> "StreamsContext":
        """The context of one position, which holds scalars, as that of a chunk."""
        every = lambda tree: jax.tree.map(lambda value: value[None], tree)
        streams = {name: one.map_time(lambda x: x[None]) for name, one in self.streams.items()}
        return StreamsContext(streams, every(self.places), every(self.rope))


class StreamsCursor(NamedTuple):
    """Where streams stand between two chunks: each by itself, and all together."""

    joint: Cursor
    streams: dict[str, Cursor]


def start_streams(modalities: tuple[str, ...]) -> StreamsCursor:
    return StreamsCursor(start_cursor(), {name: start_cursor() for name in modalities})


class Joint(eqx.Module):
    """The positions of one chunk in their joint order.

    - `sizes`: how many each modality has, in the order of modalities.
    - `permutation`: from one stream after the other to the joint order; None if that is it.
    - `context`: that of all positions; its `positions` are what rotary positions count by.
    - `streams`: the same by modality.
    """

    sizes: dict[str, int] = eqx.field(static=True)
    permutation: Permutation | None
    context: SequenceContext
    streams: dict[str, SequenceContext]

    def join(self, streams: dict[str, Array]) -> Shaped[Array, " time *shape"]:
        """Arrays over time, by modality, as one."""
        x = jnp.concatenate([streams[name] for name in self.sizes])
        return x if self.permutation is None else permute(x, self.permutation)

    def split(self, x: Shaped[Array, " time *shape"]) -> dict[str, Array]:
        """One array over time by modality."""
        x = x if self.permutation is None else permute(x, self.permutation.undone)
        parts = jnp.split(x, np.cumsum(list(self.sizes.values()))[:-1])
        return dict(zip(self.sizes, parts, strict=True))

    def labels(self) -> Int[Array, " time"]:
        """For every position the number of its modality."""
        numbers = enumerate(self.sizes.values())
        flat = jnp.concatenate([jnp.full((size,), number, jnp.int32) for number, size in numbers])
        return arrange(flat, self.permutation)


def require_known(
    module: eqx.Module, modalities: tuple[str, ...], streams: dict[str, Array]
) -> None:
    """**Raises:** `ValueError` that names a stream which the module does not know, or without any."""
    if not streams or not streams.keys() <= set(modalities):
        wrong = sorted(streams.keys() - set(modalities))
        raise ValueError(
            f"`{type(module).__name__}` takes a dict of streams, some of {list(modalities)}. "
            f"Received {wrong if wrong else 'an empty one'}."
        )


def enter_streams(
    module: eqx.Module, modalities: tuple[str, ...], in_features: int, streams: Streams
) -> None:
    """**Raises:** `ValueError` that names a stream which the module does not know or cannot take."""
    require_known(module, modalities, streams)
    for name, x in streams.items():
        if x.ndim != 2 or x.shape[-1] != in_features:
            raise ValueError(
                f"`{type(module).__name__}` has width {in_features}: each stream must have shape "
                f"(time, {in_features}), and in `step` ({in_features},). Received {x.shape} for "
                f"{name!r}. Use `jax.vmap` for a batch."
            )


def advance_streams(
    modalities: tuple[str, ...],
    cursor: StreamsCursor,
    context: StreamsContext | None,
    sizes: dict[str, int],
    counting: Counting = "restart",
) -> tuple[StreamsCursor, Joint]:
    """The cursor after a chunk with so many positions of each modality, and their joint order.

    - `modalities`: their order, which dicts lose under `jax.jit`.
    - `counting`: the positions of a modality count its own, or all of the document before them.

    **Raises:** `ValueError` if a field of the context fits no stream, or only some have it.
    """
    context = StreamsContext() if context is None else context
    _check_fields(context, sizes)
    sizes = {name: sizes[name] for name in modalities if name in sizes}
    cursors, own = {}, {}
    for name, size in sizes.items():
        cursors[name], own[name] = advance(cursor.streams[name], context.of(name), size)
    permutation = _joint_order(context, own, sizes)
    joint = Joint(sizes, permutation, _join_contexts(context, sizes, permutation), own)
    together, complete = advance(cursor.joint, joint.context, sum(sizes.values()))
    if counting == "continue" and complete.positions is not None:
        counted = joint.split(complete.positions)
        given = {name: context.of(name).positions for name in sizes}
        own = {
            name: one if given[name] is not None else one.replace(positions=counted[name])
            for name, one in own.items()
        }
    positions = joint.join({name: one.positions for name, one in own.items()})
    joint = Joint(sizes, permutation, complete.replace(positions=positions), own)
    return StreamsCursor(together, cursor.streams | cursors), joint


def _joint_order(
    context: StreamsContext, own: dict[str, SequenceContext], sizes: dict[str, int]
) -> Permutation | None:
    if context.places is not None:
        inverse = jnp.concatenate([context.places[name] for name in sizes])
        order = jnp.zeros_like(inverse).at[inverse].set(jnp.arange(len(inverse)))
        return Permutation(order, inverse)
    ids = [one.segment_ids for one in own.values() if one.segment_ids is not None]
    if len(ids) < 2:
        return None
    order = jnp.argsort(jnp.concatenate(ids), stable=True)
    return Permutation(order, jnp.argsort(order))


def _join_contexts(
    context: StreamsContext, sizes: dict[str, int], permutation: Permutation | None
) -> SequenceContext:
    """What is known of all positions, in their joint order."""

    def join(field: str) -> Array | None:
        parts = {name: getattr(context.of(name), field) for name in sizes}
        if all(part is None for part in parts.values()):
            return None
        flat = jnp.concatenate(
            [jnp.ones((sizes[n],), bool) if part is None else part for n, part in parts.items()]
        )
        return arrange(flat, permutation)

    return SequenceContext(
        mask=join("mask"), segment_ids=join("segment_ids"), timesteps=join("timesteps")
    )


def _check_fields(context: StreamsContext, sizes: dict[str, int]) -> None:
    given = {"streams": context.streams, "places": context.places or {}, "rope": context.rope}
    for field, values in given.items():
        if not values.keys() <= sizes.keys():
            extra = sorted(values.keys() - sizes.keys())[0]
            raise ValueError(
                f"`StreamsContext.{field}` is about {extra!r}, but the streams are {list(sizes)}."
            )
    for name, size in sizes.items():
        fields = context.of(name).over_time()
        if context.places is not None:
            if name not in context.places:
                raise ValueError(f"`StreamsContext.places` must be given for {name!r} as well.")
            fields = fields | {"places": context.places[name]}
        for field, value in fields.items():
            if value.shape != (size,):
                raise ValueError(
                    f"`{field}` of the stream {name!r} must have shape ({size},), one value for "
                    f"each of its positions. Received {value.shape}."
                )
    for field in ("segment_ids", "timesteps"):
        having = [name for name in sizes if getattr(context.of(name), field) is not None]
        if 0 < len(having) < len(sizes):
            raise ValueError(
                f"All streams need `{field}`, or none: {having} have them, of {list(sizes)}."
            )


def _check_ids_rise(name: str, context: SequenceContext) -> None:
    ids, mask = known(context.segment_ids), known(context.mask)
    if ids is None or (context.mask is not None and mask is None):
        return
    ids = ids if mask is None else ids[mask]
    if np.any(np.diff(ids, axis=-1) < 0):
        raise ValueError(
            f"`segment_ids` of several streams must not fall, since documents come in the order of "
            f"their ids. Those of {name!r} do."
        )


def _check_places(places: dict[str, Array]) -> None:
    values = [known(value) for value in places.values()]
    if any(value is None or value.ndim != 1 for value in values):
        return
    flat = np.sort(np.concatenate([value for value in values if value is not None]))
    if not np.array_equal(flat, np.arange(len(flat))):
        raise ValueError(
            f"`places` of all streams together must be every number from 0 to {len(flat) - 1} once."
        )
