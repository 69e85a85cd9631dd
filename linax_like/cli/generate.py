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
    """End before this text."""
    seed: int = 0
    """Decides what is drawn."""

    def run(self) -> None:
        model, tokenizer = load_model(self.path)
        prompt, stream, printer = tokenizer.encode(self.prompt), tokenizer.stream(), Printer(self.stop)
        started = stream.push(prompt)  # a character may begin in the prompt, and end after it

        def show(row: int, tokens) -> None:
            nonlocal started
            printer.begin(started)
            started = ""
            printer.write(stream.push(tokens))

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
                callback=show,
            )
            printer.write(stream.finish())
            printer.finish()
        except StopText:
            pass
        print()
