"""Anomaly detectors for text and images, their metrics, and baselines to compare them with."""
