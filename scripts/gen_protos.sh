#!/usr/bin/env bash
# Regenerates the committed stubs. `make lint` runs it into a scratch folder and compares.
set -euo pipefail
out="${1:-protos}"
cd "$(dirname "$0")/.."
python -m grpc_tools.protoc -Iprotos --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
  protos/privtune/split/v1/split.proto
