"""Generate sentences with a trained model.

    python examples/generate_text.py runs/quickstart/model --num_samples 8
    python examples/generate_text.py username/model-on-the-hub --temperature 0.7 --energies

Draws latents from the energy-based prior by Langevin dynamics and decodes each of them token by token.
"""

import argparse

import torch
from transformers import AutoTokenizer

from latent_ebm_text import LatentEBMForTextGeneration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a model saved with its tokenizer, or a Hub id")
    parser.add_argument("--num_samples", type=int, default=10, help="number of sentences (default 10)")
    parser.add_argument("--max_new_tokens", type=int, help="maximum length of a sentence (default: as in training)")
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature; 1 is the model's own (default)")
    parser.add_argument("--energies", action="store_true", help="print the energy of each latent before its sentence")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same sentences (default 0)")
    options = parser.parse_args()

    model = LatentEBMForTextGeneration.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    length = {} if options.max_new_tokens is None else {"max_new_tokens": options.max_new_tokens}
    output = model.generate(
        num_samples=options.num_samples,
        temperature=options.temperature,
        generator=torch.Generator().manual_seed(options.seed),
        return_dict_in_generate=True,
        **length,
    )
    sentences = tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
    for sentence, energy in zip(sentences, output.energies.tolist(), strict=True):
        print(f"{energy:8.2f}  {sentence}" if options.energies else sentence)


if __name__ == "__main__":
    main()
