"""Sentences as data of a text model: how they are read and batched, scored, reconstructed."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from latent_ebm_text.data.inputs import each_entry, each_sentence
from latent_ebm_text.data.lines import check_unicode
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.samplers import Sampler
from latent_ebm_text.models.attributes import AttributeModel
from latent_ebm_text.models.editing import EDIT_STRENGTH, Edits, edit_rows
from latent_ebm_text.models.scoring import AnomalyScores, score_data
from latent_ebm_text.networks.dropout import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Strings, which need a tokenizer; lists of token ids; or a tensor of token ids `(batch, length)`. Strings and lists
#: may come from anything with an order, see [`~latent_ebm_text.data.inputs.each_entry`].
Sentences = Iterable[str] | Iterable[Sequence[int]] | Tensor

#: Beams of the search for the most probable sentence of a latent, in which no sequence of so many tokens occurs twice.
#: Both keep small decoders from falling into loops.
NUM_BEAMS, NO_REPEATED_NGRAM = 4, 3
#: Latents decoded by beam search at a time, which bounds the memory of the logits,
_BEAM_BATCH = 128
#: and options of `generate` that ask for another search, or cannot be had with beams.
_OTHER_SEARCHES = {"num_beams", "streamer", "penalty_alpha", "assistant_model", "generation_config"}


class SentenceRows(list[list[int]]):
    """The token ids of sentences that were read and checked, with what the encoder reads of them beside.

    Attributes:
        embeddings: `(n, width)`, float32, of a model whose encoder reads sentence embeddings.
    """

    embeddings: Tensor | None = None

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any]) -> SentenceRows:
        """Rows of a tokenized dataset, `dataset[indices]`, which holds embeddings where the model reads them."""
        rows = cls(columns["input_ids"])
        if "sentence_embeddings" in columns:
            rows.embeddings = torch.tensor(columns["sentence_embeddings"], dtype=torch.float32)
        return rows


@dataclass(frozen=True)
class ReconstructionDraws:
    """Sentences decoded from several posterior draws each, which shows what the posterior is certain of.

    Attributes:
        sequences: `(n, num_draws, length)` token ids, beginning with the beginning token.
        latents: `(n, num_draws, latent_dim)`, the draws.
        energies: `(n, num_draws)`, `E(z)` in nats.
        log_prob: `(n, num_draws)`, `log p(x | z)` of the sentence itself in nats.
        agreement: `(n,)`, how similar the decoded sentences are: the share of positions, up to the end of the longer
            sentence, that hold the same token, averaged over pairs of draws. It is 1 if all are the same.
    """

    sequences: Tensor
    latents: Tensor
    energies: Tensor
    log_prob: Tensor
    agreement: Tensor

    @property
    def posterior_mean(self) -> Tensor:
        """The mean of the draws, `(n, latent_dim)`."""
        return self.latents.mean(dim=1)

    @property
    def posterior_std(self) -> Tensor:
        """The standard deviation of the draws, `(n, latent_dim)`.

        It is near the prior's in a dimension that the sentence does not determine.
        """
        return self.latents.std(dim=1)


class SentenceModel(AttributeModel):
    """The methods of [`LatentEBMForTextGeneration`] that take sentences.

    Every such method (`log_prob`, `encode`, `posterior_draws`, `score`, `token_surprise`, `reconstruct`,
    `reconstruct_draws`, `build_index`, `neighbours`, `combine`, `fit_attributes`, `edit`) takes sentences in three
    forms, as `input_ids`, `attention_mask` and `tokenizer`:

    - a list of strings, with the model's `tokenizer`; also a generator, a column of a table (pandas, Arrow, datasets),
      a table with one clear column of text, or an array `(n,)` or `(n, 1)`;
    - a list of lists of token ids, each from the beginning to the end token;
    - a tensor of token ids `(batch, length)`, with its `attention_mask`, which is 0 at padding on whichever side.

    Batches hold sentences of similar length; results are in the order of the sentences.
    """

    def score(
        self,
        input_ids: Sentences,
        attention_mask: Tensor | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> AnomalyScores:
        """How anomalous sentences are, see [`~latent_ebm_text.models.scoring.AnomalyScores`].

        Args:
            input_ids: The sentences.
            attention_mask: The mask of a tensor of ids.
            tokenizer: The tokenizer of strings.
            **options: Options of [`~latent_ebm_text.models.scoring.score_data`], the same for text and images:
                `latents`, `marginal`, `num_draws`, `num_samples`, `num_levels`, `log_partition`, `batch_size`,
                `sampler`, `generator` and `progress`.

        Raises:
            UsageError: If sentences are missing, cannot be read or do not fit the model, or an option cannot be right.
        """
        rows = self._read(input_ids, attention_mask, tokenizer=tokenizer)
        num_tokens = torch.tensor([len(row) - 1.0 for row in rows], dtype=torch.float64)
        return replace(score_data(self, rows, **options), num_tokens=num_tokens)

    @torch.no_grad()
    def token_surprise(
        self,
        input_ids: Sentences,
        attention_mask: Tensor | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_draws: int = 4,
        batch_size: int = 128,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> list[Tensor]:
        """`-log p` of every token in nats, given those before it and the latent of its sentence.

        Probabilities are averaged over posterior draws of the latent, which has seen the whole sentence.

        Args:
            input_ids: The sentences.
            attention_mask: The mask of a tensor of ids.
            tokenizer: The tokenizer of strings.
            num_draws: Posterior draws per sentence.
            batch_size: Sentences per batch.
            sampler: A sampler in place of the model's own.
            generator: Random number generator of the chains.
            progress: Whether to show a progress bar.

        Returns:
            A tensor for each sentence, `(num_tokens,)`, float64: its tokens after the beginning, the end included.

        Raises:
            UsageError: As `posterior_draws`.
        """
        rows = self._read(input_ids, attention_mask, tokenizer=tokenizer)
        draws = self.posterior_draws(
            rows, num_draws=num_draws, batch_size=batch_size, sampler=sampler, generator=generator, progress=progress
        )
        decoder: Any = self.decoder

        def surprise(indices: Tensor, inputs: dict[str, Tensor], _: torch.Generator | None) -> Tensor:
            latents = draws[:, indices].to(self.device, decoder.latent_dtype)
            of_batch: Tensor = decoder.token_surprise(inputs, latents)
            return of_batch.double().cpu()

        found: list[Tensor] = [torch.empty(0)] * len(rows)
        with evaluation_mode(self):
            batches = self.map_batches(surprise, rows, batch_size, description="tokens", progress=progress)
        for indices, of_batch in batches:
            for row, index in zip(of_batch, indices.tolist(), strict=True):
                found[index] = row[: len(rows[index]) - 1].clone()
        return found

    def reconstruct(
        self,
        input_ids: Sentences,
        attention_mask: Tensor | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Tensor | ModelOutput:
        """Encodes sentences and decodes the latents, by beam search by default.

        A latent is the mean of the encoder's proposal, which is closer to its sentence than a draw is; without an
        encoder, or where a sampler is given, it is one posterior draw.

        Args:
            input_ids: The sentences.
            attention_mask: The mask of a tensor of ids.
            tokenizer: The tokenizer of strings.
            sampler: A sampler of posterior draws.
            generator: Random number generator of the chains, and of the tokens if they are sampled.
            **options: Options of `generate`.

        Raises:
            UsageError: As `encode`.
        """
        rows = self._read(input_ids, attention_mask, tokenizer=tokenizer)
        if self.encoder is not None and sampler is None:
            latents = self.check_latents(self.encoder_proposals(rows).mean)
        else:
            latents = self.encode(rows, sampler=sampler, generator=generator)
        return self._decode(latents, generator=generator, **options)

    def reconstruct_draws(
        self,
        input_ids: Sentences,
        attention_mask: Tensor | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        num_draws: int = 8,
        batch_size: int = 128,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        **options: Any,
    ) -> ReconstructionDraws:
        """Decodes several posterior draws of every sentence, by beam search by default, and compares the results.

        Args:
            input_ids: The sentences.
            attention_mask: The mask of a tensor of ids.
            tokenizer: The tokenizer of strings.
            num_draws: Draws per sentence, at least 2.
            batch_size: Sentences per batch.
            sampler: A sampler in place of the model's own.
            generator: Random number generator of the chains, and of the tokens if they are sampled.
            progress: Whether to show a progress bar.
            **options: Options of `generate`.

        Raises:
            UsageError: As `posterior_draws`, with fewer than two draws, or with an option that decodes a draw into
                several sequences or into a dictionary.
        """
        if num_draws < 2:
            raise UsageError(f"draws can be compared from 2 on, got num_draws={num_draws}; use reconstruct() for one")
        if options.get("num_return_sequences", 1) != 1 or options.get("return_dict_in_generate"):
            raise UsageError(
                "reconstruct_draws decodes each draw once: leave out num_return_sequences and return_dict_in_generate"
            )
        rows = self._read(input_ids, attention_mask, tokenizer=tokenizer)
        draws = self.posterior_draws(
            rows, num_draws=num_draws, batch_size=batch_size, sampler=sampler, generator=generator, progress=progress
        )
        latents = draws.transpose(0, 1)  # (n, num_draws, latent_dim)
        ids = self._decode(self.check_latents(latents.flatten(0, 1)), generator=generator, **options).cpu()
        sequences = ids.view(len(rows), num_draws, -1)
        scores = [self.score(rows, latents=draw, marginal="none", batch_size=batch_size) for draw in draws]
        return ReconstructionDraws(
            sequences=sequences,
            latents=latents,
            energies=torch.stack([each.prior_energy for each in scores], dim=1).float(),
            log_prob=-torch.stack([each.reconstruction for each in scores], dim=1).float(),
            agreement=pairwise_agreement(sequences[:, :, 1:], self.config.pad_token_id or 0),
        )

    def edit(
        self,
        input_ids: Sentences,
        attention_mask: Tensor | None = None,
        *,
        attributes: Mapping[str, str | float],
        strength: float | Mapping[str, float] = EDIT_STRENGTH,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Any,
    ) -> Edits:
        """Rewrites sentences so that they have attributes, and keep of their content what goes with them.

        Chains start at draws of a sentence's posterior and sample `p(z) p(x | z)^a p(c | z)^w`. Where they end is
        decoded, at a low temperature and with a bonus for the sentence's own words. The best of several candidates is
        the one with the highest probability of the attributes times similarity with the sentence, both read from the
        candidate itself.

        Args:
            input_ids: The sentences.
            attention_mask: The mask of a tensor of ids.
            attributes: What is wanted of each attribute, as for `generate`.
            strength: The exponent `w`, one for all attributes or one per attribute.
            tokenizer: The tokenizer of strings.
            **options: `content`, the exponent `a` (less keeps less), `copy`, the bonus of the sentence's own words in
                nats, `num_chains`, `num_candidates`, `num_steps` and further options of
                [`~latent_ebm_text.models.editing.edit_rows`] and of `generate`.

        Raises:
            UsageError: As `encode`; if an attribute or a value is not known; or if an option cannot be right.
        """
        controls = self.controls(attributes, strength)
        rows = self._read(input_ids, attention_mask, tokenizer=tokenizer)
        return edit_rows(self, rows, controls, tokenizer=tokenizer, **options)

    def _read(
        self,
        input_ids: Sentences,
        attention_mask: Tensor | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> SentenceRows:
        """The token ids of every sentence, from the beginning to the end token, checked."""
        if isinstance(input_ids, SentenceRows):
            return input_ids
        if isinstance(input_ids, Tensor):
            self._check_ids(input_ids, attention_mask)
            masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.device)
            rows = [row[mask.bool()].tolist() for row, mask in zip(input_ids, masks, strict=True)]
        else:
            if attention_mask is not None:
                raise UsageError(
                    "an attention_mask belongs to input_ids as a tensor; leave it out for other sentences"
                )
            entries = list(each_entry(input_ids))
            is_text = bool(entries) and isinstance(entries[0], str)
            rows = _tokenized(entries, tokenizer) if is_text else [_token_ids(entry) for entry in entries]
        if not rows:
            raise UsageError("no sentences were given")
        if min(map(len, rows)) < 2:
            raise UsageError("a sentence has at least two ids, its beginning and its end token")
        if not isinstance(input_ids, Tensor):
            self._check_ids(torch.tensor([token for row in rows for token in row])[None], None)
        return self._embedded(SentenceRows(rows), tokenizer)

    def _embedded(self, rows: SentenceRows, tokenizer: PreTrainedTokenizerBase | None) -> SentenceRows:
        """Adds what the encoder reads of sentences, if it reads embeddings."""
        name = self.config.sentence_encoder
        if name is not None and tokenizer is None:
            raise UsageError(
                f"the encoder of this model reads sentences by {name!r}: give tokenizer=..., also beside token ids"
            )
        if name is not None:
            from latent_ebm_text.data.embeddings import embed_token_ids

            rows.embeddings = torch.from_numpy(embed_token_ids(rows, tokenizer, name))
        return rows

    def _check_ids(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Raises a `UsageError` unless these are token ids `(batch, length)` of this model and their mask."""
        if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.is_floating_point():
            got = f"shape {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids).__name__
            raise UsageError(f"input_ids are a tensor of token ids (batch, length), got {got}: see the tokenizer")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise UsageError(
                f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, got "
                f"{tuple(attention_mask.shape)}"
            )
        unknown = input_ids[(input_ids < 0) | (input_ids >= self.config.vocab_size)]
        if len(unknown) > 0:
            raise UsageError(
                f"input_ids hold {int(unknown[0])}, but the model knows tokens 0 to {self.config.vocab_size - 1}: "
                "the tokenizer does not fit this model"
            )

    def _order(self, data: SentenceRows) -> Tensor:
        return torch.from_numpy(np.argsort([len(row) for row in data], kind="stable"))

    def _collate(self, data: SentenceRows, indices: Tensor) -> dict[str, Tensor]:
        rows = [torch.tensor(data[index]) for index in indices.tolist()]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id or 0)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        inputs = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        if data.embeddings is not None:
            inputs["sentence_embeddings"] = data.embeddings[indices].to(self.device)
        return inputs

    def _decode(self, latents: Tensor, **options: Any) -> Any:
        """Decodes latents into their most probable sentences, by beam search unless the options choose otherwise."""
        options = {"do_sample": False, **options}
        if not options["do_sample"] and not options.keys() & _OTHER_SEARCHES:
            options = {"num_beams": NUM_BEAMS, "no_repeat_ngram_size": NO_REPEATED_NGRAM, **options}
        if len(latents) <= _BEAM_BATCH or "num_beams" not in options or options.get("return_dict_in_generate"):
            return self.generate(latents=latents, **options)
        parts = [self.generate(latents=part, **options) for part in latents.split(_BEAM_BATCH)]
        length = max(part.shape[1] for part in parts)
        pad = self.config.pad_token_id or 0
        return torch.cat([nn.functional.pad(part, (0, length - part.shape[1]), value=pad) for part in parts])


