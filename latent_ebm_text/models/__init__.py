"""The Hugging Face models: configurations, text and image models, scoring, pipelines, the Auto classes."""
