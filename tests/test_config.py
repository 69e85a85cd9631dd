"""Configs survive JSON, and say what is wrong with what they are given."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import pytest

from linax_like import config as config_module
from linax_like.config import AbstractConfig, require, require_choice, require_positive


@dataclass(frozen=True)
class LeafConfig(AbstractConfig):
    size: int = 4
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    on: bool = False
    name: str | None = None

    def __post_init__(self):
        require_positive(self, "size")
        require_choice(self, "kind")
        require(self.rate < 1, self, "rate", "below 1")


@dataclass(frozen=True)
class OtherConfig(AbstractConfig):
    value: int = 0


@dataclass(frozen=True)
class TreeConfig(AbstractConfig):
    first: LeafConfig
    maybe: LeafConfig | OtherConfig | None = None
    groups: tuple[tuple[tuple[AbstractConfig, ...], int], ...] = ()
    shape: tuple[int, int] = (1, 2)
    scales: tuple[float, ...] = ()
    either: int | tuple[int, ...] = 0


@pytest.fixture(autouse=True)
def public(monkeypatch):
    """Makes this module a namespace in which type tags are looked up."""
    monkeypatch.setattr(config_module, "_NAMESPACES", (__name__,))


TREE = TreeConfig(
    first=LeafConfig(size=3, name="x"),
    maybe=OtherConfig(7),
    groups=(((LeafConfig(), OtherConfig()), 8), ((LeafConfig(kind="b"),), 1)),
    shape=(5, 6),
    scales=(0.1, 1e-30, 3.0),
    either=(1, 2),
)


@pytest.mark.parametrize("config", (LeafConfig(), LeafConfig(rate=-1.5, on=True), TREE))
def test_round_trips(config):
    for again in (
        type(config).from_dict(config.to_dict()),
        type(config).from_json(config.to_json()),
    ):
        assert again == config
        assert hash(again) == hash(config)
        assert repr(again) == repr(config)


def test_json_is_plain_and_tagged():
    data = json.loads(TREE.to_json())
    assert data["type"] == "TreeConfig"
    assert data["first"] == {
        "type": "LeafConfig",
        "size": 3,
        "rate": 0.5,
        "kind": "a",
        "on": False,
        "name": "x",
    }
    assert data["groups"][0][1] == 8


def test_a_base_class_reads_any_config():
    assert AbstractConfig.from_dict(TREE.to_dict()) == TREE


def test_defaults_fill_in():
    assert LeafConfig.from_dict({"type": "LeafConfig"}) == LeafConfig()


def test_a_whole_number_is_a_float():
    assert LeafConfig.from_dict({"type": "LeafConfig", "rate": 0}).rate == 0


def test_configs_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LeafConfig().size = 5  # pyright: ignore[reportAttributeAccessIssue]


LEAF = {"type": "LeafConfig"}


@pytest.mark.parametrize(
    ("data", "message"),
    (
        (LEAF | {"sise": 4}, "`LeafConfig` has no field `sise`. Did you mean `size`\\?.*`rate`"),
        (LEAF | {"size": "four"}, "`LeafConfig.size` must be an int. Received 'four'"),
        (LEAF | {"size": 4.0}, "`LeafConfig.size` must be an int"),
        (LEAF | {"size": True}, "`LeafConfig.size` must be an int"),
        (LEAF | {"size": None}, "`LeafConfig.size` must be an int"),
        (LEAF | {"on": 1}, "`LeafConfig.on` must be a bool"),
        (LEAF | {"kind": "c"}, "`LeafConfig.kind` must be one of 'a', 'b'. Received 'c'"),
        (LEAF | {"name": 3}, "`LeafConfig.name` must be a str or null"),
        (LEAF | {"size": [4]}, "`LeafConfig.size` must be an int"),
        (LEAF | {"size": LEAF}, "`LeafConfig.size` must be an int"),
        (LEAF | {"size": -1}, "`LeafConfig\\(size=-1\\)`: `size` must be positive"),
        (LEAF | {"rate": 2.0}, "`rate` must be below 1"),
        ({"size": 4}, "`LeafConfig` lacks its `type`"),
        ({"type": ["LeafConfig"]}, r"has the type \['LeafConfig'\]"),
        ({"type": "LeefConfig"}, "has the type 'LeefConfig', which is not a config"),
        ({"type": "pytest"}, "has the type 'pytest', which is not a config"),
        ({"type": 3}, "has the type 3"),
        ({"type": "OtherConfig"}, "must be a LeafConfig. Received a `OtherConfig`"),
    ),
)
def test_errors_of_a_leaf(data, message):
    with pytest.raises(ValueError, match=message):
        LeafConfig.from_dict(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    (
        ("first", {"type": "OtherConfig"}, "`TreeConfig.first` must be a LeafConfig"),
        ("first", None, "`TreeConfig.first` must be a LeafConfig"),
        ("maybe", {"type": "TreeConfig", "first": LEAF}, "`TreeConfig.maybe` must be"),
        ("shape", [1, 2, 3], "`TreeConfig.shape` must be tuple\\[int, int\\]. Received"),
        ("shape", [1, "2"], "`TreeConfig.shape.1` must be an int"),
        ("groups", [[[LEAF], "8"]], "`TreeConfig.groups.0.1` must be an int"),
        ("groups", [[[LEAF | {"sise": 1}], 8]], "`TreeConfig.groups.0.0.0` has no field `sise`"),
        ("groups", [[[3], 8]], "`TreeConfig.groups.0.0.0` must be"),
        ("either", "x", "`TreeConfig.either` must be an int or"),
    ),
)
def test_errors_say_where(path, value, message):
    with pytest.raises(ValueError, match=message):
        TreeConfig.from_dict(TREE.to_dict() | {path: value})


def test_a_missing_field():
    with pytest.raises(ValueError, match="`TreeConfig` lacks `first`, which has no default"):
        TreeConfig.from_dict({"type": "TreeConfig"})


@pytest.mark.parametrize("text", ("", "{", "[1, 2]", "3", "null"))
def test_what_is_not_a_config(text):
    with pytest.raises(ValueError, match="LeafConfig"):
        LeafConfig.from_json(text)


def test_nan_does_not_become_json():
    with pytest.raises(ValueError):
        LeafConfig(rate=float("-inf")).to_json()


def test_updated():
    assert TREE.updated("first.size", 9).first == LeafConfig(size=9, name="x")
    assert TREE.updated("groups.0.1", 3).groups[0][1] == 3
    assert TREE.updated("groups.1.0.0.kind", "a").groups[1] == ((LeafConfig(),), 1)
    assert TREE.updated("maybe", LeafConfig()).maybe == LeafConfig()
    assert TREE.updated("shape", (7, 8)).shape == (7, 8)
    assert TREE.first.size == 3


@pytest.mark.parametrize(
    ("path", "message"),
    (
        ("first.sise", "no `sise` in the path `first.sise`. Did you mean `size`\\?"),
        ("groups.2.1", "no `2`.*Valid: `0`, `1`"),
        ("first.size.x", "no `x`.*a leaf"),
        ("first.type", "no `type`"),
        ("", "no ``"),
    ),
)
def test_updated_says_what_is_there(path, message):
    with pytest.raises(ValueError, match=message):
        TREE.updated(path, 1)


def test_updated_validates():
    with pytest.raises(ValueError, match="`size` must be positive"):
        TREE.updated("first.size", 0)
