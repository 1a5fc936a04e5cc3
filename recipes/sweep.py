"""Train one model for every combination of some settings, evaluate each, and show the frontier they make.

    python recipes/sweep.py --sweep recipes/sweeps/likelihood_weight.yaml                # on the embedded corpus
    python recipes/sweep.py --sweep recipes/sweeps/likelihood_weight.yaml --evaluator quick --parallel 2

A sweep is a YAML file with `config`, the configuration that all runs share, and any of `set`, settings that differ
from it in all runs, `vary`, a list of values for each of some settings or a list of settings, and `evaluate`, the same
for options of evaluate_text.py. Finished runs are skipped; interrupted ones resume. Prints a table, and
writes it as Markdown with a plot of RPPL over what the latent carries.
"""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from sweep_table import describe_sweep, plot_frontier

from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.errors import UsageError, require_positive
from latent_ebm_text.training.arguments import option, required

RECIPES = Path(__file__).parent


@dataclass
class SweepArguments:
    """Sweep"""

    sweep: str = required("YAML file with `config`, `set` and `vary`.")
    dataset_name: str | None = option(None, "Another corpus than the configuration's.")
    output_dir: str | None = option(None, "Folder of all runs; runs/sweeps/<name> if none.")
    evaluator: Literal["full", "quick", "none"] = option(
        "none", "The language model behind FPPL and RPPL; without one they are left out."
    )
    num_likelihood_sentences: int = option(200, "Random test sentences for log p(x); 0: none.")
    parallel: int = option(1, "Runs at a time, each with its share of the cores.")

    def __post_init__(self) -> None:
        require_positive("parallel", self.parallel)


def main() -> None:
    (args,) = parse_arguments((SweepArguments,), description=__doc__)
    path = Path(args.sweep)
    try:
        sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(sweep, dict) or not {"config"} < set(sweep) <= {"config", "set", "vary", "evaluate"}:
        raise UsageError(f"{path} must hold `config` and `vary` or `evaluate`, and may hold `set`")
    require_form(path, sweep)
    folder = Path(args.output_dir or f"runs/sweeps/{path.stem}")
    trained, judged = (combinations(sweep.get(key) or {}) for key in ("vary", "evaluate"))
    runs = {folder / (name or "run"): {**(sweep.get("set") or {}), **settings} for name, settings in trained.items()}
    with ThreadPoolExecutor(args.parallel) as pool:
        list(
            pool.map(
                lambda run: train_and_evaluate(*run, judged, RECIPES.parent / sweep["config"], args), runs.items()
            )
        )
    evaluations = {
        ",".join(filter(None, (run.name if sweep.get("vary") else "", name))): evaluation_folder(run, name)
        for run in runs
        for name in judged
    }
    varied = [name for settings in (*trained.values(), *judged.values()) for name in settings]
    table = describe_sweep(evaluations, list(dict.fromkeys(varied)))
    (folder / "sweep.md").write_text(table, encoding="utf-8")
    print(f"\n{table}\n{folder / 'sweep.md'}\n{plot_frontier(evaluations, folder / 'frontier.png')}")


def require_form(path: Path, sweep: dict[str, Any]) -> None:
    """Raises a `UsageError` for what would end a sweep half-way."""
    if not (RECIPES.parent / str(sweep["config"])).is_file():
        raise UsageError(f"{path} names the config {sweep['config']}, which does not exist in {RECIPES.parent}")
    if not isinstance(sweep.get("set") or {}, dict):
        raise UsageError(f"`set` of {path} maps settings to values")
    for key in ("vary", "evaluate"):
        choices = sweep.get(key) or {}
        listed = isinstance(choices, list) and all(isinstance(each, dict) for each in choices)
        if not listed and not (isinstance(choices, dict) and all(isinstance(v, list) for v in choices.values())):
            raise UsageError(f"`{key}` of {path} maps settings to lists of values, or lists such mappings")


def combinations(choices: dict[str, list[Any]] | list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The listed settings, or every combination of their values, by name; one unnamed entry if there are none."""
    every = choices or [{}]
    if isinstance(choices, dict):
        every = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    return {",".join(f"{name}={value}" for name, value in settings.items()): settings for settings in every}


def evaluation_folder(run: Path, name: str) -> Path:
    """Where a run's evaluation under some options is."""
    return run / ",".join(filter(None, ("evaluation", name)))


def train_and_evaluate(
    run: Path, settings: dict[str, Any], judged: dict[str, dict[str, Any]], config: Path, args: SweepArguments
) -> None:
    """One run in processes of its own, with what it prints in a file of its folder."""
    data = [] if args.dataset_name is None else ["--dataset_name", args.dataset_name]
    if not (run / "results.json").exists():
        options = [text for name, value in settings.items() for text in (f"--{name}", value)]
        launch(run, args.parallel, "-m", "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1,
               "--mixed_precision", "no", "--dynamo_backend", "no", RECIPES / "train_ptb.py", "--config", config,
               *data, *options, "--output_dir", run)  # fmt: skip
    data = data or [
        "--dataset_name",
        yaml.safe_load(config.read_text(encoding="utf-8")).get("dataset_name", "grammar"),
    ]
    for name, options in judged.items():
        if not (evaluation_folder(run, name) / "evaluation.json").exists():
            launch(run, args.parallel, RECIPES / "evaluate_text.py", "--model", run / "model", *data,
                   "--evaluator", args.evaluator, "--num_likelihood_sentences", args.num_likelihood_sentences,
                   *(text for option, value in options.items() for text in (f"--{option}", value)),
                   "--output_dir", evaluation_folder(run, name))  # fmt: skip


def launch(run: Path, parallel: int, *arguments: Any) -> None:
    """Runs a recipe to its end; one that fails ends the sweep and names its log."""
    run.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // parallel))
    with open(run / "log.txt", "a", encoding="utf-8") as log:
        print(f"{run.name}: {Path(str(arguments[0])).name if arguments[0] != '-m' else 'training'}", flush=True)
        finished = subprocess.run(
            [sys.executable, *map(str, arguments)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
    if finished.returncode:
        raise UsageError(f"{run.name} ended with exit code {finished.returncode}: see {run / 'log.txt'}")


if __name__ == "__main__":
    run_command(main)
