"""How two implementations are measured: compared first, then timed in turn, in one process."""

from __future__ import annotations

import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

TOLERANCE = 1e-4  # relative to the largest entry of a tensor
PRECISIONS = ("highest", "medium")
COMPARISON_HEADER = (
    "benchmark", "precision", "theirs, ms (min / median)", "ours, ms (min / median)",
    "theirs / ours (min / median)", "arithmetic floor, ms", "ours / floor (min)", "difference",
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """`count` matrix products of `(rows, inner)` by `(inner, columns)`; `count` need not be whole."""

    rows: int
    inner: int
    columns: int
    count: float = 1.0

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inner * self.columns * self.count

    def seconds(self, repeats: int) -> float:
        """Time of all products, from the fastest of several timings of a few."""
        left, right = torch.randn(self.rows, self.inner), torch.randn(self.inner, self.columns)
        out = torch.empty(self.rows, self.columns)
        loops = 20 if self.rows * self.inner * self.columns < 1e7 else 1  # what is over too soon to be timed alone

        def multiply() -> None:
            for _ in range(loops):
                torch.mm(left, right, out=out)

        multiply()
        return self.count * min(seconds(multiply) for _ in range(max(repeats, 3))) / loops


@dataclass(frozen=True)
class Case:
    """Two implementations of one task. Each call starts anew and returns the tensors that the two must agree on."""

    name: str
    ours: Callable[[], Sequence[Tensor]]
    theirs: Callable[[], Sequence[Tensor]]
    products: tuple[Product, ...]


class Disagreement(Exception):
    """The two implementations do not compute the same."""


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest norm of a difference, relative to that of its tensor; infinite for other shapes.

    Not of single entries: where a chain's rounding turns one unit of a piecewise linear network on or off, one entry
    of a gradient changes by its share of one example.
    """
    if [value.shape for value in ours] != [value.shape for value in theirs]:
        return float("inf")
    pairs = zip(ours, theirs, strict=True)
    differences = [float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs]
    return max(d if math.isfinite(d) else float("inf") for d in differences)


def comparison(make_cases: Sequence[Callable[[], Case]], repeats: int) -> Iterator[str]:
    """The lines of a table: every case at every precision.

    Raises:
        Disagreement: If results differ by more than `TOLERANCE` at the precision `highest`.
    """
    yield from table(COMPARISON_HEADER)
    for make_case, precision in itertools.product(make_cases, PRECISIONS):
        torch.set_float32_matmul_precision(precision)
        yield row(_measure(make_case(), precision, repeats))


def _measure(case: Case, precision: str, repeats: int) -> list[str]:
    apart = difference(case.ours(), case.theirs())  # also the warm-up
    if precision == "highest" and not apart <= TOLERANCE:
        raise Disagreement(f"{case.name}: results differ by {apart:.1e}, relative, where {TOLERANCE:.0e} is allowed")
    theirs, ours = in_turn(case.theirs, case.ours, repeats=repeats)
    floor = sum(product.seconds(repeats) for product in case.products)
    rate = sum(product.flops for product in case.products) / floor / 1e9
    return [
        case.name,
        precision,
        milliseconds(theirs),
        milliseconds(ours),
        ratios(theirs, ours),
        f"{1e3 * floor:,.1f} ({rate:.0f} GFLOP/s)",
        f"{min(ours) / floor:.2f}",
        f"{apart:.0e}",
    ]


def in_turn(*tasks: Callable[[], object], repeats: int) -> list[list[float]]:
    """The seconds that each task took, `repeats` times, one after the other: what disturbs one disturbs all."""
    times: list[list[float]] = [[] for _ in tasks]
    for _ in range(repeats):
        for task, taken in zip(tasks, times, strict=True):
            taken.append(seconds(task))
    return times


def seconds(task: Callable[[], object]) -> float:
    """How long a task takes, until a GPU has done what it was given."""
    _wait()
    started = time.perf_counter()
    task()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(times: Sequence[float]) -> str:
    """The fastest and the median time."""
    return f"{1e3 * min(times):,.1f} / {1e3 * statistics.median(times):,.1f}"


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """How much faster ours is, by the fastest and by the median times."""
    by_median = statistics.median(theirs) / statistics.median(ours)
    return f"**{min(theirs) / min(ours):.2f}** / **{by_median:.2f}**"


def table(header: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [row(header), row(["---"] * len(header))]


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def describe_machine() -> str:
    """Processor, versions, threads and date: what a ratio is worth nothing without."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{processor} ({torch.backends.cpu.get_cpu_capability()}), {platform.system()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {date.today()}"
    )
