"""`linax-like generate`."""

from dataclasses import dataclass

import jax.random as jr
import tyro

from ..inference import generate
from .models import load_model


@dataclass(frozen=True)
class Generate:
    """Continue a prompt with a language model, and show the text as it is made."""

    path: tyro.conf.Positional[str]
    """The folder of a run, of a saved model, or of a Hugging Face model."""
    prompt: str = "The "
    """The text to continue."""
    length: int = 200
    """How many tokens to generate at most; without a tokenizer.json in the folder, tokens are bytes."""
    temperature: float = 1.0
    """Divides the logits: below 1 is more certain, 0 takes the most likely token."""
    top_k: int | None = None
    """Draw from the most likely tokens only, so many of them."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities sum to this."""
    min_p: float | None = None
    """Draw from the tokens at least this many times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1, discourages tokens that were there before."""
    stop: str | None = None
    """End before this text, where it is generated."""
    seed: int = 0
    """Decides what is drawn."""

    def run(self) -> None:
        if self.stop == "":
            raise ValueError("`--stop` must be a text of at least one character. Leave it out.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"`--seed` must be from 0 to 2^63 - 1. Received {self.seed}.")
        model, tokenizer = load_model(self.path)
        prompt, stream = tokenizer.encode(self.prompt), tokenizer.stream()
        printer = Printer(stream.push(prompt), self.stop)
        try:
            generate(
                model,
                prompt,
                self.length,
                jr.key(self.seed),
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                repetition_penalty=self.repetition_penalty,
                stop_tokens=tokenizer.stop_tokens,
                callback=lambda _, tokens: printer.write(stream.push(tokens)),
            )
            printer.finish(stream.finish())
        except Stopped:
            print()


class Stopped(Exception):
    """The stop text was reached."""


class Printer:
    """Shows text as it comes, up to a stop text, of which nothing is shown.

    - `beginning`: shown before the first text.
    """

    def __init__(self, beginning: str, stop: str | None):
        self._beginning = beginning
        self._held = ""
        self._stop = stop

    def write(self, text: str) -> None:
        """Shows all but what may be the beginning of the stop text. Raises `Stopped` at its end."""
        self._held += text
        if self._stop is not None and self._stop in self._held:
            self._show(self._held.index(self._stop))
            raise Stopped
        self._show(len(self._held) - self._overlap())

    def finish(self, text: str) -> None:
        """Shows what is left, and ends the line."""
        self.write(text)
        self._show(len(self._held))
        print()

    def _show(self, count: int) -> None:
        print(self._beginning + self._held[:count], end="", flush=True)
        self._beginning, self._held = "", self._held[count:]

    def _overlap(self) -> int:
        """How long the end of what is held is also the beginning of the stop text."""
        if self._stop is None:
            return 0
        sizes = range(min(len(self._stop), len(self._held)), 0, -1)
        return next((n for n in sizes if self._held.endswith(self._stop[:n])), 0)
