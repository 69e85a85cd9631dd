from .attention import (
    AttentionSequenceMixer as AttentionSequenceMixer,
    AttentionSequenceMixerConfig as AttentionSequenceMixerConfig,
)
from .attention_core import AttentionState as AttentionState
from .attention_operator import (
    AttentionOperator as AttentionOperator,
    AttentionOperatorConfig as AttentionOperatorConfig,
)
from .base import (
    AbstractRecurrentMixer as AbstractRecurrentMixer,
    AbstractSequenceMixer as AbstractSequenceMixer,
    AbstractSequenceMixerConfig as AbstractSequenceMixerConfig,
    fold as fold,
)
from .bidirectional import (
    BidirectionalSequenceMixer as BidirectionalSequenceMixer,
    BidirectionalSequenceMixerConfig as BidirectionalSequenceMixerConfig,
)
from .centaurus import (
    CentaurusSequenceMixer as CentaurusSequenceMixer,
    CentaurusSequenceMixerConfig as CentaurusSequenceMixerConfig,
)
from .ckconv import (
    CKConvSequenceMixer as CKConvSequenceMixer,
    CKConvSequenceMixerConfig as CKConvSequenceMixerConfig,
    materialize_kernels as materialize_kernels,
)
from .cross_attention import (
    CrossAttention as CrossAttention,
    CrossAttentionConfig as CrossAttentionConfig,
)
from .delta_net import (
    DeltaNetSequenceMixer as DeltaNetSequenceMixer,
    DeltaNetSequenceMixerConfig as DeltaNetSequenceMixerConfig,
)
from .gated_delta_net import (
    GatedDeltaNetSequenceMixer as GatedDeltaNetSequenceMixer,
    GatedDeltaNetSequenceMixerConfig as GatedDeltaNetSequenceMixerConfig,
)
from .gated_delta_product import (
    GatedDeltaProductSequenceMixer as GatedDeltaProductSequenceMixer,
    GatedDeltaProductSequenceMixerConfig as GatedDeltaProductSequenceMixerConfig,
)
from .gla import (
    GLASequenceMixer as GLASequenceMixer,
    GLASequenceMixerConfig as GLASequenceMixerConfig,
)
from .grid_orders import (
    GridOrdersSequenceMixer as GridOrdersSequenceMixer,
    GridOrdersSequenceMixerConfig as GridOrdersSequenceMixerConfig,
)
from .hgrn import (
    HGRNSequenceMixer as HGRNSequenceMixer,
    HGRNSequenceMixerConfig as HGRNSequenceMixerConfig,
)
from .hyena import (
    HyenaSequenceMixer as HyenaSequenceMixer,
    HyenaSequenceMixerConfig as HyenaSequenceMixerConfig,
    HyenaState as HyenaState,
)
from .hyena_operator import (
    HyenaOperator as HyenaOperator,
    HyenaOperatorConfig as HyenaOperatorConfig,
)
from .identity import (
    IdentitySequenceMixer as IdentitySequenceMixer,
    IdentitySequenceMixerConfig as IdentitySequenceMixerConfig,
)
from .implicit_filter import (
    ImplicitFilter as ImplicitFilter,
    ImplicitFilterConfig as ImplicitFilterConfig,
)
from .implicit_kernels import (
    AbstractImplicitKernelConfig as AbstractImplicitKernelConfig,
    AbstractKernelMaskConfig as AbstractKernelMaskConfig,
    ExponentialMaskConfig as ExponentialMaskConfig,
    GaussianMaskConfig as GaussianMaskConfig,
    KernelFiLMConfig as KernelFiLMConfig,
    RandomFourierKernelConfig as RandomFourierKernelConfig,
    SIRENKernelConfig as SIRENKernelConfig,
)
from .kda import (
    KDASequenceMixer as KDASequenceMixer,
    KDASequenceMixerConfig as KDASequenceMixerConfig,
)
from .kronecker import (
    KroneckerSequenceMixer as KroneckerSequenceMixer,
    KroneckerSequenceMixerConfig as KroneckerSequenceMixerConfig,
    KroneckerState as KroneckerState,
)
from .linear_mixer import (
    LinearSequenceMixer as LinearSequenceMixer,
    LinearSequenceMixerConfig as LinearSequenceMixerConfig,
    LinearState as LinearState,
)
from .linoss import (
    LinOSSSequenceMixer as LinOSSSequenceMixer,
    LinOSSSequenceMixerConfig as LinOSSSequenceMixerConfig,
)
from .lru import (
    LRUSequenceMixer as LRUSequenceMixer,
    LRUSequenceMixerConfig as LRUSequenceMixerConfig,
)
from .mamba import (
    MambaSequenceMixer as MambaSequenceMixer,
    MambaSequenceMixerConfig as MambaSequenceMixerConfig,
    MambaState as MambaState,
)
from .mamba2 import (
    Mamba2SequenceMixer as Mamba2SequenceMixer,
    Mamba2SequenceMixerConfig as Mamba2SequenceMixerConfig,
    Mamba2State as Mamba2State,
)
from .memory import MemoryState as MemoryState
from .min_gru import (
    MinGRUSequenceMixer as MinGRUSequenceMixer,
    MinGRUSequenceMixerConfig as MinGRUSequenceMixerConfig,
)
from .min_lstm import (
    MinLSTMSequenceMixer as MinLSTMSequenceMixer,
    MinLSTMSequenceMixerConfig as MinLSTMSequenceMixerConfig,
)
from .mlstm import (
    MLSTMSequenceMixer as MLSTMSequenceMixer,
    MLSTMSequenceMixerConfig as MLSTMSequenceMixerConfig,
    MLSTMState as MLSTMState,
)
from .mot_attention import MoTAttention as MoTAttention, MoTAttentionConfig as MoTAttentionConfig
from .mot_mixer import MoTMixer as MoTMixer, MoTMixerConfig as MoTMixerConfig
from .operators import (
    AbstractQKVOperator as AbstractQKVOperator,
    AbstractQKVOperatorConfig as AbstractQKVOperatorConfig,
    AbstractRecurrentQKVOperator as AbstractRecurrentQKVOperator,
)
from .qkv import (
    QKVSequenceMixer as QKVSequenceMixer,
    QKVSequenceMixerConfig as QKVSequenceMixerConfig,
)
from .retention import (
    RetentionSequenceMixer as RetentionSequenceMixer,
    RetentionSequenceMixerConfig as RetentionSequenceMixerConfig,
    RetentionState as RetentionState,
)
from .rg_lru import (
    RGLRUSequenceMixer as RGLRUSequenceMixer,
    RGLRUSequenceMixerConfig as RGLRUSequenceMixerConfig,
    RGLRUState as RGLRUState,
)
from .rwkv7 import (
    RWKV7SequenceMixer as RWKV7SequenceMixer,
    RWKV7SequenceMixerConfig as RWKV7SequenceMixerConfig,
)
from .s4 import S4SequenceMixer as S4SequenceMixer, S4SequenceMixerConfig as S4SequenceMixerConfig
from .s4d import (
    S4DSequenceMixer as S4DSequenceMixer,
    S4DSequenceMixerConfig as S4DSequenceMixerConfig,
)
from .s5 import S5SequenceMixer as S5SequenceMixer, S5SequenceMixerConfig as S5SequenceMixerConfig
from .s7 import S7SequenceMixer as S7SequenceMixer, S7SequenceMixerConfig as S7SequenceMixerConfig
from .streams_base import (
    AbstractStreamsMixer as AbstractStreamsMixer,
    AbstractStreamsMixerConfig as AbstractStreamsMixerConfig,
    StreamsState as StreamsState,
)
from .tiled_convolution import (
    TiledConvolution as TiledConvolution,
    TiledConvolutionState as TiledConvolutionState,
)
