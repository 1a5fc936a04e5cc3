"""The server of these tests against unmodified clients: what the other tests rely on."""

import os
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

from tests.hub_server import HubServer


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    return HfApi()


def test_files_small_and_large_are_uploaded_listed_and_downloaded(api: HfApi, hub: HubServer, tmp_path: Path) -> None:
    large, small = os.urandom(11 * 2**20), b"a card\n"
    (tmp_path / "files" / "deep").mkdir(parents=True)
    (tmp_path / "files" / "deep" / "weights.anything").write_bytes(large)
    (tmp_path / "files" / "README.md").write_bytes(small)
    api.create_repo("me/x")
    api.upload_folder(repo_id="me/x", folder_path=tmp_path / "files")
    assert sorted(api.list_repo_files("me/x")) == [".gitattributes", "README.md", "deep/weights.anything"]
    assert [entry.path for entry in api.list_repo_tree("me/x")] == ["deep", ".gitattributes", "README.md"]
    folder = Path(snapshot_download("me/x"))
    assert (folder / "deep" / "weights.anything").read_bytes() == large
    assert Path(hf_hub_download("me/x", "README.md")).read_bytes() == small
    assert any(method == "PUT" for method, _, _ in hub.requests), "a large file goes as an LFS object"


def test_branches_tags_and_deletion(api: HfApi) -> None:
    api.create_repo("me/x")
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        api.create_repo("me/x")
    api.create_branch("me/x", branch="draft")
    commit = api.upload_file(repo_id="me/x", path_in_repo="a.txt", path_or_fileobj=b"1", revision="draft")
    api.create_tag("me/x", tag="v1", revision="draft")
    assert "a.txt" not in api.list_repo_files("me/x")
    assert "a.txt" in api.list_repo_files("me/x", revision="v1")
    assert api.model_info("me/x", revision="v1").sha == commit.oid
    refs = api.list_repo_refs("me/x")
    assert {ref.name for ref in refs.branches} == {"main", "draft"}
    api.delete_file("a.txt", "me/x", revision="draft")
    assert "a.txt" not in api.list_repo_files("me/x", revision="draft")
    assert "a.txt" in api.list_repo_files("me/x", revision="v1"), "a tag stays where it was"
    api.delete_repo("me/x")
    assert not api.repo_exists("me/x")


def test_what_is_missing_or_forbidden_is_refused_as_the_hub_does(
    api: HfApi, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.create_repo("me/x", private=True)
    with pytest.raises(errors.EntryNotFoundError):
        hf_hub_download("me/x", "nothing.txt")
    with pytest.raises(errors.RevisionNotFoundError):
        hf_hub_download("me/x", "nothing.txt", revision="v9")
    with pytest.raises(errors.RepositoryNotFoundError):
        api.model_info("me/y")
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        api.create_repo("other/x")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(errors.RepositoryNotFoundError):
        api.model_info("me/x")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert api.model_info("me/x").private
    with pytest.raises(errors.HfHubHTTPError, match="403"):
        api.upload_file(repo_id="me/x", path_in_repo="a.txt", path_or_fileobj=b"1")


def test_data_sets_are_pushed_loaded_and_streamed(hub: HubServer) -> None:
    rows = {"sentence": [f"sentence {number}" for number in range(50)]}
    datasets.Dataset.from_dict(rows).push_to_hub("me/corpus")
    assert datasets.load_dataset("me/corpus")["train"]["sentence"][:] == rows["sentence"]
    stream = datasets.load_dataset("me/corpus", split="train", streaming=True)
    assert [row["sentence"] for row in stream] == rows["sentence"]
