#!/usr/bin/env bash
# Installs the clients of others that the conformance tests run, unmodified. Quick when all is there already.
# The agents SDK, LiveKit and Pipecat get environments of their own: their dependencies must not meet the project's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=${PYTHON:-python3}

environment() {
  local name=$1 stamp=.venv-$1/.installed
  cmp --silent "requirements-$name.txt" "$stamp" && return
  rm -rf ".venv-$name"
  "$python" -m venv ".venv-$name"
  ".venv-$name/bin/pip" install -qq --requirement "requirements-$name.txt"
  cp "requirements-$name.txt" "$stamp"
}

packages() {
  local stamp=node_modules/.installed
  cmp --silent package.json "$stamp" && return
  rm -rf node_modules
  npm install --no-audit --no-fund --no-package-lock --loglevel=error
  cp package.json "$stamp"
}

environment agents
environment livekit
environment pipecat
packages
