"""Golden parity of Gated DeltaNet and KDA: Hugging Face's weights and inputs give its numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close, assert_gradients, KEY, load, with_arrays

import linax_like as lx


def qwen3_next(data, prefix):
    """q, k, v and z are stored by key head, and so are b and a."""
    get = lambda name: data[f"{prefix}/{name}"]
    by_group = np.split(get("in_proj_qkvz.weight").reshape(2, 22, 12), (5, 10, 16), axis=1)
    q, k, v, z = (part.reshape(-1, 12) for part in by_group)
    b, a = (
        part.reshape(-1, 12) for part in np.split(get("in_proj_ba.weight").reshape(2, 4, 12), 2, 1)
    )
    return {
        "qkv_proj": np.concatenate([q, k, v]),
        "decay_proj": a,
        "beta_proj": b,
        "gate_proj": z,
        "short_weight": get("conv1d.weight")[:, 0].T,
        "log_decay": get("A_log"),
        "dt_bias": get("dt_bias"),
        "norm_weight": get("norm.weight"),
        "out_proj": get("out_proj.weight"),
    }


def olmo_hybrid(data, prefix):
    get = lambda name: data[f"{prefix}/{name}"]
    return {
        "qkv_proj": np.concatenate([get(f"{name}_proj.weight") for name in "qkv"]),
        "decay_proj": get("a_proj.weight"),
        "beta_proj": get("b_proj.weight"),
        "gate_proj": get("g_proj.weight"),
        "short_weight": get("conv1d.weight")[:, 0].T,
        "log_decay": get("A_log"),
        "dt_bias": get("dt_bias"),
        "norm_weight": get("o_norm.weight"),
        "out_proj": get("o_proj.weight"),
    }


def kimi_linear(data, prefix):
    get = lambda name: data[f"{prefix}/{name}"]
    return {
        "qkv_proj": np.concatenate([get(f"{name}_proj.weight") for name in "qkv"]),
        "decay_down_proj": get("forget_gate.f_a_proj.weight"),
        "decay_up_proj": get("forget_gate.f_b_proj.weight"),
        "beta_proj": get("b_proj.weight"),
        "gate_down_proj": get("g_a_proj.weight"),
        "gate_up_proj": get("g_b_proj.weight"),
        "short_weight": get("conv1d.weight")[:, 0].T,
        "log_decay": get("forget_gate.A_log").ravel(),
        "dt_bias": get("forget_gate.dt_bias").reshape(2, 4),
        "norm_weight": get("o_norm.weight"),
        "out_proj": get("o_proj.weight"),
    }


CASES = {
    "gated_delta_net_hf": (
        qwen3_next,
        lx.GatedDeltaNetSequenceMixerConfig(
            2, head_dim=5, num_value_heads=4, value_head_dim=3, chunk=8
        ),
    ),
    "gated_delta_net_hf_negative": (
        olmo_hybrid,
        lx.GatedDeltaNetSequenceMixerConfig(
            2,
            head_dim=4,
            value_head_dim=6,
            negative_eigenvalues=True,
            short_width=3,
            norm_eps=1e-5,
            chunk=8,
        ),
    ),
    "kda_hf": (
        kimi_linear,
        lx.KDASequenceMixerConfig(2, head_dim=4, norm_eps=1e-5, chunk=8),
    ),
}


@eqx.filter_jit
@eqx.filter_grad(has_aux=True)
def gradients(inputs, cotangent):
    mixer, x = inputs
    start = lambda x: mixer.init_state(len(x), x.dtype)
    state, y = jax.vmap(lambda x: mixer.prefill(start(x), x))(x)
    return jnp.sum(y * cotangent), (state, y)


@eqx.filter_jit
def folded(mixer, x):
    return jax.vmap(lambda x: lx.fold(mixer, mixer.init_state(len(x), x.dtype), x))(x)


@pytest.mark.parametrize("name", CASES)
def test_layers_are_hugging_faces(name):
    """Outputs, the memory in the end, and gradients by the input and every parameter."""
    data, (arrays, config) = load(f"references/{name}"), CASES[name]
    with jax.enable_x64():
        x = jnp.asarray(data["x/x"])
        mixer = with_arrays(config.build(x.shape[-1], KEY), **arrays(data, "w"))
        (d_mixer, d_x), (state, y) = gradients((mixer, x), data["x/ct"])
        assert_close(y, data["y/out"], 1e-10)
        assert_close(state.memory, data["y/final_state"], 1e-10)
        assert_close(d_x, data["g/x"], 1e-9)
        expected = arrays(data, "g")
        assert expected.keys() == {
            name for name, leaf in vars(mixer).items() if eqx.is_array(leaf)
        }
        assert_gradients(d_mixer, expected, 1e-9)
        state, y = folded(mixer, x)
        assert_close(y, data["y/out"], 1e-10)
        assert_close(state.memory, data["y/final_state"], 1e-10)
