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


WIDTH, TRAINED, TESTED, BATCH, SEEDS = 32, 64, 256, 64, 3
SIZES = (8, 16, 32, TRAINED)  # each is compiled; what a sequence has beyond its length has no loss


def growing(steps: int) -> np.ndarray:
    """Lengths from 4 to all, reached after half of the steps."""
    return np.minimum(TRAINED, 4 + 2 * TRAINED * np.arange(steps) // steps)


LENGTHS = {
    "parity": growing(300),
    "addition mod 3": growing(800),
    "S3": np.repeat([6, TRAINED], [500, 450]),
}
RATE = {"parity": 5e-3, "addition mod 3": 5e-3, "S3": 1e-2}


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


GROUPS = {"parity": cyclic(2), "addition mod 3": cyclic(3), "S3": symmetric(3)}


@dataclass(frozen=True)
class Contender:
    """A mixer, the tasks that one layer of it can solve in theory, and those it tries."""

    name: str
    config: AbstractSequenceMixerConfig
    solves: tuple[str, ...] = ()
    tries: tuple[str, ...] = ("parity",)


ALL = tuple(GROUPS)
HEADS = dict(num_heads=4, head_dim=8, short_width=None)
# Like DeltaProduct's, for a task on which it is beside it.
MORE_HEADS = dict(num_heads=8, head_dim=8, short_width=None, activation="none", chunk=16)
CORRECTIONS = dict(short_width=1, forget_gate=False, activation="none", chunk=16)
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
        lx.GatedDeltaProductSequenceMixerConfig(2, 8, 8, **CORRECTIONS),
        ALL,
        ("addition mod 3", "S3"),
    ),
]


def main(*tasks: str) -> None:
    """Of the tasks that the command names, or of all; a table and a plot for each."""
    where = harness.environment("optax")
    for task in tasks or GROUPS:
        found = {c.name: learn(task, c) for c in CONTENDERS if task in c.tries}
        results = f"state_tracking_{task.replace(' ', '_')}"
        harness.write(results, [row for row, _ in found.values()], where)
        _plot(task, results, {name: curve for name, (_, curve) in found.items()})


def learn(task: str, contender: Contender) -> tuple[dict, np.ndarray]:
    """Trains a model per seed, side by side; the accuracy of each at every position."""
    table = jnp.asarray(GROUPS[task])
    lengths = LENGTHS[task]
    block = lx.ResidualBlockConfig(contender.config, lx.SwiGLUConfig(expand=2.0))
    stack, head = lx.StackConfig((((block,), 1),)), lx.LanguageModelHeadConfig(tied=False)
    config = lx.LanguageModelConfig(len(table), WIDTH, stack, head=head)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(RATE[task], len(lengths))),
    )

    @eqx.filter_vmap
    def start(key):
        model = config.build(key)
        return model, optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit(donate="all-except-first")
    @partial(eqx.filter_vmap, in_axes=(None, None, 0, 0, 0))
    def step(size, length, model, state, key):
        gradient = eqx.filter_grad(loss)(model, *examples(table, key, BATCH, size), length)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state

    begin = time.perf_counter()
    keys = jr.split(jr.key(0), SEEDS)
    model, state = start(keys)
    for i, length in enumerate(lengths):
        here = jax.vmap(partial(jr.fold_in, data=i + 1))(keys)
        size = next(size for size in SIZES if size >= length)
        model, state = step(size, jnp.int32(length), model, state, here)
    test = examples(table, jr.key(1), 1024, TESTED)
    curves = np.asarray(eqx.filter_jit(eqx.filter_vmap(accuracy, in_axes=(0, None)))(model, test))
    final = curves[:, [TRAINED - 1, TESTED - 1]]
    row = {
        "task": task,
        "mixer": contender.name,
        "one layer can": "yes" if task in contender.solves else "no",
        "parameters": lx.count_parameters(model) // SEEDS,
        "steps": len(lengths),
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
    """The mean over all prefixes of at most that length."""
    logits = jax.vmap(lambda x: model(x).logits)(elements)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, products)
    return jnp.mean(losses, where=jnp.arange(losses.shape[1]) < length)


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
    axis.axhline(1 / len(GROUPS[task]), color="grey", linewidth=0.8)
    axis.axvline(TRAINED, color="black", linewidth=0.8)
    axis.annotate("trained up to here", (TRAINED + 3, 0.02), fontsize=8)
    axis.set(title=task, xlabel="length", ylabel="accuracy of the last", ylim=(0, 1.05))
    figure.legend(loc="outside right", fontsize=8)
    figure.savefig(harness.RESULTS / f"{results}.png", dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
