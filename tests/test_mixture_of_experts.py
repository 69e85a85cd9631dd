"""Mixture of experts: against a loop over experts, a plain feed-forward layer, and a reference."""

import math
import zlib

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
from linax_like.channel_mixers import mixture_of_experts, RouterBias
from linax_like.channel_mixers.routing import choose, find_room, log_scores
from linax_like.ops.grouped_matmul import grouped_matmul


KEY = jr.key(0, impl="rbg")
FEATURES, TIME = 16, 24
CONFIG = lx.MixtureOfExpertsConfig(
    5, top_k=2, expert_features=12, shared_features=8, balance_loss=0.5, z_loss=0.25
)
LIMITED = lx.MixtureOfExpertsConfig(
    5,
    top_k=2,
    expert_features=12,
    shared_features=8,
    shared_gate=False,
    router="sigmoid",
    capacity=0.75,
    balance_loss=0.5,
    z_loss=0.25,
    bias_rate=0.1,
)


@pytest.fixture(scope="module")
def mixer():
    return CONFIG.build(FEATURES, KEY)


@pytest.fixture(scope="module")
def limited():
    """Few find room, and the bias makes the last expert the first choice of many."""
    where = lambda mixer: mixer.router_bias.offset.array
    bias = jnp.asarray([0.0, 0.1, -0.2, 0.0, 0.3])
    return eqx.tree_at(where, LIMITED.build(FEATURES, KEY), bias)


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
    """Outputs and what comes beside, position by position and expert by expert, in float64."""
    cfg, shared = mixer.config, mixer.shared
    m, s = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (mixer, shared))
    room = np.inf
    if cfg.capacity is not None:
        room = max(1, math.ceil(len(x) * cfg.top_k / cfg.num_experts * cfg.capacity))
    bias = 0.0 if m.router_bias is None else m.router_bias.offset.array
    taken = np.zeros((cfg.top_k, cfg.num_experts))
    outputs, chosen, scores, z = [], np.zeros(cfg.num_experts), [], []
    for row in x:
        logits = m.router @ row
        z.append(np.log(np.exp(logits).sum()))
        sigmoid = 1 / (1 + np.exp(-logits))
        scores.append(np.exp(logits - z[-1]) if cfg.router == "softmax" else sigmoid)
        best = np.argsort(-scores[-1] - bias)[: cfg.top_k]
        total = scores[-1][best].sum() if cfg.normalize else 1.0
        y = np.zeros_like(row)
        for slot, e in enumerate(best):
            chosen[e] += 1
            if taken[slot, e] < room:
                taken[slot, e] += 1
                part = feed_forward(row, m.gate_proj[e], m.up_proj[e], m.down_proj[e])
                y += scores[-1][e] / total * part
        if s is not None:
            part = feed_forward(row, s.gate_proj, s.up_proj, s.down_proj)
            gate = s.output_gate
            y += part if gate is None else part / (1 + np.exp(-gate[0] @ row))
        outputs.append(y)
    balance = cfg.num_experts * chosen @ np.mean(scores, axis=0) / chosen.sum()
    loss = cfg.balance_loss * balance + cfg.z_loss * np.mean(np.square(z))
    beside = (loss, chosen.sum(), chosen.sum() - taken.sum(), chosen.max() * cfg.num_experts)
    return np.stack(outputs), beside


