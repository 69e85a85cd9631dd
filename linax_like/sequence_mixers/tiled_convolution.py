"""A CKConv that decodes by tiles: O(log² length) of work a step instead of O(length) (`ops/tiled_conv`).

It is an inference form: `lx.tiled_decoding` puts it in the place of a `CKConvSequenceMixer`. Two states
of one past may differ in where they keep their sums; what comes out later does not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..context import SequenceContext
from ..ops.tiled_conv import advance_line, line_rows, start_line
from ..precision import accumulation_dtype
from ..types import Frame, Grid, Signal
from .base import AbstractRecurrentMixer, enter_step, keep_at_padding
from .ckconv import CKConvSequenceMixer
from .convolution_history import ConvolutionState


class TiledConvolutionState(NamedTuple):
    """The current document's past.

    - `before`: as it was after the last prefill.
    - `since`: steps since then.
    - `recent`: the inputs of these steps.
    - `pending`: what every position from then on has been sent by the inputs before it: by all until
        the last prefill, and tile by tile by those since.
    """

    before: ConvolutionState
    since: Int[Array, ""]
    recent: Float[Array, "rows features"]
    pending: Float[Array, "rows features"]


class TiledConvolution(AbstractRecurrentMixer[TiledConvolutionState]):
    """A causal convolution on one axis with a kernel that was sampled once.

    A batch of rows should be stepped by `jax.vmap`: all that have made equally many steps since their
    last prefill, however long their prompts were, share one tile. A step has no gradient.
    """

    convolution: CKConvSequenceMixer  # materialized

    def __init__(self, convolution: CKConvSequenceMixer):
        self.convolution = convolution

    @classmethod
    def of(cls, convolution: CKConvSequenceMixer, max_length: int) -> "TiledConvolution":
        """The same convolution, for sequences of at most `max_length` positions."""
        return cls(convolution.materialize((line_rows(max_length),)))

    @property
    def in_features(self) -> int:
        return self.convolution.in_features

    @property
    def causal(self) -> bool:
        return True

    @property
    def complexity(self) -> str:
        return self.convolution.complexity

    def __call__(
        self, x: Grid, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Grid:
        return self.convolution(x, key, context=context)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> TiledConvolutionState:
        if line_rows(max_length) > len(self._kernel):
            raise ValueError(
                f"`TiledConvolution` was made for {len(self._kernel)} positions, and its state shall "
                f"hold {max_length}. Call `tiled_decoding` with the length of the longest sequence."
            )
        before = self.convolution.init_state(max_length, dtype)
        shape = line_rows(max_length), self.in_features
        zeros = jnp.zeros(shape, accumulation_dtype(before.history.dtype))
        return TiledConvolutionState(before, jnp.zeros((), jnp.int32), zeros, zeros)

    def prefill(
        self,
        state: TiledConvolutionState,
        x: Signal,
        *,
        context: SequenceContext | None = None,
    ) -> tuple[TiledConvolutionState, Signal]:
        before, y = self.convolution.prefill(_joined(state), x, context=context)
        pending = start_line(before.history, self._kernel).astype(state.pending.dtype)
        recent, since = jnp.zeros_like(state.recent), jnp.zeros_like(state.since)
        return TiledConvolutionState(before, since, recent, pending), y

    def step(
        self, state: TiledConvolutionState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[TiledConvolutionState, Frame]:
        x, context = enter_step(self, x, context)
        before, since, recent, pending = context.forget(state)
        recent, pending, y = advance_line(recent, pending, since, x, self._kernel)
        y = y.astype(x.dtype) + self.convolution.skip.astype(x.dtype) * x
        y = jnp.where(before.length + since < len(before.history), y, jnp.nan)
        new = TiledConvolutionState(before, since + 1, recent, pending)
        return keep_at_padding(context, new, state), context.blank_padding(y)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        return self.convolution.flop_count(spatial_dims, inference)

    @property
    def _kernel(self) -> Float[Array, "lags features"]:
        sampled = self.convolution.sampled
        assert sampled is not None
        return sampled.value


def _joined(state: TiledConvolutionState) -> ConvolutionState:
    """The past until now, as the convolution itself keeps it."""
    (history, length), since, recent, _ = state
    inputs = jnp.concatenate([history, recent.astype(history.dtype)])
    history = jax.lax.dynamic_slice_in_dim(inputs, since, len(history))
    return ConvolutionState(history, length + since)
