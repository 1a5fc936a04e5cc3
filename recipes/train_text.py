"""Train a latent space energy-based prior model on any text: a file, a folder, or a dataset of the Hugging Face Hub.

    accelerate launch recipes/train_text.py --dataset_name my_corpus.txt
    accelerate launch recipes/train_text.py --dataset_name path/to/folder --tokenizer word --vocab_size 20000
    accelerate launch recipes/train_text.py --dataset_name allenai/c4 --streaming --num_sentences 1000000 --num_proc 4

The text need not be split into words: by default a byte-level BPE tokenizer is trained on it. The configuration is
`recipes/configs/text.yaml`. Run the same command again to resume from the newest checkpoint.
"""

from latent_ebm_text.commands.train import text_recipe

if __name__ == "__main__":
    text_recipe(__doc__, "text")
