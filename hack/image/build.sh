#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the Dockerfile without docker and without a registry, and prints the
# path of the image as its last line: a tar that "ctr images import" takes. Needs
# root and what "make deps-node" installs.
#
#   hack/image/build.sh [NAME]      NAME:TAG, else what deploy/deployment.yaml says
#
# The environment's BUILD_IMAGE and RUN_IMAGE stand for other images to start from, as
# the Dockerfile's arguments of these names do. Their tags name a release of Debian.
#
# The tar is named after the content of what it is made from, so it is made again
# when that has changed. The two that were used last are kept.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rbd-provisioner/image

name=${1:-$(sed -n 's/^ *image: *//p' deploy/deployment.yaml)}
if [[ ! $name =~ ^[a-z0-9./:_-]+:[A-Za-z0-9._-]+$ ]]; then
	echo "build.sh: \"$name\" is not the name of an image with a tag, like rbd-provisioner:v0.1.0" >&2
	exit 2
fi
for program in go git; do
	command -v "$program" >/dev/null || {
		echo "build.sh: $program is missing" >&2
		exit 1
	}
done

# What the Dockerfile starts from when nothing else is said.
default() {
	sed -n "s/^ARG $1=//p" Dockerfile
}
build_image=${BUILD_IMAGE:-$(default BUILD_IMAGE)}
run_image=${RUN_IMAGE:-$(default RUN_IMAGE)}
# The release is that of the image that runs: trixie of debian:trixie-slim.
suite=${run_image##*:}
suite=${suite%%-*}
if [[ ! $suite =~ ^[a-z]+$ ]]; then
	echo "build.sh: the tag of \"$run_image\" does not begin with a release of Debian, like trixie" >&2
	exit 2
fi
# Both images are made, and not pulled: the folder that keeps them is named after
# what they are made from.
base=$({
	cat "$here"/*
	go env GOVERSION GOROOT
	echo "$build_image $run_image"
	cat /usr/local/share/ca-certificates/*.crt 2>/dev/null || true
	apt-config dump Acquire::http::Proxy 2>/dev/null || true
} | sha256sum | cut -c1-16)

# .dockerignore in the words of git.
ignored=()
while IFS= read -r pattern; do
	case $pattern in
	'' | '#'*) ;;
	'!'*)
		echo "build.sh: .dockerignore: exceptions like \"$pattern\" are not understood here" >&2
		exit 1
		;;
	*) ignored+=(":(exclude,glob)$pattern" ":(exclude,glob)$pattern/**") ;;
	esac
done <.dockerignore
# What the image is built from, as a tar that is the same for the same content.
context() {
	{
		printf '%s\0' Dockerfile .dockerignore
		git ls-files -z --cached --others --exclude-standard -- . "${ignored[@]}"
	} | while IFS= read -r -d '' path; do
		# git still lists what was deleted but not yet removed from its index.
		if [[ -e $path || -L $path ]]; then printf '%s\0' "$path"; fi
	done | LC_ALL=C sort -z -u | tar -c --null --no-recursion -T - \
		--mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u+rw,go=rX
}
key() {
	{
		echo "$base $name"
		cat
	} | sha256sum | cut -c1-16
}
finish() {
	# The time says when it was last used.
	touch "$out"
	echo "$out"
	exit 0
}

out=$cache/$(context | key).tar
[[ ! -e $out ]] || finish

if ((EUID != 0)); then
	echo "build.sh: not root, which making the files of a Debian needs" >&2
	exit 1
fi
for program in buildah mmdebstrap; do
	command -v "$program" >/dev/null || {
		echo "build.sh: $program is missing: run \"make deps-node\"" >&2
		exit 1
	}
done
mkdir -p "$cache"
# Also held by all programs that this starts: one that outlives a kill must not
# meet the next build.
exec 9>"$cache/lock"
flock -n 9 || {
	echo "Another build of an image is running, waiting for it" >&2
	flock 9
}
# What a build that was killed has left.
rm -rf "$cache"/.build.*
tmp=$(mktemp -d "$cache/.build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
# Again, as files may have changed while this waited. From here on they may.
context >"$tmp/context.tar"
out=$cache/$(key <"$tmp/context.tar").tar
[[ ! -e $out ]] || finish
mkdir "$tmp/context"
tar -x -C "$tmp/context" -f "$tmp/context.tar"

# The build finds all modules here and needs no network for them.
go mod download >&2

# Old bases of this release first, as there may not be room for both; those of others
# when they have not been used for a week.
store=$cache/base.$suite.$base
mkdir -p "$store"
touch "$store"
find "$cache" -mindepth 1 -maxdepth 1 -name 'base.*' ! -path "$store" \
	\( -name "base.$suite.*" -o -mtime +6 \) -exec rm -rf {} +

# In namespaces of its own the build leaves neither mounts nor processes, however
# it ends: they go with their first process. That one ends by a signal of the
# kernel when this script does, and by ours when this script is interrupted, as
# unshare holds signals back.
echo "Building $name into $out" >&2
setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc \
	"$here/stages.sh" "$store" "$tmp" "$name" "$suite" "$build_image" "$run_image" </dev/null >&2 &
unshare=$!
# shellcheck disable=SC2317 # the trap calls it
interrupted() {
	trap '' INT TERM HUP
	local first
	first=$(cat "/proc/$unshare/task/$unshare/children" 2>/dev/null) || true
	# shellcheck disable=SC2086 # a number and a space, or nothing
	kill -KILL ${first:-$unshare} 2>/dev/null || true
	wait "$unshare" || true
	echo "build.sh: interrupted" >&2
	exit 130
}
trap interrupted INT TERM HUP
wait "$unshare"
trap - INT TERM HUP

mv "$tmp/image.tar" "$out"
find "$cache" -maxdepth 1 -name '*.tar' -printf '%T@ %p\n' | sort -rn | tail -n +3 | cut -d ' ' -f 2- |
	while IFS= read -r old; do rm -f "$old"; done
finish
