"""An encoder of sentences, a one-layer LSTM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_ebm_text.networks import placement
from latent_ebm_text.networks.base import GaussianPosterior, LatentEncoder
from latent_ebm_text.networks.dropout import drop_features


class LSTMEncoder(LatentEncoder):
    """q(z | x) by an LSTM, whose last state gives mean and log standard deviation (Bowman et al., 2016).

    Args:
        vocab_size: Number of tokens in the vocabulary.
        latent_dim: Size of the latent.
        embedding_size: Width of the token embedding, which is not shared with the decoder.
        hidden_size: Width of the LSTM.
        embedding_dropout: In training, dropout rate of the token embeddings. Without it the encoder memorises the
            training sentences and does not generalise.
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
        """Returns the proposal for `input_ids` `(batch, length)`, padded on the right where `attention_mask` is 0."""
        input_ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        lengths = torch.full_like(input_ids[:, 0], input_ids.shape[1]) if mask is None else mask.sum(dim=1)
        embedded = self.embedding(input_ids.t())
        if self.training and self.embedding_dropout > 0:
            embedded = drop_features(embedded, self.embedding_dropout)
        last = self._last_packed if placement.is_at_host(embedded) else self._last_padded
        proposal = self.out(last(embedded, lengths.clamp(min=1)))
        proposal = proposal.to(torch.promote_types(proposal.dtype, torch.float32))  # also under autocast
        mean, log_std = proposal.chunk(2, dim=-1)
        return GaussianPosterior(mean, log_std)

    def _last_packed(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """The hidden state after the last token, `(batch, hidden_size)`, without a step for padding."""
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths.cpu(), enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return hidden[0]

    def _last_padded(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """The same with steps for padding, whose results nobody reads; the host does not wait for the lengths."""
        hidden, _ = self.lstm(embedded)  # (length, batch, hidden_size)
        last = (lengths - 1)[None, :, None].expand(1, -1, hidden.shape[2])
        return hidden.gather(0, last)[0]
