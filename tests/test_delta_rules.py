"""What Gated DeltaNet, Gated DeltaProduct, KDA and RWKV-7 promise beyond the laws and their numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import with_arrays

import linax_like as lx


OPTIONS = {
    "gated_delta_net": lx.GatedDeltaNetSequenceMixerConfig(
        2, head_dim=3, num_value_heads=4, value_head_dim=5, negative_eigenvalues=True, chunk=4
    ),
    "gated_delta_net_bare": lx.GatedDeltaNetSequenceMixerConfig(
        short_width=1, output_gate=False, chunk=1
    ),
    "gated_delta_product": lx.GatedDeltaProductSequenceMixerConfig(
        3, 2, num_value_heads=4, negative_eigenvalues=False, chunk=4
    ),
    "gated_delta_product_unforgetting": lx.GatedDeltaProductSequenceMixerConfig(
        1, forget_gate=False, output_gate=False
    ),
    "kda": lx.KDASequenceMixerConfig(2, head_dim=3, value_head_dim=2, chunk=4),
    "rwkv7": lx.RWKV7SequenceMixerConfig(4, head_dim=3, rate_rank=1, gate_rank=2, chunk=4),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_steps_are_the_sequence_in_float64(name, key):
    """To the last bits, from a state that is not zero, with documents and padding."""
    with jax.enable_x64():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(13, 8)))
        mixer = OPTIONS[name].build(8, key)
        ids, mask = jnp.arange(13) // 6, jnp.arange(13) % 5 != 3
        context = lx.SequenceContext(segment_ids=ids, mask=mask)
        start, _ = mixer.prefill(mixer.init_state(13, x.dtype), -x)
        got = eqx.filter_jit(lx.fold)(mixer, start, x, context=context)
        expected = eqx.filter_jit(mixer.prefill)(start, x, context=context)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-13)


def arrays(mixer):
    return {name: leaf for name, leaf in vars(mixer).items() if eqx.is_array(leaf)}


def run(mixer, x):
    return eqx.filter_jit(mixer)(x)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(12, 8)), jnp.float32)


def test_one_correction_is_gated_delta_net(x, key):
    sizes = {"num_heads": 2, "negative_eigenvalues": True}
    product = lx.GatedDeltaProductSequenceMixerConfig(1, **sizes).build(8, key)
    net = lx.GatedDeltaNetSequenceMixerConfig(**sizes).build(8, jax.random.key(1))
    net = with_arrays(net, **arrays(product))
    np.testing.assert_allclose(run(product, x), run(net, x), rtol=1e-5, atol=1e-6)


def test_without_decay_gated_delta_net_is_delta_net(x, key):
    delta = lx.DeltaNetSequenceMixerConfig(2, value_head_dim=8, output_gate=True).build(8, key)
    gated = lx.GatedDeltaNetSequenceMixerConfig(2).build(8, jax.random.key(1))
    gated = with_arrays(gated, **arrays(delta), log_decay=jnp.full(2, -jnp.inf))
    np.testing.assert_allclose(run(gated, x), run(delta, x), rtol=1e-5, atol=1e-6)


def test_channels_that_forget_alike_are_gated_delta_net(x, key):
    """KDA whose channels share their head's decay, with a gate that is half open."""
    net = lx.GatedDeltaNetSequenceMixerConfig(2, value_head_dim=4, output_gate=False)
    net = net.build(8, key)
    kda = lx.KDASequenceMixerConfig(2).build(8, jax.random.key(1))
    names = ("qkv_proj", "beta_proj", "short_weight", "log_decay", "norm_weight")
    down = jnp.zeros((4, 8)).at[:2].set(net.decay_proj)
    up = jnp.zeros((8, 4)).at[:4, 0].set(1).at[4:, 1].set(1)
    kda = with_arrays(
        kda,
        **{name: getattr(net, name) for name in names},
        decay_down_proj=down,
        decay_up_proj=up,
        dt_bias=jnp.repeat(net.dt_bias[:, None], 4, axis=1),
        gate_up_proj=jnp.zeros((8, 4)),
        out_proj=2 * net.out_proj,
    )
    np.testing.assert_allclose(run(kda, x), run(net, x), rtol=1e-4, atol=1e-5)


def test_negative_eigenvalues_can_count(key):
    """With β of 2 and one key, every step reflects the memory, and the second undoes the first."""
    config = lx.GatedDeltaNetSequenceMixerConfig(1, negative_eigenvalues=True, short_width=1)
    mixer = config.build(8, key)
    mixer = with_arrays(mixer, beta_proj=jnp.full((1, 8), 10.0), log_decay=jnp.full(1, -jnp.inf))
    start = mixer.init_state(2)
    once, _ = eqx.filter_jit(mixer.step)(start, jnp.ones(8))
    twice, _ = eqx.filter_jit(mixer.step)(once, jnp.ones(8))
    assert jnp.max(jnp.abs(once.memory)) > 0.1
    np.testing.assert_allclose(twice.memory, start.memory, atol=1e-5)


