from .base import (
    AbstractTask as AbstractTask,
    AbstractTaskConfig as AbstractTaskConfig,
    Batch as Batch,
    Metrics as Metrics,
)
from .digits import DigitsTask as DigitsTask, DigitsTaskConfig as DigitsTaskConfig
from .text import TextTask as TextTask, TextTaskConfig as TextTaskConfig
