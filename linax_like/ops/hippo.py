"""HiPPO-LegS, a state that remembers its whole past in Legendre polynomials
(Gu et al., 2020, https://arxiv.org/abs/2008.07669), and its diagonal form
(Gu, Gupta et al., 2022, https://arxiv.org/abs/2206.11893).

    h'(t) = A h(t) + B u(t)

    A[n, k] = -√(2n+1) √(2k+1)  for n > k,   -(n+1)  for n = k,   0  for n < k
    B[n] = √(2n+1)

A + P Pᵀ with P[n] = √(n + 1/2) is normal, so a unitary V diagonalises it: A + P Pᵀ = V diag(λ) V*.

LegT and FouT remember a window of the last unit of time, in Legendre polynomials and in sinusoids
(Gu et al., 2023, https://arxiv.org/abs/2206.12037); A plus a matrix of rank 2, or 1, is normal too.

Constants, computed with NumPy in float64 once per size. The arrays are read-only.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


Real = NDArray[np.float64]
Complex = NDArray[np.complex128]


class DiagonalHippo(NamedTuple):
    """The normal part of HiPPO-LegS in its eigenbasis.

    - `eigenvalues`: λ, of real part -1/2, by ascending imaginary part.
    - `basis`: V, the eigenvectors as columns.
    - `in_vector`: V* B.
    """

    eigenvalues: Complex
    basis: Complex
    in_vector: Complex


@lru_cache
def legs(size: int) -> tuple[Real, Real]:
    """A of shape `(size, size)`, and B of shape `(size,)`."""
    n = np.arange(size, dtype=np.float64)
    root = np.sqrt(2 * n + 1)
    matrix = -np.tril(np.outer(root, root), -1) - np.diag(n + 1)
    return _frozen(matrix), _frozen(root)


@lru_cache
def legs_low_rank(size: int) -> Real:
    """P, for which A + P Pᵀ is normal."""
    return _frozen(np.sqrt(np.arange(size, dtype=np.float64) + 0.5))


@lru_cache
def legs_normal(size: int) -> Real:
    """A + P Pᵀ: -1/2 on the diagonal, and skew-symmetric beside it."""
    low_rank = legs_low_rank(size)
    return _frozen(legs(size)[0] + np.outer(low_rank, low_rank))


@lru_cache
def diagonal_legs(size: int) -> DiagonalHippo:
    """The normal part. The first half of its eigenvalues has negative frequencies."""
    normal = legs_normal(size)
    skew = normal - np.diag(np.diag(normal))
    frequencies, basis = np.linalg.eigh(-1j * skew)
    eigenvalues = np.mean(np.diag(normal)) + 1j * frequencies if size else frequencies + 0j
    in_vector = basis.conj().T @ legs(size)[1]
    return DiagonalHippo(_frozen(eigenvalues), _frozen(basis), _frozen(in_vector))


class LowRankHippo(NamedTuple):
    """A = diag(λ) - P* P in the eigenbasis of its normal part, one of each conjugate pair of states.

    - `eigenvalues`: λ, of negative imaginary part, shape `(size / 2,)`.
    - `low_rank`: P, shape `(rank, size / 2)`.
    - `in_vector`: B, shape `(size / 2,)`.
    """

    eigenvalues: Complex
    low_rank: Complex
    in_vector: Complex


@lru_cache
def low_rank_legs(size: int) -> LowRankHippo:
    return _diagonalise(*legs(size), legs_low_rank(size)[None])


@lru_cache
def legt(size: int) -> tuple[Real, Real]:
    """A[n, k] = -√(2n+1) √(2k+1) / 2 for n ≥ k, and times (-1)ⁿ⁻ᵏ for n < k; B[n] = √(2n+1) / 2."""
    n = np.arange(size)
    root = np.sqrt(2.0 * n + 1)
    sign = np.where(n[:, None] < n, (-1.0) ** (n[:, None] - n), 1.0)
    return _frozen(-0.5 * sign * np.outer(root, root)), _frozen(root / 2)


@lru_cache
def low_rank_legt(size: int) -> LowRankHippo:
    """P has a row for the even polynomials, and one for the odd ones."""
    n = np.arange(size)
    parity = np.stack([n % 2 == 0, n % 2 == 1])
    return _diagonalise(*legt(size), parity * np.sqrt(n + 0.5))


@lru_cache
def fout(size: int) -> tuple[Real, Real]:
    """A turns each sinusoid's sine and cosine into each other, and forgets P Pᵀ; B = √2 P.

    The constant comes first, then sine and cosine of 2πk by pairs; the last state is not driven.
    """
    pairs = size // 2
    low_rank = np.zeros(size)
    low_rank[::2] = 2
    low_rank[:1] = np.sqrt(2)
    turn = np.zeros((size, size))
    sine, k = 2 * np.arange(1, pairs) - 1, np.arange(1, pairs)
    turn[sine, sine + 1], turn[sine + 1, sine] = -2 * np.pi * k, 2 * np.pi * k
    return _frozen(turn - np.outer(low_rank, low_rank)), _frozen(np.sqrt(2) * low_rank)


@lru_cache
def low_rank_fout(size: int) -> LowRankHippo:
    """In closed form: the two states that do not turn, first and last, are the pair of λ = 0."""
    k = np.arange(size // 2)
    low_rank = np.where(k == 0, 1.0, np.sqrt(2)) + 0j
    return LowRankHippo(
        _frozen(-2j * np.pi * k), _frozen(low_rank[None]), _frozen(np.sqrt(2) * low_rank)
    )


@lru_cache
def block_diagonal_legs(
    state_dim: int, blocks: int = 1, conjugate_half: bool = False
) -> tuple[Complex, Complex]:
    """Eigenvalues and basis of `blocks` equal systems side by side.

    - `conjugate_half`: keep one of each conjugate pair, the one of negative frequency.

    Returns λ of shape `(kept,)` and V of shape `(state_dim, kept)`.
    """
    size = state_dim // blocks
    kept = size // 2 if conjugate_half else size
    eigenvalues, basis, _ = diagonal_legs(size)
    return (
        _frozen(np.tile(eigenvalues[:kept], blocks)),
        _frozen(np.kron(np.eye(blocks), basis[:, :kept])),
    )


def _diagonalise(matrix: Real, vector: Real, low_rank: Real) -> LowRankHippo:
    """From A, B and the real P for which A + Pᵀ P is normal."""
    half = len(vector) // 2
    normal = matrix + low_rank.T @ low_rank
    skew = normal - np.diag(np.diag(normal))
    frequencies, basis = np.linalg.eigh(-1j * skew)
    eigenvalues = np.mean(np.diag(normal)) + 1j * frequencies
    inverse = basis.conj().T[:half]
    rotated = (inverse @ low_rank.T).T, inverse @ vector
    return LowRankHippo(_frozen(eigenvalues[:half]), *map(_frozen, rotated))


def _frozen(array: NDArray) -> NDArray:
    array.setflags(write=False)
    return array
