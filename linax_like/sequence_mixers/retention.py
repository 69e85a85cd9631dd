"""Retention (Sun et al., 2023, https://arxiv.org/abs/2307.08621), and simple gated linear attention.

    (q, k, v) = W_in x                        q and k turned by t (RoPE)
    S[t] = γ[t] S[t-1] + v[t] k[t]ᵀ                                           for each head
    y[t] = W_out (RMSNorm(S[t] q[t] / √d) ⊙ silu(W_g x[t]))

    fixed   γ = 1 - 2^(-5-h) for head h = 0, 1, …
    gated   γ[t] = σ(W_γ x[t] + b)^(1/τ)      (https://arxiv.org/abs/2312.06635, one for a whole head)

RoPE is that of Llama, as in flash-linear-attention; the paper pairs neighbouring features instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, split
from ..ops.ssd import ssd, ssd_step
from ..positions import rope
from ..precision import accumulation_dtype, linear, upcast
from ..types import Frame, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    keep_at_padding,
)
from .heads import (
    linear_attention_flops,
    read_out,
    require_width,
    split_qkv,
)
from .memory import grouped_sizes, memory_flops


@dataclass(frozen=True)
class RetentionSequenceMixerConfig(AbstractSequenceMixerConfig):
    """Linear attention that forgets, every head at one rate.

    - `num_heads`: heads of queries and keys; by default the width divided by the head size.
    - `head_dim`: size of a query or key; by default the width divided by `num_heads`, and without
        that 64 or the largest smaller power of two that divides the width.
    - `num_value_heads`: heads of values, each with its own decay, of which as many share each query
        and key; by default one.
    - `value_head_dim`: size of a value; by default twice `head_dim`.
    - `decay`: `"fixed"`, from head to head half as fast; or `"gated"`, which depends on the input.
    - `gate_normalizer`: τ: a gated decay is a sigmoid to the power of 1/τ.
    - `rope_base`: base of the rotary position embedding; None leaves positions out.
    - `output_gate`: multiply the output by a gate, as large as the values.
    - `norm_eps`: added to the mean square of a head, that is divided by.
    - `chunk`: positions computed together: more take more work each, and less memory in training.
    """

    num_heads: int | None = None
    head_dim: int | None = None
    num_value_heads: int | None = None
    value_head_dim: int | None = None
    decay: Literal["fixed", "gated"] = "fixed"
    gate_normalizer: float = 16.0
    rope_base: float | None = 10000.0
    output_gate: bool = True
    norm_eps: float = 1e-5
    chunk: int = 64

    def __post_init__(self):
        optional = ("num_heads", "head_dim", "num_value_heads", "value_head_dim", "rope_base")
        require_positive(self, *(name for name in optional if getattr(self, name) is not None))
        require_positive(self, "gate_normalizer", "norm_eps", "chunk")
        require_choice(self, "decay")
        if self.head_dim is not None and self.rope_base is not None:
            law = "even, as RoPE turns pairs (rope_base=None leaves it out)"
            require(self.head_dim % 2 == 0, self, "head_dim", law)

    def build(self, in_features: int, key: PRNGKeyArray) -> "RetentionSequenceMixer":
        return RetentionSequenceMixer(in_features, self, key)


class RetentionState(NamedTuple):
    """What the current document left.

    - `memory`: S.
    - `length`: positions of the current document so far.
    """

    memory: Float[Array, "heads value key"]
    length: Int[Array, ""]


class RetentionSequenceMixer(AbstractRecurrentMixer[RetentionState]):
    """Linear attention with one decay for every head."""

    config: RetentionSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    num_value_heads: int = eqx.field(static=True)
    value_head_dim: int = eqx.field(static=True)
    qkv_proj: Float[Array, "channels features"]  # W_in
    decay_proj: Float[Array, "heads features"] | None  # W_γ
    decay_bias: Float[Array, " heads"] | None  # b
    gate_proj: Float[Array, "values features"] | None  # W_g
    norm_weight: Float[Array, " value"]
    out_proj: Float[Array, "features values"]  # W_out

    def __init__(self, in_features: int, cfg: RetentionSequenceMixerConfig, key: PRNGKeyArray):
        qkv_key, decay_key, gate_key, out_key = split(key, 4)
        self.config = cfg
        self.in_features = in_features
        sizes = grouped_sizes(in_features, cfg, value_expand=2)
        self.num_heads, self.head_dim, self.num_value_heads, self.value_head_dim = sizes
        law = f"heads of even size for RoPE, not {self.head_dim}, or `rope_base=None`"
        even = cfg.rope_base is None or self.head_dim % 2 == 0
        require_width(even, cfg, in_features, law)
        values = self.num_value_heads * self.value_head_dim
        channels = 2 * self.num_heads * self.head_dim + values
        self.qkv_proj = linear_weight(qkv_key, in_features, channels)
        self.decay_proj = self.decay_bias = self.gate_proj = None
        if cfg.decay == "gated":
            self.decay_proj = linear_weight(decay_key, in_features, self.num_value_heads)
            self.decay_bias = constant(0, (self.num_value_heads,))
        if cfg.output_gate:
            self.gate_proj = linear_weight(gate_key, in_features, values)
        self.norm_weight = constant(1, (self.value_head_dim,))
        self.out_proj = linear_weight(out_key, values, in_features)

    @property
    def causal(self) -> bool:
        return True

    @property
    def uses(self) -> frozenset[str]:
        return frozenset() if self.config.rope_base is None else frozenset({"positions"})

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"decay_bias"})

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x), x.dtype), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> RetentionState:
        shape = (self.num_value_heads, self.value_head_dim, self.head_dim)
        memory = jnp.zeros(shape, accumulation_dtype(dtype or jnp.float32))
        return RetentionState(memory, jnp.zeros((), jnp.int32))

    def prefill(
        self, state: RetentionState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[RetentionState, Signal]:
        x, context = enter(self, x, context)
        counts = context.replace(positions=None).positions_from(state.length, len(x))
        length = context.last(counts + 1, state.length)

        def remember(memory, v, log_decay, k, q):
            chunk = self.config.chunk
            return ssd(v, log_decay, k, q, memory, chunk=chunk, **context.rules())

        positions = context.positions_from(state.length, len(x))
        memory, y = self._advance(state.memory, x, positions, remember)
        return RetentionState(memory, length), context.blank_padding(y)

    def step(
        self, state: RetentionState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[RetentionState, Frame]:
        x, context = enter_step(self, x, context)
        memory, length = context.forget(state)
        positions = length if context.positions is None else context.positions
        memory, y = self._advance(memory, x, positions, ssd_step)
        new = RetentionState(memory, length + 1)
        return keep_at_padding(context, new, state), context.blank_padding(y)

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time = math.prod(spatial_dims)
        sizes = min(self.config.chunk, time), self.head_dim, self.value_head_dim
        heads = self.num_value_heads * linear_attention_flops(*sizes)
        return memory_flops(self, time, heads, inference)

    def _advance(
        self,
        memory: Float[Array, "heads value key"],
        x: Float[Array, "*time features"],
        positions: Int[Array, "*time"],
        remember: Callable,
    ) -> tuple[Float[Array, "heads value key"], Float[Array, "*time features"]]:
        """One position or many, by the op given for that."""
        channels = linear(x, self.qkv_proj)
        q, k, v = split_qkv(channels, self.num_heads, self.head_dim, self.num_value_heads)
        if self.config.rope_base is not None:
            q, k = (rope(z, positions, self.config.rope_base) for z in (q, k))
        log_decay = self._log_decay(x)
        memory = memory.astype(log_decay.dtype)
        memory, y = remember(memory, v, log_decay, k, q / math.sqrt(self.head_dim))
        y = read_out(y, x, self.norm_weight, self.config.norm_eps, self.gate_proj, self.out_proj)
        return memory, y

    def _log_decay(self, x: Float[Array, "*time features"]) -> Float[Array, "*time heads"]:
        if self.decay_proj is None or self.decay_bias is None:
            fixed = np.log1p(-(2.0 ** (-5 - np.arange(self.num_value_heads))))
            fixed = jnp.asarray(fixed, accumulation_dtype(x.dtype))
            return jnp.broadcast_to(fixed, (*x.shape[:-1], self.num_value_heads))
        logits = upcast(linear(x, self.decay_proj))
        log_decay = jax.nn.log_sigmoid(logits + self.decay_bias.astype(logits.dtype))
        return log_decay / self.config.gate_normalizer
