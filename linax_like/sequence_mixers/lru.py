"""Linear Recurrent Unit (Orvieto et al., 2023, https://arxiv.org/abs/2303.06349).

    h[t] = λ ⊙ h[t-1] + γ ⊙ B x[t]
    y[t] = Re(C h[t]) + D ⊙ x[t]

with λ = exp(-exp(ν) + i exp(θ)), so that |λ| < 1 whatever the parameters.
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
from ..initializers import normal, split, uniform
from ..ops.complex_linear import project_in, project_out
from ..ops.complex_pair import ComplexPair, exp, scale
from ..precision import accumulation_dtype, cast_like
from ..types import Frame, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
)
from .recurrence import scan_states, step_state


@dataclass(frozen=True)
class LRUSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A complex diagonal recurrence whose eigenvalues start in a ring.

    - `state_dim`: number of complex states.
    - `min_radius`, `max_radius`: the ring in which λ starts. The paper's ring is the whole disc; one
        near the unit circle remembers for longer.
    - `max_phase`: the largest initial angle of λ, in radians.
    """

    state_dim: int = 64
    min_radius: float = 0.0
    max_radius: float = 0.999
    max_phase: float = 2 * math.pi

    def __post_init__(self):
        require_positive(self, "state_dim", "max_phase")
        require(0 <= self.min_radius < 1, self, "min_radius", "in [0, 1)")
        law = "above min_radius and below 1"
        require(self.min_radius < self.max_radius < 1, self, "max_radius", law)

    def build(self, in_features: int, key: PRNGKeyArray) -> "LRUSequenceMixer":
        return LRUSequenceMixer(in_features, self, key)


class LRUSequenceMixer(AbstractRecurrentMixer[ComplexPair]):
    """Complex diagonal linear recurrence. The state is the complex vector h, shape `(state,)`."""

    config: LRUSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    log_decay: Float[Array, " state"]  # ν
    log_phase: Float[Array, " state"]  # log θ
    log_gain: Float[Array, " state"]  # log γ
    in_proj: Float[Array, "2 state features"]  # B: real, imaginary
    out_proj: Float[Array, "2 features state"]  # C: real, imaginary
    skip: Float[Array, " features"]  # D

    def __init__(self, in_features: int, cfg: LRUSequenceMixerConfig, key: PRNGKeyArray):
        radius_key, phase_key, in_key, out_key, skip_key = split(key, 5)
        shape = (cfg.state_dim,)
        # Uniform on the ring by area; never quite 0, where the logarithm ends.
        squared_radius = uniform(
            radius_key, shape, max(cfg.min_radius**2, 1e-6), cfg.max_radius**2
        )
        phase = uniform(phase_key, shape, 1e-6, cfg.max_phase)
        self.config = cfg
        self.in_features = in_features
        self.log_decay, self.log_phase, self.log_gain = _ring(squared_radius, phase)
        in_shape, out_shape = (2, cfg.state_dim, in_features), (2, in_features, cfg.state_dim)
        self.in_proj = normal(in_key, in_shape, 1 / math.sqrt(2 * in_features))
        self.out_proj = normal(out_key, out_shape, 1 / math.sqrt(cfg.state_dim))
        self.skip = normal(skip_key, (in_features,))

    @property
    def causal(self) -> bool:
        return True

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"log_decay", "log_phase", "log_gain"})

    @property
    def state_dim(self) -> int:
        return self.config.state_dim

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x)), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> ComplexPair:
        zero = jnp.zeros((self.state_dim,), accumulation_dtype(dtype or jnp.float32))
        return ComplexPair(zero, zero)

    def prefill(
        self, state: ComplexPair, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[ComplexPair, Signal]:
        x, context = enter(self, x, context)
        drive = self._drive(x)
        decay = self._eigenvalues(drive.real.dtype)
        state, states = scan_states(decay, drive, state, context)
        return state, context.blank_padding(self._readout(states, x))

    def step(
        self, state: ComplexPair, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[ComplexPair, Frame]:
        x, context = enter_step(self, x, context)
        drive = self._drive(x)
        decay = self._eigenvalues(drive.real.dtype)
        state = step_state(decay, drive, state, context)
        return state, context.blank_padding(self._readout(state, x))

    @property
    def complexity(self) -> str:
        return "O(L · N · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        projections = 2 * 2 * 2 * self.in_features * self.state_dim
        recurrence = 8 * self.state_dim + 2 * self.in_features
        forward = math.prod(spatial_dims) * (projections + recurrence)
        return forward if inference else 3 * forward

    def _eigenvalues(self, dtype: DTypeLike) -> ComplexPair:
        rate, phase = (jnp.exp(log.astype(dtype)) for log in (self.log_decay, self.log_phase))
        return exp(ComplexPair(-rate, phase))

    def _drive(self, x: Float[Array, "... features"]) -> ComplexPair:
        if x.ndim == 1:
            drive = project_in(x, self.in_proj)
            return scale(drive, jnp.exp(self.log_gain.astype(drive.real.dtype)))
        # The gain goes into the matrix, which is smaller than the sequence.
        gain = jnp.exp(self.log_gain.astype(accumulation_dtype(x.dtype)))
        return project_in(x, gain[:, None] * self.in_proj.astype(gain.dtype))

    def _readout(
        self, h: ComplexPair, x: Float[Array, "... features"]
    ) -> Float[Array, "... features"]:
        return project_out(cast_like(h, x), self.out_proj) + self.skip.astype(x.dtype) * x


@jax.jit
def _ring(squared_radius: Array, phase: Array) -> tuple[Array, Array, Array]:
    """ν, log θ and log γ of eigenvalues in polar coordinates, as one program."""
    log_decay = jnp.log(-0.5 * jnp.log(squared_radius))
    return log_decay, jnp.log(phase), 0.5 * jnp.log1p(-squared_radius)
