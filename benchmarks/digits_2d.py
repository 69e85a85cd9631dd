"""Handwritten digits as images: which digit is it?

uv run python -m benchmarks.digits_2d

A ViT and a Hyena of patches of 2 × 2 pixels are trained on four fifths of scikit-learn's 1,797 images,
split evenly over the digits, and tested once on the others, with three seeds of the model and of its
batches. Training images are turned, scaled and moved a little.

Nothing is chosen by the test part: to choose anything below, `validate`, which trains on four fifths of
the training part and tests on the rest of it, another one for every seed.
"""

import sys
import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from sklearn.model_selection import StratifiedKFold

import linax_like as lx
from linax_like.ops.cross_entropy import SummedLoss
from linax_like.tasks import DigitsTaskConfig
from linax_like.tasks.base import Metrics, sum_up
from linax_like.tasks.digits import distort, Images
from linax_like.training import init_state, make_train_step, OptimizerConfig

from . import harness


SEEDS, BATCH, SMOOTHING = 3, 64, 0.1
TASK = DigitsTaskConfig()
OPTIMIZER = OptimizerConfig(
    matrices="muon",
    learning_rate=4e-3,
    matrix_learning_rate=0.02,
    weight_decay=0.05,
    warmup=0.1,
    average=0.98,
)


def models() -> dict[str, tuple[lx.VisionModelConfig, int]]:
    """Configs and numbers of steps, by name."""
    attention = lx.AttentionOperatorConfig(num_heads=4, causal=False, qk_norm="rms")
    layers = {
        "ViT": ("HHHH", lx.QKVSequenceMixerConfig(attention), 900),
        "Hyena 2-D": ("HH", lx.presets.grid_hyena((4, 4)), 500),
    }
    model = partial(lx.presets.vision_model, (8, 8), (2, 2), 1, 10, features=64)
    model = partial(model, layer_scale=None, readout="mean", registers=0)
    return {
        name: (model(pattern=pattern, grid_mixer=mixer), steps)
        for name, (pattern, mixer, steps) in layers.items()
    }


def main(*arguments: str) -> None:
    """Trains and tests every model; with `validate`, on parts of the training part."""
    data = TASK.load()
    part, parts = "test", [(data.train, data.test)] * SEEDS
    if "validate" in arguments:
        part, parts = "validation", folds(data.train)[:SEEDS]
    rows = []
    for name, (config, steps) in models().items():
        start, cpu = time.perf_counter(), time.process_time()
        right = trials(config, steps, parts)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        rows.append(
            {
                "model": name,
                "parameters": lx.count_parameters(config.build(jr.key(0))),
                "dtype": config.dtype,
                "batch": BATCH,
                "steps": steps,
                "part": part,
                **{f"seed {seed} %": f"{100 * x:.2f}" for seed, x in enumerate(right)},
                "mean %": f"{100 * np.mean(right):.2f}",
                "seconds, all seeds": seconds,
                "CPU seconds": cpu,
            }
        )
        print(harness.table(rows[-1:]), flush=True)
    if part == "test":
        harness.write("digits_2d", rows, harness.environment("optax", "scikit-learn"))


def folds(images: Images) -> list[tuple[Images, Images]]:
    """Five ways to hold out a fifth, evenly over the digits."""
    cut = StratifiedKFold(5, shuffle=True, random_state=0).split(images.pixels, images.labels)
    take = lambda chosen: Images(images.pixels[chosen], images.labels[chosen])
    return [(take(first), take(second)) for first, second in cut]


def trials(
    config: lx.VisionModelConfig, steps: int, parts: list[tuple[Images, Images]]
) -> list[float]:
    """The accuracy on the second part after training on the first, with a seed for every pair."""
    optimizer = OPTIMIZER.build(config.build(jr.key(0)), steps)
    step = make_train_step(loss, optimizer, seed=0, average=OPTIMIZER.average)
    step = eqx.filter_jit(step, donate="all")
    accuracies = []
    for seed, (images, held_out) in enumerate(parts):
        state = init_state(config.build(jr.key(seed)), optimizer, average=True)
        for i in range(steps):
            state, _ = step(state, batch(images, np.random.default_rng((seed, i))))
        found = predict(state.average, jnp.asarray(held_out.pixels))
        accuracies.append(float(np.mean(np.asarray(found) == held_out.labels)))
    return accuracies


def batch(images: Images, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random images, some of them distorted."""
    chosen = rng.integers(0, len(images.labels), BATCH)
    distorted = rng.random(BATCH) < TASK.distorted
    pixels = images.pixels[chosen]
    pixels = np.where(distorted[:, None, None], distort(pixels, TASK, rng), pixels)
    return {"inputs": pixels[..., None], "targets": images.labels[chosen]}


def loss(model, batch, keys) -> Metrics:
    """Cross-entropies with smoothed labels."""
    logits, aux = jax.vmap(model)(batch["inputs"], keys)
    labels = jax.nn.one_hot(batch["targets"], logits.shape[-1])
    smooth = (1 - SMOOTHING) * labels + SMOOTHING / logits.shape[-1]
    total = -jnp.sum(smooth * jax.nn.log_softmax(logits))
    right = jnp.sum(jnp.argmax(logits, -1) == batch["targets"]).astype(jnp.float32)
    return sum_up(SummedLoss(total, total, right), len(labels), aux)


@eqx.filter_jit
def predict(model, pixels):
    return jnp.argmax(jax.vmap(model)(pixels[..., None]).logits, -1)


if __name__ == "__main__":
    main(*sys.argv[1:])
