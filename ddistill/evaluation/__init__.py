"""Evaluation of trained runs: samples, scores, their protocols, and reports."""
