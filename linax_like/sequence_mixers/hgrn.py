"""HGRN (Qin et al., 2023, https://arxiv.org/abs/2311.04823): gates that cannot forget too fast.

    f[t] = γ + (1 - γ) σ(W_f x[t])
    h[t] = f[t] ⊙ h[t-1] + (1 - f[t]) ⊙ silu(W_i x[t])
    y[t] = W_o (RMSNorm(h[t]) ⊙ silu(W_g x[t]))

The paper learns γ, rising with depth, for all layers together; here each has its own, a constant. Its
states turn by a learned phase; here, as in the later code of its authors (flash-linear-attention),
they are real, projections have no bias, and the norm is of the state alone.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_positive
from ..context import SequenceContext
from ..initializers import linear_weight, split
from ..norms import RMSNorm, RMSNormConfig
from ..precision import accumulation_dtype, linear, upcast
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig, enter, enter_step
from .recurrence import scan_states, step_state


@dataclass(frozen=True)
class HGRNSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A moving average with a slowest rate of forgetting, and gates before and after it.

    - `expand`: width of the state, in features.
    - `lower_bound`: γ, the least that is kept of the state at any position. Lower layers forget
        faster: let it rise from 0 in the first layer towards 1 in the last.
    - `norm`: of the state, before the output gate.
    """

    expand: int = 1
    lower_bound: float = 0.0
    norm: RMSNormConfig = RMSNormConfig()

    def __post_init__(self):
        require_positive(self, "expand")
        require(0 <= self.lower_bound < 1, self, "lower_bound", "in [0, 1)")

    def build(self, in_features: int, key: PRNGKeyArray) -> "HGRNSequenceMixer":
        return HGRNSequenceMixer(in_features, self, key)


class HGRNSequenceMixer(AbstractRecurrentMixer[Array]):
    """Gated linear recurrence. The state is h, shape `(state,)`."""

    config: HGRNSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    in_proj: Float[Array, "projections features"]  # W_f, W_i, W_g
    norm: RMSNorm
    out_proj: Float[Array, "features state"]  # W_o

    def __init__(self, in_features: int, cfg: HGRNSequenceMixerConfig, key: PRNGKeyArray):
        in_key, norm_key, out_key = split(key, 3)
        state_dim = cfg.expand * in_features
        self.config = cfg
        self.in_features = in_features
        self.in_proj = linear_weight(in_key, in_features, 3 * state_dim)
        self.norm = RMSNorm(state_dim, cfg.norm, norm_key)
        self.out_proj = linear_weight(out_key, state_dim, in_features)

    @property
    def causal(self) -> bool:
        return True

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
        decay, drive, gate = self._gates(x)
        state, states = scan_states(decay, drive, state, context)
        return state, context.blank_padding(self._readout(states, gate))

    def step(
        self, state: Float[Array, " state"], x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[Float[Array, " state"], Frame]:
        x, context = enter_step(self, x, context)
        decay, drive, gate = self._gates(x)
        state = step_state(decay, drive, state, context)
        return state, context.blank_padding(self._readout(state, gate))

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        projections = 2 * (self.in_proj.size + self.out_proj.size)
        forward = math.prod(spatial_dims) * (projections + 24 * self.state_dim)
        return forward if inference else 3 * forward

    def _gates(
        self, x: Float[Array, "*time features"]
    ) -> tuple[
        Float[Array, "*time state"], Float[Array, "*time state"], Float[Array, "*time state"]
    ]:
        """The decay, what enters the state, and the gate of the output, that in the input's dtype."""
        forget, admit, gate = jnp.split(linear(x, self.in_proj), 3, axis=-1)
        forget, admit = upcast(forget), upcast(admit)
        rest = (1 - self.config.lower_bound) * jax.nn.sigmoid(-forget)  # 1 - f, exact near f = 1
        return 1 - rest, rest * jax.nn.silu(admit), jax.nn.silu(gate)

    def _readout(
        self, h: Float[Array, "*time state"], gate: Float[Array, "*time state"]
    ) -> Float[Array, "*time features"]:
        return linear(self.norm(h).astype(gate.dtype) * gate, self.out_proj)
