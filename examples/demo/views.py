"""What the demo computes: tables and images from typed sentences and the values of sliders, without a browser."""

from __future__ import annotations

import functools
import html
from dataclasses import replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMTextDetector
from latent_ebm_text.anomaly.text_detector import WordScore
from latent_ebm_text.anomaly.text_scores import FUSED_SCORES
from latent_ebm_text.data import grammar_dataset
from latent_ebm_text.data.lines import split_sentences
from latent_ebm_text.errors import UsageError
from latent_ebm_text.hub.folders import IMAGE, find_model, model_kind
from latent_ebm_text.latents.interpolation import PathKind
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.latents.samplers import Sampler, watch_chain
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.models.scoring import AnomalyScores, estimate_log_partition

#: The longest sentence that may be typed: posterior chains on longer ones are slow.
MAX_WORDS, MAX_CHARACTERS = 200, 2000
#: The most sentences on one map, which are inferred while the others who use the demo wait.
MAX_LINES = 100
#: Number of the model's own samples that a typed sentence is compared with.
NUM_COMPARED = 50
#: The most ordinary texts that a detector is fitted on, and the seconds that their embedding may take.
MAX_ORDINARY, EMBEDDING_SECONDS = 1000, 20.0
#: Nats from which on a word is coloured, and those at which its colour is full.
COLOURED_FROM, FULL_COLOUR = 2.5, 15.0


def _with_steps(sampler: Sampler, num_steps: int) -> Sampler:
    return replace(sampler, num_steps=int(num_steps))  # type: ignore[type-var]  # samplers are dataclasses


