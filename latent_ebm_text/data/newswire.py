"""The embedded corpus `grammar`: newswire-like English with a topic, a tense, a number, a sentiment and a length."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from latent_ebm_text.data.grammar import Attribute, ProbabilisticGrammar, Production, check_size, lexicon, rules

if TYPE_CHECKING:
    from datasets import DatasetDict

_ATTRIBUTES = (
    Attribute("topic", {"markets": 6, "politics": 5, "sports": 4, "weather": 3, "technology": 2}),
    Attribute(
        "tense",
        {"past": 5, "present": 2, "future": 3},
        "topic",
        {"weather": {"past": 3, "present": 2, "future": 5}, "sports": {"past": 6, "present": 3, "future": 1}},
    ),
    Attribute("number", {"singular": 6, "plural": 4}),
    Attribute(
        "sentiment",
        {"good": 1, "bad": 1, "neutral": 1},
        "topic",
        {
            "markets": {"good": 4, "bad": 4, "neutral": 2},
            "politics": {"good": 2, "bad": 3, "neutral": 5},
            "weather": {"good": 2, "bad": 6, "neutral": 2},
            "technology": {"good": 6, "bad": 2, "neutral": 2},
        },
    ),
    Attribute("length", {"short": 3, "medium": 4, "long": 3}),
)

_STRUCTURE: tuple[tuple[str, str, dict[str, str | tuple[str, ...]]], ...] = (
    ("START", "CLAUSE [2] | CLAUSE WHEN", {"length": "short"}),
    ("START", "CLAUSE PLACE WHEN [3] | WHEN CLAUSE PLACE [2] | CLAUSE CAUSE [2]", {"length": "medium"}),
    ("START", "CLAUSE PLACE CAUSE", {"length": "medium"}),
    ("START", "CLAUSE PLACE WHEN LINK [3] | SOURCE CLAUSE PLACE WHEN CAUSE [2]", {"length": "long"}),
    ("START", "SOURCE CLAUSE LINK", {"length": "long"}),
    ("CLAUSE", "SUBJECT TRANSITIVE OBJECT [3] | SUBJECT INTRANSITIVE ADVERB [2]", {}),
    ("SUBJECT", "the NOUN [3] | the ADJECTIVE NOUN [3] | a ADJECTIVE NOUN [2] | one NOUN", {"number": "singular"}),
    ("SUBJECT", "ADJECTIVE NOUN [3] | the ADJECTIVE NOUN [2] | COUNT NOUN [2]", {"number": "plural"}),
    ("COUNT", "two [2] | three | several [3] | many [2]", {}),
    ("OBJECT", "the THING [2] | the QUALITY THING [3] | another THING", {}),
    ("QUALITY", "new [4] | main [2] | second | biggest | latest [2] | final", {}),
    ("WHEN", "on DAY [4] | yesterday [2] | last PERIOD [2]", {"tense": "past"}),
    ("WHEN", "today [3] | this PERIOD [2] | now", {"tense": "present"}),
    ("WHEN", "on DAY [2] | tomorrow [3] | next PERIOD [3]", {"tense": "future"}),
    ("DAY", "monday | tuesday | wednesday | thursday | friday | saturday | sunday", {}),
    ("PERIOD", "week [4] | month [3] | spring | summer | autumn | winter", {}),
    ("PLACE", "in CITY [3] | near CITY | in REGION COUNTRY [2]", {}),
    ("CITY", "london [3] | paris [2] | tokyo [2] | berlin | madrid | chicago | boston | dublin | sydney | cairo", {}),
    ("REGION", "northern | southern | eastern | western | central", {}),
    ("COUNTRY", "france | germany | japan | china | india | canada | mexico | spain | italy | brazil", {}),
    ("CAUSE", "amid TONE FACTOR [2] | after TONE FACTOR | despite CONTRAST FACTOR", {}),
    ("CONTRAST", "BRIGHT", {"sentiment": "bad"}),
    ("CONTRAST", "GRIM", {"sentiment": "good"}),
    ("CONTRAST", "BRIGHT | GRIM", {"sentiment": "neutral"}),
    ("TONE", "BRIGHT", {"sentiment": "good"}),
    ("TONE", "GRIM", {"sentiment": "bad"}),
    ("TONE", "mixed [2] | fresh | routine", {"sentiment": "neutral"}),
    ("BRIGHT", "strong [3] | solid [2] | promising | impressive", {}),
    ("GRIM", "weak [3] | poor [2] | disappointing | alarming", {}),
    ("SOURCE", "PEOPLE said [3] | PEOPLE reported", {"tense": "past"}),
    ("SOURCE", "PEOPLE say [2] | PEOPLE believe", {"tense": ("present", "future")}),
    ("LINK", "as PEOPLE REACTION the FACTOR [2] | while PEOPLE REACTION TONE FACTOR", {}),
    ("ADVERB", "strongly [2] | steadily [2] | smoothly | splendidly", {"sentiment": "good"}),
    ("ADVERB", "badly [2] | sharply [2] | suddenly | painfully", {"sentiment": "bad"}),
    ("ADVERB", "quietly [2] | slowly [2] | briefly | again", {"sentiment": "neutral"}),
)

_REACTIONS = {"good": "welcome praise celebrate", "bad": "fear criticise blame", "neutral": "study await discuss"}

# topic, lexical nonterminal, words (nouns in the singular)
_LEXICON = (
    ("markets", "NOUN", "bank company fund broker insurer exporter retailer"),
    ("markets", "ADJECTIVE", "big foreign regional private listed"),
    ("markets", "THING", "dividend forecast portfolio payout loan share"),
    ("markets", "FACTOR", "earnings demand trading inflation"),
    ("markets", "PEOPLE", "analysts traders investors"),
    ("politics", "NOUN", "minister senator party governor mayor committee lawmaker"),
    ("politics", "ADJECTIVE", "senior liberal conservative local moderate"),
    ("politics", "THING", "treaty budget bill reform pact law"),
    ("politics", "FACTOR", "polling debate diplomacy turnout"),
    ("politics", "PEOPLE", "voters officials diplomats"),
    ("sports", "NOUN", "team player club striker coach champion goalkeeper"),
    ("sports", "ADJECTIVE", "young national veteran talented visiting"),
    ("sports", "THING", "title match trophy race series cup"),
    ("sports", "FACTOR", "form preparation refereeing support"),
    ("sports", "PEOPLE", "fans commentators rivals"),
    ("weather", "NOUN", "storm wind shower hurricane blizzard breeze front"),
    ("weather", "ADJECTIVE", "cold tropical late powerful rare"),
    ("weather", "THING", "coast valley harbour village island highway"),
    ("weather", "FACTOR", "visibility rainfall pressure humidity"),
    ("weather", "PEOPLE", "forecasters residents farmers"),
    ("technology", "NOUN", "startup developer chipmaker laboratory researcher programmer vendor"),
    ("technology", "ADJECTIVE", "small global rival leading digital"),
    ("technology", "THING", "chip phone robot browser platform satellite"),
    ("technology", "FACTOR", "testing funding security feedback"),
    ("technology", "PEOPLE", "engineers users reviewers"),
)

# topic, sentiment, transitive verbs, intransitive verbs ("base/third person/past" where irregular)
_VERBS = (
    ("markets", "good", "raise improve secure", "recover grow/grows/grew"),
    ("markets", "bad", "lose/loses/lost miss suspend", "struggle sink/sinks/sank"),
    ("markets", "neutral", "review publish value", "wait trade"),
    ("politics", "good", "defend win/wins/won secure", "prevail advance"),
    ("politics", "bad", "reject oppose block", "resign stumble"),
    ("politics", "neutral", "discuss review draft", "testify speak/speaks/spoke"),
    ("sports", "good", "win/wins/won dominate claim", "recover improve"),
    ("sports", "bad", "lose/loses/lost forfeit miss", "struggle stumble"),
    ("sports", "neutral", "enter watch discuss", "train rest"),
    ("weather", "good", "spare refresh cool", "weaken fade"),
    ("weather", "bad", "damage batter destroy", "worsen intensify"),
    ("weather", "neutral", "reach cross approach", "move drift"),
    ("technology", "good", "unveil launch improve", "expand grow/grows/grew"),
    ("technology", "bad", "delay recall suspend", "fail struggle"),
    ("technology", "neutral", "test review update", "experiment wait"),
)


def _with_suffix(word: str, suffix: str) -> str:
    """Inflects a regular English word with "s" or "ed"."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + ("ies" if suffix == "s" else "ied")
    if suffix == "s":
        return word + ("es" if word.endswith(("s", "sh", "ch", "x")) else "s")
    return word + ("d" if word.endswith("e") else "ed")


