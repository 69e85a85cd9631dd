"""The identity: a block with it mixes channels alone."""

from dataclasses import dataclass

import equinox as eqx
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from ..context import SequenceContext
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig, enter, enter_step


@dataclass(frozen=True)
class IdentitySequenceMixerConfig(AbstractSequenceMixerConfig):
    """Passes every position on as it is."""

    def build(self, in_features: int, key: PRNGKeyArray) -> "IdentitySequenceMixer":
        return IdentitySequenceMixer(in_features, self, key)


class IdentitySequenceMixer(AbstractRecurrentMixer[tuple[()]]):
    """The identity, with zeros at padding. Its state is empty, and nothing is random."""

    config: IdentitySequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)

    def __init__(self, in_features: int, cfg: IdentitySequenceMixerConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features

    @property
    def causal(self) -> bool:
        return True

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return enter(self, x, context)[0]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> tuple[()]:
        return ()

    def prefill(
        self, state: tuple[()], x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[tuple[()], Signal]:
        return state, self(x, context=context)

    def step(
        self, state: tuple[()], x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[tuple[()], Frame]:
        return state, enter_step(self, x, context)[0]

    @property
    def complexity(self) -> str:
        return "O(1)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        return 0
