"""Walk from one sentence to another through the latent space of a trained model.

    python examples/interpolate.py runs/quickstart/model "the bank recovers sharply" "rival laboratories fail badly"

Each sentence is encoded as one draw from its posterior; points on the line between the two are decoded greedily.
"""

import argparse

import torch
from transformers import AutoTokenizer

from latent_ebm_text import LatentEBMForTextGeneration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model saved with its tokenizer, or a Hub id")
    parser.add_argument("start", help="the first sentence, words separated by spaces as in the training text")
    parser.add_argument("end", help="the last sentence")
    parser.add_argument("--num_points", type=int, default=8, help="number of sentences, both ends counted (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the two posterior draws (default 0)")
    options = parser.parse_args()

    model = LatentEBMForTextGeneration.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    batch = tokenizer([options.start, options.end], padding=True, return_tensors="pt")
    known = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    latents = model.encode(
        batch["input_ids"], batch["attention_mask"], generator=torch.Generator().manual_seed(options.seed)
    )
    sentences = tokenizer.batch_decode(
        model.interpolate(*latents, num_points=options.num_points), skip_special_tokens=True
    )

    print(f"from   {known[0]}")
    for number, sentence in enumerate(sentences):
        print(f"{number / (len(sentences) - 1):5.2f}  {sentence}")
    print(f"to     {known[1]}")


if __name__ == "__main__":
    main()
