"""mLSTM (Beck et al., 2024, https://arxiv.org/abs/2405.04517), in the layer of xLSTM-7B (2025,
https://arxiv.org/abs/2503.13427): a matrix memory with an exponential input gate.

    i = cap(W_i x + b_i)      f = log σ(cap(W_f x + b_f))      cap(z) = c tanh(z / c)
    C[t] = e^f[t] C[t-1] + e^i[t] v[t] k[t]ᵀ
    n[t] = e^f[t] n[t-1] + e^i[t] k[t]                                        for each head
    h[t] = C[t] q[t] / max(|n[t] · q[t]|, 1)                   q = W_q x / √d
    y[t] = W_out (LayerNorm(h[t]) ⊙ σ(W_o x[t]))

What is kept is e^-m C and e^-m n, which cannot overflow, with

    m[t] = max(m[t-1] + f[t], i[t], 0)

Any m gives the same h, so no gradient goes through it. The paper's has no 0. But where all of C is
below 1 the divisor is 1, and a scale would have nothing to protect.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split
from ..norms import standardize
from ..ops.linear_scan import final_state
from ..ops.max_scan import max_scan
from ..ops.short_conv import short_conv, short_conv_step
from ..ops.ssd import ssd, ssd_step
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
    join_heads,
    key_and_value_sizes,
    linear_attention_flops,
    split_heads,
)
from .memory import memory_flops


# The least divisor. Gates capped at 15 do not reach it: e^-15 is larger.
_LEAST = 1e-8


@dataclass(frozen=True)
class MLSTMSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A matrix memory with an exponential input gate.

    - `num_heads`: heads, each with its own gates.
    - `head_dim`: size of a query or key; by default half of `value_head_dim`.
    - `value_head_dim`: size of a value; by default the width divided by `num_heads`.
    - `short_width`: taps of a short convolution of what queries and keys are made from, with silu
        after it, as in the first paper; None, as in xLSTM-7B, leaves both out.
    - `soft_cap`: c, the bound of the gates' logits; None leaves them as they are.
    - `norm_eps`: added to the variance of a head, that is divided by.
    - `chunk`: positions computed together: more take more work each, and less memory in training.
    """

    num_heads: int = 4
    head_dim: int | None = None
    value_head_dim: int | None = None
    short_width: int | None = None
    soft_cap: float | None = 15.0
    norm_eps: float = 1e-6
    chunk: int = 64

    def __post_init__(self):
        optional = ("head_dim", "value_head_dim", "short_width", "soft_cap")
        require_positive(self, *(name for name in optional if getattr(self, name) is not None))
        require_positive(self, "num_heads", "norm_eps", "chunk")

    def build(self, in_features: int, key: PRNGKeyArray) -> "MLSTMSequenceMixer":
        return MLSTMSequenceMixer(in_features, self, key)


class MLSTMState(NamedTuple):
    """What the current document left.

    - `short`: the last inputs of the short convolution, the newest last.
    - `memory`: e^-m C, and as the last row of every head e^-m n.
    - `log_scale`: m.
    """

    short: Float[Array, "last features"]
    memory: Float[Array, "heads value_and_one key"]
    log_scale: Float[Array, " heads"]


