"""Attributes of latents: classifiers p(c | z), and densities p(z) p(c | z)^w that impose what they read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.samplers.base import ScoredLogDensity, frozen_log_density

FORMAT = "latent_ebm_text.latent_classifier/1"
_WEIGHTS, _SETTINGS = "classifier.safetensors", "classifier.json"


class LatentClassifier(nn.Module):
    """A small network that reads an attribute from a latent, `p(c | z)`, calibrated by a temperature.

    One hidden layer on standardised latents. [`~latent_ebm_text.latents.fit_classifier`] makes one from labelled
    latents. Smooth in z (GELU), since chains follow its score, which is written out by hand.

    Args:
        attribute: What is read, such as `"topic"`.
        classes: The values of the attribute, at least two.
        latent_dim: Size of the latent.
        hidden_size: Width of the hidden layer.

    Attributes:
        report: JSON-able figures on data held out, where the classifier has been fitted.

    Raises:
        UsageError: If there are fewer than two classes, one is named twice, or a size is not positive.
    """

    mean: Tensor
    std: Tensor
    temperature: Tensor

    def __init__(self, attribute: str, classes: Sequence[str], latent_dim: int, hidden_size: int = 64) -> None:
        super().__init__()
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise UsageError(f"a classifier of {attribute!r} needs two or more different classes, got {list(classes)}")
        if min(latent_dim, hidden_size) < 1:
            raise UsageError(f"latent_dim and hidden_size must be positive, got {latent_dim} and {hidden_size}")
        self.attribute, self.classes = attribute, tuple(classes)
        self.report: dict[str, Any] = {}
        self.hidden = nn.Linear(latent_dim, hidden_size)
        self.out = nn.Linear(hidden_size, len(classes))
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, latents: Tensor) -> Tensor:
        """Calibrated logits; `(batch, latent_dim)` to `(batch, classes)`."""
        features = nn.functional.gelu(self.hidden((latents - self.mean) / self.std))
        logits: Tensor = self.out(features) / self.temperature
        return logits

    @torch.no_grad()
    def probs(self, latents: Tensor) -> Tensor:
        """`p(c | z)`; `(batch, latent_dim)` to `(batch, classes)`."""
        return self(latents).softmax(dim=-1)

    def index_of(self, value: str) -> int:
        """The place of a value among the classes, or a `UsageError` that lists them."""
        if value not in self.classes:
            raise UsageError(f"{self.attribute} has no value {value!r}; its values are {', '.join(self.classes)}")
        return self.classes.index(value)

    @torch.no_grad()
    def value_and_score(self, latents: Tensor, index: int, *, negated: bool = False) -> tuple[Tensor, Tensor]:
        """`log p(c | z)`, or `log(1 - p(c | z))` where negated, `(batch,)`, and its gradient in z.

        Args:
            latents: `(batch, latent_dim)`.
            index: Of the class.
            negated: Whether the attribute must not have this value.
        """
        before = self.hidden((latents - self.mean) / self.std)
        logits = self.out(nn.functional.gelu(before)) / self.temperature
        total = logits.logsumexp(dim=-1)
        gradient = -logits.softmax(dim=-1)
        if negated:
            # The other classes' share: no 1 - p, which has no digits left where p is nearly 1.
            others = logits.clone()
            others[:, index] = -math.inf
            value = others.logsumexp(dim=-1) - total
            gradient += others.softmax(dim=-1)
        else:
            value = logits[:, index] - total
            gradient[:, index] += 1
        into_hidden = gradient @ self.out.weight / self.temperature
        into_hidden = torch.ops.aten.gelu_backward(into_hidden, before)
        return value, into_hidden @ self.hidden.weight / self.std

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `classifier.safetensors` and `classifier.json` into a folder, which is made where it is not there."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "format": FORMAT,
            "attribute": self.attribute,
            "classes": list(self.classes),
            "latent_dim": self.hidden.in_features,
            "hidden_size": self.hidden.out_features,
            "report": self.report,
        }
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, str(folder / _WEIGHTS))
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LatentClassifier:
        """Reads what `save_pretrained` has written.

        Raises:
            DataError: If the files are missing, damaged or of another format.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            settings = json.loads((Path(folder) / _SETTINGS).read_text(encoding="utf-8"))
            if settings.get("format") != FORMAT:
                raise DataError(f"{folder} holds no classifier of latents (format {settings.get('format')!r})")
            sizes = settings["latent_dim"], settings["hidden_size"]
            classifier = cls(settings["attribute"], settings["classes"], *sizes)
            classifier.load_state_dict(load_file(str(Path(folder) / _WEIGHTS)))
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder} cannot be read as a classifier of latents: {error}") from error
        classifier.report = settings["report"]
        return classifier.eval()


