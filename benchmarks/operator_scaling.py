"""Time per element of a long convolution beside attention's, from 4 thousand points to a million.

uv run python -m benchmarks.operator_scaling
"""

import math

import equinox as eqx
import jax
import jax.random as jr
import matplotlib

import linax_like as lx

from . import harness


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


FEATURES = 8
LENGTHS = [1 << n for n in range(12, 21)]
ATTENTION_UP_TO = 1 << 14


def main() -> None:
    where, rows = harness.environment(), []
    for length in LENGTHS:
        rows.append({"points": length, "CKConv ns": _nanoseconds(_ckconv(length), length)})
        if length <= ATTENTION_UP_TO:
            attention = lx.AttentionSequenceMixerConfig(num_heads=1)
            rows[-1]["attention ns"] = _nanoseconds(attention, length)
        growth = rows[-1]["CKConv ns"] / rows[0]["CKConv ns"]
        rows[-1]["growth beyond log L"] = growth * math.log(LENGTHS[0]) / math.log(length)
    harness.write("operator_scaling", rows, where)
    _plot(rows)


def _ckconv(length: int) -> lx.CKConvSequenceMixerConfig:
    return lx.CKConvSequenceMixerConfig(mask=lx.GaussianMaskConfig(), extent=float(length))


def _nanoseconds(config, length: int) -> float:
    """Forward, per point and feature, the kernel included."""
    parameters, static = eqx.partition(config.build(FEATURES, jr.key(0)), eqx.is_array)
    arguments = parameters, jr.normal(jr.key(1), (length, FEATURES))
    forward = lambda parameters, x: eqx.combine(parameters, static)(x)
    program = jax.jit(forward).lower(*arguments).compile()
    seconds = harness.time_in_turns({"": program}, {"": arguments}, repeats=5)
    return 1e9 * seconds[""] / (length * FEATURES)


def _plot(rows: list[dict]) -> None:
    figure, axis = plt.subplots(figsize=(6, 4))
    for name in ("CKConv ns", "attention ns"):
        points = [(row["points"], row[name]) for row in rows if name in row]
        axis.loglog(*zip(*points, strict=True), "o-", label=name.removesuffix(" ns"))
    axis.set_xlabel("points")
    axis.set_ylabel(f"nanoseconds per point and feature, {FEATURES} features")
    axis.legend()
    figure.tight_layout()
    figure.savefig(harness.RESULTS / "operator_scaling.png", dpi=150)


if __name__ == "__main__":
    main()
