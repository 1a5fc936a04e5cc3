"""Whether everything is right on a GPU, and how fast it is: a report in Markdown, in at most 8 minutes.

    python benchmarks/gpu_check.py --output benchmarks/GPU.md         # no network and no data: the embedded corpus
    python benchmarks/gpu_check.py --ptb path/to/ptb                  # trains on Penn Treebank as well
    python benchmarks/gpu_check.py --device cpu --quick               # all of it at toy sizes; its times mean nothing

Equality is with the CPU, at the precision `highest`. Speed is the library beside the same model in plain PyTorch,
beside torchebm where it is installed, and beside a GPT-2 of transformers. A part that fails is reported, and the next
one runs all the same; the exit code is then 1. What the time does not suffice for is left out, and said to be.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases_generation import generation
from cases_output import HAS_LINEAR_CROSS_ENTROPY, output_loss
from cases_posterior import posterior_chain, posterior_gradient, training_step
from cases_prior import plain_chain, torchebm_chain
from gpu_equality import exact_differences, random_differences, text_model, transformer
from host_reads import counting_reads
from prior_region import CHAIN_TOLERANCE
from sizes import QUICK, Sizes
from timing import Case, difference, in_turn, ratios, row, table
from timing import seconds as seconds_of

from latent_ebm_text.commands.runs import describe_environment
from latent_ebm_text.data.batching import BucketedBatches, TextCollator
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.step import TrainingData
from latent_ebm_text.training.trainer import train

ROOT = Path(__file__).parents[1]
#: Seconds of the whole, of the tests, of the chain as one region, and of the training.
BUDGET, TESTS, REGION, TRAINING = 480.0, 90.0, 60.0, 300.0
#: Reconstruction NLL of the shipped configuration on the test split of Penn Treebank, from docs/results.md.
PTB_NLL = "90.2 [88.6, 91.8]"


@dataclass(frozen=True)
class Check:
    """What the parts of the report have in common.

    Attributes:
        device: The device to be checked.
        quick: Whether sizes are toys.
        ptb: Folder of Penn Treebank, if there is one.
        started: When the check began, by `time.monotonic`.
    """

    device: torch.device
    quick: bool
    ptb: Path | None
    started: float

    @property
    def sizes(self) -> Sizes:
        return replace(QUICK if self.quick else Sizes(), device=str(self.device))

    @property
    def remaining(self) -> float:
        """Seconds until the budget is spent."""
        return BUDGET - (time.monotonic() - self.started)


class Failure(Exception):
    """Something on the device is not as it should be."""


# -------- equality


def equality(check: Check) -> Iterator[str]:
    """Every decoder, encoder, prior, sampler and likelihood gives on the device what it gives on the CPU."""
    yield from table(("what", "largest relative difference", "allowed", ""))
    wrong = []
    for name, apart, allowed in (*exact_differences(check.device), *random_differences(check.device)):
        is_right = apart <= allowed
        wrong += [] if is_right else [name]
        yield row([name, f"{apart:.1e}", f"{allowed:.1e}", "equal" if is_right else "**DIFFERENT**"])
    if wrong:
        raise Failure(f"not equal to the CPU: {', '.join(wrong)}")


# -------- tests


def fast_tests(check: Check) -> Iterator[str]:
    """The fast tests of networks and latents, with the versions of this machine."""
    if importlib.util.find_spec("pytest") is None:
        yield "Not run: pytest is not installed."
        return
    paths = ["tests/networks/test_lstm.py"] if check.quick else ["tests/networks", "tests/latents"]
    command = [sys.executable, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", *paths]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=min(TESTS, check.remaining))
    except subprocess.TimeoutExpired:
        yield f"Not finished within {TESTS:.0f} s."
        return
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    yield f"`{' '.join(paths)}`: {last}"
    if done.returncode:
        raise Failure(f"tests failed: {last}")


# -------- waiting


def waiting(check: Check) -> Iterator[str]:
    """How often the host waits for the device in one step of training, logging and saving left out."""
    yield from table(("training", "reads a step", "where"))
    encoder = {"encoder_hidden_size": 8, "frequent_tokens": 20, "drawn_tokens": 10}
    for name, settings, training in (
        ("short-run chains", {}, {"inference": "short_run"}),
        ("persistent chains, transformer", transformer("prefix"), {"inference": "persistent"}),
        ("variational", encoder, {"inference": "variational"}),
        ("variational, as shipped", SHIPPED, SHIPPED_TRAINING),
    ):
        places = reads_of_a_step(check.device, settings, training)
        where = ", ".join(f"{place} ({count})" for place, count in sorted(places.items()))
        yield row([name, str(sum(places.values())), where])


#: The parts of a text model as `recipes/configs/text.yaml` has them, at toy sizes.
SHIPPED = {
    "encoder_hidden_size": 8,
    "frequent_tokens": 20,
    "drawn_tokens": 10,
    "bag_of_tokens_weight": 1.0,
    "sentence_embedding_weight": 0.2,
    "sentence_embedding_size": 6,
    "moment_weight": 1.0,
    "tie_word_embeddings": True,
    "token_dropout": 0.1,
}
SHIPPED_TRAINING = {"inference": "variational", "information": 1.0, "prior_chain_num_steps": 20}


def reads_of_a_step(device: torch.device, settings: dict[str, Any], training: dict[str, Any]) -> Counter[str]:
    """The reads of the fourth step of a training, which averages weights; the first ones may prepare something."""
    words = np.random.default_rng(0)
    rows = [[1, *words.integers(4, 60, size=words.integers(1, 9)).tolist(), 2] for _ in range(64)]
    marks: list[Counter[str]] = []
    with tempfile.TemporaryDirectory() as folder, counting_reads(device) as places:
        collator = TextCollator(0)

        def collate(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
            marks.append(Counter(places))
            return collator(examples)

        training = {"num_epochs": 1, "log_every": 100, "averaging_start": 0.2, **training}
        args = TrainingArguments(output_dir=folder, train_batch_size=8, **training)
        width = settings.get("sentence_embedding_size")
        batches = BucketedBatches([len(each) - 1 for each in rows], args.train_batch_size, args.seed)
        train(
            text_model(**settings),
            TrainingData(_Rows(rows, width), batches, collate),
            args,
            identity={},
            evaluate=_nothing,
        )
    return marks[4] - marks[3]


class _Rows:
    """Token ids by index list, as a `datasets.Dataset` gives them, and sentence embeddings if they have a width."""

    def __init__(self, rows: list[list[int]], width: int | None) -> None:
        self.rows, self.width = rows, width

    def __getitem__(self, indices: np.ndarray) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"input_ids": [self.rows[index] for index in indices]}
        if self.width is not None:
            columns["sentence_embeddings"] = [[1.0] * self.width for _ in indices]
        return columns


def _nothing(model: Any, step: int) -> dict[str, float]:
    return {}


# -------- speed


def speed(check: Check) -> Iterator[str]:
    """The library beside plain PyTorch and torchebm, at the size of the paper's model of Penn Treebank."""
    sizes, repeats = check.sizes, 1 if check.quick else 10
    tokens = sizes.batch * sizes.tokens
    cases: list[tuple[Callable[[], Case], int]] = [
        (partial(posterior_gradient, sizes, True), tokens),
        (partial(posterior_chain, sizes, True), tokens * sizes.posterior_steps),
        (partial(training_step, sizes, False), tokens),
        (partial(training_step, sizes, True), tokens),
        *((partial(plain_chain, sizes, batch), 0) for batch in sizes.prior_batches),
    ]
    if importlib.util.find_spec("torchebm") is not None:
        cases += [(partial(torchebm_chain, sizes, batch), 0) for batch in sizes.prior_batches]
    if HAS_LINEAR_CROSS_ENTROPY:
        cases.append((partial(output_loss, sizes), tokens))
    header = ("benchmark", "precision", "theirs, ms", "ours, ms", "theirs / ours (min / median)")
    yield from table((*header, "ours, tokens/s", "share of the peak", "difference"))
    wrong = []
    for precision in ("highest", "high"):
        _set_precision(precision)
        peak = _peak(check)
        for make_case, count in cases:
            case = make_case()
            apart = difference(case.ours(), case.theirs())  # also the warm-up
            wrong += [case.name] if precision == "highest" and not apart <= CHAIN_TOLERANCE else []
            theirs, ours = in_turn(case.theirs, case.ours, repeats=repeats)
            share = sum(product.flops for product in case.products) / min(ours) / peak
            times = [f"{1e3 * statistics.median(each):,.2f}" for each in (theirs, ours)]
            rate = f"{count / min(ours):,.0f}" if count else "-"
            yield row([case.name, precision, *times, ratios(theirs, ours), rate, f"{share:.1%}", f"{apart:.0e}"])
        yield row([f"the peak: {peak / 1e12:.2f} TFLOP/s, measured", precision, *["-"] * 6])
    _set_precision("highest")
    if importlib.util.find_spec("torchebm") is None:
        yield "\nNot compared with torchebm, which is not installed."
    if not HAS_LINEAR_CROSS_ENTROPY:
        yield "\nNot compared with `linear_cross_entropy`, which this torch does not have."
    if wrong:
        raise Failure(f"results differ: {', '.join(wrong)}")


