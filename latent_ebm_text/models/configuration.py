"""Model configurations. They validate themselves and refuse keys they do not know."""

# Without `from __future__ import annotations`: `strict` checks values against annotations, and cannot read strings.
import difflib
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from packaging.version import Version
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from latent_ebm_text import __version__
from latent_ebm_text.errors import UsageError, require_positive
from latent_ebm_text.latents.samplers import sampler_from_dict

#: Keys that transformers itself may hand to a configuration.
_TRANSFORMERS_KEYS = {
    "architectures", "auto_map", "attn_implementation", "experts_implementation", "dtype", "torch_dtype",
    "name_or_path", "output_attentions", "tokenizer_class", "transformers_version", "trust_remote_code",
    "use_cache", "_commit_hash", "_name_or_path", "per_layer_config", "quantization_config", "model_type",
    "latent_ebm_text_version",
}  # fmt: skip
#: Precisions of weights.
_DTYPES = ("float32", "float64", "bfloat16", "float16")
#: Far more than any model has. Without limits a typing error, or a configuration made by somebody with bad intentions,
#: would take all memory.
_MAX_SIZE, _MAX_LAYERS = 10_000_000, 1000


def _default_prior_sampler() -> dict[str, Any]:
    return {"name": "langevin", "num_steps": 60, "step_size": 0.4, "temperature": 1.0}


def _default_posterior_sampler() -> dict[str, Any]:
    return {"name": "langevin", "num_steps": 20, "step_size": 0.1, "temperature": 1.0}


def refuse_quantization(quantization_config: Any) -> None:
    """Raises a `UsageError` unless `quantization_config` is `None`."""
    if quantization_config is not None:
        raise UsageError(
            "quantization_config is not supported, because scores in z are computed from the weights themselves: use "
            "a model that is not quantised, with dtype='bfloat16' to save memory"
        )


