#!/usr/bin/env bash
# Builds for the NVIDIA GPU of this machine and checks everything that runs on it: kernels, whole models, memory errors and races,
# speed. Under ten minutes on 16 cores; a short table comes last. Exit code 0 only if a device was there and nothing failed.
#   scripts/gpu_check.sh             all of it, in build-gpu/; logs of each step in build-gpu/check (or $OUT)
#   scripts/gpu_check.sh --quick     without the sanitizers and the large model
#   scripts/gpu_check.sh --pack      on a machine that has them: puts the header libraries that building needs into .gpu_check/, for a
#                                    machine with nvcc, CMake and g++ but without packages or network
set -uo pipefail
cd "$(dirname "$0")/.."

pack=.gpu_check
if [ "${1:-}" = --pack ]; then
  set -e
  zstd=$(find /usr/lib /usr/lib64 -name libzstd.a 2>/dev/null | head -n1)
  for need in /usr/include/CLI/CLI.hpp /usr/include/nlohmann/json.hpp /usr/include/doctest/doctest.h /usr/include/zstd.h "$zstd"; do
    [ -e "$need" ] || { echo "gpu_check: missing ${need:-libzstd.a}; run scripts/setup first" >&2; exit 1; }
  done
  rm -rf $pack
  mkdir -p $pack/include $pack/lib
  cp -r /usr/include/CLI /usr/include/nlohmann /usr/include/doctest /usr/include/zstd.h /usr/include/zstd_errors.h $pack/include/
  cp "$zstd" $pack/lib/
  for name in CLI11::CLI11 nlohmann_json::nlohmann_json doctest::doctest; do
    config=$pack/lib/cmake/${name%%::*}/${name%%::*}Config.cmake
    mkdir -p "$(dirname "$config")"
    printf 'if(NOT TARGET %s)\n  add_library(%s INTERFACE IMPORTED)\n  target_include_directories(%s INTERFACE "${CMAKE_CURRENT_LIST_DIR}/../../../include")\nendif()\n' "$name" "$name" "$name" >"$config"
  done
  echo "gpu_check: $(du -sh $pack | cut -f1) in $pack/, ready to travel"
  exit 0
fi

build=build-gpu
logs=${OUT:-$build/check}
limit=570  # seconds for everything
mkdir -p $build "$logs"
export PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer
table=()
failed=0

# step NAME SECONDS COMMAND...: runs it with a time limit, keeps its output, notes how it ended.
step() {
  local name=$1 seconds=$2 start=$SECONDS rc
  shift 2
  local left=$((limit - SECONDS))
  if [ $left -lt 10 ]; then table+=("$(printf '%-34s not run: no time left' "$name")"); failed=1; return 1; fi
  [ "$seconds" -lt $left ] || seconds=$left
  echo "== $name"
  timeout -k 5 "$seconds" "$@" >"$logs/${name// /_}.log" 2>&1
  rc=$?
  local verdict=ok
  [ $rc -eq 124 ] || [ $rc -eq 137 ] && verdict="ran past its $seconds s"
  [ $rc -ne 0 ] && [ "$verdict" = ok ] && verdict="FAILED, exit code $rc"
  table+=("$(printf '%-34s %-22s %4d s' "$name" "$verdict" $((SECONDS - start)))")
  if [ $rc -ne 0 ]; then failed=1; tail -n 25 "$logs/${name// /_}.log"; fi
  return $rc
}
# result NAME TEXT: a line of the table.
result() { table+=("$(printf '%-34s %s' "$1" "$2")"); }
finish() {
  echo
  echo "---- gpu_check: ${device:-no device}, $((SECONDS / 60)) min $((SECONDS % 60)) s ----"
  printf '%s\n' "${table[@]}"
  [ $failed -eq 0 ] && echo "all passed" || echo "NOT PASSED"
  exit $failed
}

# Another compiler than the one this was written with may warn of other things.
configure=(-S . -B $build -DCMAKE_BUILD_TYPE=Release -DFATHOM_CUDA=ON -DFATHOM_WARNINGS_AS_ERRORS=OFF)
command -v ninja >/dev/null && configure+=(-G Ninja)
[ -d $pack ] && configure+=(-DCMAKE_PREFIX_PATH="$PWD/$pack")
step "configure" 90 cmake "${configure[@]}" || finish
if ! grep -q 'CUDA backend: nvcc' "$logs/configure.log"; then
  result "nvcc" "not found: there is nothing to check"
  failed=1
  finish
fi
fathom=$build/fathom
device=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n1)
# What does not compile is listed; what does is checked.
keep_going=(-k)
command -v ninja >/dev/null && keep_going=(-k 0)
step "build" 480 cmake --build $build -j "$(nproc)" --target fathom test_cuda test_cuda_engine -- "${keep_going[@]}"
[ -x $fathom ] || finish
devices=$(timeout -k 5 60 $fathom doctor 2>>"$logs/doctor.log" | sed -n 's/^devices *//p')
if [ "${devices#cuda 0}" = "$devices" ]; then
  result "device" "${devices:-fathom doctor says nothing}"
  failed=1
  finish
fi
[ -n "$device" ] || device=$devices

