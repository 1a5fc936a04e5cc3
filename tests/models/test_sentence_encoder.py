"""A model whose encoder reads the embeddings of a frozen sentence encoder, from training to use."""

import json
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file

from latent_ebm_text import LatentEBMForTextGeneration, load_text_model
from latent_ebm_text.commands.arguments import DataArguments, HubArguments
from latent_ebm_text.commands.evaluate_text import TextEvaluationArguments, run_text_evaluation
from latent_ebm_text.commands.train_text import train_text_model
from latent_ebm_text.data import TextCollator, tokenize_corpus
from latent_ebm_text.data import embeddings as embeddings_module
from latent_ebm_text.data.embeddings import add_embeddings, embed_sentences, load_sentence_encoder
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.pipelines import TextReconstructionPipeline, TextScoringPipeline
from latent_ebm_text.training.arguments import TrainingArguments
from tests import tiny_runs
from tests.helpers import SENTENCES, seeded, tiny_batch, tiny_model, tiny_tokenizer
from tests.sentence_encoders import WIDTH, tiny_sentence_encoder

pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_sentence_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def model(encoder):
    model = tiny_model(
        encoder_hidden_size=16,
        sentence_encoder=encoder,
        sentence_embedding_size=WIDTH,
        sentence_embedding_weight=0.2,
        bag_of_tokens_weight=1.0,
    )
    with torch.no_grad():  # posteriors of some width, neither points nor the plane
        model.encoder.out.weight.mul_(0.05)
        model.encoder.tokens.out.weight.mul_(0.05)
    return model


def test_the_encoder_reads_the_embedding_of_the_sentence(model, encoder):
    embedded = torch.from_numpy(embed_sentences(SENTENCES, encoder))
    assert embedded.norm(dim=1) == pytest.approx(torch.ones(4), abs=1e-5)
    batch = tiny_batch() | {"sentence_embeddings": embedded}
    proposal = model.encoder.propose(batch)
    other = model.encoder.propose(batch | {"sentence_embeddings": embedded.flip(0)})
    assert (proposal.mean - other.mean).abs().max() > 0.01
    index = model.build_index(SENTENCES, tokenizer=tiny_tokenizer(), num_draws=2, generator=seeded())
    assert index.mean.shape == proposal.mean.shape
    # Rows in another order, and of other lengths beside them, have the same proposals.
    rows = model._read(SENTENCES[::-1], tokenizer=tiny_tokenizer())
    for indices, mean in model.map_batches(lambda _, inputs, __: model.encoder.propose(inputs).mean, rows, 2):
        torch.testing.assert_close(mean, proposal.mean.flip(0)[indices])


def test_strings_and_token_ids_are_read_alike(model):
    tokenizer = tiny_tokenizer()
    ids = [[1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2] for text in SENTENCES]
    results = [model.score(data, tokenizer=tokenizer, generator=seeded()).nll for data in (SENTENCES, ids)]
    assert torch.equal(*results)
    with pytest.raises(UsageError, match="give tokenizer=..., also beside token ids"):
        model.score(ids)
    assert model.reconstruct(SENTENCES, tokenizer=tokenizer, generator=seeded()).shape[0] == 4


def test_pipelines_give_the_tokenizer(model):
    pipe = TextScoringPipeline(model=model, tokenizer=tiny_tokenizer())
    assert [each["nll"] > 0 for each in pipe(SENTENCES[:2], marginal="importance")] == [True, True]
    pipe = TextReconstructionPipeline(model=model, tokenizer=tiny_tokenizer())
    assert pipe(SENTENCES[0])["generated_text"] is not None


def test_training_needs_the_embeddings(model):
    batch = tiny_batch()
    model.train()
    with pytest.raises(UsageError, match="give sentence_embeddings"):
        model(**batch)
    with pytest.raises(UsageError, match=r"shape \(batch, 12\), got \(4, 3\)"):
        model(**batch, sentence_embeddings=torch.zeros(4, 3))
    output = model(**batch, sentence_embeddings=torch.randn(4, WIDTH, generator=seeded()))
    output.loss.backward()
    assert model.encoder.hidden.weight.grad.abs().sum() > 0
    assert model.embedding_head.weight.grad.abs().sum() > 0


def test_the_auxiliary_loss_is_the_squared_error_and_the_nats_of_the_words(model):
    batch, latents = tiny_batch(), torch.randn(4, 4, generator=seeded())
    embedded = torch.randn(4, WIDTH, generator=seeded(1))
    found = model._auxiliary_loss({**batch, "sentence_embeddings": embedded}, latents).detach()
    with torch.no_grad():
        error = (model.embedding_head(latents) - embedded * WIDTH**0.5).square().sum(dim=1)
        log_probs = model.bag_of_tokens(latents).log_softmax(dim=1)
        words = [
            -sum(float(log_probs[row, token]) for token in ids[1:][mask[1:].bool()])
            for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True))
        ]
    assert float(found) == pytest.approx(0.2 * float(error.mean()) + np.mean(words), rel=1e-5)


