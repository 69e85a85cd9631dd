from .mesh import (
    data_mesh as data_mesh,
    replicate as replicate,
    replicated as replicated,
    shard_batch as shard_batch,
)