@pytest.mark.parametrize("normalize, shared", [(True, 8), (False, None)])
def test_is_a_loop_over_experts(x, normalize, shared):
    cfg = CONFIG.updated("normalize", normalize).updated("shared_features", shared)
    mixer = cfg.build(FEATURES, KEY)
    y, aux = call(mixer, jnp.asarray(x, jnp.float32))
    expected, beside = by_loop(mixer, x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(aux, beside, rtol=1e-5)


def test_room_is_limited_and_a_bias_chooses(limited, x):
    y, aux = call(limited, jnp.asarray(x, jnp.float32))
    expected, beside = by_loop(limited, x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(aux, beside, rtol=1e-5)
    assert aux.dropped > 5


def test_an_even_share_that_is_whole_is_not_rounded_up():
    experts, real = jnp.zeros((400, 1), jnp.int32), jnp.ones(400, bool)
    for factor, kept in ((0.3, 15), (1.1, 55), (0.301, 16), (1e-9, 1)):
        assert find_room(experts, real, 8, factor).sum() == kept


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_weights_have_the_derivative_of_their_formula(router):
    """In float64; and where all scores are zero to rounding, weights are still theirs."""
    scores = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}[router]

    def ours(logits, c):
        return jnp.sum(c * choose(log_scores(router, logits), None, 2, True)[0])

    def formula(logits, c):
        best = jax.lax.top_k(scores(logits), 2)[0]
        return jnp.sum(c * best / best.sum(axis=-1, keepdims=True))

    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        logits, c = jnp.asarray(rng.normal(size=(7, 5))), jnp.asarray(rng.normal(size=(7, 2)))
        got, expected = (jax.value_and_grad(f)(logits, c) for f in (ours, formula))
        jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, atol=1e-14), got, expected)
    far = jnp.asarray([[-300.0, -301.0, -400.0]])
    weights, experts = choose(log_scores(router, far), None, 2, True)
    np.testing.assert_allclose(weights, 1 / (1 + np.exp([[-1.0, 1.0]])), rtol=1e-6)
    assert experts.tolist() == [[0, 1]]


def test_the_bias_makes_experts_equally_busy():
    """Without a gradient, for scores that alone send most positions to two of eight."""
    logits = jr.normal(KEY, (512, 8)) + jnp.arange(8) / 2
    scores = log_scores("sigmoid", logits)

    def step(bias, _):
        _, experts = choose(scores, bias, 2, True)
        load = jax.nn.one_hot(experts, 8).sum(axis=(0, 1))
        return bias.moved(load), load.max() / load.mean()

    _, busiest = jax.lax.scan(step, RouterBias(8, 0.002), None, 300)
    assert busiest[0] > 2 and busiest[-1] < 1.1


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


def test_padding_leaves_no_trace(limited, x):
    mixer = limited
    real = np.arange(TIME) % 3 != 1
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)

    @eqx.filter_jit
    def run(mixer, x, mask, weight):
        def total(mixer):
            y, aux = mixer(x, mask=mask)
            return jnp.sum(y * weight) + aux.loss, (y, aux)

        return eqx.filter_value_and_grad(total, has_aux=True)(mixer)

    junk = np.where(np.arange(TIME) % 2, np.nan, np.inf)[:, None]
    padded = jnp.asarray(np.where(real[:, None], x, junk), jnp.float32)
    (value, (y, aux)), gradient = run(mixer, padded, jnp.asarray(real), weight)
    alone = jnp.asarray(x[real], jnp.float32)
    (expected, (kept, of_real)), wanted = run(mixer, alone, None, weight[real])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(aux, of_real, rtol=1e-5)
    np.testing.assert_allclose(y[real], kept, atol=1e-5)
    assert (y[~real] == 0).all()
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5), gradient, wanted)
    (value, (y, aux)), _ = run(mixer, padded, jnp.zeros(TIME, bool), weight)
    assert value == 0 and (y == 0).all() and not any(aux)


def test_padding_takes_no_expert(mixer, x, monkeypatch):
    taken = []

    def listen(rows, weights, of):
        taken.append(of.tolist())
        return grouped_matmul(rows, weights, of)

    monkeypatch.setattr(mixture_of_experts, "grouped_matmul", listen)
    mixer(jnp.asarray(x[:3], jnp.float32), mask=jnp.asarray([True, False, True]))
    assert len(taken) == 3 and taken[0] == taken[1] == taken[2]
    assert [expert < 0 for expert in taken[0]] == [False, False, True, True, False, False]


