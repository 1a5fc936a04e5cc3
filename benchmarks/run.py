"""How fast the library is beside other implementations of the same, on this machine.

    python benchmarks/run.py                                       # all, at the paper's PTB size: 15 min with AMX
    python benchmarks/run.py --only posterior-gradient --threads 2
    python benchmarks/run.py --write                               # and keeps the tables in benchmarks/RESULTS.md
    python benchmarks/run.py --quick                               # toy sizes: a smoke test, its ratios mean nothing

Both sides start from the same weights, words and noise wherever they compute the same. Results are then compared
first, and the two are timed in turn, in one process. Prints Markdown; exits with 1 if results disagree. They are
compared at the precision `highest`: below it both may round, each in its own way.

The arithmetic floor is the time of the necessary matrix products alone, each measured at its own shape with `torch.mm`
at the same precision: what would remain if all else were free. Faster products lower it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from cases_control import control
from cases_generation import generation
from cases_images import images
from cases_learning import learning
from cases_posterior import posterior_chains, posterior_gradients, training_steps
from cases_prior import distilled_priors, prior_chains
from cases_scaling import scaling
from cases_scoring import scoring
from results import write_section
from sizes import QUICK, Sizes
from timing import Disagreement, describe_machine

#: Each benchmark takes sizes and repeats and gives the lines of its section; its docstring says what it measures.
BENCHMARKS: dict[str, Callable[[Sizes, int], Iterator[str]]] = {
    "posterior-gradient": posterior_gradients,
    "posterior-chain": posterior_chains,
    "prior-chain": prior_chains,
    "distilled-prior": distilled_priors,
    "training-step": training_steps,
    "generation": generation,
    "control": control,
    "learning": learning,
    "images": images,
    "scaling": scaling,
    "scoring": scoring,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="run this benchmark alone")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each implementation (default 5)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    parser.add_argument("--write", action="store_true", help="replace the sections that were run in RESULTS.md")
    parser.add_argument("--quick", action="store_true", help="toy sizes: a smoke test of a few seconds")
    options = parser.parse_args(argv)
    if options.repeats < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--repeats and --threads must be positive")
    if options.write and options.quick:
        parser.error("--write keeps results, and those of --quick mean nothing: drop one of the two")
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(options.threads or threads)
        head = f"{describe_machine()}; {options.repeats} repeats{'; toy sizes' if options.quick else ''}"
        print(head)
        for name in [options.only] if options.only else BENCHMARKS:
            torch.set_float32_matmul_precision(precision)
            print(f"\n## {name}\n")
            lines = []
            for line in BENCHMARKS[name](QUICK if options.quick else Sizes(), options.repeats):
                print(line, flush=True)
                lines.append(line)
            if options.write:
                write_section(name, [f"{head}.", "", *lines])
    except Disagreement as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    return 0


if __name__ == "__main__":
    sys.exit(main())
