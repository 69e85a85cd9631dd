"""S5 (Smith et al., 2023, https://arxiv.org/abs/2208.04933): one diagonal system for all features.

    h[t] = exp(Δλ) ⊙ h[t-1] + g ⊙ B x[t]        g = (exp(Δλ) - 1) / λ    (zoh, and others)
    y[t] = 2 Re(C h[t]) + D ⊙ x[t]

λ, B and C start as HiPPO-LegS in its eigenbasis V: B = V* B₀, C = C₀ V. Of each conjugate pair of
states one is kept, hence the 2. For samples at irregular times `context.timesteps` scale Δ.
"""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, normal, split, truncated_normal, uniform
from ..ops.complex_linear import project_in, project_out, scale_rows
from ..ops.complex_pair import ComplexPair, multiply
from ..ops.discretize import discretize_decay, discretize_gain
from ..ops.hippo import block_diagonal_legs
from ..ops.linear_scan import linear_scan
from ..ops.next_real import next_real
from ..precision import accumulation_dtype, cast_like
from ..types import Frame, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    require_causal,
)
from .recurrence import scan_states, step_state


@dataclass(frozen=True)
class S5SequenceMixerConfig(AbstractSequenceMixerConfig):
    """A complex diagonal state space that starts as HiPPO.

    - `state_dim`: size of the state, conjugates included.
    - `ssm_blocks`: how many HiPPO systems of size `state_dim / ssm_blocks` λ starts as.
    - `conj_sym`: keep one of each conjugate pair of states, half the work. Else y = Re(C h) + D x.
    - `clip_eigs`: how Re λ is kept negative, so that no state grows: by a bound of -1e-4 that it
        stays at, or else by -|Re λ|.
    - `C_init`: how C₀ is drawn: `"lecun_normal"` with variance 1 / state_dim,
        `"trunc_standard_normal"` the same cut at two standard deviations, `"complex_normal"` with
        variance 1 and in the eigenbasis already.
    - `dt_min`, `dt_max`: the range in which Δ starts, uniform in its logarithm, one per state.
    - `discretization`: how the continuous system becomes a step.
    - `bidirectional`: a second C reads the states of the reversed sequence. Not causal then.
    - `step_rescale`: multiplies Δ, for data sampled at another rate than in training.
    - `timestep_gain`: whether `context.timesteps` scale Δ in the input gain too (`"scaled"`:
        samples of a continuous signal), or in the decay alone (`"constant"`: events).
    """

    state_dim: int = 64
    ssm_blocks: int = 1
    conj_sym: bool = True
    clip_eigs: bool = True
    C_init: Literal["lecun_normal", "trunc_standard_normal", "complex_normal"] = "lecun_normal"
    dt_min: float = 0.001
    dt_max: float = 0.1
    discretization: Literal["zoh", "bilinear", "dirac"] = "zoh"
    bidirectional: bool = False
    step_rescale: float = 1.0
    timestep_gain: Literal["scaled", "constant"] = "scaled"

    def __post_init__(self):
        require_positive(self, "state_dim", "ssm_blocks", "dt_min", "step_rescale")
        require(self.dt_min <= self.dt_max, self, "dt_max", "at least dt_min")
        divisor = self.ssm_blocks * (2 if self.conj_sym else 1)
        law = "a multiple of ssm_blocks" + (" and of 2 per block (conj_sym)" * self.conj_sym)
        require(self.state_dim % divisor == 0, self, "state_dim", law)
        require_choice(self, "C_init", "discretization", "timestep_gain")

    def build(self, in_features: int, key: PRNGKeyArray) -> "S5SequenceMixer":
        return S5SequenceMixer(in_features, self, key)


