"""Train a latent space energy-based prior model on CelebA: 40,000 faces, cropped to their centre.

    accelerate launch recipes/train_celeba.py                                    # CelebA from the Hub
    accelerate launch recipes/train_celeba.py --dataset_name path/to/folder
    accelerate launch recipes/train_celeba.py --config paper/celeba              # the paper's setting, for a GPU

The configuration is `recipes/configs/celeba.yaml`. Run the same command again to resume from the newest checkpoint.
"""

from latent_ebm_text.commands.train import image_recipe

if __name__ == "__main__":
    image_recipe(__doc__, "celeba")
