# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
#
# Owns the folder of one rig: makes it, waits for the end of the process that
# started the rig, then kills every process of the rig and removes the folder.
#
#   sh -c "$(cat reaper.sh)" reaper FOLDER MARK make|sweep
#
# Standard input is a pipe whose other end only the rig's process holds: the
# kernel closes it however that process ends, so this cannot be missed. A
# process belongs to the rig when MARK stands in its environment; unlike a list
# of process ids this also finds children, and never a stranger that got the id
# of a server that has ended.
trap '' HUP INT TERM
dir=$1 mark=$2

if [ "$3" = make ]; then
	mkdir "$dir" || exit 1
	: >"$dir/rig"
	echo made
	if read -r word && [ "$word" = detach ]; then
		exit 0
	fi
fi

# From here on nothing of the rig starts any more: launch.sh looks for this
# file. What looked before the file was there is already running under MARK,
# so the search below finds it.
: >"$dir/reaping"

tries=0
while pids=$(grep -lsxzF -e "$mark" /proc/[0-9]*/environ | sed 's|^/proc/||; s|/environ$||') &&
	[ -n "$pids" ] && [ "$tries" -lt 600 ]; do
	# shellcheck disable=SC2086 # one word per process
	kill -9 $pids 2>/dev/null
	tries=$((tries + 1))
	sleep 0.05
done

# A process that is still ending may add a file to a folder that is being
# emptied.
tries=0
until rm -rf "$dir" 2>/dev/null || [ "$tries" -ge 100 ]; do
	tries=$((tries + 1))
	sleep 0.05
done
