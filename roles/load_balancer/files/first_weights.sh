#!/bin/sh
# Give a site without weights its first ones, whole or not at all.
#
# Usage: first_weights.sh FOLDER LABEL
#
# LABEL names the percent of each colour, such as blue-100+green-0. FOLDER gets a folder for it, which has an empty file for each of a
# hundred buckets in the folder of its colour, and the link `current` to it. The last colour gets the lowest buckets.

set -eu
umask 022

folder=$1 label=$2
weights=$folder.new/weights/$label
# What a run left that was cut off.
rm -rf "$folder.new"
bucket=0
for share in $(echo "$label" | tr + '\n' | LC_ALL=C sort --reverse); do
    colour=${share%-*}
    end=$((bucket + ${share##*-}))
    mkdir -p "$weights/$colour"
    while [ "$bucket" -lt "$end" ]; do
        : >"$weights/$colour/$bucket"
        bucket=$((bucket + 1))
    done
done
ln -s "weights/$label" "$folder.new/current"
sync
if [ -e "$folder" ]; then
    # It has lost its link. What nothing leads to may be replaced.
    mkdir -p "$folder/weights"
    rm -rf "$folder/weights/$label"
    mv "$weights" "$folder/weights/"
    mv --no-target-directory "$folder.new/current" "$folder/current"
    rm -r "$folder.new"
else
    mv --no-target-directory "$folder.new" "$folder"
fi
sync
