#!/usr/bin/env bash
# First contact with a GPU: whether the kernels are right there, then how fast they are, in at most 12 minutes.
#
#     benchmarks/gpu_first_contact.sh FOLDER          JSON and logs into FOLDER, a table on the screen
#     benchmarks/gpu_first_contact.sh FOLDER cpu      the same steps on a CPU, at sizes that it can take
#
# PYTHON names the interpreter (default: python3). Every step has a limit of its own and the next one follows whatever
# came of it; the exit status is 1 if the kernels are wrong or no step gave numbers.
set -uo pipefail
if [ $# -lt 1 ] || [[ ${2:-cuda} != @(cuda|cpu) ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
mkdir -p "$1" || exit 2
folder=$(cd "$1" && pwd) device=${2:-cuda} python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

step() { # step NAME SECONDS COMMAND...: its output into NAME.log, its status into status.tsv
    local name=$1 limit=$2
    shift 2
    echo "== $name (at most $limit s): $*"
    timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$folder/$name.log" | tail -n 4
    local status=${PIPESTATUS[0]}
    printf '%s\t%s\n' "$name" "$status" >>"$folder/status.tsv"
    return "$status"
}

rm -f "$folder"/status.tsv "$folder"/{kernels,throughput,sweep}.json
tests=tests/lightning_modules/ops
if [ "$device" = cuda ]; then
    step right 210 "$python" -m pytest -q -p no:cacheprovider $tests/{scan,conv,norm}/test_triton.py
    right=$?
    step kernels 150 "$python" benchmarks/kernels.py --device cuda --sizes m ti --frames 8 --batches 32 16 1 \
        --kernels scan conv norm --reference-frames 0 --minutes 2 --output "$folder/kernels.json"
    step throughput 180 "$python" benchmarks/throughput.py --device cuda --models videomamba-m official-m \
        videomamba-ti joint-ti-sdpa --frames 8 --batches 32 1 --minutes 2.5 --output "$folder/throughput.json"
    step sweep 150 "$python" benchmarks/kernels.py --device cuda --sweep --sizes m --frames 8 --batches 32 \
        --output "$folder/sweep.json"
else
    step right 210 "$python" -m pytest -q -p no:cacheprovider $tests/scan/test_numba.py -k test_lengths
    right=$?
    step kernels 150 "$python" benchmarks/kernels.py --device cpu --sizes ti --frames 1 --batches 1 --tokens 16 \
        --seconds 0.01 --minutes 2 --output "$folder/kernels.json"
    step throughput 180 "$python" benchmarks/throughput.py --device cpu --models videomamba-ti --frames 1 --batches 1 \
        --image-size 32 --seconds 0.01 --minutes 2.5 --output "$folder/throughput.json"
fi
"$python" benchmarks/first_contact.py "$folder" && exit $((right != 0))
