#!/usr/bin/env bash
# Fails when the committed protobuf stubs are not what the .proto files generate.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
scripts/gen_protos.sh "$fresh"
while IFS= read -r stub; do
  if ! diff -u "protos/$stub" "$fresh/$stub"; then
    echo "protos/$stub is not what its .proto generates: run 'make protos' and commit it" >&2
    exit 1
  fi
done < <(cd "$fresh" && find . -type f -name '*_pb2*' | sed 's|^\./||')
echo "Protobuf stubs are fresh."
