"""QKV mixer: one projection to queries, keys and values, an operator on them, one projection back.

q, k, v = W_in x
y = W_out operator(q, k, v)           attention, Hyena, or f(q ⊙ k) ⊙ v for a sequence mixer f
"""

import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..complexity import total
from ..context import SequenceContext
from ..initializers import AbstractInitializerConfig, constant, kaiming_uniform, split
from ..precision import linear
from ..types import Frame, Grid, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig, enter, enter_step
from .operators import AbstractQKVOperator, AbstractQKVOperatorConfig, as_operator, recurrent


@dataclass(frozen=True)
class QKVSequenceMixerConfig(AbstractSequenceMixerConfig):
    """Projections around a QKV operator.

    - `operator`: what acts on queries, keys and values. A sequence mixer f is f(q ⊙ k) ⊙ v.
    - `qkv_bias`, `out_proj_bias`: whether the projections have a bias.
    - `in_init`, `out_init`: how their weights are drawn, with biases of zero; by default weights and
        biases are Kaiming uniform.
    """

    operator: AbstractQKVOperatorConfig | AbstractSequenceMixerConfig
    qkv_bias: bool = False
    out_proj_bias: bool = False
    in_init: AbstractInitializerConfig | None = None
    out_init: AbstractInitializerConfig | None = None

    def build(self, in_features: int, key: PRNGKeyArray) -> "QKVSequenceMixer":
        return QKVSequenceMixer(in_features, self, key)


class QKVSequenceMixer(AbstractRecurrentMixer[Any]):
    """An operator between projections. It is causal, and takes grids, where the operator does.

    The state is the operator's.
    """

    config: QKVSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    qkv_proj: Float[Array, "streams_features features"]  # W_in
    qkv_bias: Float[Array, " streams_features"] | None
    operator: AbstractQKVOperator
    out_proj: Float[Array, "features features"]  # W_out
    out_bias: Float[Array, " features"] | None

    def __init__(self, in_features: int, cfg: QKVSequenceMixerConfig, key: PRNGKeyArray):
        in_key, operator_key, out_key = split(key, 3)
        self.config = cfg
        self.in_features = in_features
        self.operator = as_operator(cfg.operator.build(in_features, operator_key))
        streams = self.operator.num_inputs * in_features
        self.qkv_proj, self.qkv_bias = _projection(
            in_key, in_features, streams, cfg.in_init, cfg.qkv_bias
        )
        self.out_proj, self.out_bias = _projection(
            out_key, in_features, in_features, cfg.out_init, cfg.out_proj_bias
        )

    @property
    def causal(self) -> bool:
        return self.operator.causal

    @property
    def uses(self) -> frozenset[str]:
        return self.operator.uses

    @property
    def spatial_ndims(self) -> frozenset[int]:
        return self.operator.spatial_ndims

    def __call__(
        self, x: Grid, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Grid:
        x, context = enter(self, x, context)
        y = self.operator(self._project(x, context), key, context=context)
        return self._readout(y, context)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> Any:
        return recurrent(self, self.operator).init_state(max_length, dtype)

    def prefill(
        self, state: Any, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[Any, Signal]:
        operator = recurrent(self, self.operator)
        x, context = enter(self, x, context)
        state, y = operator.prefill(state, self._project(x, context), context=context)
        return state, self._readout(y, context)

    def step(
        self, state: Any, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[Any, Frame]:
        operator = recurrent(self, self.operator)
        x, context = enter_step(self, x, context)
        state, y = operator.step(state, self._project(x, context), context=context)
        return state, self._readout(y, context)

    @property
    def complexity(self) -> str:
        return total(self.operator.complexity, "O(L · d²)")

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        projections = 2 * math.prod(spatial_dims) * (self.qkv_proj.size + self.out_proj.size)
        operator = self.operator.flop_count(spatial_dims, inference)
        return operator + (projections if inference else 3 * projections)

    def _project(self, x: Grid, context: SequenceContext) -> tuple[Grid, ...]:
        streams = context.blank_padding(linear(x, self.qkv_proj, self.qkv_bias))
        return tuple(jnp.split(streams, self.operator.num_inputs, axis=-1))

    def _readout(self, y: Grid, context: SequenceContext) -> Grid:
        return context.blank_padding(
            linear(context.blank_padding(y), self.out_proj, self.out_bias)
        )


def _projection(
    key: PRNGKeyArray,
    in_features: int,
    out_features: int,
    init: AbstractInitializerConfig | None,
    bias: bool,
) -> tuple[Array, Array | None]:
    """A weight, and a bias if there shall be one."""
    if init is not None:
        weight = init.draw(key, in_features, out_features)
        return weight, constant(0, (out_features,)) if bias else None
    weight_key, bias_key = split(key, 2)
    weight = kaiming_uniform(weight_key, (out_features, in_features), in_features)
    return weight, kaiming_uniform(bias_key, (out_features,), in_features) if bias else None
