"""Makes the Auto classes of transformers know this library's models, without importing either ahead of need.

The Auto classes hold names and import what a name stands for when it is asked for; here the names are put in, with
this package, itself lazy, as the module to look in. If transformers has not been imported yet, a finder waits for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_MODEL_TYPE, _CONFIG, _MODEL = "latent_ebm_text", "LatentEBMTextConfig", "LatentEBMForTextGeneration"


def _add_config(auto: ModuleType) -> None:
    auto.CONFIG_MAPPING_NAMES[_MODEL_TYPE] = _CONFIG
    auto.CONFIG_MAPPING._modules[_MODEL_TYPE] = sys.modules["latent_ebm_text"]


def _add_model(auto: ModuleType) -> None:
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[_MODEL_TYPE] = _MODEL
    auto.MODEL_FOR_CAUSAL_LM_MAPPING._reverse_config_mapping[_CONFIG] = _MODEL_TYPE
    auto.MODEL_FOR_CAUSAL_LM_MAPPING._modules[_MODEL_TYPE] = sys.modules["latent_ebm_text"]


_ADDITIONS = {
    "transformers.models.auto.configuration_auto": _add_config,
    "transformers.models.auto.modeling_auto": _add_model,
}


class _AutoFinder(MetaPathFinder):
    """Finds the two modules as usual, and adds the names once they have run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _ADDITIONS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_add(module: ModuleType) -> None:
            run(module)
            with suppress(AttributeError):  # should its insides change: importing the model registers it all the same
                _ADDITIONS[fullname](module)

        spec.loader.exec_module = run_and_add  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Adds the names now where transformers is imported already, and later where it is not."""
    sys.meta_path.insert(0, _AutoFinder())
    for name, add in _ADDITIONS.items():
        if name in sys.modules:
            add(sys.modules[name])
