"""Whether the prior's chain is faster as one CUDA graph, or with its score compiled: a Markdown table.

    python benchmarks/prior_region.py                          # on a GPU, at the paper's size
    python benchmarks/prior_region.py --device cpu --quick     # toy sizes; its times mean nothing

A chain of 60 steps is more than 600 small kernels, which a GPU runs faster than Python can ask for them.
`gpu_check.py` runs this as a process of its own, since a capture that fails leaves a CUDA context that is of no more
use, and since a compiler cannot be interrupted otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from cases_posterior import seeded
from sizes import QUICK, Sizes
from timing import difference, in_turn, milliseconds, ratios, row, table
from torch import Tensor

from latent_ebm_text.latents.density import LogDensity, ScoredLogDensity
from latent_ebm_text.latents.samplers.base import Sampler, deferred_checks

#: Largest difference between two chains, relative to their norm.
CHAIN_TOLERANCE = 1e-3
DIFFERENT = "**DIFFERENT**"
HEADER = ("the chain", "batch", "eager, ms (min / median)", "this way, ms (min / median)", "eager / this way",
          "made ready in, s", "difference")  # fmt: skip

Chain = Callable[[], Tensor]


class WithCompiledScore:
    """The same log-density, whose score is one compiled region.

    Args:
        logdensity: A log-density whose weights are frozen.
    """

    def __init__(self, logdensity: ScoredLogDensity) -> None:
        self._logdensity, self.value_and_score = logdensity, logdensity.value_and_score
        self.score = torch.compile(logdensity.score, fullgraph=True, dynamic=False)

    def __call__(self, latents: Tensor) -> Tensor:
        return self._logdensity(latents)


def captured(chain: Chain) -> Chain:
    """The chain as one CUDA graph: every call draws new noise, and overwrites the latents of the last one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        chain()  # whatever is allocated or compiled at the first call
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        latents = chain()

    def replay() -> Tensor:
        graph.replay()
        return latents

    return replay


def missing_compiler(device: str) -> str | None:
    """What `torch.compile` would need here and does not find; `None` if nothing is missing."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    if not any(map(shutil.which, names)):
        return "a C++ compiler"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton"
    return None


def ways(eager: Chain, compiled: Chain | None, on_gpu: bool) -> Iterator[tuple[str, Callable[[], Chain]]]:
    """Each way to run a chain, by name, and what makes it ready."""
    if on_gpu:
        yield "as one CUDA graph", partial(captured, eager)
    if compiled is not None:
        yield "with its score compiled", lambda: compiled
    if compiled is not None and on_gpu:
        yield "as one CUDA graph, with its score compiled", partial(captured, compiled)


def run_chain(sampler: Sampler, start: Tensor, logdensity: LogDensity) -> Tensor:
    """The end of a chain, whose numbers nobody reads."""
    with deferred_checks():
        return sampler.sample(start, logdensity).latents


def measurements(sizes: Sizes, repeats: int) -> Iterator[str]:
    """The lines of the table, as they come; the last one names what differs from the eager chain, if anything does."""
    model = sizes.model(tied=True).eval()
    on_gpu, missing = sizes.device == "cuda", missing_compiler(sizes.device)
    wrong = []
    yield from table(HEADER)
    for number, batch in enumerate(sizes.prior_batches):
        start, prior = torch.randn(batch, sizes.latent, device=sizes.device), model.prior.frozen()
        chain = partial(run_chain, model.prior_sampler, start)
        is_compiled = missing is None and number == 0  # once: every shape would be compiled anew
        compiled = partial(chain, WithCompiledScore(prior)) if is_compiled else None
        for name, make in ways(partial(chain, prior), compiled, on_gpu):
            begun = time.monotonic()
            by_this = _seeded(make())
            latents = by_this()[0].clone()
            ready, by_eager = time.monotonic() - begun, _seeded(partial(chain, prior))
            apart = difference([latents], by_eager())
            wrong += [] if apart <= CHAIN_TOLERANCE else [f"{name}, batch {batch}"]
            slow, fast = in_turn(by_eager, by_this, repeats=repeats)
            times = [milliseconds(slow), milliseconds(fast), ratios(slow, fast)]
            yield row([name, f"{batch:,}", *times, f"{ready:.0f}", f"{apart:.0e}"])
    if not on_gpu:
        yield "\nNot captured: a CPU has no CUDA graphs."
    if missing is not None:
        yield f"\nNot compiled: {missing} is missing."
    if wrong:
        yield f"\n{DIFFERENT} from the eager chain: {'; '.join(wrong)}"


def _seeded(chain: Chain) -> Callable[[], Sequence[Tensor]]:
    return seeded(lambda: [chain()])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where the chains run")
    parser.add_argument("--quick", action="store_true", help="toy sizes, one timing")
    options = parser.parse_args(argv)
    torch.set_float32_matmul_precision("highest")
    sizes = replace(QUICK if options.quick else Sizes(), device=options.device)
    line = ""
    for line in measurements(sizes, 1 if options.quick else 10):
        print(line, flush=True)
    return int(DIFFERENT in line)


if __name__ == "__main__":
    sys.exit(main())
