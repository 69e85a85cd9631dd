"""What every sequence mixer must obey, as functions that raise when a mixer breaks it.

Each law compares ways of computing the same thing, in values and in gradients. A *form* is one
such way, `form(mixer, state, x, context) -> (state, y)`; `pull` runs it under `jit` and pulls a
fixed cotangent back, `push` only runs it: compiling is what laws spend their time on. Forms, `pull`
and `push` are module-level functions, so all laws share what they compile; documents and padding
are data of one fixed length, so a new layout compiles nothing.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
from jax import P
from jax.sharding import AxisType
from jax.typing import DTypeLike
from meshes import mesh_of

from linax_like.complexity import total
from linax_like.context import advance, SequenceContext, start_cursor
from linax_like.sequence_mixers import (
    AbstractRecurrentMixer,
    AbstractSequenceMixer,
    AbstractSequenceMixerConfig,
    fold,
)


TIME, FEATURES = 16, 8
DOCUMENTS = (4, 8, 4)

Form = Callable[[Any, Any, jax.Array, SequenceContext | None], tuple[Any, jax.Array]]


# The forms.


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


# Their gradients.


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


# The sequences.


class Layout(NamedTuple):
    """How documents and padding lie in a sequence of `TIME` positions.

    - `real`: where the positions of the unpadded sequence went.
    - `source`: which positions of the unpadded sequence those are.
    """

    context: Any  # a `SequenceContext`, or None
    real: np.ndarray
    source: np.ndarray


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X = noise(TIME, FEATURES)
WEIGHT = noise(TIME, FEATURES, seed=1)
ZERO, ONE = np.float32(0), np.float32(1)  # arrays: a program is compiled for each Python number
IDS = np.repeat(np.array([7, 2, 9], np.int32), DOCUMENTS)
EVERYWHERE = np.arange(TIME)
PLAIN = Layout(None, EVERYWHERE, EVERYWHERE)
PACKED = Layout(SequenceContext(segment_ids=jnp.asarray(IDS)), EVERYWHERE, EVERYWHERE)


def padded(real: np.ndarray, source: np.ndarray, packed: bool) -> Layout:
    """A layout with padding everywhere but at `real`. The ids of padding are junk."""
    mask = np.zeros(TIME, bool)
    mask[real] = True
    ids = np.random.default_rng(2).permutation(np.resize(np.array([7, 2, 9, -3], np.int32), TIME))
    ids[real] = IDS[source]
    context = SequenceContext(mask=jnp.asarray(mask))
    if packed:
        first = jnp.int32(IDS[0])
        context = context.replace(segment_ids=jnp.asarray(ids), previous_segment_id=first)
    return Layout(context, real, source)


JUNK = np.resize(np.array([np.nan, np.inf, -np.inf, 1e38], np.float32), X.shape)
FIRST_TWO, SECOND = np.arange(12), np.arange(4, 12)
INTERIOR = np.array([1, 2, 3, 5, 6, 7, 8, 10, 11, 13, 14, 15])
PACKED_AND_PADDED = padded(INTERIOR, FIRST_TWO, packed=True)
# Time since the previous sample, for mixers that use it; at padding it means nothing.
TIMESTEPS = np.full(TIME, np.nan, np.float32)
TIMESTEPS[INTERIOR] = 0.5 + INTERIOR % 3
PADDINGS = [
    *(padded(real, SECOND, packed=False) for real in (INTERIOR[:8], SECOND + 4, SECOND - 4)),
    *(padded(real, FIRST_TWO, packed=True) for real in (INTERIOR, FIRST_TWO + 4, FIRST_TWO)),
]
NO_REAL = np.arange(0)
ONLY_PADDING = [padded(NO_REAL, NO_REAL, packed) for packed in (False, True)]


def layouts(mixer: AbstractSequenceMixer) -> list[Layout]:
    """One without a context, and one with everything that this mixer heeds."""
    context = PACKED_AND_PADDED.context
    if "timesteps" in mixer.uses:
        context = context.replace(timesteps=jnp.asarray(TIMESTEPS))
    return [PLAIN, PACKED_AND_PADDED._replace(context=context)]


def scatter(layout: Layout, values: np.ndarray, fill: np.ndarray | float) -> np.ndarray:
    """The values of the unpadded sequence where the layout puts them."""
    result = np.broadcast_to(np.asarray(fill, np.float32), values.shape).copy()
    result[layout.real] = values[layout.source]
    return result


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


def assert_close(got: Any, expected: Any, what: str, tolerance: float = 1e-4) -> None:
    """Equal up to rounding, relative to the largest number of each array. Integers are equal."""
    assert jax.tree.structure(got) == jax.tree.structure(expected), what
    leaves = jax.tree.leaves_with_path(got), jax.tree.leaves(expected)
    for (path, g), e in zip(*leaves, strict=True):
        where = f"{what}: {jax.tree_util.keystr(path)}"
        assert g.shape == e.shape, f"{where} has shape {g.shape}, expected {e.shape}"
        if not jnp.issubdtype(e.dtype, jnp.inexact):
            assert np.array_equal(g, e), f"{where} is {g}, expected {e}"
            continue
        wide = np.complex128 if jnp.iscomplexobj(e) else np.float64
        g, e = np.asarray(g, wide), np.asarray(e, wide)
        assert np.all(np.isfinite(g)), f"{where} is not finite"
        error, scale = np.max(np.abs(g - e), initial=0), np.max(np.abs(e), initial=0.1)
        assert error <= tolerance * scale, f"{where} differs by {error} at a scale of {scale}"


def assert_finite(tree: Any, what: str) -> None:
    for path, leaf in jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_inexact_array)):
        assert jnp.all(jnp.isfinite(leaf)), f"{what}: {jax.tree_util.keystr(path)} is not finite"


def assert_zero(tree: Any, what: str) -> None:
    for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)):
        assert np.all(np.asarray(leaf) == 0), f"{what} is not exactly zero"


# Law 1: shapes and dtypes.


def check_shapes(mixer: AbstractSequenceMixer) -> None:
    """Shape and dtype of the output are the input's, and a state keeps its own; at any length."""
    lengths = {jnp.float32: (0, 1, 7, 31, 64), jnp.bfloat16: (7,), jnp.float64: (7,)}
    for dtype, times in lengths.items():
        with jax.enable_x64(dtype == jnp.float64):
            for time in times:
                x = jax.ShapeDtypeStruct((time, FEATURES), dtype)
                y = eqx.filter_eval_shape(mixer, x)
                assert (y.shape, y.dtype) == (x.shape, x.dtype), f"call: {x} became {y}"
                if can_step(mixer) and time in (0, 7):
                    _check_state_shapes(mixer, x)


