from .language_model import (
    LanguageModel as LanguageModel,
    LanguageModelConfig as LanguageModelConfig,
)
from .sequence_model import (
    SequenceModel as SequenceModel,
    SequenceModelConfig as SequenceModelConfig,
)
