from . import presets as presets
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
from .sequence_model import (
    SequenceModel as SequenceModel,
    SequenceModelConfig as SequenceModelConfig,
)
from .vision_model import VisionModel as VisionModel, VisionModelConfig as VisionModelConfig
