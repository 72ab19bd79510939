#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the Kubernetes programs that the tests and the demo run, once per
# version, and prints the folder that holds them as its last line.
#
#   hack/kubernetes/build.sh [VERSION [PROGRAM...]]
#
# VERSION is without "v", as 1.30.14. Without a PROGRAM it builds what a control
# plane needs. Others, as kubelet and kube-scheduler for a node, are built beside
# them when they are named.
#
# They come from the Go module k8s.io/kubernetes. Its own go.mod replaces the
# staging modules by folders, which only works inside its own checkout, so a
# go.mod of ours replaces each by the published module of the same release.
# A version that is tested regularly has that go.mod and its go.sum beside this
# script; for any other one they are made in the cache folder.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=${1:-${K8S_VERSION:-1.30.14}}
version=${version#v}
if ! [[ $version =~ ^1\.([0-9]+)\.([0-9]+)$ ]]; then
	echo "build.sh: \"$version\" is not a Kubernetes version, want one like 1.30.14" >&2
	exit 2
fi
minor=${BASH_REMATCH[1]}
staging=v0.$minor.${BASH_REMATCH[2]}
commands=(kube-apiserver kube-controller-manager kubectl)
if (($# > 1)); then commands=("${@:2}"); fi
for c in "${commands[@]}"; do
	case $c in
	kube-apiserver | kube-controller-manager | kubectl | kubelet | kube-scheduler) ;;
	*)
		echo "build.sh: \"$c\" is no program that this builds" >&2
		exit 2
		;;
	esac
done

cache=${XDG_CACHE_HOME:-$HOME/.cache}/rbd-provisioner/kubernetes
out=$cache/v$version
built() {
	local c
	for c in "${commands[@]}"; do [[ -x ${1:-$out}/$c ]] || return 1; done
}

# The rig then takes them from there.
if [[ -n ${KUBEBUILDER_ASSETS:-} ]] && built "$KUBEBUILDER_ASSETS"; then
	echo "$KUBEBUILDER_ASSETS"
	exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/v$version.lock"
if ! built; then
	flock -n 9 || {
		echo "Another build of Kubernetes $version is running, waiting for it" >&2
		flock 9
	}
fi
if built; then
	echo "$out"
	exit 0
fi

echo "Building ${commands[*]} $version into $out" >&2
echo "This happens once; from an empty build cache it takes about ten minutes on two cores" >&2
export CGO_ENABLED=0 GOWORK=off
# The version that the module proxy's copies were tagged with stands in no
# file; kubectl and our own start-up check parse it from the binary.
pkg=k8s.io/component-base/version
ldflags="-s -w -X $pkg.gitVersion=v$version -X $pkg.gitMajor=1 -X $pkg.gitMinor=$minor"

mod=$here/v$version
if [[ ! -f $mod/go.mod ]]; then
	mod=$cache/v$version.mod
	mkdir -p "$mod"
	upstream=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
	{
		echo "module ceph.com/rbd-provisioner/hack/kubernetes"
		echo
		sed -n '/^go /p;/^godebug /p' "$upstream"
		echo
		echo "require k8s.io/kubernetes v$version"
		echo
		sed -n "s|^\t\(k8s.io/[a-z-]*\) => ./staging/.*|replace \1 => \1 $staging|p" "$upstream"
	} >"$mod/go.mod"
	modflag=-mod=mod
else
	modflag=-mod=readonly
fi

tmp=$(mktemp -d "$cache/.v$version.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
for c in "${commands[@]}"; do
	# One that is there may be running.
	[[ ! -x $out/$c ]] || continue
	echo "  $c" >&2
	(cd "$mod" && go build "$modflag" -trimpath -ldflags "$ldflags" -o "$tmp/$c" "k8s.io/kubernetes/cmd/$c") 9>&-
done
mkdir -p "$out"
mv "$tmp"/* "$out"/
echo "$out"
