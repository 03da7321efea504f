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

# All clones share one ccache, in whichever folder they are.
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

# apt-get, which fails where another APT has a lock: wait for it. APT's own option
# for that, DPkg::Lock::Timeout, does not cover the lock of the package lists. For
# a step; its descriptor 6 is the script's stderr.
apt_get() {
	local start=$SECONDS said=''
	until LC_ALL=C apt-get "$@" 2>&1 | tee "$logs/apt.log"; do
		grep -q 'Could not get lock' "$logs/apt.log" || return 1
		[ $((SECONDS - start)) -lt "${APT_WAIT:-600}" ] ||
			{ echo "another APT still has the lock after $((SECONDS - start)) s"; return 1; }
		[ -n "$said" ] || say "waiting for another APT: $(sed -n 's/^E: \(Could not get lock.*\)/\1/p' "$logs/apt.log")" 2>&6
		said=yes
		sleep 1
	done
}

# packages COMMAND:PACKAGE...: commands that a script calls, and Debian's package
# for each. Installs what is missing when root, else lists it. A leading slash in
# COMMAND tests for a file (a header, say) instead.
packages() {
	local pair missing=()
	for pair; do
		case ${pair%%:*} in
		/*) [ -e "${pair%%:*}" ] || missing+=("${pair##*:}") ;;
		*) command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}") ;;
		esac
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
	[ "$(id -u)" -eq 0 ] ||
		die "missing packages: ${missing[*]}" "as root: apt-get install ${missing[*]}"
	command -v apt-get >/dev/null ||
		die "missing packages: ${missing[*]}" "install them; there is no apt-get here to do it"
	export DEBIAN_FRONTEND=noninteractive
	exec 6>&2
	step apt-update apt_get update
	step apt-install apt_get -o DPkg::Lock::Timeout=600 -y -q install --no-install-recommends "${missing[@]}"
	exec 6>&-
}

# needs NAME...: installs what the scripts of these names need, and the scripts that
# they run in turn. Every script begins with it: a build takes minutes, and shall not
# be followed by a package that cannot be had.
needs() {
	local arch=${ARCH:-x86_64} name list=() userlands=()
	commands_of "$@"
	packages "${list[@]}"
	for name in "${userlands[@]}"; do
		"$top/scripts/userland" "$name" >/dev/null
	done
}

# Adds to list, for packages(), and to userlands, for scripts/userland, what the
# NAMEs need for arch: scripts, and before these some parts that they share.
commands_of() {
	local name
	for name; do
		case $name in
		results) list+=(python3:python3) ;;	# scripts/ktap.py
		ext4) list+=(mkfs.ext4:e2fsprogs) ;;
		xfs) list+=(mkfs.xfs:xfsprogs) ;;
		swap) [ "$arch" != x86_64 ] || list+=(modprobe:kmod mkswap:util-linux) ;;
		redis-programs) list+=(redis-server:redis-server redis-cli:redis-tools
			redis-benchmark:redis-tools) ;;
		compiler)
			list+=(make:make gcc:gcc ccache:ccache flex:flex bison:bison
				/usr/include/stdio.h:libc6-dev)
			case $arch in
			arm64) list+=(aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu) ;;
			s390x) list+=(s390x-linux-gnu-gcc:gcc-s390x-linux-gnu) ;;
			ppc64*) list+=(powerpc64le-linux-gnu-gcc:gcc-powerpc64le-linux-gnu) ;;
			riscv64) list+=(riscv64-linux-gnu-gcc:gcc-riscv64-linux-gnu) ;;
			esac ;;
		qemu)
			case $arch in
			x86_64 | i386) list+=("qemu-system-$arch:qemu-system-x86") ;;
			arm64) list+=(qemu-system-aarch64:qemu-system-arm) ;;
			s390x | riscv64) list+=("qemu-system-$arch:qemu-system-misc") ;;
			ppc64*) list+=(qemu-system-ppc64:qemu-system-ppc) ;;
			esac ;;
		programs)	# some of the selftests
			commands_of compiler
			list+=(rsync:rsync)
			case $arch in
			i386) list+=(i686-linux-gnu-gcc:gcc-i686-linux-gnu
				/usr/i686-linux-gnu/include/stdio.h:libc6-dev-i386-cross) ;;
			arm64) list+=(/usr/aarch64-linux-gnu/include/stdio.h:libc6-dev-arm64-cross) ;;
			s390x) list+=(/usr/s390x-linux-gnu/include/stdio.h:libc6-dev-s390x-cross) ;;
			esac
			case $arch in i386 | arm64 | s390x) userlands+=("$arch") ;; esac ;;

		base) list+=(git:git xz:xz-utils dpkg-deb:dpkg) ;;	# from Debian
		apply)
			[ -d "$tree" ] || [ -n "${LINUX:-}" ] || commands_of base
			list+=(git:git flock:util-linux awk:mawk) ;;
		refresh | series | lines) list+=(git:git flock:util-linux awk:mawk) ;;
		checkpatch) list+=(git:git perl:perl python3:python3
			/usr/lib/python3/dist-packages/ply:python3-ply
			/usr/lib/python3/dist-packages/git:python3-git) ;;
		unit | model)
			commands_of results
			list+=(make:make gcc:gcc setarch:util-linux) ;;
		build)
			commands_of compiler
			list+=(bc:bc perl:perl depmod:kmod /usr/include/gelf.h:libelf-dev)
			[[ +${CONFIG:-}+ != *+llvm+* ]] ||
				list+=(clang-19:clang-19 ld.lld-19:lld-19 llvm-ar-19:llvm-19) ;;
		selftests)	# all of them
			commands_of programs
			[ "$arch" != x86_64 ] || list+=(/usr/include/sys/capability.h:libcap-dev
				/usr/include/numa.h:libnuma-dev /usr/include/liburing.h:liburing-dev) ;;
		guest)
			commands_of qemu
			list+=(setpriv:util-linux busybox:busybox-static)
			# The package busybox, with a dynamic one, excludes busybox-static.
			case $arch in
			x86_64 | um) ! ldd "$(command -v busybox)" >/dev/null 2>&1 || userlands+=(amd64) ;;
			*) userlands+=("$arch") ;;
			esac ;;
		kunit)
			commands_of results
			local arch
			for arch in ${ARCH:-um x86_64 i386 arm64}; do
				commands_of build qemu
				case $arch in
				x86_64 | i386) list+=(/usr/share/qemu/qboot.rom:qemu-system-data) ;;
				riscv64) list+=(/usr/share/qemu/opensbi-riscv64-generic-fw_dynamic.bin:opensbi) ;;
				esac
			done ;;
		cross)
			local compilers
			compilers=$("$top/scripts/cross" --compilers)
			mapfile -t -O ${#list[@]} list <<<"$compilers"
			arch=x86_64 commands_of build
			list+=(/usr/include/openssl/opensslv.h:libssl-dev) ;;
		bisect-check) ARCH=$arch commands_of kunit ;;
		shell) commands_of build guest ;;
		boot | tour) commands_of build programs guest ext4 ;;
		cow) commands_of apply build programs guest ;;
		stats) commands_of apply build programs guest ext4 xfs ;;
		fuzz | stress) commands_of build programs guest ext4 swap ;;
		mutants)
			commands_of build guest results
			[ -z "${TESTS:-}" ] || commands_of programs ;;
		build-broken) commands_of build; list+=(unshare:util-linux mount:mount) ;;
		tlb-check) commands_of build-broken selftests guest swap ;;
		redis) commands_of build guest redis-programs ;;
		soak)
			commands_of build programs guest ext4 swap redis-programs
			list+=(stress-ng:stress-ng ps:procps) ;;
		kselftest)
			commands_of build selftests guest ext4 xfs swap results
			[ "$arch" != x86_64 ] || list+=(killall:psmisc) ;;
		bench)
			arch=um commands_of build guest
			arch=x86_64 commands_of build guest
			[[ " ${ONLY:-redis} " != *" redis "* ]] || commands_of redis-programs
			list+=(gnuplot:gnuplot-nox python3:python3 size:binutils) ;;
		check)
			arch=x86_64 commands_of apply checkpatch unit kselftest
			ARCH=um commands_of kunit ;;
		esac
	done
}
