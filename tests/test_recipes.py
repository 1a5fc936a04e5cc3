"""The recipe as a user meets it: what it prints and writes, bad inputs, and kills at any instant."""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.training.arguments import DataArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.checkpointing import find_checkpoints
from latent_ebm_text.training.configuration import parse_recipe_arguments, run_recipe

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "train_ptb.py"
CONFIGS = [
    path
    for path in sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
    if "decoder_channels" not in path.read_text(encoding="utf-8")  # those of images are in test_image_recipes.py
]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
ONE_PROCESS = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
TWO_PROCESSES = ["--multi_gpu", "--num_processes", "2", *ONE_PROCESS[2:]]

TINY = {
    "dataset_name": "grammar", "num_sentences": 200, "max_length": 20, "latent_dim": 4, "hidden_size": 16,
    "embedding_size": 8, "prior_hidden_size": 8, "prior_num_steps": 3, "posterior_num_steps": 3,
    "posterior_step_size": 0.3, "num_epochs": 20, "train_batch_size": 32, "inference": "persistent",
    "log_every": 3, "eval_every": 50, "save_every": 10, "num_eval_sentences": 32, "num_eval_samples": 20,
}  # fmt: skip
TINY_STEPS = 140  # 20 epochs of 7 batches


def options(**settings):
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_understood(path):
    data, model, training = parse_recipe_arguments(
        (DataArguments, ModelArguments, TrainingArguments), ["--config", str(path)], description=""
    )
    config = model.text_config(vocab_size=1000, max_sentence_length=data.max_length)
    for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        (owner,) = (arguments for arguments in (data, model, training) if hasattr(arguments, name))
        assert getattr(owner, name) == value
    assert config.prior_sampler["num_steps"] == model.prior_num_steps


# -------- a real process


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One thread, no network, and a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    changes = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "ACCELERATE_USE_CPU": "true"}
    return {**os.environ, **changes}


@pytest.fixture(scope="module")
def start(environment):
    """Starts the recipe with the tiny setting; what still runs at the end of the tests is killed."""
    started = []

    def start(folder, launcher=(sys.executable,), **changes):
        command = [*launcher, str(RECIPE), *options(**TINY | {"output_dir": folder / "run"} | changes)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def finish(process):
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


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
    assert {name.strip() for name in paths} == {"model", "metrics", "samples", "plot", "results"}
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


def test_sigterm_saves_and_the_next_run_ends_the_same(start, finished, tmp_path):
    process = start(tmp_path)
    wait_for_step(process, tmp_path, 20)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)

    assert code == 143, err
    (saved, *_) = find_checkpoints(tmp_path / "run" / "checkpoints")
    step = int(saved.name.removeprefix("step-"))
    assert 20 <= step < TINY_STEPS
    assert f"stopped by signal 15 after step {step}; run again to go on" in out

    code, out, err = finish(start(tmp_path))
    assert code == 0, err
    assert f"resuming from {saved}" in out
    assert_same_outcome(tmp_path / "run", finished[0])


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


# -------- bad inputs


