"""Every backend of the driven oscillators against a loop in NumPy, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from complex_arrays import as_complex, from_complex
from jax import P
from meshes import mesh_of

from linax_like.ops import ComplexPair, oscillator_scan, Oscillators, OscillatorState


TIME, STATE = 11, 3
BACKENDS = ("reference", "xla")


def loop(keep, pull, dt, drive, velocity, position, resets, mask):
    """The definition: velocities and positions at every time."""
    states = []
    for t in range(len(drive)):
        if mask[t]:
            k, p, h = (c if c.ndim == 1 else c[t] for c in (keep, pull, dt))
            if resets[t]:
                velocity, position = 0 * velocity, 0 * position
            velocity = k * velocity - p * position + drive[t]
            position = position + h * velocity
        states.append((velocity, position))
    velocities, positions = map(np.stack, zip(*states, strict=True))
    return velocities, positions


def example(constant: bool, ruled: bool, time: int = TIME) -> Any:
    """Inputs as NumPy arrays, and the resets and mask."""
    rng = np.random.default_rng(0)
    shape = (STATE,) if constant else (time, STATE)
    coefficients = [rng.uniform(low, high, shape) for low, high in ((0.7, 1), (0, 0.5), (0.1, 1))]
    normal = lambda *shape: rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    states = [normal(time, STATE), normal(STATE), normal(STATE)]
    mask = rng.random(time) < 0.7 if ruled else np.ones(time, bool)
    resets = mask & (rng.random(time) < 0.3) if ruled else np.zeros(time, bool)
    return coefficients + states, resets, mask


def run(inputs, **keywords):
    keep, pull, dt, *complex_inputs = map(jnp.asarray, inputs)
    drive, velocity, position = map(from_complex, complex_inputs)
    start = OscillatorState(velocity, position)
    state, positions = oscillator_scan(Oscillators(keep, pull, dt), drive, start, **keywords)
    return as_complex(positions), as_complex(state.velocity), as_complex(state.position)


def rules(ruled, resets, mask) -> dict[str, Any]:
    return {"resets": jnp.asarray(resets), "mask": jnp.asarray(mask)} if ruled else {}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ruled", [False, True], ids=["plain", "ruled"])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
def test_states_and_gradients(constant, ruled, backend):
    """Gradients against central differences of the loop."""
    inputs, resets, mask = example(constant, ruled)
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in ((TIME, 3), 3, 3)]

    def expected(inputs):
        velocities, positions = loop(*inputs, resets, mask)
        return positions, velocities[-1], positions[-1]

    def total(outputs, real):
        return sum(real(y * w).sum() for y, w in zip(outputs, weights, strict=True))

    with jax.enable_x64():
        keywords = rules(ruled, resets, mask) | {"backend": backend}

        def loss(inputs):
            outputs = run(inputs, **keywords)
            return total(outputs, jnp.real), outputs

        grads, outputs = jax.jit(jax.grad(loss, has_aux=True))(inputs)
        for got, want in zip(outputs, expected(inputs), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    oracle = lambda inputs: total(expected(inputs), np.real)
    for i, got in enumerate(grads):
        # JAX's gradient by a complex number is the conjugate of the direction of ascent.
        numeric = differences(oracle, inputs, i)
        np.testing.assert_allclose(np.conj(got), numeric, rtol=1e-6, atol=1e-7)


def differences(f, inputs, i, step=1e-5):
    """Central differences of a real function by one input, real and imaginary parts."""
    grad = np.zeros_like(inputs[i])
    for direction in (1, 1j) if np.iscomplexobj(grad) else (1,):
        for index in np.ndindex(grad.shape):
            values = []
            for sign in (1, -1):
                moved = list(inputs)
                moved[i] = inputs[i].copy()
                moved[i][index] += sign * step * direction
                values.append(f(moved))
            grad[index] += direction * (values[0] - values[1]) / (2 * step)
    return grad


def test_padding_may_hold_nan():
    inputs, resets, mask = example(constant=False, ruled=True)
    junk = [np.where(mask[:, None], x, np.nan) if len(x) == TIME else x for x in inputs]
    keywords = rules(True, resets, mask)
    loss = lambda inputs: sum(jnp.sum(jnp.abs(y) ** 2) for y in run(inputs, **keywords))
    value, grads = jax.value_and_grad(loss)(junk)
    expected_value, expected = jax.value_and_grad(loss)(inputs)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for got, want in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert not np.asarray(grads[3])[~mask].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
def test_time_over_devices(constant, backend):
    """Values and gradients, with documents, padding and an initial state."""
    inputs, resets, mask = example(constant, ruled=True, time=16)
    mesh = mesh_of(4, "time")

    def whole(inputs, axis_name=None, resets=resets, mask=mask):
        keywords = rules(True, resets, mask) | {"axis_name": axis_name, "backend": backend}
        positions, *last = run(inputs, **keywords)
        return positions, [h[None] for h in last]

    def split(inputs):
        local = lambda inputs, resets, mask: whole(inputs, "time", resets, mask)
        of = [P("time") if len(x) == 16 else P() for x in inputs]
        run = jax.shard_map(
            local, mesh=mesh, in_specs=(of, P("time"), P("time")), out_specs=P("time")
        )
        return run(inputs, resets, mask)

    def loss(form, inputs):
        positions, last = form(inputs)
        square = lambda h: jnp.sum(jnp.abs(h) ** 2)
        return square(positions) + sum(square(h[0]) for h in last), (positions, last)

    with jax.enable_x64():
        grad = jax.jit(jax.grad(loss, argnums=1, has_aux=True), static_argnums=0)
        grads, (positions, last) = grad(split, inputs)
        expected_grads, (expected, expected_last) = grad(whole, inputs)
    np.testing.assert_allclose(positions, expected, rtol=1e-11)
    for got, want in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    for got, want in zip(last, expected_last, strict=True):
        np.testing.assert_allclose(got, np.repeat(want, 4, axis=0), rtol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_positions(backend):
    one = jnp.arange(3.0)
    start = OscillatorState(ComplexPair(one, one), ComplexPair(-one, one))
    nothing = ComplexPair(jnp.zeros((0, 3)), jnp.zeros((0, 3)))
    oscillators = Oscillators(one, one, one)
    state, positions = oscillator_scan(oscillators, nothing, start, backend=backend)
    assert positions.real.shape == (0, 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, state, start))


def test_forward_mode_needs_the_reference():
    inputs, *_ = example(constant=True, ruled=False)
    with jax.enable_x64():
        push = lambda backend: jax.jvp(lambda x: run(x, backend=backend), (inputs,), (inputs,))[1]
        step = 1e-6
        ahead, behind = (run([x * (1 + s * step) for x in inputs]) for s in (1, -1))
        for got, a, b in zip(push("reference"), ahead, behind, strict=True):
            np.testing.assert_allclose(got, (a - b) / (2 * step), rtol=1e-7, atol=1e-7)
        with pytest.raises(TypeError, match="forward-mode"):
            push("xla")


def test_memory_of_the_compiled_programs():
    """Forwards the positions alone; the gradient adds the states and what came through them."""
    time, state = 4096, 64
    shape = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    oscillators = Oscillators(*[shape(state)] * 3)
    drive, zero = (ComplexPair(s, s) for s in (shape(time, state), shape(state)))

    def loss(oscillators, drive, start):
        return jnp.sum(oscillator_scan(oscillators, drive, start)[1].real ** 2)

    def temporary(f):
        compiled = jax.jit(f).lower(oscillators, drive, OscillatorState(zero, zero)).compile()
        memory: Any = compiled.memory_analysis()
        return memory.temp_size_in_bytes / (2 * time * state * 4)

    assert temporary(loss) < 3
    assert temporary(jax.grad(loss, argnums=(0, 1))) < 6
