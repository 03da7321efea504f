// SPDX-License-Identifier: GPL-2.0
/*
 * folio_partial - memory that no process maps any more is freed
 *
 * A large folio of which a part is unmapped keeps all of its memory until it is split.
 * This happens under memory pressure, but the kernel has to find out first that no
 * process maps the part. If parent and children unmap the same part:
 *
 *		a half			all but one page
 *	parent	- - - - x x x x		- - - - - x - -
 *	child	- - - - x x x x		- - - - - x - -
 *	child				- - - - - x - -		and so on
 *
 * then the folio can have as many PTEs as it has pages, and only a walk of the page
 * tables tells. The deferred split shrinker does that, with swap or without, and must not
 * split a folio whose every page is mapped.
 */
#include "kselftest_harness.h"
#include <sys/prctl.h>
#include <time.h>
#include "folio_util.h"

#define MEM_SIZE	(8UL << 20)
#define MAX_FOLIO_SIZE	(4UL << 20)
#define MAX_CHILDREN	(MAX_ACTORS - 1)
#define ROUNDS		3	/* of memory pressure */
#define STRESS_TIME	1	/* s */
#define STRESS_STEPS	32
#define TIMEOUT		600	/* s: a kernel with all checks is slow */
#define LRU_GEN		"/sys/kernel/mm/lru_gen/enabled"
#define THP		"/sys/kernel/mm/transparent_hugepage/"

static size_t nr_pages, folio_pages, folio_size;
static char *area, *mem;	/* what is mapped; and MEM_SIZE of it, aligned */
static unsigned long expected[MEM_SIZE / 4096];	/* in each page of mem */

static void allow_folios(enum thp_enabled when)
{
	struct thp_settings settings;
	int i;

	thp_read_settings(&settings);
	for (i = 0; i < NR_ORDERS; i++)
		settings.hugepages[i].enabled = THP_NEVER;
	settings.hugepages[sz2ord(folio_size, psize())].enabled = when;
	settings.khugepaged.scan_sleep_millisecs = 3600 * 1000;
	/* So that a folio of zeroes is underused */
	settings.khugepaged.max_ptes_none = 1;
	thp_write_settings(&settings);
}

static unsigned long *page(size_t i)
{
	return (unsigned long *)(mem + i * psize());
}

