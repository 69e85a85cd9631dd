from .base import AbstractBlock as AbstractBlock, AbstractBlockConfig as AbstractBlockConfig
from .residual import ResidualBlock as ResidualBlock, ResidualBlockConfig as ResidualBlockConfig
