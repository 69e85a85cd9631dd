"""What a mixer in both directions promises beyond the laws."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from asserts import assert_close, raises_value_error

import linax_like as lx


KEY = jr.key(0, impl="rbg")
X = jr.normal(jr.key(1, impl="rbg"), (9, 8))
IDS = jnp.array([4, 4, 4, 2, 2, 2, 2, 7, 7])
TIMESTEPS = jnp.array([0.3, 1.0, 2.0, 0.5, 1.5, 0.7, 3.0, 0.2, 0.9])
S5 = lx.S5SequenceMixerConfig(8)


@pytest.mark.parametrize("merge", ["sum", "project"])
def test_it_is_the_two_directions(merge):
    mixer = lx.BidirectionalSequenceMixerConfig(S5, merge).build(8, KEY)
    forward, backward = mixer.forward(X), mixer.backward(X[::-1])[::-1]
    expected = forward + backward
    if merge == "project":
        expected = jnp.concatenate([forward, backward], axis=1) @ mixer.out_proj.T
    assert_close(mixer(X), expected, merge)
    assert not np.allclose(mixer.forward(X), mixer.backward(X))


def test_documents_and_timesteps_are_those_of_each_alone():
    mixer = lx.BidirectionalSequenceMixerConfig(S5).build(8, KEY)
    mask = np.ones(14, bool)
    mask[[0, 4, 5, 10, 13]] = False
    spread = lambda values, fill: jnp.full((14, *values.shape[1:]), fill).at[mask].set(values)
    context = lx.SequenceContext(
        timesteps=spread(TIMESTEPS, jnp.nan),
        segment_ids=spread(IDS, 4),
        mask=jnp.asarray(mask),
    )
    got = eqx.filter_jit(mixer)(spread(X, jnp.nan), context=context)
    parts = []
    for id in (4, 2, 7):
        here = IDS == id
        alone = lx.SequenceContext(timesteps=TIMESTEPS[here])
        parts.append(mixer(X[here], context=alone))
    assert_close(got[mask], jnp.concatenate(parts), "packed and alone")


def test_time_between_two_samples_is_the_same_in_both_directions():
    config = lx.S5SequenceMixerConfig(8, timestep_gain="constant")
    mixer = lx.BidirectionalSequenceMixerConfig(config).build(8, KEY)
    backwards = jnp.concatenate([TIMESTEPS[:1], TIMESTEPS[:0:-1]])  # the first makes no difference
    expected = (
        mixer.forward(X, context=lx.SequenceContext(timesteps=TIMESTEPS))
        + (mixer.backward(X[::-1], context=lx.SequenceContext(timesteps=backwards))[::-1])
    )
    assert_close(mixer(X, context=lx.SequenceContext(timesteps=TIMESTEPS)), expected, "timesteps")


def test_positions_that_are_given_are_those_that_are_counted():
    mixer = lx.BidirectionalSequenceMixerConfig(lx.AttentionSequenceMixerConfig()).build(8, KEY)
    given = lx.SequenceContext(positions=5 + jnp.arange(9))
    assert_close(mixer(X, context=given), mixer(X), "positions")


def test_what_cannot_be_reversed():
    config = lx.BidirectionalSequenceMixerConfig(lx.AttentionSequenceMixerConfig(causal=False))
    with raises_value_error("causal", "AttentionSequenceMixerConfig"):
        config.build(8, KEY)
    with raises_value_error("merge", "concatenate"):
        lx.BidirectionalSequenceMixerConfig(S5, merge="concatenate")
