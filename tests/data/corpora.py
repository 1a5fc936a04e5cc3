"""What tests of corpora share: sentences, a data set of them, and what was read."""

from datasets import Dataset

from latent_ebm_text.data.text import TextCorpus

LINES = [f"sentence number {n} ." for n in range(100)]


def rows(column: str = "text", count: int = 4) -> Dataset:
    return Dataset.from_dict({column: LINES[:count], "label": list(range(count))})


def texts(corpus: TextCorpus) -> dict[str, list[str]]:
    return {split: list(dataset["text"]) for split, dataset in corpus.splits.items()}
