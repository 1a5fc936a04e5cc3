"""The command `verify`: whether the metrics of a card hold when they are measured again on the same data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCard

from latent_ebm_text.commands import parsing
from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.evaluate_text import TextEvaluationArguments, evaluate_text_model
from latent_ebm_text.commands.output import show
from latent_ebm_text.commands.parsing import argument
from latent_ebm_text.commands.train_text import PreparedText, prepare
from latent_ebm_text.errors import DataError, UsageError, in_one_line, reading
from latent_ebm_text.evaluation.text_metrics import evaluate_likelihoods
from latent_ebm_text.hub.folders import find_model, read_json, run_of
from latent_ebm_text.hub.metrics import run_metrics
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.training.arguments import TrainingArguments, option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration

Verdict = Literal["same", "within", "differs", "not run"]
#: Relative difference up to which two values are called the same: what rounding and other machines may change.
_SAME = 1e-3


@dataclass
class VerifyArguments:
    """Verification"""

    model: str = argument("Folder of a model or of a run, or an id of the Hub.")
    dataset_name: str | None = option(None, "Name, Hub id or path of the data of the card, if it has moved.")
    evaluator: Literal["full", "quick", "none"] | None = option(
        None, "none leaves FPPL and RPPL out; the evaluator of the card by default."
    )
    cache_dir: str | None = option(None, "Folder of trained evaluators.")
    revision: str | None = option(None, "Branch, tag or commit of a model on the Hub.")
    json: bool = option(False, "Print JSON, for programs.")


def verify(argv: list[str]) -> int:
    """Measure the metrics of a model's card again and compare; the exit code is 1 if one differs.

    A metric is the `same` up to a thousandth, `within` the 95 % interval of the card, or it `differs`.

        latent-ebm verify me/latent-ebm-ptb --dataset_name path/to/ptb
        latent-ebm verify runs/quickstart --json
    """
    (args,) = parsing.parse_arguments(
        (VerifyArguments,), argv, description=parsing.description_of(verify), prog="latent-ebm verify"
    )
    metrics = verify_text_model(
        args.model,
        dataset_name=args.dataset_name,
        revision=args.revision,
        evaluator=args.evaluator,
        cache_dir=args.cache_dir,
    )
    rows = [{**asdict(metric), "verdict": metric.verdict} for metric in metrics]
    lines = [f"{'metric':<28}{'split':<12}{'card':>11}{'now':>11}  verdict"]
    for metric in metrics:
        now = "-" if metric.now is None else f"{metric.now:.5g}"
        lines.append(f"{metric.name:<28}{metric.split:<12}{metric.card:>11.5g}{now:>11}  {metric.verdict}")
    show(rows, lines, args.json)
    return int(any(metric.verdict == "differs" for metric in metrics))


@dataclass(frozen=True)
class VerifiedMetric:
    """A metric of a card, measured again.

    Attributes:
        name: Its name, such as `"reconstruction NLL"`.
        split: The split it was measured on.
        card: The value on the card.
        interval: Its 95 % interval on the card.
        now: The value measured now; none where the measurement was left out.
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
) -> list[VerifiedMetric]:
    """Measures the metrics of a model's card again, with the settings that they were measured with.

    Args:
        name: Folder or Hub id of the model.
        dataset_name: Where the data is, if it is not where it was; it must be the same data.
        revision: Revision of the model on the Hub.
        evaluator: `"none"` leaves out the costly metrics that need an evaluator; the evaluator of the card by default.
        cache_dir: Folder of trained evaluators.

    Raises:
        UsageError: If there is no model, or its card holds no metrics or not how they were measured.
        DataError: If the data is not the data of the card.
    """
    folder = find_model(name, revision)
    card = _card_results(folder)
    run = run_of(folder)
    record = read_json(run / "results.json") if run else {}
    with reading(folder):
        settings = dict(read_json(folder / "evaluation.json").get("settings") or {})
        record["settings"] = dict(record.get("settings") or {})
    for place in ("cache_dir", "output_dir"):  # they belong to whoever made the card, not to this machine
        settings.pop(place, None)
    if not settings and not record["settings"]:
        raise UsageError(f"{name} does not say how its metrics were measured (results.json or evaluation.json)")
    data_args = _fill(DataArguments, record["settings"] | settings)
    if dataset_name is not None:
        data_args.dataset_name = dataset_name
    elif not Path(name).expanduser().is_dir() and Path(data_args.dataset_name).exists():
        raise UsageError(
            f"{name} names data by a path of this machine, {data_args.dataset_name}: say with --dataset_name which to "
            "read"
        )
    model, tokenizer = load_text_model(folder)
    text = prepare(data_args, (record["settings"] or settings).get("seed", 0), tokenizer=tokenizer)
    for expected in {(result.dataset_args or {}).get("fingerprint") for result in card} - {None}:
        if text.corpus.fingerprint != expected:
            raise DataError(
                f"{text.corpus.name} is not the data of the card: its fingerprint is {text.corpus.fingerprint}, "
                f"that of the card {expected}; name the right data with --dataset_name"
            )
    measured: dict[tuple[Any, Any], float] = {}
    if record["settings"]:
        training_args = _fill(TrainingArguments, record["settings"])
        wanted = {result.dataset_split for result in card} - ({"test"} if settings else set())
        measured |= _measure_as_run(model, text, training_args, wanted)
    if settings:
        changes = {"evaluator": evaluator, "cache_dir": cache_dir}
        args = _fill(TextEvaluationArguments, settings | {k: v for k, v in changes.items() if v is not None})
        measured |= _measure_as_evaluation(model, tokenizer, text, args)
    return [
        VerifiedMetric(
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
    results: list[EvalResult] = []
    with reading(path):
        try:
            loaded = ModelCard.load(path).data.eval_results if path.is_file() else None
        except yaml.YAMLError as error:
            raise DataError(f"the metadata of {path} is not valid YAML: {in_one_line(error)}") from error
        results = [result for result in loaded or [] if "interval_95" in (result.metric_args or {})]
        for result in results:
            result.metric_value = float(result.metric_value)
            _interval(result)
    if not results:
        raise UsageError(f"{folder} has no card with metrics to verify")
    return results


def _interval(result: EvalResult) -> tuple[float, float]:
    low, high = (result.metric_args or {})["interval_95"]
    return float(low), float(high)


def _measure_as_run(
    model: LatentEBMForTextGeneration, text: PreparedText, args: TrainingArguments, splits: set[Any]
) -> dict[tuple[str, str], float]:
    """The metrics that the end of a training measures."""
    found = {
        split: evaluate_likelihoods(
            model, text.splits[split], text.collate, batch_size=args.eval_batch_size, seed=args.seed
        )
        for split in sorted(splits)
    }
    return {(metric.name, metric.split): metric.value for metric in run_metrics({"splits": found})}


def _measure_as_evaluation(
    model: LatentEBMForTextGeneration,
    tokenizer: PreTrainedTokenizerBase,
    text: PreparedText,
    args: TextEvaluationArguments,
) -> dict[tuple[str, str], float]:
    report = evaluate_text_model(model, tokenizer, text, args).report
    return {(name, "test"): metric.value for name, metric in report.metrics.items()}


def _fill(arguments: type[Any], values: dict[str, Any]) -> Any:
    """An instance of a dataclass of arguments, from the values that it has fields for."""
    names = {field.name for field in fields(arguments)}
    with reading("results.json or evaluation.json"):
        return arguments(**{name: value for name, value in values.items() if name in names})
