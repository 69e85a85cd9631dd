"""What CKConv and the Hyena operator promise beyond the laws: on grids, and between resolutions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_numbers import assert_close

import linax_like as lx
from linax_like.ops import grid_conv


KEY = jr.key(1, impl="rbg")
KERNEL = lx.SIRENKernelConfig(8, 1, (1.0,))


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@eqx.filter_jit
def call(mixer, *inputs, **context):
    return mixer(*inputs, **context)


def config(*boundary, kernel=KERNEL, mask=None, extent=4.0, spacing=1.0):
    return lx.CKConvSequenceMixerConfig(boundary, kernel, mask, extent=extent, spacing=spacing)


def test_twice_the_resolution_is_half_the_spacing():
    """The sum over lags is an integral: of a smooth field it does not depend on the sampling."""
    mask = lx.GaussianMaskConfig((0.3, 0.4))
    axes = ("circular", "circular")
    coarse, fine = (
        config(*axes, mask=mask, extent=16.0, spacing=spacing).build(2, KEY)
        for spacing in (1.0, 0.5)
    )
    fine = jax.tree.unflatten(jax.tree.structure(fine), jax.tree.leaves(coarse))

    def field(points):
        angle = 2 * np.pi * np.arange(points) / points
        first, second = np.meshgrid(angle, angle, indexing="ij")
        waves = [np.sin(first) + np.cos(2 * second), np.cos(first + second)]
        return jnp.asarray(np.stack(waves, axis=-1), jnp.float32)

    low, high = call(coarse, field(32)), call(fine, field(64))
    assert_close(high[::2, ::2], low, 2e-3)
    wrong = call(coarse, field(64))  # without the spacing it is another operator
    assert np.abs(wrong[::2, ::2] - low).max() > 0.1


def test_a_kernel_has_one_shape_whatever_was_asked_before():
    mixer = config("zero").build(4, KEY)
    sample = lambda points: mixer.materialize((points,)).sampled.array
    first = sample(5)
    assert_close(sample(40)[35:44], first, 1e-5)
    assert_close(sample(5), first, 0)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_what_goes_around_a_circle_comes_around(axes):
    mixer = config(*["circular"] * axes).build(3, KEY)
    x = noise(*(5, 4, 6)[:axes], 3)
    shift, over = (2, 1, 3)[:axes], tuple(range(axes))
    assert_close(
        call(mixer, jnp.roll(x, shift, over)), jnp.roll(call(mixer, x), shift, over), 1e-5
    )


def test_causal_in_time_and_free_in_space():
    operator = lx.HyenaOperatorConfig(3, config("causal", "zero", "circular")).build(2, KEY)
    streams = tuple(noise(4, 3, 3, 2, seed=i) for i in range(4))
    changed = tuple(stream.at[2].add(1.0) for stream in streams)
    difference = np.abs(call(operator, streams) - call(operator, changed)).max(axis=-1)
    assert difference[:2].max() < 1e-5
    assert difference[2:].min() > 1e-4
    assert not operator.causal  # it has no steps


@pytest.mark.parametrize("boundary", [("zero", "zero"), ("circular", "causal")])
def test_padding_of_a_grid_is_zero_where_it_stands(boundary):
    operator = lx.HyenaOperatorConfig(convolution=config(*boundary), short_bias=True)
    mixer = lx.QKVSequenceMixerConfig(operator, qkv_bias=True).build(4, KEY)
    mask = jnp.ones((5, 4), bool).at[3:].set(False).at[:, 3].set(False)
    context = lx.SequenceContext(mask=mask)

    @jax.jit
    def run(x):
        y, pull = jax.vjp(lambda x: mixer(x, context=context), x)
        return y, *pull(jnp.cos(y))

    x = noise(5, 4, 4)
    junk = jnp.where(mask[..., None], x, jnp.nan)
    y, d_x = run(junk)
    for got, expected in zip((y, d_x), run(jnp.where(mask[..., None], x, 0)), strict=True):
        assert_close(got, expected, 1e-6)
    assert np.all(np.asarray(y)[~np.asarray(mask)] == 0)
    if boundary == ("zero", "zero"):  # then it is as if there were none
        assert_close(y[:3, :3], call(mixer, x[:3, :3]), 1e-5)


def test_a_condition_makes_the_kernel():
    film = lx.KernelFiLMConfig(3, init="small_random", std=1.0)
    mixer = config("causal", kernel=lx.SIRENKernelConfig(8, 2, (1.0,), film=film)).build(4, KEY)
    assert mixer.uses == {"condition"}
    x = noise(6, 4)
    one, other = (
        call(mixer, x, context=lx.SequenceContext(condition=noise(3, seed=i))) for i in (1, 2)
    )
    assert np.abs(one - other).max() > 1e-3
    with pytest.raises(
        ValueError, match=r"needs `context.condition` of shape \(3,\). Received none"
    ):
        mixer(x)
    with pytest.raises(ValueError, match="depends on `context.condition`"):
        mixer.materialize((6,))


def test_the_waves_of_random_features_are_not_trained():
    mixer = config("zero", kernel=lx.RandomFourierKernelConfig(8)).build(4, KEY)
    assert not lx.trainable(mixer).kernel.waves.array
    assert lx.trainable(mixer).kernel.out_weight


@pytest.mark.parametrize("parametrization", ["direct", "log", "softplus"])
def test_a_width_that_left_its_bounds_is_bounded_and_can_return(parametrization):
    bounds = (0.1, 1.0)
    cfg = lx.GaussianMaskConfig((0.2, 0.8), bounds, parametrization)
    mask = cfg.build(1, 2, KEY)
    wide = eqx.tree_at(lambda m: m.std, mask, mask.std + 10)
    p = jnp.linspace(0, 1, 5)[:, None]
    grad, y = jax.grad(lambda m: (jnp.sum(m(p)), m(p)), has_aux=True)(wide)
    assert_close(y, np.exp(-(p**2) / 2) * np.ones(2), 1e-5)
    assert np.all(grad.std != 0)


# Kernels that are sampled once.


def test_materialized_kernels_compute_the_same():
    mixer = config("causal").build(4, KEY)
    fixed = mixer.materialize((16,))
    x = noise(9, 4)

    @eqx.filter_jit
    def forms(mixer, x):
        state, y = mixer.prefill(mixer.init_state(12), x)
        return mixer(x), y, mixer.step(state, x[0])[1]

    got, expected = forms(fixed, x), forms(mixer, x)
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e, 1e-6)
    assert_close(got[1], got[0], 1e-5)
    assert fixed.flop_count((9,), True) < mixer.flop_count((9,), True)
    assert not lx.trainable(fixed).sampled.array
    with pytest.raises(ValueError, match="16 lags along axis 0, where 17 are needed"):
        fixed(noise(17, 4))


def test_a_whole_model_is_materialized():
    mixer = lx.QKVSequenceMixerConfig(lx.HyenaOperatorConfig(convolution=config("causal")))
    block = lx.ResidualBlockConfig(mixer, None)
    stack = lx.StackConfig.from_layers([block, block]).build(8, KEY)
    fixed, x = lx.materialize_kernels(stack, (8,)), noise(6, 8)
    assert_close(call(fixed, x)[0], call(stack, x)[0], 1e-5)
    assert fixed.flop_count((6,), True) < stack.flop_count((6,), True)


def test_a_circle_that_is_not_the_sampled_one_is_an_error():
    mixer = config("circular", "zero").build(2, KEY).materialize((5, 6))
    assert mixer(noise(0, 4, 2)).shape == (0, 4, 2)
    assert eqx.filter_eval_shape(mixer, noise(5, 4, 2)).shape == (5, 4, 2)
    with pytest.raises(ValueError, match="a circular axis takes exactly the size"):
        mixer(noise(7, 4, 2))


# Mistakes.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: config(), "one to three of 'zero', 'circular', 'causal'"),
        (lambda: config("zero", extent=(1.0, 2.0)), "`extent` must be positive and finite: one"),
        (lambda: config("zero", extent=np.inf), "`extent` must be positive and finite"),
        (lambda: config("zero", spacing=0.0), "`spacing` must be positive"),
        (lambda: lx.SIRENKernelConfig(8, frequencies=(1.0, 2.0, 3.0)), "divide `hidden_features`"),
        (lambda: lx.SIRENKernelConfig(scale_bounds=(2.0, 3.0)), "with 1 between them"),
        (lambda: lx.GaussianMaskConfig((0.0001, 0.2)), "`start` must be within `bounds`"),
        (lambda: lx.RandomFourierKernelConfig(7), "`hidden_features` must be even"),
        (lambda: lx.HyenaOperatorConfig(1), "`order` must be at least 2"),
        (
            lambda: lx.HyenaOperatorConfig(short_boundary=("zero",)),
            "causal on the same axes",
        ),
        (
            lambda: lx.CKConvSequenceMixerConfig(num_heads=3).build(8, KEY),
            "a divisor of the width, which is 8",
        ),
        (
            lambda: config("zero", "causal").build(2, KEY).materialize((3,)),
            r"grids of 2 axes. Received the sizes \(3,\)",
        ),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_documents_on_a_circle_and_split_grids_are_refused():
    ids = lx.SequenceContext(segment_ids=jnp.zeros(5, jnp.int32))
    with pytest.raises(ValueError, match=r"circular boundary.*`context.segment_ids`"):
        config("circular").build(2, KEY)(noise(5, 2), context=ids)
    with pytest.raises(ValueError, match=r"cannot split time.*`context.axis_name`"):
        config("zero", "zero").build(2, KEY)(
            noise(3, 3, 2), context=lx.SequenceContext(axis_name="time")
        )


def test_a_short_convolution_on_a_circle_refuses_documents_and_leaves_padding_in_place():
    """Between its ends there is padding then, as beyond them there are zeros."""
    build = lambda short: lx.QKVSequenceMixerConfig(
        lx.HyenaOperatorConfig(convolution=config("zero"), short_boundary=(short,))
    ).build(4, KEY)
    with pytest.raises(ValueError, match=r"circular boundary.*`context.segment_ids`"):
        ids = lx.SequenceContext(segment_ids=jnp.zeros(5, jnp.int32))
        build("circular")(noise(5, 4), context=ids)
    x, real = noise(5, 4), lx.SequenceContext(mask=jnp.arange(7) < 5)
    padded = jnp.pad(x, ((0, 2), (0, 0)), constant_values=jnp.nan)
    assert_close(call(build("circular"), padded, context=real)[:5], call(build("zero"), x), 1e-5)


def test_heads_share_what_makes_their_kernels():
    """Twice the heads are half the channels, whose kernels take half the work."""
    work = lambda heads: (
        lx.CKConvSequenceMixerConfig(num_heads=heads, kernel=KERNEL)
        .build(8, KEY)
        .flop_count((64,))
    )
    assert work(4) < work(2) < work(1)
    mixer = lx.CKConvSequenceMixerConfig(num_heads=4, kernel=KERNEL).build(8, KEY)
    program = jax.jit(lambda x: mixer(x)).lower(noise(64, 8)).as_text()
    assert "tensor<2x64x" in program
    assert "tensor<8x64x8" not in program


def test_the_kernel_is_the_mixers(key):
    """By the definition of the convolution, with what `materialize` shows."""
    mixer = config("zero", "causal", mask=lx.ExponentialMaskConfig()).build(3, key)
    x, kernel = noise(4, 5, 3), mixer.materialize((4, 5)).sampled.array
    assert kernel.shape == (7, 5, 3)
    by_definition = jax.jit(
        lambda x, k: grid_conv(x, k, mixer.config.boundary, backend="reference")
    )
    assert_close(call(mixer, x), by_definition(x, kernel) + mixer.skip * x, 1e-5)


def test_what_hyenas_gradient_computes_again_is_not_held():
    """Short convolutions, kernels and spectra: 20 grids of features are held, with them 28."""
    operator = lx.HyenaOperatorConfig(convolution=config("zero", "zero"))
    mixer, x = lx.QKVSequenceMixerConfig(operator).build(64, KEY), jnp.ones((1, 32, 32, 64))
    loss = lambda both: jnp.mean(jax.vmap(both[0])(both[1]) ** 2)
    gradient = eqx.filter_jit(eqx.filter_grad(loss)).lower((mixer, x)).compile()
    held = gradient.compiled.memory_analysis().temp_size_in_bytes / x.nbytes
    assert held < 23, held
