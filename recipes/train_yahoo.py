"""Train a latent space energy-based prior model on Yahoo answers, documents of up to 200 words.

    accelerate launch recipes/train_yahoo.py                                                # rebuilt from the Hub
    accelerate launch recipes/train_yahoo.py --dataset_name path/to/yahoo                   # train.txt, valid.txt, ...
    accelerate launch recipes/train_yahoo.py --dataset_name path/to/yahoo --train_split validation  # no train.txt

From the Hub these are questions with their best answers of community-datasets/yahoo_answers_topics, drawn by a fixed
seed: 100,000 to train on, 10,000 to validate and 10,000 to test. They are not the documents of the published set. The
configuration is `recipes/configs/yahoo.yaml`. Run the same command again to resume from the newest checkpoint.
"""

from latent_ebm_text.commands.train import text_recipe

if __name__ == "__main__":
    text_recipe(__doc__, "yahoo")
