"""What a recipe can be told: the model, the data and the training, each a dataclass with validated fields."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any, Literal

from latent_ebm_text.configuration import LatentEBMTextConfig
from latent_ebm_text.errors import UsageError
from latent_ebm_text.samplers.langevin import Integrator
from latent_ebm_text.training.configuration import option, require_in_interval, require_positive


def ramp(start: float, end: float | None) -> Any:
    """The schedule from `start` to `end`, or `start` all the way where there is no end."""
    return start if end is None else {"start": start, "end": end, "shape": "linear"}


@dataclass
class LatentArguments:
    """Latent, prior and samplers, whatever the decoder."""

    latent_dim: int = option(
        32, "Size of the latent z; 0 for a language model without one (needs prior_type gaussian)."
    )
    prior_type: Literal["energy", "gaussian"] = option("energy", "The prior: learned, or N(0, I).")
    prior_hidden_size: int = option(200, "Width of the energy network.")
    prior_num_hidden_layers: int = option(2, "Hidden layers of the energy network.")
    prior_activation: Literal["gelu", "leaky_relu"] = option("gelu", "Activation of the energy network.")
    prior_num_steps: int = option(60, "Langevin steps of the prior's chain, which starts from N(0, I).")
    prior_step_size: float = option(0.4, "Langevin step size of the prior's chain.")
    posterior_num_steps: int = option(20, "Langevin steps that infer the latent of new data from N(0, I).")
    posterior_step_size: float = option(0.1, "Langevin step size of the first of these steps.")
    posterior_step_size_end: float | None = option(None, "Of the last of these steps; none for a constant size.")
    posterior_max_score_norm: float | None = option(
        None,
        "Longest score that moves a posterior chain, here and in training; keeps long sentences from overshooting.",
    )
    posterior_temperature: float = option(1.0, "Noise temperature of the posterior's chains; 1 draws from it.")
    integrator: Integrator = option(
        "euler", "Integrator of all Langevin chains: the paper's, or one without error for Gaussian targets."
    )
    likelihood_weight: float = option(1.0, "w of the posterior p(z) p(x|z)^w; above 1 the latent carries more of x.")
    energy_penalty: float = option(0.0, "Weight of the squared tilt f(z)^2, which keeps the energy from running away.")
    free_bits: float = option(0.0, "VAE: nats per dimension that the divergence from the prior may have at no cost.")

    def __post_init__(self) -> None:
        for name in ("prior_num_steps", "prior_step_size", "posterior_num_steps", "posterior_step_size"):
            require_positive(name, getattr(self, name))
        if self.posterior_step_size_end is not None:
            require_positive("posterior_step_size_end", self.posterior_step_size_end)

    def latent_settings(self) -> dict[str, Any]:
        """These settings as those of a [`~latent_ebm_text.LatentEBMConfig`]."""
        return {
            "latent_dim": self.latent_dim,
            "prior_type": self.prior_type,
            "prior_hidden_size": self.prior_hidden_size,
            "prior_num_hidden_layers": self.prior_num_hidden_layers,
            "prior_activation": self.prior_activation,
            "prior_sampler": {
                "name": "langevin",
                "num_steps": self.prior_num_steps,
                "step_size": self.prior_step_size,
                "integrator": self.integrator,
            },
            "posterior_sampler": {
                "name": "langevin",
                "num_steps": self.posterior_num_steps,
                "step_size": ramp(self.posterior_step_size, self.posterior_step_size_end),
                "temperature": self.posterior_temperature,
                "max_score_norm": self.posterior_max_score_norm,
                "integrator": self.integrator,
            },
            "likelihood_weight": self.likelihood_weight,
            "energy_penalty": self.energy_penalty,
            "free_bits": self.free_bits,
        }


@dataclass
class ModelArguments(LatentArguments):
    """Model and samplers. The defaults are the paper's for PTB."""

    decoder: str = option(
        "lstm",
        "`lstm`; `transformer`, from scratch; or a pretrained causal language model: a Hub id, a folder or a GGUF "
        "file (extra `gguf`). With the latter text is split by the model's own tokenizer, and sizes are the model's.",
    )
    decoder_training: Literal["full", "lora", "frozen"] = option(
        "full", "What of a pretrained decoder learns: all, low-rank adapters (extra `lora`), or only how z enters."
    )
    lora_rank: int = option(8, "Rank of these adapters.")
    latent_injection: Literal["prefix", "embedding", "layers"] | None = option(
        None,
        "How z enters a transformer: as vectors before the words, in every embedding, or in every layer; by default "
        "in every layer, and as a prefix of a pretrained one.",
    )
    prefix_length: int = option(4, "Vectors of a prefix.")
    num_hidden_layers: int = option(2, "Layers of the transformer.")
    num_attention_heads: int = option(4, "Attention heads of the transformer.")
    hidden_size: int = option(512, "Width of the LSTM or the transformer.")
    embedding_size: int = option(128, "Width of the word embedding of LSTMs.")
    tie_word_embeddings: bool = option(False, "Use the word embedding as the output layer, behind a projection.")
    output_rank: int | None = option(None, "Rank of an untied output layer; none for full rank.")
    dropout: float = option(0.2, "Dropout on hidden states, the same features in all of a sentence.")
    embedding_dropout: float | None = option(None, "The same on word embeddings; like dropout by default.")
    word_dropout: float = option(0.0, "Probability that a word is absent from the decoder's input in training.")
    frequent_words: int = option(
        0, "In training, take the softmax over so many frequent words, the batch's and drawn_words others; 0 for all."
    )
    drawn_words: int = option(0, "Words drawn at random, at every step, to stand for the less frequent ones.")
    encoder_hidden_size: int | None = option(
        None, "Width of an LSTM encoder that proposes latents (inference amortized or variational); none without one."
    )

    def text_config(self, vocab_size: int, max_sentence_length: int) -> LatentEBMTextConfig:
        """The configuration of a text model with a decoder from scratch; `UsageError` for a value that cannot be
        right. A vocabulary that is no larger than `frequent_words` and `drawn_words` is trained on as a whole."""
        if self.decoder not in ("lstm", "transformer"):
            raise UsageError(f"the decoder {self.decoder!r} is a pretrained one, which brings its own configuration")
        settings = self.common_settings()
        if vocab_size <= self.frequent_words + self.drawn_words:
            settings |= {"frequent_words": 0, "drawn_words": 0}
        return LatentEBMTextConfig(
            vocab_size=vocab_size,
            max_sentence_length=max_sentence_length,
            decoder_type=self.decoder,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            hidden_size=self.hidden_size,
            tie_word_embeddings=self.tie_word_embeddings,
            **settings,
        )

    def common_settings(self) -> dict[str, Any]:
        """Settings of a text model's configuration that hold whatever the decoder."""
        return {
            "embedding_size": self.embedding_size,
            "latent_injection": self.latent_injection,
            "prefix_length": self.prefix_length,
            "decoder_training": self.decoder_training,
            "lora_rank": self.lora_rank,
            "output_rank": self.output_rank,
            "dropout": self.dropout,
            "embedding_dropout": self.embedding_dropout,
            "word_dropout": self.word_dropout,
            "frequent_words": self.frequent_words,
            "drawn_words": self.drawn_words,
            "encoder_hidden_size": self.encoder_hidden_size,
            **self.latent_settings(),
        }


