"""Cross-entropy of tokens or classes, in nats."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..precision import upcast


def cross_entropy(
    logits: Float[Array, "*shape classes"], labels: Int[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`-log softmax(logits)[labels]`, in at least float32.

    The label's logit is picked by a masked sum, which partitions over any mesh.
    """
    logits = upcast(logits)
    chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
