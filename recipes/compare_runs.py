"""Compare two evaluated models by the paired bootstrap: a difference is called one only beyond noise.

    python recipes/compare_runs.py --first runs/a/evaluation --second runs/b/evaluation

Takes two folders that recipes/evaluate_text.py has written for the same test sentences.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from latent_ebm_text.commands.compare import compare_evaluations
from latent_ebm_text.commands.parsing import parse_arguments, run_command


@dataclass
class ComparisonArguments:
    """Comparison"""

    first: str = field(metadata={"help": "Folder of the first evaluation."})
    second: str = field(metadata={"help": "Folder of the second evaluation."})
    num_resamples: int = field(default=1000, metadata={"help": "Bootstrap resamples."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the comparison there, as JSON."})


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
