"""The solver of the benchmark agrees with closed forms, and its model with itself on a finer grid."""

import jax.random as jr
import numpy as np

from benchmarks import advection_diffusion as benchmark


def test_a_wave_moves_and_fades():
    x, y = benchmark.SIDE / 16 * np.indices((16, 16))
    kx, ky = 2 * np.pi / benchmark.SIDE * np.array([3, -2])
    (cx, cy), time = benchmark.VELOCITY, 0.7
    wave = lambda time: np.cos(kx * (x - cx * time) + ky * (y - cy * time))
    faded = np.exp(-benchmark.DIFFUSIVITY * (kx**2 + ky**2) * time)
    np.testing.assert_allclose(benchmark.solve(wave(0), time), faded * wave(time), atol=1e-12)


def test_a_later_field_is_the_field_of_an_earlier_one():
    fields = benchmark.smooth_fields(0, 2, 32)
    twice = benchmark.solve(benchmark.solve(fields, 0.3), 0.7)
    np.testing.assert_allclose(twice, benchmark.solve(fields, 1.0), atol=1e-12)


def test_fields_are_the_same_on_every_grid():
    coarse, fine = (benchmark.smooth_fields(0, 64, points) for points in (16, 32))
    np.testing.assert_allclose(fine[:, ::2, ::2], coarse, atol=1e-12)
    assert abs(np.mean(fine**2) - 1) < 0.1
    later = (benchmark.solve(fields, 1.0) for fields in (fine, coarse))
    np.testing.assert_allclose(next(later)[:, ::2, ::2], next(later), atol=1e-12)


def test_a_model_is_the_same_on_a_finer_grid():
    coarse = benchmark.config(1.0).build(jr.key(0, impl="rbg"))
    fields = (benchmark.smooth_fields(0, 1, points).astype(np.float32) for points in (32, 64))
    low, high = next(fields), next(fields)
    expected = benchmark.predict(coarse, low)
    found = benchmark.predict(benchmark.at_spacing(coarse, 0.5), high)[:, ::2, ::2]
    np.testing.assert_allclose(found, expected, atol=1e-3)
