"""The training of a text model as a class, for Python: the loop, checkpoints and results of the command `train`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from latent_ebm_text.commands import train_text
from latent_ebm_text.commands.train_text import PreparedText
from latent_ebm_text.data import TextCollator, load_text_dataset, tokenize_corpus
from latent_ebm_text.data.statistics import CorpusStatistics
from latent_ebm_text.data.text import corpus_of
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.defaults import choose_sizes
from latent_ebm_text.models.loading import load_text_model, load_tokenizer
from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration
from latent_ebm_text.training.arguments import AUTO, TrainingArguments
from latent_ebm_text.training.files import replaced_folder
from latent_ebm_text.training.reporting import find_problems
from latent_ebm_text.training.tracking import make_accelerator, set_precision
from latent_ebm_text.training.trainer import TrainingResult

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LatentEBMTrainer:
    """Trains a text model on texts, and goes on from the newest checkpoint where there is one.

    ```python
    model = LatentEBMForTextGeneration.from_texts(texts)
    trainer = LatentEBMTrainer(model=model, train_dataset=texts)
    trainer.train()
    trainer.save_model("my-model")
    ```

    Args:
        model: The model; or the name of one, a folder or a Hub id.
        args: The settings; what is `"auto"` follows from the texts. By default those of [`recommended_arguments`].
        train_dataset: The training texts: a list of strings, a dataset of Hugging Face with a column of text, or the
            name of a corpus as the recipes take it.
        eval_dataset: Texts for evaluations, in the same forms; by default 5 % of the training texts.
        processing_class: The tokenizer; by default `model.tokenizer`, or the one beside a model that was loaded.

    Attributes:
        model: The model.
        args: The settings, without `"auto"`.
        processing_class: The tokenizer.
        text: The texts, tokenized.

    Raises:
        UsageError: If there is no tokenizer, the texts cannot be read, or the settings do not fit the model.
        DataError: If the texts cannot be used.
    """

    def __init__(
        self,
        model: LatentEBMForTextGeneration | str | Path,
        args: TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if train_dataset is None:
            raise UsageError("train_dataset is missing: give a list of texts, a Dataset, or the name of a corpus")
        if isinstance(model, str | Path):
            model, loaded = load_text_model(model)
            processing_class = processing_class or loaded
        tokenizer = processing_class or model.tokenizer
        if tokenizer is None and model.name_or_path and Path(model.name_or_path).is_dir():
            tokenizer = load_tokenizer(model.name_or_path)
        if tokenizer is None:
            raise UsageError("the model's tokenizer is missing: give it as processing_class")
        self.model, self.processing_class = model, tokenizer
        self.text = self._prepare(train_dataset, eval_dataset)
        args = recommended_arguments(model) if args is None else args
        args.check_inference(model.encoder is not None, model.config.num_fit_steps)
        statistics = CorpusStatistics.of_dataset(self.text.splits["train"], model.config.bos_token_id)
        choices = choose_sizes(
            statistics,
            on_gpu=torch.cuda.is_available(),
            latent_dim=model.config.latent_dim,
            decoder_type=model.config.decoder_type,
        )
        self.args = replace(args, **{name: choices[name].value for name in args.automatic})
        self._notes = [f"{name}: {choices[name].value} ({choices[name].reason})" for name in args.automatic]

    def train(self) -> TrainingResult:
        """Trains the model, and saves it with its tokenizer in `args.output_dir/model`.

        A signal ends it with a checkpoint, from which the same call goes on.

        At the end the model is judged on the evaluation texts: what is wrong with it is printed, and joins the
        result's warnings.

        Raises:
            UsageError: If another run is going on in the folder, or its checkpoint was trained with other settings.
            DivergenceError: If going back to a checkpoint does not help against values that are not finite.
            CheckpointError: If the newest checkpoint belongs to another model or library version.
        """
        set_precision(self.args.matmul_precision)
        accelerator = make_accelerator(self.args)
        accelerator.print("\n".join([self.text.description, *self._notes]))
        result = train_text.train(self.model, self.text, self.args, accelerator)
        if result.signal is None:
            metrics = self._evaluate(accelerator)
            problems = find_problems(metrics, {**vars(self.args), **self.model.config.to_dict()})
            result.warnings.extend(problems)
            accelerator.print("\n".join(f"warning: {problem}" for problem in problems))
        accelerator.end_training()
        return result

    def evaluate(self) -> dict[str, float]:
        """The metrics of the evaluation texts, each as `eval_...`.

        NLLs, latent gain and information are in nats per sentence, see docs/evaluation.md.
        """
        return {f"eval_{name}": value for name, value in self._evaluate().items()}

    def _evaluate(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """The metrics of the evaluation texts; the processes of `accelerator` share the work."""
        self.model.eval()
        everything = replace(self.args, num_eval_examples=max(2, len(self.text.splits["validation"])))
        metrics = train_text.validation_metrics(self.model, self.text, everything, accelerator)
        if self.model.encoder is not None:
            information = train_text.measure_information(
                self.model, self.text, self.args, "validation", accelerator=accelerator
            )
            metrics["information"] = information["validation"].value
        return metrics

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Saves the model and its tokenizer, in `args.output_dir/model` by default."""
        folder = Path(self.args.output_dir) / "model" if output_dir is None else Path(output_dir)
        with replaced_folder(folder) as written:
            self.model.save_pretrained(written)
            self.processing_class.save_pretrained(written)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Uploads the model, its card and its tokenizer; options are those of the model's `push_to_hub`."""
        result = self.model.push_to_hub(repo_id, **options)
        self.processing_class.push_to_hub(repo_id, **options)
        return result

    def _prepare(self, train_dataset: Any, eval_dataset: Any) -> PreparedText:
        config = self.model.config
        if isinstance(train_dataset, str):
            if eval_dataset is not None:
                raise UsageError("a corpus that is named has evaluation texts of its own: leave eval_dataset out")
            corpus = load_text_dataset(train_dataset)
        else:
            corpus = corpus_of(train_dataset, eval_dataset)
        splits, _ = tokenize_corpus(corpus.splits, self.processing_class, config.max_sequence_length)
        text = PreparedText(
            corpus=corpus,
            tokenizer=self.processing_class,
            splits=splits,
            collate=TextCollator(self.processing_class.pad_token_id),
            max_length=config.max_sequence_length,
            description=corpus.describe(),
        )
        return text.embedded(config.sentence_encoder)


def recommended_arguments(model: LatentEBMForTextGeneration, **changes: Any) -> TrainingArguments:
    """The settings of a training that suit any texts, those of `recipes/configs/text.yaml`.

    Args:
        model: The model: one without an encoder is trained with chains, and has no target of information.
        **changes: Settings in place of these.
    """
    settings: dict[str, Any] = {
        "num_epochs": AUTO, "train_batch_size": AUTO, "eval_batch_size": 128, "decoder_learning_rate": AUTO,
        "prior_learning_rate": 0.0005, "prior_start": 0.2, "averaging_start": 0.75, "num_eval_examples": 256,
        "save_every": 300,
    }  # fmt: skip
    if model.encoder is not None:
        settings["initial_likelihood_weight"] = 50.0
    if model.config.num_fit_steps > 0:
        settings["inference"] = "fitted"
    elif model.encoder is not None:
        settings |= {
            "inference": "variational", "information": AUTO, "prior_learning_rate": 0.003, "prior_chain_num_steps": 20,
        }  # fmt: skip
    return TrainingArguments(**{**settings, **changes})