def load_recipe(name):
    specification = importlib.util.spec_from_file_location(name, RECIPE.with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the recipe here, as its `__main__` would; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def call(*arguments, recipe="ptb", **changes):
        settings = TINY | {"dataset_name": "corpus", "num_sentences": "none", "num_epochs": 2, "save_every": 3}
        monkeypatch.setattr(sys, "argv", ["train_ptb.py", *options(**settings | changes), *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            run_recipe(load_recipe(f"train_{recipe}").main)
        return leaving.value.code or 0, *capsys.readouterr()

    return call


SENTENCES = [f"the {noun} {verb} again" for noun in ("dog", "cat", "bird", "fish") for verb in ("sleeps", "eats")]


def write_corpus(folder, train=SENTENCES * 5):
    folder.mkdir(exist_ok=True)
    for split, sentences in (("train", train), ("valid", SENTENCES), ("test", SENTENCES)):
        (folder / f"{split}.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def assert_refused(outcome, exit_code, *words):
    """One clear line on stderr, the last one, and nothing that looks like a crash."""
    code, _, err = outcome
    assert code == exit_code, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert lines == err.splitlines()[-1:]
    for word in words:
        assert word in lines[0]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_dims": 3}, ["unknown option '--latent_dims'", "did you mean '--latent_dim'"]),
        ({"latent_dim": "many"}, ["latent_dim must be an integer, got 'many'"]),
        ({"latent_dim": 0}, ["latent_dim must be positive for an energy prior"]),
        ({"hidden_size": -8}, ["hidden_size must be positive, got -8"]),
        ({"embedding_size": 0}, ["embedding_size must be positive"]),
        ({"output_rank": 0}, ["output_rank must be positive"]),
        ({"prior_hidden_size": 0}, ["prior_hidden_size must be positive"]),
        ({"prior_num_steps": 0}, ["prior_num_steps must be positive and finite, got 0"]),
        ({"posterior_num_steps": -5}, ["posterior_num_steps must be positive and finite, got -5"]),
        ({"prior_step_size": 0}, ["prior_step_size must be positive and finite, got 0"]),
        ({"posterior_step_size": "nan"}, ["posterior_step_size must be positive and finite, got nan"]),
        ({"posterior_temperature": -1}, ["temperature", "-1"]),
        ({"likelihood_weight": 0}, ["likelihood_weight must be positive"]),
        ({"energy_penalty": -1}, ["energy_penalty must be zero or positive"]),
        ({"dropout": 1.5}, ["dropout must lie in [0, 1), got 1.5"]),
        ({"num_epochs": 0}, ["num_epochs must be positive and finite"]),
        ({"num_epochs": "inf"}, ["num_epochs must be positive and finite"]),
        ({"train_batch_size": -4}, ["train_batch_size must be positive"]),
        ({"decoder_learning_rate": 0}, ["decoder_learning_rate must be positive"]),
        ({"chain_num_steps": 0}, ["chain_num_steps must be positive"]),
        ({"chain_refresh": 1.5}, ["chain_refresh must be in [0.0, 1.0], got 1.5"]),
        ({"inference": "exact"}, ["inference must be one of 'short_run', 'persistent',", "got 'exact'"]),
        ({"num_eval_sentences": 1}, ["num_eval_sentences must be in [2, inf], got 1"]),
        ({"max_length": 1}, ["max_length is 1", "need 2"]),
        ({"num_proc": 0}, ["num_proc must be positive"]),
        ({"train_split": "extra"}, ["no split 'extra' to train on", "its splits are"]),
        ({"tokenizer": "bpe", "vocab_size": 100}, ["vocab_size is 100", "the 256 bytes need 259"]),
        ({"tokenizer": "./missing"}, ["there is no tokenizer './missing'", "word, bpe, unigram"]),
        ({"dataset_name": "grammar", "streaming": True}, ["'grammar' is made of all of them"]),
        ({"vocab_size": 4}, ["vocab_size is 4"]),
        ({"num_sentences": 0}, ["num_sentences must be positive"]),
        ({"dataset_name": "missing.txt"}, ["there is no file or folder 'missing.txt'"]),
        ({"dataset_name": "./missing"}, ["there is no file or folder './missing'"]),
        ({"text_column": "words"}, ["column 'words' does not exist", "text"]),
        ({"dataset_revision": "main"}, ["is for Hub data sets"]),
        ({"config": "missing.yaml"}, ["the config file missing.yaml does not exist"]),
    ],
    ids=str,
)
def test_wrong_usage_is_one_line_and_exit_code_2(call, corpus, changes, words):
    assert_refused(call(**changes), 2, *words)
    assert not Path(TrainingArguments.output_dir).exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("latent_dims: 4", ["unknown key 'latent_dims' in my.yaml", "did you mean 'latent_dim'"]),
        ("dropout: a lot", ["dropout must be a number, got 'a lot' (from my.yaml)"]),
        ("word_dropout: [1", ["my.yaml is not valid YAML"]),
    ],
)
def test_a_wrong_config_file_is_one_line_and_exit_code_2(call, corpus, tmp_path, config, words):
    (tmp_path / "my.yaml").write_text(config)
    assert_refused(call("--config", "my.yaml"), 2, *words)


