#!/usr/bin/env bash
# make resolve: are the constraints files for CUDA 13 what rlrt, with all its extras, needs on Linux x86_64, and can the registry
# still give it? uv reads metadata alone: nothing is installed, and no package of any size is downloaded. UPDATE=1 writes the files:
# versions in them stay where they can, new ones are those of the CPU's files; it then asks for every Python that vLLM takes.
set -euo pipefail
cd "$(dirname "$0")/.."
uv_version=0.13.9
pythons=(3.11)
[ -z "${UPDATE:-}" ] || pythons=(3.11 3.12 3.13 3.14)
written_for=3.12 # the Python for which vLLM has most requirements

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -z "${UV:-}" ]; then # a throwaway one
  "${PYTHON:-python3}" -m venv "$work/venv"
  "$work/venv/bin/python" -m pip --quiet --disable-pip-version-check install "uv==$uv_version"
  UV=$work/venv/bin/uv
fi
export UV_CACHE_DIR=$work/cache UV_NO_CONFIG=1

pins() { sed -e 's/ *#.*//' -e '/^$/d' "$@" | LC_ALL=C sort; }

compile() { # PYTHON EXTRAS [OPTION...]
  "$UV" pip compile --quiet --no-header --no-annotate --python-version "$1" --python-platform x86_64-manylinux_2_28 \
    $(printf -- '--extra %s ' ${2//,/ }) "${@:3}" pyproject.toml
}

agrees() { # FILE EXTRAS
  local python code=0
  for python in "${pythons[@]}"; do
    if ! compile "$python" "$2" --constraint "$1" >"$work/resolved" 2>"$work/why"; then
      cat "$work/why" >&2
      echo "make resolve: ${1##*/}: for Python $python a version in it is not on the registry, or contradicts another (above); make resolve UPDATE=1 writes the file anew." >&2
      return 1
    fi
    diff <(pins "$1") <(pins "$work/resolved") >"$work/why" || code=$?
    if [ "$code" != 0 ]; then
      grep '^[<>]' "$work/why" >&2 || true
      echo "make resolve: ${1##*/}: for Python $python it lacks what is marked > above, or has what is marked < and nobody needs; make resolve UPDATE=1 writes the file anew." >&2
      return 1
    fi
  done
}

write() { # FILE EXTRAS PREFERRED...
  touch "$1"
  pins "$1" >"$work/file"
  pins "${@:3}" >>"$work/file"
  compile "$written_for" "$2" --output-file "$work/file" >/dev/null
  {
    echo "# Every version of rlrt's environment for CUDA 13 (extras $2) on Linux x86_64; made by: make resolve UPDATE=1. Resolved, not installed."
    cat "$work/file"
  } >"$work/new"
  cp "$work/new" "$1"
}

cuda=constraints-cuda13.txt with_vllm=constraints-cuda13-vllm.txt
if [ -n "${UPDATE:-}" ]; then
  write "$cuda" dev,gym,trackio,bench constraints.txt
  write "$with_vllm" dev,gym,trackio,bench,vllm constraints-vllm.txt constraints.txt "$cuda"
fi
agrees "$cuda" dev,gym,trackio,bench
agrees "$with_vllm" dev,gym,trackio,bench,vllm

# a wrong version must be seen, or all this says nothing
sed 's/^triton==.*/triton==3.0.0/' "$cuda" >"$work/planted"
if UV_OFFLINE=1 agrees "$work/planted" dev,gym,trackio,bench 2>/dev/null; then
  echo "make resolve: a planted version, triton 3.0.0, was not refused: this check is broken." >&2
  exit 1
fi
echo "$cuda ($(pins "$cuda" | wc -l) versions) and $with_vllm ($(pins "$with_vllm" | wc -l)) resolve for Python ${pythons[*]}; not installed"
