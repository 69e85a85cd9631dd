"""Every backend of the selective scan against a loop in NumPy, in float64."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from complex_arrays import as_complex, from_complex
from jax import P
from meshes import mesh_of

from linax_like.ops import ComplexPair, selective_scan, selective_step


TIME, FEATURES, STATE, GROUPS = 13, 4, 3, 2
METHODS = ("zoh", "bilinear", "dirac", "euler")
BACKENDS = ("reference", "xla")


class Given(NamedTuple):
    """The differentiable inputs; complex ones as complex NumPy arrays, or as pairs in JAX."""

    x: Any
    dt: Any
    A: Any
    B: Any
    C: Any
    h0: Any = None
    decay_dt: Any = None


def example(kind, time=TIME, groups=GROUPS, state=STATE, seed=0) -> Given:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        z = rng.standard_normal(shape)
        return z + 1j * rng.standard_normal(shape) if kind == "complex" else z

    A = draw(FEATURES, state)
    A = A - A.real - np.abs(A.real) - 0.1
    return Given(
        rng.standard_normal((time, FEATURES)),
        rng.uniform(0.1, 0.8, (time, FEATURES)),
        A,
        draw(time, groups, state),
        draw(time, groups, state),
        draw(FEATURES, state),
        rng.uniform(0.1, 0.8, (time, FEATURES)),
    )


def discretize(A, dt, decay_dt, method):
    decay = np.exp(decay_dt * A)
    match method:
        case "zoh":
            return decay, np.expm1(dt * A) / A
        case "bilinear":
            decay = (1 + decay_dt * A / 2) / (1 - decay_dt * A / 2)
            return decay, dt / (1 - dt * A / 2)
        case "dirac":
            return decay, 1.0
        case _:
            return decay, dt


def loop(given: Given, method="euler", resets=None, mask=None):
    """The definition, as far as NumPy is from JAX."""
    x, dt, A, B, C, h, decay_dt = given
    B, C = (z[:, None] if z.ndim == 2 else z for z in (B, C))
    B, C = (np.repeat(z, x.shape[1] // z.shape[1], axis=1) for z in (B, C))
    h = np.zeros_like(A) if h is None else h
    decay_dt = dt if decay_dt is None else decay_dt
    y = np.zeros_like(x)
    for t in range(len(x)):
        if mask is not None and not mask[t]:
            continue
        decay, gain = discretize(A, dt[t][:, None], decay_dt[t][:, None], method)
        decay = 0 * decay if resets is not None and resets[t] else decay
        h = decay * h + gain * (x[t][:, None] * B[t])
        read = np.sum(C[t] * h, axis=1)
        y[t] = 2 * read.real if np.iscomplexobj(h) else read
    return h, y


def as_arrays(given: Given) -> Given:
    def convert(z):
        if z is None:
            return None
        return from_complex(jnp.asarray(z)) if np.iscomplexobj(z) else jnp.asarray(z)

    return Given(*map(convert, given))


def as_numpy(z):
    return np.asarray(as_complex(z) if isinstance(z, ComplexPair) else z)


def scan(given: Given, method="euler", **keywords):
    *operands, decay_dt = given
    return selective_scan(*operands, decay_dt=decay_dt, discretization=method, **keywords)


def objective(h, y, weight):
    """A real number that depends on all outputs."""
    h = h if isinstance(h, tuple) else (h.real, h.imag)
    return (y * weight).sum() + (h[0] * h[0]).sum() + 3 * h[1].sum()


@functools.cache
def compiled(method="euler", backend=None):
    """The outputs, at padding zero, and the gradients."""

    def run(given, weight, resets=None, mask=None):
        def loss(given):
            h, y = scan(given, method, resets=resets, mask=mask, backend=backend)
            y = y if mask is None else jnp.where(mask[:, None], y, 0)
            return objective(h, y, weight), (h, y)

        grads, outputs = jax.grad(loss, has_aux=True)(given)
        return outputs, grads

    return jax.jit(run)


def differences(f, given: Given, name: str, step=1e-6):
    """Central differences of a real function by one input, real and imaginary parts."""
    value = getattr(given, name)
    grad = np.zeros_like(value)
    for direction in (1, 1j) if np.iscomplexobj(grad) else (1,):
        for index in np.ndindex(grad.shape):
            values = []
            for sign in (1, -1):
                moved = value.copy()
                moved[index] += sign * step * direction
                values.append(f(given._replace(**{name: moved})))
            grad[index] += direction * (values[0] - values[1]) / (2 * step)
    return grad


def check(given: Given, method, resets, mask):
    """Both backends' values and gradients, with NaN wherever there is padding."""
    weight = np.random.default_rng(1).standard_normal(given.x.shape)
    expected = loop(given, method, resets, mask)
    value = lambda given: objective(*loop(given, method, resets, mask), weight)
    names = [name for name, z in given._asdict().items() if z is not None]
    numeric = {name: differences(value, given, name) for name in names}
    if mask is not None:
        over_time = ("x", "dt", "B", "C", "decay_dt")
        given = given._replace(**{name: blank(getattr(given, name), mask) for name in over_time})
    for backend in BACKENDS:
        outputs, grads = compiled(method, backend)(as_arrays(given), weight, resets, mask)
        for got, wanted in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(as_numpy(got), wanted, rtol=1e-11, atol=1e-12)
        for name, wanted in numeric.items():
            got = as_numpy(getattr(grads, name))
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7, err_msg=name)


