from . import ops as ops
from ._version import __version__ as __version__
from .config import AbstractConfig as AbstractConfig
from .context import Cursor as Cursor, SequenceContext as SequenceContext
from .parameters import Buffer as Buffer, count_parameters as count_parameters, trainable as trainable
from .sequence_mixers import (
    AbstractRecurrentMixer as AbstractRecurrentMixer,
    AbstractSequenceMixer as AbstractSequenceMixer,
    AbstractSequenceMixerConfig as AbstractSequenceMixerConfig,
    fold as fold,
    LRUSequenceMixer as LRUSequenceMixer,
    LRUSequenceMixerConfig as LRUSequenceMixerConfig,
)
from .types import Aux as Aux
