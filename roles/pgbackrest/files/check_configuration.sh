#!/bin/sh
# Let pgBackRest read a configuration before it lands: check_configuration STANZA CANDIDATE
# It has no test of its own. Each command reads the options that it knows, and then fails before it does anything: these can take no lock or
# lack an argument. Whatever else they say is wrong with the file.
set -eu
stanza=$1 candidate=$2
scratch=$(mktemp --directory)
trap 'rm -r "$scratch"' EXIT
# It may be a pipe, which can be read but once.
cat "$candidate" >"$scratch/candidate"
mkdir "$scratch/further"
ask() {
    pgbackrest --config="$scratch/candidate" --config-include-path="$scratch/further" --stanza="$stanza" --lock-path=/dev/null/check \
        --log-level-file=off --log-level-console=off --log-level-stderr=warn "$1" 2>&1 || true
}
said=$(for command in backup expire archive-push archive-get; do ask "$command"; done)
wrong=$(echo "$said" | grep --invert-match --extended-regexp 'unable to acquire lock on file ./dev/null/check|WAL segment to (push|get) required' || true)
[ -z "$wrong" ] || {
    echo "$wrong" | grep --extended-regexp 'ERROR|WARN' | sort --unique >&2
    exit 1
}