def published(name, shape):
    """A weight of the reference that is not among its numbers: all are functions of their name."""
    x = (np.arange(math.prod(shape), dtype=np.uint64) * 2654435761 + zlib.crc32(name)) % 2**32
    x = (x ^ x >> np.uint64(15)) * 2246822519 % 2**32
    x = x ^ x >> np.uint64(13)
    return jnp.asarray((0.6 * (x / 2**32 - 0.5)).reshape(shape), jnp.float32)


def test_reference():
    """KempnerForge 5666d0d: its softmax router, and its layer with and without shared expert."""
    data = load("mixture_of_transformers/moe")
    weights = [
        np.stack([data[f"moe/w/experts.{e}.{name}_proj.weight"] for e in range(4)])
        for name in ("gate", "up", "down")
    ]
    x = jnp.asarray(data["router_softmax/x"]).reshape(2, 3, 8)
    cfg = lx.MixtureOfExpertsConfig(4, 2, 12, 12, shared_gate=False, z_loss=1.0)
    arrays = map(jnp.asarray, (data["moe/w/router.gate.weight"], *weights))
    where = lambda m: (m.router, m.gate_proj, m.up_proj, m.down_proj)
    mixer = eqx.tree_at(where, cfg.build(8, KEY), tuple(arrays))
    shared = [
        published(f"shared_expert.{name}_proj.weight".encode(), shape)
        for name, shape in (("gate", (12, 8)), ("up", (12, 8)), ("down", (8, 12)))
    ]
    where = lambda m: (m.shared.gate_proj, m.shared.up_proj, m.shared.down_proj)
    mixer = eqx.tree_at(where, mixer, tuple(shared))
    y, _ = mixer(x)
    np.testing.assert_allclose(y, data["moe_sh1_gs0_cf0.0/y"], atol=1e-6)
    without = y - mixer.shared(x.reshape(-1, 8)).reshape(x.shape)
    np.testing.assert_allclose(without, data["moe_sh0_gs0_cf0.0/y"], atol=1e-6)


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_reference_router(router):
    """Its sigmoid router with a bias of zero: else it has a part in the weights too."""
    data = load("mixture_of_transformers/moe")
    x, gate = (jnp.asarray(data[f"router_softmax/{name}"]) for name in ("x", "gate"))
    losses = {"balance_loss": 1.0} if router == "softmax" else {"balance_loss": 0.1}
    scores = log_scores(router, x @ gate.T)
    bias = RouterBias(4, 1.0) if router == "sigmoid" else None
    weights, experts = choose(scores, bias, 2, True)
    np.testing.assert_allclose(weights, data[f"router_{router}/w"], atol=1e-6)
    np.testing.assert_array_equal(experts, data[f"router_{router}/idx"])
    cfg = lx.MixtureOfExpertsConfig(4, 2, 12, router=router, **losses)
    mixer = eqx.tree_at(lambda m: m.router, cfg.build(8, KEY), gate)
    np.testing.assert_allclose(mixer(x)[1].loss, data[f"router_{router}/aux"], rtol=1e-6)
    if router == "softmax":
        loss = lx.MixtureOfExpertsConfig(4, 2, 12, z_loss=1.0).build(8, KEY)
        loss = eqx.tree_at(lambda m: m.router, loss, gate)(x)[1].loss
        np.testing.assert_allclose(loss, data["router_softmax/z"], rtol=1e-6)
    # Its capacity 0.34: two places for each expert among the first choices, two among the second.
    room = find_room(experts, jnp.ones(6, bool), 4, 0.34)
    assert [[4, 0], [5, 1]] == np.argwhere(~np.asarray(room)).tolist()


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
        ({"capacity": 0.0}, "`capacity` must be positive or None"),
        ({"bias_rate": -0.1}, "`bias_rate` must be positive or None"),
        ({"router": "tanh"}, "`MixtureOfExpertsConfig.router` must be"),
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
