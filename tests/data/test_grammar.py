"""The embedded corpus: exact quantities are compared with enumeration, parsing or sampling."""

import math
from collections import Counter

import pytest

from latent_ebm_text.data.grammar import Attribute, ProbabilisticGrammar, Production, lexicon, rules
from latent_ebm_text.data.newswire import grammar_dataset, newswire_grammar
from latent_ebm_text.errors import UsageError

NEWSWIRE_SEED = 11
PINNED = [
    "talented champions dominated the main cup in northern italy on saturday as rivals praised the form",
    "the conservative governors discussed another law in western mexico on monday "
    "while officials studied mixed turnout",
]


def toy_grammar() -> ProbabilisticGrammar:
    """Dependent attributes, an empty production, unequal weights, sentences of 2 to 6 words."""
    attributes = [
        Attribute("mood", {"glad": 1, "sad": 3}),
        Attribute("number", {"one": 1, "many": 1}, "mood", {"sad": {"one": 5, "many": 1}}),
    ]
    productions = [
        *rules("START", "NP VP [2] | NP VP TAIL"),
        *rules("NP", "the NOUN [3] | a NOUN", number="one"),
        *rules("NP", "NOUN", number="many"),
        *lexicon("NOUN", ["cat", "dog"], number="one"),
        *lexicon("NOUN", ["cats", "dogs"], number="many"),
        *rules("VP", "V MUCH"),
        *rules("MUCH", "| very MUCHER [4]"),
        *rules("MUCHER", "much | much indeed"),
        *rules("TAIL", "today"),
        *rules("V", "sings | purrs [2]", mood="glad", number="one"),
        *rules("V", "sing | purr [2]", mood="glad", number="many"),
        *rules("V", "weeps", mood="sad", number="one"),
        *rules("V", "weep", mood="sad", number="many"),
    ]
    return ProbabilisticGrammar(attributes, productions)


@pytest.fixture(scope="module")
def newswire():
    return newswire_grammar()


@pytest.fixture(scope="module")
def drawn(newswire):
    return newswire.sample(20_000, NEWSWIRE_SEED)


def test_enumeration_is_a_distribution_and_agrees_with_the_parser():
    grammar = toy_grammar()
    listed = list(grammar.enumerate())
    texts = [text for text, _ in listed]
    assert len(set(texts)) == len(texts) == 108
    assert math.fsum(p for _, p in listed) == pytest.approx(1, abs=1e-12)
    for text, p in listed:
        assert grammar.log_prob(text) == pytest.approx(math.log(p), abs=1e-12)


def test_log_prob_of_one_sentence_by_hand():
    # sad 3/4, one 5/6; NP VP TAIL 1/3; the NOUN 3/4; dog (1/4)/(1/3+1/4); weeps 1; very MUCHER 4/5; much 1/2; today 1
    by_hand = 3 / 4 * 5 / 6 * 1 / 3 * 3 / 4 * 3 / 7 * 4 / 5 * 1 / 2
    assert toy_grammar().log_prob("the dog weeps very much today") == pytest.approx(math.log(by_hand), abs=1e-12)


def test_exact_moments_equal_the_enumerated_ones():
    grammar = toy_grammar()
    listed = list(grammar.enumerate())
    entropy = -math.fsum(p * math.log(p) for _, p in listed)
    length = math.fsum(p * len(text.split()) for text, p in listed)
    assert grammar.entropy() == pytest.approx(entropy, abs=1e-12)
    assert grammar.mean_length() == pytest.approx(length, abs=1e-12)
    assert grammar.entropy_rate() == pytest.approx(entropy / (length + 1), abs=1e-12)
    joint = Counter()
    for text, p in listed:
        joint[tuple(grammar.parse(text).attributes.items())] += p
    assert grammar.attribute_entropy() == pytest.approx(-sum(p * math.log(p) for p in joint.values()), abs=1e-12)
    assert grammar.attribute_probs("number") == pytest.approx({"one": 1 / 8 + 5 / 8, "many": 1 / 8 + 1 / 8})
    assert grammar.attribute_entropy("number") == pytest.approx(math.log(4) - 0.75 * math.log(3))
    assert grammar.vocabulary() == sorted({word for text, _ in listed for word in text.split()})


def test_grammar_without_attributes_and_with_one_sentence():
    grammar = ProbabilisticGrammar([], rules("START", "hello"))
    assert list(grammar.enumerate()) == [("hello", 1.0)]
    assert grammar.entropy() == grammar.attribute_entropy() == grammar.log_prob("hello") == 0
    assert grammar.sample(2)[1].attributes == {}


@pytest.mark.parametrize(
    "alternatives",
    ["a B | a c", "B c | B C", "B | B", "E | E E"],
    ids=["word", "suffix", "same", "empty"],
)
def test_two_derivations_of_one_string_are_refused(alternatives):
    productions = [*rules("START", alternatives), *rules("B", "c | d"), *rules("C", "c"), *rules("E", " ")]
    with pytest.raises(UsageError, match="ambiguous"):
        ProbabilisticGrammar([], productions)


