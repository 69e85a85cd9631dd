"""Golden parity with nvSubquadratic's small modules: patches, positions, norms, pooling, perceptrons."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close, KEY, load

import linax_like as lx
from linax_like.types import no_aux


HERE = lx.SequenceContext()


def case(name):
    """Its inputs, weights, output and gradients, by their last names."""
    data = load(f"nvsubquadratic/{name}")
    parts = {"in": {}, "param": {}, "grad_in": {}, "grad": {}}
    for key, value in data.items():
        kind, _, rest = key.partition("/")
        if rest:
            parts[kind][rest] = value
    return SimpleNamespace(out=data["out"], cotangent=data["cotangent"], **parts)


def check(module, apply, golden, gradients):
    """Output and gradients of `sum(apply(module, x) * cotangent)` over the batch.

    - `gradients`: which of the module's fields have which gradients.
    """
    x = jnp.asarray(golden.__dict__["in"]["x"])

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def run(inputs):
        module, x = inputs
        y = jax.vmap(lambda x: apply(module, x))(x)
        return jnp.sum(y * golden.cotangent), y

    (d_module, d_x), y = run((module, x))
    assert_close(y, golden.out, 1e-5)
    if "x" in golden.grad_in:
        assert_close(d_x, golden.grad_in["x"], 1e-4)
    for get, expected in gradients:
        assert_close(get(d_module), expected, 1e-4)


def with_arrays(module, pairs):
    """The module with these arrays at these places, and what their gradients must be."""
    for get, value in pairs:
        assert get(module).shape == value.shape
        module = eqx.tree_at(get, module, jnp.asarray(value))
    return module


class Unchanged(lx.AbstractNorm):
    """No norm at all."""

    in_features: int = eqx.field(static=True)

    def __call__(self, x):
        return x

    def flop_count(self, positions, inference=False):
        return 0


WEIGHT, BIAS = (lambda m: m.weight), (lambda m: m.bias)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_patch_embedding(ndim):
    golden = case(f"patchify_{ndim}d")
    flat = lambda kernel: np.moveaxis(kernel, 1, -1).reshape(len(kernel), -1)
    module = lx.PatchEmbeddingConfig((2,) * ndim).build(3, 8, KEY)
    places = {WEIGHT: "conv.weight", BIAS: "conv.bias"}
    read = lambda arrays: [
        (get, flat(arrays[name]) if get is WEIGHT else arrays[name])
        for get, name in places.items()
    ]
    module = with_arrays(module, read(golden.param))
    check(module, lambda m, x: m(x, context=HERE), golden, read(golden.grad))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_unpatchify_head(ndim):
    golden = case(f"unpatchify_{ndim}d")
    flat = lambda kernel: np.moveaxis(kernel, (0, 1), (-1, -2)).reshape(-1, len(kernel))
    module = lx.UnpatchifyHeadConfig((2,) * ndim).build(8, 3, KEY)
    places = {WEIGHT: "deconv.weight", BIAS: "deconv.bias"}
    read = lambda arrays: [
        (get, flat(arrays[name]) if get is WEIGHT else arrays[name])
        for get, name in places.items()
    ]
    module = with_arrays(module, read(golden.param))
    check(module, lambda m, x: m(x, no_aux(), context=HERE).values, golden, read(golden.grad))


def test_positions_by_axis():
    """The reference's axes are x and y, in the order of the grid's."""
    golden = case("posemb_2d")
    module = lx.LearnedGridPositionsConfig((6, 7), tables="axes").build(8, KEY)
    names = [f"data_embeddings.{axis}.weight" for axis in "xy"]
    places = [lambda m: m.tables[0], lambda m: m.tables[1]]
    read = lambda arrays: list(zip(places, (arrays[name] for name in names), strict=True))
    module = with_arrays(module, read(golden.param))
    check(module, lambda m, x: m(x.shape[:-1]), golden, read(golden.grad))


def test_global_response_norm():
    golden = case("grn")
    module = lx.GlobalResponseNormConfig().build(8, KEY)
    read = lambda arrays: [(WEIGHT, arrays["gamma"]), (BIAS, arrays["beta"])]
    module = with_arrays(module, read(golden.param))
    check(module, lambda m, x: m(x), golden, read(golden.grad))


@pytest.mark.parametrize("name", ["rmsnorm", "rmsnorm_cf"])
def test_rms_norm(name):
    """With channels first it is the same on the transpose."""
    golden = case(name)
    turn = (lambda x: x.T) if name == "rmsnorm_cf" else lambda x: x
    read = lambda arrays: [(WEIGHT, arrays["weight"])]
    module = with_arrays(lx.RMSNormConfig().build(8, KEY), read(golden.param))
    check(module, lambda m, x: turn(m(turn(x))), golden, read(golden.grad))


def test_rms_norm_of_every_head():
    golden = case("perheadrms")
    read = lambda arrays: [(WEIGHT, arrays["norm.weight"])]
    module = with_arrays(lx.RMSNormConfig().build(4, KEY), read(golden.param))
    apply = lambda m, x: m(x.reshape(len(x), 2, 4)).reshape(x.shape)
    check(module, apply, golden, read(golden.grad))


def test_layer_scale():
    """What a block adds to the stream, with a mixer that leaves everything as it is."""
    golden = case("layerscale")
    cfg = lx.ResidualBlockConfig(lx.IdentitySequenceMixerConfig(), None, layer_scale=1.0)
    read = lambda arrays: [(lambda b: b.sequence_scale, arrays["gamma"])]
    block = with_arrays(cfg.build(8, KEY), read(golden.param))
    block = eqx.tree_at(lambda b: b.sequence_norm, block, Unchanged(8))
    check(block, lambda b, x: b(x)[0] - x, golden, read(golden.grad))


def test_register_pooling():
    golden = case("register_pooling")
    read = lambda arrays: [(WEIGHT, arrays["logits"])]
    module = with_arrays(lx.RegisterPooling(4), read(golden.param))
    check(module, lambda m, x: m(x), golden, read(golden.grad))


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "swiglu", "glu"])
def test_perceptrons(name):
    """The gate is the reference's first half of a layer in swiglu, its second in glu."""
    golden = case(f"mlp_{name}")
    module = lx.MLPConfig(expand=2.0, activation=name).build(8, KEY)
    hidden = lambda m: m.hidden_layers[0]

    def read(arrays):
        weight, bias = arrays["layer1.weight"], arrays["layer1.bias"]
        pairs = [(lambda m: m.out_proj, arrays["layer2.weight"])]
        pairs.append((lambda m: m.out_bias, arrays["layer2.bias"]))
        if name in ("swiglu", "glu"):
            order = 1 if name == "swiglu" else -1
            gate, weight = np.split(weight, 2)[::order]
            gate_bias, bias = np.split(bias, 2)[::order]
            pairs.append((lambda m: hidden(m).gate_weight, gate))
            pairs.append((lambda m: hidden(m).gate_bias, gate_bias))
        pairs.append((lambda m: hidden(m).weight, weight))
        pairs.append((lambda m: hidden(m).bias, bias))
        return pairs

    module = with_arrays(module, read(golden.param))
    check(module, lambda m, x: m(x), golden, read(golden.grad))
