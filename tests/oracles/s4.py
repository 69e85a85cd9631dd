import numpy as np

import linax_like as lx
from oracles import Oracle


def s4(mixer, x):
    """With dense matrices, conjugate states included."""
    pair = lambda z: z[0] + 1j * z[1]
    both = lambda z: np.concatenate([z, z.conj()], axis=-1)
    eigenvalues = both(-np.exp(mixer.log_decay) + 1j * mixer.frequency)
    low_rank, into = both(pair(mixer.low_rank)), both(pair(mixer.in_proj))
    out, dt = both(pair(mixer.out_proj)), np.exp(mixer.log_step)
    y, radius, one = mixer.skip * x, 0.0, np.eye(eigenvalues.shape[-1])
    for i in range(x.shape[1]):
        n = i % len(eigenvalues)
        matrix = np.diag(eigenvalues[n]) - low_rank[n].T @ low_rank[n].conj()
        step = np.linalg.solve(one - dt[i] / 2 * matrix, one + dt[i] / 2 * matrix)
        drive = np.linalg.solve(one - dt[i] / 2 * matrix, dt[i] * into[n])
        radius = max(radius, np.abs(np.linalg.eigvals(step)).max())
        h = np.zeros_like(drive)
        for t in range(len(x)):
            h = step @ h + drive * x[t, i]
            y[t, i] += (out[i] @ h).real
    return y, 1 / (1 - radius)


ORACLES = [
    Oracle("s4", lx.S4SequenceMixerConfig(), s4),
    Oracle("s4_legt", lx.S4SequenceMixerConfig(16, n_ssm=2, init="legt"), s4),
]
