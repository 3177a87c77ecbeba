"""Where the time of a stage goes."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Where the time of a stage went, in seconds; carried over from checkpoint to checkpoint."""

    train: float = 0.0
    compile: float = 0.0
    wait: float = 0.0
