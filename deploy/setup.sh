#!/usr/bin/env bash
# What every make target needs first: Debian packages, .venv from the hash-locked requirements, Nimbus with its native
# code. Idempotent: each step leaves a stamp in .setup/ named by the hash of its inputs, and a fresh stamp costs
# milliseconds and no network. It never starts a service and never touches a Python outside .venv and .setup.
#
#   deploy/setup.sh run        what running Nimbus takes
#   deploy/setup.sh dev        that, and the tools of make check and make test (default)
#   deploy/setup.sh packages   the Debian packages of `dev` only
#   deploy/setup.sh bench      `dev`, and what the benches take
#   deploy/setup.sh controllers   `dev`, and what make test-controllers takes
#
# PYTHON=/path/to/python3.13 chooses the interpreter; 3.11 to 3.13 will do.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-dev}
case $what in run | dev | packages | bench | controllers) ;; *) echo "usage: deploy/setup.sh [run|dev|packages|bench|controllers]" >&2; exit 2 ;; esac

stamps=$PWD/.setup
log=$stamps/log
mkdir -p "$stamps"
export PATH=$PATH:/usr/sbin:/sbin
started=$SECONDS

say() { printf '%s\n' "$*" >&2; }
fail() { say ""; say "set-up: $1"; shift; for line in "$@"; do say "  $line"; done; exit 1; }

# One set-up at a time in one checkout: a second `make` waits for the first and then finds its stamps.
exec 9>"$stamps/lock"
flock -n 9 || { say "set-up: another set-up is at work here; waiting for it"; flock -w 900 9 || fail "the other set-up did not end in 15 minutes"; }

# run TITLE COMMAND...: output goes to the log; every few seconds its last line is shown; on failure its end is.
run() {
  local title=$1 began=$SECONDS shown=$SECONDS pid
  shift
  say "set-up: $title"
  printf '\n$ %s\n' "$*" >>"$log"
  "$@" </dev/null >>"$log" 2>&1 9>&- &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.1
    if ((SECONDS - shown >= 5)); then
      shown=$SECONDS
      say "        $((SECONDS - began)) s: $(tail -n 1 "$log" | tr -dc '[:print:]' | cut -c1-100)"
    fi
  done
  wait "$pid" || { local status=$?; tail -n 25 "$log" >&2; say "set-up: '$title' failed with status $status; all of it: .setup/log"; return "$status"; }
  if ((SECONDS - began >= 2)); then say "        done in $((SECONDS - began)) s"; fi
}

hash_of() { cat -- "$@" | sha256sum | cut -c1-16; }
fresh() { [ -e "$stamps/$1-$2" ]; }                       # fresh STEP HASH
stamp() { rm -f "$stamps/$1-"*; : >"$stamps/$1-$2"; }     # stamp STEP HASH

# ---- Debian packages -------------------------------------------------------------------------------------------

present() {
  case $1 in
    /*) compgen -G "$1" >/dev/null ;;
    *) command -v -- "$1" >/dev/null ;;
  esac
}

# The packages of the wanted sections whose proof is absent.
missing_packages() {
  local package when proof
  while read -r package when proof; do
    case $package in '' | '#'*) continue ;; esac
    if [ "$when" = dev ] && [ "$what" = run ]; then continue; fi
    if [ "$when" = bench ] && [ "$what" != bench ]; then continue; fi
    if [ "$when" = controllers ] && [ "$what" != controllers ]; then continue; fi
    present "$proof" || printf '%s\n' "$package"
  done <deploy/packages.debian
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo env DEBIAN_FRONTEND=noninteractive "$@"; fi
}

apt() {
  DEBIAN_FRONTEND=noninteractive as_root apt-get -y -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
    -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold "$@"
}

apt_update() {
  local try
  for try in 1 2 3 4 5; do # the lists have a lock of their own, for which apt knows no waiting time
    if run "package lists" apt update; then return 0; fi
    say "        package lists: try $try of 5 failed; once more in 5 s"
    sleep 5
  done
  fail "apt-get update fails" "check the network and /etc/apt, then run make again"
}

# Lists as they are, then fresh ones: a stale list names versions that the mirror has dropped.
apt_install() {
  local title=$1
  shift
  if compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null && run "$title" apt install --no-install-recommends "$@"; then return 0; fi
  apt_update
  run "$title" apt install --no-install-recommends "$@" || fail "Debian packages could not be installed: $*"
}

policy=/usr/sbin/policy-rc.d
policy_mark="# nimbus set-up: no service starts while packages are being installed"

forbid_services() {
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" | as_root tee $policy >/dev/null
    as_root chmod 755 $policy
  fi
}

allow_services() {
  if grep -qsF "$policy_mark" $policy; then as_root rm -f $policy; fi
}

# A database cluster nobody asked for would start at the next boot: `nimbus up` makes its own in its state folder.
install_postgresql_common() {
  local conf=/etc/postgresql-common/createcluster.conf
  if dpkg-query -W -f '${Status}' postgresql-common 2>/dev/null | grep -q 'ok installed'; then return 0; fi
  apt_install "postgresql-common" postgresql-common
  if [ -e $conf ]; then as_root sed -i 's/^#create_main_cluster = true/create_main_cluster = false/' $conf; fi
}

restore_postgresql_common() {
  local conf=/etc/postgresql-common/createcluster.conf
  if [ -e $conf ]; then as_root sed -i 's/^create_main_cluster = false$/#create_main_cluster = true/' $conf; fi
}

clang_version() {
  LC_ALL=C apt-cache show clang 2>/dev/null | sed -n 's/^Depends:.*clang-\([0-9][0-9]*\).*/\1/p' | head -n 1
}

