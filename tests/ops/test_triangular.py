"""The inverse of a unit triangular matrix, against NumPy's in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_triangular

from linax_like.ops.triangular import (
    inverse_for_solve,
    unit_triangular_inverse,
    unit_triangular_solve,
)


inverse = jax.jit(unit_triangular_inverse)


def exact(lower):
    """By substitution, row by row."""
    rows = np.eye(lower.shape[-1]) + np.zeros(lower.shape)
    for i in range(lower.shape[-1]):
        rows[..., i, :] -= np.einsum("...j,...jn->...n", lower[..., i, :i], rows[..., :i, :])
    return rows


@pytest.mark.parametrize("size", [1, 2, 17, 64, 67, 130])
def test_any_size(size):
    """Nothing on the diagonal or above it matters."""
    lower = np.random.default_rng(size).standard_normal((2, 3, size, size)) / np.sqrt(size)
    lower[..., *np.triu_indices(size)] = np.nan
    with jax.enable_x64():
        np.testing.assert_allclose(inverse(lower), exact(lower), rtol=1e-12, atol=1e-12)


def test_accelerators_compute_the_same():
    """Compiled here for the CPU, and batched twice."""
    lower = np.random.default_rng(0).standard_normal((2, 3, 2, 35, 35)) / 6
    with jax.enable_x64(), pytest.MonkeyPatch.context() as patch:
        choose = lambda *operands, cpu, default: default(*operands)
        patch.setattr(jax.lax, "platform_dependent", choose)
        got = jax.jit(jax.vmap(jax.vmap(lambda x: unit_triangular_inverse(x))))(lower)
    np.testing.assert_allclose(got, exact(lower), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.03, 0.3, 10.0])
def test_accuracy_with_unit_keys(spread, beta):
    """Float32: at most a digit fewer than by substitution, up to keys that are nearly the same."""
    rng = np.random.default_rng(0)
    keys = np.ones(32) + spread * rng.standard_normal((8, 64, 32))
    keys = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    lower = np.float32(beta * keys @ np.moveaxis(keys, -1, -2))
    expected = exact(np.float64(lower))
    error = np.abs(inverse(lower) - expected).max()
    one = np.broadcast_to(np.eye(64, dtype=np.float32), lower.shape)
    substitution = solve_triangular(lower, one, lower=True, unit_diagonal=True)
    assert error <= max(10 * np.abs(substitution - expected).max(), 1e-6)


def test_gradients():
    """Of a system by central differences, and the inverse's as that of a system with the identity."""
    rng = np.random.default_rng(0)
    lower, weight, right = rng.standard_normal((3, 11, 11)) / 3
    value = lambda lower, right: np.sum(exact(lower) @ right * weight)

    def loss(lower, right):
        return jnp.sum(unit_triangular_solve(lower, inverse_for_solve(lower), right) * weight)

    other = lambda lower: jnp.sum(unit_triangular_inverse(lower) * weight)
    with jax.enable_x64():
        got, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(lower, right)
        d_system = jax.jit(jax.grad(loss))(lower, jnp.eye(11))
        np.testing.assert_allclose(
            jax.jit(jax.grad(other))(lower), d_system, rtol=1e-10, atol=1e-12
        )
    np.testing.assert_allclose(got, value(lower, right), rtol=1e-12)
    for index in np.ndindex(11, 11):
        step = np.zeros_like(lower)
        step[index] = 1e-6
        d_lower = (value(lower + step, right) - value(lower - step, right)) / 2e-6
        d_right = (value(lower, right + step) - value(lower, right - step)) / 2e-6
        np.testing.assert_allclose(grads[0][index], d_lower, atol=1e-6)
        np.testing.assert_allclose(grads[1][index], d_right, atol=1e-6)


def test_the_gradient_stores_the_inverse_alone():
    lower = jnp.zeros((3, 24, 24))
    _, pull = jax.vjp(unit_triangular_inverse, lower)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) == lower.size


def test_bfloat16_comes_out_in_float32():
    lower = np.tril(np.ones((9, 9)), -1) / 4
    got = inverse(jnp.asarray(lower, jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact(lower), rtol=1e-6, atol=1e-6)
