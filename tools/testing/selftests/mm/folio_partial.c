// SPDX-License-Identifier: GPL-2.0
/*
 * folio_partial - memory that no process maps any more is freed
 *
 * A THP of which a part is unmapped keeps all of its memory until it is split.
 * This happens under memory pressure, but the kernel has to find out first that
 * no process maps the part. Here two processes unmap a half of each THP:
 *
 *			first half	second half
 *	parent		unmapped	mapped
 *	child		unmapped	mapped
 *
 * Each THP has as many PTEs now as it has pages. Under memory pressure, by the
 * classic LRU or the multi-gen LRU, each must be queued for splitting, at the
 * latest, and be split. None must be swapped out as a whole: that would write
 * the unused half, too.
 *
 * Where parent and child unmap another half, all memory is in use, and nothing
 * may be queued.
 */
#include "kselftest_harness.h"
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "hugepage_settings.h"
#include "vm_util.h"

#define NR_THPS		8
#define MAX_THP_SIZE	(4UL << 20)
#define MAX_ROUNDS	4	/* of reclaim */
#define TIMEOUT		300	/* s: a kernel with all checks is slow */
#define CGROUP		"/sys/fs/cgroup/"
#define OUR_CGROUP	CGROUP "folio_partial/"
#define LRU_GEN		"/sys/kernel/mm/lru_gen/enabled"

static char lru_gen_before[32];	/* what to restore */
static char cgroup_before[PATH_MAX];
static bool controls;		/* the root cgroup's memory controller, by us */
static size_t thp_size;
static char *mem;		/* NR_THPS of them */
static pid_t child;
static int to_child[2], from_child[2];

/* Write to a file of sysfs and the like. Return: whether that worked. */
static bool __printf(2, 3) put(const char *path, const char *fmt, ...)
{
	int fd = open(path, O_WRONLY);
	va_list args;
	int len;

	if (fd < 0)
		return false;
	va_start(args, fmt);
	len = vdprintf(fd, fmt, args);
	va_end(args);
	close(fd);
	return len > 0;
}

static void restore_lru_gen(void)
{
	if (lru_gen_before[0])
		put(LRU_GEN, "%s", lru_gen_before);
}

static bool have_swap(void)
{
	char buf[512];

	return read_file("/proc/swaps", buf, sizeof(buf)) && strstr(buf, "\n/");
}

/* A memory cgroup of our own, to put pressure on nobody else. */
static bool cgroup_enter(void)
{
	char buf[PATH_MAX];

	if (!read_file("/proc/self/cgroup", buf, sizeof(buf)) || strncmp(buf, "0::/", 4))
		return false;
	snprintf(cgroup_before, sizeof(cgroup_before), CGROUP "%.*s/cgroup.procs",
		 (int)strcspn(buf + 4, "\n"), buf + 4);
	if (!read_file(CGROUP "cgroup.subtree_control", buf, sizeof(buf)) ||
	    !strstr(buf, "memory"))
		controls = put(CGROUP "cgroup.subtree_control", "+memory");
	mkdir(OUR_CGROUP, 0755);
	return !access(OUR_CGROUP "memory.reclaim", W_OK) &&
	       put(OUR_CGROUP "cgroup.procs", "0");
}

static void cgroup_leave(void)
{
	if (!cgroup_before[0])
		return;
	put(cgroup_before, "0");
	rmdir(OUR_CGROUP);
	if (controls)
		put(CGROUP "cgroup.subtree_control", "-memory");
}

static unsigned long thp_stat(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "hugepages-%zukB/stats/%s", thp_size >> 10, name);
	return thp_read_num(path);
}

struct counts {
	long thps;
	long queued;	/* for splitting, ever */
	long waiting;	/* in the queue */
	long split;
	long swpout;	/* whole THPs */
	long memory;	/* of the cgroup */
};

static struct counts count(void)
{
	return (struct counts){
		.thps = thp_stat("nr_anon"),
		.queued = thp_stat("split_deferred"),
		.waiting = thp_stat("nr_anon_partially_mapped"),
		.split = thp_stat("split"),
		.swpout = thp_stat("swpout"),
		.memory = read_num(OUR_CGROUP "memory.current"),
	};
}

FIXTURE(partial) {};

FIXTURE_VARIANT(partial)
{
	bool lru_gen;
};

FIXTURE_VARIANT_ADD(partial, classic)
{
	.lru_gen = false,
};

FIXTURE_VARIANT_ADD(partial, lru_gen)
{
	.lru_gen = true,
};

