"""Channel mixers: formulas, sizes, dtypes, and the variance of their output."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import P
from meshes import mesh_of

import linax_like as lx
from linax_like.channel_mixers.mlp import _NONLINEARITIES


KEY = jr.key(0, impl="rbg")
CONFIGS = [
    lx.GLUConfig(),
    lx.SwiGLUConfig(),
    lx.GeGLUConfig(use_bias=True),
    lx.MLPConfig(depth=2),
    *(lx.MLPConfig(activation=name) for name in _NONLINEARITIES),  # pyright: ignore
]


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def mixer(request):
    return request.param.build(64, KEY)


@pytest.fixture(scope="module")
def x():
    return jr.normal(jr.key(1, impl="rbg"), (128, 64))


def test_keeps_shape_dtype_and_variance(mixer, x):
    y = mixer(x)
    assert y.shape == x.shape and 0.8 < y.std() < 1.25
    assert mixer(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_allclose(mixer(x.reshape(2, 64, 64)), y.reshape(2, 64, 64), atol=1e-5)
    with jax.enable_x64(True):
        assert mixer(jnp.asarray(x, jnp.float64)).dtype == jnp.float64


@pytest.mark.parametrize("scale", [0, 1e-20, 1e3])
def test_gradients_are_finite(mixer, x, scale):
    gradient = eqx.filter_grad(lambda m: jnp.sum(m[0](m[1]) ** 2))((mixer, scale * x[:2]))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_wrong_width_is_an_error(mixer):
    with pytest.raises(ValueError, match="has width 64.*Received \\(3, 32\\)"):
        mixer(jnp.ones((3, 32)))


def test_glu_is_its_formula(x):
    glu = lx.GLUConfig().build(64, KEY)
    biases = jr.normal(KEY, (2, 64))
    glu = eqx.tree_at(lambda m: (m.bias, m.gate_bias), glu, tuple(biases))
    gate = x @ glu.gate_weight.T + biases[1]
    expected = (x @ glu.weight.T + biases[0]) / (1 + jnp.exp(-gate))
    np.testing.assert_allclose(glu(x), expected, atol=1e-4)


def test_swiglu_is_its_formula(x):
    mlp = lx.SwiGLUConfig().build(64, KEY)
    (layer,) = mlp.hidden_layers
    assert layer.gate_weight is not None
    gate = x @ layer.gate_weight.T
    expected = (gate * jax.nn.sigmoid(gate) * (x @ layer.weight.T)) @ mlp.out_proj.T
    np.testing.assert_allclose(mlp(x), expected, atol=1e-4)
    assert mlp.out_bias is None and layer.bias is None


def test_mlp_is_its_formula(x):
    mlp = lx.MLPConfig(depth=2, expand=2.0, activation="tanh").build(64, KEY)
    first, second = mlp.hidden_layers
    biases = jr.normal(KEY, (128,)), jr.normal(KEY, (128,)), jr.normal(KEY, (64,))
    where = lambda m: (m.hidden_layers[0].bias, m.hidden_layers[1].bias, m.out_bias)
    h = jnp.tanh(x @ first.weight.T + biases[0])
    h = jnp.tanh(h @ second.weight.T + biases[1])
    expected = h @ mlp.out_proj.T + biases[2]
    np.testing.assert_allclose(eqx.tree_at(where, mlp, biases)(x), expected, atol=1e-4)


def test_hidden_widths_are_multiples_of_eight():
    widths = {8: 24, 48: 128, 64: 168, 512: 1368}
    for width, hidden in widths.items():
        assert lx.SwiGLUConfig().build(width, KEY).out_proj.shape == (width, hidden)


def test_flops_are_two_per_weight():
    mlp = lx.MLPConfig(depth=2, expand=2.0, activation="reglu").build(8, KEY)
    weights = 2 * 8 * 16 + 2 * 16 * 16 + 16 * 8
    assert mlp.flop_count(5, inference=True) == 5 * 2 * weights
    assert mlp.flop_count(5) == 3 * mlp.flop_count(5, inference=True)
    assert lx.GLUConfig().build(8, KEY).flop_count(5, inference=True) == 5 * 2 * 128


def test_configs_validate():
    with pytest.raises(ValueError, match="activation` must be one of 'gelu'"):
        lx.MLPConfig.from_dict({"type": "MLPConfig", "activation": "nope"})
    with pytest.raises(ValueError, match="`depth` must be positive"):
        lx.MLPConfig(depth=0)
    with pytest.raises(ValueError, match="SwiGLUConfig.*`expand` must be positive"):
        lx.SwiGLUConfig(expand=0.0)


def test_exact_gelu_has_a_gradient_inside_shard_map():
    mixer = lx.MLPConfig(activation="gelu").build(8, KEY)
    parameters, static = eqx.partition(mixer, eqx.is_array)
    x = jr.normal(KEY, (2, 8))
    loss = lambda parameters, x: jnp.sum(eqx.combine(parameters, static)(x) ** 2)
    local = lambda parameters, x: jax.grad(loss, argnums=1)(parameters, x)
    split = jax.shard_map(
        local, mesh=mesh_of(2, "data"), in_specs=(P(), P("data")), out_specs=P("data")
    )
    np.testing.assert_allclose(split(parameters, x), local(parameters, x), rtol=1e-5, atol=1e-6)
