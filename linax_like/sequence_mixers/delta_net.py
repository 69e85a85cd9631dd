"""DeltaNet (Yang et al., 2024, https://arxiv.org/abs/2406.06484): a memory that corrects itself.

    (q, k, v, b, g) = W_in x         (q, k, v) = silu(short_conv(q, k, v))       q, k of norm 1
    S[t] = S[t-1] + β[t] k[t] (v[t] - S[t-1]ᵀ k[t])ᵀ       β = σ(b)              for each head
    y[t] = W_out (RMSNorm(S[t]ᵀ q[t] / √d) ⊙ silu(g))

A step multiplies the memory by I - β k kᵀ. With β up to 2 that can reflect it, and the state can
count: eigenvalues from -1 to 1 instead of 0 to 1 (https://arxiv.org/abs/2411.12537).
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

from ..config import require_choice
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split
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
    memory_flops,
    MemoryState,
    prefill_memory,
    queries_keys_values,
    require_memory,
    step_memory,
)


@dataclass(frozen=True)
class DeltaNetSequenceMixerConfig(AbstractSequenceMixerConfig):
    """Linear attention with the delta rule.

    - `num_heads`: heads of queries and keys; by default the width divided by the head size.
    - `head_dim`: size of a query or key; by default the width divided by `num_heads`, and without
        that 64 or the largest smaller power of two that divides the width.
    - `num_value_heads`: heads of values, of which as many share each query and key; by default one.
    - `value_head_dim`: size of a value; by default `head_dim`.
    - `negative_eigenvalues`: β up to 2 instead of 1, which tracking a state needs.
    - `activation`: of queries, keys and values, after the short convolution.
    - `short_width`: taps of the short convolution; None leaves it out.
    - `output_norm`: RMSNorm of each head, or nothing.
    - `output_gate`: multiply the output by a gate, as large as the values.
    - `norm_eps`: added to the mean square that the norm divides by.
    - `chunk`: positions computed together: more take more work each, and less memory in training.
    """

    num_heads: int | None = None
    head_dim: int | None = None
    num_value_heads: int | None = None
    value_head_dim: int | None = None
    negative_eigenvalues: bool = False
    activation: Literal["silu", "none"] = "silu"
    short_width: int | None = 4
    output_norm: Literal["rms", "none"] = "rms"
    output_gate: bool = False
    norm_eps: float = 1e-6
    chunk: int = 64

    def __post_init__(self):
        require_memory(self)
        require_choice(self, "activation", "output_norm")

    def build(self, in_features: int, key: PRNGKeyArray) -> "DeltaNetSequenceMixer":
        return DeltaNetSequenceMixer(in_features, self, key)


class DeltaNetSequenceMixer(AbstractRecurrentMixer[MemoryState]):
    """Linear attention with the delta rule."""

    config: DeltaNetSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    num_value_heads: int = eqx.field(static=True)
    value_head_dim: int = eqx.field(static=True)
    qkv_proj: Float[Array, "channels features"]
    beta_proj: Float[Array, "heads features"]
    gate_proj: Float[Array, "values features"] | None
    short_weight: Float[Array, "width channels"] | None
    norm_weight: Float[Array, " value"] | None
    out_proj: Float[Array, "features values"]

    def __init__(self, in_features: int, cfg: DeltaNetSequenceMixerConfig, key: PRNGKeyArray):
        qkv_key, beta_key, gate_key, short_key, out_key = split(key, 5)
        self.config = cfg
        self.in_features = in_features
        sizes = grouped_sizes(in_features, cfg, value_expand=1)
        self.num_heads, self.head_dim, self.num_value_heads, self.value_head_dim = sizes
        keys, values = self.num_heads * self.head_dim, self.num_value_heads * self.value_head_dim
        channels = 2 * keys + values
        self.qkv_proj = linear_weight(qkv_key, in_features, channels)
        self.beta_proj = linear_weight(beta_key, in_features, self.num_value_heads)
        self.gate_proj = self.short_weight = self.norm_weight = None
        if cfg.output_gate:
            self.gate_proj = linear_weight(gate_key, in_features, values)
        if cfg.short_width is not None:
            shape = (cfg.short_width, channels)
            self.short_weight = normal(short_key, shape, 1 / math.sqrt(cfg.short_width))
        if cfg.output_norm == "rms":
            self.norm_weight = constant(1, (self.value_head_dim,))
        self.out_proj = linear_weight(out_key, values, in_features)

    @property
    def causal(self) -> bool:
        return True

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
        short, mixed = state.short, linear(x, self.qkv_proj)
        if self.short_weight is not None:
            short, mixed = convolve(mixed, self.short_weight, None, short)
        if self.config.activation == "silu":
            mixed = jax.nn.silu(mixed)
        sizes = (self.num_heads, self.head_dim, self.num_value_heads)
        q, k, v = queries_keys_values(mixed, *sizes)
        beta = correction_rate(linear(x, self.beta_proj), self.config.negative_eigenvalues)
        memory, y = remember(state.memory, q, k, v, beta)
        y = read_out(y, x, self.norm_weight, self.config.norm_eps, self.gate_proj, self.out_proj)
        return MemoryState(short, memory), y
