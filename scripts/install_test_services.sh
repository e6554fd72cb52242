#!/usr/bin/env bash
# Installs what tests start as processes of their own, where it is missing and root can (Debian): PostgreSQL's server, and
# promtool, which checks alert rules. Elsewhere the tests that need them are skipped, and say so.
set -uo pipefail

have_postgres() { compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || command -v initdb >/dev/null; }
have_promtool() { command -v promtool >/dev/null; }

# Out of its package, without the server, which Debian would start.
take_promtool() (
  folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 1
  apt-get download -q prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool &&
    install usr/bin/promtool /usr/local/bin/promtool
)

have_postgres && have_promtool && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  apt-get update -q
  have_postgres || apt-get install -y -q --no-install-recommends postgresql
  have_promtool || take_promtool
fi
have_postgres || echo "PostgreSQL is not installed (apt-get install postgresql): its tests will be skipped."
have_promtool || echo "promtool is not installed (apt-get install prometheus): the tests of alert rules will be skipped."
