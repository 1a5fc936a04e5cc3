"""Paths between two latents: straight, on a great circle, or where the prior's energy is low."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from latent_ebm_text.errors import DivergenceError, UsageError
from latent_ebm_text.latents.density import LogDensity, value_and_score_function

PathKind = Literal["linear", "spherical", "low_energy"]
#: Default weight of the speed of a low-energy path against its energy, see [`low_energy_path`].
STIFFNESS = 0.25
#: A great circle is ill-defined where the angle between its ends is closer than this, in radians, to 0 or pi.
_LEAST_ANGLE = 1e-4


def latent_path(
    kind: PathKind,
    start: Tensor,
    end: Tensor,
    num_points: int,
    log_density: LogDensity,
    *,
    stiffness: float = STIFFNESS,
) -> Tensor:
    """Computes a path of one of the three kinds, `(num_points, latent_dim)`.

    Args:
        kind: `"linear"`, `"spherical"` or `"low_energy"`.
        start: `(latent_dim,)`, the first point.
        end: `(latent_dim,)`, the last point.
        num_points: Number of points, both ends included, at least 2.
        log_density: The prior's `-E(z)`; only a low-energy path uses it.
        stiffness: Weight of the speed of a low-energy path.

    Raises:
        UsageError: If the kind is unknown or a number out of range.
    """
    if kind == "linear":
        return linear_path(start, end, num_points)
    if kind == "spherical":
        return spherical_path(start, end, num_points)
    if kind == "low_energy":
        return low_energy_path(start, end, num_points, log_density, stiffness=stiffness)
    raise UsageError(f"unknown path {kind!r}; known paths: {', '.join(get_args(PathKind))}")


def linear_path(start: Tensor, end: Tensor, num_points: int) -> Tensor:
    """Equally spaced points on the straight line, `(num_points, latent_dim)`.

    Halfway between two independent draws from N(0, I) the norm is typically 0.7 times that of a draw.
    """
    return torch.lerp(start, end, _times(start, end, num_points))


def spherical_path(start: Tensor, end: Tensor, num_points: int) -> Tensor:
    """Equally spaced points on the great circle (Shoemake, 1985; White, 2016), `(num_points, latent_dim)`.

    The direction turns at a constant rate and the norm is interpolated linearly, so points between two draws from a
    Gaussian look like draws. Ends with (nearly) the same direction are joined by a straight line.

    Raises:
        UsageError: If an end is zero or the ends are opposite, where the great circle is not unique.
    """
    times = _times(start, end, num_points)
    norms = start.norm(), end.norm()
    if min(norms) == 0:
        raise UsageError("a spherical path needs ends that are not zero; use path='linear'")
    first, last = start / norms[0], end / norms[1]
    angle = 2 * torch.atan2((first - last).norm(), (first + last).norm())  # exact for small angles, where acos is not
    if float(angle) < _LEAST_ANGLE:
        return torch.lerp(start, end, times)
    if float(angle) > torch.pi - _LEAST_ANGLE:
        raise UsageError("a spherical path between opposite latents is not defined; use path='linear'")
    directions = (((1 - times) * angle).sin() * first + (times * angle).sin() * last) / angle.sin()
    path = torch.lerp(norms[0], norms[1], times) * directions
    path[0], path[-1] = start, end
    return path


def path_action(path: Tensor, log_density: LogDensity, *, stiffness: float = STIFFNESS) -> Tensor:
    """The action that a low-energy path minimises, in nats: `mean of E + stiffness / 2 * mean of |dz/dt|^2`, a scalar.

    Args:
        path: `(num_points, latent_dim)`, over times from 0 to 1; the mean of E is by the trapezoidal rule.
        log_density: `-E(z)`.
        stiffness: Weight of the speed.
    """
    weights = torch.ones(len(path), device=path.device, dtype=path.dtype)
    weights[0] = weights[-1] = 0.5
    intervals = len(path) - 1
    speed = path.diff(dim=0).square().sum() * intervals
    return -(weights * log_density(path)).sum() / intervals + 0.5 * stiffness * speed


@torch.no_grad()
def low_energy_path(
    start: Tensor,
    end: Tensor,
    num_points: int,
    log_density: LogDensity,
    *,
    stiffness: float = STIFFNESS,
    num_steps: int = 1000,
    tolerance: float = 1e-4,
) -> Tensor:
    """The path of least action between two latents: low energy along it, without detours.

    It minimises `∫ E(z(t)) dt + stiffness / 2 ∫ |dz/dt|^2 dt` with both ends held, discretised at equally spaced
    times. Large stiffness gives the straight line, small stiffness a path that follows the valleys of the energy and
    comes near its minimum. Under N(0, I) it is `(sinh(k (1 - t)) start + sinh(k t) end) / sinh(k)` with
    `k = stiffness^(-1/2)`. The descent treats the speed term implicitly, so the number of points does not limit the
    step size; a step that does not lower the action is retried at half the size.

    Low energy means high probability per unit of volume. Most of a Gaussian's volume lies at norms near
    `latent_dim^(1/2)`, so the inner points may look less like draws from the prior than the ends do: a spherical path
    keeps to typical norms, a low-energy path to high density.

    Args:
        start: `(latent_dim,)`, the first point.
        end: `(latent_dim,)`, the last point.
        num_points: Number of points, both ends included, at least 2.
        log_density: `-E(z)`, with a score or differentiable.
        stiffness: Weight of the speed, positive.
        num_steps: Maximum number of descent steps.
        tolerance: The descent ends when no coordinate moves by more than this times the step size.

    Returns:
        `(num_points, latent_dim)`.

    Raises:
        UsageError: If a number is out of range.
        DivergenceError: If the energy is not finite on the straight line.
    """
    if not 0 < stiffness < float("inf"):
        raise UsageError(f"stiffness must be positive and finite, got {stiffness}")
    path = linear_path(start, end, num_points)
    if num_points == 2:
        return path
    value_and_score = value_and_score_function(log_density)
    intervals, wide = num_points - 1, torch.promote_types(path.dtype, torch.float32)  # `solve` needs at least float32

    # Gradient of the speed term, times `intervals`: second differences of the path, to which the ends contribute.
    identity = torch.eye(num_points - 2, device=path.device, dtype=path.dtype)
    above = torch.ones_like(identity).triu(1).tril(1)
    second = stiffness * intervals**2 * (2 * identity - above - above.mT)
    ends = torch.zeros_like(path[1:-1])
    ends[0] += stiffness * intervals**2 * start
    ends[-1] += stiffness * intervals**2 * end

    value, score = value_and_score(path)
    action = _action(path, value, stiffness)
    if not bool(torch.isfinite(action)):
        raise DivergenceError(
            "the energy is not finite on the line between the two latents: look at the model's weights"
        )
    step = 0.5
    for _ in range(num_steps):
        system, wanted = identity + step * second, path[1:-1] + step * (score[1:-1] + ends)
        inner = torch.linalg.solve(system.to(wide), wanted.to(wide))
        moved = torch.cat([path[:1], inner.to(path.dtype), path[-1:]])
        value, moved_score = value_and_score(moved)
        moved_action = _action(moved, value, stiffness)
        if not bool(moved_action <= action + 1e-6 * action.abs()):
            step /= 2
            if step < 1e-6:
                break
            continue
        movement = (moved - path).abs().max()
        path, score, action = moved, moved_score, moved_action
        if float(movement) < tolerance * step:
            break
    return path


def _action(path: Tensor, value: Tensor, stiffness: float) -> Tensor:
    return path_action(path, lambda _: value, stiffness=stiffness)


def _times(start: Tensor, end: Tensor, num_points: int) -> Tensor:
    """Equally spaced times from 0 to 1, `(num_points, 1)`."""
    if num_points < 2:
        raise UsageError(f"num_points must be at least 2, got {num_points}")
    if start.dim() != 1 or start.shape != end.shape:
        raise UsageError(f"a path joins two latents (latent_dim,), got {tuple(start.shape)} and {tuple(end.shape)}")
    return torch.linspace(0, 1, num_points, device=start.device, dtype=start.dtype)[:, None]
