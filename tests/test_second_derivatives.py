"""Derivatives of gradients, by JAX forward and backward, in float64 where a program has it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from asserts import assert_close
from complex_arrays import from_complex
from mixer_cases import DEFAULTS, MixerCase

import linax_like as lx
from linax_like.ops import (
    linear_scan,
    oscillator_scan,
    Oscillators,
    OscillatorState,
    selective_scan,
)
from linax_like.ops.attention import attention


TIME, FEATURES = 12, 8
RNG = np.random.default_rng(0)
MASK = np.arange(TIME) % 7 != 3
RESETS = MASK & (np.arange(TIME) % 5 == 1)
KEEPS_RULES = jax.__version_info__ >= (0, 12)  # of what a scan contains, in reverse mode
MODES = ("forward", "backward") if KEEPS_RULES else ("forward",)


def along(gradient, operands: Any, direction: Any, mode: str) -> Any:
    """The derivative of a gradient in a direction, which is the gradient of its part along it."""
    if mode == "forward":
        return jax.jvp(gradient, (operands,), (direction,))[1]

    def part(operands):
        products = jax.tree.map(jnp.vdot, gradient(operands), direction)
        return sum(jax.tree.leaves(products))

    return jax.grad(part)(operands)


def normal(*shape: int, kind: str = "real") -> Any:
    x = RNG.standard_normal(shape)
    return (
        from_complex(x + 1j * RNG.standard_normal(shape)) if kind == "complex" else jnp.asarray(x)
    )


def check_backends(loss, operands: Any) -> None:
    """`loss(backend, operands)` by the fast form as by the definition."""
    direction = jax.tree.map(lambda z: normal(*z.shape), operands)
    run = lambda backend, mode: jax.jit(
        lambda operands: along(jax.grad(lambda z: loss(backend, z)), operands, direction, mode)
    )(operands)
    expected = run("reference", "forward")
    for mode in MODES:
        assert_close(run("xla", mode), expected, mode, 1e-10)


def total(tree: Any) -> Any:
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("reverse", [False, True], ids=["onward", "reverse"])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_linear_scan(kind, constant, reverse):
    keywords = {"resets": jnp.asarray(RESETS), "mask": jnp.asarray(MASK), "reverse": reverse}
    with jax.enable_x64():
        shapes = [(3,) if constant else (TIME, 3), (TIME, 3), (3,)]
        operands = tuple(normal(*shape, kind=kind) for shape in shapes)
        operands = (jax.tree.map(lambda a: a / 2, operands[0]), *operands[1:])
        check_backends(lambda b, z: total(linear_scan(*z, **keywords, backend=b)), operands)


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "varying"])
def test_oscillator_scan(constant):
    keywords = {"resets": jnp.asarray(RESETS), "mask": jnp.asarray(MASK)}
    with jax.enable_x64():
        oscillators = Oscillators(*(abs(normal(*(3,) if constant else (TIME, 3))) for _ in "kpd"))
        drive, *start = (normal(*shape, kind="complex") for shape in ((TIME, 3), (3,), (3,)))
        operands = jax.tree.map(lambda z: z / 3, (oscillators, drive, OscillatorState(*start)))
        check_backends(lambda b, z: total(oscillator_scan(*z, **keywords, backend=b)), operands)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_selective_scan(kind):
    keywords = {"resets": jnp.asarray(RESETS), "mask": jnp.asarray(MASK)}
    with jax.enable_x64():
        x, dt = normal(TIME, 4), abs(normal(TIME, 4)) / 2
        shapes = ((4, 3), (TIME, 2, 3), (TIME, 2, 3), (4, 3))
        A, *others = (normal(*shape, kind=kind) for shape in shapes)
        A = -abs(A) if kind == "real" else A._replace(real=-abs(A.real))
        loss = lambda b, z: total(selective_scan(*z, **keywords, backend=b))
        check_backends(loss, (x, dt, A, *others))


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_attention(soft_cap):
    keywords = {"mask": jnp.asarray(MASK), "segment_ids": jnp.arange(TIME) // 5, "window": 4}
    with jax.enable_x64():
        operands = tuple(normal(TIME, heads, 3) for heads in (4, 2, 2))
        loss = lambda b, z: total(attention(*z, **keywords, soft_cap=soft_cap, backend=b))
        check_backends(loss, operands)


@pytest.mark.slow
@pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.id)
def test_mixers(case: MixerCase, key):
    """With documents and padding, as central differences of the gradient."""
    packed = "segments" not in case.waived
    with jax.enable_x64():
        context = lx.SequenceContext(
            segment_ids=jnp.arange(TIME) // 7 if packed else None,
            mask=None if "mask" in case.waived else jnp.arange(TIME) < TIME - 1,
        )
        arrays, rest = eqx.partition(case.config.build(FEATURES, key), eqx.is_inexact_array)
        arrays = jax.tree.map(lambda z: z.astype(jnp.float64), arrays)
        operands = arrays, normal(TIME, FEATURES)
        direction = jax.tree.map(lambda z: normal(*z.shape) / 10, operands)
        gradient = jax.grad(lambda z: total(eqx.combine(z[0], rest)(z[1], context=context)))

        def run(operands):
            return [along(gradient, operands, direction, mode) for mode in MODES]

        def at(step):
            return jax.jit(gradient)(jax.tree.map(lambda z, d: z + step * d, operands, direction))

        expected = jax.tree.map(lambda a, b: (a - b) / 2e-6, at(1e-6), at(-1e-6))
        for mode, got in zip(MODES, jax.jit(run)(operands), strict=True):
            assert_close(got, expected, mode, 1e-5)


@pytest.mark.skipif(not KEEPS_RULES, reason="there is no backward mode to compare")
def test_a_language_model(key):
    """In float32, forward as backward."""
    mixers = ["S5", "attn", "Mamba"]
    config = lx.presets.hybrid_language_model(8, 4, 3, 20, mixers)
    arrays, rest = eqx.partition(config.build(key), eqx.is_inexact_array)
    tokens = jr.randint(key, (2, TIME), 0, 20)
    direction = jax.tree.map(lambda z: normal(*z.shape).astype(z.dtype), arrays)

    def loss(arrays):
        return lx.token_loss(eqx.combine(arrays, rest), tokens, tokens)[0].objective

    run = jax.jit(lambda z: [along(jax.grad(loss), z, direction, mode) for mode in MODES])
    forward, backward = run(arrays)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(forward))
    assert_close(forward, backward, "forward and backward", 1e-4)
