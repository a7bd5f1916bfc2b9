#!/usr/bin/env bash
# make setup: rlrt and what its tests need in .venv, with the torch of this kind of machine. What may be asked for, by variables:
#   DEVICE       cuda or cpu; without it cuda where there is an NVIDIA driver, else cpu. A .venv that is there keeps its own
#   TORCH_INDEX  an index to take torch from, instead of the configured one (docs/cluster.md)
#   EXTRAS       extras of pyproject.toml besides dev, with commas: EXTRAS=vllm,gym. A .venv that is there keeps its own too
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/.set-up # what the last set-up had: device, index, extras
stop() { echo "make setup: $*" >&2; exit 2; }
pip() { "$venv/bin/python" -m pip --quiet "$@"; }
has_driver() { [ -e "${NVIDIA_DRIVER:-/proc/driver/nvidia/version}" ] || nvidia-smi >/dev/null 2>&1; }

had_device='' had_index='' had_extras=''
if [ -s "$stamp" ]; then
  read -r had_device had_index had_extras <"$stamp"
  had_index=${had_index#-} had_extras=${had_extras#-}
fi

case ${DEVICE:-} in
  cpu | cuda | '') ;;
  *) stop "DEVICE: expected cuda or cpu, got $DEVICE." ;;
esac
if [ -n "${DEVICE:-}${TORCH_INDEX:-}" ] || [ -z "$had_device" ]; then
  device=${DEVICE:-} index=${TORCH_INDEX:-}
  if [ -z "$device" ] && has_driver; then
    device=cuda
    [ -n "$index" ] || echo "make setup: this machine has an NVIDIA driver, so torch for CUDA 13 is taken (gigabytes); DEVICE=cpu would take the CPU's."
  fi
  device=${device:-cpu}
else
  device=$had_device index=$had_index
fi

extras=$(tr ', ' '\n\n' <<<"${EXTRAS:-},$had_extras" | sed '/^$/d' | sort -u | paste -sd, -)
known=$(sed -n '/^\[project.optional-dependencies\]/,/^\[tool/s/^\([a-z]*\) = .*/\1/p' pyproject.toml)
for extra in ${extras//,/ }; do
  grep -qx "$extra" <<<"$known" || stop "EXTRAS: expected names out of $(paste -sd, - <<<"$known"), got $extra."
done

# one file for each kind of machine; with an index of one's own the CUDA libraries are that index's
constraints=constraints.txt
[ "$device" = cpu ] || [ -n "$index" ] || constraints=constraints-cuda13.txt
if [[ ,$extras, == *,vllm,* ]]; then
  [ "$device" = cuda ] || [ -n "$index" ] || stop "EXTRAS=vllm: vLLM's wheel needs torch for CUDA (DEVICE=cuda); for a machine without a GPU there is make vllm."
  constraints=constraints-cuda13-vllm.txt
fi

set_up="$device ${index:--} ${extras:--}"
if [ "$(cat "$stamp" 2>/dev/null)" = "$set_up" ] && [ ! pyproject.toml -nt "$stamp" ] && [ ! "$constraints" -nt "$stamp" ]; then
  exit
fi
test -x "$venv/bin/python" || "${PYTHON:-python3}" -m venv "$venv"
rm -f "$stamp"

# torch first and alone: a range would pull gigabytes of CUDA onto a machine without a GPU. PyPI's 2.13.0 is the build for CUDA 13.
# == also takes 2.13.0+cpu and prefers it where an index or a folder of wheels has it; === compares the texts, and takes PyPI's only
torch=$(sed -n 's/^torch==//p' "$constraints")
if [ -n "$index" ]; then
  pip install --upgrade --index-url "$index" "torch==$torch"
elif [ "$device" = cuda ]; then
  pip install --constraint "$constraints" "torch===$torch"
else
  pip install --upgrade --constraint "$constraints" "torch==$torch"
fi
pip install --constraint "$constraints" --editable ".[dev${extras:+,$extras}]"
echo "$set_up" >"$stamp"

if [ "${DEVICE:-}" != cpu ] && nvidia-smi >/dev/null 2>&1; then
  reason=$("$venv/bin/python" -W ignore -c 'from rlrt.model.device import cuda_problem; print(cuda_problem())' 2>&1 | tail -n 1) || true
  if [ -n "$reason" ]; then
    echo "make setup: warning: nvidia-smi answers, but torch cannot use the card ($reason); another build is taken by DEVICE=cuda or TORCH_INDEX=URL (docs/cluster.md)." >&2
  fi
fi
