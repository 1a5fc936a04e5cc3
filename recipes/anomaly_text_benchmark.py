"""Detect anomalous texts on public benchmarks: the self-trained detector beside what else a practitioner would try.

    python recipes/anomaly_text_benchmark.py --tad_bench path/to/tad-bench --sms path/to/SMSSpamCollection.tsv
    python recipes/anomaly_text_benchmark.py --newsgroups path/to/20news-bydate.parquet --num_seeds 1
    python recipes/anomaly_text_benchmark.py --ptb path/to/ptb --documents path/to/other.txt
    python recipes/anomaly_text_benchmark.py --sms path/to/SMSSpamCollection.tsv --max_texts 400 --num_seeds 1  # a try

Every method sees the same splits. Tasks "all rows" are fitted on the texts that they score, as in TAD-Bench; tasks
"normals" are fitted on ordinary texts and score others, as in NLP-ADBench, and ours is told so by its `contamination`,
0.01 in place of the default of 0.1. Detectors of pyod run where it is installed; what needs an encoder that is not on
this machine is left out by name. Results are written after every task; those that are in the output folder already are
kept where they are not measured anew.

Every method runs in a process of its own, so that none profits from what another has loaded or from the memory that it
has left. Seconds are those of the fit and of the scores, without the start of the process. The peak memory is how far
the process grew in that time beyond what it held before, which is Python, torch, scikit-learn, pyod, the texts and
their embeddings. It is the largest resident set, as the system keeps it, and no sample; memory of a GPU is not part of
it. Texts are embedded once and before, which neither figure contains; only pyod's EmbeddingOD embeds them itself.
"""

import json
import multiprocessing
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from latent_ebm_text.anomaly.baselines import (
    TEXT_BASELINES,
    Baseline,
    Scorer,
    embed_sentences,
    pyod_baselines,
    pyod_pipelines,
)
from latent_ebm_text.anomaly.metrics import detection_metrics
from latent_ebm_text.anomaly.tasks import (
    DetectionTask,
    EmbeddingCache,
    all_rows_task,
    newsgroup_tasks,
    normals_task,
    read_labelled,
    sentence_tasks,
)
from latent_ebm_text.anomaly.text_detector import LatentEBMTextDetector
from latent_ebm_text.anomaly.text_scores import FUSED_SCORES
from latent_ebm_text.anomaly.text_views import TextView
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.commands.text_trainer import LatentEBMTrainer, recommended_arguments
from latent_ebm_text.data.lines import read_sentences
from latent_ebm_text.errors import LatentEBMError, UsageError, in_one_line
from latent_ebm_text.latents.rng import derived_seed
from latent_ebm_text.models.modeling_text import LatentEBMForTextGeneration
from latent_ebm_text.training.arguments import option

_WITHOUT_ENERGY = tuple(name for name in FUSED_SCORES if name != "embedding density")
_OURS = {"ours": FUSED_SCORES, "ours, without the latent EBM": _WITHOUT_ENERGY}
#: What the server of processes imports once, so that no method is charged for it; missing modules are passed over.
_PRELOADED = [
    *(f"pyod.models.{name}" for name in ("copod", "ecod", "embedding", "iforest", "knn", "lof", "lunar", "ocsvm")),
    *(f"sklearn.{name}" for name in ("covariance", "ensemble", "feature_extraction.text", "neighbors", "pipeline")),
    *(f"latent_ebm_text.anomaly.{name}" for name in ("metrics", "text_detector")),
    *(f"latent_ebm_text.commands.{name}" for name in ("parsing", "text_trainer")),
    "sentence_transformers",
]


@dataclass
class BenchmarkArguments:
    """Benchmark"""

    tad_bench: str | None = option(None, "Folder with one or more of covid_fake, smsspam and email_spam .jsonl.")
    sms: str | None = option(None, "The SMS Spam Collection, label and text on each line.")
    newsgroups: str | None = option(None, "20 Newsgroups, a parquet file with split, group and text.")
    ptb: str | None = option(None, "Folder with train.txt and test.txt, a sentence a line.")
    documents: str | None = option(None, "File of another source than that of --ptb, a document a line.")
    methods: Literal["all", "ours", "baselines"] = option("all", "The methods to run.")
    max_texts: int | None = option(None, "Texts to fit on and to score that each task is cut to, for a quick try.")
    time_budget: float = option(600.0, "Seconds that a fit of our detector may take.")
    num_seeds: int = option(3, "Seeds of the splits and of the detectors.")
    embeddings: str | None = option(None, "File that embeddings are kept in; by default one in the output folder.")
    output_dir: str = option("runs/anomaly-text-benchmark", "Folder of the tables and of the scores.")


