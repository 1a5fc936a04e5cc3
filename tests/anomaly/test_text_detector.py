"""The detector that trains itself: what it finds, what it keeps, what it refuses, and scikit-learn around it."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_ebm_text import LatentEBMTextDetector
from latent_ebm_text.anomaly.ensemble import TextEnsemble
from latent_ebm_text.anomaly.metrics import auroc
from latent_ebm_text.anomaly.text_scores import FUSED_SCORES
from latent_ebm_text.anomaly.text_views import TextView, near_duplicates
from latent_ebm_text.data import grammar_dataset
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.models.configuration import LatentEBMTextConfig
from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration
from tests.helpers import tiny_tokenizer

# There are few texts here, and the anomalies are of words that ordinary texts do not have; both are warned of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* of the words do not occur in the texts of fit:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* ordinary data calibrate the p-values:UserWarning"),
]

NEWS = list(dict.fromkeys(grammar_dataset(600)["train"]["text"]))
ORDINARY, OTHERS = NEWS[:360], NEWS[360:420]
SPAM = [f"WIN {number * 37} EURO now!!! call 0800-{number * 91} or text YES{number}" for number in range(1, 31)]
FAST: dict[str, Any] = {"time_budget": 5.0}


def letters(texts: Sequence[str]) -> np.ndarray:
    """Embeddings that need no network: frequencies of letters."""
    alphabet = "abcdefghijklmnopqrstuvwxyz "
    rows = [[text.lower().count(letter) / max(len(text), 1) for letter in alphabet] for text in texts]
    return np.array(rows, dtype=np.float32)


@pytest.fixture(scope="module")
def detector() -> LatentEBMTextDetector:
    return LatentEBMTextDetector(sentence_encoder=letters, **FAST).fit(ORDINARY)


def test_it_finds_what_is_unlike_the_texts_of_fit(detector: LatentEBMTextDetector) -> None:
    shuffled = [" ".join(np.random.default_rng(row).permutation(text.split())) for row, text in enumerate(OTHERS)]
    for anomalies, least in ((SPAM, 0.99), (shuffled, 0.75)):
        scores = detector.decision_function([*OTHERS, *anomalies])
        assert auroc([0] * len(OTHERS) + [1] * len(anomalies), scores) > least
    assert detector.predict(SPAM).all()
    assert detector.labels_.mean() == pytest.approx(0.1, abs=0.02)
    assert len(detector.calibration_scores_) == round(0.2 * len(np.unique(near_duplicates(ORDINARY))))


def test_anomalies_among_the_texts_of_fit_are_left_out() -> None:
    """With spam among the texts of `fit`, in many copies that differ by numbers, new spam is still found."""
    mixed = [*ORDINARY, *SPAM[:12], *SPAM[:12], *(text.replace("37", "38") for text in SPAM[:12])]
    detector = LatentEBMTextDetector(sentence_encoder=letters, **FAST).fit(mixed)
    assert len(detector.decision_scores_) == len(mixed)
    assert auroc([0] * len(ORDINARY) + [1] * 36, detector.decision_scores_) > 0.95
    scores = detector.decision_function([*OTHERS, *SPAM[12:]])
    assert auroc([0] * len(OTHERS) + [1] * len(SPAM[12:]), scores) > 0.95


def test_false_discoveries_of_a_fitted_detector(detector: LatentEBMTextDetector) -> None:
    p_values = detector.p_values(NEWS[360:])
    assert np.mean(p_values <= 0.1) < 0.2
    selected = detector.select([*OTHERS, *SPAM], rate=0.1)
    assert selected[len(OTHERS) :].mean() > 0.9
    assert (selected[: len(OTHERS)].sum() / selected.sum()) < 0.25


def test_the_surprising_words_are_named(detector: LatentEBMTextDetector) -> None:
    words = OTHERS[0].split()
    words[2] = "zebra"
    (explanation,) = detector.explain([" ".join(words)])
    assert max(explanation.words, key=lambda word: word.surprise).word == "zebra"
    assert [" ".join(words)[word.start : word.end] for word in explanation.words] == words
    assert explanation.p_values.keys() == set(FUSED_SCORES)
    only = LatentEBMTextDetector(sentence_encoder=letters, fused_scores=("neighbours",), **FAST).fit(ORDINARY)
    assert np.isfinite(only.decision_function(SPAM)).all()
    with pytest.raises(UsageError, match="explained by 'characters' and 'word order'"):
        only.explain(OTHERS)


def test_planted_words_are_found_by_their_surprise(detector: LatentEBMTextDetector) -> None:
    rng, labels, surprise = np.random.default_rng(0), [], []
    vocabulary = sorted({word for text in ORDINARY for word in text.split()})
    for text in OTHERS:
        words = text.split()
        place = int(rng.integers(len(words)))
        words[place] = vocabulary[rng.integers(len(vocabulary))]
        (explanation,) = detector.explain([" ".join(words)])
        surprise += [word.surprise for word in explanation.words]
        labels += [int(index == place) for index in range(len(words))]
    assert auroc(labels, surprise) > 0.8


def test_it_comes_back_from_disk(tmp_path: Path, detector: LatentEBMTextDetector) -> None:
    detector.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = LatentEBMTextDetector.from_pretrained(tmp_path, sentence_encoder=letters)
    texts = [*OTHERS, *SPAM]
    np.testing.assert_array_equal(again.decision_function(texts), detector.decision_function(texts))
    np.testing.assert_array_equal(again.p_values(texts), detector.p_values(texts))
    assert again.settings() == detector.settings()
    assert (again.threshold_, again.explain(SPAM[:1])) == (detector.threshold_, detector.explain(SPAM[:1]))
    with pytest.raises(UsageError, match="fitted on the vectors of a function: give it as sentence_encoder"):
        LatentEBMTextDetector.from_pretrained(tmp_path)
    (tmp_path / "scores.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="holds no scores of a detector"):
        LatentEBMTextDetector.from_pretrained(tmp_path, sentence_encoder=letters)


def test_without_a_sentence_encoder_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_ebm_text.anomaly.text_detector.installed_encoder", lambda: None)
    with pytest.warns(UserWarning, match="not embedded by a sentence encoder, since the extra `anomaly` is not inst"):
        detector = LatentEBMTextDetector(**FAST).fit(ORDINARY)
    scores = detector.decision_function([*OTHERS, *SPAM])
    assert auroc([0] * len(OTHERS) + [1] * len(SPAM), scores) > 0.99
    detector.save_pretrained(tmp_path)
    again = LatentEBMTextDetector.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.decision_function([*OTHERS, *SPAM]), scores)


def test_the_time_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr("latent_ebm_text.anomaly.text_detector.installed_encoder", lambda: "some encoder")
    monkeypatch.setattr(
        "latent_ebm_text.anomaly.text_detector.embed_sentences",
        lambda texts, name, **_: (time.sleep(0.01 * len(texts)), letters(texts))[1],
    )
    with pytest.warns(UserWarning, match=r"would take \d+ s of time_budget=1: vectors come from their words"):
        LatentEBMTextDetector(time_budget=1).fit(ORDINARY)


def test_what_cannot_be_fitted(detector: LatentEBMTextDetector) -> None:
    new = LatentEBMTextDetector(sentence_encoder=letters)
    with pytest.raises(UsageError, match="30 different texts or more, and of these 1 all are the same"):
        new.fit(["one text"])
    with pytest.raises(UsageError, match="of these 50 all are the same"):
        new.fit(["the same text"] * 50)
    with pytest.raises(UsageError, match="of these 40 only 20 are different"):
        new.fit(ORDINARY[:20] * 2)
    with pytest.raises(UsageError, match="no threshold yet"):
        new.predict(OTHERS)
    with pytest.raises(UsageError, match="contamination must be above 0 and at most 0.5, got 0.6"):
        LatentEBMTextDetector(contamination=0.6)
    with pytest.raises(UsageError, match=r"got list: data go to fit\(\)"):
        LatentEBMTextDetector(ORDINARY)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown score 'topics'; known scores: neighbours, mahalanobis"):
        LatentEBMTextDetector(fused_scores=("topics",))
    with pytest.raises(UsageError, match="time_budget must be positive"):
        LatentEBMTextDetector(time_budget=0)
    with pytest.raises(UsageError, match="texts must be a list, not one string"):
        detector.predict("one text")
    with pytest.raises(UsageError, match="the model's tokenizer is missing"):
        LatentEBMTextDetector(LatentEBMForTextGeneration(LatentEBMTextConfig(vocab_size=9))).fit(ORDINARY)


def test_empty_giant_and_foreign_texts(detector: LatentEBMTextDetector) -> None:
    scores = detector.decision_function(["", "  ", "a" * 100_000, "\U0001f600", OTHERS[0]])
    assert np.isfinite(scores).all()
    assert scores[:4].min() > scores[4]
    with pytest.warns(UserWarning, match="100% of the words do not occur in the texts of fit"):
        detector.predict(["вчера шёл дождь и было холодно"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.predict(OTHERS)
    fitted = LatentEBMTextDetector(sentence_encoder=letters, **FAST).fit([*ORDINARY, "", "a" * 50_000])
    assert np.isfinite(fitted.decision_scores_).all()


def test_scores_of_the_texts_of_fit_are_those_of_models_that_have_not_seen_them() -> None:
    """The neighbour of a text is not itself: no score of the texts of `fit` is that of a text that was fitted on."""
    view = TextView.of(ORDINARY[:90], letters)
    ensemble = TextEnsemble(("neighbours", "characters"))
    fused = ensemble.fit(view, contamination=0.01, max_seconds=1.0)
    assert fused.mean() < ensemble.tails.fused(ensemble.scores(TextView.of(SPAM, letters))).mean()  # type: ignore
    seen, unseen = ensemble.scores(view), ensemble.scores(TextView.of(OTHERS, letters))
    assert (seen.mean(axis=0) < unseen.mean(axis=0)).all()
    assert abs(np.median(fused) - np.median(ensemble.fused(TextView.of(OTHERS, letters)))) < 0.5


def test_clone_pipeline_and_searches_of_scikit_learn(detector: LatentEBMTextDetector) -> None:
    from sklearn.base import clone, is_outlier_detector
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    assert is_outlier_detector(detector)
    small = {"sentence_encoder": letters, "fused_scores": ("characters", "word order", "surface"), **FAST}
    new = LatentEBMTextDetector(**small)
    copy = clone(new)
    assert not hasattr(copy, "ensemble_")
    assert copy.get_params() == new.get_params()
    texts, labels = [*ORDINARY[:150], *SPAM], [0] * 150 + [1] * len(SPAM)
    pipeline = make_pipeline(FunctionTransformer(lambda texts: [text.strip() for text in texts]), copy).fit(texts)
    assert pipeline.predict([f" {text}\n" for text in SPAM]).mean() > 0.9
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled, shuffled_labels = [texts[row] for row in order], [labels[row] for row in order]
    assert cross_val_score(new, shuffled, shuffled_labels, cv=3, scoring="roc_auc").min() > 0.9
    search = GridSearchCV(new, {"contamination": [0.05, 0.2]}, cv=2, scoring="roc_auc").fit(shuffled, shuffled_labels)
    assert search.best_estimator_.contamination in (0.05, 0.2)


def test_near_duplicates_differ_by_numbers_marks_and_capitals() -> None:
    assert near_duplicates(["Call 123!", "call 77", "other", "CALL  5.", "!!", "!!", "??"]).tolist() == [
        0, 0, 2, 0, 4, 4, 6,
    ]  # fmt: skip


def test_records_that_differ_by_numbers_are_no_copies_of_each_other() -> None:
    rng = np.random.default_rng(0)
    records = [f'{{"user": {rng.integers(10_000)}, "ms": {rng.integers(100, 400)}}}' for _ in range(120)]
    strange = [f'{{"user": {rng.integers(10_000)}, "ms": {rng.integers(100_000, 900_000)}}}' for _ in range(20)]
    assert near_duplicates([*records, records[3]]).tolist() == [*range(120), 3]
    detector = LatentEBMTextDetector(sentence_encoder=letters, **FAST).fit(records[:100])
    scores = detector.decision_function([*records[100:], *strange])
    assert auroc([0] * 20 + [1] * 20, scores) > 0.9


def test_no_texts_and_what_is_no_embedding_are_named(detector: LatentEBMTextDetector) -> None:
    with pytest.raises(UsageError, match="no texts were given"):
        detector.predict([])
    with pytest.raises(UsageError, match="no texts were given: training takes 30 or more"):
        LatentEBMTextDetector().fit([])
    for encoder, got in (
        (lambda t: np.zeros(len(t)), r"\(360,\)"),
        (lambda t: np.full((len(t), 2), np.nan), "not finite"),
    ):
        with pytest.raises(
            UsageError, match=rf"must give finite vectors \(360, width\) for as many texts, got .*{got}"
        ):
            LatentEBMTextDetector(sentence_encoder=encoder).fit(ORDINARY)


@pytest.mark.filterwarnings("ignore:texts are not embedded by a sentence encoder:UserWarning")
def test_p_values_hold_for_words_that_never_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of words that were fitted on the texts held out for p-values would know the words of these alone."""
    monkeypatch.setattr("latent_ebm_text.anomaly.text_detector.installed_encoder", lambda: None)
    rng = np.random.default_rng(0)
    records = [",".join(f"{value:.2f}" for value in row) for row in rng.uniform(0, 100, (700, 6))]
    detector = LatentEBMTextDetector(**FAST).fit(records[:300])
    assert np.mean(detector.p_values(records[300:]) <= 0.1) < 0.2


def test_a_model_by_its_folder(tmp_path: Path, model: LatentEBMForTextGeneration) -> None:
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    texts = ["w01 w02 w03", "w02 w05", "w07 w01 w02", "w03 w03"]
    by_name = LatentEBMTextDetector(str(tmp_path), score="reconstruction").fit(texts)
    by_model = LatentEBMTextDetector(model, tiny_tokenizer(), score="reconstruction").fit(texts)
    np.testing.assert_allclose(by_name.decision_scores_, by_model.decision_scores_)
    (explanation,) = by_name.explain(["w01 w02 w05"])
    assert [word.word for word in explanation.words] == ["w01", "w02", "w05"]
    assert explanation.p_values == {}
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = "<unk>"
    with pytest.warns(UserWarning, match="100% of the tokens are unknown to the model"):
        LatentEBMTextDetector(model, tokenizer, score="reconstruction").fit(texts).predict(["quite unknown words"])
