"""Figures of trained models, each with n, an interval and its definition. Importing this package imports nothing."""
