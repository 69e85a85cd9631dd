"""Qwen3-Next, Qwen3.5 and OLMo hybrid: the logits of transformers, and files bit for bit."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import olmo_hybrid_formulas
import pytest
from golden_numbers import GOLDEN
from safetensors.numpy import load_file, save_file

import linax_like as lx
from linax_like.interop import huggingface


KEY = jr.key(0, impl="rbg")
FOLDERS = GOLDEN / "huggingface"
QWEN = ("qwen3_5_text", "qwen3_next_moe", "qwen3next_seed2")


@pytest.fixture(scope="module")
def models():
    return {name: huggingface.load(FOLDERS / name) for name in (*QWEN, "olmo_hybrid")}


def numbers(name):
    with np.load(FOLDERS / name / "io.npz", allow_pickle=False) as file:
        ids = file["ids"] if "ids" in file else file["input_ids"]
        return jnp.asarray(ids, jnp.int32), {n: file[n] for n in file.files}


@eqx.filter_jit
def forward(model, tokens):
    return jax.vmap(lambda tokens: model(tokens).logits)(tokens)


@pytest.mark.parametrize("name", [*QWEN, "olmo_hybrid"])
def test_logits_are_those_of_transformers(models, name):
    tokens, expected = numbers(name)
    got = forward(models[name], tokens)
    # Of the largest logit, which is below one but in the last folder: there it is 12, and the
    # reference itself is 1.9e-5 away from its own run in float64.
    tolerance = 1e-5 * max(1, np.abs(expected["logits"]).max())
    np.testing.assert_allclose(got, expected["logits"], atol=tolerance, rtol=0)


def test_logits_in_float64(models):
    """Without rounding what is left is the angles, which the reference has in float32."""
    model = models["qwen3next_seed2"]
    tokens, expected = numbers("qwen3next_seed2")
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model)
        x = wide.embedding.table[tokens]
        logits = eqx.filter_jit(jax.vmap(lambda x: wide.stack(x)[0] @ wide.head.weight.T))(x)
    np.testing.assert_allclose(logits, expected["logits64"], atol=1e-6)


def test_prefill_and_steps_are_the_whole_and_greedy(models):
    """Stepwise logits are the whole's; and the tokens that the model then prefers the reference's."""
    tokens, expected = numbers("qwen3next_seed2")
    whole, greedy = expected["logits"][0], expected["greedy"][0]
    read, unknown = 14, jnp.full(len(greedy) - 1, -1)

    @eqx.filter_jit
    def go_on(model, prompt, following):
        """The logits of the prompt and of what follows; -1 is the token that is preferred there."""

        def step(carry, token):
            state, preferred = carry
            state, output = model.step(state, jnp.where(token < 0, preferred, token))
            return (state, jnp.argmax(output.logits)), output.logits

        state, output = model.prefill(model.init_state(32), prompt)
        _, after = jax.lax.scan(step, (state, jnp.argmax(output.logits[-1])), following)
        return jnp.concatenate([output.logits, after])

    following = jnp.concatenate([tokens[0, read:], unknown])
    logits = go_on(models["qwen3next_seed2"], tokens[0, :read], following)
    length = len(whole)
    np.testing.assert_allclose(logits[:length], whole, atol=1e-5 * np.abs(whole).max())
    np.testing.assert_array_equal(jnp.argmax(logits[length - 1 :], -1), greedy)


@pytest.mark.parametrize("name", QWEN)
def test_what_is_saved_is_what_was_loaded(models, name, tmp_path):
    huggingface.save(models[name], tmp_path / "copy")
    assert_same_tensors(tmp_path / "copy", FOLDERS / name)
    assert eqx.tree_equal(huggingface.load(tmp_path / "copy"), models[name])
    kinds = [config_of(folder)["model_type"] for folder in (tmp_path / "copy", FOLDERS / name)]
    assert kinds[0] == kinds[1]


def assert_same_tensors(folder, other):
    got, expected = (load_file(each / "model.safetensors") for each in (folder, other))
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name, strict=True)


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def write(folder, config, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors")
    return folder


def variant(tmp_path, name, options=(), tensors=()):
    """A golden folder with other options (None leaves one out) and tensors."""
    config = config_of(FOLDERS / name) | dict(options)
    config = {key: value for key, value in config.items() if value is not None}
    arrays = load_file(FOLDERS / name / "model.safetensors") | dict(tensors)
    arrays = {key: value for key, value in arrays.items() if value is not None}
    return write(tmp_path / "variant", config, arrays)


def test_older_spellings_and_larger_files(models, tmp_path):
    """Options of the versions before, and a file that holds images' and further tokens' layers."""
    old = {"layer_types": None, "rope_parameters": None, "dtype": None, "torch_dtype": "float32"}
    old |= {"rope_theta": 10000.0, "partial_rotary_factor": 0.25, "full_attention_interval": 4}
    tensors = load_file(FOLDERS / "qwen3_5_text" / "model.safetensors")
    inner = {n: n.replace("model.", "model.language_model.", 1) for n in tensors}
    inner["lm_head.weight"] = "lm_head.weight"
    tensors = {n: None for n in tensors} | {inner[n]: tensor for n, tensor in tensors.items()}
    tensors["mtp.fc.weight"] = tensors["model.visual.norm.weight"] = np.zeros(3, np.float32)
    folder = variant(tmp_path, "qwen3_5_text", old, tensors)
    assert eqx.tree_equal(huggingface.load(folder), models["qwen3_5_text"])


def test_axes_of_images_do_not_turn_text(models, tmp_path):
    rope = config_of(FOLDERS / "qwen3_5_text")["rope_parameters"]
    rope = rope | {"mrope_section": [1, 0, 0], "mrope_interleaved": True}
    extra = {"rope_parameters": rope, "attn_output_gate": True, "mtp_num_hidden_layers": 1}
    folder = variant(tmp_path, "qwen3_5_text", extra)
    assert eqx.tree_equal(huggingface.load(folder), models["qwen3_5_text"])


def test_some_layers_without_experts(tmp_path):
    """Of four layers only the second has experts; what is written says so, and reads the same."""
    options = {"decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": False}
    shapes = {"gate_proj": (32, 16), "up_proj": (32, 16), "down_proj": (16, 32)}
    tensors = {}
    for name in load_file(FOLDERS / "qwen3_next_moe" / "model.safetensors"):
        if ".mlp." in name and ".layers.1." not in name:
            tensors[name] = None
    for i, (name, shape) in enumerate(shapes.items()):
        for layer in (0, 2, 3):
            tensors[f"model.layers.{layer}.mlp.{name}.weight"] = np.full(shape, i, np.float32)
    folder = variant(tmp_path, "qwen3_next_moe", options, tensors)
    model = huggingface.load(folder)
    mixers = [type(block.channel_mixer).__name__ for block in model.stack.layers()]
    assert mixers == ["MLP", "MixtureOfExperts", "MLP", "MLP"]
    huggingface.save(model, tmp_path / "copy")
    assert_same_tensors(tmp_path / "copy", folder)
    assert eqx.tree_equal(huggingface.load(tmp_path / "copy"), model)


MISTAKES = {
    "a missing expert": (
        "qwen3_next_moe",
        {},
        {"model.layers.2.mlp.experts.3.up_proj.weight": None},
        "`model.layers.2.mlp.experts.3.up_proj.weight` is missing",
    ),
    "an expert too many": (
        "qwen3_next_moe",
        {"num_experts": 3},
        {},
        "experts.3.down_proj.weight` is not one of this model's",
    ),
    "a wrong shape": (
        "qwen3_next_moe",
        {},
        {"model.layers.0.linear_attn.in_proj_qkvz.weight": np.zeros((60, 16), np.float32)},
        r"in_proj_qkvz.weight` has shape \(60, 16\), where the model has \(64, 16\)",
    ),
    "a kind of layer": (
        "qwen3_5_text",
        {"layer_types": ["linear_attention"] * 3 + ["sliding_attention"]},
        {},
        "`layer_types` must name 4 layers of linear_attention or full_attention",
    ),
    "no gate": ("qwen3_5_text", {"attn_output_gate": False}, {}, "`attn_output_gate` is False"),
    "an activation": ("qwen3_5_text", {"hidden_act": "gelu"}, {}, "`hidden_act` is 'gelu'"),
    "an unknown option": ("qwen3_5_text", {"num_memories": 2}, {}, "option `num_memories`"),
    "too few experts": (
        "qwen3_next_moe",
        {"num_experts_per_tok": 5},
        {},
        "`top_k` must be from 1 to num_experts=4",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_folder(tmp_path, mistake):
    name, options, tensors, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        huggingface.load(variant(tmp_path, name, options, tensors))


def with_block(model, **changes):
    """The model with other blocks; its arrays do not matter."""
    cfg = model.config
    layers = [dataclasses.replace(block, **changes) for block in cfg.stack.layers]
    stack = dataclasses.replace(
        lx.StackConfig.from_layers(layers), final_norm=cfg.stack.final_norm
    )
    return eqx.filter_eval_shape(dataclasses.replace(cfg, stack=stack).build, KEY)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channel_mixer": lx.MixtureOfExpertsConfig(4)}, "no expert that every position"),
        ({"channel_mixer": lx.SwiGLUConfig()}, "as `qwen3_next`, it has no `MixtureOfExperts"),
        ({"norm_position": "branch"}, "norm_position` is 'branch', not 'pre'"),
        ({"sequence_mixer": lx.GatedDeltaNetSequenceMixerConfig(2)}, "it has no `AttentionSeq"),
    ],
)
def test_models_that_it_cannot_express(models, tmp_path, changes, message):
    model = with_block(models["qwen3_next_moe"], **changes)
    with pytest.raises(ValueError, match=message):
        huggingface.save(model, tmp_path / "copy", "qwen3_next")


def test_open_sizes_must_be_stated(models, tmp_path):
    cfg = models["qwen3_5_text"].config
    open_sizes = lx.GatedDeltaNetSequenceMixerConfig()
    layers = [dataclasses.replace(cfg.stack.layers[0], sequence_mixer=open_sizes)]
    layers.append(cfg.stack.layers[3])
    cfg = dataclasses.replace(cfg, stack=lx.StackConfig.from_layers(layers))
    model = eqx.filter_eval_shape(cfg.build, KEY)
    with pytest.raises(
        ValueError, match="`GatedDeltaNetSequenceMixerConfig` must state its `num_"
    ):
        huggingface.save(model, tmp_path / "copy", "qwen3_5_text")


# OLMo hybrid, beyond the folder that transformers wrote: its formulas, and the names of its files.

OLMO = {
    "model_type": "olmo_hybrid",
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 4,
    "linear_allow_neg_eigval": True,
    "rope_parameters": None,
    "tie_word_embeddings": False,
}
LINEAR_SHAPES = {
    "attention_layer_norm.weight": (16,),
    "feedforward_layer_norm.weight": (16,),
    **{f"linear_attn.{x}_proj.weight": (12, 16) for x in "qk"},
    **{f"linear_attn.{x}_conv1d.weight": (12, 1, 4) for x in "qk"},
    "linear_attn.v_proj.weight": (24, 16),
    "linear_attn.v_conv1d.weight": (24, 1, 4),
    "linear_attn.g_proj.weight": (24, 16),
    "linear_attn.a_proj.weight": (4, 16),
    "linear_attn.b_proj.weight": (4, 16),
    "linear_attn.A_log": (4,),
    "linear_attn.dt_bias": (4,),
    "linear_attn.o_norm.weight": (6,),
    "linear_attn.o_proj.weight": (16, 24),
}
ATTENTION_SHAPES = {
    "post_attention_layernorm.weight": (16,),
    "post_feedforward_layernorm.weight": (16,),
    "self_attn.q_proj.weight": (16, 16),
    "self_attn.k_proj.weight": (8, 16),
    "self_attn.v_proj.weight": (8, 16),
    "self_attn.o_proj.weight": (16, 16),
    "self_attn.q_norm.weight": (16,),
    "self_attn.k_norm.weight": (8,),
}
MLP_SHAPES = {f"mlp.{name}_proj.weight": (24, 16) for name in ("gate", "up")}
MLP_SHAPES |= {"mlp.down_proj.weight": (16, 24)}


@pytest.fixture(scope="module")
def olmo_tensors():
    shapes = {"model.embed_tokens.weight": (23, 16), "lm_head.weight": (23, 16)}
    shapes["model.norm.weight"] = (16,)
    for i, kind in enumerate(OLMO["layer_types"]):
        inner = LINEAR_SHAPES if kind == "linear_attention" else ATTENTION_SHAPES
        shapes |= {f"model.layers.{i}.{n}": shape for n, shape in (inner | MLP_SHAPES).items()}
    rng = np.random.default_rng(0)
    draw = lambda name, shape: 0.3 * rng.normal(size=shape) + ("norm" in name)
    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def olmo_model(olmo_tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("olmo") / "published"
    return huggingface.load(write(folder, OLMO, olmo_tensors))


def test_olmo_hybrid_is_its_formulas(olmo_model, olmo_tensors):
    tokens = np.random.default_rng(1).integers(0, 23, 19)
    wide = {name: tensor.astype(np.float64) for name, tensor in olmo_tensors.items()}
    expected = olmo_hybrid_formulas.logits(wide, OLMO, tokens)
    got = forward(olmo_model, jnp.asarray(tokens[None], jnp.int32))[0]
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_olmo_hybrid_as_transformers_wrote_it(models, tmp_path):
    """It cuts the convolutions into thirds, and calls norms otherwise than the model it reads."""
    huggingface.save(models["olmo_hybrid"], tmp_path / "copy")
    assert eqx.tree_equal(huggingface.load(tmp_path / "copy"), models["olmo_hybrid"])
    ours, theirs = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "copy", FOLDERS / "olmo_hybrid")
    )
    shared = ours.keys() & theirs.keys()
    assert len(shared) > 50
    for name in shared:
        if "conv1d" not in name:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_olmo_hybrid_as_transformers_writes_it_again(olmo_model, olmo_tensors, tmp_path):
    """Convolutions cut into thirds, and another name for a norm of the attention layer."""
    tensors = dict(olmo_tensors)
    for i in (0, 2):
        names = [f"model.layers.{i}.linear_attn.{x}_conv1d.weight" for x in "qkv"]
        thirds = np.split(np.concatenate([tensors[name] for name in names]), 3)
        tensors |= dict(zip(names, thirds, strict=True))
    norm = tensors.pop("model.layers.1.post_attention_layernorm.weight")
    tensors["model.layers.1.feedforward_layer_norm.weight"] = norm
    again = huggingface.load(write(tmp_path / "again", OLMO, tensors))
    assert eqx.tree_equal(again, olmo_model)
    name = "model.layers.0.linear_attn.v_conv1d.weight"
    longer = tensors | {name: np.zeros((17, 1, 4), np.float32)}
    message = r"q_conv1d.weight` has shape \(16, 1, 4\), where the model has \(12, 1, 4\)"
    with pytest.raises(ValueError, match=message):
        huggingface.load(write(tmp_path / "longer", OLMO, longer))


@pytest.mark.parametrize("theta", [None, 500000.0])
def test_olmo_hybrid_round_trip(olmo_tensors, tmp_path, theta):
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    model = huggingface.load(write(tmp_path / "first", OLMO | rope, olmo_tensors))
    assert model.config.stack.layers[1].sequence_mixer.rope_base == theta
    huggingface.save(model, tmp_path / "copy")
    assert config_of(tmp_path / "copy")["model_type"] == "olmo_hybrid"
    assert eqx.tree_equal(huggingface.load(tmp_path / "copy"), model)


def test_olmo_hybrid_sizes_by_default(olmo_tensors, tmp_path):
    """Heads as in attention, keys of 3/4 of the width in all, values twice as large."""
    stated = {n for n in OLMO if n.startswith("linear_num") or n.endswith("_head_dim")}
    options = {name: value for name, value in OLMO.items() if name not in stated}
    model = huggingface.load(write(tmp_path / "defaults", options, olmo_tensors))
    mixer = model.config.stack.layers[0].sequence_mixer
    sizes = (mixer.num_heads, mixer.head_dim, mixer.num_value_heads, mixer.value_head_dim)
    assert sizes == (4, 3, 4, 6)
