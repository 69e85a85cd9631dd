"""Saved folders: bit-equal, whole or not there, and every broken one an error that names what is."""

import json
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import linax_like as lx
from linax_like.interop import folder as folders, save_weights


KEY = jr.key(0, impl="rbg")
BLOCK = lx.ResidualBlockConfig(lx.LRUSequenceMixerConfig(state_dim=8))
OTHER = lx.ResidualBlockConfig(lx.AttentionSequenceMixerConfig(num_heads=2), None)
LANGUAGE = lx.LanguageModelConfig(11, 8, lx.StackConfig((((BLOCK, OTHER), 2), ((BLOCK,), 1))))
SEQUENCE = lx.SequenceModelConfig(3, 8, 4, lx.StackConfig((((BLOCK,), 2),)))


@pytest.fixture(scope="module")
def model():
    return LANGUAGE.build(KEY)


@pytest.fixture
def saved(model, tmp_path):
    lx.save_pretrained(model, tmp_path / "saved")
    return tmp_path / "saved"


def same(a, b):
    leaves = jax.tree.leaves(a), jax.tree.leaves(b)
    return all(x.dtype == y.dtype and jnp.array_equal(x, y) for x, y in zip(*leaves, strict=True))


@pytest.mark.parametrize("config", [LANGUAGE, SEQUENCE])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 600])
def test_what_is_loaded_is_what_was_saved(config, max_shard_bytes, tmp_path):
    model = config.build(KEY)
    lx.save_pretrained(model, tmp_path / "new" / "saved", max_shard_bytes=max_shard_bytes)
    again = lx.load_pretrained(tmp_path / "new" / "saved")
    assert again.config == config
    assert same(again, model)
    names = {file.name for file in (tmp_path / "new" / "saved").iterdir()}
    assert ("model.safetensors.index.json" in names) == (max_shard_bytes == 600)
    assert os.listdir(tmp_path / "new") == ["saved"]


def test_names_are_public_paths(model, saved):
    assert load_file(saved / "model.safetensors").keys() == lx.named_arrays(model).keys()


def test_an_index_lists_shards_of_bounded_size(model, tmp_path):
    lx.save_pretrained(model, tmp_path / "saved", max_shard_bytes=600)
    index = json.loads((tmp_path / "saved" / folders.INDEX).read_text())
    arrays = lx.named_arrays(model)
    assert index["weight_map"].keys() == arrays.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    for file in set(index["weight_map"].values()):
        shard = load_file(tmp_path / "saved" / file)
        assert len(shard) == 1 or sum(array.nbytes for array in shard.values()) <= 600


def test_dtype_and_sharding(model, saved):
    low = lx.load_pretrained(saved, dtype="bfloat16")
    assert low.config.dtype == "bfloat16"
    assert same(low, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model))
    lx.save_pretrained(low, saved.parent / "low")
    assert same(lx.load_pretrained(saved.parent / "low"), low)
    with pytest.raises(ValueError, match="float16"):
        lx.load_pretrained(saved, dtype="float16")
    mesh = jax.make_mesh((2,), ("x",))
    spec = lambda leaf: jax.sharding.PartitionSpec(*[None] * (leaf.ndim - 1), "x")
    choose = lambda leaf: jax.sharding.NamedSharding(mesh, spec(leaf))
    shardings = jax.tree.map(choose, eqx.filter_eval_shape(LANGUAGE.build, KEY))
    sharded = lx.load_pretrained(saved, sharding=shardings)
    assert same(sharded, model)
    for leaf, sharding in zip(jax.tree.leaves(sharded), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == sharding


def test_layers_of_several_dtypes_lose_nothing(model, saved):
    arrays = load_file(saved / "model.safetensors")
    first = "stack/0/sequence_mixer/out_proj"
    arrays[first] = arrays[first].astype(jnp.bfloat16)
    save_file(arrays, saved / "model.safetensors")
    again = lx.named_arrays(lx.load_pretrained(saved))
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array.astype(np.float32))


def test_never_more_than_one_leaf_is_held_twice(model, saved):
    """An array is placed before the arrays of the next leaf are read."""
    reader, events = folders.WeightFolder(saved), []

    def read(name):
        events.append(name)
        return reader.read(name)

    folders.fill(eqx.filter_eval_shape(LANGUAGE.build, KEY), read, None, None)
    assert sorted(events) == sorted(reader.shapes)
    at = {name: i for i, name in enumerate(events)}
    assert at["stack/2/sequence_norm/weight"] == at["stack/0/sequence_norm/weight"] + 1


