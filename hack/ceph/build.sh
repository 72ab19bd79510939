#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the Ceph of one release for the tests, once, and prints the folder that
# holds it as its last line, or an empty line when that release is installed on
# this machine. Needs root and mmdebstrap.
#
#   hack/ceph/build.sh VERSION [apart]     VERSION as 20; apart: although installed
#
# The folder has:
#   root     a Debian with the servers, the commands and what go-ceph is built with
#   bin      enter.sh, as "enter" and as each of Ceph's programs
#   release  the full version, as 20.2.4
#
# It is named after the content of what it is made from, so a change here makes a
# new one; the link ceph/vVERSION in the cache folder is the one built last.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=${1:-${CEPH_VERSION:-}}
# The Debian that has the release.
case $version in
16) suite=bookworm ;;
18) suite=trixie ;;
20) suite=forky ;;
*)
	echo "build.sh: no Debian is known that has Ceph \"$version\", want 16, 18 or 20" >&2
	exit 2
	;;
esac
packages=(
	ceph-mon ceph-mgr ceph-mgr-modules-core ceph-osd ceph-common
	# To build the program and its tests with this client
	gcc libc6-dev librbd-dev librados-dev
	# What such tests start beside it: a store for Kubernetes, and bin/enter
	etcd-server mount
)
programs=(ceph ceph-authtool ceph-mgr ceph-mon ceph-osd monmaptool python3 rados rbd)

# release PROGRAM...: the version of a Ceph, as 20.2.4.
release() {
	"$@" --version 2>/dev/null | sed -n 's/^ceph version \([0-9.]*\).*/\1/p'
}
case ${2:-} in
'' | apart) ;;
*)
	echo "build.sh: \"$2\" is not understood, want \"apart\" or nothing" >&2
	exit 2
	;;
esac
if [[ ${2:-} != apart ]] && command -v ceph-mon >/dev/null; then
	installed=$(release ceph-mon)
	if [[ ${installed%%.*} == "$version" ]]; then
		echo
		exit 0
	fi
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/rbd-provisioner/ceph
key=$({
	echo "$version"
	cat "$here"/*
} | sha256sum | cut -c1-16)
out=$cache/$key

finish() {
	# Renamed, so that a rig that starts meanwhile finds the old one or the new.
	ln -sfn "$key" "$cache/.v$version.new"
	mv -T "$cache/.v$version.new" "$cache/v$version"
	# What no link names may be in use yet, but not for a day.
	touch "$out"
	find "$cache" -mindepth 1 -maxdepth 1 -type d -mtime +0 | while IFS= read -r folder; do
		[[ -n $(find "$cache" -maxdepth 1 -type l -lname "${folder##*/}") ]] || rm -rf "$folder"
	done
	echo "$out"
	exit 0
}
if [[ -d $out && $(readlink "$cache/v$version") == "$key" ]]; then
	echo "$out"
	exit 0
fi
if ((EUID != 0)); then
	echo "build.sh: not root, which making the files of a Debian needs" >&2
	exit 1
fi
command -v mmdebstrap >/dev/null || {
	echo "build.sh: mmdebstrap is missing: run \"make deps-ceph\"" >&2
	exit 1
}
mkdir -p "$cache"
exec 9>"$cache/lock"
flock -n 9 || {
	echo "Another build of a Ceph is running, waiting for it" >&2
	flock 9
}
[[ ! -d $out ]] || finish

echo "Making a Debian $suite with Ceph $version in $out" >&2
echo "This happens once, and takes about two minutes" >&2
# What a build that was killed has left.
rm -rf "$cache"/.build.*
tmp=$(mktemp -d "$cache/.build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"
root=$tmp/root

options=()
for path in doc man info locale lintian bash-completion; do
	options+=(--dpkgopt="path-exclude=/usr/share/$path/*")
done
# It goes through the proxy that this machine's apt uses.
proxy=$(apt-config dump Acquire::http::Proxy | sed -n 's/^Acquire::http::Proxy "\(.*\)";$/\1/p')
[[ -z $proxy ]] || options+=(--aptopt="Acquire::http::Proxy \"$proxy\"")
# A Debian that is not released yet says until when its lists are current, and
# mirrors may be late. Signatures are checked all the same. In namespaces of its
# own, mmdebstrap leaves no mount behind if it is killed.
setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc \
	mmdebstrap --quiet --mode=root --variant=apt --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
	--aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Apt::Install-Recommends "false"' \
	--include="$(IFS=,; echo "${packages[*]}")" "${options[@]}" \
	"$suite" "$root" >&2 9>&-
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*

# Debian 13's manager does not bear its Python, 3.13: no module loads, as bcrypt
# refuses to be imported twice into a process, and the one that removes images dies
# at librbd's first word on its progress. Both are left out (docs/trash.md).
if [[ $version == 18 ]]; then
	modules=$root/usr/share/ceph/mgr
	printf '"""Stands for the module that an interpreter beside the first cannot import."""\n' >"$modules/bcrypt.py"
	sed -i 's/on_progress=partial(self.progress_callback, task)/on_progress=None/' "$modules/rbd_support/task.py"
	grep -q 'on_progress=None' "$modules/rbd_support/task.py"
fi

install -D -m 755 "$here/enter.sh" "$tmp/bin/enter"
for program in "${programs[@]}"; do
	[[ -x $root/usr/bin/$program ]] || {
		echo "build.sh: Debian $suite has no /usr/bin/$program" >&2
		exit 1
	}
	ln -s enter "$tmp/bin/$program"
done
release "$tmp/bin/ceph-mon" >"$tmp/release"
if [[ $(cut -d . -f 1 "$tmp/release") != "$version" ]]; then
	echo "build.sh: Debian $suite has Ceph $(cat "$tmp/release") now, want $version" >&2
	exit 1
fi
mv "$tmp" "$out"
trap - EXIT
finish
