"""Tasks: data that depends on seed and step alone, and evaluations that count everything once."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import linax_like as lx
from linax_like.tasks import DigitsTaskConfig, TextTaskConfig
from linax_like.tasks.digits import distort
from linax_like.tasks.text import held_out_losses
from linax_like.types import no_aux


ABC = bytes(range(97, 123)) * 8  # the alphabet, eight times


class Repeater:
    """A language model that is certain that the next byte is the one after this one."""

    def __call__(self, tokens, key=None):
        return lx.Logits(20.0 * (jnp.arange(256) == (tokens[:, None] + 1)), no_aux())


@pytest.fixture(scope="module")
def digits():
    return DigitsTaskConfig().load()


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "alphabet.txt"
    path.write_bytes(ABC)
    return str(path)


def test_batches_depend_on_seed_and_step_alone(digits, text_file):
    for task in (digits, TextTaskConfig(path=text_file, length=16).load()):
        first, again = task.batch(3, 7, 4), task.batch(3, 7, 4)
        for name in ("inputs", "targets"):
            np.testing.assert_array_equal(first[name], again[name])
            assert len(first[name]) == 4
        for other in (task.batch(3, 8, 4), task.batch(4, 7, 4)):
            assert not np.array_equal(first["inputs"], other["inputs"])


def test_default_text_is_the_reference_manual():
    from pydoc_data.topics import topics

    task = TextTaskConfig().load()
    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    assert task.train.tobytes() + task.test.tobytes() == text
    assert len(task.test) == len(text) // 10
    assert task.sha256 in task.describe()


def test_text_targets_are_the_next_bytes_of_the_training_part(text_file):
    task = TextTaskConfig(path=text_file, length=16).load()
    batch = task.batch(0, 0, 64)
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    np.testing.assert_array_equal((batch["inputs"] - 97 + 1) % 26, batch["targets"] - 97)


@pytest.mark.parametrize("context", [None, 0, 5, 15])
def test_every_held_out_byte_is_scored_once(text_file, context):
    cfg = TextTaskConfig(path=text_file, length=16, context=context)
    task = cfg.load()
    losses = held_out_losses(Repeater(), task.train, task.test, cfg)
    assert losses.shape == task.test.shape
    # The model is right but for the wrap from z to a.
    np.testing.assert_array_equal(losses > 1, task.test == ord("a"))
    expected = losses.mean() / math.log(2)
    assert task.evaluate(Repeater())["bits_per_byte"] == pytest.approx(expected)


def test_held_out_losses_are_those_of_one_long_window():
    """A model that looks one byte back scores the same with any context."""
    cfg = TextTaskConfig(length=32)
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, 100, np.uint8), rng.integers(0, 256, 45, np.uint8)
    table = rng.normal(size=(256, 256)).astype(np.float32)

    class Table:
        def __call__(self, tokens, key=None):
            return lx.Logits(jnp.asarray(table)[tokens], no_aux())

    before = np.concatenate([train[-1:], test[:-1]])
    logits = table[before].astype(np.float64)
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(45), test]
    np.testing.assert_allclose(held_out_losses(Table(), train, test, cfg), expected, rtol=1e-5)


def test_compressors_see_the_training_part(text_file):
    baselines = TextTaskConfig(path=text_file, length=16).load().baselines()
    assert set(baselines) == {"gzip", "bz2", "xz"}
    assert baselines["gzip"] < 2  # a repeated alphabet costs nearly nothing


def test_text_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        TextTaskConfig(path=str(tmp_path / "missing.txt")).load()
    (tmp_path / "short.txt").write_bytes(b"too short")
    with pytest.raises(ValueError, match="9 bytes, too few for examples of 512 bytes"):
        TextTaskConfig(path=str(tmp_path / "short.txt")).load()
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 100)  # any bytes are a text
    assert TextTaskConfig(path=str(tmp_path / "binary"), length=16).load().test[0] == 255
    with pytest.raises(ValueError, match="`context` must be"):
        TextTaskConfig(length=16, context=16)


def test_digits_are_split_evenly_over_the_classes(digits):
    assert len(digits.train.labels) == 1437 and len(digits.test.labels) == 360
    for images in (digits.train, digits.test):
        counts = np.bincount(images.labels, minlength=10) / len(images.labels)
        assert np.abs(counts - 0.1).max() < 0.01
    rows = lambda images: {image.tobytes() for image in images.pixels}
    assert not rows(digits.train) & rows(digits.test)
    other = DigitsTaskConfig(split_seed=1).load()
    assert not np.array_equal(other.test.labels, digits.test.labels)


def upper_bounds(_, low, high, size):
    return np.broadcast_to(high, size)


def test_distortion_moves_whole_pixels_exactly():
    cfg = DigitsTaskConfig(shift=0.0, rotation=0.0, zoom=0.0)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8)).astype(np.float32)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(distort(images, cfg, rng), images, atol=1e-6)

    rng: Any = np.random.default_rng(0)
    rng = type("UpperBounds", (np.random.Generator,), {"uniform": upper_bounds})(rng.bit_generator)
    cfg = DigitsTaskConfig(shift=1.0, rotation=0.0, zoom=0.0)
    moved = distort(images, cfg, rng)
    np.testing.assert_allclose(moved[:, :-1, :-1], images[:, 1:, 1:], atol=1e-6)
    np.testing.assert_allclose(moved[:, -1], -1.0)


def test_only_some_images_are_distorted(digits):
    sharp = {image.tobytes() for image in digits.train.pixels}
    images = digits.batch(0, 0, 200)["inputs"]
    assert 0.35 < np.mean([image.tobytes() in sharp for image in images]) < 0.65


def test_digits_evaluation_counts_the_test_part(digits):
    class Guess:
        """Takes every image for the digit 3."""

        def __call__(self, x, key=None):
            return lx.Logits(5.0 * (jnp.arange(10) == 3) + 0 * x.sum(), no_aux())

    matrix = digits.confusion_matrix(Guess())
    assert matrix.sum() == 360 and matrix[:, 3].sum() == 360
    assert digits.evaluate(Guess())["accuracy"] == pytest.approx(matrix[3, 3] / 360)


def test_tasks_refuse_models_that_do_not_fit(digits, text_file):
    block = lx.ResidualBlockConfig(lx.LRUSequenceMixerConfig(4))
    stack = lx.StackConfig((((block,), 1),))
    classifier = lx.SequenceModelConfig(1, 8, 10, stack)
    with pytest.raises(ValueError, match="vocab_size=None"):
        TextTaskConfig(path=text_file, length=16).load().check(classifier)
    with pytest.raises(ValueError, match="vocab_size=100"):
        small = lx.LanguageModelConfig(100, 8, stack)
        TextTaskConfig(path=text_file, length=16).load().check(small)
    with pytest.raises(ValueError, match="out_features=3"):
        digits.check(lx.SequenceModelConfig(1, 8, 3, stack))
    digits.check(classifier)
