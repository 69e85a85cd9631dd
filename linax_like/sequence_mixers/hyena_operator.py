"""Hyena as a QKV operator, on grids of one to three axes (https://arxiv.org/abs/2302.10866), with the
norms and activations of nvSubquadratic.

    (q, k, v, …) ← short_conv(q, k, v, …)
    z = norm(q ⊙ σ(k))
    z ← convolution_n(z) ⊙ σ'(g_n)                  g_1 = v, and a further stream for each further order
    y = norm(z)

The long convolutions are `CKConvSequenceMixer`s, which say what lies beyond the edges of the grid.
Causal on one axis the operator is a recurrence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, normal, split
from ..norms import AbstractNorm, AbstractNormConfig, divide_by_norm, RMSNormConfig
from ..ops.grid_conv import Boundary
from ..ops.grid_short_conv import grid_short_conv, grid_short_conv_flops
from ..ops.parts import parts, read_part
from ..ops.short_conv import short_conv, short_conv_step
from ..ops.whole_sequence import per_document
from ..precision import accumulation_dtype
from ..types import Frame, Grid, Signal
from .base import AbstractRecurrentMixer, keep_at_padding, refuse_axis_name, require_causal
from .ckconv import CKConvSequenceMixerConfig
from .convolution_history import whole_sequence
from .operators import AbstractQKVOperatorConfig, AbstractRecurrentQKVOperator
from .s4d import S4DSequenceMixerConfig


Gate = Literal["identity", "silu", "sigmoid"]
_GATES = {"identity": lambda x: x, "silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}


@dataclass(frozen=True)
class HyenaOperatorConfig(AbstractQKVOperatorConfig):
    """Gates and long convolutions.

    - `order`: number of gates; there is one long convolution fewer, and one stream more.
    - `convolution`: the long convolutions; their boundaries and heads are the operator's.
    - `short_width`, `short_bias`: taps along every axis of the short convolution; 1 without a bias
        leaves it out.
    - `short_boundary`: what its taps meet beyond the edges; None for the same as the long ones.
    - `gate`, `out_gate`: σ of the keys, and σ' of the values and further streams.
    - `qk_norm`: `"l2"` divides the queries of every head by their norm, and the keys too if `gate`
        is the identity, as an activation bounds them otherwise.
    - `gate_norm`, `output_norm`: of what is convolved first, and of the result; None for none.
    - `recurrence`: what stands in the place of each long convolution, which is causal, once it is
        distilled; None for the convolution itself.
    """

    order: int = 2
    convolution: CKConvSequenceMixerConfig = CKConvSequenceMixerConfig()
    short_width: int = 3
    short_bias: bool = False
    short_boundary: tuple[Boundary, ...] | None = None
    gate: Gate = "silu"
    out_gate: Gate = "sigmoid"
    qk_norm: Literal["none", "l2"] = "l2"
    gate_norm: AbstractNormConfig | None = None
    output_norm: AbstractNormConfig | None = RMSNormConfig()
    recurrence: S4DSequenceMixerConfig | None = None

    def __post_init__(self):
        require(self.order >= 2, self, "order", "at least 2")
        require_positive(self, "short_width")
        require_choice(self, "gate", "out_gate", "qk_norm")
        causal = [kind == "causal" for kind in self.convolution.boundary]
        same = [kind == "causal" for kind in self.short_boundary or self.convolution.boundary]
        law = "None, or as many as the convolution's and causal on the same axes"
        require(same == causal, self, "short_boundary", law)
        possible = self.recurrence is None or causal == [True]
        require(possible, self, "recurrence", "None, unless the `convolution` is ('causal',)")

    def build(self, in_features: int, key: PRNGKeyArray) -> "HyenaOperator":
        return HyenaOperator(in_features, self, key)


class HyenaOperatorState(NamedTuple):
    """The current document's past.

    - `short`: the last inputs of the short convolution.
    - `convolutions`: the states of the long ones.
    """

    short: Float[Array, "last streams"]
    convolutions: tuple[Any, ...]


class HyenaOperator(AbstractRecurrentQKVOperator[HyenaOperatorState]):
    """Gates and long convolutions between streams."""

    config: HyenaOperatorConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    short_weight: Float[Array, "*taps streams"] | None
    short_bias: Float[Array, " streams"] | None
    convolutions: tuple[AbstractRecurrentMixer[Any], ...]
    gate_norm: AbstractNorm | None
    output_norm: AbstractNorm | None

    def __init__(self, in_features: int, cfg: HyenaOperatorConfig, key: PRNGKeyArray):
        short_key, gate_key, output_key, *keys = split(key, cfg.order + 2)
        taps = (cfg.short_width,) * len(cfg.convolution.boundary)
        streams, std = (cfg.order + 1) * in_features, 1 / math.sqrt(math.prod(taps))
        left_out = cfg.short_width == 1 and not cfg.short_bias
        gate_norm, output_norm = cfg.gate_norm, cfg.output_norm
        self.config = cfg
        self.in_features = in_features
        self.short_weight = None if left_out else normal(short_key, (*taps, streams), std)
        self.short_bias = constant(0, (streams,)) if cfg.short_bias else None
        convolution = cfg.recurrence or cfg.convolution
        self.convolutions = tuple(convolution.build(in_features, k) for k in keys)
        self.gate_norm = None if gate_norm is None else gate_norm.build(in_features, gate_key)
        self.output_norm = (
            None if output_norm is None else output_norm.build(in_features, output_key)
        )

    @property
    def causal(self) -> bool:
        return self.convolutions[0].causal

    @property
    def num_inputs(self) -> int:
        return self.config.order + 1

    @property
    def uses(self) -> frozenset[str]:
        return self.convolutions[0].uses

    @property
    def spatial_ndims(self) -> frozenset[int]:
        return self.convolutions[0].spatial_ndims

    def __call__(
        self,
        streams: tuple[Grid, ...],
        key: PRNGKeyArray | None = None,
        *,
        context: SequenceContext | None = None,
    ) -> Grid:
        context = SequenceContext() if context is None else context
        if 0 in streams[0].shape:
            return streams[0]
        u, short = jnp.concatenate(streams, axis=-1), None
        if u.ndim > 2 or context.is_plain:
            refuse_axis_name(self, context)
            short = partial(self._short_on_grid, context=context)
        elif self.causal:
            _, u = self._short(self._empty_short(u.dtype), u, context)
        else:
            u = self._short_on_whole(u, context)
        convolutions = [self._call(convolution, context) for convolution in self.convolutions]
        return self._gate(u, convolutions, context, short)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> HyenaOperatorState:
        self._require_causal()
        states = (c.init_state(max_length, dtype) for c in self.convolutions)
        return HyenaOperatorState(self._empty_short(dtype or jnp.float32), tuple(states))

    def prefill(
        self,
        state: HyenaOperatorState,
        streams: tuple[Signal, ...],
        *,
        context: SequenceContext | None = None,
    ) -> tuple[HyenaOperatorState, Signal]:
        self._require_causal()
        context = SequenceContext() if context is None else context
        short, u = self._short(state.short, jnp.concatenate(streams, axis=-1), context)
        convolutions = [
            partial(convolution.prefill, past, context=context)
            for convolution, past in zip(self.convolutions, state.convolutions, strict=True)
        ]
        states, y = self._gate(u, convolutions, context)
        return HyenaOperatorState(short, tuple(states)), y

    def step(
        self,
        state: HyenaOperatorState,
        streams: tuple[Frame, ...],
        *,
        context: SequenceContext | None = None,
    ) -> tuple[HyenaOperatorState, Frame]:
        self._require_causal()
        context = SequenceContext() if context is None else context
        u, short = jnp.concatenate(streams, axis=-1), context.forget(state.short)
        if self.short_weight is not None:
            short, u = short_conv_step(u, self.short_weight, self.short_bias, short)
        convolutions = [
            partial(convolution.step, past, context=context)
            for convolution, past in zip(self.convolutions, state.convolutions, strict=True)
        ]
        states, y = self._gate(u, convolutions, context)
        short = keep_at_padding(context, short, state.short)
        return HyenaOperatorState(short, tuple(states)), y

    @property
    def complexity(self) -> str:
        return "O(L log L · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        cfg, points = self.config, math.prod(spatial_dims)
        norms = (cfg.qk_norm == "l2") * (1 + (cfg.gate == "identity"))
        norms += (self.gate_norm is not None) + (self.output_norm is not None)
        gates = (
            cfg.order + (cfg.gate != "identity") + (cfg.order - 1) * (cfg.out_gate != "identity")
        )
        forward = points * self.in_features * (4 * norms + gates)
        if self.short_weight is not None:
            taps = cfg.short_width ** len(spatial_dims)
            forward += self.short_weight.shape[-1] * grid_short_conv_flops(spatial_dims, taps)
        forward += sum(c.flop_count(spatial_dims, inference=True) for c in self.convolutions)
        return forward if inference else 3 * forward

    def _gate(
        self,
        u: Float[Array, "*space streams"],
        convolutions: list,
        context: SequenceContext,
        short: Callable[[Array, int], Array] | None = None,
    ) -> tuple[list, Grid]:
        """The convolutions' states, and the result of the streams.

        - `short`: the short convolution of streams from a given one on; None once it is done.
        """
        counts = [2] + [1] * len(convolutions)  # of the streams that each step takes
        first, *others = parts(u, tuple(self.in_features * n for n in counts))

        def streams(u, part, first, count):
            """After the short convolution, which the gradient does again rather than keep them."""
            own = read_part(u, part, first * self.in_features)
            own = own if short is None else short(own, first)
            return jnp.split(own, count, axis=-1)

        # What is cheap to compute again is not kept for the gradient.
        again = jax.checkpoint
        z, states = again(lambda u, part: self._enter(*streams(u, part, 0, 2)))(u, first), []
        for i, (convolution, part) in enumerate(zip(convolutions, others, strict=True), 2):
            if short is not None:  # so that the next stream's does not take memory already
                z, u = jax.lax.optimization_barrier((z, u))
            state, z = convolution(z)
            combine = self._leave if i == self.config.order else self._between
            z = again(lambda z, u, part: combine(z, *streams(u, part, i, 1)))(z, u, part)
            states.append(state)
        return states, context.blank_padding(z)

    def _enter(self, q: Grid, k: Grid) -> Grid:
        """What is convolved first."""
        cfg = self.config
        if cfg.qk_norm == "l2":
            q = self._normalize(q)
            k = self._normalize(k) if cfg.gate == "identity" else k
        z = q * _GATES[cfg.gate](k)
        return z if self.gate_norm is None else self.gate_norm(z)

    def _between(self, z: Grid, stream: Grid) -> Grid:
        """What is convolved next."""
        return z * _GATES[self.config.out_gate](stream)

    def _leave(self, z: Grid, stream: Grid) -> Grid:
        """The result of the last convolution."""
        y = self._between(z, stream)
        return y if self.output_norm is None else self.output_norm(y)

    def _normalize(self, x: Float[Array, "*space features"]) -> Float[Array, "*space features"]:
        count = self.config.convolution.num_heads
        heads = x.reshape(*x.shape[:-1], count, x.shape[-1] // count)
        return divide_by_norm(heads, 1e-12).reshape(x.shape).astype(x.dtype)

    def _short(self, past: Array, u: Signal, context: SequenceContext) -> tuple[Array, Signal]:
        """The short convolution along time, and its state."""
        if self.short_weight is None:
            return past, u
        past, u = short_conv(u, self.short_weight, self.short_bias, past, **context.rules())
        return past, context.blank_padding(u)

    def _short_on_grid(self, u: Grid, first: int, context: SequenceContext) -> Grid:
        """The short convolution of streams without documents, or padding that has to be left out."""
        if self.short_weight is None:
            return u
        start = first * self.in_features
        own = slice(start, start + u.shape[-1])
        bias = None if self.short_bias is None else self.short_bias[own]
        boundary = self.config.short_boundary or self.config.convolution.boundary
        return context.blank_padding(
            grid_short_conv(u, self.short_weight[..., own], bias, boundary)
        )

    def _short_on_whole(self, u: Signal, context: SequenceContext) -> Signal:
        """The short convolution along time where it is not causal."""
        if self.short_weight is None:
            return u
        cfg, weight = self.config, self.short_weight
        boundary = cfg.short_boundary or cfg.convolution.boundary
        circular = "circular" in boundary + cfg.convolution.boundary
        whole = whole_sequence(self, len(u), context, "circular" if circular else "zero")
        operator = lambda u, weight: grid_short_conv(u, weight, None, boundary)
        signal, weight = whole.gather(u), whole.own_features(weight)
        if whole.documents is None:
            y = operator(signal, weight)
        else:
            limit = cfg.convolution.max_documents
            y = per_document(operator, signal, weight, whole.documents, limit)
        u = whole.scatter(y)
        u = u if self.short_bias is None else u + self.short_bias.astype(u.dtype)
        return context.blank_padding(u)

    def _call(self, convolution: AbstractRecurrentMixer, context: SequenceContext):
        return lambda z: (None, convolution(z, context=context))

    def _empty_short(self, dtype: DTypeLike) -> Float[Array, "last streams"]:
        shape = (self.config.short_width - 1, self.num_inputs * self.in_features)
        return jnp.zeros(shape, accumulation_dtype(dtype))

    def _require_causal(self) -> None:
        remedy = "give the operator's `convolution` the `boundary` ('causal',)"
        require_causal(self.convolutions[0], remedy)
