"""Any sequence mixer over several streams, between projections for each modality.

q, k, v = W[m] x                 m the modality of a position
y       = W'[m] operator(q, k, v)

where a sequence mixer f, such as Mamba (https://arxiv.org/abs/2501.16295), is the operator
f(q ⊙ k) ⊙ v over the positions of all streams in their joint order.
"""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..complexity import total
from ..config import require_choice
from ..initializers import linear_weight, split
from ..precision import linear
from ..streams import Counting, Frames, Joint, start_streams, Streams, StreamsContext
from .base import AbstractSequenceMixerConfig
from .heads import projection_flops
from .operators import AbstractQKVOperator, AbstractQKVOperatorConfig, as_operator, recurrent
from .streams_base import (
    AbstractStreamsMixer,
    AbstractStreamsMixerConfig,
    at_one_position,
    open_chunk,
    require_modalities,
    step_by_chunk,
    StreamsState,
)


@dataclass(frozen=True)
class MoTMixerConfig(AbstractStreamsMixerConfig):
    """A mixer of sequences that all streams share, with projections for each.

    - `modalities`: the streams that there may be, in the order in which they come.
    - `operator`: what mixes them. A sequence mixer f is f(q ⊙ k) ⊙ v.
    - `counting`: the positions that it is told: those of a modality count its own, or all that came
        before them in the joint order.
    """

    modalities: tuple[str, ...]
    operator: AbstractQKVOperatorConfig | AbstractSequenceMixerConfig
    counting: Counting = "continue"

    def __post_init__(self):
        require_modalities(self, self.modalities)
        require_choice(self, "counting")

    def build(self, in_features: int, key: PRNGKeyArray) -> "MoTMixer":
        return MoTMixer(in_features, self, key)


class InOutProjections(eqx.Module):
    """Those of one modality."""

    in_proj: Float[Array, "inputs_features features"]  # W
    out_proj: Float[Array, "features features"]  # W'


class MoTMixer(AbstractStreamsMixer):
    """An operator on all streams. It is causal, and advances step by step, where the operator does."""

    config: MoTMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    projections: dict[str, InOutProjections]
    operator: AbstractQKVOperator

    def __init__(self, in_features: int, cfg: MoTMixerConfig, key: PRNGKeyArray):
        operator_key, *keys = split(key, len(cfg.modalities) + 1)
        self.config = cfg
        self.in_features = in_features
        self.operator = as_operator(cfg.operator.build(in_features, operator_key))
        inputs = self.operator.num_inputs * in_features
        self.projections = {}
        for name, own in zip(cfg.modalities, keys, strict=True):
            in_key, out_key = split(own, 2)
            self.projections[name] = InOutProjections(
                linear_weight(in_key, in_features, inputs),
                linear_weight(out_key, in_features, in_features),
            )

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.config.modalities

    @property
    def causal(self) -> bool:
        return self.operator.causal

    @property
    def uses(self) -> frozenset[str]:
        return self.operator.uses - {"condition"}

    def __call__(
        self,
        streams: Streams,
        key: PRNGKeyArray | None = None,
        *,
        context: StreamsContext | None = None,
    ) -> Streams:
        streams, joint, _ = self._open(streams, context, None)
        y = self.operator(self._project(streams, joint), key, context=joint.context)
        return self._readout(y, joint)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> StreamsState:
        mixing = recurrent(self, self.operator).init_state(max_length, dtype)
        return StreamsState(mixing, start_streams(self.modalities))

    def prefill(
        self, state: StreamsState, streams: Streams, *, context: StreamsContext | None = None
    ) -> tuple[StreamsState, Streams]:
        operator = recurrent(self, self.operator)
        streams, joint, cursor = self._open(streams, context, state)
        inputs = self._project(streams, joint)
        mixing, y = operator.prefill(state.mixing, inputs, context=joint.context)
        return StreamsState(mixing, cursor), self._readout(y, joint)

    def step(
        self, state: StreamsState, frames: Frames, *, context: StreamsContext | None = None
    ) -> tuple[StreamsState, Frames]:
        operator = recurrent(self, self.operator)

        def advance(streams: Streams, context: StreamsContext) -> tuple[StreamsState, Streams]:
            streams, joint, cursor = self._open(streams, context, state)
            inputs = tuple(x[0] for x in self._project(streams, joint))
            here = at_one_position(joint.context)
            mixing, y = operator.step(state.mixing, inputs, context=here)
            return StreamsState(mixing, cursor), self._readout(y[None], joint)

        return step_by_chunk(advance, frames, context)

    @property
    def complexity(self) -> str:
        return total(self.operator.complexity, "O(L · d²)")

    def flop_count(self, lengths: dict[str, int], inference: bool = False) -> int:
        each = {name: projection_flops(part) for name, part in self.projections.items()}
        projections = sum(time * each[name] for name, time in lengths.items())
        operator = self.operator.flop_count((sum(lengths.values()),), inference)
        return operator + (projections if inference else 3 * projections)

    def _open(self, streams: Streams, context: StreamsContext | None, state: StreamsState | None):
        if context is not None and context.rope:
            raise ValueError(
                "`MoTMixer` turns no queries and keys by tables. Leave `StreamsContext.rope` out."
            )
        cursor = None if state is None else state.cursor
        return open_chunk(self, streams, context, cursor, self.config.counting)

    def _project(self, streams: Streams, joint: Joint) -> tuple[Array, ...]:
        each = {name: linear(x, self.projections[name].in_proj) for name, x in streams.items()}
        return tuple(jnp.split(joint.join(each), self.operator.num_inputs, axis=-1))

    def _readout(self, y: Float[Array, "time features"], joint: Joint) -> Streams:
        parts = joint.split(joint.context.blank_padding(y)).items()
        return {name: linear(y, self.projections[name].out_proj) for name, y in parts}
