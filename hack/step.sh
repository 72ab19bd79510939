#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs a command that prints much, and says in one line what it does and how long
# that took. What the command prints goes into a file, which is named, with its last
# lines, when the command fails.
#
#   hack/step.sh NAME WHAT COMMAND [ARGUMENT...]
#
# NAME is that of the file, WHAT is for people: what is done, and how long it takes
# the first time.
set -euo pipefail

if (($# < 3)); then
	echo "step.sh: want NAME WHAT COMMAND [ARGUMENT...]" >&2
	exit 2
fi
name=$1 what=$2
shift 2

folder=${XDG_CACHE_HOME:-$HOME/.cache}/rbd-provisioner/log
mkdir -p "$folder"
log=$folder/$name.log

echo "$what" >&2
SECONDS=0
status=0
"$@" >"$log" 2>&1 </dev/null || status=$?
if ((status != 0)); then
	{
		echo "  failed after $SECONDS s; its last lines, all are in $log:"
		tail -n 20 "$log" | sed 's/^/    /'
	} >&2
	exit "$status"
fi
echo "  done in $SECONDS s" >&2
