"""Phase counting: how many steps ago was the pulse, modulo 5? Complex eigenvalues know, real ones fade.

uv run python -m benchmarks.phase_counting

A recurrence with a state that turns by a fifth at every step knows the phase for as long as it
remembers. One whose states only fade can tell the first few steps apart, and then no more.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np
import optax

import linax_like as lx

from . import harness


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


PERIOD, TIME, LONG, BATCH, STEPS = 5, 64, 256, 32, 500
MIXERS = {"LRU": lx.LRUSequenceMixerConfig(16), "S5": lx.S5SequenceMixerConfig(32)}
PHASES = {"LRU": "log_phase", "S5": "eigenvalues_imag"}
NO_PHASE = {"LRU": -40.0, "S5": 0.0}


def main() -> None:
    where = harness.environment("optax")
    rows, curves = [], {}
    for name in MIXERS:
        for complex in (True, False):
            row, curve = learn(name, complex)
            rows.append(row)
            curves[f"{name}, {row['eigenvalues']}"] = curve
    harness.write("phase_counting", rows, where)
    _plot(curves)


def examples(key, batch: int, length: int):
    """Sequences with one pulse, and the phase at every position: -1 before the pulse."""
    start = jr.randint(key, (batch, 1), 0, PERIOD)
    since = jnp.arange(length) - start
    return (since == 0).astype(jnp.int32), jnp.where(since >= 0, since % PERIOD, -1)


def learn(name: str, complex: bool) -> tuple[dict, np.ndarray]:
    """Trains one block; its accuracy, and that at every position of longer sequences."""
    block = lx.ResidualBlockConfig(MIXERS[name], lx.SwiGLUConfig(expand=2.0))
    model = lx.LanguageModelConfig(
        PERIOD, 32, lx.StackConfig((((block,), 1),)), head=lx.LanguageModelHeadConfig(tied=False)
    ).build(jr.key(0))
    fixed = jax.tree.map(lambda _: False, model)
    if not complex:
        model, fixed = _without_phase(name, model, fixed)
    optimizer = optax.chain(
        optax.adam(optax.cosine_decay_schedule(5e-3, STEPS)),
        optax.masked(optax.set_to_zero(), lambda _: fixed),
    )

    @eqx.filter_jit(donate="all")
    def step(model, state, key):
        value, gradient = eqx.filter_value_and_grad(loss)(model, *examples(key, BATCH, TIME))
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state, value

    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    start = time.perf_counter()
    for i in range(STEPS):
        model, state, value = step(model, state, jr.key(i))
    right = eqx.filter_jit(is_right)(model, *examples(jr.key(STEPS), 64, LONG))
    curve = np.nanmean(np.asarray(right), axis=0)
    row = {
        "mixer": name,
        "eigenvalues": "complex" if complex else "real",
        "parameters": lx.count_parameters(model),
        "steps": STEPS,
        "loss": float(value),
        f"accuracy, {TIME} positions": float(curve[:TIME].mean()),
        f"accuracy, {LONG} positions": float(curve.mean()),
        "seconds": time.perf_counter() - start,
    }
    return row, curve


def loss(model, tokens, phases):
    logits = jax.vmap(lambda x: model(x).logits)(tokens)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(phases, 0))
    return jnp.mean(losses, where=phases >= 0)


def is_right(model, tokens, phases):
    """1 where the phase is right, 0 where it is wrong, NaN before the pulse."""
    logits = jax.vmap(lambda x: model(x).logits)(tokens)
    right = jnp.argmax(logits, axis=-1) == phases
    return jnp.where(phases >= 0, right, jnp.nan)


def _without_phase(name: str, model, fixed):
    """The model with real eigenvalues, which training leaves real."""
    of = lambda model: getattr(model.stack.groups[0][0].sequence_mixer, PHASES[name])
    model = eqx.tree_at(of, model, replace_fn=lambda phase: jnp.full_like(phase, NO_PHASE[name]))
    return model, eqx.tree_at(of, fixed, True)


def _plot(curves: dict[str, np.ndarray]) -> None:
    figure, axis = plt.subplots(figsize=(7, 3))
    for (label, curve), style in zip(curves.items(), ("-", "--", "-.", ":"), strict=True):
        smooth = np.convolve(curve, np.ones(PERIOD) / PERIOD, mode="valid")
        axis.plot(smooth, style, label=label)
    axis.axhline(1 / PERIOD, color="grey", linewidth=0.8)
    axis.axvline(TIME, color="black", linewidth=0.8)
    axis.annotate("trained up to here", (TIME + 3, 0.05), fontsize=8)
    axis.set(xlabel="position", ylabel="accuracy", ylim=(0, 1.05))
    axis.legend(fontsize=8, loc="center right")
    figure.tight_layout()
    figure.savefig(harness.RESULTS / "phase_counting.png", dpi=150)


if __name__ == "__main__":
    main()
