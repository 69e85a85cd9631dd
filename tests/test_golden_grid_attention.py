"""Golden parity of attention on sequences and grids, of cross-attention, and of the norm of heads."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from golden_numbers import assert_close, assert_gradients, KEY, load, with_arrays

import linax_like as lx


HEADS = 2  # of every case here
SLOW = pytest.mark.slow
CASES = {
    "attn_1d_causal_norope": {},
    "attn_2d_qknorm1_norope": {"causal": False, "qk_norm": "l2"},
    "attn_3d_qknorm0_norope": {"causal": False},
}
AGAIN = {  # the same on grids of other axes
    "attn_1d_qknorm0_norope": {"causal": False},
    "attn_1d_qknorm1_norope": {"causal": False, "qk_norm": "l2"},
    "attn_2d_qknorm0_norope": {"causal": False},
}


def weights(data, prefix):
    """The reference's weights, or their gradients, under our names."""
    names = [name for name in data if name.startswith(f"{prefix}/")]
    return {name.removeprefix(f"{prefix}/").removesuffix(".weight"): data[name] for name in names}


def check(module, apply, data, *inputs):
    """Outputs and gradients of `apply(module, *inputs)`, mapped over the batch."""

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def run(arguments):
        module, *inputs = arguments
        y = jax.vmap(lambda *inputs: apply(module, *inputs))(*inputs)
        return jnp.sum(y * data["cotangent"]), y

    (_, y), (d_module, *d_inputs) = run((module, *(jnp.asarray(data[f"in/{i}"]) for i in inputs)))
    assert_close(y, data["out"], 1e-5)
    for name, gradient in zip(inputs, d_inputs, strict=True):
        assert_close(gradient, data[f"grad_in/{name}"], 1e-4)
    assert_gradients(d_module, weights(data, "grad"), 1e-4)


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=SLOW) for name in AGAIN)])
def test_attention(name):
    data = load(f"nvsubquadratic/{name}")
    operator = lx.AttentionOperatorConfig(HEADS, rope_base=None, **(CASES | AGAIN)[name])
    mixer = lx.QKVSequenceMixerConfig(operator).build(24, KEY)
    mixer = with_arrays(mixer, **weights(data, "param"))
    check(mixer, lambda mixer, x: mixer(x), data, "x")


def test_cross_attention():
    data = load("nvsubquadratic/condition_mixer_tokens")
    module = lx.CrossAttentionConfig(HEADS).build(24, KEY)
    module = with_arrays(module, **weights(data, "param"))
    check(module, lambda module, x, tokens: module(x, tokens), data, "x", "c")


def test_the_norm_of_queries_and_keys_is_that_of_every_head():
    data = load("nvsubquadratic/perheadrms")
    operator = lx.AttentionOperatorConfig(2, qk_norm="rms").build(8, KEY)
    norm = with_arrays(operator.q_norm, weight=data["param/norm.weight"])
    data["grad/weight"] = data.pop("grad/norm.weight")
    check(norm, lambda norm, x: norm(x.reshape(-1, 2, 4)).reshape(x.shape), data, "x")
