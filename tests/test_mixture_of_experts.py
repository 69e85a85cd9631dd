"""Mixture of experts: against a loop over experts, a plain feed-forward layer, and a reference."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_numbers import golden
from jax import P
from jax.sharding import AxisType
from meshes import mesh_of

import linax_like as lx


KEY = jr.key(0, impl="rbg")
SIZES = {"num_experts": 5, "top_k": 2, "expert_features": 12}
CONFIG = lx.MixtureOfExpertsConfig(**SIZES, shared_features=8, balance_loss=0.5, z_loss=0.25)
