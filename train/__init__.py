"""Joint training of MNTP, SSCL and MSG (section 3.2). Imported as `magnet_train`."""

import importlib

# imported lazily, so that reading texts need not wait for the Trainer
_MODULES = {
    "MagnetTrainer": "trainer",
    "MagnetTrainingArguments": "settings.arguments",
    "ViewArguments": "settings.arguments",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
