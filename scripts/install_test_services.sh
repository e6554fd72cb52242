#!/usr/bin/env bash
# Installs what tests start as processes of their own, where it is missing and root can (Debian): PostgreSQL's server,
# strace, and promtool, which checks alert rules. Elsewhere the tests that need them are skipped, and say so.
set -uo pipefail

# promtool comes out of its package, without the server beside it, which Debian would start.
take_promtool() (
  folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 1
  apt-get download -q prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool &&
    install usr/bin/promtool /usr/local/bin/promtool
)

look() {
  missing=()
  compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
  command -v strace >/dev/null || missing+=(strace)
  command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
  command -v promtool >/dev/null || missing+=(prometheus)
}

look
if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  apt-get update -q
  for package in "${missing[@]}"; do
    if [ "$package" = prometheus ]; then take_promtool; else apt-get install -y -q --no-install-recommends "$package"; fi
  done
  look
fi
[ ${#missing[@]} -eq 0 ] ||
  echo "Not installed: ${missing[*]} (apt-get install ${missing[*]}). The tests that need it will be skipped."