def test_late_ambiguity_is_found_and_its_prefix_is_named():
    productions = [*rules("START", "X Y"), *rules("X", "a | a b"), *rules("Y", "b c | c | d")]
    with pytest.raises(UsageError, match="ambiguous.*'a b c?'"):
        ProbabilisticGrammar([], productions)
    assert ProbabilisticGrammar([], [p for p in productions if p.rhs != ("b", "c")]).log_prob("a b c") < 0


def test_attribute_that_the_string_does_not_show_is_refused():
    with pytest.raises(UsageError, match="ambiguous"):
        ProbabilisticGrammar([Attribute("mood", {"glad": 1, "sad": 1})], rules("START", "hello"))
    both = [*rules("START", "a | b", mood="glad"), *rules("START", "b | c", mood="sad")]
    with pytest.raises(UsageError, match="ambiguous.*'b'"):
        ProbabilisticGrammar([Attribute("mood", {"glad": 1, "sad": 1})], both)


MOOD = Attribute("mood", {"glad": 1})


@pytest.mark.parametrize(
    ("attributes", "productions", "message"),
    [
        ([], [Production("START", ("a",), 0.0)], "weight 0.0; give a positive"),
        ([], [Production("START", ("a",), -1.0)], "weight -1.0; give a positive"),
        ([], [Production("START", ("a",), math.nan)], "weight nan; give a positive"),
        ([], rules("START", "a NOUN"), r"undefined nonterminals \['NOUN'\]; add"),
        ([], rules("NOUN", "a"), r"undefined nonterminals \['START'\]; add"),
        ([], rules("START", "a B | c") + rules("B", "START"), "recursion is not supported"),
        ([], rules("start", "a"), "upper case"),
        ([], rules("START", "a", mood="glad"), "mood=glad, which no attribute defines"),
        ([MOOD], rules("START", "a", mood="gald"), "mood=gald, which no attribute defines"),
        ([Attribute("mood", {"glad": 1, "sad": 1})], rules("START", "a", mood="glad"), "'mood': 'sad'}; add one"),
        ([MOOD, MOOD], rules("START", "a"), "defined twice"),
        ([Attribute("mood", {"glad": 0})], rules("START", "a"), "positive weight"),
        ([Attribute("mood", {})], rules("START", "a"), "positive weight"),
        ([Attribute("mood", {"glad": 1}, "topic")], rules("START", "a"), "needs 'topic'; define"),
        ([MOOD, Attribute("b", {"c": 1}, "mood", {"gald": {"c": 1}})], rules("START", "a"), r"never is \['gald'\]"),
    ],
)
def test_bad_grammars_are_refused(attributes, productions, message):
    with pytest.raises(UsageError, match=message):
        ProbabilisticGrammar(attributes, productions)


@pytest.mark.parametrize("alternatives", ["a [-1]", "a [x]", "a [1", "[1] a"])
def test_unreadable_weights_are_refused(alternatives):
    with pytest.raises(UsageError, match="cannot read"):
        rules("START", alternatives)


@pytest.mark.parametrize("size", [0, -3])
def test_sizes_that_are_not_positive_are_refused(newswire, size):
    with pytest.raises(UsageError, match=f"num_sentences is {size}; give"):
        newswire.sample(size)
    with pytest.raises(UsageError, match=f"num_test is {size}; give"):
        grammar_dataset(10, 10, size)
    with pytest.raises(UsageError, match="seed is -1"):
        newswire.sample(1, seed=-1)
    with pytest.raises(UsageError, match="no attribute 'colour'; choose one of"):
        newswire.attribute_probs("colour")


def test_sampled_log_prob_and_attributes_equal_the_parsed_ones(newswire, drawn):
    for sentence in drawn[:1500]:
        parsed = newswire.parse(sentence.text)
        assert parsed.log_prob == pytest.approx(sentence.log_prob, abs=1e-10)
        assert (parsed.text, parsed.attributes) == (sentence.text, sentence.attributes)


def test_mean_negative_log_prob_is_the_entropy(newswire, drawn):
    values = [-sentence.log_prob for sentence in drawn]
    mean = math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    assert abs(mean - newswire.entropy()) < 4 * error
    assert error < 0.05  # nats: the comparison has teeth
    lengths = [len(sentence.text.split()) for sentence in drawn]
    assert sum(lengths) / len(lengths) == pytest.approx(newswire.mean_length(), abs=4 * 3.5 / math.sqrt(len(drawn)))


def test_attribute_frequencies(newswire, drawn):
    for attribute in newswire.attributes:
        counts = Counter(sentence.attributes[attribute.name] for sentence in drawn)
        probs = newswire.attribute_probs(attribute.name)
        assert set(counts) == set(probs)
        for value, p in probs.items():
            assert abs(counts[value] / len(drawn) - p) < 4 * math.sqrt(p * (1 - p) / len(drawn)), value


