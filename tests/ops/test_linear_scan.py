"""Every backend of the linear recurrence against a loop in NumPy, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from complex_arrays import as_complex, from_complex
from jax import P
from meshes import mesh_of

from linax_like.ops import ComplexPair, final_state, linear_scan


TIME, STATE = 13, 3
BACKENDS = ("reference", "associative", "xla")
OPTIONS = ("plain", "h0", "resets", "mask", "all")
# Every option in one direction, and everything at once in both.
CALLS = [*zip(OPTIONS, (False, True, False, True, False), strict=True), ("all", True)]


def loop(a, b, h0, resets, mask, reverse):
    """The definition."""
    h, states = h0, np.zeros_like(b)
    order = range(len(b))
    for t in reversed(order) if reverse else order:
        if mask[t]:
            h = (0 if resets[t] else (a[t] if a.ndim == b.ndim else a) * h) + b[t]
        states[t] = h
    return states


def example(kind, constant, option, seed=0) -> Any:
    """Inputs as NumPy arrays; `None` where the option leaves something out."""
    rng = np.random.default_rng(seed)
    shape = (STATE,) if constant else (TIME, STATE)
    a, b, h0, weight = (
        rng.standard_normal(s) for s in (shape, (TIME, STATE), (STATE,), (TIME, STATE))
    )
    if kind == "complex":
        a, b, h0, weight = (z + 1j * rng.standard_normal(z.shape) for z in (a, b, h0, weight))
    a = 0.9 * a / np.maximum(np.abs(a), 1)
    resets, mask = rng.random(TIME) < 0.25, rng.random(TIME) < 0.7
    resets &= mask
    return (
        a,
        b,
        h0 if option in ("h0", "all") else None,
        resets if option in ("resets", "all") else None,
        mask if option in ("mask", "all") else None,
        weight,
    )


def as_array(z):
    if z is None or z.dtype == bool:
        return z
    return from_complex(jnp.asarray(z)) if np.iscomplexobj(z) else jnp.asarray(z)


def as_numpy(z):
    return np.asarray(as_complex(z) if isinstance(z, ComplexPair) else z)


def expected_states(a, b, h0, resets, mask, reverse):
    h0 = np.zeros_like(b[0]) if h0 is None else h0
    resets = np.zeros(TIME, bool) if resets is None else resets
    mask = np.ones(TIME, bool) if mask is None else mask
    return loop(a, b, h0, resets, mask, reverse)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
def test_states_and_gradients(kind, constant, backend):
    """Gradients against central differences of the loop, which are exact where it is linear."""
    with jax.enable_x64():
        for option, reverse in CALLS:
            a, b, h0, resets, mask, weight = example(kind, constant, option)
            given = tuple(map(as_array, (a, b, h0)))
            run = jax.jit(loss_and_states, static_argnames=("backend", "reverse"))
            keywords = dict(resets=resets, mask=mask, reverse=reverse, backend=backend)
            (_, states), grads = run(given, as_array(weight), **keywords)
            expected = expected_states(a, b, h0, resets, mask, reverse)
            np.testing.assert_allclose(as_numpy(states), expected, rtol=1e-11, atol=1e-11)

            def oracle(*z, rest=(resets, mask, reverse), weight=weight):
                return np.sum(expected_states(*z, *rest) * weight.conj()).real

            for i, got in enumerate(grads):
                if got is not None:
                    numeric = differences(oracle, (a, b, h0), i)
                    np.testing.assert_allclose(as_numpy(got), numeric, rtol=1e-6, atol=1e-7)


def loss_and_states(given, weight, **keywords):
    def loss(given):
        states = linear_scan(*given, **keywords)
        products = jax.tree.map(lambda h, w: jnp.sum(h * w), states, weight)
        return sum(jax.tree.leaves(products)), states

    return jax.value_and_grad(loss, has_aux=True)(given)


def differences(f, inputs, i, step=1e-5):
    """Central differences of a real function by one input, real and imaginary parts."""
    grad = np.zeros_like(inputs[i])
    for direction in (1, 1j) if np.iscomplexobj(grad) else (1,):
        for index in np.ndindex(grad.shape):
            values = []
            for sign in (1, -1):
                moved = inputs[i].copy()
                moved[index] += sign * step * direction
                values.append(f(*inputs[:i], moved, *inputs[i + 1 :]))
            grad[index] += direction * (values[0] - values[1]) / (2 * step)
    return grad


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_may_hold_nan(reverse):
    a, b, h0, resets, mask, _ = example("real", False, "all")
    a, b = (np.where(mask[:, None], z, np.nan) for z in (a, b))

    rules: Any = {"resets": jnp.asarray(resets), "mask": jnp.asarray(mask)}

    def loss(a, b, h0):
        states = linear_scan(a, b, h0, reverse=reverse, **rules)
        return jnp.sum(states**2), states

    grads, states = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*map(as_array, (a, b, h0)))
    a, b = (np.where(mask[:, None], z, 0.0) for z in (a, b))
    expected = loop(a, b, h0, resets, mask, reverse)
    np.testing.assert_allclose(states, expected, rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(grad).all() for grad in grads)
    assert not np.asarray(grads[1])[~mask].any()


@pytest.mark.parametrize("backend", ["associative", "xla"])
@pytest.mark.parametrize("reverse", [False, True])
def test_time_over_devices(backend, reverse):
    """Values and gradients, with documents, padding and an initial state."""
    rng = np.random.default_rng(1)
    time = 16
    a, b = (
        from_complex(jnp.asarray(0.6 * np.exp(1j * rng.random((time, STATE))))),
        from_complex(jnp.asarray(rng.standard_normal((time, STATE)) + 1j)),
    )
    h0 = ComplexPair(jnp.ones(STATE), -jnp.ones(STATE))
    mask = jnp.asarray(rng.random(time) < 0.8)
    resets = mask & jnp.asarray(rng.random(time) < 0.1)
    mesh = mesh_of(4, "time")

    def whole(a, b, h0, axis_name=None, resets=resets, mask=mask):
        keywords: Any = dict(resets=resets, mask=mask, reverse=reverse, axis_name=axis_name)
        states = linear_scan(a, b, h0, backend=backend, **keywords)
        last = final_state(states, h0, reverse=reverse, axis_name=axis_name)
        return states, jax.tree.map(lambda x: x[None], last)

    def split(a, b, h0):
        local = lambda a, b, h0, resets, mask: whole(a, b, h0, "time", resets, mask)
        specs = (P("time"), P("time"), P(), P("time"), P("time"))
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("time"))
        return run(a, b, h0, resets, mask)

    def loss(form, inputs):
        states, last = form(*inputs)
        parts = [jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(states)]
        return sum(parts + [jnp.sum(x[0] ** 2) for x in last]), (states, last)

    run = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0)
    (_, (states, last)), grads = run(split, (a, b, h0))
    (_, (states_1, last_1)), grads_1 = run(whole, (a, b, h0))
    for got, expected in zip(
        jax.tree.leaves((states, grads)), jax.tree.leaves((states_1, grads_1)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    for got, expected in zip(last, last_1, strict=True):
        np.testing.assert_allclose(got, jnp.repeat(expected, 4, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_stays_float32_beside_float64(backend):
    one = jnp.ones((4, 3), jnp.float32)
    z, mask = ComplexPair(one, one), jnp.arange(4) != 1
    expected = linear_scan(z, z, resets=~mask, mask=mask, backend=backend)
    with jax.enable_x64():
        got = linear_scan(z, z, resets=~mask, mask=mask, backend=backend)
    assert got.real.dtype == got.imag.dtype == jnp.float32
    np.testing.assert_array_equal(got.real, expected.real)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_positions(backend):
    h0 = jnp.arange(3.0)
    states = linear_scan(jnp.ones(3), jnp.zeros((0, 3)), h0, backend=backend)
    assert states.shape == (0, 3)
    np.testing.assert_array_equal(final_state(states, h0), h0)


def test_forward_mode_needs_the_reference():
    a, b = jnp.full(3, 0.5), jnp.ones((4, 3))
    f = lambda b, backend: linear_scan(a, b, backend=backend)
    _, tangent = jax.jvp(lambda b: f(b, "reference"), (b,), (b,))
    np.testing.assert_allclose(tangent, f(b, None))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda b: f(b, "xla"), (b,), (b,))


def intermediate_sizes(jaxpr):
    """The sizes of all arrays that a program names outside its loops."""
    return [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]


def test_constant_coefficients_stay_small():
    """The forward program names nothing with time but the states."""
    a, b = jnp.full(3, 0.5), jnp.ones((1000, 3))
    jaxpr = jax.make_jaxpr(linear_scan)(a, b).jaxpr
    assert sum(size >= 1000 for size in intermediate_sizes(jaxpr)) == 1


@pytest.mark.parametrize("constant", [True, False])
def test_the_gradient_stores_only_the_states(constant):
    a = jnp.full(3 if constant else (1000, 3), 0.5)
    b = jnp.ones((1000, 3))
    _, pullback = jax.vjp(lambda b: linear_scan(a, b), b)
    stored = sum(leaf.size for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size"))
    assert stored <= b.size + a.size + 100


def test_memory_of_the_compiled_gradient():
    """A few arrays of the size of the states, whatever the backend would need without its rule."""
    b = jax.ShapeDtypeStruct((4096, 64), jnp.float32)
    a = jax.ShapeDtypeStruct((64,), jnp.float32)
    loss = lambda a, b: jnp.sum(linear_scan(a, b) ** 2)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(a, b).compile()
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes <= 4 * (4096 * 64 * 4)


@pytest.mark.parametrize("backend", ["reference", "xla"])
@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
def test_float32_is_exact_to_1e_5_at_any_length(kind, constant, backend):
    """Beside float64 on the same rounded inputs: rounding does not add up over the length."""
    rng = np.random.default_rng(0)
    length, state = 65_536, 16
    shape = (state,) if constant else (length, state)
    a, b = rng.uniform(0.5, 0.999, shape), rng.standard_normal((length, state))
    if kind == "complex":
        a = a * np.exp(2j * np.pi * rng.random(shape))
        b = b + 1j * rng.standard_normal(b.shape)
    a, b = (z.astype(np.complex64 if kind == "complex" else np.float32) for z in (a, b))
    wide = np.complex128 if kind == "complex" else np.float64
    exact = loop(
        a.astype(wide), b.astype(wide), 0.0, np.zeros(length, bool), np.ones(length, bool), False
    )
    scan = jax.jit(lambda a, b: linear_scan(a, b, backend=backend))
    errors = np.abs(as_numpy(scan(as_array(a), as_array(b))) - exact)
    errors = errors.max(axis=1) / np.abs(exact).max()
    assert errors.max() <= 1e-5
    assert errors[-1024:].max() <= 3 * errors[1024:2048].max()
