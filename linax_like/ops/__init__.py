from .attention import attention as attention
from .complex_pair import ComplexPair as ComplexPair
from .cross_entropy import (
    cross_entropy as cross_entropy,
    linear_cross_entropy as linear_cross_entropy,
    SummedLoss as SummedLoss,
)
from .delta_product import (
    delta_product as delta_product,
    delta_product_step as delta_product_step,
)
from .delta_rule import delta_rule as delta_rule, delta_rule_step as delta_rule_step
from .discretize import (
    Discretization as Discretization,
    discretize_decay as discretize_decay,
    discretize_gain as discretize_gain,
)
from .gated_linear_attention import (
    gated_linear_attention as gated_linear_attention,
    gated_linear_attention_step as gated_linear_attention_step,
)
from .generalized_delta_rule import (
    generalized_delta_rule as generalized_delta_rule,
    generalized_delta_rule_step as generalized_delta_rule_step,
)
from .grid_conv import (
    Boundary as Boundary,
    grid_conv as grid_conv,
    grid_conv_by_feature as grid_conv_by_feature,
)
from .grid_short_conv import grid_short_conv as grid_short_conv
from .linear_scan import (
    final_state as final_state,
    incoming_state as incoming_state,
    linear_scan as linear_scan,
)
from .long_conv import long_conv as long_conv
from .oscillator_scan import (
    oscillator_scan as oscillator_scan,
    oscillator_step as oscillator_step,
    Oscillators as Oscillators,
    OscillatorState as OscillatorState,
)
from .patches import patchify as patchify, unpatchify as unpatchify
from .selective_scan import selective_scan as selective_scan, selective_step as selective_step
from .short_conv import short_conv as short_conv, short_conv_step as short_conv_step
from .ssd import ssd as ssd, ssd_step as ssd_step
