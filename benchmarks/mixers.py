"""Every causal mixer in one table, and its time against the length of the sequence.

uv run python -m benchmarks.mixers
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib

import linax_like as lx

from . import harness


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


BATCH, TIME, FEATURES = 2, 1024, 128
LENGTHS = (256, 1024, 4096, 16_384, 65_536)
LONGEST = 4.0  # seconds, after which a longer sequence is not tried
MIXERS = {
    "attention": lx.AttentionSequenceMixerConfig(),
    "CKConv": lx.CKConvSequenceMixerConfig(),
    "Centaurus": lx.CentaurusSequenceMixerConfig(),
    "DeltaNet": lx.DeltaNetSequenceMixerConfig(),
    "Gated DeltaNet": lx.GatedDeltaNetSequenceMixerConfig(),
    "Gated DeltaProduct": lx.GatedDeltaProductSequenceMixerConfig(),
    "GLA": lx.GLASequenceMixerConfig(),
    "HGRN": lx.HGRNSequenceMixerConfig(),
    "Hyena": lx.HyenaSequenceMixerConfig(),
    "KDA": lx.KDASequenceMixerConfig(),
    "LinOSS": lx.LinOSSSequenceMixerConfig(),
    "LRU": lx.LRUSequenceMixerConfig(),
    "Mamba": lx.MambaSequenceMixerConfig(),
    "Mamba-2": lx.Mamba2SequenceMixerConfig(),
    "minGRU": lx.MinGRUSequenceMixerConfig(),
    "minLSTM": lx.MinLSTMSequenceMixerConfig(),
    "mLSTM": lx.MLSTMSequenceMixerConfig(),
    "retention": lx.RetentionSequenceMixerConfig(),
    "RG-LRU": lx.RGLRUSequenceMixerConfig(),
    "RWKV-7": lx.RWKV7SequenceMixerConfig(),
    "S4": lx.S4SequenceMixerConfig(),
    "S4D": lx.S4DSequenceMixerConfig(),
    "S5": lx.S5SequenceMixerConfig(),
    "S7": lx.S7SequenceMixerConfig(),
}


def main() -> None:
    where = harness.environment()
    harness.write("mixers", [row(name) for name in MIXERS], where)
    seconds = {name: over_length(name) for name in MIXERS}
    rows = [
        {"mixer": name} | {f"{length} ms": 1e3 * value for length, value in times.items()}
        for name, times in seconds.items()
    ]
    harness.write("mixers_length", rows, where)
    _plot(seconds)


def row(name: str) -> dict:
    """A mixer with its defaults."""
    mixer = MIXERS[name].build(FEATURES, jr.key(0))
    parameters, static = eqx.partition(mixer, eqx.is_inexact_array)
    x = jr.normal(jr.key(1), (BATCH, TIME, FEATURES))
    apply = lambda parameters, x: jax.vmap(eqx.combine(parameters, static))(x)
    loss = lambda parameters, x: jnp.mean(apply(parameters, x) ** 2)
    functions = {"forward": apply, "gradient": jax.value_and_grad(loss, argnums=(0, 1))}
    arguments = {name: (parameters, x) for name in functions}
    programs = harness.compile_in_turns(functions, arguments)
    seconds = harness.time_in_turns({n: p.run for n, p in programs.items()}, arguments, 10)
    return {
        "mixer": name,
        "batch, time, features": f"{BATCH}, {TIME}, {FEATURES}",
        "dtype": "float32",
        "parameters": lx.count_parameters(mixer),
        "forward ms": 1e3 * seconds["forward"],
        "gradient ms": 1e3 * seconds["gradient"],
        "compile forward s": programs["forward"].compile_seconds,
        "compile gradient s": programs["gradient"].compile_seconds,
        "memory forward MiB": programs["forward"].temporary_bytes / 2**20,
        "memory gradient MiB": programs["gradient"].temporary_bytes / 2**20,
        "step us": 1e6 * step_seconds(parameters, static),
    }


def step_seconds(parameters, static, steps: int = 256) -> float:
    """Of one position of one sequence, in a compiled loop."""

    @jax.jit
    def run(parameters, x):
        mixer = eqx.combine(parameters, static)
        advance = lambda state, x: mixer.step(state, x)
        return jax.lax.scan(advance, mixer.init_state(steps), x)[1]

    x = jr.normal(jr.key(1), (steps, FEATURES))
    return harness.time_in_turns({"run": run}, {"run": (parameters, x)}, 10)["run"] / steps


def over_length(name: str) -> dict[int, float]:
    """Seconds of the forward pass of one sequence, for every length that is not too slow."""
    parameters, static = eqx.partition(MIXERS[name].build(FEATURES, jr.key(0)), eqx.is_array)
    run = jax.jit(lambda parameters, x: eqx.combine(parameters, static)(x))
    seconds = {}
    for length in LENGTHS:
        x = jr.normal(jr.key(1), (length, FEATURES))
        jax.block_until_ready(run(parameters, x))
        start = time.perf_counter()
        jax.block_until_ready(run(parameters, x))
        if time.perf_counter() - start > LONGEST:
            break
        seconds[length] = harness.time_in_turns({"run": run}, {"run": (parameters, x)}, 3)["run"]
    return seconds


def _plot(seconds: dict[str, dict[int, float]]) -> None:
    figure, axis = plt.subplots(figsize=(8, 5))
    colors = plt.get_cmap("tab20").colors
    for i, (name, times) in enumerate(seconds.items()):
        milliseconds = [1e3 * value for value in times.values()]
        style = {"color": colors[i % 20], "marker": "osv^DPX"[i % 7], "markersize": 4}
        axis.loglog(list(times), milliseconds, label=name, **style)
    axis.set(xlabel="time", ylabel=f"forward pass, ms ({FEATURES} features, one sequence)")
    axis.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    axis.minorticks_off()
    axis.legend(fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")
    figure.tight_layout()
    figure.savefig(harness.RESULTS / "mixers.png", dpi=150)


if __name__ == "__main__":
    main()
