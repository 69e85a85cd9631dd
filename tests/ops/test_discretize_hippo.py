"""Discretisation against its formulas in float64, and HiPPO against the published numbers."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from complex_arrays import as_complex

from linax_like.ops import ComplexPair, discretize_decay, discretize_gain
from linax_like.ops.complex_pair import exp, expm1
from linax_like.ops.discretize import discretize_log_decay
from linax_like.ops.hippo import (
    block_diagonal_legs,
    diagonal_legs,
    legs,
    legs_low_rank,
    legs_normal,
)


METHODS = ("zoh", "bilinear", "dirac", "euler")
EIGENVALUES = np.array([-0.5 + 3j, -2.0 - 40j, -1e-4 + 0j, -30 + 0j, -0.5 - 1283j])


def formulas(eigenvalues, dt, method):
    z = eigenvalues * dt
    match method:
        case "zoh":
            return np.exp(z), np.expm1(z) / eigenvalues
        case "bilinear":
            return (1 + z / 2) / (1 - z / 2), dt / (1 - z / 2)
        case "dirac":
            return np.exp(z), np.ones_like(z)
        case _:
            return np.exp(z), dt * np.ones_like(z)


def discretized(eigenvalues, dt, method):
    pair = ComplexPair(jnp.asarray(eigenvalues.real), jnp.asarray(eigenvalues.imag))
    dt = jnp.asarray(dt, pair.real.dtype)
    return discretize_decay(pair, dt, method), discretize_gain(pair, dt, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dt", [1e-6, 1e-3, 0.1, 2.0])
def test_formulas(method, dt):
    with jax.enable_x64():
        got = discretized(EIGENVALUES, dt, method)
        for g, e in zip(got, formulas(EIGENVALUES, dt, method), strict=True):
            np.testing.assert_allclose(as_complex(g), e, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_stable_systems_stay_stable(method):
    decay, _ = discretized(EIGENVALUES.astype(np.complex64), 0.1, method)
    assert (np.abs(as_complex(decay)) < 1).all()


def test_small_steps_keep_their_precision_in_float32():
    """(exp(Δλ) - 1) / λ loses all digits at Δ = 1e-6 without `expm1`."""
    _, gain = discretized(EIGENVALUES[:3].astype(np.complex64), 1e-6, "zoh")
    expected = formulas(EIGENVALUES[:3], 1e-6, "zoh")[1]
    np.testing.assert_allclose(as_complex(gain), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gain_by_the_eigenvalue_does_not_cancel(dtype):
    """Δ² Σₖ (k + 1) zᵏ / (k + 2)! for z = Δλ: the closed formula loses all digits near 0."""
    z = np.geomspace(1e-9, 1, 400) * np.exp(1j * np.linspace(np.pi / 2, np.pi, 400))
    factors = [(k + 1) / math.factorial(k + 2) for k in range(20)]
    expected = sum(factor * z**k for k, factor in enumerate(factors))
    with jax.enable_x64(dtype == np.float64):

        def gain(real, imag):
            parts = ComplexPair(real, imag)
            return discretize_gain(parts, jnp.ones_like(real), "zoh").real

        # Of an analytic function f, ∂ Re f / ∂ Re z - i ∂ Re f / ∂ Im z is the derivative.
        at = jnp.asarray(z.real, dtype), jnp.asarray(z.imag, dtype)
        real, imag = jax.vmap(jax.grad(gain, (0, 1)))(*at)
    got = np.asarray(real, np.float64) - 1j * np.asarray(imag, np.float64)
    rtol = 2e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(got, expected, rtol=rtol)


@pytest.mark.parametrize("method", METHODS)
def test_finite_gradients_at_zero(method):
    """A step of no length, and an eigenvalue of 0."""

    def loss(eigenvalues, dt):
        parts = discretize_decay(eigenvalues, dt, method), discretize_gain(eigenvalues, dt, method)
        return sum(jnp.sum(part) for part in jax.tree.leaves(parts))

    eigenvalues = ComplexPair(jnp.array([-0.5, 0.0]), jnp.array([2.0, 0.0]))
    for dt in (jnp.zeros(2), jnp.full(2, 0.1)):
        grads = jax.grad(loss, argnums=(0, 1))(eigenvalues, dt)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    if method == "zoh":  # gain → Δ (1 + Δλ/2), hence ∂/∂Δ → 1 and ∂/∂λ → Δ²/2 as λ → 0
        d_eigenvalues, d_dt = grads
        np.testing.assert_allclose(d_dt[1], 1.0, rtol=1e-6)
        np.testing.assert_allclose(d_eigenvalues.real[1], 0.1 + 0.005, rtol=1e-5)


@pytest.mark.parametrize("imag", [0.0, 1e-4, 0.5])
def test_the_logarithm_of_the_bilinear_decay_is_that_of_any_decay(imag):
    """Near Δλ = -2 nothing is left of the state, and from there on real decays are negative."""
    with jax.enable_x64():
        real = jnp.asarray([-1e-9, -1e-3, -1.9, -2.0, -2.0 - 1e-9, -2.001, -2.1, -50.0])
        at, dt = ComplexPair(real, jnp.full_like(real, imag)), jnp.ones(())
        logarithm = discretize_log_decay(at, dt, "bilinear")
        decay = as_complex(discretize_decay(at, dt, "bilinear"))
        np.testing.assert_allclose(np.exp(as_complex(logarithm)), decay, rtol=1e-9, atol=1e-15)
        loss = lambda z: jnp.sum(exp(discretize_log_decay(z, dt, "bilinear")).real)
        exact = lambda z: jnp.sum(discretize_decay(z, dt, "bilinear").real)
        got, expected = (jax.grad(f)(at) for f in (loss, exact))
        there = np.abs(decay) > 0  # where there is none the logarithm has no derivative
        assert np.isfinite(got.real).all()
        np.testing.assert_allclose(got.real[there], expected.real[there], rtol=1e-6)


@pytest.fixture(scope="module")
def published():
    path = Path(__file__).parents[1] / "golden" / "references" / "s5_hippo_init.npz"
    with np.load(path, allow_pickle=False) as file:
        return {name[2:]: file[name] for name in file.files if name.startswith("y/")}


def test_legs_is_the_reference(published):
    matrix, vector = legs(16)
    np.testing.assert_allclose(matrix, published["A"], atol=1e-12)
    np.testing.assert_allclose(vector, published["B"], atol=1e-12)
    np.testing.assert_allclose(legs_low_rank(16), published["P"], atol=1e-12)
    np.testing.assert_allclose(legs_normal(16), published["S"], atol=1e-12)


def test_diagonal_form_is_the_reference(published):
    """Eigenvectors are defined up to a phase, so it is what they diagonalise that is compared."""
    eigenvalues, basis, in_vector = diagonal_legs(16)
    np.testing.assert_allclose(eigenvalues, published["Lambda"], atol=1e-10)
    rebuilt = basis * eigenvalues @ basis.conj().T
    np.testing.assert_allclose(rebuilt, published["S"], atol=1e-10)
    np.testing.assert_allclose(np.abs(basis), published["absV"], atol=1e-10)
    np.testing.assert_allclose(np.abs(in_vector), published["absB_conj"], atol=1e-10)


def test_blocks_stand_side_by_side():
    eigenvalues, basis = block_diagonal_legs(12, 3, True)
    one = diagonal_legs(4)
    np.testing.assert_array_equal(eigenvalues, np.tile(one.eigenvalues[:2], 3))
    assert (eigenvalues.imag < 0).all()
    assert basis.shape == (12, 6)
    np.testing.assert_array_equal(basis[4:8, 2:4], one.basis[:, :2])
    assert np.count_nonzero(basis) <= 3 * 4 * 2
    # With its conjugate half, the whole system again.
    whole = 2 * (basis * eigenvalues @ basis.conj().T).real
    np.testing.assert_allclose(whole[4:8, 4:8], legs_normal(4), atol=1e-12)


def test_constants_are_cached_and_read_only():
    assert diagonal_legs(8) is diagonal_legs(8)
    with pytest.raises(ValueError, match="read-only"):
        diagonal_legs(8).basis[0, 0] = 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_expm1_is_exact_near_zero_and_far(dtype):
    x = np.concatenate([-np.geomspace(1e-30, 80, 999), np.geomspace(1e-30, 20, 999), [0.0]])
    with jax.enable_x64(dtype == np.float64):
        got = expm1(jnp.asarray(x, dtype))
        slope = jax.vmap(jax.grad(lambda x: expm1(x)))(jnp.asarray(x, dtype))
    x, eps = x.astype(dtype).astype(np.float64), np.finfo(dtype).eps
    np.testing.assert_allclose(got, np.expm1(x), rtol=4 * eps, atol=0)
    np.testing.assert_allclose(slope, np.exp(x), rtol=8 * eps, atol=eps)
