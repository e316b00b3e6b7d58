#!/bin/sh
# Check a file of pgBouncer before it lands. pgBouncer reads it, and then refuses to run as root: that far it must come.
set -eu
candidate=$(mktemp)
trap 'rm -f "$candidate"' EXIT
sed 's|^logfile = .*|logfile = /dev/null|' "$1" >"$candidate"
said=$(timeout 10 pgbouncer "$candidate" 2>&1) || true
case $said in
    *ERROR* | *'cannot load'*) ;;
    *'should not run as root'*) exit 0 ;;
esac
printf '%s\n' "$said" >&2
exit 1
