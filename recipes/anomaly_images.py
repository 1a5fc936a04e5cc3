"""Unsupervised anomaly detection on labelled images: one class held out, with baselines in the same harness.

    accelerate launch recipes/anomaly_images.py                            # MNIST, the paper's Table 3
    accelerate launch recipes/anomaly_images.py --dataset_name path/to/mnist --held_out 9 --seeds 0 --models energy
    accelerate launch recipes/anomaly_images.py --dataset_name digits --config recipes/configs/anomaly_digits.yaml

Any image set with labels will do; its size goes into `--image_size` and the decoder's sizes, see docs/images.md.

For every class held out a model is trained on 80 % of the other classes. It then scores the rest of them together with
the class held out. The metric is the area under the precision-recall curve (AUPRC), which depends on the share of
anomalies: it is given for the scored images, about 36 % of which are anomalies, and reweighted to the share of the
class among all images, about 10 %. The AUROC does not depend on it. The last weights are the ones that score: nothing
is selected on the images that are scored. Models, with the same decoder and encoder: `energy`; `vae`, with a
Gaussian prior; `gaussian`, the same with chains from the encoder's proposal in training. Fitted on the same training
images: `detector`, the `LatentEBMImageDetector` with its own defaults but `contamination` 0.01, since they hold no
anomaly; and `baselines`, detectors on principal components. Run the same command again to resume.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from accelerate.utils import tqdm

from latent_ebm_text.anomaly.image_baselines import image_baselines
from latent_ebm_text.anomaly.image_detector import LatentEBMImageDetector
from latent_ebm_text.anomaly.images import SCORES, anomaly_scores, held_out_split, image_labels
from latent_ebm_text.anomaly.metrics import auprc, auroc
from latent_ebm_text.commands.arguments import ImageDataArguments, ImageModelArguments
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.commands.runs import run_identity
from latent_ebm_text.commands.train_images import build, prepare, train_on_images
from latent_ebm_text.data.image_processing import LatentEBMImageProcessor
from latent_ebm_text.data.images import ImageCollator, ImageCorpus
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.sharing import all_processes
from latent_ebm_text.training.arguments import TrainingArguments, option
from latent_ebm_text.training.files import replace_text, replaced_folder
from latent_ebm_text.training.tracking import set_precision

#: What each model changes in the settings of model and training.
MODELS = {
    "energy": ({}, {}),
    "vae": ({"prior_type": "gaussian"}, {"inference": "variational"}),
    "gaussian": ({"prior_type": "gaussian"}, {"inference": "amortized"}),
}
DETECTOR, BASELINES = "detector", "baselines"
KINDS = (*MODELS, DETECTOR, BASELINES)

#: Training images, at most, by which scores are calibrated.
CALIBRATION_IMAGES = 5000
#: By model and class held out, for every seed: the area of each score.
Figures = dict[str, dict[int, list[dict[str, float]]]]
#: Title, and a function of labels, scores and the share of the class among all images.
METRICS = {
    "auprc": ("AUPRC", lambda kinds, scores, share: auprc(kinds, scores)),
    "auprc_natural": (
        "AUPRC, anomalies as frequent as their class",
        lambda kinds, scores, share: auprc(kinds, scores, share=share),
    ),
    "auroc": ("AUROC", lambda kinds, scores, share: auroc(kinds, scores)),
}


@dataclass
class AnomalyArguments:
    """Anomaly detection"""

    held_out: list[int] = field(
        default_factory=lambda: [1, 4, 5, 7, 9], metadata={"help": "Classes to hold out, one after the other."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds, each with a split and a training of its own."}
    )
    models: list[str] = field(default_factory=lambda: list(KINDS), metadata={"help": "Models to compare."})
    num_chains: int = option(0, "Latents per image, the best of which gives the score `mode`; 0 leaves it out.")
    mode_steps: int = option(50, "Noiseless steps of each of these latents.")

    def __post_init__(self) -> None:
        for name in self.models:
            if name not in KINDS:
                raise UsageError(f"models holds {name!r}; known: {', '.join(KINDS)}")


def main() -> int:
    data_args, model_args, args, task = parse_arguments(
        (ImageDataArguments, ImageModelArguments, TrainingArguments, AnomalyArguments),
        default_config=Path(__file__).parent / "configs" / "anomaly_mnist.yaml",
        description=__doc__,
    )
    set_precision(args.matmul_precision)
    accelerator = all_processes()
    corpus = prepare(data_args, accelerator)
    images, labels = image_labels(corpus)
    collate = ImageCollator(corpus.image_size, corpus.num_channels)
    accelerator.print(corpus.describe())

    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figures] = {metric: {} for metric in METRICS}

    def add(name: str, held_out: int, scores: Mapping[str, Any], is_anomaly: np.ndarray, natural: float) -> None:
        """Takes the scores of one task in, and writes all there are."""
        add_areas(figures, name, held_out, scores, is_anomaly, natural)
        report = {"command": " ".join(sys.argv), "data": corpus.describe(), "scores": SCORES, **figures}
        replace_text(folder / "anomaly.json", json.dumps(report, indent=2) + "\n")

    for name in task.models:
        for held_out in task.held_out:
            for seed in task.seeds:
                # Data: the rest of the normal images and all anomalies are scored, and never seen before.
                training, test = held_out_split(labels, held_out, seed)
                accelerator.print(
                    f"\n{name}, class {held_out} held out, seed {seed}: {len(training):,} images to train on, "
                    f"{len(test):,} to score, of these {int((labels[test] == held_out).sum()):,} anomalies"
                )

                is_anomaly, natural = labels[test] == held_out, float((labels == held_out).mean())
                if name not in MODELS:
                    if accelerator.is_main_process:
                        known, new = (arrays_of(images.select(rows), corpus) for rows in (training, test))
                        found = other_scores(name, known, new, seed=seed)
                        add(name, held_out, found, is_anomaly, natural)
                    continue

                # Model and training, as for images of any kind; what it shows meanwhile are images of training.
                model_changes, changes = MODELS[name]
                run = folder / name / f"held-out-{held_out}" / f"seed-{seed}"
                run_args = replace(args, output_dir=str(run), seed=seed, **changes)
                settings = {**model_args.settings, **model_changes}
                model = build(replace(model_args, settings=settings), corpus, seed)
                normal = images.select(training)
                identity = run_identity(model, run_args, data=corpus.fingerprint, held_out=held_out)
                result = train_on_images(
                    model, normal, normal, collate, run_args, identity=identity, accelerator=accelerator
                )
                if result.signal is not None:
                    accelerator.print(f"stopped by signal {result.signal}; run the same command again to resume")
                    return args.exit_code(result.signal)

                # Scores of every image, and how well they separate anomalies.
                if accelerator.is_main_process:
                    with replaced_folder(run / "model") as written:
                        model.save_pretrained(written)
                        LatentEBMImageProcessor(corpus.image_size, corpus.num_channels).save_pretrained(written)
                scores = anomaly_scores(
                    model,
                    images.select(test),
                    collate,
                    num_chains=task.num_chains,
                    mode_steps=task.mode_steps,
                    batch_size=args.eval_batch_size,
                    seed=seed,
                    training_images=images.select(training[:: -(-len(training) // CALIBRATION_IMAGES)]),
                    progress=partial(tqdm, desc="scoring"),
                    accelerator=accelerator,
                )
                if accelerator.is_main_process:
                    add(name, held_out, scores, is_anomaly, natural)
    if accelerator.is_main_process:
        for metric, (title, _) in METRICS.items():
            print(f"\n{table(figures[metric], title)}")
    return 0


def arrays_of(images: Any, corpus: ImageCorpus) -> np.ndarray:
    """Rows of images as integers, `(n, height, width)` or `(n, height, width, 3)`."""
    shape = (corpus.image_size, corpus.image_size, corpus.num_channels)
    pixels = np.stack([np.frombuffer(row, np.uint8).reshape(shape) for row in images["pixels"]])
    return pixels[..., 0] if corpus.num_channels == 1 else pixels


def other_scores(name: str, known: np.ndarray, new: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
    """The scores of the detector, or of each baseline, fitted on some images, of others."""
    if name == BASELINES:
        return image_baselines(*(each.reshape(len(each), -1) / 255 for each in (known, new)), seed=seed)
    detector = LatentEBMImageDetector(contamination=0.01, seed=seed).fit(known)
    return {"fused": detector.decision_function(new)}


def add_areas(
    figures: dict[str, Figures],
    name: str,
    held_out: int,
    scores: Mapping[str, Any],
    is_anomaly: np.ndarray,
    natural: float,
) -> None:
    """Adds how well each score of a model separates the anomalies, by every metric, and prints it."""
    for metric, (title, area) in METRICS.items():
        areas = {score: area(is_anomaly, values, natural) for score, values in scores.items()}
        print(f"{title}: {', '.join(f'{value:.3f} by {score}' for score, value in areas.items())}")
        figures[metric].setdefault(name, {}).setdefault(held_out, []).append(areas)


def table(figures: Figures, title: str) -> str:
    """Mean ± standard deviation over seeds; a row for each model and score, a column for each class."""
    classes = list(next(iter(figures.values())))
    lines = [f"| {title} | {' | '.join(map(str, classes))} |", "|---" * (len(classes) + 1) + "|"]
    for name, by_class in figures.items():
        for score in next(iter(by_class.values()))[0]:
            cells = []
            for runs in by_class.values():
                values = [run[score] for run in runs]
                spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{mean(values):.3f}{spread}")
            lines.append(f"| {name}, {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
