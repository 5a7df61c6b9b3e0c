#!/usr/bin/env bash
# Installs the programs that the tests run against, from Debian's packages; says which are missing where it may not.
set -euo pipefail

declare -A packages=([mariadbd]=mariadb-server [redis-server]=redis-server [chromium]=chromium [npm]=npm)
missing=()
for program in "${!packages[@]}"; do
  PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null || missing+=("${packages[$program]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "The tests need these Debian packages: ${missing[*]}. Install them and run again." >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# The services themselves stay off: each test run starts its own, on free ports.
apt-get install -y -qq --no-install-recommends "${missing[@]}"
