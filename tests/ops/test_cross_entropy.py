"""The chunked cross-entropy of a linear map: the plain one, its memory, and what must leave no trace."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from linax_like.ops.cross_entropy import cross_entropy, linear_cross_entropy


BATCH, TIME, FEATURES, CLASSES, ROWS = 2, 7, 5, 11, 16
KEY = jr.key(0, impl="rbg")
OPTIONS = {"z_loss": 0.1, "soft_cap": 2.0, "vocab_size": CLASSES}


def example(dtype="float32"):
    x_key, weight_key, label_key, mask_key = jr.split(KEY, 4)
    x = jr.normal(x_key, (BATCH, TIME, FEATURES), dtype)
    weight = jr.normal(weight_key, (ROWS, FEATURES), dtype)
    labels = jr.randint(label_key, (BATCH, TIME), 0, CLASSES)
    mask = jr.bernoulli(mask_key, 0.7, (BATCH, TIME))
    return x, weight, labels, mask


def plain(x, weight, labels, mask, vocab_size=ROWS, z_loss=0.0, soft_cap=None):
    """By the definition, with all logits, and JAX's own gradient."""
    logits = x @ weight.T
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    logits = logits[..., :vocab_size]
    losses = cross_entropy(logits, labels)
    objective = losses + z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    total = lambda values: jnp.sum(jnp.where(mask, values, 0))
    return total(objective), (total(losses), total(jnp.argmax(logits, -1) == labels))


def chunked(x, weight, labels, mask, **options):
    sums = linear_cross_entropy(x, weight, labels, mask=mask, **options)
    return sums.objective, (sums.loss, sums.correct)


@pytest.mark.parametrize(
    ("dtype", "options"), [("float32", {}), ("float32", OPTIONS), ("float64", OPTIONS)], ids=str
)
def test_chunks_are_the_plain_loss_in_value_and_gradient(dtype, options):
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    # Three positions of both examples at a time, or everything.
    in_chunks = [partial(chunked, chunk=chunk, **options) for chunk in (6, None)]

    @jax.jit
    def run(*arrays):
        values = [jax.value_and_grad(fn, (0, 1), has_aux=True)(*arrays) for fn in in_chunks]
        expected = jax.value_and_grad(partial(plain, **options), (0, 1), has_aux=True)(*arrays)
        return expected, values, [fn(*arrays)[0] for fn in in_chunks]  # without a gradient

    with jax.enable_x64(dtype == "float64"):
        expected, values, objectives = run(*example(dtype))
    for got in values:
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))
    np.testing.assert_allclose(objectives, [expected[0][0]] * 2, rtol=tolerance)


