#!/usr/bin/env bash
# Only a GPU can show these, in two parts of about six minutes each:
#
#   benchmarks/gpu.sh right    the card, the trial of the kernels, the tests that need one
#   benchmarks/gpu.sh fast     decoding and prompts beside other engines, and drift
#   benchmarks/gpu.sh          both
#
# Each step is a process with a deadline of its own and leaves a log; a comparison writes its results after each case.
# The exit code is 1 where a step failed. Environment: PYTHON (python3), OUT (benchmarks/results/gpu), DEVICE (cuda),
# LARGE and SMALL (llama-3.1-8b, qwen2.5-0.5b: shapes of compare.py). `DEVICE=cpu LARGE=tiny SMALL=tiny
# benchmarks/gpu.sh` tries the list out without a GPU, with the interpreter in place of Triton.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}" OUT="${OUT:-benchmarks/results/gpu}" DEVICE="${DEVICE:-cuda}"
LARGE="${LARGE:-llama-3.1-8b}" SMALL="${SMALL:-qwen2.5-0.5b}"
export PYTHONPATH=".:kernels${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ "$DEVICE" = cuda ]; then
  decode=(--decode 1024:2048 --decode 8192:2048) prompts=(--prefill 8192:2048 --prefill 32768:2048) drift=() patience=1
else # only to see that the list runs, on a machine that others may use
  patience=8
  decode=(--decode 60:32) prompts=(--prefill 128:32) drift=(--prompt 64 --context 100 --drift 512,1k --rounds 1)
fi
failed=()

step() { # seconds, name, command...
  local limit=$(($1 * patience)) name="$2" began=$SECONDS code
  shift 2
  printf '== %s: %s\n' "$name" "$*"
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1
  code=$?
  tail -n 40 "$OUT/$name.log"
  if [ $code -ne 0 ]; then failed+=("$name (exit $code)"); fi
  printf '== %s: exit %s after %s s\n' "$name" "$code" "$((SECONDS - began))"
}

compare() { # seconds, name, shape, options...
  step "$1" "$2" "$PYTHON" benchmarks/compare.py --shape "$3" --device "$DEVICE" --out "$OUT/$2" "${@:4}"
}

right() {
  if [ "$DEVICE" = cuda ]; then step 10 device nvidia-smi; fi
  step 30 doctor "$PYTHON" -m kvlite doctor
  if [ "$DEVICE" = cuda ]; then
    step 120 trial "$PYTHON" benchmarks/trial.py --minutes 1.8
  else
    step 300 trial "$PYTHON" benchmarks/trial.py --device "$DEVICE" --dims 16 --bits 0 --dtypes float32 --slots 40 --repeats 1
  fi
  mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
  step 170 tests "$PYTHON" -m pytest -q -m gpu "${files[@]}"
}

fast() {
  local ways=kvlite,kvlite-triton,kvlite-captured,kvlite-triton-captured
  if [ "$DEVICE" = cuda ]; then
    step 40 slots "$PYTHON" benchmarks/trial.py --dims 128 --bits 0,4 --dtypes bfloat16 --slots 512,8192,32768 --minutes 0.6
    step 40 products "$PYTHON" benchmarks/products.py
  else
    step 60 products "$PYTHON" benchmarks/products.py --device "$DEVICE" --shapes 64x64 --rows 1,2 --dtype float16
  fi
  compare 160 large "$LARGE" --peers "$ways,kvlite-int8,kvlite-nf4,nf4,dynamic,static" --minutes 2.4 --rounds 3 \
    "${decode[@]}" --prefill none
  compare 65 prompts "$LARGE" --peers kvlite,kvlite-triton,dynamic --minutes 1 --rounds 1 \
    --decode none "${prompts[@]}"
  compare 55 small "$SMALL" --peers "$ways,dynamic" --minutes 0.7 --rounds 3 "${decode[@]:0:2}" --prefill none
  step 60 drift "$PYTHON" -m kvlite bench demo --device "$DEVICE" --kv-budget 512tok --json "${drift[@]}"
}

if [ "$DEVICE" = cuda ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no CUDA device answers here; DEVICE=cpu tries the list out without one" >&2
  exit 1
fi
mkdir -p "$OUT"
for name in "${@:-right fast}"; do
  case "$name" in
    right) right ;;
    fast) fast ;;
    "right fast") right; fast ;;
    *) echo "'$name' is no part; give right or fast" >&2; exit 2 ;;
  esac
done
if [ ${#failed[@]} -ne 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
