import numpy as np

import linax_like as lx
from oracles import Oracle


def linoss(mixer, x):
    h = 1 / (1 + np.exp(-mixer.step_logit))
    g = np.zeros_like(h) if mixer.damping is None else np.maximum(mixer.damping, 0)
    into = mixer.in_proj[0] + 1j * mixer.in_proj[1]
    out = mixer.out_proj[0] + 1j * mixer.out_proj[1]
    # Both rules for z and s at once, as the linear system that defines them.
    eye = np.eye(2)
    steps = []
    for a, h_n, g_n in zip(mixer.stiffness, h, g, strict=True):
        if mixer.config.discretization == "IM":
            a = max(a, 0)
            later, before = np.array([[1 + h_n * g_n, h_n * a], [-h_n, 1]]), eye
        else:
            edges = ((np.sqrt(1 + h_n * g_n) + np.array([-1, 1])) / h_n) ** 2
            a = np.clip(a, *edges)
            later, before = (
                np.array([[1 + h_n * g_n, 0], [-h_n, 1]]),
                np.array([[1, -h_n * a], [0, 1]]),
            )
        drive = np.array([h_n, 0])
        steps.append((np.linalg.solve(later, before), np.linalg.solve(later, drive)))
    matrix, gain = (np.stack(part) for part in zip(*steps, strict=True))
    state, y = np.zeros((len(h), 2), complex), np.empty_like(x)
    for t, x_t in enumerate(x):
        state = np.einsum("nij,nj->ni", matrix, state) + gain * (into @ x_t)[:, None]
        y[t] = (out @ state[:, 1]).real + mixer.skip * x_t
    return y, 1 / (1 - np.abs(np.linalg.eigvals(matrix)).max())


ORACLES = [
    Oracle("linoss_im", lx.LinOSSSequenceMixerConfig(8, "IM", damping=False), linoss),
    Oracle("linoss_damped", lx.LinOSSSequenceMixerConfig(8), linoss),
]
