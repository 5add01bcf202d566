#!/usr/bin/env bash
# Everything that needs a GPU, in one command: the tests that are skipped without one, Triton kernels against their
# twins, then decoding, prompts, batches, drift and kernels in the shapes of three models.
#
#   benchmarks/gpu.sh                     the whole list
#   benchmarks/gpu.sh tests llama-2-7b    these parts of it
#
# Each part ends within ten minutes. What cannot run here is said in a line and passed over; the exit code is 1 where a
# part failed. Environment: PYTHON (python3), OUT (benchmarks/results/gpu), MINUTES (8, of a comparison), DEVICE (cuda),
# KVPRESS_PYTHON (an interpreter that has kvpress; none). `DEVICE=cpu MINUTES=1 benchmarks/gpu.sh bench nf4 tiny` tries
# the list out without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}" OUT="${OUT:-benchmarks/results/gpu}" MINUTES="${MINUTES:-8}" DEVICE="${DEVICE:-cuda}"
LIMIT_S=590
export PYTHONPATH=".:kernels${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
parts=("$@")
if [ ${#parts[@]} -eq 0 ]; then parts=(tests bench nf4 qwen2.5-0.5b llama-2-7b llama-3.1-8b); fi
failed=()

has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

part() { # name, command...
  local name="$1" began code
  shift
  began=$SECONDS
  printf '== %s: %s\n' "$name" "$*"
  timeout "$LIMIT_S" "$@" >"$OUT/$name.log" 2>&1
  code=$?
  tail -n 40 "$OUT/$name.log"
  if [ $code -ne 0 ]; then failed+=("$name (exit $code)"); fi
  printf '== %s: exit %s after %s s\n' "$name" "$code" "$((SECONDS - began))"
}

compare() { # shape, name, options...
  local shape="$1" name="$1-$2"
  shift 2
  part "$name" "$PYTHON" benchmarks/compare.py --shape "$shape" --device "$DEVICE" --minutes "$MINUTES" \
    --out "$OUT/$name" "$@"
}

shape() { # a shape's comparisons, each in a process of its own: a kernel that fails takes no other figure with it
  local press=()
  if [ -n "${KVPRESS_PYTHON:-}" ]; then press=(--kvpress-python "$KVPRESS_PYTHON"); fi
  compare "$1" decode --parts decode --peers kvlite,dynamic,static,compiled,kvpress "${press[@]}"
  compare "$1" triton --parts decode,kernels,drift --peers kvlite,kvlite-triton
  compare "$1" captured --parts decode,prefill,drift --peers kvlite,kvlite-captured,kvlite-triton-captured
  compare "$1" lowbit --parts decode --peers kvlite,kvlite-int4,quantized,kvlite-nf4,nf4
  compare "$1" prefill --parts prefill --peers kvlite,dynamic
  compare "$1" batch --parts batch --peers kvlite,dynamic
}

if [ "$DEVICE" = cuda ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no CUDA device answers here; DEVICE=cpu tries the list out without one" >&2
  exit 1
fi
mkdir -p "$OUT"
for name in "${parts[@]}"; do
  case "$name" in
    tests)
      if has pytest && has hypothesis; then
        mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
        part tests "$PYTHON" -m pytest -q -m gpu "${files[@]}"
      else
        echo "== tests: skipped: pytest and hypothesis are not both installed"; fi ;;
    bench)
      if ! has platformdirs; then
        echo "== bench: skipped: platformdirs is not installed"
        continue
      fi
      part bench "$PYTHON" -m kvlite bench demo --device "$DEVICE" --json
      if [ "$DEVICE" = cuda ]; then part bench-captured "$PYTHON" -m kvlite bench demo --capture --json; else
        echo "== bench-captured: skipped: there are no CUDA graphs on $DEVICE"; fi ;;
    nf4)
      small=() interpret=()  # off a GPU only whether it runs
      if [ "$DEVICE" != cuda ]; then small=(--tiny --device "$DEVICE") interpret=(env TRITON_INTERPRET=1); fi
      if has bitsandbytes && has triton; then
        part nf4 "${interpret[@]}" "$PYTHON" benchmarks/nf4.py "${small[@]}" --out "$OUT/nf4.json"
      else
        echo "== nf4: skipped: bitsandbytes and triton are not both installed"; fi ;;
    *) shape "$name" ;;
  esac
done
if [ ${#failed[@]} -ne 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
