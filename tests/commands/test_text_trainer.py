"""The training of a text model from Python, as a user of transformers or trl would write it."""

import pytest
import torch
import yaml
from datasets import Dataset

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTrainer, TrainingArguments
from latent_ebm_text.commands.parsing import bundled_config
from latent_ebm_text.commands.text_trainer import recommended_arguments
from latent_ebm_text.data.newswire import grammar_dataset
from latent_ebm_text.data.tokenizers import make_tokenizer
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.defaults import RECOMMENDED
from tests.helpers import tiny_model, tiny_tokenizer
from tests.language_models import tiny_language_model

SMALL = {
    "latent_dim": 4, "hidden_size": 16, "encoder_hidden_size": 8, "prior_hidden_size": 8, "sentence_encoder": None,
    "prior_sampler": {"name": "langevin", "num_steps": 3},
    "posterior_sampler": {"name": "langevin", "num_steps": 3, "step_size": 0.3},
}  # fmt: skip
SHORT = {"num_epochs": 2, "eval_batch_size": 64, "save_every": 5, "information": 2.0}


@pytest.fixture(scope="module")
def texts():
    return grammar_dataset(num_train=200, num_validation=20, num_test=2, seed=0)["train"]["text"][:]


@pytest.fixture
def model(texts):
    return LatentEBMForTextGeneration.from_texts(texts, tokenizer="word", max_length=20, **SMALL)


def test_a_model_from_training_to_its_saved_folder(model, texts, tmp_path, capsys):
    args = recommended_arguments(model, output_dir=str(tmp_path / "run"), **SHORT | {"num_epochs": 12})
    trainer = LatentEBMTrainer(model=model, args=args, train_dataset=texts)
    before = trainer.evaluate()["eval_reconstruction_nll"]
    result = trainer.train()
    assert "train_batch_size: 32 (180 sentences)" in capsys.readouterr().out
    assert result.step == 12 * 6  # 5 % each are kept for validation and test
    found = trainer.evaluate()
    assert found["eval_reconstruction_nll"] < before - 1
    is_missed = abs(found["eval_information"] / 2.0 - 1) > 0.1
    assert any("in place of 2" in each or "has grown to" in each for each in result.warnings) == is_missed
    trainer.save_model(tmp_path / "mine")

    loaded = LatentEBMTrainer(model=str(tmp_path / "mine"), args=args, train_dataset=texts)
    assert loaded.evaluate() == trainer.evaluate()
    assert loaded.processing_class.get_vocab() == model.tokenizer.get_vocab()


@pytest.mark.parametrize("decoder_training", ["lora", "frozen", "full"])
def test_a_pretrained_decoder_in_one_line(texts, tmp_path, decoder_training, capsys):
    tokenizer, _ = make_tokenizer("word", texts, max_length=20)
    tokenizer.save_pretrained(tmp_path / "lm")
    language_model = tiny_language_model("llama", vocab_size=len(tokenizer)).to(torch.bfloat16)
    language_model.save_pretrained(tmp_path / "lm")
    settings = {name: value for name, value in SMALL.items() if name != "hidden_size"}
    model = LatentEBMForTextGeneration.from_texts(
        texts, pretrained_decoder=tmp_path / "lm", max_length=20, decoder_training=decoder_training, **settings
    )
    assert model.encoder is not None
    assert model.config.dropout == 0.1
    assert model.decoder.lm.dtype == (torch.float32 if decoder_training == "full" else torch.bfloat16)

    args = recommended_arguments(model, output_dir=str(tmp_path / "run"), information=2.0)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    result = LatentEBMTrainer(model=model, args=args, train_dataset=texts).train()
    assert "num_epochs: 8 " in capsys.readouterr().out  # a fifth of the most
    assert result.step == 8 * 6
    learned = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    of_language_model = {name for name in before if ".lm." in name}
    assert bool(learned & of_language_model) == (decoder_training != "frozen")
    assert any("injection" in name for name in learned)


@pytest.mark.parametrize(("name", "value"), [("hidden_size", 16), ("decoder_type", "lstm"), ("tokenizer", "word")])
def test_what_a_pretrained_decoder_brings_along_is_refused(texts, name, value):
    with pytest.raises(UsageError, match=f"^a pretrained decoder brings {name} along: leave {name} out$"):
        LatentEBMForTextGeneration.from_texts(texts, pretrained_decoder="gpt2", **{name: value})


