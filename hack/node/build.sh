#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds the guest that is the node of the tests, once, and prints the folder
# that holds it as its last line. Needs root and what "make deps-node" installs.
#
#   hack/node/build.sh [VERSION]        VERSION of kubelet, as 1.30.14
#
# The folder has:
#   root.ext4   Debian with containerd, kubelet and, up to 1.30, what it mounts rbd volumes with
#   vmlinuz     Debian's kernel
#   initrd      what mounts root.ext4 and starts its /init
#
# It is named after the content of what it is made from, so a change here makes
# a new one; the link node/vVERSION in the cache folder is the one built last.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
version=${1:-${K8S_VERSION:-1.30.14}}
version=${version#v}
suite=bookworm
packages=(
	# Runs Pods
	containerd runc containernetworking-plugins iptables iproute2 conntrack
	# For kubelet and /init
	mount util-linux kmod udev
	# What kubelet, a person who looks for a fault, and the image of Pods need
	ca-certificates procps busybox-static
)
# Up to 1.30 kubelet itself maps and mounts rbd volumes, by these programs. Later ones
# have our plugin, which brings its own: a node needs the kernel's driver and no more.
minor=${version#*.}
if ((${minor%%.*} <= 30)); then packages+=(ceph-common e2fsprogs xfsprogs fdisk); fi
# Of a kernel's modules, all below these folders, and these files.
modules=(
	crypto lib arch/x86/crypto net/ceph net/core net/bridge net/802 net/llc net/ipv4 net/ipv6 net/netfilter
	fs/ext4 fs/jbd2 fs/mbcache.ko fs/overlayfs fs/xfs
	drivers/virtio drivers/block/virtio_blk.ko drivers/block/rbd.ko drivers/block/nbd.ko drivers/block/loop.ko
	drivers/net/veth.ko drivers/net/virtio_net.ko drivers/net/net_failover.ko net/core/failover.ko
	drivers/char/virtio_console.ko drivers/char/hw_random
)

if ((EUID != 0)); then
	echo "build.sh: not root, which making the files of a Debian needs" >&2
	exit 1
fi
for program in mmdebstrap mke2fs cpio; do
	command -v "$program" >/dev/null || {
		echo "build.sh: $program is missing: run \"make deps-node\"" >&2
		exit 1
	}
done

# By the name in our example, too, so that it runs here as it is: there is no
# registry to get another busybox from.
example=$(sed -n 's/^ *image: *//p' "$here/../../examples/pod.yaml")

kubernetes=$("$here/../kubernetes/build.sh" "$version" kubelet kube-scheduler | tail -n 1)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rbd-provisioner/node
key=$({
	echo "$version" "$example"
	cat "$here"/*
} | sha256sum | cut -c1-16)
out=$cache/$key
mkdir -p "$cache"

finish() {
	# Renamed, so that a rig that starts meanwhile finds the old one or the new.
	ln -sfn "$key" "$cache/.v$version.new"
	mv -T "$cache/.v$version.new" "$cache/v$version"
	echo "$out"
	exit 0
}
exec 9>"$cache/lock"
[[ ! -d $out ]] || finish
flock -n 9 || {
	echo "Another build of a node is running, waiting for it" >&2
	flock 9
}
[[ ! -d $out ]] || finish

echo "Building the node into $out" >&2
echo "This happens once, and takes about three minutes on two cores" >&2
tmp=$(mktemp -d "$cache/.build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
root=$tmp/root

excluded=()
for path in doc man info locale lintian bash-completion; do
	excluded+=(--dpkgopt="path-exclude=/usr/share/$path/*")
done
# The guest goes through the proxy that this machine's apt uses.
proxy=$(apt-config dump Acquire::http::Proxy | sed -n 's/^Acquire::http::Proxy "\(.*\)";$/\1/p')
[[ -z $proxy ]] || excluded+=(--aptopt="Acquire::http::Proxy \"$proxy\"")
mkdir "$tmp/kernel"
export KERNEL_DIR=$tmp/kernel
# The hook that merges /usr saves the package usrmerge, which needs all of perl.
# The kernel is only unpacked: installed, it would make an initrd of its own. The
# package names the present kernel as its only dependency of such a name.
# shellcheck disable=SC2016 # mmdebstrap expands it
mmdebstrap --quiet --mode=root --variant=essential \
	--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
	--include="$(IFS=,; echo "${packages[*]}")" "${excluded[@]}" \
	--customize-hook='cd "$KERNEL_DIR" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" &&
		apt-get -qq -o APT::Sandbox::User=root download "$(apt-cache depends --important linux-image-amd64 |
		sed -n "s/^ *Depends: \(linux-image-[^ ]*\)$/\1/p" | head -n 1)"' \
	"$suite" "$root" >&2 9>&-

dpkg-deb --fsys-tarfile "$tmp/kernel"/*.deb | tar -x -C "$tmp/kernel" ./boot ./lib/modules
release=$(basename "$tmp/kernel/lib/modules"/*)
mkdir "$tmp/out"
mv "$tmp/kernel/boot/vmlinuz-$release" "$tmp/out/vmlinuz"
from=$tmp/kernel/lib/modules/$release
to=$root/lib/modules/$release
for path in "${modules[@]}"; do
	[[ -e $from/kernel/$path ]] || continue
	mkdir -p "$to/kernel/$(dirname "$path")"
	cp -r "$from/kernel/$path" "$to/kernel/$(dirname "$path")/"
done
cp "$from"/modules.{order,builtin,builtin.modinfo} "$to/"
chroot "$root" depmod "$release"

# An image without a registry, for Pods and as what holds a Pod's namespaces:
# busybox alone.
image=$tmp/image
mkdir -p "$image/layer/bin" "$image/layer/tmp" "$image/archive"
cp "$root/bin/busybox" "$image/layer/bin/"
while read -r applet; do
	[[ $applet == busybox ]] || ln -s busybox "$image/layer/bin/$applet"
done < <("$root/bin/busybox" --list)
tar -C "$image/layer" --owner=0 --group=0 -cf "$image/archive/layer.tar" .
layer=$(sha256sum "$image/archive/layer.tar" | cut -d ' ' -f 1)
cat >"$image/archive/config.json" <<END
{"architecture":"amd64","os":"linux",
"config":{"Env":["PATH=/bin"],"Entrypoint":["/bin/sleep","2147483647"]},
"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]}}
END
echo '[{"Config":"config.json","RepoTags":["localhost/busybox:rig","'"$example"'"],"Layers":["layer.tar"]}]' \
	>"$image/archive/manifest.json"
mkdir -p "$root/var/lib/rig"
tar -C "$image/archive" -cf "$root/var/lib/rig/busybox.tar" manifest.json config.json layer.tar

install -m 755 "$kubernetes/kubelet" "$root/usr/bin/kubelet"
install -m 755 "$here/init.sh" "$root/init"
install -D -m 644 "$here/containerd.toml" "$root/etc/containerd/config.toml"
rm -rf "${root:?}"/etc/cni/net.d "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
install -D -m 644 "$here/cni.conflist" "$root/etc/cni/net.d/10-rig.conflist"
echo node >"$root/etc/hostname"
echo '127.0.0.1 localhost node' >"$root/etc/hosts"
: >"$root/etc/fstab"
# mmdebstrap has copied this machine's.
: >"$root/etc/resolv.conf"

# Sparse: what is free for images and volumes takes no place until it is used.
mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -m 0 -d "$root" "$tmp/out/root.ext4" 4G 9>&-

# The modules for the disk in the order in which they are loaded.
initrd=$tmp/initrd
mkdir -p "$initrd"/{bin,dev,proc,sys,root,modules,rig}
install -m 755 "$here/initrd.sh" "$initrd/init"
cp "$root/bin/busybox" "$initrd/bin/busybox"
for applet in sh mount insmod cp switch_root; do ln -s busybox "$initrd/bin/$applet"; done
# crc32c_generic is asked for by ext4 at run time, so nothing depends on it.
for module in virtio_pci virtio_blk crc32c_generic ext4; do
	chroot "$root" modprobe -S "$release" --show-depends "$module"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
	cp "$root$module" "$initrd/modules/"
	echo "${module##*/}"
done >"$initrd/modules/order"
(cd "$initrd" && find . | cpio --quiet -o -H newc | gzip) >"$tmp/out/initrd" 9>&-

mv "$tmp/out" "$out"
finish
