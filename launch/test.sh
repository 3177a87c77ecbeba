#!/usr/bin/env bash
# Runs the tests: makes .venv and installs on first use, then passes its arguments on to pytest.
#   ./launch/test.sh                 everything, two processes
#   ./launch/test.sh -k sfddm        some of it
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_once "test${DDISTILL_EXTRAS:+,$DDISTILL_EXTRAS}"
# Waiting threads of numpy's BLAS and of torch keep their cores busy, which the other process of the
# tests needs. So each has one thread, unless the caller has set another number.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
