"""Long convolutions distilled into recurrences with a small state (Massaroli et al., 2023,
https://arxiv.org/abs/2310.18780).

    k[l] ≈ Re Σₙ cₙ λₙˡ

The poles λ are those of the Hankel matrix k[i+j] in its leading singular directions, which a shift of
one position maps to each other (ESPRIT); they are pulled inside of the unit circle. The residues c are
then a least-squares fit to all lags.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree
from numpy.typing import NDArray

from ..config import AbstractConfig
from ..paths import array_places
from ..sequence_mixers import (
    CKConvSequenceMixer,
    CKConvSequenceMixerConfig,
    HyenaOperatorConfig,
    S4DSequenceMixer,
    S4DSequenceMixerConfig,
)
from .configs import with_configs
from .tiled import is_convolution


Kernel = NDArray[np.floating]  # (lags,), or with (…, features) behind
Numbers = NDArray[np.complexfloating]
_LARGEST, _SMALLEST = 1 - 1e-6, 1e-6  # of a pole


class KernelError(NamedTuple):
    """How far a convolution's distilled kernels are from its own, of all its features.

    - `worst`, `mean`: ‖difference‖ / ‖kernel‖.
    - `worst_lag`, `mean_lag`: the largest difference at a lag, relative to the kernel's largest value.
    """

    worst: float
    mean: float
    worst_lag: float
    mean_lag: float


def distill(model: PyTree, state_dim: int, length: int) -> tuple[PyTree, dict[str, KernelError]]:
    """A model whose causal `CKConvSequenceMixer`s are recurrences, and what that changed.

    Each becomes an `S4DSequenceMixer`, whose step takes the same time wherever it is. This is an
    approximation: the errors, by the public path of each convolution, say how good it is. The model's
    config tells of it, so that it can be trained further, and saved.

    - `state_dim`: size of a feature's state, conjugates included. Even.
    - `length`: the lags to which the kernels are fitted. Beyond, they decay as the poles do.

    **Raises:** `ValueError` if the model has no such convolution, or `length` is too short to tell so
    many poles apart.
    """
    config = S4DSequenceMixerConfig(state_dim, discretization="dirac")
    if length < 2 * state_dim + 2:
        raise ValueError(
            f"`distill` needs a `length` of at least {2 * state_dim + 2} lags to find {state_dim} "
            f"poles. Received {length}."
        )
    errors: dict[str, KernelError] = {}
    replaced: set[CKConvSequenceMixerConfig] = set()

    def convert(node: PyTree, places: PyTree) -> PyTree:
        if not is_convolution(node):
            return node
        replaced.add(node.config)
        repeats = node.skip.shape[:-1]
        mixers = []
        for index, name in zip(np.ndindex(repeats), places.skip.names, strict=True):
            one = jax.tree.map(lambda leaf, index=index: leaf[index], node)
            mixer, error = _distill_one(one, config, length)
            mixers.append(mixer)
            errors[name.removesuffix("skip").removesuffix("/")] = error
        return jax.tree.map(
            lambda *leaves: jnp.stack(leaves).reshape(*repeats, *leaves[0].shape), *mixers
        )

    distilled = jax.tree.map(convert, model, array_places(model), is_leaf=is_convolution)
    if not errors:
        raise ValueError(
            f"`distill` was given a `{type(model).__name__}` without a convolution to distill: it "
            "needs a `CKConvSequenceMixer` with the boundary ('causal',) whose kernel no condition "
            "changes."
        )
    return with_configs(distilled, lambda node: _distilled_config(node, replaced, config)), errors


def fit_exponentials(kernel: Kernel, state_dim: int) -> tuple[Numbers, Numbers]:
    """Poles and residues, `state_dim / 2` each: of a conjugate pair one, a real pole by itself.

    Where too many poles are real, those that matter least are left out.
    """
    ended = np.concatenate([kernel, np.zeros_like(kernel)])
    fits = [_fit(kernel, _poles(shown, state_dim), state_dim // 2) for shown in (kernel, ended)]
    distance = lambda fit: np.linalg.norm(_sum(len(kernel), *fit) - kernel)
    return min(fits, key=distance)


def _fit(kernel: Kernel, poles: Numbers, count: int) -> tuple[Numbers, Numbers]:
    """The poles that matter most, so many, and their residues."""
    energy = np.linalg.norm(_residues(kernel, poles) * _powers(poles, len(kernel)), axis=0)
    poles = poles[np.argsort(-energy)[:count]]
    return poles, _residues(kernel, poles)


def _distill_one(
    mixer: CKConvSequenceMixer, config: S4DSequenceMixerConfig, length: int
) -> tuple[S4DSequenceMixer, KernelError]:
    sampled = mixer.materialize((length,)).sampled
    assert sampled is not None
    kernel, heads = np.asarray(sampled.value, np.float64), mixer.config.num_heads
    channels = kernel.shape[1] // heads  # every head has the same kernels
    fits = [fit_exponentials(kernel[:, i], config.state_dim) for i in range(channels)] * heads
    poles, residues = (np.stack(values) for values in zip(*fits, strict=True))
    logs = np.log(poles)
    values: tuple[Any, ...] = (
        np.log(-np.real(logs)),
        np.imag(logs),
        np.zeros(len(poles)),
        np.stack([np.real(residues), np.imag(residues)]) / 2,
    )
    skeleton = eqx.filter_eval_shape(config.build, mixer.in_features, jr.key(0))
    fields = lambda m: (m.log_decay, m.frequency, m.log_step, m.out_proj, m.skip)
    values = (*(jnp.asarray(value, jnp.float32) for value in values), mixer.skip)
    distilled = eqx.tree_at(fields, skeleton, values)
    return distilled, _error(np.asarray(distilled.kernel(length), np.float64).T, kernel)


def _distilled_config(
    config: AbstractConfig,
    replaced: set[CKConvSequenceMixerConfig],
    recurrence: S4DSequenceMixerConfig,
) -> AbstractConfig | None:
    if isinstance(config, HyenaOperatorConfig) and config.recurrence is not None:
        return config  # of an earlier distillation
    if isinstance(config, HyenaOperatorConfig) and config.convolution in replaced:
        return dataclasses.replace(config, recurrence=recurrence)
    return recurrence if config in replaced else None


def _error(got: Kernel, kernel: Kernel) -> KernelError:
    ratio = lambda size: size(got - kernel) / np.maximum(size(kernel), np.finfo(np.float64).tiny)
    norms = ratio(lambda values: np.linalg.norm(values, axis=0))
    largest = ratio(lambda values: np.max(np.abs(values), axis=0))
    return KernelError(*map(float, (norms.max(), norms.mean(), largest.max(), largest.mean())))


def _poles(kernel: Kernel, count: int) -> Numbers:
    """So many, conjugates included, of which those in the upper half plane are returned."""
    directions = _leading_directions(kernel, count)
    shift = np.linalg.lstsq(directions[:-1], directions[1:])[0]
    poles = np.linalg.eigvals(shift).astype(np.complex128)
    poles = poles[poles.imag >= 0]
    size = np.clip(np.abs(poles), _SMALLEST, _LARGEST)
    return size * np.exp(1j * np.abs(np.angle(poles)))


def _leading_directions(kernel: Kernel, count: int) -> Kernel:
    """Left singular vectors of the Hankel matrix, from random combinations of its columns."""
    columns = len(kernel) // 2
    rows = len(kernel) + 1 - columns
    spectrum = np.fft.rfft(kernel)

    def product(matrix: Kernel, size: int) -> Kernel:
        """The Hankel matrix with `size` rows, or its transpose, times another: a correlation."""
        other = np.conj(np.fft.rfft(matrix, len(kernel), axis=0))
        return np.fft.irfft(spectrum[:, None] * other, len(kernel), axis=0)[:size]

    sketch = np.random.default_rng(0).normal(size=(columns, min(count + 10, columns)))
    for _ in range(3):
        basis = np.linalg.qr(product(sketch, rows))[0]
        sketch = np.linalg.qr(product(basis, columns))[0]
    basis = np.linalg.qr(product(sketch, rows))[0]
    inner = np.linalg.svd(product(basis, columns).T, full_matrices=False)[0]
    return basis @ inner[:, :count]


def _residues(kernel: Kernel, poles: Numbers) -> Numbers:
    """The least-squares fit of Re Σ c λˡ."""
    powers = _powers(poles, len(kernel))
    table = np.concatenate([powers.real, -powers.imag], axis=1)
    real, imag = np.split(np.linalg.lstsq(table, kernel)[0], 2)
    return real + 1j * imag


def _sum(length: int, poles: Numbers, residues: Numbers) -> Kernel:
    return (residues * _powers(poles, length)).real.sum(axis=1)


def _powers(poles: Numbers, length: int) -> Numbers:
    return poles ** np.arange(length)[:, None]
