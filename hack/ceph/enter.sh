#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs a program with the /usr of another Debian, whose Ceph it then is; all else
# is this machine's: files, network, devices, processes. build.sh puts it into the
# folder bin beside that Debian, with a link for each of Ceph's programs:
#
#   bin/ceph -s                  its program of that name
#   bin/enter go test ./...      any command; /usr/local stays this machine's
#
# The mount is seen by that program and its children alone, and goes with the last
# of them, however they end. It is read-only, and nothing of this machine is left
# mounted in that folder, so the folder can be deleted at any time and from anywhere.
# The process stays the same one, so signals reach the program. Who is not
# root gets a namespace of users, too, and is root there.
set -eu

case $0 in
*/*) here=${0%/*} ;;
*) here=$(dirname "$(command -v "$0")") ;;
esac
root=$(cd "$here/.." && pwd)/root
name=${0##*/}
if [ "$name" = enter ]; then
	# For the test rig, which may want the Ceph that is installed.
	export CEPH_ENTERED="$root"
else
	set -- "/usr/bin/$name" "$@"
fi

user=
[ "$(id -u)" = 0 ] || user=--map-root-user
# From the last mount on, only what the shell does itself is of this machine.
# shellcheck disable=SC2016,SC2086 # the inner shell expands it; one word or none
exec unshare --mount $user -- sh -c '
	mount --bind /usr/local "$0/usr/local" &&
	mount --rbind -o ro "$0/usr" /usr &&
	umount "$0/usr/local" &&
	exec "$@"' "$root" "$@"
