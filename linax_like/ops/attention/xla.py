"""Attention in blocks of queries and keys (https://arxiv.org/abs/2112.05682).

Scores exist for one pair of blocks at a time. Going over the key blocks, a query block keeps the
highest score m, the sum of exp(s - m) and the equally weighted sum of values. The gradient stores
the output y and the log-sum-exp L, computes the weights again, and follows

    p = exp(s - L)    δ = Σ dy ⊙ y    dv = pᵀ dy    ds = p ⊙ (dy vᵀ - δ)    dq = ds k    dk = dsᵀ q

Pairs of blocks that causality or the window rule out are not visited; a short sequence is one
pair.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...precision import accumulation_dtype
from ..varying import vary_together
from .case import Rules


# Queries and keys in a block. A CPU wants the scores in its cache, an accelerator large products.
CPU_BLOCK = 128
ACCELERATOR_BLOCK = 512
# A block of several holds a multiple of this: 127 keys take a CPU almost twice as long as 128.
MULTIPLE = 16


def forward(q, k, v, segment_ids, mask, spans, rules: Rules):
    """The output in the dtype of `q`, and the log-sum-exp of every query, inf if it sees no key."""
    y, log_sum = _by_platform(_forward, (q, k, v, segment_ids, mask, spans), rules)
    return y.astype(q.dtype), log_sum


def backward(q, k, v, segment_ids, mask, spans, y, log_sum, dy, rules: Rules):
    """The gradients of q, k and v, given what `forward` returned."""
    delta = jnp.sum(dy.astype(log_sum.dtype) * y.astype(log_sum.dtype), axis=-1)
    operands = (q, k, v, segment_ids, mask, spans, dy, log_sum, delta)
    gradients = _by_platform(_backward, operands, rules)
    return tuple(g.astype(x.dtype) for g, x in zip(gradients, (q, k, v), strict=True))


def _by_platform(compute, operands, rules):
    """Runs `compute` with the block size that suits the platform."""
    on_cpu = partial(compute, rules=rules, block=CPU_BLOCK)
    on_accelerator = partial(compute, rules=rules, block=ACCELERATOR_BLOCK)
    return jax.lax.platform_dependent(*operands, cpu=on_cpu, default=on_accelerator)


class Blocks(NamedTuple):
    """The operands in blocks; `group` counts the query heads that share a kv head."""

    q: Array  # (blocks, kv_heads, group, queries, head)
    k: Array  # (blocks, kv_heads, keys, head)
    v: Array  # (blocks, kv_heads, keys, value)
    q_ids: Array | None  # (blocks, queries)
    k_ids: Array | None  # (blocks, keys)
    mask: Array | None  # (blocks, keys)
    q_spans: Array | None  # (blocks, queries)
    k_spans: Array | None  # (blocks, keys)


def _forward(q, k, v, segment_ids, mask, spans, *, rules, block):
    """The output and the log-sum-exp of every query, in at least float32."""
    blocks = _in_blocks(q, k, v, segment_ids, mask, spans, rules, block)
    dtype = accumulation_dtype(q.dtype)
    first = jnp.zeros((), jnp.int32)
    if rules.offset > 0 and blocks.mask is not None:  # a cache may be empty so far
        first = jnp.argmax(jnp.any(blocks.mask, axis=-1))

    def over_keys(i):
        def add_block(j, carry):
            highest, total, y = carry
            s, _ = _scores(blocks, i, j, rules)
            new = jnp.maximum(highest, jnp.max(s, axis=-1))
            weights, shrink = jnp.exp(s - new[..., None]), jnp.exp(highest - new)
            values = _dot("kgts,ksd->kgtd", weights.astype(v.dtype), blocks.v[j])
            total = shrink * total + jnp.sum(weights, axis=-1)
            return new, total, shrink[..., None] * y + values

        rows = jnp.zeros(blocks.q.shape[1:-1], dtype)
        y = jnp.zeros((*rows.shape, v.shape[-1]), dtype)
        start = vary_together((rows + jnp.finfo(dtype).min, rows, y), q)[0]
        low, high = _seen_blocks(blocks, i, rules)
        highest, total, y = jax.lax.fori_loop(jnp.maximum(low, first), high, add_block, start)
        alone = total == 0  # a query without a key
        total = jnp.where(alone, 1.0, total)
        return y / total[..., None], jnp.where(alone, jnp.inf, highest + jnp.log(total))

    y, log_sum = jax.lax.map(over_keys, jnp.arange(len(blocks.q)))
    return _join_queries(y, len(q)), _join_queries(log_sum, len(q))


def _backward(q, k, v, segment_ids, mask, spans, dy, log_sum, delta, *, rules, block):
    """The gradients of q, k and v, in at least float32."""
    blocks = _in_blocks(q, k, v, segment_ids, mask, spans, rules, block)
    dtype = accumulation_dtype(q.dtype)
    size, kv_heads = blocks.q.shape[-2], k.shape[1]
    rows = (dy.astype(v.dtype), log_sum[..., None], delta[..., None])
    rows = tuple(_query_blocks(x, size, kv_heads) for x in rows)

    def over_keys(carry, inputs):
        i, dy, log_sum, delta = inputs

        def add_block(j, carry):
            dq, dk, dv = carry
            s, slope = _scores(blocks, i, j, rules)
            p = jnp.exp(s - log_sum)
            ds = p * (_dot("kgtd,ksd->kgts", dy, blocks.v[j]) - delta) * slope
            p, ds = p.astype(v.dtype), ds.astype(q.dtype)
            dv = dv.at[j].add(_dot("kgts,kgtd->ksd", p, dy))
            dk = dk.at[j].add(_dot("kgts,kgtd->ksd", ds, blocks.q[i]))
            return dq + _dot("kgts,ksd->kgtd", ds, blocks.k[j]), dk, dv

        start = (vary_together(jnp.zeros(blocks.q.shape[1:], dtype), q)[0], *carry)
        dq, *carry = jax.lax.fori_loop(*_seen_blocks(blocks, i, rules), add_block, start)
        return tuple(carry), dq

    zeros = (jnp.zeros(blocks.k.shape, dtype), jnp.zeros(blocks.v.shape, dtype))
    start = vary_together(zeros, q)[0]
    (dk, dv), dq = jax.lax.scan(over_keys, start, (jnp.arange(len(blocks.q)), *rows))
    return _join_queries(dq, len(q)), _join_keys(dk, len(k)), _join_keys(dv, len(k))


def _scores(blocks, i, j, rules):
    """The scores of query block `i` and key block `j`, -inf if not seen, and their slope."""
    s = _dot("kgtd,ksd->kgts", blocks.q[i], blocks.k[j]) * rules.scale
    slope = rules.scale
    if rules.soft_cap is not None:
        capped = jnp.tanh(s / rules.soft_cap)
        s, slope = rules.soft_cap * capped, rules.scale * (1 - capped**2)
    queries, keys = s.shape[-2:]
    seen = rules.visible(i * queries + jnp.arange(queries), j * keys + jnp.arange(keys))
    if blocks.q_spans is not None and blocks.k_spans is not None:
        q_spans, k_spans = blocks.q_spans[i][:, None], blocks.k_spans[j][None, :]
        seen = seen | ((q_spans == k_spans) & (k_spans >= 0))
    if blocks.q_ids is not None and blocks.k_ids is not None:
        seen = seen & (blocks.q_ids[i][:, None] == blocks.k_ids[j][None, :])
    if blocks.mask is not None:
        seen = seen & blocks.mask[j][None, :]
    return jnp.where(seen, s, -jnp.inf), slope


def _seen_blocks(blocks, i, rules) -> tuple[Array, Array]:
    """The first key block that query block `i` sees, and the one after the last."""
    return rules.seen_blocks(i, blocks.q.shape[-2], blocks.k.shape[-2], len(blocks.k))


def _in_blocks(q, k, v, segment_ids, mask, spans, rules, block):
    queries = _block_size(len(q), block)
    keys = _block_size(len(k), block * block // queries)  # few queries, as in decoding: more keys
    if len(k) % keys and mask is None:
        mask = jnp.ones((len(k),), bool)  # what fills up the last block is hidden
    q_ids = None if segment_ids is None else segment_ids[rules.offset :]
    q_spans = None if spans is None else spans[rules.offset :]
    return Blocks(
        _query_blocks(q, queries, k.shape[1]),
        jnp.moveaxis(_split(k, keys), 1, 2),
        jnp.moveaxis(_split(v, keys), 1, 2),
        None if q_ids is None else _split(q_ids, queries),
        None if segment_ids is None else _split(segment_ids, keys),
        None if mask is None else _split(mask, keys),
        None if q_spans is None else _split(q_spans, queries),
        None if spans is None else _split(spans, keys),
    )


def _block_size(length, largest):
    """The size of equal blocks, as few as can be; of several, a `MULTIPLE`."""
    count = -(-length // largest)
    size = -(-length // count)
    return size if count == 1 else -(-size // MULTIPLE) * MULTIPLE


def _split(x, size):
    padded = jnp.pad(x, ((0, -len(x) % size), *((0, 0) for _ in x.shape[1:])))
    return padded.reshape(-1, size, *x.shape[1:])


def _query_blocks(x, size, kv_heads):
    blocks = _split(x, size)
    grouped = blocks.reshape(*blocks.shape[:2], kv_heads, -1, x.shape[-1])
    return jnp.moveaxis(grouped, 1, 3)


def _join_queries(x, time):
    x = jnp.moveaxis(x, 3, 1)
    # One pair of axes at a time: all that JAX can do where the batch is explicitly sharded.
    x = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:time]
    return x.reshape(time, x.shape[1] * x.shape[2], *x.shape[3:])


def _join_keys(x, time):
    x = jnp.moveaxis(x, 2, 1)
    return x.reshape(-1, *x.shape[2:])[:time]


def _dot(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=accumulation_dtype(a.dtype))
