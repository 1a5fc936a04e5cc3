"""What every recipe does around the loop, whatever the modality: from the newest checkpoint to a finished folder."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from latent_ebm_text.errors import UsageError
from latent_ebm_text.hub.card import build_card, is_edited
from latent_ebm_text.hub.figures import read_json
from latent_ebm_text.hub.training import TrainingPusher
from latent_ebm_text.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.html_report import write_html_report
from latent_ebm_text.training.plots import plot_training
from latent_ebm_text.training.trainer import TrainingData, TrainingResult, train


def run_identity(model: LatentEBMPreTrainedModel, args: TrainingArguments, **data: Any) -> dict[str, Any]:
    """What a checkpoint must share with a run to be resumed by it: the data, as named here, model and seed."""
    config = model.config.to_dict()
    for key in ("transformers_version", "latent_ebm_text_version", "architectures", "dtype", "_name_or_path"):
        config.pop(key, None)
    return {
        **data,
        "seed": args.seed,
        "train_batch_size": args.train_batch_size,
        "inference": args.inference,
        **{f"config.{key}": value for key, value in sorted(config.items())},
    }


def run_training(
    model: LatentEBMPreTrainedModel,
    data: TrainingData,
    args: TrainingArguments,
    *,
    identity: dict[str, Any],
    evaluate: Callable[..., dict[str, Any]],
    finish: Callable[[dict[str, Any]], dict[str, Any]],
    describe: Callable[[dict[str, Any]], str],
    record: Callable[[TrainingResult], dict[str, Any]],
    processor: Any,
    accelerator: Accelerator,
    pusher: TrainingPusher | None,
) -> int:
    """Trains a model, from the newest checkpoint where there is one, prints what came of it, and pushes it where that
    is wished.

    Args:
        model: The model.
        data: The training data.
        args: The settings.
        identity: See [`run_identity`].
        evaluate: The evaluation that runs while training.
        finish: From facts on the run to the content of `results.json`; called once it has ended, on one process.
        describe: These results for people to read.
        record: These facts, see [`~latent_ebm_text.training.record.run_record`].
        processor: The model's tokeniser or image processor.
        accelerator: Devices and processes.
        pusher: Pushes to the Hub, on the main process.

    Returns:
        The exit code of a recipe: 0, or that of the signal that stopped it.
    """
    accelerator.print(f"model: {model.num_parameters():,} parameters, {model.config.latent_dim} latent dimensions")
    recorded = read_json(Path(args.output_dir) / "results.json")
    on_save = None if pusher is None else partial(pusher.push_so_far, processor=processor)
    result = train(model, data, args, identity=identity, evaluate=evaluate, accelerator=accelerator, on_save=on_save)
    accelerator.end_training()
    if result.signal is not None:
        accelerator.print(f"stopped by signal {result.signal} after step {result.step}; run again to go on")
        return args.exit_code(result.signal)
    if recorded.get("step") == result.step:
        _require_same_learning(args, recorded.get("settings", {}))
    if accelerator.is_main_process:
        results = finish(record(result))
        print(f"\ntrained {result.step} steps in {result.seconds / 60:.1f} min\n{describe(results)}\n")
        print("\n".join(f"{name:>15}: {path}" for name, path in results["paths"].items()))
        if pusher is not None:
            print(f"{'pushed':>15}: {pusher.push_result()}")
    return 0


#: Arguments of a training that leave what it learns as it is.
_ASIDE = {
    "output_dir", "eval_batch_size", "log_every", "eval_every", "save_every", "keep_checkpoints", "report_to",
    "max_rollbacks", "usr1_exit_code", "num_eval_sentences", "num_eval_samples", "matmul_precision",
}  # fmt: skip


def _require_same_learning(args: TrainingArguments, recorded: dict[str, Any]) -> None:
    """Raises a `UsageError` if a run that had ended before was trained with other settings, which its record keeps."""
    for name, value in asdict(args).items():
        if name not in _ASIDE and recorded.get(name, value) != value:
            raise UsageError(
                f"{args.output_dir} had ended before, trained with {name} {recorded[name]}, not {value}; nothing was "
                "changed. Train into another output_dir"
            )


def write_results(
    folder: Path, results: dict[str, Any], paths: dict[str, Path], plots: Callable[[], dict[str, Path]] = dict
) -> dict[str, Any]:
    """Draws the course of a training, writes `results.json`, a page for people, and the card beside the model.

    A card that was edited by hand is kept.

    Args:
        folder: Of the run.
        results: The content.
        paths: What lies there already, by name.
        plots: Draws more, with matplotlib; where that is missing, the results say so.

    Returns:
        What was written, with the paths of everything.
    """
    paths = {"model": folder / "model", "metrics": folder / "metrics.jsonl", **paths}
    results = {**results, "peak_memory_gib": round(_peak_memory_gib(), 2)}
    try:
        paths |= plots()
        paths["plot"] = plot_training(paths["metrics"], folder / "training.png")
    except UsageError as error:
        results["plot_missing"] = str(error)
    paths |= {"results": folder / "results.json", "report": folder / "report.html"}
    results["paths"] = {name: str(path) for name, path in paths.items()}
    paths["results"].write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    write_html_report(folder, results)
    card = folder / "model" / "README.md"
    if not card.is_file() or not is_edited(card.read_text(encoding="utf-8")):
        card.write_text(build_card(folder / "model", str(folder / "model"), run=folder), encoding="utf-8")
    return results


def _peak_memory_gib() -> float:
    """Most memory this process has held; the system counts it in KiB, on a Mac in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def describe_split(split: str, figures: dict[str, Any], estimates: Iterable[tuple[str, str, str]]) -> list[str]:
    """The figures of one split for people to read, a line each.

    Args:
        split: Its name.
        figures: By name; with `latents`, see [`~latent_ebm_text.evaluation.latents.LatentReport`].
        estimates: Name, title and unit of those to show.
    """
    lines = []
    for name, title, unit in estimates:
        estimate = figures[name]
        digits = 4 if name == "mse" else 2
        lines.append(
            f"{split:>10}  {title:<20} {estimate['value']:10.{digits}f} ± {estimate['standard_error']:.{digits}f} "
            f"{unit} (n = {estimate['n']})"
        )
    latents = figures["latents"]
    lines.append(
        f"{split:>10}  {latents['active_units']} active units; standard deviation {latents['posterior_std']:.2f} "
        f"posterior, {latents['prior_std']:.2f} prior ({100 * latents['std_mismatch']:.0f} % apart per "
        f"dimension); energy gap {latents['energy_gap']:.1f} nats"
    )
    return lines
