"""What one does with the latents of sentences: draws, paths, neighbours, arithmetic, anomaly scores.

[`SentenceTools`] are methods of the text model. The mathematics is in `latents/` and `scoring.py`; here sentences
become latents, and latents sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.mode import evaluation_mode
from latent_ebm_text.latents.interpolation import STIFFNESS, PathKind, latent_path
from latent_ebm_text.latents.neighbours import LatentIndex, Metric, Neighbours
from latent_ebm_text.likelihood import LogPartition
from latent_ebm_text.scoring import AnomalyScores, Marginal, score_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Strings, which need a tokenizer; lists of ids from beginning to end token; or ids `(batch, length)`.
Sentences = Sequence[str] | Sequence[Sequence[int]] | Tensor


@dataclass(frozen=True)
class ReconstructionDraws:
    """Sentences decoded from several posterior draws each: what the posterior is sure of, and what not.

    Attributes:
        sequences: `(n, num_draws, length)` token ids, the beginning token first.
        latents: `(n, num_draws, latent_dim)`, the draws.
        energies: `(n, num_draws)`, `E(z)` in nats.
        log_prob: `(n, num_draws)`, `log p(x | z)` of the sentence itself in nats.
        agreement: `(n,)`, how alike the decoded sentences are: the part of places (as far as the longer one goes) that
            hold the same token, averaged over pairs of draws. 1: all the same.
    """

    sequences: Tensor
    latents: Tensor
    energies: Tensor
    log_prob: Tensor
    agreement: Tensor

    @property
    def posterior_mean(self) -> Tensor:
        """`(n, latent_dim)`."""
        return self.latents.mean(dim=1)

    @property
    def posterior_std(self) -> Tensor:
        """`(n, latent_dim)`, over the draws: near the prior's where the sentence says nothing about a dimension."""
        return self.latents.std(dim=1)


