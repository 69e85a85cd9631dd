"""Convolutions on grids: the sum by its definition, published numbers, and what rounding allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close, load

from linax_like.ops import grid_conv, grid_conv_by_feature, grid_short_conv


CASES = [
    (("zero",), (16,), (31,)),
    (("zero",), (7,), (6,)),
    (("zero",), (5,), (40,)),
    (("circular",), (7,), (6,)),
    (("circular",), (1,), (3,)),
    (("circular",), (5,), (12,)),
    (("causal",), (9,), (20,)),
    (("causal", "zero"), (5, 6), (5, 4)),
    (("circular", "causal"), (4, 5), (9, 2)),
    (("causal", "zero", "circular"), (4, 3, 5), (3, 5, 4)),
]
PUBLISHED = {
    "fftconv1d_L16_K31": ("zero",),
    "fftconv1d_L17_K33": ("zero",),
    "fftconv1d_L16_K5": ("zero",),
    "fftconv1d_L16_K6": ("zero",),
    "fftconv1d_L15_K1": ("zero",),
    "fftconv1d_perbatch": ("zero",),
    "fftconv2d": ("zero", "zero"),
    "fftconv3d": ("zero", "zero", "zero"),
    "causal1d_L16_K16": ("causal",),
    "causal1d_L17_K9": ("causal",),
    "circ1d_L16_K15": ("circular",),
    "circ1d_L17_K17": ("circular",),
    "circ2d": ("circular", "circular"),
    "circ3d": ("circular", "circular", "circular"),
    "mixed2d_TF": ("circular", "zero"),
}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def values_and_gradients(operator, x, kernel, weight):
    @jax.jit
    def run(x, kernel, weight):
        y, pull = jax.vjp(operator, x, kernel)
        return y, *pull(weight)

    return run(*map(jnp.asarray, (x, kernel, weight)))


def by_definition(x, kernel, boundary, weight):
    """The sum over the taps, and its gradients by `x` and `kernel`."""
    y, d_x, d_kernel = (np.zeros_like(array) for array in (x, x, kernel))
    for tap in np.ndindex(kernel.shape[:-1]):
        inside, met = [], []
        for j, taps, points, kind in zip(tap, kernel.shape, x.shape, boundary, strict=False):
            source = np.arange(points) - j + (0 if kind == "causal" else taps // 2)
            source = source % points if kind == "circular" else source
            inside.append(np.flatnonzero((source >= 0) & (source < points)))
            met.append(source[inside[-1]])
        here, there = np.ix_(*inside), np.ix_(*met)
        y[here] += kernel[tap] * x[there]
        d_x[there] += kernel[tap] * weight[here]
        d_kernel[tap] = (weight[here] * x[there]).sum(tuple(range(x.ndim - 1)))
    return y, d_x, d_kernel


@pytest.mark.parametrize(("boundary", "space", "taps"), CASES)
def test_the_transform_is_the_sum(boundary, space, taps):
    x, kernel, weight = noise(*space, 2), noise(*taps, 2, seed=1), noise(*space, 2, seed=2)
    with jax.enable_x64():
        got = values_and_gradients(lambda x, k: grid_conv(x, k, boundary), x, kernel, weight)
        for g, e in zip(got, by_definition(x, kernel, boundary, weight), strict=True):
            assert g.dtype == jnp.float64
            assert_close(g, e, 1e-12)


@pytest.mark.parametrize(("points", "features"), [(6, 3), (2**15, 17)])
def test_features_a_few_at_a_time_are_each_alone(points, features):
    """Of so many points 16 features are transformed at a time, with kernels or with what makes them."""
    x, scales = noise(points, features), noise(features, 2)
    weight = noise(points, features, seed=2)

    def kernel(own):
        return own[0] * jnp.arange(4.0) + own[1]

    def made(x, scales):
        return grid_conv_by_feature(x, kernel, scales, ("causal",))

    def kept(x, scales):
        return grid_conv(x, jax.vmap(kernel, out_axes=1)(scales), ("causal",))

    def alone(x, scales):
        one = lambda x, own: grid_conv(x[:, None], kernel(own)[:, None], ("causal",))[:, 0]
        return jax.vmap(one, (1, 0), 1)(x, scales)

    got, whole, expected = (
        values_and_gradients(f, x, scales, weight) for f in (made, kept, alone)
    )
    for g, w, e in zip(got, whole, expected, strict=True):
        assert_close(g, e, 1e-5)
        assert_close(w, e, 1e-5)


@pytest.mark.parametrize("boundary", ["zero", "circular", "causal"])
def test_an_empty_grid_stays_empty(boundary):
    y = grid_conv_by_feature(
        jnp.ones((0, 3)), lambda own: own * jnp.ones(4), jnp.ones(3), (boundary,)
    )
    assert y.shape == (0, 3)
    nothing = grid_short_conv(jnp.ones((4, 0)), jnp.ones((3, 0)), None, (boundary,))
    assert nothing.shape == (4, 0)


def channels_last(array):
    return jnp.moveaxis(jnp.asarray(array), 1, -1)


def published(name):
    data = load(f"nvsubquadratic/op_{name}")
    x, kernel = channels_last(data["in/x"]), channels_last(data["in/k"])
    return data, x, kernel, data.get("in/s", np.zeros(x.shape[-1], np.float32))


def skipped(boundary, x, kernel, skip):
    kernel = jnp.broadcast_to(kernel, (len(x), *kernel.shape[1:]))
    return jax.vmap(lambda x, k: grid_conv(x, k, boundary))(x, kernel) + skip * x


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    data, x, kernel, skip = published(name)
    weight = channels_last(data["cotangent"])
    got = values_and_gradients(
        lambda x, k: skipped(PUBLISHED[name], x, k, skip), x, kernel, weight
    )
    for g, key, tolerance in zip(
        got, ("out", "grad_in/x", "grad_in/k"), (1e-5, 1e-4, 1e-4), strict=True
    ):
        assert_close(g, channels_last(data[key]), tolerance)


def test_an_even_circular_kernel_has_the_centre_of_any_other():
    """The published one lies a tap further than with zeros beyond the edges."""
    data, x, kernel, skip = published("circ1d_L16_K6")
    here = jax.jit(lambda x: skipped(("circular",), x, kernel, skip) - skip * x)(x)
    theirs = channels_last(data["out"]) - skip * x
    assert_close(jnp.roll(here, 1, axis=1), theirs, 1e-5)
    impulse = jnp.zeros((16, 1)).at[8].set(1.0)
    at_once = jax.jit(lambda x, k: [grid_conv(x, k, (b,)) for b in ("circular", "zero")])
    circular, zero = at_once(impulse, kernel[0, :, :1])
    assert_close(circular, zero, 1e-6)


def test_a_circle_of_a_million_points_is_exact_to_rounding():
    x, kernel = noise(1 << 20, 1), noise((1 << 20) - 1, 1, seed=1)
    spectrum = np.fft.rfft(x[:, 0]) * np.fft.rfft(
        np.roll(np.append(kernel[:, 0], 0), -(len(kernel) // 2))
    )
    expected = np.fft.irfft(spectrum)
    y = grid_conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), ("circular",))
    error = np.linalg.norm(np.asarray(y[:, 0], np.float64) - expected) / np.linalg.norm(expected)
    assert error <= 1e-6


def test_bfloat16_is_computed_in_float32():
    x = jnp.asarray(noise(12, 3), jnp.bfloat16)
    y = grid_conv(x, jnp.ones((12, 3), jnp.bfloat16), ("causal",))
    assert y.dtype == jnp.bfloat16
    assert_close(y.astype(jnp.float32), jnp.cumsum(x.astype(jnp.float32), axis=0), 1e-2)


def test_axes_that_do_not_agree_are_an_error():
    with pytest.raises(ValueError, match="as many axes"):
        grid_conv(jnp.ones((4, 4, 2)), jnp.ones((4, 2)), ("zero",))
    with pytest.raises(ValueError, match="divides the features"):
        grid_short_conv(jnp.ones((4, 4)), jnp.ones((3, 3)), None, ("zero",))


# A few taps.

SHORT = {
    "ddwconv_1d_groups": (("zero",), 1),
    "ddwconv_2d_groups": (("zero", "zero"), 1),
    "ddwconv_3d_groups": (("zero", "zero", "zero"), 1),
    "ddwconv_1d_causal": (("causal",), 1),
    "causalconv1d_dilated": (("causal",), 2),
}


@pytest.mark.parametrize("name", SHORT)
def test_published_short_convolutions(name):
    data, (boundary, dilation) = load(f"nvsubquadratic/{name}"), SHORT[name]
    last = (
        (lambda a: np.moveaxis(a[:, 0], 0, -1))
        if name == "causalconv1d_dilated"
        else (lambda a: np.moveaxis(a, 0, -1))
    )
    x, weight = channels_last(data["in/x"]), jnp.asarray(last(data["param/weight"]))
    bias = jnp.asarray(data.get("param/bias", np.zeros(weight.shape[-1], np.float32)))

    def run(x, weight, bias):
        return jax.vmap(lambda x: grid_short_conv(x, weight, bias, boundary, dilation))(x)

    @jax.jit
    def pull(x, weight, bias, cotangent):
        y, pull = jax.vjp(run, x, weight, bias)
        return y, *pull(cotangent)

    y, d_x, d_weight, d_bias = pull(x, weight, bias, channels_last(data["cotangent"]))
    assert_close(y, channels_last(data["out"]), 1e-5)
    assert_close(d_x, channels_last(data["grad_in/x"]), 1e-4)
    assert_close(d_weight, last(data["grad/weight"]), 1e-4)
    if "grad/bias" in data:
        assert_close(d_bias, data["grad/bias"], 1e-4)


@pytest.mark.parametrize("taps", [(3, 4), (7, 2)])
def test_a_few_taps_go_around_a_circle(taps):
    x, weight, cotangent = noise(5, 3, 2), noise(*taps, 2, seed=1), noise(5, 3, 2, seed=2)
    boundary = ("circular", "zero")
    got = values_and_gradients(
        lambda x, k: grid_short_conv(x, k, None, boundary), x, weight, cotangent
    )
    ends = [1 - count % 2 for count in taps]  # the centre of reversed taps is one further
    flipped = np.pad(weight[::-1, ::-1], [(0, ends[0]), (0, ends[1]), (0, 0)])
    y, d_x, d_flipped = by_definition(x, flipped, boundary, cotangent)
    d_weight = d_flipped[: taps[0], : taps[1]][::-1, ::-1]
    for g, e in zip(got, (y, d_x, d_weight), strict=True):
        assert_close(g, e, 1e-5)
