from .adaptive import AdaptiveBlock as AdaptiveBlock, AdaptiveBlockConfig as AdaptiveBlockConfig
from .base import AbstractBlock as AbstractBlock, AbstractBlockConfig as AbstractBlockConfig
from .patches import PatchBlock as PatchBlock, PatchBlockConfig as PatchBlockConfig
from .residual import ResidualBlock as ResidualBlock, ResidualBlockConfig as ResidualBlockConfig