@dataclass
class DataArguments:
    """Data"""

    dataset_name: str = option(
        "grammar", "`grammar` (the embedded corpus), `ptb`, `snli`, `yahoo`, a Hub id, a local folder or a file."
    )
    text_column: str | None = option(None, "Column that holds the text; found by itself where there is no doubt.")
    dataset_revision: str | None = option(None, "Revision of a Hub data set.")
    train_split: str | None = option(None, "Split to train on, where it is not the one called train.")
    num_sentences: int | None = option(None, "Train on so many sentences; none for all.")
    num_test_sentences: int | None = option(None, "Test on so many sentences; none for all.")
    streaming: bool = option(
        False,
        "Read the rows one after the other, no more than num_sentences needs, and keep only their texts on disk.",
    )
    num_proc: int = option(1, "Processes that prepare a large corpus.")
    tokenizer: str = option(
        "word", "`word`, `bpe` or `unigram`, trained on the corpus, or the name or path of a pretrained tokenizer."
    )
    vocab_size: int | None = option(
        None, "Tokens kept, special ones included; none for every word of the corpus, or 8,000 subwords."
    )
    max_length: int = option(100, "Most tokens of a sentence, its end counted; longer ones are truncated and counted.")

    def __post_init__(self) -> None:
        for name in ("num_sentences", "num_test_sentences", "num_proc", "vocab_size", "max_length"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))


