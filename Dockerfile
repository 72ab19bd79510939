# SPDX-License-Identifier: Apache-2.0
#
#   docker build --build-arg VERSION=v0.1.0 -t rbd-provisioner:v0.1.0 .
#
# Both stages are the same Debian release, so that the program runs with the
# Ceph client library it was linked with. Other architectures: docs/install.md.
ARG BUILD_IMAGE=docker.io/library/golang:1.26-trixie
ARG RUN_IMAGE=docker.io/library/debian:trixie-slim

FROM ${BUILD_IMAGE} AS build
RUN apt-get update \
	&& apt-get install -y --no-install-recommends librados-dev librbd-dev \
	&& rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Before the sources, so that a change of them does not download modules again.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN make build VERSION="${VERSION}"

FROM ${RUN_IMAGE}
# ca-certificates is for API servers with a public certificate (-kubeconfig).
# The second line of packages is what the node plugin formats, checks, mounts and grows
# file systems with (blkid, fsck and blockdev are util-linux's). Of xfsprogs, only what
# scrubs file systems needs Python and ICU: 71 MB that a privileged container is better
# off without. The last command makes sure of what is needed.
# Documentation does not come with the packages: dpkg leaves it out in a slim
# image, but for what licences say (copyright).
RUN apt-get update \
	&& apt-get install -y --no-install-recommends ca-certificates librados2 librbd1 \
		e2fsprogs mount util-linux xfsprogs \
	&& dpkg --purge --force-depends $(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' \
		'libicu*' 'libpython3*' 'python3*' | sed -n 's/^ii *//p') \
	&& rm -f /usr/sbin/xfs_scrub* \
	&& rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
	&& for program in mount umount blkid blockdev fsck fsck.ext4 mkfs.ext4 dumpe2fs resize2fs \
		mkfs.xfs fsck.xfs xfs_db xfs_growfs xfs_info xfs_io xfs_repair; do \
		path=$(command -v "$program") || { echo "$program is missing" >&2; exit 1; }; \
		! ldd "$path" 2>&1 | grep 'not found' || exit 1; \
	done
COPY --from=build /src/LICENSE /usr/share/doc/rbd-provisioner/copyright
# The path that the retired rbd-provisioner's image had.
COPY --from=build /src/bin/rbd-provisioner /usr/local/bin/rbd-provisioner

# Late, so that a new version shares the layers above.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rbd-provisioner" \
	org.opencontainers.image.description="Makes Ceph images for Kubernetes claims, and mounts them on nodes (in-tree rbd and CSI volumes)" \
	org.opencontainers.image.licenses="Apache-2.0" \
	org.opencontainers.image.version="${VERSION}" \
	org.opencontainers.image.revision="${REVISION}"

# A number, as kubelet can't check runAsNonRoot by name.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/rbd-provisioner"]
