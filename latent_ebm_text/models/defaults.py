"""The sizes of a model and of its training that follow from the corpus and the device, each with its reason.

Measured on corpora of 5,000 to 40,000 sentences, see docs/results.md; the rules between and beyond are interpolations.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from latent_ebm_text.data.embeddings import embedding_size, installed_encoder
from latent_ebm_text.data.statistics import CorpusStatistics
from latent_ebm_text.models.configuration import FROM_DECODER, LatentEBMTextConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Settings of a text model that suit any corpus; `recipes/configs/text.yaml` has the same.
RECOMMENDED: dict[str, Any] = {
    "latent_dim": 32,
    "encoder_hidden_size": 256,
    "bag_of_tokens_weight": 1.0,
    "sentence_embedding_weight": 0.2,
    "prior_sampler": {"name": "langevin", "num_steps": 60, "step_size": 0.4, "integrator": "leimkuhler_matthews"},
    "moment_weight": 1.0,
    "posterior_sampler": {
        "name": "langevin", "num_steps": 10, "step_size": 0.3, "max_score_norm": 25.0,
        "integrator": "leimkuhler_matthews",
    },
    "tie_word_embeddings": True,
    "frequent_tokens": 2000,
    "drawn_tokens": 800,
    "embedding_dropout": 0.2,
    "token_dropout": 0.1,
}  # fmt: skip
#: An anchor of the energy where posteriors are chains or fits: `moment_weight` does not hold the scale.
_PENALTY_OF_CHAINS = 0.01
#: The share of a sentence's cost under its unigram frequencies that the latent is to carry,
_INFORMATION_SHARE = 0.2
#: and the most nats for each dimension of the latent, beyond which the prior no longer keeps up.
_NATS_PER_DIMENSION = 0.625


#: The learning rate that suits a decoder.
_LEARNING_RATES = {"lstm": 0.003, "transformer": 0.001, "causal_lm": 0.001}
#: A pretrained decoder knows the language: of the passes that one from scratch needs, this share,
_PRETRAINED_EPOCHS = 0.2
#: and no more dropout than this.
_PRETRAINED_DROPOUT = 0.1


@dataclass(frozen=True)
class Choice:
    """A setting that follows from the corpus.

    Attributes:
        value: The setting.
        reason: What it follows from, for people.
    """

    value: Any
    reason: str


def choose_sizes(
    corpus: CorpusStatistics, *, on_gpu: bool, latent_dim: int, decoder_type: str, hidden_size: int | None = None
) -> dict[str, Choice]:
    """Every setting that can be `auto`, by its name.

    Args:
        corpus: The training split.
        on_gpu: Whether it is trained on a GPU.
        latent_dim: Size of the latent.
        decoder_type: As [`LatentEBMTextConfig`] has it.
        hidden_size: Width of the decoder, if it is given.
    """
    is_pretrained = decoder_type == "causal_lm"
    tokens = f"{corpus.num_tokens:,} tokens"
    device = "a GPU" if on_gpu else "a CPU"
    width = (512 if on_gpu else 256) if corpus.num_tokens < 1_000_000 else (1024 if on_gpu else 512)
    dropout = next(
        rate for limit, rate in ((300_000, 0.5), (2_000_000, 0.4), (10_000_000, 0.2), (float("inf"), 0.1))
        if corpus.num_tokens < limit
    )  # fmt: skip
    epochs = min(40.0, max(2.0, round(12 * (200_000 / corpus.num_tokens) ** (1 / 3))))
    batch = next(
        size for limit, size in ((5_000, 32), (100_000, 64), (float("inf"), 128)) if corpus.num_sentences < limit
    )  # fmt: skip
    of_dropout = of_epochs = tokens
    training = Choice("full", "the decoder is trained from scratch")
    if is_pretrained:
        has_adapters = find_spec("peft") is not None
        training = Choice(
            "lora" if has_adapters else "full", f"the extra `lora` is {'' if has_adapters else 'not '}installed"
        )
        dropout, of_dropout = _PRETRAINED_DROPOUT, "the decoder is pretrained"
        epochs, of_epochs = max(1.0, round(_PRETRAINED_EPOCHS * epochs)), f"{tokens}, the decoder is pretrained"
    share = _INFORMATION_SHARE * corpus.unigram_nats
    most = _NATS_PER_DIMENSION * latent_dim
    return {
        "hidden_size": Choice(width, f"{tokens}, {device}"),
        "embedding_size": Choice((hidden_size or width) // 2, "half of hidden_size"),
        "dropout": Choice(dropout, of_dropout),
        "decoder_training": training,
        "num_epochs": Choice(epochs, of_epochs),
        "decoder_learning_rate": Choice(_LEARNING_RATES[decoder_type], f"decoder_type {decoder_type}"),
        "train_batch_size": Choice(batch, f"{corpus.num_sentences:,} sentences"),
        "information": Choice(
            float(f"{min(share, most):.2g}"),
            f"{100 * _INFORMATION_SHARE:.0f} % of the {corpus.unigram_nats:.0f} nats that a sentence costs under the "
            f"frequencies of its tokens, and at most {_NATS_PER_DIMENSION} nats for each of {latent_dim} dimensions",
        ),
    }


def recommended_settings(
    corpus: CorpusStatistics, *, on_gpu: bool, is_pretrained: bool, **settings: Any
) -> dict[str, Any]:
    """The settings of a [`LatentEBMTextConfig`] that suit a corpus.

    Args:
        corpus: The training split.
        on_gpu: Whether it is trained on a GPU.
        is_pretrained: Whether the decoder is, which then brings some of them along.
        **settings: Settings in place of those that suit the corpus.
    """
    chosen = RECOMMENDED | {"sentence_encoder": installed_encoder()} | settings
    if chosen["encoder_hidden_size"] is None or chosen.get("num_fit_steps", 0) > 0:
        chosen = {"energy_penalty": _PENALTY_OF_CHAINS} | chosen
    sizes = choose_sizes(
        corpus,
        on_gpu=on_gpu,
        latent_dim=chosen["latent_dim"],
        decoder_type="causal_lm" if is_pretrained else settings.get("decoder_type", "lstm"),
        hidden_size=settings.get("hidden_size"),
    )
    automatic = ("hidden_size", "embedding_size", "dropout", *(["decoder_training"] if is_pretrained else []))
    chosen = {name: sizes[name].value for name in automatic} | chosen
    return {name: value for name, value in chosen.items() if not (is_pretrained and name in FROM_DECODER)}


def text_config(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> LatentEBMTextConfig:
    """A configuration with the vocabulary of a tokenizer.

    Args:
        tokenizer: The tokenizer.
        **settings: Settings of [`LatentEBMTextConfig`].
    """
    vocab_size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))  # ids may have gaps
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return LatentEBMTextConfig(**ids, **completed({"vocab_size": vocab_size, **settings}))


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the width of the sentence encoder's embeddings.

    A vocabulary that is no larger than `frequent_tokens` and `drawn_tokens` together is trained on as a whole.

    Args:
        settings: Settings of a [`LatentEBMTextConfig`], with `vocab_size`.
    """
    settings = dict(settings)
    if settings["vocab_size"] <= settings.get("frequent_tokens", 0) + settings.get("drawn_tokens", 0):
        settings |= {"frequent_tokens": 0, "drawn_tokens": 0}
    if settings.get("sentence_encoder") is not None and settings.get("sentence_embedding_size") is None:
        settings["sentence_embedding_size"] = embedding_size(settings["sentence_encoder"])
    return settings
