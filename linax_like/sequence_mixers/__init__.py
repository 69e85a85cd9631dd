from .attention import (
    AttentionSequenceMixer as AttentionSequenceMixer,
    AttentionSequenceMixerConfig as AttentionSequenceMixerConfig,
    AttentionState as AttentionState,
)
from .base import (
    AbstractRecurrentMixer as AbstractRecurrentMixer,
    AbstractSequenceMixer as AbstractSequenceMixer,
    AbstractSequenceMixerConfig as AbstractSequenceMixerConfig,
    fold as fold,
)
from .centaurus import (
    CentaurusSequenceMixer as CentaurusSequenceMixer,
    CentaurusSequenceMixerConfig as CentaurusSequenceMixerConfig,
)
from .hyena import (
    HyenaSequenceMixer as HyenaSequenceMixer,
    HyenaSequenceMixerConfig as HyenaSequenceMixerConfig,
    HyenaState as HyenaState,
)
from .identity import (
    IdentitySequenceMixer as IdentitySequenceMixer,
    IdentitySequenceMixerConfig as IdentitySequenceMixerConfig,
)
from .implicit_filter import (
    ImplicitFilter as ImplicitFilter,
    ImplicitFilterConfig as ImplicitFilterConfig,
)
from .lru import (
    LRUSequenceMixer as LRUSequenceMixer,
    LRUSequenceMixerConfig as LRUSequenceMixerConfig,
)
from .s4 import S4SequenceMixer as S4SequenceMixer, S4SequenceMixerConfig as S4SequenceMixerConfig
from .s4d import (
    S4DSequenceMixer as S4DSequenceMixer,
    S4DSequenceMixerConfig as S4DSequenceMixerConfig,
)
from .s5 import S5SequenceMixer as S5SequenceMixer, S5SequenceMixerConfig as S5SequenceMixerConfig
