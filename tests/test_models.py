"""Models at their edge: what a user passes in, and what comes out."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import linax_like as lx
from linax_like.interop import load_weights, save_weights
from linax_like.models import presets
from linax_like.ops.cross_entropy import cross_entropy


VOCABULARY, FEATURES, TIME = 17, 16, 12
BLOCKS = (
    lx.ResidualBlockConfig(lx.LRUSequenceMixerConfig(4)),
    lx.ResidualBlockConfig(lx.AttentionSequenceMixerConfig(num_heads=2)),
)
STACK = lx.StackConfig(((BLOCKS, 2),))
TEXT = lx.LanguageModelConfig(VOCABULARY, FEATURES, STACK)
S5 = lx.StackConfig((((lx.ResidualBlockConfig(lx.S5SequenceMixerConfig(8)),), 2),))
KEY = jr.key(0, impl="rbg")


@pytest.fixture(scope="module")
def model():
    return TEXT.build(KEY)


@pytest.fixture(scope="module")
def tokens():
    return jr.randint(KEY, (TIME,), 0, VOCABULARY)


@pytest.fixture(scope="module")
def classifier():
    return lx.SequenceModelConfig(3, FEATURES, 5, S5).build(KEY)


def close(a, b, atol=2e-5):
    np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": lx.LanguageModelHeadConfig(tied=False, soft_cap=5.0)},
        {"embedding": lx.TokenEmbeddingConfig(positions=lx.LearnedPositionsConfig(TIME))},
        {"embedding": lx.TokenEmbeddingConfig(positions=lx.SinusoidalPositionsConfig())},
        {"dtype": "bfloat16"},
    ],
)
def test_reading_at_once_in_parts_and_step_by_step_agree(changes, tokens):
    model = dataclasses.replace(TEXT, **changes).build(KEY)
    segment_ids = jnp.asarray([0] * 5 + [1] * 7)
    context = lx.SequenceContext(segment_ids=segment_ids)
    whole = model(tokens, context=context).logits
    assert whole.shape == (TIME, VOCABULARY) and whole.dtype == jnp.float32
    atol = 0.15 if changes.get("dtype") == "bfloat16" else 2e-5
    state, head = model.prefill(
        model.init_state(TIME), tokens[:5], context=lx.SequenceContext(segment_ids=segment_ids[:5])
    )
    close(head.logits, whole[:5], atol)
    step = eqx.filter_jit(lambda state, token, context: model.step(state, token, context=context))
    for t in range(5, TIME):
        here = lx.SequenceContext(segment_ids=segment_ids[t])
        state, output = step(state, tokens[t], here)
        close(output.logits, whole[t], atol)
    alone = model(tokens[5:]).logits
    close(alone, whole[5:], atol)


def test_padding_tokens_may_be_anything(model, tokens):
    mask = jnp.ones((TIME,), bool).at[jnp.asarray([0, 4, 11])].set(False)
    padded = jnp.where(mask, tokens, -999)
    got = model(padded, context=lx.SequenceContext(mask=mask)).logits
    close(got[np.asarray(mask)], model(tokens[np.asarray(mask)]).logits)


def test_a_token_outside_the_vocabulary_cannot_pass_unnoticed(model, tokens):
    assert jnp.isnan(model(tokens.at[3].set(VOCABULARY)).logits[3]).all()
    assert jnp.isnan(model(tokens.at[3].set(-1)).logits[3]).all()


@pytest.mark.parametrize("vocabulary", [256, 300])
def test_tokens_may_be_bytes(vocabulary):
    """The size of their vocabulary, padded or not, is no byte."""
    stack = lx.StackConfig.from_layers(
        [lx.ResidualBlockConfig(lx.IdentitySequenceMixerConfig(), None)]
    )
    model = lx.LanguageModelConfig(vocabulary, 8, stack, pad_vocab_size_multiple=128).build(KEY)
    text = np.frombuffer(b"hello", np.uint8)
    got, expected = (model(jnp.asarray(text, dtype)).logits for dtype in (jnp.uint8, jnp.int32))
    np.testing.assert_array_equal(got, expected)


def test_pixels_may_be_bytes():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    patches = lx.PatchEmbeddingConfig((2, 2)).build(3, 8, KEY)
    rows = lx.LinearEncoderConfig().build(3, 8, KEY)
    for encoder, x in ((patches, pixels), (rows, pixels[0])):
        got, expected = (
            encoder(jnp.asarray(x, dtype), context=lx.SequenceContext())
            for dtype in (jnp.uint8, jnp.float32)
        )
        np.testing.assert_array_equal(got, expected)


def test_embedding_gradient_is_a_gathers(model, tokens):
    weight = jr.normal(KEY, (TIME, FEATURES))
    table = model.embedding.table
    got = jax.grad(lambda t: jnp.sum(weight * lx.encoders.token_embedding.embed(t, tokens)))(table)
    expected = np.zeros(table.shape)
    np.add.at(expected, np.asarray(tokens), np.asarray(weight))
    close(got, expected)


def test_training_step_under_an_explicit_mesh(model, tokens):
    batch = jnp.stack([tokens] * 8)

    def loss(model, batch):
        logits = jax.vmap(model)(batch).logits
        return cross_entropy(logits[:, :-1], batch[:, 1:]).mean()

    expected = eqx.filter_grad(loss)(model, batch)
    mesh = jax.make_mesh((8,), ("data",))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
        replicated = jax.device_put(model, NamedSharding(mesh, P()))
        got = eqx.filter_jit(eqx.filter_grad(loss))(replicated, sharded)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        close(a, b)


def test_pooling_leaves_padding_out(classifier):
    x = jr.normal(KEY, (TIME, 3))
    mask = jnp.arange(TIME) < 7
    context = lx.SequenceContext(mask=mask)
    padded = jnp.where(mask[:, None], x, jnp.nan)
    for pooling in ("mean", "last", "none"):
        for head in (lx.ClassificationHeadConfig(pooling), lx.RegressionHeadConfig(pooling)):
            cfg = dataclasses.replace(classifier.config, head=head)
            model = cfg.build(KEY)
            got, alone = model(padded, context=context)[0], model(x[:7])[0]
            close(got[:7] if pooling == "none" else got, alone)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooling_over_devices_is_as_on_one(classifier, pooling):
    cfg = dataclasses.replace(classifier.config, head=lx.ClassificationHeadConfig(pooling))
    model, x = cfg.build(KEY), jr.normal(KEY, (16, 3))
    mask = jnp.ones((16,), bool).at[jnp.asarray([2, 12, 13, 14, 15])].set(False)
    mesh = jax.make_mesh((4,), ("time",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(model, x, mask):
        return model(x, context=lx.SequenceContext(mask=mask, axis_name="time")).logits

    specs = (P(), P("time"), P("time"))
    split = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    close(jax.jit(split)(model, x, mask), model(x, context=lx.SequenceContext(mask=mask)).logits)


def test_outputs_are_named(classifier):
    x = jnp.ones((TIME, 3))
    assert classifier(x).logits.shape == (5,)
    regression = dataclasses.replace(classifier.config, head=lx.RegressionHeadConfig())
    assert regression.build(KEY)(x).values.shape == (TIME, 5)
    assert classifier(x).aux.loss == 0


def test_timesteps_reach_the_mixer_that_uses_them(classifier):
    x, ones = jr.normal(KEY, (TIME, 3)), jnp.ones((TIME,))
    plain = classifier(x).logits
    close(classifier(x, context=lx.SequenceContext(timesteps=ones)).logits, plain)
    assert not np.allclose(
        classifier(x, context=lx.SequenceContext(timesteps=3 * ones)).logits, plain
    )


def test_bad_input_says_why(model, classifier, tokens):
    for wrong, law in (
        (lambda: model(tokens[:0]), "empty sequence"),
        (lambda: classifier(jnp.ones((0, 3))), "empty sequence"),
        (lambda: classifier(jnp.ones((4, 2))), r"\(time, 3\)"),
        (lambda: model(tokens, context=lx.SequenceContext(timesteps=jnp.ones(TIME))), "timesteps"),
        (lambda: model(tokens, context=lx.SequenceContext(condition=jnp.ones(3))), "condition"),
        (
            lambda: classifier(
                jnp.ones((4, 3)), context=lx.SequenceContext(positions=jnp.arange(4))
            ),
            "positions",
        ),
        (lambda: lx.LanguageModelConfig(0, 8, STACK), "vocab_size"),
        (lambda: dataclasses.replace(TEXT, features=9).build(KEY), "features"),
    ):
        with pytest.raises(ValueError, match=law):
            wrong()


def test_cross_entropy_is_the_log_of_softmax():
    logits = jr.normal(KEY, (4, 7)).astype(jnp.bfloat16)
    labels = jnp.asarray([0, 6, 3, 3])
    p = np.asarray(logits, np.float64)
    p = np.exp(p) / np.exp(p).sum(-1, keepdims=True)
    loss = cross_entropy(logits, labels)
    assert loss.dtype == jnp.float32
    close(loss, -np.log(p[np.arange(4), labels]))


def test_weights_survive_a_file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(path, model)
    again = load_weights(path, eqx.filter_eval_shape(TEXT.build, KEY))
    assert eqx.tree_equal(model, again, typematch=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_damaged_file_is_refused(model, tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="There is no file"):
        load_weights(path, model)
    save_weights(path, model)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_weights(path, model)
    save_weights(path, TEXT.updated("vocab_size", 18).build(KEY))
    with pytest.raises(ValueError, match="embedding/table"):
        load_weights(path, model)


@pytest.mark.parametrize("preset", [presets.byte_language_model, presets.digits_classifier])
def test_presets_survive_json_and_build(preset):
    config = preset()
    again = lx.AbstractConfig.from_json(config.to_json())
    assert again == config and hash(again) == hash(config)
    model = eqx.filter_eval_shape(config.build, KEY)
    assert lx.count_parameters(model) > 10_000
    assert model.flop_count((64,)) > model.flop_count((64,), inference=True) > 0
