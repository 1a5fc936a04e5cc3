"""Fits a number, such as a length or a score, to posterior draws of labelled data, and tests it on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.latents.classifier import checked_draws, split_rows, train_head
from latent_ebm_text.latents.heads import LatentRegressor

#: Numbers with fewer different values are taken for classes.
LEAST_VALUES = 5


def fit_regressor(
    attribute: str,
    latents: torch.Tensor,
    values: Iterable[float],
    *,
    hidden_size: int = 64,
    num_epochs: int = 40,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    seed: int = 0,
) -> LatentRegressor:
    """Fits `p(y | z) = N(y; mu(z), s^2)` to posterior draws of data with a number each.

    The data are split as by [`~latent_ebm_text.latents.classifier.fit_classifier`]. `s` is the root mean square error
    on the held-out part, which calibrates the factor of a [`~latent_ebm_text.latents.Control`]. `head.report` holds,
    on the test part, the root mean square error, the share of the variance that is explained (R²), and the share of
    the numbers within `mu ± 1.96 s`, which is 0.95 where the errors are normal.

    Args:
        attribute: Name of the attribute that the numbers describe.
        latents: `(num_draws, n, latent_dim)` posterior draws, or `(n, latent_dim)` for one draw per example.
        values: The `n` numbers.
        hidden_size: Width of the hidden layer.
        num_epochs: Passes over the training part; the weights of the best epoch are kept.
        learning_rate: Initial learning rate of AdamW, which decays to zero.
        weight_decay: Weight decay of AdamW.
        seed: Seed for the split, the initial weights and the order of the examples.

    Raises:
        UsageError: If the shapes of latents and numbers do not match, or a latent or a number is not finite.
        DataError: If there are fewer than 20 numbers, or fewer than 10 different ones.
    """
    numbers = [float(value) for value in values]
    draws = checked_draws(latents, len(numbers))
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"numbers of {attribute} must be finite")
    if len(numbers) < 20 or len(set(numbers)) < LEAST_VALUES:
        raise DataError(
            f"{attribute} needs 20 or more numbers, {LEAST_VALUES} or more of them different, got {len(numbers)} with "
            f"{len(set(numbers))} different ones; if they stand for classes, give their names as strings"
        )
    generator = torch.Generator().manual_seed(seed)
    targets = torch.tensor(numbers)
    train, held_out, test = split_rows(len(numbers), generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = LatentRegressor(attribute, draws.shape[-1], hidden_size)
    head.centre.copy_(targets[train].mean())
    head.scale.copy_(targets[train].std().clamp(min=1e-6))

    def loss(outputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(outputs.squeeze(-1) / head.scale, wanted / head.scale)

    train_head(
        head, draws, targets, train, held_out, loss,
        num_epochs=num_epochs, learning_rate=learning_rate, weight_decay=weight_decay, generator=generator,
    )  # fmt: skip

    def errors(rows: torch.Tensor) -> torch.Tensor:
        return head(draws[0, rows]).detach().squeeze(-1) - targets[rows]

    head.noise.copy_(errors(held_out).square().mean().sqrt().clamp(min=1e-6))
    on_test = errors(test)
    head.report = {
        "n": len(test),
        "rmse": float(on_test.square().mean().sqrt()),
        "r2": float(
            1 - on_test.square().sum() / (targets[test] - targets[train].mean()).square().sum().clamp(min=1e-12)
        ),
        "coverage_95": float((on_test.abs() < 1.96 * head.noise).double().mean()),
    }
    return head.eval().requires_grad_(False)
