"""What the runs of all modalities share: identity and record of a run, its results, and how they are shown."""

from __future__ import annotations

import copy
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator

from latent_ebm_text import __version__
from latent_ebm_text.commands.arguments import flat_settings
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.latents import plain_numbers
from latent_ebm_text.evaluation.plots import plot_training
from latent_ebm_text.hub.card import build_card, is_edited
from latent_ebm_text.hub.folders import read_json
from latent_ebm_text.models.configuration import LatentEBMConfig
from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.files import replace_text
from latent_ebm_text.training.reporting import find_problems
from latent_ebm_text.training.trainer import TrainingResult


class Corpus(Protocol):
    """Data of any modality, with a name and a fingerprint."""

    @property
    def name(self) -> str:
        """What the data is."""

    @property
    def fingerprint(self) -> str:
        """A hash of all of it."""


#: Settings that checkpoints of this version may lack, with the values that they then have.
_NEWER_SETTINGS = {"num_latent_vectors": 1, "num_fit_steps": 0, "fit_learning_rate": 0.3}


def run_identity(model: LatentEBMPreTrainedModel, args: TrainingArguments, **data: Any) -> dict[str, Any]:
    """What a checkpoint must have in common with a run to be resumed by it: model, seed, and the given `data`."""
    config = model.config.to_dict()
    for key in ("transformers_version", "latent_ebm_text_version", "architectures", "dtype", "_name_or_path"):
        config.pop(key, None)
    for key, default in _NEWER_SETTINGS.items():
        if config[key] == default:
            del config[key]
    if args.information is not None:
        del config["likelihood_weight"]  # which the training sets
    return {
        **data,
        "seed": args.seed,
        "train_batch_size": args.train_batch_size,
        "inference": args.inference,
        **{f"config.{key}": value for key, value in sorted(config.items())},
    }


def check_memory(model_class: type[LatentEBMPreTrainedModel], config: LatentEBMConfig) -> None:
    """Raises a `UsageError` if the weights of a new model would not fit into the memory of this machine.

    A system that promises more memory than it has ends a process that then uses it, without a word.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        size = model_class(copy.deepcopy(config)).num_parameters()
    gib, present = 4 * size / 2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if gib > present:
        raise UsageError(
            f"a model of these sizes has {size:,} parameters, {gib:,.0f} GiB, and this machine has {present:,.0f}: "
            "choose smaller sizes, such as hidden_size"
        )


def describe_model(model: LatentEBMPreTrainedModel) -> str:
    """The size of a model, in one line."""
    return f"model: {model.num_parameters():,} parameters, {model.config.latent_dim} latent dimensions"


def describe_stop(result: TrainingResult) -> str:
    """The message of a training that a signal has stopped."""
    return f"stopped by signal {result.signal} after step {result.step}; run the same command again to resume"


# -------- the results of a finished run


def run_record(result: TrainingResult, corpus: Corpus, *arguments: Any) -> dict[str, Any]:
    """The facts about a run that `results.json` and the model's card hold: how, on what and where it was trained.

    Args:
        result: How the training ended.
        corpus: What it was trained on.
        *arguments: The dataclasses of its arguments.
    """
    return {
        "command": " ".join(sys.argv),
        "step": result.step,
        "training_seconds": round(result.seconds, 1),
        "warnings": result.warnings,
        "settings_history": result.settings_history,
        "dataset": {"name": corpus.name, "fingerprint": corpus.fingerprint},
        "settings": flat_settings(*arguments),
        "environment": describe_environment(),
    }


def describe_environment() -> dict[str, Any]:
    """Versions, machine, date, and the commit where the library is used from a repository."""
    import torch

    return {
        "latent_ebm_text": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def processor_name() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the library's own repository, marked where files were changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def write_results(
    folder: Path, results: dict[str, Any], paths: dict[str, Path], plots: Callable[[], dict[str, Path]] = dict
) -> dict[str, Any]:
    """Judges the trained model, plots its training, and writes `results.json` and the card beside the model.

    What is wrong with the model on the validation split joins the warnings, however short the training was. A card
    that was edited by hand is kept.

    Args:
        folder: The folder of the run.
        results: The content of `results.json`.
        paths: Files that are there already, by name.
        plots: Makes further plots with matplotlib; where that is missing, the results say so.

    Returns:
        What was written, with the paths of all files.
    """
    paths = {"model": folder / "model", "metrics": folder / "metrics.jsonl", **paths}
    settings = {**results["settings"], **read_json(folder / "model" / "config.json")}
    problems = find_problems(plain_numbers(results["splits"]["validation"]), settings)
    warnings = [*results["warnings"], *problems]
    results = {**results, "warnings": warnings, "peak_memory_gib": round(_peak_memory_gib(), 2)}
    try:
        paths |= plots()
        paths["plot"] = plot_training(paths["metrics"], folder / "training.png")
    except UsageError as error:
        results["plot_missing"] = str(error)
    card = folder / "model" / "README.md"
    paths |= {"results": folder / "results.json", "card": card}
    results["paths"] = {name: str(path) for name, path in paths.items()}
    replace_text(paths["results"], json.dumps(results, indent=2) + "\n")
    if not card.is_file() or not is_edited(card.read_text(encoding="utf-8")):
        replace_text(card, build_card(folder / "model", str(folder / "model"), run=folder))
    return results


def _peak_memory_gib() -> float:
    """The most memory this process has held; Linux counts it in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