def test_published_initial_values(key):
    gated = lx.GatedDeltaNetSequenceMixerConfig(head_dim=4).build(512, key)
    product = lx.GatedDeltaProductSequenceMixerConfig(head_dim=4).build(512, key)
    kda = lx.KDASequenceMixerConfig(head_dim=8).build(512, key)
    for mixer in (gated, product, kda):
        dt, rate = np.asarray(jax.nn.softplus(mixer.dt_bias)), np.exp(mixer.log_decay)
        assert 0.001 * (1 - 1e-4) <= dt.min() < 0.0015
        assert 0.07 < dt.max() <= 0.1 * (1 + 1e-4)
        assert 1 <= rate.min() < 2
        assert 14 < rate.max() <= 16


def test_rwkv7_starts_as_published(key):
    """Decays from almost 1 down to exp(-e^-½), slowest in the first channels; μ falls from 1 to 0."""
    mixer = lx.RWKV7SequenceMixerConfig().build(512, key)
    decay = np.exp(-np.exp(-0.5) * np.asarray(jax.nn.sigmoid(mixer.decay_bias)))
    assert np.exp(-np.exp(-0.5)) < decay.min() < 0.57
    assert decay.max() > 0.9995
    by_head = decay.reshape(8, 64)
    assert np.all(np.diff(by_head.mean(axis=1)) < 0)
    assert np.all(np.diff(by_head) <= 0)
    mix = np.asarray(mixer.shift_mix)
    np.testing.assert_array_equal(mix[:, 0], 1)
    assert np.all(np.diff(mix) < 0)
    np.testing.assert_allclose(mix[0, 256], 1 - 0.5**0.2, rtol=1e-6)
    sizes = mixer.decay_up_proj.shape[1], mixer.rate_up_proj.shape[1], mixer.gate_up_proj.shape[1]
    assert sizes == (64, 64, 128)


def test_rwkv7_shifts_within_a_document(x, key):
    """Its first position sees zeros before it, its second the first."""
    mixer = lx.RWKV7SequenceMixerConfig().build(8, key)
    context = lx.SequenceContext(segment_ids=jnp.repeat(jnp.arange(2), 6))
    packed = eqx.filter_jit(mixer)(x, context=context)
    np.testing.assert_allclose(packed[6:], run(mixer, x[6:]), rtol=1e-5, atol=1e-6)
    assert np.abs(packed[6] - run(mixer, x)[6]).max() > 1e-3


@pytest.mark.parametrize(
    ("config", "width", "sizes"),
    [
        (lx.GatedDeltaNetSequenceMixerConfig, 24, (3, 8, 3, 16)),
        (lx.GatedDeltaNetSequenceMixerConfig, 512, (8, 64, 8, 128)),
        (lx.GatedDeltaProductSequenceMixerConfig, 8, (1, 8, 1, 16)),
        (lx.KDASequenceMixerConfig, 512, (8, 64, 8, 64)),
    ],
)
def test_heads_adapt_to_the_width(config, width, sizes, key):
    mixer = eqx.filter_eval_shape(config().build, width, key)
    names = ("num_heads", "head_dim", "num_value_heads", "value_head_dim")
    assert tuple(getattr(mixer, name) for name in names) == sizes


GROUPED = (
    lx.GatedDeltaNetSequenceMixerConfig,
    lx.GatedDeltaProductSequenceMixerConfig,
    lx.KDASequenceMixerConfig,
)


@pytest.mark.parametrize("config", GROUPED)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be positive"),
        ({"value_head_dim": -1}, "`value_head_dim` must be positive"),
        ({"short_width": 0}, "`short_width` must be positive"),
        ({"chunk": 0}, "`chunk` must be positive"),
        ({"dt_min": 0.0}, "`dt_min` must be positive"),
        ({"dt_min": 0.2}, "`dt_max` must be at least dt_min"),
        ({"num_heads": 3}, "needs a width that `num_heads` divides. Received in_features=8"),
        ({"head_dim": 5}, "needs a width that `head_dim` divides. Received in_features=8"),
        (
            {"num_heads": 2, "num_value_heads": 3},
            "needs `num_value_heads` to be a multiple of its 2 heads",
        ),
    ],
)
def test_mistakes_are_explained(config, arguments, message, key):
    with pytest.raises(ValueError, match=message):
        config(**arguments).build(8, key)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (GROUPED[1], {"num_householder": 0}, "`num_householder` must be positive"),
        (lx.RWKV7SequenceMixerConfig, {"gate_rank": 0}, "`gate_rank` must be positive"),
        (lx.RWKV7SequenceMixerConfig, {"norm_eps": 0.0}, "`norm_eps` must be positive"),
        (lx.RWKV7SequenceMixerConfig, {"num_heads": 3}, "needs a width that `num_heads` divides"),
    ],
)
def test_other_mistakes_are_explained(config, arguments, message, key):
    with pytest.raises(ValueError, match=message):
        config(**arguments).build(8, key)
