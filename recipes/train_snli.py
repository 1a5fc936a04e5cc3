"""Train a latent space energy-based prior model on the sentences of SNLI.

    accelerate launch recipes/train_snli.py                                                 # rebuilt from the Hub
    accelerate launch recipes/train_snli.py --dataset_name path/to/snli                     # train.txt, valid.txt, ...
    accelerate launch recipes/train_snli.py --dataset_name path/to/snli --train_split validation  # no train.txt

From the Hub these are the unique premises and hypotheses of stanfordnlp/snli, drawn by a fixed seed: 100,000 to train
on, 10,000 to validate and 10,000 to test. They are not the sentences of the published subset. The configuration
is `recipes/configs/snli.yaml`. Run the same command again to resume from the newest checkpoint.
"""

from latent_ebm_text.commands.train import text_recipe

if __name__ == "__main__":
    text_recipe(__doc__, "snli")
