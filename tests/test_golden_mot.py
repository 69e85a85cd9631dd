"""Mixture-of-Transformers gives KempnerForge's numbers (float32, PyTorch on a CPU)."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close, KEY, load

import linax_like as lx


GOLDEN = load("mixture_of_transformers/mot")
MODALITIES = ("image", "text")
SIZES = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 4}


def case(name):
    prefix = f"{name}/"
    return {key.removeprefix(prefix): v for key, v in GOLDEN.items() if key.startswith(prefix)}


def streams(arrays, kind):
    return {m: jnp.asarray(arrays[f"{kind}/{m}"][0]) for m in MODALITIES}


def with_reference(attention, weights, prefix="w/"):
    """The attention with a reference's weights."""

    def part(m, old):
        names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
        new = {ours: weights[f"{prefix}{theirs}.{m}.weight"] for ours, theirs in names.items()}
        where = lambda part: [getattr(part, name) for name in new]
        old = eqx.tree_at(where, old, [jnp.asarray(w) for w in new.values()])
        if old.q_norm is None:
            return old
        norms = [weights[f"{prefix}{norm}.{m}.weight"] for norm in ("q_norm", "k_norm")]
        where = lambda part: [part.q_norm.weight, part.k_norm.weight]
        return eqx.tree_at(where, old, [jnp.asarray(w) for w in norms])

    parts = {m: part(m, old) for m, old in attention.projections.items()}
    return eqx.tree_at(lambda a: a.projections, attention, parts)


def attention(arrays, **options):
    cfg = lx.MoTAttentionConfig(MODALITIES, **SIZES, norm=lx.RMSNormConfig(1e-5), **options)
    return with_reference(cfg.build(8, KEY), arrays)


@pytest.mark.parametrize("name, normed", [("attn_gqa", False), ("attn_gqa_qknorm", True)])
def test_attention(name, normed):
    arrays = case(name)
    y = eqx.filter_jit(attention(arrays, qk_norm=normed))(streams(arrays, "x"))
    for m, expected in streams(arrays, "y").items():
        assert_close(y[m], expected, 1e-5)


def test_attention_without_causality():
    arrays = case("attn_gqa_qknorm")
    y = eqx.filter_jit(attention(arrays, qk_norm=True, is_causal=False))(streams(arrays, "x"))
    for m, expected in streams(case("attn_noncausal"), "y").items():
        assert_close(y[m], expected, 1e-5)


def test_attention_beside_padding():
    """A query of padding sees everything in the reference, and here it gives zeros."""
    arrays = case("attn_allpad_img")
    context = lx.StreamsContext({"image": lx.SequenceContext(mask=jnp.zeros(2, bool))})
    y = eqx.filter_jit(attention(arrays, qk_norm=True))(streams(arrays, "x"), context=context)
    assert_close(y["text"], streams(arrays, "y")["text"], 1e-5)
    assert not np.any(y["image"])


def test_block():
    arrays = case("block")
    channel = lx.SwiGLUConfig(expand=1.5)
    norm = lx.RMSNormConfig(1e-5)
    block = lx.MoTBlockConfig(
        MODALITIES, **SIZES, qk_norm=True, channel_mixer=channel, norm=norm
    ).build(8, KEY)
    mixer = with_reference(block.sequence_mixer, arrays, "w/attn.")
    norms = lambda stem: [jnp.asarray(arrays[f"w/{stem}.{m}.weight"]) for m in MODALITIES]
    block = eqx.tree_at(lambda b: b.sequence_mixer, block, mixer)
    for field, stem in (("sequence_norms", "attn_norm"), ("channel_norms", "mlp_norm")):
        where = lambda b, field=field: [getattr(b, field)[m].weight for m in MODALITIES]
        block = eqx.tree_at(where, block, norms(stem))
    for m in MODALITIES:
        where = lambda b, m=m: [
            b.channel_mixers[m].hidden_layers[0].gate_weight,
            b.channel_mixers[m].hidden_layers[0].weight,
            b.channel_mixers[m].out_proj,
        ]
        names = ("gate_proj", "up_proj", "down_proj")
        new = [jnp.asarray(arrays[f"w/mlp.{m}.{name}.weight"]) for name in names]
        block = eqx.tree_at(where, block, new)
    y, _ = eqx.filter_jit(block)(streams(case("attn_gqa"), "x"))
    for m, expected in streams(arrays, "y").items():
        assert_close(y[m], expected, 1e-5)
