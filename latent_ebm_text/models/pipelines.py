"""Pipelines of transformers for what a model with a latent can do besides continuing a prompt.

```python
from transformers import pipeline
import latent_ebm_text.models.pipelines  # makes these tasks known

sample = pipeline("unconditional-text-generation", model="runs/quickstart/model")
sample(4, top_p=0.9, seed=1)  # [{"generated_text": "...", "energy": 9.5}, ...]
reconstruct = pipeline("text-reconstruction", model="runs/quickstart/model")
reconstruct("the bank recovers")  # {"generated_text": "..."}
score = pipeline("text-scoring", model="runs/quickstart/model")
score(["the bank recovers", "recovers bank the"], batch_size=8)  # [{"nll": 20.1, "nll_per_token": 5.0, ...}, ...]
```

Every call takes a `seed`. `pipeline("text-generation", ...)` continues prompts as for any causal language model. It
appends the decoded text directly to the prompt, so with a word-level tokenizer the prompt must end with a space.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.integrals import LogPartition
from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration
from latent_ebm_text.models.scoring import estimate_log_partition

_Parameters = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


class _TextPipeline(Pipeline):
    """A pipeline of a text model, which passes all arguments of a call on to the model."""

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_feature_extractor = False

    def _sanitize_parameters(self, **kwargs: Any) -> _Parameters:
        return {}, kwargs, {}

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.model.device).manual_seed(seed)


class UnconditionalTextGenerationPipeline(_TextPipeline):
    """`pipe(num_samples, seed=None, **generate_options)`: sentences from latents of the prior, with their energies."""

    def preprocess(self, num_samples: Any) -> dict[str, Any]:
        """The number of sentences, checked."""
        if not isinstance(num_samples, int):
            raise UsageError(f"this pipeline takes a number of sentences, got {num_samples!r}")
        return {"num_samples": num_samples}

    def _forward(self, inputs: dict[str, Any], seed: int | None = None, **kwargs: Any) -> dict[str, Tensor]:
        generator = None if seed is None else self._generator(seed)
        output = self.model.generate(**inputs, generator=generator, return_dict_in_generate=True, **kwargs)
        return {"sequences": output.sequences, "energies": output.energies}

    def postprocess(self, outputs: dict[str, Tensor]) -> list[dict[str, Any]]:
        """`generated_text` and `energy` (nats, up to log Z) of every sentence."""
        texts = self.tokenizer.batch_decode(outputs["sequences"], skip_special_tokens=True)
        energies = outputs["energies"].tolist()
        repeats = len(texts) // len(energies)  # the sequences of num_return_sequences share a latent
        return [{"generated_text": text, "energy": energies[index // repeats]} for index, text in enumerate(texts)]


class _SentencePipeline(_TextPipeline):
    """A pipeline that takes sentences, several at a time with `batch_size`."""

    def preprocess(self, sentence: Any) -> dict[str, Tensor]:
        """The token ids from the beginning to the end token, `(1, length)`."""
        if not isinstance(sentence, str):
            raise UsageError(f"this pipeline takes strings, got {type(sentence).__name__}")
        (ids,) = self.model._read([sentence], tokenizer=self.tokenizer)
        return dict(self.tokenizer.pad({"input_ids": [ids]}, return_tensors="pt"))


class TextReconstructionPipeline(_SentencePipeline):
    """`pipe(sentence, seed=0, **generate_options)`: decodes a posterior draw of the sentence, by default by beams."""

    def _forward(self, inputs: dict[str, Tensor], seed: int = 0, **kwargs: Any) -> dict[str, Tensor]:
        generator = self._generator(seed)
        return {"sequences": self.model.reconstruct(**inputs, tokenizer=self.tokenizer, generator=generator, **kwargs)}

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, str]:
        """The `generated_text`."""
        (text,) = self.tokenizer.batch_decode(outputs["sequences"], skip_special_tokens=True)
        return {"generated_text": text}


class TextScoringPipeline(_SentencePipeline):
    """`pipe(sentence, seed=0, **score_options)`: every score of a sentence in nats, higher for the more anomalous.

    See [`~latent_ebm_text.models.scoring.AnomalyScores`].
    """

    _log_partition: LogPartition | None = None

    def _forward(self, inputs: dict[str, Tensor], seed: int = 0, **kwargs: Any) -> dict[str, Tensor]:
        needs_partition = kwargs.get("marginal", "importance") != "none" and self.model.config.latent_dim > 0
        if needs_partition and self._log_partition is None:  # all sentences share it
            self._log_partition = estimate_log_partition(self.model, generator=self._generator(0))
        scores = self.model.score(
            **inputs,
            tokenizer=self.tokenizer,
            generator=self._generator(seed),
            log_partition=self._log_partition,
            **kwargs,
        )
        return {name: scores.get(name) for name in scores.names()}

    def postprocess(self, outputs: dict[str, Tensor]) -> dict[str, float]:
        """The scores by name."""
        return {name: float(value) for name, value in outputs.items()}


for _task, _class in (
    ("unconditional-text-generation", UnconditionalTextGenerationPipeline),
    ("text-reconstruction", TextReconstructionPipeline),
    ("text-scoring", TextScoringPipeline),
):
    PIPELINE_REGISTRY.register_pipeline(_task, pipeline_class=_class, pt_model=LatentEBMForTextGeneration, type="text")
