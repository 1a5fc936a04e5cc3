"""Runs the test suites of transformers and pyod against the models and detectors of this library: `make test-peers`.

The common tests of transformers come from the source distribution of the installed version, which is downloaded from
the package index that pip uses and unpacked into `build/peers`. It leaves out the tests of generation and export, and
that of pyod leaves out all tests. A checkout of their repositories has them:

    make test-peers ARGS='--transformers FOLDER --pyod FOLDER'

Without one, detectors are still compared with the base class of the installed pyod. Nothing of theirs is kept here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "build" / "peers"

#: Tests of theirs that cannot apply, each with its reason.
CANNOT_APPLY = {
    "test_generate_from_inputs_embeds_0_greedy": "p(x | z) is a density of token ids; inputs_embeds is refused",
    "test_generate_from_inputs_embeds_1_beam_search": "p(x | z) is a density of token ids; inputs_embeds is refused",
    "test_generate_from_random_inputs_embeds": "p(x | z) is a density of token ids; inputs_embeds is refused",
    "test_eager_matches_sdpa_inference_24_fp32_pad_left_output_attentions": "the attention 'sdpa' returns no "
    "weights, so output_attentions is refused with it",
    "test_model_base_model_prefix": "prior and decoder stand side by side; there is no base model under a head",
    "test_model_get_set_embeddings": "an embedding of ten rows in a model of 99 tokens is refused; "
    "tests/models/test_contract.py puts in one that fits",
    "test_predict_rank": "a private method of pyod",
    "test_predict_rank_normalized": "a private method of pyod",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", type=Path, metavar="FOLDER", help="checkout of its repository")
    parser.add_argument("--pyod", type=Path, metavar="FOLDER", help="checkout of its repository")
    args = parser.parse_args()
    installed = version("transformers")
    # Python looks for a test module in the first of these folders, then in the next.
    folders = [source_distribution("transformers", installed) / "tests"]
    folders += [] if args.transformers is None else [args.transformers / "tests"]
    os.environ["TRANSFORMERS_TESTS"] = os.pathsep.join(map(str, folders))
    os.environ["PYOD_TESTS"] = "" if args.pyod is None else str(args.pyod / "pyod" / "test")
    print(f"The tests of transformers {installed} and pyod {version('pyod')} run; this takes a minute.", flush=True)
    for name in ("generation", "exporters"):
        if not any((folder / name).is_dir() for folder in folders):
            print(f"Left out: the tests of transformers' tests/{name}, which a checkout given as --transformers has.")
    if args.pyod is None:
        print("Left out: pyod's tests of a detector, which a checkout given as --pyod has.")
    outcomes = Outcomes()
    suites = [str(HERE / name) for name in ("transformers_models.py", "pyod_detectors.py")]
    options = ["-c", os.devnull, f"--rootdir={HERE}", "--import-mode=importlib", "-p", "no:cacheprovider"]
    pytest.main([*options, "-p", "no:terminal", "-W", "ignore", *suites], plugins=[outcomes])
    return outcomes.report()


def source_distribution(name: str, number: str) -> Path:
    """The unpacked source distribution of a package, downloaded if it is not there."""
    folder = FOLDER / f"{name}-{number}"
    if folder.is_dir():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--no-binary", name, "--dest", str(FOLDER), f"{name}=={number}"]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(
            f"make test-peers: the source distribution of {name} {number} could not be had from the package index "
            "(`pip config list` shows which). The tests need it: check the network"
        )
    with tarfile.open(FOLDER / f"{name}-{number}.tar.gz") as archive:
        archive.extractall(FOLDER, filter="data")
    return folder


class Outcomes:
    """Counts the outcomes of every test class, as a plugin of pytest."""

    def __init__(self) -> None:
        self._worst: dict[tuple[str, str], str] = {}
        self._failures: dict[tuple[str, str], str] = {}

    def pytest_collectreport(self, report: Any) -> None:
        """Keeps what stops a file from being read."""
        if report.failed:
            self._worst[report.nodeid, "collection"] = "failed"
            self._failures[report.nodeid, "collection"] = report.longreprtext

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keeps the worst outcome of a test, of its phases and of its subtests."""
        suite, test = report.nodeid.split("::")[-2:]
        order = ["passed", "skipped", "failed"]
        known = self._worst.get((suite, test), "passed")
        self._worst[suite, test] = max(known, report.outcome, key=order.index)
        if report.failed:
            self._failures[suite, test] = report.longreprtext

    def report(self) -> int:
        """Prints the counts and what cannot apply; the exit code is 1 if anything else failed."""
        counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        failures, listed = [], []
        for (suite, test), outcome in self._worst.items():
            if outcome == "failed" and test in CANNOT_APPLY:
                outcome = "cannot apply"
                listed.append(test)
            elif outcome == "failed":
                failures.append(f"-------- {suite}.{test}\n{self._failures[suite, test]}")
            counts[suite][outcome] += 1
        for suite, numbers in counts.items():
            print(f"{suite}: " + ", ".join(f"{number} {outcome}" for outcome, number in numbers.items()))
        if listed:
            print("\nWhat cannot apply, and why:")
            print("\n".join(f"  {test}: {reason}" for test, reason in CANNOT_APPLY.items() if test in listed))
        print("", *failures, sep="\n")
        return 1 if failures or not counts else 0


if __name__ == "__main__":
    sys.exit(main())
