"""Train with an unmodified `transformers.Trainer`, on the embedded corpus: no download, a minute or two on a CPU.

    python examples/train_with_hf_trainer.py --output_dir runs/hf-trainer
    python examples/generate_text.py runs/hf-trainer

The model's `forward` draws the latents itself, short-run posterior chains and prior chains, and returns a loss whose
gradient is the learning gradient of decoder and prior. `recipes/train_ptb.py` adds what the Trainer has no place for:
persistent chains, a gradient clip for each part, a likelihood weight that changes, and exact resumption.
"""

import argparse

import torch
from transformers import Trainer, TrainingArguments, set_seed

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.data import TextCollator, grammar_dataset, tokenize_corpus
from latent_ebm_text.data.tokenizers import train_word_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/hf-trainer", help="where the model goes (default %(default)s)")
    parser.add_argument("--max_steps", type=int, default=200, help="training steps (default 200)")
    parser.add_argument("--batch_size", type=int, default=64, help="sentences a step (default 64)")
    parser.add_argument("--hidden_size", type=int, default=128, help="width of the LSTM (default 128)")
    parser.add_argument("--num_sentences", type=int, default=4000, help="training sentences (default 4000)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and chains (default 0)")
    options = parser.parse_args()
    set_seed(options.seed)

    corpus = grammar_dataset(options.num_sentences, num_validation=256, num_test=1)
    tokenizer = train_word_tokenizer(corpus["train"]["text"], vocab_size=None, max_length=30)
    splits, _ = tokenize_corpus(corpus, tokenizer, max_length=30)
    config = LatentEBMTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        embedding_size=options.hidden_size // 2,
        tie_word_embeddings=True,
        energy_penalty=0.005,
        posterior_sampler={"name": "langevin", "num_steps": 20, "step_size": {"start": 0.6, "end": 0.3}},
        max_sequence_length=30,
    )
    model = LatentEBMForTextGeneration(config)
    # The prior learns more slowly than the decoder, so that its chains can follow.
    optimizer = torch.optim.AdamW(
        [
            {"params": model.decoder.parameters(), "lr": 3e-3, "weight_decay": 0.0},
            {"params": model.prior.parameters(), "lr": 3e-4, "weight_decay": 1e-3},
        ]
    )
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=256,
            max_grad_norm=100.0,  # the loss is in nats per sentence
            logging_steps=max(1, options.max_steps // 10),
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=options.seed,
        ),
        data_collator=TextCollator(tokenizer.pad_token_id),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        optimizers=(optimizer, None),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    print(f"validation loss in nats per sentence: {before:.2f} before training, {after:.2f} after")
    ids = model.eval().generate(num_samples=4)
    print("four sentences:", *tokenizer.batch_decode(ids, skip_special_tokens=True), sep="\n  ")
    print(f"the model is in {options.output_dir}")


if __name__ == "__main__":
    main()