@strict
class LatentEBMConfig(PreTrainedConfig):
    r"""Settings of the latent, its energy-based prior and the two samplers, shared by every modality.

    The samplers are part of the model: a chain of other length or step size draws from another distribution.

    Args:
        latent_dim (`int`): Size of the latent z. Zero, with a Gaussian prior, leaves a plain model of the data
            without a latent, as a baseline.
        num_latent_vectors (`int`): Number of equal parts of the latent, a few of which a transformer reads at every
            layer; the energy is then a sum over them and a term of the whole. Everywhere else the latent stays one
            vector of `latent_dim` numbers.
        prior_type (`str`): `"energy"`, or `"gaussian"` for N(0, I), which learns nothing.
        prior_hidden_size (`int`): Width of the energy network (200 in the paper).
        prior_num_hidden_layers (`int`): Hidden layers of the energy network (2 in the paper).
        prior_activation (`str`): Activation of the energy network, `"gelu"` or `"leaky_relu"`.
        prior_flow_num_layers (`int`): Layers of the flow that the prior has been distilled into; 0 if it has not.
            `distil_prior` sets it.
        prior_sampler (`dict`): Sampler of the prior, with its settings; by default the 60 Langevin steps of 0.4 of the
            paper.
        posterior_sampler (`dict`): Sampler of the posterior for data not seen in training, with its settings; by
            default the 20 Langevin steps of 0.1 of the paper.
        num_fit_steps (`int`): Steps that fit the mean and the variance of the posterior of every example before its
            chain starts, from a draw of what was fitted; for inference `fitted`. Zero for none.
        fit_learning_rate (`float`): First learning rate of these steps, which falls to zero, in standard deviations
            of the fitted Gaussian.
        likelihood_weight (`float`): `w` of the posterior `p(z) p(x|z)^w`; 1 in the paper. With a higher weight the
            latent carries more of x.
        energy_penalty (`float`): Weight of the squared tilt `f(z)^2` in the loss, which keeps the energy from growing
            without bound.
        free_bits (`float`): For a model with an encoder: nats per dimension by which the encoder may diverge from the
            prior at no cost (Kingma et al., 2016).
        moment_weight (`float`): For a model whose encoder is trained by inference `variational` under an energy prior:
            weight of the divergence of the posterior's mean and variance over a batch from those of N(0, I), in nats.

    Raises:
        UsageError: If a key is unknown (names the nearest known one) or a value cannot be right.
        StrictDataclassFieldValidationError: If a value has the wrong type (names the field and the type).
    """

    # Outputs that are no predictions: transformers.Trainer leaves them out of what it evaluates.
    keys_to_ignore_at_inference = ["reconstruction_loss", "prior_loss", "penalty", "latents"]

    latent_dim: int = 32
    num_latent_vectors: int = 1
    prior_type: Literal["energy", "gaussian"] = "energy"
    prior_hidden_size: int = 200
    prior_num_hidden_layers: int = 2
    prior_activation: Literal["gelu", "leaky_relu"] = "gelu"
    prior_flow_num_layers: int = 0
    prior_sampler: dict[str, Any] | None = None
    posterior_sampler: dict[str, Any] | None = None
    num_fit_steps: int = 0
    fit_learning_rate: float | int = 0.3
    likelihood_weight: float | int = 1.0
    energy_penalty: float | int = 0.0
    free_bits: float | int = 0.0
    moment_weight: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        self.prior_sampler = _default_prior_sampler() if self.prior_sampler is None else dict(self.prior_sampler)
        if self.posterior_sampler is None:
            self.posterior_sampler = _default_posterior_sampler()
        self.posterior_sampler = dict(self.posterior_sampler)
        self._refuse_unknown(kwargs)
        for dtype in (self.dtype, kwargs.get("torch_dtype")):
            self._check_dtype(dtype)
        super().__post_init__(**kwargs)
        for name in ("prior_sampler", "posterior_sampler"):
            try:
                sampler_from_dict(getattr(self, name))
            except UsageError as error:
                raise UsageError(f"{name}: {error}") from error
        self._check_sizes("prior_hidden_size", prior_num_hidden_layers=_MAX_LAYERS)
        require_positive("likelihood_weight", self.likelihood_weight)
        if not 0 <= self.prior_flow_num_layers <= _MAX_LAYERS:
            raise UsageError(
                f"prior_flow_num_layers must be from 0 to {_MAX_LAYERS}, got {self.prior_flow_num_layers}"
            )
        if self.prior_flow_num_layers and (self.prior_type == "gaussian" or self.latent_dim < 2):
            raise UsageError("prior_flow_num_layers is for an energy prior of 2 dimensions or more")
        require_positive("fit_learning_rate", self.fit_learning_rate)
        for name in ("latent_dim", "num_fit_steps", "energy_penalty", "free_bits", "moment_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be zero or positive, got {getattr(self, name)}")
        if self.latent_dim:
            self._check_sizes("latent_dim")
        if self.latent_dim == 0 and self.prior_type != "gaussian":
            raise UsageError("latent_dim must be positive for an energy prior; with 0 set prior_type to 'gaussian'")
        self._check_sizes("num_latent_vectors")
        if self.num_latent_vectors > 1 and (self.latent_dim == 0 or self.latent_dim % self.num_latent_vectors != 0):
            raise UsageError(
                f"latent_dim must be a positive multiple of num_latent_vectors, got {self.latent_dim} and "
                f"{self.num_latent_vectors}"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values, with the version of the library that writes them."""
        return {**super().to_dict(), "latent_ebm_text_version": __version__}

    def _refuse_unknown(self, kwargs: dict[str, Any]) -> None:
        generation = GenerationConfig._get_default_generation_params()
        written_by = kwargs.pop("latent_ebm_text_version", __version__)
        refuse_quantization(kwargs.get("quantization_config"))
        for key in kwargs:
            if key in _TRANSFORMERS_KEYS or key.startswith("_"):
                continue
            if key in generation:
                raise UsageError(f"{key!r} belongs to generation: give it to generate() or model.generation_config")
            if Version(written_by) != Version(__version__):
                newer = Version(written_by) > Version(__version__)
                advice = "pip install --upgrade latent-ebm-text" if newer else "train it again with this version"
                raise UsageError(
                    f"this model was written by latent_ebm_text {written_by}, and {__version__} is installed, which "
                    f"does not know its setting {key!r}: {advice}"
                )
            nearest = difflib.get_close_matches(key, [f for f in self.__dataclass_fields__ if f != key], n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise UsageError(f"{type(self).__name__} has no setting {key!r}{hint}")

    def _check_dtype(self, dtype: Any) -> None:
        if dtype is not None and str(dtype).removeprefix("torch.") not in _DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")

    def _check_sizes(self, *names: str, **limits: int) -> None:
        """Refuses sizes that are not positive or cannot be meant; `limits` holds fields with a limit of their own."""
        for name, limit in {**dict.fromkeys(names, _MAX_SIZE), **limits}.items():
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be positive, got {value}")
            if value is not None and value > limit:
                raise UsageError(f"{name} must be at most {limit:,}, got {value}")


#: Settings of a text model that a pretrained decoder brings along.
FROM_DECODER = ("decoder_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings")


@strict
class LatentEBMTextConfig(LatentEBMConfig):
    r"""Settings of [`LatentEBMForTextGeneration`].

    Args:
        vocab_size (`int`): Number of tokens, special ones included.
        decoder_type (`str`): `"lstm"`, the decoder of the paper; `"transformer"`, a small causal transformer trained
            from scratch; `"causal_lm"`, any causal language model of transformers, see
            [`LatentEBMForTextGeneration.from_decoder_pretrained`].
        decoder_config (`dict`, *optional*): Configuration of that language model.
        decoder_training (`str`): What a pretrained decoder learns: `"full"`, all of its weights; `"lora"`, low-rank
            adapters beside them (extra `lora`); `"frozen"`, nothing. The layers that read the latent always learn.
        lora_rank (`int`): Rank of these adapters.
        latent_injection (`str`, *optional*): How the latent enters a transformer or causal language model: `"prefix"`,
            as vectors before the first token; `"embedding"`, added to every token's embedding; `"layers"`, added to
            the input of every layer; `"attention"`, read by every token from `num_latent_vectors` vectors, an equal
            share of them at the input of every layer. By default `"attention"` if there are several vectors, and
            else `"layers"`, or `"prefix"` for a pretrained model. An LSTM takes the latent as its first state and with
            every token.
        prefix_length (`int`): Number of vectors of a prefix.
        num_hidden_layers (`int`): Layers of the transformer.
        num_attention_heads (`int`): Attention heads of the transformer.
        hidden_size (`int`): Width of the LSTM (512 for PTB in the paper) or of the transformer.
        embedding_size (`int`): Width of the token embedding of LSTMs (128 for PTB in the paper).
        tie_word_embeddings (`bool`): Whether the output layer is the token embedding, behind a projection.
        output_rank (`int`, *optional*): Rank of an untied output layer; full rank by default.
        dropout (`float`): Dropout on hidden states, with one mask for all tokens of a sequence.
        embedding_dropout (`float`, *optional*): The same on token embeddings, those of an encoder included; equal to
            `dropout` by default.
        token_dropout (`float`): Probability that a token of the vocabulary is absent from the decoder's input in a
            training batch.
        frequent_tokens (`int`): In training, the softmax is taken over this many of the first ids (word-level
            tokenizers order ids by falling frequency), the tokens of the batch, and `drawn_tokens` others, which stand
            for the rest; 0 takes all tokens. Evaluation and generation always take all tokens.
        drawn_tokens (`int`): Number of tokens drawn at every step to stand for the less frequent ones, see
            `frequent_tokens`.
        bag_of_tokens_weight (`float`): Weight of an auxiliary loss that an encoder is trained with: the nats of the
            sentence's tokens, whatever their order, predicted from z by one linear layer. It teaches the encoder what
            to tell, and is no part of the model that is saved.
        encoder_hidden_size (`int`, *optional*): Width of an encoder q(z | x), from whose draws posterior chains
            start; with a Gaussian prior it makes a variational autoencoder. None for no encoder.
        sentence_encoder (`str`, *optional*): Frozen sentence encoder whose embeddings the encoder reads beside the
            tokens: `all-MiniLM-L6-v2`, or any model of sentence-transformers by Hub id or folder (extra `encoder`).
            None for an encoder that reads tokens alone.
        sentence_embedding_size (`int`, *optional*): Width of these embeddings.
        sentence_embedding_weight (`float`): Weight of an auxiliary loss, the squared error of the sentence embedding
            that one linear layer predicts from z, as `bag_of_tokens_weight`.
        max_sequence_length (`int`): Longest sequence in tokens, the end token included, in training and generation.
    """

    model_type = "latent_ebm_text"
    keys_to_ignore_at_inference = [*LatentEBMConfig.keys_to_ignore_at_inference, "past_key_values"]

    vocab_size: int = 10_000
    decoder_type: Literal["lstm", "transformer", "causal_lm"] = "lstm"
    decoder_config: dict[str, Any] | None = None
    decoder_training: Literal["full", "lora", "frozen"] = "full"
    lora_rank: int = 8
    latent_injection: Literal["prefix", "embedding", "layers", "attention"] | None = None
    prefix_length: int = 4
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    hidden_size: int = 512
    embedding_size: int = 128
    tie_word_embeddings: bool = False
    output_rank: int | None = None
    dropout: float | int = 0.2
    embedding_dropout: float | int | None = None
    token_dropout: float | int = 0.0
    frequent_tokens: int = 0
    drawn_tokens: int = 0
    encoder_hidden_size: int | None = None
    sentence_encoder: str | None = None
    sentence_embedding_size: int | None = None
    sentence_embedding_weight: float | int = 0.0
    bag_of_tokens_weight: float | int = 0.0
    max_sequence_length: int = 100
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    unk_token_id: int | None = 3

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check_sizes("vocab_size", "hidden_size", "embedding_size", "output_rank", "max_sequence_length")
        self._check_sizes("encoder_hidden_size", "num_attention_heads", "prefix_length", "lora_rank")
        self._check_sizes(num_hidden_layers=_MAX_LAYERS)
        self._check_special_tokens()
        self._check_decoder()
        if self.frequent_tokens < 0 or self.drawn_tokens < 0 or (self.frequent_tokens > 0) != (self.drawn_tokens > 0):
            raise UsageError(
                "frequent_tokens and drawn_tokens go together: set both to positive numbers or both to 0, got "
                f"{self.frequent_tokens} and {self.drawn_tokens}"
            )
        if self.encoder_hidden_size is not None and self.latent_dim == 0:
            raise UsageError("encoder_hidden_size needs a latent to infer: set latent_dim above 0, or leave it out")
        if self.sentence_encoder is not None and self.encoder_hidden_size is None:
            raise UsageError("sentence_encoder is what an encoder reads: set encoder_hidden_size, 256 for example")
        self._check_sizes("sentence_embedding_size")
        for name in ("bag_of_tokens_weight", "sentence_embedding_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be zero or positive, got {getattr(self, name)}")
        for name in ("dropout", "embedding_dropout", "token_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise UsageError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.tie_word_embeddings and self.output_rank is not None:
            raise UsageError(
                "output_rank applies to an untied output layer; with tie_word_embeddings the rank is embedding_size "
                f"({self.embedding_size}): drop one of the two"
            )

    def _check_special_tokens(self) -> None:
        if self.bos_token_id is None:
            raise UsageError("bos_token_id must be given: every sentence begins with it")
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        for name, ids in (("pad", [self.pad_token_id]), ("bos", [self.bos_token_id]), ("eos", ends)):
            if any(each is not None and not 0 <= each < self.vocab_size for each in ids):
                raise UsageError(
                    f"{name}_token_id must lie in [0, {self.vocab_size}), the ids of the vocabulary, got "
                    f"{getattr(self, f'{name}_token_id')}"
                )

    def _check_decoder(self) -> None:
        is_pretrained = self.decoder_type == "causal_lm"
        if is_pretrained != (self.decoder_config is not None):
            raise UsageError(
                "decoder_type 'causal_lm' and decoder_config go together; "
                "LatentEBMForTextGeneration.from_decoder_pretrained sets both"
            )
        if self.decoder_training != "full" and not is_pretrained:
            raise UsageError(
                f"decoder_training {self.decoder_training!r} is for a pretrained language model; the built-in "
                f"{self.decoder_type!r} decoder is trained from scratch: leave decoder_training at 'full'"
            )
        if self.bag_of_tokens_weight > 0 and self.encoder_hidden_size is None:
            raise UsageError("bag_of_tokens_weight teaches an encoder: set encoder_hidden_size, or leave it out")
        if self.decoder_training == "frozen" and self.latent_dim == 0:
            raise UsageError("a frozen decoder without a latent has nothing to learn: set latent_dim above 0")
        if self.decoder_type == "lstm":
            if self.num_latent_vectors > 1:
                raise UsageError(
                    f"num_latent_vectors {self.num_latent_vectors} is for transformers, whose layers share the vectors"
                    ", and an LSTM reads one: leave it at 1, or set decoder_type to 'transformer'"
                )
            if self.latent_injection is not None:
                raise UsageError("latent_injection is for transformers; an LSTM has one way to take z: leave it out")
            return
        if self.latent_injection is None:
            self.latent_injection = "prefix" if is_pretrained else "layers"
            if self.num_latent_vectors > 1:
                self.latent_injection = "attention"
        if self.num_latent_vectors > 1 and self.latent_injection != "attention":
            raise UsageError(
                f"num_latent_vectors {self.num_latent_vectors} and latent_injection {self.latent_injection!r} do not "
                "go together: several vectors are read by 'attention'"
            )
        if self.output_rank is not None:
            raise UsageError(f"output_rank is for the LSTM; the {self.decoder_type!r} decoder has none: leave it out")
        if not is_pretrained and self.hidden_size % (2 * self.num_attention_heads) != 0:
            raise UsageError(
                f"hidden_size must be a multiple of twice num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )


@strict
class LatentEBMImageConfig(LatentEBMConfig):
    r"""Settings of [`LatentEBMForImageGeneration`]; the defaults are those of the paper for SVHN.

    Args:
        image_size (`int`): Height and width of an image.
        num_channels (`int`): 1 for grey, 3 for colour.
        decoder_channels (`list[int]`): Feature maps after the first and every hidden layer of the decoder, see
            [`~latent_ebm_text.networks.conv.ConvDecoder`].
        decoder_first_size (`int`): Height and width after the first layer; every further layer doubles them.
        pixel_std (`float`): Standard deviation of the Gaussian likelihood, for pixels in [-1, 1].
        encoder_hidden_size (`int`, *optional*): Feature maps after the first layer of a convolutional encoder
            q(z | x), from whose draws posterior chains start; with a Gaussian prior it makes a variational
            autoencoder. None for no encoder.
    """

    model_type = "latent_ebm_image"

    latent_dim: int = 100
    prior_activation: Literal["gelu", "leaky_relu"] = "leaky_relu"
    image_size: int = 32
    num_channels: int = 3
    decoder_channels: list[int] | None = None
    decoder_first_size: int = 4
    pixel_std: float | int = 0.3
    encoder_hidden_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.decoder_channels = [512, 256, 128] if self.decoder_channels is None else list(self.decoder_channels)
        super().__post_init__(**kwargs)
        if self.num_latent_vectors > 1:
            raise UsageError("num_latent_vectors is for transformers of text; an image has one vector: leave it at 1")
        self._check_sizes("latent_dim", "image_size", "decoder_first_size", "encoder_hidden_size")
        require_positive("pixel_std", self.pixel_std)
        if self.num_channels not in (1, 3):
            raise UsageError(f"num_channels must be 1 (grey) or 3 (colour), got {self.num_channels}")
        channels = self.decoder_channels
        if not channels or min(channels) < 1 or max(channels) > _MAX_SIZE or len(channels) > _MAX_LAYERS:
            raise UsageError(f"decoder_channels must be positive integers, one a layer, got {channels}")


for _config in (LatentEBMTextConfig, LatentEBMImageConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
