"""What the QKV mixer, its operators and cross-attention promise beyond the laws."""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from asserts import assert_close, raises_value_error
from mixer_cases import CASES

import linax_like as lx
from linax_like.training.optimizers import parameter_groups


KEY = jr.key(0, impl="rbg")
X = jr.normal(jr.key(1, impl="rbg"), (12, 8))
IMAGE = X.reshape(3, 4, 8)
S5 = lx.S5SequenceMixerConfig(8)
QKV, Attention = lx.QKVSequenceMixerConfig, lx.AttentionOperatorConfig
EVERYWHERE = Attention(2, causal=False)
CLASSES = list({type(case.config): case for case in CASES}.values())


@eqx.filter_jit
def call(module, *inputs, **context):
    return module(*inputs, **context)


@dataclass(frozen=True)
class BlendOperatorConfig(lx.AbstractQKVOperatorConfig):
    def build(self, in_features, key):
        return BlendOperator(in_features)


class BlendOperator(lx.AbstractQKVOperator):
    """An operator of four streams that heeds the condition, and cannot step."""

    in_features: int = eqx.field(static=True)
    gain: jax.Array = eqx.field(default_factory=lambda: jnp.ones(8))

    @property
    def causal(self):
        return True

    @property
    def num_inputs(self):
        return 4

    @property
    def uses(self):
        return frozenset({"condition"})

    @property
    def recurrence_parameters(self):
        return frozenset({"gain"})

    def __call__(self, streams, key=None, *, context=None):
        q, k, v, gate = streams
        return (q + k + v * gate) * context.condition * self.gain

    @property
    def complexity(self):
        return "O(L · d)"

    def flop_count(self, spatial_dims, inference=False):
        return 7


def test_a_mixer_stands_between_gates():
    @eqx.filter_jit
    def forms(mixer, x):
        q, k, v = jnp.split(x @ mixer.qkv_proj.T + mixer.qkv_bias, 3, axis=-1)
        inside = mixer.operator.mixer(q * k) * v
        state, first = mixer.prefill(mixer.init_state(12), x[:11])
        _, last = mixer.step(state, x[11])
        by_parts = jnp.concatenate([first, last[None]])
        return mixer(x), by_parts, inside @ mixer.out_proj.T + mixer.out_bias

    mixer = QKV(S5, qkv_bias=True, out_proj_bias=True).build(8, KEY)
    whole, by_parts, expected = forms(mixer, X)
    assert_close(whole, expected, "f(q ⊙ k) ⊙ v")
    assert_close(by_parts, whole, "prefill and step")


def test_further_streams_and_the_condition_reach_the_operator():
    mixer = QKV(BlendOperatorConfig()).build(8, KEY)
    assert mixer.uses == {"condition"} and mixer.qkv_proj.shape == (32, 8)
    condition = jnp.arange(8.0)
    q, k, v, gate = jnp.split(X @ mixer.qkv_proj.T, 4, axis=-1)
    expected = ((q + k + v * gate) * condition) @ mixer.out_proj.T
    assert_close(mixer(X, context=lx.SequenceContext(condition=condition)), expected, "condition")
    with raises_value_error("QKVSequenceMixer", "BlendOperator", "step by step"):
        mixer.init_state(4)


def test_flops_are_those_of_the_projections_and_the_operator():
    for config in (EVERYWHERE, S5):
        mixer = QKV(config).build(8, KEY)
        for inference in (True, False):
            operator = mixer.operator.flop_count((12,), inference)
            projections = 8 * 12 * 8**2 * (1 if inference else 3)
            assert mixer.flop_count((12,), inference) == projections + operator
    points = QKV(EVERYWHERE).build(8, KEY).flop_count((3, 4), inference=True)
    assert points == 8 * 12 * 8**2 + 4 * 8 * 12**2
    inner = S5.build(8, KEY).flop_count((12,), True)
    assert QKV(S5).build(8, KEY).operator.flop_count((12,), True) == inner + 2 * 12 * 8


