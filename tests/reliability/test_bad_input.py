"""For every input a right result, or an error that names what is wrong. Inputs are random, in the slow suite many."""

# ruff: noqa: PT017 - whether there is an error depends on the input

import json
import math
import string
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latent_ebm_text import LatentEBMTextConfig
from latent_ebm_text.commands.arguments import TextModelArguments
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.data import load_text_dataset
from latent_ebm_text.errors import CheckpointError, DataError, UsageError
from latent_ebm_text.latents.samplers import LangevinSampler, sampler_from_dict
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.checkpointing import load_latest_checkpoint, save_checkpoint
from tests.helpers import LATENT_DIM, tiny_model, tiny_tokenizer

#: Cases of each test below; a slow one repeats it with many more.
FEW, MANY = 25, 2000

numbers = st.one_of(
    st.integers(-3, 50),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, -0.0, 1e308, 5e-324, 2**31, 2**63, True, None, "", "1e-4", "many", [], {}]),
)
#: Control characters, right-to-left marks, emoji, combining characters, unassigned ones; not surrogates: see bytes.
texts = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\x00\t\n\r\x0b\x1f\x7f\u200b\u202e\u2066\ufeffשלום🏳️‍🌈e\u0301\U0001f469\u2028"),
        st.sampled_from(string.printable),
    ),
    max_size=60,
)


def cases(number):
    return settings(
        max_examples=number, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    )


def names_an_argument(error, names):
    return any(name in str(error) for name in names)


# -------- settings


def check_model_settings(changes):
    names = list(LatentEBMTextConfig.__dataclass_fields__)
    settings = {}
    for name, value in changes.items():
        outer, _, inner = name.partition(".")
        settings[outer] = {**settings.get(outer, {}), inner: value} if inner else value
    try:
        config = LatentEBMTextConfig(**TextModelArguments(settings=settings).settings)
    except (UsageError, StrictDataclassError) as error:
        assert names_an_argument(error, [*names, "num_steps", "step_size", "temperature"]), error
        return
    assert isinstance(config, LatentEBMTextConfig)
    assert config.latent_dim >= 0


model_settings = st.dictionaries(
    st.sampled_from(
        ["latent_dim", "prior_hidden_size", "prior_sampler.num_steps", "prior_sampler.step_size", "dropout",
         "posterior_sampler.step_size", "posterior_sampler.temperature", "hidden_size", "embedding_size",
         "likelihood_weight", "energy_penalty", "free_bits"]
    ),
    st.one_of(st.integers(-3, 50), st.floats()),
    max_size=4,
)  # fmt: skip


@cases(FEW)
@given(model_settings)
def test_model_settings(changes):
    check_model_settings(changes)


@pytest.mark.slow
@cases(MANY)
@given(model_settings)
def test_many_model_settings(changes):
    check_model_settings(changes)


command_lines = st.lists(
    st.tuples(
        st.sampled_from([field.name for field in fields(TrainingArguments)] + ["no_such", ""]),
        st.one_of(texts, numbers.map(str)),
    ),
    max_size=4,
)


def check_command_line(options):
    argv = [f"--{name}={value}" for name, value in options]
    try:
        (args,) = parse_arguments((TrainingArguments,), argv, description="")
    except UsageError as error:
        assert len(str(error)) < 5000
        assert str(error).strip()
        return
    assert args.num_epochs > 0
    assert math.isfinite(args.decoder_learning_rate)
    assert 0 <= args.usr1_exit_code <= 255


@cases(FEW)
@given(command_lines)
def test_command_lines(options):
    check_command_line(options)


@pytest.mark.slow
@cases(MANY)
@given(command_lines)
def test_many_command_lines(options):
    check_command_line(options)


def check_yaml(folder, content):
    path = folder / "config.yaml"
    path.write_bytes(content)
    try:
        parse_arguments((TrainingArguments,), ["--config", str(path)], description="")
    except UsageError as error:
        assert str(error).strip()


yaml_files = st.one_of(
    st.binary(max_size=80),
    texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.dictionaries(st.sampled_from(["seed", "num_epochs", "inference"]), numbers).map(
        lambda d: json.dumps(d).encode()
    ),
    st.sampled_from([b"a: &a [*a]", b"seed: !!python/object/apply:os.system ['true']", b"? [", b"seed: 2026-13-40"]),
)


@cases(FEW)
@given(yaml_files)
def test_yaml_files(tmp_path, content):
    check_yaml(tmp_path, content)


@pytest.mark.slow
@cases(MANY)
@given(yaml_files)
def test_many_yaml_files(tmp_path, content):
    check_yaml(tmp_path, content)


