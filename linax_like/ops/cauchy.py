"""The kernel of a DPLR state space from its generating function (S4).

The kernel K[l] = 2 Re C Āˡ B̄, cut after L positions, has at ω = exp(-iθ) the generating function

    K̂(θ) = Σ_{l<L} K[l] ωˡ = (C - ωᴸ C Āᴸ) (I - ω Ā)⁻¹ B̄ = e^{iθ/2} / 2 · C̃ (i s - c Δ/2 A)⁻¹ Δ B

with s = sin θ/2, c = cos θ/2. In this form it has no pole at ω = -1. The paper evaluates it where
ωᴸ = 1; here it is where ωᴸ = -1, in between: C̃ = C (I + Āᴸ) then cancels no digits, and no ω meets
the eigenvalues at 1 of a system that hardly decays. For A = Λ - Σⱼ Pⱼ Pⱼ* the resolvent's entries are
sums over the states, of Cauchy's kind, from which the Pⱼ are removed one after the other (Woodbury):

    k(u, v) = Σₙ uₙ vₙ / (i s - c Δ/2 λₙ)
    k(u, v) ← k(u, v) - κ k(u, P) k(P*, v) / (1 + κ k(P*, P))        κ = c Δ/2

Re k(P*, P) ≥ 0, so nothing is ever divided by less than 1.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .complex_pair import ComplexPair, conjugate, multiply, reciprocal, scale, subtract
from .dplr import dense, discretize, DPLR
from .long_conv import good_fft_size


_NODES = 64  # how many are computed at once: the sums' terms are features × states × nodes


def dplr_kernel(system: DPLR, weight: ComplexPair, length: int) -> Float[Array, "features length"]:
    """K, for C = `weight` of shape `(features, state)`."""
    size = 2 * good_fft_size(-(-length // 2))
    values = jax.lax.complex(*_generating_function(system, _cut(system, weight, size), size))
    # Of a signal of twice the length whose second half is the first one's negative.
    odd = jnp.stack([jnp.zeros_like(values), values], axis=-1).reshape(len(values), -1)
    return 2 * jnp.fft.irfft(odd, 2 * size)[:, :length]


def _cut(system: DPLR, weight: ComplexPair, length: int) -> ComplexPair:
    """C̃, by repeated squaring of Ā."""
    power = dense(discretize(system))
    row = start = jnp.concatenate([weight.real, -weight.imag], axis=-1)[:, None]
    while length:
        if length % 2:
            row = _matmul(row, power)
        length //= 2
        if length:
            power = _matmul(power, power)
    real, imag = jnp.split((start + row)[:, 0], 2, axis=-1)
    return ComplexPair(real, -imag)


def _generating_function(system: DPLR, weight: ComplexPair, length: int) -> ComplexPair:
    """K̂ at θ = π (2k + 1) / length below π, shape `(features, length / 2)`."""
    nodes = length // 2
    half_step = system.dt[:, None, None] / 2
    rows = _above(weight, conjugate(system.low_rank))
    columns = _above(scale(system.in_vector, system.dt[:, None]), system.low_rank)
    products = jax.tree.map(lambda part: part[:, :, None], rows)
    products = multiply(products, jax.tree.map(lambda part: part[:, None], columns))
    poles = scale(system.eigenvalues, half_step[..., 0])

    @jax.checkpoint
    def at(index: Float[Array, " nodes"]) -> ComplexPair:
        odd = 2 * index + 1
        sine = jnp.sin(math.pi / (2 * length) * odd)
        cosine = jnp.sin(math.pi / (2 * length) * (length - odd))
        sums = _sums(products, poles, sine, cosine)
        value = _remove_low_rank(sums, half_step * cosine)
        return multiply(ComplexPair(cosine / 2, sine / 2), value)

    padding = -nodes % _NODES
    index = jnp.arange(nodes + padding, dtype=half_step.dtype).reshape(-1, _NODES)
    spectrum = jax.lax.map(at, index)
    join = lambda part: jnp.moveaxis(part, 0, 1).reshape(part.shape[1], -1)[:, :nodes]
    return jax.tree.map(join, spectrum)


def _sums(
    products: ComplexPair,
    poles: ComplexPair,
    sine: Float[Array, " nodes"],
    cosine: Float[Array, " nodes"],
) -> ComplexPair:
    """Σₙ wₙ / (i s - c λₙ) over the states and their conjugates, for all of their products w.

    Two products of real matrices: with p and q the reciprocals for λₙ and for its conjugate,
    w p + w* q = Re w (p + q) + i Im w (p - q).
    """
    decay = -poles.real[:, None] * cosine[:, None]
    turn = poles.imag[:, None] * cosine[:, None]
    below, above = sine[:, None] - turn, sine[:, None] + turn
    p, q = 1 / (decay * decay + below * below), 1 / (decay * decay + above * above)
    total = decay * (p + q), -(below * p + above * q)
    difference = decay * (p - q), above * q - below * p
    weights = jnp.concatenate(products, axis=-1)

    def contract(*terms: Array) -> Array:
        both = jnp.concatenate(terms, axis=-1)
        return jnp.einsum("fuvn,fln->fuvl", weights, both, precision="highest")

    return ComplexPair(contract(total[0], -difference[1]), contract(total[1], difference[0]))


def _remove_low_rank(k: ComplexPair, factor: Float[Array, "features 1 nodes"]) -> ComplexPair:
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
