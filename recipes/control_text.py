"""Control and edit an attribute of real text, beside what one would do without a latent.

    python recipes/control_text.py --model runs/sst2/model --dataset_name data/sst2 --label_names negative,positive

The corpus has a column of labels. Half of its training sentences give the model its attribute; the other half train
an independent judge, whose own accuracy on test sentences is printed first. Then sentences of every value are
generated at several strengths, and test sentences are edited to have another value, by the model and by baselines; all
are judged alike. Writes control.md, control.json and control.png.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_model import LabelModel, fit_label_model
from text_judges import AttributeJudge, Judges, delete_words, metrics_table

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.commands.train_text import PreparedText, prepare
from latent_ebm_text.data.embeddings import embed_sentences
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.evaluator import QUICK_EVALUATOR, train_language_model
from latent_ebm_text.evaluation.plots import new_plot, save_plot
from latent_ebm_text.evaluation.usefulness import require_probes
from latent_ebm_text.latents.prior import GaussianPrior
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.models.sentences import SentenceRows
from latent_ebm_text.training.arguments import option, required

ATTRIBUTE = "label"
Metrics = dict[str, dict[str, Estimate]]
#: Sentences of a value.
Generate = Callable[[str, torch.Generator], list[str]]


@dataclass
class ControlArguments:
    """Control"""

    model: str = required("Folder of a model of the corpus and its tokenizer.")
    gaussian_model: str | None = option(
        None, "Folder of the same model under a Gaussian prior (prior_type gaussian); by default the model itself "
        "with its energy left out.",
    )  # fmt: skip
    output_dir: str = option("runs/control-text", "Folder of the tables, the plot and the label model.")
    label_names: list[str] | None = option(None, "Names of the labels 0, 1, ... where the column holds numbers.")
    num_labelled: int = option(5000, "Labelled sentences of the model, and as many others of the judge.")
    strengths: str = option("1,2,4,8", "Strengths, separated by commas.")
    edit_strengths: str = option("4,16,64", "Strengths of editing, separated by commas.")
    temperatures: str = option("1,0.8,0.6", "Temperatures of the tokens, separated by commas.")
    num_samples: int = option(200, "Generated sentences per value and setting.")
    num_edits: int = option(200, "Test sentences that are edited.")
    label_epochs: int = option(12, "Epochs of the label model.")
    cache_dir: str = option("runs/evaluators", "Folder of trained evaluators.")
    seed: int = option(0, "Seed of all draws.")


class Harness:
    """The models, the judges, and what they have measured."""

    def __init__(self, args: ControlArguments, text: PreparedText) -> None:
        self.args, self.folder = args, Path(args.output_dir)
        self.texts, self.labels = {}, {}
        for split in ("train", "test"):
            self.texts[split], self.labels[split] = _labelled(text, split, args.label_names)
        self.values = sorted(set(self.labels["train"]))
        self.model, self.tokenizer = load_text_model(args.model)
        own = slice(0, 2 * args.num_labelled, 2)  # every other sentence; the judge has those between
        others = slice(1, 2 * args.num_labelled, 2)
        self.own_texts, self.own_labels = self.texts["train"][own], self.labels["train"][own]
        judge = AttributeJudge(embed_sentences(self.texts["train"][others]), self.labels["train"][others])
        test = embed_sentences(self.texts["test"])
        own_accuracy = judge.accuracy(test, self.labels["test"])
        print(f"accuracy of the judge on test sentences: {own_accuracy:.1%}", flush=True)
        evaluator = train_language_model(
            text.splits["train"]["input_ids"][:], text.splits["validation"]["input_ids"][:], len(text.tokenizer),
            QUICK_EVALUATOR, cache_dir=args.cache_dir, seed=args.seed, progress=False,
        )  # fmt: skip
        self.judges = Judges({ATTRIBUTE: judge}, evaluator, text.tokenizer)
        self.facts = [
            f"command: {' '.join(sys.argv)}",
            f"judge on {len(self.labels['test']):,} test sentences: {own_accuracy:.1%}; "
            f"perplexity of these sentences per word: {self.judges.perplexity(self.texts['test']):.0f}",
        ]
        report = self.model.fit_attributes(
            self.own_texts, {ATTRIBUTE: self.own_labels}, tokenizer=self.tokenizer, seed=args.seed
        )[ATTRIBUTE]
        self.facts.append(
            f"classifier of latents: accuracy {report['accuracy']:.1%} on {report['n']} held-out sentences, "
            f"calibration error {report['calibration_error']:.3f}"
        )
        print(self.facts[-1], flush=True)
        #: The classifier of baselines, of the same labels as the model's attribute.
        self.own_embeddings = embed_sentences(self.own_texts)
        self.baseline = AttributeJudge(self.own_embeddings, self.own_labels)
        self.seconds: dict[str, float] = {}

    def _generator(self, purpose: str) -> torch.Generator:
        return derived_generator(self.args.seed, purpose, device=self.model.device)

    def _decode(self, ids: torch.Tensor) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    def measure(self, name: str, generate: Generate) -> dict[str, Estimate]:
        """The metrics of sentences of every value, which `generate` makes."""
        started, made = time.perf_counter(), []
        for value in self.values:
            made.append(generate(value, self._generator(f"{name} {value}")))
        texts = [text for part in made for text in part]
        self.seconds[name] = (time.perf_counter() - started) / len(texts)
        wanted = [{ATTRIBUTE: value} for value, part in zip(self.values, made, strict=True) for _ in part]
        metrics = self.judges.sample_metrics(texts, wanted)
        print(f"{name}: accuracy {metrics['accuracy']:.1%}, perplexity {metrics['perplexity']:.0f}", flush=True)
        return metrics

    def samples(self, label_model: LabelModel) -> Metrics:
        """Generation: the model at every strength, and the baselines."""
        args, model, rows = self.args, self.model, {}
        n = args.num_samples

        def controlled(model: LatentEBMForTextGeneration, strength: float, temperature: float = 1.0) -> Generate:
            def generate(value: str, generator: torch.Generator) -> list[str]:
                wanted: dict[str, str | float] = {ATTRIBUTE: value}
                options = {"temperature": temperature, "generator": generator}
                ids = model.generate(num_samples=n, attributes=wanted, strength=strength, **options)
                return self._decode(ids)

            return generate

        def plain(value: str, generator: torch.Generator) -> list[str]:
            return self._decode(model.generate(num_samples=n, generator=generator))

        rows["no control"] = self.measure("no control", plain)
        for temperature in _numbers(args.temperatures, "temperatures"):
            for strength in _numbers(args.strengths, "strengths"):
                name = f"ours at temperature {temperature:g}, w={strength:g}"
                rows[name] = self.measure(name, controlled(model, strength, temperature))
            name = f"label model, temperature {temperature:g}"
            rows[name] = self.measure(
                name,
                lambda value, generator, t=temperature: self._decode(
                    label_model.generate({ATTRIBUTE: value}, n, temperature=t, generator=generator)
                ),
            )

        # Best of k: as many sentences as are made and read in the time of control, at least two.
        times = [seconds for name, seconds in self.seconds.items() if name.startswith("ours")]
        k = max(2, round(float(np.median(times)) / self.seconds["no control"]))

        def best_of(value: str, generator: torch.Generator) -> list[str]:
            texts = self._decode(model.generate(num_samples=k * n, generator=generator))
            probs = self.baseline.probs(embed_sentences(texts), value).reshape(n, k)
            return [texts[row * k + int(best)] for row, best in enumerate(probs.argmax(axis=1))]

        rows[f"best of {k}"] = self.measure(f"best of {k}", best_of)

        # The setting of LatentOps (Liu et al., 2022): a Gaussian prior under a classifier of the same kind.
        energy, name, other = model.prior, "Gaussian prior", model
        if args.gaussian_model is None:
            name, model.prior = "energy left out", GaussianPrior(model.config.latent_dim)
        else:
            other, tokenizer = load_text_model(args.gaussian_model)
            other.fit_attributes(self.own_texts, {ATTRIBUTE: self.own_labels}, tokenizer=tokenizer, seed=args.seed)
        for strength in _numbers(args.strengths, "strengths"):
            rows[f"{name}, w={strength:g}"] = self.measure(f"{name}, w={strength:g}", controlled(other, strength))
        model.prior = energy
        return rows

    def edits(self) -> tuple[Metrics, list[str]]:
        """Editing: the model at every strength, and the baselines; and the edits of the first sentences in words."""
        args, rows = self.args, {}
        sources, labels = self.texts["test"][: args.num_edits], self.labels["test"][: args.num_edits]
        targets = [self.values[(self.values.index(label) + 1) % len(self.values)] for label in labels]
        wanted = [{ATTRIBUTE: target} for target in targets]

        def measure(name: str, edit: Callable[[list[str], str], list[str]]) -> list[str]:
            started, texts = time.perf_counter(), [""] * len(sources)
            for target in self.values:
                places = [place for place, own in enumerate(targets) if own == target]
                for place, new in zip(places, edit([sources[i] for i in places], target), strict=True):
                    texts[place] = new
            self.seconds[f"edit: {name}"] = (time.perf_counter() - started) / len(sources)
            rows[f"edit: {name}"] = found = self.judges.edit_metrics(sources, texts, wanted)
            print(f"{name}: accuracy {found['accuracy']:.1%}, similarity {found['similarity']:.3f}", flush=True)
            return texts

        measure("unchanged", lambda texts, target: texts)
        made: dict[float, list[str]] = {}
        for strength in _numbers(args.edit_strengths, "edit_strengths"):

            def ours(texts: list[str], target: str, strength: float = strength) -> list[str]:
                edits = self.model.edit(
                    texts, attributes={ATTRIBUTE: target}, strength=strength, tokenizer=self.tokenizer,
                    generator=self._generator(f"edit {strength} {target}"),
                )  # fmt: skip
                return self._decode(edits.best)

            made[strength] = measure(f"ours, w={strength:g}", ours)

        def retrieve(texts: list[str], target: str) -> list[str]:
            places = [place for place, label in enumerate(self.own_labels) if label == target]
            nearest = (embed_sentences(texts) @ self.own_embeddings[places].T).argmax(axis=1)
            return [self.own_texts[places[place]] for place in nearest]

        measure("retrieval", retrieve)
        measure("word deletion", lambda texts, target: [delete_words(t, self.baseline, target) for t in texts])
        strength = list(made)[len(made) // 2]
        shown = list(zip(sources, targets, made[strength], strict=True))[:20]
        head = [f"The first edits, w={strength:g}:", "", "| source | wanted | edit |", "|---|---|---|"]
        return rows, [*head, *(f"| {source} | {target} | {new} |" for source, target, new in shown)]


def main() -> None:
    data_args, args = parse_arguments((DataArguments, ControlArguments), description=__doc__)
    for name in ("strengths", "edit_strengths", "temperatures"):
        _numbers(getattr(args, name), name)
    require_probes()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    harness = Harness(args, prepare(data_args, args.seed))
    edits, shown = harness.edits()
    tokenizer = harness.tokenizer
    ids = tokenizer(harness.texts["train"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
    label_model = fit_label_model(
        harness.model.config,
        SentenceRows([tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in ids),
        [{ATTRIBUTE: label} for label in harness.labels["train"]],
        {ATTRIBUTE: harness.values},
        folder=folder / "label-model", num_epochs=args.label_epochs, seed=args.seed,
    )  # fmt: skip
    samples = harness.samples(label_model)
    _plot(samples, folder / "control.png")
    parts = [
        *(f"- {fact}" for fact in harness.facts), "", metrics_table(samples, harness.seconds), "",
        metrics_table(edits, harness.seconds), "", *shown,
    ]  # fmt: skip
    (folder / "control.md").write_text("\n".join(parts) + "\n", encoding="utf-8")
    written: dict[str, Any] = {"facts": harness.facts, "seconds_per_sentence": harness.seconds}
    for name, rows in (("samples", samples), ("edits", edits)):
        written[name] = {row: {key: m.to_dict() for key, m in metrics.items()} for row, metrics in rows.items()}
    (folder / "control.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print("\n" + "\n".join(parts))


def _labelled(text: PreparedText, split: str, names: list[str] | None) -> tuple[list[str], list[str]]:
    """The sentences of a split and the names of their labels."""
    dataset = text.corpus.splits[split]
    if "label" not in dataset.column_names:
        raise UsageError(f"{text.corpus.name} has no column `label`, whose values are what is controlled")
    labels = [value if isinstance(value, str) else int(value) for value in dataset["label"][:]]
    if names is not None and not all(isinstance(v, int) and 0 <= v < len(names) for v in labels):
        raise UsageError("label_names name the labels 0, 1, ..., and the column holds others: leave them out")
    return list(dataset["text"][:]), [str(value) if names is None else names[int(value)] for value in labels]


def _numbers(text: str, name: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{name} must be numbers separated by commas, got {text!r}") from error
    if min(numbers) <= 0:
        raise UsageError(f"{name} must be positive, got {text!r}")
    return numbers


def _plot(rows: Metrics, path: Path) -> None:
    """Accuracy against perplexity, one line per method."""
    figure = new_plot(6.0, 4.0)
    axes, methods = figure.subplots(), {}
    for name, metrics in rows.items():
        methods.setdefault(name.partition(",")[0], []).append(metrics)
    for method, points in methods.items():
        values = [[point[key].value for point in points] for key in ("perplexity", "accuracy")]
        axes.plot(*values, marker="o", label=method)
    axes.set(xlabel="perplexity per word", ylabel="accuracy")
    axes.legend()
    save_plot(figure, path)


if __name__ == "__main__":
    run_command(main)
