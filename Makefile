# SPDX-License-Identifier: GPL-2.0
# Each target calls the script of its name; variables reach it through the
# environment.

help:		## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 } \
		/^# [A-Z]+=/ { sub(/^# /, ""); print "  " $$0 }' $(MAKEFILE_LIST)

boot: apply	## build the kernel, boot it in QEMU and run the tour
shell: apply	## boot the same kernel into an interactive shell
check: apply	## all checks and tests; closes with "N passed, N failed, N skipped"
build: apply	## build the kernel
kunit: apply	## run the KUnit suites of the series
unit: apply	## test the packed mapcount in user space, with sanitizers; seconds
mutants: apply	## put errors into the kernel one at a time: which test notices each?
model: apply	## explore all orders of the steps that change the creator
kselftest: apply	## run our kselftests and the upstream mm selftests
tour: apply	## show what the kernel says of memory mapped in many ways
stats: apply	## what the statistics say of shared folios: two base kernels and ours
cow: apply	## what a last survivor of fork() copies, base beside patched
redis: apply	## what a BGSAVE of redis costs, base beside patched
stress: apply	## processes fork, write and exit over shared folios, for DURATION s
soak: apply	## stress-ng and redis together, for DURATION s; what do they leave behind?
bench: apply	## measure two base kernels and ours in one run, write bench/report.md
bench-metal:	## what measures two kernels on a machine of yours, in build/bench-metal
tlb-check: apply	## count what write faults do to the TLB, on ARCH=arm64 or s390x
fuzz: apply	## map memory at random, compare all that the kernel says, for DURATION s
bisect-check: apply	## build and boot after each patch, and run the KUnit suites
cross: apply	## compile for configurations and architectures that no guest runs
apply:		## assemble build/linux: a commit for each patch, a branch for each folder
refresh:	## write patches/, and the files at kernel paths, from these branches
series: apply	## write the mails, ready to send, to build/series
lines: apply	## count the lines of each folder: code, tests, documents, comments
clean:		## remove all below build/ but the downloads

# SERIES=<folder>    the tree after that folder of patches/, not the last: SERIES=2-cow
# LINUX=<tree>       a git tree or unpacked tree of Linux 7.3.y (default: from Debian)
# ARCH=<arch>        x86_64 (default), i386, arm64, s390x, um; kunit: ppc64, ppc64le, riscv64 too
# CONFIG=<names>     fragments in configs/: debug, faults, kcsan, llvm, rt, 64k; a+b: both
# TESTS=<names>      the selftests to run, the cases of cross (default: all; mutants: KUnit)
# QUICK=1            check: leave out the long selftests; bench: fewer boots
# BOOTS=<n>          bench: of each kernel, for the rmap functions (default: 9)
# ONLY=<names>       bench: rmap, calls, icount, redis; mutants: numbers or groups (default: all)
# BASELINE=1         run on the kernel without the series, to compare
# DURATION=<s>       stress, fuzz, soak: how long (default: 300, 60, 3600)
# ROUND=<s>          soak: the turn of each kind of stressors (default: 60, or less)
# BREAK=1            stress: on a kernel that shares wrongly, which it has to see
# SEED=<n>           unit, fuzz: repeat the run with this seed
# ARGS=<options>     fuzz: further options of folio_mapcount_fuzz
# MUTANTS=1          unit: see that each error in the header is noticed
# FIRST=<n> LAST=<n> bisect-check: from and to which patch, with SERIES= of that folder
# SIGNOFF=1          series: add the sender's Signed-off-by
# JOBS=<n>           parallel jobs (default: all processors)

# On a bare machine, all that the goals need is installed before the first long step.
apply: needs
needs:
	@bash -c '. scripts/lib.sh && needs "$$@"' needs apply $(filter $(scripts),$(MAKECMDGOALS))

scripts := boot shell check build kunit unit mutants model kselftest tour stats cow redis stress soak bench \
	   tlb-check fuzz bisect-check cross apply refresh series lines
$(scripts):
	@scripts/$@

bench-metal:
	@mkdir -p build/$@ && cp scripts/$@ build/$@/ && \
		gcc -O2 -Wall -static -o build/$@/folio_calls bench/folio_calls.c
	@sed -n 's/^#\t/  /p' scripts/$@

clean:
	@scripts/base clean

.PHONY: help needs clean bench-metal $(scripts)
