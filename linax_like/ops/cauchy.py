"""The kernel of a DPLR state space from its generating function (S4).

The kernel K[l] = 2 Re C Āˡ B̄, cut after L positions, has the generating function

    K̂(ω) = Σ_{l<L} K[l] ωˡ = (C - ωᴸ C Āᴸ) (I - ω Ā)⁻¹ B̄ = (1 + z) / 2 · C̃ (z - Δ/2 A)⁻¹ Δ B

with z = (1 - ω) / (1 + ω). At the L-th roots of unity it is K's Fourier transform; at r times those
it is that of K[l] rˡ. With r a little below 1, z keeps its distance from the imaginary axis, where
the poles of Λ are: they are not those of A, and what is large there would have to cancel again.

For A = Λ - Σⱼ Pⱼ Pⱼ* the resolvent's entries are sums over the states, of Cauchy's kind, from which
the Pⱼ are removed one after the other (Woodbury):

    k(u, v) = Σₙ uₙ vₙ / (z - Δ/2 λₙ)
    k(u, v) ← k(u, v) - κ k(u, P) k(P*, v) / (1 + κ k(P*, P))        κ = Δ/2

Re k(P*, P) ≥ 0, so nothing is ever divided by less than 1.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .complex_pair import ComplexPair, conjugate, multiply, reciprocal, scale, subtract
from .dplr import dense, discretize, DPLR
from .fft_size import good_fft_size


_NODES = 64  # how many are computed at once: the sums' terms are features × states × nodes
_LOG_SHRINKAGE = 2.0  # -log rᴸ


def dplr_kernel(system: DPLR, weight: ComplexPair, length: int) -> Float[Array, "features length"]:
    """K, for C = `weight` of shape `(features, state)`. Its gradient computes it again."""
    size = good_fft_size(length)
    cut = jax.checkpoint(_cut, static_argnums=2)(system, weight, size)
    values = _generating_function(system, cut, size)
    shrunk = jnp.fft.irfft(jax.lax.complex(*values), size)[:, :length]
    index = jnp.arange(length, dtype=shrunk.dtype)
    return shrunk * jnp.exp(_LOG_SHRINKAGE / size * index)


def _cut(system: DPLR, weight: ComplexPair, length: int) -> ComplexPair:
    """C̃ = C (I - rᴸ Āᴸ), by repeated squaring of Ā."""
    power = dense(discretize(system))
    row = start = jnp.concatenate([weight.real, -weight.imag], axis=-1)[:, None]
    while length:
        if length % 2:
            row = _matmul(row, power)
        length //= 2
        if length:
            power = _matmul(power, power)
    cut = start - math.exp(-_LOG_SHRINKAGE) * row
    real, imag = jnp.split(cut[:, 0], 2, axis=-1)
    return ComplexPair(real, -imag)


def _generating_function(system: DPLR, weight: ComplexPair, length: int) -> ComplexPair:
    """K̂ at ω = r exp(-2πi k / length), for the first half of them and the middle."""
    nodes = length // 2 + 1
    half_step = system.dt[:, None] / 2
    rows = _above(weight, conjugate(system.low_rank))
    columns = _above(scale(system.in_vector, 2 * half_step), system.low_rank)
    products = jax.tree.map(lambda part: part[:, :, None], rows)
    products = multiply(products, jax.tree.map(lambda part: part[:, None], columns))
    poles = scale(system.eigenvalues, half_step)

    @jax.checkpoint
    def at(index: Float[Array, " nodes"]) -> ComplexPair:
        z = _transformed(index, length)
        k = _remove_low_rank(_sums(products, poles, z), half_step[..., None])
        return multiply(ComplexPair((1 + z.real) / 2, z.imag / 2), k)

    padding = -nodes % _NODES
    index = jnp.arange(nodes + padding, dtype=half_step.dtype).reshape(-1, _NODES)
    values = jax.lax.map(at, index)
    join = lambda part: jnp.moveaxis(part, 0, 1).reshape(part.shape[1], -1)[:, :nodes]
    return jax.tree.map(join, values)


def _transformed(index: Float[Array, " nodes"], length: int) -> ComplexPair:
    """z = tanh(½ log 1/ω) of the nodes of these numbers."""
    sine = jnp.sin(math.pi / length * index)
    cosine = jnp.sin(math.pi / (2 * length) * (length - 2 * index))  # exact where it is small
    shift = _LOG_SHRINKAGE / length
    scale = 1 / (cosine * cosine + math.sinh(shift / 2) ** 2)
    return ComplexPair(math.sinh(shift) / 2 * scale, sine * cosine * scale)


def _sums(products: ComplexPair, poles: ComplexPair, z: ComplexPair) -> ComplexPair:
    """Σₙ wₙ / (z - poleₙ) over the states and their conjugates, for all of their products w.

    Two products of real matrices: with p and q the reciprocals for a pole and for its conjugate,
    w p + w* q = Re w (p + q) + i Im w (p - q).
    """
    real = z.real[:, None] - poles.real[:, None]
    below, above = z.imag[:, None] - poles.imag[:, None], z.imag[:, None] + poles.imag[:, None]
    p, q = 1 / (real * real + below * below), 1 / (real * real + above * above)
    total = real * (p + q), -(below * p + above * q)
    difference = real * (p - q), above * q - below * p
    weights = jnp.concatenate(products, axis=-1)

    def contract(*terms: Array) -> Array:
        both = jnp.concatenate(terms, axis=-1)
        return jnp.einsum("fuvn,fln->fuvl", weights, both, precision="highest")

    return ComplexPair(contract(total[0], -difference[1]), contract(total[1], difference[0]))


def _remove_low_rank(k: ComplexPair, factor: Float[Array, "features 1 1"]) -> ComplexPair:
    """k(C, B), from the sums of all products at the diagonal."""
    at = lambda i, j: jax.tree.map(lambda part: part[:, i, j], k)
    for j in range(1, k.real.shape[1]):
        pivot = scale(at(slice(j, j + 1), j), factor)
        pivot = reciprocal(ComplexPair(1 + pivot.real, pivot.imag))
        column = scale(multiply(at(slice(None), j), pivot), factor)
        column, row = (
            jax.tree.map(lambda part, axis=axis: jnp.expand_dims(part, axis), pair)
            for pair, axis in ((column, 2), (at(j, slice(None)), 1))
        )
        k = subtract(k, multiply(column, row))
    return at(0, 0)


def _above(first: ComplexPair, rest: ComplexPair) -> ComplexPair:
    """`(features, 1 + rank, state)`."""
    return jax.tree.map(lambda x, y: jnp.concatenate([x[:, None], y], axis=1), first, rest)


def _matmul(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision="highest")