def main() -> None:
    (args,) = parse_arguments((BenchmarkArguments,), description=__doc__)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    embed = EmbeddingCache(args.embeddings or folder / "embeddings.safetensors", embed_sentences)
    results = folder / "benchmark.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))["rows"] if results.is_file() else []
    left_out: dict[str, str] = {}
    for seed in range(args.num_seeds):
        for task in tasks(args, seed):
            train = TextView(task.train, embed(task.train))
            test = train if task.is_transductive else TextView(task.test, embed(task.test))
            scores = {}
            for name in methods(args, seed, task.is_transductive, embed):
                try:
                    found = in_own_process(name, train, test, embed, args, seed)
                except (LatentEBMError, BrokenProcessPool) as error:
                    left_out[name] = in_one_line(error)
                    print(f"{name} is left out: {left_out[name]}", flush=True)
                    continue
                measured = detection_metrics(task.labels, found.scores, seed=seed)
                figures = {key: [m.value, *m.interval_95] for key, m in measured.items()}
                key = {"task": task.name, "protocol": task.protocol, "seed": seed, "method": name}
                rows = [row for row in rows if {name: row[name] for name in key} != key]
                sizes = {"num_train": len(task.train), "num_test": len(task.test), "anomalies": sum(task.labels)}
                rows.append({**key, **found.costs, **sizes, **figures})
                scores[name] = found.scores
                took = ", ".join(f"{cost} {value:.1f}" for cost, value in found.costs.items())
                print(f"{task.name} ({task.protocol}), seed {seed}: {name}: AUROC {figures['AUROC'][0]:.3f}, {took}",
                      flush=True)  # fmt: skip
            np.savez(folder / f"scores-{task.name}-{task.protocol}-{seed}.npz".replace(" ", "_"), **scores)
            written = json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1)
            results.write_text(written + "\n", encoding="utf-8")
            (folder / "benchmark.md").write_text(table(rows, " ".join(sys.argv), left_out), encoding="utf-8")
    if not rows:
        raise UsageError("no benchmark was named: give --tad_bench, --sms, --newsgroups, or --ptb with --documents")
    print(folder / "benchmark.md")


def tasks(args: BenchmarkArguments, seed: int) -> Iterator[DetectionTask]:
    """The tasks that were asked for, cut where that was asked for, too."""
    for task in _whole_tasks(args, seed):
        yield task if args.max_texts is None else task.subsampled(args.max_texts, seed=seed)


def _whole_tasks(args: BenchmarkArguments, seed: int) -> Iterator[DetectionTask]:
    """Only the splits of the protocol "normals" depend on the seed."""
    if args.sms is not None:
        yield normals_task("SMSSpam", *read_labelled(args.sms), seed=seed)
    if args.tad_bench is not None:
        paths = [Path(args.tad_bench) / f"{name}.jsonl" for name in ("covid_fake", "smsspam", "email_spam")]
        paths = [path for path in paths if path.is_file()]
        if not paths:
            raise UsageError(f"{args.tad_bench} holds none of covid_fake, smsspam and email_spam .jsonl")
        yield from (all_rows_task(path.stem, path) for path in paths)
        if paths[-1].stem == "email_spam":
            yield normals_task("EmailSpam", *read_labelled(paths[-1]), seed=seed)
    if args.ptb is not None:
        if args.documents is None:
            raise UsageError("--ptb needs --documents, a file of another source")
        parts = [read_sentences(str(Path(args.ptb) / name)) for name in ("train.txt", "test.txt")]
        yield from sentence_tasks(*parts, read_sentences(args.documents))
    if args.newsgroups is not None:
        yield from newsgroup_tasks(args.newsgroups)


# -------- the methods


def methods(args: BenchmarkArguments, seed: int, is_transductive: bool, embed: EmbeddingCache) -> dict[str, Baseline]:
    """The methods that were asked for, by their names in the table."""
    found: dict[str, Baseline] = {}
    if args.methods != "baselines":
        for name, parts in _OURS.items():
            detector = LatentEBMTextDetector(
                contamination=0.1 if is_transductive else 0.01,
                fused_scores=parts,
                sentence_encoder=embed,
                time_budget=args.time_budget,
                seed=seed,
            )
            found[name] = partial(ours, detector)
    if args.methods != "ours":
        found |= {"language model": partial(language_model, seed)}
        found |= TEXT_BASELINES | pyod_baselines(seed) | pyod_pipelines(seed)
    return found


