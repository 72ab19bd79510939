#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs the Debian packages that building, linting and testing need. Does
# nothing when all of them are there.
#
#   hack/deps.sh [ceph|node]   ceph: also what another Ceph is made with
#                              node: also that, and what the tests with a node need
set -euo pipefail

packages=(
	# What make, go and the scripts call
	make git ca-certificates shellcheck
	# cgo, and what go-ceph is built with
	gcc libc6-dev librbd-dev librados-dev
	# The servers of the test rig; kube-apiserver and the like are built by
	# "make kubernetes"
	ceph-mon ceph-mgr ceph-osd ceph-common etcd-server
	# Unpacks in a test what the rig hands to its node
	cpio
)
# Makes a Debian with another Ceph (hack/ceph/build.sh).
ceph=(mmdebstrap debian-archive-keyring)
# To build the guest that is the node (hack/node/build.sh), to run it and to
# connect it. Its own packages come from Debian's archive and are not installed
# here. buildah is for the image that runs there (hack/image/build.sh); it runs
# no containers beyond a build and does without what it recommends.
node=("${ceph[@]}" e2fsprogs qemu-system-x86 seabios iproute2 buildah)
case ${1:-} in
'') ;;
ceph) packages+=("${ceph[@]}") ;;
node) packages+=("${node[@]}") ;;
*)
	echo "deps.sh: no packages are known for \"$1\", want \"ceph\", \"node\" or nothing" >&2
	exit 2
	;;
esac
# Services that these packages would start now and at each boot. The tests start
# servers of their own, and a forgotten etcd is an open door.
services=(etcd.service ceph-crash.service ceph-mon.target ceph-mgr.target ceph-osd.target ceph.target rbdmap.service)

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
	cat >&2 <<END
deps.sh: this installs packages with apt, which is not here. Needed are Ceph's
mon, mgr and osd, the commands ceph, rbd and rados, the headers of librbd and
librados, etcd, a C compiler, git, make and shellcheck.
END
	exit 1
fi

installed() {
	[[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}
missing=()
for package in "${packages[@]}"; do
	installed "$package" || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
	echo "All needed packages are installed"
	exit 0
fi

root=()
if ((EUID != 0)); then
	if ! command -v sudo >/dev/null; then
		echo "deps.sh: not root, and sudo is not here. As root, run: apt-get install ${missing[*]}" >&2
		exit 1
	fi
	root=(sudo)
fi

known() {
	[[ -e /etc/systemd/system/$1 || -e /lib/systemd/system/$1 || -e /usr/lib/systemd/system/$1 ]]
}
# Only what this run brings is switched off: a service that was there before is
# somebody's.
ours=()
for service in "${services[@]}"; do
	known "$service" || ours+=("$service")
done

# Packages ask this file before they start a service.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
	trap '"${root[@]}" rm -f "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
	"${root[@]}" chmod 755 "$policy"
fi

echo "Installing ${missing[*]}"
apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
"${apt[@]}" update
"${apt[@]}" install --no-install-recommends "${missing[@]}"

# Without systemctl nothing starts at boot either.
command -v systemctl >/dev/null || exit 0
now=()
if [[ -d /run/systemd/system ]]; then now=(--now); fi
for service in "${ours[@]}"; do
	known "$service" || continue
	echo "Disabling $service, which the packages have enabled"
	"${root[@]}" systemctl --quiet disable "${now[@]}" "$service" ||
		echo "deps.sh: it stays enabled; see \"systemctl status $service\"" >&2
done
