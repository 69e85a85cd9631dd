"""CKConv (Romero et al., 2022, https://arxiv.org/abs/2102.02611), on grids of one to three axes.

    y = k * x + d ⊙ x        k(lag) = ∏ spacing · kernel(p) ⊙ mask(p)        p = lag · spacing / extent

The kernel is a small network of physical coordinates (`implicit_kernels`), as long as the grid. A model
trained at one resolution runs at another by its `spacing` alone: the sum over lags is an integral.

Causal on one axis it is a recurrence, whose state is the past itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..config import require, require_positive
from ..context import SequenceContext
from ..initializers import normal, rescale, split
from ..ops.grid_conv import Boundary, grid_conv, grid_conv_by_feature, grid_conv_flops
from ..parameters import Buffer
from ..precision import accumulation_dtype, linear
from ..types import Frame, Grid, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    keep_at_padding,
    refuse_axis_name,
    require_causal,
)
from .convolution_history import (
    ConvolutionState,
    convolve,
    convolve_step,
    nan_if_outgrown,
    whole_sequence,
)
from .implicit_kernels import (
    AbstractImplicitKernel,
    AbstractImplicitKernelConfig,
    AbstractKernelMask,
    AbstractKernelMaskConfig,
    SIRENKernelConfig,
)


@dataclass(frozen=True)
class CKConvSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A convolution whose kernel is a small network of the lag.

    - `boundary`: one for each axis of the grid: `"zero"`, `"circular"` or `"causal"`.
    - `kernel`, `mask`: the network, and the window on it; None for none.
    - `extent`: the lag at which a coordinate is one, about the size of the grid; one number, or one
        for each axis. Fixed, so that a kernel does not depend on how large a grid happens to be.
    - `spacing`: between neighbouring points, in units of the extent's; 0.5 for twice the resolution.
    - `num_heads`: groups of features that have the same kernels, one for each feature of a group.
    - `max_documents`: how many packed documents a sequence holds at most, as each takes a
        convolution of its own. Outputs of further ones are NaN.
    """

    boundary: tuple[Boundary, ...] = ("causal",)
    kernel: AbstractImplicitKernelConfig = SIRENKernelConfig()
    mask: AbstractKernelMaskConfig | None = None
    extent: float | tuple[float, ...] = 1024.0
    spacing: float | tuple[float, ...] = 1.0
    num_heads: int = 1
    max_documents: int = 8

    def __post_init__(self):
        valid = 1 <= len(self.boundary) <= 3 and set(self.boundary) <= set(get_args(Boundary))
        require(valid, self, "boundary", "one to three of 'zero', 'circular', 'causal'")
        require_positive(self, "num_heads", "max_documents")
        for field in ("extent", "spacing"):
            sizes = self._per_axis(field)
            fits = len(sizes) == len(self.boundary) and 0 < min(sizes) <= max(sizes) < math.inf
            require(
                fits, self, field, "positive and finite: one number, or one for each `boundary`"
            )

    def build(self, in_features: int, key: PRNGKeyArray) -> "CKConvSequenceMixer":
        divides = in_features % self.num_heads == 0
        require(divides, self, "num_heads", f"a divisor of the width, which is {in_features}")
        return CKConvSequenceMixer(in_features, self, key)

    def steps(self) -> list[float]:
        """The distance of neighbouring points along each axis, in units of the extent."""
        extent, spacing = self._per_axis("extent"), self._per_axis("spacing")
        return [s / e for s, e in zip(spacing, extent, strict=True)]

    def volume(self) -> float:
        """The size of a point of the grid."""
        return math.prod(self._per_axis("spacing"))

    def _per_axis(self, field: str) -> tuple[float, ...]:
        value = getattr(self, field)
        return value if isinstance(value, tuple) else (value,) * len(self.boundary)


