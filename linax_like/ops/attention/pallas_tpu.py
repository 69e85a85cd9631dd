"""JAX's splash attention for TPU (`jax.experimental.pallas.ops.tpu.splash_attention`).

Its public form keeps the log-sum-exp to itself, and finds the blocks to visit by computing all of
the `time · keys` pairs on the host. So its passes are called here without that form, on the blocks
that `Rules` name. It groups queries by itself: keys and values are not repeated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
    splash_attention_mask_info as mask_info,
)
from jaxtyping import Array

from ...precision import upcast
from .case import Case, Rules


BLOCK = 512  # the most queries or keys in a block
LANES = 128  # a block is a multiple of it
MAX_HEAD = 512  # what fits into the vector memory of a v5e beside blocks of that size
MAX_VISITS = 2**18  # pairs of blocks whose table fits into the scalar memory
XLA_WINS_UP_TO = 2048  # keys, as reported for a v5e
INTERPRET = False  # True runs the kernel without a TPU, slowly


def obstacle(case: Case) -> str | None:
    """Why the kernel cannot take the case, in a sentence."""
    q, k, v, ids, rules = case.q, case.k, case.v, case.segment_ids, case.rules
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"Splash attention computes in bfloat16 and float32, not {q.dtype}."
    if rules.spans:
        return "Splash attention visits no keys for `spans` beyond those that causality leaves."
    if ids is not None and not np.can_cast(ids, np.int32):
        return f"Splash attention takes `segment_ids` in int32, not {ids}."
    head = max(q.shape[-1], v.shape[-1])
    if head > MAX_HEAD:
        return f"Splash attention has no memory for heads of size {head}, above {MAX_HEAD}."
    if _Grid.over(q.shape[0], k.shape[0], rules).visits > MAX_VISITS:
        return "Splash attention has no memory for the table of so many blocks."
    return None


def drawback(case: Case) -> str | None:
    """Why another backend suits a case better that the kernel can take, in a sentence."""
    if case.k.shape[0] <= XLA_WINS_UP_TO:
        return f"XLA is faster than splash attention for up to {XLA_WINS_UP_TO} keys."
    if case.q.shape[0] < LANES:
        return f"Splash attention would fill up {case.q.shape[0]} queries to {LANES}."
    return None


def forward(q, k, v, segment_ids, mask, spans, rules: Rules):
    """As `xla.forward`."""
    grid = _Grid.over(len(q), len(k), rules)
    y, (log_sum,) = splash._splash_attention_forward(
        grid.mask(by_query=True),
        *_operands(q, k, v, segment_ids, mask, grid),
        None,
        splash.DEFAULT_MASK_VALUE,
        False,
        grid.sizes,
        None,
        True,
        grid.sees,
        rules.soft_cap,
        INTERPRET,
    )
    y, log_sum = y.swapaxes(0, 1)[: len(q)], log_sum.T[: len(q)]
    # A hidden score is finite: a query without a key averages what it should not see.
    alone = log_sum < splash.DEFAULT_MASK_VALUE / 2
    return jnp.where(alone[..., None], jnp.zeros_like(y), y), jnp.where(alone, jnp.inf, log_sum)


def backward(q, k, v, segment_ids, mask, spans, y, log_sum, dy, rules: Rules):
    """As `xla.backward`."""
    grid = _Grid.over(len(q), len(k), rules)
    y, log_sum, dy = (_heads_first(x, grid.time) for x in (y, log_sum, dy))
    operands = _operands(q, k, v, segment_ids, mask, grid)
    masks = grid.mask(by_query=True), grid.mask(by_query=False)
    *_, dq, dk, dv, _, _ = splash._splash_attention_bwd(
        False,
        splash.DEFAULT_MASK_VALUE,
        False,
        grid.sizes,
        None,
        grid.sees,
        rules.soft_cap,
        INTERPRET,
        (*operands, None, y, log_sum, *masks),
        dy,
    )
    dq, dk, dv = (x.swapaxes(0, 1) for x in (dq, dk, dv))
    return _scale(dq[: len(q)], rules), dk[: len(k)], dv[: len(k)]


class _Grid(NamedTuple):
    """Blocks of queries and keys: how many, and of what size."""

    rows: int
    q_size: int
    columns: int
    k_size: int
    rules: Rules

    @staticmethod
    def over(time: int, keys: int, rules: Rules) -> "_Grid":
        return _Grid(*_blocks(time), *_blocks(keys), rules)

    @property
    def time(self) -> int:
        return self.rows * self.q_size

    @property
    def keys(self) -> int:
        return self.columns * self.k_size

    @property
    def sizes(self) -> splash.BlockSizes:
        q, k = self.q_size, self.k_size
        return splash.BlockSizes(q, k, k, q, k, k, q, k)

    @property
    def sees(self) -> Callable[[Array, Array], Array] | None:
        """Whether a query sees a key, by their indices; None if every one does."""
        if self.rules.reach == (None, None):
            return None
        return lambda query, key: self.rules.sees(query + self.rules.offset - key)

    @property
    def visits(self) -> int:
        """The size of the larger table of `mask`."""
        return max(self.rows * self._width(1), self.columns * self._width(0))

    def mask(self, by_query: bool) -> mask_info.MaskInfo:
        """What splash attention calls a mask: the blocks that one of queries, or of keys, visits."""
        if by_query:
            axis, rows = 1, jnp.arange(self.rows)
            low, high = self.rules.seen_blocks(rows, self.q_size, self.k_size, self.columns)
        else:
            axis, columns = 0, jnp.arange(self.columns)
            low, high = self.rules.seeing_blocks(columns, self.k_size, self.q_size, self.rows)
        low, number = (jnp.expand_dims(x, axis) for x in (low, high - low))
        step = jnp.expand_dims(jnp.arange(self._width(axis)), 1 - axis)
        # Where there is none to visit, the one that is loaded has to exist.
        block = (low + jnp.minimum(step, number - 1)).clip(0, (self.rows, self.columns)[axis] - 1)
        visited = (step < number).astype(jnp.int8)
        indices: Any = None if self.sees is None else jnp.arange(self.time, dtype=jnp.int32)
        return mask_info.MaskInfo(
            block.astype(jnp.int16)[None], None, visited[None], None, indices
        )

    def _width(self, axis: int) -> int:
        """How many blocks along an axis (1: of keys) one of the other axis visits at most."""
        number, size, other = self.columns, self.k_size, self.q_size
        if axis == 0:
            number, size, other = self.rows, self.q_size, self.k_size
        near, far = self.rules.reach
        if near is None or far is None:
            return number
        return min(number, (other + far - near + size - 2) // size + 1)


def _blocks(length: int) -> tuple[int, int]:
    """The number of equal blocks, as few as can be, and their size."""
    number = -(-length // BLOCK)
    return number, -(-length // (number * LANES)) * LANES


def _operands(q, k, v, segment_ids, mask, grid):
    """Scaled queries, keys and values, heads first and filled up to whole blocks; and the ids."""
    ids = _segment_ids(segment_ids, mask, len(q), len(k), grid)
    q = _heads_first(_scale(q, grid.rules), grid.time)
    return q, _heads_first(k, grid.keys), _heads_first(v, grid.keys), ids


def _segment_ids(segment_ids, mask, time, keys, grid):
    """Documents, with hidden keys in one of their own; None if the indices tell what is seen."""
    if segment_ids is None and mask is None and (grid.rules.causal or keys == grid.keys):
        return None
    if segment_ids is None:
        q_ids, k_ids = jnp.zeros(time, jnp.int32), jnp.zeros(keys, jnp.int32)
    else:
        k_ids = segment_ids.astype(jnp.int32)
        q_ids = k_ids[grid.rules.offset :]
    hidden = jnp.min(q_ids) - 1  # wraps around, so the ids may hold one end of int32
    k_ids = k_ids if mask is None else jnp.where(mask, k_ids, hidden)
    fill = jnp.full(grid.keys - keys, hidden)
    q_ids = jnp.pad(q_ids, (0, grid.time - time))
    return splash.SegmentIds(q_ids, jnp.concatenate([k_ids, fill]))


def _heads_first(x, length):
    """`x` of shape `(time, heads, ...)`, filled up to `length`, as `(heads, length, ...)`."""
    return jnp.pad(x, ((0, length - len(x)), *((0, 0) for _ in x.shape[1:]))).swapaxes(0, 1)


def _scale(q, rules):
    return (upcast(q) * rules.scale).astype(q.dtype)
