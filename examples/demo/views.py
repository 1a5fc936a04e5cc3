"""What the demo shows: from typed words and sliders to tables and pictures. Knows nothing of browsers."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from latent_ebm_text import LatentEBMForImageGeneration
from latent_ebm_text.errors import UsageError
from latent_ebm_text.hub.loading import IMAGE, find_model, load_text_model, model_kind
from latent_ebm_text.latents.interpolation import PathKind
from latent_ebm_text.samplers import Sampler, watch_chain
from latent_ebm_text.streams import stream

#: Words of a typed sentence at most: chains on longer ones take long.
MAX_WORDS = 200
#: Sentences of the model's own that a typed one is compared with.
NUM_COMPARED = 50


def _with_steps(sampler: Sampler, num_steps: int) -> Sampler:
    return replace(sampler, num_steps=int(num_steps))  # type: ignore[type-var]  # samplers are dataclasses


class TextViews:
    """A text model and its tokenizer, by Hub id or folder.

    Raises:
        LatentEBMError: If there is no such model, it cannot be read, or it has no latent.
    """

    def __init__(self, path: str) -> None:
        self.model, self.tokenizer = load_text_model(path)
        if self.model.config.latent_dim == 0:
            raise UsageError(f"{path!r} is a language model without a latent: there is nothing to show")

    @property
    def num_steps(self) -> int:
        """Steps of the prior's chain in training."""
        return self.model.prior_sampler.num_steps

    def sample(self, num_samples: int, num_steps: int, temperature: float, top_p: float, seed: int) -> pd.DataFrame:
        """Sentences from the prior with the energies of their latents, the most probable latent first."""
        generator = self._stream(seed, "samples")
        sampler = _with_steps(self.model.prior_sampler, num_steps)
        latents = self.model.sample_prior(int(num_samples), sampler=sampler, generator=generator).latents
        ids = self.model.generate(latents=latents, temperature=temperature, top_p=top_p, generator=generator)
        table = pd.DataFrame({"energy": self._energies(latents), "sentence": self._text(ids)})
        return table.sort_values("energy", ignore_index=True)

    def chain(self, sentence: str, num_steps: int, seed: int) -> pd.DataFrame:
        """One chain of the prior or, given a sentence, of its posterior, decoded greedily at every step."""
        generator = self._stream(seed, "chain")
        start = self.model.sample_reference(1, generator)
        if sentence.strip():
            sampler, density = self.model.posterior_sampler, self.model.posterior(self._inputs(sentence))
        else:
            sampler, density = self.model.prior_sampler, self.model.prior
        positions, trace = watch_chain(_with_steps(sampler, num_steps), start, density, generator=generator)
        ids = self.model.generate(latents=positions[:, 0], do_sample=False)
        energies = trace.energies[:, 0].tolist()
        return pd.DataFrame({"step": range(len(energies)), "energy": energies, "sentence": self._text(ids)})

    def path(self, start: str, end: str, num_points: int, kind: PathKind, seed: int) -> pd.DataFrame:
        """Sentences on a path between posterior draws of two sentences."""
        generator = self._stream(seed, "path")
        ends = [self.model.encode(**self._inputs(sentence), generator=generator)[0] for sentence in (start, end)]
        output = self.model.interpolate(*ends, num_points=int(num_points), path=kind, return_dict_in_generate=True)
        positions = torch.linspace(0, 1, int(num_points)).tolist()
        return pd.DataFrame(
            {"position": positions, "energy": output.energies.tolist(), "sentence": self._text(output.sequences)}
        )

    def map(self, num_samples: int, sentences: str, seed: int) -> pd.DataFrame:
        """Prior draws and typed sentences (one a line) on the two directions that prior draws vary most in."""
        generator = self._stream(seed, "map")
        drawn = self.model.sample_prior(int(num_samples), generator=generator).latents
        spoken = self._text(self.model.generate(latents=drawn, generator=generator))
        typed = [line.strip() for line in sentences.splitlines() if line.strip()]
        for sentence in typed:
            self._inputs(sentence)  # says what is wrong with it
        latents = drawn
        if typed:
            means = self.model.posterior_draws(typed, tokenizer=self.tokenizer, seed=int(seed)).mean(dim=0)
            latents = torch.cat([drawn, means.to(drawn)])
        centre = drawn.mean(dim=0)
        directions = torch.linalg.svd(drawn - centre, full_matrices=False).Vh[:2]  # (2, latent_dim)
        x, y = ((latents - centre) @ directions.T).T.tolist()
        kinds = ["prior draw"] * len(drawn) + ["typed"] * len(typed)
        energies = [round(energy, 2) for energy in self._energies(latents)]
        return pd.DataFrame({"x": x, "y": y, "kind": kinds, "energy": energies, "sentence": spoken + typed})

    def anomaly(self, sentence: str, seed: int) -> tuple[str, pd.DataFrame]:
        """A verdict in words, and the scores of the sentence beside the median of the model's own sentences."""
        self._inputs(sentence)
        own = self._own_scores(int(seed))
        scores = self.model.score([sentence], tokenizer=self.tokenizer, seed=int(seed))
        shown = {name: float(scores.get(name)[0]) for name in scores.names()}
        beaten = sum(score < shown["nll_per_token"] for score in own["nll_per_token"])
        error = float(scores.nll_standard_error[0])
        words = (
            f"-log p(x) = {shown['nll']:.2f} ± {error:.2f} nats, {shown['nll_per_token']:.2f} per token: more "
            f"surprising than {beaten} of {len(own)} sentences that the model wrote itself."
        )
        table = pd.DataFrame({"score": shown.keys(), "this sentence": shown.values()})
        table["median of the model's own"] = [own[name].median() for name in shown]
        return words, table.round(2)

    @functools.lru_cache(maxsize=8)  # noqa: B019  # the views live as long as the demo
    def _own_scores(self, seed: int) -> pd.DataFrame:
        ids = self.model.generate(num_samples=NUM_COMPARED, generator=self._stream(seed, "own sentences"))
        sentences = [sentence or "." for sentence in self._text(ids)]
        scores = self.model.score(sentences, tokenizer=self.tokenizer, seed=seed)
        return pd.DataFrame({name: scores.get(name).tolist() for name in scores.names()})

    def _inputs(self, sentence: str) -> dict[str, Tensor]:
        if not sentence.strip():
            raise UsageError("type a sentence first")
        if len(sentence.split()) > MAX_WORDS:
            raise UsageError(f"a sentence has at most {MAX_WORDS} words here, this one has {len(sentence.split())}")
        batch = self.tokenizer([sentence], return_tensors="pt")
        return {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def _stream(self, seed: int, purpose: str) -> torch.Generator:
        return stream(int(seed), f"demo: {purpose}", device=self.model.device)

    @torch.no_grad()
    def _energies(self, latents: Tensor) -> list[float]:
        energies: list[float] = self.model.prior.energy(latents).tolist()
        return energies

    def _text(self, ids: Tensor) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts


class ImageViews:
    """An image model, by Hub id or folder; on the processor, which is enough for it.

    Raises:
        LatentEBMError: If there is no such model, or it is none of images.
    """

    def __init__(self, path: str) -> None:
        folder = find_model(path)
        if model_kind(folder) != IMAGE:
            raise UsageError(f"{path!r} is no model of images")
        self.model = LatentEBMForImageGeneration.from_pretrained(folder).eval()

    @property
    def num_steps(self) -> int:
        """Steps of the prior's chain in training."""
        return self.model.prior_sampler.num_steps

    def sample(self, num_samples: int, num_steps: int, seed: int) -> list[Any]:
        """Images from the prior."""
        sampler = _with_steps(self.model.prior_sampler, num_steps)
        images = self.model.generate(
            num_samples=int(num_samples),
            sampler=sampler,
            generator=stream(int(seed), "demo: images"),
            output_type="pil",
        )
        return [_enlarged(image) for image in images]

    def chain(self, num_steps: int, seed: int, num_pictures: int = 12) -> tuple[list[tuple[Any, str]], pd.DataFrame]:
        """What one chain of the prior shows on its way: pictures with their step and energy, and all its energies."""
        generator = stream(int(seed), "demo: image chain")
        sampler = _with_steps(self.model.prior_sampler, num_steps)
        start = self.model.sample_reference(1, generator)
        positions, trace = watch_chain(sampler, start, self.model.prior, generator=generator)
        energies = trace.energies[:, 0].tolist()
        shown = sorted(set(torch.linspace(0, len(energies) - 1, num_pictures).round().int().tolist()))
        images = self.model.generate(latents=positions[shown, 0], output_type="pil")
        captions = [f"step {step}, {energies[step]:.1f} nats" for step in shown]
        pictures = [_enlarged(image) for image in images]
        return list(zip(pictures, captions, strict=True)), pd.DataFrame(
            {"step": range(len(energies)), "energy": energies}
        )


def _enlarged(image: Any, size: int = 128) -> Any:
    """At least so many pixels wide, in whole multiples, so that small images keep their edges."""
    factor = max(1, size // image.width)
    return image.resize((image.width * factor, image.height * factor), resample=0)
