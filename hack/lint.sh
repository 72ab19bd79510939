#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Looks for mistakes without running anything of ours.
#
#   hack/lint.sh [STEP...]      all steps, or those named: see "steps" below
#
# The linters are Go modules pinned by hack/lint/go.mod, built once into the
# user's cache folder. All steps run, whatever an earlier one found; the exit
# code is 1 when any found something, 2 when one could not run.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
steps=(golangci logcheck gofmt modules shellcheck headers tested)

# Builds the linters and sets $tools to their folder. The Go version is part of
# the key, as a linter refuses sources newer than the Go that built it.
build_tools() {
	[[ -z ${tools:-} ]] || return 0
	local key cache=${XDG_CACHE_HOME:-$HOME/.cache}/rbd-provisioner/lint
	key=$({
		go env GOVERSION
		cat hack/lint/go.mod hack/lint/go.sum
	} | sha256sum | cut -c1-16)
	mkdir -p "$cache"
	# Two runs at once must not build it twice.
	exec 9>"$cache/lock"
	flock 9
	if [[ ! -d $cache/$key ]]; then
		echo "Building the linters into $cache/$key: once, a few minutes" >&2
		local tmp
		tmp=$(mktemp -d "$cache/.build.XXXXXX")
		# -mod=readonly: what go.sum does not name is not built.
		if ! (cd hack/lint && CGO_ENABLED=0 GOWORK=off GOFLAGS=-mod=readonly \
			go build -buildvcs=false -trimpath -ldflags='-s -w' -o "$tmp/" \
			github.com/golangci/golangci-lint/v2/cmd/golangci-lint \
			sigs.k8s.io/logtools/logcheck) 9>&-; then
			rm -rf "$tmp"
			echo "lint.sh: the linters do not build" >&2
			exit 2
		fi
		mv "$tmp" "$cache/$key"
	fi
	exec 9>&-
	tools=$cache/$key
}

# Files of this checkout that git has or would take.
files() {
	local f
	git ls-files --cached --others --exclude-standard -- "$@" | while IFS= read -r f; do
		if [[ -f $f ]]; then printf '%s\n' "$f"; fi
	done
}

# Shell scripts by name, or by their first line where the name has no ending.
scripts() {
	local f first
	files | while IFS= read -r f; do
		case ${f##*/} in
		*.sh) printf '%s\n' "$f" ;;
		*.*) ;;
		*)
			first=
			IFS= read -r first <"$f" || true
			case $first in '#!'*sh*) printf '%s\n' "$f" ;; esac
			;;
		esac
	done
}

# Sets $tags to the build tags that fit the installed librbd: without them the
# packages that use it do not compile, and linters need what compiles.
find_tags() {
	[[ -z ${tags+set} ]] || return 0
	tags=$(hack/ceph-tag.sh) || exit 2
}

golangci() {
	build_tools
	find_tags
	"$tools/golangci-lint" run --allow-parallel-runners --build-tags="$tags" ./...
}

logcheck() {
	build_tools
	find_tags
	# It takes no tags; the go command that it calls takes them from here.
	GOFLAGS="${GOFLAGS:-} -tags=$tags" "$tools/logcheck" \
		-check-contextual -check-value -config hack/lint/logcheck.conf ./...
}

# Also the files that golangci-lint does not see, as their build tags are not set.
gofmt_clean() {
	local out list
	mapfile -t list < <(files '*.go')
	out=$(gofmt -s -l "${list[@]}")
	[[ -z $out ]] || {
		printf 'not formatted, run gofmt -s -w on it: %s\n' "$out"
		return 1
	}
}

modules() {
	local module rc=0
	go mod tidy -diff || rc=1
	go mod verify >/dev/null || rc=1
	(cd hack/lint && go mod verify >/dev/null) || rc=1
	for module in test/bench/plot test/node/sanity; do
		(cd "$module" && go mod tidy -diff && go mod verify >/dev/null && go vet ./...) || rc=1
	done
	return "$rc"
}

shellcheck_clean() {
	local list
	mapfile -t list < <(scripts)
	shellcheck -x "${list[@]}"
}

# Go files are golangci-lint's (goheader). Test data is as users write it.
headers() {
	local f rc=0
	while IFS= read -r f; do
		case $f in */testdata/*) continue ;; esac
		head -n 2 "$f" | grep -q '^# SPDX-License-Identifier: Apache-2\.0$' || {
			echo "$f: the line \"# SPDX-License-Identifier: Apache-2.0\" is missing at its top"
			rc=1
		}
	done < <(
		files '*.sh' '*.yaml' '*.yml' Makefile Dockerfile .ci/run
	)
	return "$rc"
}

# README's table of what is tested says what CI runs.
tested() {
	diff <(sed -n '/^<!-- made by hack.tested.sh -->$/,/^<!-- end of the table -->$/{//!p}' README.md) <(hack/tested.sh) || {
		echo 'README.md: the table of tested releases is old, run "hack/tested.sh write"'
		return 1
	}
}

need() {
	command -v "$1" >/dev/null || {
		echo "lint.sh: $1 is missing: run \"make deps\"" >&2
		exit 2
	}
}

[[ $# -eq 0 ]] || steps=("$@")
need go
need git
found=()
for step in "${steps[@]}"; do
	case $step in
	golangci | logcheck | modules | headers | tested) run=$step ;;
	gofmt) run=gofmt_clean ;;
	shellcheck)
		need shellcheck
		run=shellcheck_clean
		;;
	*)
		echo "lint.sh: no step \"$step\", there are: golangci logcheck gofmt modules shellcheck headers tested" >&2
		exit 2
		;;
	esac
	echo "lint: $step"
	SECONDS=0
	if ! $run; then found+=("$step"); fi
	echo "lint: $step took ${SECONDS} s"
done
if [[ ${#found[@]} -gt 0 ]]; then
	echo "lint: FAILED: ${found[*]}"
	exit 1
fi
echo "lint: ok: ${steps[*]}"
