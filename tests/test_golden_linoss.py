"""Golden parity of LinOSS: the published weights and inputs give its outputs, states and gradients."""

import jax
import jax.numpy as jnp
import pytest
from golden_numbers import (
    assert_close,
    assert_gradients,
    KEY,
    last_state,
    load,
    pair,
    run,
    stepped,
    with_arrays,
)

import linax_like as lx
from linax_like.ops import Oscillators
from linax_like.ops.complex_pair import ComplexPair


CASES = {
    "linoss_im": lx.LinOSSSequenceMixerConfig(6, "IM", damping=False),
    "linoss_imex": lx.LinOSSSequenceMixerConfig(6, "IMEX", damping=False),
    "linoss_imex_damped": lx.LinOSSSequenceMixerConfig(8, "IMEX"),
}


def linoss_from(data, prefix):
    get = lambda name: data[f"{prefix}/{name}"]
    damping = {"damping": get("G_diag")} if f"{prefix}/G_diag" in data else {}
    return damping | {
        "stiffness": get("A_diag"),
        "step_logit": get("steps"),
        "in_proj": pair(get("B")),
        "out_proj": pair(get("C")),
        "skip": get("D"),
    }


@pytest.mark.parametrize("name", CASES)
def test_linoss_is_the_reference(name):
    data = load(f"references/{name}")
    with jax.enable_x64():
        x, ct = jnp.asarray(data["x/x"]), jnp.asarray(data["x/ct"])
        mixer = CASES[name].build(x.shape[-1], KEY)
        mixer = with_arrays(mixer, **linoss_from(data, "w"))
        y, d_mixer, d_x = run(mixer, x, lambda y: jnp.sum(y * ct))
        assert_close(y, data["y/out"], 1e-9)
        assert_close(stepped(mixer, x), data["y/out"], 1e-9)
        assert_close(d_x, data["g/x"], 1e-8)
        assert_gradients(d_mixer, linoss_from(data, "g"), 1e-8)
        for time in (1, 2, x.shape[1]):
            velocity, position = last_state(mixer, x[:, :time])
            assert_close(position, data["y/pos_states"][:, time - 1], 1e-9)
        assert_close(velocity, data["y/last_z"], 1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_stiffness_is_held_where_the_reference_holds_it(name):
    data = load(f"references/{name}")
    with jax.enable_x64():
        x = jnp.asarray(data["x/x"])
        mixer = with_arrays(CASES[name].build(x.shape[-1], KEY), **linoss_from(data, "w"))
        oscillators, drive = mixer._system(x[0], None)
        assert isinstance(oscillators, Oscillators) and isinstance(drive, ComplexPair)
        stiffness = oscillators.pull / (oscillators.dt * oscillators.keep)
        assert_close(stiffness, data["y/A_effective"], 1e-9)
