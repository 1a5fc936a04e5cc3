"""An LSTM that reads a sentence and proposes its latent, as in the VAEs of Bowman et al. (2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_ebm_text.dropout import drop_features
from latent_ebm_text.encoders.base import GaussianPosterior, LatentEncoder


class LSTMEncoder(LatentEncoder):
    """The last state of an LSTM, mapped to a mean and a log standard deviation.

    Args:
        vocab_size: Number of words.
        latent_dim: Size of the latent.
        embedding_size: Width of the word embedding, which is the encoder's own.
        hidden_size: Width of the LSTM.
        embedding_dropout: In training, the part of a sentence's word embeddings that the LSTM does not see. Without
            it the encoder learns the training sentences by heart, and proposes for no others.
    """

    def __init__(
        self,
        vocab_size: int,
        latent_dim: int,
        *,
        embedding_size: int,
        hidden_size: int,
        embedding_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding_dropout = embedding_dropout
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.lstm = nn.LSTM(embedding_size, hidden_size)
        self.out = nn.Linear(hidden_size, 2 * latent_dim)

    def forward(self, inputs: dict[str, Tensor]) -> GaussianPosterior:
        """The proposal for sentences with `input_ids` `(batch, length)`, padded on the right where the mask is 0."""
        input_ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        lengths = torch.full_like(input_ids[:, 0], input_ids.shape[1]) if mask is None else mask.sum(dim=1)
        words = self.embedding(input_ids.t())
        if self.training and self.embedding_dropout > 0:
            words = drop_features(words, self.embedding_dropout)
        packed = nn.utils.rnn.pack_padded_sequence(words, lengths.clamp(min=1).cpu(), enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        proposal = self.out(hidden[0])
        proposal = proposal.to(torch.promote_types(proposal.dtype, torch.float32))  # also under autocast
        mean, log_std = proposal.chunk(2, dim=-1)
        return GaussianPosterior(mean, log_std)
