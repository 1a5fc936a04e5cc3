"""Finding a model by what a user types, and what is wrong where there is none."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.data.tokenizers import train_word_tokenizer
from latent_ebm_text.errors import DataError, HubError, UsageError
from latent_ebm_text.hub.folders import find_model
from latent_ebm_text.hub.pushing import push_run
from latent_ebm_text.models.loading import load_text_model
from tests.hub_server import HubServer


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A model's folder of one's own."""
    return Path(shutil.copytree(trained / "model", tmp_path / "model"))


def test_the_folder_of_a_run_stands_for_its_model(trained: Path) -> None:
    assert find_model(trained) == find_model(trained / "model") == trained / "model"


def test_what_is_no_model(trained: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder ./nowhere; check the path"):
        find_model("./nowhere")
    with pytest.raises(UsageError, match="is a file; give the folder of a model"):
        find_model(trained / "results.json")
    with pytest.raises(UsageError, match="holds no model: there is no config.json"):
        find_model(trained / "checkpoints")
    with pytest.raises(UsageError, match="revision 'v1' is for models on the Hub"):
        find_model(model, "v1")
    edit_config(model, model_type="gpt2")
    with pytest.raises(UsageError, match="holds a model of type 'gpt2', which is none of this library's"):
        load_text_model(model)
    edit_config(model, model_type="latent_ebm_image")
    with pytest.raises(UsageError, match="is an image model; give a text model"):
        load_text_model(model)


def test_a_run_that_has_not_ended_has_no_model_yet(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(UsageError, match=r"has no model yet: its training has not ended. Run the same command again"):
        load_text_model(tmp_path)


def test_damaged_files_are_named(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"the safetensors weights of {model} cannot be read"):
        load_text_model(model)
    weights.unlink()
    with pytest.raises(DataError, match=f"the model in {model} is incomplete: .*model.safetensors"):
        load_text_model(model)
    (model / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config.json is not valid JSON"):
        load_text_model(model)


@pytest.mark.parametrize("num_words", [5, 2_000])
def test_a_tokenizer_of_another_model_is_refused(model: Path, num_words: int) -> None:
    train_word_tokenizer([" ".join(f"word{number}" for number in range(num_words))]).save_pretrained(model)
    with pytest.raises(UsageError, match="the tokenizer has ids up to .* use the tokenizer saved with the model"):
        load_text_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("prior.out.weight"), "lack prior.out.weight"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "have, against its configuration, extra"),
        (
            lambda weights: weights.update({"prior.out.weight": torch.zeros(1, 3)}),
            r"the shapes prior.out.weight \(1, 3\) in place of \(1, 8\)$",
        ),
    ],
)
def test_weights_that_are_not_the_models_are_refused(
    model: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=message):
        load_text_model(model)
    with pytest.raises(DataError, match=message):
        LatentEBMForTextGeneration.from_pretrained(model)


def test_an_adapter_does_not_lead_elsewhere(trained: Path, model: Path) -> None:
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(trained / "model")}))
    with pytest.raises(DataError, match="adapter_config.json leads to the model of an adapter elsewhere"):
        load_text_model(model)


def test_weights_come_from_a_state_dict_too(model: Path) -> None:
    expected = LatentEBMForTextGeneration.from_pretrained(model)
    again = LatentEBMForTextGeneration.from_pretrained(None, config=expected.config, state_dict=expected.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in expected.state_dict().items())


def test_a_model_of_a_newer_version(model: Path) -> None:
    assert json.loads((model / "config.json").read_text())["latent_ebm_text_version"]
    edit_config(model, latent_ebm_text_version="99.0")
    assert load_text_model(model), "what can be read is read"
    edit_config(model, wormholes=3)
    message = (
        r"was written by latent_ebm_text 99.0, and .* does not know its setting 'wormholes': pip install --upgrade"
    )
    with pytest.raises(DataError, match=message):
        load_text_model(model)
    with pytest.raises(DataError, match=message):
        LatentEBMForTextGeneration.from_pretrained(model)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, too small for a model."""
    (folder := tmp_path / "disk").mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # of huggingface_hub, which then tries all the same
def test_a_full_disk_while_downloading(
    hub: HubServer, trained: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_run(trained)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk))
    with pytest.raises(HubError, match=r"the disk is full \(.* MiB free in .*; make room .* and run it again"):
        load_text_model("me/tiny")
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert load_text_model("me/tiny")[0].num_parameters() > 0, "with room it goes on"


def test_a_download_that_breaks_off_is_told_and_goes_on(hub: HubServer, trained: Path) -> None:
    push_run(trained)
    hub.fail("GET", "/resolve/.*/model.safetensors", 404)
    with pytest.raises(HubError, match="me/tiny is no folder, and loading it from the Hub: the Hub answered 404"):
        load_text_model("me/tiny")
    hub.recover()
    assert load_text_model("me/tiny")[0].num_parameters() > 0
