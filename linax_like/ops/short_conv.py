"""Causal depthwise convolution of a few taps, with a state.

    y[t] = bias + Σ_{j < width} weight[width-1-j] ⊙ x[t-j]

The last tap meets the present. The state is the last `width - 1` inputs of the current document,
the newest last, and zeros where there were none.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..precision import accumulation_dtype
from .compact import padding_last, permute
from .varying import rows_from, vary_together


def short_conv(
    x: Float[Array, "time features"],
    weight: Float[Array, "width features"],
    bias: Float[Array, " features"] | None,
    state: Float[Array, "last features"],
    *,
    resets: Bool[Array, " time"] | None = None,
    mask: Bool[Array, " time"] | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, "last features"], Float[Array, "time features"]]:
    """The fold of `short_conv_step`: the state after all positions, and the outputs.

    - `resets`: True where a new document begins. No tap reaches back across it.
    - `mask`: False at padding, which no tap sees. The outputs there mean nothing.
    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`.
    """
    dtype = jnp.promote_types(state.dtype, x.dtype)
    state = state.astype(dtype)
    if len(x) == 0:
        return state, x
    count, permutation = jnp.int32(len(x)), None
    if mask is not None:
        permutation = padding_last(mask)
        count = mask.sum(dtype=jnp.int32)
        x = permute(x, permutation)
        resets = None if resets is None else resets[permutation.order]
    index = jnp.arange(len(x), dtype=jnp.int32)
    # Where the document of each position begins; without resets, before anything in the state.
    start = jnp.full_like(index, -len(weight))
    if resets is not None:
        start = jax.lax.cummax(jnp.where(resets, index, start))
    end = _last_inputs(x.astype(dtype), len(state), count, start[-1])
    shard = (end, count, start[-1] >= 0)
    if axis_name is None:
        after = _advance(state, *shard)
    else:
        state, after = _advance_over_shards(state, shard, axis_name)
    window = jnp.concatenate([state, x.astype(dtype)])
    taps = [
        jnp.where((index - j >= start)[:, None], window[len(state) - j :][: len(x)], 0)
        for j in reversed(range(len(weight)))
    ]
    y = _weigh(taps, weight, bias).astype(x.dtype)
    return after, y if permutation is None else permute(y, permutation.undone)


def short_conv_step(
    x: Float[Array, " features"],
    weight: Float[Array, "width features"],
    bias: Float[Array, " features"] | None,
    state: Float[Array, "last features"],
) -> tuple[Float[Array, "last features"], Float[Array, " features"]]:
    """One position. The caller forgets the state at a new document, and keeps it at padding."""
    dtype = jnp.promote_types(state.dtype, x.dtype)
    window = jnp.concatenate([state.astype(dtype), x[None].astype(dtype)])
    return window[1:], _weigh(list(window), weight, bias).astype(x.dtype)


def _weigh(taps: list[Array], weight: Array, bias: Array | None) -> Array:
    """The sum over the taps, oldest first, in at least float32."""
    dtype = accumulation_dtype(taps[0].dtype)
    y = jnp.zeros(weight.shape[1:], dtype) if bias is None else bias.astype(dtype)
    for tap, factor in zip(taps, weight.astype(dtype), strict=True):
        y = y + factor * tap.astype(dtype)
    return y


def _last_inputs(
    x: Float[Array, "time features"], size: int, count: Int[Array, ""], start: Int[Array, ""]
) -> Float[Array, "last features"]:
    """The last `size` of the first `count` inputs, and zeros for those before `start`."""
    window = jnp.concatenate([jnp.zeros_like(x, shape=(size, x.shape[1])), x])
    rows = rows_from(window, count, size)
    index = count - size + jnp.arange(size)
    return jnp.where((index >= start)[:, None], rows, 0)


def _advance(
    state: Float[Array, "last features"],
    end: Float[Array, "last features"],
    count: Int[Array, ""],
    reset: Bool[Array, ""],
) -> Float[Array, "last features"]:
    """The state after a stretch of `count` inputs, of which `end` are the last."""
    size = len(state)
    window = jnp.concatenate([state, jnp.zeros_like(state)])
    older = rows_from(window, jnp.minimum(count, size), size)
    return end + jnp.where(reset, 0, older)


def _advance_over_shards(
    state: Float[Array, "last features"], shard: tuple[Array, Array, Array], axis_name: str
) -> tuple[Float[Array, "last features"], Float[Array, "last features"]]:
    """The state before this shard, and the one after the last shard."""
    shards = jax.lax.all_gather(vary_together(*shard), axis_name)
    here = jax.lax.axis_index(axis_name)
    before = state
    for i in range(len(shards[0])):
        before = jnp.where(here == i, state, before)
        state = _advance(state, *(x[i] for x in shards))
    return before, state
