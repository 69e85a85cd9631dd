"""Softmax attention as a QKV operator, on sequences and on grids (https://arxiv.org/abs/1706.03762).

    y[t] = Σ_s softmax(q[t] · k[s] / √head) v[s]          by head; q and k turned by t (RoPE)

With normalised queries and keys the scores are cosines, times a factor
(https://arxiv.org/abs/2010.04245). On a grid every point sees every other one, and RoPE has a part of
each head for every axis (`axial_rope`).
"""

import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..grid_positions import axial_rope, grid_coordinates
from ..initializers import constant
from ..norms import divide_by_norm, RMSNorm, RMSNormConfig
from ..types import Frame, Grid, Signal
from .attention_core import AttentionCore, AttentionState
from .heads import head_sizes, join_heads, require_width, split_heads
from .operators import AbstractQKVOperatorConfig, AbstractRecurrentQKVOperator


@dataclass(frozen=True)
class AttentionOperatorConfig(AbstractQKVOperatorConfig):
    """Softmax attention between projections that are not its own.

    - `num_heads`: by default heads of 64 features, or the largest smaller power of two that divides
        the width.
    - `causal`: a position sees no later one. Only on sequences.
    - `qk_norm`: queries and keys of every head as they come; `"rms"`: RMS-normalised, with learned
        weights; `"l2"`: of unit length, so that the scores are cosines.
    - `cosine_scale`: the factor of those; of 1, they are nearly uniform after the softmax.
    - `learn_cosine_scale`: learn it for every head, in its logarithm.
    - `rope_base`: base of the rotary positions; None leaves positions out.
    - `grid`: the sequence holds a grid of this shape in raster order, and then tokens that are not on
        it, such as registers, which RoPE does not turn. Only without `causal`.
    """

    num_heads: int | None = None
    causal: bool = True
    qk_norm: Literal["none", "rms", "l2"] = "none"
    cosine_scale: float = 1.0
    learn_cosine_scale: bool = False
    rope_base: float | None = 10000.0
    grid: tuple[int, ...] | None = None

    def __post_init__(self):
        optional = ("num_heads", "rope_base")
        require_positive(self, *(name for name in optional if getattr(self, name) is not None))
        require_positive(self, "cosine_scale")
        require_choice(self, "qk_norm")
        if self.qk_norm != "l2":
            law = 'left out without `qk_norm="l2"`'
            require(self.cosine_scale == 1, self, "cosine_scale", law)
            require(not self.learn_cosine_scale, self, "learn_cosine_scale", law)
        if self.grid is not None:
            law = "one to three positive sizes"
            require(1 <= len(self.grid) <= 3 and min(self.grid) > 0, self, "grid", law)
            require(not self.causal, self, "grid", "left out unless `causal=False`")
            require(self.rope_base is not None, self, "grid", "left out with `rope_base=None`")

    def build(self, in_features: int, key: PRNGKeyArray) -> "AttentionOperator":
        return AttentionOperator(in_features, self, key)


