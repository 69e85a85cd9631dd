"""What Retention promises beyond the laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linax_like as lx


FIXED = lx.RetentionSequenceMixerConfig(2, chunk=4)
CONFIGS = [
    FIXED,
    lx.RetentionSequenceMixerConfig(1, num_value_heads=2, rope_base=None, output_gate=False),
    lx.RetentionSequenceMixerConfig(head_dim=4, decay="gated", gate_normalizer=2.0, chunk=4),
]
X = np.random.default_rng(0).normal(size=(11, 8))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_steps_are_the_sequence_in_float64(config, key):
    with jax.enable_x64():
        mixer, x = config.build(8, key), jnp.asarray(X)
        start = mixer.init_state(11, x.dtype)
        got = eqx.filter_jit(lx.fold)(mixer, start, x)
        expected = eqx.filter_jit(mixer.prefill)(start, x)
        assert expected[0].length == 11
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-11, atol=1e-13)


def test_every_head_forgets_half_as_fast(key):
    """What is left of a memory after one step, without anything new."""
    mixer = lx.RetentionSequenceMixerConfig(4).build(8, key)
    state = mixer.init_state(1)._replace(memory=jnp.ones((4, 4, 2)))
    left = mixer.step(state, jnp.zeros(8))[0].memory
    assert not any("decay" in name for name in lx.named_arrays(mixer))
    np.testing.assert_allclose(1 - left[:, 0, 0], 2.0 ** -np.arange(5, 9), rtol=1e-5)


def test_only_the_distance_of_positions_matters(key):
    """In a call and in steps: they are given, else counted from 0 in every document."""
    with jax.enable_x64():
        mixer, x = FIXED.build(8, key), jnp.asarray(X)
        ids, counted = jnp.repeat(jnp.array([3, 1]), jnp.array([4, 7])), jnp.arange(11)
        run = eqx.filter_jit(
            lambda x, context: (mixer(x, context=context), steps(mixer, x, context))
        )
        here = lambda positions: lx.SequenceContext(positions=positions, segment_ids=ids)
        expected = mixer(x, context=lx.SequenceContext(segment_ids=ids))
        for positions in (jnp.where(counted < 4, counted, counted - 4), counted, counted + 1000):
            for y in run(x, here(positions)):
                np.testing.assert_allclose(y, expected, atol=1e-11)
        for y in run(x, here(2 * counted)):
            assert np.abs(y - expected).max() > 1e-3


def steps(mixer, x, context):
    return lx.fold(mixer, mixer.init_state(len(x), x.dtype), x, context=context)[1]


def test_what_it_uses(key):
    assert FIXED.build(8, key).uses == {"positions"}
    assert lx.RetentionSequenceMixerConfig(rope_base=None).build(8, key).uses == set()


def test_the_length_is_that_of_the_last_document(key):
    """Without padding, before which it stands still."""
    mixer, x = FIXED.build(8, key), jnp.asarray(X, jnp.float32)
    start = mixer.init_state(11)._replace(length=jnp.int32(20))
    one, two = np.zeros(11, np.int32), np.repeat(np.int32([5, 7]), [4, 7])
    every, some, none = np.ones(11, bool), np.arange(11) % 5 < 2, np.zeros(11, bool)

    @eqx.filter_jit
    def length(ids, mask):
        context = lx.SequenceContext(segment_ids=ids, mask=mask)
        return mixer.prefill(start, x, context=context)[0].length

    for ids, mask, expected in (
        (one, every, 31),
        (one, some, 25),
        (one, none, 20),
        (two, every, 7),
    ):
        assert length(jnp.asarray(ids), jnp.asarray(mask)) == expected
    assert length(jnp.asarray(two), jnp.asarray(some)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be positive"),
        ({"gate_normalizer": -1.0}, "`gate_normalizer` must be positive"),
        ({"decay": "learned"}, "`.*decay` must be one of 'fixed', 'gated'"),
        ({"head_dim": 5}, "`head_dim` must be even, as RoPE turns pairs"),
        ({"num_heads": 8}, "heads of even size for RoPE, not 1, or `rope_base=None`"),
        ({"num_heads": 3}, "needs a width that `num_heads` divides"),
        (
            {"num_heads": 2, "num_value_heads": 3},
            "needs `num_value_heads` to be a multiple of its 2 heads",
        ),
    ],
)
def test_mistakes_are_explained(arguments, message, key):
    with pytest.raises(ValueError, match=message):
        lx.RetentionSequenceMixerConfig(**arguments).build(8, key)