def _check_state_shapes(mixer, x) -> None:
    state = mixer.init_state(64, x.dtype)
    expected = jax.tree.map(jax.typeof, (state, jnp.zeros(x.shape, x.dtype)))
    for form in (prefilled, stepped):
        got = eqx.filter_eval_shape(form, mixer, state, x, None)
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert (g.shape, g.dtype) == (e.shape, e.dtype), f"{form.__name__}: {e} became {g}"


def check_precision(mixer: AbstractSequenceMixer) -> None:
    """Other dtypes compute the same numbers, as exactly as they can."""
    expected = pull(whole, mixer, (), X, None, WEIGHT, ZERO)
    half = pull(whole, mixer, (), jnp.asarray(X, jnp.bfloat16), None, WEIGHT, ZERO)
    assert half.d_x.dtype == jnp.bfloat16
    assert_close(half, expected, "in bfloat16", 0.1)
    with jax.enable_x64(True):
        x = jnp.asarray(X, jnp.float64)
        _, y = push(whole, mixer, (), x, None)
        assert_close(y, expected.y, "in float64")
        shapes = eqx.filter_eval_shape(pull, whole, mixer, (), x, None, WEIGHT, ZERO)
        assert shapes.d_x.dtype == jnp.float64


def check_short(mixer: AbstractSequenceMixer) -> None:
    """Sequences of no and of one position are sequences."""
    _, nothing = push(whole, mixer, (), jnp.asarray(X[:0]), None)
    assert nothing.shape == (0, FEATURES)
    one = pull(whole, mixer, (), X[:1], None, WEIGHT[:1], ZERO)
    assert_finite(one, "one position")
    if mixer.causal:
        assert_close(one.y, pull(whole, mixer, (), X, None, WEIGHT, ZERO).y[:1], "one position")


