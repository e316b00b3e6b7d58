#!/bin/sh
# Start a server without data on a file before it lands: check_server PROGRAMS FOLDER FILE CANDIDATE
# FOLDER is that of the cluster's configuration, and FILE the place in it that the candidate is for.
set -eu
programs=$1 folder=$2 file=$3 candidate=$4
scratch=$(mktemp --directory)
trap 'rm -rf "$scratch"' EXIT
cp -r "$folder" "$scratch/etc"
cp "$candidate" "$scratch/etc/$file"
chown -R postgres: "$scratch"
cd "$scratch"
# Settings are not to fail for rules that the next run mends: the rules of initdb are in their place.
rules=data/pg_hba.conf
[ "$file" != pg_hba.conf ] || rules=etc/pg_hba.conf
# It must not touch what the server that runs has: files, addresses, the archive and the memory.
set -- config_file="$scratch/etc/postgresql.conf" hba_file="$scratch/$rules" ident_file="$scratch/etc/pg_ident.conf" \
    data_directory="$scratch/data" external_pid_file="$scratch/pid" unix_socket_directories="$scratch" listen_addresses= \
    archive_mode=off logging_collector=off log_destination=stderr shared_buffers=1MB huge_pages=off
touch log
chown postgres: log
postgres() {
    program=$1
    shift
    runuser -u postgres -- "$programs/$program" --pgdata=data "$@" >said 2>&1 || {
        cat log said | sed "s|$scratch/etc|$folder|" >&2
        exit 1
    }
}
postgres initdb --auth=peer --no-sync --locale=C.UTF-8
postgres pg_ctl start --wait --timeout=60 --silent --log=log --options="$(printf -- '-c %s ' "$@")"
postgres pg_ctl stop --mode=immediate --silent
