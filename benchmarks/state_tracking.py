"""State tracking: what is the product of the group's elements so far? Eigenvalues decide.

uv run python -m benchmarks.state_tracking

Parity is counting modulo 2, which takes a transition that reflects: an eigenvalue of -1. Addition
modulo 3 takes one that turns, the product of two reflections, and S3, the permutations of three
things, takes both. What only fades forgets (https://arxiv.org/abs/2411.12537,
https://arxiv.org/abs/2502.10297).

One layer, without a short convolution, trained on every prefix of random sequences, first of a few
elements, at the end of 64; tested by the last element of longer ones.
"""

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np
import optax

import linax_like as lx
from linax_like.sequence_mixers import AbstractSequenceMixerConfig

from . import harness


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


WIDTH, TRAINED, TESTED, SEEDS = 32, 64, 256, 3
SIZES = (6, 8, 16, 32, TRAINED)  # each is compiled; beyond its length a sequence has no loss


def steadily(progress: float, length: np.ndarray, right: np.ndarray) -> np.ndarray:
    """From 4 to all elements in the first half of the steps."""
    return np.full_like(length, min(TRAINED, 4 + int(2 * TRAINED * progress)))


def when_right(progress: float, length: np.ndarray, right: np.ndarray) -> np.ndarray:
    """From 4 on, two more whenever 95 % of a batch's answers were right."""
    return np.minimum(np.maximum(length, 4) + 2 * (right > 0.95), TRAINED)


def at_half(progress: float, length: np.ndarray, right: np.ndarray) -> np.ndarray:
    """6, and after about half of the steps all."""
    return np.full_like(length, 6 if progress < 10 / 19 else TRAINED)


def cyclic(order: int) -> np.ndarray:
    """The table of addition."""
    elements = np.arange(order)
    return (elements[:, None] + elements) % order


def symmetric(size: int) -> np.ndarray:
    """The table of permutations: row after column."""
    permutations = list(itertools.permutations(range(size)))
    number = {p: i for i, p in enumerate(permutations)}
    after = lambda p, q: number[tuple(p[i] for i in q)]
    return np.array([[after(p, q) for q in permutations] for p in permutations])


@dataclass(frozen=True)
class Task:
    """The elements of a group, to be multiplied, and how that is learned.

    - `table`: element `table[a, b]` is a after b.
    - `curriculum`: how long the sequences of each seed are, by the part of the steps that is over,
        how long they were and how many answers were right.
    - `channel_mixer`: what a nonlinear reading forgives of an angle adds up over longer sequences: of
        turns it is linear.
    """

    table: np.ndarray
    steps: int
    batch: int
    rate: float
    curriculum: Callable[[float, np.ndarray, np.ndarray], np.ndarray]
    channel_mixer: lx.SwiGLUConfig | None = lx.SwiGLUConfig(expand=2.0)


TASKS = {
    "parity": Task(cyclic(2), 300, 64, 5e-3, steadily),
    "addition mod 3": Task(cyclic(3), 1200, 32, 1e-2, when_right, channel_mixer=None),
    "S3": Task(symmetric(3), 950, 64, 1e-2, at_half),
}


@dataclass(frozen=True)
class Contender:
    """A mixer, the tasks that one layer of it can solve in theory, and those it tries."""

    name: str
    config: AbstractSequenceMixerConfig
    solves: tuple[str, ...] = ()
    tries: tuple[str, ...] = ("parity",)


ALL = tuple(TASKS)
HEADS = dict(num_heads=4, head_dim=8, short_width=None)
# Like DeltaProduct's, for a task on which it is beside it.
MORE_HEADS = dict(num_heads=8, head_dim=8, short_width=None, activation="none", chunk=16)
CORRECTIONS = dict(short_width=1, forget_gate=False, chunk=16)
CONTENDERS = [
    Contender(
        "DeltaNet, β ≤ 2",
        lx.DeltaNetSequenceMixerConfig(**HEADS, negative_eigenvalues=True),
        ("parity",),
    ),
    Contender(
        "DeltaNet, β ≤ 2",
        lx.DeltaNetSequenceMixerConfig(**MORE_HEADS, negative_eigenvalues=True),
        tries=("S3",),
    ),
    Contender("DeltaNet, β ≤ 1", lx.DeltaNetSequenceMixerConfig(**HEADS)),
    Contender(
        "DeltaProduct, two steps, β ≤ 2",
        lx.GatedDeltaProductSequenceMixerConfig(2, 4, 8, activation="none", **CORRECTIONS),
        ALL,
        ("addition mod 3",),
    ),
    Contender(
        "DeltaProduct, two steps, β ≤ 2",
        lx.GatedDeltaProductSequenceMixerConfig(2, 8, 8, activation="none", **CORRECTIONS),
        ALL,
        ("S3",),
    ),
]