# Law 2: finite values.


def check_finite(mixer: AbstractSequenceMixer) -> None:
    """Values and gradients are finite, however small or large the input."""
    for form in forms(mixer):
        for scale in (0.0, 1e-20, 1.0, 1e3):
            state = initial_state(mixer) if form is not whole else ()
            result = pull(form, mixer, state, X * np.float32(scale), None, WEIGHT, ONE)
            assert_finite(result, f"{form.__name__}: |x| = {scale}")


def check_long(mixer: AbstractSequenceMixer, length: int) -> None:
    """Values and gradients are finite after many positions, first of noise, then of a constant."""
    x = np.ones((length, FEATURES), np.float32)
    x[: length // 2] = noise(length // 2, FEATURES)
    assert_finite(pull(whole, mixer, (), x, None, np.ones_like(x), ZERO), f"{length} positions")


def check_long_stepping(mixer: AbstractRecurrentMixer, length: int) -> None:
    """The state stays finite over many steps."""
    state = mixer.init_state(length)
    x = noise(length, FEATURES)
    state, y = eqx.filter_jit(stepped)(mixer, state, x, None)
    assert_finite((state, y), f"{length} steps")


# Law 3: transformations.


def check_traces_once(mixer: AbstractSequenceMixer) -> None:
    """New values, and the state that a call returned, do not trace the call again."""
    other = jax.tree.map(lambda leaf: leaf + leaf, mixer)
    counts = {form: 0 for form in forms(mixer)}

    @eqx.filter_jit
    def traced(form, mixer, state, x):
        counts[form] += 1
        return form(mixer, state, x, None)

    for form in counts:
        state = initial_state(mixer, jnp.float32) if form is not whole else ()
        state, y = traced(form, mixer, state, jnp.asarray(X[:4]))
        traced(form, other, state, y)
        assert counts[form] == 1, f"`{form.__name__}` was traced {counts[form]} times"


def _call_and_steps(mixer: AbstractSequenceMixer, layout: Layout) -> Result:
    """What `all_ways` must give, from runs that other laws need as well."""
    if not can_step(mixer):
        return run(whole, mixer, layout, state_weight=ZERO)
    call, steps = (run(form, mixer, layout, state_weight=ZERO) for form in (prefilled, stepped))
    nothing = jax.tree.map(np.zeros_like, steps.d_state)
    return call._replace(y=call.y + steps.y, state=steps.state, d_state=nothing)


def check_vmap(mixer: AbstractSequenceMixer) -> None:
    """A batch, sharded over devices by hand or by an explicit mesh, is its examples."""
    pair = (PACKED_AND_PADDED, PADDINGS[-1])
    each = [_call_and_steps(mixer, layout) for layout in pair]
    inputs = [(scatter(layout, X, 0.5), layout.context, WEIGHT) for layout in pair]
    x, context, weight = jax.tree.map(lambda *leaves: jnp.stack(leaves), *inputs)
    state = initial_state(mixer)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    summed = jax.tree.map(lambda leaf: leaf.sum(axis=0), stacked)
    expected = stacked._replace(d_mixer=summed.d_mixer, d_state=summed.d_state)
    got = push(batched_over_devices, mixer, state, x, context)
    assert_close(got, (expected.state, expected.y), "shard_map over the batch")
    with jax.set_mesh(mesh_of(2, "data", AxisType.Explicit)):
        mixer, state = jax.device_put((mixer, state), P())
        x, context, weight = jax.device_put((x, context, weight), P("data"))
        got = pull(batched, mixer, state, x, context, weight, ZERO)
        assert jax.typeof(got.y).sharding.spec[0] == "data", "the batch lost its sharding"
    assert_close(got, expected, "explicit mesh")


# Law 4: whole = prefill = steps = any split.


def check_call(mixer: AbstractRecurrentMixer) -> None:
    """`mixer(x)` is `prefill(init_state, x)`."""
    plain, full = layouts(mixer)
    got, expected = (run(f, mixer, plain, state_weight=ZERO) for f in (whole, prefilled))
    assert_close(stateless(got), stateless(expected), "call and prefill")
    _, y = push(whole, mixer, (), scatter(full, X, 0.5), full.context)
    assert_close(y, run(prefilled, mixer, full).y, "call and prefill with a context")


def check_step(mixer: AbstractRecurrentMixer) -> None:
    """`prefill` is the fold of `step`: outputs, state, and their gradients."""
    state = earlier_state(mixer)
    plain, full = layouts(mixer)
    got, expected = (run(f, mixer, full, state=state) for f in (stepped, prefilled))
    assert_close(got, expected, "step and prefill")
    expected = run(prefilled, mixer, plain, state=state)
    got = push(stepped, mixer, state, jnp.asarray(X), None)
    assert_close(got, (expected.state, expected.y), "step and prefill without a context")


def check_split(mixer: AbstractRecurrentMixer) -> None:
    """Any split gives the same: outputs, state, and the gradients through the state."""
    _, full = layouts(mixer)
    state = earlier_state(mixer)
    got, expected = (run(form, mixer, full, state=state) for form in (chunked(4), prefilled))
    assert_close(got, expected, "chunks of 4 and the whole")
    got = push(chunked(1), mixer, state, scatter(full, X, 0.5), full.context)
    assert_close(got, (expected.state, expected.y), "chunks of 1 and the whole")


def check_irregular_split(mixer: AbstractRecurrentMixer) -> None:
    """Chunks of different sizes, of a sequence without a context."""
    state = initial_state(mixer)
    got, expected = (
        push(form, mixer, state, jnp.asarray(X), None) for form in (irregular, prefilled)
    )
    assert_close(got, expected, "irregular chunks and the whole")


# Law 5: causality.


def influence(mixer: AbstractSequenceMixer) -> np.ndarray:
    """How strongly each output (row) depends on each input (column)."""
    rows = np.eye(TIME, dtype=np.float32)[:, :, None] * np.cos(np.arange(FEATURES, dtype="f4"))
    gradients = [pull(whole, mixer, (), X, None, row, ZERO).d_x for row in rows]
    return np.max(np.abs(np.stack(gradients)), axis=-1)


def check_causality(mixer: AbstractSequenceMixer, leak: float = 0.0) -> None:
    """A causal mixer does not see the future, beyond a relative `leak`; any other does."""
    matrix = influence(mixer)
    assert np.all(np.diag(matrix) > 0), "an output does not depend on its own input"
    future = np.triu(matrix, k=1)
    if mixer.causal:
        assert np.max(future) <= leak * np.max(matrix), f"sees the future: {np.max(future)}"
    else:
        assert np.all(np.max(future[:-1], axis=1) > leak), "not causal, yet blind to the future"


# Law 6: packing and padding.


def check_packing(mixer: AbstractSequenceMixer) -> None:
    """Packed documents are each as if alone, whatever state came before them."""
    expected = stateless(run(alone, mixer, PLAIN))
    got = run(whole, mixer, PACKED, state_weight=ZERO)
    assert_close(stateless(got), expected, "packed and alone")
    if not can_step(mixer):
        return
    context = SequenceContext(
        segment_ids=jnp.asarray(IDS),
        mask=jnp.ones(TIME, bool),
        previous_segment_id=jnp.int32(99),
    )
    for form in (prefilled, stepped):
        for state in (initial_state(mixer), earlier_state(mixer)):
            got = pull(form, mixer, state, X, context, WEIGHT, ZERO)
            assert_close(stateless(got), expected, f"{form.__name__}: packed and alone")
        assert_zero(got.d_state, "the gradient of a state that is forgotten")


def check_padding(mixer: AbstractSequenceMixer, packed: bool = True) -> None:
    """Padding has no influence, wherever it stands and whatever it holds."""
    for layout in PADDINGS if packed else PADDINGS[:3]:
        # A call shows it for masks alone, and whatever can step for documents, which may be one.
        if not can_step(mixer) or (packed and layout.context.segment_ids is None):
            _check_padded(whole, mixer, layout)
            continue
        _check_padded(prefilled, mixer, layout)
        for form in (chunked(4), stepped):
            got, zeros = (run(form, mixer, layout, padding=p) for p in (JUNK, 0.0))
            assert_close(got, zeros, f"{form.__name__}: padding with junk and with zeros")
    for layout in ONLY_PADDING if packed else ONLY_PADDING[:1]:
        form = whole if not can_step(mixer) or layout.context.segment_ids is None else prefilled
        got = run(form, mixer, layout, padding=JUNK, state_weight=ZERO)
        assert_zero((got.y, got.d_mixer, got.d_x), "nothing but padding")


def _check_padded(form: Form, mixer: AbstractSequenceMixer, layout: Layout) -> None:
    weight = np.zeros_like(WEIGHT)
    weight[layout.source] = WEIGHT[layout.real]
    if layout.context.segment_ids is None:
        expected = pull(alone, mixer, (), X, None, weight, ZERO)
    else:  # packed without padding, which has a law of its own
        expected = pull(whole, mixer, (), X, PACKED.context, weight, ZERO)
    expected = stateless(expected)._replace(
        y=scatter(layout, expected.y, 0.0), d_x=scatter(layout, expected.d_x, 0.0)
    )
    got = run(form, mixer, layout, padding=JUNK, state_weight=ZERO)
    assert_close(stateless(got), expected, f"{form.__name__}: padded")
    padding = np.setdiff1d(EVERYWHERE, layout.real)
    assert_zero(got.y[padding], f"{form.__name__}: the output at padding")
    assert_zero(got.d_x[padding], f"{form.__name__}: the gradient at padding")


# Law 7: time split over devices.


def check_time_split(mixer: AbstractSequenceMixer, packed: bool = True) -> None:
    """Time split over a mesh axis is one device: outputs, state, and their gradients."""
    plain, full = layouts(mixer) if packed else (PLAIN, PLAIN)
    _, y = push(over_time(whole), mixer, (), jnp.asarray(X), None)
    assert_close(y, run(whole, mixer, plain).y, "time split")
    form, state = (prefilled, earlier_state(mixer)) if can_step(mixer) else (whole, None)
    got, expected = (run(f, mixer, full, state=state) for f in (over_time(form), form))
    if form is whole:
        got, expected = stateless(got), stateless(expected)
    assert_close(got, expected, "time split with a context")


def check_refuses_time_split(mixer: AbstractSequenceMixer) -> None:
    """What cannot split time says so."""
    with raises_value_error(type(mixer).__name__, "axis_name"):
        run(over_time(whole), mixer, PLAIN)


# Law 8: round trips.


def check_config_round_trip(config: AbstractSequenceMixerConfig) -> None:
    again = type(config).from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)