class AttentionOperator(AbstractRecurrentQKVOperator[AttentionState]):
    """Multi-head attention. Nothing is random: the key is not used.

    The state keeps `max_length` positions. When a document outgrows it, the output is NaN.
    """

    config: AttentionOperatorConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    log_scale: Float[Array, " heads"] | None

    def __init__(self, in_features: int, cfg: AttentionOperatorConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features
        self.num_heads, head = head_sizes(in_features, cfg, cfg.num_heads, None)
        law = f"heads of even size for RoPE, not {head}: other `num_heads`, or `rope_base=None`"
        require_width(cfg.rope_base is None or head % 2 == 0, cfg, in_features, law)
        rms = cfg.qk_norm == "rms"
        self.q_norm = RMSNormConfig().build(head, key) if rms else None
        self.k_norm = RMSNormConfig().build(head, key) if rms else None
        scale = math.log(cfg.cosine_scale)
        self.log_scale = constant(scale, (self.num_heads,)) if cfg.learn_cosine_scale else None

    @property
    def causal(self) -> bool:
        return self.config.causal

    @property
    def uses(self) -> frozenset[str]:
        turned = self.config.rope_base is not None and self.config.grid is None
        return frozenset({"positions"}) if turned else frozenset()

    @property
    def spatial_ndims(self) -> frozenset[int]:
        sequence = self.causal or self.config.grid is not None
        return frozenset({1}) if sequence else frozenset({1, 2, 3})

    def __call__(
        self,
        streams: tuple[Grid, ...],
        key: PRNGKeyArray | None = None,
        *,
        context: SequenceContext | None = None,
    ) -> Grid:
        context = _enter(context)
        *space, _ = streams[0].shape
        if 0 in space:
            return streams[2]
        if len(space) == 1 and self.config.grid is None:
            start = jnp.zeros((), jnp.int32)
            coordinates = context.positions_from(start, space[0])[:, None]
        else:
            coordinates = self._coordinates(tuple(space))
        flat = tuple(stream.reshape(-1, self.in_features) for stream in streams)
        q, k, v = self._heads(flat, coordinates)
        y = self._core(q, k, v, context.map_time(lambda value: value.reshape(-1)))
        return join_heads(y).reshape(streams[2].shape)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> AttentionState:
        head = self.in_features // self.num_heads
        return self._core.init_state(max_length, self.num_heads, head, dtype)

    def prefill(
        self,
        state: AttentionState,
        streams: tuple[Signal, ...],
        *,
        context: SequenceContext | None = None,
    ) -> tuple[AttentionState, Signal]:
        context = _enter(context)
        positions = context.positions_from(state.length, len(streams[0]))
        q, k, v = self._heads(streams, positions[:, None])
        state, y = self._core.prefill(state, q, k, v, context)
        return state, join_heads(y)

    def step(
        self,
        state: AttentionState,
        streams: tuple[Frame, ...],
        *,
        context: SequenceContext | None = None,
    ) -> tuple[AttentionState, Frame]:
        context = _enter(context)
        length = context.forget(state).length
        position = length if context.positions is None else context.positions
        q, k, v = self._heads(streams, position[None])
        state, y = self._core.step(state, q, k, v, context)
        return state, join_heads(y)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        forward = 4 * self.in_features * self._core.pairs(math.prod(spatial_dims))
        return forward if inference else 3 * forward

    @property
    def _core(self) -> AttentionCore:
        cfg = self.config
        if cfg.qk_norm != "l2":
            return AttentionCore(self.causal)
        # A factor that is learned multiplies the queries.
        return AttentionCore(
            self.causal, scale=1.0 if cfg.learn_cosine_scale else cfg.cosine_scale
        )

    def _heads(
        self,
        streams: tuple[Float[Array, "*time features"], ...],
        coordinates: Int[Array, "*time axes"],
    ) -> tuple[Array, Array, Array]:
        """Queries and keys, normalised and turned, and values, each `(*time, heads, head)`."""
        q, k, v = (split_heads(stream, self.num_heads) for stream in streams)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.qk_norm == "l2":
            q, k = (divide_by_norm(x, 1e-12).astype(x.dtype) for x in (q, k))
        if self.log_scale is not None:
            q = q * jnp.exp(self.log_scale)[:, None].astype(q.dtype)
        base = self.config.rope_base
        if base is not None:
            q, k = axial_rope(q, coordinates, base), axial_rope(k, coordinates, base)
        return q, k, v

    def _coordinates(self, space: tuple[int, ...]) -> Int[Array, "positions axes"]:
        grid = self.config.grid
        if grid is None:
            return grid_coordinates(space)
        others = space[0] - math.prod(grid)
        if others < 0:
            raise ValueError(
                f"`AttentionOperatorConfig(grid={grid})` takes a sequence of at least "
                f"{math.prod(grid)} positions. Received {space[0]}. Give it the grid's real shape."
            )
        return grid_coordinates(grid, others)


def _enter(context: SequenceContext | None) -> SequenceContext:
    context = SequenceContext() if context is None else context
    if context.axis_name is not None:
        raise ValueError(
            "`QKVSequenceMixer` around an `AttentionOperator` cannot split time over devices yet. "
            f"Leave `context.axis_name` (now {context.axis_name!r}) out."
        )
    return context
