# SPDX-License-Identifier: GPL-2.0
# Sourced by scripts/selftest: tests of what the scripts do about the kernel that
# they are given, missing packages, other users of a lock, and a full disk.
# shellcheck shell=bash
# shellcheck disable=SC2154	# scripts/selftest sets these

test_wrong_kernels() {
	fresh
	LINUX=/nonexistent fails 'LINUX=/nonexistent does not exist; ' apply
	LINUX=$repo/patches fails 'is not a kernel tree; ' apply
	cp -r "$work/kernel" "$work/old"
	sed -i 's/^VERSION.*/VERSION = 6/; s/^PATCHLEVEL.*/PATCHLEVEL = 12/; s/^SUBLEVEL.*/SUBLEVEL = 0/' "$work/old/Makefile"
	LINUX=$work/old fails 'LINUX=.*/old is Linux 6.12.0; the series needs 7.3.y' apply
	[ -z "$(ls "$repo/build")" ]
}

test_git_tree_is_not_touched() {
	local before git=$work/git-kernel
	cp -r "$work/kernel" "$git"
	git -C "$git" init -q
	git -C "$git" add -f -A
	git -C "$git" commit -q -m 'toy 7.3'
	echo dirt >>"$git/mm/rmap.c"
	before=$(find "$git" -printf '%p %T@ %s\n' | sort)
	fresh
	LINUX=$git apply
	[ "$(find "$git" -printf '%p %T@ %s\n' | sort)" = "$before" ]
	in_linux ls-files --error-unmatch lib/tracked.o
	not grep -q dirt "$linux/mm/rmap.c"
	cp -r "$work/toy/patches" "$repo"
	apply
	series --test
	series
	grep -q "^base-commit: $(git -C "$git" rev-parse HEAD)" "$repo"/build/series/1-word/0000*
	git -C "$git" commit -q -a -m more
	LINUX=$git fails 'now has another checked out; ' apply
	apply
}

test_changing_the_base_loses_no_work() {
	toy
	kernel "$work/other" 9
	LINUX=$work/other fails 'build/linux was made from .*/kernel; ' apply
	edit 's/line_1;/x;/' mm/rmap.c
	fails 'not in patches/: 1 file; ' "$repo/scripts/base" clean
	in_linux checkout -q mm
	in_linux branch b "$(in_linux commit-tree -m b -p HEAD 'HEAD^{tree}')"
	fails 'branches, tags or stashes' "$repo/scripts/base" clean
	in_linux branch -q -D b
	"$repo/scripts/base" clean
	LINUX=$work/other apply
	"$repo/scripts/base" pristine
	diff -r -x '.git*' "$work/other" "$repo/build/base"
	grep -q 'SUBLEVEL = 9' "$linux/Makefile"
}

test_results_are_read_as_documented() {
	PYTHONDONTWRITEBYTECODE=1 python3 -m doctest "$here/scripts/ktap.py"
}

test_durations_are_checked() {
	local script
	fresh
	for script in stress fuzz soak; do
		DURATION=1m fails 'DURATION=1m is no number of seconds; ' "$repo/scripts/$script"
	done
	DURATION=60 ROUND=0 fails 'ROUND=0 is no number of seconds; ' "$repo/scripts/soak"
	ARCH=um fails 'no stress-ng for ARCH=um; ' "$repo/scripts/soak"
}

