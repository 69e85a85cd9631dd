"""What is shown of a trained model."""

import jax.random as jr
import numpy as np

from ..inference import generate
from ..tasks import AbstractTask, DigitsTask, TextTask
from ..tokenizers import ByteTokenizer
from ..training import Run
from ..training.plots import plot_confusion


def report(run: Run, task: AbstractTask) -> dict[str, float]:
    """Prints how well a model does on the held-out data of its task, and returns the numbers."""
    results = task.evaluate(run.model)
    if isinstance(task, TextTask):
        return results | _report_text(run, task, results["bits_per_byte"])
    if isinstance(task, DigitsTask):
        _report_digits(run, task, results)
    return results


def _report_text(run: Run, task: TextTask, bits_per_byte: float) -> dict[str, float]:
    baselines = task.baselines()
    print(
        "\nBits per held-out byte (compressors: what the held-out part adds to the training text)"
    )
    for name, value in ({"this model": bits_per_byte} | baselines).items():
        print(f"  {name:<12}{value:.3f}")
    tokenizer = ByteTokenizer()
    prompt = tokenizer.encode("The ")
    made = generate(run.model, prompt, 200, jr.key(run.config.seed), temperature=0.8)
    print(f"\nA sample:\n{tokenizer.decode([*prompt, *np.asarray(made.tokens)])}\n")
    return baselines


def _report_digits(run: Run, task: DigitsTask, results: dict[str, float]) -> None:
    matrix = task.confusion_matrix(run.model)
    print("\nConfusion matrix (rows: the digit, columns: what it was taken for)")
    for row in matrix:
        print("  " + "".join(f"{count:4d}" for count in row))
    print(f"\nHeld-out accuracy {100 * results['accuracy']:.2f} %, loss {results['loss']:.4f}\n")
    plot_confusion(run.directory / "confusion.png", matrix)
