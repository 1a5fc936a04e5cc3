"""Any value in any file of a model, and any value of an option: it works, or one line says what is wrong."""

import contextlib
import io
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.commands.main import run
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.commands.sentences import GenerateArguments, InterpolateArguments, ScoreArguments
from latent_ebm_text.errors import UsageError
from latent_ebm_text.hub.folders import find_model
from latent_ebm_text.latents.samplers import SAMPLERS
from tests.helpers import LATENT_DIM, tiny_model, tiny_tokenizer
from tests.language_models import tiny_language_model

#: Cases of a test; a slow one repeats it with many more.
FEW, MANY = 30, 1500

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about values that are then refused

values = st.sampled_from(
    ["many", "", "\0", -1, 0, 1, 2.5, -2.5, 1e-46, float("inf"), float("nan"), 10**9, 10**20, 10**400, None, True,
     [], {}, [1], ["a"], [None], [[1]], {"a": 1}, {"start": 1e400, "end": 1}, {"start": 1, "end": 2, "shape": []}]
)  # fmt: skip


def cases(number: int) -> Any:
    return settings(
        max_examples=number, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    )


def program(*arguments: object) -> tuple[int, str]:
    """Runs the program; its exit code and its errors. Whatever else it raises fails the test."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as left:
        run_command(lambda: run([str(argument) for argument in arguments]))
    return int(left.value.code or 0), "\n".join(
        line for line in err.getvalue().splitlines() if line.startswith("error: ")
    )


def check(outcome: tuple[int, str], *names: object) -> None:
    """It worked, or one line names one of the given things."""
    code, errors = outcome
    assert code in (0, 1, 2)
    assert sum(line.startswith("error: ") for line in errors.splitlines()) == (code != 0), errors
    assert code == 0 or any(str(name) in errors for name in names), errors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound models, each in a folder."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), tiny_tokenizer()
    tiny_language_model("gpt2").save_pretrained(folder / "lm")
    samplers = {
        "prior_sampler": {"name": "langevin", "num_steps": 2},
        "posterior_sampler": {"name": "langevin", "num_steps": 2},
    }
    pretrained = LatentEBMForTextGeneration.from_decoder_pretrained(
        folder / "lm", tokenizer=tokenizer, latent_dim=LATENT_DIM, max_sequence_length=12, **samplers
    )
    made = {
        "lstm": tiny_model(encoder_hidden_size=8),
        "transformer": tiny_model(decoder_type="transformer", num_attention_heads=2),
        "causal_lm": pretrained,
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in made}


# -------- configurations


def check_configuration(models: dict[str, Path], folder: Path, data: Any) -> None:
    kind = data.draw(st.sampled_from(sorted(models)))
    shutil.copytree(models[kind], folder, dirs_exist_ok=True)
    path = folder / "config.json"
    config = json.loads((models[kind] / "config.json").read_text())
    names = [
        *config,
        "attn_implementation",
        "auto_map",
        "quantization_config",
        "torch_dtype",
        "num_labels",
        "id2label",
    ]
    if data.draw(st.booleans()):
        config[data.draw(st.sampled_from(names))] = data.draw(values)
    elif kind == "causal_lm":
        config["decoder_config"][data.draw(st.sampled_from(sorted(config["decoder_config"])))] = data.draw(values)
    else:
        sampler = data.draw(st.sampled_from(sorted(SAMPLERS)))
        field = data.draw(st.sampled_from([each.name for each in fields(SAMPLERS[sampler])]))
        config["prior_sampler"] = {"name": sampler, "num_steps": 3, field: data.draw(values)}
    path.write_text(json.dumps(config))
    # What can be meant may still be a model without finite numbers, which the chain or the decoder names.
    check(program("generate", folder, "--num_samples", 2), folder, "not finite")


@cases(FEW)
@given(st.data())
def test_configurations(models: dict[str, Path], tmp_path: Path, data: Any) -> None:
    check_configuration(models, tmp_path, data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@cases(MANY)
@given(st.data())
def test_many_configurations(models: dict[str, Path], tmp_path: Path, data: Any) -> None:
    check_configuration(models, tmp_path, data)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("lstm", {"latent_dim": "many"}, "config.json: .*'latent_dim' expected int, got str"),
        ("lstm", {"hidden_size": None}, "config.json: .*'hidden_size' expected int, got NoneType"),
        ("lstm", {"prior_sampler": "langevin"}, "config.json: .*'prior_sampler'"),
        ("lstm", {"prior_sampler": {"name": "hmc", "num_steps": 3, "step_size": [1]}}, "step_size must be a number"),
        ("lstm", {"dtype": "many"}, "config.json: dtype must be one of float32, .*, got 'many'"),
        ("lstm", {"torch_dtype": "load"}, "config.json: dtype must be one of float32, .*, got 'load'"),
        ("lstm", {"dtype": "int8"}, "config.json: dtype must be one of float32, .*, got 'int8'"),
        ("lstm", {"bos_token_id": 10**9}, r"config.json: bos_token_id must lie in \[0, 60\)"),
        ("lstm", {"eos_token_id": [2, -1]}, r"config.json: eos_token_id must lie in \[0, 60\)"),
        ("lstm", {"bos_token_id": None}, "config.json: bos_token_id must be given"),
        ("lstm", {"prior_num_hidden_layers": 10**9}, "config.json: prior_num_hidden_layers must be at most 1,000"),
        ("lstm", {"hidden_size": 10**20}, "config.json: hidden_size must be at most 10,000,000"),
        ("lstm", {"likelihood_weight": float("inf")}, "config.json: likelihood_weight must be positive and finite"),
        ("lstm", {"num_labels": 10**9}, "config.json: .* has no setting 'num_labels'"),
        ("lstm", {"latent_dim": 5}, r"shapes decoder\..* in place of .* and \d+ more$"),
        ("transformer", {"num_hidden_layers": 10**9}, "config.json: num_hidden_layers must be at most 1,000"),
        ("causal_lm", {"decoder_config": {}}, "decoder_config cannot be built: "),
        ("causal_lm", {"decoder_config": {"model_type": "t5"}}, "decoder_config cannot be built: "),
        ("causal_lm", {"decoder_config": {"model_type": "gpt2", "n_layer": 10**9}}, "num_hidden_layers must lie"),
        ("causal_lm", {"decoder_config": {"model_type": "gpt2", "n_head": "many"}}, "'n_head' expected int"),
    ],
)
def test_a_wrong_configuration_is_named(
    models: dict[str, Path], tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(models[kind], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    code, errors = program("generate", tmp_path)
    assert code == (2 if kind == "causal_lm" else 1)
    assert len(errors.splitlines()) == 1
    assert re.search(message, errors), errors


# -------- tokenizers and settings of generation


def check_file(model: Path, folder: Path, name: str, data: Any) -> None:
    shutil.copytree(model, folder, dirs_exist_ok=True)
    content = json.loads((model / name).read_text())
    if data.draw(st.booleans()):
        wrong = data.draw(st.sampled_from(["", "{", "{}", "[]", "null", "\0", '{"a":' * 50_000, '{"version": "1.0"}']))
    else:
        place = content["model"] if name == "tokenizer.json" and data.draw(st.booleans()) else content
        known = [
            *place,
            "auto_map",
            "tokenizer_class",
            "vocab_file",
            "num_beams",
            "temperature",
            "top_k",
            "stop_strings",
        ]
        place[data.draw(st.sampled_from(known))] = data.draw(values)
        wrong = json.dumps(content)
    (folder / name).write_text(wrong)
    prompt = ["--prompt", "w01 w02"] if data.draw(st.booleans()) else []
    check(program("generate", folder, "--num_samples", 2, *prompt), folder, "tokenizer", "generation", "vocabulary")


file_names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.mark.parametrize("name", file_names)
@cases(15)
@given(st.data())
def test_files(models: dict[str, Path], tmp_path: Path, name: str, data: Any) -> None:
    check_file(models["lstm"], tmp_path, name, data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", file_names)
@cases(MANY)
@given(st.data())
def test_many_files(models: dict[str, Path], tmp_path: Path, name: str, data: Any) -> None:
    check_file(models["lstm"], tmp_path, name, data)


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"model": {}}', "null"])
def test_a_tokenizer_that_is_none_is_named(models: dict[str, Path], tmp_path: Path, content: str) -> None:
    shutil.copytree(models["lstm"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(content)
    code, errors = program("score", tmp_path, "w01 w02")
    assert (code, len(errors.splitlines())) == (1, 1)
    assert f"the tokenizer in {tmp_path} cannot be loaded: " in errors


# -------- options

numbers = st.sampled_from(
    ["0", "-1", "1e-46", "1e-40", "1e-320", "1e38", "1e300", "1e400", "-inf", "nan", "1" + "0" * 20, "1" + "0" * 400,
     "1" * 5000, "many", "", "[]", "{start: 1}", "[" * 30_000]
)  # fmt: skip
words = st.sampled_from(
    ["", " ", "\0", "./nowhere", "/dev/null", "..", "\udcff", "a" * 300, "~nobody_here/x", "%s", "-"]
)
commands = {
    "generate": (GenerateArguments, []), "score": (ScoreArguments, ["w01 w02"]),
    "interpolate": (InterpolateArguments, ["w01", "w02"]),
}  # fmt: skip


def check_option(model: Path, data: Any) -> None:
    command = data.draw(st.sampled_from(sorted(commands)))
    group, arguments = commands[command]
    options = [each.name for each in fields(group) if "positional" not in each.metadata and each.type != "bool"]
    name, value = data.draw(st.sampled_from(options)), data.draw(st.one_of(numbers, words))
    check(
        program(command, model, *arguments, f"--{name}={value}"),
        name,
        value.strip() or name,
        "sentences",
        "not finite",
    )


@cases(FEW)
@given(st.data())
def test_options(models: dict[str, Path], data: Any) -> None:
    check_option(models["lstm"], data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@cases(MANY)
@given(st.data())
def test_many_options(models: dict[str, Path], data: Any) -> None:
    check_option(models["lstm"], data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "1e-40"], "temperature must be between 1e-06 and 1e+06, got 1e-40; for the most probable"),
        (["--temperature", "1e400"], "temperature must be positive and finite, got inf"),
        (["--num_samples", "1000000000"], "num_samples of a generation must be at most 10,000,000, got 1000000000"),
    ],
)
def test_numbers_that_cannot_be_computed_with(models: dict[str, Path], arguments: list[str], message: str) -> None:
    code, errors = program("generate", models["lstm"], *arguments)
    assert code == 2
    assert message in errors


def test_more_beams_than_can_be_meant() -> None:
    with pytest.raises(UsageError, match="num_beams of a generation must be at most 1,000, got 1000000"):
        tiny_model().generate(num_beams=10**6)
    with pytest.raises(UsageError, match=r"temperature must be between 1e-06 and 1e\+06, got 1e-40"):
        tiny_model().generate(temperature=1e-40, top_p=0.9)


def test_an_empty_name_is_not_the_working_directory(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models["lstm"])
    assert program("generate", "")[1].startswith("error: model must not be empty or hold a NUL")
    with pytest.raises(UsageError, match="the name of a model must not be empty"):
        find_model("")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert program("train", "--output_dir=")[1].startswith("error: output_dir must not be empty")
    assert not list(Path().iterdir())
