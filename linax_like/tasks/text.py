"""Text, byte by byte: predict the next byte."""

import bz2
import gzip
import hashlib
import lzma
import math
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from ..config import AbstractConfig, require, require_positive
from ..models import LanguageModelConfig, token_loss
from ..ops.cross_entropy import cross_entropy
from .base import AbstractTask, AbstractTaskConfig, Batch, Metrics, sum_up


_BATCH_OF_WINDOWS = 16  # windows per evaluation batch; its compiled program serves any text


@dataclass(frozen=True)
class TextTaskConfig(AbstractTaskConfig):
    """Random crops of a text's bytes.

    - `path`: the file; None for the reference manual that every Python carries (about half a
        megabyte of English and code).
    - `length`: bytes per example.
    - `held_out`: the fraction at the text's end that is kept for evaluation.
    - `context`: how many bytes before it the evaluation shows the model, at the least, for every
        byte. More is more exact and takes longer. None for three quarters of `length`.
    """

    path: str | None = None
    length: int = 512
    held_out: float = 0.1
    context: int | None = None

    def __post_init__(self):
        require_positive(self, "length")
        require(0 < self.held_out < 1, self, "held_out", "between 0 and 1")
        valid = self.context is None or 0 <= self.context < self.length
        require(valid, self, "context", f"None, or at least 0 and below length={self.length}")

    def load(self) -> "TextTask":
        return TextTask(self)


class TextTask(AbstractTask):
    """The bytes of a text, split into a training part and a held-out end.

    **Raises:** `ValueError` if the file cannot be read, or is too short.
    """

    config: TextTaskConfig
    train: UInt8[np.ndarray, " bytes"]
    test: UInt8[np.ndarray, " held_out"]
    sha256: str

    def __init__(self, cfg: TextTaskConfig):
        text = _read(cfg)
        split = len(text) - int(len(text) * cfg.held_out)
        if split < cfg.length + 1 or split == len(text):
            needed = math.ceil((cfg.length + 1) / (1 - cfg.held_out)) + 1
            raise ValueError(
                f"The text {_name(cfg)} has {len(text):,} bytes, too few for examples of "
                f"{cfg.length} bytes: give a text of at least {needed:,} bytes, or set a smaller "
                "`task.length`."
            )
        data = np.frombuffer(text, np.uint8)
        self.config = cfg
        self.train, self.test = data[:split], data[split:]
        self.sha256 = hashlib.sha256(text).hexdigest()

    @property
    def tokens_per_example(self) -> int:
        return self.config.length

    def describe(self) -> str:
        return (
            f"{_name(self.config)}: {len(self.train):,} bytes to train on, {len(self.test):,} "
            f"held out, SHA-256 {self.sha256}"
        )

    def check(self, model: AbstractConfig) -> None:
        if not isinstance(model, LanguageModelConfig) or model.vocab_size < 256:
            raise ValueError(
                "`TextTaskConfig` needs a `LanguageModelConfig` with a `vocab_size` of at least "
                "256, one token per byte value. Received "
                f"`{type(model).__name__}(vocab_size={getattr(model, 'vocab_size', None)})`."
            )

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        length = self.config.length
        rng = np.random.default_rng((seed, step))
        starts = rng.integers(0, len(self.train) - length, batch_size)
        crops = self.train[starts[:, None] + np.arange(length + 1)].astype(np.int32)
        return {"inputs": crops[:, :-1], "targets": crops[:, 1:]}

    def loss(
        self, model: PyTree, batch: PyTree[Array], keys: Key[Array, " batch"] | None
    ) -> Metrics:
        sums, aux = token_loss(model, batch["inputs"], batch["targets"], keys)
        return sum_up(sums, batch["targets"].size, aux)

    def evaluate(self, model: PyTree) -> dict[str, float]:
        """Bits per held-out byte, each predicted once from the text before it.

        Windows of `length` bytes move over the held-out part and score their last bytes; the first
        ones reach back into the training part.
        """
        nats = held_out_losses(model, self.train, self.test, self.config)
        return {"bits_per_byte": float(nats.mean() / math.log(2))}

    def baselines(self) -> dict[str, float]:
        """Bits per held-out byte of compressors that know the training part."""
        train, text = self.train.tobytes(), self.train.tobytes() + self.test.tobytes()
        compressors = {
            "gzip": lambda data: gzip.compress(data, 9),
            "bz2": lambda data: bz2.compress(data, 9),
            "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
        }
        return {
            name: 8 * (len(compress(text)) - len(compress(train))) / len(self.test)
            for name, compress in compressors.items()
        }


def held_out_losses(
    model: PyTree,
    train: UInt8[np.ndarray, " bytes"],
    test: UInt8[np.ndarray, " held_out"],
    cfg: TextTaskConfig,
) -> Float[np.ndarray, " held_out"]:
    """The loss of every held-out byte, in nats."""
    length = cfg.length
    context = 3 * length // 4 if cfg.context is None else cfg.context
    stride = length - context
    text = np.concatenate([train[-(context + 1) :], test])
    # A window of length + 1 bytes scores its last `stride`; the first one ends the training part.
    starts = np.arange(0, len(test), stride)
    windows = text[np.minimum(starts[:, None] + np.arange(length + 1), len(text) - 1)]
    losses = []
    for chunk in np.split(windows, range(_BATCH_OF_WINDOWS, len(windows), _BATCH_OF_WINDOWS)):
        padded = np.resize(chunk, (_BATCH_OF_WINDOWS, length + 1)).astype(np.int32)
        losses.append(np.asarray(_window_losses(model, padded))[: len(chunk)])
    return np.concatenate(losses)[:, context:].reshape(-1)[: len(test)]


@eqx.filter_jit
def _window_losses(
    model: PyTree, windows: Int[Array | np.ndarray, "batch window"]
) -> Float[Array, "batch time"]:
    logits = jax.vmap(model)(jnp.asarray(windows[:, :-1])).logits
    return cross_entropy(logits, jnp.asarray(windows[:, 1:]))


def _name(cfg: TextTaskConfig) -> str:
    return "of Python's reference manual" if cfg.path is None else f"`{cfg.path}`"


def _read(cfg: TextTaskConfig) -> bytes:
    if cfg.path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics)).encode()
    try:
        return Path(cfg.path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"The text file `{cfg.path}` cannot be read ({error.strerror}): give the path of an "
            "existing file."
        ) from None
