"""How a run shows itself: a live bar on a terminal, plain lines elsewhere."""

import time

from .metrics import Record


_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows loss, tokens per second and time left.

    - `step`, `steps`: where the run begins, and where it ends. The first update, behind which is the
        compilation, does not count for the time left.
    - `shown`: False shows nothing.
    """

    def __init__(self, step: int, steps: int, shown: bool):
        from rich.console import Console

        self._steps = steps
        self._first: tuple[int, float] | None = None  # step and time of the first, which compiled
        self._last_line = time.monotonic()
        self._shown = shown
        console = Console()
        self._bar = _bar(console) if shown and console.is_terminal else None
        if self._bar is not None:
            self._task = self._bar.add_task(
                "training", total=steps, completed=step, loss=float("nan"), rate=0.0
            )

    def update(self, record: Record) -> None:
        step, loss, rate = int(record["step"]), record["loss"], record["tokens_per_second"]
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=loss, rate=rate)
            return
        now = time.monotonic()
        if self._first is None:
            self._first = step, now
            return
        due = now - self._last_line >= _SECONDS_BETWEEN_LINES
        if self._shown and (due or step == self._steps):
            first, start = self._first
            left = (now - start) / (step - first) * (self._steps - step)
            line = f"step {step}/{self._steps}  loss {loss:.4f}  {rate:,.0f} tokens/s  {left:.0f} s left"
            print(line, flush=True)
            self._last_line = now

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(console):
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} tokens/s"),
        progress.TimeRemainingColumn(),
        console=console,
    )