def _peak(check: Check) -> float:
    """The FLOP/s of a large matrix product, at torch's present precision."""
    size = 256 if check.quick else 8192
    left, right = (torch.randn(size, size, device=check.device) for _ in range(2))
    multiply = partial(torch.mm, left, right)
    multiply()
    return 2.0 * size**3 / min(seconds_of(multiply) for _ in range(5))


def _set_precision(precision: str) -> None:
    """That of matrix products and of cuDNN: TF32 unless it is the highest."""
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"


def prior_region(check: Check) -> Iterator[str]:
    """The prior's chain as one CUDA graph, and with its score compiled, beside the chain as it is."""
    command = [sys.executable, str(ROOT / "benchmarks" / "prior_region.py"), "--device", check.device.type]
    command += ["--quick"] if check.quick else []
    # On a CPU the compiler takes a minute or two the first time, and nothing that is measured here is in a hurry.
    limit = min(REGION if check.device.type == "cuda" else 3 * REGION, check.remaining)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired as error:
        yield from (error.stdout or b"").decode().splitlines()
        yield f"\nNot finished within {limit:.0f} s."
        return
    yield from done.stdout.splitlines()
    if done.returncode:
        raise Failure(f"the chains ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")


def memory(check: Check) -> Iterator[str]:
    """The most memory that a training step takes on the device."""
    if check.device.type != "cuda":
        yield "Not measured: a CPU does not say."
        return
    yield from table(("training step", "theirs, MiB", "ours, MiB"))
    for tied in (False, True):
        case, peaks = training_step(check.sizes, tied), []
        for task in (case.theirs, case.ours):
            torch.cuda.reset_peak_memory_stats()
            task()
            peaks.append(f"{torch.cuda.max_memory_allocated() / 2**20:,.0f}")
        yield row([case.name, *peaks])


