"""Attention by kernels, without their devices: splash attention interpreted, cuDNN lowered."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from linax_like.ops.attention import attention, cudnn, explain_backend, pallas_tpu


TIME, HEADS, KV_HEADS, HEAD, VALUE = 200, 4, 2, 16, 24
SEGMENTS = np.repeat([7, 3, 9], [60, 90, 50])
MASK = np.arange(TIME) % 5 != 2


def operands(dtype: Any = jnp.float32, time=TIME, keys=TIME, value=HEAD, batch=()):
    shapes = [(time, HEADS, HEAD), (keys, KV_HEADS, HEAD), (keys, KV_HEADS, value)]
    shapes += [(time, HEADS, value)]
    split = jr.split(jr.key(0, impl="rbg"), 4)
    return [jr.normal(k, (*batch, *s), dtype) for k, s in zip(split, shapes, strict=True)]


def value_and_gradients(options, inputs, backend, batched=False):
    """The output, and the gradients of its product with the last input."""
    static = {k: v for k, v in options.items() if not isinstance(v, np.ndarray)}
    given = {k: jnp.asarray(v) for k, v in options.items() if isinstance(v, np.ndarray)}

    def loss(q, k, v, weight, given):
        run = functools.partial(attention, backend=backend, **static)
        y = (jax.vmap(run) if batched else run)(q, k, v, **given)
        return jnp.sum(y * weight, dtype=jnp.float32), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs, given)
    return [y, *gradients]


def assert_close(got, want, atol):
    for x, y in zip(got, want, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), atol=atol)


@pytest.fixture
def interpreted(monkeypatch):
    """Runs splash attention on the CPU, in several blocks."""
    monkeypatch.setattr(pallas_tpu, "INTERPRET", True)
    monkeypatch.setattr(pallas_tpu, "BLOCK", 128)


SPLASH_CASES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "causal": ({}, {}),
    "full window": ({}, {"causal": False, "window": 40}),
    "nothing to see": ({}, {"mask": np.zeros(TIME, bool)}),
    "first keys hidden": ({}, {"mask": np.arange(TIME) > 150}),
    "all": (
        {},
        {"window": 50, "segment_ids": SEGMENTS, "mask": MASK, "soft_cap": 0.7, "scale": 2.0},
    ),
    "cache": ({"time": 70}, {"segment_ids": SEGMENTS, "window": 90}),
    "fewer keys than queries": ({"keys": 130}, {"causal": False}),
}


@pytest.mark.parametrize("name", SPLASH_CASES)
def test_splash_attention_is_the_definition(name, interpreted):
    sizes, options = SPLASH_CASES[name]
    inputs = operands(**sizes, value=VALUE)
    got = value_and_gradients(options, inputs, "pallas_tpu")
    assert_close(got, value_and_gradients(options, inputs, "reference"), 2e-5)


def test_splash_attention_of_a_batch_in_bfloat16(interpreted):
    inputs = operands(jnp.bfloat16, batch=(2,))
    options = {"mask": np.stack([MASK, np.arange(TIME) < 120])}
    got = value_and_gradients(options, inputs, "pallas_tpu", batched=True)
    want = value_and_gradients(options, inputs, "reference", batched=True)
    assert_close(got, want, 0.06)  # gradients reach 4, in steps of 2^-6


def test_hidden_keys_may_hold_anything(interpreted):
    hidden = ~MASK[:, None, None]
    q, k, v, weight = operands()
    poisoned = [q, jnp.where(hidden, jnp.nan, k), jnp.where(hidden, jnp.inf, v), weight]
    clean = value_and_gradients({"mask": MASK}, [q, k, v, weight], "pallas_tpu")
    assert_close(value_and_gradients({"mask": MASK}, poisoned, "pallas_tpu"), clean, 0)


@pytest.fixture
def cudnn_by_xla(monkeypatch):
    """Replaces cuDNN by what `jax.nn` says is the same."""
    by_xla = jax.nn.dot_product_attention

    def attend(*args, implementation, **options):
        assert implementation == "cudnn"
        return by_xla(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)


CUDNN_CASES: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 30},
    "wide window": {"window": 1000},
    "padding": {"mask": np.arange(TIME) < 150, "padding_last": True},
    "only padding": {"mask": np.zeros(TIME, bool), "padding_last": True},
}


@pytest.mark.parametrize("name", CUDNN_CASES)
def test_what_cudnn_is_asked_is_the_definition(name, cudnn_by_xla):
    inputs = operands(jnp.bfloat16)
    got = value_and_gradients(CUDNN_CASES[name], inputs, "cudnn")
    assert_close(got, value_and_gradients(CUDNN_CASES[name], inputs, "reference"), 0.06)


ONE = TIME * HEADS * HEAD


@pytest.mark.parametrize("max_size, in_parts", [(cudnn.MAX_SIZE, False), (3 * ONE, True)])
def test_a_batch_too_large_for_cudnn_goes_in_parts(max_size, in_parts, cudnn_by_xla, monkeypatch):
    monkeypatch.setattr(cudnn, "MAX_SIZE", max_size)
    q, k, v, weight = operands(jnp.bfloat16, batch=(2, 2))

    def gradients(backend):
        def loss(q, k, v):
            run = functools.partial(attention, backend=backend)
            y = jax.vmap(jax.vmap(run, in_axes=(0, 0, None)), in_axes=(0, None, None))(q, k, v)
            return jnp.sum(y * weight, dtype=jnp.float32)

        return jax.jit(jax.grad(loss, (0, 1, 2)))

    inputs = q, k[0], v[0, 0]
    assert_close(gradients("cudnn")(*inputs), gradients("reference")(*inputs), 0.12)
    assert ("scan" in str(jax.make_jaxpr(gradients("cudnn"))(*inputs))) == in_parts


def lowered(platform, dtype=jnp.bfloat16, time=256, batch=2, **options):
    shapes = [(batch, time, heads, 64) for heads in (4, 2, 2)]

    def loss(*inputs):
        y = jax.vmap(functools.partial(attention, **options))(*inputs)
        return jnp.sum(y, dtype=jnp.float32)

    inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*inputs)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_lowering_for_a_gpu(monkeypatch):
    """JAX asks for cuDNN's version when it traces, and there is none on this machine."""
    assert "__cudnn" not in lowered("cuda")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    text = lowered("cuda")
    assert "__cudnn$fmhaSoftmaxBackward" in text
    assert "stablehlo.while" not in text
    for options in ({"soft_cap": 5.0}, {"dtype": jnp.float32}):
        assert "__cudnn" not in lowered("cuda", **options)
    assert "__cudnn" not in lowered("cpu")
    monkeypatch.setattr(cudnn, "MAX_SIZE", 256 * 4 * 64)
    assert "__cudnn$fmhaSoftmaxBackward" in (text := lowered("cuda"))
    assert "stablehlo.while" in text  # one example after the other
    monkeypatch.setattr(cudnn, "MAX_SIZE", 256 * 4 * 64 - 1)
    assert "__cudnn" not in lowered("cuda")


