from .base import (
    AbstractImplicitKernel as AbstractImplicitKernel,
    AbstractImplicitKernelConfig as AbstractImplicitKernelConfig,
)
from .film import KernelFiLMConfig as KernelFiLMConfig
from .masks import (
    AbstractKernelMask as AbstractKernelMask,
    AbstractKernelMaskConfig as AbstractKernelMaskConfig,
    ExponentialMaskConfig as ExponentialMaskConfig,
    GaussianMaskConfig as GaussianMaskConfig,
)
from .random_fourier import (
    RandomFourierKernel as RandomFourierKernel,
    RandomFourierKernelConfig as RandomFourierKernelConfig,
)
from .siren import SIRENKernel as SIRENKernel, SIRENKernelConfig as SIRENKernelConfig
