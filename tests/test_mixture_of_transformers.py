"""Mixtures of transformers as models: losses, generation after an image, warm start."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close, GOLDEN, load

import linax_like as lx
from linax_like.interop import huggingface
from linax_like.tasks.base import sum_up
from linax_like.training import init_state, make_train_step, OptimizerConfig


PATCHES = lx.ModalityConfig(
    3, lx.PatchEmbeddingConfig((2, 2), layout="sequence"), lx.RegressionHeadConfig(), 12
)
NAMES = ("image", "text")
SIZES = {"num_heads": 2, "num_kv_heads": 1, "qk_norm": True}
TEXT = lx.ResidualBlockConfig(
    lx.AttentionSequenceMixerConfig(**SIZES, norm=lx.RMSNormConfig(1e-5)),
    lx.SwiGLUConfig(expand=1.5),
    lx.RMSNormConfig(1e-5),
)
LANGUAGE = lx.LanguageModelConfig(
    11, 8, lx.StackConfig((((TEXT,), 2),), final_norm=lx.RMSNormConfig(1e-5))
)


@pytest.fixture(scope="module")
def language(key):
    return LANGUAGE.build(key)


@pytest.fixture(scope="module")
def mixture(language, key):
    model, _ = lx.mixture_of(language, "text", {"image": PATCHES}, key)
    draw = np.random.default_rng(0).normal
    # The image's own weights, so that the modalities differ.
    image = lambda m: m.stack.groups[0][0].sequence_mixer.projections["image"].v_proj
    return eqx.tree_at(image, model, jnp.asarray(draw(size=image(model).shape), jnp.float32))


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(1).normal
    return jnp.asarray(draw(size=(2, 4, 4, 3)), jnp.float32)


def test_without_an_image_it_is_the_language_model(mixture, language):
    tokens = jnp.asarray([1, 5, 2, 9])
    output = eqx.filter_jit(mixture)({"text": tokens})
    expected = eqx.filter_jit(language)(tokens)
    np.testing.assert_allclose(output.logits["text"], expected.logits, atol=1e-5)
    assert not output.values


@pytest.mark.parametrize("name", ["llama_rope3", "qwen3"])
def test_an_imported_folder_becomes_a_mixture(name, key, tmp_path):
    """Its text stream gives the folder's logits, also after the mixture was saved and loaded."""
    language = huggingface.load(GOLDEN / "huggingface" / name)
    mixture, report = lx.mixture_of(language, "text", {"image": PATCHES}, key)
    assert not report.missing
    lx.save_pretrained(mixture, tmp_path / "mixture")
    mixture = lx.load_pretrained(tmp_path / "mixture")
    with np.load(GOLDEN / "huggingface" / name / "io.npz") as file:
        tokens, expected = file["ids"][0], file["logits"][0]
    logits = eqx.filter_jit(mixture)({"text": jnp.asarray(tokens)}).logits["text"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_preset_spreads_experts(key):
    """Every second block has them, and none begins as more than the identity but for these."""
    experts = lx.MixtureOfExpertsConfig(2, 1, 8, balance_loss=1.0)
    modalities = {"image": PATCHES, "text": lx.ModalityConfig(11)}
    config = lx.presets.mixture_of_transformers(
        8, modalities, 4, num_heads=2, experts=experts, moe_frequency=2
    )
    has = [block.channel_mixer is experts for block in config.stack.layers]
    assert has == [False, True, False, True]
    output = eqx.filter_jit(config.build(key))({"text": jnp.asarray([1, 2, 3])})
    assert output.aux.loss >= 2  # of two blocks, each at least 1
    for options in ({"n_layer": 0}, {"n_layer": 2, "moe_frequency": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            lx.presets.mixture_of_transformers(8, modalities, **options)


def test_text_after_an_image_continues_it(mixture, images):
    """What is generated greedily is what the whole model says, image and ragged prompts included."""
    prompts, length = [[1, 5, 2], [7]], 5
    text = lx.generate(
        mixture, prompts, length, jr_key(), temperature=0.0, prefix={"image": images}
    )
    whole = eqx.filter_jit(lambda streams: mixture(streams).logits["text"])
    for image, prompt, new in zip(images, prompts, text.tokens, strict=True):
        tokens = np.asarray([*prompt, *new.tolist()])
        logits = whole({"image": image, "text": jnp.asarray(np.pad(tokens, (0, 8 - len(tokens))))})
        said = np.argmax(logits, -1)[len(prompt) - 1 : len(tokens) - 1]
        assert said.tolist() == new.tolist()
    other = lx.generate(
        mixture, prompts, length, jr_key(), temperature=0.0, prefix={"image": images[::-1]}
    )
    assert other.tokens.tolist() != text.tokens.tolist()


def jr_key():
    return jax.random.key(0, impl="rbg")


def test_losses_are_by_modality(mixture, images):
    tokens = jnp.asarray([[1, 5, 2, 9], [3, 3, 0, 4]])
    patches = jax.vmap(lambda image: lx.ops.patchify(image, (2, 2)))(images)
    targets = {"text": jnp.roll(tokens, -1, 1), "image": patches.reshape(2, 4, 12)}
    streams, masks = {"image": images, "text": tokens}, {"text": tokens > 2}
    losses, _ = eqx.filter_jit(lx.stream_losses)(mixture, streams, targets, masks=masks)
    outputs = jax.vmap(mixture)(streams)
    log_p = jax.nn.log_softmax(outputs.logits["text"])
    each = -np.take_along_axis(np.asarray(log_p), np.asarray(targets["text"])[..., None], -1)
    expected = (each[..., 0] * np.asarray(masks["text"])).sum()
    np.testing.assert_allclose(losses["text"].objective, expected, rtol=1e-5)
    squares = np.sum((outputs.values["image"] - targets["image"]) ** 2)
    np.testing.assert_allclose(losses["image"].loss, squares, rtol=1e-5)
    with pytest.raises(ValueError, match="has no head"):
        headless = eqx.tree_at(lambda m: m.heads, mixture, {"text": mixture.heads["text"]})
        lx.stream_losses(headless, streams, targets)


def test_what_a_loss_leaves_out_leaves_no_trace(mixture, images):
    streams = {"image": images, "text": jnp.asarray([[1, 5, 2, 9], [3, 3, 0, 4]])}
    counts = jnp.arange(8).reshape(2, 4) % 3 > 0

    @eqx.filter_jit
    def run(model, target):
        loss = lambda model: (
            lx.stream_losses(model, streams, {"image": target}, masks={"image": counts})[0][
                "image"
            ].objective
        )
        return eqx.filter_value_and_grad(loss)(model)

    target = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 12)), jnp.float32)
    clean, spoilt = (
        run(mixture, target),
        run(mixture, jnp.where(counts[..., None], target, jnp.nan)),
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, clean, spoilt))


