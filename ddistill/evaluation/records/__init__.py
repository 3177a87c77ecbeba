"""The files in which numbers leave a run."""
