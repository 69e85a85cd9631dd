"""Golden parity with nvSubquadratic: blocks around Hyena on a grid, and a classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close, KEY, load
from test_golden_grid_convolutions import check, fill, GRADIENT, hyena_arrays

import linax_like as lx


EXTENT = 3.0  # between the first of four patches and the last


def hyena(film=None):
    kernel = lx.SIRENKernelConfig(32, film=film)
    mask = lx.GaussianMaskConfig(bounds=(1e-3, 3.122))
    convolution = lx.CKConvSequenceMixerConfig(("zero",) * 2, kernel, mask, extent=EXTENT)
    return lx.QKVSequenceMixerConfig(lx.HyenaOperatorConfig(convolution=convolution))


def mixer_arrays(get):
    """The arrays of a QKV mixer around Hyena in the order of our leaves."""
    inner = lambda key: get(f"sequence_mixer.{key}")
    qkv, out = inner("qkv_proj.weight"), inner("out_proj.weight")
    return [qkv, *hyena_arrays(inner), out]


def perceptron_arrays(get):
    """The first half of the reference's first layer is the gate."""
    gate, value = np.split(get("mlp.layer1.weight"), 2)
    return [value, gate, get("mlp.layer2.weight")]


def block_arrays(get):
    norms = [get("input_norm.weight")], [get("mlp_norm.weight")]
    return [*norms[0], *mixer_arrays(get), *norms[1], *perceptron_arrays(get)]


BLOCK = lx.ResidualBlockConfig(hyena(), lx.SwiGLUConfig(expand=2.0))


@pytest.mark.slow
def test_residual_block():
    """Alone; the classifier has two."""
    data = load("nvsubquadratic/residual_block_2d")
    arrays = lambda prefix: block_arrays(lambda key: data.get(f"{prefix}/{key}"))
    block = fill(BLOCK.build(8, KEY), arrays("param"))
    run = lambda block, x: jax.vmap(lambda x: block(x)[0])(x)
    (d_x,) = check(data, run, block, (jnp.asarray(data["in/x"]),), arrays)
    assert_close(d_x, data["grad_in/x"], GRADIENT)


def test_adaptive_block():
    """Its condition modulates the kernel, too."""
    data = load("nvsubquadratic/adaln_zero_block_2d_film")

    def arrays(prefix):
        get = lambda key: data.get(f"{prefix}/{key}")
        norm = lambda name: [get(f"{name}.weight"), get(f"{name}.bias")]
        mixers = [*mixer_arrays(get), *norm("mlp_norm"), *perceptron_arrays(get)]
        return [*norm("sequence_norm"), *mixers, *norm("condition_proj.1")]

    cfg = lx.AdaptiveBlockConfig(
        hyena(lx.KernelFiLMConfig(8)),
        8,
        lx.SwiGLUConfig(expand=2.0),
        lx.LayerNormConfig(eps=1e-5),
    )
    block = fill(cfg.build(8, KEY), arrays("param"))
    apply = lambda block, x, c: block(x, context=lx.SequenceContext(condition=c))[0]
    run = jax.vmap(apply, in_axes=(None, 0, 0))
    inputs = jnp.asarray(data["in/x"]), jnp.asarray(data["in/c"])
    d_x, d_condition = check(data, run, block, inputs, arrays)
    assert_close(d_x, data["grad_in/x"], GRADIENT)
    assert_close(d_condition, data["grad_in/c"], GRADIENT)


def test_classifier():
    """Patches, two blocks, the mean, a norm: which ours has before the mean."""
    data = load("nvsubquadratic/classification_resnet_2d")
    stack = lx.StackConfig((((BLOCK,), 2),), final_norm=None)
    cfg = lx.SequenceModelConfig(3, 8, 5, stack, lx.PatchEmbeddingConfig((2, 2)))
    norm = lx.RMSNormConfig().build(8, KEY)

    def arrays(prefix):
        get = lambda key: data.get(f"{prefix}/{key}")
        kernel = np.moveaxis(get("in_proj.conv.weight"), 1, -1).reshape(8, -1)
        blocks = [block_arrays(lambda key, i=i: get(f"blocks.{i}.{key}")) for i in range(2)]
        stacked = [np.stack(pair) for pair in zip(*blocks, strict=True)]
        head = [get("out_proj.weight"), get("out_proj.bias"), get("out_norm.weight")]
        return [kernel, get("in_proj.conv.bias"), *stacked, *head]

    modules = fill((cfg.build(KEY), norm), arrays("param"))

    def run(modules, x):
        model, norm = modules
        here = lx.SequenceContext()

        def one(x):
            features, aux = model.stack(model.encoder(x, context=here))
            pooled = norm(features.mean((0, 1)))
            return model.head(pooled[None], aux, context=here).logits

        return jax.vmap(one)(x)

    (d_x,) = check(data, run, modules, (jnp.asarray(data["in/x"]),), arrays)
    assert_close(d_x, data["grad_in/x"], GRADIENT)
