"""S7 (Soydan et al., 2024, https://arxiv.org/abs/2410.03464): a stable system that the input chooses.

    u[t] = W_in x[t]        A, B, C, D, b at t: linear in u[t]
    h[t] = Ā ⊙ h[t-1] + Bᵀ u[t] + b        Ā = 1 - 1 / ((A + A₀)² + 1/2), in [-1, 1) for every A
    y[t] = C h[t] + D ⊙ u[t]
    out  = σ(W_g gelu(y)) ⊙ y

A₀ starts such that without A the states decay as the diagonal of HiPPO-LegS, λ = -1, -2, …, does in
steps of Δ: Ā = exp(Δλ), so that memories are spread from a few steps to 1 / Δ. The published code takes
the real parts of its eigenvalues once it is made normal, which are all -1/2, for A₀: all memories
are the same, Ā = -1/3.

The matrices B and C of a position are never stored for all of time: Bᵀu and Ch are bilinear, so they are
computed for one state after the other, each with a product of two matrices.
"""

import math
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split
from ..ops.gelu import gelu
from ..ops.hippo import legs
from ..ops.varying import vary_together
from ..precision import accumulation_dtype, linear, upcast
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig, enter, enter_step
from .recurrence import scan_states, step_state


@dataclass(frozen=True)
class S7SequenceMixerConfig(AbstractSequenceMixerConfig):
    """A diagonal real state space all of whose parts depend on the input.

    - `state_dim`: size of the state. There are 2 × features² parameters for every state.
    - `dt`: Δ, the step of HiPPO with which the decays start; the longest memory is 1 / Δ steps.
    """

    state_dim: int = 16
    dt: float = 0.01

    def __post_init__(self):
        require_positive(self, "state_dim", "dt")

    def build(self, in_features: int, key: PRNGKeyArray) -> "S7SequenceMixer":
        return S7SequenceMixer(in_features, self, key)


class S7SequenceMixer(AbstractRecurrentMixer[Array]):
    """Input-dependent diagonal recurrence. The state is h, shape `(state,)`."""

    config: S7SequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    in_proj: Float[Array, "features features"]  # W_in
    decay_proj: Float[Array, "state features"]  # u → A
    decay_bias: Float[Array, " state"]  # A₀
    state_in_proj: Float[Array, "state features features"]  # u → Bᵀ
    state_bias_proj: Float[Array, "state features"]  # u → b
    state_out_proj: Float[Array, "state features features"]  # u → Cᵀ
    skip_proj: Float[Array, "features features"]  # u → D
    gate_proj: Float[Array, "features features"]  # W_g

    def __init__(self, in_features: int, cfg: S7SequenceMixerConfig, key: PRNGKeyArray):
        keys = split(key, 7)
        state_dim, root = cfg.state_dim, math.sqrt(in_features)
        decay = np.exp(cfg.dt * np.diag(legs(state_dim)[0]))
        # Of two equal parts, Bᵀu and b, and such that states have unit variance in white noise.
        gain = np.sqrt((1 - decay**2) / 2)[:, None]
        square = (state_dim, in_features, in_features)
        self.config = cfg
        self.in_features = in_features
        self.in_proj = linear_weight(keys[0], in_features, in_features)
        self.decay_proj = linear_weight(keys[1], in_features, state_dim)
        self.decay_bias = constant(np.sqrt(1 / (1 - decay) - 0.5))
        self.state_in_proj = normal(keys[2], square, gain[:, None] / in_features)
        self.state_bias_proj = normal(keys[3], square[:2], gain / root)
        self.state_out_proj = normal(keys[4], square, 1 / (root * math.sqrt(state_dim)))
        self.skip_proj = linear_weight(keys[5], in_features, in_features)
        self.gate_proj = linear_weight(keys[6], in_features, in_features)

    @property
    def causal(self) -> bool:
        return True

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"decay_bias"})

    @property
    def state_dim(self) -> int:
        return self.config.state_dim

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
        u = linear(x, self.in_proj)
        state, states = scan_states(*self._system(u), state, context)
        return state, context.blank_padding(self._readout(states, u))

    def step(
        self, state: Float[Array, " state"], x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[Float[Array, " state"], Frame]:
        x, context = enter_step(self, x, context)
        u = linear(x, self.in_proj)
        state = step_state(*self._system(u), state, context)
        return state, context.blank_padding(self._readout(state, u))

    @property
    def complexity(self) -> str:
        return "O(L · N · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        states, features = self.state_dim, self.in_features
        bilinear = 4 * features * (features + 1) * states
        projections = 2 * features * (3 * features + 2 * states)
        forward = math.prod(spatial_dims) * (bilinear + projections + 10 * (states + features))
        return forward if inference else 3 * forward

    def _system(
        self, u: Float[Array, "*time features"]
    ) -> tuple[Float[Array, "*time state"], Float[Array, "*time state"]]:
        """The decay Ā, and what enters the state."""
        a = upcast(linear(u, self.decay_proj))
        a = a + self.decay_bias.astype(a.dtype)
        drive = _enter_states(u, self.state_in_proj) + upcast(linear(u, self.state_bias_proj))
        return 1 - 1 / (a * a + 0.5), drive

    def _readout(
        self, h: Float[Array, "*time state"], u: Float[Array, "*time features"]
    ) -> Float[Array, "*time features"]:
        y = _leave_states(h, u, self.state_out_proj).astype(u.dtype)
        y = y + linear(u, self.skip_proj) * u
        return jax.nn.sigmoid(linear(gelu(y), self.gate_proj)) * y


def _enter_states(
    u: Float[Array, "*time features"], weight: Float[Array, "state features features"]
) -> Float[Array, "*time state"]:
    """Bᵀu: Σⱼₖ weight[n, j, k] u[j] u[k], one state n after the other."""

    @partial(jax.checkpoint, prevent_cse=False)
    def one(weight):
        return jnp.sum(upcast(u) * upcast(linear(u, weight)), axis=-1)

    return jnp.moveaxis(jax.lax.map(one, weight), 0, -1)


def _leave_states(
    h: Float[Array, "*time state"],
    u: Float[Array, "*time features"],
    weight: Float[Array, "state features features"],
) -> Float[Array, "*time features"]:
    """C h: Σₙₖ h[n] weight[n, j, k] u[k], one state n after the other."""

    @partial(jax.checkpoint, prevent_cse=False)
    def one(y, inputs):
        h, weight = inputs
        return y + h[..., None] * upcast(linear(u, weight)), None

    start, h = vary_together(jnp.zeros_like(u, dtype=h.dtype), h)
    return jax.lax.scan(one, start, (jnp.moveaxis(h, -1, 0), weight))[0]
