#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Called by build.sh, in namespaces of its own: makes the images that the
# Dockerfile starts from, once, and builds it.
#
#   stages.sh STORE TMP NAME SUITE BUILD_IMAGE RUN_IMAGE
#
# STORE keeps images from one build to the next. TMP has the folder context;
# the image is written to TMP/image.tar.
set -euo pipefail

store=$1 tmp=$2 name=$3 suite=$4 build_image=$5 run_image=$6
# chroot gives the steps the network of this machine and needs no runtime.
export BUILDAH_ISOLATION=chroot TMPDIR=$tmp
# What this machine has configured for its own containers is not for these.
unset STORAGE_DRIVER STORAGE_OPTS
export CONTAINERS_STORAGE_CONF=$tmp/storage.conf
policy=(--signature-policy "$tmp/policy.json")
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$tmp/policy.json"

# Where images are kept. The runroot says what is mounted: nothing, when this
# starts.
storage() {
	cat >"$CONTAINERS_STORAGE_CONF" <<END
[storage]
driver = "$1"
graphroot = "$store/$1"
runroot = "$tmp/run"
END
}
storage overlay
if ! buildah images >/dev/null 2>"$tmp/overlay"; then
	cat "$tmp/overlay"
	echo "Going on without overlayfs: slowly, and with several gigabytes"
	rm -rf "$store/overlay"
	storage vfs
fi
# Of a build that was killed.
buildah rm --all >/dev/null

# Containers go through the proxy that this machine's apt uses.
proxy=$(apt-config dump Acquire::http::Proxy | sed -n 's/^Acquire::http::Proxy "\(.*\)";$/\1/p')
# Mirrors may be late with the lists of a Debian that is not released yet, which say
# until when they are current. Signatures are checked all the same.
apt=(--aptopt='Acquire::Check-Valid-Until "false"')
[[ -z $proxy ]] || apt+=(--aptopt="Acquire::http::Proxy \"$proxy\"")

# debian IMAGE SETTING... -- OPTION...: commits a Debian that mmdebstrap makes with
# these options as IMAGE with these settings, unless it is there.
debian() {
	local image=$1 settings=() container
	shift
	while [[ $1 != -- ]]; do
		settings+=("$1")
		shift
	done
	shift
	[[ -z $(buildah images --quiet --filter "reference=$image") ]] || return 0
	echo "Making an image to stand for $image: once, about a minute"
	# The hook that merges /usr saves the package usrmerge, which needs all of perl.
	# mmdebstrap has copied this machine's names.
	# shellcheck disable=SC2016 # mmdebstrap expands it
	mmdebstrap --quiet --mode=root --variant=minbase \
		--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr "${apt[@]}" "$@" \
		--customize-hook='rm -f "$1/etc/hostname"; : >"$1/etc/resolv.conf"' \
		"$suite" "$tmp/debian.tar"
	container=$(buildah from "${policy[@]}" scratch)
	buildah add --quiet "$container" "$tmp/debian.tar" / >/dev/null
	rm "$tmp/debian.tar"
	buildah config "${settings[@]}" "$container"
	buildah commit --quiet "${policy[@]}" --rm "$container" "$image" >/dev/null
}

path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Slim, as Debian's image of this name is.
slim=()
for folder in doc groff info linda lintian locale man; do
	slim+=(--dpkgopt="path-exclude=/usr/share/$folder/*")
done
slim+=(--dpkgopt='path-include=/usr/share/doc/*/copyright')
debian "$run_image" --env "PATH=$path" --cmd bash -- "${slim[@]}"

# Go is this machine's. What this machine trusts beside Debian's authorities may
# stand between it and Debian's archive or Go's modules; only a build needs it.
GOROOT=$(go env GOROOT)
export GOROOT
# shellcheck disable=SC2016 # mmdebstrap expands it
debian "$build_image" --env "PATH=/go/bin:/usr/local/go/bin:$path" --env GOPATH=/go \
	--env GOTOOLCHAIN=local --workingdir /go --cmd bash -- "${slim[@]}" \
	--include=gcc,libc6-dev,make,git,ca-certificates,pkg-config \
	--customize-hook='mkdir -p "$1/go/bin" "$1/go/src" "$1/usr/local/go" &&
		tar -C "$GOROOT" -ch --exclude=./test . | tar -x --no-same-owner -C "$1/usr/local/go"' \
	--customize-hook='for file in /usr/local/share/ca-certificates/*.crt; do
		[ ! -e "$file" ] || cp "$file" "$1/usr/local/share/ca-certificates/"
		done && chroot "$1" update-ca-certificates >/dev/null'

# As containerd says a name: with its registry.
case $name in
*.*/* | *:*/* | localhost/*) full=$name ;;
*/*) full=docker.io/$name ;;
*) full=docker.io/library/$name ;;
esac

# With --layers a step is done again only when what it starts from has changed.
# Beside that, what go has compiled is kept. The modules are this machine's, and
# are not changed.
go_build=$(dirname "$store")/go-build
mkdir -p "$go_build"
build=(
	build "${policy[@]}" --pull-never --layers --network host --build-arg "VERSION=${name##*:}"
	--build-arg "BUILD_IMAGE=$build_image" --build-arg "RUN_IMAGE=$run_image"
	--volume "$(go env GOMODCACHE):/go/pkg/mod:ro" --volume "$go_build:/root/.cache/go-build"
)
buildah "${build[@]}" --tag "$full" "$tmp/context"
# The layers of the stage that builds are no part of the image, and would be
# removed as unused if they had no name.
buildah "${build[@]}" --quiet --target build --tag localhost/build "$tmp/context" >/dev/null

# What is left of other builds is removed: names, of which an archive would be given
# all that its image has, and layers without one.
buildah images --noheading --format '{{.Name}}:{{.Tag}}' | while IFS= read -r old; do
	case $old in
	"$full" | "$build_image" | "$run_image" | localhost/build:latest | '<none>'*) ;;
	*) buildah rmi "$old" >/dev/null ;;
	esac
done
buildah rmi --prune >/dev/null

buildah push --quiet "${policy[@]}" "$full" "docker-archive:$tmp/image.tar:$full"
