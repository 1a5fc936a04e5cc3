"""The arguments of commands: data, model and Hub, each a dataclass that checks itself.

Those of training are in `training/arguments.py`. Those of the model are derived from its configuration class, so that
a setting has one name and one default.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from latent_ebm_text.commands.parsing import default_settings
from latent_ebm_text.errors import UsageError, require_positive
from latent_ebm_text.models.configuration import FROM_DECODER, LatentEBMImageConfig, LatentEBMTextConfig
from latent_ebm_text.training.arguments import AUTO, option

#: Settings of a model that follow from its data.
_FROM_TEXT = frozenset({"vocab_size", "decoder_config", "max_sequence_length", "sentence_embedding_size"})
#: Settings that can be `auto`.
_AUTOMATIC = frozenset({"hidden_size", "embedding_size", "dropout", "sentence_encoder", "decoder_training"})
_FROM_IMAGES = frozenset({"image_size", "num_channels"})


def settings_of(config: type, leave_out: frozenset[str], automatic: frozenset[str] = frozenset()) -> Any:
    """A field that stands for the settings of a model configuration, with its names and its defaults.

    Args:
        config: The configuration class.
        leave_out: Settings that follow from the data and are no options.
        automatic: Settings whose value may also be `"auto"`.
    """
    metadata = {"config": config, "leave_out": leave_out, "automatic": automatic}
    return field(default_factory=lambda: default_settings(config, leave_out), metadata=metadata)


def _completed(settings: dict[str, Any], config: type, leave_out: frozenset[str]) -> dict[str, Any]:
    """The given settings, and the defaults of those that are not given; also within a sampler of the same name."""
    completed = {**default_settings(config, leave_out), **settings}
    for name, default in default_settings(config, leave_out).items():
        if isinstance(default, dict) and completed[name].get("name", default["name"]) == default["name"]:
            completed[name] = {**default, **completed[name]}
    return completed


@dataclass
class TextModelArguments:
    """Model

    Attributes:
        pretrained_decoder: Name of a causal language model, if the decoder is not trained from scratch.
        settings: Settings of a [`~latent_ebm_text.LatentEBMTextConfig`].
    """

    pretrained_decoder: str | None = option(
        None,
        "Pretrained causal language model that becomes the decoder: a Hub id, a folder, or a GGUF file (extra "
        "`gguf`). It brings its own tokenizer and sizes. Without it decoder_type is trained from scratch.",
    )
    settings: dict[str, Any] = settings_of(LatentEBMTextConfig, _FROM_TEXT, _AUTOMATIC)

    def __post_init__(self) -> None:
        self.settings = _completed(self.settings, LatentEBMTextConfig, _FROM_TEXT)
        if self.settings["decoder_type"] == "causal_lm":
            raise UsageError("decoder_type causal_lm is for a pretrained model: name it with pretrained_decoder")
        # What is to follow from the data is left out of the check, and is checked when the model is made.
        if self.pretrained_decoder is None:
            LatentEBMTextConfig(**{name: value for name, value in self.settings.items() if value != AUTO})
        else:
            given = {name: value for name, value in self.settings_beside_decoder().items() if value != AUTO}
            LatentEBMTextConfig(decoder_type="causal_lm", decoder_config={}, **given)

    @property
    def automatic(self) -> tuple[str, ...]:
        """The names of the settings that are still to follow from the data."""
        settings = self.settings if self.pretrained_decoder is None else self.settings_beside_decoder()
        return tuple(name for name, value in settings.items() if value == AUTO)

    def settings_beside_decoder(self) -> dict[str, Any]:
        """The settings that a pretrained decoder does not bring along."""
        return {name: value for name, value in self.settings.items() if name not in FROM_DECODER}


@dataclass
class ImageModelArguments:
    """Model

    Attributes:
        settings: Settings of a [`~latent_ebm_text.LatentEBMImageConfig`].
    """

    settings: dict[str, Any] = settings_of(LatentEBMImageConfig, _FROM_IMAGES)

    def __post_init__(self) -> None:
        self.settings = _completed(self.settings, LatentEBMImageConfig, _FROM_IMAGES)
        LatentEBMImageConfig(**self.settings)


@dataclass
class CorpusArguments:
    """Data"""

    dataset_name: str = option(
        "grammar", "`grammar` (the embedded corpus), `ptb`, `snli`, `yahoo`, a Hub id, a local folder or a file."
    )
    text_column: str | None = option(None, "Column that holds the text; detected where only one is possible.")
    dataset_revision: str | None = option(None, "Revision of a dataset on the Hub.")
    train_split: str | None = option(None, "Split to train on, where it is not called train.")
    num_sentences: int | None = option(None, "Number of training sentences; none for all.")
    num_test_sentences: int | None = option(
        None, "Number of test sentences, drawn at random and the same in every run; none for all."
    )
    streaming: bool = option(
        False, "Read the rows in order, no more of them than num_sentences needs, and keep only their texts on disk."
    )
    num_proc: int = option(1, "Processes that prepare a large corpus.")

    def __post_init__(self) -> None:
        for name in ("num_sentences", "num_test_sentences", "num_proc"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))


@dataclass
class DataArguments(CorpusArguments):
    """Data"""

    tokenizer: str = option(
        "word", "`word`, `bpe` or `unigram`, trained on the corpus, or the name or path of a pretrained tokenizer."
    )
    vocab_size: int | None = option(
        None,
        "Largest vocabulary, special tokens included; none for every word of the corpus, or at most 16,000 subwords.",
    )
    max_length: int = option(
        100, "Longest sentence in tokens, the end token included; longer ones are truncated and counted."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "max_length"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))


@dataclass
class ImageDataArguments:
    """Data"""

    dataset_name: str = option(
        "digits", "`digits` (no download), `mnist`, `svhn`, `cifar10`, `celeba`, a Hub id, a local folder or file."
    )
    image_column: str | None = option(None, "Column that holds the images; detected where only one is possible.")
    label_column: str | None = option(None, "Column that holds the classes; none for `label`.")
    train_split: str | None = option(None, "Split to train on, where it is not called train.")
    image_size: int | None = option(None, "Height and width that images must have; none for those of the first image.")
    num_channels: int | None = option(None, "1 for grey, 3 for colour; none for the channels of the first image.")
    adapt_images: bool = option(False, "Crop images to their central square, resize and convert them where needed.")
    strict: bool = option(False, "Stop at an image that cannot be read, instead of skipping and counting it.")
    num_images: int | None = option(None, "Number of training images; none for all.")

    def __post_init__(self) -> None:
        for name in ("image_size", "num_images"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))


@dataclass
class HubArguments:
    """Hub"""

    push_to_hub: bool = option(False, "Push the trained model with its card; needs a token with write access.")
    hub_model_id: str | None = option(
        None, "Repository, `name` or `namespace/name`; none for the name of output_dir in your own namespace."
    )
    hub_private: bool = option(False, "Make a new repository private.")
    hub_revision: str | None = option(None, "Branch to push to; none for main.")
    hub_strategy: Literal["end", "every_save", "checkpoint"] = option(
        "end",
        "When to push: at the end; also the model with every checkpoint; or also the checkpoint itself, from which "
        "training can resume on another machine.",
    )
    hub_remote_code: bool = option(False, "Add the file that loads the model with trust_remote_code=True.")

    def __post_init__(self) -> None:
        if not self.push_to_hub:
            for name in ("hub_model_id", "hub_revision", "hub_private", "hub_remote_code"):
                if getattr(self, name):
                    raise UsageError(f"{name} needs push_to_hub: give --push_to_hub too, or leave it out")


def flat_settings(*arguments: Any) -> dict[str, Any]:
    """The values of dataclasses of arguments under the names of their options, as a YAML file would hold them."""
    values = {name: value for each in arguments for name, value in asdict(each).items()}
    settings = values.pop("settings", {})
    return {**values, **settings}
