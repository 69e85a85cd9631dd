"""Checkpoints that are whole, unchanged, and from this run; or are refused.

orbax writes the arrays. Around it: a manifest with the SHA-256 of every file, written last, in a
folder that gets its name only once everything is on disk.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from ..config import AbstractConfig
from ..files import write_atomically


_FORMAT = 1
_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"


class CheckpointStore:
    """The checkpoints of one run, in its folder.

    - `config`: the run's config; checkpoints of another one are refused.
    - `keep`: how many to keep. Older ones go only after a new one is complete.
    """

    def __init__(self, directory: Path, config: AbstractConfig, keep: int = 2):
        self._directory = directory.absolute() / "checkpoints"
        self._config_hash = hashlib.sha256(config.to_json().encode()).hexdigest()
        self._keep = keep

    def steps(self) -> list[int]:
        """The steps of all checkpoints, the newest last."""
        if not self._directory.is_dir():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

    def latest_step(self) -> int:
        """The step of the newest checkpoint. Raises `ValueError` if there is none."""
        steps = self.steps()
        if not steps:
            raise ValueError(
                f"`{self._directory.parent}` holds no complete checkpoint: the run was stopped "
                "before its first one. Remove the folder, and train again."
            )
        return steps[-1]

    def save(self, step: int, items: Mapping[str, PyTree]) -> None:
        """Writes the arrays of every item. The checkpoint appears whole or not at all."""
        from orbax.checkpoint import v1 as ocp

        self._directory.mkdir(parents=True, exist_ok=True)
        for leftover in self._directory.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover)
        folder = self._directory / f"{_UNFINISHED}{step}"
        folder.mkdir()
        for name, item in items.items():
            ocp.save(str(folder / name), _flatten(item))
        manifest = {
            "format": _FORMAT,
            "step": step,
            "config": self._config_hash,
            "files": {name: _hash(folder / name) for name in _files(folder)},
        }
        write_atomically(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())
        os.replace(folder, self._path(step))
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self._path(old))

    def load(self, step: int, skeletons: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """The items of a checkpoint, with the structure of their skeletons.

        **Raises:** `ValueError` if anything in the checkpoint is missing, changed, or foreign.
        """
        from orbax.checkpoint import v1 as ocp

        self._check(step)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        items = {}
        for name, skeleton in skeletons.items():
            shapes = {
                path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
                for path, leaf in _flatten(skeleton).items()
            }
            arrays = dict(ocp.load(str(self._path(step) / name), shapes))
            leaves = [arrays[path] for path in shapes]
            items[name] = jax.tree.unflatten(jax.tree.structure(skeleton), leaves)
        return items

    def _path(self, step: int) -> Path:
        return self._directory / f"{step:08d}"

    def _check(self, step: int) -> None:
        folder = self._path(step)
        remedy = "Remove this checkpoint's folder to go on from the one before it"
        try:
            manifest = json.loads((folder / _MANIFEST).read_bytes())
            expected, config = dict(manifest["files"]), manifest["config"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"The checkpoint `{folder}` has no readable manifest, so it was not written to "
                f"its end. {remedy}."
            ) from None
        if config != self._config_hash:
            raise ValueError(
                f"The checkpoint `{folder}` belongs to a run with another config than the "
                "`config.json` beside it. Restore that file, or train in another folder."
            )
        found = _files(folder)
        for name in sorted(expected.keys() ^ found):
            problem = "lacks the file" if name in expected else "holds the foreign file"
            raise ValueError(f"The checkpoint `{folder}` {problem} `{name}`. {remedy}.")
        for name, value in expected.items():
            if _hash(folder / name) != value:
                raise ValueError(
                    f"The file `{name}` of the checkpoint `{folder}` has changed since it was "
                    f"written. {remedy}."
                )


def _flatten(tree: PyTree) -> dict[str, Any]:
    """The arrays of a tree by their path in it, in order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _files(folder: Path) -> set[str]:
    """The files of a checkpoint, relative to it, without its manifest."""
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return names - {_MANIFEST}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
