"""Train a latent space energy-based prior model on images: the same prior, chains and loop as for text.

    accelerate launch recipes/train_images.py                                    # digits: no download, a minute
    accelerate launch recipes/train_images.py --dataset_name path/to/folder --adapt_images --image_size 32
    accelerate launch recipes/train_mnist.py | train_cifar10.py | train_svhn.py | train_celeba.py    # the paper's sets

The configuration is `recipes/configs/quickstart_images.yaml`. Run the same command again to resume from the newest
checkpoint.
"""

from latent_ebm_text.commands.train import image_recipe

if __name__ == "__main__":
    image_recipe(__doc__, "quickstart_images")
