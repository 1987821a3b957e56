#!/usr/bin/env bash
# Runs the unit tests on every Python newer than .venv's that is installed here; says so where there is none.
# Called by `make test-pythons`.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .setup/uv/bin/uv)
export UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 UV_LINK_MODE=${UV_LINK_MODE:-copy} UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1}
own=$(.venv/bin/python -c 'import sys; print(sys.version_info[1])')
tested=()

# PATH first, then where pyenv keeps those that it does not put there.
find_python() {
  local candidate
  for candidate in "python3.$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$1".*/bin/python; do
    if [ "$("$candidate" -c 'import sys; print(sys.version_info[1])' 2>/dev/null)" = "$1" ]; then command -v "$candidate"; return 0; fi
  done
  return 1
}

for minor in $(seq "$((own + 1))" 13); do
  python=$(find_python "$minor") || continue
  environment=$PWD/.setup/python3.$minor
  echo "== Python 3.$minor ($("$python" -c 'import sys; print(sys.version.split()[0])'))"
  "$uv" venv --quiet --clear --python "$python" "$environment"
  VIRTUAL_ENV=$environment "$uv" pip sync --quiet --require-hashes requirements-dev.txt
  VIRTUAL_ENV=$environment "$uv" pip install --quiet --no-deps --no-build-isolation --editable .
  "$environment/bin/python" -m pytest -q -p no:cacheprovider tests/unit
  tested+=("3.$minor")
done
if [ ${#tested[@]} -eq 0 ]; then echo "no Python newer than 3.$own is installed here"; else echo "tested on ${tested[*]}"; fi
