# SPDX-License-Identifier: GPL-2.0
# Sourced by the scripts beside it: where things are, how to speak, how to fail.
# shellcheck shell=bash
# shellcheck disable=SC2034	# the variables are for the scripts

set -euo pipefail
shopt -s inherit_errexit	# a failure inside $(...) is a failure

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$top/build		# everything that make creates
tree=$build/linux		# the assembled tree: a git tree, one commit for each patch
base_tree=$build/base		# the same kernel without the series, for BASELINE=1
cache=$build/cache		# downloads
logs=$build/log			# console and tool logs, kept
jobs=${JOBS:-$(nproc)}

# Our make's flags must not reach the kernel's: ARCH= on our command line would
# override the ARCH= that a script gives to the kernel's make.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL

# What one clone compiled serves another one, in any folder.
export CCACHE_BASEDIR=$top CCACHE_NOHASHDIR=1

# Progress, on stderr so that a script's output stays clean.
say() { printf '  %s\n' "$*" >&2; }

# die CAUSE [REMEDY]: one line that names the cause and the remedy. Status 3
# tells the scripts above that the cause is named.
die() {
	printf 'error: %s%s\n' "$1" "${2:+; $2}" >&2
	exit 3
}

# Logs and objects need a place: say so early.
writable() {
	{ mkdir -p "$logs" && [ -w "$build" ] && [ -w "$logs" ]; } 2>/dev/null ||
		die "cannot write to $build" "free some space there, or give yourself the right to write"
}

# A script needs the kernel tree in this folder. That of the base is made here.
need_tree() {
	[ "$1" != "$base_tree" ] || "$top/scripts/base" pristine
	[ -f "$1/Makefile" ] || die "no kernel tree at ${1#"$top"/}" "make apply gets it"
}

# Adds the fragments that $1, a CONFIG, names to the array fragments.
add_fragments() {
	local name
	for name in ${1//+/ }; do
		[ "$name" != guest ] || continue	# the default, of every guest
		[ -f "$top/configs/$name.config" ] ||
			die "unknown CONFIG=$name" "CONFIG=debug, or a fragment of your own in configs/"
		fragments+=("$name")
	done
}

# Is the configuration in folder $1 as $2 asks, NAME=VALUE? What is not there is n.
configured() {
	case $2 in
	*=n) ! grep -q "^CONFIG_${2%%=*}=" "$1/.config" ;;
	*) grep -qxF "CONFIG_$2" "$1/.config" ;;
	esac
}

# Where a command failed, was that the cause? die_if_full says so.
disk_is_full() { [ "$(df --output=avail -k "$build" 2>/dev/null | tail -n 1)" -lt 1024 ] 2>/dev/null; }
die_if_full() { ! disk_is_full || die "the disk is full" "free some space and run it again"; }

# Take the lock that lets one script at a time change build/, and a scratch
# directory, $tmp, that vanishes with the script. A script called by one that
# holds the lock shares it.
lock() {
	{ mkdir -p "$build" && [ -w "$build" ]; } 2>/dev/null ||
		die "cannot write to $build" "give yourself the right to, or work on a copy of this directory"
	if [ "${FOLIO_LOCK:-}" != "$build" ]; then
		exec 9>"$build/.lock"
		flock -n 9 || { say "waiting for another make in ${top##*/}"; flock 9; }
		export FOLIO_LOCK=$build
		rm -rf "$build"/tmp.*	# left by a script that was killed
	fi
	tmp=$(mktemp -d "$build/tmp.XXXXXX" 2>/dev/null) ||
		die "cannot write to $build" "free some space there"
	scratch+=("$tmp")
	trap finish EXIT
}

scratch=()	# what must not outlive the script, however it ends
finish() {
	local status=$?
	case $status in
	0 | 3 | 129 | 130 | 143) ;;
	*) (die_if_full) || status=3 ;;
	esac
	rm -rf "${scratch[@]}"
	exit $status
}

# Show every second that a step lives, until the script or the step ends.
ticker() {	# NAME LOG
	local start=$SECONDS
	while sleep 1 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
		if [ -t 2 ]; then
			printf '\r  %s: %d s, %.60s\033[K' "$1" $((SECONDS - start)) \
				"$(tail -n 1 "$2" | tr '\r' '\n' | tail -n 1)" >&2
		elif [ $(((SECONDS - start) % 60)) -eq 0 ]; then
			say "$1: $((SECONDS - start)) s so far"
		fi
	done
}

# Run "$@", its output in a log; on failure show the log's end. The first
# argument names the step. The command runs in the foreground, so that ^C ends
# it and the script.
step() {
	local name=$1 log start=$SECONDS rc=0 tick
	shift
	log=$logs/${name//[^a-zA-Z0-9_.-]/-}.log
	{ mkdir -p "$logs" && : >"$log"; } 2>/dev/null ||
		die "cannot write to $logs" "free some space there, or give yourself the right to write"
	ticker "$name" "$log" 9>&- &
	tick=$!
	set +e
	(set -e; "$@") >"$log" 2>&1 </dev/null
	rc=$?
	set -e
	# KILL, since a young child of bash runs our EXIT trap on any other signal.
	{ kill -KILL $tick && wait $tick; } 2>/dev/null || true
	[ ! -t 2 ] || printf '\r\033[K' >&2
	say "$name: $((SECONDS - start)) s"
	[ $rc -ne 0 ] || return 0
	tail -n 20 "$log" >&2
	! grep -q 'No space left on device' "$log" && ! disk_is_full ||
		die "$name: the disk is full" "free some space and run it again (log: ${log#"$top"/})"
	die "$name failed with status $rc" "see ${log#"$top"/}"
}

# packages COMMAND:PACKAGE...: every command that a script calls, and Debian's
# package for it. Installs what is missing when root, else lists it. A leading
# slash in COMMAND tests for a file (a header, say) instead.
packages() {
	local pair missing=()
	for pair; do
		case ${pair%%:*} in
		/*) [ -e "${pair%%:*}" ] || missing+=("${pair##*:}") ;;
		*) command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}") ;;
		esac
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	[ "$(id -u)" -eq 0 ] ||
		die "missing packages: ${missing[*]}" "as root: apt-get install ${missing[*]}"
	command -v apt-get >/dev/null ||
		die "missing packages: ${missing[*]}" "install them; there is no apt-get here to do it"
	export DEBIAN_FRONTEND=noninteractive
	step apt-update apt-get update
	step apt-install apt-get -o DPkg::Lock::Timeout=300 -y -q install --no-install-recommends "${missing[@]}"
}
