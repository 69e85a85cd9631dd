"""What attention promises beyond the laws that every sequence mixer obeys."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx


KEY = jr.key(0, impl="rbg")
Config = lx.AttentionSequenceMixerConfig


@pytest.fixture(scope="module")
def x():
    return jr.normal(jr.key(1, impl="rbg"), (12, 8))


@pytest.mark.parametrize("window", [None, 9])
def test_a_document_that_outgrows_its_state_gives_nan(window, x):
    mixer = Config(window=window).build(8, KEY)
    state = mixer.init_state(5)
    new, y = mixer.prefill(state, x)
    folded, z = lx.fold(mixer, state, x)
    np.testing.assert_array_equal(jnp.isnan(y), jnp.arange(12)[:, None] >= jnp.full((8,), 5))
    np.testing.assert_allclose(y, z, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new, folded)


def test_a_new_document_has_room_again(x):
    mixer = Config().build(8, KEY)
    context = lx.SequenceContext(segment_ids=jnp.arange(12) // 4)
    assert jnp.isfinite(mixer.prefill(mixer.init_state(4), x, context=context)[1]).all()


def test_the_state_is_as_long_as_the_window(x):
    mixer = Config(num_heads=4, num_kv_heads=2, window=5).build(8, KEY)
    state = mixer.init_state(100, jnp.bfloat16)
    assert state.keys.shape == (5, 2, 2) and state.keys.dtype == jnp.bfloat16
    assert mixer.init_state(3).keys.shape == (3, 2, 2)
    state, y = mixer.prefill(state, x)
    assert state.keys.dtype == jnp.bfloat16 and y.dtype == jnp.float32
    np.testing.assert_allclose(y, mixer(x), atol=0.05)


def test_a_window_counts_real_positions(x):
    """Of seven positions between two real ones, none takes a place in the window."""
    mixer = Config(window=2).build(8, KEY)
    mask = jnp.arange(12) % 8 < 2
    y = mixer(x, context=lx.SequenceContext(mask=mask))
    np.testing.assert_allclose(y[mask], mixer(x[mask]), atol=1e-6)


def test_positions_are_counted_or_given(x):
    mixer = Config().build(8, KEY)
    shifted = mixer(x, context=lx.SequenceContext(positions=jnp.arange(12) + 40))
    stretched = mixer(x, context=lx.SequenceContext(positions=3 * jnp.arange(12)))
    np.testing.assert_allclose(shifted, mixer(x), atol=1e-5)
    assert jnp.abs(stretched - mixer(x)).max() > 1e-2
    assert mixer.uses == {"positions"}
    assert Config(rope_base=None).build(8, KEY).uses == frozenset()


def test_soft_cap_and_norm_change_the_output(x):
    plain = Config().build(8, KEY)(x)
    for config in (Config(soft_cap=0.1), Config(qk_norm=True)):
        assert jnp.abs(config.build(8, KEY)(x) - plain).max() > 1e-3


@pytest.mark.parametrize(
    ("width", "heads", "head"), [(8, 1, 8), (24, 3, 8), (48, 3, 16), (64, 1, 64), (512, 8, 64)]
)
def test_heads_adapt_to_the_width(width, heads, head):
    mixer = Config().build(width, KEY)
    assert (mixer.num_heads, mixer.num_kv_heads, mixer.head_dim) == (heads, heads, head)


def test_heads_need_not_add_up_to_the_width():
    mixer = Config(num_heads=3, head_dim=6).build(8, KEY)
    assert mixer.q_proj.shape == (18, 8) and mixer.out_proj.shape == (8, 18)


@pytest.mark.parametrize(
    ("config", "width", "words"),
    [
        (Config(), 12, "a width that is a multiple of 8, or `num_heads`. Received in_features=12"),
        (Config(num_heads=3), 8, "num_heads=3.*a width that `num_heads` divides"),
        (Config(head_dim=6), 8, "head_dim=6.*a width that `head_dim` divides"),
        (Config(num_kv_heads=2), 24, "`num_kv_heads` to divide the 3 heads"),
        (Config(num_heads=8), 24, "heads of even size for RoPE, not 3"),
    ],
)
def test_a_width_that_does_not_fit_is_an_error(config, width, words):
    with pytest.raises(ValueError, match=words):
        config.build(width, KEY)


def test_configs_validate():
    with pytest.raises(ValueError, match="num_kv_heads=3.*a divisor of num_heads=4"):
        Config(num_heads=4, num_kv_heads=3)
    with pytest.raises(ValueError, match="head_dim=5.*even"):
        Config(head_dim=5)
    with pytest.raises(ValueError, match="head_dim=6.*even"):
        Config(head_dim=6, rope_fraction=0.5)
    with pytest.raises(ValueError, match="rope_fraction=1.5.*`rope_fraction` must be above 0"):
        Config(rope_fraction=1.5)
    with pytest.raises(ValueError, match="'qkv'.*'output'"):
        Config(bias="output")
    with pytest.raises(ValueError, match="`window` must be positive"):
        Config(window=0)


def test_non_causal_attention_cannot_step(x):
    mixer = Config(causal=False).build(8, KEY)
    state = lx.AttentionState(jnp.zeros((4, 1, 8)), jnp.zeros((4, 1, 8)), jnp.zeros((), jnp.int32))
    calls = (
        lambda: mixer.init_state(4),
        lambda: mixer.prefill(state, x),
        lambda: mixer.step(state, x[0]),
    )
    for call in calls:
        with pytest.raises(ValueError, match="causal=True"):
            call()


def test_flops_count_the_pairs_that_are_seen():
    projections = 2 * 10 * 4 * 64
    config = Config(num_heads=2, head_dim=4)
    for field, value, pairs in (("window", None, 55), ("window", 3, 27), ("causal", False, 100)):
        mixer = config.updated(field, value).build(8, KEY)
        assert mixer.flop_count((10,), inference=True) == projections + 4 * 8 * pairs