ensure_packages() {
  local missing had_redis=yes common_new=no
  mapfile -t missing < <(missing_packages)
  if [ ${#missing[@]} -eq 0 ]; then return 0; fi
  command -v apt-get >/dev/null || fail "these are missing here: ${missing[*]}" \
    "make installs them on Debian and its derivatives only; install what your distribution calls them, then run make again" \
    "(deploy/packages.debian says which command or file proves each)"
  if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null && ! { [ -t 0 ] && command -v sudo >/dev/null; }; then
    fail "these Debian packages are missing: ${missing[*]}" "installing them takes root; run this once, then make again:" \
      "    apt-get install --no-install-recommends ${missing[*]}"
  fi
  if [ "$(id -u)" != 0 ]; then sudo true; fi # asks for the password here, on the terminal, not in the log
  trap 'allow_services' EXIT
  forbid_services
  if printf '%s\n' "${missing[@]}" | grep -q '@clang@'; then
    if [ -z "$(clang_version)" ]; then apt_update; fi
    missing=("${missing[@]//@clang@/$(clang_version)}")
  fi
  if printf '%s\n' "${missing[@]}" | grep -qx redis-server; then had_redis=no; fi
  if printf '%s\n' "${missing[@]}" | grep -qx postgresql; then
    dpkg-query -W postgresql-common >/dev/null 2>&1 || common_new=yes
    install_postgresql_common
  fi
  apt_install "${#missing[@]} Debian packages: ${missing[*]}" "${missing[@]}"
  if [ $common_new = yes ]; then restore_postgresql_common; fi
  if [ $had_redis = no ] && [ -d /run/systemd/system ]; then as_root systemctl disable --now redis-server >>"$log" 2>&1 || true; fi
  allow_services
  trap - EXIT
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} -eq 0 ] || fail "still missing after the installation: ${missing[*]}" "see .setup/log"
}

# ---- Python ----------------------------------------------------------------------------------------------------

# Not yet 3.14: trio-asyncio 0.16, under which asyncpg runs, needs what 3.14 removed from asyncio.
good_python() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

# Sets `python`: PYTHON, else the python3 of PATH, else a fitting one beside it, else Debian's own.
choose_python() {
  local name
  if [ -n "${PYTHON:-}" ]; then
    python=$(command -v -- "$PYTHON") || fail "PYTHON=$PYTHON does not exist"
    good_python "$python" || fail "PYTHON=$PYTHON is not a Python from 3.11 to 3.13" "name another one: make PYTHON=/path/to/python3.13"
    return 0
  fi
  for name in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
    if python=$(command -v "$name") && good_python "$python"; then return 0; fi
  done
  if command -v apt-get >/dev/null && [ ! -e /usr/bin/python3 ]; then
    ensure_debian "Debian's Python" python3
    if good_python /usr/bin/python3; then python=/usr/bin/python3; return 0; fi
  fi
  fail "no Python from 3.11 to 3.13 is here" "install one and name it: make PYTHON=/path/to/python3.13"
}

