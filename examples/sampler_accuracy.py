"""How accurate is unadjusted Langevin dynamics? Mean and covariance of many chains against the truth.

    python examples/sampler_accuracy.py

Two targets: a correlated Gaussian, where the discretised chain's own stationary covariance is known in closed form,
and a skewed mixture of two Gaussians, whose moments come from quadrature. The error falls as the square of the step
size.
"""

import argparse
import math

import torch
from torch import Tensor

from latent_ebm_text import LangevinSampler

COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)


def gaussian(z: Tensor) -> Tensor:
    return -0.5 * (z @ torch.linalg.inv(COVARIANCE) * z).sum(-1)


def mixture(z: Tensor) -> Tensor:
    """A narrow mode of weight 0.3 at -1 and a wide one of weight 0.7 at 1.5."""
    x = z[:, 0]
    modes = ((0.3, -1.0, 0.6), (0.7, 1.5, 1.0))  # weight, mean, standard deviation
    parts = [math.log(w / s) - 0.5 * ((x - m) / s) ** 2 for w, m, s in modes]
    return torch.logsumexp(torch.stack(parts), dim=0)


def stationary_covariance(step_size: float) -> Tensor:
    """Covariance of the discretised chain on the Gaussian: each eigenvalue v becomes v / (1 - step_size^2 / (4 v))."""
    values, vectors = torch.linalg.eigh(COVARIANCE)
    return vectors @ torch.diag(values / (1 - step_size**2 / (4 * values))) @ vectors.T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=100_000, help="number of independent chains")
    chains = parser.parse_args().chains
    generator = torch.Generator().manual_seed(0)

    print(f"correlated Gaussian, {chains:,} chains: largest entry of the covariance's error")
    print(f"{'step size':>9}  {'against the truth':>17}  {'theory':>7}  {'against theory':>14}  standard error")
    standard_error = (2 / chains) ** 0.5
    for step_size in (0.8, 0.4, 0.2):
        sampler = LangevinSampler(num_steps=round(20 / step_size**2), step_size=step_size)
        start = torch.randn(chains, 2, generator=generator, dtype=torch.float64)
        covariance = sampler.sample(start, gaussian, generator=generator).latents.T.cov()
        theory = stationary_covariance(step_size)
        print(
            f"{step_size:9.2f}  {(covariance - COVARIANCE).abs().max():17.4f}  "
            f"{(theory - COVARIANCE).abs().max():7.4f}  {(covariance - theory).abs().max():14.4f}  "
            f"{standard_error:.4f}"
        )

    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    density = torch.softmax(mixture(grid[:, None]), dim=0)
    mean = float(density @ grid)
    variance = float(density @ (grid - mean) ** 2)
    print(f"\nskewed mixture, {chains:,} chains: true mean {mean:.4f}, true variance {variance:.4f}")
    print(f"{'step size':>9}  {'mean':>7}  {'variance':>8}  standard error of the mean")
    for step_size in (0.8, 0.4, 0.2):
        sampler = LangevinSampler(num_steps=round(60 / step_size**2), step_size=step_size)
        start = torch.randn(chains, 1, generator=generator, dtype=torch.float64)
        draws = sampler.sample(start, mixture, generator=generator).latents[:, 0]
        print(f"{step_size:9.2f}  {draws.mean():7.4f}  {draws.var():8.4f}  {(variance / chains) ** 0.5:.4f}")


if __name__ == "__main__":
    main()
