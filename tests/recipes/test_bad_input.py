"""What a recipe refuses: one clear line, an exit code, and nothing spoiled."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForMaskedLM

from latent_ebm_text.training.arguments import TrainingArguments
from tests.recipes.commands import SENTENCES, assert_refused, contents, write_corpus, write_decoder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_dims": 3}, ["unknown option '--latent_dims'", "did you mean '--latent_dim'"]),
        ({"latent_dim": "many"}, ["latent_dim must be an integer, got 'many'"]),
        ({"latent_dim": 0}, ["latent_dim must be positive for an energy prior"]),
        ({"hidden_size": -8}, ["hidden_size must be positive, got -8"]),
        ({"embedding_size": 0}, ["embedding_size must be positive"]),
        ({"prior_num_hidden_layers": 10**9}, ["prior_num_hidden_layers must be at most 1,000, got 1000000000"]),
        ({"hidden_size": 10**9}, ["hidden_size must be at most 10,000,000, got 1000000000"]),
        ({"output_rank": 0}, ["output_rank must be positive"]),
        ({"prior_hidden_size": 0}, ["prior_hidden_size must be positive"]),
        (
            {"prior_sampler.num_steps": 0},
            ["prior_sampler: num_steps of a Langevin sampler must be a positive integer, got 0"],
        ),
        (
            {"posterior_sampler.num_steps": -5},
            ["posterior_sampler: num_steps of a Langevin sampler must be a positive integer, got -5"],
        ),
        (
            {"prior_sampler.step_size": 0},
            ["prior_sampler: step_size must be positive and finite at every step, got 0"],
        ),
        (
            {"posterior_sampler.step_size": "nan"},
            ["posterior_sampler: step_size must be positive and finite at every step, got nan"],
        ),
        ({"posterior_sampler.temperature": -1}, ["posterior_sampler: temperature", "-1"]),
        ({"likelihood_weight": 0}, ["likelihood_weight must be positive"]),
        ({"energy_penalty": -1}, ["energy_penalty must be zero or positive"]),
        ({"dropout": 1.5}, ["dropout must lie in [0, 1), got 1.5"]),
        (
            {"inference": "variational"},
            ["inference 'variational' and no encoder do not go together: set encoder_hidden_size"],
        ),
        (
            {"inference": "persistent", "encoder_hidden_size": 8},
            ["inference 'persistent' and an encoder do not go together: set encoder_hidden_size to none"],
        ),
        ({"num_epochs": 0}, ["num_epochs must be positive and finite"]),
        ({"num_epochs": "inf"}, ["num_epochs must be positive and finite"]),
        ({"train_batch_size": -4}, ["train_batch_size must be positive"]),
        ({"decoder_learning_rate": 0}, ["decoder_learning_rate must be positive"]),
        ({"chain_num_steps": 0}, ["chain_num_steps must be positive"]),
        ({"chain_refresh": 1.5}, ["chain_refresh must be in [0.0, 1.0], got 1.5"]),
        ({"inference": "exact"}, ["inference must be one of 'short_run', 'persistent',", "got 'exact'"]),
        ({"num_eval_examples": 1}, ["num_eval_examples must be in [2, inf], got 1"]),
        ({"max_length": 1}, ["max_length is 1", "need 2"]),
        ({"num_proc": 0}, ["num_proc must be positive"]),
        ({"train_split": "extra"}, ["no split 'extra' to train on", "its splits are"]),
        ({"tokenizer": "bpe", "vocab_size": 100}, ["vocab_size is 100", "the 256 bytes need 259"]),
        ({"tokenizer": "./missing"}, ["there is no tokenizer './missing'", "word, bpe, unigram"]),
        ({"dataset_name": "grammar", "streaming": True}, ["'grammar' is built here: leave it out"]),
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
        ("dropout: a lot", ["dropout must be a number or auto, got 'a lot' (from my.yaml)"]),
        ("token_dropout: [1", ["my.yaml is not valid YAML"]),
    ],
)
def test_a_wrong_config_file_is_one_line_and_exit_code_2(call, corpus, tmp_path, config, words):
    (tmp_path / "my.yaml").write_text(config)
    assert_refused(call("--config", "my.yaml"), 2, *words)


def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(call, corpus, tmp_path):
    outcome = call(hidden_size=1_000_000, output_dir="run")
    assert_refused(outcome, 2, "a model of these sizes has 4,", "GiB, and this machine has", "choose smaller sizes")
    assert not (tmp_path / "run").exists()


def test_an_empty_output_dir_is_not_the_working_directory(call, corpus, tmp_path):
    before = contents(tmp_path)
    assert_refused(call(output_dir=""), 2, "output_dir must not be empty or hold a NUL character, got ''")
    assert contents(tmp_path) == before


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


# -------- pretrained decoders


def test_a_decoder_that_is_nowhere_is_refused(call, corpus, tmp_path):
    assert_refused(
        call(pretrained_decoder="no/such", output_dir="run"), 2, "there is no tokenizer beside the decoder 'no/such'"
    )
    assert not (tmp_path / "run").exists()


def test_a_decoder_that_sees_later_words_is_refused(call, corpus, tmp_path):
    decoder = write_decoder(tmp_path / "lm")
    bert = AutoConfig.for_model(
        "bert", vocab_size=500, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    AutoModelForMaskedLM.from_config(bert).save_pretrained(decoder)
    assert_refused(call(pretrained_decoder=decoder, output_dir="run"), 2, "BertLMHeadModel (bert) is not causal")
    assert not (tmp_path / "run").exists()


def test_documents_longer_than_the_context_of_a_decoder(call, tmp_path):
    decoder = write_decoder(tmp_path / "lm")  # 40 positions, of which a prefix takes 4
    write_corpus(tmp_path / "corpus", [*SENTENCES * 5, " ".join(SENTENCES * 3)])  # the last of 96 words
    refused = call(pretrained_decoder=decoder, output_dir="run", max_length=100)
    assert_refused(
        refused, 2, "sentences of 100 tokens and a prefix of 4 do not fit into the 40 positions", "36 or less"
    )
    assert not (tmp_path / "run").exists()

    code, out, err = call(
        pretrained_decoder=decoder, output_dir="run", max_length=36, inference="short_run", num_epochs=1
    )
    assert code == 0, err
    assert "truncated to max_length=36 words: {'train': 1, 'validation': 0, 'test': 0}" in out
