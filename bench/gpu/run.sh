#!/usr/bin/env bash
# Measure a GPU: bash bench/gpu/run.sh [OUT] [--dry]
#
# OUT     folder for gpu.json, records.jsonl and log.txt; default: bench/results/gpu
# --dry   the same steps in miniature on a CPU: a test of this command, not a measurement
# WHEELS  environment variable: a folder of wheels to use beside the installed packages
# PYTHON  environment variable: the interpreter; default: python3
#
# Nothing is downloaded. Beside torch, torchvision, torchmetrics, accelerate, safetensors, pyarrow,
# scipy, matplotlib, pillow, psutil, xxhash, threadpoolctl, fsspec, tqdm and pytest the steps
# import these packages, whose wheels are 8 MB:
#
#   kornia 1.9 MB    kornia-rs 5.3 MB    msgspec 0.2 MB    deflate 0.1 MB
#   tyro 0.2 MB      docstring-parser and typeguard 0.1 MB
set -euo pipefail
python=${PYTHON:-python3}
out=bench/results/gpu
if [[ $# -gt 0 && $1 != --* ]]; then
  out=$1
  shift
fi
out=$(realpath -m "$out")
wheels=${WHEELS:+$(realpath "$WHEELS")}
cd "$(dirname "$0")/../.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [[ -n $wheels ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --upgrade --target "$site" "$wheels"/*.whl
fi
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export COMMIT=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || true)}
"$python" -m bench.gpu "$out" "$@"
