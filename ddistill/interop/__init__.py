"""Weights of other libraries, read without running code that comes with them."""
