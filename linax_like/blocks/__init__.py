from .adaptive import AdaptiveBlock as AdaptiveBlock, AdaptiveBlockConfig as AdaptiveBlockConfig
from .base import (
    AbstractBlock as AbstractBlock,
    AbstractBlockConfig as AbstractBlockConfig,
    AbstractStreamsBlock as AbstractStreamsBlock,
    AbstractStreamsBlockConfig as AbstractStreamsBlockConfig,
)
from .mixture_of_transformers import MoTBlock as MoTBlock, MoTBlockConfig as MoTBlockConfig
from .patches import PatchBlock as PatchBlock, PatchBlockConfig as PatchBlockConfig
from .residual import ResidualBlock as ResidualBlock, ResidualBlockConfig as ResidualBlockConfig
