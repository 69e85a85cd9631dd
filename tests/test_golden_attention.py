"""Golden parity of attention and of the position encodings, in float64."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from golden_numbers import assert_close, load

import linax_like as lx
from linax_like.positions import rope, sinusoidal


ATTENTION = {
    "gqa_causal": {"num_kv_heads": 2, "head_dim": 6},
    "gqa_packed": {"num_kv_heads": 4, "head_dim": 4, "window": 6},
    "gqa_sliding": {"num_kv_heads": 2, "head_dim": 4, "window": 7, "bias": "all"},
}
ROPE = {
    "neox": {},
    "neox_partial": {"rotary_dim": 4},
    "interleaved": {"interleaved": True},
    "interleaved_partial": {"interleaved": True, "rotary_dim": 4},
}


def parameters(data, prefix):
    """The reference's arrays under our names."""
    names = {"q": "q", "k": "k", "v": "v", "o": "out"}
    arrays = {f"{ours}_proj": data[f"{prefix}/{s}_proj.weight"] for s, ours in names.items()}
    if f"{prefix}/q_proj.bias" in data:
        arrays |= {f"{ours}_bias": data[f"{prefix}/{s}_proj.bias"] for s, ours in names.items()}
    return arrays


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name):
    data = load(f"references/{name}")
    weights, expected = parameters(data, "w"), parameters(data, "g")
    config = lx.AttentionSequenceMixerConfig(num_heads=4, **ATTENTION[name])
    mixer = config.build(data["x/x"].shape[-1], jr.key(0, impl="rbg"))

    def run(weights, x):
        arrays = [jnp.asarray(w) for w in weights.values()]
        full = eqx.tree_at(lambda m: [getattr(m, n) for n in weights], mixer, arrays)

        def one(x, positions, segment_ids):
            context = lx.SequenceContext(segment_ids=segment_ids, positions=positions)
            return full(x, context=context)

        y = jax.vmap(one)(x, jnp.asarray(data["x/positions"]), jnp.asarray(data["x/segment_ids"]))
        return jnp.sum(y * data["x/ct"]), y

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(run, (0, 1), has_aux=True))
        (weight_gradients, x_gradient), y = gradient(weights, jnp.asarray(data["x/x"]))
        assert_close(y, data["y/out"], 1e-10)
        assert_close(x_gradient, data["g/x"], 1e-9)
        for parameter, want in expected.items():
            assert_close(weight_gradients[parameter], want, 1e-9)


@pytest.mark.parametrize("name", ROPE)
def test_rope(name):
    data = load("references/rope_sinusoidal")
    with jax.enable_x64(True):
        q, positions = jnp.asarray(data["x/q"]), jnp.asarray(data["x/positions"])
        turned = jax.vmap(lambda q, positions: rope(q, positions, **ROPE[name]))(q, positions)
        assert_close(turned, data[f"y/{name}"], 1e-11)


@pytest.mark.parametrize("interleaved", [False, True])
def test_sinusoidal(interleaved):
    data = load("references/rope_sinusoidal")
    expected = data["y/sin_interleaved" if interleaved else "y/sin_concat"]
    with jax.enable_x64(True):
        time, size = expected.shape
        y = sinusoidal(jnp.arange(time), size, interleaved=interleaved, dtype=jnp.float64)
        assert_close(y, expected, 1e-11)