def test_a_folder_without_train_split_is_refused(call, corpus):
    (corpus / "train.txt").rename(corpus / "sentences.txt")
    assert_refused(call(), 2, "folder corpus has no train split", "sentences.txt")


def test_an_output_dir_that_is_a_file_is_refused_and_stays(call, corpus, tmp_path):
    (tmp_path / "run").write_text("something of mine")
    assert_refused(call(output_dir="run"), 2, "output_dir run cannot be used")
    assert (tmp_path / "run").read_text() == "something of mine"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["train.txt is empty"]),
        (b"\n  \n\n", ["has no sentence (3 blank lines)"]),
        ("the dog sleeps\nthe caf\u00e9 opens\n".encode("latin-1"), ["train.txt is not UTF-8: line 2", "0xe9"]),
        (b"dog dog\ndog\n" * 5, ["the corpus has 1 word types", "at least 2"]),
    ],
    ids=["empty", "blank", "latin-1", "one word type"],
)
def test_data_that_cannot_be_used_is_one_line_and_exit_code_1(call, corpus, content, words):
    (corpus / "train.txt").write_bytes(content)
    assert_refused(call(), 1, *words)


def test_a_test_split_of_one_sentence_is_refused_before_training(call, corpus, tmp_path):
    (corpus / "test.txt").write_text("the dog sleeps\n")
    assert_refused(call(output_dir="run"), 1, "one test sentence")
    assert not (tmp_path / "run").exists()


def test_an_unreachable_hub_says_what_else_can_be_done(call):
    outcome = call(dataset_name="nobody/no-such-corpus")
    assert_refused(outcome, 1, "'nobody/no-such-corpus'", "offline mode is on", "--dataset_name grammar")


def test_blank_lines_and_long_sentences_are_counted_once_in_what_is_printed(call, tmp_path):
    long = " ".join(["the dog sleeps"] * 20)
    write_corpus(tmp_path / "corpus", [*SENTENCES * 5, "", long, "   ", long, ""])

    code, out, err = call(max_length=10, num_epochs=1)

    assert code == 0, err
    assert out.count("data: local folder corpus: 42 train, 8 validation, 8 test") == 1
    assert out.count("blank lines skipped: 3 train, 0 validation, 0 test") == 1
    assert out.count("truncated to max_length=10 words: {'train': 2, 'validation': 0, 'test': 0}") == 1


@pytest.mark.parametrize("name", ["snli", "yahoo", "text"])
def test_the_other_recipes_train_on_a_folder_without_a_train_split(call, corpus, tmp_path, name):
    (corpus / "train.txt").unlink()
    (corpus / "valid.txt").write_text("\n".join(SENTENCES * 5))

    small = {"vocab_size": 300, "frequent_words": 4, "drawn_words": 4, "tie_word_embeddings": True}
    small |= {"encoder_hidden_size": 8, "inference": "variational", "train_split": "validation", "output_dir": "run"}
    code, out, err = call(recipe=name, **small)

    assert code == 0, err
    assert "TRAINING ON THE VALIDATION SPLIT, as asked for" in out
    assert "no validation split found: cut off train, 2 sentences (5 %) each" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "TRAINING ON THE VALIDATION SPLIT" in " ".join(results["data"])
    assert results["splits"]["test"]["words_per_sentence"] == 5
    assert ("tokens a word" in out) == (name == "text"), "subwords are the default where text is not split into words"