# -------- what people read


def show_results(results: dict[str, Any], lines: Iterable[str]) -> None:
    """Prints the end of a run: how long it took, its warnings, its metrics as lines, and where everything is."""
    print(f"\ntrained {results['step']} steps in {results['training_seconds'] / 60:.1f} min")
    print("\n".join([*(f"warning: {warning}" for warning in results["warnings"]), *lines]))
    if "plot_missing" in results:
        print(f"      plot  none: {results['plot_missing']}")
    print("\n" + "\n".join(f"{name:>15}: {path}" for name, path in results["paths"].items()))


def describe_splits(results: dict[str, Any], shown: Iterable[tuple[str, str, str]]) -> list[str]:
    """The metrics of every split, a line each.

    Args:
        results: The content of `results.json`.
        shown: Key, title and unit of the metrics to show.
    """
    lines = []
    for split, metrics in results["splits"].items():
        for name, title, unit in shown:
            if name not in metrics:
                continue  # a model without a latent
            metric = metrics[name]
            digits = 4 if name == "mse" else 2
            lines.append(
                f"{split:>10}  {title:<20} {metric['value']:10.{digits}f} ± {metric['standard_error']:.{digits}f} "
                f"{unit} (n = {metric['n']})"
            )
        latents = metrics["latents"]
        lines.append(
            f"{split:>10}  {latents['active_units']} active units; standard deviation {latents['posterior_std']:.2f} "
            f"posterior, {latents['prior_std']:.2f} prior ({100 * latents['std_mismatch']:.0f} % apart per "
            f"dimension); energy gap {latents['energy_gap']:.1f} nats"
        )
        if "exact_nll" in metrics:
            lines.append(
                f"{split:>10}  {'exact entropy':<20} {metrics['exact_nll']:10.2f} nats per sentence, of these rows"
            )
    return lines


def show_validation(metrics: dict[str, float], step: int, accelerator: Accelerator) -> None:
    """Prints the metrics of an evaluation while training."""
    mse = f"MSE {metrics['mse']:.4f}; " if "mse" in metrics else ""
    accelerator.print(
        f"step {step}: validation {mse}NLL {metrics['reconstruction_nll']:.1f} reconstructed, "
        f"{metrics['prior_nll']:.1f} from prior draws; standard deviation {metrics['posterior_std']:.2f} posterior, "
        f"{metrics['prior_std']:.2f} prior; {metrics['active_units']} active units"
    )
