from .complex_pair import ComplexPair as ComplexPair
from .discretize import (
    discretize_decay as discretize_decay,
    discretize_gain as discretize_gain,
    Discretization as Discretization,
)
from .linear_scan import final_state as final_state, linear_scan as linear_scan
