"""What the harnesses of control and of editing share: a labelled corpus, models, baselines, and judges of them all."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from label_model import LabelModel
from labelled_text import LabelledText
from text_judges import AttributeJudge, Judges, exact_probs, metrics_table

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.commands.train_text import PreparedText
from latent_ebm_text.data.embeddings import DEFAULT_ENCODER, embed_sentences
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.evaluation.evaluator import QUICK_EVALUATOR, train_language_model
from latent_ebm_text.evaluation.plots import new_plot, save_plot
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.models.sentences import SentenceRows
from latent_ebm_text.training.arguments import option, required

Metrics = dict[str, dict[str, Estimate]]
#: The values that sentences are to have, by attribute.
Wanted = Mapping[str, str]
#: Makes sentences that are to have some values.
Generate = Callable[[Wanted, torch.Generator], list[str]]


@dataclass
class HarnessArguments:
    """Harness"""

    model: str = required("Folder of a model of the corpus and its tokenizer.")
    output_dir: str = option("runs/control-text", "Folder of everything that is written.")
    label_names: list[str] | None = option(None, "Names of the labels 0, 1, ... where the column holds numbers.")
    num_labelled: int = option(5000, "Labelled sentences of the model, and as many others of the judge.")
    cache_dir: str = option("runs/evaluators", "Folder of trained evaluators.")
    seed: int = option(0, "Seed of all draws.")


class Harness:
    """The models, the judges, and what they have measured.

    Args:
        args: The arguments.
        text: The corpus.
        attributes: The attributes that are controlled.
        without: Values that no labelled sentence has together.
    """

    def __init__(
        self, args: HarnessArguments, text: PreparedText, attributes: Sequence[str], without: Wanted | None = None
    ) -> None:
        self.args, self.folder = args, Path(args.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = LabelledText(text, attributes, args.label_names)
        train, test = self.data.splits["train"], self.data.splits["test"]
        embeddings = {name: _embeddings(text, name) for name in ("train", "test")}
        # Every other sentence has labels that methods may use; the judge has those between.
        self.own = [
            row for row in range(0, 2 * args.num_labelled, 2) if row < len(train) and not train.has(row, without)
        ]
        others = slice(1, 2 * args.num_labelled, 2)
        self.own_texts = [train.texts[row] for row in self.own]
        self.own_labels = {name: [train.labels[name][row] for row in self.own] for name in attributes}
        self.own_embeddings = embeddings["train"][self.own]
        self.facts = [f"command: {' '.join(sys.argv)}"]

        readers = dict(self.data.readers)
        #: Classifiers of the baselines: the probability of a value given sentences and their embeddings.
        self.classifiers: dict[str, Callable[[Sequence[str], npt.NDArray[Any], str], npt.NDArray[Any]]] = {}
        for name in attributes:
            if name in readers:
                self.classifiers[name] = exact_probs(readers[name])
                continue
            judge = AttributeJudge(embeddings["train"][others], train.labels[name][others])
            own = AttributeJudge(self.own_embeddings, self.own_labels[name])
            readers[name], self.classifiers[name] = judge.read, own.read_probs
            self.facts.append(
                f"judge of {name} on {len(test):,} test sentences: "
                f"{judge.accuracy(embeddings['test'], test.labels[name]):.1%}"
            )
        evaluator = train_language_model(
            text.splits["train"]["input_ids"][:], text.splits["validation"]["input_ids"][:], len(text.tokenizer),
            QUICK_EVALUATOR, cache_dir=args.cache_dir, seed=args.seed, progress=False,
        )  # fmt: skip
        self.judges = Judges(readers, evaluator, text.tokenizer, embeddings["test"], test.rows())
        self.model, self.tokenizer = load_text_model(args.model)
        for name, report in self.fit(self.model, self.tokenizer).items():
            self.facts.append(
                f"classifier of {name} in latents: accuracy {report['accuracy']:.1%} on {report['n']} held-out "
                f"sentences, calibration error {report['calibration_error']:.3f}"
            )
        print("\n".join(self.facts), flush=True)
        self.seconds: dict[str, float] = {}

    def fit(self, model: LatentEBMForTextGeneration, tokenizer: Any) -> dict[str, dict[str, Any]]:
        """Gives a model the attributes, from the labels that methods may use."""
        rows = self.rows_of(self.own_texts, tokenizer)
        if model.config.sentence_encoder == DEFAULT_ENCODER:
            rows.embeddings = torch.from_numpy(self.own_embeddings)
        return model.fit_attributes(rows, self.own_labels, tokenizer=tokenizer, seed=self.args.seed)

    def rows_of(self, texts: Sequence[str], tokenizer: Any = None) -> SentenceRows:
        """Token ids of sentences, for the harness' own model unless the tokenizer of another is given."""
        tokenizer = tokenizer or self.tokenizer
        ids = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return SentenceRows([tokenizer.bos_token_id, *row, tokenizer.eos_token_id] for row in ids)

    def generator(self, purpose: str) -> torch.Generator:
        return derived_generator(self.args.seed, purpose, device=self.model.device)

    def decode(self, ids: torch.Tensor) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    def measure(self, name: str, generate: Generate, wishes: Sequence[Wanted]) -> dict[str, Estimate]:
        """The metrics of sentences for every wish, which `generate` makes."""
        started = time.perf_counter()
        made = [generate(wish, self.generator(f"{name} {' '.join(wish.values())}")) for wish in wishes]
        texts = [text for part in made for text in part]
        self.seconds[name] = (time.perf_counter() - started) / len(texts)
        wanted = [wish for wish, part in zip(wishes, made, strict=True) for _ in part]
        metrics = self.judges.sample_metrics(texts, wanted)
        print(f"{name}: {', '.join(f'{key} {value:.3g}' for key, value in metrics.items())}", flush=True)
        return metrics

    # -------- what makes sentences

    def controlled(
        self, n: int, strength: float, temperature: float = 1.0, model: LatentEBMForTextGeneration | None = None
    ) -> Generate:
        """Sentences of latents from `p(z) p(c | z)^w`, of the harness' own model unless another is given."""

        def generate(wish: Wanted, generator: torch.Generator) -> list[str]:
            options = {"strength": strength, "temperature": temperature, "generator": generator}
            return self.decode((model or self.model).generate(num_samples=n, attributes=dict(wish), **options))

        return generate

    def labelled(self, n: int, label_model: LabelModel, temperature: float) -> Generate:
        """Sentences of the label model."""
        return lambda wish, generator: self.decode(
            label_model.generate(wish, n, temperature=temperature, generator=generator)
        )

    def plain(self, n: int, temperature: float = 1.0) -> Generate:
        """Sentences that nothing was wanted of."""
        return lambda wish, generator: self.decode(
            self.model.generate(num_samples=n, temperature=temperature, generator=generator)
        )

    def best_of(self, n: int, k: int, temperature: float = 1.0) -> Generate:
        """Of every `k` plain sentences the one that classifiers of the same labels like best."""

        def generate(wish: Wanted, generator: torch.Generator) -> list[str]:
            texts = self.plain(k * n, temperature)(wish, generator)
            embeddings = embed_sentences(texts)
            probs = [self.classifiers[name](texts, embeddings, value) for name, value in wish.items()]
            best = np.prod(probs, axis=0).reshape(n, k).argmax(axis=1)
            return [texts[row * k + int(place)] for row, place in enumerate(best)]

        return generate

    def real(self, n: int) -> Generate:
        """Validation sentences with the values, at most `n`: what the metrics are of real ones."""
        split = self.data.splits["validation"]
        return lambda wish, _: [text for row, text in enumerate(split.texts) if split.has(row, wish)][:n]

    # -------- what is written

    def write(self, name: str, tables: Mapping[str, Metrics], lines: Sequence[str] = ()) -> None:
        """Writes tables and lines as Markdown, and the tables as JSON, and prints them."""
        parts = [*(f"- {fact}" for fact in self.facts), ""]
        for rows in tables.values():
            parts += [metrics_table(rows, self.seconds), ""]
        parts += lines
        (self.folder / f"{name}.md").write_text("\n".join(parts) + "\n", encoding="utf-8")
        written: dict[str, Any] = {"facts": self.facts, "seconds_per_sentence": self.seconds}
        for table, rows in tables.items():
            written[table] = {row: {key: m.to_dict() for key, m in metrics.items()} for row, metrics in rows.items()}
        (self.folder / f"{name}.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        print("\n" + "\n".join(parts))


def _embeddings(text: PreparedText, split: str) -> npt.NDArray[Any]:
    """The embeddings of a split, kept on the disk, where the training of a model may have left them."""
    return np.asarray(text.embedded(DEFAULT_ENCODER).splits[split]["sentence_embeddings"][:], dtype=np.float32)


def numbers(text: str, name: str) -> list[float]:
    """Positive numbers separated by commas."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{name} must be numbers separated by commas, got {text!r}") from error
    if min(found) <= 0:
        raise UsageError(f"{name} must be positive, got {text!r}")
    return found


def plot(rows: Metrics, path: Path) -> None:
    """Accuracy against perplexity, one line per method, whose name is what stands before the comma."""
    figure, methods = new_plot(8.0, 4.0), dict[str, list[dict[str, Estimate]]]()
    axes = figure.subplots()
    for name, metrics in rows.items():
        methods.setdefault(name.partition(",")[0], []).append(metrics)
    for method, points in methods.items():
        values = [[point[key].value for point in points] for key in ("perplexity", "accuracy")]
        axes.plot(*values, marker="o", label=method)
    axes.set(xlabel="perplexity per word", ylabel="accuracy")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save_plot(figure, path)
