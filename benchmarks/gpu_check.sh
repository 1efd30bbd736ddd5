#!/bin/sh
# Every check and measurement of a GPU, in under ten minutes, with torch alone (no Ray, no MLflow).
# PYTHON names the interpreter.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" -m benchmarks.gpu_check