def main(*tasks: str) -> None:
    """Of the tasks that the command names, or of all; a table and a plot for each."""
    where = harness.environment("optax")
    for task in tasks or TASKS:
        found = {c.name: learn(task, c) for c in CONTENDERS if task in c.tries}
        results = f"state_tracking_{task.replace(' ', '_')}"
        harness.write(results, [row for row, _ in found.values()], where)
        _plot(task, results, {name: curve for name, (_, curve) in found.items()})


def learn(name: str, contender: Contender) -> tuple[dict, np.ndarray]:
    """Trains a model per seed, side by side; the accuracy of each at every position."""
    task = TASKS[name]
    table = jnp.asarray(task.table)
    block = lx.ResidualBlockConfig(contender.config, task.channel_mixer)
    stack, head = lx.StackConfig((((block,), 1),)), lx.LanguageModelHeadConfig(tied=False)
    config = lx.LanguageModelConfig(len(table), WIDTH, stack, head=head)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(task.rate, task.steps)),
    )

    @eqx.filter_vmap
    def start(key):
        model = config.build(key)
        return model, optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit(donate="all-except-first")
    @partial(eqx.filter_vmap, in_axes=(None, 0, 0, 0, 0))
    def step(size, length, model, state, key):
        batch = examples(table, key, task.batch, size)
        gradient, right = eqx.filter_grad(loss, has_aux=True)(model, *batch, length)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state, right

    begin = time.perf_counter()
    keys = jr.split(jr.key(0), SEEDS)
    model, state = start(keys)
    lengths, right = np.zeros(SEEDS, int), np.zeros(SEEDS)
    for i in range(task.steps):
        here = jax.vmap(partial(jr.fold_in, data=i + 1))(keys)
        lengths = task.curriculum(i / task.steps, lengths, np.asarray(right))
        size = next(size for size in SIZES if size >= lengths.max())
        model, state, right = step(size, jnp.asarray(lengths), model, state, here)
    test = examples(table, jr.key(1), 1024, TESTED)
    curves = np.asarray(eqx.filter_jit(eqx.filter_vmap(accuracy, in_axes=(0, None)))(model, test))
    final = curves[:, [TRAINED - 1, TESTED - 1]]
    row = {
        "task": name,
        "mixer": contender.name,
        "one layer can": "yes" if name in contender.solves else "no",
        "parameters": lx.count_parameters(model) // SEEDS,
        "steps": task.steps,
        f"last of {TRAINED}, worst seed": float(final[:, 0].min()),
        f"last of {TESTED}, worst seed": float(final[:, 1].min()),
        f"last of {TESTED}, best seed": float(final[:, 1].max()),
        "chance": 1 / len(table),
        f"seconds, {SEEDS} seeds": time.perf_counter() - begin,
    }
    print(row, flush=True)
    return row, curves.mean(axis=0)


def examples(table, key, batch: int, length: int):
    """Random elements, and at each position the product of those so far."""
    elements = jr.randint(key, (length, batch), 0, len(table))

    def multiply(product, element):
        product = table[element, product]
        return product, product

    _, products = jax.lax.scan(multiply, jnp.zeros_like(elements[0]), elements)
    return elements.T, products.T


def loss(model, elements, products, length):
    """The mean over all prefixes of at most that length, and how many of the answers are right."""
    logits = jax.vmap(lambda x: model(x).logits)(elements)
    trained = jnp.arange(elements.shape[1]) < length
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, products)
    right = jnp.argmax(logits, axis=-1) == products
    return jnp.mean(losses, where=trained), jnp.mean(right, where=trained)


def accuracy(model, test):
    """At every position."""
    elements, products = test
    logits = jax.vmap(lambda x: model(x).logits)(elements)
    return jnp.mean(jnp.argmax(logits, axis=-1) == products, axis=0)


def _plot(task: str, results: str, curves: dict[str, np.ndarray]) -> None:
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    lengths = np.arange(1, TESTED + 1)
    for (name, curve), style in zip(
        curves.items(), itertools.cycle(("-", "--", ":")), strict=False
    ):
        axis.plot(lengths, curve, style, label=name, linewidth=1.2)
    axis.axhline(1 / len(TASKS[task].table), color="grey", linewidth=0.8)
    axis.axvline(TRAINED, color="black", linewidth=0.8)
    axis.annotate("trained up to here", (TRAINED + 3, 0.02), fontsize=8)
    axis.set(title=task, xlabel="length", ylabel="accuracy of the last", ylim=(0, 1.05))
    figure.legend(loc="outside right", fontsize=8)
    figure.savefig(harness.RESULTS / f"{results}.png", dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
