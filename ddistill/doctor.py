"""`python -m ddistill.doctor [--config=FILE]`: a report on this machine, for users and bug reports.

It is the same as `python -m ddistill.main --doctor`.
"""

import sys

from absl import app

from ddistill import main as command
from ddistill.runtime.ending import answer_closed_output


def main() -> None:
    """`python -m ddistill.doctor FLAG...` is `python -m ddistill.main --doctor FLAG...`."""
    sys.argv.insert(1, "--doctor")
    with answer_closed_output():
        app.run(command.main, flags_parser=command.parse_flags)


if __name__ == "__main__":
    main()
