"""Makes the Auto classes of transformers know these models, whichever of the two packages is imported first.

Registering a model needs its class, and so torch, which takes seconds to import. So `import latent_ebm_text` registers
nothing itself: each registration is made when transformers imports the Auto classes that it is meant for.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

#: Modules of transformers with Auto classes, and ours that register with them when they are imported.
_REGISTRANTS = {
    "transformers.models.auto.configuration_auto": ("configuration",),
    "transformers.models.auto.image_processing_auto": ("image_processing",),
    "transformers.models.auto.modeling_auto": ("modeling_text", "modeling_image"),
}


def register_with_transformers() -> None:
    """Registers now with the Auto classes that are imported already, and with the others once they are."""
    for name in filter(sys.modules.__contains__, _REGISTRANTS):
        _register(name)
    sys.meta_path.insert(0, _RegisteringFinder())


def _register(name: str) -> None:
    for registrant in _REGISTRANTS[name]:
        importlib.import_module(f"latent_ebm_text.{registrant}")


class _RegisteringFinder(importlib.abc.MetaPathFinder):
    """Finds the modules with Auto classes where they are, and gives them a loader that registers afterwards."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _REGISTRANTS else None
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
        _register(module.__name__)

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        return getattr(self._loader, name)  # source and file name, which tracebacks ask for
