"""One training step, as a pure function of the state and a batch."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Int, Key, PyTree

from ..channel_mixers import balance, router_biases
from ..freezing import keep_frozen, trainable
from ..ops.varying import vary_together
from ..tasks import Metrics
from ..types import Scalar


Loss = Callable[[PyTree, PyTree[Array], Key[Array, " batch"]], Metrics]  # model, batch, keys


class TrainState(NamedTuple):
    """All that changes in training.

    - `average`: the running mean of the model's weights, or None.
    """

    model: PyTree
    optimizer: PyTree
    average: PyTree | None
    step: Int[Array, ""]

    @property
    def result(self) -> PyTree:
        """The model to evaluate and to keep: the mean if there is one."""
        return self.model if self.average is None else self.average


class Report(NamedTuple):
    """What a step tells: the sums over its batch, and the gradient's norm before clipping."""

    metrics: Metrics
    gradient_norm: Scalar


def init_state(
    model: PyTree,
    optimizer: optax.GradientTransformation,
    average: bool = False,
    frozen: Sequence[str] = (),
) -> TrainState:
    """The state before the first step."""
    parameters = eqx.filter(model, trainable(model, frozen))
    mean = jax.tree.map(jnp.array, model) if average else None
    return TrainState(model, optimizer.init(parameters), mean, jnp.zeros((), jnp.int32))


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    accumulation: int = 1,
    average: float | None = None,
    frozen: Sequence[str] = (),
    axis_name: str | None = None,
) -> Callable[[TrainState, PyTree[Array]], tuple[TrainState, Report]]:
    """A pure function of state and batch. Under `jit`, donate the state: `donate_argnums=0`.

    - `seed`: with the step number, decides dropout and the like.
    - `accumulation`: how many parts a batch is cut into, one after the other, to save memory. The
        result is that of the whole batch.
    - `average`: decay per step of the running mean of the weights.
    - `frozen`: patterns of the names of arrays that stay as they are; the optimizer and the state
        are made with the same.
    - `axis_name`: of the axis of devices under `jax.pmap` or `jax.shard_map`, where a step gets its
        device's part of the batch. The result is that of the whole batch.
    """

    def step(state: TrainState, batch: PyTree[Array]) -> tuple[TrainState, Report]:
        trained = trainable(state.model, frozen)
        parameters, rest = eqx.partition(state.model, trained)
        biases, fixed = eqx.partition(rest, router_biases(rest))
        key = jr.fold_in(jr.key(seed), state.step)
        keys = _example_keys(key, len(jax.tree.leaves(batch)[0]), axis_name)

        def objective(moving: PyTree, examples: PyTree):
            metrics = loss(eqx.combine(*moving, fixed), *examples)
            return metrics.objective, metrics

        gradient = jax.grad(objective, has_aux=True)
        moving, examples = (parameters, biases), (batch, keys)
        sums = _sum_over_parts(gradient, accumulation, moving, examples)
        if axis_name is not None:
            sums = jax.lax.psum(sums, axis_name)
        (gradients, loads), metrics = sums
        gradients = jax.tree.map(lambda leaf: leaf / metrics.items, gradients)
        gradients = keep_frozen(gradients, jax.tree.map(jnp.zeros_like, gradients), frozen)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, parameters)
        moved = optax.apply_updates(parameters, updates)
        model = eqx.combine(moved, balance(biases, loads), fixed)
        model = keep_frozen(model, state.model, frozen)
        mean = None
        if average is not None:
            before, now = (eqx.filter(tree, trained) for tree in (state.average, model))
            mean = eqx.combine(_move(before, now, average, state.step), model)
            mean = keep_frozen(mean, model, frozen)
        new = TrainState(model, optimizer_state, mean, state.step + 1)
        return new, Report(metrics, optax.tree.norm(gradients))

    return step


def _example_keys(key: Key[Array, ""], size: int, axis_name: str | None) -> Key[Array, " {size}"]:
    """A key for every example that is here, by its place in the whole batch."""
    if axis_name is None:
        return jr.split(key, size)
    shape = (jax.lax.axis_size(axis_name), size)
    return jr.split(key, shape)[jax.lax.axis_index(axis_name)]


def _sum_over_parts(
    gradient: Callable, parts: int, parameters: PyTree, examples: PyTree
) -> PyTree:
    """`gradient(parameters, examples)`, a sum over examples, computed part by part."""
    # `jax.shard_map` sums the gradient of what is the same on every device over them, unasked.
    parameters, _ = vary_together(parameters, examples)
    if parts == 1:
        return gradient(parameters, examples)
    # Part i takes every `parts`-th example, so that examples stay on their devices.
    cut = lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
    shapes = jax.eval_shape(gradient, parameters, examples)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = vary_together(zeros, examples)

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient(parameters, part)), None

    return jax.lax.scan(add, total, jax.tree.map(cut, examples))[0]


def _move(mean: PyTree, model: PyTree, decay: float, step: Int[Array, ""]) -> PyTree:
    """Moves the mean towards the model; at first quickly, to forget the random start."""
    count = step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + count) / (10 + count))

    def move(old: Array, new: Array) -> Array:
        return (kept * old + (1 - kept) * new).astype(old.dtype)

    return jax.tree.map(move, mean, model)
