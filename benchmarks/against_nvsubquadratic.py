"""Hyena between projections beside nvSubquadratic: the same weights and outputs, in one process.

uv run --with-requirements benchmarks/requirements-nvsubquadratic.txt \\
    python -m benchmarks.against_nvsubquadratic

Time is a median of turns, with the gradient for parameters and input. Memory is the most that is held
beside the inputs: of ours the compiled program's plus its outputs, of theirs what PyTorch's profiler saw
allocated. What either FFT library takes for itself is in neither.
"""

import sys
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import torch
from nvsubquadratic.lazy_config import LazyConfig
from nvsubquadratic.modules.causal_conv1d import CausalConv1D
from nvsubquadratic.modules.ckconv_nd import CKConvND
from nvsubquadratic.modules.hyena_nd import Hyena
from nvsubquadratic.modules.kernels_nd import SIRENKernelND
from nvsubquadratic.modules.masks_nd import GaussianModulationND
from nvsubquadratic.modules.rms_norm import RMSNorm
from nvsubquadratic.modules.sequence_mixer import QKVSequenceMixer
from nvsubquadratic.utils.qk_norm import L2Norm

import linax_like as lx

from . import harness


class Case(NamedTuple):
    features: int
    axes: int
    points: int
    boundary: str


CASES = (
    Case(128, 1, 4096, "causal"),
    Case(128, 2, 64, "zero"),
    Case(128, 2, 64, "circular"),
    Case(64, 3, 16, "zero"),
)
SHORT = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}


def theirs(case: Case) -> torch.nn.Module:
    """Their modules, in the configuration that they publish for this task."""
    features, axes, points, boundary = case
    streams = {"in_channels": 3 * features, "out_channels": 3 * features, "groups": 3 * features}
    convolution = LazyConfig(CKConvND)(
        data_dim=axes,
        hidden_dim=features,
        kernel_cfg=LazyConfig(SIRENKernelND)(
            out_dim=features,
            data_dim=axes,
            mlp_hidden_dim=32,
            num_layers=3,
            embedding_dim=32,
            omega_0=10.0,
            L_cache=points,  # halved by it on a circle
            use_bias=True,
            hidden_omega_0=1.0,
        ),
        mask_cfg=LazyConfig(GaussianModulationND)(
            data_dim=axes,
            num_channels=features,
            grid_size=2 * points - 1,
            min_attenuation_at_step=0.1,
            max_attenuation_at_limit=0.95,
            init_extent=1.0,
            parametrization="direct",
        ),
        grid_type="single" if boundary == "circular" else "double",
        fft_padding="circular" if boundary == "circular" else "zero",
        is_causal=boundary == "causal",
    )
    short = (
        LazyConfig(CausalConv1D)(kernel_size=3, bias=False, is_causal=True, **streams)
        if boundary == "causal"
        else LazyConfig(SHORT[axes])(kernel_size=3, padding=1, bias=False, **streams)
    )
    hyena = LazyConfig(Hyena)(
        global_conv_cfg=convolution,
        short_conv_cfg=short,
        gate_nonlinear_cfg=LazyConfig(torch.nn.SiLU)(),
        gate_nonlinear_2_cfg=LazyConfig(torch.nn.Sigmoid)(),
        pixelhyena_norm_cfg=LazyConfig(torch.nn.Identity)(),
        qk_norm_cfg=LazyConfig(L2Norm)(),
        output_norm_cfg=LazyConfig(RMSNorm)(dim=features),
    )
    return QKVSequenceMixer(hidden_dim=features, mixer_cfg=hyena)


