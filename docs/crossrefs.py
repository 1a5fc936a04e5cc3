"""An extension of the API reference: names in brackets, as docstrings of transformers write them, become links.

[`LangevinSampler`] is looked up in the module of the docstring; of the path
[`~latent_ebm_text.latents.samplers.LangevinSampler`] the last part is shown. A name that is not in the reference
gets no link.
"""

import re
from typing import Any

import griffe

REFERENCE = re.compile(r"\[`(~?)([A-Za-z_][\w.]*)`\](?![\[(])")


class Crossrefs(griffe.Extension):
    """Rewrites every docstring once its package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Called by griffe for every package."""
        self._visit(pkg)

    def _visit(self, thing: griffe.Object) -> None:
        if thing.docstring:
            thing.docstring.value = REFERENCE.sub(lambda match: _link(thing, *match.groups()), thing.docstring.value)
        for member in thing.members.values():
            if not member.is_alias:
                self._visit(member)


def _link(thing: griffe.Object, shortened: str, name: str) -> str:
    path, shown = name, name.rpartition(".")[2] if shortened else name
    if not shortened:
        first, _, rest = name.partition(".")
        try:
            path = ".".join(filter(None, (thing.resolve(first), rest)))
        except griffe.NameResolutionError:
            return f"`{shown}`"
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'
