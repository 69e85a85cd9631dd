"""The recurrence in chunks, as products of matrices (https://arxiv.org/abs/2405.21060, section 6).

With ℓ the running sum of the log decays in a chunk, h the state that enters it and Q its length

    D[i,j] = exp(ℓ[i] - ℓ[j])   i ≥ j               S = C Bᵀ
    Y      = (S ⊙ D) X + exp(ℓ) ⊙ C hᵀ              h' = exp(ℓ[Q]) h + Xᵀ (exp(ℓ[Q] - ℓ) ⊙ B)

The gradient stores the states that enter the chunks, computes everything else again, and follows
the derivative of each product.

A CPU goes over the chunks, whose matrices then stay in its cache. An accelerator takes them all at
once, except for the states; its products have operands in the dtype of `x`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...precision import einsum, upcast
from ..decays import decays_of


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def chunked_ssd(x, log_decay, b, c, h0, chunk):
    """As `sequential_ssd`."""
    return _forward(x, log_decay, b, c, h0, chunk)[0]


def _forward(x, log_decay, b, c, h0, chunk):
    inputs = _in_chunks(x, log_decay, b, c, chunk)
    state, (entering, y) = _over_chunks(_advance, _by_group(h0, b), inputs)
    return (_by_head(state), _join(y, x)), (x, log_decay, b, c, h0, entering)


def _backward(chunk, residuals, cotangents):
    x, log_decay, b, c, h0, entering = residuals
    d_state, dy = cotangents
    inputs = _in_chunks(x, log_decay, b, c, chunk)
    dy = _split_heads(dy, b, inputs.x.shape[3])
    start = _by_group(d_state, b)
    d_state, (dx, d_log_decay, db, dc) = _over_chunks(
        _pull_back, start, (inputs, entering, dy), reverse=True
    )
    db, dc = (_join_time(jnp.moveaxis(z, 1, 2), like) for z, like in ((db, b), (dc, c)))
    return _join(dx, x), _join(d_log_decay, log_decay), db, dc, _by_head(d_state)


chunked_ssd.defvjp(_forward, _backward)


class Chunks(NamedTuple):
    """The inputs in chunks; `group` counts the heads that share b and c."""

    x: Array  # (chunks, groups, group, size, head)
    log_decay: Array  # (chunks, groups, group, size)
    b: Array  # (chunks, groups, size, state)
    c: Array  # (chunks, groups, size, state)


def _over_chunks(advance, state, inputs, reverse=False):
    """Folds `advance`, which takes any number of chunks at once."""
    operands = (state, inputs)

    def one_by_one(state, inputs):
        wide = jax.tree.map(upcast, inputs)

        def step(state, chunk):
            one = jax.tree.map(lambda z: z[None], chunk)
            state, outputs = advance(state, one)
            return state, jax.tree.map(lambda z: z[0], outputs)

        return jax.lax.scan(step, state, wide, reverse=reverse)

    return jax.lax.platform_dependent(*operands, cpu=one_by_one, default=advance)


def _advance(state, chunks: Chunks):
    """The state after the chunks; and the states that enter them, and their outputs."""
    x, b, c = chunks.x, chunks.b, chunks.c
    decays = decays_of(chunks.log_decay)
    scores = einsum("kgqn,kgsn->kgqs", c, b)
    within = einsum("kgmqs,kgmsp->kgmqp", _as(x, scores[:, :, None] * decays.between), x)
    added = einsum("kgmsp,kgsn->kgmpn", _as(x, decays.until_end[..., None] * x), b)

    def step(state, inputs):
        through, added = inputs
        return through[..., None, None] * state + added, state

    state, entering = jax.lax.scan(step, state, (decays.through, added))
    from_before = einsum("kgqn,kgmpn->kgmqp", c, _as(c, entering))
    return state, (entering, within + decays.since_start[..., None] * from_before)


def _pull_back(d_state, inputs: tuple[Chunks, Array, Array]):
    """The cotangent of the state before the chunks, and those of their inputs."""
    chunks, entering, dy = inputs
    x, b, c = chunks.x, chunks.b, chunks.c
    decays = decays_of(chunks.log_decay)
    # Y = (S ⊙ D) X
    scores = einsum("kgqn,kgsn->kgqs", c, b)[:, :, None]
    d_scores = einsum("kgmqp,kgmsp->kgmqs", dy, x) * decays.between
    dx = einsum("kgmqs,kgmqp->kgmsp", _as(x, scores * decays.between), dy)
    slope = jnp.tril(d_scores * scores, -1)  # by log D, whose diagonal is constant
    d_scores = _as(c, jnp.sum(d_scores, axis=2))
    dc = einsum("kgqs,kgsn->kgqn", d_scores, b)
    db = einsum("kgqs,kgqn->kgsn", d_scores, c)
    # Y = exp(ℓ) ⊙ C hᵀ
    dy = _as(x, decays.since_start[..., None] * dy)
    by_head = einsum("kgmqp,kgmpn->kgmqn", dy, _as(x, entering))
    dc = dc + jnp.sum(by_head, axis=2)
    d_entering = einsum("kgmqp,kgqn->kgmpn", dy, c)

    def step(d_state, inputs):
        through, d_entering = inputs
        return through[..., None, None] * d_state + d_entering, d_state

    d_state, d_leaving = jax.lax.scan(step, d_state, (decays.through, d_entering), reverse=True)
    # h' = exp(ℓ[Q]) h + Xᵀ (exp(ℓ[Q] - ℓ) ⊙ B)
    into = decays.until_end[..., None] * einsum("kgmpn,kgsn->kgmsp", _as(b, d_leaving), b)
    faded = _as(x, decays.until_end[..., None] * x)
    db = db + jnp.sum(einsum("kgmsp,kgmpn->kgmsn", faded, _as(x, d_leaving)), axis=2)
    # All of it by ℓ.
    d_until_end = jnp.sum(into * x, axis=-1).at[..., -1].set(0.0)
    d_through = decays.through * jnp.sum(d_leaving * entering, axis=(-1, -2))
    d_total = jnp.sum(slope, axis=-1) - jnp.sum(slope, axis=-2) - d_until_end
    d_total = d_total + jnp.sum(by_head * c[:, :, None], axis=-1)
    d_total = d_total.at[..., -1].add(d_through + jnp.sum(d_until_end, axis=-1))
    return d_state, (dx + into, jax.lax.cumsum(d_total, d_total.ndim - 1, reverse=True), db, dc)


def _in_chunks(x, log_decay, b, c, chunk) -> Chunks:
    """Equal chunks, as few as can be. What fills up the last leaves the state as it is."""
    size = -(-len(x) // -(-len(x) // chunk))
    return Chunks(
        _split_heads(x, b, size),
        _split_heads(log_decay, b, size),
        jnp.moveaxis(_split_time(b, size), 1, 2),
        jnp.moveaxis(_split_time(c, size), 1, 2),
    )


def _split_time(x, size):
    padded = jnp.pad(x, ((0, -len(x) % size), *((0, 0) for _ in x.shape[1:])))
    return padded.reshape(-1, size, *x.shape[1:])


def _split_heads(x, b, size):
    """(time, heads, …) → (chunks, groups, group, size, …)"""
    x = _split_time(x, size)
    return jnp.moveaxis(x.reshape(*x.shape[:2], b.shape[1], -1, *x.shape[3:]), 1, 3)


def _join(x, like):
    """The inverse of `_split_heads`."""
    x = jnp.moveaxis(x, 3, 1)
    return _join_time(x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], *x.shape[4:]), like)


def _join_time(x, like):
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[: len(like)].astype(like.dtype)


def _by_group(state, b):
    return state.reshape(b.shape[1], -1, *state.shape[1:])


def _by_head(state):
    return state.reshape(state.shape[0] * state.shape[1], *state.shape[2:])


def _as(like, x):
    return x.astype(like.dtype)
