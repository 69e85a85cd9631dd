"""cuDNN's flash attention, as `jax.nn.dot_product_attention` calls it.

JAX offers its gradient, but not what the gradient needs to know of the forward pass. So the
backward rule runs the forward kernel again; XLA merges the two where a remat does so as well.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from ..varying import vary_together
from .case import Case, Rules


# With more elements of queries at once the gradient is wrong, without a sign of it. Keys, of which
# nothing is known, are held to the same.
MAX_SIZE = 2**31 - 1


def obstacle(case: Case) -> str | None:
    """Why cuDNN cannot take the case, in a sentence."""
    q, k, v, rules = case.q, case.k, case.v, case.rules
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN computes in bfloat16 and float16, not {q.dtype}."
    if rules.soft_cap is not None:
        return "cuDNN has no soft cap."
    if rules.spans:
        return "cuDNN would need a mask of every query and key for `spans`."
    if case.segment_ids is not None:
        return "cuDNN would need a mask of every query and key for `segment_ids`."
    if case.masked and not case.padding_last:
        return "cuDNN hides keys only behind the others, which `padding_last` would promise."
    if rules.window is not None and not rules.causal:
        return "cuDNN has only causal windows."
    if rules.causal and rules.offset:
        return f"cuDNN puts the first query at the first key: {q.shape[0]} queries, {k.shape[0]} keys."
    if k.shape != v.shape:
        return f"cuDNN wants keys and values of one shape, not {k.shape} and {v.shape}."
    if _size(q, k) > MAX_SIZE:
        return "cuDNN's gradient is wrong for 2^31 elements or more."
    return _refusal(case)


def _size(*arrays) -> int:
    return max(math.prod(x.shape) for x in arrays)


def _refusal(case: Case) -> str | None:
    """What JAX has against it: no cuDNN or an old one, the device, the size of a head."""
    mask = jax.ShapeDtypeStruct(case.k.shape[:1], bool) if case.masked else None
    arrays = (case.q, case.k, case.v, mask)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), arrays)
    try:
        jax.eval_shape(partial(_attention, rules=case.rules), *batch)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"{str(error).rstrip('.')}."
    return None


def forward(q, k, v, segment_ids, mask, spans, rules: Rules):
    """As `xla.forward`, with nothing in the place of the log-sum-exp."""
    y = _over_examples(partial(_attention, rules=rules), q, k, v, mask)
    return y, vary_together(jnp.zeros(y.shape[:-1], jnp.float32), y)[0]


def backward(q, k, v, segment_ids, mask, spans, y, log_sum, dy, rules: Rules):
    """As `xla.backward`."""

    def gradient(q, k, v, mask, dy):
        _, pullback = jax.vjp(partial(_attention, mask=mask, rules=rules), q, k, v)
        return pullback(dy)

    return _over_examples(gradient, q, k, v, mask, dy)


def _attention(q, k, v, mask, rules):
    """Attention of a batch of examples."""
    left = None if rules.window is None or rules.window >= k.shape[1] else rules.window - 1
    # Of no key at all cuDNN makes what it likes. The first one, if hidden, is blank: it gives 0.
    length = None if mask is None else jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=rules.scale,
        is_causal=rules.causal,
        local_window_size=None if left is None else (left, 0),
        key_value_seq_lengths=length,
        implementation="cudnn",
    )


def _over_examples(compute, *operands):
    """What `compute` of a batch gives for one example. The axes of `vmap` become that batch.

    So the size of all that cuDNN computes at once is known, whatever is mapped over.
    """

    @custom_vmap
    def over_batch(*operands):
        return _in_parts(compute, operands)

    @over_batch.def_vmap
    def _(size, batched, *operands):
        def merge(x, batched):
            x = x if batched else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(size * x.shape[1], *x.shape[2:])

        y = over_batch(*jax.tree.map(merge, operands, tuple(batched)))
        y = jax.tree.map(lambda y: y.reshape(size, -1, *y.shape[1:]), y)
        return y, jax.tree.map(lambda _: True, y)

    y = over_batch(*jax.tree.map(lambda x: x[None], operands))
    return jax.tree.map(lambda y: y[0], y)


def _in_parts(compute, operands):
    """`compute` of a batch, in as few equal parts as keep each below the size of `MAX_SIZE`.

    A part takes its examples from all over the batch, so that every device has its share of it.
    """
    batch, size = len(operands[0]), _size(*operands[:2])
    parts = next(
        n for n in range(1, max(batch, 1) + 1) if batch % n == 0 and size // n <= MAX_SIZE
    )
    if parts == 1:
        return compute(*operands)
    split = jax.tree.map(
        lambda x: x.reshape(batch // parts, parts, *x.shape[1:]).swapaxes(0, 1), operands
    )
    y = jax.lax.map(lambda part: compute(*part), split)
    return jax.tree.map(lambda y: y.swapaxes(0, 1).reshape(batch, *y.shape[2:]), y)
