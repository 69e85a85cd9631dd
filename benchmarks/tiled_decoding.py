"""A token's time against the length of the sequence, of a long convolution in both of its forms.

uv run python -m benchmarks.tiled_decoding

The plain form sums over its whole state at every step, so that a few of its steps stand for all. The
tiled form takes every step from the first position to the last, so that tiles of all sizes count as
often as they are due. Both run in turns in one process.
"""

import dataclasses
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

import linax_like as lx  # noqa: E402

from . import harness  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Size:
    features: int
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    steps: int
    repeats: int


SIZES = {
    "full": Size(128, (1024, 4096, 16384, 65536), (1, 8), 64, 1),
    "tiny": Size(16, (64, 256), (1, 2), 16, 1),
}


def main(size: str = "full") -> None:
    """The argument of the command is `full` or `tiny`, a trial."""
    chosen, rows, where = SIZES[size], [], harness.environment()
    for batch in chosen.batches:
        for length in chosen.lengths:
            rows.append(measure(chosen, batch, length))
            print(harness.table(rows[-1:]), flush=True)
    name = "tiled_decoding" if size == "full" else f"tiled_decoding_{size}"
    harness.write(name, rows, where)
    plot(name, rows)


def measure(size: Size, batch: int, length: int) -> dict[str, float]:
    """Milliseconds per token of all rows."""
    config = lx.CKConvSequenceMixerConfig(extent=float(length))
    plain = config.build(size.features, jr.key(0)).materialize((length,))
    mixers = {"plain": plain, "tiled": lx.tiled_decoding(plain, length)}
    x = jr.normal(jr.key(1), (length, batch, size.features))
    steps = {"plain": min(size.steps, length), "tiled": length}
    start = lambda mixer: jax.vmap(lambda _: mixer.init_state(length))(jnp.arange(batch))
    arguments = {name: (m, start(m), x[: steps[name]]) for name, m in mixers.items()}
    seconds = harness.time_in_turns(dict.fromkeys(mixers, go_on), arguments, size.repeats)
    y = {name: go_on(*arguments[name])[: size.steps] for name in mixers}
    times = {f"{name} ms": 1e3 * seconds[name] / steps[name] for name in mixers}
    ratio = {
        "plain / tiled": seconds["plain"] / steps["plain"] * steps["tiled"] / seconds["tiled"],
        "difference": harness.difference(y["tiled"], y["plain"]),
    }
    return {"batch": batch, "length": length} | times | ratio


@eqx.filter_jit
def go_on(mixer, states, x):
    return jax.lax.scan(lambda states, x: jax.vmap(mixer.step)(states, x), states, x)[1]


def plot(name: str, rows: list[dict[str, float]]) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for batch in dict.fromkeys(row["batch"] for row in rows):
        of_batch = [row for row in rows if row["batch"] == batch]
        for form, style in (("plain", "o--"), ("tiled", "o-")):
            times = [row[f"{form} ms"] for row in of_batch]
            label = f"{form}, {batch} row{'s' * (batch > 1)}"
            axes.loglog([row["length"] for row in of_batch], times, style, label=label)
    axes.set(xlabel="length", ylabel="ms per token")
    axes.legend()
    figure.savefig(harness.RESULTS / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
