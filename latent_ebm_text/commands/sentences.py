"""The commands on sentences: `generate`, `edit`, `score`, `interpolate`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from latent_ebm_text.commands import parsing
from latent_ebm_text.commands.output import show, with_surprise
from latent_ebm_text.commands.parsing import argument
from latent_ebm_text.errors import UsageError, require_in_interval, require_positive, require_temperature
from latent_ebm_text.training.arguments import option

# The choices of models/scoring.py and latents/interpolation.py, written again so that --help does not import torch.
ScoreName = Literal[
    "nll_per_token", "nll", "joint_energy_per_token", "joint_energy", "reconstruction_per_token", "reconstruction",
    "prior_energy",
]  # fmt: skip
Marginal = Literal["elbo", "importance", "ais", "none"]
PathKind = Literal["linear", "spherical", "low_energy"]

#: Sentences that are generated together; it decides, with the seed, which sentences come out.
_BATCH_SIZE = 1024
_MODEL = "Folder of a model or of a run, or an id of the Hub."
_REVISION = "Branch, tag or commit of a model on the Hub."
_JSON = "Print JSON, for programs."
_ATTRIBUTE = "What is wanted of attributes that the model has been fitted to: NAME=VALUE, or 'NAME=not VALUE'."
_STRENGTH = "How strongly attributes are imposed; 1 is Bayes' rule."


@dataclass
class GenerateArguments:
    """Generation"""

    model: str = argument(_MODEL)
    num_samples: int = option(8, "Number of sentences.")
    prompt: str | None = option(None, "The beginning of every sentence.")
    attribute: list[str] | None = option(None, _ATTRIBUTE)
    strength: float = option(4.0, _STRENGTH)
    temperature: float = option(1.0, "Temperature at which tokens are drawn.")
    top_p: float = option(1.0, "Draw from the most probable tokens that together have this probability.")
    greedy: bool = option(False, "Take the most probable token at every step.")
    max_new_tokens: int | None = option(None, "Longest sentence in tokens; none for the model's own limit.")
    energies: bool = option(False, "Print the energy of each latent, in nats.")
    seed: int = option(0, "Seed of the latents and the tokens.")
    revision: str | None = option(None, _REVISION)
    json: bool = option(False, _JSON)

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_new_tokens"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        if self.num_samples > 10_000_000:
            raise UsageError(
                f"num_samples of a generation must be at most 10,000,000, got {self.num_samples}: draw them in parts"
            )
        require_temperature("temperature", self.temperature)
        require_positive("strength", self.strength)
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p must be in (0, 1], got {self.top_p}")


def generate(argv: list[str]) -> None:
    """Draw latents from the prior and decode them.

    Examples:

        latent-ebm generate runs/quickstart
        latent-ebm generate me/latent-ebm-ptb --num_samples 100 --top_p 0.9 --seed 1 > samples.txt
        latent-ebm generate runs/quickstart --prompt "the bank" --json
        accelerate launch -m latent_ebm_text.commands generate runs/quickstart --num_samples 100000  # on all devices
        latent-ebm generate runs/reviews --attribute "sentiment=positive,topic=not music" --strength 8
    """
    (args,) = parsing.parse_arguments(
        (GenerateArguments,), argv, description=parsing.description_of(generate), prog="latent-ebm generate"
    )
    from latent_ebm_text.data.lines import check_unicode
    from latent_ebm_text.latents.rng import derived_generator
    from latent_ebm_text.models.loading import load_text_model
    from latent_ebm_text.models.sharing import all_processes, share_out

    check_unicode([args.prompt or ""])
    accelerator = all_processes()
    model, tokenizer = load_text_model(args.model, args.revision)
    options: dict[str, Any] = {"do_sample": not args.greedy}
    if not args.greedy:
        options |= {"temperature": args.temperature, "top_p": args.top_p}
    if args.max_new_tokens is not None:
        options["max_new_tokens"] = args.max_new_tokens
    if args.prompt is not None:
        _note_unknown_words(tokenizer, [args.prompt])
    if args.attribute:
        options |= {"attributes": _wanted(args.attribute, model.attributes), "strength": args.strength}

    def generate_batch(number: int) -> list[dict[str, Any]]:
        size = min(_BATCH_SIZE, args.num_samples - number * _BATCH_SIZE)
        inputs: dict[str, Any] = {"num_samples": size}
        if args.prompt is not None:
            inputs = dict(tokenizer([args.prompt] * size, return_tensors="pt").to(model.device))
        generator = derived_generator(args.seed, "samples", number, device=model.device)
        output: Any = model.generate(generator=generator, return_dict_in_generate=True, **inputs, **options)
        texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        return [{"text": text, "energy": energy} for text, energy in zip(texts, output.energies.tolist(), strict=True)]

    batches = share_out(generate_batch, -(-args.num_samples // _BATCH_SIZE), accelerator)
    accelerator.end_training()
    if accelerator.is_main_process:
        rows = [row for batch in batches for row in batch]
        lines = [f"{row['energy']:8.2f}  {row['text']}" if args.energies else row["text"] for row in rows]
        show(rows, lines, args.json)


@dataclass
class EditArguments:
    """Editing"""

    model: str = argument(_MODEL)
    sentences: list[str] | None = argument("Sentences; the lines of --file by default.", None)
    attribute: list[str] | None = option(None, _ATTRIBUTE)
    strength: float = option(16.0, _STRENGTH)
    content: float = option(1.0, "How much of the content is kept; 1 is Bayes' rule.")
    num_candidates: int = option(32, "Candidates per sentence, of which the best is printed.")
    file: str | None = option(None, "A text file with one sentence a line; - for standard input.")
    text_column: str | None = option(None, "Column of the file that holds the sentences, where that is unclear.")
    seed: int = option(0, "Seed of the chains.")
    revision: str | None = option(None, _REVISION)
    json: bool = option(False, "Print JSON with all candidates and their scores, for programs.")

    def __post_init__(self) -> None:
        for name in ("strength", "content", "num_candidates"):
            require_positive(name, getattr(self, name))


def edit(argv: list[str]) -> None:
    """Rewrite sentences so that they have attributes, and keep the rest of their content.

    Examples:

        latent-ebm edit runs/reviews "a dull film" --attribute sentiment=positive
        latent-ebm edit runs/reviews --file reviews.txt --attribute "sentiment=not negative" --content 0.3 --json
    """
    (args,) = parsing.parse_arguments(
        (EditArguments,), argv, description=parsing.description_of(edit), prog="latent-ebm edit"
    )
    from latent_ebm_text.latents.rng import derived_generator
    from latent_ebm_text.models.loading import load_text_model

    if not args.attribute:
        raise UsageError("say what is wanted, such as --attribute sentiment=positive")
    sentences = _sentences(args)
    model, tokenizer = load_text_model(args.model, args.revision)
    _note_unknown_words(tokenizer, sentences)
    edits = model.edit(
        sentences,
        attributes=_wanted(args.attribute, model.attributes),
        strength=args.strength,
        content=args.content,
        num_candidates=args.num_candidates,
        tokenizer=tokenizer,
        generator=derived_generator(args.seed, "edits", device=model.device),
    )
    rows = []
    for sentence, ids, scores in zip(sentences, edits.sequences, edits.scores.tolist(), strict=True):
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        candidates = [{"text": text, "score": score} for text, score in zip(texts, scores, strict=True)]
        rows.append({"source": sentence, "text": texts[0], "candidates": candidates})
    show(rows, [str(row["text"]) for row in rows], args.json)


@dataclass
class ScoreArguments:
    """Scores"""

    model: str = argument(_MODEL)
    sentences: list[str] | None = argument("Sentences; the lines of --file by default.", None)
    file: str | None = option(
        None, "A text file with one sentence a line, or any other file to train on; - for text on standard input."
    )
    text_column: str | None = option(None, "Column of the file that holds the sentences, where that is unclear.")
    by: ScoreName = option("nll_per_token", "The score that is printed; --json gives all of them.")
    marginal: Marginal = option("importance", "Estimate of -log p(x); elbo is the fast bound by the encoder.")
    explain: bool = option(False, "Show how surprising each word is, in colour on a terminal.")
    seed: int = option(0, "Seed of all draws.")
    revision: str | None = option(None, _REVISION)
    json: bool = option(False, _JSON)


def score(argv: list[str]) -> None:
    """Score how improbable sentences are, in nats: higher is more anomalous.

    Examples:

        latent-ebm score runs/quickstart "the bank recovers sharply" "sharply the the recovers"
        latent-ebm score runs/quickstart "sharply the the recovers" --explain
        latent-ebm score runs/quickstart --file sentences.txt --json > scores.json
        cat sentences.txt | latent-ebm score runs/quickstart --file - --by reconstruction_per_token --marginal none
        accelerate launch -m latent_ebm_text.commands score runs/quickstart --file sentences.txt  # on all devices
    """
    (args,) = parsing.parse_arguments(
        (ScoreArguments,), argv, description=parsing.description_of(score), prog="latent-ebm score"
    )
    from latent_ebm_text.latents.rng import derived_generator
    from latent_ebm_text.models.loading import load_text_model
    from latent_ebm_text.models.sharing import all_processes

    accelerator = all_processes()
    if args.file == "-" and accelerator.num_processes > 1:
        raise UsageError("standard input cannot be read by several processes: name a file")
    sentences = _sentences(args)
    model, tokenizer = load_text_model(args.model, args.revision)
    _note_unknown_words(tokenizer, sentences)
    generator = derived_generator(args.seed, "scores", device=model.device)
    scores = model.score(
        sentences, tokenizer=tokenizer, marginal=args.marginal, generator=generator, accelerator=accelerator
    )
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    values, columns = scores.get(args.by).tolist(), scores.to_dict()
    rows = [
        {"text": text, **{name: column[place] for name, column in columns.items()}}
        for place, text in enumerate(sentences)
    ]
    lines = [f"{value:10.3f}  {text}" for value, text in zip(values, sentences, strict=True)]
    if args.explain:
        from latent_ebm_text.anomaly.model_scores import ModelScorer

        explained = ModelScorer(model, tokenizer, args.by, "none", 128, args.seed, False).word_surprise(sentences)
        for row, words in zip(rows, explained, strict=True):
            row["words"] = [{"word": word, "surprise": surprise} for word, _, _, surprise in words]
        lines = [
            f"{value:10.3f}  {with_surprise(words, in_colour=sys.stdout.isatty())}"
            for value, words in zip(values, explained, strict=True)
        ]
    show(rows, lines, args.json)


@dataclass
class InterpolateArguments:
    """Interpolation"""

    model: str = argument(_MODEL)
    start: str = argument("The sentence to start from.")
    end: str = argument("The sentence to end at.")
    num_points: int = option(8, "Number of sentences, both ends included.")
    path: PathKind = option("linear", "Path between the two latents.")
    num_draws: int = option(8, "Posterior draws whose mean is the latent of an end.")
    seed: int = option(0, "Seed of the posterior draws.")
    revision: str | None = option(None, _REVISION)
    json: bool = option(False, _JSON)

    def __post_init__(self) -> None:
        require_in_interval("num_points", self.num_points, 2, 10_000)
        require_in_interval("num_draws", self.num_draws, 1, 10_000)


def interpolate(argv: list[str]) -> None:
    """Walk from one sentence to another through the latent space.

    Examples:

        latent-ebm interpolate runs/quickstart "the bank recovers" "rival laboratories fail badly"
        latent-ebm interpolate runs/quickstart "the bank recovers" "the exporter sank" --path low_energy
    """
    (args,) = parsing.parse_arguments(
        (InterpolateArguments,), argv, description=parsing.description_of(interpolate), prog="latent-ebm interpolate"
    )
    from latent_ebm_text.data.lines import check_unicode
    from latent_ebm_text.latents.rng import derived_generator
    from latent_ebm_text.models.loading import load_text_model

    ends = [args.start, args.end]
    check_unicode(ends)
    model, tokenizer = load_text_model(args.model, args.revision)
    _note_unknown_words(tokenizer, ends)
    generator = derived_generator(args.seed, "posterior draws", device=model.device)
    draws = model.posterior_draws(ends, tokenizer=tokenizer, num_draws=args.num_draws, generator=generator)
    start, end = draws.mean(dim=0)
    output: Any = model.interpolate(start, end, args.num_points, path=args.path, return_dict_in_generate=True)
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    rows = [
        {"place": place / (args.num_points - 1), "energy": energy, "text": text}
        for place, (energy, text) in enumerate(zip(output.energies.tolist(), texts, strict=True))
    ]
    show(rows, [f"{row['place']:4.2f} {row['energy']:8.2f}  {row['text']}" for row in rows], args.json)


def _note_unknown_words(tokenizer: Any, texts: list[str]) -> None:
    """Prints a line on standard error if a word-level model reads some words as `<unk>`."""
    if type(tokenizer.backend_tokenizer.model).__name__ != "WordLevel":
        return
    known = tokenizer.get_vocab()
    if unknown := list(dict.fromkeys(word for text in texts for word in text.split() if word not in known)):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        print(f"note: words unknown to the model, read as <unk>: {', '.join(unknown[:5])}{more}", file=sys.stderr)


def _wanted(requests: list[str], known: Mapping[str, Any]) -> dict[str, str | float]:
    """What `NAME=VALUE` asks for; the value of an attribute that is a number is one."""
    wanted: dict[str, str | float] = {}
    for request in requests:
        name, separator, value = (part.strip() for part in request.partition("="))
        if not separator or not name or not value:
            raise UsageError(f"an attribute is asked for as NAME=VALUE, got {request!r}")
        if name in wanted:
            raise UsageError(f"{name} was asked for twice; give one value")
        wanted[name] = value
        if name in known and not hasattr(known[name], "classes"):
            try:
                wanted[name] = float(value)
            except ValueError as error:
                raise UsageError(f"{name} is a number, got {value!r}") from error
    return wanted


def _sentences(args: EditArguments | ScoreArguments) -> list[str]:
    """The sentences of the command line, or those of a file."""
    from latent_ebm_text.data.lines import check_unicode, read_sentences

    given = args.sentences or []
    if bool(given) == (args.file is not None) or (given and args.text_column is not None):
        raise UsageError("give sentences, or --file with one sentence a line, and not both")
    check_unicode(given)
    return given or read_sentences(str(args.file), text_column=args.text_column)
