"""Train on CIFAR-10 in the paper's setting.

    accelerate launch recipes/train_cifar10.py
    accelerate launch recipes/train_cifar10.py --dataset_name path/to/folder --matmul_precision medium

The setting is `recipes/configs/cifar10.yaml`; the recipe is `train_images.py`.
"""

from train_images import CONFIGS, main

from latent_ebm_text.training.configuration import run_recipe

if __name__ == "__main__":
    run_recipe(lambda: main(CONFIGS / "cifar10.yaml", __doc__))
