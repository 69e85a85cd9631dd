"""Which backend computes attention: a forward and a backward rule that choose alike.

Derivatives of the gradient are those of the definition, all scores included.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax

from ..differentiated import differentiated_as
from ..varying import vary_together
from . import cudnn, pallas_tpu, xla
from .case import Case
from .reference import reference_attention
from .unsplit import kernel_or_xla


Backend = Literal["reference", "xla", "cudnn", "pallas_tpu"]

_KERNELS = {"cudnn": cudnn, "pallas_tpu": pallas_tpu}
_FORWARD = {name: module.forward for name, module in _KERNELS.items()} | {"xla": xla.forward}
_BACKWARD = {name: module.backward for name, module in _KERNELS.items()} | {"xla": xla.backward}


class Choice(NamedTuple):
    """A backend, and a sentence that says why."""

    backend: Backend
    reason: str


def choose(case: Case, platform: str) -> Choice:
    """The backend of a case on a platform: `"cpu"`, `"cuda"`, `"tpu"` or another."""
    if platform == "cuda":
        kernel, why_not = "cudnn", cudnn.obstacle(case)
    elif platform == "tpu":
        kernel, why_not = "pallas_tpu", pallas_tpu.obstacle(case) or pallas_tpu.drawback(case)
    else:
        return Choice("xla", f'There is no kernel for the platform "{platform}".')
    return (
        Choice(kernel, "Its kernel takes the case.") if why_not is None else Choice("xla", why_not)
    )


def kernel_attention(q, k, v, segment_ids, mask, spans, case: Case, backend: Backend | None):
    """As `reference_attention`, by `backend` or what suits the platform.

    Raises a ValueError if `backend` cannot take the case.
    """
    if backend is None:
        backends = _Backends("xla", choose(case, "cuda").backend, choose(case, "tpu").backend)
    else:
        _require(case, backend)
        backends = _Backends(backend, backend, backend)
    return _attend(*vary_together(q, k, v, segment_ids, mask, spans), case.rules, backends)


def _require(case: Case, backend: Backend) -> None:
    why_not = _KERNELS[backend].obstacle(case) if backend in _KERNELS else None
    if why_not is not None:
        raise ValueError(
            f'`attention(backend="{backend}")` cannot take this case. {why_not} `backend="xla"` '
            "takes every case, and `backend=None` what suits the case and the platform."
        )


class _Backends(NamedTuple):
    default: Backend
    cuda: Backend
    tpu: Backend


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _attend(q, k, v, segment_ids, mask, spans, rules, backends):
    return _attend_forward(q, k, v, segment_ids, mask, spans, rules, backends)[0]


def _attend_forward(q, k, v, segment_ids, mask, spans, rules, backends):
    operands = (q, k, v, segment_ids, mask, spans)
    fast = lambda *operands: _by_platform(_FORWARD, backends, operands, rules)
    y, log_sum = differentiated_as(partial(_definition, rules=rules), fast, *operands)
    return y, (operands, y, log_sum)


def _attend_backward(rules, backends, residuals, dy):
    operands, *saved = residuals
    fast = lambda *operands: (_by_platform(_BACKWARD, backends, operands, rules), None)
    definition = partial(_definition_backward, rules=rules)
    gradients, _ = differentiated_as(definition, fast, *operands, *saved, dy)
    return *gradients, None, None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _definition(q, k, v, segment_ids, mask, spans, rules):
    return reference_attention(q, k, v, segment_ids, mask, spans, rules).astype(q.dtype)


def _definition_backward(q, k, v, segment_ids, mask, spans, y, log_sum, dy, rules):
    attend = lambda q, k, v: _definition(q, k, v, segment_ids, mask, spans, rules)
    return jax.vjp(attend, q, k, v)[1](dy)


def _by_platform(computes, backends, operands, rules):
    """Runs what suits the platform that the program is lowered for.

    This is done inside the rules of one `custom_vjp`, which keeps one set of residuals. The
    gradient of a choice between differentiable functions would keep a set of each.
    """
    default, cuda, tpu = (partial(computes[name], rules=rules) for name in backends)
    kernels = {}
    if backends.cuda != backends.default:
        kernels["cuda"] = cuda
    if backends.tpu != backends.default:
        kernels["tpu"] = partial(kernel_or_xla, tpu, default)
    if not kernels:
        return default(*operands)
    return jax.lax.platform_dependent(*operands, default=default, **kernels)
