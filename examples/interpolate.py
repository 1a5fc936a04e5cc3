"""Walk from one sentence to another through the latent space of a trained model.

    python examples/interpolate.py runs/quickstart/model "the bank recovers sharply" "rival laboratories fail badly"

Each sentence is encoded as one draw from its posterior. Points on the line between the two are decoded by beam search.
"""

import argparse

import torch
from transformers import AutoTokenizer

from latent_ebm_text import LatentEBMForTextGeneration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model saved with its tokenizer, or a Hub id")
    parser.add_argument("start", help="the first sentence, with words separated by spaces as in the training text")
    parser.add_argument("end", help="the last sentence")
    parser.add_argument(
        "--num_points", type=int, default=8, help="number of sentences, both ends included (default 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the two posterior draws (default 0)")
    options = parser.parse_args()

    model = LatentEBMForTextGeneration.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ends = [options.start, options.end]
    known = tokenizer.batch_decode(tokenizer(ends)["input_ids"], skip_special_tokens=True)
    latents = model.encode(ends, tokenizer=tokenizer, generator=torch.Generator().manual_seed(options.seed))
    ids = model.interpolate(*latents, num_points=options.num_points)
    sentences = tokenizer.batch_decode(ids, skip_special_tokens=True)

    print(f"from   {known[0]}")
    for number, sentence in enumerate(sentences):
        print(f"{number / (len(sentences) - 1):5.2f}  {sentence}")
    print(f"to     {known[1]}")


if __name__ == "__main__":
    main()
