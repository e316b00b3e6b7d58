#!/bin/sh
# Check a file of Redis before it lands: check USER MODE PROGRAM FILE, with MODE one of server, sentinel and users.
# The user is the one that Redis runs as, so that a certificate it may not read is found too.
set -eu
user=$1 mode=$2 program=$3 file=$4
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp "$file" "$folder/candidate"
echo 'this is no data' >"$folder/dump.rdb"
chown -R "$user" "$folder"
cd "$folder"
case $mode in
    server) set -- ./candidate ;;
    users) set -- --aclfile ./candidate ;;
    # A Sentinel has no data. It reads its file up to this value, which no version understands. Redis 8 takes directives that it does not know.
    sentinel) set -- ./candidate --port end-of-file ;;
esac
[ "$mode" = sentinel ] || set -- "$@" --port 0 --tls-port 0 --unixsocket "$folder/socket" --dir "$folder" \
    --dbfilename dump.rdb --appendonly no --cluster-enabled no --daemonize no --supervised no --logfile '' --pidfile ''
said=$(timeout 20 runuser -u "$user" -- "$program" "$@" 2>&1) || true
case $said in
    *'Wrong signature trying to load DB from file'* | *'>>> '?'port "end-of-file"'*) ;;
    *) printf '%s\n' "$said" >&2 && exit 1 ;;
esac