/* Map and fill memory that consists of large folios. */
static bool map_folios(bool zeroes)
{
	size_t i;

	if (area)
		munmap(area, MEM_SIZE + folio_size);
	area = mmap(NULL, MEM_SIZE + folio_size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		return false;
	mem = (char *)(((uintptr_t)area + folio_size - 1) & -folio_size);
	madvise(mem, MEM_SIZE, MADV_HUGEPAGE);
	for (i = 0; i < nr_pages; i++)
		*page(i) = expected[i] = zeroes ? 0 : i + 1;
	return check_huge_anon(mem, MEM_SIZE, MEM_SIZE / folio_size, folio_size);
}

static bool unmap(size_t first, size_t nr)
{
	memset(expected + first, 0, nr * sizeof(*expected));
	return !nr || !madvise(page(first), nr * psize(), MADV_DONTNEED_LOCKED);
}

/* Unmap each folio but for its pages [from, to). Return: whether that worked. */
static long op_unmap_but(long from, long to)
{
	bool done = true;
	size_t i;

	for (i = 0; i < nr_pages; i += folio_pages)
		done &= unmap(i, from) && unmap(i + to, folio_pages - to);
	return done;
}

static long op_mlock(long unused_a, long unused_b)
{
	return mlock2(mem, MEM_SIZE, MLOCK_ONFAULT);
}

/* Return: how many pages have a wrong value. */
static long op_check(long unused_a, long unused_b)
{
	int wrong = 0;
	size_t i;

	for (i = 0; i < nr_pages; i++)
		wrong += FORCE_READ(*page(i)) != expected[i];
	return wrong;
}

/* A child that unmaps all but [from, to) */
static void start_child(struct __test_metadata *_metadata, int who, size_t from, size_t to,
			bool lock)
{
	spawn(SELF, who);
	if (lock)
		ASSERT_EQ(run(who, op_mlock, 0, 0), 0);
	ASSERT_TRUE(run(who, op_unmap_but, from, to));
}

static void end_child(struct __test_metadata *_metadata, int who)
{
	EXPECT_EQ(run(who, op_check, 0, 0), 0);
	quit(who);
}

/*
 * Memory pressure in the system or in our cgroup. As kswapd does, drop_caches calls
 * the shrinkers of all cgroups, and is quicker than to use all memory. Neither
 * reclaims anonymous memory, so that nothing depends on swap.
 */
static void press(bool global)
{
	if (global)
		put("/proc/sys/vm/drop_caches", "2");
	else
		put(cgroup_file("memory.reclaim"), "8M swappiness=0");
}

struct counts {
	long memory;	/* of the cgroup */
	long split;	/* folios of this size, ever; so are these: */
	long shared;	/* found by the shrinker to be partially mapped */
};

static long folio_stat(const char *name)
{
	char path[128], buf[32];

	snprintf(path, sizeof(path), THP "hugepages-%zukB/stats/%s", folio_size >> 10, name);
	return read_file(path, buf, sizeof(buf)) ? atol(buf) : 0;
}

static struct counts count(void)
{
	char buf[32] = "";

	read_file(cgroup_file("memory.current"), buf, sizeof(buf));
	return (struct counts){ atol(buf), folio_stat("split"),
				folio_stat("split_deferred_shared") };
}

/* Return: what has changed since then, after memory pressure. */
static struct counts press_and_count(struct counts before, bool global)
{
	struct counts now;
	int i;

	for (i = 0; i < ROUNDS; i++)
		press(global);
	now = count();
	return (struct counts){ now.memory - before.memory, now.split - before.split,
				now.shared - before.shared };
}

FIXTURE(partial) {};

FIXTURE_VARIANT(partial)
{
	size_t size;	/* of folios, or 0: what a PMD maps */
};

FIXTURE_VARIANT_ADD(partial, thp) { .size = 0 };
FIXTURE_VARIANT_ADD(partial, mthp) { .size = 64 << 10 };

FIXTURE_SETUP(partial)
{
	if (geteuid() || !thp_available())
		SKIP(return, "needs root, and THPs");
	if (!cgroup.dir[0] || access(cgroup_file("memory.reclaim"), W_OK))
		SKIP(return, "no memory.reclaim");
	folio_size = variant->size ?: read_pmd_pagesize();
	folio_pages = folio_size / psize();
	nr_pages = MEM_SIZE / psize();
	if (folio_size > MAX_FOLIO_SIZE || !(thp_supported_orders() & folio_pages))
		SKIP(return, "no folios of this size");
	allow_folios(THP_MADVISE);
	if (!map_folios(false))
		SKIP(return, "no free large folios");
	make_actors();
}

FIXTURE_TEARDOWN(partial)
{
	kill_actors();
}

/*
 * Parent and children unmap all but [from, to) of each folio. If there is to be a @hole,
 * page @from of each is mapped elsewhere, so that its old entry is empty.
 */
static void all_unmap(struct __test_metadata *_metadata, int nr_children, size_t from,
		      size_t to, bool lock, bool hole)
{
	const long nr_folios = nr_pages / folio_pages;
	const long unused = nr_folios * (folio_pages - (to - from)) * psize();
	/* With fewer PTEs than pages, no walk is needed. */
	const bool walked = (nr_children + 1) * (to - from) >= folio_pages;
	struct counts c;
	int setting, i;
	size_t at;

	for (setting = 0; setting < 2; setting++) {
		if (!put(LRU_GEN, setting ? "7" : "0") && setting)
			TH_LOG("no multi-gen LRU");
		thp_write_num("shrink_underused", !setting);
		ASSERT_TRUE(map_folios(false));
		for (at = from; hole && at < nr_pages; at += folio_pages) {
			ASSERT_NE(mremap(page(at), psize(), psize(),
					 MREMAP_MAYMOVE | MREMAP_DONTUNMAP), MAP_FAILED);
			expected[at] = 0;
		}
		for (i = 1; i <= nr_children; i++)
			start_child(_metadata, i, from, to, lock);
		c = count();
		ASSERT_TRUE(op_unmap_but(from, to));
		c = press_and_count(c, setting);

		EXPECT_GE(-c.memory, unused / 4 * 3);
		EXPECT_EQ(c.split, nr_folios);
		EXPECT_EQ(c.shared, walked ? nr_folios : 0);
		for (i = 1; i <= nr_children; i++)
			end_child(_metadata, i);
		EXPECT_EQ(op_check(0, 0), 0);
	}
}

TEST_F_TIMEOUT(partial, first_half, TIMEOUT)
{
	all_unmap(_metadata, 1, folio_pages / 2, folio_pages, false, false);
}

TEST_F_TIMEOUT(partial, second_half, TIMEOUT)
{
	all_unmap(_metadata, 1, 0, folio_pages / 2, false, false);
}

TEST_F_TIMEOUT(partial, half_up_to_a_hole, TIMEOUT)
{
	all_unmap(_metadata, 1, folio_pages / 2, folio_pages, false, true);
}

TEST_F_TIMEOUT(partial, half_mlocked, TIMEOUT)
{
	all_unmap(_metadata, 1, folio_pages / 2, folio_pages, true, false);
}

TEST_F_TIMEOUT(partial, all_but_one_page, TIMEOUT)
{
	all_unmap(_metadata, MAX_CHILDREN, 5, 6, false, false);
}

TEST_F_TIMEOUT(partial, all_but_last_page, TIMEOUT)
{
	all_unmap(_metadata, MAX_CHILDREN, folio_pages - 1, folio_pages, false, false);
}

/*
 * As long as one more child maps all, nothing is split. Then it exits. The folios are
 * underused, but only such are split for that as a PMD can map and nothing has mlocked.
 */
TEST_F_TIMEOUT(partial, exit_of_last_user, TIMEOUT)
{
	struct counts c;
	int global;

	thp_write_num("shrink_underused", 1);
	for (global = 0; global < 2; global++) {
		ASSERT_TRUE(map_folios(true));
		start_child(_metadata, A, 0, folio_pages, !variant->size);
		start_child(_metadata, B, folio_pages / 2, folio_pages, false);
		ASSERT_TRUE(op_unmap_but(folio_pages / 2, folio_pages));
		c = press_and_count(count(), global);
		EXPECT_EQ(c.split, 0);
		EXPECT_EQ(c.shared, 0);

		c = count();
		end_child(_metadata, A);
		c = press_and_count(c, global);
		EXPECT_GE(-c.memory, (long)MEM_SIZE / 8 * 3);
		EXPECT_EQ(c.split, (long)(nr_pages / folio_pages));
		end_child(_metadata, B);
		EXPECT_EQ(op_check(0, 0), 0);
	}
}

/*
 * Unmap random parts, write to random pages, and have a child that does so, too.
 * Return: how many pages had a wrong value, and children saw such pages.
 */
static int use_memory(int depth)
{
	int wrong = 0, status = 1, step;
	pid_t pid = 0;

	srandom(random() ^ getpid());
	for (step = 0; step < STRESS_STEPS; step++) {
		/* In a quarter of the memory: often the same parts as others */
		const size_t nr = random() % 2 ? 8 : folio_pages / 2;
		const size_t first = random() % (nr_pages / nr / 4) * nr;
		size_t i;

		wrong += !unmap(first, nr - random() % 3);
		for (i = first; random() % 4 && i < first + nr; i++)
			*page(i) = expected[i] = random();
		if (!pid && depth < 1) {
			pid = fork();
			if (!pid)
				_exit(!!use_memory(depth + 1));
		}
		if (step % 8 == 7)
			wrong += op_check(0, 0);
	}
	return wrong + (pid && (waitpid(pid, &status, 0) != pid || status));
}

/* Processes use the memory under pressure; this one, too, unless it keeps it as it is. */
static void stress(struct __test_metadata *_metadata, bool keep)
{
	const time_t end = time(NULL) + STRESS_TIME;
	int i, status = 1, wrong = 0;
	pid_t presser, pids[2];

	/* Under pressure, an underused folio is split while it is filled. */
	thp_write_num("shrink_underused", 0);
	presser = fork();
	ASSERT_GE(presser, 0);
	if (!presser) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;; press(true))
			press(false);
	}
	srandom(end);
	TH_LOG("random seed: %ld", (long)end);
	do {
		ASSERT_TRUE(keep || map_folios(false));
		for (i = 0; i < 2; i++) {
			pids[i] = fork();
			if (!pids[i])
				_exit(!!use_memory(0));
		}
		if (!keep)
			wrong += use_memory(0);
		for (i = 0; i < 2; i++)
			wrong += waitpid(pids[i], &status, 0) != pids[i] || status;
	} while (time(NULL) < end);
	kill(presser, SIGKILL);
	waitpid(presser, NULL, 0);
	EXPECT_EQ(wrong, 0);
}

TEST_F_TIMEOUT(partial, stress, TIMEOUT)
{
	stress(_metadata, false);
}

/* The parent maps all pages all the time: whatever children do, nothing is split. */
TEST_F_TIMEOUT(partial, stress_all_mapped, TIMEOUT)
{
	struct counts c;

	/* By PTEs. And what children map anew are small folios, which do not count. */
	ASSERT_EQ(mprotect(mem, psize(), PROT_READ), 0);
	ASSERT_EQ(mprotect(mem, psize(), PROT_READ | PROT_WRITE), 0);
	allow_folios(THP_NEVER);
	c = count();
	stress(_metadata, true);
	c = press_and_count(c, false);
	EXPECT_EQ(c.split, 0);
	EXPECT_EQ(c.shared, 0);
	EXPECT_EQ(op_check(0, 0), 0);
}

int main(int argc, char **argv)
{
	if (!geteuid() && thp_available()) {
		keep(THP "shrink_underused");
		keep(LRU_GEN);
		thp_save_settings();
		/* For the tests' processes alone, to put pressure on no others */
		if (cgroup_enter("folio_partial"))
			atexit(cgroup_leave);
	}
	return test_harness_run(argc, argv);
}
