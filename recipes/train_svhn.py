"""Train on SVHN in the paper's setting: the 73,257 images of its training split.

    accelerate launch recipes/train_svhn.py
    accelerate launch recipes/train_svhn.py --dataset_name path/to/folder --matmul_precision medium

The setting is `recipes/configs/svhn.yaml`; the recipe is `train_images.py`.
"""

from train_images import CONFIGS, main

from latent_ebm_text.training.configuration import run_recipe

if __name__ == "__main__":
    run_recipe(lambda: main(CONFIGS / "svhn.yaml", __doc__))
