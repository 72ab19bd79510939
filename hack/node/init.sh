#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Starts the node in its guest, as process 1: there is no systemd. When kubelet
# ends, so does the guest, and the rig sees that. A test that restarts kubelet makes
# /rig/restart first.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8

mount -t sysfs sys /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
read -r controllers </sys/fs/cgroup/cgroup.controllers
for controller in $controllers; do
	echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs tmp /tmp
mount -t tmpfs shm /dev/shm
# Volumes of Pods are propagated from what kubelet mounts.
mount --make-rshared /
hostname node
busybox head -c 16 /dev/urandom | busybox od -An -tx1 | busybox tr -d ' \n' >/etc/machine-id

# Real nodes have udev, "rbd map" waits for it, and it opens each new device; kubelet
# puts a loop device in front of a block volume.
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add
udevadm settle --timeout=60
for module in virtio_net virtio_console overlay br_netfilter veth rbd loop; do
	modprobe "$module"
done
udevadm settle --timeout=60

ip link set lo up
ip link set eth0 up
ip address add 10.77.0.2/24 dev eth0
ip route add default via 10.77.0.1
echo 1 >/proc/sys/net/ipv4/ip_forward
# In the place of kube-proxy, for the one service that Pods need: API_SERVER is
# where it is, and kubernetes.default has the first address of the services.
# shellcheck disable=SC1091 # written by the rig
. /rig/environment
for chain in PREROUTING OUTPUT; do
	iptables -t nat -A "$chain" -d 10.0.0.1 -p tcp --dport 443 -j DNAT --to-destination "$API_SERVER"
done

# port NAME is where the rig reads a log.
port() { echo "/dev/virtio-ports/$1"; }
containerd >"$(port containerd)" 2>&1 &
tries=0
until ctr version >/dev/null 2>&1 || [ "$tries" -ge 240 ]; do
	tries=$((tries + 1))
	sleep 0.5
done
# The rig brings further images as disks behind the first.
for image in /var/lib/rig/*.tar /dev/vd[b-z]; do
	[ ! -e "$image" ] || ctr -n k8s.io images import "$image"
done
while true; do
	kubelet --config=/rig/kubelet.yaml --kubeconfig=/rig/kubeconfig --hostname-override=node \
		--node-ip=10.77.0.2 -v=2
	echo "kubelet has ended with status $?" >/dev/console
	rm /rig/restart 2>/dev/null || break
done >"$(port kubelet)" 2>&1
busybox sync
busybox poweroff -f
