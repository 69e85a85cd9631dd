"""S4 (Gu et al., 2022, https://arxiv.org/abs/2111.00396): a HiPPO system for every feature.

    h'(t) = (Λ - P P*) h(t) + B x(t)        diagonal plus low-rank, one complex vector h per feature
    h[t] = Ā h[t-1] + B̄ x[t]                by the trapezoid rule, in steps of length Δ
    y[t] = 2 Re C h[t] + D x[t]
    K[l] = 2 Re C Āˡ B̄                      y = K * x + D x, as a convolution

K comes from its generating function (`ops.cauchy`), and a step takes O(states) (`ops.dplr`). Of each
conjugate pair of states one is kept. For samples at irregular times `context.timesteps` scale Δ.

The published code clips Im B to ±2, in eigenvectors whose phases are arbitrary, and trains
C (I - Āᴸ) for the length L it has seen first. Here B is HiPPO's, and C has no length.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, normal, split, uniform
from ..ops.cauchy import dplr_kernel
from ..ops.chunked_scan import Positions
from ..ops.complex_pair import ComplexPair
from ..ops.diagonal_state_space import read_out
from ..ops.dplr import advance, discretize, DPLR, recurrence
from ..ops.hippo import low_rank_fout, low_rank_legs, low_rank_legt
from ..ops.long_conv import long_conv, long_conv_flops
from ..ops.whole_sequence import gather_time, WholeSequence
from ..precision import accumulation_dtype, cast_like, upcast
from ..types import Frame, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    keep_at_padding,
)
from .padding import convolve, is_convolution


_HIPPO = {"legs": low_rank_legs, "legt": low_rank_legt, "fout": low_rank_fout}


@dataclass(frozen=True)
class S4SequenceMixerConfig(AbstractSequenceMixerConfig):
    """A state space that starts as HiPPO, diagonal plus low-rank, for every feature by itself.

    - `state_dim`: size of a feature's state, conjugates included. Even.
    - `n_ssm`: number of independent Λ, P and B; feature `i` has the one of number `i % n_ssm`. Every
        feature has its own Δ, C and D.
    - `init`: where they start: `"legs"` remembers the whole past, `"legt"` and `"fout"` a window of
        time in Legendre polynomials (P of rank 2) and in sinusoids, `"random"` nothing in particular.
    - `dt_min`, `dt_max`: the range in which Δ starts, uniform in its logarithm, one per feature.
    """

    state_dim: int = 64
    n_ssm: int = 1
    init: Literal["legs", "legt", "fout", "random"] = "legs"
    dt_min: float = 0.001
    dt_max: float = 0.1

    def __post_init__(self):
        require_positive(self, "state_dim", "n_ssm", "dt_min")
        require(self.state_dim % 2 == 0, self, "state_dim", "even: its states are conjugate pairs")
        require(self.dt_min <= self.dt_max, self, "dt_max", "at least dt_min")
        require_choice(self, "init")

    def build(self, in_features: int, key: PRNGKeyArray) -> "S4SequenceMixer":
        divides = in_features % self.n_ssm == 0
        require(divides, self, "n_ssm", f"a divisor of the width, which is {in_features}")
        return S4SequenceMixer(in_features, self, key)


class S4SequenceMixer(AbstractRecurrentMixer[ComplexPair]):
    """Diagonal plus low-rank state spaces. The state is h, shape `(features, state_dim / 2)`."""

    config: S4SequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    log_decay: Float[Array, "n_ssm state"]  # log(-Re λ)
    frequency: Float[Array, "n_ssm state"]  # Im λ
    low_rank: Float[Array, "2 n_ssm rank state"]  # P: real, imaginary
    in_proj: Float[Array, "2 n_ssm state"]  # B: real, imaginary
    out_proj: Float[Array, "2 features state"]  # C: real, imaginary
    log_step: Float[Array, " features"]  # log Δ
    skip: Float[Array, " features"]  # D

    def __init__(self, in_features: int, cfg: S4SequenceMixerConfig, key: PRNGKeyArray):
        system_key, step_key, out_key, skip_key = split(key, 4)
        step_range = math.log(cfg.dt_min), math.log(cfg.dt_max)
        draw = _draw_random if cfg.init == "random" else _hippo
        self.config = cfg
        self.in_features = in_features
        self.log_decay, self.frequency, self.low_rank, self.in_proj = draw(system_key, cfg)
        self.out_proj = normal(out_key, (2, in_features, cfg.state_dim // 2), math.sqrt(0.5))
        self.log_step = uniform(step_key, (in_features,), *step_range)
        self.skip = normal(skip_key, (in_features,))

    @property
    def causal(self) -> bool:
        return True

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"timesteps"})

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"log_decay", "frequency", "low_rank", "in_proj", "log_step"})

    @property
    def state_dim(self) -> int:
        return self.config.state_dim

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        if not is_convolution(context):
            return self.prefill(self.init_state(0, x.dtype), x, context=context)[1]
        x, context = enter(self, x, context)
        kernel = self.kernel(len(x), accumulation_dtype(x.dtype))
        kernel = kernel.at[:, :1].add(self.skip.astype(kernel.dtype)[:, None])
        return context.blank_padding(convolve(partial(long_conv, kernel=kernel.T), x, context))

    def kernel(
        self, length: int, dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "features length"]:
        """K, the response to an impulse, without the skip."""
        return dplr_kernel(*self._system(dtype), length)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> ComplexPair:
        zero = jnp.zeros(self.out_proj.shape[1:], accumulation_dtype(dtype or jnp.float32))
        return ComplexPair(zero, zero)

    def prefill(
        self, state: ComplexPair, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[ComplexPair, Signal]:
        x, context = enter(self, x, context)
        drive = upcast(x)
        # With time split, every device takes all of time for a part of the features.
        whole = WholeSequence.of(len(x), None, None, context.axis_name)
        per_feature = (*self._system(drive.dtype), cast_like(state, drive))
        system, weight, state = jax.tree.map(partial(_own_features, whole), per_feature)
        per_position = context.timesteps, context.resets(), context.mask
        per_position = gather_time(per_position, context.axis_name)
        positions = Positions(whole.gather(drive), *per_position)
        state, y = recurrence(system, weight, state, positions)
        state = jax.tree.map(lambda leaf: whole.all_features(leaf.T).T, state)
        y = whole.scatter(y) + self.skip.astype(y.dtype) * drive
        return state, context.blank_padding(y.astype(x.dtype))

    def step(
        self, state: ComplexPair, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[ComplexPair, Frame]:
        x, context = enter_step(self, x, context)
        drive = upcast(x)
        state = cast_like(state, drive)
        system, weight = self._system(drive.dtype)
        transition = discretize(system, context.timesteps)
        new = advance(transition, context.forget(state), drive)
        new = keep_at_padding(context, new, state)
        y = read_out(weight, new) + self.skip.astype(drive.dtype) * drive
        return new, context.blank_padding(y.astype(x.dtype))

    @property
    def complexity(self) -> str:
        return "O(L log L · d + L · N · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time, states = math.prod(spatial_dims), self.state_dim
        products = (1 + self.low_rank.shape[2]) ** 2
        kernel = time * (states * (2 * products + 5) + 6 * products)
        powers = 2 * states**3 * math.ceil(math.log2(time + 1))
        forward = self.in_features * (long_conv_flops(time) + kernel + powers + 2 * time)
        return forward if inference else 3 * forward

    def _system(self, dtype: DTypeLike) -> tuple[DPLR, ComplexPair]:
        """Every feature's system, and C."""
        copies = self.in_features // self.config.n_ssm

        def per_feature(array: Float[Array, "n_ssm ..."]) -> Float[Array, "features ..."]:
            return jnp.tile(array.astype(dtype), (copies, *(1,) * (array.ndim - 1)))

        system = DPLR(
            ComplexPair(-jnp.exp(per_feature(self.log_decay)), per_feature(self.frequency)),
            ComplexPair(*map(per_feature, self.low_rank)),
            ComplexPair(*map(per_feature, self.in_proj)),
            jnp.exp(self.log_step.astype(dtype)),
        )
        return system, ComplexPair(*self.out_proj.astype(dtype))


