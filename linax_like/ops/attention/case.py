"""What attention is asked to compute, as far as it is known without the arrays' values."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Rules(NamedTuple):
    """The static part of attention: which keys a query sees by index, and how it scores them.

    - `offset`: the index of the key that stands where the first query stands.
    - `spans`: whether there are any, in which a query sees keys that it would not see else.
    """

    causal: bool
    window: int | None
    offset: int
    scale: float
    soft_cap: float | None
    spans: bool = False

    @property
    def reach(self) -> tuple[int | None, int | None]:
        """The smallest and the largest distance of a query to a key behind it that it sees."""
        far = None if self.window is None else self.window - 1
        near = None if far is None else -far
        return 0 if self.causal else near, far

    def sees(self, distance):
        """Whether a query sees the keys at these distances behind it."""
        near, far = self.reach
        seen = jnp.ones(distance.shape, bool)
        if near is not None:
            seen = distance >= near
        if far is not None:
            seen = seen & (distance <= far)
        return seen

    def visible(self, query, key):
        """Whether queries at these indices see keys at those, shape `(queries, keys)`."""
        return self.sees((query + self.offset)[:, None] - key[None, :])

    @property
    def visited(self) -> tuple[int | None, int | None]:
        """The distances at which there may be keys that are seen."""
        return (None, None) if self.spans else self.reach

    def seen_blocks(self, i, queries: int, keys: int, count: int) -> tuple[Any, Any]:
        """The first of `count` blocks of keys that query block `i` sees, and the one after the last.

        - `queries`, `keys`: how many there are in a block.
        """
        return _blocks_behind(i * queries + self.offset, queries, self.visited, keys, count)

    def seeing_blocks(self, i, keys: int, queries: int, count: int) -> tuple[Any, Any]:
        """The first of `count` blocks of queries that see key block `i`, and the one after the last."""
        near, far = (None if x is None else -x for x in self.visited)
        return _blocks_behind(i * keys - self.offset, keys, (far, near), queries, count)


def _blocks_behind(first, length: int, reach, size: int, count: int):
    """The blocks of `size` that are within reach behind `length` positions from `first` on."""
    near, far = reach
    low, high = jnp.zeros_like(first), jnp.full_like(first, count)
    if far is not None:
        low = ((first - far) // size).clip(0, count)
    if near is not None:
        high = ((first + length - 1 - near) // size + 1).clip(0, count)
    return low, high


class Case(NamedTuple):
    """One call of `attention`, as far as a choice may depend on it.

    - `segment_ids`: their dtype, if there are any.
    - `masked`, `padding_last`: whether keys are hidden, and if so only behind the others.
    """

    q: jax.ShapeDtypeStruct
    k: jax.ShapeDtypeStruct
    v: jax.ShapeDtypeStruct
    segment_ids: jnp.dtype | None
    masked: bool
    padding_last: bool
    rules: Rules
