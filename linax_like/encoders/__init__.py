from .base import (
    AbstractEncoder as AbstractEncoder,
    AbstractEncoderConfig as AbstractEncoderConfig,
)
from .linear import LinearEncoder as LinearEncoder, LinearEncoderConfig as LinearEncoderConfig
from .patch_embedding import (
    PatchEmbedding as PatchEmbedding,
    PatchEmbeddingConfig as PatchEmbeddingConfig,
)
from .patch_merging import (
    PatchMerging as PatchMerging,
    PatchMergingConfig as PatchMergingConfig,
)
from .token_embedding import (
    TokenEmbedding as TokenEmbedding,
    TokenEmbeddingConfig as TokenEmbeddingConfig,
)
