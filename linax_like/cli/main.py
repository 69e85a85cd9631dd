"""`linax-like`: train, generate, evaluate, inspect."""

import ctypes
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and returns the exit status: 0, 2 after bad input, 130 after Ctrl-C.

    - `arguments`: by default those of the command line.
    """
    import tyro

    from .evaluate import Evaluate
    from .generate import Generate
    from .inspect import Inspect
    from .train import Train

    subcommand = tyro.conf.subcommand
    commands = (
        Annotated[Train, subcommand("train")]
        | Annotated[Generate, subcommand("generate")]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Inspect, subcommand("inspect")]
    )
    command = tyro.cli(
        commands, prog="linax-like", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
    )
    _use_compilation_cache()
    _keep_freed_memory()
    try:
        command.run()
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"linax-like: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"linax-like: {interruption or 'stopped.'}", file=sys.stderr)
        return 130
    return 0


def _use_compilation_cache() -> None:
    """Keeps what was compiled for the next time, in the user's cache folder."""
    if jax.config.jax_compilation_cache_dir is None:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "linax_like" / "xla"))


def _keep_freed_memory() -> None:
    """Keeps what a step frees for the next step, where the C library is glibc.

    By default it goes back to the system, which hands it out anew page by page and zeroed: on a CPU
    that is an eighth of the time of the default run.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt, most = ctypes.CDLL(None).mallopt, 2**31 - 1
    arena_max, mmap_threshold, trim_threshold = -8, -3, -1  # M_… of <malloc.h>
    for option, value in ((arena_max, 1), (mmap_threshold, most), (trim_threshold, most)):
        mallopt(option, value)
