"""Images of digits and captions in words: a mixture of transformers beside one joint decoder.

uv run python -m benchmarks.digit_captions

Each image of scikit-learn's handwritten digits, in patches, comes before a caption made from its label.
A text model that has read captions alone is what both begin with: the mixture gets its blocks for
either modality, the joint decoder for all tokens. Every token then passes through as many operations in
one as in the other. What counts is how many held-out images get their caption right, to the last word.
"""

import sys
import time
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import linax_like as lx
from linax_like.ops import patchify
from linax_like.ops.cross_entropy import cross_entropy
from linax_like.tasks import DigitsTaskConfig

from . import harness


NUMBERS = "zero one two three four five six seven eight nine".split()
WORDS = [
    "<start>",
    "a",
    "handwritten",
    "which",
    "is",
    "odd",
    "even",
    "below",
    "above",
    "and",
] + NUMBERS
FEATURES, LAYERS, PATCH = 64, 3, 2
BATCH = 64
STEPS = {"full": (200, 500), "tiny": (4, 4)}  # of the text model, and of each of the others


def caption(digit: int) -> list[str]:
    parity, side = ("odd" if digit % 2 else "even"), ("below" if digit < 5 else "above")
    other = NUMBERS[5 if digit < 5 else 4]
    return f"a handwritten {NUMBERS[digit]} which is {parity} and {side} {other}".split()


class Data(NamedTuple):
    patches: Float[Array, "images patches pixels"]
    captions: Int[Array, "images words"]  # the first is <start>


class JointDecoder(eqx.Module):
    """One dense stack over the patches and then the words."""

    encoder: lx.AbstractEncoder
    language: lx.LanguageModel

    def __call__(self, patches, words):
        context = lx.SequenceContext()
        image = self.encoder(patches, context=context)
        text = self.language.embedding(words, context=context)
        x, _ = self.language.stack(jnp.concatenate([image, text]))
        return self.language.head(x[len(image) :], self.language.embedding.table)


class Mixture(eqx.Module):
    model: lx.MixtureOfTransformers

    def __call__(self, patches, words):
        return self.model({"image": patches, "text": words}).logits["text"]


class TextOnly(eqx.Module):
    language: lx.LanguageModel

    def __call__(self, patches, words):
        return self.language(words).logits


def load() -> tuple[Data, Data]:
    task = DigitsTaskConfig().load()
    table = jnp.asarray(
        [[WORDS.index(word) for word in ["<start>", *caption(d)]] for d in range(10)]
    )

    def read(images) -> Data:
        grid = jax.vmap(lambda image: patchify(image[..., None], (PATCH, PATCH)))(images.pixels)
        return Data(grid.reshape(len(grid), -1, PATCH**2), table[images.labels])

    return read(task.train), read(task.test)


def train(model, data: Data, steps: int, seed: int):
    """The model after so many steps of Adam on random batches."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    parameters, static = eqx.partition(model, lx.trainable(model))

    def step(carry, key):
        parameters, state = carry
        rows = jr.randint(key, (BATCH,), 0, len(data.captions))
        batch = jax.tree.map(lambda leaf: leaf[rows], data)
        gradients = jax.grad(loss)(parameters, static, batch)
        updates, state = optimizer.update(gradients, state, parameters)
        return (optax.apply_updates(parameters, updates), state), None

    keys = jr.split(jr.key(seed), steps)
    start = parameters, optimizer.init(parameters)
    (parameters, _), _ = jax.jit(partial(jax.lax.scan, step))(start, keys)
    return eqx.combine(parameters, static)


def loss(parameters, static, batch: Data):
    logits = jax.vmap(eqx.combine(parameters, static))(batch.patches, batch.captions[:, :-1])
    return jnp.mean(cross_entropy(logits, batch.captions[:, 1:]))


@eqx.filter_jit
def right(model, data: Data) -> Array:
    """The part of the captions of which every word is the most probable one."""
    logits = jax.vmap(model)(data.patches, data.captions[:, :-1])
    return jnp.mean(jnp.all(jnp.argmax(logits, -1) == data.captions[:, 1:], axis=1))


def text_config() -> lx.LanguageModelConfig:
    block = lx.ResidualBlockConfig(lx.AttentionSequenceMixerConfig(num_heads=4, qk_norm=True))
    stack = lx.StackConfig((((block,), LAYERS),))
    return lx.LanguageModelConfig(len(WORDS), FEATURES, stack)


def generated_right(model: lx.MixtureOfTransformers, data: Data) -> float:
    """The part of the captions that the model writes, word by word, given the image alone."""
    images, length = {"image": data.patches}, data.captions.shape[1] - 1
    prompts = np.zeros((len(data.captions), 1), int)
    text = lx.generate(model, prompts, length, jr.key(0), temperature=0.0, prefix=images)
    return float(jnp.mean(jnp.all(text.tokens == data.captions[:, 1:], axis=1)))


def main(size: str = "full") -> None:
    text_steps, steps = STEPS[size]
    training, held_out = load()
    lengths = {"image": training.patches.shape[1], "text": training.captions.shape[1] - 1}
    rows = []
    for seed in range(3):
        key = jr.key(seed)
        text = train(TextOnly(text_config().build(key)), training, text_steps, seed).language
        image = lx.ModalityConfig(PATCH**2, lx.LinearEncoderConfig(), None)
        mixture, _ = lx.mixture_of(text, "text", {"image": image}, key, counting="continue")
        models = {
            "mixture": Mixture(mixture),
            "joint decoder": JointDecoder(mixture.encoders["image"], text),
        }
        for name, model in models.items():
            start = time.perf_counter()
            model = train(model, training, steps, seed)
            row = {"model": name, "seed": seed, "parameters": lx.count_parameters(model)}
            row |= {"MFLOP per example": mixture.flop_count(lengths) / 1e6, "steps": steps}
            row |= {"captions right": float(right(model, held_out))}
            if isinstance(model, Mixture):
                row |= {"written right": generated_right(model.model, held_out)}
            rows.append(row | {"seconds": time.perf_counter() - start})
            print(harness.table(rows[-1:]), flush=True)
    means = []
    for name in ("mixture", "joint decoder"):
        found = [row["captions right"] for row in rows if row["model"] == name]
        means.append({"model": name, "seed": "mean", "captions right": float(np.mean(found))})
    results = "digit_captions" + ("" if size == "full" else f"_{size}")
    harness.write(results, [*rows, *means], harness.environment())


if __name__ == "__main__":
    main(*sys.argv[1:])
