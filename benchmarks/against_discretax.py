"""S5, LRU, S4D, LinOSS, DeltaNet beside discretax: the same weights and outputs, in one process.

uv run --with-requirements benchmarks/requirements-discretax.txt python -m benchmarks.against_discretax
"""

import sys
from functools import partial

import discretax.sequence_mixers as peer
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np

import linax_like as lx

from . import harness


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


FEATURES, STATE = 128, 64
SHAPES = ((4, 1024), (1, 8192))  # batch, time


def s5():
    theirs = peer.S5SequenceMixer(FEATURES, jr.key(0), state_dim=STATE, dt_max=0.1)
    return theirs, {
        "eigenvalues_real": theirs.Lambda_re,
        "eigenvalues_imag": theirs.Lambda_im,
        "log_step": theirs.log_step[:, 0],
        "in_proj": jnp.moveaxis(theirs.B, -1, 0),
        "out_proj": jnp.moveaxis(theirs.C, -1, 0),
        "skip": theirs.D,
    }


def lru():
    theirs = peer.LRUSequenceMixer(FEATURES, jr.key(0), state_dim=STATE)
    return theirs, {
        "log_decay": theirs.nu_log,
        "log_phase": theirs.theta_log,
        "log_gain": theirs.gamma_log,
        "in_proj": jnp.stack([theirs.B_re, theirs.B_im]),
        "out_proj": jnp.stack([theirs.C_re, theirs.C_im]),
        "skip": theirs.D,
    }


def s4d():
    theirs = peer.S4DSequenceMixer(FEATURES, jr.key(0), state_dim=STATE)
    kernel = theirs.kernel
    return theirs, {
        "log_decay": kernel.log_a_real,
        "frequency": kernel.A_imag,
        "log_step": kernel.log_dt,
        "out_proj": jnp.stack([kernel.C.real, kernel.C.imag]),
        "skip": jnp.zeros(FEATURES),  # theirs has none
    }


def linoss(discretization, damping=False):
    theirs = peer.LinOSSSequenceMixer(
        FEATURES, jr.key(0), state_dim=STATE, discretization=discretization, damping=damping
    )
    friction = {"damping": theirs.G_diag} if damping else {}
    return theirs, friction | {
        "stiffness": theirs.A_diag,
        "step_logit": theirs.steps,
        "in_proj": jnp.moveaxis(theirs.B, -1, 0),
        "out_proj": jnp.moveaxis(theirs.C, -1, 0),
        "skip": theirs.D,
    }


