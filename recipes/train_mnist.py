"""Train a latent space energy-based prior model on MNIST.

    accelerate launch recipes/train_mnist.py                                    # MNIST from the Hub
    accelerate launch recipes/train_mnist.py --dataset_name path/to/folder
    accelerate launch recipes/train_mnist.py --config paper/mnist              # the paper's setting, for a GPU

The configuration is `recipes/configs/mnist.yaml`. Run the same command again to resume from the newest checkpoint.
"""

from latent_ebm_text.commands.train import image_recipe

if __name__ == "__main__":
    image_recipe(__doc__, "mnist")
