"""Configs that are known to work, as functions: `preset().build(key)`."""

from ..blocks import ResidualBlockConfig
from ..channel_mixers import GLUConfig, SwiGLUConfig
from ..heads import LanguageModelHeadConfig
from ..sequence_mixers import (
    AbstractSequenceMixerConfig,
    AttentionSequenceMixerConfig,
    LRUSequenceMixerConfig,
    S4DSequenceMixerConfig,
)
from ..stack import StackConfig
from .flat import sequence_model as sequence_model
from .hybrid import hybrid_language_model as hybrid_language_model
from .language_model import LanguageModelConfig
from .mixture_preset import mixture_of_transformers as mixture_of_transformers
from .sequence_model import SequenceModelConfig
from .vision_presets import (
    field_model as field_model,
    grid_hyena as grid_hyena,
    hierarchical_vision_model as hierarchical_vision_model,
    vision_model as vision_model,
)


def byte_language_model(features: int = 256, repeats: int = 2) -> LanguageModelConfig:
    """A hybrid language model over bytes: two recurrent blocks, then one of attention, repeated.

    - `features`: width of the residual stream.
    - `repeats`: how often the three blocks are repeated.
    """

    def block(mixer: AbstractSequenceMixerConfig) -> ResidualBlockConfig:
        return ResidualBlockConfig(mixer, SwiGLUConfig(expand=2.0), compute_dtype="bfloat16")

    recurrent = block(LRUSequenceMixerConfig(state_dim=features // 2))
    attention = block(AttentionSequenceMixerConfig(qk_norm=True))
    return LanguageModelConfig(
        vocab_size=256,
        features=features,
        stack=StackConfig((((recurrent, recurrent, attention), repeats),), unroll=repeats),
        head=LanguageModelHeadConfig(tied=False),
    )


def digits_classifier(features: int = 64, repeats: int = 4) -> SequenceModelConfig:
    """A state-space classifier of 8x8 images read pixel by pixel.

    - `features`: width of the residual stream.
    - `repeats`: number of blocks.
    """
    block = ResidualBlockConfig(S4DSequenceMixerConfig(state_dim=16), GLUConfig(), dropout=0.1)
    return SequenceModelConfig(
        in_features=1,
        features=features,
        out_features=10,
        stack=StackConfig((((block,), repeats),)),
    )
