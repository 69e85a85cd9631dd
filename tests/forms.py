"""The forms of a mixer: `form(mixer, state, x, context) -> (state, y)`, ways of computing the same.

`pull` runs one under `jit` and pulls a fixed cotangent back, `push` only runs it: compiling is what laws
spend their time on. All are module-level functions, so that laws share what they compile.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import P
from jax.typing import DTypeLike
from layouts import Layout, scatter, TIME, WEIGHT, X
from meshes import mesh_of

from linax_like.context import advance, SequenceContext, start_cursor
from linax_like.sequence_mixers import AbstractRecurrentMixer, AbstractSequenceMixer, fold


Form = Callable[[Any, Any, jax.Array, SequenceContext | None], tuple[Any, jax.Array]]
ZERO, ONE = np.float32(0), np.float32(1)  # arrays: a program is compiled for each Python number


def whole(mixer, state, x, context):
    return (), mixer(x, context=context)


def prefilled(mixer, state, x, context):
    return mixer.prefill(state, x, context=context)


def stepped(mixer, state, x, context):
    return fold(mixer, state, x, context=context)


@functools.cache
def chunked(size: int) -> Form:
    """`prefill` in chunks of one size, and an empty one before each; a cursor goes along."""

    def form(mixer, state, x, context):
        context = SequenceContext() if context is None else context
        cursor = start_cursor()
        if context.segment_ids is not None:  # the state is taken to be of the first document
            first = context.segment_ids[0 if context.mask is None else jnp.argmax(context.mask)]
            cursor = cursor._replace(segment_id=first)
        split = lambda value: value.reshape(-1, size, *value.shape[1:])

        def chunk(carry, inputs):
            state, cursor = carry
            x, per_position = inputs
            here = context.replace(**per_position)
            if context.segment_ids is not None:
                here = here.replace(previous_segment_id=cursor.segment_id)
                cursor, _ = advance(cursor, here, size)
            empty = here.map_time(lambda value: value[:0])
            state, _ = mixer.prefill(state, x[:0], context=empty)
            state, y = mixer.prefill(state, x, context=here)
            return (state, cursor), y

        inputs = split(x), context.map_time(split).over_time()
        (state, _), y = jax.lax.scan(chunk, (state, cursor), inputs)
        return state, y.reshape(x.shape)

    return form


def irregular(mixer, state, x, context):
    """`prefill` in chunks of different sizes, one of them empty, without documents."""
    assert context is None
    ys = []
    for start, stop in itertools.pairwise((0, 5, 5, TIME)):
        state, y = mixer.prefill(state, x[start:stop])
        ys.append(y)
    return state, jnp.concatenate(ys)


def alone(mixer, state, x, context):
    """Every document by itself, each from the beginning: what packing must amount to."""
    first, last = jax.vmap(mixer)(jnp.stack([x[:4], x[12:]]))
    return (), jnp.concatenate([first, mixer(x[4:12]), last])


@functools.cache
def over_time(form: Form, count: int = 4) -> Form:
    """`form` with time split over devices, and the mean of their final states: they must agree."""

    def split(mixer, state, x, context):
        mesh = mesh_of(count, "time")
        arrays, static = eqx.partition((mixer, state), eqx.is_array)
        context = SequenceContext() if context is None else context
        whole_context = context.replace(timesteps=None, segment_ids=None, mask=None)

        def local(arrays, whole_context, per_position, x):
            mixer, state = eqx.combine(arrays, static)
            here = whole_context.replace(**per_position, axis_name="time")
            state, y = form(mixer, state, x, here)
            return jax.tree.map(lambda leaf: leaf[None], state), y

        specs = (P(), P(), P("time"), P("time"))
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("time"))
        states, y = run(arrays, whole_context, context.over_time(), x)
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0).astype(leaf.dtype), states), y

    return split


def batched(mixer, state, x, context):
    return jax.vmap(all_ways, in_axes=(None, None, 0, 0))(mixer, state, x, context)


def batched_over_devices(mixer, state, x, context):
    """`batched` inside `shard_map`, as in data parallelism written by hand."""
    mesh = mesh_of(2, "data")
    arrays, static = eqx.partition((mixer, state), eqx.is_array)

    def local(arrays, x, context):
        mixer, state = eqx.combine(arrays, static)
        return batched(mixer, state, x, context)

    specs = (P(), P("data"), P("data"))
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data"))
    return run(arrays, x, context)


def all_ways(mixer, state, x, context):
    """Call and steps, in one program; the gradient is the call's alone, and half to compile."""
    y = mixer(x, context=context)
    if not can_step(mixer):
        return (), y
    state, folded = jax.lax.stop_gradient(fold(mixer, state, x, context=context))
    return state, y + folded


class Result(NamedTuple):
    y: Any
    state: Any
    d_mixer: Any
    d_state: Any
    d_x: Any


@eqx.filter_jit
def push(form, mixer, state, x, context) -> tuple[Any, Any]:
    """What `form` yields: a state, and outputs."""
    return form(mixer, state, x, context)


@eqx.filter_jit
def pull(form, mixer, state, x, context, y_weight, state_weight) -> Result:
    """What `form` yields, and the gradient of a weighted sum of it."""

    def loss(inputs):
        state, y = form(*inputs, context)
        total = jnp.sum(y * y_weight.astype(y.dtype))
        for i, leaf in enumerate(jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))):
            wave = jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype) + i).reshape(leaf.shape)
            total += state_weight * jnp.sum(leaf * wave).astype(total.dtype)
        return total, (state, y)

    grads, (state, y) = eqx.filter_grad(loss, has_aux=True)((mixer, state, x))
    return Result(y, state, *grads)


def run(
    form: Form, mixer, layout: Layout, *, state: Any = None, padding: Any = 0.5, state_weight=ONE
) -> Result:
    """`form` on the layout, from the beginning or a given state, with given values at padding."""
    if state is None:
        state = initial_state(mixer) if form not in (whole, alone) else ()
    x = scatter(layout, X, padding)
    return pull(form, mixer, state, x, layout.context, WEIGHT, state_weight)


def forms(mixer: AbstractSequenceMixer) -> list[Form]:
    """The ways to compute a whole sequence at once."""
    return [whole, prefilled] if can_step(mixer) else [whole]


def can_step(mixer: AbstractSequenceMixer) -> TypeGuard[AbstractRecurrentMixer]:
    return isinstance(mixer, AbstractRecurrentMixer) and mixer.causal


def initial_state(mixer: AbstractSequenceMixer, dtype: DTypeLike | None = None) -> Any:
    return mixer.init_state(2 * TIME, dtype) if can_step(mixer) else ()
