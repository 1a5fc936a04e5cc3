"""Attributes of a model: fitted to labelled data, saved beside its weights, and asked for by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_ebm_text.errors import DataError, UsageError, in_one_line
from latent_ebm_text.hub.folders import read_json
from latent_ebm_text.latents import Control, fit_classifier, fit_regressor
from latent_ebm_text.latents.heads import LatentClassifier, LatentHead, head_of
from latent_ebm_text.models.inference import LatentInferenceModel

FORMAT = "latent_ebm_text.attributes/1"
WEIGHTS, SETTINGS = "attributes.safetensors", "attributes.json"
#: Default exponent of `p(c | z)`; 1 is Bayes' rule.
STRENGTH = 4.0
_NEGATION = "not "


class AttributeModel(LatentInferenceModel):
    """A model that reads attributes of data from their latents, and imposes them.

    Attributes are fitted once by `fit_attributes`. `save_pretrained` writes them to `attributes.json` and
    `attributes.safetensors` beside the model's own files, and `from_pretrained` reads them.
    """

    @property
    def attributes(self) -> dict[str, LatentHead]:
        """The attributes by name, see [`~latent_ebm_text.latents.heads.LatentHead`]."""
        heads: dict[str, LatentHead] = self.__dict__.setdefault("_attribute_heads", {})
        return heads

    def fit_attributes(
        self,
        data: Any,
        labels: Mapping[str, Iterable[str | float | None]],
        *,
        num_draws: int = 4,
        batch_size: int = 128,
        seed: int = 0,
        progress: bool = False,
        **named_data: Any,
    ) -> dict[str, dict[str, Any]]:
        """Fits attributes to labelled data, and adds them to `attributes`; one of the same name is replaced.

        Labels that are strings become a calibrated classifier, and numbers a regression. The latents of an example
        are draws of the encoder, or of posterior chains if the model has none.

        ```python
        model.fit_attributes(texts, {"sentiment": ["good", "bad", None, ...], "length": [5, 12, 7, ...]})
        ```

        Args:
            data: The data.
            labels: For every attribute one label per example; `None` or nan where it is not known.
            num_draws: Latents per example.
            batch_size: Examples per batch.
            seed: Seed of the latents and of the training.
            progress: Whether to show a progress bar.
            **named_data: Further arguments of the data, such as `tokenizer`.

        Returns:
            For every attribute its metrics on held-out examples, see
            [`~latent_ebm_text.latents.classifier.fit_classifier`] and
            [`~latent_ebm_text.latents.regression.fit_regressor`].

        Raises:
            UsageError: If the data cannot be read, or there are not as many labels as examples.
            DataError: If an attribute has too few labels.
        """
        read = self._read(data, **named_data)
        if not isinstance(labels, Mapping) or not labels:
            raise UsageError("labels are given by attribute: {'sentiment': ['good', 'bad', ...]}")
        columns = {name: [_known(label) for label in column] for name, column in labels.items()}
        for name, column in columns.items():
            if len(column) != len(read):
                raise UsageError(f"{len(read)} examples need as many labels of {name!r}, got {len(column)}")
        draws = self._labelled_draws(read, num_draws, batch_size, seed, progress)
        for name, column in columns.items():
            rows = [row for row, label in enumerate(column) if label is not None]
            known: list[Any] = [column[row] for row in rows]
            is_number = bool(known) and all(isinstance(label, float) for label in known)
            fit = fit_regressor if is_number else fit_classifier
            self.attributes[name] = fit(name, draws[:, rows], known, seed=seed)
        return {name: self.attributes[name].report for name in columns}

    def _labelled_draws(self, read: Any, num_draws: int, batch_size: int, seed: int, progress: bool) -> Tensor:
        """Latents of data, `(num_draws, n, latent_dim)`, by the encoder if there is one, otherwise by chains."""
        if num_draws < 1:
            raise UsageError(f"num_draws must be a positive integer, got {num_draws}")
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        if self.encoder is None:
            generator = torch.Generator(self.device).manual_seed(seed)
            return self.posterior_draws(read, num_draws=num_draws, generator=generator, **options)
        proposal, generator = self.encoder_proposals(read, **options), torch.Generator().manual_seed(seed)
        return torch.stack([proposal.sample(generator) for _ in range(num_draws)])

    def controls(
        self,
        attributes: Mapping[str, str | float],
        strength: float | Mapping[str, float] = STRENGTH,
    ) -> list[Control]:
        """The requirements that attributes by name stand for, as `sample_controlled` takes them.

        Args:
            attributes: What is wanted of each attribute: a class, `"not ..."` for any other class, or a number.
            strength: Exponent of each factor `p(c | z)`, one for all or one per attribute; 1 is Bayes' rule.

        Raises:
            UsageError: If an attribute or a value is not known, which the message lists, or a strength is not
                positive.
        """
        if not self.attributes:
            raise UsageError("this model knows no attributes: fit them to labelled data by model.fit_attributes(...)")
        if not attributes:
            raise UsageError(f"no attribute was asked for; the model knows {', '.join(self.attributes)}")
        strengths = strength if isinstance(strength, Mapping) else dict.fromkeys(attributes, strength)
        if unknown := [name for name in (*attributes, *strengths) if name not in self.attributes]:
            raise UsageError(f"unknown attribute {unknown[0]!r}; the model knows {', '.join(self.attributes)}")
        return [
            _control(self.attributes[name], value, strengths.get(name, STRENGTH)) for name, value in attributes.items()
        ]

    # -------- files

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves the model as transformers does, and its attributes beside it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if not self.attributes:
            for file in (SETTINGS, WEIGHTS):  # of a model that was saved there before
                (Path(save_directory) / file).unlink(missing_ok=True)
            return
        from safetensors.torch import save_file

        settings = {"format": FORMAT, "attributes": [head.settings() for head in self.attributes.values()]}
        weights = {
            f"{number}.{name}": weight.cpu().contiguous()
            for number, head in enumerate(self.attributes.values())
            for name, weight in head.state_dict().items()
        }
        save_file(weights, str(Path(save_directory) / WEIGHTS))
        (Path(save_directory) / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Loads a model, see [`~latent_ebm_text.models.safe_loading.SafetensorsModel`], and its attributes.

        Raises:
            UsageError: As there.
            DataError: As there, or if the files of the attributes are damaged or belong to another model.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            settings, weights = (_cached(pretrained_model_name_or_path, file, kwargs) for file in (SETTINGS, WEIGHTS))
            if settings is not None:
                model.attributes.update(_read_attributes(settings, weights, model.config.latent_dim))
        return loaded


def _known(label: Any) -> str | float | None:
    """A label as a string or a float, or `None` where it is missing."""
    if hasattr(label, "item") and not isinstance(label, str):  # of NumPy or torch
        label = label.item()
    if label is None or isinstance(label, str):
        return label
    if isinstance(label, bool) or not isinstance(label, int | float):
        raise UsageError(f"labels are strings, numbers, or None where they are missing; got {label!r}")
    return None if math.isnan(label) else float(label)


def _control(head: LatentHead, value: str | float, strength: float) -> Control:
    """A requirement; "not ..." negates unless a class has that very name."""
    is_class = isinstance(head, LatentClassifier) and value in head.classes
    if isinstance(value, str) and value.startswith(_NEGATION) and not is_class:
        return Control(head, value.removeprefix(_NEGATION).strip(), strength, negated=True)
    return Control(head, value, strength)


def _cached(name: Any, file: str, options: Mapping[str, Any]) -> str | None:
    """The local path of a file of a model, a folder or an id of the Hub, or `None` if the model has no such file."""
    from transformers.utils import cached_file

    where = {
        key: options[key]
        for key in ("subfolder", "revision", "token", "cache_dir", "local_files_only")
        if options.get(key) is not None
    }
    found: str | None = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False, **where
    )
    return found


def _read_attributes(settings_path: str, weights_path: str | None, latent_dim: int) -> dict[str, LatentHead]:
    """The attributes that `save_pretrained` wrote, by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    settings = read_json(Path(settings_path))
    if settings.get("format") != FORMAT:
        raise DataError(f"{settings_path} holds no attributes (format {settings.get('format')!r}): fit them again")
    try:
        if weights_path is None:
            raise ValueError(f"{WEIGHTS} is missing")
        weights, heads = load_file(weights_path), []
        for number, own in enumerate(settings["attributes"]):
            prefix = f"{number}."
            part = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            heads.append(head_of(own, part))
        if wrong := [head for head in heads if head.hidden.in_features != latent_dim]:
            raise ValueError(f"{wrong[0].attribute} reads {wrong[0].hidden.in_features} of {latent_dim} dimensions")
        return {head.attribute: head for head in heads}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise DataError(f"the attributes in {settings_path} cannot be read: {in_one_line(error)}") from error
