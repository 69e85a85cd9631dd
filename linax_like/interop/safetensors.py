"""Weights as safetensors: public names and plain arrays, nothing that could be executed.

model = config.build(key)
save_weights("model.safetensors", model)
model = load_weights("model.safetensors", eqx.filter_eval_shape(config.build, key))
"""

import os
from typing import TypeVar

import jax
from jaxtyping import PyTree

from ..files import write_atomically
from ..paths import named_arrays, with_arrays


Model = TypeVar("Model", bound=PyTree)


def save_weights(path: str | os.PathLike, model: PyTree) -> None:
    """Writes every array of `model` under its public name. The file appears whole or not at all."""
    from safetensors.numpy import save

    write_atomically(path, save(jax.device_get(named_arrays(model))))


def load_weights(path: str | os.PathLike, skeleton: Model) -> Model:
    """The model of `skeleton` with the weights of a file, bit for bit.

    - `skeleton`: a model, or its shapes from `eqx.filter_eval_shape(config.build, key)`.

    **Raises:** `ValueError` if the file is missing, is not whole, or does not fit the skeleton.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except FileNotFoundError:
        raise ValueError(f"There is no file `{path}`.") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"`{path}` is not a whole safetensors file: {error}.") from None
    return with_arrays(skeleton, arrays)
