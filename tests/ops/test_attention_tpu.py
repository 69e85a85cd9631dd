"""Attention compiled for a TPU, without one: forward and gradient, by libtpu on the CPU."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest


# A process of its own: libtpu reads the environment, and the suite has made the CPU eight devices.
PROGRAM = """
import json
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from linax_like.ops.attention import attention

devices = np.array(topologies.get_topology_desc("v5e:2x2", platform="tpu").devices)


def loss(q, k, v):
    return jnp.sum(jax.vmap(attention)(q, k, v).astype(jnp.float32) ** 2)


def report(time, batch, count):
    mesh = jax.sharding.Mesh(devices[:count], ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    shapes = [(batch, time, heads, 64) for heads in (4, 2, 2)]
    inputs = [jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=split) for s in shapes]
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*inputs).compile()
    text = compiled.as_text()
    kernels = [k for k in ("fwd", "dq", "dkv") if f"splash_mha_{k}" in text]
    return kernels, compiled.memory_analysis().temp_size_in_bytes


print(json.dumps([report(*case) for case in %s]))
"""
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="compiling for a TPU takes libtpu: `uv run --extra tpu pytest -m slow`",
)
def test_a_long_sequence_on_one_tpu_is_splash_attention_in_linear_memory():
    cases = [(2048, 1, 1), (16384, 1, 1), (32768, 1, 1), (4096, 4, 4)]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM % cases],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    short, long, longer, split = json.loads(run.stdout.splitlines()[-1])
    assert short[0] == []
    assert long[0] == longer[0] == ["fwd", "dq", "dkv"]
    assert split[0] == []  # XLA splits the batch over the devices, and could not split the kernel
    # The scores of the longer are 8.6 GB in bfloat16, four times those of the long.
    assert longer[1] < 2.5 * max(long[1], 50e6)
    assert longer[1] < 0.3e9