# -------- training


def training(check: Check) -> Iterator[str]:
    """The shipped configuration of Penn Treebank, where there is a folder, and of the embedded corpus otherwise."""
    limit = min(TRAINING, check.remaining - 10)
    if limit < 30:
        yield "Left out: the time is spent."
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "recipes" / "train_ptb.py"), "--output_dir", folder]
        command += ["--config", "quickstart"] if check.ptb is None else ["--dataset_name", str(check.ptb)]
        if check.quick:
            command += ["--num_sentences", "128", "--num_epochs", "1", "--num_eval_samples", "20"]
        on_gpu = check.device.type == "cuda"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        environment |= {"ACCELERATE_MIXED_PRECISION": "bf16"} if on_gpu else {"ACCELERATE_USE_CPU": "true"}
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            _, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.communicate()
            yield f"Not finished within {limit:.0f} s."
            return
        if process.returncode:
            raise Failure(f"the training ended with {process.returncode}: {(errors.strip().splitlines() or [''])[-1]}")
        results = json.loads((Path(folder) / "results.json").read_text())
    test = results["splits"]["test"]
    low, high = test["reconstruction_nll"]["interval_95"]
    precision = "bf16" if on_gpu else "float32"
    yield f"- corpus: {results['dataset']['name']}; steps: {results['step']:,}; precision: {precision}"
    yield f"- {results['training_seconds']:.0f} s of training, {time.monotonic() - started:.0f} s with all else"
    known = f"; docs/results.md has {PTB_NLL}" if check.ptb is not None and not check.quick else ""
    yield f"- reconstruction NLL {test['reconstruction_nll']['value']:.2f} [{low:.2f}, {high:.2f}] nats{known}"
    yield f"- prior NLL {test['prior_nll']['value']:.2f} nats; mismatch {100 * test['latents']['std_mismatch']:.1f} %"
    yield from (f"- warning: {warning}" for warning in results["warnings"])


