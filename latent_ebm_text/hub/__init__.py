"""Model folders, model cards and the Hugging Face Hub. Nothing here loads a model or needs torch."""
