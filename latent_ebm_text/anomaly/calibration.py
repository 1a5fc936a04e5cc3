"""An anomaly score calibrated by ordinary images: is the error too large here, or the latent too rare?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.errors import UsageError

Floats = NDArray[np.float64]
#: The ridge penalty as a share of the data: a stiff regressor says of an image what images like it cost at least.
_RIDGE = 0.1
_NUM_COMPONENTS, _ROWS_PER_COMPONENT = 10, 100
#: Images that a calibration takes at least.
MIN_IMAGES = 50


class LatentCalibration:
    """Two scores of ordinary images, standardised, and the larger of them.

    *Error*: the log of the squared error, less what is usual at this place of the latent space, by ridge regression of
    the log error on z. An image with much ink is no anomaly for its large error, and a simple one may be one for a
    small error. *Rarity*: the negative log-density of z under a mixture of ten Gaussians. Their maximum finds what
    either of them finds; a sum would let an anomaly that is reconstructed better than ordinary images hide its rare
    latent.

    Fitted on ordinary images alone, best on those that the model was trained on.

    Attributes:
        weights: `(latent_dim + 1,)`, the regression, its constant last.
        log_shares: `(components,)` of the mixture.
        means: `(components, latent_dim)`.
        factors: `(components, latent_dim, latent_dim)`, Cholesky factors of the precisions.
        location: `(2,)`, means of both scores.
        scale: `(2,)`, their standard deviations.
    """

    weights: Floats
    log_shares: Floats
    means: Floats
    factors: Floats
    location: Floats
    scale: Floats

    def fit(self, latents: Floats, squared_errors: Floats, *, seed: int = 0) -> LatentCalibration:
        """Fits regression and mixture; returns itself.

        Args:
            latents: `(n, latent_dim)`, the means of the encoder's proposals.
            squared_errors: `(n,)`, squared error per pixel of the reconstructions from there.
            seed: Seed of the mixture's start.

        Raises:
            UsageError: If there are fewer than 50 images, or scikit-learn is not installed.
        """
        try:
            from sklearn.mixture import GaussianMixture
        except ImportError as error:
            raise UsageError("calibration needs the extra `image`: pip install 'latent-ebm-text[image]'") from error
        if len(latents) < MIN_IMAGES:
            raise UsageError(f"a calibration needs {MIN_IMAGES} ordinary images or more, got {len(latents)}")
        logs = np.log(np.maximum(squared_errors, 1e-12))
        centre, size = latents.mean(axis=0), np.maximum(latents.std(axis=0), 1e-9)
        features = (latents - centre) / size
        penalised = features.T @ features + _RIDGE * len(latents) * np.eye(latents.shape[1])
        slopes = np.linalg.solve(penalised, features.T @ (logs - logs.mean())) / size
        self.weights = np.append(slopes, logs.mean() - slopes @ centre)
        components = max(1, min(_NUM_COMPONENTS, len(latents) // _ROWS_PER_COMPONENT))
        mixture = GaussianMixture(components, reg_covar=1e-4, n_init=3, random_state=seed).fit(latents)
        self.log_shares, self.means = np.log(mixture.weights_), mixture.means_
        self.factors = mixture.precisions_cholesky_
        both = self._raw(latents, squared_errors)
        self.location, self.scale = both.mean(axis=0), np.maximum(both.std(axis=0), 1e-9)
        return self

    def scores(self, latents: Floats, squared_errors: Floats) -> dict[str, Floats]:
        """`error`, `rarity` and `calibrated`, the larger of them; `(n,)` each, in standard deviations.

        Args:
            latents: `(n, latent_dim)`.
            squared_errors: `(n,)`.
        """
        error, rarity = ((self._raw(latents, squared_errors) - self.location) / self.scale).T
        return {"error": error, "rarity": rarity, "calibrated": np.maximum(error, rarity)}

    def arrays(self) -> dict[str, Floats]:
        """All that was learned, as named arrays."""
        return {name: np.asarray(getattr(self, name)) for name in self.__class__.__annotations__}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats]) -> LatentCalibration:
        """The calibration whose `arrays` these are.

        Raises:
            KeyError: If an array is missing.
        """
        found = cls()
        for name in cls.__annotations__:
            setattr(found, name, np.asarray(arrays[name], dtype=np.float64))
        return found

    def _raw(self, latents: Floats, squared_errors: Floats) -> Floats:
        """Both scores before they are standardised, `(n, 2)`."""
        usual = latents @ self.weights[:-1] + self.weights[-1]
        error = np.log(np.maximum(squared_errors, 1e-12)) - usual
        whitened = np.einsum("nki,kij->nkj", latents[:, None] - self.means, self.factors)
        log_volumes = np.log(np.diagonal(self.factors, axis1=1, axis2=2) / np.sqrt(2 * np.pi)).sum(axis=1)
        logs = self.log_shares + log_volumes - 0.5 * np.square(whitened).sum(axis=2)
        largest = logs.max(axis=1)
        rarity = -largest - np.log(np.exp(logs - largest[:, None]).sum(axis=1))
        return np.stack([error, rarity], axis=1)
