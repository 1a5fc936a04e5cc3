"""Everything that processes share out, measured on tiny models by one of several processes."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMImageConfig, LatentEBMTextDetector
from latent_ebm_text.anomaly.images import anomaly_scores
from latent_ebm_text.data import TextCollator
from latent_ebm_text.data.images import ImageCollator
from latent_ebm_text.evaluation import text_metrics
from latent_ebm_text.evaluation.image_features import collect_features
from latent_ebm_text.evaluation.images import evaluate_images, generate_images
from latent_ebm_text.evaluation.text import generate_texts
from latent_ebm_text.evaluation.usefulness import interpolation_metrics, reconstruction_accuracy
from latent_ebm_text.models.scoring import estimate_log_partition
from latent_ebm_text.models.sharing import all_processes
from tests.helpers import seeded, tiny_model, tiny_tokenizer

CHAIN = {"name": "langevin", "num_steps": 3, "step_size": 0.3}


def measure(accelerator: Accelerator | None) -> dict[str, Any]:
    """The results, by what they are of."""
    shared: dict[str, Any] = {"accelerator": accelerator}
    found: dict[str, Any] = {}
    model, tokenizer = tiny_model(), tiny_tokenizer()
    words = np.random.default_rng(0)
    rows = [[1, *words.integers(4, 60, size=words.integers(1, 9)).tolist(), 2] for _ in range(23)]
    text = Dataset.from_dict({"input_ids": rows, "length": [len(row) - 1 for row in rows]})
    collate, batched = TextCollator(0), {"batch_size": 5, "seed": 3}
    found["likelihoods"] = text_metrics.evaluate_likelihoods(model, text, collate, **batched, **shared)
    found["marginal"], scores, _ = text_metrics.marginal_likelihood_metrics(
        model, text, num_sentences=12, num_samples=3, num_levels=4, **batched, **shared
    )
    found["marginal scores"] = scores.to_dict()
    found["information"] = text_metrics.information_metrics(model, text, collate, num_sentences=7, seed=3, **shared)
    found["reconstruction"] = reconstruction_accuracy(model, text, collate, num_sentences=11, **batched, **shared)
    found["paths"] = interpolation_metrics(model, text, collate, num_pairs=5, num_points=3, seed=3, **shared)
    found["texts"] = generate_texts(model, tokenizer, 13, **batched, **shared)
    found["scores"] = model.score(rows, batch_size=5, num_samples=4, generator=seeded(), **shared).to_dict()
    found["index"] = model.build_index(rows, batch_size=5, num_draws=2, generator=seeded(), **shared).mean
    detector = LatentEBMTextDetector(model, tokenizer, batch_size=5, **shared).fit(
        ["w00 w01", "w02", *["w03 w04"] * 9]
    )
    found["detector"] = detector.decision_scores_, detector.threshold_

    encoded = tiny_model(encoder_hidden_size=8)
    found["proposals"] = encoded.encoder_proposals(rows, batch_size=5, **shared).mean
    found["encoder information"] = text_metrics.encoder_information(
        encoded, text, collate, log_partition=estimate_log_partition(encoded, generator=seeded()), **batched, **shared
    )

    torch.manual_seed(0)
    config = LatentEBMImageConfig(
        latent_dim=4, image_size=8, num_channels=1, decoder_channels=[6, 5], prior_hidden_size=8, prior_sampler=CHAIN,
        posterior_sampler=CHAIN,
    )  # fmt: skip
    images = LatentEBMForImageGeneration(config).eval()
    pixels = Dataset.from_dict({"pixels": words.integers(0, 256, size=(53, 8, 8, 1)).astype(np.uint8).tolist()})
    pixels = pixels.with_format("numpy", dtype=np.uint8)
    to_tensors = ImageCollator(8, 1)
    found["images"] = evaluate_images(images, pixels, to_tensors, max_images=22, **batched, **shared)
    found["samples"] = samples = generate_images(images, 11, **batched, **shared)
    found["features"] = collect_features(lambda batch: batch.flatten(1), samples.split(4).__getitem__, 3, **shared)
    found["anomalies"] = anomaly_scores(
        images, pixels, to_tensors, num_chains=2, mode_steps=3, training_images=pixels, **batched, **shared
    )
    return found


def main(folder: Path, rank: int, world: int, port: int) -> None:
    """Measures as one of several processes, and writes the results as `<rank>.pickle`."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    os.environ.update({name: str(value) for name, value in zip(names, (rank, rank, world, world, port), strict=True)})
    os.environ.update(MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    accelerator = all_processes()
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(measure(accelerator)))
    accelerator.end_training()
