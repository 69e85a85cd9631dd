from . import ops as ops
from ._version import __version__ as __version__
from .blocks import (
    AbstractBlock as AbstractBlock,
    AbstractBlockConfig as AbstractBlockConfig,
    ResidualBlock as ResidualBlock,
    ResidualBlockConfig as ResidualBlockConfig,
)
from .channel_mixers import (
    AbstractChannelMixer as AbstractChannelMixer,
    AbstractChannelMixerConfig as AbstractChannelMixerConfig,
    AbstractRoutedChannelMixer as AbstractRoutedChannelMixer,
    GeGLUConfig as GeGLUConfig,
    GLU as GLU,
    GLUConfig as GLUConfig,
    MixtureOfExperts as MixtureOfExperts,
    MixtureOfExpertsConfig as MixtureOfExpertsConfig,
    MLP as MLP,
    MLPConfig as MLPConfig,
    SwiGLUConfig as SwiGLUConfig,
)
from .config import AbstractConfig as AbstractConfig
from .context import Cursor as Cursor, SequenceContext as SequenceContext
from .encoders import (
    AbstractEncoder as AbstractEncoder,
    AbstractEncoderConfig as AbstractEncoderConfig,
    LinearEncoder as LinearEncoder,
    LinearEncoderConfig as LinearEncoderConfig,
    TokenEmbedding as TokenEmbedding,
    TokenEmbeddingConfig as TokenEmbeddingConfig,
)
from .grid_positions import axial_rope as axial_rope, grid_coordinates as grid_coordinates
from .heads import (
    AbstractHead as AbstractHead,
    AbstractHeadConfig as AbstractHeadConfig,
    ClassificationHead as ClassificationHead,
    ClassificationHeadConfig as ClassificationHeadConfig,
    LanguageModelHead as LanguageModelHead,
    LanguageModelHeadConfig as LanguageModelHeadConfig,
    Logits as Logits,
    RegressionHead as RegressionHead,
    RegressionHeadConfig as RegressionHeadConfig,
    Values as Values,
)
from .inference import generate as generate, Generation as Generation
from .initializers import (
    AbstractInitializerConfig as AbstractInitializerConfig,
    SmallInitializerConfig as SmallInitializerConfig,
    TruncatedNormalInitializerConfig as TruncatedNormalInitializerConfig,
    WangInitializerConfig as WangInitializerConfig,
)
from .interop import (
    load_pretrained as load_pretrained,
    save_pretrained as save_pretrained,
)
from .models import (
    HybridInitializerConfig as HybridInitializerConfig,
    LanguageModel as LanguageModel,
    LanguageModelConfig as LanguageModelConfig,
    presets as presets,
    SequenceModel as SequenceModel,
    SequenceModelConfig as SequenceModelConfig,
    token_loss as token_loss,
)
from .norms import (
    AbstractNorm as AbstractNorm,
    AbstractNormConfig as AbstractNormConfig,
    LayerNorm as LayerNorm,
    LayerNormConfig as LayerNormConfig,
    RMSNorm as RMSNorm,
    RMSNormConfig as RMSNormConfig,
)
from .parameters import (
    Buffer as Buffer,
    count_parameters as count_parameters,
    trainable as trainable,
)
from .paths import named_arrays as named_arrays, with_arrays as with_arrays
from .positions import (
    AbstractRopeScalingConfig as AbstractRopeScalingConfig,
    LearnedPositions as LearnedPositions,
    LearnedPositionsConfig as LearnedPositionsConfig,
    LinearRopeScalingConfig as LinearRopeScalingConfig,
    Llama3RopeScalingConfig as Llama3RopeScalingConfig,
    SinusoidalPositions as SinusoidalPositions,
    SinusoidalPositionsConfig as SinusoidalPositionsConfig,
)
from .sequence_mixers import (
    AbstractQKVOperator as AbstractQKVOperator,
    AbstractQKVOperatorConfig as AbstractQKVOperatorConfig,
    AbstractRecurrentMixer as AbstractRecurrentMixer,
    AbstractRecurrentQKVOperator as AbstractRecurrentQKVOperator,
    AbstractSequenceMixer as AbstractSequenceMixer,
    AbstractSequenceMixerConfig as AbstractSequenceMixerConfig,
    AttentionOperator as AttentionOperator,
    AttentionOperatorConfig as AttentionOperatorConfig,
    AttentionSequenceMixer as AttentionSequenceMixer,
    AttentionSequenceMixerConfig as AttentionSequenceMixerConfig,
    AttentionState as AttentionState,
    BidirectionalSequenceMixer as BidirectionalSequenceMixer,
    BidirectionalSequenceMixerConfig as BidirectionalSequenceMixerConfig,
    CentaurusSequenceMixer as CentaurusSequenceMixer,
    CentaurusSequenceMixerConfig as CentaurusSequenceMixerConfig,
    DeltaNetSequenceMixer as DeltaNetSequenceMixer,
    DeltaNetSequenceMixerConfig as DeltaNetSequenceMixerConfig,
    fold as fold,
    GatedDeltaNetSequenceMixer as GatedDeltaNetSequenceMixer,
    GatedDeltaNetSequenceMixerConfig as GatedDeltaNetSequenceMixerConfig,
    GatedDeltaProductSequenceMixer as GatedDeltaProductSequenceMixer,
    GatedDeltaProductSequenceMixerConfig as GatedDeltaProductSequenceMixerConfig,
    GLASequenceMixer as GLASequenceMixer,
    GLASequenceMixerConfig as GLASequenceMixerConfig,
    HGRNSequenceMixer as HGRNSequenceMixer,
    HGRNSequenceMixerConfig as HGRNSequenceMixerConfig,
    HyenaSequenceMixer as HyenaSequenceMixer,
    HyenaSequenceMixerConfig as HyenaSequenceMixerConfig,
    HyenaState as HyenaState,
    IdentitySequenceMixer as IdentitySequenceMixer,
    IdentitySequenceMixerConfig as IdentitySequenceMixerConfig,
    ImplicitFilter as ImplicitFilter,
    ImplicitFilterConfig as ImplicitFilterConfig,
    KDASequenceMixer as KDASequenceMixer,
    KDASequenceMixerConfig as KDASequenceMixerConfig,
    LinOSSSequenceMixer as LinOSSSequenceMixer,
    LinOSSSequenceMixerConfig as LinOSSSequenceMixerConfig,
    LRUSequenceMixer as LRUSequenceMixer,
    LRUSequenceMixerConfig as LRUSequenceMixerConfig,
    Mamba2SequenceMixer as Mamba2SequenceMixer,
    Mamba2SequenceMixerConfig as Mamba2SequenceMixerConfig,
    Mamba2State as Mamba2State,
    MambaSequenceMixer as MambaSequenceMixer,
    MambaSequenceMixerConfig as MambaSequenceMixerConfig,
    MambaState as MambaState,
    MemoryState as MemoryState,
    MinGRUSequenceMixer as MinGRUSequenceMixer,
    MinGRUSequenceMixerConfig as MinGRUSequenceMixerConfig,
    MinLSTMSequenceMixer as MinLSTMSequenceMixer,
    MinLSTMSequenceMixerConfig as MinLSTMSequenceMixerConfig,
    MLSTMSequenceMixer as MLSTMSequenceMixer,
    MLSTMSequenceMixerConfig as MLSTMSequenceMixerConfig,
    MLSTMState as MLSTMState,
    QKVSequenceMixer as QKVSequenceMixer,
    QKVSequenceMixerConfig as QKVSequenceMixerConfig,
    RetentionSequenceMixer as RetentionSequenceMixer,
    RetentionSequenceMixerConfig as RetentionSequenceMixerConfig,
    RetentionState as RetentionState,
    RGLRUSequenceMixer as RGLRUSequenceMixer,
    RGLRUSequenceMixerConfig as RGLRUSequenceMixerConfig,
    RGLRUState as RGLRUState,
    RWKV7SequenceMixer as RWKV7SequenceMixer,
    RWKV7SequenceMixerConfig as RWKV7SequenceMixerConfig,
    S4DSequenceMixer as S4DSequenceMixer,
    S4DSequenceMixerConfig as S4DSequenceMixerConfig,
    S4SequenceMixer as S4SequenceMixer,
    S4SequenceMixerConfig as S4SequenceMixerConfig,
    S5SequenceMixer as S5SequenceMixer,
    S5SequenceMixerConfig as S5SequenceMixerConfig,
    S7SequenceMixer as S7SequenceMixer,
    S7SequenceMixerConfig as S7SequenceMixerConfig,
)
from .stack import Stack as Stack, StackConfig as StackConfig, StackState as StackState
from .tokenizers import ByteTokenizer as ByteTokenizer, load_tokenizer as load_tokenizer
from .types import Aux as Aux
