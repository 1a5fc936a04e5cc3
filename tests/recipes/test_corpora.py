"""Every configuration, and the recipes on corpora and tokenisers of all kinds."""

import json
import shutil

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.commands.arguments import DataArguments, TextModelArguments, flat_settings
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.checkpointing import find_checkpoints
from tests.recipes.commands import RECIPES, SENTENCES, write_corpus

CONFIGS = [
    path
    for path in sorted((RECIPES / "configs").rglob("*.yaml"))
    if "decoder_channels" not in path.read_text(encoding="utf-8")  # those of images are in test_images.py
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_understood(path):
    groups = (DataArguments, TextModelArguments, TrainingArguments)
    arguments = parse_arguments(groups, ["--config", str(path)], description="")
    settings = flat_settings(*arguments)
    for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        assert settings[name] == ({**settings[name], **value} if isinstance(value, dict) else value)
    given = {name: value for name, value in arguments[1].settings.items() if name not in arguments[1].automatic}
    assert LatentEBMTextConfig(**given).prior_sampler == settings["prior_sampler"]


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

    small = {"vocab_size": 300, "frequent_tokens": 4, "drawn_tokens": 4, "tie_word_embeddings": True}
    small |= {"encoder_hidden_size": 8, "inference": "variational", "train_split": "validation", "output_dir": "run"}
    code, out, err = call(recipe=name, **small)

    assert code == 0, err
    assert "TRAINING ON THE VALIDATION SPLIT, as requested" in out
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
