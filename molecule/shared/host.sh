#!/bin/sh
# Start and remove test hosts: containers in which systemd runs as on a machine of its own.
#
# Usage: host.sh up NAME IMAGE PURPOSE [DOCKER-RUN-OPTION...]
#        host.sh down PURPOSE [NAME]
#        host.sh forget PURPOSE
#
# PURPOSE is a label: `down` removes the hosts that have it (or the one host NAME). The volumes that cache their
# package downloads stay for the next time; `forget` removes those too.

set -eu

up() {
    name=$1 image=$2 purpose=$3
    shift 3
    case $(docker inspect --format '{{.State.Running}} {{.Config.Image}}' "$name" 2>/dev/null || true) in
        "true $image") return 0 ;;
        "false $image") docker start "$name" >/dev/null && wait_for_systemd "$name" && return 0 ;;
        ?*) docker rm --force --volumes "$name" >/dev/null ;;
    esac
    # SYS_ADMIN: systemd mounts. NET_ADMIN: firewall. SYS_PTRACE: sandboxed units start. The control group is
    # mounted anew as version 2, so that one recipe serves every systemd and every engine. What this machine
    # trusts, the host may trust as well: the file is there for those who ask for it.
    docker volume create --label "bitflow-lms=$purpose" "$name-apt" >/dev/null
    docker run --detach --pull never --name "$name" --hostname "${name##*-}" --label "bitflow-lms=$purpose" \
        --cgroupns private --cap-add SYS_ADMIN --cap-add NET_ADMIN --cap-add SYS_PTRACE \
        --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
        --tmpfs /run --tmpfs /run/lock --tmpfs /tmp:exec \
        --volume "$name-apt:/var/cache/apt/archives" \
        --volume /etc/ssl/certs/ca-certificates.crt:/usr/local/share/machine-authorities.crt:ro \
        "$@" "$image" \
        sh -c 'umount -R /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 none /sys/fs/cgroup && exec /sbin/init' >/dev/null
    wait_for_systemd "$name"
}

# A unit that does not matter may have failed: "degraded" is a booted host too.
wait_for_systemd() {
    tries=60
    while [ "$tries" -gt 0 ]; do
        case $(docker exec "$1" systemctl is-system-running 2>/dev/null || true) in
            running | degraded) return 0 ;;
        esac
        [ "$(docker inspect --format '{{.State.Running}}' "$1")" = true ] || break
        sleep 0.5
        tries=$((tries - 1))
    done
    {
        echo "host.sh: systemd did not come up in the container $1. Its log:"
        docker logs --tail 20 "$1"
        echo "If it is empty, the kernel's limit may be reached: sysctl -w fs.inotify.max_user_instances=1024"
    } >&2
    return 1
}

down() {
    docker ps --all --filter "label=bitflow-lms=$1" ${2:+--filter "name=^$2\$"} --format '{{.Names}}' |
        xargs --no-run-if-empty docker rm --force --volumes >/dev/null
}

forget() {
    down "$1"
    docker volume ls --quiet --filter "label=bitflow-lms=$1" | xargs --no-run-if-empty docker volume rm >/dev/null
}

"$@"
