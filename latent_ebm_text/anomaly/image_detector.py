"""A detector of anomalous images: it trains itself on images, or calibrates a model that is given."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ebm_text.anomaly.calibration import MIN_IMAGES, LatentCalibration
from latent_ebm_text.anomaly.detectors import LatentEBMDetector, Scores, read_saved, refuse_data_as_model
from latent_ebm_text.anomaly.fusion import TailProbabilities
from latent_ebm_text.anomaly.image_neighbours import ImageNeighbours
from latent_ebm_text.data.batching import BucketedBatches
from latent_ebm_text.data.image_processing import LatentEBMImageProcessor, size_and_channels
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.latents.rng import derived_seed
from latent_ebm_text.models.configuration import LatentEBMImageConfig
from latent_ebm_text.models.modeling_image import LatentEBMForImageGeneration
from latent_ebm_text.networks.dropout import evaluation_mode
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.step import TrainingData
from latent_ebm_text.training.trainer import train

_ARRAYS = "calibration.safetensors"
#: Images that train and calibrate at least, the share held out for p-values, the most that calibrate, and the most
#: that are kept as neighbours.
_MIN_IMAGES, _HELD_OUT_SHARE, _MAX_CALIBRATION, _MAX_NEIGHBOURS = 2 * MIN_IMAGES, 0.2, 5000, 50_000
#: How often the most anomalous images are left out, each time by scores that were fitted without those before.
_NUM_ROUNDS = 3
_MAX_SIZE, _TRAINING_BATCH, _MAX_EPOCHS = 64, 100, 200


class LatentEBMImageDetector(LatentEBMDetector):
    """Finds images that are unlike ordinary ones. Without a model, `fit` trains a small one on the images.

    ```python
    detector = LatentEBMImageDetector().fit(images)
    detector.predict(new_images)  # 1: an anomaly
    detector.heat_maps(new_images)  # where each of them is surprising
    ```

    It looks at four things. Two are of the model
    ([`LatentCalibration`][latent_ebm_text.anomaly.calibration.LatentCalibration]): whether the error of its
    reconstruction is larger than usual for such an image, and its latent rarer. Two are of the images
    ([`ImageNeighbours`][latent_ebm_text.anomaly.image_neighbours.ImageNeighbours]): how far the nearest ordinary ones
    are, and how far that is beside their own distances. They are fused by Fisher's rule from their tail probabilities
    among images that the model has not seen. The images of `fit` may hold anomalies: the most anomalous, twice the
    share `contamination`, are left out. A fifth of the images is held out for p-values: nothing is fitted on them, but
    they are neighbours of others.

    Args:
        model: A model with an encoder that was trained on ordinary images, its folder or Hub id; by default the
            detector trains itself.
        contamination: Share of the images of `fit` that is expected to be anomalous, above 0 and at most 0.5.
        num_updates: Without a model, updates of 100 images each, at most 200 passes over the images; 4,000 take some
            minutes on a CPU core at 28 x 28 pixels.
        batch_size: Images per batch of the scores.
        seed: Seed of all draws.

    Attributes:
        calibration_: The fitted [`~latent_ebm_text.anomaly.calibration.LatentCalibration`].
        neighbours_: The fitted [`~latent_ebm_text.anomaly.image_neighbours.ImageNeighbours`].

    Raises:
        UsageError: If a setting cannot be right.
    """

    calibration_: LatentCalibration
    neighbours_: ImageNeighbours
    _tails: TailProbabilities
    _usual_errors: NDArray[np.float64]

    def __init__(
        self,
        model: LatentEBMForImageGeneration | str | Path | None = None,
        contamination: float = 0.1,
        *,
        num_updates: int = 4000,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        refuse_data_as_model(model)
        super().__init__(self._score, contamination)
        if num_updates < 1 or batch_size < 1:
            raise UsageError(f"num_updates and batch_size must be positive, got {num_updates} and {batch_size}")
        self.model, self.num_updates, self.batch_size, self.seed = model, num_updates, batch_size, seed
        self._network: LatentEBMForImageGeneration | None = None

    def fit(self, X: Any, y: Any = None) -> LatentEBMImageDetector:
        """Trains the model where none was given, calibrates its scores, and sets the threshold.

        Args:
            X: The images: Pillow images, or integer arrays `(height, width)` or `(height, width, channels)`, as a list
                or as one array. They are cropped to squares and resized to the model's size, which is the median of
                theirs where it is trained here. It has colours where one of the images has.
            y: Ignored, as everywhere in unsupervised detection.

        Raises:
            UsageError: If there are too few images, or the model has no encoder.
            DataError: If an image cannot be read.
        """
        images = _as_list(X)
        if len(images) < _MIN_IMAGES:
            raise UsageError(f"a detector of images needs {_MIN_IMAGES} images or more, got {len(images)}")
        order = np.random.default_rng(derived_seed(self.seed, "held out")).permutation(len(images))
        num_held_out = round(_HELD_OUT_SHARE * len(images))
        held_out, known = order[:num_held_out], order[num_held_out:]
        if self.model is None:
            self._network = self._train([images[row] for row in known])
        network = self._model()
        if network.encoder is None:
            raise UsageError("this model has no encoder, which the scores need: train one with encoder_hidden_size")
        encoded = self._encoded(images)
        ordinary = candidates = known[:_MAX_CALIBRATION]
        num_kept = max(MIN_IMAGES, len(candidates) - int(min(0.5, 2 * self.contamination) * len(candidates)))
        for _ in range(_NUM_ROUNDS):  # led by the smallest p-value: whatever is odd by one score is left out
            found = self._fit_scores(encoded, ordinary, ordinary, held_out)
            scores = TailProbabilities(found[ordinary]).fused(found)
            limit = np.sort(scores[candidates])[num_kept - 1]
            ordinary = candidates[scores[candidates] <= limit]
        everyone = np.concatenate([known, held_out])
        neighbours = everyone[scores[everyone] <= limit][:_MAX_NEIGHBOURS]
        found = self._fit_scores(encoded, ordinary, neighbours, held_out)
        self._tails = TailProbabilities(found[held_out])  # images that the model has not seen, whatever they are
        self._usual_errors = encoded.maps[ordinary].mean(axis=0)
        scores = self._tails.added(found)
        self._set_scores(scores, scores[held_out])
        return self

    def heat_maps(self, X: Any) -> NDArray[np.float64]:
        """Where each image is surprising, `(n, height, width)`: squared error by what is usual at that pixel.

        1 is usual; the mean over the channels of a colour image.

        Args:
            X: The images, as in `fit`.

        Raises:
            UsageError: If the detector is not fitted.
        """
        self._check_fitted()
        maps = self._encoded(_as_list(X)).maps
        floor = 1e-2 * max(float(self._usual_errors.mean()), 1e-12)  # pixels that are always the same
        return np.asarray(maps / np.maximum(self._usual_errors, floor), dtype=np.float64)

    def _score(self, X: Any) -> Scores:
        self._check_fitted()
        return self._tails.added(self._columns(self._encoded(_as_list(X))))

    def _fit_scores(
        self,
        encoded: _Encoded,
        ordinary: NDArray[np.int64],
        neighbours: NDArray[np.int64],
        held_out: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Fits the four scores on ordinary images; returns those of all images, none of which is its own neighbour.

        Args:
            encoded: All images.
            ordinary: Rows of those that calibrate.
            neighbours: Rows of those whose distance counts.
            held_out: Rows of those that nothing is fitted on.
        """
        calibration = LatentCalibration().fit(encoded.latents[ordinary], encoded.errors[ordinary], seed=self.seed)
        self.calibration_ = calibration
        self.neighbours_ = ImageNeighbours().fit(
            encoded.pixels[neighbours], held_out=np.isin(neighbours, held_out), seed=self.seed
        )
        found = self._columns(encoded)
        found[neighbours, 2:] = self.neighbours_.scores(encoded.pixels[neighbours], known=True)
        return found

    def _columns(self, encoded: _Encoded) -> NDArray[np.float64]:
        """The four scores, `(n, 4)`: error, rarity, distance of the neighbours, isolation."""
        own = self.calibration_.scores(encoded.latents, encoded.errors)
        return np.column_stack([own["error"], own["rarity"], self.neighbours_.scores(encoded.pixels)])

    def _model(self) -> LatentEBMForImageGeneration:
        """The model behind the scores, which is loaded when it is first needed."""
        if self._network is None:
            assert self.model is not None
            if isinstance(self.model, str | Path):
                self._network = LatentEBMForImageGeneration.from_pretrained(self.model).eval()
            else:
                self._network = self.model
        return self._network

    def _processor(self, config: LatentEBMImageConfig) -> LatentEBMImageProcessor:
        return LatentEBMImageProcessor(config.image_size, config.num_channels, do_adapt=True)

    @torch.no_grad()
    def _encoded(self, images: list[Any]) -> _Encoded:
        if not images:
            raise UsageError("no images were given")
        model = self._model()
        processor, parts = self._processor(model.config), []
        assert model.encoder is not None
        with evaluation_mode(model):
            for first in range(0, len(images), self.batch_size):
                pixels = processor(images[first : first + self.batch_size])["pixel_values"].to(model.device)
                means = model.encoder.propose({"pixel_values": pixels}).mean
                squares = (model.generate(latents=means) - pixels).square().mean(dim=1)
                errors = squares.mean(dim=(1, 2)).double()
                parts.append([each.cpu() for each in (means.double(), errors, squares, pixels.flatten(1))])
        return _Encoded(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))

    def _train(self, images: list[Any]) -> LatentEBMForImageGeneration:
        """A small model of the images, with the settings of `recipes/configs/anomaly_mnist.yaml`."""
        sizes, channels = zip(*map(size_and_channels, images), strict=True)
        size = max(8, min(_MAX_SIZE, int(np.median(sizes))) // 4 * 4)
        torch.manual_seed(derived_seed(self.seed, "initial weights"))
        model = LatentEBMForImageGeneration(
            LatentEBMImageConfig(
                image_size=size, num_channels=max(channels), latent_dim=8,
                decoder_channels=[64, 32], decoder_first_size=size // 4, encoder_hidden_size=16, pixel_std=0.5,
                prior_activation="leaky_relu", prior_hidden_size=64, energy_penalty=0.01,
                prior_sampler={"name": "langevin", "num_steps": 20, "step_size": 0.4},
                posterior_sampler={"name": "langevin", "num_steps": 3, "step_size": 0.05},
            )
        )  # fmt: skip
        processor = self._processor(model.config)

        def collate(rows: Any) -> dict[str, Tensor]:
            return dict(processor([row["image"] for row in rows]))

        epochs = min(_MAX_EPOCHS, self.num_updates * _TRAINING_BATCH / len(images))
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, seed=self.seed, num_epochs=epochs, train_batch_size=_TRAINING_BATCH,
                decoder_learning_rate=0.002, prior_learning_rate=0.0003, final_learning_rate_factor=0.05,
                max_decoder_grad_norm=1e6, max_prior_grad_norm=10, inference="variational", chain_num_steps=3,
                chain_step_size=0.05, eval_every=10**9, save_every=10**9, keep_checkpoints=1,
            )  # fmt: skip
            batches = BucketedBatches(np.ones(len(images)), _TRAINING_BATCH, self.seed)
            train(model, TrainingData(_Rows(images), batches, collate), args, identity={}, evaluate=lambda *_: {})
        return model.eval()

    def settings(self) -> dict[str, Any]:
        """What the scores depend on beside model and calibration, as JSON-able values."""
        return {"batch_size": self.batch_size, "seed": self.seed}

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes settings, threshold, training scores, model and calibration: JSON and safetensors.

        Raises:
            UsageError: If the detector is not fitted.
        """
        from safetensors.numpy import save_file

        super().save_pretrained(folder)
        model = self._model()
        model.save_pretrained(folder)
        self._processor(model.config).save_pretrained(folder)
        arrays: dict[str, NDArray[Any]] = {"usual_errors": self._usual_errors, "tails": self._tails.reference}
        arrays |= self.calibration_.arrays()
        arrays |= {f"neighbours/{name}": array for name, array in self.neighbours_.arrays().items()}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, str(Path(folder) / _ARRAYS))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LatentEBMImageDetector:  # type: ignore[override]
        """The detector saved in a folder, with its model and calibration.

        Raises:
            DataError: If the files are missing, damaged, or those of another kind of detector.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        from latent_ebm_text.models.loading import check_model_folder

        check_model_folder(folder)  # which refuses a folder that leads out of itself
        saved = read_saved(folder, cls.__name__)
        try:
            arrays = load_file(str(Path(folder) / _ARRAYS))
            detector = cls(str(folder), **saved["settings"])
            detector.calibration_ = LatentCalibration.from_arrays(arrays)
            prefix = "neighbours/"
            found = {name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)}
            detector.neighbours_ = ImageNeighbours.from_arrays(found)
            detector._tails = TailProbabilities(arrays["tails"])
            detector._usual_errors = arrays["usual_errors"].astype(np.float64)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder} cannot be read as a detector of this version: {error}") from error
        detector._model()
        detector._restore(folder, saved)
        return detector


@dataclass(frozen=True)
class _Encoded:
    """What is known of images.

    Attributes:
        latents: `(n, latent_dim)`, the encoder's means.
        errors: `(n,)`, squared errors per pixel.
        maps: `(n, height, width)`, where they are.
        pixels: `(n, channels * height * width)`, in [-1, 1].
    """

    latents: NDArray[np.float64]
    errors: NDArray[np.float64]
    maps: NDArray[np.float32]
    pixels: NDArray[np.float32]


class _Rows:
    """Images by index list, as the loop asks for them."""

    def __init__(self, images: list[Any]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> dict[str, list[Any]]:
        return {"image": [self.images[row] for row in rows]}


def _as_list(images: Any) -> list[Any]:
    """The images, one by one."""
    if isinstance(images, Tensor):
        raise UsageError("images are Pillow images or integer arrays (height, width[, channels]), got a tensor")
    if isinstance(images, str | bytes) or not hasattr(images, "__iter__"):
        raise UsageError(f"images are a list or an array of them, got {type(images).__name__}")
    return list(images)