def _verb_rules(lhs: str, verbs: str, **when: str) -> list[Production]:
    forms = [
        verb.split("/") if "/" in verb else (verb, _with_suffix(verb, "s"), _with_suffix(verb, "ed"))
        for verb in verbs.split()
    ]
    bases, thirds, pasts = zip(*forms, strict=True)
    return [
        *lexicon(lhs, pasts, tense="past", **when),
        *lexicon(lhs, thirds, tense="present", number="singular", **when),
        *lexicon(lhs, bases, tense="present", number="plural", **when),
        *lexicon(lhs, [f"will {base}" for base in bases], tense="future", **when),
    ]


@cache
def newswire_grammar() -> ProbabilisticGrammar:
    """Returns the grammar of the embedded corpus, which is built and checked once."""
    productions = [rule for lhs, alternatives, when in _STRUCTURE for rule in rules(lhs, alternatives, **when)]
    for topic, lhs, words in _LEXICON:
        if lhs == "NOUN":
            plurals = [_with_suffix(noun, "s") for noun in words.split()]
            productions += lexicon(lhs, words.split(), topic=topic, number="singular")
            productions += lexicon(lhs, plurals, topic=topic, number="plural")
        else:
            productions += lexicon(lhs, words.split(), topic=topic)
    for topic, sentiment, transitive, intransitive in _VERBS:
        productions += _verb_rules("TRANSITIVE", transitive, topic=topic, sentiment=sentiment)
        productions += _verb_rules("INTRANSITIVE", intransitive, topic=topic, sentiment=sentiment)
    for sentiment, verbs in _REACTIONS.items():
        pasts = [_with_suffix(verb, "ed") for verb in verbs.split()]
        productions += lexicon("REACTION", pasts, tense="past", sentiment=sentiment)
        productions += lexicon("REACTION", verbs.split(), tense=("present", "future"), sentiment=sentiment)
    return ProbabilisticGrammar(_ATTRIBUTES, productions)


def grammar_dataset(
    num_train: int = 8000, num_validation: int = 1000, num_test: int = 1000, seed: int = 0
) -> DatasetDict:
    """Generates the embedded corpus, with the columns `text`, `log_prob` (float64, nats) and one per attribute.

    All splits are independent draws from `newswire_grammar()`, so a short sentence may occur in two of them. A split
    depends only on the seed and its own size, and a smaller split is the beginning of a larger one.

    Raises:
        UsageError: If a size is not positive or the seed is negative.
    """
    from datasets import Dataset, DatasetDict, Features, Value

    grammar = newswire_grammar()
    names = [attribute.name for attribute in grammar.attributes]
    features = Features({"text": Value("string"), "log_prob": Value("float64")} | {n: Value("string") for n in names})
    splits = {}
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, size in sizes.items():
        check_size(f"num_{name}", size)
    for index, (name, size) in enumerate(sizes.items()):
        sentences = grammar.sample(size, (seed, index))
        columns: dict[str, list[str] | list[float]] = {n: [s.attributes[n] for s in sentences] for n in names}
        columns |= {"text": [s.text for s in sentences], "log_prob": [s.log_prob for s in sentences]}
        splits[name] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)
