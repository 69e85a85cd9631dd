"""Every law, for every mixer of the table."""

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.random as jr
import laws
import pytest
from forms import can_step
from layouts import FEATURES
from mixer_cases import CASES, default_config, DEFAULTS, MixerCase

import linax_like as lx


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.id)
def case(request) -> Iterator[MixerCase]:
    yield request.param
    jax.clear_caches()  # the next case shares none of its programs


@pytest.fixture(scope="module")
def mixer(case, key):
    return case.config.build(FEATURES, key)


@pytest.fixture
def recurrent(mixer):
    if not can_step(mixer):
        pytest.skip("not causal")
    return mixer


@pytest.fixture
def first(case, mixer):
    """The mixer, unless its class has another case for this law."""
    if case.variant:
        pytest.skip("shown by the other case of its class")
    return mixer


def unless_waived(case: MixerCase, law) -> None:
    if law in case.waived:
        pytest.skip(f"waived: {case.waived[law]}")


def test_every_mixer_is_listed():
    def concrete(cls):
        for child in cls.__subclasses__():
            yield from concrete(child)
            if child.__module__.startswith("linax_like.") and "Abstract" not in child.__name__:
                yield child

    missing = set(concrete(lx.AbstractSequenceMixerConfig)) - {type(case.config) for case in CASES}
    assert not missing, f"add to tests/mixer_cases.py: {missing}"


def test_shapes(mixer):
    laws.check_shapes(mixer)


def test_precision(first):
    laws.check_precision(first)


def test_short(first):
    laws.check_short(first)


def test_finite(first):
    laws.check_finite(first)


def test_long(case, first):
    laws.check_long(first, case.max_length)


@pytest.mark.slow
def test_long_stepping(case, first, recurrent):
    laws.check_long_stepping(recurrent, min(case.max_length, case.max_steps))


def test_traces_once(first):
    laws.check_traces_once(first)


def test_vmap(case, first):
    unless_waived(case, "mask")
    laws.check_vmap(first)


def test_call(recurrent):
    laws.check_call(recurrent)


def test_step(recurrent):
    laws.check_step(recurrent)


def test_split(recurrent):
    laws.check_split(recurrent)


@pytest.mark.slow
def test_irregular_split(recurrent):
    laws.check_irregular_split(recurrent)


def test_causality(case, mixer):
    laws.check_causality(mixer, case.leak)


def test_packing(case, mixer):
    unless_waived(case, "segments")
    laws.check_packing(mixer)


def test_padding(case, mixer):
    unless_waived(case, "mask")
    laws.check_padding(mixer, packed="segments" not in case.waived)


def test_time_split(case, mixer):
    unless_waived(case, "time_split")
    if case.splits_time:
        laws.check_time_split(mixer, packed="segments" not in case.waived)
    else:
        laws.check_refuses_time_split(mixer)


def test_config_round_trip(case):
    laws.check_config_round_trip(case.config)


def test_weights_round_trip(case, mixer, tmp_path):
    pytest.importorskip("safetensors")
    from linax_like.interop.safetensors import load_weights, save_weights

    path = tmp_path / "mixer.safetensors"
    save_weights(path, mixer)
    skeleton = eqx.filter_eval_shape(case.config.build, FEATURES, jr.key(0))
    assert eqx.tree_equal(load_weights(path, skeleton), mixer, typematch=True)


@pytest.mark.parametrize("default", DEFAULTS, ids=lambda case: type(case.config).__name__)
def test_scale(default):
    unless_waived(default, "scale")
    laws.check_scale(default_config(default))


def test_leaves(mixer):
    laws.check_leaves(mixer)


@pytest.mark.parametrize("default", DEFAULTS, ids=lambda case: type(case.config).__name__)
def test_build(default):
    laws.check_build(default_config(default))


def test_flops(case, mixer):
    laws.check_flops(mixer, free=case.free)


def test_errors(mixer):
    laws.check_errors(mixer)
