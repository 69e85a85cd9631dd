"""Gated DeltaNet (Yang et al., 2024, https://arxiv.org/abs/2412.06464): DeltaNet that also forgets.

    (q, k, v, a, b, g) = W_in x      (q, k, v) = silu(short_conv(q, k, v))       q, k of norm 1
    S̃[t] = α[t] S[t-1]               α = exp(-exp(A) softplus(a + δ))            for each head
    S[t] = S̃[t] + β[t] k[t] (v[t] - S̃[t]ᵀ k[t])ᵀ           β = σ(b)
    y[t] = W_out (RMSNorm(S[t]ᵀ q[t] / √d) ⊙ silu(g))

The correction writes single memories, the decay clears all of them at once. The linear layers of
Qwen3-Next, Qwen3.5 and OLMo-hybrid are this one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split, step_size_bias, uniform
from ..ops.delta_rule import delta_rule, delta_rule_step
from ..precision import linear
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig
from .heads import read_out
from .memory import (
    correction_rate,
    delta_rule_flops,
    empty_memory,
    grouped_sizes,
    learned_decay,
    memory_flops,
    MemoryState,
    prefill_memory,
    queries_keys_values,
    require_memory,
    step_memory,
)


@dataclass(frozen=True)
class GatedDeltaNetSequenceMixerConfig(AbstractSequenceMixerConfig):
    """Linear attention with the delta rule and one decay for each head.

    - `num_heads`: heads of queries and keys; by default the width divided by the head size.
    - `head_dim`: size of a query or key; by default the width divided by `num_heads`, and without
        that 64 or the largest smaller power of two that divides the width.
    - `num_value_heads`: heads of values, of which as many share each query and key; by default one.
    - `value_head_dim`: size of a value; by default twice `head_dim`.
    - `negative_eigenvalues`: β up to 2 instead of 1, which tracking a state needs.
    - `short_width`: taps of the short convolution.
    - `output_gate`: multiply the output by a gate, as large as the values.
    - `norm_eps`: added to the mean square that the norm divides by.
    - `dt_min`, `dt_max`, `dt_floor`: where softplus(δ) starts: uniform in its logarithm, then at least
        the floor.
    - `chunk`: positions computed together: more take more work each, and less memory in training.
    """

    num_heads: int | None = None
    head_dim: int | None = None
    num_value_heads: int | None = None
    value_head_dim: int | None = None
    negative_eigenvalues: bool = False
    short_width: int = 4
    output_gate: bool = True
    norm_eps: float = 1e-6
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    chunk: int = 64

    def __post_init__(self):
        require_memory(self)
        require_positive(self, "dt_min", "dt_floor")
        require(self.dt_min <= self.dt_max, self, "dt_max", "at least dt_min")

    def build(self, in_features: int, key: PRNGKeyArray) -> "GatedDeltaNetSequenceMixer":
        return GatedDeltaNetSequenceMixer(in_features, self, key)


class GatedDeltaNetSequenceMixer(AbstractRecurrentMixer[MemoryState]):
    """Linear attention with the delta rule and one decay for each head."""

    config: GatedDeltaNetSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    num_value_heads: int = eqx.field(static=True)
    value_head_dim: int = eqx.field(static=True)
    qkv_proj: Float[Array, "channels features"]
    decay_proj: Float[Array, "heads features"]  # a
    beta_proj: Float[Array, "heads features"]  # b
    gate_proj: Float[Array, "values features"] | None  # g
    short_weight: Float[Array, "width channels"]
    log_decay: Float[Array, " heads"]  # A
    dt_bias: Float[Array, " heads"]  # δ
    norm_weight: Float[Array, " value"]
    out_proj: Float[Array, "features values"]  # W_out

    def __init__(self, in_features: int, cfg: GatedDeltaNetSequenceMixerConfig, key: PRNGKeyArray):
        qkv_key, beta_key, gate_key, short_key, out_key, *decay_keys = split(key, 8)
        self.config = cfg
        self.in_features = in_features
        sizes = grouped_sizes(in_features, cfg, value_expand=2)
        self.num_heads, self.head_dim, self.num_value_heads, self.value_head_dim = sizes
        heads, values = (self.num_value_heads,), self.num_value_heads * self.value_head_dim
        channels = 2 * self.num_heads * self.head_dim + values
        self.qkv_proj = linear_weight(qkv_key, in_features, channels)
        self.decay_proj = linear_weight(decay_keys[0], in_features, self.num_value_heads)
        self.beta_proj = linear_weight(beta_key, in_features, self.num_value_heads)
        self.gate_proj = linear_weight(gate_key, in_features, values) if cfg.output_gate else None
        shape = (cfg.short_width, channels)
        self.short_weight = normal(short_key, shape, 1 / math.sqrt(cfg.short_width))
        self.log_decay = jnp.log(uniform(decay_keys[1], heads, 1.0, 16.0))
        self.dt_bias = step_size_bias(decay_keys[2], heads, cfg.dt_min, cfg.dt_max, cfg.dt_floor)
        self.norm_weight = constant(1, (self.value_head_dim,))
        self.out_proj = linear_weight(out_key, values, in_features)

    @property
    def causal(self) -> bool:
        return True

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"log_decay", "dt_bias"})

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x), x.dtype), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> MemoryState:
        width, channels = self.short_weight.shape
        memory = (self.num_value_heads, self.head_dim, self.value_head_dim)
        return empty_memory((width - 1, channels), memory, dtype)

    def prefill(
        self, state: MemoryState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[MemoryState, Signal]:
        recurrence = partial(delta_rule, chunk=self.config.chunk)
        return prefill_memory(self, self._advance, recurrence, state, x, context)

    def step(
        self, state: MemoryState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[MemoryState, Frame]:
        return step_memory(self, self._advance, delta_rule_step, state, x, context)

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time = math.prod(spatial_dims)
        sizes = (self.num_value_heads, self.head_dim, self.value_head_dim)
        recurrence = delta_rule_flops(self.config.chunk, time, *sizes)
        return memory_flops(self, time, recurrence, inference)

    def _advance(
        self,
        state: MemoryState,
        x: Float[Array, "*time features"],
        convolve: Callable,
        remember: Callable,
    ) -> tuple[MemoryState, Float[Array, "*time features"]]:
        """One position or many, by the ops given for that."""
        mixed = linear(x, self.qkv_proj)
        short, mixed = convolve(mixed, self.short_weight, None, state.short)
        sizes = (self.num_heads, self.head_dim, self.num_value_heads)
        q, k, v = queries_keys_values(jax.nn.silu(mixed), *sizes)
        beta = correction_rate(linear(x, self.beta_proj), self.config.negative_eigenvalues)
        decay = learned_decay(linear(x, self.decay_proj), self.log_decay, self.dt_bias)
        memory, y = remember(state.memory, q, k, v, beta, decay)
        y = read_out(y, x, self.norm_weight, self.config.norm_eps, self.gate_proj, self.out_proj)
        return MemoryState(short, memory), y
