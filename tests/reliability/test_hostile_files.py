"""Folders made by somebody with bad intentions: nothing in them runs, nothing outside is read, the error is clear."""

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.anomaly.detectors import LatentEBMDetector
from latent_ebm_text.anomaly.text_detector import LatentEBMTextDetector
from latent_ebm_text.commands.compare import compare_evaluations
from latent_ebm_text.errors import CheckpointError, DataError, UsageError
from latent_ebm_text.latents.heads import LatentClassifier
from latent_ebm_text.latents.neighbours import LatentIndex
from latent_ebm_text.latents.samplers import ChainStore
from latent_ebm_text.models.pretrained import load_language_model
from latent_ebm_text.training.checkpointing import load_latest_checkpoint, save_checkpoint
from tests.helpers import tiny_model, tiny_tokenizer
from tests.language_models import tiny_language_model

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


def test_weights_of_a_language_model_under_a_name_of_their_own(tmp_path, mark):
    tiny_language_model("gpt2").save_pretrained(tmp_path / "lm")
    torch.save(Bomb(mark), tmp_path / "lm" / "pickled.bin")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "pickled.bin"}}
    (tmp_path / "lm" / "other.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((tmp_path / "lm" / "config.json").read_text())
    for named, message in (
        ("other.safetensors.index.json", "other.safetensors.index.json names 'pickled.bin'"),
        ("../elsewhere.safetensors", "config.json names '../elsewhere.safetensors'"),
        ("adapter_model.bin", "config.json names 'adapter_model.bin'"),
    ):
        (tmp_path / "lm" / "config.json").write_text(json.dumps({**config, "transformers_weights": named}))
        with pytest.raises(DataError, match=f"{message}, which is not a safetensors file in the folder"):
            load_language_model(tmp_path / "lm")
        (tmp_path / "lm" / "other.safetensors.index.json").unlink(missing_ok=True)
    assert not mark.exists()


def test_a_language_model_that_lacks_weights(tmp_path):
    tiny_language_model("gpt2").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.h.1.attn.c_attn.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lack transformer.h.1.attn.c_attn.weight$"):
        load_language_model(tmp_path)


def test_a_gguf_file_that_is_none(tmp_path):
    for content in (b"", b"GGUF", b"GGUF" + bytes(64), b"GGUF" + b"\xff" * 200, os.urandom(4000)):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(UsageError, match=f"{tmp_path} holds no language model|no tokenizer for the decoder"):
            load_language_model(tmp_path, gguf_file="model.gguf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"fast_tokenizer_files": ["../tokenizer.1.0.json"]},
            "fast_tokenizer_files of tokenizer_config.json leads out",
        ),
        (
            {"merges_file": __file__},
            "merges_file of tokenizer_config.json leads out of the folder, to .*hostile_files",
        ),
    ],
)
def test_settings_of_a_tokenizer_that_lead_out(folder, settings, message):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    tokenizer.save_pretrained(folder.parent)
    (folder.parent / "tokenizer.json").rename(folder.parent / "tokenizer.1.0.json")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(DataError, match=message):
        load(folder)
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"fast_tokenizer_files": [], "merges_file": "/not/here"})
    )
    assert load(folder), "a path of another machine does no harm"


def test_a_subfolder_is_checked_too(folder):
    (folder / "config.json").rename(folder.parent / "elsewhere")
    (folder / "config.json").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(DataError, match="config.json is a link out of the folder"):
        LatentEBMForTextGeneration.from_pretrained(folder.parent, subfolder="model")


def test_chat_templates_that_are_links(folder, mark):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "a.jinja").symlink_to("/etc/hosts")
    with pytest.raises(DataError, match="a.jinja is a link out of the folder, to /etc/hosts"):
        load(folder)


def test_a_model_on_the_hub_is_checked_as_a_folder_is(hub, folder, mark):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("models", "me/sound", files)
    assert load("me/sound").config.latent_dim == 4
    weights = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pickled.bin")}
    torch.save(Bomb(mark), folder / "pickled.bin")
    hostile = {**files, "pickled.bin": (folder / "pickled.bin").read_bytes()}
    hostile["model.safetensors.index.json"] = json.dumps(index).encode()
    del hostile["model.safetensors"]
    hub.add("models", "me/pickled", hostile)
    hub.add("models", "me/adapter", {**files, "adapter_config.json": b'{"base_model_name_or_path": "me/sound"}'})
    with pytest.raises(DataError, match="names 'pickled.bin', which is not a safetensors file"):
        load("me/pickled")
    with pytest.raises(DataError, match="adapter_config.json leads to the model of an adapter elsewhere"):
        load("me/adapter")
    assert not mark.exists()


def test_a_detector_that_is_damaged(tmp_path):
    detector = LatentEBMDetector(lambda data: np.asarray(data, dtype=float)).fit([1.0, 2.0, 3.0])
    detector.save_pretrained(tmp_path / "detector")
    settings = json.loads((tmp_path / "detector" / "detector.json").read_text())
    scores = tmp_path / "detector" / "detector.safetensors"
    for shape in ((3, 1), ()):
        save_file({"decision_scores": torch.zeros(shape)}, scores)
        with pytest.raises(DataError, match="cannot be read as a detector: decision_scores must be finite numbers"):
            LatentEBMDetector.from_pretrained(tmp_path / "detector", len)
    for wrong in ({"threshold": "many"}, {"contamination": None}, {"threshold": 10**400}, {"contamination": 2}):
        (tmp_path / "detector" / "detector.json").write_text(json.dumps(settings | wrong))
        with pytest.raises(DataError, match="cannot be read as a detector"):
            LatentEBMDetector.from_pretrained(tmp_path / "detector", len)


def test_a_detector_whose_files_are_links(folder, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    (tmp_path / "elsewhere").write_text("{}")
    (folder / "detector.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="detector.json is a link out of the folder"):
        LatentEBMTextDetector.from_pretrained(folder)


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
