"""Heads that read an attribute from a latent: a class by `p(c | z)`, or a number by `p(y | z)`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import DataError, UsageError

FORMAT = "latent_ebm_text.latent_classifier/1"
_WEIGHTS, _SETTINGS = "classifier.safetensors", "classifier.json"


class LatentHead(nn.Module):
    """A small network that reads one attribute from a latent.

    It has one hidden layer on standardised latents. It is smooth in z (GELU), because chains follow the score of its
    log-probability, which is computed in closed form.

    Args:
        attribute: Name of the attribute, such as `"topic"`.
        latent_dim: Size of the latent.
        hidden_size: Width of the hidden layer.
        num_outputs: Number of outputs.

    Attributes:
        report: JSON-able metrics on held-out data, empty until the head is fitted.

    Raises:
        UsageError: If a size is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, attribute: str, latent_dim: int, hidden_size: int, num_outputs: int) -> None:
        super().__init__()
        if min(latent_dim, hidden_size) < 1:
            raise UsageError(f"latent_dim and hidden_size must be positive, got {latent_dim} and {hidden_size}")
        self.attribute = attribute
        self.report: dict[str, Any] = {}
        self.hidden = nn.Linear(latent_dim, hidden_size)
        self.out = nn.Linear(hidden_size, num_outputs)
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))

    def forward(self, latents: Tensor) -> Tensor:
        """Outputs in the units of the attribute; `(batch, latent_dim)` to `(batch, num_outputs)`."""
        return self._scaled(self.out(nn.functional.gelu(self.hidden((latents - self.mean) / self.std))))

    def _scaled(self, outputs: Tensor) -> Tensor:
        """The outputs of the last layer, `(batch, num_outputs)`, in the units of the attribute."""
        raise NotImplementedError

    def check_value(self, value: Any, *, negated: bool = False) -> None:
        """Raises a `UsageError` that says which values the attribute has, unless this one can be asked for."""
        raise NotImplementedError

    def value_and_score(self, latents: Tensor, value: Any, *, negated: bool = False) -> tuple[Tensor, Tensor]:
        """`log p(value | z)`, or `log(1 - p(value | z))` if negated, `(batch,)`, and its gradient in z.

        Args:
            latents: `(batch, latent_dim)`.
            value: A value of the attribute.
            negated: Whether the attribute must not have this value.

        Returns:
            The log-probability `(batch,)` in nats and the score `(batch, latent_dim)`.
        """
        with torch.no_grad():
            before = self.hidden((latents - self.mean) / self.std)
            log_prob, gradient = self._log_prob(self.out(nn.functional.gelu(before)), value, negated)
            into_hidden = torch.ops.aten.gelu_backward(gradient @ self.out.weight, before)
            return log_prob, into_hidden @ self.hidden.weight / self.std

    def _log_prob(self, outputs: Tensor, value: Any, negated: bool) -> tuple[Tensor, Tensor]:
        """The log-probability `(batch,)` and its gradient in the last layer's outputs, `(batch, num_outputs)`."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """JSON-able settings, from which and the weights [`head_of`] makes the head again."""
        return {"attribute": self.attribute, "report": self.report}


class LatentClassifier(LatentHead):
    """Reads a class from a latent, `p(c | z)`, calibrated by a temperature.

    It is fitted by [`~latent_ebm_text.latents.classifier.fit_classifier`].

    Args:
        attribute: Name of the attribute, such as `"topic"`.
        classes: The values of the attribute, at least two.
        latent_dim: Size of the latent.
        hidden_size: Width of the hidden layer.

    Raises:
        UsageError: If there are fewer than two classes, a class occurs twice, or a size is not positive.
    """

    temperature: Tensor

    def __init__(self, attribute: str, classes: Sequence[str], latent_dim: int, hidden_size: int = 64) -> None:
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise UsageError(f"a classifier of {attribute!r} needs two or more different classes, got {list(classes)}")
        super().__init__(attribute, latent_dim, hidden_size, len(classes))
        self.classes = tuple(classes)
        self.register_buffer("temperature", torch.ones(()))

    def _scaled(self, outputs: Tensor) -> Tensor:
        return outputs / self.temperature

    @torch.no_grad()
    def probs(self, latents: Tensor) -> Tensor:
        """`p(c | z)`; `(batch, latent_dim)` to `(batch, classes)`."""
        return self(latents).softmax(dim=-1)

    def index_of(self, value: str) -> int:
        """Returns the index of a class; an unknown class is a `UsageError` that lists the known ones."""
        if value not in self.classes:
            raise UsageError(f"{self.attribute} has no value {value!r}; its values are {', '.join(self.classes)}")
        return self.classes.index(value)

    def check_value(self, value: Any, *, negated: bool = False) -> None:
        """Raises a `UsageError` that lists the classes unless the value is one of them."""
        self.index_of(value)

    def _log_prob(self, outputs: Tensor, value: Any, negated: bool) -> tuple[Tensor, Tensor]:
        index, logits = self.index_of(value), outputs / self.temperature
        total = logits.logsumexp(dim=-1)
        gradient = -logits.softmax(dim=-1)
        if negated:
            # Sums the other classes, because 1 - p loses all precision where p is nearly 1.
            others = logits.clone()
            others[:, index] = -math.inf
            log_prob = others.logsumexp(dim=-1) - total
            gradient += others.softmax(dim=-1)
        else:
            log_prob = logits[:, index] - total
            gradient[:, index] += 1
        return log_prob, gradient / self.temperature

    def settings(self) -> dict[str, Any]:
        """JSON-able settings, from which and the weights [`head_of`] makes the classifier again."""
        return {**super().settings(), "classes": list(self.classes)}

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


class LatentRegressor(LatentHead):
    """Reads a number from a latent, `p(y | z) = N(y; mu(z), s^2)`, with `s` measured on held-out data.

    It is fitted by [`~latent_ebm_text.latents.regression.fit_regressor`].

    Args:
        attribute: Name of the attribute, such as `"length"`.
        latent_dim: Size of the latent.
        hidden_size: Width of the hidden layer.

    Raises:
        UsageError: If a size is not positive.
    """

    centre: Tensor
    scale: Tensor
    noise: Tensor

    def __init__(self, attribute: str, latent_dim: int, hidden_size: int = 64) -> None:
        super().__init__(attribute, latent_dim, hidden_size, 1)
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("noise", torch.ones(()))

    def _scaled(self, outputs: Tensor) -> Tensor:
        return self.centre + self.scale * outputs

    def check_value(self, value: Any, *, negated: bool = False) -> None:
        """Raises a `UsageError` unless the value is a finite number, which cannot be negated."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"{self.attribute} is a number, got {value!r}")
        if negated:
            raise UsageError(f"{self.attribute} is a number, which cannot be negated: ask for another number")

    def _log_prob(self, outputs: Tensor, value: Any, negated: bool) -> tuple[Tensor, Tensor]:
        error = (value - self._scaled(outputs)) / self.noise
        log_prob = -0.5 * error.square().squeeze(-1) - self.noise.log() - 0.5 * math.log(2 * math.pi)
        return log_prob, error * self.scale / self.noise


def head_of(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> LatentHead:
    """A head from its `settings` and its weights, whose shapes say how large it is.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: If they do not fit each other.
    """
    hidden_size, latent_dim = weights["hidden.weight"].shape
    head: LatentHead
    if "classes" in settings:
        head = LatentClassifier(settings["attribute"], settings["classes"], latent_dim, hidden_size)
    else:
        head = LatentRegressor(settings["attribute"], latent_dim, hidden_size)
    head.load_state_dict(dict(weights))
    head.report = dict(settings["report"])
    return head.eval().requires_grad_(False)
