#!/bin/sh
# Say which services run something else than their files say. Each line of the input is a question:
# WHAT UNIT PIDFILE FILE...: is one of the files younger than the process, and younger than the last time that WHAT was done?
while read -r what unit pid files; do
    done=$(dirname "$pid")/$what.done
    for file in $files; do
        if [ ! -e "$pid" ] || { [ "$file" -nt "$pid" ] && { [ ! -e "$done" ] || [ "$file" -nt "$done" ]; }; }; then
            echo "$what $unit"
            break
        fi
    done
done