@dataclass(frozen=True)
class Control:
    """One wish about an attribute: a factor `p(c | z)^w`, or `(1 - p(c | z))^w`, of a controlled density.

    Args:
        classifier: Reads the attribute.
        value: The class that is wished for, or not to be.
        weight: `w`, positive; 1 is Bayes' rule, more insists.
        negated: Whether the attribute must not have this value.

    Raises:
        UsageError: If the classifier does not know the value, or the weight is not positive and finite.
    """

    classifier: LatentClassifier
    value: str
    weight: float = 1.0
    negated: bool = False

    def __post_init__(self) -> None:
        self.classifier.index_of(self.value)
        if not 0 < self.weight < math.inf:
            raise UsageError(
                f"the weight of {self.classifier.attribute}={self.value} must be positive and finite, got "
                f"{self.weight}; negated=True asks for the opposite"
            )

    def to(self, device: torch.device, dtype: torch.dtype) -> Control:
        """The same wish on another device and in another precision; this one's classifier stays as it is."""
        weight = self.classifier.hidden.weight
        if (weight.device, weight.dtype) == (device, dtype):
            return self
        return replace(self, classifier=deepcopy(self.classifier).to(device, dtype))

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """`w log p(c | z)` of shape `(batch,)`, or of its opposite, and its gradient `(batch, latent_dim)`."""
        index = self.classifier.index_of(self.value)
        value, score = self.classifier.value_and_score(latents, index, negated=self.negated)
        return self.weight * value, self.weight * score


class ControlledDensity:
    """`log p(z) + sum of w_i log p(c_i | z)` up to a constant: a product of experts (Hinton, 2002) over latents.

    Like a prior it is a [`~latent_ebm_text.samplers.ScoredLogDensity`], which any sampler takes.

    Args:
        prior: Log-density of the prior with its score.
        controls: One or more.

    Raises:
        UsageError: If there is no control, or a classifier is of latents of another size than the prior's.
    """

    def __init__(self, prior: ScoredLogDensity, controls: Sequence[Control]) -> None:
        if not controls:
            raise UsageError("a controlled density needs at least one control; without any it is the prior")
        latent_dim = getattr(prior, "latent_dim", None)
        for control in controls:
            size = control.classifier.hidden.in_features
            if latent_dim is not None and size != latent_dim:
                raise UsageError(
                    f"the classifier of {control.classifier.attribute!r} reads latents of {size} dimensions, but the "
                    f"prior's have {latent_dim}: fit it on latents of this model"
                )
        self.prior, self.controls = prior, tuple(controls)

    def __call__(self, latents: Tensor) -> Tensor:
        """The log-density in nats; `(batch, latent_dim)` to `(batch,)`. Not differentiable: it has a score."""
        return self.value_and_score(latents)[0]

    def frozen(self) -> ControlledDensity:
        """The same log-density for the length of a chain, with the prior's weights taken as they are."""
        return ControlledDensity(frozen_log_density(self.prior), self.controls)

    def score(self, latents: Tensor) -> Tensor:
        """The score of shape `(batch, latent_dim)`."""
        return self.value_and_score(latents)[1]

    @torch.no_grad()
    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density `(batch,)` and score `(batch, latent_dim)`."""
        value, score = self.prior.value_and_score(latents)
        for control in self.controls:
            more = control.value_and_score(latents)
            value, score = value + more[0], score + more[1]
        return value, score
