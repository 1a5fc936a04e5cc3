"""Compare two evaluated models by the paired bootstrap: a difference counts only if its interval excludes zero.

    python recipes/compare_runs.py --first runs/a/evaluation --second runs/b/evaluation

Takes two folders that recipes/evaluate_text.py has written for the same test sentences.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from latent_ebm_text.commands.compare import compare_evaluations
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.training.arguments import option, required


@dataclass
class ComparisonArguments:
    """Comparison"""

    first: str = required("Folder of the first evaluation.")
    second: str = required("Folder of the second evaluation.")
    num_resamples: int = option(1000, "Bootstrap resamples.")
    output_file: str | None = option(None, "Also write the comparison there, as JSON.")


def main() -> None:
    (args,) = parse_arguments((ComparisonArguments,), description=__doc__)
    found = compare_evaluations(Path(args.first), Path(args.second), num_resamples=args.num_resamples)
    for name, comparison in found.items():
        print(f"{name}: {comparison.verdict}")
    if args.output_file is not None:
        written = {name: comparison.to_dict() for name, comparison in found.items()}
        Path(args.output_file).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
