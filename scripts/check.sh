#!/usr/bin/env bash
# Lint, types, tests: what CI runs. Needs `pip install -c constraints.txt -e '.[dev]'`.
set -euo pipefail
cd "$(dirname "$0")/.."

ruff check .
ruff format --check .
mypy
mypy hardware
pytest -q -n auto --dist loadfile
