"""Checks of a stage while it is planned."""
