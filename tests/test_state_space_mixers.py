"""What is particular to S4D and S5, beside the laws of every mixer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx


KEY = jr.key(0, impl="rbg")
X = jr.normal(KEY, (20, 8))
MASK = jnp.asarray([1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0], bool)
DOCUMENTS = jnp.asarray([0] * 5 + [1] * 7 + [2] * 8)
TIMESTEPS = jr.uniform(KEY, (20,), minval=0.2, maxval=3.0)


def s5_loop(mixer, x, timesteps, documents):
    """The definition in both directions, one document of real positions at a time."""
    cfg = mixer.config
    arrays = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), eqx.filter(mixer, eqx.is_array)
    )
    y = arrays.skip * x
    as_complex = lambda pair: pair[0] + 1j * pair[1]
    eigenvalues = np.minimum(arrays.eigenvalues_real, -1e-4) + 1j * arrays.eigenvalues_imag
    dt = np.exp(arrays.log_step)
    b, c, c_reverse = map(as_complex, (arrays.in_proj, arrays.out_proj, arrays.reverse_out_proj))
    for document in np.unique(documents):
        (places,) = np.nonzero(documents == document)
        for order, weight, ahead in ((places, c, 0), (places[::-1], c_reverse, 1)):
            h = np.zeros(eigenvalues.shape, complex)
            for i, t in enumerate(order):
                elapsed = timesteps[order[i - 1]] if ahead and i else timesteps[t]
                h = np.exp(eigenvalues * dt * elapsed) * h
                scaled = timesteps[t] if cfg.timestep_gain == "scaled" else 1.0
                h += np.expm1(eigenvalues * dt * scaled) / eigenvalues * (b @ x[t])
                y[t] += (2 if cfg.conj_sym else 1) * (weight @ h).real
    return y


@pytest.mark.parametrize("gain", ["scaled", "constant"])
def test_s5_in_both_directions(gain):
    """Irregular samples, documents and padding; the time between two samples is symmetric."""
    cfg = lx.S5SequenceMixerConfig(8, bidirectional=True, timestep_gain=gain)
    mixer = cfg.build(8, KEY)
    blank = lambda values: jnp.where(MASK, values, jnp.nan)
    x = jnp.where(MASK[:, None], X, jnp.nan)
    context = lx.SequenceContext(timesteps=blank(TIMESTEPS), segment_ids=DOCUMENTS, mask=MASK)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def run(mixer):
        y = mixer(x, context=context)
        return jnp.sum(y**2), y

    (_, y), grads = run(mixer)
    real = np.asarray(MASK)
    given = [np.asarray(z, np.float64)[real] for z in (X, TIMESTEPS, DOCUMENTS)]
    np.testing.assert_allclose(y[real], s5_loop(mixer, *given), rtol=1e-4, atol=1e-5)
    assert not np.asarray(y)[~real].any()
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


def in_float64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), tree)


METHODS = ["zoh", "bilinear", "dirac"]


@pytest.mark.parametrize("init", ["legs", "lin", "inv", "real"])
@pytest.mark.parametrize("discretization", METHODS)
def test_s4d_by_convolution_and_by_steps(init, discretization):
    mixer = lx.S4DSequenceMixerConfig(8, init=init, discretization=discretization).build(8, KEY)
    with jax.enable_x64():
        mixer, x = in_float64((mixer, X))
        _, y = lx.fold(mixer, mixer.init_state(20, jnp.float64), x)
        np.testing.assert_allclose(mixer(x), y, rtol=1e-9, atol=1e-11)


IRREGULAR = [
    *(lx.S4DSequenceMixerConfig(8, discretization=method) for method in METHODS),
    *(
        lx.CentaurusSequenceMixerConfig(mode, sub_state_dim=2, discretization="bilinear")
        for mode in ("neck", "pointwise", "depthwise")
    ),
]


@pytest.mark.parametrize("config", IRREGULAR, ids=str)
def test_a_step_after_a_longer_time_is_that_of_a_larger_step_size(config):
    """In `step`, and in `__call__`."""
    mixer = config.build(8, KEY)
    with jax.enable_x64():
        mixer, x, timesteps = in_float64((mixer, X, TIMESTEPS))
        state, ys = mixer.init_state(20, jnp.float64), []
        for x_t, elapsed in zip(x, timesteps, strict=True):
            slower = eqx.tree_at(lambda m: m.log_step, mixer, mixer.log_step + jnp.log(elapsed))
            state, y = slower.step(state, x_t)
            ys.append(y)
        context = lx.SequenceContext(timesteps=timesteps)
        np.testing.assert_allclose(mixer(x, context=context), jnp.stack(ys), rtol=1e-8, atol=1e-10)
        _, y = lx.fold(mixer, mixer.init_state(20, jnp.float64), x, context=context)
        np.testing.assert_allclose(y, jnp.stack(ys), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("clip_eigs", [True, False])
@pytest.mark.parametrize("discretization", METHODS)
def test_no_state_of_s5_grows_whatever_the_parameters(discretization, clip_eigs):
    """Eigenvalues of both signs, tiny and huge steps: |Ā| < 1, and ≤ 1 where float32 rounds."""
    rng = np.random.default_rng(0)
    config = lx.S5SequenceMixerConfig(512, discretization=discretization, clip_eigs=clip_eigs)
    for dtype, bound in ((jnp.float64, 1.0), (jnp.float32, 1 + 2e-7)):
        with jax.enable_x64(dtype == jnp.float64):
            mixer = config.build(8, KEY)
            wild = lambda scale: jnp.asarray(scale * rng.normal(size=256), dtype)
            mixer = eqx.tree_at(
                lambda m: (m.eigenvalues_real, m.eigenvalues_imag, m.log_step),
                mixer,
                (wild(3.0), wild(100.0), wild(3.0)),
            )
            decay, _ = mixer._system(jnp.zeros((1, 8), dtype), None)
            radius = np.hypot(np.asarray(decay.real, float), np.asarray(decay.imag, float))
            assert radius.max() < bound
            assert radius.min() < 0.9  # so that the eigenvalues did reach far


@pytest.mark.parametrize("discretization", METHODS)
def test_timesteps_of_one_change_nothing(discretization):
    mixer = lx.S5SequenceMixerConfig(8, discretization=discretization).build(8, KEY)
    context = lx.SequenceContext(timesteps=jnp.ones(20))
    np.testing.assert_allclose(mixer(X, context=context), mixer(X), rtol=1e-5, atol=1e-5)


def test_bidirectional_cannot_step():
    mixer = lx.S5SequenceMixerConfig(8, bidirectional=True).build(8, KEY)
    state = lx.S5SequenceMixerConfig(8).build(8, KEY).init_state(4)
    assert not mixer.causal
    for call in (
        lambda: mixer.init_state(4),
        lambda: mixer.prefill(state, X),
        lambda: mixer.step(state, X[0]),
    ):
        with pytest.raises(ValueError, match="S5SequenceMixer.*bidirectional"):
            call()


@pytest.mark.parametrize("init", ["lecun_normal", "trunc_standard_normal", "complex_normal"])
def test_s5_starts_at_a_sane_scale(init):
    """Without the skip, which alone would keep the scale."""
    for width in (64, 512):
        mixer = lx.S5SequenceMixerConfig(C_init=init).build(width, KEY)
        mixer = eqx.tree_at(lambda m: m.skip, mixer, jnp.zeros(width))
        y = eqx.filter_jit(mixer)(jr.normal(KEY, (512, width)))
        assert 0.05 < y.std() < 2


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: lx.S4DSequenceMixerConfig(state_dim=7), "state_dim"),
        (lambda: lx.S4DSequenceMixerConfig(dt_min=0.2, dt_max=0.1), "dt_max"),
        (lambda: lx.S4DSequenceMixerConfig(discretization="euler"), "discretization"),
        (lambda: lx.CentaurusSequenceMixerConfig("wide"), "mode.*'neck', 'pointwise'"),
        (lambda: lx.CentaurusSequenceMixerConfig("full", state_dim=64), "state_dim.*None.*'full'"),
        (lambda: lx.CentaurusSequenceMixerConfig(state_dim=0), "state_dim"),
        (lambda: lx.CentaurusSequenceMixerConfig(sub_state_dim=0), "sub_state_dim"),
        (lambda: lx.CentaurusSequenceMixerConfig(discretization="async"), "discretization"),
        (lambda: lx.CentaurusSequenceMixerConfig(dt_max=1e-4), "dt_max"),
        (lambda: lx.S5SequenceMixerConfig(state_dim=12, ssm_blocks=4), "state_dim"),
        (lambda: lx.S5SequenceMixerConfig(step_rescale=0.0), "step_rescale"),
    ],
)
def test_configs_name_what_is_wrong(make, field):
    with pytest.raises(ValueError, match=field):
        make()


def test_s4d_transposed_is_the_transpose():
    plain = lx.S4DSequenceMixerConfig(8).build(8, KEY)
    mixer = lx.S4DSequenceMixerConfig(8, transposed=True).build(8, KEY)
    context = lx.SequenceContext(segment_ids=DOCUMENTS, mask=MASK)
    np.testing.assert_array_equal(mixer(X.T), plain(X).T)
    state, y = mixer.prefill(mixer.init_state(20), X.T, context=context)
    expected_state, expected = plain.prefill(plain.init_state(20), X, context=context)
    np.testing.assert_array_equal(y, expected.T)
    np.testing.assert_array_equal(state.real, expected_state.real)
    assert mixer.step(state, X[0])[1].shape == (8,)
    with pytest.raises(ValueError, match=r"transposed=True.*\(8, time\).*\(20, 8\)"):
        mixer(X)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 16, 61])
def test_the_kernel_is_the_response_to_an_impulse(length):
    mixer = lx.S4DSequenceMixerConfig(8, init="legs").build(8, KEY)
    mixer = eqx.tree_at(lambda m: m.skip, mixer, jnp.zeros(8))
    impulse = jnp.zeros((length, 8)).at[:1].set(1.0)
    _, y = mixer.prefill(mixer.init_state(length), impulse)
    np.testing.assert_allclose(mixer.kernel(length), y.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_s4d_never_holds_all_states(packed):
    """Neither forwards nor in the gradient, by what XLA sets aside for them."""
    time, width = 4096, 32
    mixer = lx.S4DSequenceMixerConfig(64).build(width, KEY)
    context = lx.SequenceContext(segment_ids=jnp.zeros(time, jnp.int32)) if packed else None
    loss = lambda x: jnp.sum(mixer(x, context=context) ** 2)
    compiled = jax.jit(jax.grad(loss)).lower(jnp.zeros((time, width))).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    states = time * width * 32 * 2 * 4
    assert memory.temp_size_in_bytes < states / 2


@pytest.mark.parametrize("discretization", ["zoh", "bilinear", "dirac", "euler"])
@pytest.mark.parametrize("mode", ["neck", "pointwise", "depthwise", "full"])
def test_centaurus_by_convolution_and_by_steps(mode, discretization):
    """In every mode, and the discretisation makes a difference."""
    config = lambda method: lx.CentaurusSequenceMixerConfig(
        mode, sub_state_dim=3, dt_min=0.5, dt_max=1.0, discretization=method
    )
    mixer = config(discretization).build(8, KEY)
    other = config("euler" if discretization == "zoh" else "zoh").build(8, KEY)
    with jax.enable_x64():
        mixer, other, x = in_float64((mixer, other, X))
        _, y = lx.fold(mixer, mixer.init_state(20, jnp.float64), x)
        np.testing.assert_allclose(mixer(x), y, rtol=1e-9, atol=1e-11)
        assert np.abs(other(x) - y).max() > 1e-3 * np.abs(y).max()


@pytest.mark.parametrize("mode", ["neck", "pointwise", "depthwise", "full"])
def test_centaurus_starts_at_a_sane_scale(mode):
    mixer = lx.CentaurusSequenceMixerConfig(mode).build(32, KEY)
    y = eqx.filter_jit(mixer)(jr.normal(KEY, (512, 32)))
    assert 0.05 < y.std() < 5


def test_centaurus_full_builds_no_matrix_of_its_states():
    """A state per pair of features, and no more memory than for those."""
    mixer = lx.CentaurusSequenceMixerConfig("full", sub_state_dim=2).build(32, KEY)
    step = eqx.filter_jit(lambda mixer, state, x: mixer.step(state, x))
    compiled = step.lower(mixer, mixer.init_state(1), jnp.zeros(32)).compile()
    memory = compiled.compiled.memory_analysis()
    assert memory is not None
    states = 32 * 32 * 2 * 2 * 4
    assert memory.temp_size_in_bytes < 16 * states


def test_lru_computes_in_float64_where_the_input_is():
    mixer = lx.LRUSequenceMixerConfig(min_radius=0.99).build(4, KEY)
    with jax.enable_x64():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 4)))
        last, y = mixer.prefill(mixer.init_state(200, x.dtype), x)
        wide = jax.tree.map(lambda leaf: leaf.astype(x.dtype), mixer)
        np.testing.assert_allclose(y, wide(x), rtol=1e-12, atol=1e-13)
        _, step = mixer.step(mixer.init_state(1, x.dtype), x[0])
        np.testing.assert_allclose(step, y[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("radius", [0.0, 1e-300, 1e-30, 1 - 1e-7])
def test_lru_has_finite_gradients_at_any_radius(radius):
    """At |λ| = 0 or next to 1, for every parameter, γ included."""
    with np.errstate(divide="ignore"):
        log_decay = np.clip(np.log(-np.log(radius)), -50, 80)
    mixer = lx.LRUSequenceMixerConfig(8).build(8, jr.key(0, impl="rbg"))
    mixer = eqx.tree_at(lambda m: m.log_decay, mixer, jnp.full(8, log_decay, jnp.float32))
    x = jr.normal(jr.key(1, impl="rbg"), (64, 8))
    gradients = eqx.filter_grad(lambda mixer: jnp.sum(mixer(x) ** 2))(mixer)
    for leaf in jax.tree.leaves(gradients):
        assert jnp.all(jnp.isfinite(leaf))
    assert jnp.all(gradients.log_gain != 0)