# -------- the report

PARTS: dict[str, Callable[[Check], Iterator[str]]] = {
    "Equality with the CPU": equality,
    "Fast tests": fast_tests,
    "Waiting for the device": waiting,
    "Speed": speed,
    "The prior's chain as one region": prior_region,
    "Generation beside GPT-2": lambda check: generation(check.sizes, 1 if check.quick else 5),
    "Memory": memory,
    "Training": training,
}


def report(check: Check) -> Iterator[str]:
    """The lines of the report; the last one says whether everything is right."""
    on_gpu = check.device.type == "cuda"
    yield f"# Check of a {'GPU' if on_gpu else 'CPU, in place of a GPU'}\n"
    if not on_gpu:
        yield "**No figure here is one of a GPU.** The check ran on a CPU to show that it runs.\n"
    if check.quick:
        yield "**Toy sizes: times and ratios mean nothing.**\n"
    yield from (f"- {name}: {value}" for name, value in describe_environment().items())
    if on_gpu:
        yield f"- memory: {torch.cuda.get_device_properties(check.device).total_memory / 2**30:.0f} GiB"
    failed = []
    for title, part in PARTS.items():
        started = time.monotonic()
        yield f"\n## {title}\n"
        try:
            yield from part(check)
        except Exception as error:  # whatever it is, the device's time is short: the other parts shall run
            failed.append(title)
            yield f"\n**FAILED**: {type(error).__name__}: {error}"
            if not isinstance(error, Failure):
                traceback.print_exc()
        yield f"\n({time.monotonic() - started:.0f} s)"
    yield "\n## Verdict\n"
    yield f"failed: {', '.join(failed)}" if failed else "everything is right"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="the device to check")
    parser.add_argument("--quick", action="store_true", help="toy sizes: a smoke test of a minute")
    parser.add_argument("--ptb", type=Path, help="folder of Penn Treebank (train.txt, valid.txt, test.txt)")
    parser.add_argument("--output", type=Path, help="a file for the report, which is printed in any case")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here: give --device cpu --quick to try the check itself")
    if options.ptb is not None and not options.ptb.is_dir():
        parser.error(f"--ptb {options.ptb} is no folder")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_precision("highest")
    lines = []
    try:
        for line in report(Check(torch.device(options.device), options.quick, options.ptb, time.monotonic())):
            print(line, flush=True)
            lines.append(line)
            if options.output is not None:  # line by line, so that a run that is cut short leaves what it has found
                options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    return int(lines[-1].startswith("failed"))


if __name__ == "__main__":
    sys.exit(main())