# An apt-get on a PATH of its own, which has all that there is here but QEMU. Another
# APT has the lock of the lists for the first $1 calls. What is called goes to calls.
fake_apt() {
	local dir
	fresh
	rm -rf "${work:?}/bin"
	mkdir "$work/bin"
	for dir in ${PATH//:/ }; do ln -sn "$dir"/* "$work/bin/" 2>/dev/null || true; done
	rm -f "$work"/bin/{apt-get,id,qemu-system-*,arm-linux-gnueabihf-gcc}
	printf '#!/bin/sh\necho 0\n' >"$work/bin/id"
	cat >"$work/bin/apt-get" <<-END
		#!/bin/bash
		[ "\$1" != -o ] || shift 4
		echo "apt-get \$1" >>"$work/calls"
		[ "\$(wc -l <"$work/calls")" -gt $1 ] || {
			echo 'E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)' >&2
			echo 'E: Unable to lock directory /var/lib/apt/lists/' >&2
			exit 100
		}
	END
	chmod +x "$work"/bin/{id,apt-get}
	: >"$work/calls"
}
calls() { paste -sd ' ' "$work/calls"; }

test_waits_for_another_apt() {
	fake_apt 2
	# shellcheck disable=SC2016	# expanded there
	PATH=$work/bin bash -c '. "$0/scripts/lib.sh"; packages qemu-system-x86_64:qemu' "$repo" 2>"$work/err"
	[ "$(calls)" = 'apt-get update apt-get update apt-get update apt-get install' ]
	[ "$(grep -c 'waiting for another APT: .* held by process 1 (apt-get)' "$work/err")" -eq 1 ]
}

test_does_not_wait_for_another_apt_for_ever() {
	fake_apt 9
	# shellcheck disable=SC2016	# expanded there
	PATH=$work/bin APT_WAIT=2 fails 'apt-update failed' \
		bash -c '. "$0/scripts/lib.sh"; packages qemu-system-x86_64:qemu' "$repo"
	grep -q 'still has the lock after [23] s' "$work/err"
}

# Replace every other script by one that only prints that it was called.
test_packages_come_before_the_first_step() {
	local script other
	for script in tour boot shell kselftest kunit stats cow stress fuzz soak redis bench cross check; do
		fake_apt 0
		mkdir -p "$repo/build/linux/tools/testing/selftests/mm"
		: >"$repo/build/linux/Makefile"
		echo 'CATEGORY="x"' >"$repo/build/linux/tools/testing/selftests/mm/run_vmtests.sh"
		for other in "$repo"/scripts/*; do
			case $script:${other##*/} in
			*:lib.sh | "$script:$script" | boot:tour) ;;
			*) printf '#!/bin/sh\necho %s >>%s\nexit 1\n' "${other##*/}" "$work/calls" >"$other" ;;
			esac
		done
		ONLY='' PATH=$work/bin "$repo/scripts/$script" || true
		[[ "$(calls) " = 'apt-get update apt-get install '* ]]
	done
}

test_lock_makes_a_second_make_wait() {
	toy
	exec 8>"$repo/build/.lock"
	flock 8
	not timeout 1 "$repo/scripts/apply"
	exec 8>&-
	timeout 300 "$repo/scripts/apply"
}

test_disk_full() {
	local left
	[ "$(id -u)" -eq 0 ] && mkdir "$work/probe" && mount -t tmpfs none "$work/probe" && umount "$work/probe" || exit 4
	toy
	rm -rf "$repo/build"
	mkdir "$repo/build"
	mount -t tmpfs -o size=2m none "$repo/build"
	trap 'umount "$repo/build"' EXIT
	leave() {	# SIZE
		dd if=/dev/zero of="$repo/build/filler" bs=1k 2>/dev/null || true
		truncate -s "-$1" "$repo/build/filler"
	}
	for left in 8k 40k 80k; do
		leave "$left"
		LINUX=$work/kernel fails 'the disk is full; ' apply
		[ ! -e "$linux" ]
		[ ! -e "$linux.new" ]
	done
	rm "$repo/build/filler"
	LINUX=$work/kernel "$repo/scripts/base"
	for left in 4k 16k 48k 60k; do
		leave "$left"
		fails 'the disk is full; ' apply
		[ -z "$(in_linux status --porcelain)" ]
		[ "$(in_linux rev-parse HEAD)" = "$(in_linux rev-parse refs/folio/base)" ]
	done
	rm "$repo/build/filler"
	apply
	refresh --check
}
