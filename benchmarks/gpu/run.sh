#!/usr/bin/env bash
# Every kernel suite on the device, then the measurements, within ten minutes. Needs Python with torch, triton and pytest.
# Results go to $OUT, or to benchmarks/results. --dry-run: tiny shapes through Triton's interpreter, without a device.
set -uo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:$PWD/kernels"
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
if [[ "${1:-}" == --dry-run ]]; then
  TRITON_INTERPRET=1 OMP_NUM_THREADS=1 exec "$python" -m benchmarks.gpu.measure --dry-run --out "$out"
fi
status=0
for suite in tests/kernels/triton_suite/*_suite.py; do
  echo "== $suite"
  timeout 75 "$python" -m pytest "$suite" -q -x -o "python_files=${suite##*/}" -p no:cacheprovider \
    -W ignore --confcutdir tests/kernels/triton_suite --tb=short || status=1
done
timeout 270 "$python" -m benchmarks.gpu.measure --out "$out" || status=1
exit $status