def test_initial_values():
    width, biases = 256, {"qkv_bias": True, "out_proj_bias": True}
    plain = QKV(Attention(), **biases).build(width, KEY)
    for array in (plain.qkv_proj, plain.out_proj, plain.qkv_bias, plain.out_bias):
        assert jnp.abs(array).max() <= 1 / 16
        np.testing.assert_allclose(jnp.std(array), 1 / 16 / math.sqrt(3), rtol=0.1)
    small, wang = lx.SmallInitializerConfig(), lx.WangInitializerConfig(num_layers=4)
    given = QKV(Attention(), **biases, in_init=small, out_init=wang).build(width, KEY)
    np.testing.assert_allclose(jnp.std(given.qkv_proj), math.sqrt(2 / (5 * width)), rtol=0.02)
    np.testing.assert_allclose(jnp.std(given.out_proj), 2 / (4 * 16), rtol=0.02)
    assert not given.qkv_bias.any() and not given.out_bias.any()
    truncated = QKV(S5, in_init=lx.TruncatedNormalInitializerConfig(0.02)).build(width, KEY)
    np.testing.assert_allclose(jnp.std(truncated.qkv_proj), 0.02, rtol=0.02)
    assert jnp.abs(truncated.qkv_proj).max() < 0.05


def test_slow_parameters_of_an_operator_are_found():
    blocks = [lx.ResidualBlockConfig(QKV(config)) for config in (BlendOperatorConfig(), S5)]
    groups = parameter_groups(lx.StackConfig.from_layers(blocks).build(8, KEY)).groups
    own, mixed = (block.sequence_mixer for block in groups[0])
    assert own.operator.gain == "recurrence" and own.qkv_proj == "matrix"
    assert mixed.operator.mixer.log_step == "recurrence"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"inside-{case.id}")
def test_every_mixer_fits_inside(case):
    build = lambda config: eqx.filter_eval_shape(config.build, 8, KEY)
    inner, mixer = build(case.config), build(QKV(case.config))
    assert (mixer.causal, mixer.uses) == (inner.causal, inner.uses)
    assert eqx.filter_eval_shape(mixer, X).shape == X.shape
    if not mixer.causal:
        with raises_value_error("QKVSequenceMixer", "not causal"):
            mixer.init_state(12)


@pytest.mark.slow
@pytest.mark.parametrize("case", CLASSES, ids=lambda case: f"inside-{case.id}")
def test_every_causal_mixer_inside_can_be_split(case):
    mixer = QKV(case.config).build(8, KEY)
    if not mixer.causal:
        pytest.skip("not causal")

    @eqx.filter_jit
    def forms(mixer, x):
        state, first = mixer.prefill(mixer.init_state(12), x[:11])
        _, last = mixer.step(state, x[11])
        return mixer(x), jnp.concatenate([first, last[None]])

    whole, parts = forms(mixer, X)
    assert_close(parts, whole, case.id)


def test_rope_on_a_grid_turns_and_knows_offsets_alone():
    q, k = jr.normal(KEY, (2, 1, 1, 14))
    points = lx.grid_coordinates((5, 4, 3), others=2)
    turned = [lx.axial_rope(jnp.broadcast_to(x, (62, 1, 14)), points, 20.0)[:, 0] for x in (q, k)]
    for got, x in zip(turned, (q, k), strict=True):
        norms = jnp.linalg.norm(got, axis=-1)
        np.testing.assert_allclose(norms, jnp.linalg.norm(x), rtol=1e-5)
        np.testing.assert_array_equal(got[60:], jnp.broadcast_to(x[0], (2, 14)))
    grids = (x[:60].reshape(5, 4, 3, 14) for x in turned)
    q, k = grids
    offset = jnp.sum(q[1:, :-1, 2:] * k[:-1, 1:, :-2], axis=-1)
    np.testing.assert_allclose(offset, jnp.broadcast_to(offset[0, 0, 0], offset.shape), atol=1e-5)
    assert jnp.abs(jnp.sum(q * k[0, 0, 0], axis=-1) - jnp.sum(q[0, 0, 0] * k[0, 0, 0])).max() > 0.1
    with raises_value_error("axial_rope", "3 axes", "6", "Received 4"):
        lx.axial_rope(jnp.zeros((62, 1, 4)), points)


