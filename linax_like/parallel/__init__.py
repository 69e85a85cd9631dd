from .data_parallel import jit_step as jit_step, pmap_step as pmap_step
from .mesh import (
    DATA as DATA,
    data_mesh as data_mesh,
    replicate as replicate,
    replicated as replicated,
    shard_batch as shard_batch,
    stack_shards as stack_shards,
)
