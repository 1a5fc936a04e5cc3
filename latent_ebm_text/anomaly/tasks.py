"""Public benchmarks of text anomaly detection, from files: who is trained on what, and which texts are scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latent_ebm_text.anomaly.corruptions import other_source_task, shuffled_words_task
from latent_ebm_text.data.cleaning import is_blank
from latent_ebm_text.errors import DataError, UsageError

#: The groups of 20 Newsgroups that count as one class each (Ruff et al., 2019).
NEWSGROUPS = {
    "computer": ("comp.",),
    "recreation": ("rec.",),
    "science": ("sci.",),
    "miscellaneous": ("misc.",),
    "politics": ("talk.politics.",),
    "religion": ("talk.religion.", "alt.atheism", "soc.religion."),
}
#: Texts that the largest tasks are cut to: an encoder reads a few long texts a second on a CPU.
_MAX_NEWS_TRAIN, _MAX_NEWS_TEST, _MAX_SENTENCES = 600, 1500, 10_000


@dataclass(frozen=True)
class DetectionTask:
    """A split of a benchmark.

    Attributes:
        name: The name of the task.
        protocol: `"all rows"`, where a detector is fitted on the very texts that it scores, anomalies among them, as
            TAD-Bench has it; or `"normals"`, where it is fitted on ordinary texts and scores others.
        train: The texts to fit on.
        test: The texts to score; those of `train` under `"all rows"`.
        labels: `(len(test),)`, 1 for anomalies and 0 for ordinary texts.
    """

    name: str
    protocol: str
    train: list[str]
    test: list[str]
    labels: list[int]

    @property
    def is_transductive(self) -> bool:
        """Whether the texts that are scored are those of the fit."""
        return self.protocol == "all rows"

    def subsampled(self, max_texts: int, *, seed: int = 0) -> DetectionTask:
        """The task with at most so many texts to fit on and to score, drawn at random; both kinds keep their shares.

        Args:
            max_texts: The most texts, 10 or more.
            seed: Seed of the draw.

        Raises:
            UsageError: If these are too few.
        """
        if max_texts < 10:
            raise UsageError(f"a task needs 10 texts or more, got max_texts={max_texts}")
        rng, labels = np.random.default_rng(seed), np.array(self.labels)
        train_rows, rows = rng.permutation(len(self.train))[:max_texts], np.arange(len(labels))
        if len(labels) > max_texts:
            kinds = [rng.permutation(np.flatnonzero(labels == kind)) for kind in (0, 1)]
            share = max_texts / len(labels)
            rows = np.sort(np.concatenate([kind[: max(1, round(share * len(kind)))] for kind in kinds]))
        test = [self.test[row] for row in rows]
        train = test if self.is_transductive else [self.train[row] for row in np.sort(train_rows)]
        return DetectionTask(self.name, self.protocol, train, test, labels[rows].tolist())


def all_rows_task(name: str, path: str | Path) -> DetectionTask:
    """A set of TAD-Bench, a JSON file with `text` and `label` on each line: fitted and scored on all rows.

    Raises:
        DataError: If the file cannot be read as that.
    """
    texts, labels = read_labelled(path)
    return DetectionTask(name, "all rows", texts, texts, labels)


def normals_task(name: str, texts: Sequence[str], labels: Sequence[int], *, seed: int = 0) -> DetectionTask:
    """The protocol of NLP-ADBench: fitted on 70 % of the ordinary texts, scored on the others and on all anomalies.

    Repeated texts are taken once, as in the benchmark, so that no text is scored that was fitted on.

    Args:
        name: The name of the task.
        texts: The texts.
        labels: 1 for anomalies.
        seed: Seed of the split.

    Raises:
        DataError: If there are fewer than ten ordinary texts, or no anomaly.
    """
    label_of = dict(zip(texts, labels, strict=True))
    normal = [text for text, label in label_of.items() if label == 0]
    anomalies = [text for text, label in label_of.items() if label == 1]
    if len(normal) < 10 or not anomalies:
        raise DataError(f"{name} has {len(normal)} ordinary texts and {len(anomalies)} anomalies: too few for a split")
    order = np.random.default_rng(seed).permutation(len(normal))
    num_train = round(0.7 * len(normal))
    train = [normal[index] for index in order[:num_train]]
    held_out = [normal[index] for index in order[num_train:]]
    return DetectionTask(name, "normals", train, [*held_out, *anomalies], [0] * len(held_out) + [1] * len(anomalies))


def newsgroup_tasks(path: str | Path, *, seed: int = 0) -> list[DetectionTask]:
    """20 Newsgroups, one of six top-level groups ordinary (Ruff et al., 2019), on texts without headers and quotes.

    At most 600 training texts a group, and 1,500 test texts for all six, are drawn at random.

    Args:
        path: A parquet file with the columns `split`, `group` and `text`.
        seed: Seed of the draws.

    Raises:
        DataError: If the file cannot be read as that.
    """
    import pyarrow.parquet as pq

    try:
        columns = pq.read_table(path, columns=["split", "group", "text"]).to_pydict()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read as 20 Newsgroups: {error}") from error
    rows = [row for row in zip(*columns.values(), strict=True) if not is_blank(row[2])]
    rng = np.random.default_rng(seed)
    test = [(group, text) for split, group, text in rows if split == "test"]
    test = [test[index] for index in sorted(rng.permutation(len(test))[:_MAX_NEWS_TEST])]
    tasks = []
    for name, prefixes in NEWSGROUPS.items():
        train = [text for split, group, text in rows if split == "train" and group.startswith(prefixes)]
        train = [train[index] for index in sorted(rng.permutation(len(train))[:_MAX_NEWS_TRAIN])]
        labels = [0 if group.startswith(prefixes) else 1 for group, _ in test]
        tasks.append(DetectionTask(f"20NG {name}", "normals", train, [text for _, text in test], labels))
    return tasks


def sentence_tasks(
    train: Sequence[str], test: Sequence[str], documents: Sequence[str], *, num_pairs: int = 500, seed: int = 0
) -> list[DetectionTask]:
    """Sentences of a corpus against themselves with shuffled words, and against another source of the same length.

    Args:
        train: The training sentences, of which at most 10,000 are drawn.
        test: The test sentences of the same corpus.
        documents: Documents of another source.
        num_pairs: Ordinary sentences of each task, and anomalies.
        seed: Seed of the draws.

    Raises:
        DataError: If there are too few sentences or documents.
    """
    chosen = np.random.default_rng(seed).permutation(len(train))[:_MAX_SENTENCES]
    ordinary = [train[index] for index in chosen]
    pairs = (
        shuffled_words_task(test, num_pairs, seed=seed),
        other_source_task(test, documents, num_pairs, seed=seed),
    )
    return [DetectionTask(task.name, "normals", ordinary, task.texts, task.labels) for task in pairs]


def read_labelled(path: str | Path) -> tuple[list[str], list[int]]:
    """Texts and labels: a JSON object with `text` and `label` on each line, or `label<TAB>text` with `ham` or `spam`.

    Raises:
        DataError: If the file cannot be read as either.
    """
    path, texts, labels = Path(path), [], []
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        for line in lines:
            if path.suffix == ".jsonl":
                row = json.loads(line)
                text, label = row["text"], int(row["label"])
            else:
                kind, text = line.rstrip("\r").split("\t", 1)
                label = {"ham": 0, "spam": 1}[kind]
            texts.append(text)
            labels.append(label)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as labelled texts: {type(error).__name__}: {error}") from error
    return texts, labels


class EmbeddingCache:
    """Embeds texts once, and keeps the embeddings in a file; to be given to detectors as their sentence encoder.

    Args:
        path: A safetensors file, which is made if it is missing.
        embed: Maps texts to embeddings `(n, width)`.
        chunk: Texts after which the file is written again.
    """

    def __init__(self, path: str | Path, embed: Callable[[Sequence[str]], np.ndarray], *, chunk: int = 1024) -> None:
        self.path, self.embed, self.chunk = Path(path), embed, chunk
        self._rows: dict[str, np.ndarray] = {}
        if self.path.is_file():
            from safetensors.numpy import load_file

            saved = load_file(str(self.path))
            keys = [bytes(key).hex() for key in saved["keys"]]
            self._rows = dict(zip(keys, saved["embeddings"], strict=True))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The embeddings `(n, width)`, float32, in the order of the texts.

        Raises:
            UsageError: If there are no texts.
        """
        if not texts:
            raise UsageError("no texts to embed")
        keys = [_digest(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        for start in range(0, len(missing), self.chunk):
            part = dict(list(missing.items())[start : start + self.chunk])
            self._rows.update(zip(part, np.asarray(self.embed(list(part.values())), np.float32), strict=True))
            self._write()
        return np.stack([self._rows[key] for key in keys])

    def _write(self) -> None:
        from safetensors.numpy import save_file

        self.path.parent.mkdir(parents=True, exist_ok=True)
        keys = np.frombuffer(b"".join(bytes.fromhex(key) for key in self._rows), dtype=np.uint8)
        written = self.path.with_suffix(".tmp")
        save_file(
            {"keys": keys.reshape(-1, 16).copy(), "embeddings": np.stack(list(self._rows.values()))}, str(written)
        )
        written.replace(self.path)


def _digest(text: str) -> str:
    import hashlib

    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
