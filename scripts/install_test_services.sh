#!/usr/bin/env bash
# Installs what tests start as processes of their own, where it is missing and root can (Debian). Elsewhere the tests that
# need it are skipped, and say so.
set -uo pipefail
command -v initdb >/dev/null && exit 0
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  apt-get update -q && apt-get install -y -q --no-install-recommends postgresql && exit 0
fi
echo "PostgreSQL is not installed (apt-get install postgresql): its tests will be skipped."
