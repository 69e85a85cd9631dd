"""A mixture of transformers from flat arguments."""

from collections.abc import Mapping

from ..blocks import MoTBlockConfig
from ..channel_mixers import AbstractChannelMixerConfig, MixtureOfExpertsConfig, SwiGLUConfig
from ..sequence_mixers import AbstractQKVOperatorConfig, AbstractSequenceMixerConfig
from ..stack import StackConfig
from ..streams import Counting
from .mixture_of_transformers import MixtureOfTransformersConfig, ModalityConfig


def mixture_of_transformers(
    features: int,
    modalities: Mapping[str, ModalityConfig],
    n_layer: int,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    qk_norm: bool = True,
    bidirectional: tuple[str, ...] = (),
    counting: Counting = "restart",
    shared: AbstractQKVOperatorConfig | AbstractSequenceMixerConfig | None = None,
    channel_mixer: AbstractChannelMixerConfig = SwiGLUConfig(),
    experts: MixtureOfExpertsConfig | None = None,
    moe_frequency: int = 1,
) -> MixtureOfTransformersConfig:
    """Equal blocks, of which every `moe_frequency`-th has experts.

    - `features`: width of the residual streams.
    - `modalities`: by name, in the order in which the streams come.
    - `n_layer`: number of blocks.
    - `num_heads` to `channel_mixer`: as in `MoTBlockConfig`; beside `shared` nothing of attention.
    - `experts`: the feed-forward layers of the blocks number `moe_frequency`, twice that, and so on,
        counted from one; None for `channel_mixer` in all.

    **Raises:** `ValueError` if `n_layer` or `moe_frequency` is not positive.
    """
    for name, value in (("n_layer", n_layer), ("moe_frequency", moe_frequency)):
        if value < 1:
            raise ValueError(f"`{name}` must be positive. Received {value}.")

    def block(layer: int) -> MoTBlockConfig:
        mixer = channel_mixer if experts is None or layer % moe_frequency else experts
        return MoTBlockConfig(
            tuple(modalities),
            num_heads,
            num_kv_heads,
            qk_norm=qk_norm and shared is None,
            bidirectional=bidirectional,
            counting=counting,
            shared=shared,
            channel_mixer=mixer,
        )

    layers = [block(layer) for layer in range(1, n_layer + 1)]
    return MixtureOfTransformersConfig(
        features, tuple(modalities.items()), StackConfig.from_layers(layers)
    )