def test_a_loss_of_pooled_values_reads_what_the_model_does(key):
    pooled = lx.ModalityConfig(
        3, encoder=lx.LinearEncoderConfig(), head=lx.RegressionHeadConfig("mean")
    )
    model = lx.presets.mixture_of_transformers(
        8, {"text": lx.ModalityConfig(5), "x": pooled}, 1
    ).build(key)
    rng = np.random.default_rng(0)
    streams = {
        "x": jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32),
        "text": jnp.ones((2, 2), int),
    }
    real = lx.StreamsContext({"x": lx.SequenceContext(mask=jnp.arange(8).reshape(2, 4) % 4 < 3)})
    target = jnp.ones((2, 3))
    losses, _ = lx.stream_losses(model, streams, {"x": target}, context=real)
    values = jax.vmap(lambda streams, real: model(streams, context=real).values["x"])(
        streams, real
    )
    np.testing.assert_allclose(losses["x"].loss, jnp.sum((values - target) ** 2), rtol=1e-5)


def test_a_frozen_modality_does_not_move_and_experts_are_counted(key, images):
    """By one bit, and from inside a mixture's blocks."""
    experts = lx.MixtureOfExpertsConfig(2, 1, 8, balance_loss=1.0)
    modalities = {"image": PATCHES, "text": lx.ModalityConfig(11)}
    cfg = lx.presets.mixture_of_transformers(8, modalities, 1, num_heads=2, experts=experts)
    model, frozen = cfg.build(key), ("*/text/*",)
    tokens = jnp.asarray([[1, 5, 2, 9], [3, 3, 0, 4]])
    batch = {"image": images, "text": tokens}

    def loss(model, batch, keys):
        losses, aux = lx.stream_losses(model, batch, {"text": batch["text"][:, ::-1]}, keys)
        return sum_up(losses["text"], tokens.size, aux)

    optimizer = OptimizerConfig(warmup=0.0).build(model, 4, frozen)
    step = eqx.filter_jit(make_train_step(loss, optimizer, seed=0, frozen=frozen))
    state, report = step(init_state(model, optimizer, frozen=frozen), batch)
    assert float(report.metrics.aux.routed) == 2 * (4 + 4)  # patches and words of two examples
    before, after = lx.named_arrays(model), lx.named_arrays(state.model)
    moved = {name for name, array in after.items() if not np.array_equal(array, before[name])}
    assert not any("/text/" in name for name in moved)
    assert "stack/0/sequence_mixer/projections/image/v_proj" in moved
    adapted = lx.lora(model, ("*/text/q_proj",), rank=2, key=key)
    assert eqx.tree_equal(adapted.merged, model)


