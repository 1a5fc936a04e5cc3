"""The recipe as a user starts it: what it prints and writes, with any decoder, and kills at any instant."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.training.checkpointing import find_checkpoints
from tests.recipes.commands import ACCELERATE, ONE_PROCESS, TINY_STEPS, TWO_PROCESSES, finish, write_decoder


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """A run that nobody disturbed, through `accelerate launch`: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("finished")
    code, out, err = finish(start(folder, launcher=[*ACCELERATE, *ONE_PROCESS]))
    assert code == 0, err
    return folder / "run", out


def steps_done(folder):
    """The last step that metrics.jsonl tells of, while the process writes to it."""
    path = folder / "run" / "metrics.jsonl"
    complete = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return json.loads(complete[-1])["step"] if complete else 0


def wait_for_step(process, folder, step):
    deadline = time.monotonic() + 120
    while steps_done(folder) < step:
        assert process.poll() is None, f"it ended before step {step}: {process.communicate()}"
        assert time.monotonic() < deadline, f"no step {step} in two minutes"
        time.sleep(0.002)


def assert_same_outcome(run, reference):
    """Weights as bytes, and every tensor of the last checkpoint: weights, optimizer, chains."""
    assert (run / "model" / "model.safetensors").read_bytes() == (
        reference / "model" / "model.safetensors"
    ).read_bytes()
    assert_same_checkpoint(run, reference)
    assert (run / "samples.txt").read_bytes() == (reference / "samples.txt").read_bytes()


def assert_same_checkpoint(run, reference):
    newest, expected = (find_checkpoints(folder / "checkpoints")[0] for folder in (run, reference))
    assert newest.name == expected.name == f"step-{TINY_STEPS:08d}"
    for name in ("model", "optimizer", "chains"):
        mine, other = (load_file(path / f"{name}.safetensors") for path in (newest, expected))
        assert mine.keys() == other.keys()
        assert all(mine[key].equal(other[key]) for key in mine), name


def test_a_run_prints_its_data_samples_and_the_paths_of_what_it_wrote(finished):
    run, out = finished
    assert "data: grammar (embedded corpus, generated, seed 0): 200 train, 1,000 validation, 1,000 test" in out
    assert "parameters, 4 latent dimensions" in out

    lines = out.splitlines()
    first = lines.index("16 samples, as they came:") + 1
    samples = lines[first : first + 16]
    assert samples == [f"  {line}" for line in (run / "samples.txt").read_text().splitlines()[:16]]
    assert lines[first + 16] == ""

    paths = dict(line.split(": ", 1) for line in lines[first + 17 :])
    assert {name.strip() for name in paths} == {"model", "metrics", "samples", "plot", "results", "card"}
    assert all(Path(path).exists() for path in paths.values())


def test_results_give_every_figure_with_its_error_and_sample_size(finished):
    run, out = finished
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == TINY_STEPS
    for split in ("validation", "test"):
        figures = results["splits"][split]
        for name in ("reconstruction_nll", "prior_nll"):
            estimate = figures[name]
            assert estimate["n"] == 1000
            assert 0 < estimate["standard_error"] < 5
            low, high = estimate["interval_95"]
            assert low < estimate["value"] < high
            assert f"{estimate['value']:.2f} ± {estimate['standard_error']:.2f} nats per sentence (n = 1000)" in out
        assert figures["latents"]["n"] == 1000
        assert 10 < figures["exact_nll"] < figures["prior_nll"]["value"]
    assert results["samples"]["n"] == len((run / "samples.txt").read_text().splitlines()) == 20