ensure_debian() {
  local title=$1
  shift
  if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null && ! { [ -t 0 ] && command -v sudo >/dev/null; }; then
    fail "$title is missing, and installing it takes root; run this once, then make again:" \
      "    apt-get install --no-install-recommends $*"
  fi
  apt_install "$title: $*" "$@"
}

# Debian splits headers and ensurepip off its Python; others bring them along.
complete_python() {
  local version
  if "$python" -c 'import ensurepip, os, sysconfig as s; os.stat(s.get_paths()["include"] + "/Python.h")' 2>/dev/null; then return 0; fi
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  case $(readlink -f "$python") in
    /usr/bin/*) ensure_debian "the rest of Debian's Python" "python$version-dev" "python$version-venv" ;;
    *) fail "$python has no headers (Python.h) or no ensurepip" "name another one: make PYTHON=/path/to/python3" ;;
  esac
}

# Sets `uv`: the one of PATH, else the pinned one in .setup/uv. A mirror or an authority that pip was told of counts for uv too.
choose_uv() {
  export UV_PYTHON_DOWNLOADS=never UV_NO_PROGRESS=1 UV_LINK_MODE=${UV_LINK_MODE:-copy}
  export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1} # pip trusts what the machine trusts; so shall uv (an office's own authority)
  if [ -n "${PIP_INDEX_URL:-}" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=$PIP_INDEX_URL; fi
  if [ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE=$PIP_CERT; fi
  if uv=$(command -v uv); then return 0; fi
  uv=$stamps/uv/bin/uv
  local hash
  hash=$(hash_of requirements-uv.txt)
  if fresh uv "$hash" && [ -x "$uv" ]; then return 0; fi
  run "uv, pinned by hash" install_uv
  stamp uv "$hash"
}

install_uv() {
  rm -rf "$stamps/uv"
  "$python" -m venv "$stamps/uv"
  "$stamps/uv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
}

same_python() {
  [ -x .venv/bin/python ] && [ "$(.venv/bin/python -c 'import sys; print(sys.version)' 2>/dev/null)" = "$("$python" -c 'import sys; print(sys.version)')" ]
}

ensure_environment() {
  local hash
  hash=$(hash_of requirements-dev.txt)
  if fresh environment "$hash" && .venv/bin/python -c '' 2>/dev/null && { [ -z "${PYTHON:-}" ] || same_python; }; then return 0; fi
  choose_python
  complete_python
  choose_uv
  if ! same_python; then run "environment .venv from $python" "$uv" venv --clear --python "$python" .venv; fi
  run "Python packages of requirements-dev.txt into .venv" \
    env VIRTUAL_ENV="$PWD/.venv" "$uv" pip sync --require-hashes requirements-dev.txt
  rm -f "$stamps"/project-*
  stamp environment "$hash"
}

# ---- Nimbus and its native code ----------------------------------------------------------------------------------

project_hash() {
  { cat pyproject.toml; .venv/bin/python -c 'import sys; print(sys.version)'
    find native \( -name build -o -name __pycache__ \) -prune -o -type f -not -name '*.o' -print | LC_ALL=C sort | xargs -d '\n' sha256sum; } | sha256sum | cut -c1-16
}

ensure_project() {
  local hash
  hash=$(project_hash)
  if fresh project "$hash" && [ -x nimbus/host/bin/nimbus-keeper ] && [ -x nimbus/rootfs/bin/nimbus-init ] && [ -x .venv/bin/nimbus ]; then return 0; fi
  choose_uv
  run "Nimbus and its native code" env VIRTUAL_ENV="$PWD/.venv" "$uv" pip install --quiet --no-deps --no-build-isolation --editable .
  stamp project "$hash"
}

# ---- what tests/clients takes from npm ---------------------------------------------------------------------------

ensure_clients() {
  local hash
  hash=$(hash_of tests/clients/package.json tests/clients/package-lock.json)
  if fresh clients "$hash" && [ -d tests/clients/node_modules ]; then return 0; fi
  run "npm packages of tests/clients" npm ci --prefix tests/clients --ignore-scripts --no-audit --no-fund
  stamp clients "$hash"
}

ensure_packages
if [ "$what" = packages ]; then exit 0; fi
ensure_environment
ensure_project
if [ "$what" != run ]; then ensure_clients; fi
if ((SECONDS - started >= 2)); then say "set-up: complete after $((SECONDS - started)) s"; fi
