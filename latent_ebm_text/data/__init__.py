"""Corpora, tokenizers and batches. Importing this package imports neither `datasets` nor `transformers`."""

from latent_ebm_text.data.batching import BucketedBatches, TextCollator, ordered_batches, tokenize_corpus
from latent_ebm_text.data.newswire import grammar_dataset
from latent_ebm_text.data.text import TextCorpus, load_text_dataset

__all__ = [
    "BucketedBatches",
    "TextCollator",
    "TextCorpus",
    "grammar_dataset",
    "load_text_dataset",
    "ordered_batches",
    "tokenize_corpus",
]
