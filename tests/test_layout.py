"""The house rules that a parser can check."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import pytest

import linax_like


ROOT = Path(linax_like.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# What a part may import stands in an earlier line.
LAYERS = [
    {"_version", "types", "complexity", "annotations", "config", "files", "tokenizers"},
    {"precision", "parameters", "initializers", "context", "streams", "ops"},
    {"norms", "positions"},
    {"global_response_norm", "grid_embedding", "grid_positions"},
    {"sequence_mixers", "channel_mixers", "encoders", "heads"},
    {"blocks"},
    {"stack"},
    {"paths"},
    {"models", "freezing", "low_rank"},
    {"tasks", "parallel", "interop"},
    {"training", "inference"},
    {"cli"},
    {"__init__", "__main__"},
]
# The parts of the first layers may import each other; those of a later one are independent.
LOW = 2
# These hand their keywords to a constructor, which knows their names.
SINKS = {("context.py", "replace"), ("config.py", "__new__")}
HEAVY = (
    "optax",
    "orbax",
    "grain",
    "matplotlib",
    "tyro",
    "rich",
    "sklearn",
    "tensorboardX",
    "safetensors",
    "tokenizers",
)


def part(path: Path) -> str:
    """The top-level module or subpackage that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    found = [i for i, names in enumerate(LAYERS) if name in names]
    assert found, f"`{name}` has no place in the layout: add it to LAYERS"
    return found[0]


def imported_parts(path: Path) -> set[str]:
    """The parts of linax_like that a file imports, anywhere in it."""
    package = ["linax_like", *path.relative_to(ROOT).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    split = (name.split(".") for name in names)
    return {name[1] if len(name) > 1 else "__init__" for name in split if name[0] == "linax_like"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = layer(part(path))
    for name in imported_parts(path) - {part(path)}:
        known = name if any(name in names for names in LAYERS) else "__init__"
        below = layer(known) < own or (own < LOW and layer(known) == own)
        assert below, f"{path.relative_to(ROOT)} imports `{name}`, which is not below it"


def test_importing_is_light():
    code = "import sys, linax_like; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert not loaded & set(HEAVY)


def every_module():
    for info in pkgutil.walk_packages([str(ROOT)], "linax_like."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def test_every_class_is_abstract_or_final():
    modules = list(every_module())
    classes = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__.startswith("linax_like")
    }
    assert len(classes) > 10
    for cls in classes:
        for base in cls.__bases__:
            if base.__module__.startswith("linax_like"):
                assert base.__name__.lstrip("_").startswith("Abstract"), f"{cls} extends {base}"
        if issubclass(cls, eqx.Module) and inspect.isabstract(cls):
            assert cls.__name__.lstrip("_").startswith("Abstract"), f"{cls} is abstract unsaid"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_forbidden_words(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            assert node.id != "hasattr", f"line {node.lineno}: ask for an abstract tier instead"
        if isinstance(node, ast.Lambda):
            assert node.args.kwarg is None, f"line {node.lineno}: a sink for keyword arguments"
        if isinstance(node, ast.FunctionDef) and (path.name, node.name) not in SINKS:
            assert node.args.kwarg is None, f"line {node.lineno}: a sink for keyword arguments"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name == "__init__.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_exports_are_explicit(path):
    """A package's `__init__` says `X as X`, unless it is one operator, and holds the function."""
    for node in ast.parse(path.read_text()).body:
        if part(path) == "ops" and len(path.relative_to(ROOT).parts) > 2:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            for alias in node.names:
                assert alias.asname == alias.name, f"line {node.lineno}: `{alias.name}`"


def test_public_names_are_documented():
    public = {name: value for name, value in vars(linax_like).items() if not name.startswith("_")}
    bare = [
        name
        for name, value in public.items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        # A dataclass and a NamedTuple write a docstring of their own.
        and (not value.__doc__ or value.__doc__.startswith(f"{name}("))
    ]
    assert not bare, f"without a docstring: {bare}"
