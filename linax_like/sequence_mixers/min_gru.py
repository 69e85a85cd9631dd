"""minGRU, a GRU whose gates see the input alone (Feng et al., 2024, https://arxiv.org/abs/2410.01201).

    z[t] = σ(W_z x[t] + b_z)
    h[t] = (1 - z[t]) ⊙ h[t-1] + z[t] ⊙ g(W_h x[t] + b_h)

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
class MinGRUSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A moving average of candidates, as fast as the input says.

    - `expand`: width of the state, in features. A wider one is projected back.
    - `candidate`: g, `"linear"` or `"positive"`.
    """

    expand: int = 1
    candidate: Literal["linear", "positive"] = "linear"

    def __post_init__(self):
        require_positive(self, "expand")
        require_choice(self, "candidate")

    def build(self, in_features: int, key: PRNGKeyArray) -> "MinGRUSequenceMixer":
        return MinGRUSequenceMixer(in_features, self, key)


class MinGRUSequenceMixer(AbstractRecurrentMixer[Array]):
    """Gated moving average. The state is h, shape `(state,)`."""

    config: MinGRUSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    in_proj: Float[Array, "projections features"]  # W_z, W_h
    gate_bias: Float[Array, " state"]  # b_z
    candidate_bias: Float[Array, " state"]  # b_h
    out_proj: Float[Array, "features state"] | None

    def __init__(self, in_features: int, cfg: MinGRUSequenceMixerConfig, key: PRNGKeyArray):
        in_key, out_key = split(key, 2)
        state_dim = cfg.expand * in_features
        self.config = cfg
        self.in_features = in_features
        self.in_proj = linear_weight(in_key, in_features, 2 * state_dim)
        self.gate_bias = constant(0, (state_dim,))
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
        forward = math.prod(spatial_dims) * (2 * self.in_proj.size + 10 * self.state_dim + back)
        return forward if inference else 3 * forward

    def _gates(
        self, x: Float[Array, "*time features"]
    ) -> tuple[Float[Array, "*time state"], Float[Array, "*time state"]]:
        """The decay, and what enters the state."""
        gate, candidate = jnp.split(upcast(linear(x, self.in_proj)), 2, axis=-1)
        gate = gate + self.gate_bias.astype(gate.dtype)
        candidate = candidate + self.candidate_bias.astype(gate.dtype)
        if self.config.candidate == "positive":
            candidate = positive(candidate)
        return jax.nn.sigmoid(-gate), jax.nn.sigmoid(gate) * candidate

    def _readout(
        self, h: Float[Array, "*time state"], x: Float[Array, "*time features"]
    ) -> Float[Array, "*time features"]:
        h = h.astype(x.dtype)
        return h if self.out_proj is None else linear(h, self.out_proj)
