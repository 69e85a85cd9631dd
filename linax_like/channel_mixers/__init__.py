from .base import (
    AbstractChannelMixer as AbstractChannelMixer,
    AbstractChannelMixerConfig as AbstractChannelMixerConfig,
    AbstractRoutedChannelMixer as AbstractRoutedChannelMixer,
)
from .glu import (
    GeGLUConfig as GeGLUConfig,
    GLU as GLU,
    GLUConfig as GLUConfig,
    SwiGLUConfig as SwiGLUConfig,
)
from .mixture_of_experts import (
    MixtureOfExperts as MixtureOfExperts,
    MixtureOfExpertsConfig as MixtureOfExpertsConfig,
)
from .mlp import MLP as MLP, MLPConfig as MLPConfig
from .routing import (
    balance as balance,
    router_biases as router_biases,
    RouterBias as RouterBias,
)
