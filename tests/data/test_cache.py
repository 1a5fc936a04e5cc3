"""The cache of prepared data."""

from pathlib import Path

import datasets
import pytest

from latent_ebm_text.data.cache import cached_path
from latent_ebm_text.errors import UsageError


def test_equal_things_have_one_place_and_others_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = cached_path("kind", {"a": 1, "b": [2, None]})
    assert place == cached_path("kind", {"b": [2, None], "a": 1})
    assert place.parent == tmp_path / "cache" / "latent_ebm_text" / "kind"
    assert place.parent.is_dir()
    assert len({place, cached_path("kind", {"a": 1, "b": [2]}), cached_path("other", {"a": 1, "b": [2, None]})}) == 3


def test_a_cache_that_cannot_be_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("something of mine")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(
        UsageError, match="prepared data cannot be kept in .*file/latent_ebm_text/kind: .* HF_DATASETS_CACHE"
    ):
        cached_path("kind", 1)
