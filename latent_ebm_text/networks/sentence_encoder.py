"""An encoder q(z | x) of sentences that reads their tokens and the embeddings of a frozen sentence encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_ebm_text.errors import UsageError
from latent_ebm_text.networks.base import GaussianPosterior, LatentEncoder
from latent_ebm_text.networks.lstm_encoder import LSTMEncoder


class SentenceEmbeddingEncoder(LatentEncoder):
    """q(z | x) from the tokens of a sentence and its embedding: each gives its part of the mean and of the log std.

    The embedding knows language already, and shapes where sentences lie in the latent; the tokens know their order.
    Neither enters p(x).

    Args:
        tokens: The part that reads tokens.
        embedding_size: Width of the embedding, whose vectors have length 1.
        latent_dim: Size of the latent.
        hidden_size: Width of the hidden layer on the embedding.
        dropout: Dropout rate of that layer in training.
    """

    def __init__(
        self, tokens: LSTMEncoder, embedding_size: int, latent_dim: int, *, hidden_size: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.embedding_size = embedding_size
        self.hidden = nn.Linear(embedding_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_size, 2 * latent_dim)

    def forward(self, inputs: dict[str, Tensor]) -> GaussianPosterior:
        """Returns the proposal for `input_ids` `(batch, length)` with `sentence_embeddings` `(batch, embedding_size)`.

        Raises:
            UsageError: If the embeddings are not given or have another size.
        """
        embeddings = scaled_embeddings(inputs, self.embedding_size)
        hidden = self.dropout(nn.functional.gelu(self.hidden(embeddings.to(self.hidden.weight.dtype))))
        proposal = self.out(hidden)
        mean, log_std = proposal.to(torch.promote_types(proposal.dtype, torch.float32)).chunk(2, dim=-1)
        of_tokens = self.tokens(inputs)
        return GaussianPosterior(of_tokens.mean + mean, of_tokens.log_std + log_std)


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
