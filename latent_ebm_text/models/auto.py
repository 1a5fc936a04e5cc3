"""Makes the Auto classes of transformers know these models, whichever of the two packages is imported first.

Registering a model needs its class, and so torch, which takes seconds to import. So `import latent_ebm_text` registers
nothing itself: each registration is made when transformers imports the Auto classes that it is meant for. The modules
of configurations and models register their classes themselves, at their end: transformers may import its Auto classes
while they are being imported, and would then find them incomplete.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def _register_configurations() -> None:
    importlib.import_module("latent_ebm_text.models.configuration")


def _register_image_processor() -> None:
    # From where it is defined: without torchvision older releases have a dummy of that name in `transformers` itself.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor
    from transformers.utils import is_vision_available

    if not is_vision_available():  # without Pillow transformers has no image processors; text models need none
        return
    from latent_ebm_text.data.image_processing import LatentEBMImageProcessor
    from latent_ebm_text.models.configuration import LatentEBMImageConfig

    classes = {"pil": LatentEBMImageProcessor}
    AutoImageProcessor.register(LatentEBMImageConfig, image_processor_classes=classes, exist_ok=True)


def _register_models() -> None:
    for name in ("modeling_text", "modeling_image"):
        importlib.import_module(f"latent_ebm_text.models.{name}")


#: Modules of transformers with Auto classes, and what registers with them once they are imported.
_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": _register_configurations,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
    "transformers.models.auto.modeling_auto": _register_models,
}


def register_with_transformers() -> None:
    """Registers now with the Auto classes that are imported already, and with the others once they are."""
    for name in filter(sys.modules.__contains__, _REGISTRATIONS):
        _REGISTRATIONS[name]()
    sys.meta_path.insert(0, _RegisteringFinder())


class _RegisteringFinder(importlib.abc.MetaPathFinder):
    """Finds the modules with Auto classes where they are, and gives them a loader that registers afterwards."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _REGISTRATIONS else None
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _REGISTRATIONS[module.__name__]()

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        return getattr(self._loader, name)  # source and file name, which tracebacks ask for
