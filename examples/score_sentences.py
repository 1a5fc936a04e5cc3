"""Score sentences by how anomalous they are under a trained model, the most anomalous first.

    python examples/score_sentences.py runs/quickstart/model sentences.txt
    printf 'the bank rose\\nrose the bank the\\n' | python examples/score_sentences.py runs/quickstart/model -

The score is `-log p(x)` per token in nats, estimated by importance weights. The standard error of `-log p(x)` follows.
"""

import argparse

import torch
from transformers import AutoTokenizer

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.data.lines import read_sentences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model saved with its tokenizer, or a Hub id")
    parser.add_argument("sentences", help="a file with one sentence per line, or - for standard input")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws behind the estimates (default 0)")
    options = parser.parse_args()

    sentences = read_sentences(options.sentences)
    model = LatentEBMForTextGeneration.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    generator = torch.Generator().manual_seed(options.seed)
    scores = model.score(sentences, tokenizer=tokenizer, generator=generator)
    per_token = scores.get("nll_per_token")
    for index in per_token.argsort(descending=True).tolist():
        error = scores.nll_standard_error[index] / scores.num_tokens[index]
        print(f"{per_token[index]:7.3f}  ± {error:.3f}  {sentences[index]}")


if __name__ == "__main__":
    main()
