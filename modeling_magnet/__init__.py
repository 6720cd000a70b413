"""The MAGNET model, usable without the rest of the project.

Importing this package registers MAGNET with transformers' Auto classes, so checkpoints load without remote code.
"""

import transformers

from .configuration_magnet import *
from .configuration_magnet import ATTENTION_MODES
from .infilling_magnet import Gap, InfilledGap, InfillOutput
from .modeling_magnet import *
from .modeling_magnet import FAMILIES, span_attention_rule, span_ids_from_mask

for language_model in FAMILIES.values():
    config = language_model.config_class
    transformers.AutoConfig.register(config.model_type, config)
    for auto_class, path in config().auto_map.items():
        if auto_class != "AutoConfig":
            getattr(transformers, auto_class).register(config, globals()[path.removeprefix("modeling_magnet.")])