# Law 9: scale.


def check_scale(config: AbstractSequenceMixerConfig) -> None:
    """White noise of unit variance keeps about its size."""
    for features in (64, 512):
        mixer = config.build(features, jr.key(0, impl="rbg"))
        std = float(jnp.std(eqx.filter_jit(mixer)(jnp.asarray(noise(512, features)))))
        assert 0.05 <= std <= 5, f"standard deviation {std} at width {features}"


# What a mixer is made of, and what it says.


def check_leaves(mixer: AbstractSequenceMixer) -> None:
    """Nothing but real arrays: every other field is static, and a complex number is two."""
    for path, leaf in jax.tree.leaves_with_path(mixer):
        where = jax.tree_util.keystr(path)
        assert eqx.is_array(leaf), f"{where} is a {type(leaf).__name__}, not an array"
        assert not jnp.iscomplexobj(leaf), f"{where} is complex"
        assert leaf.dtype != jnp.float64, f"{where} is stored in float64"
    hash(jax.tree.structure(mixer))


def check_build(config: AbstractSequenceMixerConfig) -> None:
    """Builds at any width that is a multiple of 8; the same from the same key; also as shapes."""
    for features in (8, 40):
        key = jr.key(features, impl="rbg")
        mixer, again = config.build(features, key), config.build(features, key)
        assert mixer.in_features == features
        assert eqx.tree_equal(mixer, again), "the same key built something else"
        skeleton = eqx.filter_eval_shape(config.build, features, key)
        assert jax.tree.structure(skeleton) == jax.tree.structure(mixer)
        for shape, leaf in zip(jax.tree.leaves(skeleton), jax.tree.leaves(mixer), strict=True):
            assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)


