"""What an architecture is: one table between our arrays and a file's tensors, read both ways.

A row names arrays of ours and the tensors that hold the same numbers, and knows how to turn each
into the other. Rows whose arrays a model lacks (biases, a head of its own) are left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...models import LanguageModelConfig
from .options import Options


Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Transform:
    """How the tensors of a file become arrays of ours, and the inverse; one argument for each.

    - `recut`: whether some files cut the same rows into the same number of tensors elsewhere.
    """

    load: Callable[..., Arrays]
    save: Callable[..., Arrays]
    recut: bool = False


SAME = Transform(lambda *tensors: tensors, lambda *arrays: arrays)
# A convolution by channel: (channels, 1, width), where we have (width, channels).
SHORT_CONV = Transform(lambda w: (w[:, 0].T,), lambda w: (w.T[:, None],))
# Matrices by block: (block, in, out), where we have (block, out, in).
BLOCKS = Transform(lambda w: (w.swapaxes(1, 2),), lambda w: (w.swapaxes(1, 2),))


@dataclass(frozen=True)
class Row:
    """Arrays of ours, and the tensors that hold the same numbers."""

    public: tuple[str, ...]
    disk: tuple[str, ...]
    transform: Transform = SAME

    def within(self, public: str, disk: str) -> "Row":
        """The row of the same table inside a layer."""
        ours = tuple(f"{public}/{name}" for name in self.public)
        theirs = tuple(f"{disk}.{name}" for name in self.disk)
        return Row(ours, theirs, self.transform)


def row(public: str, disk: str, transform: Transform = SAME) -> Row:
    """One array of ours, and one tensor."""
    return Row((public,), (disk,), transform)


@dataclass(frozen=True)
class Architecture:
    """A `model_type` of Hugging Face.

    - `model_type`, `class_name`: what `config.json` calls it.
    - `config_from`: our config of their options.
    - `config_to`: their options for our config. What they cannot say is found by reading them back,
        so that a model of another kind need not be recognised, as long as nothing else is raised than
        `ValueError`.
    - `outer`: the rows outside the layers.
    - `layers`: the prefix of layers in the file.
    - `layer`: the rows of a layer.
    - `canonical`: the table's name for a tensor found in a file; None for one that has no meaning here.
    """

    model_type: str
    class_name: str
    config_from: Callable[[Options], LanguageModelConfig]
    config_to: Callable[[LanguageModelConfig], dict[str, Any]]
    outer: tuple[Row, ...]
    layers: str
    layer: Callable[[Any], tuple[Row, ...]]  # from the config of a block
    canonical: Callable[[str], str | None] = lambda name: name

    def table(self, config: LanguageModelConfig) -> Iterator[Row]:
        """All rows."""
        yield from self.outer
        for i, block in enumerate(config.stack.layers):
            for inner in self.layer(block):
                yield inner.within(f"stack/{i}", f"{self.layers}.{i}")
