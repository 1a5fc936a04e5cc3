"""Detect anomalous texts on public benchmarks: the self-trained detector beside what else a practitioner would try.

    python recipes/anomaly_text_benchmark.py --tad_bench path/to/tad-bench --sms path/to/SMSSpamCollection.tsv
    python recipes/anomaly_text_benchmark.py --newsgroups path/to/20news-bydate.parquet --num_seeds 1
    python recipes/anomaly_text_benchmark.py --ptb path/to/ptb --documents path/to/other.txt

Every method sees the same splits. Tasks "all rows" are fitted on the texts that they score, as in TAD-Bench; tasks
"normals" are fitted on ordinary texts and score others, as in NLP-ADBench, and ours is told so by its `contamination`,
0.01 in place of the default of 0.1. Detectors of pyod run where it is installed. Results are written after every task;
those that are in the output folder already are kept where they are not measured anew.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latent_ebm_text.anomaly.baselines import TEXT_BASELINES, embed_sentences, pyod_baselines
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
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.data.lines import read_sentences
from latent_ebm_text.errors import UsageError
from latent_ebm_text.training.arguments import option

_WITHOUT_ENERGY = tuple(name for name in FUSED_SCORES if name != "embedding density")
_OURS = {"ours": FUSED_SCORES, "ours, without the latent EBM": _WITHOUT_ENERGY}


@dataclass
class BenchmarkArguments:
    """Benchmark"""

    tad_bench: str | None = option(None, "Folder with email_spam, smsspam and covid_fake .jsonl.")
    sms: str | None = option(None, "The SMS Spam Collection, label and text on each line.")
    newsgroups: str | None = option(None, "20 Newsgroups, a parquet file with split, group and text.")
    ptb: str | None = option(None, "Folder with train.txt and test.txt, a sentence a line.")
    documents: str | None = option(None, "File of another source than that of --ptb, a document a line.")
    methods: Literal["all", "ours", "baselines"] = option("all", "The methods to run.")
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
    for seed in range(args.num_seeds):
        for task in tasks(args, seed):
            vectors = embed(task.train), embed(task.test)
            scores = {}
            for name, (values, seconds) in method_scores(task, vectors, embed, args, seed):
                measured = detection_metrics(task.labels, values, seed=seed)
                figures = {key: [m.value, *m.interval_95] for key, m in measured.items()}
                key = {"task": task.name, "protocol": task.protocol, "seed": seed, "method": name}
                rows = [row for row in rows if {name: row[name] for name in key} != key]
                sizes = {"num_train": len(task.train), "num_test": len(task.test), "anomalies": sum(task.labels)}
                rows.append({**key, "seconds": seconds, **sizes, **figures})
                scores[name] = values
                print(f"{task.name} ({task.protocol}), seed {seed}: {name}: AUROC {figures['AUROC'][0]:.3f}, "
                      f"{seconds:.0f} s", flush=True)  # fmt: skip
            np.savez(folder / f"scores-{task.name}-{task.protocol}-{seed}.npz".replace(" ", "_"), **scores)
            written = json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1)
            results.write_text(written + "\n", encoding="utf-8")
            (folder / "benchmark.md").write_text(table(rows, " ".join(sys.argv)), encoding="utf-8")
    if not rows:
        raise UsageError("no benchmark was named: give --tad_bench, --sms, --newsgroups, or --ptb with --documents")
    print(folder / "benchmark.md")


def tasks(args: BenchmarkArguments, seed: int) -> Iterator[DetectionTask]:
    """The tasks that were asked for. Only the splits of the protocol "normals" depend on the seed."""
    if args.sms is not None:
        yield normals_task("SMSSpam", *read_labelled(args.sms), seed=seed)
    if args.tad_bench is not None:
        for name in ("covid_fake", "smsspam", "email_spam"):
            yield all_rows_task(name, Path(args.tad_bench) / f"{name}.jsonl")
        yield normals_task("EmailSpam", *read_labelled(Path(args.tad_bench) / "email_spam.jsonl"), seed=seed)
    if args.ptb is not None:
        if args.documents is None:
            raise UsageError("--ptb needs --documents, a file of another source")
        parts = [read_sentences(str(Path(args.ptb) / name)) for name in ("train.txt", "test.txt")]
        yield from sentence_tasks(*parts, read_sentences(args.documents))
    if args.newsgroups is not None:
        yield from newsgroup_tasks(args.newsgroups)


def method_scores(
    task: DetectionTask,
    vectors: tuple[np.ndarray, np.ndarray],
    embed: EmbeddingCache,
    args: BenchmarkArguments,
    seed: int,
) -> Iterator[tuple[str, tuple[np.ndarray, float]]]:
    """The scores of every method, and the seconds that fitting and scoring took, embedding left out."""
    for name, parts in _OURS.items() if args.methods != "baselines" else ():
        started = time.monotonic()
        detector = LatentEBMTextDetector(
            contamination=0.1 if task.is_transductive else 0.01,
            fused_scores=parts,
            sentence_encoder=embed,
            time_budget=args.time_budget,
            seed=seed,
        ).fit(task.train)
        values = detector.decision_scores_ if task.is_transductive else detector.decision_function(task.test)
        yield name, (values, time.monotonic() - started)
    for name, baseline in (TEXT_BASELINES | pyod_baselines(seed)).items() if args.methods != "ours" else ():
        started = time.monotonic()
        values = baseline(task.train, task.test, *vectors, task.is_transductive)
        yield name, (values, time.monotonic() - started)


def table(rows: list[dict[str, Any]], command: str) -> str:
    """AUROC and AUPRC of every method on every task, means over seeds with intervals over texts."""
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
                f"| method | {' | '.join(map(str, names))} | mean |",
            ]
            lines += ["|---" * (len(names) + 2) + "|"]
            for method, found in cells.items():
                shown = [
                    f"{found[name][0]:.3f} [{found[name][1]:.3f}, {found[name][2]:.3f}]" if name in found else "-"
                    for name in names
                ]
                mean = np.mean([found[name][0] for name in names]) if len(found) == len(names) else float("nan")
                lines.append(f"| {method} | {' | '.join(shown)} | {mean:.3f} |")
        seconds = defaultdict(list)
        for row in part:
            seconds[row["method"]].append(row["seconds"])
        lines += ["", "Mean seconds of a fit and its scores, embedding left out: "]
        lines[-1] += "; ".join(f"{name} {np.mean(values):.1f}" for name, values in seconds.items()) + "."
    lines += ["", "Means over seeds; intervals are 95 % bootstrap intervals over texts, averaged over seeds."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
