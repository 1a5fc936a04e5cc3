"""Train on MNIST.

    accelerate launch recipes/train_mnist.py
    accelerate launch recipes/train_mnist.py --dataset_name path/to/folder --matmul_precision medium

The setting is `recipes/configs/mnist.yaml`; the recipe is `train_images.py`.
"""

from train_images import CONFIGS, main

from latent_ebm_text.training.configuration import run_recipe

if __name__ == "__main__":
    run_recipe(lambda: main(CONFIGS / "mnist.yaml", __doc__))