def test_what_serves_training_alone_is_not_saved(model, tmp_path):
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert not [name for name in saved if "head" in name or "bag" in name]
    loaded = LatentEBMForTextGeneration.from_pretrained(tmp_path)
    pair = [each.score(SENTENCES, tokenizer=tiny_tokenizer(), generator=seeded()).nll for each in (model, loaded)]
    assert torch.equal(*pair)


def test_embeddings_are_computed_once(encoder, monkeypatch):
    splits = DatasetDict(train=Dataset.from_dict({"text": SENTENCES}))
    tokenized, _ = tokenize_corpus(splits, tiny_tokenizer(), 12)
    first = add_embeddings(tokenized, tiny_tokenizer(), encoder)
    collated = TextCollator(0)([first["train"][index] for index in range(4)])
    np.testing.assert_allclose(collated["sentence_embeddings"], embed_sentences(SENTENCES, encoder), atol=1e-6)

    monkeypatch.setattr(embeddings_module, "embed_token_ids", lambda *args: 1 / 0)
    again = add_embeddings(tokenized, tiny_tokenizer(), encoder)
    assert again["train"]["sentence_embeddings"][:] == first["train"]["sentence_embeddings"][:]


def test_one_progress_bar_counts_the_sentences_of_all_parts(encoder, monkeypatch, capsys):
    monkeypatch.setattr(embeddings_module, "_PART_SIZE", 3)
    tokenized, _ = tokenize_corpus(DatasetDict(train=Dataset.from_dict({"text": SENTENCES})), tiny_tokenizer(), 12)
    capsys.readouterr()
    add_embeddings(tokenized, tiny_tokenizer(), encoder)
    shown = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "Embedding" in line]
    assert all(f"/{len(SENTENCES)} " in line for line in shown)
    assert f"{len(SENTENCES)}/{len(SENTENCES)} " in shown[-1]


def test_embeddings_survive_a_kill_part_by_part(encoder, monkeypatch):
    monkeypatch.setattr(embeddings_module, "_PART_SIZE", 2)
    tokenized, _ = tokenize_corpus(DatasetDict(train=Dataset.from_dict({"text": SENTENCES})), tiny_tokenizer(), 12)
    whole, seen = embeddings_module.embed_token_ids, []

    def killed_in_the_second_part(rows, *args):
        if seen:
            raise KeyboardInterrupt
        seen.extend(rows)
        return whole(rows, *args)

    monkeypatch.setattr(embeddings_module, "embed_token_ids", killed_in_the_second_part)
    with pytest.raises(KeyboardInterrupt):
        add_embeddings(tokenized, tiny_tokenizer(), encoder)

    def remaining(rows, *args):
        assert not any(row in seen for row in rows)
        return whole(rows, *args)

    monkeypatch.setattr(embeddings_module, "embed_token_ids", remaining)
    embedded = add_embeddings(tokenized, tiny_tokenizer(), encoder)["train"]
    np.testing.assert_allclose(embedded["sentence_embeddings"][:], embed_sentences(SENTENCES, encoder), atol=1e-6)


def test_a_missing_extra_or_model_is_named(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="'nobody/nothing' cannot be loaded"):
        load_sentence_encoder("nobody/nothing")
    (tmp_path / "pytorch_model.bin").write_bytes(b"no pickle is read")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_sentence_encoder(str(tmp_path))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'latent-ebm-text\[encoder\]'"):
        load_sentence_encoder("another")
    with pytest.raises(UsageError, match="set encoder_hidden_size"):
        tiny_model(sentence_encoder="any", sentence_embedding_size=WIDTH)
    with pytest.raises(UsageError, match="give sentence_embedding_size"):
        tiny_model(sentence_encoder="any", encoder_hidden_size=4)


def test_a_run_from_training_to_its_report(encoder, tmp_path):
    folder = tmp_path / "run"
    arguments = tiny_runs.model_arguments(
        **tiny_runs.MODEL, sentence_encoder=encoder, encoder_hidden_size=8, sentence_embedding_weight=0.2
    )
    training = TrainingArguments(
        output_dir=str(folder), inference="variational", information=2.0, **tiny_runs.TRAINING
    )
    assert train_text_model(DataArguments(**tiny_runs.DATA), arguments, training, HubArguments()) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["splits"]["test"]["information"]["n"] == 1000
    model, tokenizer = load_text_model(folder / "model")
    assert model.config.sentence_embedding_size == WIDTH
    assert len(model.score(["the bank recovers"], tokenizer=tokenizer).nll) == 1

    settings = {"num_samples": 20, "num_likelihood_sentences": 8, "evaluator": "none", "chain_repetitions": 0}
    evaluation = TextEvaluationArguments(model=str(folder), output_dir=str(tmp_path / "report"), **settings)
    assert run_text_evaluation(DataArguments(**tiny_runs.DATA), evaluation)
