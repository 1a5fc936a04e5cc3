"""Tasks of text anomaly detection that are cut to a number of texts."""

import pytest

from latent_ebm_text.anomaly.tasks import DetectionTask, normals_task
from latent_ebm_text.errors import UsageError

TEXTS = [f"text {number}" for number in range(200)]
LABELS = [int(number >= 180) for number in range(200)]  # a tenth are anomalies


def test_both_kinds_keep_their_shares() -> None:
    task = normals_task("made up", TEXTS, LABELS).subsampled(30, seed=1)
    assert len(task.train) == 30
    assert len(task.test) == 30
    assert sum(task.labels) == round(30 * 20 / 74)  # of 54 ordinary texts and 20 anomalies
    label_of = dict(zip(TEXTS, LABELS, strict=True))
    assert [label_of[text] for text in task.test] == task.labels
    assert not set(task.train) & set(task.test)
    assert task != normals_task("made up", TEXTS, LABELS).subsampled(30, seed=2)


def test_texts_that_are_scored_as_they_are_fitted_on_stay_the_same_ones() -> None:
    whole = DetectionTask("made up", "all rows", TEXTS, TEXTS, LABELS)
    task = whole.subsampled(50)
    assert task.train == task.test
    assert sum(task.labels) == 5
    assert whole.subsampled(200) == whole


def test_too_few_texts_are_refused() -> None:
    with pytest.raises(UsageError, match="a task needs 10 texts or more, got max_texts=9"):
        normals_task("made up", TEXTS, LABELS).subsampled(9)
