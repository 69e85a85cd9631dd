"""Looking ahead, past padding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped


def next_real(
    values: Shaped[Array, " time"], mask: Bool[Array, " time"] | None, axis_name: str | None = None
) -> Shaped[Array, " time"]:
    """The value at the next position that is not padding. Where none follows, this device's last.

    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`.
    """
    length = len(values)
    if length == 0:
        return values
    real = jnp.ones((length,), bool) if mask is None else mask
    index = jnp.where(real, jnp.arange(length, dtype=jnp.int32), length)
    first = jax.lax.cummin(index, reverse=True)  # the first real position, from each on
    after = jnp.concatenate([first[1:], jnp.full_like(first[:1], length)])
    beyond = values[-1]
    if axis_name is not None:
        value = values[jnp.minimum(first[0], length - 1)]
        has_real, value = jax.lax.all_gather((real.any(), value), axis_name)
        later = has_real & (jnp.arange(has_real.size) > jax.lax.axis_index(axis_name))
        beyond = jnp.where(later.any(), value[jnp.argmax(later)], beyond)
    return jnp.where(after < length, values[jnp.minimum(after, length - 1)], beyond)
