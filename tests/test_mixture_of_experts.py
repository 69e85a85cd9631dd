"""Mixture of experts: against a loop over experts, a plain feed-forward layer, and a reference."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_numbers import load
from jax import P
from jax.sharding import AxisType
from meshes import mesh_of

import linax_like as lx
from linax_like.channel_mixers import mixture_of_experts
from linax_like.ops.grouped_matmul import grouped_matmul


KEY = jr.key(0, impl="rbg")
FEATURES, TIME = 16, 24
CONFIG = lx.MixtureOfExpertsConfig(
    5, top_k=2, expert_features=12, shared_features=8, balance_loss=0.5, z_loss=0.25
)


@pytest.fixture(scope="module")
def mixer():
    return CONFIG.build(FEATURES, KEY)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(TIME, FEATURES))


@eqx.filter_jit
def call(mixer, x):
    return mixer(x)


def silu(x):
    return x / (1 + np.exp(-x))


def feed_forward(x, gate, up, down):
    return down @ (silu(gate @ x) * (up @ x))


def by_loop(mixer, x):
    """Outputs and the auxiliary loss, position by position and expert by expert, in float64."""
    cfg, shared = mixer.config, mixer.shared
    m, s = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (mixer, shared))
    outputs, chosen, probabilities, z = [], np.zeros(cfg.num_experts), [], []
    for row in x:
        logits = m.router @ row
        z.append(np.log(np.exp(logits).sum()))
        probabilities.append(np.exp(logits - z[-1]))
        best = np.argsort(-logits)[: cfg.top_k]
        total = probabilities[-1][best].sum() if cfg.normalize else 1.0
        y = np.zeros_like(row)
        for e in best:
            chosen[e] += 1
            part = feed_forward(row, m.gate_proj[e], m.up_proj[e], m.down_proj[e])
            y += probabilities[-1][e] / total * part
        if s is not None:
            part = feed_forward(row, s.gate_proj, s.up_proj, s.down_proj)
            y += part / (1 + np.exp(-s.output_gate[0] @ row))
        outputs.append(y)
    balance = cfg.num_experts * chosen @ np.mean(probabilities, axis=0) / chosen.sum()
    return np.stack(outputs), cfg.balance_loss * balance + cfg.z_loss * np.mean(np.square(z))


@pytest.mark.parametrize("normalize, shared", [(True, 8), (False, None)])
def test_is_a_loop_over_experts(x, normalize, shared):
    cfg = CONFIG.updated("normalize", normalize).updated("shared_features", shared)
    mixer = cfg.build(FEATURES, KEY)
    y, aux = call(mixer, jnp.asarray(x, jnp.float32))
    expected, loss = by_loop(mixer, x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(aux.loss, loss, rtol=1e-5)


def dense(mixer, x):
    """The same with every expert at every position, written with JAX to be differentiated."""
    cfg, shared = mixer.config, mixer.shared
    logits = x @ mixer.router.T
    p = jax.nn.softmax(logits)
    chosen = p >= jnp.sort(p)[:, -cfg.top_k, None]
    weights = jnp.where(chosen, p, 0) / jnp.sum(p, axis=-1, keepdims=True, where=chosen)
    h = jax.nn.silu(jnp.einsum("efd,td->etf", mixer.gate_proj, x))
    h = h * jnp.einsum("efd,td->etf", mixer.up_proj, x)
    y = jnp.einsum("edf,etf,te->td", mixer.down_proj, h, weights)
    h = jax.nn.silu(x @ shared.gate_proj.T) * (x @ shared.up_proj.T)
    y = y + jax.nn.sigmoid(x @ shared.output_gate.T) * (h @ shared.down_proj.T)
    balance = cfg.num_experts * (chosen.mean(0) / cfg.top_k) @ p.mean(0)
    z = jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2)
    return y, cfg.balance_loss * balance + cfg.z_loss * z


def test_gradients_of_a_batch(mixer, x):
    """In float64 to rounding; in float32 to a few units of it."""

    def total(apply, mixer, x):
        y, loss = jax.vmap(lambda x: apply(mixer, x))(x)
        return jnp.sum(jnp.sin(y)) + jnp.sum(loss)

    ours = lambda mixer, x: (lambda y, aux: (y, aux.loss))(*mixer(x))
    gradient = lambda apply: jax.jit(jax.grad(lambda pair: total(apply, *pair)))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), mixer)
        batch = jnp.asarray(np.stack([x, 2 * x[::-1]]))
        expected = gradient(dense)((wide, batch))
        got = gradient(ours)((wide, batch))
        narrow = gradient(ours)((mixer, batch.astype(jnp.float32)))
    for value, close, wanted in zip(*map(jax.tree.leaves, (narrow, got, expected)), strict=True):
        np.testing.assert_allclose(close, wanted, atol=1e-11)
        np.testing.assert_allclose(value, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


def test_one_expert_is_a_plain_layer(x):
    mlp = lx.SwiGLUConfig(expand=2.0).build(FEATURES, KEY)
    (layer,) = mlp.hidden_layers
    mixer = lx.MixtureOfExpertsConfig(1, top_k=1, expert_features=32).build(FEATURES, KEY)
    where = lambda m: (m.up_proj, m.gate_proj, m.down_proj)
    weights = (layer.weight, layer.gate_weight, mlp.out_proj)
    mixer = eqx.tree_at(where, mixer, tuple(weight[None] for weight in weights))
    x = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(call(mixer, x)[0], mlp(x), atol=1e-5)


def test_positions_may_be_permuted(mixer, x):
    x, order = jnp.asarray(x, jnp.float32), np.random.default_rng(2).permutation(TIME)
    y, aux = call(mixer, x)
    permuted, same = call(mixer, x[order])
    np.testing.assert_allclose(permuted, y[order], atol=1e-6)
    np.testing.assert_allclose(same.loss, aux.loss, rtol=1e-6)


def test_shapes_and_dtypes(mixer):
    for shape, dtype in (((FEATURES,), jnp.float32), ((0, FEATURES), jnp.bfloat16)):
        y, aux = eqx.filter_eval_shape(mixer, jax.ShapeDtypeStruct(shape, dtype))
        assert (y.shape, y.dtype, aux.loss.dtype) == (shape, dtype, jnp.float32)


def test_padding_leaves_no_trace(mixer, x):
    real = np.arange(TIME) % 3 != 1
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)

    @eqx.filter_jit
    def run(mixer, x, mask, weight):
        def total(mixer):
            y, aux = mixer(x, mask=mask)
            return jnp.sum(y * weight) + aux.loss, y

        return eqx.filter_value_and_grad(total, has_aux=True)(mixer)

    junk = np.where(np.arange(TIME) % 2, np.nan, np.inf)[:, None]
    padded = jnp.asarray(np.where(real[:, None], x, junk), jnp.float32)
    (value, y), gradient = run(mixer, padded, jnp.asarray(real), weight)
    alone = jnp.asarray(x[real], jnp.float32)
    (expected, kept), wanted = run(mixer, alone, None, weight[real])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(y[real], kept, atol=1e-5)
    assert (y[~real] == 0).all()
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5), gradient, wanted)
    (value, y), _ = run(mixer, padded, jnp.zeros(TIME, bool), weight)
    assert value == 0 and (y == 0).all()


def test_padding_takes_no_expert(mixer, x, monkeypatch):
    taken = []

    def listen(rows, weights, of):
        taken.append(of.tolist())
        return grouped_matmul(rows, weights, of)

    monkeypatch.setattr(mixture_of_experts, "grouped_matmul", listen)
    mixer(jnp.asarray(x[:3], jnp.float32), mask=jnp.asarray([True, False, True]))
    assert len(taken) == 3 and taken[0] == taken[1] == taken[2]
    assert [expert < 0 for expert in taken[0]] == [False, False, True, True, False, False]


def test_reference():
    """KempnerForge 5666d0d: its router, and its layer without shared expert or capacity."""
    data = load("mixture_of_transformers/moe")
    weights = [
        np.stack([data[f"moe/w/experts.{e}.{name}_proj.weight"] for e in range(4)])
        for name in ("gate", "up", "down")
    ]
    x = jnp.asarray(data["router_softmax/x"]).reshape(2, 3, 8)
    sizes = {"num_experts": 4, "top_k": 2, "expert_features": 12}
    where = lambda m: (m.router, m.gate_proj, m.up_proj, m.down_proj)
    for loss, name in (("balance_loss", "aux"), ("z_loss", "z")):
        mixer = lx.MixtureOfExpertsConfig(**sizes, **{loss: 1.0}).build(8, KEY)
        arrays = tuple(map(jnp.asarray, (data["moe/w/router.gate.weight"], *weights)))
        mixer = eqx.tree_at(where, mixer, arrays)
        np.testing.assert_allclose(call(mixer, x)[0], data["moe_sh0_gs0_cf0.0/y"], atol=1e-5)
        gate = jnp.asarray(data["router_softmax/gate"])
        mixer = eqx.tree_at(lambda m: m.router, mixer, gate)
        np.testing.assert_allclose(
            call(mixer, x)[1].loss, data[f"router_softmax/{name}"], rtol=1e-5
        )


@pytest.fixture(scope="module")
def language_model():
    block = lx.ResidualBlockConfig(lx.LRUSequenceMixerConfig(state_dim=8), CONFIG)
    stack = lx.StackConfig((((block,), 3),))
    return lx.LanguageModelConfig(11, FEATURES, stack).build(KEY)


def test_auxiliary_losses_reach_the_output_of_a_model(language_model):
    tokens = jnp.arange(TIME) % 11
    mask = jnp.arange(TIME) < 17
    context = lx.SequenceContext(mask=mask)

    @eqx.filter_jit
    def run(model):
        def loss(model):
            out = model(tokens, context=context)
            return out.aux.loss, out.logits

        return eqx.filter_value_and_grad(loss, has_aux=True)(model)

    @eqx.filter_jit
    def by_layer(model):
        total, h = 0.0, model.embedding(tokens[:17], context=lx.SequenceContext())
        for block in model.stack.layers():
            h, aux = block(h)
            total += aux.loss
        return total

    (loss, _), gradient = run(language_model)
    np.testing.assert_allclose(loss, by_layer(language_model), rtol=1e-5)
    (block,) = gradient.stack.groups[0]
    assert (jnp.abs(block.channel_mixer.router).max(axis=(1, 2)) > 1e-3).all()
    last = block.channel_mixer.down_proj[-1]
    assert (last == 0).all(), "nothing comes after the last experts that has a loss"


def test_steps_are_the_whole(language_model):
    tokens = jnp.arange(TIME) % 11
    state, logits = language_model.init_state(TIME), []
    step = eqx.filter_jit(lambda state, token: language_model.step(state, token))
    for token in tokens:
        state, out = step(state, token)
        logits.append(out.logits)
    np.testing.assert_allclose(jnp.stack(logits), language_model(tokens).logits, atol=1e-5)


def test_a_batch_over_devices(mixer, x):
    batch = jnp.asarray(np.stack([x, x[::-1] + 1]), jnp.float32)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def value_and_grad(mixer, batch):
        y, aux = jax.vmap(mixer)(batch)
        return jnp.sum(jnp.sin(y)) + jnp.sum(aux.loss)

    expected = value_and_grad(mixer, batch)
    with jax.set_mesh(mesh_of(2, "data", AxisType.Explicit)):
        got = value_and_grad(jax.device_put(mixer, P()), jax.device_put(batch, P("data")))
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, atol=1e-4), got, expected)


def test_sizes_variance_and_work():
    mixer = lx.MixtureOfExpertsConfig().build(48, KEY)
    plain = lx.SwiGLUConfig().build(48, KEY)
    assert mixer.flop_count(10) == plain.flop_count(10) + 6 * 10 * 8 * 48  # and the router
    y, _ = call(mixer, jr.normal(KEY, (256, 48)))
    assert 0.5 < y.std() < 1.25
    assert lx.MixtureOfExpertsConfig.from_dict(CONFIG.to_dict()) == CONFIG


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"top_k": 9}, "`top_k` must be from 1 to num_experts=8"),
        ({"top_k": 0}, "`top_k` must be from 1"),
        ({"num_experts": 0}, "`num_experts` must be positive"),
        ({"shared_features": 0}, "`shared_features` must be positive or None"),
        ({"expert_features": -1}, "`expert_features` must be positive or None"),
        ({"z_loss": -1.0}, "`z_loss` must be at least 0"),
        ({"capacity": 1.0}, "has no field `capacity`"),
    ],
)
def test_wrong_configs(wrong, message):
    with pytest.raises(ValueError, match=message):
        lx.MixtureOfExpertsConfig(**wrong)


def test_a_wrong_width(mixer):
    with pytest.raises(ValueError, match="`MixtureOfExperts` has width 16.*Received \\(3, 8\\)"):
        mixer(jnp.ones((3, 8)))


def test_branch_norm_is_its_formula(x):
    block = lx.ResidualBlockConfig(
        lx.LRUSequenceMixerConfig(state_dim=8),
        lx.GLUConfig(),
        norm_position="branch",
        layer_scale=0.5,
    ).build(FEATURES, KEY)
    x = jnp.asarray(x, jnp.float32)
    h = x + 0.5 * block.sequence_norm(block.sequence_mixer(x))
    h = h + 0.5 * block.channel_norm(block.channel_mixer(h))
    np.testing.assert_allclose(block(x)[0], h, atol=1e-5)