class CKConvSequenceMixer(AbstractRecurrentMixer[ConvolutionState]):
    """A convolution with an implicit kernel, and a skip.

    With the boundary `("causal",)` it advances step by step: its state keeps `max_length` positions,
    and a step takes time in proportion to them. On a circular sequence documents are refused, and
    padding is zero where it stands.
    """

    config: CKConvSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    kernel: AbstractImplicitKernel
    mask: AbstractKernelMask | None
    skip: Float[Array, " features"]  # d
    sampled: Buffer | None  # the kernel at fixed lags, once it is materialized

    def __init__(self, in_features: int, cfg: CKConvSequenceMixerConfig, key: PRNGKeyArray):
        kernel_key, mask_key, skip_key = split(key, 3)
        axes, channels = len(cfg.boundary), in_features // cfg.num_heads
        kernel = cfg.kernel.build(axes, channels, kernel_key)
        # White noise in, about unit variance out, if the grid reaches over the extent.
        sides = [1 if kind == "causal" else 2 for kind in cfg.boundary]
        points = math.prod(side / step for side, step in zip(sides, cfg.steps(), strict=True))
        factor = 1 / (math.sqrt(max(points, 1.0)) * cfg.volume())
        scaled = rescale(kernel.out_weight, factor)
        self.config = cfg
        self.in_features = in_features
        self.kernel = eqx.tree_at(lambda kernel: kernel.out_weight, kernel, scaled)
        self.mask = None if cfg.mask is None else cfg.mask.build(axes, channels, mask_key)
        self.skip = normal(skip_key, (in_features,))
        self.sampled = None

    @property
    def causal(self) -> bool:
        return self.config.boundary == ("causal",)

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"condition"} if self.kernel.uses_condition else ())

    @property
    def spatial_ndims(self) -> frozenset[int]:
        return frozenset({len(self.config.boundary)})

    def __call__(
        self, x: Grid, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Grid:
        x, context = enter(self, x, context)
        if x.ndim > 2:
            refuse_axis_name(self, context)
        elif not context.is_plain:
            return self._advance(self._empty_state(0, x.dtype), x, context)[1]
        return context.blank_padding(self._convolve(x, context) + self.skip.astype(x.dtype) * x)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> ConvolutionState:
        self._require_causal()
        return self._empty_state(max_length, dtype)

    def prefill(
        self, state: ConvolutionState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[ConvolutionState, Signal]:
        self._require_causal()
        x, context = enter(self, x, context)
        after, y = self._advance(state, x, context)
        return after, nan_if_outgrown(y, context, state.length, len(state.history))

    def step(
        self, state: ConvolutionState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[ConvolutionState, Frame]:
        self._require_causal()
        x, context = enter_step(self, x, context)
        past, length = context.forget(state)
        kernel = self._sample((len(past),), accumulation_dtype(x.dtype), context)
        past, y = convolve_step(past, x, kernel)
        y = y + self.skip.astype(x.dtype) * x
        y = jnp.where(length < len(past), y, jnp.nan)
        new = ConvolutionState(past, length + 1)
        return keep_at_padding(context, new, state), context.blank_padding(y)

    @property
    def complexity(self) -> str:
        return "O(L log L · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        points, boundary = math.prod(spatial_dims), self.config.boundary
        forward = self.in_features * (grid_conv_flops(spatial_dims, boundary) + 2 * points)
        if self.sampled is None:
            lags = math.prod(map(len, self._lags(spatial_dims)))
            forward += self.kernel.flop_count(lags) + lags * self.kernel.out_weight.shape[0]
            forward += 0 if self.mask is None else self.mask.flop_count(lags)
        return forward if inference else 3 * forward

    def materialize(self, spatial_dims: tuple[int, ...]) -> "CKConvSequenceMixer":
        """The same mixer with its kernel sampled once, for inference on grids up to this size.

        The kernel is not trained any more. A circular axis has to have just this size.

        **Raises:** `ValueError` if a condition makes the kernel.
        """
        if self.kernel.uses_condition:
            raise ValueError(
                "`CKConvSequenceMixer.materialize` fixes a kernel, but this one depends on "
                "`context.condition`. Leave it as it is."
            )
        kernel = self._sample(spatial_dims, self.skip.dtype, SequenceContext())
        return eqx.tree_at(
            lambda mixer: mixer.sampled, self, Buffer(kernel), is_leaf=lambda leaf: leaf is None
        )

    def _advance(
        self, state: ConvolutionState, x: Signal, context: SequenceContext
    ) -> tuple[ConvolutionState, Signal]:
        """One axis: `prefill`, without a look at whether the history is long enough."""
        if len(x) == 0:
            return state, x
        (boundary,) = self.config.boundary
        whole = whole_sequence(self, len(x), context, boundary)
        lags = (len(state.history) or whole.length,)
        kernel = self._sample(lags, accumulation_dtype(x.dtype), context)
        rules = whole, boundary, self.config.max_documents
        past, y = convolve(state.history, x, kernel, *rules)
        y = context.blank_padding(y + self.skip.astype(x.dtype) * x)
        return ConvolutionState(past, whole.length_after(state.length)), y

    def _empty_state(self, max_length: int, dtype: DTypeLike | None) -> ConvolutionState:
        history = jnp.zeros((max_length, self.in_features), dtype or jnp.float32)
        return ConvolutionState(history, jnp.zeros((), jnp.int32))

    def _require_causal(self) -> None:
        require_causal(self, "build it with `CKConvSequenceMixerConfig(boundary=('causal',))`")

    def _sample(
        self, spatial_dims: tuple[int, ...], dtype: DTypeLike, context: SequenceContext
    ) -> Float[Array, "*lags features"]:
        """The kernel at all lags of a grid of this size."""
        if self.sampled is not None:
            return self._cut(self.sampled.value, spatial_dims).astype(dtype)
        kernel_of, parameters = self._kernels(spatial_dims, dtype, context)
        kernels = jnp.moveaxis(jax.vmap(kernel_of)(parameters), 0, -1)
        return jnp.tile(kernels, self.config.num_heads)

    def _convolve(self, x: Grid, context: SequenceContext) -> Grid:
        """The convolution of a whole grid."""
        cfg, dtype = self.config, accumulation_dtype(x.dtype)
        if 0 in x.shape:
            return x
        if self.sampled is not None:
            return grid_conv(x, self._sample(x.shape[:-1], dtype, context), cfg.boundary)
        kernels = self._kernels(x.shape[:-1], dtype, context)
        one_head = lambda x: grid_conv_by_feature(x, *kernels, cfg.boundary)
        heads = x.reshape(*x.shape[:-1], cfg.num_heads, -1)
        return jax.vmap(one_head, -2, -2)(heads).reshape(x.shape)

    def _kernels(
        self, spatial_dims: tuple[int, ...], dtype: DTypeLike, context: SequenceContext
    ) -> tuple[Callable[[PyTree], Float[Array, "*lags"]], PyTree[Float[Array, "channels ..."]]]:
        """What makes one channel's kernel of its parameters, and the parameters of all."""
        cfg, kernel, mask = self.config, self.kernel, self.mask
        places = [
            step * jnp.arange(lags.start, lags.stop, dtype=dtype)
            for lags, step in zip(self._lags(spatial_dims), cfg.steps(), strict=True)
        ]
        grid = jnp.stack(jnp.meshgrid(*places, indexing="ij"), axis=-1)
        points = grid.reshape(-1, len(places))
        waves = eqx.filter_checkpoint(kernel.waves_at)(points, context.condition)
        distances = None if mask is None else mask.distances(points)

        def kernel_of(parameters):
            weight, bias, rates = parameters
            with jax.default_matmul_precision("highest"):
                taps = cfg.volume() * (linear(weight, waves) + bias)
                if distances is not None:
                    taps = taps * jnp.exp(-linear(rates, distances))
            return taps.reshape(grid.shape[:-1])

        parameters = kernel.out_weight, kernel.out_bias, None if mask is None else mask.rates()
        return kernel_of, jax.tree.map(lambda array: array.astype(dtype), parameters)

    def _lags(self, spatial_dims: tuple[int, ...]) -> list[range]:
        if len(spatial_dims) != len(self.config.boundary):
            raise ValueError(
                f"`CKConvSequenceMixer` with the boundary {self.config.boundary} works on grids of "
                f"{len(self.config.boundary)} axes. Received the sizes {spatial_dims}."
            )
        pairs = zip(spatial_dims, self.config.boundary, strict=True)
        return [_lags(points, kind) for points, kind in pairs]

    def _cut(
        self, sampled: Float[Array, "*sampled features"], spatial_dims: tuple[int, ...]
    ) -> Float[Array, "*lags features"]:
        """What a grid of this size needs of a sampled kernel."""
        pairs = zip(self._lags(spatial_dims), self.config.boundary, strict=True)
        for axis, (lags, kind) in enumerate(pairs):
            have, need = sampled.shape[axis], len(lags)
            if need > have or (kind == "circular" and need != have):
                exactly = "exactly" if kind == "circular" else "at most"
                raise ValueError(
                    f"`CKConvSequenceMixer` was materialized with {have} lags along axis {axis}, "
                    f"where {need} are needed now: a {kind} axis takes {exactly} the size that it "
                    "was materialized for. Materialize the model for the largest grid."
                )
            first = 0 if kind == "causal" else (have - need) // 2
            sampled = jax.lax.slice_in_dim(sampled, first, first + need, axis=axis)
        return sampled


def materialize_kernels(model: PyTree, spatial_dims: tuple[int, ...]) -> PyTree:
    """A model with the kernels of all its `CKConvSequenceMixer`s sampled, for inference.

    - `spatial_dims`: the largest grid, or the longest sequence, that it will meet.
    """
    is_mixer = lambda node: isinstance(node, CKConvSequenceMixer)

    def replace(node):
        if not is_mixer(node) or node.kernel.uses_condition:
            return node
        return each_repeat(lambda mixer: mixer.materialize(spatial_dims), node)

    return jax.tree.map(replace, model, is_leaf=is_mixer)


def each_repeat(
    convert: Callable[[CKConvSequenceMixer], PyTree], mixer: CKConvSequenceMixer
) -> PyTree:
    """`convert` of a mixer, or of each that the repeats of a stack hold in it."""
    for _ in range(mixer.skip.ndim - 1):
        convert = eqx.filter_vmap(convert)
    return convert(mixer)


def _lags(points: int, kind: Boundary) -> range:
    """Of an even circle the opposite point is left out: it lies as far one way as the other."""
    if kind == "causal" or points == 0:
        return range(points)
    reach = points - 1 if kind == "zero" else (points - 1) // 2
    return range(-reach, reach + 1)