def ours(case: Case, peer: torch.nn.Module) -> lx.QKVSequenceMixer:
    """Our mixer with the weights of theirs."""
    features, axes, _, boundary = case
    zero = "causal" if boundary == "causal" else "zero"  # their short taps meet zeros on a circle
    config = lx.QKVSequenceMixerConfig(
        lx.HyenaOperatorConfig(
            convolution=lx.CKConvSequenceMixerConfig(
                (boundary,) * axes,
                mask=lx.GaussianMaskConfig(bounds=(1e-6, 1e6)),
                extent=float(_lags(case) - 1),
            ),
            short_boundary=(zero,) * axes,
        )
    )
    mixer = config.build(features, jr.key(0))
    arrays = {name: jnp.asarray(p.detach().numpy()) for name, p in peer.named_parameters()}
    kernel = "mixer.global_conv.kernel."
    names = [
        "qkv_proj.weight",
        "mixer.short_conv.weight",
        *(f"{kernel}positional_embedding.linear.{kind}" for kind in ("weight", "bias")),
        *(f"{kernel}hidden_linears.{i}.{kind}" for kind in ("weight", "bias") for i in range(2)),
        *(f"{kernel}out_linear.{kind}" for kind in ("weight", "bias")),
        "mixer.global_conv.mask.std_param",
        "mixer.global_conv.shortcut",
        "mixer.output_norm.weight",
        "out_proj.weight",
    ]
    if sorted(names) != sorted(arrays):
        raise ValueError(f"The peer has other parameters than expected: {sorted(arrays)}")
    arrays["mixer.short_conv.weight"] = jnp.moveaxis(
        arrays["mixer.short_conv.weight"][:, 0], 0, -1
    )
    leaves, structure = jax.tree.flatten(mixer)
    values = [arrays[name] for name in names]
    if [leaf.shape for leaf in leaves] != [value.shape for value in values]:
        raise ValueError(
            [(n, a.shape, b.shape) for n, a, b in zip(names, leaves, values, strict=True)]
        )
    return jax.tree.unflatten(structure, values)


def row(case: Case) -> dict:
    """One case, both libraries."""
    torch.manual_seed(0)
    peer = theirs(case)
    parameters, static = eqx.partition(ours(case, peer), eqx.is_inexact_array)
    x = jr.normal(jr.key(1), (1, *(case.points,) * case.axes, case.features))
    signal = torch.tensor(np.asarray(x), requires_grad=True)

    forward = lambda parameters, x: jax.vmap(eqx.combine(parameters, static))(x)
    loss = lambda parameters, x: jnp.mean(forward(parameters, x) ** 2)
    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    arguments = parameters, x
    programs = {
        name: jax.jit(function).lower(*arguments).compile()
        for name, function in (("forward", forward), ("gradient", gradient))
    }

    def their_forward():
        with torch.no_grad():
            return peer(signal)

    def their_gradient():
        loss = peer(signal).square().mean()
        return torch.autograd.grad(loss, [signal, *peer.parameters()])

    y, d_x = programs["forward"](*arguments), programs["gradient"](*arguments)[1][1]
    result = {
        "grid": "x".join([str(case.points)] * case.axes),
        "features": case.features,
        "boundary": case.boundary,
        "outputs differ by": harness.difference(y, their_forward().numpy()),
        "gradients by": harness.difference(d_x, their_gradient()[0].numpy()),
    }
    for name, run in (("forward", their_forward), ("gradient", their_gradient)):
        program = programs[name]
        seconds = harness.time_in_turns(
            {"ours": lambda program=program: program(*arguments), "theirs": run},
            {"ours": (), "theirs": ()},
            repeats=20,
        )
        analysis = program.memory_analysis()
        memory = {
            "ours": analysis.temp_size_in_bytes + analysis.output_size_in_bytes,
            "theirs": _peak_bytes(run),
        }
        for what, values, unit in (("ms", seconds, 1e-3), ("MiB", memory, 2**20)):
            a, b = (values[who] / unit for who in ("ours", "theirs"))
            result |= {f"{name} {what}": f"{a:.3g} / {b:.3g}", f"{name} {what} ×": b / a}
    return result


def main() -> None:
    torch.set_num_threads(2)
    where = harness.environment("torch", "nvsubquadratic")
    chosen = [case for case in CASES if not sys.argv[1:] or str(case.axes) in sys.argv[1:]]
    harness.write("against_nvsubquadratic", [row(case) for case in chosen], where)


def _lags(case: Case) -> int:
    """Points of their grid of lags on one side of the centre, and the centre."""
    return (case.points + 1) // 2 if case.boundary == "circular" else case.points


def _peak_bytes(run) -> int:
    """The most memory that PyTorch has allocated at a time, beyond what it had before."""
    run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


if __name__ == "__main__":
    main()