def _own_features(
    whole: WholeSequence, array: Float[Array, "features ..."]
) -> Float[Array, "own ..."]:
    flat = whole.own_features(array.reshape(len(array), -1).T)
    return flat.T.reshape(-1, *array.shape[1:])


def _hippo(key: PRNGKeyArray, cfg: S4SequenceMixerConfig) -> tuple[Array, ...]:
    """log(-Re λ), Im λ, P and B. Where λ is imaginary, its real part starts just below 0."""
    eigenvalues, low_rank, in_vector = _HIPPO[cfg.init](cfg.state_dim)
    log_decay = np.log(np.maximum(-eigenvalues.real, 1e-4))
    pair = lambda array: np.stack([array.real, array.imag])
    return tuple(
        constant(np.stack([array] * cfg.n_ssm, axis=axis))
        for array, axis in (
            (log_decay, 0),
            (eigenvalues.imag, 0),
            (pair(low_rank), 1),
            (pair(in_vector), 1),
        )
    )


def _draw_random(key: PRNGKeyArray, cfg: S4SequenceMixerConfig) -> tuple[Array, ...]:
    frequency_key, low_rank_key, in_key = split(key, 3)
    shape = (cfg.n_ssm, cfg.state_dim // 2)
    return (
        constant(math.log(0.5), shape),
        uniform(frequency_key, shape, 0.0, math.pi * cfg.state_dim / 2),
        normal(low_rank_key, (2, cfg.n_ssm, 1, cfg.state_dim // 2), math.sqrt(0.5)),
        normal(in_key, (2, *shape), math.sqrt(0.5)),
    )
