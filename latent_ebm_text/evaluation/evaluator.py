"""A sentence-level LSTM language model, used only as an evaluator: FPPL and RPPL are perplexities under such a model.

A perplexity means nothing without the language model behind it. So the model follows a named recipe, is trained for a
fixed number of epochs, and is cached under a hash of everything that its weights depend on: equal hashes mean equal
perplexities.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import tqdm
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from latent_ebm_text import __version__
from latent_ebm_text.data.batching import BucketedBatches, TextCollator, ordered_batches
from latent_ebm_text.errors import DataError, DivergenceError, UsageError, require_in_interval, require_positive
from latent_ebm_text.latents.rng import derived_generator, derived_seed
from latent_ebm_text.networks.base import predicted_mask
from latent_ebm_text.networks.dropout import drop_features, dropout_mask
from latent_ebm_text.networks.softmax import CandidateTokens, SoftmaxOutput
from latent_ebm_text.training.checkpointing import (
    Checkpoint,
    flatten_optimizer_state,
    load_latest_checkpoint,
    restore_optimizer_state,
    save_checkpoint,
)

#: To be raised with every change of the training, so that cached language models are trained again.
RECIPE_VERSION = 1

#: Sentences of token ids, each from its beginning-of-sentence to its end-of-sentence token.
Sentences = Sequence[Sequence[int]] | Sequence[npt.NDArray[np.int64]]

logger = logging.getLogger(__name__)
_collate = TextCollator(pad_token_id=0)  # any id will do: padding is neither predicted nor followed by a token


@dataclass(frozen=True)
class LanguageModelRecipe:
    """Everything about a language model except its data and its seed.

    Attributes:
        name: The name that every metric carries; a changed recipe needs a new name.
        embedding_size: Width of the token embedding, which is also the output layer, behind a projection.
        hidden_size: Width of every LSTM layer.
        num_layers: Number of LSTM layers.
        token_dropout: Probability that a token is absent from the input, wherever it stands in the batch.
        embedding_dropout: Dropout on token embeddings; as with the following two, one mask serves a whole sentence.
        hidden_dropout: Dropout between LSTM layers.
        output_dropout: Dropout on the last layer's hidden states.
        epochs: Number of passes through the training sentences.
        averaged_epochs: Number of epochs at the end, over all steps of which the weights are averaged.
        frequent_tokens: Before these epochs the softmax is taken over this many of the most frequent tokens of the
            training text, those of the batch, and `drawn_tokens` others, see `CandidateTokens`; 0 takes all tokens
            from the start.
        drawn_tokens: See `frequent_tokens`.
        batch_size: Sentences a step.
        learning_rate: Learning rate of AdamW after the warm-up.
        warmup_steps: Steps over which the learning rate rises from zero.
        final_learning_rate_factor: The factor by which the learning rate falls linearly to the end of the training.
        weight_decay: Weight decay of AdamW.
        max_grad_norm: Gradient clip, for a loss in nats per token.
        matmul_precision: Precision of training, see `torch.set_float32_matmul_precision`. Evaluation always has full
            precision.
    """

    name: str
    embedding_size: int
    hidden_size: int
    num_layers: int
    token_dropout: float
    embedding_dropout: float
    hidden_dropout: float
    output_dropout: float
    epochs: int
    averaged_epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    final_learning_rate_factor: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    frequent_tokens: int = 0
    drawn_tokens: int = 0
    matmul_precision: Literal["highest", "high", "medium"] = "medium"

    def __post_init__(self) -> None:
        for name in (
            "embedding_size", "hidden_size", "num_layers", "epochs", "averaged_epochs", "batch_size", "learning_rate",
            "warmup_steps", "max_grad_norm",
        ):  # fmt: skip
            require_positive(name, getattr(self, name))
        for name in ("token_dropout", "embedding_dropout", "hidden_dropout", "output_dropout"):
            require_in_interval(name, getattr(self, name), 0.0, 0.95)
        require_in_interval("averaged_epochs", self.averaged_epochs, 1, self.epochs)
        require_in_interval("final_learning_rate_factor", self.final_learning_rate_factor, 0.0, 1.0)
        for name in ("weight_decay", "frequent_tokens"):
            require_in_interval(name, getattr(self, name), 0.0, math.inf)
        if self.frequent_tokens:
            require_positive("drawn_tokens", self.drawn_tokens)


#: For metrics that are reported. It takes some 18 MFLOP a token and epoch of PTB, about an hour on one core of
#: 70 GFLOP/s.
EVALUATOR = LanguageModelRecipe(
    name="evaluator",
    embedding_size=256,
    hidden_size=512,
    num_layers=1,
    token_dropout=0.1,
    embedding_dropout=0.2,
    hidden_dropout=0.0,
    output_dropout=0.4,
    epochs=13,
    averaged_epochs=3,
    batch_size=64,
    learning_rate=3e-3,
    frequent_tokens=2000,
    drawn_tokens=800,
)

#: For a first look, in minutes. Its metrics are not comparable with those of [`EVALUATOR`], and carry its name.
QUICK_EVALUATOR = LanguageModelRecipe(
    name="quick-evaluator",
    embedding_size=128,
    hidden_size=256,
    num_layers=1,
    token_dropout=0.0,
    embedding_dropout=0.1,
    hidden_dropout=0.0,
    output_dropout=0.2,
    epochs=3,
    averaged_epochs=1,
    batch_size=64,
    learning_rate=5e-3,
    frequent_tokens=2000,
    drawn_tokens=800,
)


@dataclass(frozen=True)
class TrainingRecord:
    """How a language model was trained.

    Attributes:
        seed: Seed of the initial weights, the order of the data and dropout.
        train_sentences: Number of training sentences.
        train_tokens: Number of their predicted tokens, the ends of sentences counted.
        validation_perplexity: The perplexity after each epoch, of the weights that would have been returned then;
            empty without validation sentences.
        seconds: Time spent training.
    """

    seed: int
    train_sentences: int
    train_tokens: int
    validation_perplexity: list[float]
    seconds: float


class LanguageModel(nn.Module):
    """`p(sentence)`, each sentence on its own: from the beginning-of-sentence token to the end-of-sentence token.

    Args:
        vocab_size: Number of tokens in the vocabulary.
        recipe: Sizes and dropout rates.
    """

    def __init__(self, vocab_size: int, recipe: LanguageModelRecipe) -> None:
        super().__init__()
        self.vocab_size, self.recipe = vocab_size, recipe
        #: How the weights came about; `None` for a model that [`train_language_model`] did not make.
        self.record: TrainingRecord | None = None
        widths = [recipe.embedding_size, *[recipe.hidden_size] * recipe.num_layers]
        self.embedding = nn.Embedding(vocab_size, recipe.embedding_size)
        self.layers = nn.ModuleList(nn.LSTM(*pair) for pair in itertools.pairwise(widths))
        self.output = SoftmaxOutput(recipe.hidden_size, vocab_size, recipe.embedding_size, tied=True)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def log_prob(self, inputs: dict[str, Tensor]) -> Tensor:
        """`log p(token | tokens before it)` in nats, differentiable in the weights.

        Args:
            inputs: `input_ids` and `attention_mask` of shape `(batch, length)`, padded on the right.

        Returns:
            Shape `(batch, length - 1)`, for every token but the first; zero at padding.
        """
        rows = predicted_mask(inputs).t()  # (time, batch)
        values = self.output.log_prob(*self._predictions(inputs, rows), self.embedding.weight)
        return values.new_zeros(rows.shape).masked_scatter(rows, values).t()

    def sum_log_prob(
        self,
        inputs: dict[str, Tensor],
        generator: torch.Generator | None = None,
        frequent_tokens: Tensor | None = None,
    ) -> Tensor:
        """The sum of `log_prob` over all tokens, a scalar, by which the model learns.

        Args:
            inputs: Those of `log_prob`.
            generator: Draws the dropout masks; without it there is no dropout.
            frequent_tokens: Token ids; if given, the normaliser is estimated from these and `recipe.drawn_tokens`
                others.
        """
        features, targets = self._predictions(inputs, predicted_mask(inputs).t(), generator)
        candidates = None
        if frequent_tokens is not None:
            candidates = CandidateTokens.draw(
                targets, frequent_tokens, self.vocab_size, self.recipe.drawn_tokens, generator
            )
        return self.output.sum_log_prob(features, targets, self.embedding.weight, candidates)

    def _predictions(
        self, inputs: dict[str, Tensor], rows: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states `(tokens, width)` before the predicted tokens `rows`, and these tokens, `(tokens,)`."""
        previous, targets = inputs["input_ids"][:, :-1].t(), inputs["input_ids"][:, 1:].t()
        embedded, recipe = self.embedding(previous), self.recipe  # (time, batch, embedding_size)
        if generator is not None:
            embedded = embedded * dropout_mask(recipe.token_dropout, (self.vocab_size, 1), generator)[previous]
        hidden = _drop(embedded, recipe.embedding_dropout, generator)
        for number, layer in enumerate(self.layers, start=1):
            is_last = number == len(self.layers)
            hidden = _drop(layer(hidden)[0], recipe.output_dropout if is_last else recipe.hidden_dropout, generator)
        return hidden[rows], targets[rows]


