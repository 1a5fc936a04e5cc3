"""The scores of sentences under one text model, as a detector needs them: repeatable, and by one method throughout."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from latent_ebm_text.anomaly.text_views import word_spans
from latent_ebm_text.data.inputs import each_sentence
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.integrals import LogPartition
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.scoring import SCORE_NAMES, Marginal, ScoreName, estimate_log_partition
from latent_ebm_text.models.sharing import share_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration

#: Posterior draws that a score other than `nll` is averaged over.
_NUM_DRAWS = 4
_MAX_UNKNOWN_SHARE = 0.5


class ModelScorer:
    """One score of one model.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        score: The score.
        marginal: How `-log p(x)` is estimated; `"auto"` is the fast bound where the model has an encoder.
        batch_size: Sentences per batch.
        seed: Seed of all draws, from which every call starts.
        progress: Whether to show progress bars.
        accelerator: The processes that share the scoring; this one alone by default.

    Attributes:
        log_partition: log Z, once it was needed.
    """

    def __init__(
        self,
        model: LatentEBMForTextGeneration,
        tokenizer: PreTrainedTokenizerBase,
        score: ScoreName,
        marginal: Marginal | Literal["auto"],
        batch_size: int,
        seed: int,
        progress: bool,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.model, self.tokenizer, self.score = model, tokenizer, score
        self.marginal: Marginal = (
            ("importance" if model.encoder is None else "elbo") if marginal == "auto" else marginal
        )
        self.batch_size, self.seed, self.progress = batch_size, seed, progress
        self.accelerator = accelerator
        self.log_partition: LogPartition | None = None

    @staticmethod
    def check(score: str, marginal: str) -> None:
        """Raises a `UsageError` unless text has this score and it can be estimated so."""
        known = [name for name in SCORE_NAMES if name != "squared_error"]  # only images have it
        if score not in known:
            raise UsageError(f"unknown score {score!r}; known scores: {', '.join(known)}")
        if marginal == "none" and score.startswith("nll"):
            raise UsageError(f"score={score!r} needs marginal='elbo', 'importance' or 'ais'")

    def scores(self, sentences: Iterable[str]) -> NDArray[np.float64]:
        """The scores `(n,)`."""
        sentences = list(each_sentence(sentences))
        self._warn_of_unknown_words(sentences)
        needs_marginal = self.score.startswith("nll") and self.model.config.latent_dim > 0
        if needs_marginal and self.log_partition is None:
            generator = derived_generator(self.seed, "log partition", device=self.model.device)
            estimate = partial(estimate_log_partition, self.model, generator=generator)
            self.log_partition = share_out(lambda _: estimate(), 1, self.accelerator)[0]
        options: dict[str, Any] = {"marginal": self.marginal if needs_marginal else "none"}
        if needs_marginal and self.marginal != "elbo":
            options["num_draws"] = 1  # the estimate starts from one draw and needs no average
        scores = self.model.score(
            sentences,
            tokenizer=self.tokenizer,
            log_partition=self.log_partition,
            batch_size=self.batch_size,
            generator=derived_generator(self.seed, "anomaly scores", device=self.model.device),
            progress=self.progress,
            accelerator=self.accelerator,
            **{"num_draws": _NUM_DRAWS, **options},
        )
        values: NDArray[np.float64] = scores.get(self.score).numpy()
        return values

    def word_surprise(self, sentences: list[str]) -> list[list[tuple[str, int, int, float]]]:
        """Every word of every sentence with its place and the surprise of its tokens in nats."""
        surprise = self.model.token_surprise(
            sentences,
            tokenizer=self.tokenizer,
            batch_size=self.batch_size,
            generator=derived_generator(self.seed, "explanations", device=self.model.device),
        )
        found = []
        for text, of_tokens in zip(sentences, surprise, strict=True):
            spans = word_spans(text)
            of_words = np.zeros(len(spans))
            offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            for (start, end), value in zip(offsets, of_tokens.tolist(), strict=False):  # the end token has no place
                shared = [min(end, b) - max(start, a) for a, b in spans]
                if shared and max(shared) > 0:
                    of_words[int(np.argmax(shared))] += value
            found.append([(text[a:b], a, b, float(value)) for (a, b), value in zip(spans, of_words, strict=True)])
        return found

    def settings(self) -> dict[str, Any]:
        """How the score is estimated, and log Z."""
        partition = None if self.log_partition is None else self.log_partition.to_dict()
        return {"marginal": self.marginal, "log_partition": partition}

    def _warn_of_unknown_words(self, sentences: list[str]) -> None:
        """Warns where the tokenizer knows less than half of the words, as in another language."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or not sentences:
            return
        tokens = self.tokenizer(sentences, add_special_tokens=False, verbose=False)["input_ids"]
        ids = np.array([token for row in tokens for token in row])
        share = float((ids == unknown).mean()) if len(ids) else 0.0
        if share > _MAX_UNKNOWN_SHARE:
            warnings.warn(
                f"{share:.0%} of the tokens are unknown to the model: if these texts are in another language, take a "
                "model of it",
                stacklevel=6,
            )