def test_warm_start_from_the_references_names(key):
    """Positions that continue give the joint decoder's logits, positions of their own the mixture's."""
    golden = load("mixture_of_transformers/mot")
    prefix = "warm/dense/"
    source = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    for name, weight in source.items():  # a hidden layer of 12, filled up to a multiple of 8
        if ".mlp." in name:
            rows, columns = (4 if size == 12 else 0 for size in weight.shape)
            source[name] = np.pad(weight, ((0, rows), (0, columns)))
    tokens = jnp.asarray([3, 1, 4])
    for counting, logits in (
        ("restart", "warm/logits_mot_text"),
        ("continue", "warm/logits_jd_text"),
    ):
        block = lx.MoTBlockConfig(
            NAMES, **SIZES, counting=counting, channel_mixer=TEXT.channel_mixer, norm=TEXT.norm
        )
        stack = lx.StackConfig((((block,), 2),), final_norm=TEXT.norm)
        frames = lx.ModalityConfig(8, lx.LinearEncoderConfig(), None)
        words = lx.ModalityConfig(11, head=lx.LanguageModelHeadConfig(tied=False))
        modalities = (("image", frames), ("text", words))
        model = lx.MixtureOfTransformersConfig(8, modalities, stack).build(key)
        where = lambda m: (m.encoders["text"].table, m.heads["text"].weight)
        table, head = (
            source[name]
            for name in ("token_embedding.embedding.weight", "output_head.proj.weight")
        )
        model = eqx.tree_at(where, model, (jnp.asarray(table), jnp.asarray(head)))
        model, report = lx.warm_start_from_text_stack(model, source)
        assert not report.missing and len(report.copied) == 46
        features = {
            "image": jnp.asarray(prefix_features()),
            "text": model.encoders["text"](tokens, context=lx.SequenceContext()),
        }
        x, _ = eqx.filter_jit(model.stack)(features)
        got = model.heads["text"](x["text"], model.encoders["text"].table)
        assert_close(got, golden[logits][0], 1e-5)
    again, _ = lx.warm_start_from_text_stack(
        model, {f"transformer.{name}": array for name, array in source.items()}
    )
    assert eqx.tree_equal(again, model)


def prefix_features():
    """The image's features in the reference's cases: numbers made from a name, as it says there."""
    import zlib

    k = np.arange(16, dtype=np.uint64)
    x = (k * 2654435761 + zlib.crc32(b"prefix")) % 2**32
    x ^= x >> 15
    x = x * 2246822519 % 2**32
    x ^= x >> 13
    return ((x / 2**32 - 0.5) * 2).astype(np.float32).reshape(2, 8)


def test_warm_start_reports_and_refuses(language, mixture, key):
    model, report = lx.warm_start_from_text_stack(language, language)
    assert model is language and not report.copied
    partial = {"layers.0.attention.q_proj.weight": np.ones((8, 8), np.float32)}
    model, report = lx.warm_start_from_text_stack(mixture, partial)
    block = next(model.stack.layers())
    assert all((p.q_proj == 1).all() for p in block.sequence_mixer.projections.values())
    assert "stack/1/sequence_norms/text/weight" in report.missing
    assert "encoders/text/table" in report.kept
    with pytest.raises(ValueError, match="to the modality 'image', whose `stack/0/sequence_mixer"):
        lx.warm_start_from_text_stack(
            mixture, {"layers.0.attention.q_proj.weight": np.ones((4, 8), np.float32)}
        )
    experts = lx.MixtureOfExpertsConfig(2, 1, 8)
    experts = lx.MoTBlockConfig(NAMES, **SIZES, channel_mixer=experts)
    stack = lx.StackConfig((((experts,), 1),)).build(8, key)
    _, report = lx.warm_start_from_text_stack(stack, language)
    assert "0/channel_mixers/text/router" in report.kept
    assert report.copied["0/sequence_norms/text/weight"] == "stack/0/sequence_norm/weight"
    windowed = lx.ResidualBlockConfig(lx.AttentionSequenceMixerConfig(window=4))
    other = lx.LanguageModelConfig(11, 8, lx.StackConfig((((windowed,), 1),))).build(key)
    with pytest.raises(ValueError, match="has no counterpart for all options"):
        lx.mixture_of(other, "text", {"image": PATCHES}, key)


def test_bad_requests_say_why(mixture, language, images, key):
    with pytest.raises(ValueError, match="Both must name the same, in one order"):
        block = lx.MoTBlockConfig(("text", "image"))
        modalities = (("image", PATCHES), ("text", lx.ModalityConfig(11)))
        stack = lx.StackConfig((((block,), 1),))
        lx.MixtureOfTransformersConfig(8, modalities, stack).build(key)
    with pytest.raises(ValueError, match="some of"):
        mixture({"sound": images[0]})
    with pytest.raises(ValueError, match="axis of the 1 prompts first"):
        lx.generate(mixture, [1], 2, key, prefix={"image": images})
    with pytest.raises(ValueError, match="reads only tokens"):
        lx.generate(language, [1], 2, key, prefix={"image": images[:1]})
    with pytest.raises(ValueError, match="'image' has no `LanguageModelHead`"):
        lx.StreamLanguageModel(mixture, "image")
    with pytest.raises(ValueError, match="whose labels are tokens"):
        lx.ModalityConfig(3, lx.LinearEncoderConfig())
