#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Prints the build tag that go-ceph needs for the librbd that is installed, as
# in
#
#	go build -tags "$(hack/ceph-tag.sh)" ./...
#
# and an empty line for a librbd that needs none: without a tag, go-ceph calls
# everything that the newest Ceph it knows has. The compiler is asked, because
# what it finds is what the program will be built with, from a package or not.
set -eu

cc=${CC:-gcc}

missing() {
	cat >&2 <<END
$1
To build the program, a C compiler and the headers of librbd and librados are
needed. Install them with "make deps", or these packages:
  Debian, Ubuntu: gcc libc6-dev librbd-dev librados-dev
  Fedora, RHEL:   gcc glibc-devel librbd-devel librados-devel
END
	exit 1
}

command -v "${cc%% *}" >/dev/null || missing "No C compiler: $cc is not there."

# CC may carry arguments, as with ccache.
# shellcheck disable=SC2086
macros=$(echo '#include <rbd/librbd.h>' | $cc ${CGO_CFLAGS:-} -E -dM - 2>/dev/null) ||
	missing "No headers of Ceph: $cc does not find rbd/librbd.h and what it includes."

# From Ceph 16 on, the minor version of librbd is the major version of Ceph.
minor=$(echo "$macros" | sed -n 's/^#define LIBRBD_VER_MINOR \([0-9][0-9]*\)$/\1/p')
case $minor in
16) echo pacific ;;
17) echo quincy ;;
18) echo reef ;;
19) echo squid ;;
20) echo tentacle ;;
'' | ? | 1[0-5])
	missing "The headers of Ceph are too old: Ceph 16 or newer is needed, and these are librbd 1.${minor:-?}."
	;;
*) echo ;;
esac
