"""Sequences of one length, and how documents and padding lie in them: data, which compile nothing."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from linax_like.context import SequenceContext
from linax_like.sequence_mixers import AbstractSequenceMixer


TIME, FEATURES = 16, 8
DOCUMENTS = (4, 8, 4)


class Layout(NamedTuple):
    """How documents and padding lie in a sequence of `TIME` positions.

    - `real`: where the positions of the unpadded sequence went.
    - `source`: which positions of the unpadded sequence those are.
    """

    context: Any  # a `SequenceContext`, or None
    real: np.ndarray
    source: np.ndarray


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X = noise(TIME, FEATURES)
WEIGHT = noise(TIME, FEATURES, seed=1)
IDS = np.repeat(np.array([7, 2, 9], np.int32), DOCUMENTS)
EVERYWHERE = np.arange(TIME)
PLAIN = Layout(None, EVERYWHERE, EVERYWHERE)
PACKED = Layout(SequenceContext(segment_ids=jnp.asarray(IDS)), EVERYWHERE, EVERYWHERE)


def padded(real: np.ndarray, source: np.ndarray, packed: bool) -> Layout:
    """A layout with padding everywhere but at `real`. The ids of padding are junk."""
    mask = np.zeros(TIME, bool)
    mask[real] = True
    ids = np.random.default_rng(2).permutation(np.resize(np.array([7, 2, 9, -3], np.int32), TIME))
    ids[real] = IDS[source]
    context = SequenceContext(mask=jnp.asarray(mask))
    if packed:
        first = jnp.int32(IDS[0])
        context = context.replace(segment_ids=jnp.asarray(ids), previous_segment_id=first)
    return Layout(context, real, source)


JUNK = np.resize(np.array([np.nan, np.inf, -np.inf, 1e38], np.float32), X.shape)
FIRST_TWO, SECOND = np.arange(12), np.arange(4, 12)
INTERIOR = np.array([1, 2, 3, 5, 6, 7, 8, 10, 11, 13, 14, 15])
PACKED_AND_PADDED = padded(INTERIOR, FIRST_TWO, packed=True)
# Time since the previous sample, for mixers that use it; at padding it means nothing.
TIMESTEPS = np.full(TIME, np.nan, np.float32)
TIMESTEPS[INTERIOR] = 0.5 + INTERIOR % 3
PADDINGS = [
    *(padded(real, SECOND, packed=False) for real in (INTERIOR[:8], SECOND + 4, SECOND - 4)),
    *(padded(real, FIRST_TWO, packed=True) for real in (INTERIOR, FIRST_TWO + 4, FIRST_TWO)),
]
NO_REAL = np.arange(0)
ONLY_PADDING = [padded(NO_REAL, NO_REAL, packed) for packed in (False, True)]


def layouts(mixer: AbstractSequenceMixer) -> list[Layout]:
    """One without a context, and one with everything that this mixer heeds."""
    context = PACKED_AND_PADDED.context
    if "timesteps" in mixer.uses:
        context = context.replace(timesteps=jnp.asarray(TIMESTEPS))
    return [PLAIN, PACKED_AND_PADDED._replace(context=context)]


def scatter(layout: Layout, values: np.ndarray, fill: np.ndarray | float) -> np.ndarray:
    """The values of the unpadded sequence where the layout puts them."""
    result = np.broadcast_to(np.asarray(fill, np.float32), values.shape).copy()
    result[layout.real] = values[layout.source]
    return result
