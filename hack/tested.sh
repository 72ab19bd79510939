#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Prints the README's table of what is tested with which releases, from the steps of
# .ci/run, or puts it into README.md.
#
#   hack/tested.sh [write]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Of Debian 12, where CI runs.
installed=16
# The client of the image is that of the Debian which the Dockerfile starts from.
case $(sed -n 's/^ARG RUN_IMAGE=.*:\([a-z]*\)-slim$/\1/p' Dockerfile) in
bookworm) image=16 ;;
trixie) image=18 ;;
*)
	echo "tested.sh: no Ceph is known for the Debian of the Dockerfile" >&2
	exit 1
	;;
esac

row() { echo "| $1 | $2 | $3 | $4 |"; }
table() {
	row tests Ceph librbd Kubernetes
	row --- --- --- ---
	.ci/run list | while read -r _ target settings; do
		local CEPH_VERSION='' CEPH_CLIENT=$installed CEPH_KEYS='' FAULTS_CEPH_VERSION='' K8S_VERSION=''
		for setting in $settings; do declare "$setting"; done
		local keys=''
		[[ -z $CEPH_KEYS ]] || keys=", keys of type $CEPH_KEYS only"
		local calls="each call to Ceph$keys" whole="claims, from creation to deletion$keys"
		case $target in
		test-ceph) row "$calls" "$CEPH_VERSION" "$CEPH_CLIENT" '' ;;
		test-code) row "$calls" "$CEPH_VERSION" "$CEPH_CLIENT" '' ;;
		test-e2e) row "$whole" "$CEPH_VERSION" "$CEPH_CLIENT" "$K8S_VERSION" ;;
		test-processes)
			row "$whole" "$CEPH_VERSION" "$CEPH_CLIENT" "$K8S_VERSION"
			row "servers that are killed, halted and restarted" "${FAULTS_CEPH_VERSION/|/ and } in turn" "$CEPH_CLIENT" "$K8S_VERSION"
			;;
		test-image) row "an image with another client, keys of type aes256k only" "$CEPH_VERSION" "$CEPH_VERSION" "$K8S_VERSION" ;;
		test-node)
			local kind='volumes of the node plugin'
			case $K8S_VERSION in 1.2* | 1.30.*) kind='in-tree volumes and, beside them, the node plugin' ;; esac
			row "Pods on a node, with Linux's rbd driver and our image: $kind" "$CEPH_VERSION" "$image" "$K8S_VERSION"
			;;
		esac
	done
}

case ${1:-} in
write)
	table=$(table)
	grep -q '^<!-- end of the table -->$' README.md
	readme=$(awk -v table="$table" '
		/^<!-- end of the table -->$/ { inside = 0 }
		!inside { print }
		/^<!-- made by hack\/tested.sh -->$/ { print table; inside = 1 }
	' README.md)
	printf '%s\n' "$readme" >README.md
	;;
*) table ;;
esac
