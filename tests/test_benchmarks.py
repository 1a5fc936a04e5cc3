"""The benchmarks run at toy sizes, print ratios, and refuse to time two implementations that disagree."""

import importlib
import importlib.util
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
RATIO = re.compile(r"\| \*\*\d+\.\d\d\*\* / \*\*\d+\.\d\d\*\* \|")


@pytest.fixture(autouse=True)
def _import_as_a_script_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def run() -> ModuleType:
    """`benchmarks/run.py`."""
    return importlib.import_module("run")


@pytest.fixture(autouse=True)
def _settings_are_restored() -> Iterator[None]:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def rows_of(run: ModuleType, capsys: pytest.CaptureFixture[str], name: str) -> list[str]:
    """The rows of a benchmark's table at toy sizes, without its header."""
    assert run.main(["--quick", "--only", name, "--repeats", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "toy sizes" in lines[0]
    assert f"## {name}" in lines
    rows = [line for line in lines if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    return rows[2:]


@pytest.mark.parametrize("name", ["posterior-gradient", "posterior-chain", "training-step"])
def test_comparison_with_the_plain_model(run: ModuleType, capsys: pytest.CaptureFixture[str], name: str) -> None:
    rows = rows_of(run, capsys, name)
    assert len(rows) == 4  # 2 output layers, 2 precisions
    assert all(row.startswith(f"| {name}, ") and RATIO.search(row) for row in rows)


def test_images_against_the_plain_model(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(run, capsys, "images")
    assert len(rows) == 4  # gradient and training step, 2 precisions
    assert all(row.startswith("| images, ") and RATIO.search(row) for row in rows)


def test_control_against_plain_sampling(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(run, capsys, "control")
    assert [row.split("|")[1].strip() for row in rows] == ["1", "3"]


def test_prior_chain_without_torchebm_says_so(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run.main(["--quick", "--only", "prior-chain", "--repeats", "1"]) == 0
    output = capsys.readouterr().out
    assert len(RATIO.findall(output)) == 4  # 2 batches, 2 precisions
    assert "Not compared with torchebm, which is not installed" in output


def test_prior_chain_walks_the_path_of_torchebm(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchebm")
    rows = rows_of(run, capsys, "prior-chain")
    assert sum("against torchebm" in row for row in rows) == 4
    assert all(RATIO.search(row) for row in rows)


def test_scoring_in_two_ways(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows_of(run, capsys, "scoring")
    assert RATIO.search(row)


def test_generation_makes_as_many_words_as_gpt2(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    equal, natural = rows_of(run, capsys, "generation")
    assert "| 4.0 / 4.0 |" in equal
    assert all(RATIO.search(row) for row in (equal, natural))


def test_generation_at_full_size_compares_models_of_one_size() -> None:
    cases, sizes = importlib.import_module("cases_generation"), importlib.import_module("sizes").Sizes(device="meta")
    with torch.device("meta"):
        ours, gpt2 = (
            sum(weight.numel() for weight in model.parameters())
            for model in (sizes.generation_model(), cases._gpt2(sizes))
        )
    assert ours == pytest.approx(5.7e6, rel=0.01)
    assert gpt2 == pytest.approx(ours, rel=0.01)


def test_words_are_counted_up_to_the_first_end() -> None:
    count = importlib.import_module("cases_generation")._mean_words
    ids = torch.tensor([[1, 5, 2, 0, 0], [1, 5, 6, 7, 8], [1, 2, 2, 5, 2]])
    assert count(ids, 2) == pytest.approx((2 + 4 + 1) / 3)


def test_learning_reports_what_was_reached_and_what_was_not(
    run: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    easy, impossible = rows_of(run, capsys, "learning")
    assert re.fullmatch(r"\| 1000\.0 \| \d+\.\d \| \d+\.\d \| \*\*\d+\.\d\*\* \|", easy)
    assert re.fullmatch(r"\| 1\.0 \| > \d+\.\d \| not reached \| - \|", impossible)


def test_a_target_out_of_reach_gives_a_lower_bound_of_the_ratio() -> None:
    compare = importlib.import_module("cases_learning")._compare
    assert compare(30.0, 10.0, 100.0) == ("30.0", "10.0", "**3.0**")
    assert compare(math.inf, 10.0, 100.0) == ("> 100.0", "10.0", "**>= 10.0**")


def test_the_stopwatch_stands_still_while_the_model_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    cases, now = importlib.import_module("cases_learning"), [0.0]
    monkeypatch.setattr(cases.time, "perf_counter", lambda: now[0])
    stopwatch = cases.Stopwatch((20.0, 10.0))

    def judge(nll: float) -> dict[str, float]:
        now[0] += 100.0
        return {"reconstruction_nll": nll}

    for nll in (30.0, 15.0, 9.0, 8.0):
        now[0] += 1.0
        stopwatch.look(lambda nll=nll: judge(nll))
    assert stopwatch.reached == {20.0: 2.0, 10.0: 3.0}
    assert stopwatch.arrived


def test_plain_weights_are_judged_in_our_model() -> None:
    """Copied into a model of other weights, they give the plain model's likelihood and tilt."""
    cases, plain = importlib.import_module("cases_learning"), importlib.import_module("plain")
    sizes = importlib.import_module("sizes").QUICK
    source, judge, inputs = sizes.model(tied=True), sizes.model(tied=True), sizes.inputs()
    theirs, latents = plain.PlainModel(source), torch.randn(sizes.batch, sizes.latent)
    with torch.no_grad():
        for weight in judge.parameters():
            weight.normal_()
        cases._copy_weights(theirs, judge)
        nll = -judge.decoder.log_prob(inputs, latents).sum()
        torch.testing.assert_close(nll, theirs.decoder.nll(inputs["input_ids"], latents))
        torch.testing.assert_close(judge.prior.tilt(latents), theirs.tilt(latents).squeeze(-1))


def test_padding_does_not_count_in_the_plain_likelihood() -> None:
    plain, sizes = importlib.import_module("plain"), importlib.import_module("sizes").QUICK
    model, ids = sizes.model(tied=True), sizes.inputs()["input_ids"].clamp(min=1)
    decoder, latents = plain.PlainModel(model, padding=0).decoder, torch.randn(sizes.batch, sizes.latent)
    padded = torch.nn.functional.pad(ids, (0, 3))
    torch.testing.assert_close(decoder.nll(padded, latents), decoder.nll(ids, latents))


def test_scaling_varies_one_size_at_a_time(run: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows_of(run, capsys, "scaling")]
    assert [row[:2] for row in rows] == [
        ["batch", "4"], ["batch", "8"], ["words a sentence", "3"], ["vocabulary", "100"], ["latent size", "4"],
    ]  # fmt: skip
    assert all(float(cell.replace(",", "")) > 0 for row in rows for cell in row[2:])


# --- what is refused ---


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
    model = importlib.import_module("plain").PlainModel
    right = getattr(model, method)
    monkeypatch.setattr(model, method, lambda *args: right(*args) * 1.001)
    assert run.main(["--quick", "--only", name, "--repeats", "1"]) == 1
    captured = capsys.readouterr()
    assert "results differ by" in captured.err
    assert "**" not in captured.out  # nothing was timed


def test_weight_gradients_are_compared_too(run: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, cases = importlib.import_module("plain"), importlib.import_module("cases_posterior")
    right = cases._gradients

    def wrong(*parts: torch.nn.Module) -> list[torch.Tensor]:
        *others, last = right(*parts)
        return [*others, last * (1.001 if isinstance(parts[0], plain.PlainDecoder) else 1.0)]

    monkeypatch.setattr(cases, "_gradients", wrong)
    assert run.main(["--quick", "--only", "training-step", "--repeats", "1"]) == 1


def test_difference() -> None:
    difference, one = importlib.import_module("timing").difference, torch.tensor([1.0, -2.0])
    assert difference([one], [one]) == 0
    assert difference([one, one], [one, torch.tensor([1.0, -4.0])]) == pytest.approx(2 / 17**0.5)
    assert difference([one], [one[:1]]) == float("inf")
    assert difference([one], []) == float("inf")
    assert difference([one * float("nan")], [one]) == float("inf")


@pytest.mark.parametrize("option", [("--repeats", "0"), ("--threads", "0"), ("--write",)])
def test_nonsense_is_refused(run: ModuleType, option: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as raised:
        run.main(["--quick", *option])
    assert raised.value.code == 2


# --- the file of results ---


def test_every_benchmark_has_a_section_that_is_replaced_as_a_whole(run: ModuleType) -> None:
    results = importlib.import_module("results")
    text = results.RESULTS.read_text(encoding="utf-8")
    for name in run.BENCHMARKS:
        once = results.replace_section(text, name, ["| old \\1 |"])
        assert "| old \\1 |" in once
        new = results.replace_section(once, name, ["| new |"])
        assert "old" not in new.split(f"<!-- begin {name} -->")[1].split(f"<!-- end {name} -->")[0]
        assert new.replace("| new |", "| old \\1 |") == once, "nothing else changes"
    with pytest.raises(ValueError, match="no section between '<!-- begin other -->'"):
        results.replace_section(text, "other", [])


def test_write_keeps_table_and_machine(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\n<!-- begin scaling -->\n<!-- end scaling -->\n", encoding="utf-8")
    results, sizes = importlib.import_module("results"), importlib.import_module("sizes")
    monkeypatch.setattr(run, "Sizes", lambda: sizes.QUICK)
    monkeypatch.setattr(run, "write_section", lambda name, lines: results.write_section(name, lines, path))
    assert run.main(["--only", "scaling", "--repeats", "1", "--write"]) == 0
    written = path.read_text(encoding="utf-8")
    assert f"torch {torch.__version__}" in written
    assert "| latent size | 4 |" in written
    assert written.startswith("# Results\n")


# --- the prior's chain as one region ---


@pytest.fixture
def prior_region(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/prior_region.py`, where `torch.compile` compiles nothing."""
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    return importlib.import_module("prior_region")


def test_a_chain_with_its_score_compiled_is_set_beside_the_eager_one(
    prior_region: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prior_region, "missing_compiler", lambda device: None)
    assert prior_region.main(["--device", "cpu", "--quick"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"\| with its score compiled \| 8 \| .*\| 0e\+00 \|", output)
    assert "Not captured: a CPU has no CUDA graphs." in output

    monkeypatch.setattr(torch, "compile", lambda function, **settings: lambda latents: 2 * function(latents))
    assert prior_region.main(["--device", "cpu", "--quick"]) == 1
    assert "**DIFFERENT** from the eager chain: with its score compiled, batch 8" in capsys.readouterr().out


def test_without_a_compiler_it_is_named_as_missing(
    prior_region: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert prior_region.main(["--device", "cpu", "--quick"]) == 0
    assert "Not compiled: a C++ compiler is missing." in capsys.readouterr().out
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert prior_region.missing_compiler("cuda") == "triton"
    assert prior_region.missing_compiler("cpu") is None


def test_a_gpu_is_tried_with_a_graph_with_a_compiled_score_and_with_both(prior_region: ModuleType) -> None:
    eager, compiled = lambda: torch.zeros(1), lambda: torch.ones(1)
    assert [name for name, _ in prior_region.ways(eager, compiled, on_gpu=True)] == [
        "as one CUDA graph",
        "with its score compiled",
        "as one CUDA graph, with its score compiled",
    ]
    assert [name for name, _ in prior_region.ways(eager, None, on_gpu=True)] == ["as one CUDA graph"]


# --- the check of a GPU, on a CPU ---


@pytest.fixture
def gpu_check() -> ModuleType:
    """`benchmarks/gpu_check.py`."""
    return importlib.import_module("gpu_check")


@pytest.fixture
def check(gpu_check: ModuleType) -> Any:
    return gpu_check.Check(torch.device("cpu"), quick=True, ptb=None, started=time.monotonic())


@pytest.mark.slow
def test_every_part_of_the_model_is_compared_with_the_cpu(gpu_check: ModuleType, check: Any) -> None:
    rows = [line for line in gpu_check.equality(check) if line.endswith("equal |")]
    for part in (
        "decoder: LSTM",
        "decoder: transformer",
        "decoder: convolutions",
        "encoder",
        "prior",
        "log p(x) by ais",
    ):
        assert any(row.startswith(f"| {part}") for row in rows), part
    assert sum(row.startswith("| sampler") for row in rows) == 6


def test_a_difference_from_the_cpu_is_a_failure(
    gpu_check: ModuleType, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "random_differences", lambda device: [])
    by_hand = "gpu_equality._by_hand"
    monkeypatch.setattr(by_hand, lambda *_: [torch.zeros(8), torch.zeros(8, 4)])
    with pytest.raises(gpu_check.Failure, match="not equal to the CPU: decoder: LSTM, by cuDNN"):
        list(gpu_check.equality(check))


def test_a_step_of_training_waits_seldom_for_its_device(gpu_check: ModuleType) -> None:
    """No chain waits at any of its steps: the counts do not depend on the length of the chains."""
    short_run = gpu_check.reads_of_a_step(torch.device("cpu"), {}, {"inference": "short_run"})
    long = {"name": "langevin", "num_steps": 9, "step_size": 0.1}
    settings = {"prior_sampler": long, "posterior_sampler": long}
    assert gpu_check.reads_of_a_step(torch.device("cpu"), settings, {"inference": "short_run"}) == short_run
    assert sum(short_run.values()) == 1, "the numbers of the step"
    shipped = gpu_check.reads_of_a_step(torch.device("cpu"), gpu_check.SHIPPED, gpu_check.SHIPPED_TRAINING)
    assert sum(shipped.values()) == 1
    of_persistent = gpu_check.reads_of_a_step(torch.device("cpu"), {}, {"inference": "persistent"})
    assert sum(of_persistent.values()) == 2, "the numbers of the step, and the ends of its chains"


def test_what_waits_for_a_device_is_counted(gpu_check: ModuleType) -> None:
    """A count of what does not wait would always be right: each kind of read counts once, and nothing else does."""
    numbers, mask = torch.arange(3.0), torch.tensor([True, False, True])
    reads = [lambda: float(numbers.sum()), mask.nonzero, lambda: numbers[mask], numbers.cpu, numbers.tolist]
    for read in reads:
        with gpu_check.counting_reads(torch.device("cpu")) as places:
            (numbers * 2).masked_fill(mask, 0.0)
            read()
        assert places == {"elsewhere": 1}


def test_the_report_goes_on_after_a_part_that_fails(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(check: Any) -> Iterator[str]:
        yield "begun"
        raise gpu_check.Failure("it is broken")

    parts = {"Broken": broken, "Speed": gpu_check.speed, "Memory": gpu_check.memory}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    assert gpu_check.main(["--device", "cpu", "--quick", "--output", str(tmp_path / "report.md")]) == 1
    report = (tmp_path / "report.md").read_text()
    assert report == capsys.readouterr().out
    for line in ("**No figure here is one of a GPU.**", "**FAILED**: Failure: it is broken", "failed: Broken"):
        assert line in report
    assert len(RATIO.findall(report)) >= 12
    has_loss = hasattr(torch.nn, "LinearCrossEntropyOptions")
    assert report.count("output-loss, against linear_cross_entropy") == (2 if has_loss else 0)
    assert ("which this torch does not have" in report) is not has_loss


def test_a_compiler_that_takes_too_long_is_ended(
    gpu_check: ModuleType, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "REGION", 0.01)
    assert list(gpu_check.prior_region(check)) == ["\nNot finished within 0 s."]


@pytest.mark.slow
def test_the_whole_check_runs_on_a_cpu(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--device", "cpu", "--quick"]) == 0
    output = capsys.readouterr().out
    assert all(f"## {title}" in output for title in gpu_check.PARTS)
    assert "everything is right" in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_try_it(gpu_check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        gpu_check.main([])
    assert raised.value.code == 2
    assert "--device cpu --quick" in capsys.readouterr().err