def test_a_folder_is_never_overwritten(model, saved):
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="already holds something"):
        lx.save_pretrained(model, saved)
    assert (saved / "notes.txt").read_text() == "mine"
    empty = saved.parent / "empty"
    empty.mkdir()
    lx.save_pretrained(model, empty)
    assert same(lx.load_pretrained(empty), model)


def test_every_shape_is_written_and_others_may_read_it(tmp_path):
    arrays = {"number": np.ones(()), "turned": np.arange(6).reshape(2, 3).T}
    folders.write_folder(tmp_path / "saved", "{}", arrays.items(), 10**9)
    again = load_file(tmp_path / "saved" / "model.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array, strict=True)
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o755
    save_weights(tmp_path / "weights.safetensors", {"a": jnp.ones(2)})
    for file in (*(tmp_path / "saved").iterdir(), tmp_path / "weights.safetensors"):
        assert file.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(path):
        raise OSError("disk full")

    monkeypatch.setattr(folders, "_sync", fail)
    with pytest.raises(OSError, match="disk full"):
        lx.save_pretrained(model, tmp_path / "saved")
    assert os.listdir(tmp_path) == []


def test_arrays_that_do_not_belong_are_named(saved):
    file = saved / "model.safetensors"
    arrays = load_file(file)
    name = "stack/1/sequence_mixer/q_proj"
    save_file({k: v for k, v in arrays.items() if k != name}, file)
    with pytest.raises(ValueError, match=f"`{name}` is missing"):
        lx.load_pretrained(saved)
    save_file(arrays | {"more": np.zeros(2)}, file)
    with pytest.raises(ValueError, match="`more` is not one of this model's"):
        lx.load_pretrained(saved)
    save_file(arrays | {name: arrays[name][:2]}, file)
    with pytest.raises(ValueError, match=rf"`{name}` has shape \(2, 8\), where the model has \(8"):
        lx.load_pretrained(saved)
    save_file(arrays | {name: arrays[name].astype(np.int8)}, file)
    with pytest.raises(ValueError, match=f"`{name}` must be floating-point, not int8"):
        lx.load_pretrained(saved)


def test_files_that_cannot_be_read_are_named(saved):
    file, config = saved / "model.safetensors", saved / "config.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors` is not a whole safetensors file"):
        lx.load_pretrained(saved)
    file.rename(saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"`pytorch_model.bin`, which is pickled"):
        lx.load_pretrained(saved)
    (saved / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"holds no weights: it needs `model.safetensors`"):
        lx.load_pretrained(saved)
    said = json.loads(config.read_text())
    for text, message in (
        ("{", "not a JSON file"),
        ("[1]", "must hold a JSON object"),
        (json.dumps(said | {"fatures": 8}), "no field `fatures`"),
        (json.dumps(said["stack"]), "a `StackConfig`, which is not a model's"),
        ('{"model_type": "llama"}', r"written by transformers: .*huggingface\.load"),
    ):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            lx.load_pretrained(saved)
    config.unlink()
    with pytest.raises(ValueError, match="There is no file"):
        lx.load_pretrained(saved)


@pytest.mark.parametrize("file", ["../other.safetensors", "/tmp/a.safetensors", "a.bin", 3, ".."])
def test_an_index_cannot_lead_out_of_its_folder(file, model, tmp_path):
    lx.save_pretrained(model, tmp_path / "saved", max_shard_bytes=600)
    index = tmp_path / "saved" / folders.INDEX
    values = json.loads(index.read_text())
    values["weight_map"]["head"] = file
    index.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="`head` is in .*plain name"):
        lx.load_pretrained(tmp_path / "saved")


def test_an_index_must_be_true(model, tmp_path):
    lx.save_pretrained(model, tmp_path / "saved", max_shard_bytes=600)
    index = tmp_path / "saved" / folders.INDEX
    values = json.loads(index.read_text())
    first = min(values["weight_map"].values())
    index.write_text(json.dumps({"weight_map": values["weight_map"] | {"more": first}}))
    with pytest.raises(ValueError, match="`more` is missing"):
        lx.load_pretrained(tmp_path / "saved")
    index.write_text(json.dumps({"files": {}}))
    with pytest.raises(ValueError, match="must have a `weight_map`"):
        lx.load_pretrained(tmp_path / "saved")
