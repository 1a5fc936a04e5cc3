"""`verify`: the figures of a card are measured again, and a wrong one is found."""

import shutil
from pathlib import Path

import pytest

from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.evaluate_text import TextEvaluationArguments, run_text_evaluation
from latent_ebm_text.commands.verify import VerifiedMetric, verify_text_model
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.hub.pushing import push_run
from tests.hub_server import HubServer
from tests.tiny_runs import DATA


def test_other_data_are_refused(trained: Path, tmp_path: Path) -> None:
    (other := tmp_path / "other.txt").write_text("\n".join(f"another sentence {number}" for number in range(100)))
    with pytest.raises(DataError, match=r"is not the data of the card: its fingerprint is .* name the right data"):
        verify_text_model(str(trained), dataset_name=str(other))


@pytest.mark.slow
def test_an_evaluation_that_was_pushed_can_be_verified_from_the_hub(
    hub: HubServer, trained: Path, tmp_path: Path
) -> None:
    settings = {
        "evaluator": "none", "num_likelihood_sentences": 12, "num_likelihood_samples": 6, "num_likelihood_levels": 5,
        "num_information_sentences": 8, "num_samples": 220, "chain_repetitions": 0,
    }  # fmt: skip
    evaluation = TextEvaluationArguments(model=str(trained), output_dir=str(tmp_path / "evaluation"), **settings)
    run_text_evaluation(DataArguments(**DATA), evaluation)
    push_run(trained, evaluation=tmp_path / "evaluation")
    found = {(figure.name, figure.split): figure for figure in verify_text_model("me/tiny")}
    assert {figure.verdict for figure in found.values()} == {"same"}
    assert ("marginal NLL", "test") in found
    assert ("prior NLL", "validation") in found


def test_verdicts() -> None:
    def verdict(now: float | None) -> str:
        return VerifiedMetric("NLL", "test", 100.0, (98.0, 102.0), now).verdict

    assert [verdict(now) for now in (100.05, 101.5, 97.9, None)] == ["same", "within", "differs", "not run"]


def test_a_card_without_figures_cannot_be_verified(trained: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(trained / "model", tmp_path / "model"))
    with pytest.raises(UsageError, match="does not say how its metrics were measured"):
        verify_text_model(str(model))
    (model / "README.md").unlink()
    with pytest.raises(UsageError, match="has no card with metrics to verify"):
        verify_text_model(str(model))
