from .checkpoint import CheckpointStore as CheckpointStore
from .loop import Interrupted as Interrupted, train as train
from .metrics import read_records as read_records
from .muon import scale_by_muon as scale_by_muon
from .optimizers import (
    learning_rate_schedule as learning_rate_schedule,
    OptimizerConfig as OptimizerConfig,
    parameter_groups as parameter_groups,
)
from .presets import digits_run as digits_run, text_run as text_run
from .run import (
    load_run as load_run,
    read_config as read_config,
    Run as Run,
    RunConfig as RunConfig,
)
from .step import (
    init_state as init_state,
    make_train_step as make_train_step,
    Report as Report,
    TrainState as TrainState,
)
