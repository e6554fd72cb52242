#!/bin/sh
# Installs torch with a Python's pip: on Linux without an NVIDIA GPU its CPU build (0.2 GB), where PyPI has the CUDA one (3 GB).
# Where the CPU build's index can't be reached, and everywhere else, what pip's configured index has.
#
#   scripts/install_torch.sh [PYTHON [further arguments for pip install]]
#
#   TORCH_VERSION  the version
#   TORCH_INDEX    auto (the default): as above; empty: pip's configured index; else the index to take it from
set -eu
python=${1:-python3}
[ $# -eq 0 ] || shift
torch="torch==${TORCH_VERSION:-2.13.0}"
cpu=https://download.pytorch.org/whl/cpu

install() { "$python" -m pip install "$@" "$torch"; }

if [ "${TORCH_INDEX-auto}" != auto ]; then
  install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$@"
elif [ "$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then
  install "$@"
elif ! install --index-url "$cpu" --retries 1 --timeout 10 "$@"; then
  echo "install_torch.sh: $cpu can't be reached; taking $torch from pip's configured index" >&2
  install "$@"
fi
