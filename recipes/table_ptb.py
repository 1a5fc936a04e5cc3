"""Train the baselines and our model on the same data under the same budget, and print the paper's Table 2 for PTB.

    python recipes/table_ptb.py --dataset_name path/to/ptb                          # hours on two CPU cores
    python recipes/table_ptb.py --dataset_name path/to/ptb --evaluator quick        # for development
    python recipes/table_ptb.py --dataset_name path/to/ptb --rows gaussian_prior    # one row; leaves the others

Every row is a configuration of recipes/train_ptb.py, evaluated by recipes/evaluate_text.py; real data is judged by the
same evaluators. Finished steps are not repeated, and an interrupted training is resumed.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latent_ebm_text.commands.compare import compare_evaluations
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.errors import UsageError, reading
from latent_ebm_text.hub.folders import read_json
from latent_ebm_text.training.arguments import option

RECIPES = Path(__file__).parent
ROWS = {
    "language_model": ("LSTM language model", "table_ptb/language_model.yaml"),
    "vae_kl_annealing": ("VAE, KL annealing", "table_ptb/vae_kl_annealing.yaml"),
    "vae_free_bits": ("VAE, free bits", "table_ptb/vae_free_bits.yaml"),
    "gaussian_prior": ("Gaussian prior, Langevin posterior", "table_ptb/gaussian_prior.yaml"),
    "latent_ebm": ("latent EBM", "table_ptb/latent_ebm.yaml"),
}
COLUMNS = ("FPPL", "RPPL", "reconstruction NLL", "marginal NLL", "prior NLL", "active units")
# Table 2 of Pang et al. (2020), whose NLL is the reconstruction NLL.
PUBLISHED = {
    "real data": (100.36, None, None),
    "SA-VAE": (147.92, 210.02, 101.28),
    "FB-VAE": (145.32, 204.11, 92.89),
    "ARAE": (165.23, 232.93, 91.31),
    "latent EBM": (107.45, 181.54, 91.35),
}


@dataclass
class TableArguments:
    """Table"""

    dataset_name: str = option("ptb", "PTB from the Hub, or a local folder of it.")
    output_dir: str = option("runs/table-ptb", "Folder of the runs and of the table.")
    evaluator: Literal["full", "quick"] = option("full", "Language model of FPPL and RPPL.")
    rppl_evaluator: Literal["full", "quick"] | None = option(
        None, "Another evaluator for RPPL, which trains it for every row."
    )
    num_likelihood_sentences: int = option(500, "Random test sentences for log p(x).")
    num_likelihood_levels: int = option(100, "Levels of the annealed walks for log p(x).")
    rows: str = option("all", f"Rows separated by commas, of {', '.join(ROWS)}; or all.")


def main() -> None:
    (args,) = parse_arguments((TableArguments,), description=__doc__)
    chosen = list(ROWS) if args.rows == "all" else args.rows.split(",")
    if not set(chosen) <= set(ROWS):
        raise UsageError(f"rows must be of {', '.join(ROWS)}, got {args.rows!r}")
    rppl_evaluator = args.rppl_evaluator or args.evaluator
    name = args.evaluator if rppl_evaluator == args.evaluator else f"{args.evaluator}-{rppl_evaluator}"
    for row in chosen:
        run, (title, config) = Path(args.output_dir) / row, ROWS[row]
        print(f"== {title}", flush=True)
        if not (run / "results.json").exists():
            launch("accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", RECIPES / "train_ptb.py",
                   "--config", RECIPES / "configs" / config, "--dataset_name", args.dataset_name,
                   "--output_dir", run)  # fmt: skip
        if not (run / f"evaluation-{name}" / "evaluation.json").exists():
            launch(RECIPES / "evaluate_text.py", "--model", run / "model", "--dataset_name", args.dataset_name,
                   "--evaluator", args.evaluator, "--rppl_evaluator", rppl_evaluator,
                   "--num_likelihood_sentences", args.num_likelihood_sentences,
                   "--num_likelihood_levels", args.num_likelihood_levels,
                   "--output_dir", run / f"evaluation-{name}")  # fmt: skip
    table = make_table(Path(args.output_dir), name)
    (Path(args.output_dir) / f"table-{name}.md").write_text(table, encoding="utf-8")
    print(table)


def launch(program: Any, *arguments: Any) -> None:
    """Runs a recipe or module to its end, and ends with its exit code where that is not zero."""
    module = ["-m"] if isinstance(program, str) else []
    code = subprocess.run([sys.executable, *module, *map(str, (program, *arguments))]).returncode
    if code:
        sys.exit(code)


def make_table(folder: Path, name: str) -> str:
    """The finished rows with their intervals and the published ones; then ours against each row by the bootstrap."""
    reports, minutes = {}, {}
    for row in ROWS:
        path, results = folder / row / f"evaluation-{name}" / "evaluation.json", folder / row / "results.json"
        if path.exists():
            with reading(path):
                reports[row] = read_json(path)["metrics"]
        if results.exists():
            with reading(results):
                minutes[row] = f"{read_json(results)['training_seconds'] / 60:.0f} min"
    evaluators = {
        column: metrics[column]["evaluator"]
        for metrics in reports.values()
        for column in COLUMNS
        if "evaluator" in metrics.get(column, {})
    }
    heads = [f"{column} ({evaluators[column]})" if column in evaluators else column for column in COLUMNS]
    lines = [f"| model | {' | '.join(heads)} | training |", "|---" * (len(COLUMNS) + 2) + "|"]
    real = [
        next((metrics.get(f"{evaluators.get(column)}'s test perplexity") for metrics in reports.values()), None)
        for column in COLUMNS
    ]
    if any(real):
        lines.append(f"| real data | {' | '.join(map(cell, real))} | - |")
    for row, metrics in reports.items():
        cells = [cell(metrics.get(column)) for column in COLUMNS]
        lines.append(f"| {ROWS[row][0]} | {' | '.join(cells)} | {minutes.get(row, '-')} |")
    for title, (fppl, rppl, nll) in PUBLISHED.items():
        cells = ["-" if value is None else str(value) for value in (fppl, rppl, nll)] + ["-"] * (len(COLUMNS) - 3)
        lines.append(f"| {title} (published) | {' | '.join(cells)} | - |")
    for row in reports:
        if row != "latent_ebm" and "latent_ebm" in reports:
            paths = (folder / each / f"evaluation-{name}" for each in ("latent_ebm", row))
            for metric, comparison in compare_evaluations(*paths).items():
                lines.append(f"\nlatent EBM against {ROWS[row][0]}, {metric}: {comparison.verdict}")
    return "\n".join(lines) + "\n"


def cell(metric: dict[str, Any] | None) -> str:
    """A metric with its interval."""
    if metric is None:
        return "-"
    low, high = metric["interval_95"]
    flag = " (!)" if metric.get("warning") else ""
    return f"{metric['value']:.2f}{flag}" + ("" if low == high else f" [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    run_command(main)
