"""The training loop with every decoder: what learns, what stays, resume, and no branch for any of them."""

import pytest
import torch

from latent_ebm_text.commands.arguments import TextModelArguments
from latent_ebm_text.commands.train_text import build, decoder_tokenizer
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.pretrained import load_decoder_tokenizer
from latent_ebm_text.training.step import build_optimizer
from tests.language_models import tiny_language_model
from tests.tiny_runs import model_arguments
from tests.training.runs import copy_of, final_tensors, same, stop_at

SETTINGS = {
    "latent_dim": 4, "prior_hidden_size": 8, "prior_sampler.num_steps": 3, "posterior_sampler.num_steps": 3,
    "posterior_sampler.step_size": 0.3, "hidden_size": 16, "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture
def make(text, tmp_path):
    """A model on the words of the tiny corpus, by the name of its decoder."""

    def make(decoder, **changes):
        chosen = {"decoder_type": decoder}
        if decoder == "pretrained":
            chosen = {"pretrained_decoder": str(tmp_path / "lm")}
            tiny_language_model("llama", vocab_size=len(text.tokenizer)).save_pretrained(tmp_path / "lm")
        return build(model_arguments(**SETTINGS, **chosen, **changes), text)

    return make


DECODERS = {
    "transformer": ("transformer", {"dropout": 0.2, "token_dropout": 0.1, "tie_word_embeddings": True}, "persistent"),
    "encoder": ("transformer", {"latent_injection": "prefix", "encoder_hidden_size": 16}, "amortized"),
    "variational": ("transformer", {"latent_injection": "embedding", "encoder_hidden_size": 16}, "variational"),
    "many vectors": (
        "transformer",
        {"num_latent_vectors": 2, "num_fit_steps": 2, "encoder_hidden_size": 16},
        "fitted",
    ),
    "some words": ("transformer", {"frequent_tokens": 20, "drawn_tokens": 20}, "short_run"),
    "full": ("pretrained", {"dropout": 0.1}, "persistent"),
    "lora": ("pretrained", {"decoder_training": "lora", "lora_rank": 2}, "short_run"),
    "frozen": ("pretrained", {"decoder_training": "frozen"}, "persistent"),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(name, make, make_args, run, tmp_path):
    decoder, changes, inference = DECODERS[name]
    if name == "lora":
        pytest.importorskip("peft", reason="the extra `lora` is not installed")
    options = {"inference": inference, "decoder_weight_decay": 0.1, "num_epochs": 1.5}
    whole = make(decoder, **changes)
    before = copy_of(whole)
    learning = {name for name, weight in whole.named_parameters() if weight.requires_grad}
    run(whole, make_args(output_dir=str(tmp_path / "whole"), **options))
    halves = make(decoder, **changes)
    args = make_args(output_dir=str(tmp_path / "halves"), **options)
    assert run(halves, args, stop_at(4)).signal is not None
    halves = make(decoder, **changes)
    assert run(halves, args).step == 9
    assert same(copy_of(whole), copy_of(halves))
    one, other = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "halves")
    assert one.keys() == other.keys()
    assert all(same(one[file], other[file]) for file in one)
    changed = {name for name, weight in whole.state_dict().items() if not torch.equal(weight, before[name])}
    assert {name for name in changed if name in dict(whole.named_parameters())} == learning
    assert any("injection" in name for name in changed)


def test_only_what_learns_goes_to_the_optimizer(make, make_args):
    model = make("pretrained", decoder_training="frozen")
    decoder, prior = build_optimizer(model, make_args()).param_groups
    assert [id(weight) for weight in decoder["params"]] == [
        id(weight) for weight in model.decoder.injection.parameters()
    ]
    assert len(prior["params"]) == len(list(model.prior.parameters()))


@pytest.mark.parametrize("decoder_training", ["full", "lora"])
def test_pretrained_weights_learn_slower_than_what_is_new(make, make_args, run, tmp_path, decoder_training):
    model = make("pretrained", decoder_training=decoder_training)
    decoder, prior, *rest = build_optimizer(model, make_args()).param_groups
    everything = [weight for weight in model.parameters() if weight.requires_grad]
    assert sum(len(group["params"]) for group in (decoder, prior, *rest)) == len(everything)
    assert [{id(weight) for weight in group["params"]} for group in rest] == (
        [{id(weight) for weight in model.decoder.lm.parameters()}] if decoder_training == "full" else []
    )

    # The first step of Adam is as long as the learning rate.
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    run(model, make_args(warmup=0.0, num_epochs=0.1, decoder_learning_rate=1e-3))
    moved = {name: (weight - before[name]).abs().max().item() for name, weight in model.named_parameters()}
    language_model = max(value for name, value in moved.items() if ".lm." in name)
    assert max(value for name, value in moved.items() if "injection" in name) == pytest.approx(1e-3, rel=0.01)
    assert language_model == pytest.approx(1e-4 if decoder_training == "full" else 1e-3, rel=0.01)


def test_averaged_weights_of_a_pretrained_decoder_keep_what_is_frozen(make, make_args, run):
    model = make("pretrained", decoder_training="frozen")
    before = copy_of(model.decoder.lm)
    run(model, make_args(averaging_start=0.5))
    assert same(copy_of(model.decoder.lm), before)


def test_a_decoder_brings_its_tokenizer_or_leaves_it_to_the_corpus(text, tmp_path):
    assert decoder_tokenizer(TextModelArguments()) is None
    assert decoder_tokenizer(TextModelArguments(settings={"decoder_type": "transformer"})) is None
    text.tokenizer.save_pretrained(tmp_path)
    tokenizer = decoder_tokenizer(TextModelArguments(pretrained_decoder=str(tmp_path)))
    assert tokenizer.get_vocab() == load_decoder_tokenizer(tmp_path).get_vocab() == text.tokenizer.get_vocab()


def test_a_pretrained_decoder_is_named_and_brings_its_own_sizes():
    with pytest.raises(UsageError, match="decoder_type causal_lm is for a pretrained model: name it with pretrained_"):
        TextModelArguments(settings={"decoder_type": "causal_lm"})
    with pytest.raises(UsageError, match="decoder_training 'lora' is for a pretrained language model"):
        TextModelArguments(settings={"decoder_training": "lora"})
    arguments = TextModelArguments("gpt2", {"decoder_training": "lora", "hidden_size": 7})
    assert "hidden_size" not in arguments.settings_beside_decoder()


def test_gradient_checkpointing_changes_memory_and_not_what_is_learned(make, make_args, run, tmp_path):
    kept, computed_again = make("transformer"), make("transformer")
    args = make_args(output_dir=str(tmp_path / "kept"), num_epochs=0.5)
    assert run(kept, args).step == 3
    args = make_args(output_dir=str(tmp_path / "again"), num_epochs=0.5, gradient_checkpointing=True)
    assert run(computed_again, args).step == 3
    assert any(getattr(module, "gradient_checkpointing", False) for module in computed_again.decoder.lm.modules())
    for name, weight in kept.named_parameters():
        torch.testing.assert_close(computed_again.get_parameter(name), weight, rtol=1e-4, atol=1e-6, msg=name)
    with pytest.raises(UsageError, match="gradient_checkpointing is for transformer decoders"):
        run(make("lstm"), make_args(output_dir=str(tmp_path / "lstm"), gradient_checkpointing=True))


def test_a_batch_that_does_not_fit_into_memory_says_what_to_lower(make, make_args, run, tmp_path):
    model = make("lstm")
    model.decoder.mean_log_prob = lambda *_: torch.empty(2**50)  # more than any machine has
    with pytest.raises(UsageError, match="lower train_batch_size to .* or max_length to .*, which halves"):
        run(model, make_args(output_dir=str(tmp_path / "run"), num_epochs=0.5))
