"""What one would try first on images: detectors on principal components. Needs scikit-learn (extra `image`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.anomaly.baselines import isolation_forest_scores, knn_scores

Floats = NDArray[np.float64]
_NUM_COMPONENTS, _NUM_GAUSSIANS = 64, 10
#: The one-class SVM's time grows with the square of its training rows.
_MAX_SVM_ROWS = 5000


def image_baselines(train: Floats, test: Floats, *, seed: int = 0) -> dict[str, Floats]:
    """Scores `(n,)` of images by each baseline, higher for the more anomalous.

    All see the first 64 principal components of the training pixels, which `PCA error` compares with the pixels.

    Args:
        train: `(m, pixels)`, ordinary images.
        test: `(n, pixels)`, the images to be scored.
        seed: Seed of mixture, forest and of the rows that the SVM sees.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture
    from sklearn.svm import OneClassSVM

    pca = PCA(min(_NUM_COMPONENTS, *train.shape), random_state=seed).fit(train)
    known, new = pca.transform(train), pca.transform(test)
    mixture = GaussianMixture(_NUM_GAUSSIANS, reg_covar=1e-4, random_state=seed).fit(known)
    rows = np.random.default_rng(seed).permutation(len(known))[:_MAX_SVM_ROWS]
    return {
        "PCA error": np.square(test - pca.inverse_transform(new)).mean(axis=1),
        "PCA, 5th neighbour": knn_scores(known, new),
        "PCA, mixture": -mixture.score_samples(new),
        "PCA, one-class SVM": -OneClassSVM(nu=0.1).fit(known[rows]).score_samples(new),
        "PCA, isolation forest": isolation_forest_scores(known, new, seed=seed),
    }
