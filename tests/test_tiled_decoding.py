"""Decoding by tiles says what the convolution says, wherever it begins and however rows differ."""

import re
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from layouts import noise

import linax_like as lx
from linax_like.sequence_mixers import fold


KEY = jr.key(0, impl="rbg")
FEATURES, CAPACITY = 4, 110  # the line has 128 rows
CONVOLUTION = lx.CKConvSequenceMixerConfig(
    kernel=lx.SIRENKernelConfig(8, 1, (1.0,)), extent=16.0, max_documents=3
)
X = jnp.asarray(noise(CAPACITY, FEATURES))


@pytest.fixture(scope="module")
def plain():
    return CONVOLUTION.build(FEATURES, KEY)


@pytest.fixture(scope="module")
def tiled(plain):
    return lx.tiled_decoding(plain, CAPACITY)


@eqx.filter_jit
def stepped(mixer, states, x, mask=None):
    """Rows advanced together, as a batch: `x` has shape (rows, steps, features)."""
    mask = jnp.ones(x.shape[:2], bool) if mask is None else mask

    def step(states, inputs):
        one = lambda state, x, real: mixer.step(state, x, context=lx.SequenceContext(mask=real))
        return jax.vmap(one)(states, *inputs)

    states, y = jax.lax.scan(step, states, (x.swapaxes(0, 1), mask.T))
    return states, y.swapaxes(0, 1)


def one_row(state):
    return jax.tree.map(lambda leaf: leaf[None], state)


def close(got, expected):
    """Up to the rounding of Fourier transforms of a hundred numbers of about one."""
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_after_prompts_of_every_length_steps_are_the_whole_sequence(plain, tiled):
    lengths = np.arange(21)
    mask = jnp.asarray(np.arange(20) >= 20 - lengths[:, None])  # padded on the left
    prompts = np.stack([np.roll(X[:20], 20 - n, axis=0) for n in lengths])
    rest = np.stack([X[n : n + CAPACITY - 20] for n in lengths])
    read = lambda x, mask: tiled.prefill(
        tiled.init_state(CAPACITY), x, context=lx.SequenceContext(mask=mask)
    )
    states, start = jax.jit(jax.vmap(read))(prompts, mask)
    states, y = stepped(tiled, states, rest)
    whole = np.asarray(plain(jnp.asarray(X)))
    assert np.all(states.since == CAPACITY - 20)
    for n, start, y in zip(lengths, start, y, strict=True):
        close(start[20 - n :], whole[:n])
        close(y, whole[n : n + CAPACITY - 20])


def test_prefills_and_steps_in_turns_are_the_whole_sequence(plain, tiled):
    whole, state, place = np.asarray(plain(jnp.asarray(X))), tiled.init_state(CAPACITY), 0
    for steps in (40, 33, 1):
        end = place + steps
        state, y = stepped(tiled, one_row(state), X[None, place:end])
        close(y[0], whole[place:end])
        state, y = tiled.prefill(jax.tree.map(lambda leaf: leaf[0], state), X[end : end + 7])
        close(y, whole[end : end + 7])
        place = end + 7
    assert int(state.since) == 0 and int(state.before.length) == place


def test_padding_and_documents_between_steps(plain, tiled):
    """The rows of a batch then stand at different steps, and each has its own tiles."""
    mask = np.random.default_rng(1).random((3, CAPACITY)) < [[0.5], [1.0], [0.9]]
    ids = np.repeat([4, 2, 7], [3, 45, CAPACITY - 48])
    rows = np.stack([X, -X, X[::-1]])

    @eqx.filter_jit
    def read(mixer, x, mask):
        context = lx.SequenceContext(mask=mask, segment_ids=jnp.asarray(ids))
        return fold(mixer, mixer.init_state(CAPACITY), x, context=context)[1]

    expected = jax.vmap(lambda x, mask: read(plain, x, mask))(rows, mask)
    junk = np.where(mask[..., None], rows, np.nan)
    close(jax.vmap(lambda x, mask: read(tiled, x, mask))(junk, jnp.asarray(mask)), expected)


def test_rows_at_different_steps_are_each_alone(plain, tiled):
    states = [tiled.init_state(CAPACITY)] * 2
    first, _ = stepped(tiled, one_row(states[0]), X[None, :13])
    second, _ = tiled.prefill(states[1], X[:40])
    states = jax.tree.map(lambda a, b: jnp.stack([a[0], b]), first, second)
    _, y = stepped(tiled, states, np.stack([X[13:83], X[40:]]))
    whole = np.asarray(plain(jnp.asarray(X)))
    close(y, np.stack([whole[13:83], whole[40:]]))


