"""Nearest latents: against plain loops, torch's own divergences, and the file on disk."""

from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.latents import LatentIndex, neighbours
from tests.helpers import seeded

MEAN, STD = torch.randn(40, 3, generator=seeded(0)), 0.2 + torch.rand(40, 3, generator=seeded(1))
QUERY, QUERY_STD = torch.randn(7, 3, generator=seeded(2)), 0.2 + torch.rand(7, 3, generator=seeded(3))


@pytest.fixture
def index() -> LatentIndex:
    return LatentIndex(MEAN, STD, "corpus 1")


def test_neighbours_by_distance(index: LatentIndex) -> None:
    found = index.query(QUERY, k=4)
    distances = (QUERY[:, None] - MEAN).norm(dim=-1)
    assert torch.equal(found.indices, distances.argsort(dim=1)[:, :4])
    torch.testing.assert_close(found.distances, distances.sort(dim=1).values[:, :4])


def test_neighbours_by_divergence_are_those_of_torch(index: LatentIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_CHUNK", 100)  # several chunks of queries
    found = index.query(QUERY, QUERY_STD, k=3, metric="divergence")
    a = Independent(Normal(QUERY[:, None], QUERY_STD[:, None]), 1)
    b = Independent(Normal(MEAN[None], STD[None]), 1)
    expected = (kl_divergence(a, b) + kl_divergence(b, a)) / 2
    torch.testing.assert_close(found.distances, expected.sort(dim=1).values[:, :3], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.indices, expected.argsort(dim=1)[:, :3])


def test_a_datum_is_its_own_nearest_neighbour(index: LatentIndex) -> None:
    for metric in ("euclidean", "divergence"):
        found = index.query(MEAN, STD, k=1, metric=metric)  # type: ignore[arg-type]
        assert found.indices[:, 0].tolist() == list(range(40))
        torch.testing.assert_close(found.distances, torch.zeros(40, 1), atol=1e-5, rtol=0)


def test_an_index_comes_back_from_disk(index: LatentIndex, tmp_path: Path) -> None:
    index.save(tmp_path / "index.safetensors")
    again = LatentIndex.load(tmp_path / "index.safetensors", source="corpus 1")
    assert torch.equal(again.mean, MEAN)
    assert torch.equal(again.std, STD)
    assert again.source == "corpus 1"
    with pytest.raises(DataError, match="is an index of 'corpus 1', not of 'corpus 2': rebuild it"):
        LatentIndex.load(tmp_path / "index.safetensors", source="corpus 2")
    (tmp_path / "broken.safetensors").write_bytes(b"no index")
    with pytest.raises(DataError, match="cannot be read as an index of latents"):
        LatentIndex.load(tmp_path / "broken.safetensors")
    with pytest.raises(DataError, match="cannot be read as an index of latents"):
        LatentIndex.load(tmp_path / "missing.safetensors")


def test_what_cannot_be_asked(index: LatentIndex) -> None:
    with pytest.raises(UsageError, match="unknown metric 'cosine'; known metrics: euclidean, divergence"):
        index.query(QUERY, metric="cosine")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"queries must have shape \(queries, 3\), got \(7, 2\)"):
        index.query(QUERY[:, :2])
    with pytest.raises(UsageError, match="k must be between 1 and the size of the index, 40, got 41"):
        index.query(QUERY, k=41)
    with pytest.raises(UsageError, match="needs a std of the queries"):
        index.query(QUERY, metric="divergence")
    with pytest.raises(UsageError, match="needs means and standard deviations"):
        LatentIndex(MEAN, STD[:3])
    with pytest.raises(UsageError, match="finite means and finite standard deviations"):
        LatentIndex(MEAN, -STD)
