"""Metrics of trained models, each with its 95 % interval, n and definition. Importing this package imports nothing."""
