"""`linax-like evaluate`."""

from dataclasses import dataclass

import tyro

from ..training import load_run
from .report import report


@dataclass(frozen=True)
class Evaluate:
    """Show how well a trained model does on the data that was held out."""

    run_directory: tyro.conf.Positional[str]
    """The folder of a run."""

    def run(self) -> None:
        run = load_run(self.run_directory)
        task = run.config.task.load()
        print(task.describe(), flush=True)
        print(f"{run.directory}, step {run.step} of {run.config.steps}")
        report(run, task)
