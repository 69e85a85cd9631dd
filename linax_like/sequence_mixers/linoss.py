"""LinOSS, oscillators driven by the input (Rusch & Rus, 2025, https://arxiv.org/abs/2410.03943), and
with damping (Boyer, Rusch & Rus, 2025, https://arxiv.org/abs/2505.12171).

    s''(t) = -A s(t) - G s'(t) + B x(t)        y(t) = Re(C s(t)) + D ⊙ x(t)

With the velocity z = s' and steps of h, where G = 0 without damping,

    z[t] = S (z[t-1] - h A s[t-1] + h B x[t])        S = 1 / (1 + h G + h² A)    implicit, "IM"
    s[t] = s[t-1] + h z[t]                           S = 1 / (1 + h G)           mixed, "IMEX"

The implicit step loses energy at every size of h, so `context.timesteps` may scale it. The mixed one
has |λ|² = S, and oscillates for A between (√(1 + h G) ∓ 1)² / h²; A is held there. Steps of several
sizes would break that: their product can grow although none of them does.

Unlike in the published code, A has that upper bound, 4 / h², without damping too; the implicit step
may be damped; and B starts such that positions have unit variance in white noise.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import normal, split, uniform
from ..ops.complex_linear import project_in, project_out
from ..ops.complex_pair import ComplexPair, scale
from ..ops.oscillator_scan import (
    oscillator_scan,
    oscillator_step,
    Oscillators,
    OscillatorState,
)
from ..precision import accumulation_dtype, cast_like
from ..types import Frame, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    keep_at_padding,
)


@dataclass(frozen=True)
class LinOSSSequenceMixerConfig(AbstractSequenceMixerConfig):
    """Oscillators, each with a complex position and velocity.

    - `state_dim`: number of oscillators.
    - `discretization`: `"IM"`, implicit: forgets, and heeds `context.timesteps`. `"IMEX"`, implicit
        and explicit in turns: without damping it keeps the energy, and remembers everything.
    - `damping`: whether the oscillators have a friction G, which is learned.
    - `min_radius`: the smallest |λ| that "IMEX" with damping starts with; they are uniform, by area,
        on the ring from there to 1.
    - `max_phase`: the largest angle of λ, in radians, that it starts with. The others start with A
        uniform in [0, 1].
    """

    state_dim: int = 64
    discretization: Literal["IM", "IMEX"] = "IMEX"
    damping: bool = True
    min_radius: float = 0.9
    max_phase: float = math.pi

    def __post_init__(self):
        require_positive(self, "state_dim")
        require_choice(self, "discretization")
        require(0 < self.min_radius < 1, self, "min_radius", "in (0, 1)")
        law = "in (0, π]: a larger angle is the same as a smaller one"
        require(0 < self.max_phase <= math.pi, self, "max_phase", law)

    def build(self, in_features: int, key: PRNGKeyArray) -> "LinOSSSequenceMixer":
        return LinOSSSequenceMixer(in_features, self, key)


class LinOSSSequenceMixer(AbstractRecurrentMixer[OscillatorState]):
    """Driven oscillators. The state is their velocities z and positions s, shape `(state,)` each."""

    config: LinOSSSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    stiffness: Float[Array, " state"]  # A, before it is bounded
    damping: Float[Array, " state"] | None  # G, before it is kept from being negative
    step_logit: Float[Array, " state"]  # h = sigmoid of this
    in_proj: Float[Array, "2 state features"]  # B: real, imaginary
    out_proj: Float[Array, "2 features state"]  # C: real, imaginary
    skip: Float[Array, " features"]  # D

    def __init__(self, in_features: int, cfg: LinOSSSequenceMixerConfig, key: PRNGKeyArray):
        step_key, radius_key, stiffness_key, in_key, out_key, skip_key = split(key, 6)
        shape = (cfg.state_dim,)
        squared_radius = uniform(radius_key, shape, cfg.min_radius**2, 1.0)
        self.config = cfg
        self.in_features = in_features
        self.step_logit = normal(step_key, shape, 0.5)
        self.stiffness, damping, gain = _start(
            cfg, self.step_logit, squared_radius, uniform(stiffness_key, shape)
        )
        self.damping = damping if cfg.damping else None
        in_shape, out_shape = (2, cfg.state_dim, in_features), (2, in_features, cfg.state_dim)
        in_proj = normal(in_key, in_shape, 1 / math.sqrt(2 * in_features))
        self.in_proj = gain[:, None] * in_proj
        self.out_proj = normal(out_key, out_shape, 1 / math.sqrt(cfg.state_dim))
        self.skip = normal(skip_key, (in_features,))

    @property
    def causal(self) -> bool:
        return True

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"timesteps"} if self.config.discretization == "IM" else ())

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"stiffness", "damping", "step_logit"})

    @property
    def state_dim(self) -> int:
        return self.config.state_dim

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x)), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> OscillatorState:
        zero = jnp.zeros((self.state_dim,), accumulation_dtype(dtype or jnp.float32))
        return OscillatorState(ComplexPair(zero, zero), ComplexPair(zero, zero))

    def prefill(
        self, state: OscillatorState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[OscillatorState, Signal]:
        x, context = enter(self, x, context)
        oscillators, drive = self._system(x, context.timesteps)
        state, positions = oscillator_scan(
            oscillators,
            drive,
            cast_like(state, drive),
            resets=context.resets(),
            mask=context.mask,
            axis_name=context.axis_name,
        )
        return state, context.blank_padding(self._readout(positions, x))

    def step(
        self, state: OscillatorState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[OscillatorState, Frame]:
        x, context = enter_step(self, x, context)
        oscillators, drive = self._system(x, context.timesteps)
        state = cast_like(state, drive)
        new = oscillator_step(oscillators, drive, context.forget(state))
        new = keep_at_padding(context, new, state)
        return new, context.blank_padding(self._readout(new.position, x))

    @property
    def complexity(self) -> str:
        return "O(L · N · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        projections = 2 * 2 * 2 * self.in_features * self.state_dim
        recurrence = 12 * self.state_dim + 2 * self.in_features
        forward = math.prod(spatial_dims) * (projections + recurrence)
        return forward if inference else 3 * forward

    def _system(
        self, x: Float[Array, "*time features"], timesteps: Float[Array, "*time"] | None
    ) -> tuple[Oscillators, ComplexPair]:
        """The coefficients, constant in time unless there are timesteps, and what drives z."""
        implicit = self.config.discretization == "IM"
        if timesteps is not None and not implicit:
            raise ValueError(
                "`LinOSSSequenceMixer` with `discretization='IMEX'` is stable only for steps of one "
                "size, but was given `context.timesteps`: set `discretization='IM'`."
            )
        dtype = accumulation_dtype(x.dtype)
        stiffness, dt = self.stiffness.astype(dtype), jax.nn.sigmoid(self.step_logit.astype(dtype))
        damping = jnp.zeros_like(dt) if self.damping is None else self.damping.astype(dtype)
        if timesteps is not None:
            dt = timesteps[..., None].astype(dtype) * dt
        oscillators = _discretize(stiffness, jax.nn.relu(damping), dt, implicit)
        gain = dt * oscillators.keep
        if gain.ndim == x.ndim:
            return oscillators, scale(project_in(x, self.in_proj), gain)
        # Constant in time, the gain goes into the matrix, which is smaller than the sequence.
        return oscillators, project_in(x, gain[:, None] * self.in_proj)

    def _readout(
        self, position: ComplexPair, x: Float[Array, "*time features"]
    ) -> Float[Array, "*time features"]:
        y = project_out(cast_like(position, x), self.out_proj)
        return y + self.skip.astype(x.dtype) * x


def _discretize(
    stiffness: Array, damping: Float[Array, " state"], dt: Array, implicit: bool
) -> Oscillators:
    """A step of size `dt`, from A before it is bounded, and G."""
    if implicit:
        stiffness = jax.nn.relu(stiffness)
        keep = 1 / (1 + dt * damping + dt * dt * stiffness)
    else:
        root = jnp.sqrt(1 + dt * damping)
        low = (damping / (1 + root)) ** 2  # (root - 1) / dt, also for tiny dt
        high = ((1 + root) / jnp.maximum(dt, 1e-6)) ** 2
        stiffness = jnp.clip(stiffness, low, high)
        keep = 1 / (1 + dt * damping)
    return Oscillators(keep, dt * stiffness * keep, dt)


@partial(jax.jit, static_argnums=0)
def _start(
    cfg: LinOSSSequenceMixerConfig, step_logit: Array, squared_radius: Array, draw: Array
) -> tuple[Array, Array, Array]:
    """A, G, and the factor of B with which positions have unit variance in white noise.

    Of an oscillator that hardly forgets, the variance is that of a few hundred steps.
    """
    dt, stiffness = jax.nn.sigmoid(step_logit), draw
    damping = (1 / squared_radius - 1) / dt if cfg.damping else jnp.zeros_like(dt)
    if cfg.damping and cfg.discretization == "IMEX":
        inverse = jax.lax.rsqrt(squared_radius)  # 1 / |λ|
        cosine = jnp.cos(cfg.max_phase * draw)
        stiffness = (1 + inverse**2 - 2 * inverse * cosine) / dt**2
    keep, pull, _ = _discretize(stiffness, damping, dt, cfg.discretization == "IM")
    forgotten = jnp.maximum(1 - keep, 1 / 256)
    turned = dt * pull * (2 + 2 * keep - dt * pull)
    variance = (1 + keep) * (dt * dt * keep) ** 2 / (forgotten * turned)
    return stiffness, damping, jax.lax.rsqrt(variance)
