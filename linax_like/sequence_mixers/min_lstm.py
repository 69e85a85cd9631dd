"""minLSTM, an LSTM whose gates see the input alone (Feng et al., 2024, https://arxiv.org/abs/2410.01201).

    f[t] = σ(W_f x[t] + b_f)        i[t] = σ(W_i x[t] + b_i)
    h[t] = f / (f + i) ⊙ h[t-1] + i / (f + i) ⊙ g(W_h x[t] + b_h)

g is the identity, or `positive`, with which the published code computes logarithms of states. Nothing
here needs them: both forms run through `linear_scan`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, split
from ..ops.positive import positive
from ..precision import accumulation_dtype, linear, upcast
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig, enter, enter_step
from .recurrence import scan_states, step_state


@dataclass(frozen=True)
class MinLSTMSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A moving average of candidates, at the ratio of what the input forgets and admits.

    - `expand`: width of the state, in features. A wider one is projected back.
    - `candidate`: g, `"linear"` or `"positive"`.
    """

    expand: int = 1
    candidate: Literal["linear", "positive"] = "linear"

    def __post_init__(self):
        require_positive(self, "expand")
        require_choice(self, "candidate")

    def build(self, in_features: int, key: PRNGKeyArray) -> "MinLSTMSequenceMixer":
        return MinLSTMSequenceMixer(in_features, self, key)


class MinLSTMSequenceMixer(AbstractRecurrentMixer[Array]):
    """Gated moving average. The state is h, shape `(state,)`."""

    config: MinLSTMSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    in_proj: Float[Array, "projections features"]  # W_f, W_i, W_h
    gate_bias: Float[Array, " gates"]  # b_f, b_i
    candidate_bias: Float[Array, " state"]  # b_h
    out_proj: Float[Array, "features state"] | None

    def __init__(self, in_features: int, cfg: MinLSTMSequenceMixerConfig, key: PRNGKeyArray):
        in_key, out_key = split(key, 2)
        state_dim = cfg.expand * in_features
        self.config = cfg
        self.in_features = in_features
        self.in_proj = linear_weight(in_key, in_features, 3 * state_dim)
        self.gate_bias = constant(0, (2 * state_dim,))
        self.candidate_bias = constant(0, (state_dim,))
        self.out_proj = None
        if cfg.expand > 1:
            self.out_proj = linear_weight(out_key, state_dim, in_features)

    @property
    def causal(self) -> bool:
        return True

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"gate_bias"})

    @property
    def state_dim(self) -> int:
        return self.config.expand * self.in_features

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x)), x, context=context)[1]

    def init_state(
        self, max_length: int, dtype: DTypeLike | None = None
    ) -> Float[Array, " state"]:
        return jnp.zeros((self.state_dim,), accumulation_dtype(dtype or jnp.float32))

    def prefill(
        self, state: Float[Array, " state"], x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[Float[Array, " state"], Signal]:
        x, context = enter(self, x, context)
        state, states = scan_states(*self._gates(x), state, context)
        return state, context.blank_padding(self._readout(states, x))

    def step(
        self, state: Float[Array, " state"], x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[Float[Array, " state"], Frame]:
        x, context = enter_step(self, x, context)
        state = step_state(*self._gates(x), state, context)
        return state, context.blank_padding(self._readout(state, x))

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        back = 0 if self.out_proj is None else 2 * self.out_proj.size
        forward = math.prod(spatial_dims) * (2 * self.in_proj.size + 16 * self.state_dim + back)
        return forward if inference else 3 * forward

    def _gates(
        self, x: Float[Array, "*time features"]
    ) -> tuple[Float[Array, "*time state"], Float[Array, "*time state"]]:
        """The decay, and what enters the state."""
        both, candidate = jnp.split(upcast(linear(x, self.in_proj)), [2 * self.state_dim], axis=-1)
        both = both + self.gate_bias.astype(both.dtype)
        candidate = candidate + self.candidate_bias.astype(both.dtype)
        if self.config.candidate == "positive":
            candidate = positive(candidate)
        log_forget, log_admit = jnp.split(jax.nn.log_sigmoid(both), 2, axis=-1)
        # The ratio of two numbers that may both be too small to represent.
        ratio = log_admit - log_forget
        return jax.nn.sigmoid(-ratio), jax.nn.sigmoid(ratio) * candidate

    def _readout(
        self, h: Float[Array, "*time state"], x: Float[Array, "*time features"]
    ) -> Float[Array, "*time features"]:
        h = h.astype(x.dtype)
        return h if self.out_proj is None else linear(h, self.out_proj)
