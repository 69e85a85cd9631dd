"""The grouped product under every transformation, against a gather of matrices, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import AxisType
from meshes import mesh_of

from linax_like.ops.grouped_matmul import grouped_matmul


BATCH, ROWS, GROUPS, IN, OUT = 4, 37, 5, 6, 7


def by_gather(x, weight, group):
    valid = (group >= 0) & (group < GROUPS)
    y = jnp.einsum("ri,roi->ro", x, weight[jnp.where(valid, group, 0)])
    return jnp.where(valid[:, None], y, 0)


@pytest.fixture(scope="module")
def inputs():
    """Rows, matrices, groups (two of them none), and weights of the outputs."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(BATCH, ROWS, IN)), rng.normal(size=(GROUPS, OUT, IN))
    group = rng.integers(-1, GROUPS + 1, size=(BATCH, ROWS))
    group[0] = 3  # all rows in one group
    return x, weight, group, rng.normal(size=(BATCH, ROWS, OUT))


def one(matmul):
    return lambda x, weight, group, c: jnp.sum(jnp.sin(matmul(x, weight, group)) * c)


def whole(matmul):
    """Gradients of a batch that shares its matrices."""
    each = jax.vmap(one(matmul), (0, None, 0, 0))
    return jax.grad(lambda *inputs: each(*inputs).sum(), (0, 1))


def by_example(matmul):
    return jax.vmap(jax.grad(one(matmul), (0, 1)), (0, None, 0, 0))


def own_matrices(matmul):
    """Gradients of a batch of which every example has its own matrices."""
    return lambda x, weight, group, c: whole_of_own(matmul)(
        x, jnp.stack([weight * (i + 1) for i in range(BATCH)]), group, c
    )


def whole_of_own(matmul):
    each = jax.vmap(one(matmul))
    return jax.grad(lambda *inputs: each(*inputs).sum(), (0, 1))


def curvature(matmul):
    """Forward over reverse."""

    def along(x, weight, group, c):
        gradient = lambda x, weight: whole(matmul)(x, weight, group, c)
        return jax.jvp(gradient, (x, weight), (jnp.cos(x), jnp.cos(weight)))[1]

    return along


def scanned(matmul):
    """Gradients through a loop over layers, recomputed."""

    def apply(x, weight, group):
        layer = lambda h, w: (h + matmul(h, w, group)[:, :IN], None)
        return jax.lax.scan(jax.checkpoint(layer), x, jnp.stack([weight, -weight]))[0]

    return whole(
        lambda x, weight, group: jnp.pad(apply(x, weight, group), ((0, 0), (0, OUT - IN)))
    )


def assert_equal(got, expected):
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, atol=1e-11), got, expected)


@pytest.mark.parametrize("f", [whole, by_example, own_matrices, curvature, scanned])
def test_derivatives_and_batches(f, inputs):
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, inputs)
        assert_equal(jax.jit(f(grouped_matmul))(*inputs), jax.jit(f(by_gather))(*inputs))


def test_values_without_compiling(inputs):
    x, weight, group, _ = (jnp.asarray(value, jnp.float32) for value in inputs)
    group = group.astype(jnp.int32)
    y = grouped_matmul(x[1], weight, group[1])
    np.testing.assert_allclose(y, by_gather(x[1], weight, group[1]), atol=1e-5)
    assert grouped_matmul(x[1, :0], weight, group[1, :0]).shape == (0, OUT)
    assert grouped_matmul(x[1].astype(jnp.bfloat16), weight, group[1]).dtype == jnp.bfloat16


def test_a_row_of_no_group_leaves_no_trace(inputs):
    x, weight, group, c = jax.tree.map(lambda value: jnp.asarray(value[1]), inputs)
    weight = jnp.asarray(inputs[1], jnp.float32)
    none = ((group < 0) | (group >= GROUPS))[:, None]
    for junk in (jnp.nan, jnp.inf):
        y = grouped_matmul(jnp.where(none, junk, x), weight, group)
        assert (jnp.where(none, y, 0) == 0).all() and jnp.isfinite(y).all()
        _, gradient = jax.grad(one(grouped_matmul), (0, 1))(
            jnp.where(none, junk, x), weight, group, jnp.where(none, 0, c)
        )
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_a_batch_over_devices(kind, inputs):
    expected = jax.jit(by_example(by_gather))(*(jnp.asarray(value) for value in inputs))
    total = (expected[0], expected[1].sum(0))
    specs = (P("data"), P(), P("data"), P("data"))
    with jax.set_mesh(mesh_of(2, "data", kind)):
        placed = jax.tree.map(jax.device_put, tuple(map(jnp.asarray, inputs)), specs)
        got = jax.jit(whole(grouped_matmul))(*placed)
        each = jax.jit(by_example(grouped_matmul))(*placed)
        manual = jax.shard_map(
            whole(grouped_matmul), in_specs=specs, out_specs=(P("data"), P()), axis_names={"data"}
        )
        local = jax.jit(manual)(*placed)
        if kind is AxisType.Explicit:
            assert jax.typeof(got[0]).sharding.spec[0] == "data"
    for values, wanted in ((got, total), (each, expected), (local, total)):
        jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, atol=2e-5), values, wanted)
