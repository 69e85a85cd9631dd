from .base import (
    AbstractRecurrentMixer as AbstractRecurrentMixer,
    AbstractSequenceMixer as AbstractSequenceMixer,
    AbstractSequenceMixerConfig as AbstractSequenceMixerConfig,
    fold as fold,
)
from .lru import LRUSequenceMixer as LRUSequenceMixer, LRUSequenceMixerConfig as LRUSequenceMixerConfig