def test_padding_around_an_image_is_no_image():
    """RoPE depends on offsets, so it makes no difference where in the padding the image is."""
    mixer = QKV(EVERYWHERE, qkv_bias=True).build(8, KEY)
    mask = jnp.zeros((5, 6), bool).at[1:4, 2:].set(True)
    padded = jnp.full((5, 6, 8), jnp.nan).at[1:4, 2:].set(IMAGE)
    y = call(mixer, padded, context=lx.SequenceContext(mask=mask))
    assert_close(y[1:4, 2:], call(mixer, IMAGE), "padded")
    assert np.all(np.asarray(y)[~np.asarray(mask)] == 0)


def test_a_sequence_can_hold_a_grid_and_other_tokens():
    grid, turned = (QKV(c).build(8, KEY) for c in (EVERYWHERE.updated("grid", (3, 4)), EVERYWHERE))
    assert grid.spatial_ndims == {1} and grid.uses == frozenset()
    assert_close(call(grid, X), call(turned, IMAGE).reshape(12, 8), "nothing but the grid")
    extended = call(grid, jnp.concatenate([X, X[:2]]))
    assert extended.shape == (14, 8)
    with raises_value_error("grid=(3, 4)", "at least 12", "Received 11"):
        grid(X[:11])


def test_cosine_scores_are_bounded_by_their_scale():
    streams = (100 * X, 100 * X, X)
    near = call(Attention(2, causal=False, qk_norm="l2").build(8, KEY), streams)
    flat = jnp.broadcast_to(X.mean(0), X.shape)
    assert jnp.abs(near - flat).max() < 0.9 * jnp.abs(X - flat).max()
    fixed = Attention(2, causal=False, qk_norm="l2", cosine_scale=9.0)
    learned = fixed.updated("learn_cosine_scale", True).build(8, KEY)
    assert_close(call(learned, streams), call(fixed.build(8, KEY), streams), "the same at first")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"qk_norm": "max"}, ("qk_norm", "'rms'")),
        ({"cosine_scale": 2.0}, ("cosine_scale", 'qk_norm="l2"')),
        ({"learn_cosine_scale": True}, ("learn_cosine_scale", 'qk_norm="l2"')),
        ({"num_heads": 0}, ("num_heads", "positive")),
        ({"grid": (2, 2)}, ("grid", "causal=False")),
        ({"grid": (2, 0), "causal": False}, ("grid", "positive sizes")),
        ({"grid": (2, 2), "causal": False, "rope_base": None}, ("grid", "rope_base=None")),
    ],
)
def test_configs_validate(wrong, words):
    with raises_value_error("AttentionOperatorConfig", *words):
        Attention(**wrong)


def test_errors_name_the_mixer_and_the_remedy():
    with raises_value_error("operator", "AbstractQKVOperatorConfig"):
        QKV(lx.RMSNormConfig())
    with raises_value_error("num_heads=8", "even size"):
        Attention(8).build(24, KEY)
    with raises_value_error("QKVSequenceMixer", "(time, 8)"):
        QKV(Attention()).build(8, KEY)(IMAGE)
    with raises_value_error("AttentionOperator", "axis_name"):
        QKV(EVERYWHERE).build(8, KEY)(IMAGE, context=lx.SequenceContext(axis_name="time"))
    with raises_value_error("num_layers", "positive"):
        lx.WangInitializerConfig(0)


def test_cross_attention_reads_real_tokens_only():
    module = lx.CrossAttentionConfig(2, token_features=6, max_tokens=5).build(8, KEY)
    tokens = jr.normal(KEY, (5, 6))
    mask = jnp.array([True, False, True, True, False])
    junk = jnp.where(mask[:, None], tokens, jnp.nan)
    expected = call(module, IMAGE, tokens[mask])
    assert_close(call(module, IMAGE, junk, token_mask=mask), expected, "masked")
    assert not call(module, IMAGE, tokens[:0]).any()
    assert not call(module, IMAGE, junk, token_mask=mask & False).any()
    one = call(module, IMAGE, tokens[:1])
    assert_close(one, jnp.broadcast_to(one[0, 0], one.shape), "one token")
    assert module.flop_count((3, 4), inference=True) == 2 * (12 * 128 + 5 * 96) + 4 * 12 * 5 * 8
    with raises_value_error("CrossAttention", "(tokens, 6)", "(12, 8)"):
        module(IMAGE, X)
    with raises_value_error("token_features", "positive"):
        lx.CrossAttentionConfig(token_features=0)
