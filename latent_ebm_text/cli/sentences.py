"""Commands on sentences: `generate`, `score`, `interpolate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from latent_ebm_text.cli.output import AsJson, Model, Revision, Seed, show
from latent_ebm_text.errors import DataError, UsageError

# The choices of latent_ebm_text.scoring and latent_ebm_text.latents, without the seconds that importing these takes.
_Score = Literal[
    "nll_per_token", "nll", "joint_energy_per_token", "joint_energy", "reconstruction_per_token", "reconstruction",
    "prior_energy",
]  # fmt: skip
_Marginal = Literal["importance", "ais", "none"]
_Path = Literal["linear", "spherical", "low_energy"]


def generate(
    model: Model,
    num_samples: Annotated[int, typer.Option(help="How many sentences.")] = 8,
    prompt: Annotated[str | None, typer.Option(help="How all of them begin.")] = None,
    temperature: Annotated[float, typer.Option(help="At which words are drawn.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw from the most probable words that have this mass.")] = 1.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the most probable word every time.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a sentence.", show_default="the model's")
    ] = None,
    energies: Annotated[bool, typer.Option("--energies", help="Print the energy of each latent, in nats.")] = False,
    seed: Seed = 0,
    revision: Revision = None,
    json: AsJson = False,
) -> None:
    """Draw latents from the prior and decode them.

    \b
    latent-ebm generate runs/quickstart
    latent-ebm generate me/latent-ebm-ptb --num-samples 100 --top-p 0.9 --seed 1 > samples.txt
    latent-ebm generate runs/quickstart --prompt "the bank" --json
    """
    from latent_ebm_text.hub import load_text_model
    from latent_ebm_text.streams import stream
    from latent_ebm_text.training.configuration import require_positive

    for name, value in (
        ("num_samples", num_samples),
        ("temperature", temperature),
        ("max_new_tokens", max_new_tokens),
    ):
        if value is not None:
            require_positive(name, value)
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p must be in (0, 1], got {top_p}")

    loaded, tokenizer = load_text_model(model, revision)
    options: dict[str, Any] = {"do_sample": not greedy}
    if not greedy:
        options |= {"temperature": temperature, "top_p": top_p}
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    if prompt is None:
        options["num_samples"] = num_samples
    else:
        _tell_unknown_words(tokenizer, [prompt])
        options |= dict(tokenizer([prompt] * num_samples, return_tensors="pt").to(loaded.device))
    output: Any = loaded.generate(
        generator=stream(seed, "samples", 0, device=loaded.device), return_dict_in_generate=True, **options
    )
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    rows = [{"text": text, "energy": energy} for text, energy in zip(texts, output.energies.tolist(), strict=True)]
    show(rows, [f"{row['energy']:8.2f}  {row['text']}" if energies else row["text"] for row in rows], json)


def score(
    model: Model,
    sentences: Annotated[list[str] | None, typer.Argument(help="Sentences; by default the lines of --file.")] = None,
    file: Annotated[str | None, typer.Option(help="A text file, one sentence a line; - for standard input.")] = None,
    by: Annotated[_Score, typer.Option(help="The score that is printed; --json gives all.")] = "nll_per_token",
    marginal: Annotated[_Marginal, typer.Option(help="How -log p(x) is estimated.")] = "importance",
    seed: Seed = 0,
    revision: Revision = None,
    json: AsJson = False,
) -> None:
    """Say how improbable sentences are, in nats: higher is more anomalous.

    \b
    latent-ebm score runs/quickstart "the bank recovers sharply" "sharply the the recovers"
    latent-ebm score runs/quickstart --file sentences.txt --json > scores.json
    cat sentences.txt | latent-ebm score runs/quickstart --file - --by reconstruction_per_token --marginal none
    """
    from latent_ebm_text.hub import load_text_model

    given = _sentences(sentences, file)
    loaded, tokenizer = load_text_model(model, revision)
    _tell_unknown_words(tokenizer, given)
    scores = loaded.score(given, tokenizer=tokenizer, marginal=marginal, seed=seed)
    values, columns = scores.get(by).tolist(), scores.to_dict()
    rows = [
        {"text": text, **{name: column[place] for name, column in columns.items()}} for place, text in enumerate(given)
    ]
    show(rows, [f"{value:10.3f}  {text}" for value, text in zip(values, given, strict=True)], json)


def interpolate(
    model: Model,
    start: Annotated[str, typer.Argument(help="A sentence.", show_default=False)],
    end: Annotated[str, typer.Argument(help="Another one.", show_default=False)],
    num_points: Annotated[int, typer.Option(help="Sentences, both ends included.")] = 8,
    path: Annotated[_Path, typer.Option(help="Between their latents.")] = "linear",
    num_draws: Annotated[int, typer.Option(help="Posterior draws that the ends are means of.")] = 8,
    seed: Seed = 0,
    revision: Revision = None,
    json: AsJson = False,
) -> None:
    """Walk from one sentence to another through the latent space.

    \b
    latent-ebm interpolate runs/quickstart "the bank recovers" "rival laboratories fail badly"
    latent-ebm interpolate runs/quickstart "the bank recovers" "the exporter sank" --path low_energy --num-points 12
    """
    if num_points < 2:
        raise UsageError(f"num_points must be at least 2, got {num_points}")
    from latent_ebm_text.hub import load_text_model

    loaded, tokenizer = load_text_model(model, revision)
    _tell_unknown_words(tokenizer, [start, end])
    first, last = loaded.posterior_draws([start, end], tokenizer=tokenizer, num_draws=num_draws, seed=seed).mean(dim=0)
    output: Any = loaded.interpolate(first, last, num_points, path=path, return_dict_in_generate=True)
    texts = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    rows = [
        {"place": place / (num_points - 1), "energy": energy, "text": text}
        for place, (energy, text) in enumerate(zip(output.energies.tolist(), texts, strict=True))
    ]
    show(rows, [f"{row['place']:4.2f} {row['energy']:8.2f}  {row['text']}" for row in rows], json)


def _tell_unknown_words(tokenizer: Any, texts: list[str]) -> None:
    """A line on standard error if a model of whole words reads some of these as `<unk>`."""
    if type(tokenizer.backend_tokenizer.model).__name__ != "WordLevel":
        return
    known = tokenizer.get_vocab()
    if unknown := list(dict.fromkeys(word for text in texts for word in text.split() if word not in known)):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        print(f"note: words unknown to the model, read as <unk>: {', '.join(unknown[:5])}{more}", file=sys.stderr)


def _sentences(given: list[str] | None, file: str | None) -> list[str]:
    """Those on the command line, or the lines of a file that are not blank."""
    if bool(given) == (file is not None):
        raise UsageError("give sentences, or --file with one a line, and not both")
    if given:
        return given
    try:
        text = sys.stdin.read() if file == "-" else Path(str(file)).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{'standard input' if file == '-' else file} holds no sentence")
    return lines