class TextViews:
    """What the demo computes with a text model.

    Args:
        path: Folder or Hub id of the model.

    Raises:
        LatentEBMError: If there is no such model, it cannot be read, or it has no latent.
    """

    def __init__(self, path: str) -> None:
        self.model, self.tokenizer = load_text_model(path)
        if self.model.config.latent_dim == 0:
            raise UsageError(f"{path!r} is a language model without a latent: there is nothing to show")

    @property
    def num_steps(self) -> int:
        """Number of steps of the prior's chain in training."""
        return self.model.prior_sampler.num_steps

    def sample(self, num_samples: int, num_steps: int, temperature: float, top_p: float, seed: int) -> pd.DataFrame:
        """Sentences sampled from the model with the energies of their latents, the lowest energy first."""
        generator = self._generator(seed, "samples")
        sampler = _with_steps(self.model.prior_sampler, num_steps)
        latents = self.model.sample_prior(int(num_samples), sampler=sampler, generator=generator).latents
        ids = self.model.generate(latents=latents, temperature=temperature, top_p=top_p, generator=generator)
        table = pd.DataFrame({"energy": self._energies(latents), "sentence": self._text(ids)})
        return table.sort_values("energy", ignore_index=True)

    def chain(self, sentence: str, num_steps: int, seed: int) -> pd.DataFrame:
        """A chain that samples the prior or, given a sentence, its posterior; decoded greedily at every step."""
        generator = self._generator(seed, "chain")
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
        """Sentences on a path between posterior draws of two sentences, decoded by beam search."""
        generator = self._generator(seed, "path")
        ends = [
            self.model.encode(**self._inputs(sentence), tokenizer=self.tokenizer, generator=generator)[0]
            for sentence in (start, end)
        ]
        output = self.model.interpolate(*ends, num_points=int(num_points), path=kind, return_dict_in_generate=True)
        positions = torch.linspace(0, 1, int(num_points)).tolist()
        return pd.DataFrame(
            {"position": positions, "energy": output.energies.tolist(), "sentence": self._text(output.sequences)}
        )

    def map(self, num_samples: int, sentences: str, seed: int) -> pd.DataFrame:
        """Prior draws and typed sentences (one per line) on the first two principal components of the prior draws."""
        typed = split_sentences(sentences)
        if len(typed) > MAX_LINES:
            raise UsageError(
                f"a map may have at most {MAX_LINES} sentences here, these are {len(typed)}: leave some out"
            )
        for sentence in typed:
            self._inputs(sentence)  # raises an error that names what is wrong with the sentence
        generator = self._generator(seed, "map")
        drawn = self.model.sample_prior(int(num_samples), generator=generator).latents
        decoded = self._text(self.model.generate(latents=drawn, generator=generator))
        latents = drawn
        if typed:
            means = self.model.posterior_draws(typed, tokenizer=self.tokenizer, generator=generator).mean(dim=0)
            latents = torch.cat([drawn, means.to(drawn)])
        centre = drawn.mean(dim=0)
        directions = torch.linalg.svd(drawn - centre, full_matrices=False).Vh[:2]  # (2, latent_dim)
        x, y = ((latents - centre) @ directions.T).T.tolist()
        kinds = ["prior draw"] * len(drawn) + ["your sentence"] * len(typed)
        energies = [round(energy, 2) for energy in self._energies(latents)]
        return pd.DataFrame({"x": x, "y": y, "kind": kinds, "energy": energies, "sentence": decoded + typed})

    @property
    def values(self) -> list[str]:
        """What can be asked for, `attribute=value`, of the attributes of the model that are classes."""
        heads = self.model.attributes.values()
        return [f"{head.attribute}={value}" for head in heads for value in getattr(head, "classes", ())]

    def edit(self, sentences: str, wanted: str, strength: float, content: float, seed: int) -> pd.DataFrame:
        """Typed sentences (one per line), and their best edits towards a value of an attribute."""
        typed = split_sentences(sentences)
        if len(typed) > MAX_LINES:
            raise UsageError(f"at most {MAX_LINES} sentences can be edited here, these are {len(typed)}")
        for sentence in typed:
            self._inputs(sentence)  # raises an error that names what is wrong with the sentence
        name, _, value = wanted.partition("=")
        edits = self.model.edit(
            typed,
            attributes={name: value},
            strength=strength,
            content=content,
            tokenizer=self.tokenizer,
            generator=self._generator(seed, "edit"),
        )
        return pd.DataFrame({"sentence": typed, "edit": self._text(edits.best)})

    def anomaly(self, sentence: str, seed: int) -> tuple[str, pd.DataFrame]:
        """The verdict on a sentence, and its scores beside the medians over the model's own samples."""
        self._inputs(sentence)
        own = self._own_scores
        scores = self.model.score(
            [sentence],
            tokenizer=self.tokenizer,
            log_partition=own.log_partition,
            generator=self._generator(seed, "score"),
        )
        shown = {name: scores.get(name).item() for name in scores.names()}
        exceeded = int((own.get("nll_per_token") < shown["nll_per_token"]).sum())
        verdict = (
            f"-log p(x) = {shown['nll']:.2f} ± {scores.nll_standard_error.item():.2f} nats, that is "
            f"{shown['nll_per_token']:.2f} nats per token: more surprising than {exceeded} of {len(own)} sentences "
            "sampled from the model."
        )
        table = pd.DataFrame({"score": shown.keys(), "this sentence": shown.values()})
        table["median of samples"] = [own.get(name).median().item() for name in shown]
        return verdict, table

    @functools.cached_property
    def _own_scores(self) -> AnomalyScores:
        generator = self._generator(0, "own samples")
        ids = self.model.generate(num_samples=NUM_COMPARED, generator=generator)
        sentences = [sentence or "." for sentence in self._text(ids)]
        # The long chains only serve an upper bound of log Z, which the demo does not show.
        log_partition = estimate_log_partition(self.model, num_long_run_steps=10, generator=generator)
        return self.model.score(
            sentences, tokenizer=self.tokenizer, num_draws=1, log_partition=log_partition, generator=generator
        )

    def _inputs(self, sentence: str) -> dict[str, Tensor]:
        if not sentence.strip():
            raise UsageError("type a sentence first")
        if (length := len(sentence.split())) > MAX_WORDS:
            raise UsageError(f"a sentence may have at most {MAX_WORDS} words here, this one has {length}: shorten it")
        if (length := len(sentence)) > MAX_CHARACTERS:  # one long word may be many tokens
            raise UsageError(f"a sentence may have at most {MAX_CHARACTERS} characters here, this one has {length}")
        batch = self.tokenizer([sentence], return_tensors="pt")
        return {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}

    def _generator(self, seed: int, purpose: str) -> torch.Generator:
        return derived_generator(int(seed), f"demo: {purpose}", device=self.model.device)

    @torch.no_grad()
    def _energies(self, latents: Tensor) -> list[float]:
        energies: list[float] = self.model.prior.energy(latents).tolist()
        return energies

    def _text(self, ids: Tensor) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts


class Alarm(NamedTuple):
    """A text, and how unlike ordinary texts it is.

    Attributes:
        text: The text.
        p_value: An ordinary text has one of at most `t` with probability at most `t`.
        raised_by: The score that is the least probable among ordinary texts; empty where there is but one score.
        words: The words of the text, each with its surprise in nats.
    """

    text: str
    p_value: float
    raised_by: str
    words: list[WordScore]

    def coloured(self) -> str:
        """The text as HTML: the more surprising a word is, the stronger its colour; its nats are shown on hovering."""
        parts, end = [], 0
        for word in self.words:
            parts.append(html.escape(self.text[end : word.start]))
            end, shown = word.end, html.escape(self.text[word.start : word.end])
            if word.surprise >= COLOURED_FROM:
                strength = 0.75 * min(1.0, word.surprise / FULL_COLOUR)
                colour = f"background: rgba(207, 34, 46, {strength:.2f}); color: inherit"
                shown = f'<mark style="{colour}" title="{word.surprise:.1f} nats">{shown}</mark>'
            parts.append(shown)
        return "".join([*parts, html.escape(self.text[end:])])