# -------- texts


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def check_texts(model, sentences):
    tokenizer = tiny_tokenizer()
    try:
        latents = model.posterior_draws(sentences, tokenizer=tokenizer, num_draws=1)
    except UsageError as error:
        assert names_an_argument(error, ["sentence", "text"]), error
        return
    assert latents.shape == (1, len(sentences), LATENT_DIM)
    assert bool(latents.isfinite().all())


sentence_lists = st.lists(st.one_of(texts, st.just("w01 " * 300), st.just("w00 w01")), max_size=3)


@cases(FEW)
@given(sentence_lists)
def test_sentences(model, sentences):
    check_texts(model, sentences)


@pytest.mark.slow
@pytest.mark.timeout(900)
@cases(MANY)
@given(sentence_lists)
def test_many_sentences(model, sentences):
    check_texts(model, sentences)


def check_text_file(folder, content):
    path = folder / "corpus.txt"
    path.write_bytes(content)
    try:
        corpus = load_text_dataset(str(path))
    except (DataError, UsageError) as error:
        assert "corpus.txt" in str(error), error
        return
    assert sum(len(split) for split in corpus.splits.values()) > 0
    assert path.read_bytes() == content


text_files = st.one_of(
    st.binary(max_size=200),
    st.lists(texts, max_size=30).map(lambda lines: "\n".join(lines).encode()),
    st.integers(0, 40).map(lambda n: b"".join(b"line %d\n" % i for i in range(n))),
)


@cases(8)
@given(text_files)
def test_text_files(tmp_path, content):
    check_text_file(tmp_path, content)


@pytest.mark.slow
@cases(300)
@given(text_files)
def test_many_text_files(tmp_path, content):
    check_text_file(tmp_path, content)


# -------- tensors


def check_latents(model, shape, value):
    latents = torch.zeros(shape)
    if latents.numel():
        latents.view(-1)[0] = value
    try:
        ids = model.generate(latents=latents, max_new_tokens=3)
    except UsageError as error:
        assert "latents" in str(error)
        assert tuple(shape) != (2, LATENT_DIM) or not bool(torch.tensor(value).square().isfinite())
        return
    assert len(shape) == 2
    assert shape[1] == LATENT_DIM
    assert len(ids) == shape[0]


shapes = st.one_of(st.just([2, LATENT_DIM]), st.lists(st.integers(0, 5), max_size=3))


@cases(FEW)
@given(shapes, st.floats(width=32))
def test_latents(model, shape, value):
    check_latents(model, shape, value)


@pytest.mark.slow
@cases(MANY)
@given(shapes, st.floats(width=32))
def test_many_latents(model, shape, value):
    check_latents(model, shape, value)


def check_sampler(kwargs):
    try:
        sampler = LangevinSampler(**kwargs)
    except UsageError as error:
        assert names_an_argument(error, kwargs), error
        return
    assert sampler_from_dict(sampler.to_dict()) == sampler


sampler_settings = st.fixed_dictionaries(
    {"num_steps": numbers},
    optional={"step_size": numbers, "temperature": numbers, "max_score_norm": st.one_of(st.none(), st.floats())},
)


@cases(FEW)
@given(sampler_settings)
def test_samplers(kwargs):
    check_sampler(kwargs)


@pytest.mark.slow
@cases(MANY)
@given(sampler_settings)
def test_many_samplers(kwargs):
    check_sampler(kwargs)


# -------- files


@pytest.fixture
def checkpoints(tmp_path):
    for step in (1, 2):
        tensors = {"model": {"weight": torch.full((3, 2), float(step))}}
        save_checkpoint(tmp_path, step, tensors, {"epoch": step}, identity={"a": 1})
    return tmp_path


def check_damage(folder: Path, name, position, byte, cut):
    """One byte changed, or the end cut off: the newest checkpoint is whole or is not taken, the other stays."""
    path = folder / "step-00000002" / name
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[position % len(damaged)] = byte
    try:
        path.write_bytes(bytes(damaged[: len(damaged) - cut % len(damaged)]))
        try:
            latest, skipped = load_latest_checkpoint(folder, identity={"a": 1})
        except CheckpointError as error:
            assert "step-00000002" in str(error)
            return
        assert latest is not None
        assert latest.step == (1 if skipped else 2)
        assert torch.equal(latest.tensors["model"]["weight"], torch.full((3, 2), float(latest.step)))
    finally:
        path.write_bytes(before)


damages = (
    st.sampled_from(["manifest.json", "state.json", "model.safetensors"]),
    st.integers(0, 2000),
    st.integers(0, 255),
    st.one_of(st.just(0), st.integers(0, 2000)),
)


@cases(FEW)
@given(*damages)
def test_damaged_checkpoints(checkpoints, name, position, byte, cut):
    check_damage(checkpoints, name, position, byte, cut)


@pytest.mark.slow
@cases(MANY)
@given(*damages)
def test_many_damaged_checkpoints(checkpoints, name, position, byte, cut):
    check_damage(checkpoints, name, position, byte, cut)
