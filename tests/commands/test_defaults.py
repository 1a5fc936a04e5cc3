"""Settings that follow from the corpus: what they are, what is printed, and that given ones stay."""

import math

import numpy as np
import pytest

from latent_ebm_text.commands.arguments import DataArguments, ImageModelArguments, TextModelArguments
from latent_ebm_text.commands.parsing import bundled_config, parse_arguments
from latent_ebm_text.commands.train import TEXT
from latent_ebm_text.commands.train_text import choose, prepare
from latent_ebm_text.data.statistics import CorpusStatistics
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.defaults import choose_sizes
from latent_ebm_text.training.arguments import TrainingArguments
from tests.tiny_runs import model_arguments


def corpus(num_sentences, length=12, vocab_size=5000):
    """A corpus whose tokens are all equally frequent."""
    total = num_sentences * length
    return CorpusStatistics(num_sentences, total, vocab_size, length * math.log(vocab_size))


def sizes(num_sentences, length=12, *, on_gpu=False, latent_dim=32, decoder_type="lstm"):
    return choose_sizes(corpus(num_sentences, length), on_gpu=on_gpu, latent_dim=latent_dim, decoder_type=decoder_type)


@pytest.fixture(scope="module")
def text():
    return prepare(DataArguments(num_sentences=300))


def arguments(*argv):
    return parse_arguments(TEXT, list(argv), description="", default_config=bundled_config("text"))


def test_the_cost_of_a_sentence_is_the_entropy_of_its_tokens():
    rows = [np.array([4, 5, 6, 7]), np.array([4, 5]), np.array([6, 7])]
    found = CorpusStatistics.of_rows(rows, num_sentences=3)
    assert (found.num_tokens, found.vocab_size) == (8, 4)
    assert found.unigram_nats == pytest.approx(8 / 3 * math.log(4))


def test_the_statistics_of_a_dataset_leave_out_what_nothing_predicts(text):
    found = CorpusStatistics.of_dataset(text.splits["train"], text.tokenizer.bos_token_id)
    rows = text.splits["train"]["input_ids"][:]
    assert found == CorpusStatistics.of_rows([np.array(row[1:]) for row in rows], 300)


def test_larger_corpora_get_larger_models_and_fewer_epochs():
    small, medium, large = (
        {name: choice.value for name, choice in sizes(n).items()} for n in (1_000, 40_000, 1_000_000)
    )
    assert small["hidden_size"] == medium["hidden_size"] < large["hidden_size"]
    assert small["dropout"] > medium["dropout"] > large["dropout"]
    assert small["num_epochs"] > medium["num_epochs"] > large["num_epochs"] >= 2
    assert small["train_batch_size"] < medium["train_batch_size"] < large["train_batch_size"]
    on_gpu = sizes(40_000, on_gpu=True)
    assert on_gpu["hidden_size"].value == 2 * medium["hidden_size"]


def test_the_latent_is_to_carry_a_share_of_what_a_sentence_costs_and_no_more_than_it_holds():
    short, long, narrow = (
        sizes(10_000, length, latent_dim=latent_dim)["information"].value
        for length, latent_dim in ((5, 32), (50, 32), (50, 8))
    )
    assert short == pytest.approx(0.2 * 5 * math.log(5000), rel=0.05)
    assert (long, narrow) == (20.0, 5.0)


def test_what_follows_from_the_corpus_is_said_and_what_is_given_stays(text):
    _, model_args, args, _ = arguments("--hidden_size", "48", "--num_epochs", "3", "--sentence_encoder", "none")
    model_args, args, lines = choose(text, model_args, args)
    assert model_args.settings["hidden_size"] == 48
    assert model_args.settings["embedding_size"] == 24
    assert args.num_epochs == 3
    names = [line.partition(":")[0] for line in lines]
    assert names == [
        "decoder_training",
        "embedding_size",
        "dropout",
        "train_batch_size",
        "decoder_learning_rate",
        "information",
    ]
    assert "train_batch_size: 32 (300 sentences)" in lines
    assert not model_args.automatic
    assert not args.automatic


def test_a_pretrained_decoder_is_changed_little():
    lstm, transformer, pretrained = (sizes(10_000, decoder_type=name) for name in ("lstm", "transformer", "causal_lm"))
    assert lstm["decoder_learning_rate"].value > transformer["decoder_learning_rate"].value
    assert lstm["num_epochs"] == transformer["num_epochs"]
    assert 1 <= pretrained["num_epochs"].value < lstm["num_epochs"].value / 4
    assert pretrained["dropout"].value < lstm["dropout"].value
    assert "the decoder is pretrained" in pretrained["num_epochs"].reason


def test_what_a_pretrained_decoder_brings_along_is_not_chosen(text, monkeypatch):
    _, model_args, args, _ = arguments("--pretrained_decoder", "gpt2", "--sentence_encoder", "none")
    for package, found in (("lora", object()), ("full", None)):
        monkeypatch.setattr("latent_ebm_text.models.defaults.find_spec", lambda name, found=found: found)
        chosen, _, lines = choose(text, model_args, args)
        assert chosen.settings["decoder_training"] == package
        assert not [line for line in lines if line.startswith("hidden_size")]
        assert f"decoder_training: {package} (the extra `lora` is {'not ' * (found is None)}installed)" in lines


def test_auto_is_refused_where_nothing_says_what_it_follows_from():
    with pytest.raises(UsageError, match="latent_dim must be an integer, got 'auto'"):
        arguments("--latent_dim", "auto")
    with pytest.raises(UsageError, match="num_epochs must be a number or auto, got 'many'"):
        arguments("--num_epochs", "many")
    with pytest.raises(UsageError, match="latent_dim must be an integer, got 'auto'"):
        model_arguments(ImageModelArguments, latent_dim="auto")


def test_help_says_which_options_can_be_automatic(capsys):
    with pytest.raises(SystemExit):
        arguments("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Passes through the training data. `auto` for what suits the data. (default: auto)" in shown


def test_what_is_still_automatic_is_known():
    assert TrainingArguments(num_epochs="auto", information="auto", inference="variational").automatic == (
        "num_epochs",
        "information",
    )
    assert TextModelArguments(settings={"hidden_size": "auto"}).automatic == ("hidden_size",)
