"""Attention: blockwise = definition = a loop over queries in NumPy, values and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.test_util import check_grads
from meshes import mesh_of

from linax_like.ops.attention import attention, xla


KEY = jr.key(0, impl="rbg")
TIME, HEADS, KV_HEADS, HEAD = 23, 4, 2, 6
SEGMENTS = np.repeat([7, 3, 9], [5, 8, 10])
MASK = np.arange(TIME) % 5 != 2
SPANS = np.where(np.arange(TIME) % 11 < 9, np.arange(TIME) // 11, -1)

CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 6},
    "full window": {"window": 4, "causal": False},
    "documents": {"segment_ids": SEGMENTS},
    "padding": {"mask": MASK},
    "nothing to see": {"mask": np.zeros(TIME, bool)},
    "soft cap": {"soft_cap": 0.7},
    "spans": {"spans": SPANS, "window": 6},
    "all": {"window": 6, "segment_ids": SEGMENTS, "mask": MASK, "soft_cap": 0.7, "scale": 2.0},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Makes short sequences several blocks. The size is read when a function is traced."""
    monkeypatch.setattr(xla, "CPU_BLOCK", 8)


def operands(dtype=jnp.float32, time=TIME, keys=TIME, heads=HEADS, kv_heads=KV_HEADS):
    shapes = [(time, heads, HEAD), (keys, kv_heads, HEAD), (keys, kv_heads, HEAD)]
    q, k, v = (jr.normal(k, s, dtype) for k, s in zip(jr.split(KEY, 3), shapes, strict=True))
    return q, k, v


