"""Train a latent space energy-based prior model on Penn Treebank.

    accelerate launch recipes/train_ptb.py                                         # PTB from the Hub
    accelerate launch recipes/train_ptb.py --dataset_name path/to/ptb
    accelerate launch recipes/train_ptb.py --config quickstart                     # no download, a few minutes
    accelerate launch recipes/train_ptb.py --decoder_type transformer
    accelerate launch recipes/train_text.py --dataset_name ptb --pretrained_decoder gpt2
    accelerate launch recipes/train_ptb.py --config paper/ptb                      # the paper's setting, for a GPU

The configuration is `recipes/configs/ptb.yaml`; `--config` takes the name of another one, or a file. Run the same
command again to resume from the newest checkpoint.
"""

from latent_ebm_text.commands.train import text_recipe

if __name__ == "__main__":
    text_recipe(__doc__, "ptb")
