"""Every recurrence once more, as a loop in NumPy and float64; no code is shared with the package.

One file per mixer, with its `ORACLES`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from numpy import ndarray

from linax_like.sequence_mixers import AbstractSequenceMixerConfig


Values = Float[ndarray, "time features"]


@dataclass(frozen=True)
class Oracle:
    """What a mixer should return.

    - `run`: from the mixer with float64 NumPy arrays for parameters, and a float64 sequence, to the
        outputs, and the effective memory in steps: 1 / (1 - the largest |decay| of a step).
    """

    id: str
    config: AbstractSequenceMixerConfig
    run: Callable[..., tuple[Values, float]]


def all_oracles() -> list[Oracle]:
    names = sorted(m.name for m in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [oracle for module in modules for oracle in module.ORACLES]
