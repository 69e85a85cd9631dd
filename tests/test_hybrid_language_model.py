"""The hybrid language model: what its flat arguments become, and what a language model promises."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

import linax_like as lx
from linax_like.interop import load_weights, save_weights
from linax_like.models.hybrid import MIXERS
from linax_like.ops.cross_entropy import cross_entropy
from linax_like.paths import named_arrays


KEY = jr.key(0, impl="rbg")
VOCABULARY, TIME = 13, 8
PATTERN = ["S5", "S5", "attn", "Mamba", "Mamba", "attn"]
hybrid_language_model = lx.presets.hybrid_language_model


def config(mixer_types=("MinGRU", "attn"), d_intermediate=16, **options):
    types = list(mixer_types)
    return hybrid_language_model(
        16, 8, len(types), VOCABULARY, types, d_intermediate=d_intermediate, **options
    )


@pytest.fixture(scope="module")
def model():
    return config(mixer_kwargs={"num_heads": 2}, tie_embeddings=True).build(KEY)


@pytest.fixture(scope="module")
def tokens():
    return jr.randint(KEY, (TIME,), 0, VOCABULARY)


@eqx.filter_jit
def read(model, tokens, context=None):
    return model(tokens, context=context).logits


def mixers(cfg):
    return [block.sequence_mixer for block in cfg.stack.layers]


def close(a, b, atol=2e-5):
    np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5)


def test_every_mixer_that_can_read_text_has_a_name():
    public = {
        cls
        for name in dir(lx)
        if name.endswith("SequenceMixerConfig") and (cls := getattr(lx, name)).__name__ == name
    }
    wrappers = {
        lx.AbstractSequenceMixerConfig,
        lx.BidirectionalSequenceMixerConfig,
        lx.GridOrdersSequenceMixerConfig,
        lx.IdentitySequenceMixerConfig,
        lx.QKVSequenceMixerConfig,
    }
    assert set(MIXERS.values()) == public - wrappers


def test_layers_are_what_the_names_say():
    cfg = config(PATTERN)
    assert [type(mixer) for mixer in mixers(cfg)] == [MIXERS[name] for name in PATTERN]
    assert [getattr(mixer, "state_dim", None) for mixer in mixers(cfg)] == [8, 8, None, 8, 8, None]
    assert all(block.channel_mixer == lx.SwiGLUConfig(1.0) for block in cfg.stack.layers)
    assert cfg.stack.final_norm == cfg.stack.layers[0].norm == lx.RMSNormConfig(1e-5)
    layer_norm = config(rms_norm=False, norm_epsilon=1e-3, d_intermediate=0)
    assert layer_norm.stack.layers[0].norm == lx.LayerNormConfig(1e-3)
    assert layer_norm.stack.layers[0].channel_mixer is None
    assert config(mlp_cls=lx.MLPConfig).stack.layers[1].channel_mixer == lx.MLPConfig(expand=1.0)
    assert config(fused_add_norm=False) == config(fused_add_norm=True)
    assert not config(tie_embeddings=False).head.tied


def test_a_pattern_is_compiled_once_however_often_it_is_repeated():
    def equations(repeats):
        cfg = config(PATTERN * repeats)
        assert cfg.stack.groups == ((cfg.stack.layers[:6], repeats),)
        skeleton = eqx.filter_eval_shape(cfg.build, KEY)
        program = eqx.filter_make_jaxpr(lambda model, tokens: model(tokens).logits)(
            skeleton, jax.ShapeDtypeStruct((TIME,), jnp.int32)
        )[0]
        return len(str(program).splitlines())

    assert equations(8) == equations(2)


def test_options_reach_the_layers_they_are_for():
    given = {
        "num_heads": 4,
        "attn": {"num_heads": 2, "qk_norm": True, "window": 5},
        2: {"window": 3},
        0: {"state_dim": 6},
        "Mamba": {"state_dim": 2},
    }
    first, second, third, fourth = mixers(
        config(["S5", "attn", "attn", "Mamba"], mixer_kwargs=given)
    )
    assert first == lx.S5SequenceMixerConfig(6)
    assert second == lx.AttentionSequenceMixerConfig(2, qk_norm=True, window=5)
    assert third == lx.AttentionSequenceMixerConfig(2, qk_norm=True, window=3)
    assert fourth == lx.MambaSequenceMixerConfig(2)


def test_dtype_is_of_the_stream_or_of_the_mixers():
    compute = lambda cfg: {block.compute_dtype for block in cfg.stack.layers}
    half = config(dtype=jnp.bfloat16)
    assert half.dtype == "bfloat16" and compute(half) == {"input"}
    mixed = config(dtype="bfloat16", residual_in_fp32=True)
    assert mixed.dtype == "float32" and compute(mixed) == {"bfloat16"}
    assert config(residual_in_fp32=True) == config()


def test_branches_start_smaller_by_the_root_of_their_number():
    types = ["LRU", "attn", "Mamba"]
    unscaled = config(types, initializer_cfg=lx.HybridInitializerConfig(rescale_branches=False))
    plain = named_arrays(unscaled.build(KEY))
    scaled = named_arrays(config(types).build(KEY))
    outputs = [name for name in plain if name.endswith("/out_proj")]
    assert len(outputs) == 6
    for name, array in plain.items():
        factor = 1 / math.sqrt(6) if name in outputs else 1.0
        np.testing.assert_allclose(scaled[name], factor * array, rtol=1e-6)
    without = named_arrays(config(types, d_intermediate=0).build(KEY))
    ratio = jnp.std(without["stack/1/sequence_mixer/out_proj"]) / jnp.std(
        scaled["stack/1/sequence_mixer/out_proj"]
    )
    assert abs(ratio - math.sqrt(2)) < 0.2
    std = (
        config(types, initializer_cfg=lx.HybridInitializerConfig(0.02)).build(KEY).embedding.table
    )
    assert 0.01 < jnp.std(std) < 0.03


def test_experts_take_the_channel_mixers_place(tokens):
    cfg = config(mlp_cls=lx.MixtureOfExpertsConfig, d_intermediate=12)
    experts = lx.MixtureOfExpertsConfig(expert_features=12)
    assert [block.channel_mixer for block in cfg.stack.layers] == [experts, experts]
    assert lx.AbstractConfig.from_json(cfg.to_json()) == cfg
    block = lx.ResidualBlockConfig(
        lx.IdentitySequenceMixerConfig(),
        dataclasses.replace(experts, shared_features=8, balance_loss=0.1),
    )
    plain = dataclasses.replace(cfg, stack=lx.StackConfig((((block,), 2),)))
    small = dataclasses.replace(plain, stack=dataclasses.replace(plain.stack, branch_scale=0.5))
    before, after = named_arrays(plain.build(KEY)), named_arrays(small.build(KEY))
    ends = ("channel_mixer/down_proj", "channel_mixer/shared/down_proj")
    for name, array in before.items():
        factor = 0.5 if name.endswith(ends) else 1.0
        np.testing.assert_array_equal(after[name], factor * np.asarray(array))
    assert sum(name.endswith(ends) for name in before) == 4
    assert small.build(KEY)(tokens).aux.loss > 0


def test_only_a_mixers_own_output_is_scaled():
    inner = lx.LRUSequenceMixerConfig(4)
    block = lx.ResidualBlockConfig(lx.BidirectionalSequenceMixerConfig(inner, "project"), None)
    plain = lx.StackConfig((((block,), 1),))
    scaled = dataclasses.replace(plain, branch_scale=0.5).build(8, KEY)
    before, after = named_arrays(plain.build(8, KEY)), named_arrays(scaled)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"0/sequence_mixer/out_proj"}


def test_padding_of_the_vocabulary_is_never_predicted(model, tokens):
    rows = model.embedding.table.shape[0]
    assert (rows, model.config.vocab_size) == (16, VOCABULARY)
    loud = eqx.tree_at(lambda m: m.embedding.table, model, model.embedding.table.at[13:].set(99.0))
    logits = read(loud, tokens)
    assert logits.shape == (TIME, rows)
    assert (logits[:, VOCABULARY:] == -jnp.inf).all() and jnp.isfinite(
        logits[:, :VOCABULARY]
    ).all()
    close(jax.nn.softmax(logits).sum(-1), 1.0)
    assert jnp.isnan(read(model, tokens.at[2].set(VOCABULARY))[2, :VOCABULARY]).all()
    assert (jr.categorical(KEY, logits / 1e6, shape=(500, TIME)) < VOCABULARY).all()


def test_the_last_logits_only(model, tokens):
    whole = read(model, tokens)

    @eqx.filter_jit
    def last(model, tokens):
        state, output = model.prefill(model.init_state(TIME), tokens, num_last_tokens=1)
        return model(tokens, num_last_tokens=3).logits, output.logits, state.cursor.position

    three, one, position = last(model, tokens)
    assert (three == whole[-3:]).all()
    close(one, whole[-1:])
    assert position == TIME
    for wrong in (0, -1, TIME + 1):
        with pytest.raises(ValueError, match=f"num_last_tokens.*Received {wrong}"):
            model(tokens, num_last_tokens=wrong)


def test_lengths_make_a_mask(model, tokens):
    batch = jnp.stack([tokens, tokens.at[5:].set(-7)])
    context = lx.SequenceContext.from_lengths(jnp.asarray([TIME, 5]), TIME)
    logits = jax.vmap(read, (None, 0, 0))(model, batch, context)
    close(logits[0], read(model, tokens))
    close(logits[1, :5], read(model, tokens[:5]))
    assert lx.SequenceContext.from_lengths(3, 4).mask.tolist() == [True, True, True, False]
    for wrong in (-1, 9):
        with pytest.raises(ValueError, match=f"at most the 8 positions.*Received {wrong}"):
            lx.SequenceContext.from_lengths(np.asarray([3, wrong]), TIME)


def test_steps_take_timesteps(tokens):
    model = config(["S5"], d_intermediate=0).build(KEY)
    timesteps = jnp.linspace(0.2, 3.0, TIME)
    whole = read(model, tokens, lx.SequenceContext(timesteps=timesteps))
    even = read(model, tokens, lx.SequenceContext(timesteps=jnp.ones(TIME)))
    assert not np.allclose(whole[:, :VOCABULARY], even[:, :VOCABULARY], atol=1e-2)

    def step(state, inputs):
        token, timestep = inputs
        context = lx.SequenceContext(timesteps=timestep)
        state, output = model.step(state, token, context=context)
        return state, output.logits

    _, stepped = jax.lax.scan(step, model.init_state(TIME), (tokens, timesteps))
    close(stepped, whole)


def test_states_have_their_own_dtype_and_sharding(model):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, P())
    state = model.init_state(TIME, jnp.bfloat16, sharding=sharding)
    recurrent, attention = state.blocks[0]
    assert attention.keys.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(recurrent))
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_of_a_batch_is_the_plain_one(tied, tokens):
    cfg = config(["MinGRU"], tie_embeddings=tied)
    cfg = dataclasses.replace(cfg, head=lx.LanguageModelHeadConfig(tied, soft_cap=4.0))
    model = cfg.build(KEY)
    batch = jnp.stack([tokens, tokens[::-1]])
    labels, lengths = jnp.roll(batch, -1, axis=1), jnp.asarray([TIME, 3])
    context = lx.SequenceContext.from_lengths(lengths, TIME)

    def plain(model):
        read = lambda tokens, context: model(tokens, context=context).logits
        logits = jax.vmap(read)(batch, context)
        return jnp.sum(jnp.where(context.mask, cross_entropy(logits, labels), 0.0))

    def chunked(model):
        sums, aux = lx.token_loss(model, batch, labels, context=context, chunk=6)
        return sums.objective + jnp.sum(aux.loss)

    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(chunked))(model)
    expected, expected_gradient = eqx.filter_jit(eqx.filter_value_and_grad(plain))(model)
    close(value, expected)
    jax.tree.map(lambda a, b: close(a, b), gradient, expected_gradient)


def test_config_and_weights_survive_files(tmp_path, tokens):
    cfg = config(["LRU", "attn", "GLA"], mixer_kwargs={"GLA": {"num_heads": 2}, 1: {"window": 4}})
    again = lx.AbstractConfig.from_json(cfg.to_json())
    assert again == cfg and hash(again) == hash(cfg)
    model, path = cfg.build(KEY), tmp_path / "model.safetensors"
    save_weights(path, model)
    loaded = load_weights(path, eqx.filter_eval_shape(again.build, KEY))
    assert eqx.tree_equal(model, loaded, typematch=True)


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"mixer_types": ["LRU", "lru"]}, "names 'lru', which is not a mixer. Valid: attn, Cent"),
        ({"n_layer": 3}, "one name in `mixer_types` per layer: received 2 names for n_layer=3"),
        ({"mixer_types": [], "n_layer": 0}, "received 0 names"),
        ({"mixer_kwargs": {"window": 3}}, "has the key 'window'.*Their options: conj_sym|C_init"),
        ({"mixer_kwargs": {"attn": {}}}, "has the key 'attn'"),
        ({"mixer_kwargs": {2: {}}}, "has the key 2"),
        ({"mixer_kwargs": {"S5": {"stat_dim": 3}}}, "S5 has no option 'stat_dim'. Valid: .*state"),
        ({"mixer_kwargs": {1: {"ssm_blocks": 1}}}, r"`mixer_kwargs\[1\]`: LRU has no option"),
        ({"mixer_kwargs": {"S5": 3}}, "must map options of S5 to values. Received 3"),
        ({"mixer_kwargs": {"S5": {"state_dim": "8"}}}, "state_dim"),
        ({"mlp_cls": lx.GLUConfig, "d_intermediate": 8}, "GLUConfig` has no hidden layer"),
        ({"d_state": 0}, "state_dim"),
        ({"dtype": "float16"}, "dtype"),
        ({"pad_vocab_size_multiple": 0}, "pad_vocab_size_multiple"),
        ({"norm_epsilon": 0.0}, "eps"),
    ],
)
def test_bad_arguments_say_why(options, law):
    arguments = {"d_model": 16, "d_state": 8, "n_layer": 2, "vocab_size": 13}
    arguments["mixer_types"] = ["S5", "LRU"]
    with pytest.raises(ValueError, match=law):
        hybrid_language_model(**(arguments | options))


def test_bad_initial_values_say_why():
    with pytest.raises(ValueError, match="embedding_std"):
        lx.HybridInitializerConfig(0.0)
    with pytest.raises(ValueError, match="branch_scale"):
        dataclasses.replace(config().stack, branch_scale=0.0)
