"""An encoder q(z | x) of sentences that reads the embeddings of a frozen sentence encoder, alone or beside tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import UsageError
from latent_ebm_text.networks.base import GaussianPosterior, LatentEncoder


class SentenceEmbeddingEncoder(LatentEncoder):
    """q(z | x) by a network of one hidden layer on a sentence embedding, which knows language already.

    What the embedding knows does not enter p(x): it shapes where sentences lie in the latent.

    Args:
        embedding_size: Width of the embedding, whose vectors have length 1.
        latent_dim: Size of the latent.
        hidden_size: Width of the hidden layer.
        dropout: Dropout rate of the hidden layer in training.
    """

    def __init__(self, embedding_size: int, latent_dim: int, *, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding_size = embedding_size
        self.hidden = nn.Linear(embedding_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_size, 2 * latent_dim)

    def forward(self, inputs: dict[str, Tensor]) -> GaussianPosterior:
        """Returns the proposal for `sentence_embeddings` `(batch, embedding_size)`.

        Raises:
            UsageError: If they are not given or have another size.
        """
        embeddings = scaled_embeddings(inputs, self.embedding_size)
        hidden = self.dropout(nn.functional.gelu(self.hidden(embeddings.to(self.hidden.weight.dtype))))
        proposal = self.out(hidden)
        mean, log_std = proposal.to(torch.promote_types(proposal.dtype, torch.float32)).chunk(2, dim=-1)
        return GaussianPosterior(mean, log_std)


def scaled_embeddings(inputs: dict[str, Tensor], size: int) -> Tensor:
    """The sentence embeddings of a batch, scaled so that the mean square of their entries is 1.

    Raises:
        UsageError: If they are not given or have another size.
    """
    embeddings = inputs.get("sentence_embeddings")
    if embeddings is None:
        raise UsageError(
            "the encoder of this model reads embeddings of sentences: give sentence_embeddings, which "
            "latent_ebm_text.data.embeddings adds to a dataset, or tokenizer=... where a method takes it"
        )
    if embeddings.dim() != 2 or embeddings.shape[1] != size:
        raise UsageError(f"sentence_embeddings must have shape (batch, {size}), got {tuple(embeddings.shape)}")
    return embeddings * size**0.5
