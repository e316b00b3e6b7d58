#!/bin/sh
# Say what keeps PostgreSQL from using a certificate: check_certificate CERTIFICATE KEY, as the user postgres.
set -eu
for file in "$@"; do
    [ -r "$file" ] || { echo "$file is not there or PostgreSQL cannot read it" && exit 1; }
done
[ "$(openssl x509 -in "$1" -noout -pubkey)" = "$(openssl pkey -in "$2" -pubout)" ] || { echo "the key $2 is not that of the certificate $1" && exit 1; }
case $(stat --dereference --format '%U %a' "$2") in
    'postgres '[0-7]00 | 'root '[0-7][0-7]0) ;;
    *) echo "the key $2 must be root's with mode 0640, or postgres' with mode 0600" && exit 1 ;;
esac
