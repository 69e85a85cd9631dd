"""Any causal mixer in both directions (https://doi.org/10.1109/78.650093): two copies of it, each
with weights of its own.

    y = forward(x) + reverse(backward(reverse(x)))               sum
    y = W [forward(x), reverse(backward(reverse(x)))]            project

What a recurrence needs for both directions by itself, such as S5's second read-out, is cheaper.
"""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require_choice
from ..context import SequenceContext
from ..initializers import normal, split
from ..precision import linear
from ..types import Signal
from .base import AbstractSequenceMixer, AbstractSequenceMixerConfig, enter
from .reversal import reverse, reversed_context


@dataclass(frozen=True)
class BidirectionalSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A mixer that reads the sequence from both ends.

    - `mixer`: of each direction. Causal.
    - `merge`: how the two outputs become one: `"sum"`, or `"project"`, a matrix of both.
    """

    mixer: AbstractSequenceMixerConfig
    merge: Literal["sum", "project"] = "sum"

    def __post_init__(self):
        require_choice(self, "merge")

    def build(self, in_features: int, key: PRNGKeyArray) -> "BidirectionalSequenceMixer":
        return BidirectionalSequenceMixer(in_features, self, key)


class BidirectionalSequenceMixer(AbstractSequenceMixer):
    """Two causal mixers, one of which reads backwards; every document begins where it ended.

    **Raises:** `ValueError` if `mixer` is not causal.
    """

    config: BidirectionalSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    forward: AbstractSequenceMixer
    backward: AbstractSequenceMixer
    out_proj: Float[Array, "features both"] | None  # W, if projected

    def __init__(self, in_features: int, cfg: BidirectionalSequenceMixerConfig, key: PRNGKeyArray):
        forward_key, backward_key, out_key = split(key, 3)
        self.config = cfg
        self.in_features = in_features
        self.forward = cfg.mixer.build(in_features, forward_key)
        self.backward = cfg.mixer.build(in_features, backward_key)
        if not self.forward.causal:
            raise ValueError(
                "`BidirectionalSequenceMixer` makes two directions of a causal `mixer`. "
                f"{cfg.mixer} is not causal: use it by itself, or make it causal."
            )
        self.out_proj = None
        if cfg.merge == "project":
            shape = (in_features, 2 * in_features)
            self.out_proj = normal(out_key, shape, 1 / math.sqrt(2 * in_features))

    @property
    def causal(self) -> bool:
        return False

    @property
    def uses(self) -> frozenset[str]:
        return self.forward.uses

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        x, context = enter(self, x, context)
        forward_key, backward_key = (None, None) if key is None else jax.random.split(key)
        y = self.forward(x, forward_key, context=context)
        there = reverse(x, context.axis_name)
        z = self.backward(there, backward_key, context=reversed_context(context))
        z = reverse(z, context.axis_name)
        if self.out_proj is None:
            return y + z
        return linear(jnp.concatenate([y, z], axis=-1), self.out_proj)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        each = self.forward.flop_count(spatial_dims, inference)
        merge = self.in_features if self.out_proj is None else 2 * self.out_proj.size
        merge *= math.prod(spatial_dims)
        return 2 * each + (merge if inference else 3 * merge)
