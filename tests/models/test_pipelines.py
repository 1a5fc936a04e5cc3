"""Strings in, strings and numbers out, through `transformers.pipeline`."""

from pathlib import Path

import pytest
from transformers import pipeline

import latent_ebm_text.models.pipelines  # noqa: F401  (makes the tasks known)
from latent_ebm_text.errors import UsageError
from tests.helpers import SENTENCES, seeded, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_sentences_from_the_prior(folder: Path) -> None:
    sample = pipeline("unconditional-text-generation", model=str(folder))
    found = sample(5, seed=1)
    assert len(found) == 5
    assert all(isinstance(each["generated_text"], str) and isinstance(each["energy"], float) for each in found)
    assert found == sample(5, seed=1) != sample(5, seed=2)
    assert not any("<eos>" in each["generated_text"] for each in found)
    pairs = sample(2, num_return_sequences=3, seed=1)
    assert [each["energy"] for each in pairs] == [pairs[0]["energy"]] * 3 + [pairs[3]["energy"]] * 3
    with pytest.raises(UsageError, match="takes a number of sentences, got 'two'"):
        sample("two")


def test_sentences_are_reconstructed_one_or_many(folder: Path) -> None:
    reconstruct = pipeline("text-reconstruction", model=str(folder))
    one = reconstruct(SENTENCES[0], seed=3)
    many = reconstruct(SENTENCES, seed=3)
    assert one == many[0], "a sentence's draw does not depend on its neighbours"
    assert len(many) == len(reconstruct(SENTENCES, seed=3, batch_size=4)) == 4
    assert all(set(each) == {"generated_text"} for each in many)
    with pytest.raises(UsageError, match="takes strings, got int"):
        reconstruct(3)


def test_sentences_are_scored_as_the_model_scores_them(folder: Path) -> None:
    score = pipeline("text-scoring", model=str(folder))
    found = score(SENTENCES, seed=2)
    assert [each["nll"] / each["nll_per_token"] for each in found] == pytest.approx([4, 2, 6, 3])
    direct = tiny_model().score([SENTENCES[1]], tokenizer=tiny_tokenizer(), generator=seeded(2))
    assert found[1]["reconstruction"] == pytest.approx(float(direct.reconstruction), rel=1e-4)
    batched = score(SENTENCES, batch_size=4, marginal="none", num_draws=8)
    alone = score(SENTENCES, marginal="none", num_draws=8)
    assert [e["reconstruction"] for e in batched] == pytest.approx([e["reconstruction"] for e in alone], rel=0.15)
    assert "nll" not in batched[0]
