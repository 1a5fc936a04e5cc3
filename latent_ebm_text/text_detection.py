"""Text anomaly detection: a model, a score, a threshold, with the interface of pyod."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ebm_text.detection import LatentEBMDetector, Scores, read_settings
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.likelihood import LogPartition
from latent_ebm_text.scoring import SCORE_NAMES, Marginal, ScoreName, model_log_partition

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from latent_ebm_text.modeling_text import LatentEBMForTextGeneration

_NUM_DRAWS = 4  #: Posterior draws that the scores that depend on them are averaged over.


class LatentEBMTextDetector(LatentEBMDetector):
    """Finds sentences that a model of ordinary text thinks improbable.

    ```python
    detector = LatentEBMTextDetector(model, tokenizer, contamination=0.05).fit(ordinary_sentences)
    detector.predict(["the bank recovers sharply", "sharply the the recovers"])  # 1: an anomaly
    detector.save_pretrained("detector")  # model, tokenizer, threshold, training scores
    ```

    Fit on sentences that the model was not trained on: those it was trained on score too low for a threshold.

    Args:
        model: A text model, trained on ordinary text.
        tokenizer: Its tokenizer.
        contamination: Share of the training sentences that is taken for anomalous, above 0 and at most 0.5.
        score: What is thresholded; `-log p(x)` per predicted token by default, since the sum over a sentence calls all
            long sentences anomalous. See [`~latent_ebm_text.scoring.AnomalyScores`].
        marginal: How `-log p(x)` is estimated, `"importance"` or `"ais"`; other scores do without.
        batch_size: Sentences at a time.
        seed: Of all draws: the same sentences given together score the same.
        progress: Whether to show how far it is.

    Raises:
        UsageError: If the score or another setting cannot be right.
    """

    def __init__(
        self,
        model: LatentEBMForTextGeneration,
        tokenizer: PreTrainedTokenizerBase,
        contamination: float = 0.1,
        *,
        score: ScoreName = "nll_per_token",
        marginal: Marginal = "importance",
        batch_size: int = 128,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        super().__init__(self._score, contamination)
        if score not in SCORE_NAMES:
            raise UsageError(f"unknown score {score!r}; known scores: {', '.join(SCORE_NAMES)}")
        if marginal == "none" and score.startswith("nll"):
            raise UsageError(f"score={score!r} needs marginal='importance' or 'ais'")
        self.model, self.tokenizer, self.score = model, tokenizer, score
        self.marginal, self.batch_size, self.seed, self.progress = marginal, batch_size, seed, progress
        self._log_partition: LogPartition | None = None

    def _score(self, sentences: Sequence[str]) -> Scores:
        if self._needs_marginal and self._log_partition is None:
            self._log_partition = model_log_partition(self.model, self.seed)
        scores = self.model.score(
            sentences,
            tokenizer=self.tokenizer,
            marginal=self.marginal if self._needs_marginal else "none",
            num_draws=1 if self._needs_marginal else _NUM_DRAWS,  # a marginal needs a draw to start from, no average
            log_partition=self._log_partition,
            batch_size=self.batch_size,
            seed=self.seed,
            progress=self.progress,
        )
        values: Scores = scores.get(self.score).numpy()
        return values

    @property
    def _needs_marginal(self) -> bool:
        return self.score.startswith("nll") and self.model.config.latent_dim > 0

    def settings(self) -> dict[str, Any]:
        """The score and how it is computed, with log Z."""
        return {
            "score": self.score,
            "marginal": self.marginal,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "log_partition": None if self._log_partition is None else self._log_partition.to_dict(),
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes model, tokenizer, threshold, settings and training scores into a folder: JSON and safetensors.

        Raises:
            UsageError: If the detector is not fitted.
        """
        super().save_pretrained(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, progress: bool = False) -> LatentEBMTextDetector:  # type: ignore[override]
        """The detector saved in a folder, with its model and tokenizer.

        Raises:
            DataError: If the files are missing, damaged, or those of another kind of detector.
        """
        from transformers import AutoTokenizer

        from latent_ebm_text.modeling_text import LatentEBMForTextGeneration

        model = LatentEBMForTextGeneration.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        try:
            settings = dict(read_settings(folder, cls.__name__)["settings"])
            partition = settings.pop("log_partition")
            detector = cls(model, tokenizer, **settings, progress=progress)
            detector._log_partition = None if partition is None else LogPartition(**partition)
        except (KeyError, TypeError, UsageError) as error:
            raise DataError(f"{folder} cannot be read as a detector of this version: {error}") from error
        detector.load_threshold(folder)
        return detector
