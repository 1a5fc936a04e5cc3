"""Attribute control: classifiers p(c | z) of latents, and densities p(z) p(c | z)^w that impose an attribute."""

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
from latent_ebm_text.latents.density import ScoredLogDensity, frozen_log_density

FORMAT = "latent_ebm_text.latent_classifier/1"
_WEIGHTS, _SETTINGS = "classifier.safetensors", "classifier.json"


class LatentClassifier(nn.Module):
    """A small network that predicts an attribute from a latent, `p(c | z)`, calibrated by a temperature.

    It has one hidden layer on standardised latents and is fitted by
    [`~latent_ebm_text.latents.classifier.fit_classifier`]. It is smooth in z (GELU), because chains follow its score,
    which is computed in closed form.

    Args:
        attribute: Name of the attribute, such as `"topic"`.
        classes: The values of the attribute, at least two.
        latent_dim: Size of the latent.
        hidden_size: Width of the hidden layer.

    Attributes:
        report: JSON-able metrics on held-out data, empty until the classifier is fitted.

    Raises:
        UsageError: If there are fewer than two classes, a class occurs twice, or a size is not positive.
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
        """Returns the index of a class; an unknown class is a `UsageError` that lists the known ones."""
        if value not in self.classes:
            raise UsageError(f"{self.attribute} has no value {value!r}; its values are {', '.join(self.classes)}")
        return self.classes.index(value)

    @torch.no_grad()
    def value_and_score(self, latents: Tensor, index: int, *, negated: bool = False) -> tuple[Tensor, Tensor]:
        """`log p(c | z)`, or `log(1 - p(c | z))` if negated, `(batch,)`, and its gradient `(batch, latent_dim)` in z.

        Args:
            latents: `(batch, latent_dim)`.
            index: Index of the class.
            negated: Whether the attribute must not have this value.
        """
        before = self.hidden((latents - self.mean) / self.std)
        logits = self.out(nn.functional.gelu(before)) / self.temperature
        total = logits.logsumexp(dim=-1)
        gradient = -logits.softmax(dim=-1)
        if negated:
            # Sums the other classes, because 1 - p loses all precision where p is nearly 1.
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
        """Writes `classifier.safetensors` and `classifier.json` into a folder, which is created if needed."""
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
        """Reads what `save_pretrained` wrote.

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
            classifier.report = dict(settings["report"])
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder} cannot be read as a classifier of latents: {error}") from error
        return classifier.eval()


@dataclass(frozen=True)
class Control:
    """One requirement on an attribute: a factor `p(c | z)^w`, or `(1 - p(c | z))^w`, of a controlled density.

    Args:
        classifier: Predicts the attribute.
        value: The class to impose, or to avoid if `negated`.
        weight: `w`, positive; 1 is Bayes' rule, and a larger weight imposes the attribute more strongly.
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
        """Returns this control on another device and in another precision, with a classifier of its own."""
        weight = self.classifier.hidden.weight
        if (weight.device, weight.dtype) == (device, dtype):
            return self
        return replace(self, classifier=deepcopy(self.classifier).to(device, dtype))

    def value_and_score(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The factor's log, `w log p(c | z)` unless negated, `(batch,)`, and its gradient `(batch, latent_dim)`."""
        index = self.classifier.index_of(self.value)
        value, score = self.classifier.value_and_score(latents, index, negated=self.negated)
        return self.weight * value, self.weight * score


class ControlledDensity:
    """`log p(z) + sum of w_i log p(c_i | z)` up to a constant: a product of experts (Hinton, 2002) over latents.

    Like a prior it is a [`~latent_ebm_text.latents.density.ScoredLogDensity`], which any sampler accepts.

    Args:
        prior: Log-density of the prior with its score.
        controls: One or more requirements.

    Raises:
        UsageError: If there is no control, or a classifier takes latents of another size than the prior's.
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
        """The log-density in nats; `(batch, latent_dim)` to `(batch,)`. It is not differentiable; use `score`."""
        return self.value_and_score(latents)[0]

    def frozen(self) -> ControlledDensity:
        """Returns the same log-density for one chain, with the prior's weights frozen."""
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
