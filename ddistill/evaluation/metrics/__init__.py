"""Scores of sets of images."""
