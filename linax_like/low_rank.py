"""Low-rank adaptation: fine-tuning by the product of two thin matrices beside each adapted one.

    W' = W + B A        A: (rank, in), random        B: (out, rank), zero at first

(https://arxiv.org/abs/2106.09685). A model is adapted from outside: its matrices are chosen by their
public names, and added up before a forward pass, so that every module may be adapted and knows nothing
of it. W' is as large as W, but only A and B are trained, and kept by the optimizer.

    adapted = lora(model, ("*/q_proj", "*/v_proj"), rank=8, key=key)
    step = make_train_step(lambda adapted, *examples: task.loss(adapted.merged, *examples), …)
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .initializers import constant, normal, split
from .parameters import Buffer
from .paths import array_names, array_places, matching, Place


class LowRank(eqx.Module):
    """B A, added to a matrix, or to some of a stack of them.

    - `layers`: of a stack, which of its matrices; None for all there are.
    """

    a: Float[Array, "*repeats rank in"]
    b: Float[Array, "*repeats out rank"]
    layers: tuple[bool, ...] | None = eqx.field(static=True)

    def added_to(self, weight: Float[Array, "*repeats out in"]) -> Float[Array, "*repeats out in"]:
        change = self.b @ self.a
        if self.layers is not None:
            change = jnp.where(np.array(self.layers)[:, None, None], change, 0)
        return weight + change.astype(weight.dtype)


class Adapted(eqx.Module):
    """A model and what is added to its matrices, which alone is trained.

    - `base`: the model, as one buffer.
    - `adapters`: its tree, with a `LowRank` in place of an adapted matrix, and nothing elsewhere.
    """

    base: Buffer
    adapters: PyTree[LowRank]

    @property
    def merged(self) -> PyTree:
        """The adapted model, of the same type as the base."""

        def merge(adapter: LowRank | None, weight: PyTree) -> PyTree:
            return weight if adapter is None else adapter.added_to(weight)

        return jax.tree.map(merge, self.adapters, self.base.value, is_leaf=_is_place_of_adapter)


def lora(model: PyTree, patterns: Sequence[str], rank: int, key: PRNGKeyArray) -> Adapted:
    """The model, adapted at every matrix whose public name fits a pattern; at first it is the same.

    - `patterns`: such as `("*/q_proj", "*/v_proj")`.
    - `rank`: of what is added to a matrix.

    **Raises:** `ValueError` if a pattern fits nothing, or something that is not a trained matrix.
    """
    if rank < 1:
        raise ValueError(f"`lora`: `rank` must be positive. Received {rank}.")
    chosen = matching(array_names(model), patterns)
    is_stored = lambda node: isinstance(node, Buffer)
    trained = jax.tree.map(lambda x: None if is_stored(x) else x, model, is_leaf=is_stored)
    stored = chosen - set(array_names(trained))
    if stored:
        raise ValueError(f"`lora` adapts what is trained, which `{min(stored)}` is not.")
    keys = iter(split(key, len(chosen)))

    def adapt(place: Place, weight: Array) -> LowRank | None:
        here = tuple(name in chosen for name in place.names)
        if not any(here):
            return None
        _require_matrix(place.names[here.index(True)], weight, place.stacked)
        *repeats, out_size, in_size = weight.shape
        a = normal(next(keys), (*repeats, rank, in_size), in_size**-0.5)
        b = constant(0.0, (*repeats, out_size, rank))
        return LowRank(a, b, here if place.stacked and not all(here) else None)

    return Adapted(Buffer(model), jax.tree.map(adapt, array_places(model), model))


def _require_matrix(name: str, weight: Array, stacked: bool) -> None:
    shape = weight.shape[1:] if stacked else weight.shape
    if len(shape) != 2 or not jnp.issubdtype(weight.dtype, jnp.inexact):
        raise ValueError(
            f"`lora` adapts matrices of real numbers. `{name}` has shape {shape} and dtype "
            f"{weight.dtype}: choose patterns that do not fit it."
        )


def _is_place_of_adapter(node: PyTree) -> bool:
    return node is None or isinstance(node, LowRank)
