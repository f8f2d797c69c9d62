#!/bin/sh
# Benchmarks on a GPU within nine minutes: bench/gpu.sh OUTDIR [--only SECTION] [--images ARCHIVE]
# [--limit SECONDS], see bench/README.md. Takes the python3 with PyTorch and Triton that is there and
# no network; installs this package into it. FASTMTT_NO_EXT=1 leaves its compiled CPU part out.
set -eu
case "${1:-}" in
  "" | -*) echo "usage: bench/gpu.sh OUTDIR [--only tests|ops|match|buffer|eval|real]" \
    "[--images ARCHIVE] [--limit SECONDS]" >&2; exit 2 ;;
esac
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

"$python" - <<'CHECK'
import importlib.metadata as installed

for name, least in (("torch", (2, 11)), ("triton", (3, 6))):
    try:
        version = installed.version(name)
    except installed.PackageNotFoundError:
        raise SystemExit(f"bench/gpu.sh: {name} is not installed here") from None
    if tuple(int(part) for part in version.split(".")[:2]) < least:
        raise SystemExit(f"bench/gpu.sh: {name} is {version}, wanted {least[0]}.{least[1]} or newer")
CHECK

start=$(date +%s)
if ! "$python" -m pip install -q -e . --no-deps --no-build-isolation >"$out/install.log" 2>&1; then
  tail -n 20 "$out/install.log" >&2
  echo "bench/gpu.sh: the package did not install; FASTMTT_NO_EXT=1 goes without a compiler" >&2
  exit 1
fi
echo "installed in $(($(date +%s) - start)) s"
"$python" - <<'LACKING'
from importlib.util import find_spec

need = {
    "kornia": "data sets, section real", "jsonargparse": "the commands, section real",
    "docstring_parser": "the commands' help, section real", "pytest": "section tests",
    "safetensors": "section match", "PIL": "real images", "jax": "the contender jax",
}
for name, what in need.items():
    if find_spec(name) is None:
        print(f"not installed here: {name}; without it: {what}")
LACKING
exec "$python" -m bench.gpu "$out" "$@"
