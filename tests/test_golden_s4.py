"""Golden parity of S4: the published weights and inputs give the published outputs and gradients.

Both references train C̃ = C (I - Āᴸ), for the length L of the sequence: the gradients are by C̃.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from complex_arrays import from_complex
from golden_numbers import (
    assert_close,
    check_lrnnx,
    KEY,
    last_state,
    load,
    lrnnx_s4_output,
    pair,
    parameters,
    stepped,
    with_arrays,
)

import linax_like as lx
from linax_like.ops.hippo import low_rank_legs


CASES = {
    "s4_dplr": (4, lx.S4SequenceMixerConfig(8, n_ssm=2)),
    "s4_dplr_even_L": (3, lx.S4SequenceMixerConfig(8, n_ssm=3)),
    "s4_dplr_n_ssm1": (5, lx.S4SequenceMixerConfig(6)),
}


def complex_of(array):
    return jax.lax.complex(array[..., 0], array[..., 1])


def infinite_power(p, length):
    """Āᴸ as a dense matrix of every feature, conjugate states included."""
    both = lambda z: jnp.concatenate([z, z.conj()], axis=-1)
    eigenvalues = both(jax.lax.complex(-jnp.exp(p["A_real"]), -p["A_imag"]))
    low_rank = both(complex_of(p["P"]))
    matrix = jax.vmap(jnp.diag)(eigenvalues)
    matrix = matrix - jnp.einsum("rsn,rsm->snm", low_rank, low_rank.conj())
    matrix = jnp.tile(matrix, (len(p["inv_dt"]) // len(matrix), 1, 1))
    half = jnp.exp(p["inv_dt"])[..., None] / 2 * matrix
    one = jnp.eye(half.shape[-1])
    return jnp.linalg.matrix_power(jnp.linalg.solve(one - half, one + half), length)


def arrays_of(p, out_proj):
    return {
        "log_decay": p["A_real"],
        "frequency": -p["A_imag"],
        "low_rank": jnp.moveaxis(p["P"], (3, 1), (0, 1)),
        "in_proj": jnp.moveaxis(p["B"][0], -1, 0),
        "out_proj": out_proj,
        "log_step": p["inv_dt"][:, 0],
        "skip": p["D"][0],
    }


def mixer_from(blank, p, length):
    """The mixer whose C has been through C̃ = C (I - Āᴸ)."""
    power = infinite_power(p, length)
    cut = complex_of(p["C"][0])
    both = jnp.concatenate([cut, cut.conj()], axis=-1)
    solve = lambda power, c: jnp.linalg.solve((jnp.eye(len(power)) - power).T, c)
    c = jax.vmap(solve)(power, both)[:, : cut.shape[-1]]
    return with_arrays(blank, **arrays_of(p, jnp.stack(from_complex(c))))


@pytest.mark.parametrize("name", CASES)
def test_s4_is_the_reference(name):
    data = load(f"references/{name}")
    width, config = CASES[name]
    with jax.enable_x64():
        blank = config.build(width, KEY)
        by_name = lambda prefix: {
            key.removeprefix("kernel."): value for key, value in parameters(data, prefix).items()
        }
        before, after = by_name("w/"), by_name("w/after.")
        x, ct = (jnp.asarray(data[f"x/{key}"]).mT for key in ("u", "ct"))
        length = x.shape[1]

        mixer = with_arrays(blank, **arrays_of(before, pair(before["C"][0])))
        assert_close(mixer_from(blank, after, length).out_proj, mixer.out_proj, 1e-9)
        assert_close(mixer.kernel(length, jnp.float64), data["y/K"][0], 1e-7)
        assert_close(stepped(mixer, x), jnp.asarray(data["y/step_out"]).mT, 1e-7)
        state = jax.tree.map(jnp.asarray, from_complex(jnp.asarray(data["x/state0"])))
        end, y = jax.vmap(mixer.prefill)(state, x)
        assert_close(y, jnp.asarray(data["y/out_state"]).mT, 1e-7)
        assert_close(end.real + 1j * end.imag, data["y/next_state"], 1e-7)

        @eqx.filter_jit
        @eqx.filter_grad(has_aux=True)
        def grad(inputs):
            p, x = inputs
            y = jax.vmap(mixer_from(blank, p, length))(x)
            return jnp.sum(y * ct), y

        (d_p, d_x), y = grad((after, x))
        assert_close(y, jnp.asarray(data["y/out"]).mT, 1e-7)
        assert_close(d_x, jnp.asarray(data["g/u"]).mT, 1e-6)
        for key, value in by_name("g/").items():
            if key != "u":
                assert_close(d_p[key], value, 1e-6)


def test_s4_is_lrnnx():
    data = load("lrnnx/s4_legs")
    length = data["x"].shape[1]
    with jax.enable_x64():
        data = {key: np.asarray(value, np.float64) for key, value in data.items()}
        p = parameters(data)
        blank = lx.S4SequenceMixerConfig(8, n_ssm=8).build(8, KEY)
        c = complex_of(p["C"][0])
        both = jnp.concatenate([c, c.conj()], axis=-1)
        cut = both - jnp.einsum("fn,fnm->fm", both, infinite_power(p, length))
        cut = jnp.stack(from_complex(cut[:, : c.shape[-1]]), axis=-1)[None]
        check_lrnnx(data | {"p/C": cut}, lambda p: mixer_from(blank, p, length), lrnnx_s4_output)
        mixer = with_arrays(blank, **arrays_of(p, pair(p["C"][0])))
        states = last_state(mixer, jnp.asarray(data["x"]))
        both = np.concatenate([states, states.conj()], axis=-1)
        assert_close(both, data["state"] @ [1, 1j], 1e-5)


def test_hippo_is_the_reference():
    """Eigenvectors are defined up to a phase, so what does not depend on it is compared."""
    data = load("references/s4_hippo_legs")
    eigenvalues, low_rank, in_vector = low_rank_legs(8)
    assert_close(eigenvalues, data["y/W"], 1e-9)
    assert_close(np.abs(low_rank), data["y/absP_c"], 1e-9)
    assert_close(np.abs(in_vector), data["y/absB_c"], 1e-9)
    assert_close(low_rank * in_vector.conj(), data["y/P_conjB"], 1e-9)
    # The published code clips Im B, which makes it another system than HiPPO's.
    basis = data["y/V"]
    assert_close(2 * (basis @ data["y/B_c"]).real, data["y/B"], 1e-9)
    clipped = 2 * (basis @ data["y/B_c_clipped"]).real
    assert np.abs(clipped - data["y/B"]).max() > 0.1 * np.abs(data["y/B"]).max()
