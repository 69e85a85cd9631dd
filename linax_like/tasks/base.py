"""What a task is: batches, a loss, and an evaluation on data held out from training."""

import abc
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from ..config import AbstractConfig
from ..ops.cross_entropy import cross_entropy, SummedLoss
from ..types import Aux, Scalar


Batch = dict[str, np.ndarray]  # every array has a leading axis of examples


class Metrics(NamedTuple):
    """Sums over the items of a batch: the bytes of a text, the images of a classifier.

    Sums add up over micro-batches and devices; divided by `items` they are means over all of it.

    - `objective`: what is minimised: the losses, and each example's auxiliary loss once per item.
    - `loss`: the items' losses, in nats.
    - `correct`: items whose most probable label is the right one.
    - `items`: how many there are.
    - `aux`: each example's auxiliary loss once per item, and how busy experts were.
    """

    objective: Scalar
    loss: Scalar
    correct: Scalar
    items: Scalar
    aux: Aux

    def plus(self, other: "Metrics") -> "Metrics":
        return jax.tree.map(jnp.add, self, other)


@dataclass(frozen=True)
class AbstractTaskConfig(AbstractConfig):
    """Which data, and how it is cut into examples."""

    @abc.abstractmethod
    def load(self) -> "AbstractTask":
        """Reads or makes the data."""


class AbstractTask(abc.ABC):
    """Data to train on, and data held out from it."""

    @property
    @abc.abstractmethod
    def tokens_per_example(self) -> int:
        """Positions that a model reads per example, for the throughput."""

    @abc.abstractmethod
    def describe(self) -> str:
        """One line about the data."""

    @abc.abstractmethod
    def check(self, model: AbstractConfig) -> None:
        """Raises a `ValueError` if a model of this config cannot read the task's examples."""

    @abc.abstractmethod
    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """The training examples of a step: a pure function, so a run resumes from its step."""

    @abc.abstractmethod
    def loss(
        self, model: PyTree, batch: PyTree[Array], keys: Key[Array, " batch"] | None
    ) -> Metrics:
        """The sums of a batch, as a pure function in JAX.

        - `keys`: one per example, which turns dropout on; None to leave it off.
        """

    @abc.abstractmethod
    def evaluate(self, model: PyTree) -> dict[str, float]:
        """The results of a trained model on the held-out data."""


def classify(logits: Float[Array, "*shape classes"], labels: Array, aux: Aux) -> Metrics:
    """The sums of a batch of classifications.

    - `aux`: that of every example.
    """
    losses = jnp.sum(cross_entropy(logits, labels))
    correct = jnp.sum(jnp.argmax(logits, -1) == labels).astype(jnp.float32)
    return sum_up(SummedLoss(losses, losses, correct), labels.size, aux)


def sum_up(sums: SummedLoss, items: int, aux: Aux) -> Metrics:
    """The sums of a batch with so many items.

    - `aux`: that of every example.
    """
    per_example, aux = items / aux.loss.size, jax.tree.map(jnp.sum, aux)
    aux = aux._replace(loss=per_example * aux.loss)
    return Metrics(
        objective=sums.objective + aux.loss,
        loss=sums.loss,
        correct=sums.correct,
        items=jnp.asarray(items, jnp.float32),
        aux=aux,
    )