def delta_net():
    theirs = peer.DeltaNetSequenceMixer(FEATURES, jr.key(0), n_heads=FEATURES // STATE)
    q, k, v = (getattr(theirs, f"{name}_proj").weight for name in "qkv")
    return theirs, {
        "qkv_proj": jnp.concatenate([q, k, v]),
        "beta_proj": jnp.repeat(theirs.beta_proj.weight, FEATURES // STATE, axis=0),
        "out_proj": STATE**0.5 * theirs.out_proj.weight,  # theirs does not scale the queries
    }


MIXERS = {
    "S5": (lx.S5SequenceMixerConfig(STATE), s5),
    "LRU": (lx.LRUSequenceMixerConfig(STATE), lru),
    "S4D": (lx.S4DSequenceMixerConfig(STATE), s4d),
    "LinOSS-IM": (lx.LinOSSSequenceMixerConfig(STATE, "IM", damping=False), partial(linoss, "IM")),
    "LinOSS-IMEX": (
        lx.LinOSSSequenceMixerConfig(STATE, "IMEX", damping=False),
        partial(linoss, "IMEX"),
    ),
    "LinOSS damped": (lx.LinOSSSequenceMixerConfig(STATE), partial(linoss, "IMEX", damping=True)),
    "DeltaNet": (
        lx.DeltaNetSequenceMixerConfig(
            head_dim=STATE, activation="none", short_width=None, output_norm="none", norm_eps=1e-12
        ),
        delta_net,
    ),
}


def main(*names: str) -> None:
    """Of these mixers, the arguments of the command, or of all."""
    _warm_up()
    where = harness.environment("discretax")
    rows = [row(name, *shape) for shape in SHAPES for name in names or MIXERS]
    results = "_".join(("against_discretax", *names))
    harness.write(results, rows, where)
    _plot(results, rows)


def row(name: str, batch: int, time: int) -> dict:
    """One mixer at one shape, both libraries."""
    config, make = MIXERS[name]
    theirs, arrays = make()
    ours = config.build(FEATURES, jr.key(0))
    ours = eqx.tree_at(lambda m: [getattr(m, n) for n in arrays], ours, list(arrays.values()))
    x = jr.normal(jr.key(1), (batch, time, FEATURES))
    forward, gradient, arguments = {}, {}, {}
    for who, mixer in (("ours", ours), ("theirs", theirs)):
        parameters, static = eqx.partition(mixer, eqx.is_inexact_array)
        forward[who] = _applied(who, static)
        gradient[who] = _gradient_of(forward[who])
        arguments[who] = (parameters, x)
    programs = harness.compile_in_turns(forward, arguments)
    gradients = harness.compile_in_turns(gradient, arguments)
    runs = {who: program.run for who, program in programs.items()}
    gradient_runs = {who: program.run for who, program in gradients.items()}
    y = {who: run(*arguments[who]) for who, run in runs.items()}
    dx = {who: run(*arguments[who])[1][1] for who, run in gradient_runs.items()}
    seconds = harness.time_in_turns(runs, arguments)
    gradient_seconds = harness.time_in_turns(gradient_runs, arguments)

    def compare(label: str, values: dict[str, float], unit: float) -> dict:
        ours, theirs = values["ours"], values["theirs"]
        shown = f"{ours / unit:.3g} / {theirs / unit:.3g}"
        return {label: shown, f"{label.split(' ')[0]} ×": theirs / ours}

    of = lambda programs, field: {who: getattr(p, field) for who, p in programs.items()}
    return {
        "mixer": name,
        "batch, time, features, state": f"{batch}, {time}, {FEATURES}, {STATE}",
        "dtype": "float32",
        "parameters": " / ".join(str(_count(arguments[who][0])) for who in forward),
        "outputs differ by": harness.difference(y["ours"], y["theirs"]),
        "gradients by": harness.difference(dx["ours"], dx["theirs"]),
        **compare("forward ms", seconds, 1e-3),
        **compare("gradient ms", gradient_seconds, 1e-3),
        **compare("compile-forward s", of(programs, "compile_seconds"), 1),
        **compare("compile-gradient s", of(gradients, "compile_seconds"), 1),
        **compare("memory-forward MiB", of(programs, "temporary_bytes"), 2**20),
        **compare("memory-gradient MiB", of(gradients, "temporary_bytes"), 2**20),
    }


def _applied(who: str, static):
    def apply(parameters, x):
        mixer = eqx.combine(parameters, static)
        return jax.vmap(mixer if who == "ours" else lambda x: mixer(x, None))(x)

    return apply


def _gradient_of(apply):
    loss = lambda parameters, x: jnp.mean(apply(parameters, x) ** 2)
    return jax.value_and_grad(loss, argnums=(0, 1))


def _count(parameters) -> int:
    return sum(x.size * (2 if np.iscomplexobj(x) else 1) for x in jax.tree.leaves(parameters))


def _warm_up() -> None:
    """What the first compilation of a process pays for, whichever it is."""
    jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(x @ x))))(jnp.ones((8, 8))).block_until_ready()


def _plot(results: str, rows: list[dict]) -> None:
    quantities = ("forward", "gradient", "compile-gradient", "memory-gradient")
    figure, axes = plt.subplots(
        1, len(quantities), figsize=(11, 0.8 + 0.4 * len(rows)), sharey=True
    )
    labels = [
        f"{row['mixer']} ({row['batch, time, features, state'].rsplit(',', 2)[0]})" for row in rows
    ]
    for axis, quantity in zip(axes, quantities, strict=True):
        values = [row[f"{quantity} ×"] for row in rows]
        bars = axis.barh(labels, values, color="#3b6ea5")
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(
            quantity.replace("-", " of the ").replace("compile of", "compile time of"), fontsize=9
        )
        axis.set_xlim(0, max(values) * 1.2)
    axes[0].invert_yaxis()
    figure.supxlabel("discretax / linax_like (above 1: linax_like takes less)", fontsize=9)
    figure.tight_layout()
    figure.savefig(harness.RESULTS / f"{results}.png", dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