def _drop(hidden: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Dropout, if there is a generator to draw it."""
    return hidden if generator is None else drop_features(hidden, rate, generator)


# -------- perplexity


@torch.no_grad()
def sentence_nll(
    lm: LanguageModel, ids: Sentences, *, batch_size: int = 256, progress: bool = False
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """`-log p(sentence)` in nats, the end of the sentence counted and its beginning not.

    Args:
        lm: The language model.
        ids: Sentences, each from its beginning-of-sentence to its end-of-sentence token.
        batch_size: Sentences a batch.
        progress: Whether to show a progress bar.

    Returns:
        NLLs and numbers of predicted tokens, both of shape `(sentences,)`.

    Raises:
        DataError: If there is no sentence, or one without any token to predict.
        UsageError: If ids are outside of the vocabulary.
    """
    rows = _check_ids(ids, lm.vocab_size, "evaluated")
    tokens = np.array([len(row) - 1 for row in rows])
    nll = np.zeros(len(rows))
    with _matmul_precision("highest"):
        for indices in tqdm(ordered_batches(tokens, batch_size), desc="perplexity", disable=not progress):
            log_probs = lm.log_prob(_batch(rows, indices, lm))
            nll[indices] = -log_probs.double().sum(dim=1).cpu().numpy()
    return nll, tokens


def perplexity(nll: npt.NDArray[np.float64], tokens: npt.NDArray[np.int64]) -> float:
    """`exp(sum of NLLs / sum of tokens)`, from the values that [`sentence_nll`] returns."""
    return math.exp(nll.sum() / tokens.sum())


def _check_ids(ids: Sentences, vocab_size: int, what: str) -> list[npt.NDArray[np.int64]]:
    rows = [np.asarray(row, dtype=np.int64) for row in ids]
    if not rows:
        raise DataError(f"the {what} text has no sentence; give at least one.")
    shortest = min(range(len(rows)), key=lambda number: len(rows[number]))
    if len(rows[shortest]) < 2:
        raise DataError(
            f"sentence {shortest} of the {what} text has {len(rows[shortest])} tokens and nothing to predict; "
            "put the bos token before and the eos token after its tokens."
        )
    lowest, highest = min(row.min() for row in rows), max(row.max() for row in rows)
    if lowest < 0 or highest >= vocab_size:
        raise UsageError(
            f"the {what} text has the ids {lowest} to {highest}, but the language model knows 0 to {vocab_size - 1}; "
            "use the tokenizer of the real training text."
        )
    return rows


def _batch(rows: list[npt.NDArray[np.int64]], indices: npt.NDArray[np.int64], lm: LanguageModel) -> dict[str, Tensor]:
    batch = _collate([{"input_ids": rows[index]} for index in indices])
    return {name: value.to(lm.embedding.weight.device) for name, value in batch.items()}


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    """Sets the precision of matrix products for a while, so that what is set elsewhere does not change a model."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# -------- training


def train_language_model(
    train_ids: Sentences,
    validation_ids: Sentences | None,
    vocab_size: int,
    recipe: LanguageModelRecipe,
    *,
    cache_dir: str | Path,
    seed: int = 0,
    progress: bool = True,
) -> LanguageModel:
    """The language model of a recipe, trained on sentences, or read from the cache if it was trained before.

    **Nothing is selected.** The weights are always those of the end, averaged over the steps of the last epochs, as
    the paper's language models are trained for a fixed number of epochs. The model for RPPL must see generated text
    alone. Choosing its weights by real validation text would tell it something about the real text, and choosing them
    by generated text would judge a model that repeats itself by its own repetitions. The model for FPPL must be made
    in the same way, or the two could not be compared. The perplexity of validation sentences after every epoch is
    therefore for people only, and changes no weight.

    A model is kept in `cache_dir/<hash of recipe, data, vocabulary size, seed and version>/`, as a checkpoint of
    [`latent_ebm_text.training.checkpointing`]. So is the state after every epoch while it trains, from which a killed
    training is resumed, bit for bit on a CPU with the same number of threads. A damaged model is trained again, and a
    line of the log says so. Only one process may train a model at a time.

    Args:
        train_ids: Sentences, each from its beginning-of-sentence to its end-of-sentence token.
        validation_ids: Sentences to measure after every epoch, or `None`.
        vocab_size: Number of tokens in the vocabulary.
        recipe: The recipe, such as [`EVALUATOR`].
        cache_dir: Where models are kept.
        seed: Seed of the initial weights, the order of the data and dropout.
        progress: Whether to show a progress bar.

    Raises:
        DataError: If there is no sentence, or one without any token to predict.
        UsageError: If ids are outside of the vocabulary, or `cache_dir` cannot be a folder.
        DivergenceError: If a gradient is not finite.
    """
    train = _check_ids(train_ids, vocab_size, "training")
    validation = None if validation_ids is None else _check_ids(validation_ids, vocab_size, "validation")
    identity = {
        "version": [RECIPE_VERSION, *__version__.split(".")[:2]],
        "vocab_size": vocab_size,
        "seed": seed,
        "train": _fingerprint(train),
        "validation": validation and _fingerprint(validation),
        **{f"recipe.{name}": value for name, value in asdict(recipe).items()},
    }
    folder = Path(cache_dir) / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cache_dir {cache_dir} cannot be used: {error.strerror}; name another folder.") from error
    checkpoint, damaged = load_latest_checkpoint(folder, identity=identity)
    for reason in damaged:
        logger.warning("a cached language model is damaged and is trained again: %s", reason)

    with torch.random.fork_rng(devices=[]):  # torch's initialisers draw from its global generator
        torch.manual_seed(derived_seed(seed, "language model weights"))
        lm = LanguageModel(vocab_size, recipe)
    lm = lm.to("cuda" if torch.cuda.is_available() else "cpu")
    if checkpoint is None or "record" not in checkpoint.state:
        with _matmul_precision(recipe.matmul_precision):
            lm = _train(lm, train, validation, checkpoint, folder, identity, progress)
    else:
        lm.load_state_dict(checkpoint.tensors["model"])
        lm.record = TrainingRecord(**checkpoint.state["record"])
    return lm


def _train(
    lm: LanguageModel,
    train: list[npt.NDArray[np.int64]],
    validation: list[npt.NDArray[np.int64]] | None,
    checkpoint: Checkpoint | None,
    folder: Path,
    identity: dict[str, Any],
    progress: bool,
) -> LanguageModel:
    """Trains from a checkpoint, which is always made between two epochs, and leaves only the finished model behind."""
    recipe, seed, started = lm.recipe, identity["seed"], time.monotonic()
    lengths = np.array([len(row) - 1 for row in train])
    batches = BucketedBatches(lengths, recipe.batch_size, derived_seed(seed, "language model batches"))
    total = recipe.epochs * len(batches)
    tokens_per_batch = lengths.sum() / len(batches)
    optimizer = torch.optim.AdamW(
        lm.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    averaged = AveragedModel(lm)
    counts = np.bincount(np.concatenate(train), minlength=lm.vocab_size)
    frequent = torch.from_numpy(np.argsort(-counts, kind="stable")[: recipe.frequent_tokens].copy())
    frequent = frequent.to(lm.embedding.weight.device)
    step, perplexities = 0, []
    if checkpoint is not None:
        step, perplexities = checkpoint.step, checkpoint.state["validation_perplexity"]
        started -= checkpoint.state["seconds"]
        lm.load_state_dict(checkpoint.tensors["model"])
        averaged.load_state_dict(checkpoint.tensors["averaged"])
        restore_optimizer_state(optimizer, checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])

    bar = tqdm(total=total, initial=step, desc=f"training {recipe.name}", unit="step", disable=not progress)
    with bar:
        for epoch in range(step // len(batches), recipe.epochs):
            is_averaging = epoch >= recipe.epochs - recipe.averaged_epochs
            for indices in batches.epoch(epoch):
                dropout = derived_generator(seed, "language model dropout", step, device=lm.embedding.weight.device)
                # Over the tokens of an average batch, not of this one: every token of the corpus weighs the same.
                some_tokens = frequent if len(frequent) and not is_averaging else None
                loss = -lm.sum_log_prob(_batch(train, indices, lm), dropout, some_tokens) / tokens_per_batch
                loss.backward()
                norm = nn.utils.clip_grad_norm_(lm.parameters(), recipe.max_grad_norm)
                if not math.isfinite(norm):
                    raise DivergenceError(
                        f"the language model {recipe.name!r} has the gradient norm {float(norm)} at step {step + 1}; "
                        f"lower its learning_rate, which is {recipe.learning_rate}."
                    )
                optimizer.param_groups[0]["lr"] = learning_rate(step, total, recipe)
                optimizer.step()
                optimizer.zero_grad()
                if is_averaging:
                    averaged.update_parameters(lm)
                step += 1
                bar.update()

            current: Any = averaged.module if is_averaging else lm
            if validation is not None:
                perplexities.append(perplexity(*sentence_nll(current, validation)))
                bar.set_postfix(validation_perplexity=f"{perplexities[-1]:.1f}")
            measured: dict[str, Any] = {"validation_perplexity": perplexities, "seconds": time.monotonic() - started}
            if step < total:
                optimizer_tensors, optimizer_rest = flatten_optimizer_state(optimizer)
                tensors = {
                    "model": dict(lm.state_dict()),
                    "averaged": dict(averaged.state_dict()),
                    "optimizer": optimizer_tensors,
                }
                state = {**measured, "optimizer": optimizer_rest}
                save_checkpoint(folder, step, tensors, state, identity=identity)

    final: LanguageModel = current
    final.record = TrainingRecord(seed, len(train), int(lengths.sum()), **measured)
    tensors, state = {"model": dict(final.state_dict())}, {"record": asdict(final.record)}
    save_checkpoint(folder, total, tensors, state, identity=identity, keep_last=1)
    return final


def learning_rate(step: int, total: int, recipe: LanguageModelRecipe) -> float:
    """The learning rate at a step: a linear rise from zero, then a linear fall to the final value."""
    fall = 1.0 - (1.0 - recipe.final_learning_rate_factor) * step / total
    return recipe.learning_rate * fall * min(1.0, (step + 1) / recipe.warmup_steps)


def _fingerprint(rows: list[npt.NDArray[np.int64]]) -> str:
    digest = hashlib.sha256(np.array([len(row) for row in rows]).tobytes())
    digest.update(np.concatenate(rows).tobytes())
    return digest.hexdigest()
