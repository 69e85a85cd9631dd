"""Attention on a GPU: what JAX's default device computes is the definition."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from linax_like.context import SequenceContext
from linax_like.ops.attention import attention, explain_backend
from linax_like.sequence_mixers.attention import AttentionSequenceMixerConfig


TIME, HEADS, KV_HEADS, HEAD = 384, 4, 2, 64
MASK = np.arange(TIME) < 300

# What each case is computed by, and its options.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "causal": ("cudnn", {}),
    "full": ("cudnn", {"causal": False}),
    "window": ("cudnn", {"window": 100}),
    "padding": ("cudnn", {"mask": MASK, "padding_last": True}),
    "full padding": ("cudnn", {"mask": MASK, "padding_last": True, "causal": False}),
    "window and padding": ("cudnn", {"mask": MASK, "padding_last": True, "window": 100}),
    "only padding": ("cudnn", {"mask": np.zeros(TIME, bool), "padding_last": True}),
    "soft cap": ("xla", {"soft_cap": 5.0}),
    "documents": ("xla", {"segment_ids": np.arange(TIME) // 150}),
}


def operands(batch=(), dtype: Any = jnp.bfloat16):
    shapes = [(*batch, TIME, heads, HEAD) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return [jr.normal(k, s, dtype) for k, s in zip(jr.split(jr.key(0), 4), shapes, strict=True)]


def value_and_gradients(inputs, options, backend, batched):
    def run(q, k, v):
        return attention(q, k, v, backend=backend, **options)

    def loss(q, k, v, weight):
        y = (jax.vmap(run) if batched else run)(q, k, v)
        return jnp.sum(y * weight, dtype=jnp.float32), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)
    return [np.asarray(x, np.float32) for x in (y, *gradients)]


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
@pytest.mark.parametrize("name", CASES)
def test_the_default_backend_is_the_definition(name, batch):
    backend, options = CASES[name]
    options = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    inputs = operands(batch)
    example = [x[0] if batch else x for x in inputs[:3]]
    assert explain_backend("cuda", *example, **options).backend == backend
    exact = [x.astype(jnp.float32) for x in inputs]
    with jax.default_matmul_precision("highest"):
        want = value_and_gradients(exact, options, "reference", bool(batch))
    for x, y in zip(value_and_gradients(inputs, options, None, bool(batch)), want, strict=True):
        # Rounding to bfloat16, relative to the largest: weights, their gradient, and the result.
        np.testing.assert_allclose(x, y, atol=2**-6 * max(np.abs(y).max(), 1))


@pytest.mark.gpu
def test_the_mixer_with_padding_is_that_without():
    config = AttentionSequenceMixerConfig(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD)
    mixer = config.build(HEADS * HEAD, jr.key(0))
    x = jr.normal(jr.key(1), (2, TIME, HEADS * HEAD), jnp.bfloat16)
    kept = np.arange(TIME) % 4 != 1
    context = SequenceContext(mask=jnp.asarray(kept))
    poisoned = jnp.where(jnp.asarray(kept)[:, None], x, jnp.nan)

    def loss(x, context):
        y = jax.vmap(lambda x: mixer(x, context=context))(x)
        return jnp.sum(jnp.square(y), dtype=jnp.float32), y

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, y), dx = run(poisoned, context)
    (_, want), want_dx = run(x[:, kept], None)
    for got, expected in ((y, want), (dx, want_dx)):
        got, expected = (np.asarray(x, np.float32) for x in (got, expected))
        assert not got[:, ~kept].any()
        np.testing.assert_allclose(got[:, kept], expected, atol=2**-6 * np.abs(expected).max())
