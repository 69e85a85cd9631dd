"""Pictures of a run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from .metrics import Record


def plot_loss(path: Path, records: Sequence[Record]) -> None:
    """The training loss over the steps, with its running mean."""
    from matplotlib.figure import Figure

    steps = np.asarray([record["step"] for record in records])
    losses = np.asarray([record["loss"] for record in records])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="step")
    axes.plot(steps, _running_mean(losses), color="tab:blue", linewidth=2, label="running mean")
    axes.set(xlabel="step", ylabel="loss (nats)", title="Training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_confusion(path: Path, matrix: Int[np.ndarray, "classes classes"]) -> None:
    """A confusion matrix, with the counts written in."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.sqrt(matrix), cmap="Blues")  # the root, so that single errors show
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if row == column else "black"
        axes.text(column, row, str(count) if count else "", ha="center", va="center", color=color)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set(xlabel="predicted", ylabel="true", title=f"Held-out accuracy {100 * accuracy:.2f} %")
    axes.set(xticks=range(len(matrix)), yticks=range(len(matrix)))
    figure.savefig(path, dpi=120)


def _running_mean(values: np.ndarray, decay: float = 0.9) -> np.ndarray:
    mean, out = values[:1].mean() if len(values) else 0.0, []
    for value in values:
        mean = decay * mean + (1 - decay) * value
        out.append(mean)
    return np.asarray(out)
