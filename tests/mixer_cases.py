"""The one table of sequence mixers: a mixer adds a line here, and inherits every law."""

import dataclasses
from dataclasses import dataclass, field
from typing import get_args, Literal

import linax_like as lx
from linax_like.sequence_mixers import AbstractSequenceMixerConfig


Law = Literal["mask", "segments", "time_split", "scale"]


@dataclass(frozen=True)
class MixerCase:
    """A configuration to which the laws apply.

    - `config`: small; every test builds it at width 8.
    - `waived`: laws that do not hold, each with its reason. Only circular boundaries (`mask`,
        `segments`), linear and Kronecker mixers (`time_split`), spatial grids (`segments`), and
        zero-initialised or parity configurations (`scale`) may be waived.
    - `splits_time`: False while `context.axis_name` is refused with an error.
    - `variant`: another configuration of a class in the table, whose other case shows the laws of
        dtypes, lengths, sizes and batches; here those of steps, splits, documents and padding.
    - `free`: the mixer does no arithmetic.
    - `max_length`: the longest sequence that one call is tested with.
    - `max_steps`: how many steps it is tested with, where a step takes time in proportion to them.
    - `leak`: how much of the future reaches the past, relative to the largest influence: an FFT
        convolution mixes all positions, and only rounding separates what it adds from zero.
    """

    id: str
    config: AbstractSequenceMixerConfig
    waived: dict[Law, str] = field(default_factory=dict)
    splits_time: bool = True
    variant: bool = False
    free: bool = False
    max_length: int = 65_536
    max_steps: int = 65_536
    leak: float = 0.0

    def __post_init__(self):
        unknown = set(self.waived) - set(get_args(Law))
        assert not unknown, f"{self.id}: {unknown} cannot be waived"
        assert all(self.waived.values()), f"{self.id}: a waiver needs its reason"


# An FFT of a few dozen float32 numbers rounds to about 1e-7 of the largest of them.
FFT_LEAK = 1e-6

