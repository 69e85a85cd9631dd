"""Handwritten digits as images: which digit is it?

uv run python -m benchmarks.digits_2d

Models of patches of 2 × 2 pixels are trained on four fifths of scikit-learn's 1,797 images, split evenly
over the digits, and tested once on the others; three seeds, of the split, the model and the batches.
Training images are turned, scaled and moved a little.

Nothing is chosen by the test part: to choose anything below, `validate`, which keeps a fifth of the
training part for validation and leaves the test part alone.
"""

import sys
import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from sklearn.model_selection import train_test_split

import linax_like as lx
from linax_like.tasks import DigitsTaskConfig
from linax_like.tasks.base import classify
from linax_like.tasks.digits import distort
from linax_like.training import init_state, make_train_step, OptimizerConfig

from . import harness


SEEDS, STEPS, BATCH = 3, 900, 64
OPTIMIZER = OptimizerConfig(
    matrices="muon",
    learning_rate=4e-3,
    matrix_learning_rate=0.02,
    weight_decay=0.05,
    average=0.98,
)


def models() -> dict[str, lx.VisionModelConfig]:
    """The configs by name."""
    vit = partial(lx.presets.vision_model, (8, 8), (2, 2), 1, 10, features=64, layer_scale=None)
    return {
        "ViT": vit(pattern="AAAA", readout="mean", drop_path=0.1),
        "Hyena 2-D": vit(pattern="HHHH", readout="mean", drop_path=0.1, registers=0),
    }


def main(*arguments: str) -> None:
    """Trains and tests every model; with `validate`, on parts of the training part."""
    validating = "validate" in arguments
    rows = []
    for name, config in models().items():
        runs = [run(config, seed, validating) for seed in range(SEEDS)]
        accuracies, seconds, cpu = zip(*runs, strict=True)
        rows.append(
            {
                "model": name,
                "parameters": lx.count_parameters(config.build(jr.key(0))),
                "part": "validation" if validating else "test",
                **{f"seed {i} %": 100 * accuracy for i, accuracy in enumerate(accuracies)},
                "mean %": 100 * float(np.mean(accuracies)),
                "steps": STEPS,
                "seconds": max(seconds),
                "processor seconds": max(cpu),
            }
        )
        print(harness.table(rows[-1:]), flush=True)
    if not validating:
        harness.write("digits_2d", rows, harness.environment("optax", "scikit-learn"))


def run(config: lx.VisionModelConfig, seed: int, validating: bool) -> tuple[float, float, float]:
    """The accuracy, and the seconds and processor seconds of training, compilation included."""
    task = DigitsTaskConfig(split_seed=seed).load()
    images, held_out = task.train, task.test
    if validating:
        parts = train_test_split(
            np.arange(len(images.labels)), test_size=0.2, stratify=images.labels, random_state=seed
        )
        images, held_out = ((images.pixels[i], images.labels[i]) for i in parts)
    start, cpu = time.perf_counter(), time.process_time()
    model = train(config, task.config, *images, seed)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return accuracy(model, *held_out), seconds, cpu


def train(config, task: DigitsTaskConfig, pixels, labels, seed: int):
    """The running mean of the weights."""
    model = config.build(jr.key(seed))
    optimizer = OPTIMIZER.build(model, STEPS)
    step = make_train_step(loss, optimizer, seed=seed, average=OPTIMIZER.average)
    step = eqx.filter_jit(step, donate="all")
    state = init_state(model, optimizer, average=True)
    for i in range(STEPS):
        rng = np.random.default_rng((seed, i))
        chosen = rng.integers(0, len(labels), BATCH)
        distorted = rng.random(BATCH) < task.distorted
        batch = pixels[chosen]
        batch = np.where(distorted[:, None, None], distort(batch, task, rng), batch)
        state, _ = step(state, {"inputs": batch[..., None], "targets": labels[chosen]})
    return jax.block_until_ready(state.average)


def loss(model, batch, keys):
    logits, aux = jax.vmap(model)(batch["inputs"], keys)
    return classify(logits, batch["targets"], aux)


@eqx.filter_jit
def predict(model, pixels):
    return jnp.argmax(jax.vmap(model)(pixels[..., None]).logits, -1)


def accuracy(model, pixels, labels) -> float:
    return float(np.mean(np.asarray(predict(model, jnp.asarray(pixels))) == labels))


if __name__ == "__main__":
    main(*sys.argv[1:])
