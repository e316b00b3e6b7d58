# Functions that the scripts in this folder share. POSIX shell; sourced, never run.
# shellcheck shell=sh

# Python would otherwise compile Ansible anew at each of a hundred starts.
unset PYTHONDONTWRITEBYTECODE

project=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
tools="$project/.venv"
# shellcheck disable=SC2034  # For the scripts that source this file.
cache="$project/.cache"

# Say what happens next, on standard error so that a script's output stays usable.
say() {
    printf '\033[1m==>\033[0m %s\n' "$*" >&2
}

# End with one sentence that says what failed and what to do.
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Print the comment block at the top of the script: its help.
help() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

# Run "$2..." and report how long the step "$1" took; remember it for the summary.
step() {
    step_name=$1
    shift
    say "$step_name"
    step_start=$(date +%s)
    "$@" || return $?
    printf '%4d s  %s\n' "$(($(date +%s) - step_start))" "$step_name" >>"${step_log:-/dev/null}"
}

# Make the tools' environment the one that the script runs in.
use_tools() {
    PATH="$project/molecule/shared/bin:$tools/bin:$PATH"
    ANSIBLE_CONFIG="$project/ansible.cfg"
    ANSIBLE_COLLECTIONS_PATH="$project/collections"
    export PATH ANSIBLE_CONFIG ANSIBLE_COLLECTIONS_PATH
}

# Print the name and tag of the test-host image of a Debian suite.
image_of() {
    printf 'bitflow-lms-host:%s-%s\n' "$1" "$(cat "$project"/molecule/shared/image/* | sha256sum | cut -c1-12)"
}
