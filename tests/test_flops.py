"""Counted work against what XLA's compiler counts, and how growth is told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import linax_like as lx
from linax_like.complexity import total
from linax_like.ops.delta_rule.xla import _prepare, advance
from linax_like.sequence_mixers.memory import delta_rule_flops
from linax_like.types import no_aux


KEY = jr.key(0, impl="rbg")
TIME, WIDTH = 64, 64


def xla_flops(fn, *args):
    """Of one program without loops, whose bodies XLA would count but once."""
    arrays, static = eqx.partition(args, eqx.is_array)
    run = jax.jit(lambda arrays: fn(*eqx.combine(arrays, static)))
    return run.lower(arrays).compile().cost_analysis()["flops"]


MIXERS = [
    lx.AttentionSequenceMixerConfig(num_heads=1, causal=False),
    lx.LinearSequenceMixerConfig(TIME),
    lx.QKVSequenceMixerConfig(lx.AttentionOperatorConfig(num_heads=1, causal=False)),
]


@pytest.mark.parametrize("config", MIXERS, ids=lambda config: type(config).__name__)
def test_mixers(config):
    mixer = config.build(WIDTH, KEY)
    counted = mixer.flop_count((TIME,), inference=True)
    assert counted == pytest.approx(xla_flops(mixer, jnp.ones((TIME, WIDTH))), rel=0.05)


@pytest.mark.parametrize("causal", [True, False])
def test_kronecker(causal):
    mixer = lx.KroneckerSequenceMixerConfig(1024, rank=2, causal=causal).build(16, KEY)
    counted = mixer.flop_count((1024,), inference=True)
    assert counted == pytest.approx(xla_flops(mixer, jnp.ones((1024, 16))), rel=0.05)


def test_delta_rule():
    """One chunk; its inverse is a loop over as many rows, of which XLA counts one."""
    heads, size, head = 2, TIME, WIDTH
    x, beta = jnp.ones((heads, size, head)), jnp.ones((heads, size))
    chunk = lambda state, q, k, v, beta: advance(state, _prepare((q, k, v, beta, None)))
    compiled = xla_flops(chunk, jnp.ones((heads, head, head)), x, x, x, beta)
    rows = heads * (size - 1) * 2 * size**2
    counted = size * delta_rule_flops(size, size, heads, head, head)
    assert counted == pytest.approx(compiled + rows, rel=0.05)


@pytest.mark.parametrize(
    "config", [lx.MLPConfig(activation="relu"), lx.SwiGLUConfig()], ids=lambda c: type(c).__name__
)
def test_channel_mixers_and_their_gradients(config):
    mixer, x = config.build(128, KEY), jnp.ones((TIME, 128))
    assert mixer.flop_count(TIME, inference=True) == pytest.approx(xla_flops(mixer, x), rel=0.05)
    loss = lambda inputs: jnp.sum(inputs[0](inputs[1]) ** 2)
    grads = xla_flops(eqx.filter_grad(loss), (mixer, x))
    assert mixer.flop_count(TIME) == pytest.approx(grads, rel=0.05)


def test_encoders_and_heads():
    context = lx.SequenceContext()
    encoder = lx.LinearEncoderConfig().build(32, WIDTH, KEY)
    x = jnp.ones((TIME, 32))
    count = xla_flops(lambda encoder, x: encoder(x, context=context), encoder, x)
    assert encoder.flop_count((TIME,), inference=True) == pytest.approx(count, rel=0.05)
    for pooling in ("mean", "none"):
        head = lx.ClassificationHeadConfig(pooling).build(WIDTH, 128, KEY)
        read = lambda head, x: head(x, no_aux(), context=context).logits
        count = xla_flops(read, head, jnp.ones((TIME, WIDTH)))
        assert head.flop_count((TIME,), inference=True) == pytest.approx(count, rel=0.05)


def test_language_model():
    block = lx.ResidualBlockConfig(lx.LinearSequenceMixerConfig(TIME))
    config = lx.LanguageModelConfig(256, WIDTH, lx.StackConfig((((block, block), 1),)))
    model = config.build(KEY)
    logits = lambda model, tokens: model(tokens).logits
    count = xla_flops(logits, model, jnp.zeros(TIME, jnp.int32))
    assert model.flop_count((TIME,), inference=True) == pytest.approx(count, rel=0.05)
    parts = [model.embedding, model.stack, model.head]
    assert model.flop_count((TIME,)) == sum(part.flop_count((TIME,)) for part in parts)


def test_every_module_counts():
    bases = (
        lx.AbstractSequenceMixer,
        lx.AbstractChannelMixer,
        lx.AbstractRoutedChannelMixer,
        lx.AbstractQKVOperator,
        lx.AbstractBlock,
        lx.AbstractEncoder,
        lx.AbstractHead,
        lx.AbstractNorm,
    )
    for base in bases:
        assert "flop_count" in base.__abstractmethods__, base
    for base in bases[:5]:
        assert "complexity" in base.__abstractmethods__, base


def test_repeats_and_depth():
    block = lx.ResidualBlockConfig(lx.S4DSequenceMixerConfig())
    once, thrice = (lx.StackConfig((((block,), repeats),)).build(WIDTH, KEY) for repeats in (1, 3))
    norm = once.final_norm.flop_count(TIME)
    assert thrice.flop_count((TIME,)) - norm == 3 * (once.flop_count((TIME,)) - norm)
    assert thrice.complexity == "O(L log L · d + L · d² + L · N · d)"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["O(L · d²)", "O(L² · d)"], "O(L² · d + L · d²)"),
        (["O(L^1.5 · d)", "O(L · d²)", "O(L · d)"], "O(L^1.5 · d + L · d²)"),
        (["O(L · d)", "O(L log L · d)", "O(1)"], "O(L log L · d)"),
        (["O(L log L · d)", "O(L^1.5 · d)"], "O(L^1.5 · d)"),
        (["O(L · N · d)", "O(L · w · d)"], "O(L · N · d + L · w · d)"),
        (["O(d L d)"], "O(L · d²)"),
        (["O(1)", "O(1)"], "O(1)"),
    ],
)
def test_total_keeps_what_nothing_outgrows(parts, expected):
    assert total(*parts) == total(*reversed(parts)) == total(expected) == expected


@pytest.mark.parametrize("text", ["L", "O()", "O(L*d)", "O(L  d)", "O(L + )", "O(L^x)"])
def test_what_is_no_complexity(text):
    with pytest.raises(ValueError, match="big-O"):
        total(text)
