"""Fits attribute classifiers to posterior draws of labelled data, and calibrates and tests them on held-out data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.latents.heads import LatentClassifier, LatentHead

_NUM_BINS = 10
_BATCH_SIZE = 512
#: Share of the data held out for calibration, and the same share for the test.
_HELD_OUT = 0.15


def fit_classifier(
    attribute: str,
    latents: Tensor,
    labels: Iterable[str],
    *,
    hidden_size: int = 64,
    num_epochs: int = 40,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> LatentClassifier:
    """Fits `p(c | z)` to posterior draws of labelled data.

    70 % of the examples are used for training, 15 % for choosing the epoch and the temperature (Guo et al., 2017), and
    15 % for testing; all draws of an example stay in one part. `classifier.report` then holds the accuracy with its
    95 % interval (Wilson), the accuracy of always predicting the most common class, and the NLL in nats and the
    expected calibration error with and without the temperature. All are measured on the test part, with one draw per
    example.

    Args:
        attribute: Name of the attribute that the labels describe.
        latents: `(num_draws, n, latent_dim)` posterior draws, or `(n, latent_dim)` for one draw per example.
        labels: The `n` labels.
        hidden_size: Width of the hidden layer.
        num_epochs: Passes over the training part; the weights of the best epoch are kept.
        learning_rate: Initial learning rate of AdamW, which decays to zero.
        weight_decay: Weight decay of AdamW.
        seed: Seed for the split, the initial weights and the order of the examples.

    Raises:
        UsageError: If the shapes of latents and labels do not match, a latent is not finite, or a label is no string.
        DataError: If there are fewer than two classes, or a class has fewer than 10 examples.
    """
    labels = list(labels)
    draws = checked_draws(latents, len(labels))
    if strange := [label for label in labels if not isinstance(label, str)]:
        raise UsageError(f"labels of {attribute} must be strings, got {strange[0]!r}")
    classes = sorted(set(labels))
    counts = {name: labels.count(name) for name in classes}
    if len(classes) < 2 or min(counts.values()) < 10:
        raise DataError(f"{attribute} needs two or more classes of at least 10 examples each, got {counts}")

    generator = torch.Generator().manual_seed(seed)
    targets = torch.tensor([classes.index(label) for label in labels])
    train, held_out, test = split_rows(len(labels), generator)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = LatentClassifier(attribute, classes, draws.shape[-1], hidden_size)
    train_head(
        classifier, draws, targets, train, held_out, nn.functional.cross_entropy,
        num_epochs=num_epochs, learning_rate=learning_rate, weight_decay=weight_decay, generator=generator,
    )  # fmt: skip

    raw = classifier(draws[0, test]).detach()
    classifier.temperature.copy_(_best_temperature(classifier(draws[0, held_out]).detach(), targets[held_out]))
    commonest = torch.bincount(targets[train]).argmax()
    classifier.report = _report(classifier(draws[0, test]).detach(), raw, targets[test], commonest)
    return classifier.eval().requires_grad_(False)


def checked_draws(latents: Tensor, num_labels: int) -> Tensor:
    """Posterior draws `(num_draws, n, latent_dim)`, float32 on the CPU; a `UsageError` unless they fit the labels."""
    draws = latents[None] if latents.dim() == 2 else latents
    if draws.dim() != 3 or draws.shape[1] != num_labels:
        raise UsageError(
            f"latents must have shape (num_draws, {num_labels}, latent_dim) for {num_labels} labels, got "
            f"{tuple(latents.shape)}"
        )
    if not bool(torch.isfinite(draws).all()):
        raise UsageError("latents contain values that are not finite (nan or inf)")
    return draws.float().cpu()


def split_rows(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the 70 % of the examples that are trained on, of 15 % for choices, and of 15 % for the test."""
    order = torch.randperm(n, generator=generator)
    size = max(1, round(_HELD_OUT * n))
    return order[2 * size :], order[size : 2 * size], order[:size]


def train_head(
    head: LatentHead,
    draws: Tensor,
    targets: Tensor,
    train: Tensor,
    held_out: Tensor,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    *,
    num_epochs: int,
    learning_rate: float,
    weight_decay: float,
    generator: torch.Generator,
) -> None:
    """Trains a head, on all draws of the training part, and keeps the weights of the best epoch on the held-out part.

    Args:
        head: The head, whose standardisation is set here.
        draws: `(num_draws, n, latent_dim)`.
        targets: `(n, ...)`.
        train: Indices of the training part.
        held_out: Indices of the held-out part.
        loss_function: The loss of outputs `(batch, num_outputs)` and targets.
        num_epochs: Passes over the training part.
        learning_rate: Initial learning rate of AdamW, which decays to zero.
        weight_decay: Weight decay of AdamW.
        generator: Random number generator of the order of the examples.
    """
    rows, wanted = draws[:, train].flatten(0, 1), targets[train].repeat(len(draws))
    head.mean.copy_(rows.mean(dim=0))
    head.std.copy_(rows.std(dim=0).clamp(min=1e-6))
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)
    best, best_loss = copy.deepcopy(head.state_dict()), float("inf")
    with torch.enable_grad():
        for _ in range(num_epochs):
            for batch in torch.randperm(len(rows), generator=generator).split(_BATCH_SIZE):
                optimizer.zero_grad()
                loss_function(head(rows[batch]), wanted[batch]).backward()
                optimizer.step()
            schedule.step()
            loss = float(loss_function(head(draws[0, held_out]).detach(), targets[held_out]))
            if loss < best_loss:
                best, best_loss = copy.deepcopy(head.state_dict()), loss
    head.load_state_dict(best)


def _best_temperature(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the temperature between 0.1 and 10 that gives the lowest NLL."""
    candidates = torch.logspace(-1, 1, 201)
    losses = [nn.functional.cross_entropy(logits / temperature, targets) for temperature in candidates]
    return candidates[int(torch.stack(losses).argmin())]


def _report(logits: Tensor, raw: Tensor, targets: Tensor, commonest: Tensor) -> dict[str, Any]:
    correct = int((logits.argmax(dim=-1) == targets).sum())
    return {
        "n": len(targets),
        "accuracy": correct / len(targets),
        "accuracy_interval_95": list(wilson_interval(correct, len(targets))),
        "commonest_class_accuracy": float((targets == commonest).double().mean()),
        "nll": float(nn.functional.cross_entropy(logits, targets)),
        "calibration_error": calibration_error(logits, targets),
        "uncalibrated_nll": float(nn.functional.cross_entropy(raw, targets)),
        "uncalibrated_error": calibration_error(raw, targets),
    }


def calibration_error(logits: Tensor, targets: Tensor) -> float:
    """Expected calibration error with ten equal-width bins of confidence (Naeini et al., 2015), between 0 and 1."""
    confidence, predicted = logits.softmax(dim=-1).max(dim=-1)
    correct = (predicted == targets).double()
    bins = (confidence * _NUM_BINS).long().clamp(max=_NUM_BINS - 1)
    gaps = torch.zeros(_NUM_BINS, dtype=torch.double).index_add_(0, bins, correct - confidence.double())
    return float(gaps.abs().sum() / len(targets))


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson, 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise UsageError(f"a proportion needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z2, p = 1.96**2, successes / n
    centre, margin = (p + z2 / (2 * n)), 1.96 * (p * (1 - p) / n + z2 / (4 * n**2)) ** 0.5
    return max(0.0, (centre - margin) / (1 + z2 / n)), min(1.0, (centre + margin) / (1 + z2 / n))
