"""What GLA promises beyond the laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linax_like as lx


CONFIGS = [
    lx.GLASequenceMixerConfig(),
    lx.GLASequenceMixerConfig(1, head_dim=3, num_value_heads=2, activation="silu", short_width=2),
    lx.GLASequenceMixerConfig(2, gate_normalizer=1.0, output_gate=False, chunk=4),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_steps_are_the_sequence_in_float64(config, key):
    with jax.enable_x64():
        mixer, x = config.build(8, key), jnp.asarray(np.random.default_rng(0).normal(size=(11, 8)))
        start = mixer.init_state(11, x.dtype)
        got = eqx.filter_jit(lx.fold)(mixer, start, x)
        expected = eqx.filter_jit(mixer.prefill)(start, x)
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("width", "key_size", "value"), [(8, 1, 2), (24, 3, 6), (512, 64, 128)])
def test_heads_fill_the_width(width, key_size, value, key):
    mixer = lx.GLASequenceMixerConfig().build(width, key)
    assert (mixer.num_heads, mixer.head_dim, mixer.value_head_dim) == (4, key_size, value)
    assert mixer.qkv_proj.shape == (2 * width, width)


def test_the_gate_normalizer_keeps_decays_slow(key):
    """What is left of a memory after one step, without anything new."""
    left = []
    for normalizer in (1.0, 16.0):
        mixer = lx.GLASequenceMixerConfig(gate_normalizer=normalizer).build(8, key)
        state = mixer.init_state(1)._replace(memory=jnp.ones((4, 1, 2)))
        left.append(mixer.step(state, jnp.zeros(8))[0].memory)
    np.testing.assert_allclose(left[0], 0.5, rtol=1e-6)
    np.testing.assert_allclose(left[1], 0.5 ** (1 / 16), rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be positive"),
        ({"gate_rank": 0}, "`gate_rank` must be positive"),
        ({"gate_normalizer": 0.0}, "`gate_normalizer` must be positive"),
        ({"short_width": 0}, "`short_width` must be positive"),
        ({"activation": "gelu"}, "`.*activation` must be one of 'silu', 'none'"),
        ({"num_value_heads": 6}, "`num_value_heads` must be a multiple of num_heads=4"),
        ({"num_heads": 3}, "needs a width that `num_heads` divides. Received in_features=8"),
        ({"num_heads": 8}, "needs values of even size, not 1, half of which is a key's; or `head"),
    ],
)
def test_mistakes_are_explained(arguments, message, key):
    with pytest.raises(ValueError, match=message):
        lx.GLASequenceMixerConfig(**arguments).build(8, key)
