"""Probabilistic grammars with hidden attributes, whose sentences have exact probabilities.

A sentence is drawn in two steps: first attributes a ~ P(a), then a derivation of `START` with the productions that a
allows. The constructor checks that every sentence has exactly one derivation. Every sentence therefore determines its
attributes, and log p(x) and the entropy of x are exact. All logarithms are natural (nats).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from latent_ebm_text.errors import UsageError

_MAX_CHECKED_STATES = 100_000
_Stack = tuple[str | int, ...]  # still to be derived: words, or indices of nonterminals in `_nodes`


@dataclass(frozen=True)
class Attribute:
    """A hidden attribute with weights of its values, which are `given[v]` if the earlier attribute `parent` is v."""

    name: str
    weights: Mapping[str, float]
    parent: str | None = None
    given: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Production:
    """`lhs -> rhs` with a relative weight, usable only if every attribute in `when` has (one of) the given value(s).

    A symbol in upper case is a nonterminal, any other symbol is a word; `rhs` may be empty.
    """

    lhs: str
    rhs: tuple[str, ...]
    weight: float = 1.0
    when: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)

    def allows(self, attributes: Mapping[str, str]) -> bool:
        """Whether this production may be used under these attributes."""
        return all(attributes[a] == v if isinstance(v, str) else attributes[a] in v for a, v in self.when.items())


@dataclass(frozen=True)
class GrammarSentence:
    """A sentence, its exact log-probability in nats (with the end of the sentence) and its hidden attributes."""

    text: str
    log_prob: float
    attributes: dict[str, str]


@dataclass(frozen=True)
class _Choice:
    """A categorical distribution over `options`; `bounds` are the cumulative probabilities without the last one."""

    options: list[_Stack]
    probs: list[float]
    logs: list[float]
    bounds: list[float]
    entropy: float  # nats

    @classmethod
    def of(cls, options: list[_Stack], weights: Sequence[float]) -> _Choice:
        total = math.fsum(weights)
        probs = [weight / total for weight in weights]
        logs = [math.log(p) for p in probs]
        entropy = 0.0 - math.fsum(p * log for p, log in zip(probs, logs, strict=True))
        return cls(options, probs, logs, list(accumulate(probs))[:-1], entropy)

    def mean(self, values: Mapping[int, float], word: float) -> float:
        """Returns the expected sum over the symbols of an option: `values[i]` for nonterminal i, `word` for a word."""
        totals = (sum(word if isinstance(s, str) else values[s] for s in option) for option in self.options)
        return math.fsum(p * total for p, total in zip(self.probs, totals, strict=True))


class ProbabilisticGrammar:
    """A probability distribution over sentences: productions conditioned on attributes, without recursion.

    Args:
        attributes: The hidden attributes, parents before their children; may be empty.
        productions: The rules, with at least one for `start` under every possible assignment of the attributes.
        start: The nonterminal from which every sentence is derived.

    Raises:
        UsageError: If the rules are incomplete or recursive, or give a sentence two derivations.
    """

    def __init__(
        self, attributes: Iterable[Attribute], productions: Iterable[Production], start: str = "START"
    ) -> None:
        self.attributes = tuple(attributes)
        self.productions = tuple(productions)
        self.start = start
        self._rules = self._validated_rules()
        self._relevant = {lhs: self._relevant_attributes(lhs) for lhs in self._rules}
        self._nodes: list[_Choice] = []
        self._entropy: dict[int, float] = {}
        self._length: dict[int, float] = {}
        self._moves_cache: dict[_Stack, dict[str | None, list[tuple[_Stack, float]]]] = {}
        self._assignments, weights = self._enumerate_attributes()
        ids: dict[tuple[str, ...], int | None] = {}
        self._root = _Choice.of([(self._resolve(start, a, ids),) for a in self._assignments], weights)
        self._check_unambiguous()

    def sample(self, num_sentences: int, seed: int | Sequence[int] = 0) -> list[GrammarSentence]:
        """Draws independent sentences; the first n depend only on `seed` (PCG64), not on `num_sentences`."""
        check_size("num_sentences", num_sentences)
        if any(s < 0 for s in (seed if isinstance(seed, Sequence) else (seed,))):
            raise UsageError(f"seed is {seed}; give an integer that is not negative")
        uniforms = _uniforms(np.random.Generator(np.random.PCG64(seed)))
        return [self._sample_one(uniforms) for _ in range(num_sentences)]

    def parse(self, text: str) -> GrammarSentence | None:
        """Returns the sentence with its log-probability and attributes, or None if `text` is not in the language.

        The amount of white space between words does not matter.
        """
        frontier = {s: (log, i) for i, (s, log) in enumerate(zip(self._root.options, self._root.logs, strict=True))}
        words: list[str] = text.split()
        for word in (*words, None):
            frontier = {
                target: (log + step, index)
                for stack, (log, index) in frontier.items()
                for target, step in self._moves(stack).get(word, ())
            }
        if not frontier:
            return None
        ((log, index),) = frontier.values()  # the grammar is unambiguous
        return GrammarSentence(" ".join(words), log, dict(self._assignments[index]))

    def log_prob(self, text: str) -> float:
        """Exact log-probability of `text` in nats, found by parsing; -inf outside the language."""
        sentence = self.parse(text)
        return -math.inf if sentence is None else sentence.log_prob

    def entropy(self) -> float:
        """Exact entropy of a sentence in nats, with its end: the lowest mean NLL that any model can reach."""
        return self._root.entropy + self._root.mean(self._entropy, word=0.0)

    def attribute_entropy(self, name: str | None = None) -> float:
        """Exact entropy in nats of all attributes jointly, or of the one called `name`."""
        if name is None:
            return self._root.entropy
        return -math.fsum(p * math.log(p) for p in self.attribute_probs(name).values())

    def attribute_probs(self, name: str) -> dict[str, float]:
        """Exact marginal distribution of one attribute."""
        if name not in {attribute.name for attribute in self.attributes}:
            raise UsageError(f"no attribute {name!r}; choose one of {[a.name for a in self.attributes]}")
        probs: dict[str, float] = {}
        for assignment, p in zip(self._assignments, self._root.probs, strict=True):
            probs[assignment[name]] = probs.get(assignment[name], 0.0) + p
        return probs

    def mean_length(self) -> float:
        """Exact expected number of words of a sentence, without its end."""
        return self._root.mean(self._length, word=1.0)

    def entropy_rate(self) -> float:
        """Entropy in nats per token, where the end of a sentence is one token; its exp() is a perplexity."""
        return self.entropy() / (self.mean_length() + 1.0)

    def vocabulary(self) -> list[str]:
        """All words of the language, in alphabetical order."""
        return sorted({s for node in self._nodes for rhs in node.options for s in rhs if isinstance(s, str)})

    def enumerate(self) -> Iterator[tuple[str, float]]:
        """Yields every sentence of the language once, with its probability; feasible only for small grammars."""
        roots = zip(self._root.options, self._root.probs, strict=True)
        pending: list[tuple[tuple[str, ...], _Stack, float]] = [((), stack, p) for stack, p in roots]
        while pending:
            words, stack, prob = pending.pop()
            if not stack:
                yield " ".join(words), prob
            elif isinstance(stack[0], str):
                pending.append(((*words, stack[0]), stack[1:], prob))
            else:
                node = self._nodes[stack[0]]
                options = zip(node.options, node.probs, strict=True)
                pending.extend((words, rhs + stack[1:], prob * p) for rhs, p in options)

    def _sample_one(self, uniforms: Iterator[float]) -> GrammarSentence:
        index = bisect_right(self._root.bounds, next(uniforms))
        log, words, todo = self._root.logs[index], [], list(self._root.options[index])
        while todo:
            symbol = todo.pop()
            if isinstance(symbol, str):
                words.append(symbol)
                continue
            node = self._nodes[symbol]
            choice = bisect_right(node.bounds, next(uniforms)) if node.bounds else 0
            log += node.logs[choice]
            todo.extend(reversed(node.options[choice]))
        return GrammarSentence(" ".join(words), log, dict(self._assignments[index]))

    def _validated_rules(self) -> dict[str, list[Production]]:
        by_lhs: dict[str, list[Production]] = {}
        values = {a.name: set(a.weights).union(*a.given.values()) for a in self.attributes}
        for rule in self.productions:
            shown = f"the production {rule.lhs} -> {' '.join(rule.rhs)}"
            if not rule.lhs.isupper():
                raise UsageError(f"{shown} rewrites a word; write its left-hand side in upper case")
            if not (rule.weight > 0 and math.isfinite(rule.weight)):
                raise UsageError(f"{shown} has weight {rule.weight}; give a positive number or remove it")
            for name, allowed in rule.when.items():
                unknown = {allowed} if isinstance(allowed, str) else set(allowed)
                if name not in values or unknown - values[name]:
                    raise UsageError(f"{shown} needs {name}={allowed}, which no attribute defines; define it")
            by_lhs.setdefault(rule.lhs, []).append(rule)
        used = dict.fromkeys(s for rule in self.productions for s in rule.rhs if s.isupper())
        if undefined := [symbol for symbol in {self.start: None, **used} if symbol not in by_lhs]:
            raise UsageError(f"undefined nonterminals {undefined}; add productions, or write words in lower case")
        return by_lhs

    def _relevant_attributes(self, lhs: str) -> tuple[str, ...]:
        """The attributes on which the distribution of what `lhs` derives depends."""
        seen, todo = {lhs}, [lhs]
        while todo:
            new = {s for rule in self._rules[todo.pop()] for s in rule.rhs if s.isupper()} - seen
            seen |= new
            todo.extend(new)
        used = {name for symbol in seen for rule in self._rules[symbol] for name in rule.when}
        return tuple(attribute.name for attribute in self.attributes if attribute.name in used)

    def _enumerate_attributes(self) -> tuple[list[dict[str, str]], list[float]]:
        """Returns all assignments of the attributes with positive probability, and their probabilities."""
        joint: list[tuple[dict[str, str], float]] = [({}, 1.0)]
        for attribute in self.attributes:
            if any(attribute.name in assignment for assignment, _ in joint):
                raise UsageError(f"attribute {attribute.name!r} is defined twice; rename one")
            if attribute.parent is not None and any(attribute.parent not in assignment for assignment, _ in joint):
                raise UsageError(f"attribute {attribute.name!r} needs {attribute.parent!r}; define that one before")
            parent_values = {assignment[attribute.parent] for assignment, _ in joint if attribute.parent}
            if unknown := sorted(set(attribute.given) - parent_values):
                raise UsageError(f"attribute {attribute.name!r}: its parent never is {unknown}; correct `given`")
            for table in (attribute.weights, *attribute.given.values()):
                if not table or any(not (w > 0 and math.isfinite(w)) for w in table.values()):
                    raise UsageError(f"attribute {attribute.name!r}: give every value a positive weight, or omit it")
            extended: list[tuple[dict[str, str], float]] = []
            for assignment, prob in joint:
                parent_value = assignment.get(attribute.parent or "", "")
                table = attribute.given.get(parent_value, attribute.weights)
                total = math.fsum(table.values())
                extended += [({**assignment, attribute.name: v}, prob * w / total) for v, w in table.items()]
            joint = extended
        return [assignment for assignment, _ in joint], [prob for _, prob in joint]

    def _resolve(self, lhs: str, attributes: dict[str, str], ids: dict[tuple[str, ...], int | None]) -> int:
        """Returns the index of the node of `lhs` under these attributes; creates it, after its children, if new."""
        key = (lhs, *(attributes[name] for name in self._relevant[lhs]))
        if key in ids:
            if (known := ids[key]) is None:
                raise UsageError(f"the nonterminal {lhs} derives itself; recursion is not supported, unroll it")
            return known
        ids[key] = None
        rules = [rule for rule in self._rules[lhs] if rule.allows(attributes)]
        if not rules:
            raise UsageError(f"no production of {lhs} is usable when {attributes}; add one")
        options: list[_Stack] = [
            tuple(self._resolve(s, attributes, ids) if s.isupper() else s for s in rule.rhs) for rule in rules
        ]
        node = _Choice.of(options, [rule.weight for rule in rules])
        ids[key] = index = len(self._nodes)
        self._nodes.append(node)
        self._entropy[index] = node.entropy + node.mean(self._entropy, word=0.0)
        self._length[index] = node.mean(self._length, word=1.0)
        return index

    def _moves(self, stack: _Stack) -> dict[str | None, list[tuple[_Stack, float]]]:
        """Maps every next word (None: the end) to the stacks that remain after it, with log-probabilities in nats."""
        if (found := self._moves_cache.get(stack)) is not None:
            return found
        moves: dict[str | None, list[tuple[_Stack, float]]] = {}
        todo = [(stack, 0.0)]
        while todo:
            now, log = todo.pop()
            if not now:
                moves.setdefault(None, []).append(((), log))
            elif isinstance(symbol := now[0], str):
                moves.setdefault(symbol, []).append((now[1:], log))
            else:
                node = self._nodes[symbol]
                todo += [(rhs + now[1:], log + step) for rhs, step in zip(node.options, node.logs, strict=True)]
        self._moves_cache[stack] = moves
        return moves

    def _check_unambiguous(self) -> None:
        """Follows all prefixes; two derivations share a sentence iff they leave the same stack after some prefix."""
        queue = deque([(self._root.options, "")])
        seen: set[frozenset[_Stack]] = set()
        while queue:
            stacks, prefix = queue.popleft()
            distinct = frozenset(stacks)
            if len(distinct) < len(stacks):
                raise UsageError(
                    f"the grammar is ambiguous: two derivations (or two assignments of the attributes) begin with "
                    f"{prefix!r} and continue alike; remove one, or make the words differ"
                )
            if distinct in seen:
                continue
            seen.add(distinct)
            if len(seen) > _MAX_CHECKED_STATES:
                raise UsageError("the grammar is too large to be proved unambiguous; use fewer rules or attributes")
            following: dict[str | None, list[_Stack]] = {}
            for stack in stacks:
                for word, targets in self._moves(stack).items():
                    following.setdefault(word, []).extend(target for target, _ in targets)
            for word, targets_of_word in following.items():
                if word is not None:
                    queue.append((targets_of_word, f"{prefix} {word}".strip()))
                elif len(targets_of_word) > 1:
                    raise UsageError(f"the grammar is ambiguous: {prefix!r} has two derivations; remove one")


def rules(lhs: str, alternatives: str, **when: str | tuple[str, ...]) -> list[Production]:
    """Builds productions from `"RHS [weight] | RHS | ..."` (default weight 1), all under the same conditions."""
    productions = []
    for alternative in alternatives.split("|"):
        match = re.fullmatch(r"([^\[\]]*)(?:\[(\d+(?:\.\d+)?)\]\s*)?", alternative)
        if match is None:
            raise UsageError(f"{lhs}: cannot read {alternative.strip()!r}; write symbols, then at most one [weight]")
        productions.append(Production(lhs, tuple(match[1].split()), float(match[2] or 1), when))
    return productions


def lexicon(lhs: str, words: Iterable[str], **when: str | tuple[str, ...]) -> list[Production]:
    """Builds one production per word or phrase; earlier ones are more frequent (weight 1 / (rank + 3))."""
    return [Production(lhs, tuple(word.split()), 1 / (rank + 3), when) for rank, word in enumerate(words)]


def check_size(name: str, value: int) -> None:
    """Raises a `UsageError` unless a number of sentences is positive."""
    if value <= 0:
        raise UsageError(f"{name} is {value}; give a positive number of sentences")


def _uniforms(generator: np.random.Generator) -> Iterator[float]:
    while True:
        yield from generator.random(4096).tolist()
