from . import presets as presets
from .base import AbstractLanguageModel as AbstractLanguageModel
from .hierarchical_model import (
    HierarchicalModel as HierarchicalModel,
    HierarchicalModelConfig as HierarchicalModelConfig,
)
from .hybrid import HybridInitializerConfig as HybridInitializerConfig
from .language_model import (
    LanguageModel as LanguageModel,
    LanguageModelConfig as LanguageModelConfig,
    token_loss as token_loss,
)
from .mixture_of_transformers import (
    MixtureOfTransformers as MixtureOfTransformers,
    MixtureOfTransformersConfig as MixtureOfTransformersConfig,
    ModalityConfig as ModalityConfig,
    stream_losses as stream_losses,
    StreamLanguageModel as StreamLanguageModel,
    StreamsOutput as StreamsOutput,
)
from .sequence_model import (
    SequenceModel as SequenceModel,
    SequenceModelConfig as SequenceModelConfig,
)
from .vision_model import VisionModel as VisionModel, VisionModelConfig as VisionModelConfig
from .warm_start import (
    mixture_of as mixture_of,
    warm_start_from_text_stack as warm_start_from_text_stack,
    WarmStartReport as WarmStartReport,
)
