#!/usr/bin/env bash
# Installs what tests start as processes of their own, where it is missing and root can (Debian). Elsewhere the tests that
# need it are skipped, and say so.
set -uo pipefail
missing=()
compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
command -v strace >/dev/null || missing+=(strace)
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}" && exit 0
fi
echo "Not installed (apt-get install ${missing[*]}): the tests that need it will be skipped."
