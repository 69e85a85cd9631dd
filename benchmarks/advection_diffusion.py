"""Advection and diffusion: a model that learned on a coarse grid forecasts on a fine one.

uv run python -m benchmarks.advection_diffusion

    ∂u/∂t + c · ∇u = ν Δu        û(k, t) = exp(-(i c · k + ν |k|²) t) û(k, 0)

on a periodic square, which a Fourier transform solves exactly. A Hyena in two dimensions learns the map
from u(0) to u(1) on 32 × 32 points. With half the spacing the same weights are used on 64 × 64: nothing
but the kernels looks at neighbouring points, and they are functions of physical lags. A convolution
with free taps, fitted by least squares, knows neither: the map is linear, so that it has an easy task
on its own grid, and none on another.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np

import linax_like as lx
from linax_like.tasks.base import Metrics
from linax_like.training import init_state, make_train_step, OptimizerConfig
from linax_like.types import no_aux

from . import harness


matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


SIDE = 32.0  # of the square: neighbours on the coarse grid are one apart
VELOCITY, DIFFUSIVITY = (3.3, -2.2), 0.5  # c, ν
COARSE, FINE = 32, 64
WAVES = 5  # the fields have so many along an axis, at most
TAPS = 9
STEPS, BATCH, TESTED = 300, 8, 64
OPTIMIZER = OptimizerConfig(learning_rate=4e-3, weight_decay=0.0)


def main() -> None:
    where = harness.environment("optax")
    start, cpu = time.perf_counter(), time.process_time()
    model = train(STEPS)
    seconds = {"seconds": time.perf_counter() - start, "CPU seconds": time.process_time() - cpu}
    taps = fit_taps()
    forecasts = {
        "persistence: u(1) = u(0)": lambda u: u,
        f"convolution of {TAPS} x {TAPS} taps": lambda u: convolve(u, taps),
        "Hyena 2-D, spacing left at 1": lambda u: predict(model, u),
        "Hyena 2-D": lambda u: predict(at_spacing(model, SIDE / u.shape[-1]), u),
    }
    rows = [
        {"forecast": name, **errors(forecast), **(seconds if name == "Hyena 2-D" else {})}
        for name, forecast in forecasts.items()
    ]
    rows[-1] |= {"parameters": lx.count_parameters(model), "steps": STEPS, "batch": BATCH}
    harness.write("advection_diffusion", rows, where)
    _plot(forecasts["Hyena 2-D"])


def smooth_fields(seed: int, count: int, points: int) -> np.ndarray:
    """Random fields of unit variance on `points` × `points`: the same ones on every grid."""
    rng = np.random.default_rng(seed)
    waves = np.arange(-WAVES, WAVES + 1)
    shape = (count, len(waves), len(waves))
    spectrum = np.exp(-(waves[:, None] ** 2 + waves**2) / WAVES**2)
    amplitudes = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * spectrum
    wave = np.exp(2j * np.pi * np.outer(np.arange(points), waves) / points)
    fields = np.einsum("xm,bmn,yn->bxy", wave, amplitudes, wave, optimize=True).real
    return fields / np.sqrt(np.sum(spectrum**2))


def solve(fields: np.ndarray, time: float) -> np.ndarray:
    """What becomes of fields `(*batch, points, points)`, exactly."""
    points = fields.shape[-1]
    k = 2 * np.pi / SIDE * np.fft.fftfreq(points, 1 / points)
    kx, ky = k[:, None], k[: points // 2 + 1]
    rate = 1j * (VELOCITY[0] * kx + VELOCITY[1] * ky) + DIFFUSIVITY * (kx**2 + ky**2)
    return np.fft.irfft2(np.exp(-rate * time) * np.fft.rfft2(fields), s=fields.shape[-2:])


def config(spacing: float) -> lx.SequenceModelConfig:
    """A model of fields whose only look at neighbours is by kernels of physical lags."""
    convolution = lx.CKConvSequenceMixerConfig(
        ("circular", "circular"),
        # Slow waves in windows neither too narrow for the coarse grid nor wider than half the circle.
        lx.SIRENKernelConfig(frequencies=(1.0,)),
        lx.GaussianMaskConfig(start=(0.05, 0.15), bounds=(0.05, 0.2)),
        extent=SIDE,
        spacing=spacing,
    )
    mixer = lx.QKVSequenceMixerConfig(
        lx.HyenaOperatorConfig(convolution=convolution, short_width=1)
    )
    return lx.presets.field_model((1, 1), 1, 1, features=32, pattern="HH", grid_mixer=mixer)


def at_spacing(model: lx.SequenceModel, spacing: float) -> lx.SequenceModel:
    """The same weights on another grid."""
    other = eqx.filter_eval_shape(config(spacing).build, jr.key(0))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(model))


def train(steps: int) -> lx.SequenceModel:
    """A model trained on coarse fields, ever new ones."""
    model = config(SIDE / COARSE).build(jr.key(0))
    optimizer = OPTIMIZER.build(model, steps)
    step = eqx.filter_jit(make_train_step(loss, optimizer, seed=0), donate="all")
    state = init_state(model, optimizer)
    for i in range(steps):
        fields = smooth_fields(i, BATCH, COARSE)
        batch = {"inputs": fields, "targets": solve(fields, 1.0)}
        state, _ = step(state, jax.tree.map(lambda leaf: leaf.astype(np.float32), batch))
    return jax.block_until_ready(state.model)


def loss(model, batch, keys) -> Metrics:
    """Sums of squares, field by field."""
    squares = jnp.sum(jnp.mean((forecast(model, batch["inputs"]) - batch["targets"]) ** 2, (1, 2)))
    return Metrics(squares, squares, jnp.zeros(()), jnp.asarray(float(len(keys))), no_aux())


def forecast(model, fields):
    return jax.vmap(model)(fields[..., None]).values[..., 0]


predict = eqx.filter_jit(forecast)


def errors(forecast) -> dict[str, float]:
    """The forecast's error on each grid, relative to the truth's size; on fields not seen before."""
    relative = {}
    for points in (COARSE, FINE):
        fields = smooth_fields(STEPS, TESTED, points).astype(np.float32)
        truth = solve(fields, 1.0)
        error = np.linalg.norm(np.asarray(forecast(fields)) - truth) / np.linalg.norm(truth)
        relative[f"error {points} x {points}"] = float(error)
    coarse, fine = relative.values()
    return relative | {"fine / coarse": fine / coarse}


def fit_taps() -> np.ndarray:
    """The taps of a circular convolution on the coarse grid, by least squares."""
    fields = smooth_fields(0, BATCH, COARSE)
    columns = _shifts(fields).reshape(TAPS**2, -1).T
    return np.linalg.lstsq(columns, solve(fields, 1.0).ravel())[0]


def convolve(fields: np.ndarray, taps: np.ndarray) -> np.ndarray:
    return np.tensordot(taps, _shifts(fields), 1)


def _shifts(fields: np.ndarray) -> np.ndarray:
    """Fields moved to every tap."""
    lags = np.arange(TAPS) - TAPS // 2
    return np.stack([np.roll(fields, (i, j), (-2, -1)) for i in lags for j in lags])


def _plot(forecast) -> None:
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.2), layout="constrained")
    for row, points in zip(axes, (COARSE, FINE), strict=True):
        field = smooth_fields(STEPS, 1, points).astype(np.float32)
        truth = solve(field, 1.0)
        predicted = np.asarray(forecast(field))
        shown = {"u(0)": field, "u(1)": truth, "forecast": predicted, "error": predicted - truth}
        for axis, (name, values) in zip(row, shown.items(), strict=True):
            limit = np.abs(values if name == "error" else field).max()
            image = axis.imshow(
                values[0].T, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower"
            )
            axis.set(title=f"{name}, {points} × {points}", xticks=[], yticks=[])
            figure.colorbar(image, ax=axis, shrink=0.8)
    figure.savefig(harness.RESULTS / "advection_diffusion.png", dpi=120)


if __name__ == "__main__":
    main()
