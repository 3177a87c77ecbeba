"""`ddistill COMMAND ...`, also as `python -m ddistill COMMAND ...`."""

import sys

from ddistill.commands.dispatch import run
from ddistill.runtime.ending import answer_while_importing


def main() -> None:
    """Entry point of the console script; see `ddistill.commands.dispatch.run`."""
    answer_while_importing()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