def test_sentiment_depends_on_the_topic(drawn):
    def bad(topic):
        chosen = [s.attributes["sentiment"] == "bad" for s in drawn if s.attributes["topic"] == topic]
        return sum(chosen) / len(chosen)

    assert bad("weather") == pytest.approx(0.6, abs=0.04)
    assert bad("technology") == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the bank",
        "the bank raises dividend",
        "the bank raise the dividend",  # number
        "the banks raises the dividend",
        "the bank raised the dividend tomorrow",  # tense
        "the bank raised the title",  # topic
        "the bank sank smoothly",  # sentiment
        "the bank raised the dividend today today",
        "the bank raised the dividend <unk>",
        "START",
    ],
)
def test_outside_the_language(newswire, text):
    assert newswire.log_prob(text) == -math.inf
    assert newswire.parse(text) is None


def test_white_space_does_not_matter(newswire):
    text = "the bank raised the dividend"
    assert newswire.log_prob(f"  {text.replace(' ', '  ')}\n") == newswire.log_prob(text) > -math.inf


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("the bank raised the dividend", "markets past singular good short"),
        ("big banks raise the dividend now", "markets present plural good short"),
        ("several parties will reject the new treaty", "politics future plural bad short"),
        ("yesterday the young team won the title in paris", "sports past singular good medium"),
        ("the storm approaches the coast near tokyo now", "weather present singular neutral medium"),
        ("users say the startup will fail badly as engineers fear the testing", "technology future singular bad long"),
    ],
)
def test_hidden_attributes_of_sentences(newswire, text, attributes):
    assert list(newswire.parse(text).attributes.values()) == attributes.split()


def test_agreement(drawn):
    for sentence in drawn:
        words, tense = set(sentence.text.split()), sentence.attributes["tense"]
        assert ("will" in words) == (tense == "future")
        assert not words & {"yesterday", "last", "said", "reported"} or tense == "past"
        assert not words & {"tomorrow", "next"} or tense == "future"
        assert not words & {"one", "a"} or sentence.attributes["number"] == "singular"
        assert not words & {"two", "three", "several", "many"} or sentence.attributes["number"] == "plural"
        assert not words & {"raises", "wins", "rejects", "damages", "launches"} or (
            tense == "present" and sentence.attributes["number"] == "singular"
        )


def test_no_indefinite_article_before_a_vowel(drawn):
    followers = {b for s in drawn for a, b in zip(s.text.split(), s.text.split()[1:], strict=False) if a == "a"}
    assert len(followers) == 25
    assert not any(word[0] in "aeiou" for word in followers)


def test_shape_of_the_corpus(newswire, drawn):
    assert 300 <= len(newswire.vocabulary()) <= 500
    assert {w for s in drawn for w in s.text.split()} == set(newswire.vocabulary())
    lengths = [len(s.text.split()) for s in drawn]
    assert min(lengths) == 4
    assert 17 <= max(lengths) <= 20
    mean = {
        name: sum(chosen) / len(chosen)
        for name in ("short", "medium", "long")
        for chosen in [[n for n, s in zip(lengths, drawn, strict=True) if s.attributes["length"] == name]]
    }
    assert mean["short"] + 2 < mean["medium"] < mean["long"] - 2
    texts = [s.text for s in drawn[:10_000]]
    assert len(set(texts)) > 0.99 * len(texts)
    long_texts = [s.text for s in drawn if s.attributes["length"] == "long"]
    assert len(set(long_texts)) > 0.999 * len(long_texts)


def test_determinism(newswire, drawn):
    assert newswire.sample(50, NEWSWIRE_SEED) == drawn[:50]
    assert newswire.sample(50, NEWSWIRE_SEED + 1) != drawn[:50]
    # a change of these changes the corpus of everyone, and belongs in the change log
    assert [s.text for s in newswire.sample(2, 0)] == PINNED


def test_exact_numbers_are_pinned(newswire):
    assert newswire.entropy() == pytest.approx(20.288845, abs=1e-6)
    assert newswire.attribute_entropy() == pytest.approx(5.340882, abs=1e-6)
    assert newswire.mean_length() == pytest.approx(9.944202, abs=1e-6)


def test_dataset(newswire):
    corpus = grammar_dataset(30, 20, 10, seed=5)
    assert {name: split.num_rows for name, split in corpus.items()} == {"train": 30, "validation": 20, "test": 10}
    attributes = ["topic", "tense", "number", "sentiment", "length"]
    for split in corpus.values():
        assert set(split.column_names) == {"text", "log_prob", *attributes}
        assert split.features["log_prob"].dtype == "float64"
        assert {split.features[name].dtype for name in ("text", *attributes)} == {"string"}
        for row in split:
            parsed = newswire.parse(row["text"])
            assert row["log_prob"] == pytest.approx(parsed.log_prob, abs=1e-10)
            assert {name: row[name] for name in attributes} == parsed.attributes
    assert not set(corpus["train"]["text"][:10]) & set(corpus["validation"]["text"][:10])
    larger = grammar_dataset(40, 20, 10, seed=5)
    assert larger["train"]["text"][:30] == corpus["train"]["text"][:]
    assert larger["test"].to_dict() == corpus["test"].to_dict()
    assert grammar_dataset(30, 20, 10, seed=6)["test"]["text"] != corpus["test"]["text"]
