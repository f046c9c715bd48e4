#!/usr/bin/env bash
# A GPU machine that reaches no package index, in one call: unpack, build the kernels, test, measure.
#
#     bash benchmarks/gpu_run.sh FOLDER [SECONDS]
#
# FOLDER holds what was carried there: unpack.py, which puts an importable ONNX Runtime with CUDA into the folder that it
# is given, and networks (NAME.onnx, NAME.fp16.onnx) if other ones than benchmarks/gpu.py makes are wanted. Without
# unpack.py the installed ONNX Runtime is taken. Results go to $OUT, else to build/gpu. Every part has its own time limit,
# and one that fails does not stop the next. Run it in the root of the repository.
set -u
folder=${1:?the folder with what was carried}
total=${2:-560}
out=${OUT:-build/gpu}
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
site=$temporary/site
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD"
export DEPLOYKIT_PLUGINS="$temporary/plugins"

left() { echo $((total - SECONDS)); }
part() {  # part NAME SECONDS COMMAND...: at most so long, and never longer than what is left
  local name=$1 most=$2
  shift 2
  [ "$most" -gt "$(left)" ] && most=$(left)
  if [ "$most" -lt 5 ]; then
    echo "== $name: skipped, no time is left"
    return
  fi
  echo "== $name [$SECONDS s]"
  timeout "$most" "$@" 2>&1 | tee "$out/$name.log"
  echo "== $name: exit code ${PIPESTATUS[0]} [$SECONDS s]"
}

command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
if [ -f "$folder/unpack.py" ]; then
  part unpack 90 "$python" "$folder/unpack.py" "$site"
  export PYTHONPATH="$site:$PWD"
fi
part providers 60 "$python" -c "
import importlib.util
if importlib.util.find_spec('torch'):
    import torch
    print('torch', torch.__version__, 'CUDA', torch.version.cuda)
import onnxruntime as ort
if hasattr(ort, 'preload_dlls'):
    ort.preload_dlls()
print('onnxruntime', ort.__version__, ort.get_available_providers())"
capability=$("$python" -c "
from deploykit.runtime.cuda import open_gpu
print(*open_gpu().compute_capability, sep='')" 2> /dev/null)
part kernels 120 "$python" -m deploykit plugins build --only cuda ${capability:+--architecture "$capability"}
part tests 120 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/runtime tests/cpp_plugins
shopt -s nullglob
networks=()
for file in "$folder"/*.onnx; do
  [[ $file == *.fp16.onnx ]] || networks+=("$file")
done
part measured "$(left)" "$python" -m benchmarks.gpu "${networks[@]}" --budget $(($(left) - 20)) --out "$out"
ls -l "$out"
