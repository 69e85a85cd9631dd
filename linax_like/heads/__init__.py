from .base import (
    AbstractHead as AbstractHead,
    AbstractHeadConfig as AbstractHeadConfig,
    Logits as Logits,
    Values as Values,
)
from .classification import (
    ClassificationHead as ClassificationHead,
    ClassificationHeadConfig as ClassificationHeadConfig,
    pool as pool,
)
from .language_model import (
    LanguageModelHead as LanguageModelHead,
    LanguageModelHeadConfig as LanguageModelHeadConfig,
)
from .register_pooling import RegisterPooling as RegisterPooling
from .regression import (
    RegressionHead as RegressionHead,
    RegressionHeadConfig as RegressionHeadConfig,
)
from .unpatchify import (
    UnpatchifyHead as UnpatchifyHead,
    UnpatchifyHeadConfig as UnpatchifyHeadConfig,
)
