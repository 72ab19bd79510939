#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The guest's first program: finds the disk and hands over to its /init. The
# folder /rig comes with each run, as a second archive behind this one.
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do
	insmod "/modules/$module"
done </modules/order
mount -t ext4 /dev/vda /root
cp -r /rig /root/
mount --move /dev /root/dev
mount --move /proc /root/proc
exec switch_root /root /init
