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
