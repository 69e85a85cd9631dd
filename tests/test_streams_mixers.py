"""The laws of mixers and blocks of several streams: every form computes the same."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linax_like as lx


NAMES = ("image", "text", "sound")
SIZES = {"image": 4, "text": 5, "sound": 3}
# The modality of every position, in their joint order; `step` goes along it.
ORDER = "image image text sound image text text sound text image sound text".split()
MIXERS = {
    "attention": lx.MoTAttentionConfig(NAMES, num_heads=4, num_kv_heads=2, qk_norm=True),
    "continuing": lx.MoTAttentionConfig(NAMES, num_heads=2, counting="continue"),
    "recurrence": lx.MoTMixerConfig(NAMES, lx.MinGRUSequenceMixerConfig()),
}


@pytest.fixture(scope="module", params=["attention", "recurrence"])
def mixer(request, key):
    return MIXERS[request.param].build(8, key)


@pytest.fixture(scope="module")
def streams():
    draw = np.random.default_rng(0).normal
    return {name: jnp.asarray(draw(size=(size, 8)), jnp.float32) for name, size in SIZES.items()}


def places():
    return {
        name: jnp.asarray([i for i, other in enumerate(ORDER) if other == name]) for name in NAMES
    }


def close(got, expected, tolerance=2e-5):
    assert got.keys() == expected.keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), got, expected
    )


@eqx.filter_jit
def pull(mixer, streams, context=None, weights=None):
    """The outputs, and the gradient of a fixed sum of them by the streams."""

    def total(streams):
        y = mixer(streams, context=context)
        parts = jax.tree.map(lambda y: y**2 * jnp.cos(jnp.arange(8.0)), y)
        if weights is not None:
            parts = jax.tree.map(lambda p, w: jnp.where(w[:, None], p, 0), parts, weights)
        return sum(jnp.sum(p) for p in jax.tree.leaves(parts)), y

    return jax.value_and_grad(total, has_aux=True)(streams)


@pytest.mark.parametrize("mixer", MIXERS, indirect=True)
def test_chunks_and_steps_are_the_whole(mixer, streams):
    """One stream after the other in one chunk, and interleaved, position by position."""
    (_, whole), _ = pull(mixer, streams)
    state, y = eqx.filter_jit(mixer.prefill)(mixer.init_state(12), streams)
    close(y, whole)
    context = lx.StreamsContext(places=places())
    (_, interleaved), _ = pull(mixer, streams, context)
    assert any(np.abs(interleaved[name] - whole[name]).max() > 1e-3 for name in NAMES)
    step = eqx.filter_jit(mixer.step)
    state, taken, got = mixer.init_state(12), dict.fromkeys(NAMES, 0), {name: [] for name in NAMES}
    for name in ORDER:
        state, frames = step(state, {name: streams[name][taken[name]]})
        got[name].append(frames[name])
        taken[name] += 1
    close({name: jnp.stack(frames) for name, frames in got.items()}, interleaved)


def test_padding_and_an_empty_stream_change_nothing(mixer, streams):
    (_, alone), d_alone = pull(mixer, streams | {"sound": streams["sound"][:0]})
    (_, without), _ = pull(mixer, {name: streams[name] for name in ("image", "text")})
    close(without, {name: alone[name] for name in ("image", "text")})
    padded = {
        "image": jnp.insert(streams["image"], jnp.asarray([0, 2, 4]), jnp.nan, axis=0),
        "text": jnp.insert(streams["text"], jnp.asarray([3, 3]), jnp.inf, axis=0),
        "sound": jnp.full((2, 8), jnp.nan),
    }
    real = {name: jnp.isfinite(x[:, 0]) for name, x in padded.items()}
    context = lx.StreamsContext({n: lx.SequenceContext(mask=mask) for n, mask in real.items()})
    (_, y), d = pull(mixer, padded, context)
    assert not any(np.any(y[name][~real[name]]) for name in NAMES)
    close({name: y[name][real[name]] for name in NAMES}, alone)
    close({name: d[name][real[name]] for name in NAMES}, d_alone)


def test_documents_are_alone(mixer, streams):
    """Of two documents the second has no sound, and image and text of other lengths."""
    ids = {"image": [3, 3, 3, 7], "text": [3, 3, 7, 7, 7], "sound": [3, 3, 3]}
    ids = {name: jnp.asarray(one) for name, one in ids.items()}
    context = lx.StreamsContext({n: lx.SequenceContext(segment_ids=one) for n, one in ids.items()})
    (_, packed), _ = pull(mixer, streams, context)
    for number in (3, 7):
        own = {name: x[np.asarray(ids[name]) == number] for name, x in streams.items()}
        (_, alone), _ = pull(mixer, own)
        close({name: packed[name][np.asarray(ids[name]) == number] for name in NAMES}, alone)


def test_nothing_sees_what_comes_later(mixer, streams):
    """In the joint order, whatever that is."""
    context = lx.StreamsContext(places=places())
    weights = {name: jnp.asarray(at) < 6 for name, at in places().items()}
    _, d = pull(mixer, streams, context, weights)
    later = {name: np.asarray(at) >= 6 for name, at in places().items()}
    assert not any(np.any(d[name][later[name]]) for name in NAMES)
    assert any(np.any(d[name][~later[name]]) for name in NAMES)


def test_one_stream_alone_is_plain_attention(key, streams):
    cfg = MIXERS["attention"]
    mixer = cfg.build(8, key)
    text = streams["text"]
    (_, y), _ = pull(mixer, {"text": text})
    expected = eqx.filter_jit(mixer.projections["text"])(text)
    np.testing.assert_allclose(y["text"], expected, atol=1e-6)


def test_a_run_of_a_bidirectional_modality_sees_itself(key, streams):
    """Each of its positions, up to the next one of another modality, and text only the past."""
    cfg = lx.MoTAttentionConfig(NAMES, num_heads=2, bidirectional=("image",))
    mixer = cfg.build(8, key)
    context = lx.StreamsContext(places=places())

    def flat(x):
        parts = {name: x[at] for name, at in places().items()}
        y = mixer(parts, context=context)
        joined = jnp.concatenate([y[name] for name in NAMES])
        return joined[jnp.argsort(jnp.concatenate([places()[name] for name in NAMES]))]

    x = jnp.asarray(np.random.default_rng(1).normal(size=(12, 8)), jnp.float32)
    sees = np.abs(jax.jit(jax.jacobian(flat))(x)).sum((1, 3)) > 1e-7
    expected = np.tril(np.ones((12, 12), bool))
    expected[0, 1] = True  # the first run of images has two positions, the others one
    np.testing.assert_array_equal(sees, expected)
    chunk = {"image": streams["image"]}
    _, y = eqx.filter_jit(mixer.prefill)(mixer.init_state(8), chunk)
    np.testing.assert_allclose(y["image"], mixer(chunk)["image"], atol=1e-6)
    with pytest.raises(ValueError, match="read a whole run of it by `prefill`"):
        mixer.step(mixer.init_state(8), {"image": streams["image"][0]})


def test_given_turns_are_those_of_the_positions(key, streams):
    mixer = MIXERS["attention"].build(8, key)
    angles = jnp.arange(4.0)[:, None] * 10000.0 ** -jnp.arange(1)
    context = lx.StreamsContext(rope={"image": (jnp.cos(angles), jnp.sin(angles))})
    close(pull(mixer, streams, context)[0][1], pull(mixer, streams)[0][1])


def test_a_block_begins_as_the_identity_and_a_stack_is_its_blocks(key, streams):
    channel = lx.MixtureOfExpertsConfig(4, 2, 8)
    still = lx.MoTBlockConfig(NAMES, num_heads=2)
    experts = lx.MoTBlockConfig(
        NAMES, shared=lx.MinGRUSequenceMixerConfig(), channel_mixer=channel
    )
    y, _ = eqx.filter_jit(still.build(8, key))(streams)
    assert all(np.array_equal(y[name], streams[name]) for name in NAMES)
    lively = lx.MoTBlockConfig(NAMES, num_heads=2, start="random")
    stack = lx.StackConfig((((lively, experts), 2),)).build(8, key)
    whole, _ = eqx.filter_jit(stack)(streams)
    expected = streams
    for block in stack.layers():
        expected, _ = eqx.filter_jit(block)(expected)
    close(whole, {name: stack.final_norm[name](x) for name, x in expected.items()})
    step = eqx.filter_jit(stack.prefill)
    state, first = step(stack.init_state(12), {"image": streams["image"]})
    state, then = step(state, {"text": streams["text"]})
    assert int(state.cursor.joint.position) == 9
    close(first | then, {name: whole[name] for name in ("image", "text")}, 1e-4)


def test_bad_requests_say_why(key, streams):
    mixer = MIXERS["attention"].build(8, key)
    for wrong, message in (
        (
            {"video": streams["text"]},
            r"some of \['image', 'text', 'sound'\]. Received \['video'\]",
        ),
        ({}, "Received an empty one"),
        ({"text": streams["text"][:, :4]}, r"must have shape \(time, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            mixer(wrong)
    mask = lx.SequenceContext(mask=jnp.ones(3, bool))
    for context, message in (
        (lx.StreamsContext({"text": mask}), r"`mask` of the stream 'text' must have shape \(5,\)"),
        (lx.StreamsContext({"video": mask}), "is about 'video'"),
        (lx.StreamsContext(places={"text": jnp.arange(5)}), "must be given for 'image' as well"),
    ):
        with pytest.raises(ValueError, match=message):
            mixer(streams, context=context)
    ids = lambda *values: lx.SequenceContext(segment_ids=jnp.asarray(values))
    with pytest.raises(ValueError, match="All streams need `segment_ids`, or none"):
        mixer(streams, context=lx.StreamsContext({"text": ids(0, 0, 1, 1, 1)}))
    with pytest.raises(ValueError, match="must not fall"):
        lx.StreamsContext({"text": ids(1, 1, 0)})
    with pytest.raises(ValueError, match="every number from 0 to 4 once"):
        lx.StreamsContext(places={"text": jnp.asarray([0, 1, 1, 2, 3])})
    with pytest.raises(ValueError, match="cannot have `axis_name` yet"):
        lx.StreamsContext({"text": lx.SequenceContext(axis_name="time")})
    with pytest.raises(ValueError, match="a dict with one entry"):
        mixer.step(mixer.init_state(8), {name: x[0] for name, x in streams.items()})
    with pytest.raises(ValueError, match="build it with `is_causal=True`"):
        lx.MoTAttentionConfig(NAMES, is_causal=False).build(8, key).init_state(8)
    for options, message in (
        ({"modalities": ("a", "a")}, "none twice"),
        ({"modalities": ("a/b",)}, "none empty or with any of"),
        ({"modalities": ("a",), "bidirectional": ("b",)}, "some of modalities"),
        ({"modalities": ("a",), "num_heads": 3, "num_kv_heads": 2}, "a divisor of num_heads=3"),
    ):
        with pytest.raises(ValueError, match=message):
            lx.MoTBlockConfig(**options)
    shared = lx.MinGRUSequenceMixerConfig()
    with pytest.raises(ValueError, match="left out beside `shared`"):
        lx.MoTBlockConfig(NAMES, num_heads=2, shared=shared)
    plain = lx.ResidualBlockConfig(shared)
    with pytest.raises(ValueError, match="must all be for the same modalities"):
        lx.StackConfig((((plain, lx.MoTBlockConfig(NAMES)), 1),)).build(8, key)
