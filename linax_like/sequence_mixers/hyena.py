"""Hyena (Poli et al., 2023, https://arxiv.org/abs/2302.10866): gates and long implicit convolutions.

    (x₀ … x_{N-1}, v) = short_conv(W_in x)                N is the order
    v ← k_n * (v ⊙ x_i) + d_n ⊙ (v ⊙ x_i)                 for i = N-1 … 1, n = 1 … N-1
    y = W_out (v ⊙ x₀)

The kernels k are small networks of the time (`implicit_filter`), so they have no length of their own.
As a recurrence the mixer's state is the past itself: what each convolution has read so far.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..config import require, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split
from ..ops.long_conv import long_conv_flops
from ..ops.short_conv import short_conv, short_conv_step
from ..ops.whole_sequence import WholeSequence
from ..precision import accumulation_dtype, linear
from ..types import Frame, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    keep_at_padding,
)
from .convolution_history import (
    convolve,
    convolve_step,
    gates_and_convolutions,
    nan_if_outgrown,
)
from .implicit_filter import ImplicitFilter, ImplicitFilterConfig


@dataclass(frozen=True)
class HyenaSequenceMixerConfig(AbstractSequenceMixerConfig):
    """Gated long convolutions whose kernels are small networks of the time.

    - `order`: number of gates; there is one long convolution fewer.
    - `short_width`: taps of the short convolution before the gates.
    - `filter`: the kernels of the long convolutions.
    - `max_documents`: how many packed documents a sequence holds at most, as each takes a
        convolution of its own. Outputs of further ones are NaN.
    """

    order: int = 2
    short_width: int = 3
    filter: ImplicitFilterConfig = ImplicitFilterConfig()
    max_documents: int = 8

    def __post_init__(self):
        require(self.order >= 2, self, "order", "at least 2")
        require_positive(self, "short_width", "max_documents")

    def build(self, in_features: int, key: PRNGKeyArray) -> "HyenaSequenceMixer":
        return HyenaSequenceMixer(in_features, self, key)


class HyenaState(NamedTuple):
    """The current document's past, the newest last, and zeros where there was none.

    - `short`: the last inputs of the short convolution.
    - `history`: the inputs of every long convolution.
    - `length`: positions of the document so far.
    """

    short: Float[Array, "last projections"]
    history: Float[Array, "convolutions capacity features"]
    length: Int[Array, ""]


class HyenaSequenceMixer(AbstractRecurrentMixer[HyenaState]):
    """Gates and long convolutions.

    The state keeps `max_length` positions, and a step takes time in proportion to them. When a
    document outgrows its state, the output is NaN: nothing is forgotten unnoticed.
    """

    config: HyenaSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    in_proj: Float[Array, "projections features"]  # W_in
    in_bias: Float[Array, " projections"]
    short_weight: Float[Array, "width projections"]
    short_bias: Float[Array, " projections"]
    filter: ImplicitFilter  # k
    skip: Float[Array, " kernels"]  # d
    out_proj: Float[Array, "features features"]  # W_out
    out_bias: Float[Array, " features"]

    def __init__(self, in_features: int, cfg: HyenaSequenceMixerConfig, key: PRNGKeyArray):
        in_key, short_key, filter_key, skip_key, out_key = split(key, 5)
        projections, width = (cfg.order + 1) * in_features, cfg.short_width
        self.config = cfg
        self.in_features = in_features
        self.in_proj = linear_weight(in_key, in_features, projections)
        self.in_bias = constant(0, (projections,))
        self.short_weight = normal(short_key, (width, projections), 1 / math.sqrt(width))
        self.short_bias = constant(0, (projections,))
        self.filter = cfg.filter.build((cfg.order - 1) * in_features, filter_key)
        self.skip = normal(skip_key, ((cfg.order - 1) * in_features,))
        self.out_proj = linear_weight(out_key, in_features, in_features)
        self.out_bias = constant(0, (in_features,))

    @property
    def causal(self) -> bool:
        return True

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        x, context = enter(self, x, context)
        return self._advance(self.init_state(0, x.dtype), x, context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> HyenaState:
        cfg, dtype = self.config, dtype or jnp.float32
        return HyenaState(
            jnp.zeros((cfg.short_width - 1, len(self.in_proj)), accumulation_dtype(dtype)),
            jnp.zeros((cfg.order - 1, max_length, self.in_features), dtype),
            jnp.zeros((), jnp.int32),
        )

    def prefill(
        self, state: HyenaState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[HyenaState, Signal]:
        x, context = enter(self, x, context)
        after, y = self._advance(state, x, context)
        return after, nan_if_outgrown(y, context, state.length, state.history.shape[1])

    def step(
        self, state: HyenaState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[HyenaState, Frame]:
        x, context = enter_step(self, x, context)
        short, history, length = context.forget(state)
        weight, bias = self.short_weight, self.short_bias
        short, u = short_conv_step(self._project(x), weight, bias, short)
        *gates, v = jnp.split(u, self.config.order + 1)
        kernels = self._kernels(history.shape[1], accumulation_dtype(x.dtype))
        steps = [
            partial(convolve_step, past, kernel=kernel)
            for past, kernel in zip(history, kernels, strict=True)
        ]
        histories, v = gates_and_convolutions(v, gates[::-1], steps)
        y = self._readout(v)
        y = jnp.where(length < history.shape[1], y, jnp.nan)
        new = HyenaState(short, jnp.stack(histories), length + 1)
        return keep_at_padding(context, new, state), context.blank_padding(y)

    @property
    def complexity(self) -> str:
        return "O(L log L · d + L · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time, convolutions = math.prod(spatial_dims), self.config.order - 1
        projections = 2 * self.in_proj.size + 2 * self.out_proj.size + 2 * self.short_weight.size
        weights = sum(weight.size for weight in self.filter.weights)
        pointwise = time * (projections + 2 * weights + (convolutions + 1) * self.in_features)
        forward = pointwise + convolutions * self.in_features * long_conv_flops(time)
        return forward if inference else 3 * forward

    def _advance(
        self, state: HyenaState, x: Signal, context: SequenceContext
    ) -> tuple[HyenaState, Signal]:
        """`prefill`, without a look at whether the state's history is long enough."""
        if len(x) == 0:
            return state, x
        resets, mask, axis_name = context.resets(), context.mask, context.axis_name
        weight, bias = self.short_weight, self.short_bias
        short, u = short_conv(
            self._project(x),
            weight,
            bias,
            state.short,
            resets=resets,
            mask=mask,
            axis_name=axis_name,
        )
        *gates, v = jnp.split(u, self.config.order + 1, axis=-1)
        whole = WholeSequence.of(len(x), resets, mask, axis_name)
        capacity = state.history.shape[1]
        kernels = self._kernels(capacity or whole.length, accumulation_dtype(x.dtype))
        rules = {"whole": whole, "boundary": "causal", "max_documents": self.config.max_documents}
        convolutions = [
            partial(convolve, past, kernel=kernel, **rules)
            for past, kernel in zip(state.history, kernels, strict=True)
        ]
        histories, v = gates_and_convolutions(v, gates[::-1], convolutions)
        y = context.blank_padding(self._readout(v))
        return HyenaState(short, jnp.stack(histories), whole.length_after(state.length)), y

    def _kernels(
        self, length: int, dtype: DTypeLike
    ) -> Float[Array, "convolutions lags features"]:
        """The kernels at the lags 0, 1, …; the skip is an impulse at lag 0."""
        kernels = self.filter(length, dtype)
        kernels = kernels.at[:1].add(self.skip.astype(dtype))
        return jnp.moveaxis(kernels.reshape(length, -1, self.in_features), 1, 0)

    def _project(self, x: Float[Array, "*time features"]) -> Float[Array, "*time projections"]:
        return linear(x, self.in_proj, self.in_bias)

    def _readout(self, v: Float[Array, "*time features"]) -> Float[Array, "*time features"]:
        return linear(v, self.out_proj, self.out_bias)