@dataclass
class TrainingArguments:
    """Training"""

    output_dir: str = option("runs/latent-ebm", "Folder of the run: checkpoints, metrics, plots, the final model.")
    seed: int = option(0, "Every random draw is a function of this seed and of the step.")
    num_epochs: float = option(30.0, "Passes through the training data.")
    train_batch_size: int = option(128, "Examples (sentences, images) a step, over all processes.")
    eval_batch_size: int = option(256, "Examples a batch of evaluation.")
    decoder_learning_rate: float = option(1e-3, "Learning rate of the decoder (AdamW).")
    prior_learning_rate: float = option(1e-4, "Learning rate of the energy (AdamW).")
    decoder_weight_decay: float = option(0.0, "Weight decay of the decoder.")
    prior_weight_decay: float = option(1e-3, "Weight decay of the energy.")
    prior_start: float = option(
        0.0, "Part of the training, 0 to 1, after which the energy begins to learn; until then the prior is Gaussian."
    )
    warmup_steps: int = option(100, "Steps over which the learning rates rise from zero.")
    final_learning_rate_factor: float = option(0.05, "Both learning rates fall linearly to this part of themselves.")
    averaging_start: float = option(
        1.0,
        "Part of the training, 0 to 1, from which on weights are averaged for the final model; 1 for none.",
    )
    max_decoder_grad_norm: float = option(100.0, "Gradient clip of the decoder, for a loss in nats per example.")
    max_prior_grad_norm: float = option(1.0, "Gradient clip of the energy.")
    inference: Literal["short_run", "persistent", "amortized", "variational"] = option(
        "short_run",
        "Posterior draws: chains from N(0, I) at every step (the paper), chains kept for every sentence, chains from "
        "an encoder's proposal, or an encoder's draws themselves.",
    )
    chain_num_steps: int = option(4, "Persistent and amortized inference: Langevin steps a visit.")
    chain_step_size: float = option(0.5, "The same: Langevin step size of a visit's first step.")
    chain_step_size_end: float | None = option(None, "Of its last step; none for a constant size.")
    chain_refresh: float = option(0.3, "Persistent inference: part of each latent drawn anew at a visit, 0 to 1.")
    initial_likelihood_weight: float | None = option(
        None, "Likelihood weight at the first step, falling to likelihood_weight; a high one wakes the latent."
    )
    likelihood_weight_steps: int = option(1000, "Steps over which it falls, geometrically.")
    log_every: int = option(50, "Steps between lines of metrics.jsonl.")
    eval_every: int = option(1000, "Steps between evaluations on a part of the validation set.")
    save_every: int = option(500, "Steps between checkpoints.")
    keep_checkpoints: int = option(2, "Newest checkpoints that are kept.")
    report_to: str = option(
        "none",
        "Trackers beside metrics.jsonl, with commas between them: `trackio`, `tensorboard`, `wandb`, or `none` "
        "(extras of these names).",
    )
    max_rollbacks: int = option(
        3,
        "How often numbers that are not finite send a run back to its newest checkpoint, to learn at half the rate.",
    )
    usr1_exit_code: int = option(
        138, "Exit code after SIGUSR1, by which schedulers warn; SIGTERM gives 143 and SIGINT 130."
    )
    num_eval_sentences: int = option(512, "Validation examples used while training; the end uses all.")
    num_eval_samples: int = option(1000, "Sentences generated for the sample statistics of the last evaluation.")
    matmul_precision: Literal["highest", "high", "medium"] = option(
        "highest", "torch.set_float32_matmul_precision; `medium` may be several times faster and less exact."
    )

    def __post_init__(self) -> None:
        for name in (
            "num_epochs", "train_batch_size", "eval_batch_size", "decoder_learning_rate", "prior_learning_rate",
            "max_decoder_grad_norm", "max_prior_grad_norm", "chain_num_steps", "chain_step_size",
            "likelihood_weight_steps", "log_every", "eval_every", "save_every", "keep_checkpoints",
            "num_eval_samples",
        ):  # fmt: skip
            require_positive(name, getattr(self, name))
        for name in ("initial_likelihood_weight", "chain_step_size_end"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        for name in ("chain_refresh", "final_learning_rate_factor", "prior_start", "averaging_start"):
            require_in_interval(name, getattr(self, name), 0.0, 1.0)
        require_in_interval("num_eval_sentences", self.num_eval_sentences, 2, float("inf"))  # for a standard error
        for name in ("warmup_steps", "decoder_weight_decay", "prior_weight_decay", "max_rollbacks"):
            require_in_interval(name, getattr(self, name), 0.0, float("inf"))
        require_in_interval("usr1_exit_code", self.usr1_exit_code, 0, 255)

    def check_encoder(self, has_encoder: bool) -> None:
        """Raises a `UsageError` where the inference needs an encoder and there is none, or the other way round."""
        if has_encoder == (self.inference in ("amortized", "variational")):
            return
        change = (
            "set encoder_hidden_size to none, or inference to amortized or variational"
            if has_encoder
            else "set encoder_hidden_size, 256 for example, or inference to short_run or persistent"
        )
        raise UsageError(
            f"inference {self.inference!r} and {'an' if has_encoder else 'no'} encoder do not go together: {change}"
        )

    def exit_code(self, signal_number: int) -> int:
        """The exit code of a recipe that a signal has stopped: what shells report, but for SIGUSR1."""
        return self.usr1_exit_code if signal_number == signal.SIGUSR1 else 128 + signal_number


@dataclass
class HubArguments:
    """Hub"""

    push_to_hub: bool = option(False, "Push the model with its card when it is trained; needs a token that may write.")
    hub_model_id: str | None = option(
        None, "Repository, `name` or `namespace/name`; by default the name of output_dir, and you."
    )
    hub_private: bool = option(False, "Make a new repository private.")
    hub_revision: str | None = option(None, "Branch to push to; main by default.")
    hub_strategy: Literal["end", "every_save", "checkpoint"] = option(
        "end",
        "When to push: at the end; also the model so far with every checkpoint; or also the checkpoint itself, from "
        "which the training can go on elsewhere.",
    )
    hub_remote_code: bool = option(False, "Add what loads the model with trust_remote_code=True.")

    def __post_init__(self) -> None:
        if not self.push_to_hub:
            for name in ("hub_model_id", "hub_revision", "hub_private", "hub_remote_code"):
                if getattr(self, name):
                    raise UsageError(f"{name} is for push_to_hub: give --push_to_hub too, or leave it out")
