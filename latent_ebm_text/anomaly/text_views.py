"""What the scores of a text detector read of texts: computed once, and then looked at by row."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from latent_ebm_text.errors import UsageError

Codes = NDArray[np.uint64]
Floats = NDArray[np.float64]
#: Maps texts to vectors `(n, width)`.
Embedder = Callable[[Sequence[str]], NDArray[np.float32]]

_WORD = re.compile(r"<\w+>|\w+|[^\w\s]")
_NOT_WORD, _DIGITS = re.compile(r"\W+"), re.compile(r"\d+")
#: Characters of a text that are read; the rest of a longer one is not.
MAX_CHARACTERS = 20_000


@dataclass(frozen=True)
class TextView:
    """Texts, and what scores read of them.

    Attributes:
        texts: The texts, cut after 20,000 characters.
        vectors: `(n, width)`, float32, their embeddings.
    """

    texts: list[str]
    vectors: NDArray[np.float32]

    @classmethod
    def of(cls, texts: Sequence[str], embed: Embedder) -> TextView:
        """The view of texts.

        Raises:
            UsageError: If there are none, or they are not embedded as finite vectors of one width.
        """
        if not texts:
            raise UsageError("no texts were given")
        read = [text[:MAX_CHARACTERS] for text in texts]
        vectors = np.asarray(embed(read), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(read) or not np.isfinite(vectors).all():
            what = "values that are not finite" if vectors.ndim == 2 and len(vectors) == len(read) else vectors.shape
            raise UsageError(
                f"sentence_encoder must give finite vectors ({len(read)}, width) for as many texts, got {what}"
            )
        return cls(read, vectors)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def characters(self) -> list[Codes]:
        """The characters of every text as codes."""
        return [_character_codes(text) for text in self.texts]

    @cached_property
    def words(self) -> list[Codes]:
        """The words and marks of every text, in lower case, as codes."""
        return [word_codes([text[a:b] for a, b in word_spans(text)]) for text in self.texts]

    @cached_property
    def surface(self) -> Floats:
        """`(n, 8)`, what can be counted in a text: its length, and shares of digits, marks, capitals and the like."""
        return np.array([_surface(text) for text in self.texts]).reshape(len(self), -1)

    def take(self, rows: NDArray[np.int64]) -> TextView:
        """The view of some rows; what was computed already is not computed again."""
        part = TextView([self.texts[row] for row in rows], self.vectors[rows])
        for name in ("characters", "words"):
            if name in self.__dict__:
                whole = self.__dict__[name]
                part.__dict__[name] = [whole[row] for row in rows]
        if "surface" in self.__dict__:
            part.__dict__["surface"] = self.surface[rows]
        return part


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words and marks of a text begin and end."""
    return [match.span() for match in _WORD.finditer(text)]


def word_codes(words: Sequence[str]) -> Codes:
    """The codes of words, regardless of capitals."""
    return np.array([_word_code(word.lower()) for word in words], dtype=np.uint64)


def near_duplicates(texts: Sequence[str]) -> NDArray[np.int64]:
    """For every text the first one that is the same but for capitals, numbers, marks and white space, `(n,)`.

    Where most of the different texts would go in that way, as records and lines of logs do, they are no copies but
    differ by what they say, and only texts that are exactly the same are taken once.
    """
    first = _first_of([_NOT_WORD.sub(" ", _DIGITS.sub("0", text.lower())).strip() or text for text in texts])
    same = _first_of(texts)
    return same if 2 * len(np.unique(first)) < len(np.unique(same)) else first


def _first_of(keys: Sequence[str]) -> NDArray[np.int64]:
    """For every key the place of the first one that equals it, `(n,)`."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(key, place) for place, key in enumerate(keys)], dtype=np.int64)


@lru_cache(maxsize=200_000)
def _word_code(word: str) -> int:
    return max(3, int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big"))


def _character_codes(text: str) -> Codes:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    return codes.astype(np.uint64) + np.uint64(3)


def _surface(text: str) -> list[float]:
    length, words = max(len(text), 1), max(len(text.split()), 1)
    counts = {
        "digit": sum(map(str.isdigit, text)),
        "capital": sum(map(str.isupper, text)),
        "letter": sum(map(str.isalpha, text)),
        "space": sum(map(str.isspace, text)),
        "foreign": sum(ord(character) > 127 for character in text),
    }
    marks = len(text) - counts["digit"] - counts["letter"] - counts["space"]
    return [
        math.log(length),
        math.log(length / words),
        math.log1p(counts["digit"]),
        math.sqrt(counts["digit"] / length),
        math.sqrt(counts["capital"] / length),
        math.sqrt(marks / length),
        math.sqrt(counts["foreign"] / length),
        math.sqrt(counts["space"] / length),
    ]
