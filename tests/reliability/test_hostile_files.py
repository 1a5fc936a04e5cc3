"""Folders made by somebody with bad intentions: nothing in them runs, nothing outside is read, the error is clear."""

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.anomaly.detectors import LatentEBMTextDetector
from latent_ebm_text.commands.compare import compare_evaluations
from latent_ebm_text.errors import CheckpointError, DataError, UsageError
from latent_ebm_text.latents.control import LatentClassifier
from latent_ebm_text.latents.neighbours import LatentIndex
from latent_ebm_text.latents.samplers import ChainStore
from latent_ebm_text.models.pretrained import load_language_model
from latent_ebm_text.training.checkpointing import load_latest_checkpoint, save_checkpoint
from tests.helpers import tiny_model

REFUSALS = (DataError, UsageError, CheckpointError, OSError)  # OSError: transformers tells so that a file is missing


class Bomb:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture
def mark(tmp_path):
    """A path that is made by whatever runs of a hostile folder."""
    return tmp_path / "it ran"


@pytest.fixture
def folder(tmp_path):
    """A sound model folder, to be spoiled."""
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder):
    return LatentEBMForTextGeneration.from_pretrained(folder)


def test_the_mark_is_made_by_a_pickle_that_is_loaded(mark):
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the other tests would show nothing"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "training_args.bin", "optimizer.pt"])
def test_pickles_under_the_names_of_weights(folder, mark, name):
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(mark), folder / name)
    with pytest.raises(REFUSALS, match=r"safetensors"):
        load(folder)
    assert not mark.exists()


def test_a_plain_pickle_of_sound_weights_is_not_read_either(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(REFUSALS, match=r"safetensors"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_pickles_under_the_names_of_settings(folder, mark, name):
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(REFUSALS, match=name):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (LatentClassifier.from_pretrained, ["classifier.json", "classifier.safetensors"]),
        (LatentEBMTextDetector.from_pretrained, ["detector.json", "detector.safetensors"]),
        (lambda folder: LatentIndex.load(folder / "index.safetensors"), ["index.safetensors"]),
        (lambda folder: compare_evaluations(folder, folder), ["sentences.npz"]),
        (lambda folder: load_latest_checkpoint(folder / "checkpoints", identity={}), []),
    ],
)
def test_pickles_in_everything_else_that_is_read(tmp_path, mark, read, names):
    bomb = pickle.dumps(Bomb(mark))
    for name in names:
        (tmp_path / name).write_bytes(bomb)
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    for name in ("manifest.json", "state.json", "model.safetensors", "optimizer.pt", "random_states_0.pkl"):
        (checkpoint / name).write_bytes(bomb)
    try:
        outcome = read(tmp_path)
    except REFUSALS:
        pass
    else:
        assert outcome[0] is None
        assert "is corrupt: manifest.json cannot be read" in outcome[1][0]
    assert not mark.exists()


def test_chains_that_are_a_pickle_are_numbers_or_refused(tmp_path, mark):
    (tmp_path / "chains.bin").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(UsageError, match="chain store .* bytes where"):
        ChainStore(tmp_path / "chains.bin", 10, 4)
    assert not mark.exists()


@pytest.mark.parametrize("header", [2**63, 200 * 2**20, 50])
def test_headers_larger_than_the_file(folder, header):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", header) + b'{"a": ')
    with pytest.raises(DataError, match="weights of .*model cannot be read"):
        load(folder)


def test_tensors_that_claim_more_than_there_is(folder):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(DataError, match="weights of .*model cannot be read"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/tmp/secret.safetensors", "sub/../../secret.safetensors", "..", "pickled.bin"]
)
def test_an_index_whose_paths_climb_out(folder, name):
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder.parent / "secret.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="which is not a safetensors file in the folder"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_out_of_the_folder(folder, name):
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(DataError, match=f"{name} is a link out of the folder"):
        load(folder)


def test_links_of_a_model_within_a_repository_are_followed(folder, tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "c1" / "model", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(Path("..", "..", "..", "blobs", file.name))
    assert load(snapshot).config.latent_dim == 4


def test_links_as_the_hub_makes_them_are_followed(folder, tmp_path):
    snapshot = tmp_path / "hub" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    folder.rename(tmp_path / "hub" / "blobs")
    for file in (tmp_path / "hub" / "blobs").iterdir():
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    assert load(snapshot).config.latent_dim == 4


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_json_bombs(folder, name):
    (folder / name).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(DataError, match=f"{name} is not valid JSON"):
        load(folder)
    (folder / name).write_text("")
    os.truncate(folder / name, 2**30)  # sparse: no bytes on the disk
    with pytest.raises(DataError, match=f"{name} has 1073741824 bytes"):
        load(folder)


def test_code_that_comes_with_a_model_is_not_run(folder, mark):
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    classes = ("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoTokenizer")
    config["auto_map"] = dict.fromkeys(classes, "evil.Evil")
    (folder / "config.json").write_text(json.dumps(config))
    load(folder)  # by its class, which needs no code of others
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="holds no language model"):
        load_language_model(folder)
    assert not mark.exists()


def test_nothing_that_is_written_is_a_pickle(folder, tmp_path):
    save_checkpoint(tmp_path / "checkpoints", 1, {"model": {"a": torch.ones(2)}}, {"b": 1}, identity={})
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 5
    assert {path.suffix for path in written} <= {".json", ".safetensors"}
