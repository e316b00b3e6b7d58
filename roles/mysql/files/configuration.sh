#!/bin/sh
# Print the settings that the server would start with, were CANDIDATE in the place of FILE, and beside the other files of /etc/mysql.
# Fail where it would not start with them, or would take another value than the one that is written.
#
# Usage: configuration.sh PROGRAM FILE CANDIDATE

set -eu
program=$1 file=$2 candidate=$3
# What is wrong, and what would be another value than the one that is written.
refused='\[ERROR\]|adjusted to|recognized'

# A copy, so that the files are read as the server reads them. A profile of AppArmor lets MySQL read this folder.
folder=$(mktemp --directory --tmpdir=/tmp)
trap 'rm -rf "$folder"' EXIT
cp --recursive --dereference /etc/mysql "$folder"
cp "$candidate" "$folder/${file#/etc/}"
sed --in-place "/^ *!include/s,/etc/mysql/,$folder/mysql/," "$folder/mysql/my.cnf"

# The limit of the service: with a lower one the server would lower settings.
# shellcheck disable=SC3045  # The shell of both distributions has it.
ulimit -n 32768 2>/dev/null || true

status=0
ask() {
    "$program" --defaults-file="$folder/mysql/my.cnf" --user=mysql "$@" 2>>"$folder/messages" || status=$?
}
# MySQL can say what it thinks of its configuration, MariaDB cannot. Both can say what they make of it.
[ "${program##*/}" != mysqld ] || ask --validate-config --log-error-verbosity=2
ask --verbose --help >"$folder/settings"

# The status is 0 even where InnoDB does not understand its settings and the server would not start.
if [ "$status" != 0 ] || grep --quiet --extended-regexp "$refused" "$folder/messages"; then
    grep --extended-regexp "$refused" "$folder/messages" >&2 || cat "$folder/messages" >&2
    exit 1
fi

# The server takes the beginning of a name for the name, and a later version may take it for another one.
sed --quiet 's/^\([a-z][a-z0-9_]*\) = .*/\1/p' "$candidate" | tr _ - | grep --invert-match '^loose-' | while read -r name; do
    plain=$(echo "$name" | sed --regexp-extended 's/^(skip|disable|enable|maximum)-//')
    grep --quiet --extended-regexp -e "^($name|$plain) " -e "^ +(-., )?--($name|$plain)([^a-z0-9-]|\$)" "$folder/settings" ||
        { echo "unknown setting '$name'" >&2 && exit 1; }
done
cat "$folder/settings"
