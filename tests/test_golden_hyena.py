"""Golden parity: the reference Hyena's weights and inputs give its outputs and gradients.

The reference rounds its positions and decay rates to float32, and runs in float64 otherwise.
"""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_numbers import assert_close, GOLDEN

import linax_like as lx


TOLERANCE = 2e-6  # 2⁻²³ in the positions, times the frequencies they meet


@pytest.fixture(scope="module", params=["hyena_order2", "hyena_order3"])
def published(request):
    with np.load(GOLDEN / "references" / f"{request.param}.npz", allow_pickle=False) as file:
        data = {key: file[key] for key in file.files if key != "meta"}
        return data, json.loads(str(file["meta"]))["config"]


def build(data, cfg):
    """The mixer of the same shape, and with the same weights."""
    filter = lx.ImplicitFilterConfig(
        hidden_features=cfg["filter_order"],
        hidden_layers=cfg["num_inner_mlps"] + 1,
        bands=(cfg["emb_dim"] - 1) // 2,
        sine_frequency=float(cfg["w"]),
        time_scale=cfg["l_max"],
        fast_decay=cfg["fast_decay_pct"],
        slow_decay=cfg["slow_decay_pct"],
        decay_target=cfg["target"],
        decay_shift=cfg["shift"],
    )
    config = lx.HyenaSequenceMixerConfig(cfg["order"], filter=filter)
    mixer = config.build(cfg["d_model"], jr.key(0, impl="rbg"))
    arrays = jax.tree.map(jnp.asarray, named(data, "w"))
    assert [x.shape for x in jax.tree.leaves(mixer)] == [x.shape for x in jax.tree.leaves(arrays)]
    return jax.tree.unflatten(jax.tree.structure(mixer), jax.tree.leaves(arrays))


def named(data, prefix):
    """The reference's arrays, or their gradients, in the order of the mixer's fields."""
    get = lambda name: data[f"{prefix}/{name}"]
    filter = "filter_fn.implicit_filter"
    return [
        get("in_proj.weight"),
        get("in_proj.bias"),
        get("short_filter.weight")[:, 0].T,
        get("short_filter.bias"),
        [get(f"{filter}.{layer}.weight") for layer in (0, 2, 4, 6)],
        [get(f"{filter}.{layer}.bias") for layer in (0, 2, 4)],
        get(f"{filter}.1.freq")[0],
        get("filter_fn.bias"),
        get("out_proj.weight"),
        get("out_proj.bias"),
    ]


def test_the_filter_is_the_references(published):
    data, cfg = published
    with jax.enable_x64():
        mixer = build(data, cfg)
        assert_close(mixer.filter(cfg["L"], jnp.float64), data["y/filter"], TOLERANCE)


def test_outputs_and_gradients_are_the_references(published):
    data, cfg = published
    with jax.enable_x64():
        mixer = build(data, cfg)
        x, ct = jnp.asarray(data["x/u"]), jnp.asarray(data["x/ct"])

        @eqx.filter_jit
        @eqx.filter_value_and_grad(has_aux=True)
        def run(inputs):
            mixer, x = inputs
            y = jax.vmap(mixer)(x)
            return jnp.sum(y * ct), y

        (_, y), (d_mixer, d_x) = run((mixer, x))
        assert_close(y, data["y/out"], TOLERANCE)
        assert_close(d_x, data["g/u"], 10 * TOLERANCE)
        gradients = jax.tree.leaves(named(data, "g"))
        for got, expected in zip(jax.tree.leaves(d_mixer), gradients, strict=True):
            assert_close(got, expected, 10 * TOLERANCE)


def test_steps_are_the_reference_in_float32(published):
    data, cfg = published
    mixer = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), build(data, cfg))
    x = jnp.asarray(data["x/u"][0], jnp.float32)
    _, y = eqx.filter_jit(lx.fold)(mixer, mixer.init_state(len(x)), x)
    assert_close(y, data["y/out"][0], 5e-5)
