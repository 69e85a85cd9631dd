"""What a run tells while it goes: lines of JSON, and events for TensorBoard."""

import json
import os
from pathlib import Path

import jax

from ..files import write_atomically
from .step import Report


Record = dict[str, int | float]


def to_record(step: int, report: Report) -> Record:
    """The means of a step, fetched from the device; of experts, if there are any:

    - `auxiliary_loss`: what is added to the loss.
    - `dropped`: the fraction of choices for which an expert had no room.
    - `load`: the most choices of an expert over the mean, averaged over layers and examples.
    """
    report = jax.device_get(report)
    metrics, aux = report.metrics, report.metrics.aux
    items = float(metrics.items)
    record = {
        "step": step,
        "loss": float(metrics.loss) / items,
        "accuracy": float(metrics.correct) / items,
        "gradient_norm": float(report.gradient_norm),
    }
    if aux.routed == 0:
        return record
    return record | {
        "auxiliary_loss": float(aux.loss) / items,
        "dropped": float(aux.dropped / aux.routed),
        "load": float(aux.busiest / aux.routed),
    }


def read_records(directory: str | os.PathLike) -> list[Record]:
    """The records of a run so far. A last line that was cut off in writing is left out."""
    path = Path(directory) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class MetricsLog:
    """Appends records to `metrics.jsonl` and to TensorBoard's events.

    - `step`: where the run goes on; records after it, of steps that were lost, are removed.
    """

    def __init__(self, directory: Path, step: int):
        from tensorboardX import SummaryWriter

        kept = [record for record in read_records(directory) if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(directory / "metrics.jsonl", text.encode())
        self._file = (directory / "metrics.jsonl").open("a")
        self._events = SummaryWriter(os.fspath(directory), purge_step=step + 1 if step else None)

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if name != "step":
                self._events.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        self._file.close()
        self._events.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()
