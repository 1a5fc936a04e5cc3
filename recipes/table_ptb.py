"""Train the baselines and our model on the same data under the same budget, and print the paper's Table 2 for PTB.

    python recipes/table_ptb.py --dataset_name path/to/ptb                          # hours on two CPU cores
    python recipes/table_ptb.py --dataset_name path/to/ptb --evaluator quick        # figures for development
    python recipes/table_ptb.py --dataset_name path/to/ptb --rows gaussian_prior    # one row; the others as they are

Every row is a configuration of recipes/train_ptb.py, judged by recipes/evaluate_text.py; real data is judged by the
same evaluators. What is finished is not done again, and what was killed goes on.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.compare import compare_evaluations
from latent_ebm_text.training.configuration import parse_recipe_arguments, run_recipe

RECIPES = Path(__file__).parent
ROWS = {
    "language_model": ("LSTM language model", "table_ptb/language_model.yaml"),
    "vae_kl_annealing": ("VAE, KL annealing", "table_ptb/vae_kl_annealing.yaml"),
    "vae_free_bits": ("VAE, free bits", "table_ptb/vae_free_bits.yaml"),
    "gaussian_prior": ("Gaussian prior, Langevin posterior", "table_ptb/gaussian_prior.yaml"),
    "latent_ebm": ("latent EBM", "table_ptb/latent_ebm.yaml"),
}
COLUMNS = ("FPPL", "RPPL", "reconstruction NLL", "marginal NLL", "prior NLL", "active units")
# Table 2 of Pang et al. (2020). Its NLL is that of the reconstruction.
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

    dataset_name: str = field(default="ptb", metadata={"help": "PTB: the Hub's, or a local folder."})
    output_dir: str = field(default="runs/table-ptb", metadata={"help": "Folder of the runs and of the table."})
    evaluator: Literal["full", "quick"] = field(default="full", metadata={"help": "Which language model judges."})
    rppl_evaluator: Literal["full", "quick"] | None = field(
        default=None, metadata={"help": "Another one for RPPL, which trains it anew for every row."}
    )
    num_likelihood_sentences: int = field(default=500, metadata={"help": "Random test sentences for log p(x)."})
    num_likelihood_levels: int = field(default=100, metadata={"help": "Levels of the annealed walks behind it."})
    rows: str = field(default="all", metadata={"help": f"Comma-separated, of {', '.join(ROWS)}; or all."})


def main() -> None:
    (args,) = parse_recipe_arguments((TableArguments,), description=__doc__)
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
    """The finished rows with their intervals, ours against each by the bootstrap, and the published ones."""
    reports, minutes = {}, {}
    for row in ROWS:
        path, results = folder / row / f"evaluation-{name}" / "evaluation.json", folder / row / "results.json"
        if path.exists():
            reports[row] = json.loads(path.read_text(encoding="utf-8"))
        if results.exists():
            seconds = json.loads(results.read_text(encoding="utf-8"))["training_seconds"]
            minutes[row] = f"{seconds / 60:.0f} min"
    figures = {row: report["figures"] for row, report in reports.items()}
    judges = {
        column: found[column]["evaluator"]
        for found in figures.values()
        for column in COLUMNS
        if "evaluator" in found.get(column, {})
    }
    heads = [f"{column} ({judges[column]})" if column in judges else column for column in COLUMNS]
    lines = [f"| model | {' | '.join(heads)} | training |", "|---" * (len(COLUMNS) + 2) + "|"]
    real = [next((found.get(f"{judges.get(column)}'s test perplexity") for found in figures.values()), None)
            for column in COLUMNS]  # fmt: skip
    if any(real):
        lines.append(f"| real data | {' | '.join(map(cell, real))} | - |")
    for row, found in figures.items():
        cells = [cell(found.get(column)) for column in COLUMNS]
        lines.append(f"| {ROWS[row][0]} | {' | '.join(cells)} | {minutes.get(row, '-')} |")
    for title, (fppl, rppl, nll) in PUBLISHED.items():
        cells = ["-" if value is None else str(value) for value in (fppl, rppl, nll)] + ["-"] * (len(COLUMNS) - 3)
        lines.append(f"| {title} (published) | {' | '.join(cells)} | - |")
    for row in reports:
        if row != "latent_ebm" and "latent_ebm" in reports:
            paths = (folder / each / f"evaluation-{name}" for each in ("latent_ebm", row))
            for figure, comparison in compare_evaluations(*paths).items():
                lines.append(f"\nlatent EBM against {ROWS[row][0]}, {figure}: {comparison.verdict}")
    return "\n".join(lines) + "\n"


def cell(figure: dict[str, Any] | None) -> str:
    """A figure with its interval."""
    if figure is None:
        return "-"
    low, high = figure["interval_95"]
    flag = " (!)" if figure.get("warning") else ""
    return f"{figure['value']:.2f}{flag}" + ("" if low == high else f" [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    run_recipe(main)
