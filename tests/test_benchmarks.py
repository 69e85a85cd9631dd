"""The benchmarks that train: their data, and that their models learn and keep to it."""

import jax.random as jr
import numpy as np

import linax_like as lx
from benchmarks import advection_diffusion, digits_2d


def test_a_wave_moves_and_fades():
    x, y = advection_diffusion.SIDE / 16 * np.indices((16, 16))
    kx, ky = 2 * np.pi / advection_diffusion.SIDE * np.array([3, -2])
    (cx, cy), time = advection_diffusion.VELOCITY, 0.7
    wave = lambda time: np.cos(kx * (x - cx * time) + ky * (y - cy * time))
    faded = np.exp(-advection_diffusion.DIFFUSIVITY * (kx**2 + ky**2) * time)
    np.testing.assert_allclose(
        advection_diffusion.solve(wave(0), time), faded * wave(time), atol=1e-12
    )


def test_a_later_field_is_the_field_of_an_earlier_one():
    fields = advection_diffusion.smooth_fields(0, 2, 32)
    twice = advection_diffusion.solve(advection_diffusion.solve(fields, 0.3), 0.7)
    np.testing.assert_allclose(twice, advection_diffusion.solve(fields, 1.0), atol=1e-12)


def test_fields_are_the_same_on_every_grid():
    coarse, fine = (advection_diffusion.smooth_fields(0, 64, points) for points in (16, 32))
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, atol=1e-12)
    assert abs(np.mean(fine**2) - 1) < 0.1
    later = (advection_diffusion.solve(fields, 1.0) for fields in (fine, coarse))
    np.testing.assert_allclose(next(later)[:, ::2, ::2], next(later), atol=1e-12)


def test_a_model_is_the_same_on_a_finer_grid():
    """But for what the coarse grid cannot show of the products of fields."""
    model = advection_diffusion.config(1.0).build(jr.key(0, impl="rbg"))
    low, high = (
        advection_diffusion.smooth_fields(0, 1, points).astype(np.float32) for points in (32, 64)
    )
    expected = advection_diffusion.predict(model, low)
    found = advection_diffusion.predict(advection_diffusion.at_spacing(model, 0.5), high)
    np.testing.assert_allclose(found[:, ::2, ::2], expected, rtol=0, atol=0.02)


def test_validation_holds_out_every_training_image_once_and_no_other():
    data = digits_2d.TASK.load()
    rows = lambda images: {image.tobytes() for image in images.pixels}
    parts = digits_2d.folds(data.train)
    held_out = [rows(second) for _, second in parts]
    assert sum(map(len, held_out)) == len(data.train.labels) == 1437
    assert set.union(*held_out) == rows(data.train)
    for first, second in parts:
        assert not rows(first) & rows(second)
        counts = np.bincount(second.labels, minlength=10) / len(second.labels)
        assert np.abs(counts - 0.1).max() < 0.01


def test_a_small_model_learns_digits():
    model = lx.presets.vision_model(
        (8, 8), (2, 2), 1, 10, features=16, pattern="A", readout="mean", layer_scale=None
    )
    parts = digits_2d.folds(digits_2d.TASK.load().train)[:1]
    (accuracy,) = digits_2d.trials(model, 120, parts)
    assert accuracy > 0.3
