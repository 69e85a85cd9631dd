"""Vision models: what tokens see, padding, sizes, gradients, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_numbers import KEY

import linax_like as lx
from linax_like.sequence_mixers import AttentionOperator


ATTENTION = lx.QKVSequenceMixerConfig(lx.AttentionOperatorConfig(num_heads=2, causal=False))
HERE = lx.SequenceContext()
IMAGE = jr.normal(jr.key(1, impl="rbg"), (4, 6, 1))


@pytest.fixture(scope="module")
def model():
    """Patches of a rectangular image, with registers and a class token."""
    cfg = lx.presets.vision_model(
        (4, 6),
        (2, 2),
        1,
        5,
        features=16,
        pattern="HHAA",
        grid_mixer=ATTENTION,
        registers=3,
        layer_scale=1.0,
    )
    return cfg.build(KEY)


@pytest.fixture(scope="module")
def run_with_gradients(model):
    """The logits of an image with this mask, and gradients by the model and by the image."""

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def run(inputs, mask):
        model, x = inputs
        logits = model(x, context=lx.SequenceContext(mask=mask)).logits
        return jnp.sum(logits**2), logits

    return lambda x, mask: run((model, x), mask)


def test_a_pattern_of_layers_becomes_runs_of_blocks(model):
    (run_of_grid, run_of_all) = model.config.stack.groups
    assert [repeats for _, repeats in (run_of_grid, run_of_all)] == [2, 2]
    assert isinstance(run_of_grid[0][0], lx.PatchBlockConfig)
    assert lx.VisionModelConfig.from_json(model.config.to_json()) == model.config


def test_every_pixel_and_token_counts(run_with_gradients):
    (d_model, d_x), _ = run_with_gradients(IMAGE, jnp.ones((2, 3), bool))
    assert np.all(np.abs(d_x) > 0)
    assert np.all(np.abs(d_model.tokens).max(-1) > 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(d_model))


def test_padded_patches_have_no_influence(run_with_gradients):
    mask = jnp.array([[True, True, False], [True, True, False]])
    blank, junk = (IMAGE.at[:, 4:].set(value) for value in (0, jnp.nan))
    expected = run_with_gradients(blank, mask)
    got = run_with_gradients(junk, mask)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, expected))
    assert not got[0][1][:, 4:].any()
    _, unmasked = run_with_gradients(blank, jnp.ones((2, 3), bool))
    assert np.abs(unmasked - expected[1]).max() > 1e-4


def test_a_block_of_patches_leaves_tokens_alone():
    inner = lx.ResidualBlockConfig(ATTENTION, channel_mixer=None)
    block = lx.PatchBlockConfig(inner, (2, 3)).build(8, KEY)
    x = jr.normal(KEY, (8, 8))
    y, _ = block(x)
    np.testing.assert_array_equal(y[6:], x[6:])
    expected, _ = block.block(x[:6].reshape(2, 3, 8))
    np.testing.assert_array_equal(y[:6], expected.reshape(6, 8))
    for refused in (lambda: block.init_state(8), lambda: block(x[:5])):
        with pytest.raises(ValueError, match="`PatchBlock` reads|begins with the 6 patches"):
            refused()


@pytest.mark.parametrize("readout", ["mean", "class", "registers"])
def test_read_outs(readout):
    """Of just these positions, and as if padded patches were not there for the others either."""
    cfg = lx.VisionModelConfig(
        1,
        8,
        3,
        lx.PatchEmbeddingConfig((2, 2), layout="sequence"),
        lx.StackConfig((((_unplaced_block(),), 1),)),
        registers=2,
        readout=readout,
    )
    padded = jnp.pad(IMAGE, ((0, 0), (0, 2), (0, 0)), constant_values=jnp.nan)
    mask = jnp.ones((2, 4), bool).at[:, 3].set(False)

    @eqx.filter_jit
    def forms(model):
        y, _ = model.stack(jnp.concatenate([model.embedding(IMAGE, context=HERE), model.tokens]))
        read = {"mean": y[:6].mean(0), "class": y[-1], "registers": y[6:8].mean(0)}[readout]
        among_padding = model(padded, context=lx.SequenceContext(mask=mask)).logits
        return model(IMAGE).logits, model.head.weight @ read, among_padding

    got, expected, among_padding = forms(cfg.build(KEY))
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(among_padding, expected, atol=1e-5)


def _unplaced_block():
    operator = lx.AttentionOperatorConfig(num_heads=2, causal=False, rope_base=None)
    return lx.ResidualBlockConfig(lx.QKVSequenceMixerConfig(operator), channel_mixer=None)


def test_stages_on_coarser_grids():
    """Any size; what is merged with padding or with the rim is as if that were not there."""
    cfg = lx.presets.hierarchical_vision_model(
        (2, 2), 1, 5, features=8, patterns=("A", "A"), layer_scale=1.0
    )
    model = cfg.build(KEY)
    assert [stage.in_features for stage in model.stages] == [8, 16]
    (first, second), (merge,) = model.stages, model.merges
    parts = ((model.embedding, (3, 4)), (first, (3, 4)), (merge, (3, 4)))
    parts += ((second, (2, 2)), (model.head, (2, 2)))
    assert model.flop_count((3, 4)) == sum(part.flop_count(sizes) for part, sizes in parts)
    run = eqx.filter_jit(lambda x, mask: model(x, context=lx.SequenceContext(mask=mask)).logits)
    x = jr.normal(KEY, (6, 8, 1))
    mask = jnp.ones((3, 4), bool).at[:, 2:].set(False)
    expected = run(x[:, :4], None)
    np.testing.assert_allclose(run(x.at[:, 4:].set(jnp.nan), mask), expected, atol=1e-5)
    assert lx.HierarchicalModelConfig.from_json(cfg.to_json()) == cfg


def test_a_field_has_the_size_of_the_image():
    cfg = lx.presets.field_model((2, 2), 1, 3, features=8, pattern="A")
    model = eqx.filter_eval_shape(cfg.build, KEY)
    for x in (IMAGE, jnp.concatenate([IMAGE, IMAGE])):
        assert eqx.filter_eval_shape(model, x).values.shape == (*x.shape[:-1], 3)
    assert lx.SequenceModelConfig.from_json(cfg.to_json()) == cfg


@pytest.mark.parametrize(
    "patch_size, size", [((2,), (6,)), ((2, 3), (4, 9)), ((1, 2, 3), (2, 4, 3))]
)
def test_patches_are_cut_and_put_together_again(patch_size, size):
    x = jnp.arange(2 * np.prod(size), dtype=jnp.float32).reshape(*size, 2)
    patches = lx.ops.patchify(x, patch_size)
    first = x[tuple(slice(p) for p in patch_size)]
    np.testing.assert_array_equal(patches[(0,) * len(size)], first.reshape(-1))
    np.testing.assert_array_equal(lx.ops.unpatchify(patches, patch_size), x)


def test_positions_on_a_grid():
    """Fixed ones tell every place; learned ones of a smaller grid are the first of each axis."""
    fixed = lx.SinusoidalGridPositionsConfig().build(8, KEY)((3, 4))
    assert len(np.unique(np.asarray(fixed).reshape(12, 8), axis=0)) == 12
    np.testing.assert_array_equal(fixed[1, :, :4], np.broadcast_to(fixed[1, 0, :4], (4, 4)))
    learned = lx.LearnedGridPositionsConfig((3, 4)).build(8, KEY)
    np.testing.assert_array_equal(learned((2, 3)), learned((3, 4))[:2, :3])
    with pytest.raises(ValueError, match=r"at most \(3, 4\). Received a grid of \(4, 4\)"):
        learned((4, 4))


VISION = lx.presets.vision_model
PATCHES = lx.PatchEmbeddingConfig((2, 2))


@pytest.mark.parametrize(
    "preset, sizes",
    [
        (VISION, ((4, 4), (2, 2), 1, 5)),
        (lx.presets.hierarchical_vision_model, ((2, 2), 1, 5)),
        (lx.presets.field_model, ((2, 2), 1, 5)),
    ],
)
def test_attention_has_the_heads_that_were_asked_for(preset, sizes):
    model = eqx.filter_eval_shape(preset(*sizes, features=16, num_heads=4).build, KEY)
    is_operator = lambda node: isinstance(node, AttentionOperator)
    operators = filter(is_operator, jax.tree.leaves(model, is_leaf=is_operator))
    assert {operator.num_heads for operator in operators} == {4}


@pytest.mark.parametrize(
    "mistake, message",
    [
        (lambda: VISION((5, 4), (2, 2), 1, 5), "multiple of the `patch_size`"),
        (lambda: VISION((4, 4), (2, 2), 1, 5, pattern="AX"), 'letters "A"'),
        (lambda: lx.presets.field_model((2, 2), 1, 5, pattern="HA"), "`grid_mixer` must say"),
        (lambda: VISION((4, 4), (2, 2), 1, 5, pattern="H"), "has no attention"),
        (lambda: VISION((4, 4), (2, 2), 1, 5, registers=0, readout="registers"), "positive with"),
        (lambda: lx.PatchEmbeddingConfig((0, 2)), "one to three positive sizes"),
        (lambda: PATCHES.build(3, 8, KEY)(jnp.ones((4, 5, 3)), context=HERE), "Crop or pad"),
        (lambda: PATCHES.build(3, 8, KEY)(jnp.ones((4, 4, 1)), context=HERE), "with 3 channels"),
        (lambda: lx.SinusoidalGridPositionsConfig().build(6, KEY)((2, 2)), "multiple of 4"),
        (
            lambda: lx.PatchMergingConfig((2,)).build(8, 8, KEY)(IMAGE, context=HERE),
            "grid of 1 axes",
        ),
        (  # with its tokens it has as many positions as there are patches of the grid
            lambda: VISION((4, 6), (2, 2), 1, 5, features=8).build(KEY)(jnp.ones((4, 4, 1))),
            r"layers for a grid of \(2, 3\).*whose grid is \(2, 2\)",
        ),
    ],
)
def test_mistakes_are_told(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake()


def test_a_shifted_field_gives_shifted_values():
    """On a circle, without positions: up to the rounding of Fourier transforms, which depends on where
    a number stands. So to 1e-12 in float64, and to 2e-6 in float32."""
    mixer = lx.presets.grid_hyena((4, 4), "circular")
    cfg = lx.presets.field_model((1, 1), 1, 2, features=8, pattern="HH", grid_mixer=mixer)
    model = cfg.build(KEY)
    x = jr.normal(KEY, (4, 6, 1))
    run = eqx.filter_jit(lambda model, x: model(x).values)
    y, shifted = (run(model, jnp.roll(x, shift, (0, 1))) for shift in ((0, 0), (3, 5)))
    np.testing.assert_allclose(shifted, jnp.roll(y, (3, 5), (0, 1)), atol=2e-6)
    with jax.enable_x64(True):
        wide = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 8)))
        run = eqx.filter_jit(lambda stack, x: stack(x)[0])
        y, shifted = (
            run(model.stack, jnp.roll(wide, shift, (0, 1))) for shift in ((0, 0), (3, 5))
        )
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(shifted, jnp.roll(y, (3, 5), (0, 1)), rtol=0, atol=1e-12)


def test_a_shift_is_exact_where_the_sums_are():
    """Of whole numbers, bit for bit: by the sum itself, and by Fourier transforms to the nearest one."""
    rng = np.random.default_rng(0)
    whole = lambda *shape: jnp.asarray(rng.integers(-9, 10, shape).astype(np.float32))
    x, kernel, circle = whole(6, 7, 2), whole(3, 4, 2), ("circular",) * 2

    @jax.jit
    def run(x, kernel):
        definition = lx.ops.grid_conv(x, kernel, circle, backend="reference")
        return definition, jnp.round(lx.ops.grid_conv(x, kernel, circle))

    (y, rounded), (shifted, rounded_too) = (
        run(z, kernel) for z in (x, jnp.roll(x, (2, 5), (0, 1)))
    )
    np.testing.assert_array_equal(rounded, y)
    for got in (shifted, rounded_too):
        np.testing.assert_array_equal(got, jnp.roll(y, (2, 5), (0, 1)))


def test_hyena_is_the_grid_mixer_of_a_vision_model():
    """A homogeneous one needs no tokens; the mean reads the patches."""
    cfg = lx.presets.vision_model(
        (4, 6), (2, 2), 1, 5, features=8, pattern="H", registers=0, readout="mean"
    )
    model = eqx.filter_eval_shape(cfg.build, KEY)
    assert eqx.filter_eval_shape(model, IMAGE).logits.shape == (5,)
    assert lx.presets.grid_hyena((500, 1000)).operator.convolution.mask.start[0] < 0.001
