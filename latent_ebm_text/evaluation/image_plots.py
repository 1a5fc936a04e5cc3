"""Pictures of an image model: grids of samples and reconstructions, strips of chains. Grids need the extra `image`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from latent_ebm_text.image_processing import convert_images
from latent_ebm_text.pictures import new_picture, save_picture


def save_grid(images: Tensor, path: Path, *, columns: int, scale: int = 2) -> Path:
    """Writes images side by side as a PNG, every pixel `scale` times as wide and high.

    Args:
        images: `(n, channels, size, size)` in [-1, 1]; a last row that is not full ends in white.
        path: The PNG to write.
        columns: Images a row.
        scale: Magnification.
    """
    _, channels, height, width = images.shape
    images = torch.nn.functional.pad(images.cpu(), (0, 1, 0, 1), value=1.0)  # a white line between images
    missing = -len(images) % columns
    images = torch.cat([images, images.new_ones(missing, channels, height + 1, width + 1)])
    rows = images.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4)  # (channels, rows, height, columns, width)
    grid = rows.reshape(1, channels, -1, columns * (width + 1))
    grid = grid.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    (picture,) = convert_images(grid, "pil")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def save_reconstructions(originals: Tensor, reconstructions: Tensor, path: Path, *, columns: int = 8) -> Path:
    """Writes rows of originals, each with the row of their reconstructions below."""
    count = len(originals) // columns * columns
    pairs = [part[:count].unflatten(0, (-1, columns)) for part in (originals.cpu(), reconstructions.cpu())]
    return save_grid(torch.stack(pairs, dim=1).flatten(0, 2), path, columns=columns)


def plot_chain_energies(energies: Tensor, num_steps: int, path: Path) -> Path:
    """Draws the energies of chains `(1 + steps, num_chains)`, with a line where the training chain ends.

    Raises:
        UsageError: If matplotlib is not installed (names the extra).
    """
    figure = new_picture(7, 4)
    axes = figure.subplots()
    for chain in energies.t()[:8].numpy():
        axes.plot(chain, linewidth=0.6, alpha=0.7)
    axes.plot(energies.mean(dim=1).numpy(), color="black", linewidth=1.5, label=f"mean of {energies.shape[1]} chains")
    axes.axvline(num_steps, color="grey", linestyle=":", label="the training chain ends")
    axes.set_title("energy of the prior's chains")
    axes.set_xlabel("step")
    axes.set_ylabel("nats")
    axes.legend(fontsize="small")
    return save_picture(figure, path)
