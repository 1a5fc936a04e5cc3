"""Train a latent space energy-based prior model on SVHN, the 73,257 images of its training split.

    accelerate launch recipes/train_svhn.py                                    # SVHN from the Hub
    accelerate launch recipes/train_svhn.py --dataset_name path/to/folder
    accelerate launch recipes/train_svhn.py --config paper/svhn              # the paper's setting, for a GPU

The configuration is `recipes/configs/svhn.yaml`. Run the same command again to resume from the newest checkpoint.
"""

from latent_ebm_text.commands.train import image_recipe

if __name__ == "__main__":
    image_recipe(__doc__, "svhn")
