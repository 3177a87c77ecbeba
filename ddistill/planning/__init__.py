"""A run as a plan: every setting resolved and checked before anything compiles."""
