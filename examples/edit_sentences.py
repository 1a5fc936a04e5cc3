"""Rewrite sentences so that they have an attribute, which the model first learns from labelled sentences.

    python examples/edit_sentences.py runs/sst2/model reviews.jsonl positive "a dull film" "the plot is weak"

The file holds one JSON object a line, with a `text` and a `label`. Chains lead from each sentence's posterior towards
the label that is wanted; the best of several decoded candidates is printed.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer

from latent_ebm_text import LatentEBMForTextGeneration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model saved with its tokenizer, or a Hub id")
    parser.add_argument("labelled", type=Path, help="labelled sentences, one JSON object a line")
    parser.add_argument("label", help="the label that the sentences shall have")
    parser.add_argument("sentences", nargs="+", help="sentences to be edited")
    parser.add_argument("--strength", type=float, default=16.0, help="how strongly the label is imposed (default 16)")
    parser.add_argument("--content", type=float, default=1.0, help="how much of the content is kept (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the chains (default 0)")
    options = parser.parse_args()

    model = LatentEBMForTextGeneration.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = [json.loads(line) for line in options.labelled.read_text(encoding="utf-8").splitlines()]
    labels = {"label": [str(row["label"]) for row in rows]}
    report = model.fit_attributes([row["text"] for row in rows], labels, tokenizer=tokenizer)["label"]
    print(f"the classifier is right on {report['accuracy']:.0%} of {report['n']} held-out sentences")

    edits = model.edit(
        options.sentences,
        attributes={"label": options.label},
        strength=options.strength,
        content=options.content,
        tokenizer=tokenizer,
        generator=torch.Generator().manual_seed(options.seed),
    )
    for sentence, edit in zip(
        options.sentences, tokenizer.batch_decode(edits.best, skip_special_tokens=True), strict=True
    ):
        print(f"{sentence}\n    -> {edit}")


if __name__ == "__main__":
    main()
