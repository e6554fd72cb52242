#!/usr/bin/env bash
# Measures the cloud's part on this machine's GPU in under 10 minutes; gpu-check.{json,md} are in $OUT (default .).
# DEVICE=cpu rehearses it with tiny sizes. PYTHON: an environment with the extras cloud and quantised.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${DEVICE:-cuda}" = cpu ]; then
    export CUDA_VISIBLE_DEVICES=
fi
export PYTHONPATH="$PWD:$PWD/device:$PWD/cloud:$PWD/shared:$PWD/protos${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
exec timeout 590 "${PYTHON:-python}" -m research.gpu_check --out "${OUT:-.}" "$@"
