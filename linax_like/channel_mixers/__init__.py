from .base import (
    AbstractChannelMixer as AbstractChannelMixer,
    AbstractChannelMixerConfig as AbstractChannelMixerConfig,
)
from .glu import (
    GeGLUConfig as GeGLUConfig,
    GLU as GLU,
    GLUConfig as GLUConfig,
    SwiGLUConfig as SwiGLUConfig,
)
from .mlp import MLP as MLP, MLPConfig as MLPConfig