def test_lowering_for_a_tpu():
    assert "tpu_custom_call" in lowered("tpu", time=4096)
    assert "tpu_custom_call" not in lowered("tpu", time=1024)
    assert "tpu_custom_call" not in lowered("cpu", time=4096)


def explain(platform, dtype: Any = jnp.bfloat16, time=4096, keys=4096, head=64, **options):
    q, k = (jax.ShapeDtypeStruct((t, h, head), dtype) for t, h in ((time, 4), (keys, 2)))
    return explain_backend(platform, q, k, k, **options)


MASKED = {"mask": jax.ShapeDtypeStruct((4096,), jnp.bool_)}
PACKED = {"segment_ids": jax.ShapeDtypeStruct((4096,), jnp.int32)}


@pytest.mark.parametrize(
    "platform, options, backend, reason",
    [
        ("cpu", {}, "xla", "no kernel"),
        ("rocm", {}, "xla", "no kernel"),
        ("tpu", {}, "pallas_tpu", "takes"),
        ("tpu", MASKED | PACKED | {"soft_cap": 1.0, "window": 9}, "pallas_tpu", "takes"),
        ("tpu", {"time": 2048, "keys": 2048}, "xla", "up to 2048 keys"),
        ("tpu", {"time": 1}, "xla", "fill up 1 queries"),
        ("tpu", {"dtype": jnp.float16}, "xla", "not float16"),
        ("tpu", {"head": 1024}, "xla", "size 1024"),
        ("tpu", {"time": 2**19, "keys": 2**19}, "xla", "so many blocks"),
        ("tpu", {"time": 2**19, "keys": 2**19, "window": 512}, "pallas_tpu", "takes"),
        ("cuda", {}, "cudnn", "takes"),
        ("cuda", MASKED | {"padding_last": True}, "cudnn", "takes"),
        ("cuda", MASKED, "xla", "padding_last"),
        ("cuda", PACKED, "xla", "segment_ids"),
        ("cuda", {"soft_cap": 1.0}, "xla", "soft cap"),
        ("cuda", {"dtype": jnp.float32}, "xla", "not float32"),
        ("cuda", {"time": 4}, "xla", "4 queries, 4096 keys"),
        ("cuda", {"time": 4, "causal": False}, "cudnn", "takes"),
        ("cuda", {"window": 9, "causal": False}, "xla", "causal windows"),
        ("cuda", {"head": 20}, "xla", "multiple of 8"),
        ("cuda", {"time": 2**23, "keys": 2**23}, "xla", "2^31"),
    ],
)
def test_the_choice_and_its_reason(platform, options, backend, reason, monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    choice = explain(platform, **options)
    assert choice.backend == backend
    assert reason in choice.reason and choice.reason.endswith(".")


def test_without_cudnn_there_is_xla():
    assert explain("cuda") == ("xla", "cuDNN is not detected.")


@pytest.mark.parametrize("backend, why", [("cudnn", "not float64"), ("pallas_tpu", "not float64")])
def test_a_backend_that_cannot_take_the_case_says_why(backend, why):
    with jax.enable_x64(True):
        q, k, v, _ = operands(jnp.float64)
        with pytest.raises(ValueError, match=why):
            attention(q, k, v, backend=backend)