CASES = [
    MixerCase("attention", lx.AttentionSequenceMixerConfig(), splits_time=False, max_length=512),
    MixerCase(
        "attention_everywhere",
        lx.AttentionSequenceMixerConfig(causal=False),
        splits_time=False,
        max_length=512,
    ),
    MixerCase(
        "attention_window",
        lx.AttentionSequenceMixerConfig(
            4, 2, 4, window=5, qk_norm=True, norm_over="all", output_gate=True, soft_cap=0.5
        ),
        splits_time=False,
        max_length=512,
        variant=True,
    ),
    MixerCase(
        "bidirectional",
        lx.BidirectionalSequenceMixerConfig(lx.S5SequenceMixerConfig(8), merge="project"),
    ),
    MixerCase(
        "centaurus",
        lx.CentaurusSequenceMixerConfig(state_dim=4, sub_state_dim=3),
        leak=FFT_LEAK,
    ),
    MixerCase(
        "centaurus_full",
        lx.CentaurusSequenceMixerConfig("full", sub_state_dim=2, discretization="bilinear"),
        leak=FFT_LEAK,
        variant=True,
    ),
    MixerCase(
        "ckconv_circular",
        lx.CKConvSequenceMixerConfig(
            ("circular",), lx.RandomFourierKernelConfig(8, 1, 0.5), extent=8.0
        ),
        waived={
            "mask": "the circle of a padded sequence has another length",
            "segments": "documents cannot share a circle",
        },
        variant=True,
    ),
    MixerCase(
        "ckconv_zero",
        lx.CKConvSequenceMixerConfig(
            ("zero",),
            lx.SIRENKernelConfig(8, 1, (1.0,), frequency="learned"),
            lx.ExponentialMaskConfig(),
            extent=16.0,
            spacing=0.5,
            max_documents=3,
        ),
    ),
    MixerCase(
        "delta_net",
        lx.DeltaNetSequenceMixerConfig(
            2,
            head_dim=4,
            num_value_heads=4,
            value_head_dim=3,
            negative_eigenvalues=True,
            output_gate=True,
            chunk=5,
        ),
    ),
    MixerCase(
        "gated_delta_net",
        lx.GatedDeltaNetSequenceMixerConfig(2, head_dim=4, num_value_heads=4, chunk=5),
    ),
    MixerCase(
        "gated_delta_product",
        lx.GatedDeltaProductSequenceMixerConfig(
            head_dim=4, value_head_dim=3, short_width=2, output_gate=False, chunk=3
        ),
    ),
    MixerCase(
        "gla",
        lx.GLASequenceMixerConfig(
            2, num_value_heads=4, value_head_dim=6, gate_rank=3, short_width=3, chunk=5
        ),
    ),
    MixerCase(
        "grid_orders",
        lx.GridOrdersSequenceMixerConfig(
            lx.LRUSequenceMixerConfig(state_dim=4), spatial_ndim=1, merge="mean", shared=True
        ),
    ),
    MixerCase("hgrn", lx.HGRNSequenceMixerConfig(2, lower_bound=0.3)),
    MixerCase(
        "hyena",
        lx.HyenaSequenceMixerConfig(
            # A higher frequency amplifies rounding beyond what the laws allow.
            filter=lx.ImplicitFilterConfig(8, bands=4, sine_frequency=3.0, time_scale=16),
            max_documents=3,
        ),
        max_steps=1024,
        leak=FFT_LEAK,
    ),
    MixerCase(  # around a causal CKConv, which obeys what this does
        "hyena_operator",
        lx.QKVSequenceMixerConfig(
            lx.HyenaOperatorConfig(
                convolution=lx.CKConvSequenceMixerConfig(
                    kernel=lx.SIRENKernelConfig(8, 1, frequencies=(0.5, 2.0), off_block_scale=0.1),
                    mask=lx.GaussianMaskConfig((0.5, 2.0), parametrization="log"),
                    extent=16.0,
                    num_heads=2,
                    max_documents=3,
                ),
                short_bias=True,
            )
        ),
        max_steps=1024,
        leak=FFT_LEAK,
    ),
    MixerCase(
        "hyena_order3",
        lx.HyenaSequenceMixerConfig(
            3,
            short_width=1,
            filter=lx.ImplicitFilterConfig(8, 1, decay_shift=0.1),
            max_documents=3,
        ),
        max_steps=1024,
        leak=FFT_LEAK,
        variant=True,
    ),
    MixerCase("identity", lx.IdentitySequenceMixerConfig(), free=True),
    MixerCase(  # of fewer values, all can be small, and their norm then magnifies bfloat16's rounding
        "kda",
        lx.KDASequenceMixerConfig(
            2, num_value_heads=4, value_head_dim=6, negative_eigenvalues=True, chunk=5
        ),
    ),
    MixerCase(
        "kronecker",
        lx.KroneckerSequenceMixerConfig(64, rank=2, block_size=3, max_documents=3),
        splits_time=False,
        max_length=64,
    ),
    MixerCase(
        "linear",
        lx.LinearSequenceMixerConfig(64),
        {"scale": "its published initial values are small, 0.01"},
        splits_time=False,
        max_length=64,
    ),
    MixerCase("linoss", lx.LinOSSSequenceMixerConfig(8, discretization="IM", damping=False)),
    MixerCase("linoss_damped", lx.LinOSSSequenceMixerConfig(state_dim=8), variant=True),
    MixerCase("lru", lx.LRUSequenceMixerConfig(state_dim=8)),
    MixerCase("mamba", lx.MambaSequenceMixerConfig(4)),
    MixerCase(
        "mamba2",
        lx.Mamba2SequenceMixerConfig(4, head_dim=4, num_groups=2, dt_limits=(0.01, 0.5), chunk=5),
    ),
    MixerCase(
        "mamba_complex",
        lx.MambaSequenceMixerConfig(
            4,
            expand=1,
            short_width=2,
            dt_rank=2,
            discretization="zoh",
            eigenvalues="complex",
            timestep_decay="learned",
            proj_bias=True,
        ),
        variant=True,
    ),
    MixerCase("min_gru", lx.MinGRUSequenceMixerConfig(candidate="positive")),
    MixerCase("min_lstm", lx.MinLSTMSequenceMixerConfig(expand=2)),
    MixerCase("mlstm", lx.MLSTMSequenceMixerConfig(2, short_width=3, soft_cap=5.0, chunk=5)),
    MixerCase(
        "qkv_attention",
        lx.QKVSequenceMixerConfig(
            lx.AttentionOperatorConfig(2, qk_norm="l2", learn_cosine_scale=True, cosine_scale=4.0),
            qkv_bias=True,
            out_proj_bias=True,
        ),
        {"scale": "its published projections begin with a third of attention's variance"},
        splits_time=False,
        max_length=512,
        variant=True,
    ),
    MixerCase(
        "retention",
        lx.RetentionSequenceMixerConfig(
            2, head_dim=4, num_value_heads=4, value_head_dim=3, decay="gated", chunk=5
        ),
    ),
    MixerCase("rg_lru", lx.RGLRUSequenceMixerConfig(lru_width=12, num_heads=2)),
    MixerCase(
        "rg_lru_complex",
        lx.RGLRUSequenceMixerConfig(states="complex", short_width=2),
        variant=True,
    ),
    MixerCase("rwkv7", lx.RWKV7SequenceMixerConfig(2, head_dim=3, decay_rank=2, chunk=5)),
    MixerCase("s4", lx.S4SequenceMixerConfig(state_dim=8), leak=FFT_LEAK),
    MixerCase(
        "s4_legt", lx.S4SequenceMixerConfig(4, n_ssm=2, init="legt"), leak=FFT_LEAK, variant=True
    ),
    MixerCase("s4d", lx.S4DSequenceMixerConfig(state_dim=8), leak=FFT_LEAK),
    MixerCase(
        "s4d_real",
        lx.S4DSequenceMixerConfig(4, init="real", discretization="bilinear"),
        leak=FFT_LEAK,
        variant=True,
    ),
    MixerCase("s5", lx.S5SequenceMixerConfig(state_dim=8)),
    MixerCase(
        "s5_bidirectional",
        lx.S5SequenceMixerConfig(8, bidirectional=True, conj_sym=False, discretization="bilinear"),
        variant=True,
    ),
    MixerCase("s7", lx.S7SequenceMixerConfig(state_dim=4)),
]


def default_config(case: MixerCase) -> AbstractSequenceMixerConfig:
    """The defaults of the case's class, at full size."""
    required = {
        f.name: getattr(case.config, f.name)
        for f in dataclasses.fields(case.config)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    return type(case.config)(**required)


# One case of every class and every operator in it, whose defaults some laws are about.
DEFAULTS = list({default_config(case): case for case in CASES}.values())