def test_a_causal_language_model_on_disk_becomes_the_decoder(start, tmp_path):
    decoder = write_decoder(tmp_path / "lm")
    settings = {"latent_dim": 4, "prior_hidden_size": 8, "max_sequence_length": 30}
    before = LatentEBMForTextGeneration.from_decoder_pretrained(decoder, **settings)
    changes = {"inference": "short_run", "max_length": 30, "num_epochs": 10, "decoder_learning_rate": 0.01}
    code, out, err = finish(start(tmp_path, pretrained_decoder=decoder, warmup=0.0, **changes))

    assert code == 0, err
    assert f"model: {before.num_parameters():,} parameters, 4 latent dimensions" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["step"] == 70
    assert 15 < results["splits"]["test"]["reconstruction_nll"]["value"] < 60, "452 words at random: 67 nats"
    shutil.rmtree(decoder)  # the run's model is whole without it
    model = LatentEBMForTextGeneration.from_pretrained(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model.config.decoder_config["model_type"] == "gpt2"
    assert not model.decoder.token_embedding.weight.equal(before.decoder.token_embedding.weight), "it has learned"
    words = set(tokenizer.get_vocab())
    for sentence in tokenizer.batch_decode(model.generate(num_samples=8), skip_special_tokens=True):
        assert set(sentence.split()) <= words


def test_sigterm_saves_and_the_next_run_ends_the_same(start, finished, tmp_path):
    process = start(tmp_path)
    wait_for_step(process, tmp_path, 20)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)

    assert code == 143, err
    (saved, *_) = find_checkpoints(tmp_path / "run" / "checkpoints")
    step = int(saved.name.removeprefix("step-"))
    assert 20 <= step < TINY_STEPS
    assert f"stopped by signal 15 after step {step}; run the same command again to resume" in out

    code, out, err = finish(start(tmp_path))
    assert code == 0, err
    assert f"resuming from {saved}" in out
    assert_same_outcome(tmp_path / "run", finished[0])


@pytest.mark.slow
def test_a_killed_run_ends_the_same(start, finished, tmp_path):
    process = start(tmp_path)
    wait_for_step(process, tmp_path, 40)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size > 0

    code, out, err = finish(start(tmp_path))
    assert code == 0, err
    assert "resuming from" in out
    assert_same_outcome(tmp_path / "run", finished[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("inference", ["persistent", "short_run"])
def test_kills_at_random_instants_change_nothing(start, tmp_path, inference, seed):
    changes = {"inference": inference, "save_every": 2, "log_every": 1}
    code, _, err = finish(start(tmp_path / "never killed", **changes))
    assert code == 0, err

    folder, randomness = tmp_path / "killed", random.Random(seed)
    for number in range(3):
        process = start(folder, **changes)
        wait_for_step(process, folder, steps_done(folder) + 1 if number else 1)
        time.sleep(randomness.uniform(0.0, 0.4))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    code, _, err = finish(start(folder, **changes))
    assert code == 0, err

    run, reference = folder / "run", tmp_path / "never killed" / "run"
    for part in ("model/model.safetensors", "samples.txt", *(["chains.bin"] if inference == "persistent" else [])):
        assert (run / part).read_bytes() == (reference / part).read_bytes(), part
    figures = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in path.read_text().splitlines()]
        for path in (run / "metrics.jsonl", reference / "metrics.jsonl")
    ]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_two_processes_give_one_set_of_outputs(start, tmp_path):
    # 3 sentences a batch and one left over: batches smaller than the number of processes are met too.
    changes = {"num_sentences": 40, "train_batch_size": 3, "num_epochs": 2, "eval_every": 10, "save_every": 10}
    code, out, err = finish(start(tmp_path, launcher=[*ACCELERATE, *TWO_PROCESSES], **changes))

    assert code == 0, err
    assert out.count("data: grammar") == out.count("16 samples, as they came:") == 1
    assert out.count("step 10: validation NLL") == 1
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == 28
    assert results["splits"]["test"]["reconstruction_nll"]["n"] == 1000
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    chains = load_file(find_checkpoints(run / "checkpoints")[0] / "chains.safetensors")["latents"]
    assert bool(chains.any(dim=1).all())  # both processes wrote theirs
