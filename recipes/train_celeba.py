"""Train on CelebA in the paper's setting: 40,000 faces, cropped to their centre, of 64 by 64 pixels.

    accelerate launch recipes/train_celeba.py
    accelerate launch recipes/train_celeba.py --dataset_name path/to/folder --matmul_precision medium

The setting is `recipes/configs/celeba.yaml`; the recipe is `train_images.py`.
"""

from train_images import CONFIGS, main

from latent_ebm_text.training.configuration import run_recipe

if __name__ == "__main__":
    run_recipe(lambda: main(CONFIGS / "celeba.yaml", __doc__))
