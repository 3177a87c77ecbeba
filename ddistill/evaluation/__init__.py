"""Scores of samples, the protocol they were measured with, and the report that shows them."""
