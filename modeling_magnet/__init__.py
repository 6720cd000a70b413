"""The MAGNET model, usable without the rest of the project.

Importing this package registers MAGNET with transformers' Auto classes, so checkpoints load without remote code.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .attention_magnet import span_attention_rule, span_ids_from_mask
from .configuration_magnet import ATTENTION_MODES, MagnetLlamaConfig
from .gaps_magnet import Gap, InfilledGap, InfillOutput
from .modeling_magnet import (
    MagnetLlamaForCausalLM,
    MagnetLlamaForSequenceClassification,
    MagnetLlamaForTokenClassification,
    MagnetLlamaModel,
)
from .streaming_magnet import InfillEvent, InfillStreamer

AutoConfig.register("magnet_llama", MagnetLlamaConfig)
AutoModel.register(MagnetLlamaConfig, MagnetLlamaModel)
AutoModelForCausalLM.register(MagnetLlamaConfig, MagnetLlamaForCausalLM)
AutoModelForTokenClassification.register(MagnetLlamaConfig, MagnetLlamaForTokenClassification)
AutoModelForSequenceClassification.register(MagnetLlamaConfig, MagnetLlamaForSequenceClassification)
