"""Checkpoints: a resumed run is the same run, and a damaged checkpoint is refused."""

import json
import os
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linax_like as lx
from linax_like.tasks import TextTaskConfig
from linax_like.training import (
    CheckpointStore,
    Interrupted,
    load_run,
    OptimizerConfig,
    read_records,
    RunConfig,
    train,
)


CONFIG = lx.RMSNormConfig()  # any config
STATE = {
    "model": {"weight": jnp.arange(12.0).reshape(3, 4), "half": jnp.ones((2,), jnp.bfloat16)},
    "step": jnp.asarray(7, jnp.int32),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    CheckpointStore(directory, CONFIG).save(7, STATE)
    return directory


@pytest.fixture
def damaged(saved, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def load(directory: Path, config=CONFIG):
    store = CheckpointStore(directory, config)
    return store.load(store.latest_step(), jax.eval_shape(lambda: STATE))


def data_file(directory: Path) -> Path:
    files = [path for path in directory.rglob("*") if path.is_file() and path.parent.name == "d"]
    return max(files, key=lambda path: path.stat().st_size)


def test_round_trip_is_exact(saved):
    restored = load(saved)
    for old, new in zip(*map(jax.tree.leaves, (STATE, restored)), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(old, new)
    assert jax.tree.structure(STATE) == jax.tree.structure(restored)
    model = CheckpointStore(saved, CONFIG).load(7, {"model": STATE["model"]})
    assert model.keys() == {"model"}


def test_a_flipped_bit_is_refused(damaged):
    path = data_file(damaged)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="has changed since it was written"):
        load(damaged)


def test_a_missing_file_is_refused(damaged):
    data_file(damaged).unlink()
    with pytest.raises(ValueError, match="lacks the file"):
        load(damaged)


def test_an_extra_file_is_refused(damaged):
    (damaged / "checkpoints" / "00000007" / "model" / "extra").write_text("?")
    with pytest.raises(ValueError, match="holds the foreign file `model/extra`"):
        load(damaged)


@pytest.mark.parametrize("text", [None, "", "{}", "[]"])
def test_a_half_written_checkpoint_is_refused(damaged, text):
    manifest = damaged / "checkpoints" / "00000007" / "manifest.json"
    manifest.unlink() if text is None else manifest.write_text(text)
    with pytest.raises(ValueError, match="no readable manifest"):
        load(damaged)


def test_another_config_is_refused(saved):
    with pytest.raises(ValueError, match="belongs to a run with another config"):
        load(saved, lx.RMSNormConfig(eps=1.0))


def test_an_unfinished_checkpoint_does_not_count(damaged):
    """A folder gets its name last: what a crash leaves behind is neither read nor in the way."""
    store = CheckpointStore(damaged, CONFIG)
    unfinished = damaged / "checkpoints" / ".unfinished-9"
    shutil.copytree(damaged / "checkpoints" / "00000007", unfinished)
    assert store.latest_step() == 7
    store.save(9, {"step": STATE["step"]})
    assert store.steps() == [7, 9] and not unfinished.exists()
    store.save(11, {"step": STATE["step"]})
    assert store.steps() == [9, 11]  # the newest two are kept


def test_a_failure_while_saving_keeps_the_checkpoint_before(damaged, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        CheckpointStore(damaged, CONFIG).save(8, STATE)
    monkeypatch.undo()
    assert CheckpointStore(damaged, CONFIG).steps() == [7]
    load(damaged)


def test_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        CheckpointStore(tmp_path, CONFIG).latest_step()


# Whole runs.


@pytest.fixture(scope="module", params=["jit", "pmap"])
def config(request, tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_bytes(bytes(range(97, 123)) * 20)
    block = lx.ResidualBlockConfig(lx.IdentitySequenceMixerConfig(), lx.GLUConfig(), dropout=0.1)
    model = lx.LanguageModelConfig(256, 8, lx.StackConfig((((block,), 1),)))
    return RunConfig(
        model=model,
        task=TextTaskConfig(path=str(text), length=8),
        optimizer=OptimizerConfig(average=0.9),
        steps=6,
        batch_size=8,
        parallelism=request.param,
        checkpoint_every=3,
        log_every=1,
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    return train(config, tmp_path_factory.mktemp("whole") / "run", progress=False)


def losses(directory: Path) -> list[tuple[float, float]]:
    return [(record["step"], record["loss"]) for record in read_records(directory)]


def assert_same_run(run, other):
    assert losses(run.directory) == losses(other.directory)
    for a, b in zip(*map(jax.tree.leaves, (run.model, other.model)), strict=True):
        np.testing.assert_array_equal(a, b)


def without_last_checkpoint(whole, directory: Path) -> Path:
    shutil.copytree(whole.directory, directory)
    shutil.rmtree(directory / "checkpoints" / "00000006")
    return directory


def test_a_run_folder_holds_all_that_is_promised(whole):
    names = {path.name for path in whole.directory.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "loss.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    records = read_records(whole.directory)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all({"loss", "tokens_per_second"} <= record.keys() for record in records)
    assert RunConfig.from_json((whole.directory / "config.json").read_text()) == whole.config


@pytest.mark.parametrize("config", ["pmap"], indirect=True)
def test_resume_continues_bit_by_bit(config, whole, tmp_path):
    directory = without_last_checkpoint(whole, tmp_path / "run")
    assert_same_run(train(config, directory, resume=True, progress=False), whole)


@pytest.mark.parametrize("config", ["jit"], indirect=True)
def test_interruption_keeps_a_checkpoint_to_resume_from(config, whole, tmp_path, monkeypatch):
    directory = tmp_path / "run"
    batch = type(config.task.load()).batch

    def interrupt_at_step_4(task, seed, step, batch_size):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(task, seed, step, batch_size)

    monkeypatch.setattr("linax_like.tasks.text.TextTask.batch", interrupt_at_step_4)
    with pytest.raises(Interrupted, match="stopped after step 4"):
        train(config, directory, progress=False)
    monkeypatch.undo()
    assert load_run(directory).step == 4
    assert_same_run(train(config, directory, resume=True, progress=False), whole)


def test_load_run_gives_the_model_that_was_trained(whole):
    run = load_run(whole.directory)
    assert run.config == whole.config and run.step == 6
    for a, b in zip(*map(jax.tree.leaves, (whole.model, run.model)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert run.evaluate() == whole.evaluate()


def test_another_run_is_not_resumed(config, whole):
    other = config.updated("optimizer.learning_rate", 0.5)
    with pytest.raises(ValueError, match="`optimizer.learning_rate` is 0.003, not 0.5"):
        train(other, whole.directory, resume=True, progress=False)


def test_nothing_is_written_over(config, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.directory.rglob("*")}
    with pytest.raises(ValueError, match="already holds a run"):
        train(config, whole.directory, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in whole.directory.rglob("*")}


def test_default_folders_never_collide(config, tmp_path, monkeypatch):
    from linax_like.training.run import open_directory

    monkeypatch.chdir(tmp_path)
    first, second = (open_directory(None, config, False) for _ in range(2))
    assert first != second and first.parent.name == "runs" and first.name.startswith("text-")


@pytest.mark.parametrize("config", ["jit"], indirect=True)
def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    diverging = config.updated("optimizer.learning_rate", 1e38).updated(
        "optimizer.clip_norm", None
    )
    with pytest.raises(FloatingPointError, match="The training diverged"):
        train(diverging, tmp_path / "run", progress=False)


@pytest.mark.parametrize("config", ["jit"], indirect=True)
def test_a_gradient_that_is_not_finite_is_never_saved(config, tmp_path, monkeypatch):
    """In the step itself the loss is as it should be."""
    loss = type(config.task.load()).loss

    def spoilt(task, *arguments):
        metrics = loss(task, *arguments)
        nothing = jnp.sqrt(0 * metrics.objective)
        return metrics._replace(objective=metrics.objective + nothing)

    monkeypatch.setattr("linax_like.tasks.text.TextTask.loss", spoilt)
    with pytest.raises(FloatingPointError, match="gradient_norm is nan at step 1"):
        train(config.updated("steps", 1), tmp_path / "run", progress=False)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_config_that_is_not_one(whole, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_run(tmp_path / "missing")
    with pytest.raises(ValueError, match="lacks a readable `config.json`"):
        load_run(tmp_path)
    shutil.copytree(whole.directory, tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="is damaged or from another version"):
        load_run(tmp_path / "run")
    changed = json.loads(text) | {"seed": 1}
    (tmp_path / "run" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="belongs to a run with another config"):
        load_run(tmp_path / "run")
