"""Runs that work: a model, a task, and the settings that train the one on the other."""

from ..models.presets import byte_language_model, digits_classifier
from ..tasks import DigitsTaskConfig, TextTaskConfig
from .optimizers import OptimizerConfig
from .run import RunConfig


def text_run() -> RunConfig:
    """A small hybrid language model on English text, in a few minutes on two CPU cores."""
    optimizer = OptimizerConfig(
        matrices="muon",
        learning_rate=4e-3,
        matrix_learning_rate=0.02,
        edge_learning_rate=8e-3,
        recurrence_learning_rate=2e-3,
        weight_decay=0.0,
        decay="linear",
    )
    return RunConfig(
        model=byte_language_model(),
        task=TextTaskConfig(length=256),
        optimizer=optimizer,
        steps=360,
        batch_size=8,
        log_every=1,
    )


def digits_run() -> RunConfig:
    """A classifier of handwritten digits, read pixel by pixel, in about a minute."""
    optimizer = OptimizerConfig(
        matrices="muon",
        learning_rate=4e-3,
        matrix_learning_rate=0.02,
        recurrence_learning_rate=1e-3,
        weight_decay=0.05,
        average=0.98,
    )
    return RunConfig(
        model=digits_classifier(),
        task=DigitsTaskConfig(),
        optimizer=optimizer,
        steps=900,
        batch_size=64,
        checkpoint_every=300,
    )
