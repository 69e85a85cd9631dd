"""What mixers share whose memory is a matrix for each head: how it advances, and what it is told."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..config import AbstractConfig, require_positive
from ..context import SequenceContext
from ..norms import divide_by_norm
from ..ops.short_conv import short_conv, short_conv_step
from ..precision import accumulation_dtype, upcast
from ..types import Frame, Signal
from .base import AbstractSequenceMixer, enter, enter_step, keep_at_padding
from .heads import head_sizes, projection_flops, require_width, split_qkv


# Added to the squared norm of a key, in every published form.
UNIT_EPS = 1e-6


class MemoryState(NamedTuple):
    """What the current document left.

    - `short`: the last inputs of the short convolution, the newest last.
    - `memory`: S.
    """

    short: Float[Array, "last channels"]
    memory: Float[Array, "heads key value"]


# From state, input, short convolution and recurrence to state and output, of one position or many.
Advance = Callable[[MemoryState, Array, Callable, Callable], tuple[MemoryState, Array]]


def empty_memory(
    short: tuple[int, int], memory: tuple[int, int, int], dtype: DTypeLike | None
) -> MemoryState:
    """The state before the first position, of these shapes."""
    dtype = accumulation_dtype(dtype or jnp.float32)
    return MemoryState(jnp.zeros(short, dtype), jnp.zeros(memory, dtype))


def prefill_memory(
    mixer: AbstractSequenceMixer,
    advance: Advance,
    recurrence: Callable,
    state: MemoryState,
    x: Signal,
    context: SequenceContext | None,
) -> tuple[MemoryState, Signal]:
    """`prefill`, by an op over time that takes its state as `s0`."""
    x, context = enter(mixer, x, context)
    rules = context.rules()
    remember = lambda memory, *inputs: recurrence(*inputs, s0=memory, **rules)
    state, y = advance(state, x, partial(short_conv, **rules), remember)
    return state, context.blank_padding(y)


def step_memory(
    mixer: AbstractSequenceMixer,
    advance: Advance,
    recurrence: Callable,
    state: MemoryState,
    x: Frame,
    context: SequenceContext | None,
) -> tuple[MemoryState, Frame]:
    """`step`, by the op's step, which takes its state first."""
    x, context = enter_step(mixer, x, context)
    wide = accumulation_dtype(x.dtype)
    remember = lambda memory, *inputs: recurrence(memory.astype(wide), *inputs)
    new, y = advance(context.forget(state), x, short_conv_step, remember)
    return keep_at_padding(context, new, state), context.blank_padding(y)


def require_memory(cfg: AbstractConfig) -> None:
    """Checks the fields that all of these configs have."""
    optional = ("num_heads", "head_dim", "num_value_heads", "value_head_dim", "short_width")
    require_positive(cfg, *(name for name in optional if getattr(cfg, name) is not None))
    require_positive(cfg, "norm_eps", "chunk")


def grouped_sizes(
    in_features: int, cfg: AbstractConfig, value_expand: int
) -> tuple[int, int, int, int]:
    """Heads of keys and their size, heads of values and theirs: by default `value_expand` times it."""
    names = ("num_heads", "head_dim", "num_value_heads", "value_head_dim")
    heads, head, value_heads, value = (getattr(cfg, name) for name in names)
    heads, head = head_sizes(in_features, cfg, heads, head)
    value_heads = value_heads or heads
    law = f"`num_value_heads` to be a multiple of its {heads} heads"
    require_width(value_heads % heads == 0, cfg, in_features, law)
    return heads, head, value_heads, value or value_expand * head


def unit(x: Float[Array, "*shape head"]) -> Float[Array, "*shape head"]:
    """`x` with norm 1, in at least float32."""
    return divide_by_norm(x, UNIT_EPS)


def queries_keys_values(
    mixed: Float[Array, "*time channels"], heads: int, head: int, value_heads: int
) -> tuple[Array, Array, Array]:
    """q and k of norm 1, q divided by the root of its size, and v; by head."""
    q, k, v = split_qkv(mixed, heads, head, value_heads)
    return (unit(q) / math.sqrt(head)).astype(v.dtype), unit(k).astype(v.dtype), v


def correction_rate(
    logits: Float[Array, "*shape"], negative_eigenvalues: bool
) -> Float[Array, "*shape"]:
    """β, in at least float32: up to 1, or up to 2."""
    rate = jax.nn.sigmoid(upcast(logits))
    return 2 * rate if negative_eigenvalues else rate


def learned_decay(
    logits: Float[Array, "*shape"], log_decay: Float[Array, "..."], dt_bias: Float[Array, "..."]
) -> Float[Array, "*shape"]:
    """The logarithm of a decay, -exp(log_decay) softplus(logits + dt_bias), in at least float32."""
    wide = upcast(logits)
    step = jax.nn.softplus(wide + dt_bias.astype(wide.dtype))
    return -jnp.exp(log_decay.astype(wide.dtype)) * step


def memory_flops(mixer: AbstractSequenceMixer, time: int, recurrence: int, inference: bool) -> int:
    """Of a whole sequence, if the recurrence takes so many at one position."""
    forward = time * (projection_flops(mixer) + recurrence)
    return forward if inference else 3 * forward


def delta_rule_flops(chunk: int, time: int, heads: int, key: int, value: int) -> int:
    """Of all heads at one position, in chunks."""
    chunk = max(1, min(chunk, time))
    return heads * (2 * chunk * (2 * key + 2 * value + chunk) + 6 * key * value)
