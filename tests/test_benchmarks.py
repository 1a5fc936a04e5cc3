"""The benchmarks run at toy sizes, print ratios, and refuse to time two implementations that disagree."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/run.py`, imported as a script sees it: with its folder on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("run")


@pytest.fixture(autouse=True)
def _settings_are_restored() -> Iterator[None]:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def test_quick_run_prints_a_ratio_for_every_case(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick", "--repeats", "1", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}, 1 threads" in lines[0]
    assert "toy sizes" in lines[0]
    header, rows = lines[2], lines[4:]
    assert len(rows) == 16  # 4 benchmarks, 2 variants, 2 precisions
    for row in rows:
        assert row.count("|") == header.count("|")
        assert re.search(r"\| \*\*\d+\.\d\d\*\* / \*\*\d+\.\d\d\*\* \|", row)
    for name in run.BENCHMARKS:
        assert sum(row.startswith(f"| {name}, ") for row in rows) == 4


def test_only_one_benchmark(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--quick", "--only", "prior-chain", "--repeats", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()[4:]
    assert len(rows) == 4
    assert all(row.startswith("| prior-chain, ") for row in rows)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("posterior-gradient", "likelihood_gradient"),
        ("posterior-chain", "sample_posterior"),
        ("prior-chain", "sample_prior"),
        ("training-step", "sample_prior"),
    ],
)
def test_a_disagreement_is_an_error(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, method: str
) -> None:
    right = getattr(run.PlainModel, method)
    monkeypatch.setattr(run.PlainModel, method, lambda *args: right(*args) * 1.001)
    assert run.main(["--quick", "--only", name, "--repeats", "1"]) == 1
    captured = capsys.readouterr()
    assert "results differ by" in captured.err
    assert "**" not in captured.out  # nothing was timed


def test_weight_gradients_are_compared_too(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, right = importlib.import_module("plain"), run._gradients

    def wrong(*parts: torch.nn.Module) -> list[torch.Tensor]:
        *others, last = right(*parts)
        return [*others, last * (1.001 if isinstance(parts[0], plain.PlainDecoder) else 1.0)]

    monkeypatch.setattr(run, "_gradients", wrong)
    assert run.main(["--quick", "--only", "training-step", "--repeats", "1"]) == 1


def test_difference(run: ModuleType) -> None:
    one = torch.tensor([1.0, -2.0])
    assert run.difference([one], [one]) == 0
    assert run.difference([one, one], [one, torch.tensor([1.0, -4.0])]) == pytest.approx(0.5)
    assert run.difference([one], [one[:1]]) == float("inf")
    assert run.difference([one], []) == float("inf")
    assert run.difference([one * float("nan")], [one]) == float("inf")


@pytest.mark.parametrize("option", ["--repeats", "--threads"])
def test_nonsense_is_refused(run: ModuleType, option: str) -> None:
    with pytest.raises(SystemExit) as raised:
        run.main(["--quick", option, "0"])
    assert raised.value.code == 2