def test_what_outgrows_the_state_is_nan(plain, tiled):
    for mixer in (plain, tiled):
        state, _ = mixer.prefill(mixer.init_state(50), X[:20])
        _, y = stepped(mixer, one_row(state), X[None, 20:60])
        assert np.isfinite(y[0, :30]).all() and np.isnan(y[0, 30:]).all()


def test_half_precision_inputs_are_summed_in_full(plain, tiled):
    x = jnp.asarray(X, jnp.bfloat16)
    state, y = stepped(tiled, one_row(tiled.init_state(CAPACITY, x.dtype)), x[None])
    assert y.dtype == state.before.history.dtype == jnp.bfloat16
    assert state.recent.dtype == state.pending.dtype == jnp.float32
    np.testing.assert_allclose(y[0].astype(np.float32), plain(x).astype(np.float32), atol=0.05)


def test_models_that_cannot_be_tiled_say_why(tiled):
    with pytest.raises(ValueError, match="128 positions, and its state shall hold 129"):
        tiled.init_state(129)
    other = lx.LRUSequenceMixerConfig(4).build(FEATURES, KEY)
    with pytest.raises(ValueError, match="`LRUSequenceMixer` without a convolution"):
        lx.tiled_decoding(other, 16)
    circular = lx.CKConvSequenceMixerConfig(("circular",)).build(FEATURES, KEY)
    with pytest.raises(ValueError, match=r"boundary \('causal',\)"):
        lx.tiled_decoding(circular, 16)
    kernel = lx.SIRENKernelConfig(8, film=lx.KernelFiLMConfig(3))
    with pytest.raises(ValueError, match="no condition changes"):
        lx.tiled_decoding(lx.CKConvSequenceMixerConfig(kernel=kernel).build(FEATURES, KEY), 16)


# In models.


@pytest.fixture(scope="module")
def model():
    hyena = lx.QKVSequenceMixerConfig(lx.HyenaOperatorConfig(3, CONVOLUTION))
    mixers = hyena, lx.LRUSequenceMixerConfig(4)
    pattern = tuple(lx.ResidualBlockConfig(mixer, channel_mixer=None) for mixer in mixers)
    last = lx.ResidualBlockConfig(lx.QKVSequenceMixerConfig(CONVOLUTION))
    stack = lx.StackConfig(((pattern, 2), ((last,), 1)))
    return lx.LanguageModelConfig(17, 8, stack).build(KEY)


@pytest.fixture(scope="module")
def tiled_model(model):
    return lx.tiled_decoding(model, 64)


def test_every_convolution_of_a_model_is_tiled(model, tiled_model):
    is_mixer = lambda node: isinstance(node, lx.TiledConvolution)
    leaves = jax.tree.leaves(tiled_model, is_leaf=is_mixer)
    assert sum(map(is_mixer, leaves)) == 5  # two of each Hyena, and the last
    tokens = jnp.arange(30) % 17
    np.testing.assert_allclose(tiled_model(tokens).logits, model(tokens).logits, atol=1e-5)
    assert lx.named_arrays(tiled_model)["stack/4/channel_mixer/out_proj"].shape[0] == 8


def test_a_tiled_model_is_saved_as_it_was_before(tiled_model, tmp_path):
    with pytest.raises(ValueError, match="as it was before `tiled_decoding`"):
        lx.save_pretrained(tiled_model, tmp_path / "saved")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("draft", [False, True])
def test_generation_is_the_same_for_ragged_prompts(model, tiled_model, draft):
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    length = 8 if draft else 50
    got, expected = (
        lx.generate(m, prompts, length, KEY, draft=m if draft else None)
        for m in (tiled_model, model)
    )
    assert got.tokens.tolist() == expected.tokens.tolist()
    np.testing.assert_allclose(got.log_probabilities, expected.log_probabilities, atol=1e-5)


def test_rows_in_step_share_a_tile_and_skip_the_others(tiled_model):
    """A batched condition would become a choice between all tiles, each made at every token; these are
    conditionals, whose predicates are scalars."""
    generate = sys.modules["linax_like.inference.generate"]
    sampling = lx.inference.Sampling()
    setup = generate.Setup(tiled_model, None, 0, sampling, jnp.zeros((0,), jnp.int32))
    prompts, keys = jnp.zeros((8, 3), jnp.int32), generate._row_keys(KEY, 8)
    start = lambda: generate._open.__wrapped__(setup, keys, prompts, None, None, 59, jnp.int32(0))
    rows = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(start))
    text = generate._advance.lower(setup, rows, jnp.int32(1)).as_text()
    assert re.search(r"stablehlo.dynamic_update_slice.*tensor<8x64x8xf32>", text)
    assert not re.search(r"stablehlo.select.*tensor<8x64x8xf32>", text)
    assert "stablehlo.case" in text