def check_flops(mixer: AbstractSequenceMixer, free: bool = False) -> None:
    """Work grows with time, and training is more of it than inference; its growth is told in short."""
    assert total(mixer.complexity) == mixer.complexity
    inference = [mixer.flop_count((time,), inference=True) for time in (16, 32)]
    training = [mixer.flop_count((time,)) for time in (16, 32)]
    assert all(type(count) is int for count in inference + training)
    if free:
        assert inference == training == [0, 0]
        return
    assert 0 < inference[0] < inference[1]
    assert all(i < t for i, t in zip(inference, training, strict=True))


def check_errors(mixer: AbstractSequenceMixer) -> None:
    """A wrong width or rank, or a step of what is not causal, is an error that names the mixer."""
    name = type(mixer).__name__
    for shape in ((TIME, FEATURES + 1), (2, TIME, FEATURES), (FEATURES + 1,)):
        with raises_value_error(name), without_type_checks():
            mixer(jnp.zeros(shape))
    if not isinstance(mixer, AbstractRecurrentMixer):
        return
    x = jnp.asarray(X)
    if mixer.causal:
        state = mixer.init_state(TIME)
        with raises_value_error(name):
            mixer.step(state, x[0, 1:])
        with raises_value_error(name):
            mixer.prefill(state, x[:, 1:])
        context = SequenceContext(mask=jnp.ones(TIME + 1, bool))
        with raises_value_error(name, "mask"):
            mixer.prefill(state, x, context=context)
        return
    for call in (
        lambda: mixer.init_state(TIME),
        lambda: mixer.prefill((), x),
        lambda: mixer.step((), x[0]),
    ):
        with raises_value_error(name), without_type_checks():
            call()


@contextlib.contextmanager
def without_type_checks():
    """As users run it: the shape checks of the test run would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def raises_value_error(*words: str):
    """Expects a `ValueError` whose message has all the words."""
    return pytest.raises(ValueError, check=lambda error: all(w in str(error) for w in words))


def earlier_state(mixer: AbstractRecurrentMixer) -> Any:
    """The state after some other sequence."""
    return pull(prefilled, mixer, initial_state(mixer), -X, None, WEIGHT, ONE).state


def stateless(result: Result) -> Result:
    return result._replace(state=(), d_state=())
