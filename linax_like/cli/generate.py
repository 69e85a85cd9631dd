"""`linax-like generate`."""

from dataclasses import dataclass

import tyro

from ..models import LanguageModel
from ..training import load_run
from .report import continue_text


@dataclass(frozen=True)
class Generate:
    """Continue a prompt with a trained language model."""

    run_directory: tyro.conf.Positional[str]
    """The folder of a run."""
    prompt: str = "The "
    """The text to continue."""
    length: int = 200
    """How many bytes to generate."""
    temperature: float = 1.0
    """Divides the logits: below 1 is more certain, 0 takes the most likely byte."""
    top_k: int | None = None
    """Draw from the most likely bytes only, so many of them."""
    top_p: float | None = None
    """Draw from the fewest bytes whose probabilities sum to this."""
    seed: int = 0
    """Decides what is drawn."""

    def run(self) -> None:
        run = load_run(self.run_directory)
        if not isinstance(run.model, LanguageModel):
            raise ValueError(
                f"The run in `{self.run_directory}` trained a `{type(run.model).__name__}`, which "
                "does not generate: give the folder of a language model's run."
            )
        text = continue_text(
            run.model,
            self.prompt,
            self.length,
            self.seed,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )
        print(text)
