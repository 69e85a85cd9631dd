from .base import (
    AbstractEncoder as AbstractEncoder,
    AbstractEncoderConfig as AbstractEncoderConfig,
)
from .linear import LinearEncoder as LinearEncoder, LinearEncoderConfig as LinearEncoderConfig
from .token_embedding import (
    TokenEmbedding as TokenEmbedding,
    TokenEmbeddingConfig as TokenEmbeddingConfig,
)
