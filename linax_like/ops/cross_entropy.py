"""Cross-entropy of tokens or classes, in nats.

    l[t] = log Σ_v exp z[t,v] - z[t,label]        z = W x, or c tanh(W x / c)

Over a large vocabulary the logits z are what fills the memory. `linear_cross_entropy` computes them
chunk by chunk, and with them at once the gradient, so that they are neither kept nor computed again
(https://arxiv.org/abs/2411.09009, https://arxiv.org/abs/2410.10989). The z-loss, a multiple of the
squared log of the normaliser, keeps it near one (https://arxiv.org/abs/2204.02311).
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from ..precision import accumulation_dtype, einsum, upcast, wide
from ..types import Scalar
from .varying import vary_together


_LOGITS = 1 << 26  # at a time, unless a chunk is given


class SummedLoss(NamedTuple):
    """Sums over the labels that count.

    - `objective`: what is minimised: the losses and the z-losses. It alone has a gradient.
    - `loss`: the losses, in nats.
    - `correct`: how often the label is the most probable class.
    """

    objective: Scalar
    loss: Scalar
    correct: Scalar


class _Options(NamedTuple):
    """What does not change while a program runs. Padded classes are those from `classes` on."""

    classes: int
    chunk: int
    z_loss: float
    soft_cap: float | None


def cross_entropy(
    logits: Float[Array, "*shape classes"], labels: Integer[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`-log softmax(logits)[labels]`, in at least float32, and NaN for a label that is no class.

    The label's logit is picked by a masked sum, which partitions over any mesh.
    """
    logits, labels = upcast(logits), wide(labels)
    chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
    label_logit = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    known = (labels >= 0) & (labels < logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(known, label_logit, jnp.nan)


def linear_cross_entropy(
    x: Float[Array, "*batch time features"],
    weight: Float[Array, "classes features"],
    labels: Integer[Array, "*batch time"],
    *,
    mask: Bool[Array, "*batch time"] | None = None,
    vocab_size: int | None = None,
    chunk: int | None = None,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
) -> SummedLoss:
    """The summed cross-entropy of `x @ weight.T`, of which only a chunk is ever held.

    Give it a whole batch: under `jax.vmap` every example gets a gradient of `weight` of its own. A
    label outside the vocabulary gives NaN, where the mask counts it.

    - `mask`: False where a label does not count, whatever it and `x` hold.
    - `vocab_size`: how many of the rows of `weight` are classes; those after them are padding.
    - `chunk`: positions at a time, all examples together; by default what makes 2²⁶ logits.
    - `z_loss`: weight of the z-loss.
    - `soft_cap`: bound of the logits, `soft_cap · tanh(logits / soft_cap)`.

    **Raises:** `ValueError` if `chunk`, `vocab_size` or `soft_cap` is out of its range.
    """
    classes = len(weight) if vocab_size is None else vocab_size
    chunk = max(1, _LOGITS // len(weight)) if chunk is None else chunk
    _check(len(weight), classes, chunk, z_loss, soft_cap)
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    options = _Options(classes, chunk, z_loss, soft_cap)
    return _summed_loss(options, *vary_together(x, weight, wide(labels), mask))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed_loss(options: _Options, x, weight, labels, mask) -> SummedLoss:
    def add(total, part):
        return jax.tree.map(jnp.add, total, _chunk(options, weight, *part)[0]), None

    parts, total = _cut(options, x, labels, mask), _zeros(x, weight)
    total, parts = vary_together(total, parts)
    return jax.lax.scan(add, total, parts)[0]


def _forward(options: _Options, x, weight, labels, mask):
    """The sums, and as residuals the gradients themselves."""

    def add(carry, part):
        total, weight_gradient = carry
        sums, logit_gradient = _chunk(options, weight, *part)
        here = _outer_sum(logit_gradient, part[0], weight)
        x_gradient = einsum("...v,vd->...d", logit_gradient, weight.astype(x.dtype))
        total = jax.tree.map(jnp.add, total, sums)
        return (total, weight_gradient + here), x_gradient.astype(x.dtype)

    parts = _cut(options, x, labels, mask)
    start = (_zeros(x, weight), jnp.zeros_like(weight, _zeros(x, weight).loss.dtype))
    start, parts = vary_together(start, parts)
    (total, weight_gradient), x_gradients = jax.lax.scan(add, start, parts)
    return total, (_join(x_gradients, x), weight_gradient.astype(weight.dtype))


def _backward(options: _Options, gradients, cotangent: SummedLoss):
    x_gradient, weight_gradient = gradients
    scaled = [g * cotangent.objective.astype(g.dtype) for g in (x_gradient, weight_gradient)]
    return *scaled, None, None


_summed_loss.defvjp(_forward, _backward)


def _chunk(options: _Options, weight, x, labels, mask):
    """The sums of a chunk, and the objective's gradient by its logits."""
    logits, slope = einsum("...d,vd->...v", x, weight.astype(x.dtype)), 1.0
    if options.soft_cap is not None:
        bounded = jnp.tanh(logits / options.soft_cap)
        logits, slope = options.soft_cap * bounded, 1 - bounded**2
    number = jnp.arange(logits.shape[-1])
    if options.classes < logits.shape[-1]:
        logits = jnp.where(number < options.classes, logits, -jnp.inf)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    chosen = number == labels[..., None]
    label_logit = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    known = (labels >= 0) & (labels < options.classes)
    loss = normalizer - jnp.where(known, label_logit, jnp.nan)
    objective = loss + options.z_loss * normalizer**2
    correct = jnp.argmax(logits, axis=-1) == labels
    sums = [jnp.sum(jnp.where(mask, each, 0), dtype=logits.dtype) for each in (objective, loss)]
    sums.append(jnp.sum(mask & correct, dtype=logits.dtype))
    probabilities = jnp.exp(logits - normalizer[..., None])
    gradient = probabilities * (1 + 2 * options.z_loss * normalizer)[..., None] - chosen
    gradient = jnp.where(mask[..., None], slope * gradient, 0).astype(x.dtype)
    return SummedLoss(*sums), gradient


def _outer_sum(logit_gradient: Array, x: Array, weight: Array) -> Float[Array, "classes features"]:
    """The gradient of the weight, laid out over an explicit mesh as the weight is."""
    sharding = jax.typeof(weight).sharding
    shared = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(
        logit_gradient,
        x,
        ((shared, shared), ((), ())),
        preferred_element_type=accumulation_dtype(x.dtype),
        out_sharding=None if sharding.mesh.empty else sharding,
    )


def _cut(options: _Options, x, labels, mask):
    """The chunks one after the other, the last one filled up with what does not count.

    Only time is cut, so that examples stay on their devices. What does not count may hold NaN.
    """
    x = jnp.where(mask[..., None], x, 0)
    time = labels.shape[-1]
    length = min(time, max(1, options.chunk // max(1, math.prod(labels.shape[:-1]))))
    count = -(-time // max(1, length))
    axis = labels.ndim - 1

    def cut(values: Array) -> Array:
        fill = [(0, 0)] * values.ndim
        fill[axis] = (0, count * length - time)
        filled = jnp.pad(values, fill)
        shape = (*values.shape[:axis], count, length, *values.shape[axis + 1 :])
        return jnp.moveaxis(filled.reshape(shape), axis, 0)

    return cut(x), cut(labels), cut(mask)


def _join(parts: Array, like: Array) -> Array:
    """The inverse of `_cut`."""
    axis = like.ndim - 2
    whole = jnp.moveaxis(parts, 0, axis)
    time = whole.shape[axis] * whole.shape[axis + 1]
    whole = whole.reshape(*like.shape[:axis], time, like.shape[-1])
    return jax.lax.slice_in_dim(whole, 0, like.shape[axis], axis=axis)


def _zeros(x, weight) -> SummedLoss:
    zero = jnp.zeros((), accumulation_dtype(x.dtype))
    return SummedLoss(zero, zero, zero)


def _check(rows, classes, chunk, z_loss, soft_cap) -> None:
    """**Raises:** `ValueError` that names the argument, its law and what came."""
    for name, value, valid, law in (
        ("vocab_size", classes, 0 < classes <= rows, f"from 1 to the {rows} rows of `weight`"),
        ("chunk", chunk, chunk >= 1, "at least 1"),
        ("z_loss", z_loss, z_loss >= 0, "at least 0"),
        ("soft_cap", soft_cap, soft_cap is None or soft_cap > 0, "positive or None"),
    ):
        if not valid:
            raise ValueError(f"`linear_cross_entropy`: `{name}` must be {law}. Received {value}.")
