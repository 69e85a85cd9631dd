"""Golden parity of Centaurus with lrnnx, whose every discretisation is Euler's."""

import jax.numpy as jnp
import pytest
from golden_numbers import (
    assert_close,
    check_lrnnx,
    KEY,
    last_state,
    load,
    parameters,
    with_arrays,
)

import linax_like as lx


CASES = {
    "cent_neck": lx.CentaurusSequenceMixerConfig("neck", 8, 4, discretization="euler"),
    "cent_pw": lx.CentaurusSequenceMixerConfig("pointwise", 4, 4, discretization="euler"),
    "cent_dws": lx.CentaurusSequenceMixerConfig(
        "depthwise", sub_state_dim=4, discretization="euler"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_centaurus_is_lrnnx(name):
    data = load(f"lrnnx/{name}")
    blank = CASES[name].build(8, KEY)

    def mixer_from(p):
        arrays = {
            "log_decay": jnp.log(-p["A"][..., 0]),
            "frequency": p["A"][..., 1],
            "log_step": p["log_delta"],
            "in_proj": p["B"],
            "out_proj": p["C"],
        }
        return with_arrays(blank, **arrays | ({"mix": p["E"]} if "E" in p else {}))

    check_lrnnx(data, mixer_from, lambda y, x, p: y)
    state = last_state(mixer_from(parameters(data)), data["x"])
    expected = data["state"] @ [1, 1j]
    assert_close(state.reshape(expected.shape), expected, 1e-5)
