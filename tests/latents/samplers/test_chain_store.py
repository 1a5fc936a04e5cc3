"""Persistent chains: storage, refreshing, and the cost of a large store."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.samplers import ChainStore

MEBIBYTE = 2**20
STATM = Path("/proc/self/statm")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def store(tmp_path: Path) -> ChainStore:
    return ChainStore(tmp_path / "run" / "chains.bin", num_chains=10, latent_dim=3)


def assert_standard_normal(draws: Tensor) -> None:
    """Mean and covariances within 4.5 standard errors of those of N(0, I)."""
    num, dim = draws.shape
    assert draws.mean(dim=0).abs().max() < 4.5 / math.sqrt(num)
    assert (draws.T.cov() - torch.eye(dim)).abs().max() < 4.5 * math.sqrt(2 / num)


@pytest.mark.parametrize("refresh", [0.0, 0.5, 1.0])
def test_a_chain_never_written_starts_from_the_reference(tmp_path: Path, refresh: float) -> None:
    store = ChainStore(tmp_path / "chains.bin", 20_000, 2)
    start = store.start(torch.arange(20_000), refresh=refresh, generator=seeded(0))
    assert start.dtype == torch.float32
    assert_standard_normal(start)


def test_the_noise_comes_from_the_generator_alone(store: ChainStore) -> None:
    state = torch.get_rng_state()
    first, second, other = (store.start(torch.arange(10), generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_refresh_a_written_chain_goes_on_where_it_was(store: ChainStore) -> None:
    latents, indices = torch.randn(3, 3, generator=seeded(0)), torch.tensor([7, 0, 4])
    store.write(indices, latents.requires_grad_())
    assert torch.equal(store.start(indices), latents)
    assert torch.equal(store.start(indices.flip(0)), latents.flip(0)), "a chain belongs to its index, not its place"

    mixed = store.start(torch.tensor([0, 1]), generator=seeded(1))
    assert torch.equal(mixed[0], latents[1])
    assert torch.equal(mixed[1], torch.randn(2, 3, generator=seeded(1))[1]), "chain 1 was never written"


def test_a_written_chain_is_its_own_copy(store: ChainStore) -> None:
    indices = torch.tensor([2])
    store.write(indices, torch.ones(1, 3))
    store.start(indices).add_(1)
    assert torch.equal(store.start(indices), torch.ones(1, 3))
    store.write(indices, torch.full((1, 3), 2.0))
    assert torch.equal(store.start(indices), torch.full((1, 3), 2.0)), "the last write counts"


def test_full_refresh_forgets_the_past(tmp_path: Path) -> None:
    indices, starts = torch.arange(10), []
    for value in (-50.0, 50.0):
        store = ChainStore(tmp_path / f"{value}.bin", 10, 3)
        store.write(indices, torch.full((10, 3), value))
        starts.append(store.start(indices, refresh=1.0, generator=seeded(2)))
    assert torch.equal(*starts)
    assert starts[0].abs().max() < 5


def test_refresh_mixes_past_and_noise_by_the_formula(store: ChainStore) -> None:
    indices, latents = torch.arange(10), torch.full((10, 3), 2.0)
    store.write(indices, latents)
    expected = 0.8 * latents + 0.6 * torch.randn(10, 3, generator=seeded(3))
    torch.testing.assert_close(store.start(indices, refresh=0.6, generator=seeded(3)), expected)
    assert torch.equal(store.start(indices), latents), "starting does not write"


def test_refresh_keeps_the_reference_invariant(tmp_path: Path) -> None:
    store, indices = ChainStore(tmp_path / "chains.bin", 20_000, 2), torch.arange(20_000)
    generator = seeded(4)
    first = torch.randn(20_000, 2, generator=generator)
    store.write(indices, first)
    for _ in range(5):
        store.write(indices, store.start(indices, refresh=0.3, generator=generator))
    last = store.start(indices)
    assert_standard_normal(last)
    kept = (first * last).mean().item()  # correlation with the start: (1 - 0.3^2)^(5/2)
    assert kept == pytest.approx((1 - 0.3**2) ** 2.5, abs=4.5 / math.sqrt(first.numel()))


def test_snapshot_and_restore(store: ChainStore, tmp_path: Path) -> None:
    indices = torch.tensor([3, 8])
    store.write(indices, torch.randn(2, 3, generator=seeded(5)))
    saved = store.snapshot().clone()
    assert saved.shape == (10, 3)
    other = ChainStore(tmp_path / "other.bin", 10, 3)
    other.write(torch.tensor([1]), torch.ones(1, 3))
    other.restore(saved)
    assert torch.equal(other.snapshot(), saved)
    starts = [each.start(torch.arange(10), generator=seeded(6)) for each in (store, other)]
    assert torch.equal(*starts), "chain 1 counts as never written again"


def test_chains_survive_reopening(store: ChainStore) -> None:
    indices, latents = torch.tensor([0, 9]), torch.randn(2, 3, generator=seeded(7))
    store.write(indices, latents)
    again = ChainStore(store.path, 10, 3)
    assert torch.equal(again.start(indices), latents)


@pytest.mark.parametrize(("num_chains", "latent_dim"), [(0, 3), (3, 0), (-1, 3)])
def test_sizes_must_be_positive(tmp_path: Path, num_chains: int, latent_dim: int) -> None:
    with pytest.raises(UsageError, match=f"positive sizes, got {num_chains} chains of {latent_dim} dimensions"):
        ChainStore(tmp_path / "chains.bin", num_chains, latent_dim)
    assert not (tmp_path / "chains.bin").exists()


def test_a_file_of_another_size_is_refused_and_left_alone(store: ChainStore) -> None:
    store.write(torch.tensor([0]), torch.ones(1, 3))
    with pytest.raises(UsageError, match=r"has 120 bytes where 11 chains of 3 dimensions need 132; remove it"):
        ChainStore(store.path, 11, 3)
    assert torch.equal(store.start(torch.tensor([0])), torch.ones(1, 3))


def test_restore_refuses_another_shape(store: ChainStore) -> None:
    with pytest.raises(UsageError, match=r"cannot restore chains of shape \(10, 4\) into a store of \(10, 3\)"):
        store.restore(torch.zeros(10, 4))


@pytest.mark.parametrize("refresh", [-0.1, 1.1, math.nan])
def test_refresh_must_be_a_fraction(store: ChainStore, refresh: float) -> None:
    with pytest.raises(UsageError, match=rf"refresh must lie in \[0, 1\], got {refresh}"):
        store.start(torch.tensor([0]), refresh=refresh)


@pytest.mark.skipif(not STATM.exists(), reason="reads the memory of the process from Linux's /proc")
def test_two_million_chains_take_no_memory_and_have_their_disk_space(tmp_path: Path) -> None:
    def resident() -> int:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    store = ChainStore(tmp_path / "chains.bin", 2_000_000, 32)
    indices = torch.linspace(0, 1_999_999, 50).long()
    store.write(indices, store.start(indices, refresh=0.1))
    assert store.path.stat().st_size == 4 * 2_000_000 * 32  # 244 MiB
    assert store.path.stat().st_blocks * 512 >= 4 * 2_000_000 * 32  # all of it there: no write can find the disk full
    assert resident() - before < 8 * MEBIBYTE
