"""Metrics of sets of images."""
