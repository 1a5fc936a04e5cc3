"""Recipe arguments: precedence, every type, every message."""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from latent_ebm_text import LatentEBMImageConfig, LatentEBMTextConfig
from latent_ebm_text.commands.arguments import ImageModelArguments, TextModelArguments
from latent_ebm_text.commands.parsing import argument, bundled_config, parse_arguments
from latent_ebm_text.errors import UsageError, require_in_interval, require_positive


@dataclass
class OptimizationArguments:
    """How the weights are learned.

    The second paragraph is not for --help.
    """

    num_epochs: int = field(default=3, metadata={"help": "Passes over the data."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Step size of AdamW, at 100 % of the schedule."})
    shuffle: bool = field(default=True, metadata={"help": "Draw a new order each epoch."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16."})
    max_grad_norm: float | None = field(default=None, metadata={"help": "Clip gradients."})

    def __post_init__(self) -> None:
        require_positive("learning_rate", self.learning_rate)


@dataclass
class ModelArguments:
    """What is learned"""

    decoder: Literal["lstm", "transformer"] = field(default="lstm", metadata={"help": "Network of p(x|z)."})
    num_layers: Literal[1, 2] = field(default=1, metadata={"help": "Layers."})
    pooling: Literal["mean", "last"] | None = field(default="mean", metadata={"help": "Pooling."})
    tie_weights: Optional[bool] = field(default=None, metadata={"help": "Tie."})  # noqa: UP045
    output_dir: str = field(default="100%", metadata={"help": "Where results go."})
    data_file: str | None = field(default=None, metadata={"help": "Own text."})
    seed: int | None = field(default_factory=lambda: 7, metadata={"help": "Seed."})
    cache: str = field(init=False, default="not an option")

    def __post_init__(self) -> None:
        if self.num_layers == 2 and self.decoder == "lstm":
            raise ValueError("num_layers=2 needs decoder=transformer")


@dataclass
class RequiredArguments:
    """Data"""

    train_file: str = field(metadata={"help": "Text, one sentence a line."})


def parse(*argv: str) -> dict[str, Any]:
    optimization, model = parse_arguments((OptimizationArguments, ModelArguments), list(argv), description="A recipe.")
    assert isinstance(optimization, OptimizationArguments)
    assert isinstance(model, ModelArguments)
    return dataclasses.asdict(optimization) | dataclasses.asdict(model)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes `x.yaml` into the working directory and returns the option that reads it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        Path("x.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return "--config=x.yaml"

    return write


# -------- values


def test_the_command_line_goes_before_yaml_and_yaml_before_the_defaults(config):
    option = config("num_epochs: 10\nlearning_rate: 0.5\nshuffle: false\n")
    values = parse(option, "--num_epochs", "20")
    assert (values["num_epochs"], values["learning_rate"], values["shuffle"]) == (20, 0.5, False)
    assert (values["bf16"], values["decoder"], values["seed"], values["cache"]) == (False, "lstm", 7, "not an option")
    assert parse("--num_epochs", "20", option)["num_epochs"] == 20  # whatever comes first
    assert parse(option, "--shuffle", "--num_epochs=3")["shuffle"] is True  # also back to the default
    assert parse(option, "--num_epochs=3")["num_epochs"] == 3


def test_without_argv_the_process_arguments_are_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--train_file", "a.txt"])
    assert parse_arguments((RequiredArguments,), description="") == (RequiredArguments("a.txt"),)


@pytest.mark.parametrize(
    ("name", "written", "expected"),
    [
        ("num_epochs", "10", 10),
        ("num_epochs", "2e3", 2000),
        ("num_epochs", "5.0", 5),
        ("num_epochs", "9007199254740993", 9007199254740993),  # 2**53 + 1, which no float holds
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", "2", 2.0),
        ("learning_rate", "0.25", 0.25),
        ("max_grad_norm", "none", None),
        ("max_grad_norm", "null", None),
        ("max_grad_norm", "3", 3.0),
        ("shuffle", "false", False),
        ("bf16", "true", True),
        ("bf16", "yes", True),
        ("tie_weights", "false", False),
        ("tie_weights", "null", None),
        ("decoder", "transformer", "transformer"),
        ("num_layers", "1", 1),
        ("pooling", "last", "last"),
        ("pooling", "none", None),
        ("output_dir", "runs/a b", "runs/a b"),
        ("output_dir", "none", "none"),
        ("data_file", "none", None),
        ("data_file", "a.txt", "a.txt"),
        ("seed", "12", 12),
    ],
)
def test_a_value_means_the_same_on_the_command_line_and_in_yaml(config, name, written, expected):
    for values in (parse(f"--{name}", written), parse(config(f"{name}: {written}\n"))):
        assert values[name] == expected
        assert type(values[name]) is type(expected)


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("--bf16", "bf16", True),
        ("--no_bf16", "bf16", False),
        ("--shuffle", "shuffle", True),
        ("--no_shuffle", "shuffle", False),
        ("--no-shuffle", "shuffle", False),
        ("--tie_weights", "tie_weights", True),
        ("--no-tie-weights", "tie_weights", False),
        ("--learning-rate=0.5", "learning_rate", 0.5),
    ],
)
def test_spellings_of_options(config, option, name, expected):
    opposite = config(f"{name}: {not expected}\n" if isinstance(expected, bool) else f"{name}: {2 * expected}\n")
    assert parse(opposite)[name] != expected
    assert parse(opposite, option)[name] == expected


# -------- errors


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--leraning_rate", "1"], r"^unknown option '--leraning_rate'; did you mean '--learning_rate'\?$"),
        (["--no_shufle=1"], r"^unknown option '--no_shufle'; did you mean '--no_shuffle'\?$"),
        (["--confg=x"], r"^unknown option '--confg'; did you mean '--config'\?$"),
        (["--num_ep", "1"], r"^unknown option '--num_ep'"),  # no abbreviations
        (["--zzz"], "^unknown option '--zzz'; --help lists what there is$"),
        (["stray"], "^unexpected argument 'stray'; every option is written --name value$"),
        (["--num_epochs", "ten"], r"^num_epochs must be an integer, got 'ten' \(from the command line\)$"),
        (["--num_epochs", "1.5"], "^num_epochs must be an integer, got '1.5'"),
        (["--num_epochs", "inf"], "^num_epochs must be an integer, got 'inf'"),
        (["--num_epochs", "nan"], "^num_epochs must be an integer, got 'nan'"),
        (["--num_epochs", "none"], "^num_epochs must be an integer, got 'none'"),
        (["--seed", "x"], "^seed must be an integer or none, got 'x'"),
        (["--learning_rate", "fast"], "^learning_rate must be a number, got 'fast'"),
        (["--shuffle", "maybe"], "^shuffle must be true or false, got 'maybe'"),
        (["--decoder", "gru"], "^decoder must be one of 'lstm', 'transformer', got 'gru'"),
        (["--pooling", "max"], "^pooling must be one of 'mean', 'last' or none, got 'max'"),
        (["--num_layers", "3"], "^num_layers must be one of 1, 2, got '3'"),
        (["--num_epochs"], "^argument --num_epochs/--num-epochs: expected one argument"),
        (["--learning_rate", "-1e-4"], "begins with '-' is written --option=value"),
        (["--learning_rate=-1e-4"], "^learning_rate must be positive and finite, got -0.0001$"),
        (["--num_layers", "2"], "^num_layers=2 needs decoder=transformer$"),
        (["--config", "absent.yaml"], "^the config file absent.yaml does not exist$"),
        (["--config", "/"], "^the config file / cannot be read: Is a directory$"),
    ],
)
def test_mistakes_on_the_command_line(argv, message, capsys):
    with pytest.raises(UsageError, match=message) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")  # no usage dump


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leraning_rate: 1\n", r"^unknown key 'leraning_rate' in x.yaml; did you mean 'learning_rate'\?$"),
        ("zzz: 1\n", "^unknown key 'zzz' in x.yaml; --help lists what there is$"),
        ("3: 1\n", "^unknown key 3 in x.yaml"),
        ("cache: x\n", "^unknown key 'cache' in x.yaml"),
        ("config: y.yaml\n", "^unknown key 'config' in x.yaml"),
        ("num_epochs: ten\n", r"^num_epochs must be an integer, got 'ten' \(from x.yaml\)$"),
        ("num_epochs: 1.5\n", r"^num_epochs must be an integer, got 1.5 \(from x.yaml\)$"),
        ("num_epochs: true\n", "^num_epochs must be an integer, got True"),
        ("num_epochs: .inf\n", "^num_epochs must be an integer, got inf"),
        ("num_epochs: null\n", "^num_epochs must be an integer, got None"),
        ("num_epochs: [1]\n", r"^num_epochs must be an integer, got \[1\]"),
        ("learning_rate: true\n", "^learning_rate must be a number, got True"),
        ("learning_rate: {a: 1}\n", "^learning_rate must be a number, got {'a': 1}"),
        ("shuffle: 2\n", "^shuffle must be true or false, got 2"),
        ("shuffle: null\n", "^shuffle must be true or false, got None"),
        ("decoder: [lstm]\n", r"^decoder must be one of 'lstm', 'transformer', got \['lstm'\]"),
        ("output_dir: 010\n", r"^output_dir must be a string, got 8 \(from x.yaml\); put it in quotes$"),
        ("data_file: no\n", r"^data_file must be a string or none, got False \(from x.yaml\); put it in quotes$"),
        ("num_epochs: 1\nseed: 2\nnum_epochs: 3\n", r"^duplicate key 'num_epochs' in x.yaml \(line 3\)$"),
        ("output_dir: ''\n", r"^output_dir must not be empty or hold a NUL character, got '' \(from x.yaml\)$"),
        ('output_dir: "a\\0b"\n', r"^output_dir must not be empty or hold a NUL character, got 'a\\x00b'"),
        ("{a: " * 50_000 + "}" * 50_000, "^x.yaml is nested too deeply for a map of option names to values$"),
        ("num_epochs: " + "[" * 50_000 + "]" * 50_000, "^x.yaml is nested too deeply"),
        ("&a {b: *a}", "^unknown key 'b' in x.yaml"),
        (
            "l0: &l0 {x: 1}\n" + "".join(f"l{n}: &l{n} {{x: *l{n - 1}, y: *l{n - 1}}}\n" for n in range(1, 40)),
            "^unknown key 'l0' in x.yaml",
        ),
        ("", "^x.yaml must map option names to values"),
        ("- num_epochs\n", "^x.yaml must map option names to values"),
        ("num_epochs\n", "^x.yaml must map option names to values"),
        ("num_epochs: 1\nseed: [\n", r"^x.yaml is not valid YAML: .* \(line 3\)$"),
        ("num_epochs: 1\n---\nseed: 1\n", "^x.yaml is not valid YAML: but found another document"),
        ("seed: 2026-13-40\n", "^x.yaml is not valid YAML: month must be in 1..12"),
        ("seed: \0\n", "^x.yaml is not valid YAML: unacceptable character"),
        ("seed: !!python/object/apply:os.getcwd []\n", "^x.yaml is not valid YAML: could not determine a constructor"),
        (b"seed: \xff\n", "^the config file x.yaml is not UTF-8 text$"),
        ("learning_rate: 0\n", "^learning_rate must be positive and finite, got 0.0$"),
    ],
)
def test_mistakes_in_yaml(config, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(config(text))
    assert "\n" not in str(caught.value)


def test_a_required_field_may_come_from_either_side(config):
    types = (RequiredArguments,)
    expected = (RequiredArguments("a.txt"),)
    assert parse_arguments(types, ["--train_file", "a.txt"], description="") == expected
    assert parse_arguments(types, [config("train_file: a.txt")], description="") == expected
    with pytest.raises(UsageError, match="^train_file is required; give --train_file or set it in the --config file$"):
        parse_arguments(types, [], description="")


def test_a_field_of_an_unsupported_type_is_a_programming_error():
    wrong = dataclasses.make_dataclass("Wrong", [("sizes", set[int], field(default_factory=set))])
    with pytest.raises(TypeError, match="an option is an int, float, .* not set"):
        parse_arguments((wrong,), [], description="")


# -------- help


def test_help_is_complete_and_grouped_and_shows_the_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        parse_arguments(
            (OptimizationArguments, ModelArguments, RequiredArguments),
            ["--help"],
            description="Trains a thing.\n\n    python thing.py    # now",
        )
    assert caught.value.code == 0
    text = capsys.readouterr().out
    head, optimization, model, data = [" ".join(section.split()) for section in text_sections(text)]
    assert "[--config FILE.yaml] [--option value ...] Trains a thing. python thing.py # now" in head
    assert "--config FILE.yaml YAML file with values" in head
    assert "\nTrains a thing.\n\n    python thing.py    # now\n" in text, "commands stand on lines of their own"
    assert "second paragraph" not in text
    assert "--num_epochs INT, --num-epochs INT Passes over the data. (default: 3)" in optimization
    assert "Step size of AdamW, at 100 % of the schedule. (default: 0.001)" in optimization
    assert "--shuffle [BOOL] Draw a new order each epoch. (default: true; --no_shuffle for false)" in optimization
    assert "Clip gradients. (default: none)" in optimization
    assert "--decoder {lstm,transformer} Network of p(x|z). (default: lstm)" in model
    assert "Where results go. (default: 100%)" in model
    assert "--seed INT Seed. (default: 7)" in model
    assert "cache" not in text
    assert "Text, one sentence a line. (required)" in data


def text_sections(text: str) -> list[str]:
    """The help text, cut at the titles of the three groups; fails unless they come in this order."""
    sections = [text]
    for title in ("\nHow the weights are learned:\n", "\nWhat is learned:\n", "\nData:\n"):
        before, after = sections.pop().split(title)
        sections += [before, after]
    return sections


def test_help_shows_the_defaults_of_the_config_that_will_be_read(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    config("num_epochs: 12\nshuffle: false\n")
    for argv, default_config in ((["--help"], Path("x.yaml")), (["--config", "x.yaml", "--help"], None)):
        with pytest.raises(SystemExit):
            parse_arguments((OptimizationArguments,), argv, description="", default_config=default_config)
        shown = " ".join(capsys.readouterr().out.split())
        assert "Passes over the data. (default: 12)" in shown
        assert "Draw a new order each epoch. (default: false)" in shown
        assert "Clip gradients. (default: none)" in shown


# -------- the settings of a model


def test_the_options_of_a_model_are_the_settings_of_its_configuration(config):
    file = config("hidden_size: 24\nprior_sampler:\n  num_steps: 7\n  integrator: leimkuhler_matthews\n")
    argv = [
        file,
        "--dropout=0.3",
        "--prior_sampler.step_size",
        "0.2",
        "--posterior-sampler.step-size={start: 0.6, end: 0.3}",
    ]
    (model,) = parse_arguments((TextModelArguments,), argv, description="")
    assert (model.settings["hidden_size"], model.settings["dropout"]) == (24, 0.3)
    assert model.settings["prior_sampler"] == {
        "name": "langevin", "num_steps": 7, "step_size": 0.2, "temperature": 1.0, "integrator": "leimkuhler_matthews",
    }  # fmt: skip
    assert model.settings["posterior_sampler"]["step_size"] == {"start": 0.6, "end": 0.3}
    built = LatentEBMTextConfig(**model.settings)
    assert all(getattr(built, name) == value for name, value in model.settings.items())
    assert (
        TextModelArguments(settings={"prior_sampler": {"num_steps": 7}}).settings["prior_sampler"]["step_size"] == 0.4
    )


def test_another_sampler_brings_its_own_settings(config):
    file = config("prior_sampler: {num_steps: 7, integrator: leimkuhler_matthews}\n")
    argv = [file, "--prior_sampler.name=mala", "--prior_sampler.num_steps=4"]
    (model,) = parse_arguments((TextModelArguments,), argv, description="")
    assert model.settings["prior_sampler"] == {"name": "mala", "num_steps": 4}, "the file's are for another sampler"
    argv = ["--prior_sampler.name=hmc", "--prior_sampler.num_steps=4", "--prior_sampler.num_leapfrog_steps=5"]
    (model,) = parse_arguments((TextModelArguments,), argv, description="")
    assert model.settings["prior_sampler"] == {"name": "hmc", "num_steps": 4, "num_leapfrog_steps": 5}


def test_defaults_are_those_of_the_configuration_and_lists_are_written_with_commas():
    (model,) = parse_arguments((ImageModelArguments,), ["--decoder_channels", "64, 32"], description="")
    assert model.settings.pop("decoder_channels") == [64, 32]
    default = LatentEBMImageConfig()
    samplers = {"prior_sampler", "posterior_sampler"}
    assert all(getattr(default, name) == value for name, value in model.settings.items() if name not in samplers)
    assert not {"image_size", "num_channels"} & model.settings.keys(), "they follow from the images"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prior_sampler: 3\n", "^prior_sampler must be a mapping of settings to values, got 3"),
        ("prior_sampler: {steps: 3}\n", "^unknown key 'prior_sampler.steps' in x.yaml; did you mean"),
        ("prior_sampler: {num_steps: 3, num_steps: 4}\n", "^duplicate key 'num_steps' in x.yaml"),
        ("prior_sampler: {num_steps: many}\n", "^prior_sampler.num_steps must be an integer, got 'many'"),
        ("prior_sampler: {step_size: big}\n", "^prior_sampler.step_size must be a number, or a schedule such as"),
        ("prior_sampler: {step_size: {start: 1}}\n", "^prior_sampler: step_size as a mapping needs `start`, `end`"),
        ("vocab_size: 3\n", "^unknown key 'vocab_size'"),
        ("dropout: 2\n", r"^dropout must lie in \[0, 1\), got 2"),
    ],
)
def test_mistakes_in_the_settings_of_a_model(config, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_arguments((TextModelArguments,), [config(text)], description="")
    assert "\n" not in str(caught.value)


def test_configs_of_the_library_go_by_their_names():
    assert bundled_config("quickstart").name == "quickstart.yaml"
    assert bundled_config("paper/ptb").parent.name == "paper"
    assert bundled_config("no_such") is None


# -------- arguments without a name


@dataclass
class SentenceArguments:
    """Sentences"""

    model: str = argument("A model.")
    sentences: list[str] | None = argument("Sentences.", None)
    json: bool = field(default=False, metadata={"help": "Print JSON."})
    by: str = field(default="nll", metadata={"help": "A score."})


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["m"], SentenceArguments("m")),
        (["m", "a b", "c"], SentenceArguments("m", ["a b", "c"])),
        (["m", "--json", "a b", "--by", "x", "c"], SentenceArguments("m", ["a b", "c"], True, "x")),
        (["--by=x", "m", "a"], SentenceArguments("m", ["a"], by="x")),
    ],
)
def test_arguments_by_their_place(argv, expected):
    assert parse_arguments((SentenceArguments,), argv, description="") == (expected,)


def test_a_missing_argument_is_named():
    with pytest.raises(UsageError, match="required: MODEL"):
        parse_arguments((SentenceArguments,), ["--json"], description="")


# -------- validation helpers


def test_require_positive():
    require_positive("step_size", 0.1)
    for value in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"^step_size must be positive and finite, got {value}$"):
            require_positive("step_size", value)


def test_require_in_interval():
    for value in (0, 0.5, 1):
        require_in_interval("dropout", value, 0, 1)
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match=rf"^dropout must be in \[0, 1\], got {value}$"):
            require_in_interval("dropout", value, 0, 1)
