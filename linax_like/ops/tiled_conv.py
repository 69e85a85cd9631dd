"""A long convolution position by position, in O(log² length) a position instead of O(length)
(Flash Inference, Oncescu et al., 2024, https://arxiv.org/abs/2410.12982).

    y[t] = Σ_{s ≤ t} kernel[s] x[t-s]

A line holds the inputs so far and, in the rows of positions still to come, what these inputs have
already sent there. After i positions, with 2^q the largest power of two that divides i, the last 2^q
inputs send their share to the next 2^q positions, by one Fourier transform: so every input meets every
later position once. What is nearer than the smallest such tile is summed directly.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..precision import upcast
from .long_conv import long_conv
from .varying import vary_together


Line = Float[Array, "rows features"]
Row = Float[Array, " features"]
Kernel = Float[Array, "lags features"]

_SMALLEST = 32  # positions of the smallest tile


def line_rows(capacity: int) -> int:
    """The rows of a line for so many positions: a power of two."""
    return max(_SMALLEST, 1 << max(capacity - 1, 0).bit_length())


def start_line(past: Float[Array, "capacity features"], kernel: Kernel) -> Line:
    """What the past, its newest input last, sends to as many positions as it has, and more.

    - `kernel`: at least `line_rows(len(past))` lags.
    """
    behind = jnp.zeros((line_rows(len(past)), past.shape[1]), past.dtype)
    return long_conv(upcast(jnp.concatenate([past, behind])), kernel)[len(past) :]


def advance_line(
    recent: Line, pending: Line, since: Int[Array, ""], x: Row, kernel: Kernel
) -> tuple[Line, Line, Row]:
    """Reads one input, and returns the convolution there.

    - `recent`: the inputs since the line was started, of which there are `since`.
    - `pending`: what every position has been sent.
    - `kernel`: at least as many lags as the line has rows.

    The examples of a `jax.vmap` share a tile while all have read equally many positions; else each has
    its own, one after the other. It has no gradient.
    """
    recent, pending, since, x, kernel = vary_together(recent, pending, since, x, kernel)
    recent = jax.lax.dynamic_update_index_in_dim(recent, x.astype(recent.dtype), since, 0)
    recent = jax.lax.optimization_barrier(recent)
    pending = _send_for_all(pending, recent, since + 1, kernel[: len(recent)].astype(recent.dtype))
    # Read only after all has been written, so that XLA need not keep the arrays as they were.
    near = since % _SMALLEST
    lags = jnp.concatenate([kernel[:_SMALLEST][::-1], jnp.zeros_like(kernel[:_SMALLEST])])
    weights = _rows(lags, _SMALLEST - 1 - near, _SMALLEST)
    inputs = _rows(recent, since - near, _SMALLEST)
    return recent, pending, _rows(pending, since, 1)[0] + jnp.sum(weights * inputs, axis=0)


def _send(pending: Line, recent: Line, count: Int[Array, ""], kernel: Kernel) -> Line:
    """What is pending once the tile that is due after `count` inputs has been sent."""

    def largest(pending):
        size = _SMALLEST
        while size < len(recent):
            send = partial(_send_tile, size, recent, count, kernel)
            pending = jax.lax.cond((count & -count) == size, send, _leave, pending)
            size *= 2
        return pending

    due = (count % _SMALLEST == 0) & (count < len(recent))
    return jax.lax.cond(due, largest, _leave, pending)


_send_for_all = jax.custom_batching.custom_vmap(_send)


@_send_for_all.def_vmap
def _send_batch(size, batched, pending, recent, count, kernel):
    pending_axis, recent_axis, count_axis, kernel_axis = (0 if b else None for b in batched)
    pending = pending if batched[0] else jnp.broadcast_to(pending, (size, *pending.shape))

    def together(count, pending):
        send = jax.vmap(_send, (0, recent_axis, None, kernel_axis))
        return send(pending, recent, count, kernel)

    def apart(pending):
        def send(row):
            pick = lambda x, axis: x if axis is None else _rows(x, row, 1)[0]
            return _send(
                pending[row], pick(recent, recent_axis), count[row], pick(kernel, kernel_axis)
            )

        return jax.lax.map(send, jnp.arange(size))

    if count_axis is None:
        return together(count, pending), True
    equal = jnp.all(count == count[0])
    pending = _once(equal, partial(together, count[0]), pending)
    return _once(~equal, apart, pending), True


def _send_tile(
    size: int, recent: Line, count: Int[Array, ""], kernel: Kernel, pending: Line
) -> Line:
    """Adds what the last `size` inputs send to as many positions."""
    inputs = _rows(recent, count - size, size)
    signal, response = (jnp.fft.rfft(z.T, 2 * size) for z in (inputs, kernel[: 2 * size]))
    share = jnp.fft.irfft(signal * response, 2 * size)[:, size:].T
    sent = _rows(pending, count, size) + share
    return jax.lax.dynamic_update_slice_in_dim(pending, sent, count, axis=0)


def _rows(x: Array, start: Int[Array, ""], size: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=0)


def _leave(line: Array) -> Array:
    return line


def _once(condition: Bool[Array, ""], update: Callable[[Array], Array], line: Array) -> Array:
    """`update(line)` on a condition, in place: around others a `jax.lax.cond` would copy the line."""
    step = lambda carry: (jnp.zeros_like(condition), update(carry[1]))
    return jax.lax.while_loop(lambda carry: carry[0], step, (condition, line))[1]
