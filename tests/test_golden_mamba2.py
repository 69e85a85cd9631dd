"""Golden parity of Mamba-2: Hugging Face's weights and inputs give its outputs and gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_numbers import assert_close, load

import linax_like as lx


CASES = {
    "mamba2_mixer_hf": (12, lx.Mamba2SequenceMixerConfig(6, head_dim=6, num_groups=2, chunk=8)),
    "mamba2_mixer_hf_dtlimit": (
        8,
        lx.Mamba2SequenceMixerConfig(4, head_dim=4, num_groups=2, dt_limits=(0.1, 1.2), chunk=8),
    ),
    "mamba2_mixer_hf_g1": (8, lx.Mamba2SequenceMixerConfig(8, head_dim=4, chunk=16)),
}


def arrays(data, prefix):
    """Our names; a convolution without a bias has none in the file."""
    get = lambda name: data[f"{prefix}/{name}"]
    found = {
        "in_proj": get("in_proj.weight"),
        "short_weight": get("conv1d.weight")[:, 0].T,
        "log_decay": get("A_log"),
        "dt_bias": get("dt_bias"),
        "skip": get("D"),
        "norm_weight": get("norm.weight"),
        "out_proj": get("out_proj.weight"),
    }
    bias = f"{prefix}/conv1d.bias"
    return found | ({"short_bias": data[bias]} if bias in data else {})


def mixer_of(name, data):
    width, config = CASES[name]
    blank = config.build(width, jr.key(0, impl="rbg"))
    values = {"short_bias": np.zeros(blank.short_bias.shape)} | arrays(data, "w")
    for field, value in values.items():
        assert getattr(blank, field).shape == value.shape
    fields = list(values)
    replace = [jnp.asarray(values[field]) for field in fields]
    return eqx.tree_at(lambda m: [getattr(m, field) for field in fields], blank, replace)


@eqx.filter_jit
def prefill(mixer, x):
    return jax.vmap(lambda x: mixer.prefill(mixer.init_state(len(x), x.dtype), x))(x)


@eqx.filter_jit
def fold(mixer, state, x):
    return jax.vmap(lambda state, x: lx.fold(mixer, state, x))(state, x)


@pytest.mark.parametrize("name", CASES)
def test_mamba2_is_hugging_faces(name):
    data = load(f"references/{name}")
    with jax.enable_x64():
        mixer, x = mixer_of(name, data), jnp.asarray(data["x/x"])

        @eqx.filter_jit
        @eqx.filter_grad(has_aux=True)
        def grad(inputs):
            mixer, x = inputs
            y = jax.vmap(mixer)(x)
            return jnp.sum(y * data["x/ct"]), y

        (d_mixer, d_x), y = grad((mixer, x))
        assert_close(y, data["y/out"], 1e-10)
        assert_close(d_x, data["g/x"], 1e-9)
        for field, value in arrays(data, "g").items():
            assert_close(getattr(d_mixer, field), value, 1e-9)


@pytest.mark.parametrize("name", ["mamba2_mixer_hf", "mamba2_mixer_hf_g1"])
def test_states_and_steps_are_hugging_faces(name):
    """After all positions but four, and after the last four, one by one."""
    data = load(f"references/{name}")
    with jax.enable_x64():
        mixer, x = mixer_of(name, data), jnp.asarray(data["x/x"])
        state, _ = prefill(mixer, x[:, :-4])
        check_state(state, data, "prefix")
        state, y = fold(mixer, state, x[:, -4:])
        assert_close(y, data["y/step_out"], 1e-10)
        check_state(state, data, "final")


def check_state(state, data, when):
    assert_close(state.heads, data[f"y/{when}_ssm_state"], 1e-10)
    theirs = np.moveaxis(data[f"y/{when}_conv_state"], 1, 2)  # the newest is last
    assert_close(state.short, theirs[:, -state.short.shape[1] :], 1e-10)


def test_limits_hold_in_a_step():
    """Hugging Face's single steps ignore them: those of its numbers are from its whole sequences."""
    name = "mamba2_mixer_hf_dtlimit"
    data = load(f"references/{name}")
    with jax.enable_x64():
        mixer, x = mixer_of(name, data), jnp.asarray(data["x/x"])
        state = jax.vmap(lambda x: mixer.init_state(len(x), x.dtype))(x)
        state, y = fold(mixer, state, x)
        assert_close(y, data["y/out"], 1e-10)
        assert_close(state.heads, data["y/final_ssm_state_numpy"], 1e-10)
