"""A folder of weights: `config.json` beside safetensors, in one file or in shards with an index.

Nothing in it is executed, a pickled file is refused, and a folder appears whole or not at all.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import PyTree

from ..paths import array_places, Place


CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class WeightFolder:
    """The tensors of a folder: their shapes, and one by one their numbers.

    - `folder`: where they are.
    - `shapes`: by name.

    **Raises:** `ValueError` if a file is missing, pickled, not whole or not what the index says.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._files = {name: _open(self.folder / name) for name in _file_names(self.folder)}
        self._homes = {name: file for file in self._files for name in self._files[file].keys()}
        self.shapes = {
            name: tuple(self._files[file].get_slice(name).get_shape())
            for name, file in self._homes.items()
        }
        for name, file in _weight_map(self.folder).items():
            if self._homes.get(name) != file:
                raise ValueError(f"The tensor `{name}` is missing from `{self.folder / file}`.")

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor, in the file's dtype."""
        file = self._homes[name]
        try:
            return self._files[file].get_tensor(name)
        except Exception as error:  # for a dtype that NumPy lacks, of several kinds
            where = self.folder / file
            raise ValueError(
                f"The tensor `{name}` of `{where}` cannot be read: {error}."
            ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    **Raises:** `ValueError` if there is none.
    """
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"There is no file `{path}`.") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"`{path}` is not a JSON file: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"`{path}` must hold a JSON object, not {str(values):.40}.")
    return values


def fill(
    skeleton: PyTree,
    read: Callable[[str], np.ndarray],
    dtype: DTypeLike | None,
    sharding: Sharding | PyTree[Sharding] | None,
) -> PyTree:
    """The model of a skeleton, each array read by its public name and put where it belongs.

    - `read`: called once for each name, so that never more than one leaf is held twice.
    - `dtype`: of floating-point arrays; None keeps what was read.
    - `sharding`: one for all arrays, or a tree of them like the skeleton; None for the default device.

    **Raises:** `ValueError` that names an array of whole numbers where there should be none.
    """
    parameters = None if dtype is None else jnp.dtype(dtype)

    def read_one(name: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        array = read(name)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.asarray(array, leaf.dtype)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"The array `{name}` must be floating-point, not {array.dtype.name}.")
        return np.asarray(array, parameters)

    def load(place: Place, leaf: jax.ShapeDtypeStruct, sharding: Sharding | None) -> jax.Array:
        if not place.stacked:
            return jax.device_put(read_one(place.names[0], leaf), sharding)
        stacked = None
        for i, name in enumerate(place.names):
            array = read_one(name, leaf)
            stacked = np.empty(leaf.shape, array.dtype) if stacked is None else stacked
            dtype_of_all = jnp.promote_types(stacked.dtype, array.dtype)
            stacked = stacked.astype(dtype_of_all, copy=False)
            stacked[i] = array
        return jax.device_put(stacked, sharding)

    places = array_places(skeleton)
    if sharding is None or isinstance(sharding, Sharding):
        return jax.tree.map(lambda place, leaf: load(place, leaf, sharding), places, skeleton)
    return jax.tree.map(load, places, skeleton, sharding)


def write_folder(
    folder: str | os.PathLike,
    config: str,
    tensors: Iterable[tuple[str, np.ndarray]],
    max_shard_bytes: int,
) -> None:
    """Writes a folder under a temporary name, and renames it once it is on disk.

    **Raises:** `ValueError` if there already is something of that name.
    """
    folder = Path(folder).absolute()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"`{folder}` already holds something: name a folder that does not.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        (temporary / CONFIG).write_text(config)
        _write_shards(temporary, tensors, max_shard_bytes)
        for file in temporary.iterdir():
            file.chmod(0o644)
            _sync(file)
        temporary.chmod(0o755)
        _sync(temporary)
        os.replace(temporary, folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_shards(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int
) -> None:
    from safetensors.numpy import save_file

    shards, weight_map, total = [], {}, 0
    for i, shard in enumerate(_shards(tensors, max_shard_bytes)):
        shards.append(folder / f"{i}.safetensors")
        save_file(shard, shards[-1], metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, i)
        total += sum(array.nbytes for array in shard.values())
    if len(shards) == 1:
        shards[0].rename(folder / SINGLE)
        return
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for shard, name in zip(shards, names, strict=True):
        shard.rename(folder / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[i] for name, i in weight_map.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
    shard, size = {}, 0
    for name, array in tensors:
        if shard and size + array.nbytes > max_shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = np.ascontiguousarray(array).reshape(array.shape)
        size += array.nbytes
    yield shard


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open(path: Path) -> Any:
    from safetensors import safe_open, SafetensorError

    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise ValueError(f"There is no file `{path}`.") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"`{path}` is not a whole safetensors file: {error}.") from None


def _file_names(folder: Path) -> list[str]:
    if (folder / SINGLE).exists():
        return [SINGLE]
    if (folder / INDEX).exists():
        return sorted(set(_weight_map(folder).values()))
    pickled = [file.name for file in folder.glob("*") if file.suffix in _PICKLED]
    if pickled:
        raise ValueError(
            f"`{folder}` holds its weights as `{pickled[0]}`, which is pickled: reading it could run "
            "any code. Convert it to safetensors where you trust it."
        )
    raise ValueError(f"`{folder}` holds no weights: it needs `{SINGLE}` or `{INDEX}`.")


def _weight_map(folder: Path) -> dict[str, str]:
    """In which file every tensor is, by the index; empty without one."""
    path = folder / INDEX
    if (folder / SINGLE).exists() or not path.exists():
        return {}
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"`{path}` must have a `weight_map` from names to files.")
    for name, file in weight_map.items():
        if not (
            isinstance(file, str) and file == Path(file).name and file.endswith(".safetensors")
        ):
            raise ValueError(
                f"`{path}` says that `{name}` is in {file!r}: that must be the plain name of a "
                "safetensors file in the same folder."
            )
    return weight_map