def _token_ids(entry: Any) -> list[int]:
    """The ids of one sentence; raises a `UsageError` if it has none."""
    values = entry.tolist() if isinstance(entry, Tensor | np.ndarray) else entry
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise UsageError(f"sentences are strings or lists of token ids; got also {type(entry).__name__}")
    try:
        return [operator.index(value) for value in values]
    except TypeError as error:
        raise UsageError(
            f"token ids are integers, and a sentence is {str(values)[:60]}; give strings, or ids"
        ) from error


def _tokenized(entries: list[Any], tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    if tokenizer is None:
        raise UsageError("strings need the model's tokenizer: give tokenizer=..., or token ids in their place")
    sentences = list(each_sentence(entries))
    check_unicode(sentences)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None or eos is None:
        raise UsageError("the tokenizer needs a bos_token and an eos_token")
    tokens = tokenizer(sentences, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [[bos, *ids, eos] for ids in tokens["input_ids"]]


def pairwise_agreement(sequences: Tensor, padding: int) -> Tensor:
    """How similar the sequences of every row are, `(n,)`, between 0 and 1; see [`ReconstructionDraws`].

    Args:
        sequences: `(n, num_draws, length)` token ids.
        padding: The id that fills a sequence after its end.
    """
    first, second = torch.triu_indices(sequences.shape[1], sequences.shape[1], offset=1)
    a, b = sequences[:, first], sequences[:, second]  # (n, pairs, length)
    counted = (a != padding) | (b != padding)
    return ((a == b) & counted).sum(dim=-1).div(counted.sum(dim=-1).clamp(min=1)).mean(dim=-1)
