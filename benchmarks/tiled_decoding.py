"""A token's time against the length of the sequence, of a long convolution in its three forms.

uv run python -m benchmarks.tiled_decoding

The plain form sums over its whole state at every step, so that a few of its steps stand for all. The
tiled form takes every step from the first position to the last, so that tiles of all sizes count as
often as they are due; so does the distilled one, which is an approximation. They run in turns in one
process.
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
    """
    - `lengths`: for each number of rows.
    - `steps`: of the plain form.
    """

    features: int
    num_heads: int
    state_dim: int
    lengths: dict[int, tuple[int, ...]]
    steps: int


SIZES = {
    "full": Size(64, 8, 32, {1: (1024, 4096, 16384, 65536), 8: (1024, 4096, 16384)}, 64),
    "tiny": Size(16, 8, 4, {1: (64, 256), 2: (64,)}, 16),
}


def main(size: str = "full") -> None:
    """The argument of the command is `full` or `tiny`, a trial."""
    chosen, rows, where = SIZES[size], [], harness.environment()
    for batch, lengths in chosen.lengths.items():
        for length in lengths:
            rows.append(measure(chosen, batch, length))
            print(harness.table(rows[-1:]), flush=True)
    name = "tiled_decoding" if size == "full" else f"tiled_decoding_{size}"
    harness.write(name, rows, where)
    plot(name, rows)


def measure(size: Size, batch: int, length: int) -> dict[str, object]:
    """Milliseconds per token of all rows, and how far the outputs are from those of the whole."""
    config = lx.CKConvSequenceMixerConfig(extent=float(length), num_heads=size.num_heads)
    built = config.build(size.features, jr.key(0))
    plain = built.materialize((length,))
    distilled, errors = lx.distill(built, size.state_dim, length)
    mixers = {
        "plain": plain,
        "tiled": lx.tiled_decoding(built, length),
        "distilled": distilled,
    }
    x = jr.normal(jr.key(1), (length, batch, size.features))
    steps = {"plain": size.steps, "tiled": length, "distilled": length}
    start = lambda mixer: jax.vmap(lambda _: mixer.init_state(length))(jnp.arange(batch))
    arguments = {name: (m, start(m), x[: steps[name]]) for name, m in mixers.items()}
    seconds = harness.time_in_turns(dict.fromkeys(mixers, go_on), arguments, repeats=1)
    times = {f"{name} ms": 1e3 * seconds[name] / steps[name] for name in mixers}
    whole = jax.vmap(plain, 1, 1)(x)
    shape = {"batch": batch, "length": length, "features": size.features, "dtype": "float32"}
    parameters = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(built))}
    agreement = {
        "plain / tiled": times["plain ms"] / times["tiled ms"],
        "difference, tiled": harness.difference(go_on(*arguments["tiled"]), whole),
        "difference, distilled": harness.difference(jax.vmap(distilled, 1, 1)(x), whole),
        "worst kernel, distilled": errors[""].worst,
    }
    return shape | parameters | times | agreement


@eqx.filter_jit
def go_on(mixer, states, x):
    return jax.lax.scan(lambda states, x: jax.vmap(mixer.step)(states, x), states, x)[1]


def plot(name: str, rows: list[dict[str, float]]) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for batch, color in zip(dict.fromkeys(row["batch"] for row in rows), ("C0", "C1")):
        of_batch = [row for row in rows if row["batch"] == batch]
        for form, style in (("plain", "o--"), ("tiled", "o-"), ("distilled", "o:")):
            times = [row[f"{form} ms"] for row in of_batch]
            label = f"{form}, {batch} row{'s' * (batch > 1)}"
            axes.loglog(
                [row["length"] for row in of_batch], times, style, color=color, label=label
            )
    axes.set(xlabel="length", ylabel="ms per token")
    axes.legend()
    figure.savefig(harness.RESULTS / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