def ours(detector: LatentEBMTextDetector, train: TextView) -> Scorer:
    """The detector that trains itself."""
    detector.fit(train.texts)
    return lambda texts: detector.decision_scores_ if texts is train else detector.decision_function(texts.texts)


def language_model(seed: int, train: TextView) -> Scorer:
    """The log perplexity of the LSTM decoder without a latent, trained with the library's defaults: nats per token."""
    torch.manual_seed(derived_seed(seed, "initial weights"))
    model = LatentEBMForTextGeneration.from_texts(
        train.texts, latent_dim=0, prior_type="gaussian", encoder_hidden_size=None, sentence_encoder=None,
        bag_of_tokens_weight=0.0, sentence_embedding_weight=0.0, moment_weight=0.0,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        LatentEBMTrainer(model, recommended_arguments(model, output_dir=folder, seed=seed), train.texts).train()

    def scores(texts: TextView) -> np.ndarray:
        ids = model.tokenizer(texts.texts, truncation=True)["input_ids"]  # as in the training
        return model.score(ids).get("nll_per_token").numpy()

    return scores


# -------- a method in a process of its own


@dataclass(frozen=True)
class Measured:
    """What a method has found, `(n,)`, and what it took: seconds, and mebibytes of memory at its peak."""

    scores: np.ndarray
    costs: dict[str, float]


def in_own_process(name: str, *arguments: Any) -> Measured:
    """Runs `measure` in a new process, forked from a server that has nothing but the libraries in its memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(measure, name, *arguments).result()


def measure(
    name: str, train: TextView, test: TextView, embed: EmbeddingCache, args: BenchmarkArguments, seed: int
) -> Measured:
    """Fits a method and scores the texts with it."""
    fit = methods(args, seed, test is train, embed)[name]
    memory, started = peak_memory(), time.monotonic()
    scorer = fit(train)
    fitted = time.monotonic()
    scores = scorer(test)
    costs = {"fit_seconds": fitted - started, "score_seconds": time.monotonic() - fitted}
    return Measured(scores, {**costs, "peak_memory": peak_memory() - memory})


def peak_memory() -> float:
    """The largest resident set that this process has had, in mebibytes."""
    in_unit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return in_unit / (2**20 if sys.platform == "darwin" else 2**10)


# -------- the table


def table(rows: list[dict[str, Any]], command: str, left_out: dict[str, str]) -> str:
    """AUROC and AUPRC of every method on every task, means over seeds with intervals over texts, and what it took."""
    lines = [f"- command: {command}"]
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        part = [row for row in rows if row["protocol"] == protocol]
        names = list(dict.fromkeys(row["task"] for row in part))
        for figure in ("AUROC", "AUPRC"):
            cells: dict[object, dict[object, np.ndarray]] = defaultdict(dict)
            for method in dict.fromkeys(row["method"] for row in part):
                for name in names:
                    of_seeds = [row[figure] for row in part if (row["method"], row["task"]) == (method, name)]
                    if of_seeds:
                        cells[method][name] = np.mean(of_seeds, axis=0)
            lines += [
                "",
                f"## {figure}, protocol {protocol}",
                "",
                f"| method | {' | '.join(map(str, names))} | mean | fit, s | scoring, s | peak memory, MiB |",
                "|---" * (len(names) + 5) + "|",
            ]
            for method, found in cells.items():
                shown = [
                    f"{found[name][0]:.3f} [{found[name][1]:.3f}, {found[name][2]:.3f}]" if name in found else "-"
                    for name in names
                ]
                mean = np.mean([found[name][0] for name in names]) if len(found) == len(names) else float("nan")
                own = [row for row in part if row["method"] == method]
                fit, scoring = (np.mean([row[cost] for row in own]) for cost in ("fit_seconds", "score_seconds"))
                memory = max(row["peak_memory"] for row in own)
                lines.append(
                    f"| {method} | {' | '.join(shown)} | {mean:.3f} | {fit:.1f} | {scoring:.1f} | {memory:.0f} |"
                )
    lines += ["", *(f"- {name} is left out: {reason}" for name, reason in left_out.items())]
    lines += [
        "",
        "Means over seeds; intervals are 95 % bootstrap intervals over texts, averaged over seeds. Seconds are means "
        "over tasks and seeds and memory is the largest of them, beyond what the process held before the fit; "
        "embedding is left out, but for pyod's EmbeddingOD.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