class S5SequenceMixer(AbstractRecurrentMixer[ComplexPair]):
    """Complex diagonal state space. The state is the complex vector h, shape `(state,)`."""

    config: S5SequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    eigenvalues_real: Float[Array, " state"]  # Re λ
    eigenvalues_imag: Float[Array, " state"]  # Im λ
    log_step: Float[Array, " state"]  # log Δ
    in_proj: Float[Array, "2 state features"]  # B: real, imaginary
    out_proj: Float[Array, "2 features state"]  # C: real, imaginary
    reverse_out_proj: Float[Array, "2 features state"] | None  # C of the reversed sequence
    skip: Float[Array, " features"]  # D

    def __init__(self, in_features: int, cfg: S5SequenceMixerConfig, key: PRNGKeyArray):
        step_key, in_key, out_key, reverse_key, skip_key = split(key, 5)
        eigenvalues, basis = block_diagonal_legs(cfg.state_dim, cfg.ssm_blocks, cfg.conj_sym)
        shape = eigenvalues.shape
        in_weight = normal(in_key, (cfg.state_dim, in_features), 1 / math.sqrt(in_features))
        self.config = cfg
        self.in_features = in_features
        self.eigenvalues_real = constant(eigenvalues.real)
        self.eigenvalues_imag = constant(eigenvalues.imag)
        self.log_step = uniform(step_key, shape, math.log(cfg.dt_min), math.log(cfg.dt_max))
        rotate = constant(np.stack([basis.real.T, -basis.imag.T]))
        self.in_proj = rotate @ in_weight
        self.out_proj = _draw_out_proj(out_key, in_features, cfg)
        self.reverse_out_proj = None
        if cfg.bidirectional:
            self.reverse_out_proj = _draw_out_proj(reverse_key, in_features, cfg)
        self.skip = normal(skip_key, (in_features,))

    @property
    def causal(self) -> bool:
        return not self.config.bidirectional

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"timesteps"})

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"eigenvalues_real", "eigenvalues_imag", "log_step"})

    @property
    def state_dim(self) -> int:
        return self.config.state_dim

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        x, context = enter(self, x, context)
        decay, drive = self._system(x, context.timesteps)
        _, states = scan_states(decay, drive, self._zero_state(x.dtype), context)
        y = self._readout(states, x)
        if self.reverse_out_proj is not None:
            y = y + self._project(self._backward(drive, context), self.reverse_out_proj, x)
        return context.blank_padding(y)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> ComplexPair:
        require_causal(self, "set `bidirectional=False`")
        return self._zero_state(dtype or jnp.float32)

    def prefill(
        self, state: ComplexPair, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[ComplexPair, Signal]:
        require_causal(self, "set `bidirectional=False`")
        x, context = enter(self, x, context)
        decay, drive = self._system(x, context.timesteps)
        state, states = scan_states(decay, drive, state, context)
        return state, context.blank_padding(self._readout(states, x))

    def step(
        self, state: ComplexPair, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[ComplexPair, Frame]:
        require_causal(self, "set `bidirectional=False`")
        x, context = enter_step(self, x, context)
        decay, drive = self._system(x, context.timesteps)
        state = step_state(decay, drive, state, context)
        return state, context.blank_padding(self._readout(state, x))

    @property
    def complexity(self) -> str:
        return "O(L · N · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        states = self.log_step.size
        directions = 1 if self.causal else 2
        projections = 4 * self.in_features * states * (1 + directions)
        recurrence = (6 + 8 * directions) * states + 2 * self.in_features
        forward = math.prod(spatial_dims) * (projections + recurrence)
        return forward if inference else 3 * forward

    def _zero_state(self, dtype: DTypeLike) -> ComplexPair:
        zero = jnp.zeros(self.log_step.shape, accumulation_dtype(dtype))
        return ComplexPair(zero, zero)

    def _backward(self, drive: ComplexPair, context: SequenceContext) -> ComplexPair:
        """The states of the reversed sequence, in which a document begins where it ended."""
        mask, axis_name = context.mask, context.axis_name
        resets, timesteps = context.segment_ids, context.timesteps
        if resets is not None:
            resets = resets != next_real(resets, mask, axis_name)
            resets = resets if mask is None else resets & mask
        if timesteps is not None:
            # Backwards, the time since the previous sample is what the next one was given.
            timesteps = next_real(timesteps, mask, axis_name)
        eigenvalues, dt = self._continuous(timesteps, drive.real.dtype)
        decay = discretize_decay(eigenvalues, dt, self.config.discretization)
        return linear_scan(
            decay, drive, resets=resets, mask=mask, reverse=True, axis_name=axis_name
        )

    def _system(
        self, x: Float[Array, "*time features"], timesteps: Float[Array, "*time"] | None
    ) -> tuple[ComplexPair, ComplexPair]:
        """The decay, constant in time unless there are timesteps, and what drives the states."""
        method, dtype = self.config.discretization, accumulation_dtype(x.dtype)
        eigenvalues, dt = self._continuous(timesteps, dtype)
        decay = discretize_decay(eigenvalues, dt, method)
        if self.config.timestep_gain == "constant":
            eigenvalues, dt = self._continuous(None, dtype)
        gain = discretize_gain(eigenvalues, dt, method)
        if gain.real.ndim == x.ndim:
            return decay, multiply(gain, project_in(x, self.in_proj))
        # Constant in time, the gain goes into the matrix, which is smaller than the sequence.
        return decay, project_in(x, scale_rows(self.in_proj, gain))

    def _continuous(
        self, timesteps: Float[Array, "*time"] | None, dtype: DTypeLike
    ) -> tuple[ComplexPair, Float[Array, "*time state"]]:
        """λ, and Δ."""
        real, imag = self.eigenvalues_real.astype(dtype), self.eigenvalues_imag.astype(dtype)
        clipped = jnp.where(real < -1e-4, real, -1e-4)
        real = clipped if self.config.clip_eigs else -jnp.abs(real)
        dt = self.config.step_rescale * jnp.exp(self.log_step.astype(dtype))
        if timesteps is not None:
            dt = timesteps[..., None].astype(dtype) * dt
        return ComplexPair(real, imag), dt

    def _readout(
        self, h: ComplexPair, x: Float[Array, "*time features"]
    ) -> Float[Array, "*time features"]:
        return self._project(h, self.out_proj, x) + self.skip.astype(x.dtype) * x

    def _project(
        self,
        h: ComplexPair,
        weight: Float[Array, "2 features state"],
        like: Float[Array, "*time features"],
    ) -> Float[Array, "*time features"]:
        return project_out(cast_like(h, like), 2 * weight if self.config.conj_sym else weight)


def _draw_out_proj(
    key: PRNGKeyArray, in_features: int, cfg: S5SequenceMixerConfig
) -> Float[Array, "2 features state"]:
    _, basis = block_diagonal_legs(cfg.state_dim, cfg.ssm_blocks, cfg.conj_sym)
    if cfg.C_init == "complex_normal":
        return normal(key, (2, in_features, basis.shape[1]), math.sqrt(0.5))
    draw = normal if cfg.C_init == "lecun_normal" else truncated_normal
    weight = draw(key, (in_features, 2 * cfg.state_dim), 1 / math.sqrt(cfg.state_dim))
    # The real and the imaginary part of C₀ V, from those of C₀ side by side.
    real, imag = basis.real, basis.imag
    rotate = np.stack([np.concatenate([real, -imag]), np.concatenate([imag, real])])
    return weight @ constant(rotate)