def loop(
    q,
    k,
    v,
    causal=True,
    window=None,
    segment_ids=None,
    mask=None,
    spans=None,
    soft_cap=None,
    scale=None,
):
    """The definition, one query and head at a time, in NumPy float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    y = np.zeros((*q.shape[:2], v.shape[-1]))
    group = q.shape[1] // k.shape[1]
    for t in range(len(q)):
        here = t + len(k) - len(q)
        seen = [
            s
            for s in range(len(k))
            if (spans is not None and spans[s] == spans[here] >= 0)
            or (not causal or s <= here)
            and (window is None or abs(here - s) < window)
            and (segment_ids is None or segment_ids[s] == segment_ids[here])
            and (mask is None or mask[s])
        ]
        for h in range(q.shape[1]):
            if seen:
                scores = k[seen, h // group] @ q[t, h] * (scale or q.shape[-1] ** -0.5)
                scores = scores if soft_cap is None else soft_cap * np.tanh(scores / soft_cap)
                weights = np.exp(scores - scores.max())
                y[t, h] = weights / weights.sum() @ v[seen, h // group]
    return y


def arrays(options: dict[str, Any]) -> dict[str, Any]:
    return {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}


def gradients(options, inputs, backend):
    weight = jr.normal(jr.key(1, impl="rbg"), (inputs[0].shape[0], HEADS, HEAD))

    def loss(*inputs):
        return jnp.sum(weight * attention(*inputs, **arrays(options), backend=backend))

    return jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["reference", "xla"])
def test_values(name, backend):
    inputs = operands()
    y = jax.jit(lambda *inputs: attention(*inputs, **arrays(CASES[name]), backend=backend))(
        *inputs
    )
    np.testing.assert_allclose(y, loop(*inputs, **CASES[name]), atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_definition(name):
    inputs = operands()
    expected = gradients(CASES[name], inputs, "reference")
    for got, want in zip(gradients(CASES[name], inputs, "xla"), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_the_definition_is_exact_in_float64():
    with jax.enable_x64(True):
        inputs = operands(jnp.float64)
        for backend in ("reference", "xla"):
            y = attention(*inputs, window=6, backend=backend)
            assert y.dtype == jnp.float64
            np.testing.assert_allclose(y, loop(*inputs, window=6), atol=1e-14)
        check_grads(lambda *x: attention(*map(jnp.asarray, x), soft_cap=0.7), inputs, 1, ["rev"])


def test_the_definition_has_a_forward_mode():
    inputs = operands()
    _, tangent = jax.jvp(lambda *x: attention(*x, backend="reference"), inputs, inputs)
    assert jnp.isfinite(tangent).all()


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"segment_ids": np.arange(31) // 20}])
def test_queries_are_the_last_of_the_positions(options: dict[str, Any]):
    inputs = operands(time=9, keys=31)
    y = attention(*inputs, **arrays(options))
    np.testing.assert_allclose(y, loop(*inputs, **options), atol=2e-6)


def test_fewer_keys_than_queries():
    inputs = operands(time=19, keys=11)
    y = attention(*inputs, causal=False)
    np.testing.assert_allclose(y, loop(*inputs, causal=False), atol=2e-6)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_groups(kv_heads):
    inputs = operands(kv_heads=kv_heads)
    np.testing.assert_allclose(attention(*inputs), loop(*inputs), atol=2e-6)


@pytest.mark.parametrize("backend", ["reference", "xla"])
def test_hidden_keys_may_hold_anything(backend):
    q, k, v = operands()
    hidden = ~jnp.asarray(MASK)[:, None, None]
    poisoned = [q, jnp.where(hidden, jnp.nan, k), jnp.where(hidden, jnp.inf, v)]
    clean = gradients({"mask": MASK}, [q, k, v], backend)
    for got, want in zip(gradients({"mask": MASK}, poisoned, backend), clean, strict=True):
        np.testing.assert_array_equal(got, want)
    assert not clean[1][~MASK].any() and not clean[2][~MASK].any()


def test_bfloat16_is_accumulated_in_float32():
    inputs = operands(jnp.bfloat16)
    y = attention(*inputs)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), loop(*inputs), atol=1e-2)
    assert [g.dtype for g in gradients({}, inputs, "xla")] == [jnp.bfloat16] * 3


def test_batches():
    inputs = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), operands())
    y = jax.vmap(attention)(*inputs)
    np.testing.assert_allclose(y[1], loop(*(x[1] for x in inputs)), atol=2e-6)


def test_batches_over_an_explicit_mesh_axis():
    mesh = mesh_of(8, "data", AxisType.Explicit)
    split = jax.NamedSharding(mesh, jax.P("data"))
    inputs = jax.tree.map(lambda x: jnp.stack([x] * 8), operands())
    with jax.set_mesh(mesh):
        inputs = jax.device_put(inputs, split)
        y, pullback = jax.vjp(jax.vmap(attention), *inputs)
        gradients = pullback(y)
    want, pullback = jax.vjp(attention, *operands())
    np.testing.assert_allclose(np.asarray(y)[5], want, atol=2e-6)
    for got, expected in zip(gradients, pullback(want), strict=True):
        np.testing.assert_allclose(np.asarray(got)[5], expected, atol=2e-5)


@pytest.mark.parametrize("time", [0, 1, 8])
def test_a_sequence_of_at_most_one_block(time):
    inputs = operands(time=time, keys=time)
    np.testing.assert_allclose(attention(*inputs), loop(*inputs), atol=1e-6)


def test_memory_is_linear_in_time(monkeypatch):
    """4096 positions have 16.8 million scores a head, and their gradient would store them."""

    monkeypatch.setattr(xla, "CPU_BLOCK", 128)

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v) ** 2)

    inputs = [jax.ShapeDtypeStruct((4096, h, 8), jnp.float32) for h in (2, 1, 1)]
    memory = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*inputs).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 6e6  # the inputs are 0.5 MB, the scores 134 MB


def test_a_window_bounds_the_keys_that_are_visited():
    q, k, v = operands(time=4096, keys=4096)
    blocks = xla._in_blocks(q, k, v, None, None, None, _rules(window=100), 128)
    for i in (0, 1, 17, 31):
        low, high = xla._seen_blocks(blocks, jnp.asarray(i), _rules(window=100))
        assert (int(low), int(high)) == (max(i - 1, 0), i + 1)
        low, high = xla._seen_blocks(blocks, jnp.asarray(i), _rules(window=None))
        assert (int(low), int(high)) == (0, i + 1)


def _rules(window):
    return xla.Rules(causal=True, window=window, offset=0, scale=1.0, soft_cap=None)


def test_errors_name_what_came():
    with pytest.raises(ValueError, match="divides the query heads. Received 4 query heads, 3"):
        attention(*operands(kv_heads=3))
    with pytest.raises(ValueError, match="Received 5 queries and 4 keys"):
        attention(*operands(time=5, keys=4))