def test_what_the_mask_leaves_out_leaves_no_trace():
    x, weight, labels, mask = example()
    spoilt = jnp.where(mask[..., None], x, jnp.nan), weight, jnp.where(mask, labels, -100), mask
    run = jax.jit(jax.value_and_grad(chunked, (0, 1), has_aux=True))
    clean, got = run(x, weight, labels, mask), run(*spoilt)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (np.asarray(got[1][0])[~np.asarray(mask)] == 0).all()

    def steepness(x, weight, labels, mask):
        gradient = jax.grad(lambda *z: chunked(*z, labels, mask)[0], (0, 1))(x, weight)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in gradient)

    run = jax.jit(jax.grad(steepness, (0, 1)))
    for a, b in zip(run(*spoilt), run(x, weight, labels, mask), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jnp.isnan(chunked(x, weight, labels.at[0, 0].set(ROWS), mask.at[0, 0].set(True))[0])


def test_labels_may_be_bytes_and_are_classes():
    logits, labels = jnp.asarray(np.random.default_rng(0).normal(size=(3, 256))), [1, 7, 255]
    x, weight = logits[:, :4], logits.T[:, :3] @ jnp.ones((3, 4))
    for dtype in (jnp.uint8, jnp.int32):
        own = jnp.asarray(labels, dtype)
        each = -jax.nn.log_softmax(logits)[np.arange(3), labels]
        np.testing.assert_allclose(cross_entropy(logits, own), each, rtol=1e-5)
        each = -jax.nn.log_softmax(x @ weight.T)[np.arange(3), labels]
        np.testing.assert_allclose(
            linear_cross_entropy(x, weight, own).loss, each.sum(), rtol=1e-5
        )
    assert np.isnan(cross_entropy(logits, jnp.asarray([-1, 256, 0]))).tolist() == [
        True,
        True,
        False,
    ]


def test_bfloat16_features_are_summed_in_float32():
    x, weight, labels, mask = example()
    half = x.astype(jnp.bfloat16)
    gradient = jax.jit(jax.grad(chunked, (0, 1), has_aux=True))
    (got_x, got_weight), (loss, _) = gradient(half, weight, labels, mask)
    (expected_x, expected_weight), _ = gradient(x, weight, labels, mask)
    assert (got_x.dtype, got_weight.dtype, loss.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(got_x.astype("float32"), expected_x, atol=0.05)
    np.testing.assert_allclose(got_weight, expected_weight, atol=0.05)


def test_memory_does_not_grow_with_time_and_vocabulary():
    def size(fn, time):
        shape = jax.ShapeDtypeStruct
        x, labels = shape((time, 8), jnp.float32), shape((time,), jnp.int32)
        weight, mask = shape((4096, 8), jnp.float32), shape((time,), bool)
        gradient = jax.jit(jax.grad(fn, (0, 1), has_aux=True)).lower(x, weight, labels, mask)
        return gradient.compile().memory_analysis().temp_size_in_bytes

    in_chunks = lambda *arrays: chunked(*arrays, chunk=32)
    logits = 4 * 4096  # bytes per position
    assert size(plain, 2048) - size(plain, 512) > 1536 * logits
    assert size(in_chunks, 2048) - size(in_chunks, 512) < 1536 * logits / 50
    assert size(in_chunks, 2048) < 32 * logits * 5


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
def test_examples_stay_on_their_devices(axis_type):
    x, weight, labels, mask = example()
    x, labels, mask = (jnp.concatenate([values] * 4) for values in (x, labels, mask))
    plainly = jax.jit(jax.value_and_grad(plain, (0, 1), has_aux=True))
    expected = plainly(x, weight, labels, mask)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType[axis_type],))
    run = jax.jit(
        jax.value_and_grad(lambda *arrays: chunked(*arrays, chunk=24), (0, 1), has_aux=True)
    )
    with jax.set_mesh(mesh):
        put = lambda value: jax.device_put(value, NamedSharding(mesh, P("data")))
        replicated = jax.device_put(weight, NamedSharding(mesh, P()))
        got = run(put(x), replicated, put(labels), put(mask))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5)


def test_inside_shard_map_every_device_adds_its_part():
    x, weight, labels, mask = example()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(x, weight, labels, mask):
        gradient = jax.grad(lambda *arrays: chunked(*arrays, chunk=3)[0], (0, 1))
        return gradient(x, weight, labels, mask)

    specs = (P("data"), P(), P("data"), P("data"))
    split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(P("data"), P()))
    plainly = jax.jit(jax.grad(lambda *arrays: plain(*arrays)[0], (0, 1)))
    expected = plainly(x, weight, labels, mask)
    for a, b in zip(jax.jit(split)(x, weight, labels, mask), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"chunk": 0}, {"vocab_size": ROWS + 1}, {"soft_cap": 0.0}, {"z_loss": -1.0}], ids=str
)
def test_bad_options_say_why(wrong):
    x, weight, labels, _ = example()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        linear_cross_entropy(x, weight, labels, **wrong)


def test_no_labels_make_no_loss():
    _, weight, _, _ = example()
    x, labels = jnp.zeros((0, FEATURES)), jnp.zeros((0,), jnp.int32)
    assert linear_cross_entropy(x, weight, labels).objective == 0
    assert not jax.grad(lambda w: linear_cross_entropy(x, w, labels).objective)(weight).any()
