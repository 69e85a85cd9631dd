"""The command line, in this process: what it prints, keeps, and refuses."""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import equinox as eqx
import jax
import numpy as np
import pytest
import tokenizers
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import linax_like as lx
from linax_like.cli import main
from linax_like.cli.generate import Printer, Stopped
from linax_like.cli.models import load_model
from linax_like.tokenizers import ByteTokenizer
from linax_like.training import load_run, read_records


# The smallest model there is, given as one would on the command line.
TINY = json.dumps(
    {
        "type": "StackConfig",
        "groups": [
            [
                [
                    {
                        "type": "ResidualBlockConfig",
                        "sequence_mixer": {"type": "IdentitySequenceMixerConfig"},
                        "channel_mixer": {"type": "GLUConfig"},
                    }
                ],
                1,
            ]
        ],
    }
)
GOLDEN = Path(__file__).parent / "golden"
OVERRIDES = [f"model.stack={TINY}", "model.features=8", "batch_size=8"]


def arguments(*overrides: str) -> list[str]:
    return [part for override in (*OVERRIDES, *overrides) for part in ("--set", override)]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """What is compiled goes to a folder of the test's own."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    jax.config.update("jax_compilation_cache_dir", before)
    reset_cache()  # else it stays in use


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    return str(path)


def train_on_text(data: str, directory, *options: str):
    options = ("--steps", "3", "--seed", "1", "--data", data, *options)
    # Muon rounds to bfloat16, and makes much of the last bit.
    overrides = arguments("task.length=8", "log_every=1", "optimizer.matrices=adamw")
    assert main(["train", *options, "--directory", str(directory), *overrides]) == 0
    return directory


@pytest.fixture(scope="module")
def text_run(data, tmp_path_factory):
    return train_on_text(data, tmp_path_factory.mktemp("runs") / "text")


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "digits"
    options = ["--steps", "2", "--directory", str(directory)]
    assert main(["train", "digits", *options, *arguments()]) == 0
    return directory


def files(directory) -> dict:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def refused(capsys, *command: str) -> str:
    """The one sentence that bad input gets."""
    capsys.readouterr()
    assert main(list(command)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("linax-like: ")
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    return captured.err


def test_train_keeps_everything(text_run):
    names = {path.name for path in text_run.iterdir()}
    expected = {"config.json", "metrics.jsonl", "checkpoints", "loss.png", "results.json"}
    assert expected <= names
    config = json.loads((text_run / "config.json").read_text())
    assert (config["steps"], config["seed"], config["model"]["features"]) == (3, 1, 8)
    results = json.loads((text_run / "results.json").read_text())
    assert {"bits_per_byte", "gzip", "bz2", "xz", "parameters", "seconds"} <= results.keys()


def test_evaluate_repeats_what_train_found(text_run, capsys):
    before = files(text_run)
    assert main(["evaluate", str(text_run)]) == 0
    out = capsys.readouterr().out
    results = json.loads((text_run / "results.json").read_text())
    for name in ("gzip", "bz2", "xz"):
        assert f"{name:<12}{results[name]:.3f}" in out
    assert f"this model  {results['bits_per_byte']:.3f}" in out
    assert files(text_run) == before


def test_generate(text_run, capsys):
    sampling = ["--temperature", "0.8", "--top-k", "40", "--top-p", "0.95"]
    texts = []
    for seed in ("0", "0", "1"):
        command = ["generate", str(text_run), "--prompt", "Thé ", "--length", "16"]
        assert main([*command, *sampling, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("Thé ") and texts[0].endswith("\n")
    stop = texts[0][8:10]  # of the sixteen bytes that were drawn
    assert main([*command[:-1], "16", *sampling, "--stop", stop]) == 0
    assert capsys.readouterr().out == texts[0][: texts[0].index(stop, 4)] + "\n"


def test_generate_ends_at_the_tokenizers_stop_tokens(text_run, capsys, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "stop_tokens", tuple(range(256)))
    assert main(["generate", str(text_run), "--prompt", "Thé ", "--length", "16"]) == 0
    assert len(capsys.readouterr().out) == len("Thé ") + len("?\n")


def test_text_is_shown_as_it_comes_but_not_what_stops_it(capsys):
    printer = Printer("start ", "END")
    shown = lambda: capsys.readouterr().out
    for text, expected in (("a", "start a"), ("bE", "b"), ("N", ""), ("EN", "EN"), ("c", "ENc")):
        printer.write(text)
        assert shown() == expected
    with pytest.raises(Stopped):
        for text in ("d", "EEN", "D no more"):
            printer.write(text)
    assert shown() == "dE"
    printer = Printer("", "ABAC")
    printer.write("ABA")
    assert shown() == ""
    printer = Printer("start ", "END")
    printer.write("E")
    printer.finish("N")
    assert shown() == "start EN\n"


def test_any_kind_of_folder_is_loaded(text_run, tmp_path):
    model, tokenizer = load_model(str(text_run))
    assert isinstance(tokenizer, ByteTokenizer)
    lx.save_pretrained(model, tmp_path / "saved")
    saved, tokenizer = load_model(str(tmp_path / "saved"))
    assert eqx.tree_equal(saved, model) and isinstance(tokenizer, ByteTokenizer)
    imported = tmp_path / "imported"
    shutil.copytree(GOLDEN / "huggingface/llama", imported)
    with pytest.raises(ValueError, match="holds no `tokenizer.json`"):
        load_model(str(imported))
    words = {"[unknown]": 0, "one": 1, "two": 2}
    words = tokenizers.models.WordLevel(words, unk_token="[unknown]")
    tokenizers.Tokenizer(words).save(str(imported / "tokenizer.json"))
    model, tokenizer = load_model(str(imported))
    assert isinstance(model, lx.LanguageModel) and tokenizer.encode("two").tolist() == [2]


def test_digits(digits_run, capsys):
    assert (digits_run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", str(digits_run)]) == 0
    results = json.loads((digits_run / "results.json").read_text())
    out = capsys.readouterr().out
    assert f"Held-out accuracy {100 * results['accuracy']:.2f} %" in out


def test_inspect(text_run, capsys):
    for target in ("text", "digits", str(text_run)):
        assert main(["inspect", target]) == 0
        out = capsys.readouterr().out
        assert "stack/0/sequence_norm/weight" in out and "parameters" in out
        assert "O(L" in out and "forward and backward" in out
    assert "embedding/table" in out and "2,048" in out  # 256 tokens × 8 features
    assert main(["inspect", "digits", "--size", "64"]) == 0
    model = lx.presets.digits_classifier().build(jax.random.key(0))
    assert f"{model.flop_count((64,)):,}" in capsys.readouterr().out
    assert main(["inspect", "digits", "--size", "0"]) == 2
    assert "`--size`" in capsys.readouterr().err


def test_resume_finishes_a_finished_run(text_run, capsys):
    assert main(["train", "--directory", str(text_run), "--resume"]) == 0
    assert "from start to end" in capsys.readouterr().out
    assert len((text_run / "metrics.jsonl").read_text().splitlines()) == 3


def test_pmap_gives_the_same_losses(text_run, data, tmp_path, monkeypatch):
    """Rounding differs in the last bit or two; there is room for ten times that."""
    spy = Mock(wraps=jax.pmap)
    monkeypatch.setattr(jax, "pmap", spy)
    directory = train_on_text(data, tmp_path / "run", "--parallelism", "pmap")
    assert spy.called
    assert json.loads((directory / "config.json").read_text())["parallelism"] == "pmap"
    losses = [[r["loss"] for r in read_records(run)] for run in (directory, text_run)]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(*losses, rtol=2e-6)
    models = [jax.tree.leaves(load_run(run).model) for run in (directory, text_run)]
    for a, b in zip(*models, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_cache_is_the_users(text_run):
    assert jax.config.jax_compilation_cache_dir == os.path.join(
        os.environ["XDG_CACHE_HOME"], "linax_like", "xla"
    )


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["lorem"], "no preset `lorem`: there are `text` and `digits`"),
        (["--set", "model.feature=8"], "Did you mean `features`?"),
        (["--set", "model.features"], "must have the form PATH=VALUE"),
        (["--set", "model.features=wide"], "must be an int. Received 'wide'"),
        (["--set", "model.features=-8"], "`features` must be positive"),
        (["--set", "optimizer.learning_rate=NaN"], "must be a float. Received 'NaN'"),
        (["--set", "model.vocab_size=100"], "`vocab_size` of at least 256"),
        (["--set", "accumulation=3"], "a multiple of accumulation=3"),
        (["--set", "batch_size=3"], "cannot be divided evenly over"),
        (["--parallelism", "pmap", "--set", "batch_size=3"], "cannot be divided evenly over"),
        (["--parallelism", "lorem"], "must be one of 'jit', 'pmap'. Received 'lorem'"),
        (["--steps", "0"], "`steps` must be positive"),
        (["--seed", "-1"], "`seed` must be from 0"),
        (["--seed", str(2**63)], "`seed` must be from 0"),
        (["--data", "missing.txt"], "cannot be read"),
        (["--resume"], "add `--directory RUN`"),
        (["digits", "--data", "text.txt"], "There is no `path`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_of_train(options, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, "train", *options)
    assert not list(tmp_path.iterdir())


def test_heads_that_do_not_divide_the_width(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    override = "model.stack.groups.0.0.2.sequence_mixer.num_heads=7"
    assert "num_heads" in refused(capsys, "train", "--set", override)
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_too_short(capsys, tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("short")
    monkeypatch.chdir(tmp_path)
    sentence = refused(capsys, "train", "--data", "short.txt", "--directory", "run")
    assert "has 5 bytes, too few" in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--top-p", "1.5"], "`top_p` must be above 0 and at most 1"),
        (["--top-k", "0"], "`top_k` must be at least 1"),
        (["--temperature", "-1"], "`temperature` must be"),
        (["--min-p", "2"], "`min_p` must be above 0 and at most 1"),
        (["--repetition-penalty", "0"], "`repetition_penalty` must be positive"),
        (["--stop", ""], "`--stop` must be a text"),
        (["--length", "0"], "`length` must be at least 1"),
        (["--prompt", ""], "at least one token"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_of_generate(options, sentence, capsys, text_run):
    assert sentence in refused(capsys, "generate", str(text_run), *options)


def test_generate_needs_a_language_model(capsys, digits_run):
    assert "does not generate" in refused(capsys, "generate", str(digits_run))


@pytest.mark.parametrize("command", ["generate", "evaluate", "inspect"])
def test_folders_that_hold_no_run(command, capsys, tmp_path):
    assert "missing" in refused(capsys, command, str(tmp_path / "missing"))
    assert "lacks a readable `config.json`" in refused(capsys, command, str(tmp_path))


def test_a_run_is_not_written_over(text_run, capsys):
    before = files(text_run)
    sentence = refused(capsys, "train", "--directory", str(text_run))
    assert "already holds a run" in sentence and "--resume" in sentence
    assert files(text_run) == before


def test_resume_refuses_another_config(text_run, capsys):
    before = files(text_run)
    resume = ["train", "--directory", str(text_run), "--resume"]
    assert "`steps` is 3, not 9" in refused(capsys, *resume, "--steps", "9")
    assert "is not a run of the preset `digits`" in refused(capsys, "train", "digits", *resume[1:])
    assert files(text_run) == before


def test_a_half_written_run_is_refused(text_run, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((text_run / "config.json").read_text())
    for command in (["evaluate"], ["generate"], ["train", "--resume", "--directory"]):
        assert "no complete checkpoint" in refused(capsys, *command, str(tmp_path / "run"))


def test_wrong_commands_leave_with_status_2(capsys):
    for command in (["lorem"], ["train", "--lorem"], ["generate"]):
        with pytest.raises(SystemExit) as exit:
            main(command)
        assert exit.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept(tmp_path):
    """What is freed and taken again is the same memory: no page of it is new."""

    def page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"x" * 2**27
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert main(["evaluate", str(tmp_path / "nowhere")]) == 2
    page_faults()
    assert page_faults() < 1000  # of 32,768


@pytest.mark.slow
def test_the_default_run_learns_text(tmp_path):
    assert trained(tmp_path / "run")["bits_per_byte"] <= 1.75


@pytest.mark.slow
def test_the_default_run_learns_digits(tmp_path):
    assert trained(tmp_path / "run", "digits")["accuracy"] >= 0.975


def trained(directory, *options: str) -> dict[str, float]:
    """The results of a run in a process of its own, as a user starts it."""
    environment = dict(os.environ, XDG_CACHE_HOME=str(directory.parent / "cache"))
    del environment["XLA_FLAGS"]
    command = [
        sys.executable,
        "-m",
        "linax_like",
        "train",
        *options,
        "--directory",
        str(directory),
    ]
    subprocess.run(command, env=environment, check=True)
    return json.loads((directory / "results.json").read_text())
