"""Handwritten digits, read pixel by pixel: which digit is it?

The 1,797 images of 8 × 8 pixels that scikit-learn carries (Alpaydin and Kaynak, 1998,
https://doi.org/10.24432/C50P49).
"""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from ..config import AbstractConfig, require
from ..models import SequenceModelConfig
from ..ops.cross_entropy import cross_entropy
from .base import AbstractTask, AbstractTaskConfig, Batch, classify, Metrics


_SIDE = 8
_CLASSES = 10


@dataclass(frozen=True)
class DigitsTaskConfig(AbstractTaskConfig):
    """Sequences of 64 pixels, row by row.

    - `held_out`: the fraction of the images of every digit that is kept for evaluation.
    - `split_seed`: which images those are.
    - `distorted`: the fraction of training images that are distorted. Interpolation blurs, so that
        some must stay as sharp as what is held out.
    - `shift`: those move by up to so many pixels, fractions included.
    - `rotation`: they turn by up to so many degrees.
    - `zoom`: they grow or shrink by up to this fraction.
    """

    held_out: float = 0.2
    split_seed: int = 0
    distorted: float = 0.5
    shift: float = 1.0
    rotation: float = 10.0
    zoom: float = 0.1

    def __post_init__(self):
        require(0 < self.held_out < 1, self, "held_out", "between 0 and 1")
        require(self.split_seed >= 0, self, "split_seed", "at least 0")
        require(0 <= self.distorted <= 1, self, "distorted", "in [0, 1]")
        for field in ("shift", "rotation"):
            require(getattr(self, field) >= 0, self, field, "at least 0")
        require(0 <= self.zoom < 1, self, "zoom", "in [0, 1)")

    def load(self) -> "DigitsTask":
        return DigitsTask(self)


class Images(NamedTuple):
    pixels: Float[np.ndarray, "images 8 8"]  # from -1 (paper) to 1 (ink)
    labels: Int[np.ndarray, " images"]


class DigitsTask(AbstractTask):
    """Images of digits as sequences of one feature, split evenly over the classes."""

    config: DigitsTaskConfig
    train: Images
    test: Images

    def __init__(self, cfg: DigitsTaskConfig):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        pixels = (pixels / 8 - 1).astype(np.float32).reshape(-1, _SIDE, _SIDE)
        labels = labels.astype(np.int32)
        indices = np.arange(len(labels))
        train, test = train_test_split(
            indices, test_size=cfg.held_out, stratify=labels, random_state=cfg.split_seed
        )
        self.config = cfg
        self.train = Images(pixels[train], labels[train])
        self.test = Images(pixels[test], labels[test])

    @property
    def tokens_per_example(self) -> int:
        return _SIDE * _SIDE

    def describe(self) -> str:
        return (
            f"scikit-learn's handwritten digits: {len(self.train.labels):,} images to train on, "
            f"{len(self.test.labels):,} held out"
        )

    def check(self, model: AbstractConfig) -> None:
        valid = isinstance(model, SequenceModelConfig)
        if not valid or (model.in_features, model.out_features) != (1, _CLASSES):
            raise ValueError(
                "`DigitsTaskConfig` needs a `SequenceModelConfig` with `in_features=1` (a pixel) "
                f"and `out_features={_CLASSES}` (the digits). Received `{type(model).__name__}("
                f"in_features={getattr(model, 'in_features', None)}, "
                f"out_features={getattr(model, 'out_features', None)})`."
            )

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        rng = np.random.default_rng((seed, step))
        chosen = rng.integers(0, len(self.train.labels), batch_size)
        pixels = self.train.pixels[chosen]
        distorted = rng.random(batch_size) < self.config.distorted
        pixels = np.where(distorted[:, None, None], distort(pixels, self.config, rng), pixels)
        return {"inputs": _as_sequences(pixels), "targets": self.train.labels[chosen]}

    def loss(
        self, model: PyTree, batch: PyTree[Array], keys: Key[Array, " batch"] | None
    ) -> Metrics:
        logits, aux = jax.vmap(model)(batch["inputs"], keys)
        return classify(logits, batch["targets"], aux)

    def evaluate(self, model: PyTree) -> dict[str, float]:
        """Accuracy on the held-out images, and their mean loss in nats."""
        logits = _logits(model, jnp.asarray(_as_sequences(self.test.pixels)))
        labels = jnp.asarray(self.test.labels)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        return {"accuracy": float(accuracy), "loss": float(cross_entropy(logits, labels).mean())}

    def confusion_matrix(self, model: PyTree) -> Int[np.ndarray, "10 10"]:
        """How many held-out images of a digit (row) were taken for which (column)."""
        logits = _logits(model, jnp.asarray(_as_sequences(self.test.pixels)))
        predicted = np.asarray(jnp.argmax(logits, -1))
        matrix = np.zeros((_CLASSES, _CLASSES), int)
        np.add.at(matrix, (self.test.labels, predicted), 1)
        return matrix


def distort(
    pixels: Float[np.ndarray, "images 8 8"], cfg: DigitsTaskConfig, rng: np.random.Generator
) -> Float[np.ndarray, "images 8 8"]:
    """Randomly turns, scales and moves images, by bilinear interpolation."""
    count = len(pixels)
    angle = np.radians(rng.uniform(-cfg.rotation, cfg.rotation, count))
    scale = 1 + rng.uniform(-cfg.zoom, cfg.zoom, count)
    moved = rng.uniform(-cfg.shift, cfg.shift, (2, count))
    cos, sin = (np.cos(angle) / scale)[:, None, None], (np.sin(angle) / scale)[:, None, None]
    centre = (_SIDE - 1) / 2
    rows, columns = np.mgrid[:_SIDE, :_SIDE] - centre
    # Where each pixel of the new image comes from in the old one.
    row = cos * rows - sin * columns + centre + moved[0][:, None, None]
    column = sin * rows + cos * columns + centre + moved[1][:, None, None]
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), constant_values=-1.0)  # paper all around
    row, column = np.clip(row + 1, 0, _SIDE + 1), np.clip(column + 1, 0, _SIDE + 1)
    i, j = np.minimum(row.astype(int), _SIDE), np.minimum(column.astype(int), _SIDE)
    down, right = row - i, column - j
    image = np.arange(count)[:, None, None]
    upper = padded[image, i, j] * (1 - right) + padded[image, i, j + 1] * right
    lower = padded[image, i + 1, j] * (1 - right) + padded[image, i + 1, j + 1] * right
    return (upper * (1 - down) + lower * down).astype(np.float32)


def _as_sequences(pixels: Float[np.ndarray, "images 8 8"]) -> Float[np.ndarray, "images 64 1"]:
    return pixels.reshape(len(pixels), _SIDE * _SIDE, 1)


@eqx.filter_jit
def _logits(model: PyTree, inputs: Float[Array, "images 64 1"]) -> Float[Array, "images 10"]:
    return jax.vmap(model)(inputs).logits
