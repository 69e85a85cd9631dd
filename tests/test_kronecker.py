"""Kronecker and linear mixing: the matrices that they are, what they refuse, and what a step costs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_numbers import assert_close, load, with_arrays

import linax_like as lx


KEY = jr.key(0, impl="rbg")
X = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
IDS = np.array([7, 7, 7, 7, 3, 2, 2, 2, 2, 2, 2, 2, 2, 5, 5, 5])
MASK = np.arange(16) % 5 != 2


@eqx.filter_jit
def apply(mixer, x, context=None):
    return mixer(x, context=context)


@eqx.filter_jit
def prefill(mixer, x, context=None):
    return mixer.prefill(mixer.init_state(mixer.config.max_length), x, context=context)


def published(name, size):
    """The mixer with the reference's parameters, cut to blocks of `size`; its input and the identity."""
    data = load("kronecker/kronecker")
    x = np.concatenate([data[name], np.eye(size**2)], axis=1)
    mixer = lx.KroneckerSequenceMixerConfig(size**2).build(x.shape[1], KEY)
    mixer = with_arrays(
        mixer,
        block_weight=data["As"][None, :size, :size],
        place_weight=data["Bs"][None, :size, :size],
        own_block_gain=data["Aps"][:size],
        own_block_weight=data["Bps"][:size, :size],
    )
    return mixer, jnp.asarray(x), data


def test_outputs_are_the_references():
    with jax.enable_x64():
        mixer, x, data = published("X9", 3)
        y = apply(mixer, x)
        assert_close(y[:, :-9], data["Y9_nores"], 1e-12)
        assert_close(y[:, -9:], data["M9"], 1e-12)
        mixer, x, data = published("X16", 4)
        y = apply(mixer, x)
        assert_close((y + x)[:, :-16], data["Y16_res"], 1e-12)
        assert_close(apply(mixer, x[:9]), y[:9], 1e-12)  # prefixes agree


def matrix_of(mixer):
    """The matrix over all of `max_length`, by its definition."""
    arrays = {name: np.asarray(a) for name, a in vars(mixer).items() if eqx.is_array(a)}
    if isinstance(mixer, lx.LinearSequenceMixer):
        weight = arrays["weight"] / np.sqrt(mixer.in_features)
        return np.tril(weight) if mixer.causal else weight
    pairs = list(zip(arrays["block_weight"], arrays["place_weight"], strict=True))
    if not mixer.causal:
        return sum(np.kron(a, b) for a, b in pairs)
    own = np.kron(np.diag(arrays["own_block_gain"]), np.tril(arrays["own_block_weight"]))
    return sum(np.kron(np.tril(a, -1), b) for a, b in pairs) + own


CONFIGS = [
    lx.KroneckerSequenceMixerConfig(20, rank=2, block_size=3, max_documents=4),
    lx.KroneckerSequenceMixerConfig(20, causal=False, max_documents=4),
    lx.LinearSequenceMixerConfig(20, causal=False),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_documents_without_padding_are_each_times_the_matrix(config):
    mixer = config.build(8, KEY)
    if mixer.causal:
        own = jr.normal(KEY, mixer.own_block_weight.shape)
        mixer = eqx.tree_at(lambda m: m.own_block_weight, mixer, own)
    matrix, expected = matrix_of(mixer), np.zeros_like(X)
    for document in np.unique(IDS):
        here = (IDS == document) & MASK
        expected[here] = matrix[: here.sum(), : here.sum()] @ X[here]
    context = lx.SequenceContext(segment_ids=jnp.asarray(IDS), mask=jnp.asarray(MASK))
    x = jnp.asarray(np.where(MASK[:, None], X, np.nan))
    assert_close(apply(mixer, x, context), expected, 1e-5)


@pytest.mark.parametrize(
    "cls, capacity", [(lx.KroneckerSequenceMixerConfig, 9), (lx.LinearSequenceMixerConfig, 7)]
)
def test_what_is_too_long_is_refused(cls, capacity):
    """A state of Kronecker products holds whole blocks."""
    mixer = cls(9).build(2, KEY)
    x = jnp.ones((12, 2))
    for call in (lambda: mixer(x), lambda: mixer.init_state(10)):
        with pytest.raises(ValueError, match="max_length=9.*larger `max_length`"):
            call()
    state, y = eqx.filter_jit(mixer.prefill)(mixer.init_state(capacity), x[: capacity + 1])
    assert np.isfinite(y).all(1).tolist() == capacity * [True] + [False]
    assert np.isnan(eqx.filter_jit(mixer.step)(state, x[0])[1]).all()
    padded = apply(mixer, x, lx.SequenceContext(mask=jnp.arange(12) < 10))
    assert np.isfinite(padded).all(1).tolist() == 9 * [True] + [False] + 2 * [True]
    for field in ("max_length", "causal"):
        with pytest.raises(ValueError, match=field):
            cls(**{field: -1})


def test_too_many_documents_are_not_a_number():
    config = lx.KroneckerSequenceMixerConfig(16, max_documents=2)
    mixer = config.build(2, KEY)
    context = lx.SequenceContext(segment_ids=jnp.arange(12))
    state, y = prefill(mixer, jnp.ones((12, 2)), context)
    assert np.isfinite(y[:2]).all() and np.isnan(y[-1]).all()
    assert np.isnan(eqx.filter_jit(mixer.step)(state, jnp.ones(2))[1]).any()


def step_flops(max_length):
    mixer = lx.KroneckerSequenceMixerConfig(max_length).build(8, KEY)
    state, x = mixer.init_state(max_length), jnp.ones(8)
    # Of the arithmetic alone: a caller that donates the state updates it in place.
    step = jax.jit(lambda mixer, state, x: mixer.step(state, x), donate_argnums=1)
    compiled = step.lower(mixer, state, x).compile()
    return compiled.cost_analysis()["flops"]


def test_a_step_grows_with_the_root_of_the_length():
    assert step_flops(128**2) <= 4.5 * step_flops(32**2)


def test_published_initial_values():
    mixer = lx.LinearSequenceMixerConfig(64).build(8, KEY)
    assert abs(float(jnp.std(mixer.weight)) - 0.01) < 5e-4
