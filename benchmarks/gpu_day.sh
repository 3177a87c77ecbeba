#!/usr/bin/env bash
# Two calls for a day with one GPU; docs/gpu_day.md describes them.
#   ./benchmarks/gpu_day.sh tables     times train steps, students, Inception: tables.md
#   ./benchmarks/gpu_day.sh train      trains a teacher and students on DATA: results.json, report.html
# Settings are environment variables:
#   DATA     folder of images with one sub-folder a class, or a tar of one; of "train"
#   OUT      folder of the results (build/gpu_day)
#   BUDGET   seconds of wall time of one call (400)
#   PYTHON   interpreter with jax, flax and ddistill's other dependencies (.venv/bin/python)
#   WHEELS   folder of wheels that PYTHON lacks; they are installed into a temporary folder
#   SIZE     full, or tiny to try the calls on a CPU (full)
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  tables | train) ;;
  *)
    sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
    exit 2
    ;;
esac
PYTHON="${PYTHON:-.venv/bin/python}"
if [ -n "${WHEELS:-}" ]; then
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# torch and jax share the GPU.
export XLA_PYTHON_CLIENT_PREALLOCATE="${XLA_PYTHON_CLIENT_PREALLOCATE:-false}"
"$PYTHON" benchmarks/gpu_day.py "$1" --out="${OUT:-build/gpu_day}" --budget="${BUDGET:-400}" \
  --size="${SIZE:-full}" --data="${DATA:-}"
