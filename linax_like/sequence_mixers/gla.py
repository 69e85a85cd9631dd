"""Gated linear attention (Yang et al., 2023, https://arxiv.org/abs/2312.06635).

    (q, k, v) = W_in x                        α[t] = σ(W₂ W₁ x[t] + b)^(1/τ)
    S[t] = diag(α[t]) S[t-1] + k[t] v[t]ᵀ                                     for each head
    y[t] = W_out (RMSNorm(S[t]ᵀ q[t] / √d) ⊙ silu(W_g x[t]))

Every channel of a key is forgotten at its own rate, which depends on the input: τ keeps it slow.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import equinox as eqx
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split
from ..ops.gated_linear_attention import gated_linear_attention, gated_linear_attention_step
from ..precision import linear, upcast
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig
from .heads import (
    key_and_value_sizes,
    linear_attention_flops,
    read_out,
    split_heads,
    split_qkv,
)
from .memory import empty_memory, memory_flops, MemoryState, prefill_memory, step_memory


@dataclass(frozen=True)
class GLASequenceMixerConfig(AbstractSequenceMixerConfig):
    """Linear attention that forgets every channel of a key at its own rate.

    - `num_heads`: heads of queries and keys.
    - `head_dim`: size of a query or key; by default half of `value_head_dim`.
    - `num_value_heads`: heads of values, each with its own decays, of which as many share each query
        and key; by default one.
    - `value_head_dim`: size of a value; by default the width divided by the heads of values.
    - `gate_rank`: width between the two matrices that the decays are computed with.
    - `gate_normalizer`: τ: a decay is a sigmoid to the power of 1/τ.
    - `activation`: of queries, keys and values, after the short convolution.
    - `short_width`: taps of the short convolution; None leaves it out.
    - `output_gate`: multiply the output by a gate, as large as the values.
    - `norm_eps`: added to the mean square of a head, that is divided by.
    - `chunk`: positions computed together: more take more work each, and less memory in training.
    """

    num_heads: int = 4
    head_dim: int | None = None
    num_value_heads: int | None = None
    value_head_dim: int | None = None
    gate_rank: int = 16
    gate_normalizer: float = 16.0
    activation: Literal["silu", "none"] = "none"
    short_width: int | None = None
    output_gate: bool = True
    norm_eps: float = 1e-5
    chunk: int = 32

    def __post_init__(self):
        optional = ("head_dim", "num_value_heads", "value_head_dim", "short_width")
        require_positive(self, *(name for name in optional if getattr(self, name) is not None))
        require_positive(self, "num_heads", "gate_rank", "gate_normalizer", "norm_eps", "chunk")
        require_choice(self, "activation")
        law = f"a multiple of num_heads={self.num_heads}"
        require((self.num_value_heads or 0) % self.num_heads == 0, self, "num_value_heads", law)

    def build(self, in_features: int, key: PRNGKeyArray) -> "GLASequenceMixer":
        return GLASequenceMixer(in_features, self, key)


class GLASequenceMixer(AbstractRecurrentMixer[MemoryState]):
    """Linear attention with a decay for every channel of a key."""

    config: GLASequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    num_value_heads: int = eqx.field(static=True)
    value_head_dim: int = eqx.field(static=True)
    qkv_proj: Float[Array, "channels features"]  # W_in
    decay_in_proj: Float[Array, "rank features"]  # W₁
    decay_out_proj: Float[Array, "heads_key rank"]  # W₂
    decay_bias: Float[Array, " heads_key"]  # b
    gate_proj: Float[Array, "values features"] | None  # W_g
    short_weight: Float[Array, "width channels"] | None
    norm_weight: Float[Array, " value"]
    out_proj: Float[Array, "features values"]  # W_out

    def __init__(self, in_features: int, cfg: GLASequenceMixerConfig, key: PRNGKeyArray):
        qkv_key, decay_key, rank_key, gate_key, short_key, out_key = split(key, 6)
        self.config = cfg
        self.in_features = in_features
        self.num_heads = cfg.num_heads
        self.num_value_heads = cfg.num_value_heads or cfg.num_heads
        self.head_dim, self.value_head_dim = key_and_value_sizes(
            in_features, cfg, self.num_value_heads, cfg.head_dim, cfg.value_head_dim
        )
        values = self.num_value_heads * self.value_head_dim
        decays = self.num_value_heads * self.head_dim
        channels = 2 * self.num_heads * self.head_dim + values
        self.qkv_proj = linear_weight(qkv_key, in_features, channels)
        self.decay_in_proj = linear_weight(decay_key, in_features, cfg.gate_rank)
        self.decay_out_proj = linear_weight(rank_key, cfg.gate_rank, decays)
        self.decay_bias = constant(0, (decays,))
        self.gate_proj = self.short_weight = None
        if cfg.output_gate:
            self.gate_proj = linear_weight(gate_key, in_features, values)
        if cfg.short_width is not None:
            shape = (cfg.short_width, channels)
            self.short_weight = normal(short_key, shape, 1 / math.sqrt(cfg.short_width))
        self.norm_weight = constant(1, (self.value_head_dim,))
        self.out_proj = linear_weight(out_key, values, in_features)

    @property
    def causal(self) -> bool:
        return True

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"decay_bias"})

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x), x.dtype), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> MemoryState:
        short = ((self.config.short_width or 1) - 1, self.qkv_proj.shape[0])
        memory = (self.num_value_heads, self.head_dim, self.value_head_dim)
        return empty_memory(short, memory, dtype)

    def prefill(
        self, state: MemoryState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[MemoryState, Signal]:
        recurrence = partial(gated_linear_attention, chunk=self.config.chunk)
        return prefill_memory(self, self._advance, recurrence, state, x, context)

    def step(
        self, state: MemoryState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[MemoryState, Frame]:
        step = gated_linear_attention_step
        return step_memory(self, self._advance, step, state, x, context)

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
        state: MemoryState,
        x: Float[Array, "*time features"],
        convolve: Callable,
        remember: Callable,
    ) -> tuple[MemoryState, Float[Array, "*time features"]]:
        """One position or many, by the ops given for that."""
        short, mixed = state.short, linear(x, self.qkv_proj)
        if self.short_weight is not None:
            short, mixed = convolve(mixed, self.short_weight, None, short)
        if self.config.activation == "silu":
            mixed = jax.nn.silu(mixed)
        q, k, v = split_qkv(mixed, self.num_heads, self.head_dim, self.num_value_heads)
        q = q / math.sqrt(self.head_dim)
        memory, y = remember(state.memory, q, k, v, self._log_decay(x))
        y = read_out(y, x, self.norm_weight, self.config.norm_eps, self.gate_proj, self.out_proj)
        return MemoryState(short, memory), y

    def _log_decay(self, x: Float[Array, "*time features"]) -> Float[Array, "*time heads key"]:
        logits = upcast(linear(linear(x, self.decay_in_proj), self.decay_out_proj))
        log_decay = jax.nn.log_sigmoid(logits + self.decay_bias.astype(logits.dtype))
        return split_heads(log_decay / self.config.gate_normalizer, self.num_value_heads)
