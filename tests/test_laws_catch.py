"""The laws catch broken mixers: each fault is caught by the laws meant for it."""

import itertools
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import laws
import pytest
from layouts import FEATURES

from linax_like.ops.linear_scan import final_state, linear_scan
from linax_like.sequence_mixers import AbstractRecurrentMixer, AbstractSequenceMixerConfig
from linax_like.sequence_mixers.base import enter, enter_step, keep_at_padding


# Which laws catch which fault. Where there are several, each of them promises what is broken.
FAULTS = {
    "always float32": {"shapes"},
    "overflows": {"finite"},
    "bare loop carry": {"vmap", "time_split"},
    "scaled step": {"step"},
    "an empty chunk resets": {"split"},
    "stops the state's gradient": {"step", "split"},
    "sees the future": {"causality", "short", "call", "packing", "padding", "time_split"},
    "ignores documents": {"packing"},
    "multiplies padding": {"padding"},
    "padding decays the state": {"padding"},
    "ignores axis_name": {"time_split"},
    "ten times too large": {"scale"},
    "complex parameter": {"leaves"},
    "number as a leaf": {"leaves", "traces_once", "build"},
    "draws beyond its key": {"build"},
    "no work in training": {"flops"},
    "nameless errors": {"errors"},
}
LAWS = {
    "shapes": laws.check_shapes,
    "precision": laws.check_precision,
    "short": laws.check_short,
    "finite": laws.check_finite,
    "long": partial(laws.check_long, length=1024),
    "traces_once": laws.check_traces_once,
    "vmap": laws.check_vmap,
    "call": laws.check_call,
    "step": laws.check_step,
    "split": laws.check_split,
    "causality": laws.check_causality,
    "packing": laws.check_packing,
    "padding": laws.check_padding,
    "time_split": laws.check_time_split,
    "scale": lambda mixer: laws.check_scale(mixer.config),
    "leaves": laws.check_leaves,
    "build": lambda mixer: laws.check_build(mixer.config),
    "flops": laws.check_flops,
    "errors": laws.check_errors,
}


COUNTER = itertools.count()


@dataclass(frozen=True)
class FaultyMixerConfig(AbstractSequenceMixerConfig):
    """An exponential average, with one fault at the place that says its name."""

    fault: str = "none"

    def build(self, in_features, key):
        return FaultyMixer(in_features, self, key)


class FaultyMixer(AbstractRecurrentMixer[jax.Array]):
    """h[t] = a h[t-1] + x[t],  y[t] = h[t] + d x[t]."""

    config: FaultyMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    decay: jax.Array  # a
    skip: jax.Array  # d
    extra: jax.Array | float | None

    def __init__(self, in_features, cfg, key):
        self.config = cfg
        self.in_features = in_features
        self.decay = jr.uniform(key, (in_features,), minval=0.5, maxval=0.9)
        self.skip = jnp.ones(in_features) * (10 if self.has("ten times too large") else 1)
        self.extra = None
        if self.has("complex parameter"):
            self.extra = jnp.ones((), jnp.complex64)
        if self.has("number as a leaf"):
            self.extra = 0.5
        if self.has("draws beyond its key"):
            self.extra = jnp.float32(next(COUNTER))

    @property
    def causal(self):
        return True

    def has(self, fault):
        return self.config.fault == fault

    def enter(self, x, context, step=False):
        if self.has("nameless errors") and x.shape[-1] != self.in_features:
            raise ValueError("wrong width")
        entered, context = (enter_step if step else enter)(self, x, context)
        if self.has("multiplies padding") and context.mask is not None:
            entered = x * context.mask[..., None]
        return entered, context

    def __call__(self, x, key=None, *, context=None):
        y = self.prefill(self.init_state(len(x)), x, context=context)[1]
        if self.has("sees the future"):
            x, context = enter(self, x, context)
            y = y + context.blank_padding(jnp.roll(x, -1, axis=0))
        return y

    def init_state(self, max_length, dtype=None):
        return jnp.zeros(self.in_features, jnp.promote_types(dtype or jnp.float32, jnp.float32))

    def prefill(self, state, x, *, context=None):
        x, context = self.enter(x, context)
        drive = x.astype(state.dtype)
        decay = self.decay.astype(state.dtype)
        if self.has("an empty chunk resets") and len(x) == 0:
            return jnp.zeros_like(state), x
        if self.has("stops the state's gradient"):
            state = jax.lax.stop_gradient(state)
        axis_name = None if self.has("ignores axis_name") else context.axis_name
        states = linear_scan(
            decay,
            drive,
            state,
            resets=None if self.has("ignores documents") else context.resets(),
            mask=None if self.has("padding decays the state") else context.mask,
            axis_name=axis_name,
        )
        if self.has("bare loop carry"):
            add = lambda total, x: (total + x, None)
            states = states + 0 * jax.lax.scan(add, jnp.zeros_like(decay), drive)[0]
        last = final_state(states, state, axis_name=axis_name)
        return last, context.blank_padding(self.readout(states, x))

    def step(self, state, x, *, context=None):
        x, context = self.enter(x, context, step=True)
        drive = x.astype(state.dtype) * (1.1 if self.has("scaled step") else 1)
        before = state if self.has("ignores documents") else context.forget(state)
        new = self.decay.astype(state.dtype) * before + drive
        if not self.has("padding decays the state"):
            new = keep_at_padding(context, new, state)
        return new, context.blank_padding(self.readout(new, x))

    def readout(self, h, x):
        y = h + self.skip.astype(h.dtype) * x
        if self.has("overflows"):
            y = y + 0 * jnp.exp(jnp.abs(x))
        return y.astype(jnp.float32 if self.has("always float32") else x.dtype)

    @property
    def complexity(self):
        return "O(L · d)"

    def flop_count(self, spatial_dims, inference=False):
        forward = 4 * self.in_features * spatial_dims[0]
        return forward if inference or self.has("no work in training") else 3 * forward


def broken_laws(fault: str, names, key) -> set[str]:
    mixer = FaultyMixerConfig(fault).build(FEATURES, key)
    broken = set()
    for name in names:
        try:
            LAWS[name](mixer)
        except Exception:  # a law may fail in any way
            broken.add(name)
    return broken


def test_a_sound_mixer_passes(key):
    mixer = FaultyMixerConfig().build(FEATURES, key)
    for law in LAWS.values():
        law(mixer)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault, key):
    assert broken_laws(fault, FAULTS[fault], key) == FAULTS[fault]