@pytest.mark.parametrize(
    "settings", [{"tokenizer": "bpe"}, {"tokenizer": "unigram"}, {"streaming": True, "num_proc": 2}], ids=str
)
def test_a_run_goes_on_exactly_whatever_its_tokens_come_of(call, corpus, tmp_path, settings):
    code, _, err = call(output_dir="whole", **settings)
    assert code == 0, err
    call(output_dir="parts", **settings)
    for checkpoint in find_checkpoints(tmp_path / "parts" / "checkpoints"):
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)
    shutil.rmtree(tmp_path / "cache")  # even the prepared data is made again, and the same
    code, out, err = call(output_dir="parts", **settings)
    assert code == 0, err
    assert "resuming from parts/checkpoints/step-00000003" in out
    for file in ("model/model.safetensors", "model/tokenizer.json", "samples.txt"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_pretrained_tokenizer_serves_with_the_ids_it_has(call, corpus, tmp_path):
    backend = Tokenizer(models.WordLevel({"<s>": 0, "the": 1, "dog": 2, "sleeps": 3, "?": 4}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>").save_pretrained("foreign")

    code, out, err = call(tokenizer="foreign", output_dir="run")

    assert code == 0, err
    assert "the tokenizer has no pad token: <pad> was added" in out
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert [config[f"{name}_token_id"] for name in ("pad", "bos", "eos")] == [5, 0, 0]
    assert config["vocab_size"] == 6
    model = LatentEBMForTextGeneration.from_pretrained(tmp_path / "run" / "model")
    for row in model.generate(num_samples=20).tolist():
        first, *words = row
        assert first == 0
        after = words[words.index(0) + 1 :] if 0 in words else []
        assert set(after) <= {5}, "nothing but padding after an end"


# -------- the folder of an earlier run


@pytest.fixture
def earlier(call, corpus, tmp_path):
    """A finished run in the folder `run`, on the local corpus."""
    code, _, err = call(output_dir="run")
    assert code == 0, err
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_dim": 5}, ["belongs to another model", "config.latent_dim is 4 there and 5 here"]),
        ({"seed": 1}, ["seed is 0 there and 1 here"]),
        ({"inference": "short_run"}, ["inference is 'persistent' there and 'short_run' here"]),
    ],
    ids=str,
)
def test_the_folder_of_another_model_is_refused_and_stays(call, earlier, changes, words):
    written = contents(earlier)
    assert_refused(call(output_dir="run", **changes), 1, *words)
    assert contents(earlier) == written


def test_a_checkpoint_of_another_library_version_is_refused_and_stays(call, earlier):
    for checkpoint in find_checkpoints(earlier / "checkpoints"):
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        (checkpoint / "manifest.json").write_text(json.dumps({**manifest, "library_version": "99.0.0"}))
    written = contents(earlier)
    assert_refused(call(output_dir="run"), 1, "was written by latent_ebm_text 99.0.0")
    assert contents(earlier) == written


def test_a_half_written_checkpoint_is_named_and_made_again(call, earlier, tmp_path):
    untouched = shutil.copytree(earlier, tmp_path / "untouched")
    newest = find_checkpoints(earlier / "checkpoints")[0]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    code, out, err = call(output_dir="run")

    assert code == 0, err
    assert f"skipped an incomplete checkpoint: run/checkpoints/{newest.name} is half-written: model.safetensors" in out
    for part in ("model/model.safetensors", "samples.txt", "chains.bin"):
        assert (earlier / part).read_bytes() == (untouched / part).read_bytes()


def test_a_finished_run_can_be_evaluated_again_without_training(call, earlier):
    before = (earlier / "model" / "model.safetensors").read_bytes()
    metrics = (earlier / "metrics.jsonl").read_bytes()

    code, out, err = call(output_dir="run", num_eval_samples=30)

    assert code == 0, err
    assert len((earlier / "samples.txt").read_text().splitlines()) == 30
    assert (earlier / "model" / "model.safetensors").read_bytes() == before
    assert (earlier / "metrics.jsonl").read_bytes() == metrics


def test_divergence_is_one_line_and_keeps_what_was_saved(call, earlier):
    checkpoints = contents(earlier / "checkpoints")
    assert_refused(call(output_dir="run", num_epochs=20, chain_step_size=1e15), 1, "training step", "step_size")
    assert contents(earlier / "checkpoints") == checkpoints


def test_without_matplotlib_the_run_ends_well_and_says_so(call, corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = call(output_dir="run")
    assert code == 0, err
    assert "plot  none: plots need matplotlib: pip install 'latent-ebm-text[plots]'" in out
