"""Fast forms whose derivatives are those of their definitions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def differentiated_as(definition: Callable, fast: Callable, *operands: Any) -> Any:
    """`fast(*operands)`, differentiated in either mode as `definition(*operands)`.

    The rules of a `jax.custom_vjp` compute by it what their own loops do: the first gradient is fast,
    and derivatives of the gradient exist. (JAX 0.11 forgets the rule where a gradient of a
    `jax.lax.scan` is differentiated in reverse mode, which then is an error.)

    - `fast`: gives the result, and what else it saves for a gradient whose definition ignores it.
    """
    function = jax.custom_jvp(fast)

    @function.defjvp
    def rule(primals, tangents):
        result, saved = function(*primals)
        slope = jax.jvp(definition, primals, tangents)[1]
        return (result, saved), (slope, jax.tree.map(jnp.zeros_like, saved))

    return function(*operands)
