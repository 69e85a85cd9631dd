"""What is particular to S4, beside the laws of every mixer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from complex_arrays import as_complex

import linax_like as lx
from linax_like.ops.dplr import dense, discretize


KEY = jr.key(0, impl="rbg")
INITS = ("legs", "legt", "fout", "random")


def in_float64(mixer):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), mixer)


def dense_kernel(mixer, length):
    """K by multiplying dense matrices."""
    system, weight = mixer._system(jnp.float64)
    eigenvalues, p, b, c = map(as_complex, (*system[:3], weight))
    both = lambda z: np.concatenate([z, np.conj(z)], axis=-1)
    rows = []
    for values, p, b, c, dt in zip(*map(both, (eigenvalues, p, b, c)), system.dt, strict=True):
        matrix = np.diag(values) - p.T @ p.conj()
        one = np.eye(len(values))
        step = np.linalg.solve(one - dt / 2 * matrix, one + dt / 2 * matrix)
        h, row = np.linalg.solve(one - dt / 2 * matrix, dt * b), []
        for _ in range(length):
            row.append((c @ h).real)
            h = step @ h
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("init", INITS)
def test_kernel_step_and_dense_matrices_agree(init):
    """In float64 to 12 digits, and in float32 as far as it reaches."""
    mixer = lx.S4SequenceMixerConfig(16, n_ssm=2, init=init).build(4, KEY)
    x = jnp.zeros((300, 4)).at[0].set(1.0)
    with jax.enable_x64():
        exact = in_float64(mixer)
        expected = dense_kernel(exact, 300)
        scale = np.abs(expected).max(axis=1, keepdims=True)
        for length in (300, 299, 97):
            kernel = exact.kernel(length, jnp.float64)
            assert np.abs((kernel - expected[:, :length]) / scale).max() < 1e-12
        _, y = exact.prefill(exact.init_state(300, jnp.float64), x.astype(jnp.float64))
        y = y.T.at[:, 0].add(-exact.skip)
        assert np.abs((y - expected) / scale).max() < 1e-12
    assert np.abs((mixer.kernel(300) - expected) / scale).max() < 2e-5


@pytest.mark.parametrize("init", ["legs", "fout"])
@pytest.mark.parametrize("length", [1024, pytest.param(16384, marks=pytest.mark.slow)])
def test_long_kernels_in_float32(init, length):
    """Full size, and a system that hardly decays."""
    mixer = lx.S4SequenceMixerConfig(init=init).build(4, KEY)
    kernel = eqx.filter_jit(mixer.kernel)(length)
    with jax.enable_x64():
        expected = np.asarray(in_float64(mixer).kernel(length, jnp.float64))
    error = np.abs(kernel - expected).max(axis=1) / np.abs(expected).max(axis=1)
    assert error.max() < 1e-4


def test_gradients_in_float32_wherever_the_poles_are():
    """A frequency from below the first root of unity to beyond the last, through all of them."""
    mixer = lx.S4SequenceMixerConfig(4).build(64, KEY)
    sweep = lambda mixer: eqx.tree_at(
        lambda m: m.log_step, mixer, jnp.linspace(-6.0, 1.0, 64, dtype=mixer.skip.dtype)
    )
    weigh = lambda kernel: jnp.sum(kernel * jnp.cos(jnp.arange(16, dtype=kernel.dtype)))
    grad = eqx.filter_jit(eqx.filter_grad(lambda mixer: weigh(mixer.kernel(16, mixer.skip.dtype))))
    got = grad(sweep(mixer)).log_step
    with jax.enable_x64():
        expected = np.asarray(grad(sweep(in_float64(mixer))).log_step)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_step_contracts_whatever_the_parameters():
    """‖Ā‖ ≤ 1, as A + A* < 0: no state can grow, also in between."""
    rng = np.random.default_rng(0)
    mixer = lx.S4SequenceMixerConfig(8, n_ssm=4, init="legt").build(64, KEY)
    with jax.enable_x64():
        noise = lambda leaf: jnp.asarray(3 * rng.normal(size=leaf.shape))
        mixer = jax.tree.map(noise, mixer)
        matrix = np.asarray(dense(discretize(mixer._system(jnp.float64)[0])))
        assert np.linalg.norm(matrix, ord=2, axis=(1, 2)).max() < 1 + 1e-12
        assert np.abs(np.linalg.eigvals(matrix)).max() < 1


def test_irregular_samples():
    """A step after a longer time is that of a larger Δ."""
    mixer = lx.S4SequenceMixerConfig(8, init="legt").build(8, KEY)
    x = jr.normal(KEY, (6, 8))
    steps = jnp.asarray([1.0, 0.5, 2.0, 0.1, 3.0, 1.0])
    with jax.enable_x64():
        mixer, x, steps = in_float64((mixer, x, steps))
        state, ys = mixer.init_state(6, jnp.float64), []
        for x_t, step in zip(x, steps, strict=True):
            slower = eqx.tree_at(lambda m: m.log_step, mixer, mixer.log_step + jnp.log(step))
            state, y = slower.step(state, x_t)
            ys.append(y)
        got = mixer(x, context=lx.SequenceContext(timesteps=steps))
        np.testing.assert_allclose(got, jnp.stack(ys), rtol=1e-9)
        ones = lx.SequenceContext(timesteps=jnp.ones(6))
        np.testing.assert_allclose(mixer(x, context=ones), mixer(x), rtol=1e-9, atol=1e-12)


def test_features_share_systems_by_turns():
    mixer = lx.S4SequenceMixerConfig(8, n_ssm=2, init="random").build(4, KEY)
    assert mixer.frequency.shape == (2, 4)
    system, _ = mixer._system(jnp.float32)
    np.testing.assert_array_equal(system.eigenvalues.imag[2:], mixer.frequency)
    assert not np.array_equal(system.eigenvalues.imag[0], system.eigenvalues.imag[1])


@pytest.mark.parametrize("init", INITS)
def test_every_init_starts_at_a_sane_scale(init):
    """Without the skip, which alone would keep the scale."""
    mixer = lx.S4SequenceMixerConfig(init=init).build(64, KEY)
    mixer = eqx.tree_at(lambda m: m.skip, mixer, jnp.zeros(64))
    y = eqx.filter_jit(mixer)(jr.normal(KEY, (512, 64)))
    assert 0.05 < y.std() < 5


@pytest.mark.parametrize("packed", [False, True])
def test_never_holds_all_states(packed):
    """Neither forwards nor in the gradient, by what XLA sets aside for them."""
    time, width = 4096, 32
    mixer = lx.S4SequenceMixerConfig(64).build(width, KEY)
    context = lx.SequenceContext(segment_ids=jnp.zeros(time, jnp.int32)) if packed else None
    loss = lambda inputs: jnp.sum(inputs[0](inputs[1], context=context) ** 2)
    grad = eqx.filter_jit(eqx.filter_grad(loss))
    compiled = grad.lower((mixer, jnp.zeros((time, width)))).compile()
    memory = compiled.compiled.memory_analysis()
    states = time * width * 32 * 2 * 4
    assert memory.temp_size_in_bytes < states


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: lx.S4SequenceMixerConfig(state_dim=7), ("state_dim=7", "even")),
        (lambda: lx.S4SequenceMixerConfig(n_ssm=0), ("n_ssm=0", "positive")),
        (lambda: lx.S4SequenceMixerConfig(dt_min=0.2, dt_max=0.1), ("dt_max=0.1", "dt_min")),
        (lambda: lx.S4SequenceMixerConfig(init="lags"), ("init", "'legs', 'legt'")),
        (lambda: lx.S4SequenceMixerConfig(n_ssm=3).build(8, KEY), ("n_ssm=3", "divisor", "8")),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, check=lambda e: all(word in str(e) for word in words)):
        make()
