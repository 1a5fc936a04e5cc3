"""Train a latent space energy-based prior model on CIFAR-10.

    accelerate launch recipes/train_cifar10.py                                    # CIFAR-10 from the Hub
    accelerate launch recipes/train_cifar10.py --dataset_name path/to/folder
    accelerate launch recipes/train_cifar10.py --config paper/cifar10              # the paper's setting, for a GPU

The configuration is `recipes/configs/cifar10.yaml`. Run the same command again to resume from the newest checkpoint.
"""

from latent_ebm_text.commands.train import image_recipe

if __name__ == "__main__":
    image_recipe(__doc__, "cifar10")
