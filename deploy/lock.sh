#!/usr/bin/env bash
# Pins every requirement again, with hashes and without the name of any index. Called by `make lock`.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo .setup/uv/bin/uv)
export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1}
lock=("$uv" pip compile --quiet --upgrade --generate-hashes --no-emit-index-url --universal --python-version 3.11
  --custom-compile-command "make lock")
"${lock[@]}" pyproject.toml -o requirements.txt
"${lock[@]}" pyproject.toml --extra dev -o requirements-dev.txt
echo uv | "${lock[@]}" - -o requirements-uv.txt