class SentenceTools:
    """Methods of [`LatentEBMForTextGeneration`] on the latents of sentences.

    Sentences are strings with their `tokenizer`, lists of ids, or `input_ids` with their `attention_mask`. They are
    taken in batches of sentences of similar length; results come in the order given. Draws are functions of the seed,
    of the sentences given together and of `batch_size`.
    """

    @torch.no_grad()
    def posterior_draws(
        self: Any,
        sentences: Sentences,
        attention_mask: Tensor | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_draws: int = 8,
        batch_size: int = 128,
        seed: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Latents of sentences, from independent posterior chains; `(num_draws, n, latent_dim)`, on the CPU.

        Args:
            sentences: `n` sentences.
            attention_mask: With ids as a tensor: 0 at padding (on the right).
            tokenizer: The model's, for strings.
            num_draws: Chains per sentence.
            batch_size: Sentences at a time.
            seed: Of the chains.
            progress: Whether to show how far it is.

        Raises:
            UsageError: If sentences are missing, cannot be read, or do not fit the model.
        """
        if num_draws < 1:
            raise UsageError(f"num_draws must be a positive integer, got {num_draws}")
        from latent_ebm_text.streams import stream

        rows = self._rows(sentences, attention_mask, tokenizer)
        draws = torch.empty(num_draws, len(rows), self.config.latent_dim)
        with evaluation_mode(self), _progress_bar(len(rows), "posterior draws", progress) as advance:
            for number, (indices, inputs) in enumerate(self._row_batches(rows, batch_size)):
                generator = stream(seed, "posterior draws", number, device=self.device)
                for draw in draws:
                    draw[indices] = self.sample_posterior(inputs, generator=generator).latents.float().cpu()
                advance(len(indices))
        return draws

    @torch.no_grad()
    def reconstruct_draws(
        self: Any,
        sentences: Sentences,
        attention_mask: Tensor | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_draws: int = 8,
        batch_size: int = 128,
        seed: int = 0,
        progress: bool = False,
        **kwargs: Any,
    ) -> ReconstructionDraws:
        """Decodes several posterior draws of every sentence, greedily by default, and says how far they agree.

        Args:
            sentences: As of `posterior_draws`.
            attention_mask: The same.
            tokenizer: The same.
            num_draws: Draws per sentence, at least 2.
            batch_size: Sentences at a time.
            seed: Of the chains.
            progress: Whether to show how far it is.
            **kwargs: Options of `generate`.

        Raises:
            UsageError: As `posterior_draws`; or with fewer than two draws.
        """
        if num_draws < 2:
            raise UsageError(f"draws agree or differ from 2 on, got num_draws={num_draws}; use reconstruct() for one")
        if kwargs.get("num_return_sequences", 1) != 1 or kwargs.get("return_dict_in_generate"):
            raise UsageError(
                "reconstruct_draws decodes each draw once: leave num_return_sequences and dictionaries out"
            )
        rows = self._rows(sentences, attention_mask, tokenizer)
        draws = self.posterior_draws(rows, num_draws=num_draws, batch_size=batch_size, seed=seed, progress=progress)
        dtype = self.decoder.latent_dtype
        flat = draws.transpose(0, 1).flatten(0, 1).to(self.device, dtype)  # (n * num_draws, latent_dim)
        ids = self.generate(latents=flat, **{"do_sample": False, **kwargs}).cpu()
        sequences = ids.view(len(rows), num_draws, -1)
        log_prob = torch.empty(len(rows), num_draws)
        with evaluation_mode(self):
            for indices, inputs in self._row_batches(rows, batch_size):
                likelihood = self.decoder.likelihood(inputs)
                for number, draw in enumerate(draws):
                    log_prob[indices, number] = likelihood(draw[indices].to(self.device, dtype)).float().cpu()
        return ReconstructionDraws(
            sequences=sequences,
            latents=draws.transpose(0, 1),
            energies=self.prior.energy(flat).float().cpu().view(len(rows), num_draws),
            log_prob=log_prob,
            agreement=pairwise_agreement(sequences[:, :, 1:], self.config.pad_token_id or 0),
        )

    def interpolate(
        self: Any,
        start: Tensor,
        end: Tensor,
        num_points: int = 8,
        *,
        path: PathKind = "linear",
        stiffness: float = STIFFNESS,
        **kwargs: Any,
    ) -> Tensor | ModelOutput:
        """Decodes points on a path between two latents, both ends included; greedily by default.

        Args:
            start: `(latent_dim,)` or `(1, latent_dim)`.
            end: The same.
            num_points: Number of sentences, at least 2.
            path: `"linear"`; `"spherical"`, which keeps the norms of typical draws; or `"low_energy"`, the path of
                least action under the prior, see [`~latent_ebm_text.latents.low_energy_path`].
            stiffness: Of a path of low energy: small values let it make detours.
            **kwargs: Options of `generate`. With `return_dict_in_generate=True` the output holds `sequences`, and the
                `latents` and `energies` (nats) along the path.

        Raises:
            UsageError: If latents, path or number of points cannot be right.
        """
        start, end = (self.check_latents(z.reshape(1, -1), 1)[0] for z in (start, end))
        with self._full_precision():
            latents = latent_path(path, start, end, num_points, self.prior, stiffness=stiffness)
        return self.generate(latents=latents, **{"do_sample": False, **kwargs})

    def combine(
        self: Any,
        sentences: Sentences,
        coefficients: Sequence[float],
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Arithmetic on latents: the sum of `coefficient * posterior mean`, `(1, latent_dim)`, to be decoded.

        `model.generate(latents=model.combine([a, b, c], [1, -1, 1], tokenizer=tokenizer), do_sample=False)` decodes
        `a - b + c`.

        Args:
            sentences: As of `posterior_draws`.
            coefficients: One per sentence.
            attention_mask: As of `posterior_draws`.
            **kwargs: Further arguments of `posterior_draws`.

        Raises:
            UsageError: As `posterior_draws`; or if the numbers of sentences and coefficients differ.
        """
        means = self.posterior_draws(sentences, attention_mask, **kwargs).mean(dim=0)
        if len(coefficients) != len(means):
            raise UsageError(f"{len(means)} sentences need as many coefficients, got {len(coefficients)}")
        combined = (torch.tensor(coefficients, dtype=means.dtype)[:, None] * means).sum(dim=0, keepdim=True)
        return self.check_latents(combined)

    def build_index(
        self: Any,
        sentences: Sentences,
        attention_mask: Tensor | None = None,
        *,
        source: str = "",
        num_draws: int = 8,
        **kwargs: Any,
    ) -> LatentIndex:
        """Posterior means and standard deviations of a corpus, for `neighbours`; save it and use it again.

        Args:
            sentences: As of `posterior_draws`.
            attention_mask: The same.
            source: What the sentences are, such as the corpus's fingerprint; checked where the index is loaded.
            num_draws: Chains per sentence, at least 2.
            **kwargs: Further arguments of `posterior_draws`.

        Raises:
            UsageError: As `posterior_draws`; or with fewer than two draws.
        """
        if num_draws < 2:
            raise UsageError(f"a standard deviation needs 2 draws or more, got num_draws={num_draws}")
        draws = self.posterior_draws(sentences, attention_mask, num_draws=num_draws, **kwargs)
        return LatentIndex(draws.mean(dim=0), draws.std(dim=0), source)

    def neighbours(
        self: Any,
        index: LatentIndex,
        sentences: Sentences,
        attention_mask: Tensor | None = None,
        *,
        k: int = 5,
        metric: Metric = "euclidean",
        num_draws: int = 8,
        **kwargs: Any,
    ) -> Neighbours:
        """The `k` sentences of an index whose posteriors are nearest to those of other sentences.

        Args:
            index: Made by `build_index`.
            sentences: As of `posterior_draws`.
            attention_mask: The same.
            k: Neighbours of each.
            metric: `"euclidean"` between posterior means, or `"divergence"`, see [`LatentIndex.query`].
            num_draws: Chains per sentence, at least 2.
            **kwargs: Further arguments of `posterior_draws`.

        Raises:
            UsageError: As `posterior_draws` and [`LatentIndex.query`].
        """
        queries = self.build_index(sentences, attention_mask, num_draws=num_draws, **kwargs)
        return index.query(queries.mean, queries.std, k=k, metric=metric)

    def score(
        self: Any,
        sentences: Sentences,
        attention_mask: Tensor | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        marginal: Marginal = "importance",
        num_draws: int = 4,
        num_samples: int | None = None,
        num_levels: int = 30,
        log_partition: LogPartition | None = None,
        batch_size: int = 128,
        seed: int = 0,
        progress: bool = False,
    ) -> AnomalyScores:
        """Anomaly scores of sentences in nats: `-log p(x)` with standard errors, joint energy, reconstruction, prior
        energy; each also per token.

        `scores.get("nll_per_token")` is what a detector takes by default: `-log p(x)`
        adds up over words, so that by itself it calls every long sentence anomalous.

        Args:
            sentences: As of `posterior_draws`.
            attention_mask: The same.
            tokenizer: The same.
            marginal: How `-log p(x)` is estimated: `"importance"`, `"ais"`, or `"none"` to leave it out, see
                [`~latent_ebm_text.scoring.score_data`].
            num_draws: Posterior draws that the other scores are averaged over.
            num_samples: Weights per sentence of the estimate; by default 32 importance weights, or 16 walks.
            num_levels: Levels of annealed walks.
            log_partition: log Z of the prior, which shifts all sentences alike; estimated where not given.
            batch_size: Sentences at a time.
            seed: Of all draws.
            progress: Whether to show how far it is.

        Raises:
            UsageError: As `posterior_draws` and [`~latent_ebm_text.scoring.score_data`].
        """
        rows = self._rows(sentences, attention_mask, tokenizer)
        order: list[int] = []
        row_batches = self._row_batches(rows, batch_size)

        def batches() -> Iterator[dict[str, Tensor]]:
            for indices, inputs in row_batches:
                order.extend(indices.tolist())
                yield inputs

        with _progress_bar(len(rows), "scoring", progress) as advance:
            scores = score_data(
                self, batches(), marginal=marginal, num_draws=num_draws, num_samples=num_samples,
                num_levels=num_levels, log_partition=log_partition, seed=seed, on_batch=advance,
            )  # fmt: skip
        return scores.reordered(torch.tensor(order).argsort(), torch.tensor([len(row) - 1.0 for row in rows]))

    def _rows(
        self: Any,
        sentences: Sentences,
        attention_mask: Tensor | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[list[int]]:
        """Ids of every sentence, from the beginning to the end token, checked."""
        if isinstance(sentences, str):
            raise UsageError("sentences are a list of strings; put the one string into a list")
        if len(sentences) == 0:
            raise UsageError("no sentences were given")
        if isinstance(sentences, Tensor):
            ids = self._inputs(sentences, attention_mask)  # checks the ids
            return [
                row[mask.bool()].tolist() for row, mask in zip(ids["input_ids"], ids["attention_mask"], strict=True)
            ]
        if attention_mask is not None:
            raise UsageError("an attention_mask belongs to input_ids as a tensor; leave it out for lists and strings")
        if isinstance(sentences[0], str):
            if tokenizer is None:
                raise UsageError("strings need the model's tokenizer: give tokenizer=..., or token ids in their place")
            if strange := [type(s).__name__ for s in sentences if not isinstance(s, str)]:
                raise UsageError(f"sentences must all be strings, got also {strange[0]}")
            bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
            if bos is None or eos is None:
                raise UsageError("the tokenizer needs a bos_token and an eos_token")
            words = tokenizer(list(sentences), add_special_tokens=False, return_attention_mask=False, verbose=False)
            rows = [[bos, *ids, eos] for ids in words["input_ids"]]
        else:
            if strange := [
                type(ids).__name__ for ids in sentences if not isinstance(ids, Sequence | np.ndarray | Tensor)
            ]:
                raise UsageError(f"sentences are strings, or lists of token ids; got also {strange[0]}")
            rows = [list(map(int, ids)) for ids in sentences]
        if min(map(len, rows)) < 2:
            raise UsageError("a sentence has at least two ids, its beginning and its end token")
        self._check_ids(torch.tensor([token for row in rows for token in row])[None], None)
        return rows

    def _row_batches(self: Any, rows: list[list[int]], batch_size: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Batches of sentences of similar length: their places and the decoder's inputs."""
        if batch_size < 1:
            raise UsageError(f"batch_size must be a positive integer, got {batch_size}")
        return self._collated(rows, batch_size)

    def _collated(self: Any, rows: list[list[int]], batch_size: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        order = np.argsort([len(row) for row in rows], kind="stable")
        for first in range(0, len(rows), batch_size):
            indices = order[first : first + batch_size]
            tensors = [torch.tensor(rows[index]) for index in indices]
            padded = nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=self.config.pad_token_id or 0)
            lengths = torch.tensor([len(row) for row in tensors])
            mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
            yield torch.from_numpy(indices), self._inputs(padded, mask)


def pairwise_agreement(sequences: Tensor, padding: int) -> Tensor:
    """How alike the sequences of every row are, `(n,)`, between 0 and 1; see [`ReconstructionDraws`].

    Args:
        sequences: `(n, num_draws, length)` ids.
        padding: The id that fills a sequence after its end.
    """
    first, second = torch.triu_indices(sequences.shape[1], sequences.shape[1], offset=1)
    a, b = sequences[:, first], sequences[:, second]  # (n, pairs, length)
    counted = (a != padding) | (b != padding)
    return ((a == b) & counted).sum(dim=-1).div(counted.sum(dim=-1).clamp(min=1)).mean(dim=-1)


class _progress_bar:
    """A bar over `total` sentences, or none; gives the function that advances it."""

    def __init__(self, total: int, description: str, shown: bool) -> None:
        from accelerate.utils import tqdm

        self._bar = tqdm(total=total, desc=description, unit="sentence", disable=not shown)

    def __enter__(self) -> Callable[[int], None]:
        advance: Callable[[int], None] = self._bar.update
        return advance

    def __exit__(self, *exception: Any) -> None:
        self._bar.close()