def blank(z, mask):
    return np.where(mask.reshape(-1, *(1,) * (z.ndim - 1)), z, np.nan)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_values_and_gradients(kind, method):
    """Of everything at once: groups, a step size of the decay's own, documents, padding."""
    rng = np.random.default_rng(2)
    mask = rng.random(TIME) < 0.7
    resets = mask & (rng.random(TIME) < 0.3)
    assert resets.any() and not mask.all()
    with jax.enable_x64():
        check(example(kind), method, resets, mask)


def test_one_step_size_and_no_initial_state():
    given = example("real", groups=1)._replace(h0=None, decay_dt=None)
    given = given._replace(B=given.B[:, 0], C=given.C[:, 0])
    with jax.enable_x64():
        check(given, "zoh", None, None)


@pytest.mark.parametrize("time", [0, 1, 2, 7, 17, 36])
def test_any_length(time):
    given, weight = as_arrays(example("real", time)), jnp.ones((time, FEATURES))
    got, expected = (compiled("euler", backend)(given, weight) for backend in (None, "reference"))
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_steps_are_the_scan(kind):
    given = example(kind)
    h, y = jax.jit(scan)(as_arrays(given))
    step = jax.jit(lambda h, x, dt, A, B, C, d: selective_step(h, x, dt, A, B, C, decay_dt=d))
    state, A = as_arrays(given).h0, as_arrays(given).A
    for t in range(TIME):
        x, dt, _, B, C, _, d = as_arrays(Given(*(z[t % len(z)] for z in given)))
        state, y_t = step(state, x, dt, A, B, C, d)
        np.testing.assert_allclose(y_t, y[t], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(as_numpy(state), as_numpy(h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind, method", [("real", "euler"), ("complex", "bilinear")])
def test_time_over_devices(kind, method):
    """Values and gradients, with documents, padding and an initial state."""
    rng = np.random.default_rng(3)
    given = as_arrays(example(kind, time=16))
    mask = jnp.asarray(rng.random(16) < 0.8)
    resets = mask & jnp.asarray(rng.random(16) < 0.1)
    weight = jnp.asarray(rng.standard_normal((16, FEATURES)), jnp.float32)
    mesh = mesh_of(4, "time")
    whole = P()
    specs = Given(P("time"), P("time"), whole, P("time"), P("time"), whole, P("time"))

    def local(given, resets, mask):
        h, y = scan(given, method, resets=resets, mask=mask, axis_name="time")
        return jax.tree.map(lambda part: part[None], h), y

    run_split = jax.shard_map(
        local, mesh=mesh, in_specs=(specs, P("time"), P("time")), out_specs=P("time")
    )

    def split(given):
        states, y = run_split(given, resets, mask)
        for part in jax.tree.leaves(states):  # every shard has the last one's
            assert part.shape == (4, FEATURES, STATE)
        mean = jax.tree.map(lambda part: part.mean(axis=0), states)
        y = jnp.where(mask[:, None], y, 0)
        return objective(mean, y, weight), (mean, states, y)

    grads, (mean, states, y) = jax.jit(jax.grad(split, has_aux=True))(given)
    (h, expected), expected_grads = compiled(method)(given, weight, resets, mask)
    for part, same in zip(jax.tree.leaves(states), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(part, jnp.broadcast_to(same, part.shape), rtol=1e-5, atol=1e-6)
    got, wanted = (mean, y, grads), (h, expected, expected_grads)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_rounding_does_not_add_up(kind):
    """Against the same loop in float64, from the same float32 inputs, at two lengths."""
    errors = []
    for time in (2048, 65_536):
        given = example(kind, time, groups=1)
        dt = np.exp(np.random.default_rng(4).uniform(np.log(1e-3), np.log(0.1), given.x.shape))
        A = (
            given.A.imag * 1j - np.arange(1, STATE + 1)
            if kind == "complex"
            else -(given.A**2) - 0.5
        )
        given = given._replace(dt=dt, A=A, decay_dt=None)
        rounded = Given(*(rounded_to_float32(z) for z in given))
        h, y = jax.jit(scan)(as_arrays(rounded))
        exact = [z if z is None else z.astype(np.result_type(z, np.float64)) for z in rounded]
        expected_h, expected_y = loop(Given(*exact))
        error = (y - expected_y) / np.abs(expected_y).max()
        assert np.abs(error).max() <= 1e-5
        assert np.abs(as_numpy(h) - expected_h).max() <= 1e-5 * np.abs(expected_h).max()
        errors.append(np.sqrt(np.mean(error**2)))
    assert errors[1] <= 1.5 * errors[0]


def rounded_to_float32(z):
    return z if z is None else z.astype(np.complex64 if np.iscomplexobj(z) else np.float32)


def test_the_gradient_never_holds_all_states():
    """By what XLA sets aside: linear in time, and with more states far less than they take."""

    def temporary(time, features=32, state=16):
        shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
        x, A, B = shape(time, features), shape(features, state), shape(time, state)
        loss = lambda given: jnp.sum(scan(Given(*given))[1] ** 2)
        memory: Any = jax.jit(jax.grad(loss)).lower((x, x, A, B, B)).compile().memory_analysis()
        return memory.temp_size_in_bytes, time * features * state * 4

    (short, _), (long, states) = temporary(1024), temporary(4096)
    wide, more_states = temporary(4096, state=64)
    assert long <= 4 * short
    assert wide - long <= (more_states - states) / 4


def test_forward_mode_needs_the_reference():
    given = as_arrays(example("real"))
    f = lambda x, backend: scan(given._replace(x=x, h0=None), backend=backend)[1]
    _, tangent = jax.jvp(lambda x: f(x, "reference"), (given.x,), (given.x,))
    np.testing.assert_allclose(tangent, f(given.x, None), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: f(x, "xla"), (given.x,), (given.x,))


def test_half_precision_is_computed_in_single():
    given = as_arrays(example("real"))._replace(h0=None, decay_dt=None)
    h, y = scan(given._replace(x=given.x.astype(jnp.bfloat16)))
    assert h.dtype == y.dtype == jnp.float32


def test_errors_name_what_is_wrong():
    given = as_arrays(example("real", groups=3))
    with pytest.raises(ValueError, match="`selective_scan`.*divide.*4 features and 3 groups"):
        scan(given)
    given = as_arrays(example("complex"))
    with pytest.raises(ValueError, match="`selective_scan`.*ComplexPair.*pairs for A, C, h alone"):
        scan(given._replace(B=given.B.real))
