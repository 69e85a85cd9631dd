"""Mixers of sequences on grids: read in several orders, and the readings merged.

y = merge over the orders o of  o⁻¹(f_o(o(x)))

raster          row by row
bidirectional   and backwards
cross_scan      and with the axes in every other order: four readings of an image, twelve of a
                volume (VMamba, https://arxiv.org/abs/2401.10166)
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_choice
from ..context import SequenceContext
from ..initializers import linear_weight, split
from ..precision import linear
from ..types import Frame, Grid, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixer,
    AbstractSequenceMixerConfig,
    enter,
    refuse_axis_name,
    require_causal,
)
from .reversal import reverse, reversed_context


@dataclass(frozen=True)
class GridOrdersSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A causal mixer that reads a grid in several orders.

    - `mixer`: of each reading. Causal.
    - `spatial_ndim`: how many axes the grid has, one to three; of one, it is a sequence.
    - `orders`: which readings there are.
    - `merge`: how their outputs become one: `"project"` is a matrix of them all.
    - `shared`: all readings have the same weights; by default each has its own.
    """

    mixer: AbstractSequenceMixerConfig
    spatial_ndim: int
    orders: Literal["raster", "bidirectional", "cross_scan"] = "cross_scan"
    merge: Literal["sum", "mean", "project"] = "sum"
    shared: bool = False

    def __post_init__(self):
        require(1 <= self.spatial_ndim <= 3, self, "spatial_ndim", "1, 2 or 3")
        require_choice(self, "orders", "merge")

    def build(self, in_features: int, key: PRNGKeyArray) -> "GridOrdersSequenceMixer":
        return GridOrdersSequenceMixer(in_features, self, key)


class Order(NamedTuple):
    """A way to read a grid: its axes, the slowest first; and whether from the end."""

    axes: tuple[int, ...]
    backwards: bool


class GridOrdersSequenceMixer(AbstractRecurrentMixer[Any]):
    """Readings of a grid by causal mixers.

    In raster order alone it is causal: its `prefill` and `step` take the grid's points in that
    order, as a sequence, and its state is the mixer's.

    **Raises:** `ValueError` if `mixer` is not causal.
    """

    config: GridOrdersSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    mixers: tuple[AbstractSequenceMixer, ...]  # f, one per order, or one for all
    out_proj: Float[Array, "features all"] | None

    def __init__(self, in_features: int, cfg: GridOrdersSequenceMixerConfig, key: PRNGKeyArray):
        mixer_key, out_key = split(key, 2)
        self.config = cfg
        self.in_features = in_features
        count = len(self.orders)
        keys = split(mixer_key, 1 if cfg.shared else count)
        self.mixers = tuple(cfg.mixer.build(in_features, key) for key in keys)
        if not self.mixers[0].causal:
            raise ValueError(
                "`GridOrdersSequenceMixer` makes readings of a grid with a causal `mixer`. "
                f"{cfg.mixer} is not causal: make it causal."
            )
        project = cfg.merge == "project"
        self.out_proj = (
            linear_weight(out_key, count * in_features, in_features) if project else None
        )

    @property
    def orders(self) -> tuple[Order, ...]:
        """The readings, in the order of their weights."""
        raster = tuple(range(self.config.spatial_ndim))
        axes = itertools.permutations(raster) if self.config.orders == "cross_scan" else (raster,)
        directions = (False,) if self.config.orders == "raster" else (False, True)
        return tuple(Order(*order) for order in itertools.product(axes, directions))

    @property
    def causal(self) -> bool:
        return self.config.orders == "raster"

    @property
    def uses(self) -> frozenset[str]:
        used = self.mixers[0].uses
        return used if self.config.spatial_ndim == 1 else used & {"condition"}

    @property
    def spatial_ndims(self) -> frozenset[int]:
        return frozenset({self.config.spatial_ndim})

    def __call__(
        self, x: Grid, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Grid:
        x, context = enter(self, x, context)
        if x.ndim > 2:
            refuse_axis_name(self, context)
        orders = self.orders
        keys = [None] * len(orders) if key is None else jr.split(key, len(orders))
        mixers = self.mixers * len(orders) if self.config.shared else self.mixers
        readings = zip(mixers, orders, keys, strict=True)
        return self._merge([_read(mixer, order, x, k, context) for mixer, order, k in readings])

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> Any:
        return self._recurrent().init_state(max_length, dtype)

    def prefill(
        self, state: Any, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[Any, Signal]:
        state, y = self._recurrent().prefill(state, x, context=context)
        return state, self._merge([y])

    def step(
        self, state: Any, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[Any, Frame]:
        state, y = self._recurrent().step(state, x, context=context)
        return state, self._merge([y])

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        points, count = math.prod(spatial_dims), len(self.orders)
        merge = (count - 1) * self.in_features if self.out_proj is None else 2 * self.out_proj.size
        mixers = count * self.mixers[0].flop_count((points,), inference)
        return mixers + points * (merge if inference else 3 * merge)

    def _merge(self, readings: list[Array]) -> Array:
        if self.out_proj is not None:
            return linear(jnp.concatenate(readings, axis=-1), self.out_proj)
        total = sum(readings[1:], readings[0])
        return total / len(readings) if self.config.merge == "mean" else total

    def _recurrent(self) -> AbstractRecurrentMixer:
        require_causal(self, 'build it with `orders="raster"`')
        mixer = self.mixers[0]
        if not isinstance(mixer, AbstractRecurrentMixer):
            raise ValueError(
                "`GridOrdersSequenceMixer` cannot advance step by step with a "
                f"`{type(mixer).__name__}`. Use a mixer that can."
            )
        return mixer


def _read(
    mixer: AbstractSequenceMixer,
    order: Order,
    x: Grid,
    key: PRNGKeyArray | None,
    context: SequenceContext,
) -> Grid:
    """What a mixer makes of a grid in one order, back on the grid."""
    axes, last = order.axes, x.ndim - 1
    grid = jnp.transpose(x, (*axes, last))
    sequence = grid.reshape(-1, grid.shape[-1])
    context = context.map_time(lambda value: jnp.transpose(value, axes).reshape(-1))
    if order.backwards:
        sequence = reverse(sequence, context.axis_name)
        y = mixer(sequence, key, context=reversed_context(context))
        y = reverse(y, context.axis_name)
    else:
        y = mixer(sequence, key, context=context)
    return jnp.transpose(y.reshape(grid.shape), (*np.argsort(axes), last))
