"""Vathos's flat signature: its examples, and a mixer of one's own."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import linax_like as lx
from linax_like.initializers import normal
from linax_like.sequence_mixers.base import enter
from linax_like.tasks import DigitsTaskConfig
from linax_like.training.run import open_directory, read_config, RunConfig


KEY = jr.key(0, impl="rbg")
TOKENS = jnp.arange(9) % 7


def test_transformer():
    config = lx.presets.sequence_model(
        vocab_size=7, d_model=16, n_layers=2, max_len=16, pos_encoder=True, rope=True,
        spatial_args={"num_heads": 2, "causal": True}, channel_args={"expand": 4.0},
    )  # fmt: skip
    model = eqx.filter_eval_shape(config.build, KEY)
    assert eqx.filter_eval_shape(model, TOKENS).logits.shape == (9, 7)
    assert model.complexity == "O(L² · d + L · d²)"
    mixer = config.stack.layers[0].sequence_mixer
    assert mixer == lx.AttentionSequenceMixerConfig(num_heads=2, rope_base=10000.0)
    assert config.embedding.positions == lx.SinusoidalPositionsConfig()
    assert lx.LanguageModelConfig.from_json(config.to_json()) == config


def test_kronecker_language_model():
    config = lx.presets.sequence_model(
        vocab_size=7, d_model=16, n_layers=2, max_len=20, pos_encoder=lx.LearnedPositionsConfig,
        spatial_mixer=lx.KroneckerSequenceMixerConfig, spatial_args={"rank": 2},
        channel_mixer=lx.SwiGLUConfig,
    )  # fmt: skip
    model = config.build(KEY)

    @eqx.filter_jit
    def forms(model):
        state, _ = model.prefill(model.init_state(20), TOKENS[:5])
        _, stepped = model.step(state, TOKENS[5])
        return stepped.logits, model(TOKENS).logits[5]

    stepped, whole = forms(model)
    assert jnp.allclose(stepped, whole, atol=1e-5)
    assert model.complexity == "O(L^1.5 · d + L · d²)"
    assert config.embedding.positions == lx.LearnedPositionsConfig(20)
    mixer = config.stack.layers[0].sequence_mixer
    assert mixer == lx.KroneckerSequenceMixerConfig(20, rank=2)


@dataclass(frozen=True)
class CornerPositionsConfig(lx.AbstractGridPositionsConfig):
    def build(self, in_features, key):
        return CornerPositions(in_features)


class CornerPositions(lx.AbstractGridPositions):
    in_features: int = eqx.field(static=True)

    def __call__(self, sizes):
        return jnp.zeros((*sizes, self.in_features)).at[(0,) * (len(sizes) + 1)].set(5.0)


def test_vision_transformer_with_positions_of_ones_own():
    config = lx.presets.sequence_model(
        vocab_size=10, d_model=16, n_layers=2, max_len=4, pos_encoder=CornerPositionsConfig,
        embedder=lx.PatchEmbeddingConfig,
        embedder_args={"img_size": 8, "patch_size": 4, "in_chans": 1},
        unembedder=lx.ClassificationHeadConfig, unembedder_args={"pooling": "mean"},
        spatial_args={"causal": False},
    )  # fmt: skip
    model = eqx.filter_jit(config.build(KEY))
    image = jr.normal(KEY, (8, 8, 1))
    assert model(image).logits.shape == (10,)
    swapped = jnp.roll(image, 4, axis=0)  # without positions, patches would be a set
    assert not jnp.allclose(model(swapped).logits, model(image).logits, atol=1e-3)


def test_one_number_is_the_patch_size_of_all_axes():
    config = lx.presets.sequence_model(
        5, 16, 1, embedder=lx.PatchEmbeddingConfig, unembedder=lx.ClassificationHeadConfig,
        embedder_args={"img_size": (8, 8, 4), "patch_size": 4},
    )  # fmt: skip
    assert config.encoder.patch_size == (4, 4, 4)


@dataclass(frozen=True)
class LinearMixerConfig(lx.AbstractSequenceMixerConfig):
    max_length: int

    def build(self, in_features, key):
        weight = normal(key, (self.max_length, self.max_length), 0.01)
        return LinearMixer(in_features, weight)


class LinearMixer(lx.AbstractSequenceMixer):
    in_features: int = eqx.field(static=True)
    weight: jax.Array

    @property
    def causal(self):
        return True

    @property
    def complexity(self):
        return "O(L² · d)"

    def __call__(self, x, key=None, *, context=None):
        x, context = enter(self, x, context)
        return jnp.tril(self.weight)[: len(x), : len(x)] @ (x / self.in_features**0.5)

    def flop_count(self, spatial_dims, inference=False):
        return (2 if inference else 6) * spatial_dims[0] ** 2 * self.in_features


def test_a_mixer_of_ones_own_needs_no_registration():
    config = lx.presets.sequence_model(7, 16, 2, max_len=9, spatial_mixer=LinearMixerConfig)
    model = eqx.filter_eval_shape(config.build, KEY)
    assert eqx.filter_eval_shape(model, TOKENS).logits.shape == (9, 7)
    assert model.complexity == "O(L² · d + L · d²)"
    ours = lx.LinearSequenceMixerConfig(9).build(16, jr.key(3))
    x, mixer = jr.normal(KEY, (9, 16)), LinearMixer(16, ours.weight)
    assert jnp.allclose(mixer(x), ours(x), atol=1e-6)


def test_a_file_names_classes_of_linax_like_and_those_that_are_given(tmp_path):
    """It cannot make a program import anything else."""
    config = lx.presets.sequence_model(7, 16, 2, max_len=9, spatial_mixer=LinearMixerConfig)
    model = config.build(KEY)
    lx.save_pretrained(model, tmp_path / "saved")
    remedy = r"LinearMixerConfig.* is not a config of linax_like.*classes=\(LinearMixerConfig,\)"
    with pytest.raises(ValueError, match=remedy):
        lx.load_pretrained(tmp_path / "saved")
    again = lx.load_pretrained(tmp_path / "saved", classes=[LinearMixerConfig])
    assert (
        again.config
        == config
        == lx.LanguageModelConfig.from_json(config.to_json(), [LinearMixerConfig])
    )
    mixer = lambda model: next(model.stack.layers()).sequence_mixer
    assert jnp.array_equal(mixer(again).weight, mixer(model).weight)
    assert config.updated("stack.groups.0.1", 3).stack.layers == 3 * config.stack.layers[:1]
    run = RunConfig(config, DigitsTaskConfig())
    directory = open_directory(tmp_path / "run", run, resume=False)
    assert open_directory(directory, run, resume=True) == directory
    assert read_config(directory, [LinearMixerConfig]) == run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layers": 0}, "at least one layer"),
        ({"spatial_args": {"num_head": 2}}, "Did you mean `num_heads`"),
        ({"channel_args": {"widen": 2}}, "`MLPConfig` has no field `widen`"),
        ({"embedder": lx.PatchEmbeddingConfig}, "predicts tokens"),
        (
            {"embedder": lx.PatchEmbeddingConfig, "embedder_args": {"img_size": 9}},
            "multiple of `patch_size`",
        ),
        ({"embedder": lx.PatchEmbeddingConfig, "max_len": 100}, "196 patches"),
        ({"embedder": lx.LinearEncoderConfig, "pos_encoder": True}, "adds no positions"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        lx.presets.sequence_model(**({"vocab_size": 7, "d_model": 16, "n_layers": 2} | options))
