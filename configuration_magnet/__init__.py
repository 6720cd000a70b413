"""Configuration: `MagnetLlamaConfig` and the training recipes (`recipes/*.yaml`)."""

from modeling_magnet.configuration_magnet import ATTENTION_MODES, MagnetLlamaConfig

__all__ = ["ATTENTION_MODES", "MagnetLlamaConfig"]
