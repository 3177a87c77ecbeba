"""`ddistill COMMAND ...`, also as `python -m ddistill COMMAND ...`."""

import sys

from ddistill.commands.dispatch import run
from ddistill.runtime.ending import answer_while_importing
from ddistill.runtime.large_pages import restart_with_large_pages


def main() -> None:
    """Entry point of the console script; see `ddistill.commands.dispatch.run`."""
    restart_with_large_pages()
    answer_while_importing()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
