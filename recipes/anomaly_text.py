"""Detect anomalous text: our scores beside a language model's and the embed-then-detect baseline, on two tasks.

    python recipes/anomaly_text.py --model runs/ptb/model --dataset_name path/to/ptb --documents path/to/yahoo/test.txt
    python recipes/anomaly_text.py --model runs/ptb/model --dataset_name path/to/ptb --language_model runs/lm/model
    accelerate launch recipes/anomaly_text.py --model runs/ptb/model --dataset_name path/to/ptb  # on all devices

Test sentences with their words shuffled against the same sentences intact; and, with `--documents` (a text file, one
document a line, or a table with one a row), the beginnings of documents of another source against test sentences of
the same length. Needs the extra `anomaly`.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latent_ebm_text.anomaly.baselines import embed_sentences, isolation_forest_scores, knn_scores
from latent_ebm_text.anomaly.corruptions import other_source_task, shuffled_words_task
from latent_ebm_text.anomaly.metrics import detection_metrics
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.data.lines import read_sentences
from latent_ebm_text.data.text import load_text_dataset
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.models.sharing import all_processes
from latent_ebm_text.training.arguments import option, required


@dataclass
class AnomalyArguments:
    """Anomaly detection"""

    model: str = required("Folder or Hub id of a model of ordinary text and its tokenizer.")
    dataset_name: str = required("Ordinary text: a named set, Hub id, folder or file, with a test split.")
    text_column: str | None = option(None, "Column of the ordinary text, where it is unclear.")
    documents: str | None = option(None, "File of another source, one document a line or a row.")
    documents_column: str | None = option(None, "Column of the documents, where it is unclear.")
    language_model: str | None = option(None, "A model without a latent (latent_dim 0), trained on the same text.")
    baseline: bool = option(True, "Whether to run the embed-then-detect baseline.")
    num_pairs: int = option(500, "Ordinary sentences of each task, and anomalies.")
    num_train: int = option(10000, "Training sentences that the baseline's detectors see.")
    marginal: str = option("importance", "Estimate of -log p(x): importance, ais or none.")
    output_dir: str = option("runs/anomaly-text", "Folder of the table and of the scores.")
    batch_size: int = option(128, "Sentences a batch.")
    seed: int = option(0, "Seed of the tasks, the draws and the detectors.")


def main() -> None:
    (args,) = parse_arguments((AnomalyArguments,), description=__doc__)
    started, folder = time.monotonic(), Path(args.output_dir)
    accelerator = all_processes()
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_text_model(args.model)
    language_model = None
    if args.language_model is not None:
        language_model, its_tokenizer = load_text_model(args.language_model)
        if language_model.config.latent_dim:
            raise UsageError(f"{args.language_model} has a latent; a language model is one with latent_dim 0")
    with accelerator.main_process_first():
        corpus = load_text_dataset(args.dataset_name, text_column=args.text_column)
    accelerator.print(corpus.describe())
    test = corpus.splits["test"]["text"][:]
    tasks = [shuffled_words_task(test, args.num_pairs, seed=args.seed)]
    if args.documents is not None:
        documents = read_sentences(args.documents, text_column=args.documents_column)
        tasks.append(other_source_task(test, documents, args.num_pairs, seed=args.seed))
    texts = list(dict.fromkeys(text for task in tasks for text in task.texts))

    # Controls: on a fair task neither separates the classes.
    known = set(tokenizer.get_vocab()) - {"<unk>"}
    scores = {
        "control: length": [float(len(text.split())) for text in texts],
        "control: share of unknown words": [np.mean([w not in known for w in text.split()]) for text in texts],
    }

    # The models, on all processes.
    options = {"batch_size": args.batch_size, "progress": True, "accelerator": accelerator}
    by_language_model = None
    if language_model is not None:
        by_language_model = language_model.score(texts, tokenizer=its_tokenizer, marginal="none", **options)
    generator = derived_generator(args.seed, "anomaly scores", device=model.device)
    found = model.score(texts, tokenizer=tokenizer, marginal=args.marginal, generator=generator, **options)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return

    # Embed, then detect.
    if args.baseline:
        train = corpus.splits["train"]["text"][:]
        chosen = np.random.default_rng(args.seed).choice(len(train), min(args.num_train, len(train)), replace=False)
        train_vectors = embed_sentences([train[index] for index in chosen], progress=True)
        vectors = embed_sentences(texts)
        scores["embeddings, 5th neighbour"] = knn_scores(train_vectors, vectors)
        scores["embeddings, isolation forest"] = isolation_forest_scores(train_vectors, vectors, seed=args.seed)

    if by_language_model is not None:
        for name in ("nll_per_token", "nll"):
            scores[f"language model, {name}"] = by_language_model.get(name).tolist()
    for name in found.names():
        scores[f"ours, {name}"] = found.get(name).tolist()

    # The table.
    places = {text: index for index, text in enumerate(texts)}
    figures = {
        task.name: {
            name: detection_metrics(task.labels, [values[places[text]] for text in task.texts], seed=args.seed)
            for name, values in scores.items()
        }
        for task in tasks
    }
    facts = {
        "command": " ".join(sys.argv),
        "data": " / ".join(corpus.describe().splitlines()),
        "pairs": args.num_pairs,
        "-log p(x)": "not estimated"
        if found.nll is None
        else f"{args.marginal}; {found.unreliable_share:.1%} with an effective sample size below 5",
        "wall time": f"{(time.monotonic() - started) / 60:.1f} min",
    }
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    for task, rows in figures.items():
        lines += ["", f"## {task}", "", "| score | AUROC | AUPRC |", "|---|---|---|"]
        for name, measured in rows.items():
            cells = [
                f"{m.value:.3f} [{m.interval_95[0]:.3f}, {m.interval_95[1]:.3f}]"
                for m in (measured["AUROC"], measured["AUPRC"])
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", *(f"- **{name}**: {m.definition}." for name, m in next(iter(rows.values())).items())]
    (folder / "anomaly.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    written = {
        task: {name: {figure: m.to_dict() for figure, m in measured.items()} for name, measured in rows.items()}
        for task, rows in figures.items()
    }
    (folder / "anomaly.json").write_text(
        json.dumps({"facts": facts, "tasks": written}, indent=2) + "\n", encoding="utf-8"
    )
    np.savez(folder / "scores.npz", **{name: np.asarray(values) for name, values in scores.items()})
    print("\n".join(["", *lines, "", *(str(folder / name) for name in ("anomaly.md", "anomaly.json", "scores.npz"))]))


if __name__ == "__main__":
    run_command(main)