class MLSTMSequenceMixer(AbstractRecurrentMixer[MLSTMState]):
    """Matrix memory with an exponential input gate."""

    config: MLSTMSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    value_head_dim: int = eqx.field(static=True)
    qk_proj: Float[Array, "keys features"]  # W_q, W_k
    v_proj: Float[Array, "values features"]
    input_gate_proj: Float[Array, "heads features"]  # W_i
    input_gate_bias: Float[Array, " heads"]  # b_i
    forget_gate_proj: Float[Array, "heads features"]  # W_f
    forget_gate_bias: Float[Array, " heads"]  # b_f
    gate_proj: Float[Array, "values features"]  # W_o
    short_weight: Float[Array, "width features"] | None
    short_bias: Float[Array, " features"] | None
    norm_weight: Float[Array, " values"]
    out_proj: Float[Array, "features values"]  # W_out

    def __init__(self, in_features: int, cfg: MLSTMSequenceMixerConfig, key: PRNGKeyArray):
        qk_key, v_key, input_key, forget_key, gate_key, short_key, out_key = split(key, 7)
        self.config = cfg
        self.in_features = in_features
        self.num_heads = cfg.num_heads
        self.head_dim, self.value_head_dim = key_and_value_sizes(
            in_features, cfg, cfg.num_heads, cfg.head_dim, cfg.value_head_dim
        )
        values = self.num_heads * self.value_head_dim
        self.qk_proj = linear_weight(qk_key, in_features, 2 * self.num_heads * self.head_dim)
        self.v_proj = linear_weight(v_key, in_features, values)
        self.input_gate_proj = linear_weight(input_key, in_features, self.num_heads)
        self.input_gate_bias = constant(-10, (self.num_heads,))
        self.forget_gate_proj = linear_weight(forget_key, in_features, self.num_heads)
        self.forget_gate_bias = constant(np.linspace(3, 6, self.num_heads))
        self.gate_proj = linear_weight(gate_key, in_features, values)
        self.short_weight = self.short_bias = None
        if cfg.short_width is not None:
            shape = (cfg.short_width, in_features)
            self.short_weight = normal(short_key, shape, 1 / math.sqrt(cfg.short_width))
            self.short_bias = constant(0, (in_features,))
        self.norm_weight = constant(1, (values,))
        self.out_proj = linear_weight(out_key, values, in_features)

    @property
    def causal(self) -> bool:
        return True

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"input_gate_bias", "forget_gate_bias"})

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x), x.dtype), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> MLSTMState:
        dtype = accumulation_dtype(dtype or jnp.float32)
        short = ((self.config.short_width or 1) - 1, self.in_features)
        memory = (self.num_heads, self.value_head_dim + 1, self.head_dim)
        shapes = (short, memory, (self.num_heads,))
        return MLSTMState(*(jnp.zeros(shape, dtype) for shape in shapes))

    def prefill(
        self, state: MLSTMState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[MLSTMState, Signal]:
        x, context = enter(self, x, context)
        rules = context.rules()

        def scale(m, f, i):
            before, after = max_scan(f, i, m, **rules)
            return final_state(after, m, axis_name=context.axis_name), before, after

        def remember(memory, v, log_decay, k, q):
            return ssd(v, log_decay, k, q, memory, chunk=self.config.chunk, **rules)

        state, y = self._advance(state, x, partial(short_conv, **rules), scale, remember)
        return state, context.blank_padding(y)

    def step(
        self, state: MLSTMState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[MLSTMState, Frame]:
        x, context = enter_step(self, x, context)

        def scale(m, f, i):
            after = jnp.maximum(m + f, i)
            return after, m, after

        start = context.forget(state)
        new, y = self._advance(start, x, short_conv_step, scale, ssd_step)
        return keep_at_padding(context, new, state), context.blank_padding(y)

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time = math.prod(spatial_dims)
        sizes = min(self.config.chunk, time), self.head_dim, self.value_head_dim + 1
        heads = self.num_heads * linear_attention_flops(*sizes)
        return memory_flops(self, time, heads, inference)

    def _advance(
        self,
        state: MLSTMState,
        x: Float[Array, "*time features"],
        convolve: Callable,
        scale: Callable,
        remember: Callable,
    ) -> tuple[MLSTMState, Float[Array, "*time features"]]:
        """One position or many, by the ops given for that."""
        short, mixed = state.short, x
        if self.short_weight is not None:
            short, mixed = convolve(x, self.short_weight, self.short_bias, short)
            mixed = jax.nn.silu(mixed)
        q, k = jnp.split(split_heads(linear(mixed, self.qk_proj), 2 * self.num_heads), 2, axis=-2)
        v = split_heads(linear(x, self.v_proj), self.num_heads)
        i, f = self._gates(x)
        m = jax.lax.stop_gradient((state.log_scale.astype(f.dtype), f, jnp.maximum(i, 0)))
        m, before, after = scale(*m)
        k = (jnp.exp(i - after)[..., None] * k).astype(v.dtype)
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)  # whose memory is n
        memory = state.memory.astype(f.dtype)
        memory, y = remember(memory, v, f + before - after, k, q / math.sqrt(self.head_dim))
        return MLSTMState(short, memory, m), self._readout(y, after, x)

    def _gates(
        self, x: Float[Array, "*time features"]
    ) -> tuple[Float[Array, "*time heads"], Float[Array, "*time heads"]]:
        """i and f."""
        i = self._cap(upcast(linear(x, self.input_gate_proj)), self.input_gate_bias)
        f = self._cap(upcast(linear(x, self.forget_gate_proj)), self.forget_gate_bias)
        return i, jax.nn.log_sigmoid(f)

    def _cap(
        self, logits: Float[Array, "*time heads"], bias: Float[Array, " heads"]
    ) -> Float[Array, "*time heads"]:
        logits, cap = logits + bias.astype(logits.dtype), self.config.soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _readout(
        self,
        y: Float[Array, "*time heads value_and_one"],
        log_scale: Float[Array, "*time heads"],
        x: Float[Array, "*time features"],
    ) -> Float[Array, "*time features"]:
        y = upcast(y)
        one = jnp.maximum(jnp.exp(-log_scale), _LEAST)[..., None]
        h = y[..., :-1] / jnp.maximum(jnp.abs(y[..., -1:]), one)
        h = join_heads(standardize(h, self.config.norm_eps))
        h = h * self.norm_weight.astype(h.dtype) * jax.nn.sigmoid(linear(x, self.gate_proj))
        return linear(h.astype(x.dtype), self.out_proj)