FIXTURE_SETUP(partial)
{
	const size_t size = NR_THPS * thp_size;
	char *area;
	size_t i;

	if (geteuid() || !thp_available() || thp_size > MAX_THP_SIZE)
		SKIP(return, "needs root, and THPs of 4 MiB at the most");
	if (!have_swap())
		SKIP(return, "no swap: anonymous memory is not reclaimed");
	if (!put(LRU_GEN, "%d", variant->lru_gen ? 7 : 0) && variant->lru_gen)
		SKIP(return, "no multi-gen LRU");
	area = mmap(NULL, size + thp_size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(area, MAP_FAILED);
	mem = (char *)(((uintptr_t)area + thp_size - 1) & -thp_size);
	ASSERT_EQ(madvise(mem, size, MADV_HUGEPAGE), 0);

	/* There is no teardown after a set-up that skips. */
	if (!cgroup_enter()) {
		cgroup_leave();
		SKIP(return, "no memory.reclaim");
	}
	for (i = 0; i < size; i += psize())
		*(unsigned long *)(mem + i) = i + 1;
	if (!check_huge_anon(mem, size, NR_THPS, thp_size)) {
		cgroup_leave();
		SKIP(return, "no free THPs");
	}
}

FIXTURE_TEARDOWN(partial)
{
	if (child > 0) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	cgroup_leave();
	restore_lru_gen();
}

static bool unmap_half(int half)
{
	size_t i;

	for (i = 0; i < NR_THPS; i++) {
		if (madvise(mem + i * thp_size + half * thp_size / 2, thp_size / 2,
			    MADV_DONTNEED))
			return false;
	}
	return true;
}

/* Read every page of the other half. Return: pages that have a wrong value. */
static long check_rest(int unmapped)
{
	long wrong = 0;
	size_t i;

	for (i = 0; i < NR_THPS * thp_size; i += psize()) {
		if (i / (thp_size / 2) % 2 != (size_t)unmapped)
			wrong += FORCE_READ(*(unsigned long *)(mem + i)) != i + 1;
	}
	return wrong;
}

/* Unmaps a half, says so, uses the rest or waits until told to end, and checks. */
static int child_main(int half, bool busy)
{
	char byte = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!unmap_half(half) || write(from_child[1], &byte, 1) != 1)
		return 1;
	if (busy)
		fcntl(to_child[0], F_SETFL, O_NONBLOCK);
	while (read(to_child[0], &byte, 1) != 1)
		check_rest(half);
	return !!check_rest(half);
}

static void start_child(struct __test_metadata *_metadata, int half, bool busy)
{
	char byte;

	ASSERT_EQ(pipe(to_child), 0);
	ASSERT_EQ(pipe(from_child), 0);
	child = fork();
	ASSERT_GE(child, 0);
	if (!child)
		_exit(child_main(half, busy));
	ASSERT_EQ(read(from_child[0], &byte, 1), 1);
}

static void end_child(struct __test_metadata *_metadata)
{
	char byte = 0;
	int status;

	ASSERT_EQ(write(to_child[1], &byte, 1), 1);
	ASSERT_EQ(waitpid(child, &status, 0), child);
	child = 0;
	EXPECT_EQ(status, 0);
}

/* Reclaim as much as is in use, until no more than this many THPs are left. */
static void press(long thps)
{
	size_t size = NR_THPS * thp_size / 2;
	int i;

	for (i = 0; i < MAX_ROUNDS && count().thps > thps; i++)
		put(OUR_CGROUP "memory.reclaim", "%zu swappiness=max", size);
}

static void same_half(struct __test_metadata *_metadata, bool busy)
{
	struct counts start, unmapped, end;

	start = count();
	start_child(_metadata, 0, busy);
	ASSERT_TRUE(unmap_half(0));
	unmapped = count();
	press(start.thps - NR_THPS);
	/* Have the other half in memory, wherever it is: nothing else shall be. */
	EXPECT_EQ(check_rest(0), 0);
	end = count();

	TH_LOG("%d THPs: queued at unmap %ld, in reclaim %ld; split %ld; swapped out whole %ld",
	       NR_THPS, unmapped.queued - start.queued, end.queued - unmapped.queued,
	       end.split - start.split, end.swpout - start.swpout);
	TH_LOG("freed: %ld KiB", (start.memory - end.memory) >> 10);
	EXPECT_EQ(end.queued - start.queued, NR_THPS);
	EXPECT_EQ(end.waiting, start.waiting);
	EXPECT_EQ(end.split - start.split, NR_THPS);
	EXPECT_EQ(end.swpout - start.swpout, 0);
	EXPECT_EQ(start.thps - end.thps, NR_THPS);
	EXPECT_GE(start.memory - end.memory, (long)(NR_THPS * thp_size * 3 / 8));
	end_child(_metadata);
}

TEST_F_TIMEOUT(partial, same_half_idle, TIMEOUT)
{
	same_half(_metadata, false);
}

/* What is young is not swapped out: the unused half is freed all the same. */
TEST_F_TIMEOUT(partial, same_half_busy, TIMEOUT)
{
	same_half(_metadata, true);
}

TEST_F_TIMEOUT(partial, other_half, TIMEOUT)
{
	struct counts start, end;

	start = count();
	start_child(_metadata, 1, false);
	ASSERT_TRUE(unmap_half(0));
	press(start.thps - NR_THPS);
	end = count();
	/*
	 * On 32-bit, which has no CONFIG_THP_SWAP, all are split to be swapped out:
	 * queued when the first half is unmapped, and taken out again at the end.
	 */
	if (sizeof(long) == 8)
		EXPECT_EQ(end.queued, start.queued);
	EXPECT_EQ(end.waiting, start.waiting);
	EXPECT_EQ(check_rest(0), 0);
	end_child(_metadata);
}

static void set_thp(void)
{
	unsigned long orders = thp_supported_orders();
	char name[64];
	int i;

	thp_save_settings();
	thp_write_num("khugepaged/scan_sleep_millisecs", 3600 * 1000);
	for (i = 0; i < NR_ORDERS; i++) {
		size_t size = (size_t)psize() << i;

		if (!(orders & (1UL << i)))
			continue;
		snprintf(name, sizeof(name), "hugepages-%zukB/enabled", size >> 10);
		thp_write_string(name, size == thp_size ? "madvise" : "never");
	}
}

int main(int argc, char **argv)
{
	if (!geteuid() && thp_available()) {
		thp_size = read_pmd_pagesize();
		set_thp();
		if (read_file(LRU_GEN, lru_gen_before, sizeof(lru_gen_before)))
			atexit(restore_lru_gen);
	}
	return test_harness_run(argc, argv);
}