def test_the_same_call_goes_on_from_the_checkpoint(model, texts, tmp_path, capsys):
    args = recommended_arguments(model, output_dir=str(tmp_path / "run"), **SHORT)
    LatentEBMTrainer(model=model, args=args, train_dataset=texts).train()
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = LatentEBMForTextGeneration.from_texts(texts, tokenizer="word", max_length=20, **SMALL)
    result = LatentEBMTrainer(model=fresh, args=args, train_dataset=texts).train()
    assert "resuming from" in capsys.readouterr().out
    assert result.step == 12
    assert all(torch.equal(value, trained[name]) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize("kind", ["list", "dataset", "name"])
def test_training_texts_in_every_form_are_the_same(model, texts, tmp_path, kind):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(texts) + "\n")
    data = {"list": texts, "dataset": Dataset.from_dict({"text": texts, "label": [0] * len(texts)}), "name": str(path)}
    trainer = LatentEBMTrainer(model=model, train_dataset=data[kind])
    assert trainer.text.splits["train"]["input_ids"][:3] == [
        [1, *model.tokenizer(text, add_special_tokens=False)["input_ids"], 2] for text in texts[:3]
    ]
    assert len(trainer.text.splits["train"]) == 180


def test_evaluation_texts_may_be_given(model, texts):
    trainer = LatentEBMTrainer(model=model, train_dataset=texts[:150], eval_dataset=texts[150:])
    assert len(trainer.text.splits["train"]) == 150
    assert len(trainer.text.splits["validation"]) == 50


def test_what_is_missing_is_named(texts, tmp_path):
    with pytest.raises(UsageError, match="train_dataset is missing"):
        LatentEBMTrainer(model=tiny_model())
    with pytest.raises(UsageError, match="tokenizer is missing: give it as processing_class"):
        LatentEBMTrainer(model=tiny_model(), train_dataset=texts)
    args = TrainingArguments(output_dir=str(tmp_path), inference="variational")
    with pytest.raises(UsageError, match="inference 'variational' and no encoder do not go together"):
        LatentEBMTrainer(tiny_model(), args, texts, processing_class=tiny_tokenizer())


def test_a_model_without_an_encoder_is_trained_by_chains(texts):
    words = [f"w{index % 50:02d} w{index % 7:02d}" for index in range(100)]
    trainer = LatentEBMTrainer(model=tiny_model(), train_dataset=words, processing_class=tiny_tokenizer())
    assert trainer.args.inference == "short_run"
    assert trainer.args.information is None
    assert isinstance(trainer.args.num_epochs, int | float)


WITHOUT_ENCODER = {"encoder_hidden_size": None, "bag_of_tokens_weight": 0.0, "sentence_embedding_weight": 0.0}


@pytest.mark.parametrize(
    ("settings", "inference", "is_fast"),
    [
        ({}, "variational", True),
        (WITHOUT_ENCODER, "short_run", False),
        ({"num_fit_steps": 2}, "fitted", False),
        ({**WITHOUT_ENCODER, "num_fit_steps": 2}, "fitted", False),
    ],
)
def test_an_energy_learns_fast_only_where_moments_hold_the_latent(texts, settings, inference, is_fast):
    model = LatentEBMForTextGeneration.from_texts(texts, sentence_encoder=None, **settings)
    args = recommended_arguments(model)
    assert args.inference == inference
    assert (args.prior_chain_num_steps is not None) == (args.prior_learning_rate > 0.001) == is_fast
    assert (model.config.energy_penalty == 0) == is_fast


def test_python_and_the_command_recommend_the_same(texts):
    given = yaml.safe_load(bundled_config("text").read_text())
    model = LatentEBMForTextGeneration.from_texts(texts, **{**SMALL, "hidden_size": 32})
    args = recommended_arguments(model)
    for name, value in given.items():
        if hasattr(args, name) and name not in ("output_dir", "eval_every", "log_every"):
            assert getattr(args, name) == value, name
    in_model = {name: value for name, value in given.items() if not hasattr(args, name)}
    for name in ("tokenizer", "max_length"):
        del in_model[name]
    automatic = {name for name, value in in_model.items() if value == "auto"}
    assert automatic == {"hidden_size", "embedding_size", "dropout", "sentence_encoder", "decoder_training"}
    assert {name: value for name, value in in_model.items() if value != "auto"} == {
        name: {key: each for key, each in value.items() if key != "name"} if isinstance(value, dict) else value
        for name, value in RECOMMENDED.items()
    }