# each_alone NAME PROGRAM: after a failure the test cases of a program, each in a process of its own: an error on the device
# fails all that come after it in its process.
each_alone() {
  local name=$1 program=$2 log="$logs/${1// /_}_one_by_one.log" case_name filter passed=0 end=$((SECONDS + 100))
  [ -x "$program" ] || return
  while IFS= read -r case_name; do
    if [ $SECONDS -ge $end ]; then result "  others" "not run: no time left"; break; fi
    filter=${case_name//,/\\,}
    if timeout -k 5 30 "$program" -tc="$filter" >>"$log" 2>&1; then passed=$((passed + 1)); else result "  fails alone too" "$case_name"; fi
  done < <(timeout 30 "$program" -ltc | grep -v '^\[doctest\]\|^=====')
  result "  $name, one by one" "$passed passed; $log"
}
step "kernels against the CPU" 120 $build/test_cuda || each_alone "kernels" $build/test_cuda
step "models against the CPU" 120 $build/test_cuda_engine || each_alone "models" $build/test_cuda_engine
grep -h 'deviations from the CPU' "$logs/models_against_the_CPU.log" | sed 's/^.*MESSAGE: */  /' || true

# Greedy text of the model that ships with fathom, on both.
text() {
  timeout -k 5 60 $fathom run -m models/tiny/tiny-q8_0.gguf --raw "Once upon a time" --temp 0 -n 96 --ignore-eos --backend "$1" --json 2>>"$logs/text.log" |
    python3 -c 'import json, sys; print("\n".join(map(str, json.load(sys.stdin)["tokens"])))' 2>>"$logs/text.log"
}
text cpu >"$logs/text.cpu"
text cuda >"$logs/text.cuda"
same=$(paste "$logs/text.cpu" "$logs/text.cuda" | awk '$1 != $2 {exit} {n++} END {print n + 0}')
result "greedy text, tiny model" "first $same of $(wc -l <"$logs/text.cpu") tokens as on the CPU"
[ "$same" -ge 16 ] || failed=1

# bench NAME SECONDS LAYERS ARGS...: the first LAYERS alone where memory does not hold the whole (exit code 4).
bench() {
  local name=$1 seconds=$2 layers=$3
  shift 3
  step "$name" "$seconds" $fathom bench --backend cuda --csv -p 512 -r 3 "$@"
  case $? in
    0) ;;
    4) name="$name, $layers layers"
       step "$name" "$seconds" $fathom bench --backend cuda --csv -p 512 -r 3 "$@" --layers "$layers" || return ;;
    *) return ;;
  esac
  while IFS=, read -r test tokens depth batch median _ _ gb _ percent; do
    [ "$test" = test ] || case $test in prefill|decode) result "  $test $tokens, depth $depth, batch $batch" "$(printf '%9.1f tok/s %8.1f GB/s %6.1f %% of bound' "$median" "$gb" "$percent")" ;; esac
  done <"$logs/${name// /_}.log"
  while IFS= read -r line; do result "  all layers" "${line##*extrapolated: }"; done < <(grep 'all layers, extrapolated' "$logs/${name// /_}.log")
}
# The most telling first: what no time is left for is said so.
step "the machine" 45 $fathom bench --machine
sed -n 's/^cuda 0: /  /p' "$logs/the_machine.log"
result "  device memory, links" "$(sed -n 's/^cuda 0: [^,]*, //p' "$logs/the_machine.log" | cut -c1-110)"
bench "v2-lite q4_k_m" 120 6 --shape v2-lite --type q4_k_m -n 64 -b 1,4,16 -d 0
if [ "${1:-}" != --quick ]; then
  if command -v compute-sanitizer >/dev/null; then
    # Test cases that take milliseconds on a device: the tools slow kernels down a hundred times.
    few='cuda: a norm*,cuda: rows come*,cuda: experts*,cuda: multi-head*,cuda: a token*,a mixture adds*,products of one x in a group*'
    small="$few,cuda: a layer*,cuda: heads*,cuda: keys*,cuda: streams*,every number of tokens*,up to 16 tokens*,weights are arranged*"
    step "memcheck" 75 compute-sanitizer --tool memcheck --error-exitcode 9 --print-limit 5 $build/test_cuda -tc="$small"
  else
    result "compute-sanitizer" "not installed"
  fi
  # Of V3.2 three dense layers and one of experts, of V4 one of each kind: what a layer costs at once and after long prompts.
  bench "v3 q4_k_m" 75 4 --shape v3 --type q4_k_m --layers 5 -n 16 -b 1 -d 0
  bench "v4-flash mxfp4" 75 3 --shape v4-flash --type mxfp4 --layers 4 -n 32 -b 1 -d 0,32768
  bench "v3.2 q4_k_m" 75 4 --shape v3.2 --type q4_k_m --layers 4 -n 32 -b 1 -d 0,32768
  bench "v2-lite q4_k_m at 32K" 75 6 --shape v2-lite --type q4_k_m -n 32 -b 1 -d 32768
  # A prompt long enough to be streamed, and places for a quarter of the experts.
  bench "v2-lite, experts streamed and cached" 60 6 --shape v2-lite --type q4_k_m --cpu-moe all --moe-cache 2 -p 2048 -n 64 -b 1 -d 0
  if command -v compute-sanitizer >/dev/null; then
    step "racecheck" 75 compute-sanitizer --tool racecheck --error-exitcode 9 --print-limit 5 $build/test_cuda -tc="$few"
  fi
  bench "v2-lite, 13 layers of experts on the CPU" 60 6 --shape v2-lite --type q4_k_m --cpu-moe 13 -n 32 -b 1 -d 0
fi
step "what fits" 30 $fathom fit -m models/tiny/tiny-q8_0.gguf --backend cuda
result "  fit" "$(sed -n 's/^total *//p' "$logs/what_fits.log" | cut -c1-110)"
finish
