"""What a model does with data of any modality: latents of data, neighbours, arithmetic, and paths between latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.interpolation import STIFFNESS, PathKind, latent_path
from latent_ebm_text.latents.neighbours import LatentIndex, Metric, Neighbours
from latent_ebm_text.latents.rng import batch_generators
from latent_ebm_text.latents.samplers import Sampler
from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.models.sharing import share_out
from latent_ebm_text.networks.base import GaussianPosterior
from latent_ebm_text.networks.dropout import evaluation_mode

Result = TypeVar("Result")


class LatentInferenceModel(LatentEBMPreTrainedModel):
    """A model with methods on data, written once for both modalities.

    A modality says how its data is read, ordered into batches, collated and decoded (`_read`, `_order`, `_collate`,
    `_decode`). `data` in the methods below is what it takes: `input_ids` with `attention_mask` and `tokenizer`, or
    `pixel_values`.
    """

    def _read(self, *data: Any, **named_data: Any) -> Any:
        """Checks data; returns a sequence with one entry per example, which it also accepts as data."""
        raise NotImplementedError

    def _order(self, data: Any) -> Tensor:
        """The order in which examples are put into batches, `(n,)` indices."""
        return torch.arange(len(data))

    def _collate(self, data: Any, indices: Tensor) -> dict[str, Tensor]:
        """The decoder's inputs for the examples at `indices` of what `_read` returned."""
        raise NotImplementedError

    def _decode(self, latents: Tensor, **options: Any) -> Any:
        """`generate` from these latents, without further randomness unless `options` ask for it."""
        return self.generate(latents=latents, **options)

    def map_batches(
        self,
        work: Callable[[Tensor, dict[str, Tensor], torch.Generator | None], Result],
        data: Any,
        batch_size: int,
        generators: Sequence[torch.Generator | None] = (),
        *,
        description: str = "",
        progress: bool = False,
        accelerator: Accelerator | None = None,
    ) -> list[tuple[Tensor, Result]]:
        """Applies `work` to batches of data that were read; returns the indices of each batch and its result.

        Args:
            work: A function of the indices of a batch, the decoder's inputs, and a random number generator.
            data: What `_read` returned.
            batch_size: Examples per batch.
            generators: One for each batch, see [`~latent_ebm_text.latents.rng.batch_generators`]; none for work that
                draws nothing.
            description: The label of the progress bar.
            progress: Whether to show a progress bar, of the examples of all processes.
            accelerator: The processes that share the batches, see [`~latent_ebm_text.models.sharing.share_out`].

        Raises:
            UsageError: If `batch_size` is not positive.
        """
        batches = self._batches(data, batch_size)

        def work_on(number: int) -> Result:
            inputs = self._collate(data, batches[number])
            return work(batches[number], inputs, generators[number] if generators else None)

        def shown(numbers: range) -> Iterator[int]:
            with tqdm(total=len(data), desc=description, unit="example", disable=not progress) as bar:
                for number in numbers:
                    yield number
                    bar.update(len(batches[number]))

        return list(zip(batches, share_out(work_on, len(batches), accelerator, progress=shown), strict=True))

    def _batches(self, data: Any, batch_size: int) -> tuple[Tensor, ...]:
        """The indices of the examples of every batch."""
        if batch_size < 1:
            raise UsageError(f"batch_size must be a positive integer, got {batch_size}")
        return self._order(data).split(batch_size)

    def log_prob(self, *data: Any, latents: Tensor, **named_data: Any) -> Tensor:
        """`log p(x | z)` in nats of every example, `(n,)`; differentiable in the weights.

        Args:
            *data: The data.
            latents: `(n, latent_dim)`.
            **named_data: The data.

        Raises:
            UsageError: If the data cannot be read or do not fit the model, or the latents do not fit.
        """
        read = self._read(*data, **named_data)
        latents = self.check_latents(latents, len(read))
        return self.decoder.log_prob(self._collate(read, torch.arange(len(read))), latents)

    def encode(
        self,
        *data: Any,
        initial_latents: Tensor | None = None,
        sampler: Sampler | None = None,
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
        **named_data: Any,
    ) -> Tensor:
        """One posterior draw of the latent of every example, `(n, latent_dim)`, all in one batch.

        With `num_steps` it is the mean of a Gaussian that as many steps of stochastic variational inference fit to
        the posterior, see `fit_posterior`: the more steps, the better. With 0 it is the encoder's mean, or zero.

        Args:
            *data: The data.
            initial_latents: Where the chains start, `(n, latent_dim)`; by default a draw from the encoder if the model
                has one, otherwise from N(0, I).
            sampler: A sampler in place of the model's own.
            num_steps: Steps of a fit, in place of a chain.
            generator: Random number generator of the noise.
            **named_data: The data.

        Raises:
            UsageError: If the data cannot be read or do not fit the model, initial latents do not fit, or a fit is to
                start from initial latents or use a sampler.
            DivergenceError: If a chain or a fit is not finite.
        """
        if num_steps is not None and (initial_latents is not None or sampler is not None):
            raise UsageError(
                "num_steps asks for the mean of a fit, without a chain: leave initial_latents and sampler out"
            )
        read = self._read(*data, **named_data)
        inputs = self._collate(read, torch.arange(len(read)))
        if num_steps is not None:
            return self.fit_posterior(inputs, num_steps=num_steps, generator=generator).mean
        return self.sample_posterior(
            inputs, initial_latents=initial_latents, sampler=sampler, generator=generator
        ).latents

    @torch.no_grad()
    def posterior_draws(
        self,
        *data: Any,
        num_draws: int = 8,
        batch_size: int = 128,
        sampler: Sampler | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        accelerator: Accelerator | None = None,
        **named_data: Any,
    ) -> Tensor:
        """Latents of data from independent posterior chains, `(num_draws, n, latent_dim)`, float32 on the CPU.

        Args:
            *data: The data.
            num_draws: Chains per example.
            batch_size: Examples per batch.
            sampler: A sampler in place of the model's own.
            generator: Random number generator of the chains.
            progress: Whether to show a progress bar.
            accelerator: The processes that share the batches, all of which call this; this one alone by default.
            **named_data: The data.

        Raises:
            UsageError: If the data cannot be read or do not fit the model, or a number is not positive.
        """
        if num_draws < 1:
            raise UsageError(f"num_draws must be a positive integer, got {num_draws}")
        read = self._read(*data, **named_data)
        generators = batch_generators(generator, len(self._batches(read, batch_size)), self.device)

        def draw(indices: Tensor, inputs: dict[str, Tensor], generator: torch.Generator | None) -> Tensor:
            chains = (self.sample_posterior(inputs, sampler=sampler, generator=generator) for _ in range(num_draws))
            return torch.stack([chain.latents.float() for chain in chains])

        draws = torch.empty(num_draws, len(read), self.config.latent_dim)
        options: dict[str, Any] = {"progress": progress, "accelerator": accelerator}
        with evaluation_mode(self):
            found = self.map_batches(draw, read, batch_size, generators, description="posterior draws", **options)
        for indices, latents in found:
            draws[:, indices] = latents.cpu()
        return draws

    @torch.no_grad()
    def encoder_proposals(
        self,
        *data: Any,
        batch_size: int = 128,
        progress: bool = False,
        accelerator: Accelerator | None = None,
        **named_data: Any,
    ) -> GaussianPosterior:
        """The encoder's own posteriors q(z | x), mean and log standard deviation `(n, latent_dim)`, on the CPU.

        Args:
            *data: The data.
            batch_size: Examples per batch.
            progress: Whether to show a progress bar.
            accelerator: The processes that share the batches, all of which call this; this one alone by default.
            **named_data: The data.

        Raises:
            UsageError: If the model has no encoder, the data cannot be read, or a number is not positive.
        """
        if self.encoder is None:
            raise UsageError("this model has no encoder, and infers latents by chains: use posterior_draws")
        read = self._read(*data, **named_data)
        encoder = self.encoder

        def propose(indices: Tensor, inputs: dict[str, Tensor], _: torch.Generator | None) -> Tensor:
            proposal = encoder.propose(inputs)
            return torch.stack([proposal.mean.float(), proposal.log_std.float()])

        parameters = torch.empty(2, len(read), self.config.latent_dim)
        options: dict[str, Any] = {"progress": progress, "accelerator": accelerator}
        for indices, found in self.map_batches(propose, read, batch_size, description="encoding", **options):
            parameters[:, indices] = found.cpu()
        return GaussianPosterior(*parameters)

    def build_index(self, *data: Any, source: str = "", num_draws: int | None = None, **options: Any) -> LatentIndex:
        """Posterior means and standard deviations of a corpus, in which `neighbours` searches.

        They are those of the encoder, in seconds for ten thousand sentences, or estimated from chains.

        Args:
            *data: The data.
            source: What the data are, such as the corpus's fingerprint; it is checked when the index is loaded.
            num_draws: Chains per example, at least 2. By default none if the model has an encoder, and 8 otherwise.
            **options: Named data, and options of `encoder_proposals` or `posterior_draws`.

        Raises:
            UsageError: As `posterior_draws`, or with fewer than two draws.
        """
        mean, std = self._posterior_moments(data, num_draws, options)
        return LatentIndex(mean, std, source)

    def _posterior_moments(
        self, data: tuple[Any, ...], num_draws: int | None, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Means and standard deviations, `(n, latent_dim)` each: the encoder's, or of `num_draws` chains."""
        if num_draws is None and self.encoder is not None and options.get("sampler") is None:
            # An encoder draws nothing: a generator and a sampler are the business of chains.
            options = {name: value for name, value in options.items() if name not in ("generator", "sampler")}
            proposal = self.encoder_proposals(*data, **options)
            return proposal.mean, proposal.log_std.exp()
        num_draws = 8 if num_draws is None else num_draws
        if num_draws < 2:
            raise UsageError(f"a standard deviation needs 2 draws or more, got num_draws={num_draws}")
        draws = self.posterior_draws(*data, num_draws=num_draws, **options)
        return draws.mean(dim=0), draws.std(dim=0)

    def neighbours(
        self, index: LatentIndex, *data: Any, k: int = 5, metric: Metric = "euclidean", **options: Any
    ) -> Neighbours:
        """For every example, the `k` entries of an index with the nearest posteriors.

        Args:
            index: Made by `build_index`.
            *data: The data.
            k: Number of neighbours.
            metric: `"euclidean"` between posterior means, or `"divergence"`, see [`LatentIndex.query`].
            **options: Named data and options of `build_index`.

        Raises:
            UsageError: As `build_index` and [`LatentIndex.query`].
        """
        queries = self.build_index(*data, **options)
        return index.query(queries.mean, queries.std, k=k, metric=metric)

    def combine(
        self, data: Any, coefficients: Sequence[float], *, num_draws: int | None = None, **options: Any
    ) -> Tensor:
        """Arithmetic on latents: the sum of `coefficient * posterior mean`, `(1, latent_dim)`, ready to be decoded.

        `model.generate(latents=model.combine([a, b, c], [1, -1, 1], tokenizer=tokenizer), do_sample=False)` decodes
        `a - b + c`.

        Args:
            data: The data.
            coefficients: One per example.
            num_draws: Chains per example whose mean is taken, at least 2. By default none if the model has an encoder,
                whose means are taken, and 8 otherwise.
            **options: Named data, and options of `encoder_proposals` or `posterior_draws`.

        Raises:
            UsageError: As `build_index`, or if the numbers of examples and coefficients differ.
        """
        coefficients = list(coefficients)  # of a Series, too, whose index may be anything
        means, _ = self._posterior_moments((data,), num_draws, options)
        if len(coefficients) != len(means):
            raise UsageError(f"{len(means)} examples need as many coefficients, got {len(coefficients)}")
        combined = (torch.tensor(coefficients, dtype=means.dtype)[:, None] * means).sum(dim=0, keepdim=True)
        return self.check_latents(combined)

    def interpolate(
        self,
        start: Tensor,
        end: Tensor,
        num_points: int = 8,
        *,
        path: PathKind = "linear",
        stiffness: float = STIFFNESS,
        **options: Any,
    ) -> Any:
        """Decodes points on a path between two latents, both ends included.

        Args:
            start: The first latent, `(latent_dim,)` or `(1, latent_dim)`.
            end: The last latent, of the same shape.
            num_points: Number of points, at least 2.
            path: `"linear"`; `"spherical"`, which keeps the norms of typical draws; or `"low_energy"`, the path of
                least action under the prior, see [`~latent_ebm_text.latents.low_energy_path`].
            stiffness: Stiffness of a path of low energy: with small values it makes detours.
            **options: Options of `generate`. Text is decoded by beam search by default.

        Returns:
            What `generate` returns. A text model with `return_dict_in_generate=True` also gives the `latents` and
            `energies` (in nats) along the path.

        Raises:
            UsageError: If latents, path or number of points cannot be right.
        """
        if not (isinstance(start, Tensor) and isinstance(end, Tensor)):
            given = " and ".join(type(z).__name__ for z in (start, end))
            raise UsageError(f"a path leads from one latent to another, both tensors, got {given}: see encode()")
        start, end = (self.check_latents(z.reshape(1, -1), 1)[0] for z in (start, end))
        with self._full_precision():
            latents = latent_path(path, start, end, num_points, self.prior, stiffness=stiffness)
        return self._decode(latents, **options)
