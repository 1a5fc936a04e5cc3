"""Whether the figures of a card hold: they are measured again, on the same data, and compared."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accelerate import Accelerator
from huggingface_hub import EvalResult, ModelCard

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.evaluation.text import evaluate_likelihoods
from latent_ebm_text.evaluation.text_report import TextEvaluationArguments, evaluate_text_model
from latent_ebm_text.hub.figures import read_json, run_figures
from latent_ebm_text.hub.loading import find_model, load_text_model
from latent_ebm_text.hub.pushing import run_of
from latent_ebm_text.training.arguments import DataArguments, TrainingArguments
from latent_ebm_text.training.text import PreparedText, prepare_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.modeling_text import LatentEBMForTextGeneration

Verdict = Literal["same", "within", "differs", "not run"]
#: Relative difference up to which two values are called the same: what rounding and other machines may change.
_SAME = 1e-3


@dataclass(frozen=True)
class VerifiedFigure:
    """A figure of a card, measured again.

    Attributes:
        name: Such as `"reconstruction NLL"`.
        split: The data.
        card: What the card says.
        interval: Its 95 % interval there.
        now: What was measured; none where the measurement was left out.
    """

    name: str
    split: str
    card: float
    interval: tuple[float, float]
    now: float | None

    @property
    def verdict(self) -> Verdict:
        """`"same"` up to a thousandth, `"within"` the card's interval, or `"differs"`."""
        if self.now is None:
            return "not run"
        if abs(self.now - self.card) <= _SAME * max(abs(self.card), _SAME):
            return "same"
        return "within" if self.interval[0] <= self.now <= self.interval[1] else "differs"


def verify_text_model(
    name: str,
    *,
    dataset_name: str | None = None,
    revision: str | None = None,
    evaluator: Literal["full", "quick", "none"] | None = None,
    cache_dir: str | None = None,
) -> list[VerifiedFigure]:
    """Measures the figures of a model's card again, with the settings that they were measured with.

    Args:
        name: Folder or Hub id of the model.
        dataset_name: Where the data is, if not where it was; it must be the same data.
        revision: Of the model on the Hub.
        evaluator: `"none"` leaves the dear figures out, which need an evaluator; by default that of the card.
        cache_dir: Folder of trained evaluators.

    Raises:
        UsageError: If there is no model, or its card holds no figures or not how they were measured.
        DataError: If the data are others than the card's.
    """
    folder = find_model(name, revision)
    card = _card_results(folder)
    run = run_of(folder)
    record = read_json(run / "results.json") if run else {}
    settings = dict(read_json(folder / "evaluation.json").get("settings") or {})
    for place in ("cache_dir", "output_dir"):  # of whoever made the figures, not of this machine
        settings.pop(place, None)
    if not settings and not record.get("settings"):
        raise UsageError(f"{name} does not hold how its figures were measured (results.json or evaluation.json)")
    data_args = _fill(DataArguments, record.get("settings", {}) | settings)
    if dataset_name is not None:
        data_args.dataset_name = dataset_name
    elif not Path(name).expanduser().is_dir() and Path(data_args.dataset_name).exists():
        raise UsageError(
            f"{name} names data by a path of this machine, {data_args.dataset_name}: say with --dataset_name which to "
            "read"
        )
    model, tokenizer = load_text_model(folder)
    text = prepare_text(data_args, record.get("settings", settings).get("seed", 0), Accelerator(), tokenizer)
    for expected in {(result.dataset_args or {}).get("fingerprint") for result in card} - {None}:
        if text.corpus.fingerprint != expected:
            raise DataError(
                f"{text.corpus.name} is not the data of the card: its fingerprint is {text.corpus.fingerprint}, the "
                f"card's {expected}; name the right data with --dataset_name"
            )
    measured: dict[tuple[Any, Any], float] = {}
    if record.get("settings"):
        training_args = _fill(TrainingArguments, record["settings"])
        wanted = {result.dataset_split for result in card} - ({"test"} if settings else set())
        measured |= _measure_as_run(model, text, training_args, wanted)
    if settings:
        changes = {"evaluator": evaluator, "cache_dir": cache_dir}
        args = _fill(TextEvaluationArguments, settings | {k: v for k, v in changes.items() if v is not None})
        measured |= _measure_as_evaluation(model, tokenizer, text, args)
    return [
        VerifiedFigure(
            result.metric_name or result.metric_type,
            result.dataset_split or "test",
            result.metric_value,
            _interval(result),
            measured.get((result.metric_name, result.dataset_split)),
        )
        for result in card
    ]


def _card_results(folder: Path) -> list[EvalResult]:
    path = folder / "README.md"
    results = ModelCard.load(path).data.eval_results if path.is_file() else None
    results = [result for result in results or [] if "interval_95" in (result.metric_args or {})]
    if not results:
        raise UsageError(f"{folder} has no card with figures to verify")
    return results


def _interval(result: EvalResult) -> tuple[float, float]:
    low, high = (result.metric_args or {})["interval_95"]
    return low, high


def _measure_as_run(
    model: LatentEBMForTextGeneration, text: PreparedText, args: TrainingArguments, splits: set[Any]
) -> dict[tuple[str, str], float]:
    """What the end of a training measures."""
    found = {
        split: evaluate_likelihoods(
            model, text.splits[split], text.collate, batch_size=args.eval_batch_size, seed=args.seed
        )
        for split in sorted(splits)
    }
    return {(figure.name, figure.split): figure.value for figure in run_figures({"splits": found})}


def _measure_as_evaluation(
    model: LatentEBMForTextGeneration,
    tokenizer: PreTrainedTokenizerBase,
    text: PreparedText,
    args: TextEvaluationArguments,
) -> dict[tuple[str, str], float]:
    report = evaluate_text_model(model, tokenizer, text, args).report
    return {(name, "test"): figure.value for name, figure in report.figures.items()}


def _fill(arguments: type[Any], values: dict[str, Any]) -> Any:
    """A dataclass of arguments from those of the values that it has fields for."""
    names = {field.name for field in fields(arguments)}
    return arguments(**{name: value for name, value in values.items() if name in names})
