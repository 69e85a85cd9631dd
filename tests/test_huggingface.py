"""Folders of transformers: its numbers from its weights, and its files from our models."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_numbers import GOLDEN
from safetensors.numpy import load_file

import linax_like as lx
from linax_like.interop import huggingface


FOLDERS = [
    "llama",
    "llama_bias",
    "llama_rope3",
    "llama_seed2",
    "qwen3",
    "qwen3_seed2",
    "qwen3_window",
    "smollm3",
    "mamba",
    "mamba_seed2",
    "falcon_mamba",
    "mamba2",
    "mamba2_bias",
    "mamba2_seed2",
    "recurrent_gemma",
    "recurrentgemma_seed2",
]
KEY = jr.key(0, impl="rbg")
KINDS = ["qwen3", "mamba_seed2", "mamba2", "recurrent_gemma"]


def path(name):
    return GOLDEN / "huggingface" / name


@functools.cache
def loaded(name):
    return huggingface.load(path(name))


def numbers(name):
    """The tokens, what transformers answers, and how it goes on, if that is known."""
    with np.load(path(name) / "io.npz", allow_pickle=False) as file:
        tokens = file["ids"] if "ids" in file else file["input_ids"]
        greedy = file["greedy"] if "greedy" in file else np.zeros((len(tokens), 0))
        return tokens.astype(np.int32), file["logits"], greedy.astype(np.int32)


@eqx.filter_jit
def forward(model, tokens):
    return jax.vmap(lambda row: model(row).logits)(tokens)


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_and_greedy_tokens(name):
    tokens, expected, greedy = numbers(name)
    logits = forward(loaded(name), np.concatenate([tokens, greedy], axis=1))
    length = tokens.shape[1]
    np.testing.assert_allclose(logits[:, :length], expected, rtol=0, atol=1e-5)
    continued = logits[:, length - 1 : length - 1 + greedy.shape[1]].argmax(-1)
    np.testing.assert_array_equal(continued, greedy)


@pytest.mark.parametrize("name", KINDS)
def test_prefill_and_steps_are_the_forward_pass(name):
    tokens, expected, _ = numbers(name)
    start = 9

    @eqx.filter_jit
    def decode(model, row):
        state, read = model.prefill(model.init_state(len(row)), row[:start])
        step = lambda state, token: model.step(state, token)
        _, stepped = jax.lax.scan(step, state, row[start:])
        return jnp.concatenate([read.logits, stepped.logits])

    got = decode(loaded(name), tokens[0])
    np.testing.assert_allclose(got, expected[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FOLDERS)
def test_writing_gives_the_same_file(name, tmp_path):
    model = loaded(name)
    huggingface.save(model, tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = load_file(path(name) / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for tensor, value in theirs.items():
        np.testing.assert_array_equal(ours[tensor], value, strict=True)
    again = huggingface.load(tmp_path / "out")
    assert again.config == model.config
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    meant = json.loads((path(name) / "config.json").read_text())
    assert said["architectures"] == meant["architectures"]
    assert said["model_type"] == meant["model_type"]


def copy(name, tmp_path, **changes):
    """A folder like a golden one, with other options; None drops one."""
    folder = shutil.copytree(path(name), tmp_path / name, copy_function=shutil.copyfile)
    options = json.loads((folder / "config.json").read_text()) | changes
    options = {key: value for key, value in options.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(options))
    return folder


OLD_SPELLINGS = {
    "llama_rope3": {
        "rope_parameters": None,
        "dtype": None,
        "torch_dtype": "float32",
        "rope_theta": 500000.0,
        "rope_scaling": {
            "type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "head_dim": None,
    },
    "llama": {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": None},
    "recurrent_gemma": {
        "rope_parameters": None,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "embeddings_scale_by_sqrt_dim": True,
    },
    "mamba": {
        "d_model": 16,
        "n_layer": 2,
        "ssm_cfg": {},
        "rms_norm": True,
        "intermediate_size": None,
    },
    "mamba2": {"time_step_limit": [0.0, float("inf")], "norm_before_gate": True, "rms_norm": True},
    "qwen3": {"layer_types": None, "rope_parameters": None, "rope_theta": 10000.0},
    "smollm3": {"layer_types": None, "no_rope_layers": None, "no_rope_layer_interval": 4},
}


@pytest.mark.parametrize("name", OLD_SPELLINGS)
def test_old_spellings_mean_the_same(name, tmp_path):
    old = huggingface.load(copy(name, tmp_path, **OLD_SPELLINGS[name]))
    assert old.config == loaded(name).config


@pytest.mark.parametrize("first", [0, 2])
def test_windows_begin_at_a_layer(first, tmp_path):
    folder = copy("qwen3_window", tmp_path, layer_types=None, max_window_layers=first)
    layers = huggingface.load(folder).config.stack.layers
    assert [layer.sequence_mixer.window for layer in layers] == [None] * first + [5] * (3 - first)


def test_time_steps_are_limited_on_either_side(tmp_path):
    limits = [0.01, {"__float__": "Infinity"}]
    model = huggingface.load(copy("mamba2", tmp_path, time_step_limit=limits))
    low, high = model.config.stack.layers[0].sequence_mixer.dt_limits
    assert low == 0.01 and high == np.finfo(np.float32).max
    huggingface.save(model, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["time_step_limit"] == limits


def test_dtypes(tmp_path):
    low = huggingface.load(path("mamba"), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype("bfloat16")}
    assert low.config.dtype == "float32"  # residual_in_fp32
    assert low.config.stack.layers[0].compute_dtype == "bfloat16"
    huggingface.save(low, tmp_path / "low")
    again = huggingface.load(tmp_path / "low")
    assert again.config == low.config
    assert all(map(jnp.array_equal, jax.tree.leaves(again), jax.tree.leaves(low)))
    llama = huggingface.load(path("llama"), dtype="bfloat16")
    assert llama.config.dtype == "bfloat16"
    tokens, expected, _ = numbers("llama")
    error = jnp.abs(forward(llama, tokens) - expected).max()
    assert 1e-4 < error < 0.1
    with pytest.raises(ValueError, match="float16"):
        huggingface.load(copy("llama", tmp_path, dtype="float16"))
    assert huggingface.load(tmp_path / "llama", dtype="float32").config.dtype == "float32"


def test_arrays_go_to_their_sharding():
    mesh = jax.make_mesh((4,), ("model",))
    skeleton = loaded("llama")

    def choose(leaf):
        rows = jax.sharding.PartitionSpec(*[None] * (leaf.ndim - 1), "model")
        spec = rows if leaf.shape[-1] % 4 == 0 else jax.sharding.PartitionSpec()
        return jax.sharding.NamedSharding(mesh, spec)

    shardings = jax.tree.map(choose, skeleton)
    model = huggingface.load(path("llama"), sharding=shardings)
    for leaf, sharding in zip(jax.tree.leaves(model), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding == sharding
    device = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    model = huggingface.load(path("llama"), sharding=device)
    assert {leaf.sharding for leaf in jax.tree.leaves(model)} == {device}


WRONG_OPTIONS = [
    ("llama", {"model_type": "lama"}, "'lama'.*`llama`"),
    ("llama", {"model_type": None}, "None.*`llama`"),
    ("llama", {"hidden_size": None}, "lacks the option `hidden_size`"),
    ("llama", {"hidden_size": "16"}, "`hidden_size` must be a whole number of at least 1.*'16'"),
    (
        "llama",
        {"num_attention_heads": 0},
        "`num_attention_heads` must be a whole number of at least 1",
    ),
    ("llama", {"attention_biass": True}, "option `attention_biass`, which is unknown"),
    ("llama", {"quantization_config": {"bits": 4}}, "option `quantization_config`"),
    ("llama", {"auto_map": {"AutoModel": "code.Model"}}, "option `auto_map`"),
    ("llama", {"hidden_act": "relu2"}, "`hidden_act` is 'relu2'.*'silu'"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "'longrope'.*'llama3'"),
    ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "`rope_parameters` lacks 'factor'"),
    ("llama", {"rope_parameters": {"beta_fast": 32}}, "unknown.*beta_fast"),
    ("llama", {"intermediate_size": 33}, "width 33.*multiple of 8"),
    ("llama", {"sliding_window": 5}, "option `sliding_window`"),
    ("qwen3", {"layer_types": ["full_attention"]}, "`layer_types` must name 2 layers"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "`no_rope_layers` must be 5 times 0 or 1"),
    ("mamba", {"intermediate_size": 40}, "`intermediate_size` is 40.*multiple"),
    ("mamba", {"hidden_act": "gelu"}, "`hidden_act` is 'gelu'.*'silu'"),
    ("mamba2", {"num_heads": 5}, "`num_heads` times `head_dim` is 40"),
    ("mamba2", {"time_step_limit": [0.1]}, "`time_step_limit` must be two numbers"),
    ("recurrent_gemma", {"block_types": ["mamba"]}, "`block_types` must be a list"),
    ("recurrent_gemma", {"hidden_activation": "silu"}, "`hidden_activation` is 'silu'"),
]


@pytest.mark.parametrize(("name", "changes", "message"), WRONG_OPTIONS)
def test_wrong_options_are_named(name, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        huggingface.load(copy(name, tmp_path, **changes))


def test_tensors_that_do_not_belong_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"`lm_head.weight` is missing"):
        huggingface.load(copy("llama_rope3", tmp_path, tie_word_embeddings=False))
    with pytest.raises(ValueError, match=r"`model.layers.0.self_attn.k_norm.weight` is missing"):
        huggingface.load(copy("llama", tmp_path, model_type="qwen3", mlp_bias=None))
    with pytest.raises(ValueError, match=r"`model.layers.1.input_layernorm.weight` is not one of"):
        huggingface.load(copy("qwen3", tmp_path, num_hidden_layers=1, layer_types=None))
    with pytest.raises(
        ValueError, match=r"`model.embed_tokens.weight` has shape \(64, 32\), where"
    ):
        huggingface.load(copy("llama_seed2", tmp_path, vocab_size=65))


def test_models_that_an_architecture_cannot_express_are_refused(tmp_path):
    llama = loaded("llama").config
    folder = tmp_path / "out"

    def refuses(message, architecture=None, **changes):
        config = dataclasses.replace(llama, **changes)
        model = eqx.filter_eval_shape(config.build, KEY)
        with pytest.raises(ValueError, match=message):
            huggingface.save(model, folder, architecture)

    head = dataclasses.replace(llama.head, tied=True)
    refuses("head.scale` is None, not 1.0", head=dataclasses.replace(head, scale=None))
    refuses("head.soft_cap` is 5.0", "llama", head=dataclasses.replace(llama.head, soft_cap=5.0))
    refuses("as `qwen3`, .*qk_norm` is False, not True", "qwen3")
    refuses("no architecture 'gpt'", "gpt")
    block = llama.stack.layers[0]
    post = dataclasses.replace(block, norm_position="post")
    refuses("norm_position` is 'post'", stack=lx.StackConfig(((((post,)), 2),)))
    recurrent = lx.ResidualBlockConfig(lx.S5SequenceMixerConfig())
    refuses(
        "as `llama`, `config.stack.1.sequence_mixer` is a `S5Seq",
        stack=lx.StackConfig.from_layers([block, recurrent]),
    )
    assert not folder.exists()


def test_a_model_of_defaults_is_written_with_its_sizes(tmp_path):
    attention = lx.AttentionSequenceMixerConfig(num_heads=2)
    block = lx.ResidualBlockConfig(attention, lx.SwiGLUConfig(), dropout=0.1)
    stack = lx.StackConfig(((((block,)), 3),), unroll=3)
    config = lx.LanguageModelConfig(32, 16, stack, head=lx.LanguageModelHeadConfig(tied=False))
    model = config.build(KEY)
    huggingface.save(model, tmp_path / "out")
    options = json.loads((tmp_path / "out/config.json").read_text())
    assert options["model_type"] == "llama"
    sizes = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    assert [options[size] for size in sizes] == [2, 2, 8, 40]
    tokens = jnp.arange(12)[None] % 32
    again = huggingface.load(tmp_path / "out")
    np.testing.assert_array_equal(forward(again, tokens), forward(model, tokens))


def test_broken_files_are_errors(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("config.json", "model.safetensors"):
        whole = (path("mamba") / name).read_bytes()
        for trial in range(40):
            broken = bytearray(whole)
            if trial % 2:
                del broken[rng.integers(len(broken)) :]
            else:
                broken[rng.integers(min(len(broken), 2000))] = rng.integers(256)
            folder = tmp_path / f"{name}{trial}"
            shutil.copytree(path("mamba"), folder, copy_function=shutil.copyfile)
            Path(folder / name).write_bytes(broken)
            try:
                huggingface.load(folder)
            except ValueError:
                continue
            assert trial % 2 == 0, "a truncated file was read"
