"""Bound a text model's log p(x) from both sides, with a verdict on how far the estimate can be trusted.

    python recipes/audit_text.py --model runs/ptb/model --dataset_name path/to/ptb
    python recipes/audit_text.py --model runs/ptb/model --dataset_name path/to/ptb \\
        --claimed runs/evaluation/sentences.npz

Test sentences give a bound of their negative log-likelihood from above. Sentences that the model itself has drawn,
whose latents are known, give bounds from both sides, and the gap between them says how loose the first bound may be.
A claim is what `evaluate_text.py` wrote of the same model: the audit says whether it is too good to be true.
"""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import tqdm

from latent_ebm_text.commands.arguments import CorpusArguments
from latent_ebm_text.commands.evaluate_text import load_model_and_corpus
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.errors import UsageError, reading
from latent_ebm_text.evaluation.estimates import Estimate
from latent_ebm_text.latents.integrals import audit
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.models.audit import AuditedTextModel
from latent_ebm_text.models.sentences import SentenceRows
from latent_ebm_text.training.arguments import option, required


@dataclass
class AuditArguments:
    """Audit"""

    model: str = required("Folder or Hub id of the model and its tokenizer.")
    output_dir: str = option("runs/audit", "Folder of the report.")
    claimed: str | None = option(None, "File sentences.npz of an evaluation, whose sentences are then audited.")
    num_likelihood_sentences: int = option(200, "Random test sentences.")
    num_simulated: int = option(64, "Sentences drawn from the model.")
    num_walks: int = option(16, "Annealed walks per sentence.")
    num_levels: int = option(30, "Levels of each walk.")
    batch_size: int = option(64, "Sentences in a batch.")
    seed: int = option(0, "Seed of all draws.")


def main() -> None:
    corpus_args, args = parse_arguments((CorpusArguments, AuditArguments), description=__doc__)
    model, tokenizer, _, text = load_model_and_corpus(args.model, corpus_args, args.seed)
    test, claimed = text.splits["test"], None
    chosen = np.sort(np.random.default_rng(args.seed).permutation(len(test))[: args.num_likelihood_sentences])
    if args.claimed is not None:
        with reading(args.claimed):
            found = np.load(args.claimed)
        if "marginal_nll" not in found or found["index"].max() >= len(test):
            raise UsageError(f"{args.claimed} holds no marginal NLL of these test sentences: see evaluate_text.py")
        chosen, claimed = found["index"], torch.from_numpy(found["marginal_nll"])
    order = np.argsort(np.array(test["length"])[chosen], kind="stable")  # batches of similar lengths
    batches = []
    for indices in np.split(order, range(args.batch_size, len(order), args.batch_size)):
        rows = SentenceRows.of_columns(test[chosen[indices]])
        batches.append(model._collate(rows, torch.arange(len(rows))))
    generator = derived_generator(args.seed, "audit", device=model.device)
    started = time.monotonic()
    result = audit(
        AuditedTextModel(model, tokenizer, generator),
        batches,
        num_walks=args.num_walks,
        num_levels=args.num_levels,
        num_simulated=args.num_simulated,
        generator=generator,
        progress=partial(tqdm, desc="audit"),
    )
    seconds = (time.monotonic() - started) / (len(order) + args.num_simulated)
    partition = result.log_partition
    report = {
        "negative log-likelihood, at most": Estimate.of_mean(result.nll, "nats a sentence").to_dict(),
        "gap on simulated sentences": Estimate.of_mean(result.gap, "upper minus lower bound of log p(x)").to_dict(),
        "width of log Z": partition.upper - partition.lower,
        "median effective sample size": float(result.ess.median()),
        "the same of simulated sentences": float(result.simulated_ess.median()),
        "resolution": result.resolution,
        "reliable": result.reliable,
        "seconds a sentence": seconds,
    }
    lines = [f"The negative log-likelihood in nats a sentence is {result.verdict()}."]
    if claimed is not None:
        is_rejected = result.rejects(claimed[torch.from_numpy(order)])
        report["claimed"], report["claim rejected"] = float(claimed.mean()), is_rejected
        lines.append(f"The claim of {float(claimed.mean()):.2f} is {'rejected' if is_rejected else 'not rejected'}.")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n".join(lines))
    print(folder / "audit.json")


if __name__ == "__main__":
    run_command(main)
