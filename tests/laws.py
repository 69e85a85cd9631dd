"""What every sequence mixer must obey, as functions that raise when a mixer breaks it.

Each law compares forms of a mixer, in values and in gradients, on sequences whose documents and padding
lie in different ways.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from asserts import (
    assert_close,
    assert_finite,
    assert_zero,
    raises_value_error,
    without_type_checks,
)
from forms import (
    alone,
    batched,
    batched_over_devices,
    can_step,
    chunked,
    Form,
    forms,
    initial_state,
    irregular,
    ONE,
    over_time,
    prefilled,
    pull,
    push,
    Result,
    run,
    stepped,
    whole,
    ZERO,
)
from jax import P
from jax.sharding import AxisType
from layouts import (
    EVERYWHERE,
    FEATURES,
    IDS,
    JUNK,
    Layout,
    layouts,
    noise,
    ONLY_PADDING,
    PACKED,
    PACKED_AND_PADDED,
    PADDINGS,
    PLAIN,
    scatter,
    TIME,
    WEIGHT,
    X,
)
from meshes import mesh_of

from linax_like.complexity import total
from linax_like.context import SequenceContext
from linax_like.sequence_mixers import (
    AbstractRecurrentMixer,
    AbstractSequenceMixer,
    AbstractSequenceMixerConfig,
)


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
    for shape in ((TIME, FEATURES + 1), (2, TIME, FEATURES), (FEATURES + 1,), (FEATURES,)):
        with raises_value_error(name), without_type_checks():
            mixer(jnp.zeros(shape))
    if not isinstance(mixer, AbstractRecurrentMixer):
        return
    x = jnp.asarray(X)
    if mixer.causal:
        state = mixer.init_state(TIME)
        for form, wrong in (
            (mixer.step, x[0, 1:]),
            (mixer.step, x),
            (mixer.prefill, x[:, 1:]),
            (mixer.prefill, x[0]),
        ):
            with raises_value_error(name), without_type_checks():
                form(state, wrong)
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


def earlier_state(mixer: AbstractRecurrentMixer) -> Any:
    """The state after some other sequence."""
    return pull(prefilled, mixer, initial_state(mixer), -X, None, WEIGHT, ONE).state


def stateless(result: Result) -> Result:
    return result._replace(state=(), d_state=())
