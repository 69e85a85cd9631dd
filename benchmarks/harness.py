"""Measures programs side by side, in one process, and writes down what was found.

A program is warmed up, then timed in turns with those it is compared with, so that whatever else the
machine does meets all of them. Reported are medians; ratios are of medians.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import linax_like


RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function.

    - `compile_seconds`: to trace, lower and compile it; the median of several times.
    - `temporary_bytes`: the most memory it takes beside its inputs and outputs.
    """

    run: Callable
    compile_seconds: float
    temporary_bytes: int


def compile_in_turns(
    functions: Mapping[str, Callable], arguments: Mapping[str, tuple], repeats: int = 5
) -> dict[str, Program]:
    """Compiles every function `repeats` times, in turns, each from scratch."""
    compiled, seconds = {}, {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            fresh = jax.jit(lambda *args, function=function: function(*args))
            start = time.perf_counter()
            compiled[name] = fresh.lower(*arguments[name]).compile()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Program(
            program,
            statistics.median(seconds[name]),
            program.memory_analysis().temp_size_in_bytes,
        )
        for name, program in compiled.items()
    }


def time_in_turns(
    functions: Mapping[str, Callable], arguments: Mapping[str, tuple], repeats: int = 30
) -> dict[str, float]:
    """The median seconds of every function, in turns.

    In its turn a function is called twice, and the second call is timed: the first finds the caches
    full of what another function left there.
    """
    seconds = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            jax.block_until_ready(function(*arguments[name]))
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments[name]))
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def difference(a: Any, b: Any) -> float:
    """The largest difference of two arrays, relative to the largest number of the second."""
    a, b = np.asarray(a), np.asarray(b)
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


def environment(*packages: str) -> dict[str, Any]:
    """The machine, and the versions of linax_like, of JAX and of the named packages."""
    names = ("jax", "jaxlib", "equinox", "numpy", *packages)
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {"linax_like": linax_like.__version__}
        | {name: importlib.metadata.version(name) for name in names},
    }


def write(name: str, rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> None:
    """Writes `results/<name>.json` and the same as a table in `results/<name>.md`; prints the table."""
    RESULTS.mkdir(exist_ok=True)
    content = {"environment": where, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    text = f"{_describe(where)}\n\n{table(rows)}\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(f"\n{text}", flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as Markdown, with a column for every key."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_show(row.get(column, "")) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _show(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _describe(where: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return (
        f"{where['date']}, {where['device']} ({where['processor']}, {where['cores']} cores, load "
        f"{where['load']}), Python {where['python']}, {versions}."
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
