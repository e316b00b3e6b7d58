#!/bin/sh
# Build the image of a test host from Debian's archive: build.sh SUITE IMAGE
#
# A test host is what a cloud gives: systemd, Python and apt, and nothing of the stack. No image registry is needed. compiled_once.py
# makes tasks of Ansible cheaper than they are elsewhere: what compares times takes it away.
# The name of the image holds the hash of this folder, so that a changed recipe makes a new image.

set -eu
suite=$1
image=$2
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
archive=$(mktemp --tmpdir "lms-host-$suite.XXXXXX.tar")
log=$(mktemp --tmpdir "lms-host-$suite.XXXXXX.log")
trap 'rm -f "$archive" "$log"' EXIT

# The package lists stay in the image, as a cloud's images have them: a play in check mode can find its packages.
# python3-apt: without it the apt module cannot work in check mode. procps, iproute2: what the tests look with.
# shellcheck disable=SC2016  # $1 is mmdebstrap's, and expands when it runs the hook.
if ! mmdebstrap --variant=minbase \
    --include=systemd,systemd-sysv,dbus,python3,python3-apt,ca-certificates,iproute2,procps,curl \
    --skip=cleanup/apt/lists \
    --aptopt='Acquire::Languages "none"' \
    --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="copy-in $here/container.conf /etc/systemd" \
    --customize-hook='cd "$1" && mkdir -p etc/systemd/system/service.d && mv etc/systemd/container.conf etc/systemd/system/service.d/50-container.conf' \
    --customize-hook="copy-in $here/compiled_once.py $here/compiled_once.pth /usr/lib/python3/dist-packages" \
    --customize-hook='mkdir "$1/var/cache/compiled-once"' \
    --customize-hook='chroot "$1" systemctl mask --quiet systemd-udevd.service systemd-resolved.service getty@tty1.service console-getty.service' \
    "$suite" "$archive" >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
docker import --change 'ENV container=docker' "$archive" "$image" >/dev/null
