"""Pushing to a Hub over HTTP: what arrives, what is kept, and everything that may go wrong on the way."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.errors import HubError, UsageError
from latent_ebm_text.hub import pushing
from latent_ebm_text.hub.card import is_edited
from latent_ebm_text.hub.pushing import push_run
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.loading import load_text_model
from tests.helpers import tiny_model
from tests.hub_server import HubServer
from tests.tiny_runs import train


def sentences(model: LatentEBMForTextGeneration, tokenizer: object) -> list[str]:
    ids = model.generate(num_samples=8, generator=derived_generator(3, "samples", 0))
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run's folder of one's own."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


def test_a_pushed_run_comes_back_as_it_was(hub: HubServer, trained: Path) -> None:
    pushed = push_run(trained)
    assert pushed.repo_id == "me/tiny"
    assert pushed.url == f"{hub.endpoint}/me/tiny/commit/{pushed.commit}"
    files = hub.model("me/tiny").files()
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "results.json", "samples.txt"} <= set(
        files
    )
    assert files["model.safetensors"] == (trained / "model" / "model.safetensors").read_bytes()
    assert not any(name.endswith((".bin", ".pkl", ".pt")) for name in files)

    expected = sentences(*load_text_model(trained))
    assert sentences(*load_text_model("me/tiny")) == expected
    plain = AutoModelForCausalLM.from_pretrained("me/tiny"), AutoTokenizer.from_pretrained("me/tiny")
    assert sentences(*plain) == expected


def test_a_second_push_sends_nothing_again(hub: HubServer, trained: Path) -> None:
    first = push_run(trained)
    before = len(hub.requests)
    assert push_run(trained).commit == first.commit
    assert not any(method == "PUT" or "/commit/" in path for method, path, _ in hub.requests[before:])


def test_a_push_that_breaks_off_changes_nothing_and_can_be_repeated(hub: HubServer, run: Path) -> None:
    first = push_run(run)
    files, kept = (
        hub.model("me/tiny").files(),
        {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()},
    )
    model = LatentEBMForTextGeneration.from_pretrained(run / "model")
    with torch.no_grad():
        model.prior.out.weight.add_(1.0)
    model.save_pretrained(run / "model")
    hub.fail("POST", "/commit/main")
    with pytest.raises(HubError, match=r"pushing to me/tiny: .* cannot be reached .*try again later"):
        push_run(run)
    assert hub.model("me/tiny").files() == files
    assert kept.keys() == {path for path in run.rglob("*.*") if path.is_file()}

    hub.recover()
    uploads = sum(method == "PUT" for method, _, _ in hub.requests)
    assert push_run(run).commit != first.commit
    assert sum(method == "PUT" for method, _, _ in hub.requests) == uploads, "the weights were there already"
    assert hub.model("me/tiny").files()["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()


def test_private_on_a_branch_and_as_remote_code(hub: HubServer, trained: Path, tmp_path: Path) -> None:
    push_run(trained, "me/hidden", private=True, revision="v2", remote_code=True)
    repository = hub.model("me/hidden")
    assert repository.private
    assert set(repository.files("main")) == {".gitattributes"}
    assert "remote_code.py" in repository.files("v2")
    loaded, tokenizer = load_text_model("me/hidden", "v2")
    assert sentences(loaded, tokenizer) == sentences(*load_text_model(trained))
    with pytest.raises(UsageError, match="loading it from the Hub: there is no such revision"):
        load_text_model("me/hidden", "v3")
    os.environ["HF_TOKEN"] = "hf_other"  # of the fixture, which puts it back
    with pytest.raises(UsageError, match="no such repository, or hides it from you"):
        load_text_model("me/hidden")


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        (None, "me/new", "pushing to me/new: there is no Hugging Face token; run `hf auth login` or set HF_TOKEN"),
        ("hf_wrong", "me/new", "the Hub does not know this token"),
        ("hf_reader", "me/new", "the token of me may only read; make one that may write"),
        ("hf_me", "other/new", "me may not write there, but to me; choose another name"),
        ("hf_me", "me/a new one", "pushing to me/a new one: Repo id must use alphanumeric"),
    ],
)
def test_who_may_not_push_is_told_why(
    hub: HubServer, trained: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, name: str, message: str
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError, match=message):
        push_run(trained, name)
    assert not hub.repositories


def test_a_name_that_is_taken_is_left_alone(hub: HubServer, trained: Path) -> None:
    hub.add("models", "me/gpt", {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b"weights"})
    hub.add("models", "me/notes", {"notes.txt": b"mine"})
    with pytest.raises(UsageError, match="the name is taken, by a model of type 'gpt2'; choose another one"):
        push_run(trained, "me/gpt")
    with pytest.raises(UsageError, match=r"the name is taken, by other files \(notes.txt\)"):
        push_run(trained, "me/notes")
    assert hub.model("me/gpt").files()["model.safetensors"] == b"weights"


def test_without_a_network(hub: HubServer, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_run(trained)
    load_text_model("me/tiny")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(HubError, match=r"pushing to tiny: http://127.0.0.1:9 cannot be reached"):
        push_run(trained)
    assert load_text_model("me/tiny")[0].num_parameters() > 0, "a model in the cache needs no network"
    with pytest.raises(HubError, match=r"me/other is no folder, and loading it from the Hub: .*cannot be reached"):
        load_text_model("me/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is on; unset HF_HUB_OFFLINE"):
        push_run(trained)


def test_a_hub_that_does_not_answer_says_nothing_about_its_card(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> None:
        raise LocalEntryNotFoundError("timed out")

    monkeypatch.setattr(HfApi, "hf_hub_download", download)
    with pytest.raises(LocalEntryNotFoundError):
        pushing._remote_card_is_edited("me/tiny", None, run)


@pytest.mark.parametrize("where", ["there", "here"])
def test_a_card_edited_by_hand_is_kept(hub: HubServer, run: Path, where: str) -> None:
    push_run(run)
    if where == "there":
        card = hub.model("me/tiny").files()["README.md"].decode().replace("## Limits", "## Limits\n\n- Mine.")
        HfApi().upload_file(repo_id="me/tiny", path_in_repo="README.md", path_or_fileobj=card.encode())
    else:
        card = (run / "model" / "README.md").read_text().replace("## Limits", "## Limits\n\n- Mine.")
        (run / "model" / "README.md").write_text(card)
    pushed = push_run(run)
    assert pushed.kept_card == (where == "there")
    assert hub.model("me/tiny").files()["README.md"].decode() == card
    push_run(run, overwrite_card=True)
    assert "- Mine." not in hub.model("me/tiny").files()["README.md"].decode()


def test_push_to_hub_of_the_model_itself_brings_a_card(hub: HubServer, trained: Path) -> None:
    model = LatentEBMForTextGeneration.from_pretrained(trained / "model")
    model.push_to_hub("me/direct")
    card = hub.model("me/direct").files()["README.md"].decode()
    assert 'from_pretrained("me/direct")' in card
    assert "More Information Needed" not in card
    assert "| reconstruction NLL | test |" in card, "a model that lies beside its card takes it along"
    tiny_model().push_to_hub("me/nameless")
    assert "How this model was trained was not recorded." in hub.model("me/nameless").files()["README.md"].decode()


# -------- from a training


def test_a_training_pushes_itself(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"push_to_hub": True, "hub_model_id": "me/run", "hub_strategy": "checkpoint"}
    assert train(tmp_path / "run", **settings) == 0
    repository = hub.model("me/run")
    assert repository.messages[-3:] == ["Step 5", "Step 10", "Push run"]
    assert f"pushed: {hub.endpoint}/me/run/commit/" in capsys.readouterr().out
    assert {name.split("/")[1] for name in repository.files() if name.startswith("checkpoints/")} == {"step-00000010"}
    assert ModelCard(repository.files()["README.md"].decode()).data.library_name == "latent_ebm_text"

    # The checkpoint is good for going on elsewhere.
    elsewhere = tmp_path / "elsewhere"
    HfApi().snapshot_download("me/run", allow_patterns="checkpoints/*", local_dir=elsewhere)
    assert train(elsewhere) == 0
    assert "resuming from" in capsys.readouterr().out
    weights = [path / "model" / "model.safetensors" for path in (tmp_path / "run", elsewhere)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_hub_that_fails_meanwhile_does_not_stop_a_training(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail("POST", "/preupload/", 400)
    with pytest.raises(HubError, match=r"The model is complete in .*; push it again with: latent-ebm push .* me/run"):
        train(tmp_path / "run", push_to_hub=True, hub_model_id="run", hub_strategy="every_save")
    out = capsys.readouterr().out
    assert out.count("; the training goes on") == 2
    hub.recover()
    push_run(tmp_path / "run", "me/run")
    assert json.loads(hub.model("me/run").files()["results.json"])["step"] == 14


def test_a_training_that_may_not_push_does_not_begin(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UsageError, match="the Hub does not know this token"):
        train(tmp_path / "run", push_to_hub=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="hub_model_id needs push_to_hub: give --push_to_hub too, or leave it out"):
        train(tmp_path / "run", hub_model_id="me/run")


def test_cards_that_were_not_edited_are_recognised(hub: HubServer, trained: Path) -> None:
    push_run(trained)
    card = hub.model("me/tiny").files()["README.md"].decode()
    assert not is_edited(card)
    assert not is_edited(card.replace("\n", "\r\n"))
    assert not is_edited(str(ModelCard(card))), "metadata laid out anew by a tool says the same"
    assert is_edited(card.replace("text-generation", "fill-mask"))
