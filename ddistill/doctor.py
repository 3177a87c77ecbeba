"""`python -m ddistill.doctor [--config=FILE]`: a report on this machine, for users and bug reports.

It is the same as `python -m ddistill.main --doctor`.
"""

import sys
from collections.abc import Sequence

from ddistill import main as command

ABOUT = """\
Prints versions, devices, memory and disk of this machine, and the data of a config.
CONFIG may be left out."""


def main(argv: Sequence[str] | None = None, program: str = "python -m ddistill.doctor") -> None:
    """`python -m ddistill.doctor FLAG...` is `python -m ddistill.main --doctor FLAG...`."""
    words = sys.argv[1:] if argv is None else argv
    command.start(["--doctor", *words], program, ABOUT)


if __name__ == "__main__":
    main()
