"""An image, cut into patches: every patch of `p × q` pixels becomes one vector, row by row.

Likewise a sequence and a volume; an image is `(*space, channels)`.
"""

import math

from jaxtyping import Array, Shaped


def patchify(
    x: Shaped[Array, "*space channels"], patch_size: tuple[int, ...]
) -> Shaped[Array, "*grid pixels"]:
    """The grid of patches, each with its pixels and their channels in one axis.

    **Raises:** `ValueError` if pixels would be left over.
    """
    sizes, ndim = x.shape[:-1], len(patch_size)
    if len(sizes) != ndim or any(s % p for s, p in zip(sizes, patch_size, strict=True)):
        raise ValueError(
            f"`patchify` cuts an image of {ndim} axes, and channels, into patches of {patch_size}: "
            f"the sizes must be multiples of the patch's. Received the shape {x.shape}. Crop or pad "
            "the image; use `jax.vmap` for a batch."
        )
    grid = tuple(s // p for s, p in zip(sizes, patch_size, strict=True))
    cut = x.reshape(*(n for pair in zip(grid, patch_size, strict=True) for n in pair), x.shape[-1])
    order = (*range(0, 2 * ndim, 2), *range(1, 2 * ndim, 2), 2 * ndim)
    return cut.transpose(order).reshape(*grid, math.prod(patch_size) * x.shape[-1])


def unpatchify(
    patches: Shaped[Array, "*grid pixels"], patch_size: tuple[int, ...]
) -> Shaped[Array, "*space channels"]:
    """The inverse of `patchify`.

    **Raises:** `ValueError` if this is not a grid of such patches.
    """
    grid, ndim, pixels = patches.shape[:-1], len(patch_size), math.prod(patch_size)
    if len(grid) != ndim or patches.shape[-1] % pixels:
        raise ValueError(
            f"`unpatchify` puts a grid of {ndim} axes of patches of {patch_size} together: its last "
            f"axis must be a multiple of {pixels}. Received the shape {patches.shape}. A flattened "
            "grid must be reshaped first; use `jax.vmap` for a batch."
        )
    cut = patches.reshape(*grid, *patch_size, -1)
    order = (*(i for axis in range(ndim) for i in (axis, ndim + axis)), 2 * ndim)
    sizes = (g * p for g, p in zip(grid, patch_size, strict=True))
    return cut.transpose(order).reshape(*sizes, cut.shape[-1])