class DetectorViews:
    """What the demo computes with a detector of anomalous texts: one that is loaded, or fitted on typed texts.

    Args:
        path: Folder of a saved detector.

    Raises:
        LatentEBMError: If there is no detector in the folder, or it needs a function that embeds texts.
    """

    def __init__(self, path: str | None = None) -> None:
        self.loaded = None if path is None else LatentEBMTextDetector.from_pretrained(path)
        self._fitted = functools.lru_cache(maxsize=4)(_fit_detector)

    def example(self) -> tuple[str, str]:
        """Ordinary texts, none for a loaded detector, and new ones of which two are anomalous; each one per line."""
        texts = list(dict.fromkeys(grammar_dataset(300)["train"]["text"]))
        reversed_words = " ".join(reversed(texts[204].split()))
        new = [*texts[200:204], "WIN 500 EURO now!!! call 0800-1234", reversed_words]
        return "" if self.loaded is not None else "\n".join(texts[:200]), "\n".join(new)

    def alarms(self, ordinary: str, new: str) -> tuple[str, list[Alarm]]:
        """A summary of new texts (one per line), and each of them beside ordinary ones, the most anomalous first."""
        typed, known = split_sentences(new), split_sentences(ordinary)
        for lines, most in ((typed, MAX_LINES), (known, MAX_ORDINARY)):
            if len(lines) > most:
                raise UsageError(f"at most {most} texts can be read here, these are {len(lines)}: leave some out")
            if (longest := max(map(len, lines), default=0)) > MAX_CHARACTERS:
                raise UsageError(f"a text may have at most {MAX_CHARACTERS} characters here, one has {longest}")
        if not typed:
            raise UsageError("type new texts first, one per line")
        detector = self._fitted(tuple(known)) if known else self.loaded
        if detector is None:
            raise UsageError("type ordinary texts first, one per line, or start the demo with --detector")
        found = [
            Alarm(text, p_value, min(why.p_values, key=lambda name: why.p_values[name], default=""), why.words)
            for text, p_value, why in zip(
                typed, detector.p_values(typed).tolist(), detector.explain(typed), strict=True
            )
        ]
        held_out = len(detector.calibration_scores_)
        summary = (
            f"{sum(alarm.p_value <= 0.05 for alarm in found)} of {len(found)} texts have a p-value of at most 0.05. "
            f"They are compared with {held_out} ordinary texts that nothing was fitted on, so that no p-value is "
            f"below {1 / (held_out + 1):.3f}."
        )
        return summary, sorted(found, key=lambda alarm: alarm.p_value)


def _fit_detector(ordinary: tuple[str, ...]) -> LatentEBMTextDetector:
    # The training of the embeddings' density would be most of the wait, and few texts gain nothing by it.
    scores = [name for name in FUSED_SCORES if name != "embedding density"]
    detector = LatentEBMTextDetector(contamination=0.01, fused_scores=scores, time_budget=EMBEDDING_SECONDS)
    return detector.fit(ordinary)


class ImageViews:
    """What the demo computes with an image model, on the CPU, which is fast enough for it.

    Args:
        path: Folder or Hub id of the model.

    Raises:
        LatentEBMError: If there is no such model, or it is not an image model.
    """

    def __init__(self, path: str) -> None:
        folder = find_model(path)
        if model_kind(folder) != IMAGE:
            raise UsageError(f"{path!r} is not an image model")
        self.model = LatentEBMForImageGeneration.from_pretrained(folder).eval()

    @property
    def num_steps(self) -> int:
        """Number of steps of the prior's chain in training."""
        return self.model.prior_sampler.num_steps

    def sample(self, num_samples: int, num_steps: int, seed: int) -> list[Any]:
        """Images sampled from the model."""
        sampler = _with_steps(self.model.prior_sampler, num_steps)
        images = self.model.generate(
            num_samples=int(num_samples),
            sampler=sampler,
            generator=derived_generator(int(seed), "demo: images"),
            output_type="pil",
        )
        return [_enlarged(image) for image in images]

    def chain(self, num_steps: int, seed: int, num_images: int = 12) -> tuple[list[tuple[Any, str]], pd.DataFrame]:
        """Images along a chain that samples the prior, captioned with their steps, and the energy of every step."""
        generator = derived_generator(int(seed), "demo: image chain")
        sampler = _with_steps(self.model.prior_sampler, num_steps)
        start = self.model.sample_reference(1, generator)
        positions, trace = watch_chain(sampler, start, self.model.prior, generator=generator)
        energies = trace.energies[:, 0].tolist()
        shown = sorted(set(torch.linspace(0, len(energies) - 1, num_images).round().int().tolist()))
        images = self.model.generate(latents=positions[shown, 0], output_type="pil")
        captioned = [(_enlarged(image), f"step {step}") for image, step in zip(images, shown, strict=True)]
        return captioned, pd.DataFrame({"step": range(len(energies)), "energy": energies})


def _enlarged(image: Any, size: int = 128) -> Any:
    """The image enlarged by a whole factor to about `size` pixels in width, so that small images keep sharp edges."""
    factor = max(1, size // image.width)
    return image.resize((image.width * factor, image.height * factor), resample=0)
