// SPDX-License-Identifier: GPL-2.0
/*
 * folio_cow - who writes to a large anonymous folio without copying it
 *
 * After fork(), a write to a shared page copies it. Once all other processes
 * have exited or unmapped it, the one MM that still maps it reuses it, whatever
 * the fork tree was, and one fault makes many pages writable. Reuse must never go
 * too far. Each test checks two kinds of statements:
 *
 *   safety	of any kernel: no process sees what another one wrote later, no
 *		write is lost, a page with other references is never written in
 *		place, a pinned page never moves;
 *   efficiency	where the kernel tells of COW reuse in /proc/vmstat: no page was
 *		copied, and there were no more faults than windows of pages.
 *
 * A page was copied if its PFN changed. What each page has to contain is known
 * from shadow[], which fork() copies just as it ought to copy the pages. The
 * processes of a test are its actors: SELF, the test, and others that it
 * forks, which only run what SELF sends them and then block, so that nothing
 * changes while SELF looks:
 *
 *	SELF ---- run(B, op_write, 0, r.nr) ----> B: write, answer, block
 *	  \                                       |
 *	   `---- shared: *w, what the last write cost
 *
 * FOLIO_COW_DIR names a directory for the files of some tests, by default the
 * current one.
 */
#include "kselftest_harness.h"
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include "../../../../mm/gup_test.h"
#include "folio_cow_rseq.h"
#include "hugepage_settings.h"
#include "vm_util.h"

/* As vm_util.h has the others. */
#define KPF_DIRTY	BIT_ULL(4)
#define KPF_ANON	BIT_ULL(12)
#define KPF_SWAPCACHE	BIT_ULL(13)
#define KPF_KSM		BIT_ULL(21)

#define MAX_PAGES	2048
#define NR_ACTORS	12
#define NR_FOLIOS	4		/* of a size below that of a PMD */
#define MOVED_KIB	128		/* what mremap() takes out of the middle */
#define ACTOR_SECONDS	25		/* the harness gives a test 30 */
#define REPLY_MS	15000
#define STACK_SIZE	(256 << 10)
#define NO_EVENT	ULONG_MAX
#define DEBUGFS		"/sys/kernel/debug/"
#define CGROUP		"/sys/fs/cgroup/"
#define THP		"/sys/kernel/mm/transparent_hugepage/"
#define KSM		"/sys/kernel/mm/ksm/"

enum { SELF, A, B, C };

/* What runs in an actor; negative results are errors. */
typedef long (*op_fn)(long a, long b);

struct call {
	op_fn op;
	long a;
	long b;
};

static struct actor {
	int cmd[2];
	int reply[2];
	int pidfd;
	pid_t pid;
} actor[NR_ACTORS];

/* The last write of all actors: what it cost. */
static struct cost {
	long moved;		/* pages that were there and are others now */
	long large;		/* of those, the pages of large folios */
	long faults;
	long windows;		/* faults that this takes, if nothing is copied */
	long clean;		/* and those that set the dirty bit of a page */
} *w;

/* The memory under test */
static struct region {
	char *area;		/* address space that is reserved for us */
	size_t area_size;
	char *mem;
	char *other;		/* where parts of it can move */
	size_t nr;		/* pages */
	size_t folio_nr;	/* pages of one folio */
	bool ptes;		/* split the PMD after populating */
} r;

/* Where each page is, and what it contains. Both belong to the process. */
static char *at[MAX_PAGES];
static uint64_t shadow[MAX_PAGES];

struct look {
	uint64_t ent[MAX_PAGES];	/* of the pagemap */
	uint64_t flags[MAX_PAGES];	/* of /proc/kpageflags */
};

static bool patched;		/* the kernel reuses folios, and says so */
static bool dirty_by_fault;	/* the hardware leaves the dirty bit to the kernel */
static int kpageflags_fd = -1;
static int kpagecount_fd = -1;
static int gup_fd = -1;
static const char *dir = ".";

/*
 * Of the test that runs. The macros of the harness want it by this name, and
 * helpers that do not have to pass it are shorter.
 */
static struct __test_metadata *_metadata;

static void set_metadata(struct __test_metadata *metadata)
{
	_metadata = metadata;
}

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

/* From /proc/vmstat. The name ends with a blank. */
static unsigned long read_event(const char *name)
{
	FILE *f = fopen("/proc/vmstat", "r");
	unsigned long value = NO_EVENT;
	char line[128];

	if (f && check_for_pattern(f, name, line, sizeof(line)))
		value = strtoul(line + strlen(name), NULL, 10);
	if (f)
		fclose(f);
	return value;
}

/* Looking at pages */

static uint64_t pfn_of(uint64_t ent)
{
	return ent & PM_PRESENT ? ent & (BIT_ULL(55) - 1) : 0;
}

static bool is_pmd_mapped(void)
{
	return r.nr == r.folio_nr && !r.ptes;
}

/* Many pages by one read where they follow each other, 512 reads take long. */
static void look(struct look *l)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	size_t i, n, size;
	off_t offset;

	for (i = 0; i < r.nr; i += n) {
		for (n = 1; i + n < r.nr && at[i + n] == at[i] + n * psize(); n++)
			;
		size = n * sizeof(uint64_t);
		offset = (uintptr_t)at[i] / psize() * sizeof(uint64_t);
		ASSERT_EQ(pread(fd, &l->ent[i], size, offset), (ssize_t)size);
	}
	close(fd);

	for (i = 0; i < r.nr; i += n) {
		uint64_t pfn = pfn_of(l->ent[i]);

		for (n = 1; pfn && i + n < r.nr && pfn_of(l->ent[i + n]) == pfn + n; n++)
			;
		l->flags[i] = 0;
		if (!pfn)
			continue;
		size = n * sizeof(uint64_t);
		ASSERT_EQ(pread(kpageflags_fd, &l->flags[i], size, pfn * sizeof(uint64_t)),
			  (ssize_t)size);
	}
}

static size_t count_ent(uint64_t bits)
{
	static struct look l;
	size_t i, count = 0;

	look(&l);
	for (i = 0; i < r.nr; i++)
		count += !!(l.ent[i] & bits);
	return count;
}

static size_t nr_flagged(const struct look *l, size_t first, size_t nr, uint64_t bits)
{
	size_t i, count = 0;

	for (i = first; i < first + nr; i++)
		count += !!(l->flags[i] & bits);
	return count;
}

static size_t count_flags(uint64_t bits)
{
	static struct look l;

	look(&l);
	return nr_flagged(&l, 0, r.nr, bits);
}

static bool page_is(size_t i, uint64_t bits)
{
	static struct look l;

	look(&l);
	return l.ent[i] & bits;
}

/* Is page i the first one, or not of the same folio as the one before, or apart? */
static bool starts_run(const struct look *l, size_t first, size_t i)
{
	return i == first || !(l->flags[i] & KPF_COMPOUND_TAIL) ||
	       pfn_of(l->ent[i]) != pfn_of(l->ent[i - 1]) + 1 ||
	       at[i] != at[i - 1] + psize();
}

/* Pages of one folio, side by side: no fault can make more of them writable. */
static long nr_runs(const struct look *l, size_t first, size_t nr)
{
	long runs = 0;
	size_t i;

	for (i = first; i < first + nr; i++)
		runs += starts_run(l, first, i);
	return runs;
}

/*
 * How many faults it takes to write all pages of all runs in order: each makes a
 * window of entries writable, which grows with what the faults before it did.
 */
static long nr_windows(const struct look *l, size_t first, size_t nr)
{
	const size_t min = psize() == 4096 ? 16 : 128;
	size_t i, run = first, end = 0, page, window;
	long windows = 0;

	for (i = first; i < first + nr; i++) {
		page = (uintptr_t)at[i] / psize();
		if (starts_run(l, first, i))
			run = page;
		else if (page < end)
			continue;
		windows++;
		page -= page % min;
		for (window = min; page >= run + window && window < 512; window *= 2)
			;
		end = page + window;
	}
	return windows;
}

/* Pages, among those that had these flags, that are not the same any more. */
static size_t nr_differ(const struct look *before, const struct look *after,
			size_t first, size_t nr, uint64_t flags)
{
	size_t i, count = 0;

	for (i = first; i < first + nr; i++)
		count += pfn_of(before->ent[i]) && (before->flags[i] & flags) == flags &&
			 pfn_of(before->ent[i]) != pfn_of(after->ent[i]);
	return count;
}

static size_t nr_mapped_not(uint64_t times)
{
	static struct look l;
	size_t i, count = 0;
	uint64_t n;

	look(&l);
	for (i = 0; i < r.nr; i++) {
		uint64_t pfn = pfn_of(l.ent[i]);

		if (!pfn || pread(kpagecount_fd, &n, sizeof(n), pfn * sizeof(n)) != sizeof(n))
			n = 0;
		count += n != times;
	}
	return count;
}

/* Operations: what actors do */

static long nr_faults(void)
{
	struct rusage u;

	getrusage(RUSAGE_THREAD, &u);
	return u.ru_minflt + u.ru_majflt;
}

/*
 * Each page has its value at both ends, and all writes have values of their own.
 * Return: the faults that this took. A first pass over nothing takes those that
 * are not meant: of the code and the stack, after a fork.
 */
static long store(size_t first, size_t nr, uint64_t tag)
{
	size_t last = psize() / sizeof(uint64_t) - 1;
	size_t i, end = first;
	long faults;
	int pass;

	touch_rseq();
	for (pass = 0; pass < 2; pass++) {
		faults = nr_faults();
		for (i = first; i < end; i++) {
			uint64_t *p = (uint64_t *)at[i];

			__atomic_store_n(&p[0], tag + i, __ATOMIC_RELAXED);
			__atomic_store_n(&p[last], tag + i, __ATOMIC_RELAXED);
		}
		faults = nr_faults() - faults;
		end = first + nr;
	}
	return faults;
}

static long op_write(long first, long nr)
{
	static struct look before, after;
	static uint64_t nr_writes;
	uint64_t tag = (uint64_t)getpid() << 32 | (++nr_writes & 0xfffff) << 12;
	long i;

	look(&before);
	w->faults = store(first, nr, tag);
	for (i = first; i < first + nr; i++)
		shadow[i] = tag + i;
	look(&after);
	w->moved = nr_differ(&before, &after, first, nr, 0);
	w->large = nr_differ(&before, &after, first, nr, KPF_THP);
	w->windows = nr_windows(&before, first, nr);
	w->clean = 0;
	/*
	 * What was swapped in is mapped clean: a fault for each page of it. Its folio
	 * is in the swap cache, or has become dirty when it left that.
	 */
	if (dirty_by_fault)
		w->clean = nr_flagged(&before, first, nr, KPF_SWAPCACHE | KPF_DIRTY);
	return w->moved;
}

static long op_wrong(long first, long nr)
{
	size_t last = psize() / sizeof(uint64_t) - 1;
	long i, wrong = 0;

	for (i = first; i < first + nr; i++) {
		uint64_t *p = (uint64_t *)at[i];

		wrong += FORCE_READ(p[0]) != shadow[i] || FORCE_READ(p[last]) != shadow[i];
	}
	return wrong;
}

static long op_read(long first, long nr)
{
	long i;

	for (i = first; i < first + nr; i++)
		FORCE_READ(*at[i]);
	return 0;
}

static long op_unmap(long unused_a, long unused_b)
{
	return munmap(r.area, r.area_size);
}

static long op_drop(long first, long nr)
{
	memset(shadow + first, 0, nr * sizeof(*shadow));
	return madvise(at[first], nr * psize(), MADV_DONTNEED);
}

static void place(void)
{
	size_t i;

	for (i = 0; i < r.nr; i++)
		at[i] = r.mem + i * psize();
}

/* One entry for all of it, for now */
static bool splits_pmd(void)
{
	char *page = r.mem + psize();

	return !mprotect(page, psize(), PROT_READ) &&
	       !mprotect(page, psize(), PROT_READ | PROT_WRITE);
}

/*
 * Map fresh memory and fill it with folios of the size in question. If PMDs could
 * map it, but shall not, map it in two steps.
 */
static long op_map(long unused_a, long unused_b)
{
	static struct look l;
	size_t step, i;

	munmap(r.area, r.area_size);
	if (mmap(r.area, r.area_size, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_FIXED,
		 -1, 0) == MAP_FAILED)
		return -1;
	place();
	step = r.nr > r.folio_nr ? r.nr / 2 : r.nr;
	for (i = 0; i < r.nr; i += step) {
		char *p = mmap(at[i], step * psize(), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0);

		if (p == MAP_FAILED || madvise(p, step * psize(), MADV_HUGEPAGE))
			return -1;
		store(i, step, 0);
	}
	op_write(0, r.nr);
	if (r.ptes && !splits_pmd())
		return -1;
	look(&l);
	for (i = 0; i < r.nr; i += r.folio_nr)
		if (pfn_of(l.ent[i]) % r.folio_nr)
			return -1;
	return nr_runs(&l, 0, r.nr) == (long)(r.nr / r.folio_nr) ? 0 : -1;
}

static long op_exit(long unused_a, long unused_b)
{
	_exit(0);
}

static void serve(int me)
{
	struct call c;
	long ret;
	int i;

	/* Then the end of SELF is the end of the file for all of them. */
	for (i = 0; i < NR_ACTORS; i++) {
		if (actor[i].cmd[1] >= 0)
			close(actor[i].cmd[1]);
		actor[i].cmd[1] = -1;
	}
	alarm(ACTOR_SECONDS);
	while (read(actor[me].cmd[0], &c, sizeof(c)) == sizeof(c)) {
		ret = c.op(c.a, c.b);
		if (write(actor[me].reply[1], &ret, sizeof(ret)) != sizeof(ret))
			break;
	}
	_exit(0);
}

static long op_fork(long child, long unused)
{
	pid_t pid = fork();

	if (!pid)
		serve(child);
	return pid;
}

/* Actors */

static void send_call(int who, op_fn op, long a, long b)
{
	struct call c = { op, a, b };

	ASSERT_EQ(write(actor[who].cmd[1], &c, sizeof(c)), (ssize_t)sizeof(c));
}

static long run(int who, op_fn op, long a, long b)
{
	struct pollfd pfds[] = {
		{ .fd = actor[who].reply[0], .events = POLLIN },
		{ .fd = actor[who].pidfd, .events = POLLIN },
	};
	long ret;

	if (who == SELF)
		return op(a, b);
	send_call(who, op, a, b);
	ASSERT_GT(poll(pfds, 2, REPLY_MS), 0) TH_LOG("actor %d does not answer", who);
	ASSERT_TRUE(pfds[0].revents & POLLIN) TH_LOG("actor %d died", who);
	ASSERT_EQ(read(actor[who].reply[0], &ret, sizeof(ret)), (ssize_t)sizeof(ret));
	return ret;
}

static void spawn(int parent, int child)
{
	actor[child].pid = run(parent, op_fork, child, 0);
	ASSERT_GT(actor[child].pid, 0);
	actor[child].pidfd = syscall(__NR_pidfd_open, actor[child].pid, 0);
	ASSERT_GE(actor[child].pidfd, 0);
}

/* Only once it is gone as a whole, its memory is, too. */
static void await_end(int who)
{
	struct pollfd pfd = { .fd = actor[who].pidfd, .events = POLLIN };

	EXPECT_EQ(poll(&pfd, 1, REPLY_MS), 1) TH_LOG("actor %d does not end", who);
	close(actor[who].pidfd);
	actor[who].pid = 0;
}

static void quit(int who)
{
	send_call(who, op_exit, 0, 0);
	await_end(who);
}

static void make_actors(void)
{
	int i;

	for (i = 0; i < NR_ACTORS; i++) {
		ASSERT_EQ(pipe(actor[i].cmd), 0);
		ASSERT_EQ(pipe(actor[i].reply), 0);
	}
}

static void kill_actors(void)
{
	int i;

	for (i = 0; i < NR_ACTORS; i++) {
		if (!actor[i].pid)
			continue;
		kill(actor[i].pid, SIGKILL);
		await_end(i);
	}
}

/* What is expected of writes */

#define expect_right(who)	__expect_right(who, __LINE__)
#define expect_reused(who, slack) __expect_reused(who, slack, __LINE__)
#define expect_copied(who)	__expect_copied(who, 0, r.nr, __LINE__)

static void __expect_right(int who, int line)
{
	EXPECT_EQ(run(who, op_wrong, 0, r.nr), 0)
		TH_LOG("line %d: actor %d sees wrong data", line, who);
}

/*
 * Write everything. The slack is for faults at the borders of VMAs. Small pages
 * can be copied as long as they are in the LRU cache of another CPU.
 */
static void __expect_reused(int who, long slack, int line)
{
	run(who, op_write, 0, r.nr);
	if (patched) {
		EXPECT_EQ(w->large, 0)
			TH_LOG("line %d: actor %d copied %ld pages", line, who, w->large);
		EXPECT_LE(w->faults, w->windows + w->clean + slack)
			TH_LOG("line %d: actor %d took %ld faults", line, who, w->faults);
	}
	__expect_right(who, line);
}

/* Somebody else still maps the pages. */
static void __expect_copied(int who, size_t first, size_t nr, int line)
{
	run(who, op_write, first, nr);
	EXPECT_EQ(w->moved, (long)nr)
		TH_LOG("line %d: actor %d copied %ld of %zu pages", line, who, w->moved, nr);
	__expect_right(who, line);
}

/* SELF and a child had the memory in common, and the child is gone. */
static void fork_and_exit(void)
{
	spawn(SELF, B);
	quit(B);
}

static sigjmp_buf probe_env;

static void probe_handler(int sig)
{
	siglongjmp(probe_env, sig);
}

/* Return: the signal that an access to the page raises, or 0. */
static long op_probe(long i, long write)
{
	struct sigaction sa = { .sa_handler = probe_handler }, old[2];
	uint64_t *p = (uint64_t *)at[i];
	int sig;

	sigaction(SIGSEGV, &sa, &old[0]);
	sigaction(SIGBUS, &sa, &old[1]);
	sig = sigsetjmp(probe_env, 1);
	if (!sig) {
		if (write)
			__atomic_store_n(p, shadow[i], __ATOMIC_RELAXED);
		else
			FORCE_READ(*p);
	}
	sigaction(SIGSEGV, &old[0], NULL);
	sigaction(SIGBUS, &old[1], NULL);
	return sig;
}

/* Fixture: anonymous folios, in several sizes */

static const size_t mthp_nr[] = { 4, 16 };

/* Folios of this many pages, below the size of a PMD, or none. */
static bool enable_mthp(size_t nr)
{
	bool found = !nr;
	char path[96];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(mthp_nr); i++) {
		snprintf(path, sizeof(path), THP "hugepages-%zukB/enabled",
			 mthp_nr[i] * psize() >> 10);
		found |= put(path, mthp_nr[i] == nr ? "madvise" : "never") && mthp_nr[i] == nr;
	}
	return found;
}

/* Return: NULL, or why it cannot be tested. */
static const char *prepare(size_t nr, bool ptes)
{
	size_t pmd_size = read_pmd_pagesize();
	size_t pmd_nr = pmd_size / psize();

	if (geteuid())
		return "needs root";
	if (kpageflags_fd < 0 || kpagecount_fd < 0)
		return "needs /proc/kpageflags and /proc/kpagecount";
	if (!pmd_nr)
		return "no THPs";
	if (!nr && pmd_nr > MAX_PAGES)
		return "a PMD maps too much here";
	if (!enable_mthp(nr))
		return "no folios of this size";

	r.folio_nr = nr ?: pmd_nr;
	r.nr = nr ? NR_FOLIOS * nr : pmd_nr;
	r.ptes = ptes;
	r.area_size = 6 * pmd_size;
	r.area = mmap(NULL, r.area_size, PROT_NONE, MAP_PRIVATE | MAP_ANON, -1, 0);
	if (r.area == MAP_FAILED)
		return "no address space";
	r.mem = (char *)roundup((uintptr_t)r.area + psize(), pmd_size);
	r.other = r.mem + 2 * pmd_size;
	place();

	w = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANON, -1, 0);
	if (w == MAP_FAILED)
		return "no memory";
	make_actors();
	return NULL;
}

FIXTURE(cow) {};

FIXTURE_VARIANT(cow)
{
	size_t nr;	/* pages of a folio; 0: as many as a PMD maps */
	bool ptes;
};

FIXTURE_VARIANT_ADD(cow, mthp_4)
{
	.nr = 4,
};

FIXTURE_VARIANT_ADD(cow, mthp_16)
{
	.nr = 16,
};

FIXTURE_VARIANT_ADD(cow, thp_ptes)
{
	.ptes = true,
};

FIXTURE_VARIANT_ADD(cow, thp_pmd)
{
};

FIXTURE_SETUP(cow)
{
	const char *why;

	set_metadata(_metadata);
	why = prepare(variant->nr, variant->ptes);
	if (why)
		SKIP(return, "%s", why);
	if (op_map(0, 0))
		SKIP(return, "no memory in folios of this size");
}

FIXTURE_TEARDOWN(cow)
{
	kill_actors();
}

/* Families */

TEST_F(cow, fork_child_exits)
{
	spawn(SELF, B);
	expect_right(B);
	quit(B);
	expect_reused(SELF, 0);
}

TEST_F(cow, fork_child_unmaps)
{
	spawn(SELF, B);
	run(B, op_unmap, 0, 0);
	expect_reused(SELF, 0);
}

/* Whoever writes second is the last to map the folio. */
TEST_F(cow, fork_both_write)
{
	spawn(SELF, B);
	expect_copied(SELF);
	expect_right(B);
	expect_reused(B, 0);
	expect_right(SELF);

	ASSERT_EQ(op_map(0, 0), 0);
	spawn(SELF, C);
	expect_copied(C);
	expect_right(SELF);
	expect_reused(SELF, 0);
	expect_right(C);
}

TEST_F(cow, fork_parent_exits)
{
	spawn(SELF, A);
	if (run(A, op_map, 0, 0))
		SKIP(return, "no memory in folios of this size");
	spawn(A, B);
	quit(A);
	expect_right(B);
	expect_reused(B, 0);
}

/* A -> B -> C, and B dies first; then A or C is the only one. */
static void generations(int second, int survivor)
{
	ASSERT_EQ(run(A, op_map, 0, 0), 0);
	spawn(A, B);
	spawn(B, C);
	quit(B);
	expect_right(C);
	quit(second);
	expect_right(survivor);
	expect_reused(survivor, 0);
	quit(survivor);
}

TEST_F(cow, three_generations)
{
	spawn(SELF, A);
	generations(A, C);
	spawn(SELF, A);
	generations(C, A);
}

/* The folio stays shared while any two MMs map it. */
TEST_F(cow, three_generations_two_live)
{
	spawn(SELF, A);
	if (run(A, op_map, 0, 0))
		SKIP(return, "no memory in folios of this size");
	spawn(A, B);
	spawn(B, C);
	quit(A);
	expect_copied(B);
	expect_right(C);
	expect_reused(C, 0);
	expect_right(B);
}

TEST_F(cow, zygote_one_survives)
{
	int i, survivor = NR_ACTORS / 2;

	spawn(SELF, A);
	if (run(A, op_map, 0, 0))
		SKIP(return, "no memory in folios of this size");
	for (i = B; i < NR_ACTORS; i++)
		spawn(A, i);
	quit(A);
	for (i = B; i < NR_ACTORS; i++)
		if (i != survivor)
			quit(i);
	expect_right(survivor);
	expect_reused(survivor, 0);
}

/* A new MM is likely to have the address of the one that has just gone. */
TEST_F(cow, mm_reborn)
{
	spawn(SELF, A);
	if (run(A, op_map, 0, 0))
		SKIP(return, "no memory in folios of this size");
	spawn(A, B);
	quit(A);
	spawn(B, C);
	expect_copied(C);
	expect_right(B);
	quit(C);
	expect_reused(B, 0);
}

/*
 * As many mappings as the folio has pages, each with its reference, but two MMs
 * have the second quarter in common:
 *
 *	|  0  |  1  |  2  |  3  |
 *	| one | both| two |     |
 */
static void overlap(int one, int two)
{
	size_t i, quarter = r.folio_nr / 4;

	for (i = 0; i < r.nr; i += r.folio_nr) {
		run(one, op_drop, i + 2 * quarter, 2 * quarter);
		run(two, op_drop, i, quarter);
		run(two, op_drop, i + 3 * quarter, quarter);
	}
	for (i = 0; i < r.nr; i += r.folio_nr) {
		run(one, op_write, i, quarter);
		__expect_copied(one, i + quarter, quarter, __LINE__);
		expect_right(two);
		run(two, op_write, i + quarter, 2 * quarter);
		expect_right(one);
		expect_right(two);
	}
}

TEST_F(cow, partial_overlap)
{
	spawn(SELF, B);
	overlap(SELF, B);
	quit(B);
	ASSERT_EQ(op_map(0, 0), 0);
	spawn(SELF, B);
	overlap(B, SELF);
}

TEST_F(cow, partial_overlap_parent_exits)
{
	spawn(SELF, A);
	if (run(A, op_map, 0, 0))
		SKIP(return, "no memory in folios of this size");
	spawn(A, B);
	spawn(B, C);
	quit(A);
	overlap(B, C);
}

static long op_drop_alternate(long first, long nr)
{
	long i, ret = 0;

	for (i = first; i < first + nr; i += 2)
		ret |= op_drop(i, 1);
	return ret;
}

/* The ns that madvise() takes to find that folios are shared: the least of some */
static long op_cold_ns(long unused_a, long unused_b)
{
	struct timespec before, after;
	long ns, least = LONG_MAX;
	int i;

	for (i = 0; i < 5; i++) {
		clock_gettime(CLOCK_MONOTONIC, &before);
		if (madvise(r.mem, r.nr * psize(), MADV_COLD))
			return -1;
		clock_gettime(CLOCK_MONOTONIC, &after);
		ns = (after.tv_sec - before.tv_sec) * 1000000000L +
		     after.tv_nsec - before.tv_nsec;
		least = MIN(least, ns);
	}
	return least;
}

/*
 * Once the parent has gone, the mapcounts do not tell that a folio is shared: two
 * children map every other page. To look into the page table again for each page
 * takes a hundred times as long.
 *
 *	| B |   | B |   |      | B |   |   |   |
 *	|   | C |   | C |      |   | C |   |   |
 */
static void walk_alternate(size_t nr)
{
	long known, unknown;
	size_t i;

	spawn(SELF, B);
	spawn(SELF, C);
	for (i = 0; i < r.nr; i += r.folio_nr) {
		ASSERT_EQ(run(B, op_drop_alternate, i + 1, r.folio_nr), 0);
		ASSERT_EQ(run(C, op_drop_alternate, i, r.folio_nr), 0);
		if (nr < r.folio_nr) {
			ASSERT_EQ(run(B, op_drop, i + nr, r.folio_nr - nr), 0);
			ASSERT_EQ(run(C, op_drop, i + nr, r.folio_nr - nr), 0);
		}
	}
	known = run(B, op_cold_ns, 0, 0);
	ASSERT_GT(known, 0);
	ASSERT_EQ(op_drop(0, r.nr), 0);
	unknown = run(B, op_cold_ns, 0, 0);
	ASSERT_GT(unknown, 0);
	EXPECT_LT(unknown, 10 * known);
	quit(C);
	quit(B);
}

TEST_F(cow, walk_alternate)
{
	walk_alternate(r.folio_nr);
	ASSERT_EQ(op_map(0, 0), 0);
	walk_alternate(r.folio_nr / 2);
}

/*
 * Another program, in memory of its own: it says that it runs by closing one
 * pipe, and does so until the other one is closed.
 */
static int exec_hold(void *arg)
{
	int *fds = arg;
	char ready[12], hold[12];

	close(fds[3]);
	snprintf(ready, sizeof(ready), "%d", fds[1]);
	snprintf(hold, sizeof(hold), "%d", fds[2]);
	execl("/proc/self/exe", "folio_cow", "--hold", ready, hold, NULL);
	_exit(1);
}

static int hold(char **argv)
{
	char c;

	alarm(ACTOR_SECONDS);
	close(atoi(argv[2]));
	return read(atoi(argv[3]), &c, 1);
}

static int clone_write(void *arg)
{
	size_t *range = arg;

	op_write(range[0], range[1]);
	return 0;
}

/* Not of anonymous folios */
static void *buffer(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANON, -1, 0);

	ASSERT_TRUE(p != MAP_FAILED);
	return p;
}

/* In another process that has the same memory */
static pid_t clone_vm(int (*fn)(void *), void *arg, int flags)
{
	char *stack = buffer(STACK_SIZE);
	pid_t pid = clone(fn, stack + STACK_SIZE, CLONE_VM | SIGCHLD | flags, arg);

	ASSERT_GT(pid, 0);
	return pid;
}

static void execs(bool vfork)
{
	int fds[4], status;
	char c;
	pid_t pid;

	ASSERT_EQ(pipe(fds), 0);	/* ready */
	ASSERT_EQ(pipe(fds + 2), 0);	/* hold */
	if (vfork)
		pid = clone_vm(exec_hold, fds, CLONE_VFORK);
	else
		pid = fork();
	if (!pid)
		exec_hold(fds);
	close(fds[1]);
	ASSERT_EQ(read(fds[0], &c, 1), 0);
	ASSERT_EQ(waitpid(pid, &status, WNOHANG), 0);
	expect_reused(SELF, 0);
	close(fds[3]);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	close(fds[0]);
	close(fds[2]);
}

TEST_F(cow, fork_exec)
{
	execs(false);
}

TEST_F(cow, vfork_exec)
{
	fork_and_exit();
	execs(true);
}

/* Both write, in halves: same MM, so same pages. */
static void same_mm(int flags)
{
	size_t range[] = { 0, r.nr / 2 };
	int status;
	pid_t pid;

	fork_and_exit();
	pid = clone_vm(clone_write, range, flags);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	if (patched)
		EXPECT_EQ(w->moved, 0);
	expect_right(SELF);
	op_write(r.nr / 2, r.nr / 2);
	if (patched)
		EXPECT_EQ(w->moved, 0);
	expect_right(SELF);

	/* While B maps it, both copy, and B does not see what they write. */
	spawn(SELF, B);
	range[1] = r.nr;
	pid = clone_vm(clone_write, range, flags);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(w->moved, (long)r.nr);
	expect_right(SELF);
	expect_right(B);
	quit(B);
	op_write(0, r.nr);
	EXPECT_EQ(w->moved, 0);
	expect_right(SELF);
}

TEST_F(cow, vfork)
{
	same_mm(CLONE_VFORK);
}

TEST_F(cow, clone_vm)
{
	same_mm(0);
}

static struct {
	pthread_t thread;
	bool stop;
	uint64_t rounds;
} writer;

static uint64_t *counter(size_t i)
{
	return (uint64_t *)at[i] + 1;
}

static void *count_up(void *unused)
{
	size_t i;

	do {
		writer.rounds++;
		for (i = 0; i < r.nr; i++)
			__atomic_store_n(counter(i), writer.rounds, __ATOMIC_RELAXED);
	} while (!__atomic_load_n(&writer.stop, __ATOMIC_ACQUIRE));
	return NULL;
}

/* Nothing that the parent writes after the fork arrives here. */
static long op_unstable(long us, long unused)
{
	static uint64_t seen[MAX_PAGES];
	long unstable = 0;
	size_t i;

	for (i = 0; i < r.nr; i++)
		seen[i] = FORCE_READ(*counter(i));
	usleep(us);
	for (i = 0; i < r.nr; i++)
		unstable += seen[i] != FORCE_READ(*counter(i));
	return unstable;
}

static void fork_while_writing(bool stay)
{
	int i;

	ASSERT_EQ(op_map(0, 0), 0);
	writer.stop = false;
	writer.rounds = 0;
	ASSERT_EQ(pthread_create(&writer.thread, NULL, count_up, NULL), 0);
	for (i = 0; i < 4; i++) {
		spawn(SELF, B);
		if (stay)
			EXPECT_EQ(run(B, op_unstable, 1000, 0), 0);
		quit(B);
	}
	__atomic_store_n(&writer.stop, true, __ATOMIC_RELEASE);
	pthread_join(writer.thread, NULL);
	for (i = 0; i < (int)r.nr; i++)
		EXPECT_EQ(*counter(i), writer.rounds);
	expect_right(SELF);
}

TEST_F(cow, fork_while_thread_writes)
{
	int i;

	for (i = 0; i < 4; i++)
		fork_while_writing(i & 1);
}

/* A part that children do not get, across the border of two folios if any */
static void kept_part(int advice, size_t first, size_t nr)
{
	ASSERT_EQ(madvise(at[first], nr * psize(), advice), 0);

	/* The child maps less than the folio; then no other MM does. */
	fork_and_exit();
	expect_reused(SELF, 8);		/* windows end at the borders of VMAs */

	spawn(SELF, C);
	op_write(first, nr);
	EXPECT_EQ(w->moved, 0);
	EXPECT_EQ(w->faults, 0);
	__expect_copied(SELF, 0, first, __LINE__);
	__expect_copied(SELF, first + nr, r.nr - first - nr, __LINE__);
	EXPECT_EQ(run(C, op_wrong, 0, first), 0);
	EXPECT_EQ(run(C, op_wrong, first + nr, r.nr - first - nr), 0);
}

TEST_F(cow, madv_dontfork)
{
	size_t first = r.folio_nr / 2, nr = r.folio_nr < r.nr ? r.folio_nr : r.nr / 4;

	kept_part(MADV_DONTFORK, first, nr);
	EXPECT_EQ(run(C, op_probe, first, false), SIGSEGV);
}

static long op_nonzero(long first, long nr)
{
	long i, count = 0;

	for (i = first; i < first + nr; i++)
		count += !!*(uint64_t *)at[i];
	return count;
}

TEST_F(cow, madv_wipeonfork)
{
	size_t first = r.folio_nr / 2, nr = r.folio_nr < r.nr ? r.folio_nr : r.nr / 4;

	kept_part(MADV_WIPEONFORK, first, nr);
	EXPECT_EQ(run(C, op_nonzero, first, nr), 0);
	run(C, op_write, first, nr);
	expect_right(SELF);
	expect_right(C);
}

/* One MM with several VMAs, several page tables */

struct smaps {
	long rss;
	long pss;
	long priv;
	long shared;
};

static const struct {
	const char *key;
	size_t offset;
} smaps_keys[] = {
	{ "Rss:", offsetof(struct smaps, rss) },
	{ "Pss:", offsetof(struct smaps, pss) },
	{ "Private_Clean:", offsetof(struct smaps, priv) },
	{ "Private_Dirty:", offsetof(struct smaps, priv) },
	{ "Shared_Clean:", offsetof(struct smaps, shared) },
	{ "Shared_Dirty:", offsetof(struct smaps, shared) },
};

/* In KiB, of all that lies in our part of the address space */
static struct smaps read_smaps(void)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	unsigned long start, end;
	struct smaps sum = {};
	char line[256], key[32];
	bool ours = false;
	long kib;
	size_t i;

	ASSERT_FALSE(!f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			ours = start >= (uintptr_t)r.area &&
			       end <= (uintptr_t)r.area + r.area_size;
		if (!ours || sscanf(line, "%31s %ld kB", key, &kib) != 2)
			continue;
		for (i = 0; i < ARRAY_SIZE(smaps_keys); i++)
			if (!strcmp(key, smaps_keys[i].key))
				*(long *)((char *)&sum + smaps_keys[i].offset) += kib;
	}
	fclose(f);
	return sum;
}

#define expect_sharers(nr)	__expect_sharers(nr, false, __LINE__)

/*
 * All pages are mapped this often, each time by another process. If @part, these
 * are not all pages of their folio: then the kernel may take mappings of the same
 * page for mappings of different pages, up to the size of the folio.
 */
static void __expect_sharers(long nr, bool part, int line)
{
	long size = r.nr * psize() >> 10;
	long max_pss = part && patched ? size : size / nr;
	struct smaps sum = read_smaps();

	EXPECT_EQ(nr_mapped_not(nr), 0)
		TH_LOG("line %d: kpagecount", line);
	EXPECT_EQ(sum.rss, size)
		TH_LOG("line %d: Rss", line);
	EXPECT_EQ(sum.priv + sum.shared, sum.rss)
		TH_LOG("line %d: Private + Shared", line);
	EXPECT_TRUE(sum.pss >= size / nr - 4 && sum.pss <= max_pss + 4)
		TH_LOG("line %d: Pss %ld of %ld kB", line, sum.pss, size);
	if (nr > 1) {
		EXPECT_EQ(sum.priv, 0)
			TH_LOG("line %d: Private", line);
		EXPECT_EQ(count_ent(PM_MMAP_EXCLUSIVE), 0)
			TH_LOG("line %d: exclusive", line);
	} else if (patched) {
		EXPECT_EQ(sum.shared, 0)
			TH_LOG("line %d: Shared", line);
		EXPECT_EQ(count_ent(PM_MMAP_EXCLUSIVE), r.nr)
			TH_LOG("line %d: exclusive", line);
	}
}

/*
 *	|-----------|----|-----------|
 *	|    R/W    | R  |    R/W    |	three VMAs, one folio, one MM
 *	|-----------|----|-----------|
 */
TEST_F(cow, mprotect_one_page)
{
	size_t k = r.folio_nr / 2;

	ASSERT_EQ(mprotect(at[k], psize(), PROT_READ), 0);
	expect_sharers(1);
	spawn(SELF, B);
	expect_sharers(2);
	__expect_copied(B, 0, k, __LINE__);
	quit(B);
	expect_sharers(1);

	/* B copied, so its part of the folio is gone; this one is untouched. */
	spawn(SELF, B);
	quit(B);
	op_write(0, k);
	if (patched)
		EXPECT_EQ(w->moved, 0);
	EXPECT_EQ(op_probe(k, true), SIGSEGV);
	op_write(k + 1, r.nr - k - 1);
	if (patched)
		EXPECT_EQ(w->moved, 0);
	expect_right(SELF);
	ASSERT_EQ(mprotect(at[k], psize(), PROT_READ | PROT_WRITE), 0);
	expect_reused(SELF, 0);
}

/* Somewhere else, in another page table */
static void move_middle(size_t *first, size_t *nr)
{
	size_t i;

	*nr = MIN(MOVED_KIB << 10, r.nr * psize() / 4) / psize();
	*first = (r.nr - *nr) / 2;
	ASSERT_TRUE(mremap(at[*first], *nr * psize(), *nr * psize(),
			   MREMAP_MAYMOVE | MREMAP_FIXED, r.other) == r.other);
	for (i = 0; i < *nr; i++)
		at[*first + i] = r.other + i * psize();
}

TEST_F(cow, mremap_middle)
{
	size_t first, nr;

	move_middle(&first, &nr);
	expect_sharers(1);
	fork_and_exit();
	expect_sharers(1);
	expect_reused(SELF, 0);

	/* Between fork and exit */
	ASSERT_EQ(op_map(0, 0), 0);
	spawn(SELF, B);
	move_middle(&first, &nr);
	expect_sharers(2);
	__expect_copied(SELF, first, 1, __LINE__);
	expect_right(B);
	quit(B);
	expect_reused(SELF, 0);
}

/*
 * A survivor may have to copy pages of a folio that two page tables map, until one
 * of them has all remaining mappings.
 */
TEST_F(cow, mremap_middle_survivor)
{
	size_t first, nr;

	move_middle(&first, &nr);
	spawn(SELF, B);
	ASSERT_EQ(op_unmap(0, 0), 0);
	run(B, op_write, 0, r.nr);
	if (patched)
		EXPECT_LE(w->moved, (long)r.nr - 2 * (long)nr);
	expect_right(B);
	run(B, op_write, 0, r.nr);
	EXPECT_EQ(w->moved, 0);
	expect_right(B);
}

/* Who else holds pages: pins, pipes, I/O */

/* Return: pages in the buffer that differ from the shadow. */
static long buffer_differs(const char *buf, size_t first, size_t nr)
{
	long count = 0;
	size_t i;

	for (i = first; i < first + nr; i++, buf += psize())
		count += *(uint64_t *)buf != shadow[i] ||
			 ((uint64_t *)(buf + psize()))[-1] != shadow[i];
	return count;
}

static const int pin_flags[] = {
	0,
	PIN_LONGTERM_TEST_FLAG_USE_FAST,
	PIN_LONGTERM_TEST_FLAG_USE_WRITE,
	PIN_LONGTERM_TEST_FLAG_USE_WRITE | PIN_LONGTERM_TEST_FLAG_USE_FAST,
};

static size_t pinned_first, pinned_nr;

static void pin_range(size_t first, size_t nr, int flags)
{
	struct pin_longterm_test args = {
		.addr = (uintptr_t)at[first],
		.size = nr * psize(),
		.flags = flags,
	};

	pinned_first = first;
	pinned_nr = nr;
	ASSERT_EQ(ioctl(gup_fd, PIN_LONGTERM_TEST_START, &args), 0);
}

/* All of it, by an actor */
static long op_pin(long flags, long unused)
{
	pin_range(0, r.nr, flags);
	return 0;
}

static long op_unpin(long unused_a, long unused_b)
{
	return ioctl(gup_fd, PIN_LONGTERM_TEST_STOP);
}

/* Pages that a device would see otherwise than this process does. */
static long op_pin_differs(long unused_a, long unused_b)
{
	char *buf = buffer(pinned_nr * psize());
	__u64 addr = (uintptr_t)buf;
	long differs = -1;

	if (!ioctl(gup_fd, PIN_LONGTERM_TEST_READ, &addr))
		differs = buffer_differs(buf, pinned_first, pinned_nr);
	munmap(buf, pinned_nr * psize());
	return differs;
}

/* The pinned pages stay where they are, and the pin stays with the process. */
static void expect_pinned(int who)
{
	run(who, op_write, pinned_first, pinned_nr);
	EXPECT_EQ(w->moved, 0);
	EXPECT_EQ(run(who, op_pin_differs, 0, 0), 0);
	expect_right(who);
}

/* Each in turn, with fresh folios and all kinds of pins */
static void pin_then_fork(int flags)
{
	pin_range(0, r.nr, flags);
	spawn(SELF, B);
	expect_pinned(SELF);
	expect_right(B);
	run(B, op_write, 0, r.nr);
	expect_right(B);
	EXPECT_EQ(op_pin_differs(0, 0), 0);
}

static void fork_then_pin(int flags)
{
	spawn(SELF, B);
	pin_range(0, r.nr, flags);
	expect_pinned(SELF);
	expect_right(B);
}

static void fork_exit_pin(int flags)
{
	static struct look before, after;

	fork_and_exit();
	look(&before);
	pin_range(0, r.nr, flags);
	look(&after);
	if (patched)
		EXPECT_EQ(nr_differ(&before, &after, 0, r.nr, 0), 0);
	expect_pinned(SELF);
}

/* Whoever writes beside the pinned page: it neither moves nor is it shared. */
static void pin_one_page(int flags)
{
	size_t k = r.folio_nr / 2;

	pin_range(k, 1, flags);
	fork_and_exit();
	op_write(k - 1, 1);
	expect_pinned(SELF);
	op_write(0, r.nr);
	expect_pinned(SELF);
	spawn(SELF, B);
	expect_pinned(SELF);
	op_write(0, r.nr);
	expect_pinned(SELF);
	run(B, op_write, k - 1, 3);
	EXPECT_EQ(op_pin_differs(0, 0), 0);
	expect_right(B);
}

static void child_pins(int flags)
{
	spawn(SELF, B);
	ASSERT_EQ(run(B, op_pin, flags, 0), 0);
	op_write(0, r.nr);
	expect_right(SELF);
	expect_right(B);
	EXPECT_EQ(run(B, op_pin_differs, 0, 0), 0);
	ASSERT_EQ(op_unmap(0, 0), 0);
	run(B, op_write, 0, r.nr);
	EXPECT_EQ(w->moved, 0);
	EXPECT_EQ(run(B, op_pin_differs, 0, 0), 0);
	run(B, op_unpin, 0, 0);
}

/* Return: whether there are pins to test with. */
static bool with_all_pins(void (*test)(int flags))
{
	size_t i;

	if (gup_fd < 0)
		return false;
	for (i = 0; i < ARRAY_SIZE(pin_flags); i++) {
		ASSERT_EQ(op_map(0, 0), 0);
		test(pin_flags[i]);
		op_unpin(0, 0);
		if (actor[B].pid)
			quit(B);
	}
	return true;
}

TEST_F(cow, pin_then_fork)
{
	if (!with_all_pins(pin_then_fork))
		SKIP(return, "no gup_test");
}

TEST_F(cow, fork_then_pin)
{
	if (!with_all_pins(fork_then_pin))
		SKIP(return, "no gup_test");
}

TEST_F(cow, fork_exit_pin)
{
	if (!with_all_pins(fork_exit_pin))
		SKIP(return, "no gup_test");
}

TEST_F(cow, pin_one_page)
{
	if (!with_all_pins(pin_one_page))
		SKIP(return, "no gup_test");
}

TEST_F(cow, child_pins)
{
	if (!with_all_pins(child_pins))
		SKIP(return, "no gup_test");
}

/* After the pin is gone, nothing is left of it. */
TEST_F(cow, unpinned)
{
	if (gup_fd < 0)
		SKIP(return, "no gup_test");
	fork_and_exit();
	pin_range(0, r.folio_nr, 0);
	op_unpin(0, 0);
	fork_and_exit();
	expect_reused(SELF, 0);
}

static int pipe_fds[2];

#define NR_SPLICED	4UL

static long op_splice(long first, long nr)
{
	struct iovec iov = { at[first], nr * psize() };

	return vmsplice(pipe_fds[1], &iov, 1, 0);
}

static void open_pipe(void)
{
	ASSERT_EQ(pipe(pipe_fds), 0);
	ASSERT_GE(fcntl(pipe_fds[1], F_SETPIPE_SZ, 2 * NR_SPLICED * psize()), 0);
}

static void expect_spliced(const uint64_t *old, size_t nr)
{
	char *buf = buffer(nr * psize());
	size_t i;

	ASSERT_EQ(read(pipe_fds[0], buf, nr * psize()), (ssize_t)(nr * psize()));
	for (i = 0; i < nr; i++) {
		EXPECT_EQ(*(uint64_t *)(buf + i * psize()), old[i]);
		EXPECT_EQ(((uint64_t *)(buf + (i + 1) * psize()))[-1], old[i]);
	}
	munmap(buf, nr * psize());
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

/*
 * The child lets go of the pages, a pipe still holds them: the parent must not
 * write where the child could read it. (CVE-2020-29374)
 *
 *	SELF	fork		     write k - 1, write all
 *	B	     splice k, leave			    read the pipe
 */
static void child_splices(op_fn leave)
{
	size_t k = r.folio_nr / 2, nr = MIN(NR_SPLICED, r.folio_nr - r.folio_nr / 2);
	uint64_t old[NR_SPLICED];

	memcpy(old, shadow + k, nr * sizeof(*old));
	open_pipe();
	spawn(SELF, B);
	ASSERT_EQ(run(B, op_splice, k, nr), (long)(nr * psize()));
	if (leave)
		run(B, leave, 0, 0);
	else
		quit(B);
	op_write(k - 1, 1);	/* none of the batch is in the pipe */
	op_write(0, r.nr);
	expect_right(SELF);
	expect_spliced(old, nr);
}

TEST_F(cow, vmsplice_child_exits)
{
	child_splices(NULL);
}

TEST_F(cow, vmsplice_child_unmaps)
{
	child_splices(op_unmap);
}

/* The other direction: what the child writes must not appear in the pipe. */
static void parent_splices(bool before_fork)
{
	size_t k = r.folio_nr / 2, nr = MIN(NR_SPLICED, r.folio_nr - r.folio_nr / 2);
	uint64_t old[NR_SPLICED];

	memcpy(old, shadow + k, nr * sizeof(*old));
	open_pipe();
	if (before_fork)
		op_splice(k, nr);
	spawn(SELF, B);
	if (!before_fork)
		op_splice(k, nr);
	ASSERT_EQ(op_unmap(0, 0), 0);
	run(B, op_write, k - 1, 1);
	run(B, op_write, 0, r.nr);
	expect_right(B);
	expect_spliced(old, nr);
}

TEST_F(cow, vmsplice_parent_before_fork)
{
	parent_splices(true);
}

TEST_F(cow, vmsplice_parent_after_fork)
{
	parent_splices(false);
}

/* Spliced while it was shared, so it is not written in place, ... */
TEST_F(cow, vmsplice_then_child_exits)
{
	size_t k = r.folio_nr / 2, nr = MIN(NR_SPLICED, r.folio_nr - r.folio_nr / 2);
	uint64_t old[NR_SPLICED];

	memcpy(old, shadow + k, nr * sizeof(*old));
	open_pipe();
	spawn(SELF, B);
	op_splice(k, nr);
	quit(B);
	op_write(k - 1, 1);
	op_write(k, nr);
	EXPECT_EQ(w->moved, (long)nr);
	expect_right(SELF);
	expect_spliced(old, nr);

	/*
	 * ... but what was not copied is ours once the pipe is empty. A page that
	 * is alone is copied to get rid of its folio.
	 */
	if (k - 1 > 1)
		expect_reused(SELF, 0);
}

/* The memory of another process, by its address there */
static long op_peek(long pid, long addr)
{
	uint64_t value = 0;
	struct iovec local = { &value, sizeof(value) };
	struct iovec remote = { (void *)addr, sizeof(value) };

	if (process_vm_readv(pid, &local, 1, &remote, 1, 0) < 0)
		return -errno;
	return value & LONG_MAX;
}

/* Writes what is in the first page there, byte by byte the same but in SELF */
static long op_poke(long pid, long addr)
{
	uint64_t value = ~0ULL;
	struct iovec local = { &value, sizeof(value) };
	struct iovec remote = { (void *)addr, sizeof(value) };

	return process_vm_writev(pid, &local, 1, &remote, 1, 0);
}

TEST_F(cow, process_vm)
{
	size_t k = r.folio_nr / 2;
	long seen;

	spawn(SELF, B);
	seen = run(B, op_peek, getpid(), (long)at[k]);
	if (seen < 0)
		SKIP(return, "no process_vm_readv()");
	EXPECT_EQ(seen, (long)(shadow[k] & LONG_MAX));
	op_write(k, 1);
	expect_right(B);
	EXPECT_EQ(run(B, op_peek, getpid(), (long)at[k]), (long)(shadow[k] & LONG_MAX));

	/* B writes to a page that both map, through SELF's page table. */
	ASSERT_EQ(run(B, op_poke, getpid(), (long)at[k + 1]), (long)sizeof(uint64_t));
	EXPECT_EQ(*(uint64_t *)at[k + 1], ~0ULL);
	*(uint64_t *)at[k + 1] = shadow[k + 1];
	expect_right(SELF);
	expect_right(B);
	quit(B);
	expect_reused(SELF, 0);
}

static int open_file(int flags)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/folio_cow.%d", dir, getpid());
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | flags, 0600);
	if (fd >= 0)
		unlink(path);
	return fd;
}

/* A device writes into the memory: like a write of the process, only as such. */
TEST_F(cow, o_direct_read)
{
	size_t size = r.nr * psize();
	char *zeroes = buffer(size);
	int fd = open_file(O_DIRECT);

	if (fd < 0)
		SKIP(return, "no O_DIRECT here, try FOLIO_COW_DIR");
	ASSERT_EQ(pwrite(fd, zeroes, size, 0), (ssize_t)size);

	spawn(SELF, B);
	ASSERT_EQ(pread(fd, r.mem, size, 0), (ssize_t)size);
	memset(shadow, 0, sizeof(shadow));
	expect_right(SELF);
	expect_right(B);
	op_write(0, r.nr);
	EXPECT_EQ(w->moved, 0);
	ASSERT_EQ(pwrite(fd, r.mem, size, 0), (ssize_t)size);
	ASSERT_EQ(pread(fd, zeroes, size, 0), (ssize_t)size);
	EXPECT_EQ(buffer_differs(zeroes, 0, r.nr), 0);
	expect_right(B);
	close(fd);
}

TEST_F(cow, o_direct_read_after_exit)
{
	static struct look before, after;
	size_t size = r.nr * psize();
	char *zeroes = buffer(size);
	int fd = open_file(O_DIRECT);

	if (fd < 0)
		SKIP(return, "no O_DIRECT here, try FOLIO_COW_DIR");
	ASSERT_EQ(pwrite(fd, zeroes, size, 0), (ssize_t)size);
	fork_and_exit();
	look(&before);
	ASSERT_EQ(pread(fd, r.mem, size, 0), (ssize_t)size);
	memset(shadow, 0, sizeof(shadow));
	expect_right(SELF);
	look(&after);
	if (patched)
		EXPECT_EQ(nr_differ(&before, &after, 0, r.nr, 0), 0);
	op_write(0, r.nr);
	EXPECT_EQ(w->moved, 0);
	close(fd);
}

/* io_uring, by its system calls */

struct ring {
	int fd;
	struct io_uring_params p;
	char *rings;
	struct io_uring_sqe *sqes;
};

static bool ring_open(struct ring *ring, unsigned int entries)
{
	size_t size;

	memset(ring, 0, sizeof(*ring));
	ring->fd = syscall(__NR_io_uring_setup, entries, &ring->p);
	if (ring->fd < 0 || !(ring->p.features & IORING_FEAT_SINGLE_MMAP))
		return false;
	size = MAX(ring->p.sq_off.array + ring->p.sq_entries * sizeof(__u32),
		   ring->p.cq_off.cqes + ring->p.cq_entries * sizeof(struct io_uring_cqe));
	ring->rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			   IORING_OFF_SQ_RING);
	ring->sqes = mmap(NULL, entries * sizeof(*ring->sqes), PROT_READ | PROT_WRITE,
			  MAP_SHARED, ring->fd, IORING_OFF_SQES);
	return ring->rings != MAP_FAILED && ring->sqes != MAP_FAILED;
}

static __u32 *ring_u32(struct ring *ring, __u32 offset)
{
	return (__u32 *)(ring->rings + offset);
}

/* One transfer between the fixed buffer and the file. Return: its result. */
static long ring_transfer(struct ring *ring, int opcode, int fd)
{
	__u32 tail = *ring_u32(ring, ring->p.sq_off.tail);
	__u32 slot = tail & *ring_u32(ring, ring->p.sq_off.ring_mask);
	__u32 *head = ring_u32(ring, ring->p.cq_off.head);
	struct io_uring_cqe *cqes = (void *)(ring->rings + ring->p.cq_off.cqes);

	ring->sqes[slot] = (struct io_uring_sqe) {
		.opcode = opcode,
		.fd = fd,
		.addr = (uintptr_t)r.mem,
		.len = r.nr * psize(),
	};
	ring_u32(ring, ring->p.sq_off.array)[slot] = slot;
	__atomic_store_n(ring_u32(ring, ring->p.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -errno;
	slot = *head & *ring_u32(ring, ring->p.cq_off.ring_mask);
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return cqes[slot].res;
}

/* What the ring reads and writes is what the process has, B has neither. */
static void fixed_buffer(bool fork_first)
{
	struct iovec iov = { r.mem, r.nr * psize() };
	int fd = memfd_create("folio_cow", 0);
	char *buf = buffer(iov.iov_len);
	struct ring ring;

	if (!ring_open(&ring, 4))
		SKIP(return, "no io_uring");
	if (fork_first)
		spawn(SELF, B);
	if (syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &iov, 1))
		SKIP(return, "no fixed buffers");
	if (!fork_first)
		spawn(SELF, B);
	op_write(0, r.nr);
	EXPECT_EQ(w->moved, 0);
	EXPECT_EQ(ring_transfer(&ring, IORING_OP_WRITE_FIXED, fd), (long)iov.iov_len);
	ASSERT_EQ(pread(fd, buf, iov.iov_len, 0), (ssize_t)iov.iov_len);
	EXPECT_EQ(buffer_differs(buf, 0, r.nr), 0);

	memset(buf, 0, iov.iov_len);
	ASSERT_EQ(pwrite(fd, buf, iov.iov_len, 0), (ssize_t)iov.iov_len);
	EXPECT_EQ(ring_transfer(&ring, IORING_OP_READ_FIXED, fd), (long)iov.iov_len);
	expect_right(B);
	memset(shadow, 0, sizeof(shadow));
	expect_right(SELF);
	quit(B);
	op_write(0, r.nr);
	EXPECT_EQ(w->moved, 0);
	expect_right(SELF);
	close(ring.fd);
	close(fd);
}

TEST_F(cow, io_uring_then_fork)
{
	fixed_buffer(false);
}

TEST_F(cow, fork_then_io_uring)
{
	fixed_buffer(true);
}

/* What can happen to the memory between fork and write */

/*
 * Both ways round: the child leaves and the parent goes on, then the parent
 * leaves and the child goes on. Return: whether the event could be had.
 */
static bool between(bool (*event)(void))
{
	spawn(SELF, B);
	if (!event())
		return false;
	expect_right(B);
	quit(B);
	expect_right(SELF);
	expect_reused(SELF, 0);

	ASSERT_EQ(op_map(0, 0), 0);
	spawn(SELF, C);
	event();
	expect_right(SELF);
	ASSERT_EQ(op_unmap(0, 0), 0);
	expect_right(C);
	expect_reused(C, 0);
	return true;
}

static bool have_swap(void)
{
	char buf[512];

	return read_file("/proc/swaps", buf, sizeof(buf)) && strstr(buf, "\n/");
}

static bool page_out(size_t first, size_t nr)
{
	madvise(at[first], nr * psize(), MADV_PAGEOUT);
	return count_ent(PM_SWAP);
}

TEST_F(cow, swap_all_then_fork)
{
	if (!have_swap() || !page_out(0, r.nr))
		SKIP(return, "no swap");
	spawn(SELF, B);
	run(SELF, op_write, 0, r.nr / 2);
	expect_right(SELF);
	expect_right(B);
	run(B, op_write, 0, r.nr);
	expect_right(B);
	expect_right(SELF);
	quit(B);
	op_write(0, r.nr);
	expect_right(SELF);
}

/*
 * Small pages in a pipe leave the page table for the swap cache, and stay there,
 * as the pipe refers to them (large folios just stay). fork() shares the entries,
 * so a write must not go there, not even once all others have dropped theirs.
 */
TEST_F(cow, vmsplice_swap_then_fork)
{
	size_t k = r.folio_nr / 2, nr = MIN(NR_SPLICED, r.folio_nr - r.folio_nr / 2);
	uint64_t old[NR_SPLICED];
	int alone;

	for (alone = 0; alone < 2; alone++) {
		ASSERT_EQ(op_map(0, 0), 0);
		spawn(SELF, B);
		__expect_copied(SELF, k, nr, __LINE__);
		quit(B);
		memcpy(old, shadow + k, nr * sizeof(*old));
		open_pipe();
		op_splice(k, nr);
		if (!have_swap() || !page_out(k, nr))
			SKIP(return, "no swap");
		spawn(SELF, B);
		if (alone)
			run(B, op_unmap, 0, 0);
		else
			expect_right(B);
		op_write(k, nr);
		expect_right(SELF);
		expect_spliced(old, nr);
		quit(B);
	}
}

TEST_F(cow, swap_some_then_fork)
{
	if (!have_swap() || !page_out(r.nr / 4, r.nr / 2))
		SKIP(return, "no swap");
	spawn(SELF, B);
	run(B, op_write, 0, r.nr);
	expect_right(B);
	expect_right(SELF);
	quit(B);
	op_write(0, r.nr);
	expect_right(SELF);
}

TEST_F(cow, fork_exit_swap)
{
	fork_and_exit();
	if (!have_swap() || !page_out(0, r.nr))
		SKIP(return, "no swap");
	op_write(0, r.nr / 2);
	expect_right(SELF);

	/* Pages that became writable before they were written, are they dirty? */
	op_read(0, r.nr);
	fork_and_exit();
	op_write(0, r.nr);
	page_out(0, r.nr);
	expect_right(SELF);
}

/* MADV_FREE discards pages, but not those that were written since. */
TEST_F(cow, fork_exit_madv_free)
{
	if (!have_swap())
		SKIP(return, "no swap");
	fork_and_exit();
	ASSERT_EQ(madvise(r.mem, r.nr * psize(), MADV_FREE), 0);
	op_write(r.nr / 2, 1);
	op_write(0, r.nr);
	page_out(0, r.nr);
	expect_right(SELF);
}

/* The child holds the swap entries, so the pages stay in the swap cache. */
TEST_F(cow, swap_cache_left)
{
	if (!have_swap() || !page_out(0, r.nr))
		SKIP(return, "no swap");
	spawn(SELF, B);
	expect_right(SELF);
	quit(B);
	expect_reused(SELF, 0);

	/* And one that the other process cannot do without */
	if (!page_out(0, r.nr))
		SKIP(return, "no swap");
	spawn(SELF, B);
	expect_right(SELF);
	op_write(0, r.nr);
	expect_right(SELF);
	expect_right(B);
}

/* Shared pages only go when a whole memory cgroup is under pressure. */
static char cgroup_old[PATH_MAX];
static bool controls;		/* the root cgroup's memory controller, by us */

static bool cgroup_enter(void)
{
	char buf[PATH_MAX];

	if (!read_file("/proc/self/cgroup", buf, sizeof(buf)) || strncmp(buf, "0::/", 4))
		return false;
	snprintf(cgroup_old, sizeof(cgroup_old), CGROUP "%.*s/cgroup.procs",
		 (int)strcspn(buf + 4, "\n"), buf + 4);
	if (!read_file(CGROUP "cgroup.subtree_control", buf, sizeof(buf)) ||
	    !strstr(buf, "memory"))
		controls = put(CGROUP "cgroup.subtree_control", "+memory");
	mkdir(CGROUP "folio_cow", 0755);
	return put(CGROUP "folio_cow/cgroup.procs", "0");
}

static void cgroup_leave(void)
{
	if (!cgroup_old[0])
		return;
	put(cgroup_old, "0");
	rmdir(CGROUP "folio_cow");
	if (controls)
		put(CGROUP "cgroup.subtree_control", "-memory");
}

static bool reclaim_all(void)
{
	put(CGROUP "folio_cow/memory.reclaim", "%zu swappiness=max", r.nr * psize());
	return count_ent(PM_SWAP);
}

TEST_F(cow, fork_swap)
{
	bool done = false;

	if (have_swap() && cgroup_enter())
		done = !op_map(0, 0) && between(reclaim_all);
	kill_actors();
	cgroup_leave();
	if (!done)
		SKIP(return, "no swap or no memory.reclaim");
}

static bool migrate(void)
{
	void *pages[MAX_PAGES];
	int nodes[MAX_PAGES], status[MAX_PAGES];
	static struct look before, after;
	int node, current = -1;
	char path[64];
	size_t i;

	look(&before);
	if (syscall(__NR_move_pages, 0, 1, at, NULL, &current, 0) || current < 0)
		return false;
	for (node = 0; node < 64; node++) {
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d", node);
		if (node == current || access(path, F_OK))
			continue;
		for (i = 0; i < r.nr; i++) {
			pages[i] = at[i];
			nodes[i] = node;
		}
		syscall(__NR_move_pages, 0, r.nr, pages, nodes, status, MPOL_MF_MOVE_ALL);
		look(&after);
		if (nr_differ(&before, &after, 0, r.nr, 0) == r.nr)
			return true;
	}
	return false;
}

TEST_F(cow, fork_migrate)
{
	if (!between(migrate))
		SKIP(return, "no second node");
}

static bool split(int order)
{
	static struct look l;

	if (!put(DEBUGFS "split_huge_pages", "%d,0x%lx,0x%lx,%d", getpid(),
		 (unsigned long)r.mem, (unsigned long)r.mem + r.nr * psize(), order))
		return false;
	look(&l);
	return nr_runs(&l, 0, r.nr) == (long)r.nr >> order;
}

static bool split_to_pages(void)
{
	return split(0);
}

static bool split_to_order2(void)
{
	return split(2);
}

TEST_F(cow, fork_split)
{
	if (!between(split_to_pages))
		SKIP(return, "no splitting through debugfs");
}

TEST_F(cow, fork_split_order2)
{
	if (r.folio_nr <= 4)
		SKIP(return, "the folios have this size");
	if (!between(split_to_order2))
		SKIP(return, "no splitting through debugfs");
}

static bool collapse(void)
{
	if (madvise(r.mem, r.nr * psize(), MADV_COLLAPSE))
		return false;
	return true;
}

/* As khugepaged does: the one who asks gets a new folio, the others do not. */
TEST_F(cow, fork_collapse)
{
	r.nr = read_pmd_pagesize() / psize();
	if (r.nr > MAX_PAGES || op_map(0, 0) || !between(collapse))
		SKIP(return, "no collapse");
}

/* Every page gets the same contents. */
static void fill_same(void)
{
	size_t i;

	for (i = 0; i < r.nr; i++) {
		uint64_t *p = (uint64_t *)at[i];

		shadow[i] = getpid();
		p[0] = getpid();
		p[psize() / sizeof(*p) - 1] = getpid();
	}
}

/* Not every page is merged in the first scans. */
static size_t first_merged(void)
{
	static struct look l;
	size_t i;

	look(&l);
	for (i = 0; i < r.nr && !(l.flags[i] & KPF_KSM); i++)
		;
	return i;
}

TEST_F(cow, fork_ksm)
{
	size_t merged, k;

	if (ksm_get_full_scans() < 0 || !put(KSM "pages_to_scan", "%d", 4 * MAX_PAGES) ||
	    !put(KSM "sleep_millisecs", "1"))
		SKIP(return, "no KSM");
	fill_same();
	spawn(SELF, B);
	ASSERT_EQ(madvise(r.mem, r.nr * psize(), MADV_MERGEABLE), 0);
	ASSERT_EQ(ksm_start(), 0);
	put(KSM "run", "0");
	merged = count_flags(KPF_KSM);
	k = first_merged();
	if (!merged)
		SKIP(return, "nothing was merged");
	expect_right(SELF);
	expect_right(B);
	op_write(k, 1);
	EXPECT_EQ(w->moved, 1);
	expect_right(SELF);
	quit(B);
	op_write(0, r.nr);
	EXPECT_GE(w->moved, (long)merged - 1);
	expect_right(SELF);
}

#define UNPOISON DEBUGFS "hwpoison/unpoison-pfn"

/* Returns by a signal if the kernel tells us at once what we did. */
static int poison(size_t i, int advice)
{
	struct sigaction sa = { .sa_handler = probe_handler }, old;
	int ret = 0;

	sigaction(SIGBUS, &sa, &old);
	if (!sigsetjmp(probe_env, 1))
		ret = madvise(at[i], psize(), advice);
	sigaction(SIGBUS, &old, NULL);
	return ret;
}

TEST_F(cow, fork_hwpoison)
{
	size_t k = r.folio_nr / 2;
	unsigned long pfn;
	static struct look l;

	if (access(UNPOISON, W_OK))
		SKIP(return, "no hwpoison, or none that can be undone");
	spawn(SELF, B);
	look(&l);
	pfn = pfn_of(l.ent[k]);
	if (poison(k, MADV_HWPOISON))
		SKIP(return, "no MADV_HWPOISON");
	EXPECT_EQ(op_probe(k, false), SIGBUS);
	EXPECT_EQ(run(B, op_probe, k, false), SIGBUS);
	EXPECT_EQ(op_wrong(0, k), 0);
	EXPECT_EQ(op_wrong(k + 1, r.nr - k - 1), 0);
	quit(B);
	op_write(0, k);
	op_write(k + 1, r.nr - k - 1);
	EXPECT_EQ(op_probe(k, true), SIGBUS);
	EXPECT_EQ(unpoison_memory(pfn), 0);

	/* A new page for the lost one */
	ASSERT_EQ(madvise(at[k], psize(), MADV_DONTNEED), 0);
	shadow[k] = 0;
	expect_right(SELF);
	op_write(0, r.nr);
	expect_right(SELF);
}

static unsigned long offlined;

static bool soft_offline(void)
{
	static struct look l;

	look(&l);
	offlined = pfn_of(l.ent[0]);
	return !madvise(at[0], psize(), MADV_SOFT_OFFLINE);
}

TEST_F(cow, fork_soft_offline)
{
	if (access(UNPOISON, W_OK))
		SKIP(return, "no hwpoison, or none that can be undone");
	spawn(SELF, B);
	if (!soft_offline())
		SKIP(return, "no MADV_SOFT_OFFLINE");
	expect_right(SELF);
	expect_right(B);
	EXPECT_EQ(unpoison_memory(offlined), 0);
	quit(B);
	expect_reused(SELF, 0);
}

/* Neighbours of a write that must stay as they are */

static int uffd = -1;

static bool uffd_arm(uint64_t features, uint64_t mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { (uintptr_t)r.mem, r.nr * psize() },
		.mode = mode,
	};

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	return uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &reg);
}

static bool uffd_wp(size_t first, size_t nr, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)at[first], nr * psize() },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return !ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

static bool uffd_rwp(size_t k, bool on)
{
	struct uffdio_rwprotect rwp = {
		.range = { (uintptr_t)at[k], psize() },
		.mode = on ? UFFDIO_RWPROTECT_MODE_RWP : 0,
	};

	return !ioctl(uffd, UFFDIO_RWPROTECT, &rwp);
}

static bool set_hole(size_t k)
{
	return !madvise(at[k], psize(), MADV_DONTNEED);
}

static bool undo_hole(size_t k)
{
	shadow[k] = 0;
	return true;
}

static bool set_guard(size_t k)
{
	return !madvise(at[k], psize(), MADV_GUARD_INSTALL);
}

static bool undo_guard(size_t k)
{
	shadow[k] = 0;
	return !madvise(at[k], psize(), MADV_GUARD_REMOVE);
}

static bool set_read_only(size_t k)
{
	return !mprotect(at[k], psize(), PROT_READ);
}

static bool set_none(size_t k)
{
	return !mprotect(at[k], psize(), PROT_NONE);
}

static bool undo_mprotect(size_t k)
{
	return !mprotect(at[k], psize(), PROT_READ | PROT_WRITE);
}

static bool set_swapped(size_t k)
{
	return have_swap() && page_out(k, 1);
}

static bool undo_swapped(size_t k)
{
	return !op_wrong(k, 1);
}

static bool set_uffd_wp(size_t k)
{
	return uffd_arm(UFFD_FEATURE_SIGBUS, UFFDIO_REGISTER_MODE_WP) && uffd_wp(k, 1, true);
}

static bool undo_uffd_wp(size_t k)
{
	return uffd_wp(k, 1, false) && !op_wrong(k, 1);
}

static bool set_uffd_rwp(size_t k)
{
	return uffd_arm(UFFD_FEATURE_SIGBUS | UFFD_FEATURE_RWP, UFFDIO_REGISTER_MODE_RWP) &&
	       uffd_rwp(k, true);
}

static bool undo_uffd_rwp(size_t k)
{
	return uffd_rwp(k, false) && !op_wrong(k, 1);
}

static bool set_uffd_missing(size_t k)
{
	return uffd_arm(UFFD_FEATURE_SIGBUS, UFFDIO_REGISTER_MODE_MISSING) && set_hole(k);
}

static bool undo_uffd_missing(size_t k)
{
	char *src = buffer(psize());
	struct uffdio_copy copy = {
		.dst = (uintptr_t)at[k],
		.src = (uintptr_t)src,
		.len = psize(),
	};

	shadow[k] = ~0ULL;
	memset(src, 0xff, psize());
	return !ioctl(uffd, UFFDIO_COPY, &copy);
}

struct state {
	bool (*set)(size_t k);
	bool (*undo)(size_t k);
	int on_read;		/* signals */
	int on_write;
	bool absent;		/* there is no page until it is undone */
};

static void expect_state(const struct state *s, size_t k)
{
	if (s->on_read)
		EXPECT_EQ(op_probe(k, false), s->on_read);
	if (s->on_write)
		EXPECT_EQ(op_probe(k, true), s->on_write);
	if (s->absent)
		EXPECT_FALSE(page_is(k, PM_PRESENT));
}

/*
 * Page k of the first folio gets a state before or after its folio was shared.
 * Writes to its neighbours do not change it, and need no fault for each page:
 *
 *	| folio 0          | folio 1          |
 *	| . . . . k . . . .| . . . . . . . . .|	a fault for each window
 */
static bool neighbour(const struct state *s, bool early)
{
	size_t k = r.folio_nr / 2;
	long moved = 0, faults = 0, windows = 0;

	ASSERT_EQ(op_map(0, 0), 0);
	if (early && !s->set(k))
		return false;
	fork_and_exit();
	if (!early && !s->set(k))
		return false;
	/* The nearest first, then everything but k */
	op_write(k - 1, 1);
	moved += w->moved;
	faults += w->faults;
	windows += w->windows + w->clean;
	expect_state(s, k);
	op_write(k + 1, r.nr - k - 1);
	moved += w->moved;
	faults += w->faults;
	windows += w->windows + w->clean;
	expect_state(s, k);
	op_write(0, k);
	moved += w->moved;
	faults += w->faults;
	windows += w->windows + w->clean;
	expect_state(s, k);
	if (patched && s->set != set_swapped) {	/* which splits the folio */
		EXPECT_EQ(moved, 0);
		EXPECT_LE(faults, windows);
	}
	EXPECT_TRUE(s->undo(k));
	expect_right(SELF);
	op_write(0, r.nr);
	expect_right(SELF);
	if (uffd >= 0)
		close(uffd);
	uffd = -1;
	return true;
}

static bool neighbours(const struct state *s)
{
	return neighbour(s, false) && neighbour(s, true);
}

static const struct state hole = {
	.set = set_hole,
	.undo = undo_hole,
	.absent = true,
};

TEST_F(cow, batch_hole)
{
	EXPECT_TRUE(neighbours(&hole));
}

static const struct state guard = {
	.set = set_guard,
	.undo = undo_guard,
	.on_read = SIGSEGV,
	.on_write = SIGSEGV,
};

TEST_F(cow, batch_guard)
{
	if (!neighbours(&guard))
		SKIP(return, "no guard regions");
}

static const struct state read_only = {
	.set = set_read_only,
	.undo = undo_mprotect,
	.on_write = SIGSEGV,
};

TEST_F(cow, batch_read_only)
{
	EXPECT_TRUE(neighbours(&read_only));
}

static const struct state inaccessible = {
	.set = set_none,
	.undo = undo_mprotect,
	.on_read = SIGSEGV,
	.on_write = SIGSEGV,
};

TEST_F(cow, batch_inaccessible)
{
	EXPECT_TRUE(neighbours(&inaccessible));
}

static const struct state swapped = {
	.set = set_swapped,
	.undo = undo_swapped,
	.absent = true,
};

TEST_F(cow, batch_swapped)
{
	if (!neighbours(&swapped))
		SKIP(return, "no swap");
}

static const struct state wp = {
	.set = set_uffd_wp,
	.undo = undo_uffd_wp,
	.on_write = SIGBUS,
};

TEST_F(cow, batch_uffd_wp)
{
	if (!neighbours(&wp))
		SKIP(return, "no userfaultfd write protection");
}

static const struct state rwp = {
	.set = set_uffd_rwp,
	.undo = undo_uffd_rwp,
	.on_read = SIGBUS,
	.on_write = SIGBUS,
};

TEST_F(cow, batch_uffd_rwp)
{
	if (!neighbours(&rwp))
		SKIP(return, "no userfaultfd read and write protection");
}

static const struct state missing = {
	.set = set_uffd_missing,
	.undo = undo_uffd_missing,
	.on_read = SIGBUS,
	.on_write = SIGBUS,
	.absent = true,
};

TEST_F(cow, batch_uffd_missing)
{
	if (!neighbours(&missing))
		SKIP(return, "no userfaultfd");
}

/* Every other pair of pages was copied while the child was there. */
TEST_F(cow, batch_copied)
{
	size_t i;

	spawn(SELF, B);
	for (i = 0; i < r.nr; i += 8)
		__expect_copied(SELF, i, 2, __LINE__);
	expect_right(B);
	quit(B);
	expect_reused(SELF, 0);
}

/* Each write is tracked, and no page that was not written appears as such. */
static void tracked(uint64_t bit, size_t if_written)
{
	size_t k = r.folio_nr / 2;

	op_write(k, 1);
	EXPECT_EQ(count_ent(bit), if_written ? 1 : r.nr - 1);
	EXPECT_EQ(page_is(k, bit), if_written);
	expect_right(SELF);
	op_write(k + 1, 1);
	EXPECT_EQ(count_ent(bit), if_written ? 2 : r.nr - 2);
	op_write(0, r.nr);
	EXPECT_EQ(count_ent(bit), if_written ? r.nr : 0);
	if (patched)
		EXPECT_EQ(w->moved, 0);
	expect_right(SELF);
}

TEST_F(cow, soft_dirty)
{
	if (!softdirty_supported())
		SKIP(return, "no soft-dirty tracking");
	if (is_pmd_mapped())
		SKIP(return, "a PMD has one bit for all");
	fork_and_exit();
	clear_softdirty();
	EXPECT_EQ(count_ent(PM_SOFT_DIRTY), 0);
	tracked(PM_SOFT_DIRTY, true);

	ASSERT_EQ(op_map(0, 0), 0);
	clear_softdirty();
	fork_and_exit();
	EXPECT_EQ(count_ent(PM_SOFT_DIRTY), 0);
	tracked(PM_SOFT_DIRTY, true);
}

TEST_F(cow, uffd_wp_async)
{
	int early;

	for (early = 0; early < 2; early++) {
		ASSERT_EQ(op_map(0, 0), 0);
		if (!early)
			fork_and_exit();
		if (!uffd_arm(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
			      UFFDIO_REGISTER_MODE_WP) || !uffd_wp(0, r.nr, true))
			SKIP(return, "no asynchronous write protection");
		if (early)
			fork_and_exit();
		EXPECT_EQ(count_ent(PM_UFFD_WP), r.nr);
		tracked(PM_UFFD_WP, false);
		close(uffd);
	}
}

/*
 * Only an exclusive page can move; it takes its contents along. UFFDIO_MOVE looks
 * at the first page of the folio for that: have both in the same window.
 */
TEST_F(cow, uffd_move)
{
	struct uffdio_move move = { .src = 0 };
	size_t k = MIN(r.folio_nr / 2, 8);

	ASSERT_TRUE(mmap(r.other, psize(), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0) == r.other);
	if (!uffd_arm(UFFD_FEATURE_MOVE, UFFDIO_REGISTER_MODE_MISSING) ||
	    uffd_register(uffd, r.other, psize(), true, false, false))
		SKIP(return, "no UFFDIO_MOVE");
	move.src = (uintptr_t)at[k];
	move.dst = (uintptr_t)r.other;
	move.len = psize();

	spawn(SELF, B);
	EXPECT_NE(ioctl(uffd, UFFDIO_MOVE, &move), 0);
	quit(B);
	op_write(k - 1, 1);
	move.move = 0;
	if (!ioctl(uffd, UFFDIO_MOVE, &move))
		at[k] = r.other;
	else if (patched)
		EXPECT_EQ(errno, 0);
	expect_right(SELF);
	op_write(0, r.nr);
	expect_right(SELF);
	spawn(SELF, B);
	__expect_copied(SELF, k, 1, __LINE__);
	expect_right(B);
}

/* What the kernel counts */

struct events {
	unsigned long reuse;
	unsigned long adopt;
	unsigned long batch;
	unsigned long copy;
};

static struct events read_events(void)
{
	return (struct events) {
		read_event("thp_cow_reuse "), read_event("thp_cow_adopt "),
		read_event("thp_cow_batch "), read_event("thp_cow_copy "),
	};
}

static struct events events_of_write(int who)
{
	struct events before = read_events(), after;

	run(who, op_write, 0, r.nr);
	after = read_events();
	return (struct events) {
		after.reuse - before.reuse, after.adopt - before.adopt,
		after.batch - before.batch, after.copy - before.copy,
	};
}

TEST_F(cow, events)
{
	unsigned long nr_folios = r.nr / r.folio_nr;
	struct events e;

	if (!patched)
		SKIP(return, "the kernel counts no COW reuse");
	if (is_pmd_mapped())
		SKIP(return, "for folios that PTEs map");
	fork_and_exit();
	e = events_of_write(SELF);
	EXPECT_EQ(e.reuse, w->windows);
	EXPECT_EQ(e.adopt, 0);
	EXPECT_EQ(e.batch, r.nr - w->windows);
	EXPECT_EQ(e.copy, 0);

	spawn(SELF, B);
	e = events_of_write(SELF);
	EXPECT_EQ(e.reuse + e.adopt + e.batch, 0);
	EXPECT_EQ(e.copy, r.nr);

	e = events_of_write(B);
	EXPECT_EQ(e.reuse, w->windows - nr_folios);
	EXPECT_EQ(e.adopt, nr_folios);
	EXPECT_EQ(e.batch, r.nr - w->windows);
	EXPECT_EQ(e.copy, 0);
}

/* Fixture: 2 MiB of which 128 KiB move, of several kinds */

FIXTURE(kinds)
{
	int fd;
};

FIXTURE_VARIANT(kinds)
{
	bool anon;
	bool file;
	int flags;
	bool copies;	/* Writes go to copies. */
};

FIXTURE_VARIANT_ADD(kinds, anon)
{
	.anon = true,
	.flags = MAP_PRIVATE | MAP_ANON,
};

FIXTURE_VARIANT_ADD(kinds, shmem_shared)
{
	.flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(kinds, shmem_private)
{
	.flags = MAP_PRIVATE,
	.copies = true,
};

FIXTURE_VARIANT_ADD(kinds, file_shared)
{
	.file = true,
	.flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(kinds, file_private)
{
	.file = true,
	.flags = MAP_PRIVATE,
	.copies = true,
};

/* Fill the file through a mapping of its own, then map it as wanted. */
static bool map_file(int fd, int flags)
{
	size_t size = r.nr * psize();

	if (fd < 0 || ftruncate(fd, size) ||
	    mmap(r.mem, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != r.mem)
		return false;
	madvise(r.mem, size, MADV_HUGEPAGE);
	place();
	op_write(0, r.nr);
	return mmap(r.mem, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0) == r.mem;
}

FIXTURE_SETUP(kinds)
{
	const char *why;

	set_metadata(_metadata);
	why = prepare(0, false);
	if (why)
		SKIP(return, "%s", why);
	if (variant->anon) {
		if (op_map(0, 0))
			SKIP(return, "no memory in folios of this size");
		return;
	}
	self->fd = variant->file ? open_file(0) : memfd_create("folio_cow", 0);
	if (!map_file(self->fd, variant->flags))
		SKIP(return, "no file, try FOLIO_COW_DIR");
	op_read(0, r.nr);
}

FIXTURE_TEARDOWN(kinds)
{
	kill_actors();
}

/* A write copies pages of a private file mapping, always; those stay alone. */
static void write_kind(bool copies)
{
	if (!copies) {
		op_write(0, r.nr);
		if (patched || !count_flags(KPF_ANON))
			EXPECT_EQ(w->moved, 0);
	} else {
		expect_copied(SELF);
		EXPECT_EQ(count_flags(KPF_ANON), r.nr);
		EXPECT_EQ(count_flags(KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL), 0);
	}
	expect_right(SELF);
	expect_sharers(1);
	op_write(0, r.nr);
	EXPECT_EQ(w->moved, 0);
}

TEST_F(kinds, mremap_middle)
{
	size_t first, nr;

	expect_sharers(1);
	spawn(SELF, B);
	run(B, op_read, 0, r.nr);	/* fork leaves out what faults can bring */
	expect_sharers(2);
	quit(B);
	expect_sharers(1);

	move_middle(&first, &nr);
	op_read(0, r.nr);	/* a PMD of a file is not split but dropped */
	expect_sharers(1);
	spawn(SELF, B);
	run(B, op_read, 0, r.nr);
	expect_sharers(2);
	quit(B);
	write_kind(variant->copies);
}

/* Private copies of the parent are shared with its child like any others. */
TEST_F(kinds, fork_write)
{
	if (!(variant->flags & MAP_PRIVATE))
		SKIP(return, "for private mappings");
	op_write(0, r.nr / 2);
	op_read(0, r.nr);
	spawn(SELF, B);
	run(B, op_read, 0, r.nr);
	__expect_sharers(2, true, __LINE__);
	expect_copied(SELF);
	expect_right(B);
	quit(B);
	op_write(0, r.nr);
	EXPECT_EQ(w->moved, 0);
	expect_right(SELF);
}

/* Fixture: mappings that are no anonymous folios at all */

FIXTURE(special) {};

FIXTURE_SETUP(special)
{
	const char *why;

	set_metadata(_metadata);
	why = prepare(0, false);
	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(special)
{
	kill_actors();
}

static long op_put(long i, long value)
{
	__atomic_store_n((uint64_t *)at[i], value, __ATOMIC_RELAXED);
	return 0;
}

static long op_get(long i, long unused)
{
	return __atomic_load_n((uint64_t *)at[i], __ATOMIC_RELAXED);
}

/* Both sides of a shared folio that faults in without a fault of the usual kind */
TEST_F(special, uffd_minor)
{
	size_t size = r.nr * psize();
	int fd = memfd_create("folio_cow", 0);
	char *alias = buffer(size);
	struct uffdio_continue cont;

	ASSERT_TRUE(map_file(fd, MAP_SHARED));
	ASSERT_TRUE(mmap(alias, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			 fd, 0) == alias);
	if (!uffd_arm(UFFD_FEATURE_SIGBUS | UFFD_FEATURE_MINOR_SHMEM,
		      UFFDIO_REGISTER_MODE_MINOR))
		SKIP(return, "no minor faults of shmem");
	EXPECT_EQ(op_probe(1, true), SIGBUS);
	cont = (struct uffdio_continue) {
		.range = { (uintptr_t)r.mem, 2 * psize() },
	};
	ASSERT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), 0);
	EXPECT_EQ(op_wrong(0, 2), 0);
	EXPECT_EQ(op_probe(2, true), SIGBUS);

	spawn(SELF, B);	/* without the userfaultfd */
	run(B, op_put, 1, 42);
	EXPECT_EQ(*(uint64_t *)(alias + psize()), 42);
	EXPECT_EQ(op_get(1, 0), 42);
	quit(B);
	op_write(0, 2);
	EXPECT_EQ(w->moved, 0);
	EXPECT_EQ(*(uint64_t *)(alias + psize()), shadow[1]);
	EXPECT_EQ(op_probe(2, true), SIGBUS);
}

/*
 * A driver's pages, in a VM_MIXEDMAP area and of a compound page: the entries
 * of an io_uring. They are never reused.
 */
TEST_F(special, mixedmap_compound)
{
	size_t size = r.nr * psize();
	struct ring ring;
	uint64_t *sqes;
	char *p;

	r.nr = 8;
	size = r.nr * psize();
	if (!ring_open(&ring, size / sizeof(struct io_uring_sqe)))
		SKIP(return, "no io_uring");
	sqes = (uint64_t *)ring.sqes;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, ring.fd, IORING_OFF_SQES);
	if (p == MAP_FAILED)
		SKIP(return, "no private mapping of an io_uring");
	r.mem = p;
	place();
	if (count_flags(KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL) != r.nr)
		SKIP(return, "no compound page in an io_uring");
	EXPECT_EQ(count_flags(KPF_ANON), 0);

	/* A fork and an exit do not make it ours. */
	fork_and_exit();
	op_write(1, 1);
	EXPECT_EQ(w->moved, 1);
	EXPECT_EQ(count_flags(KPF_ANON), 1);
	EXPECT_EQ(sqes[psize() / sizeof(*sqes)], 0);
	op_write(0, r.nr);
	EXPECT_EQ(w->moved, (long)r.nr - 1);
	expect_right(SELF);
	EXPECT_EQ(sqes[0], 0);

	/* And the shared mapping is never copied. */
	r.mem = (char *)sqes;
	place();
	spawn(SELF, B);
	run(B, op_put, 3, 42);
	EXPECT_EQ(op_get(3, 0), 42);
	op_write(0, r.nr);
	EXPECT_EQ(w->moved, 0);
	quit(B);
	op_write(0, r.nr);
	EXPECT_EQ(w->moved, 0);
	expect_right(SELF);
}

/*
 * A private mapping of a PC's ROM: VM_PFNMAP, which pagemap does not show. Elsewhere,
 * a device can be there, and RAM can change while the test compares it.
 */
TEST_F(special, pfnmap)
{
	const off_t rom = 0xf0000;
	int fd = open("/dev/mem", O_RDONLY);
	struct utsname name;
	uint64_t old;
	char *p, *alias;

	if (uname(&name) || !strstr(name.machine, "86"))
		SKIP(return, "no PC: where is ROM?");
	r.nr = 4;
	p = mmap(NULL, r.nr * psize(), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, rom);
	alias = mmap(NULL, r.nr * psize(), PROT_READ, MAP_PRIVATE, fd, rom);
	if (fd < 0 || p == MAP_FAILED || alias == MAP_FAILED)
		SKIP(return, "no /dev/mem, or nothing there");
	r.mem = p;
	place();
	if (op_probe(0, false) || !check_vmflag_pfnmap(p))
		SKIP(return, "nothing to read in /dev/mem");
	old = FORCE_READ(*(uint64_t *)at[1]);
	fork_and_exit();
	spawn(SELF, B);
	op_write(1, 1);
	EXPECT_EQ(w->faults, 1);
	EXPECT_EQ(run(B, op_get, 1, 0), (long)old);
	EXPECT_EQ(*(uint64_t *)(alias + psize()), old);
	quit(B);
	op_write(0, r.nr);	/* page 1 is ours since */
	EXPECT_GE(w->faults, (long)r.nr - 1);
	EXPECT_EQ(*(uint64_t *)(alias + psize()), old);
	expect_right(SELF);
}

/* Code that does nothing, as long as its first instructions matter. */
static void nothing(void)
{
}

#define CODE_SIZE	16

static int open_uprobe(int fd, size_t offset)
{
	char path[32];
	struct perf_event_attr attr = {
		.size = sizeof(attr),
		.config1 = (uintptr_t)path,
		.config2 = offset,
	};
	char type[16];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (!read_file("/sys/bus/event_source/devices/uprobe/type", type, sizeof(type)))
		return -1;
	attr.type = atoi(type);
	return syscall(__NR_perf_event_open, &attr, 0, -1, -1, 0);
}

static uint64_t uprobe_hits(int event)
{
	uint64_t hits = ~0ULL;

	(void)!read(event, &hits, sizeof(hits));
	return hits;
}

/*
 * The breakpoint gets a page of its own, for the process that is traced. All
 * others, and all pages beside it, keep those of the file.
 */
TEST_F(special, uprobe)
{
	int fd = memfd_create("folio_cow", MFD_EXEC);
	size_t k = 5, offset = k * psize();
	static struct look before, after;
	int event;

	ASSERT_TRUE(map_file(fd, MAP_SHARED));
	memcpy(r.mem + offset, nothing, CODE_SIZE);
	ASSERT_TRUE(mmap(r.mem, r.nr * psize(), PROT_READ | PROT_EXEC,
			 MAP_PRIVATE | MAP_FIXED, fd, 0) == r.mem);
	op_read(0, r.nr);
	spawn(SELF, B);
	run(B, op_read, 0, r.nr);
	look(&before);
	event = open_uprobe(fd, offset);
	if (event < 0)
		SKIP(return, "no uprobes");

	op_read(0, r.nr);
	look(&after);
	EXPECT_EQ(nr_differ(&before, &after, 0, r.nr, 0), 1);
	EXPECT_EQ(after.flags[k] & (KPF_ANON | KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL), KPF_ANON);
	EXPECT_NE(memcmp(at[k], nothing, CODE_SIZE), 0);
	((void (*)(void))at[k])();
	EXPECT_EQ(uprobe_hits(event), 1);
	EXPECT_EQ(op_wrong(0, k), 0);
	EXPECT_EQ(run(B, op_get, k, 0) & 0xff, *(unsigned char *)nothing);

	/* A child that is not traced, and the end of the tracing */
	spawn(SELF, C);
	EXPECT_EQ(run(C, op_wrong, 0, k), 0);
	quit(C);	/* which has the event, too */
	close(event);
	((void (*)(void))at[k])();
	EXPECT_EQ(memcmp(at[k], nothing, CODE_SIZE), 0);
	EXPECT_EQ(op_wrong(0, k), 0);
}

/* Settings, restored at exit */

static struct knob {
	const char *path;
	char value[32];
} knobs[] = {
	{ KSM "run" },
	{ KSM "pages_to_scan" },
	{ KSM "sleep_millisecs" },
};

static void restore_knobs(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(knobs); i++)
		if (knobs[i].value[0])
			put(knobs[i].path, "%s", knobs[i].value);
}

static void save_knobs(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(knobs); i++)
		read_file(knobs[i].path, knobs[i].value, sizeof(knobs[i].value));
	atexit(restore_knobs);
}

/*
 * khugepaged sleeps as long as it was told to only while there is a process that
 * it could look at. The first one to come after none wakes it, and this would be
 * a test. So let it look at this process, which stays to the end. An area without
 * an anon_vma would not be among what it looks at.
 */
static void park_khugepaged(unsigned long scans)
{
	size_t size = 2 * read_pmd_pagesize();
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
	int i;

	if (p == MAP_FAILED)
		return;
	*p = 1;
	madvise(p, size, MADV_DONTNEED);
	madvise(p, size, MADV_HUGEPAGE);
	for (i = 0; i < 100 && thp_read_num("khugepaged/full_scans") == scans; i++)
		usleep(20000);
}

/* Only memory that asks for it gets large folios, so other processes' do not change. */
static void set_thp(void)
{
	unsigned long scans = thp_read_num("khugepaged/full_scans");
	unsigned long orders = thp_supported_orders();
	size_t pmd_size = read_pmd_pagesize();
	char name[64];
	int i;

	thp_save_settings();
	thp_write_num("khugepaged/scan_sleep_millisecs", 3600 * 1000);
	thp_write_string("defrag", "madvise");
	thp_write_string("shmem_enabled", "advise");
	for (i = 0; i < NR_ORDERS; i++) {
		if (!(orders & (1UL << i)))
			continue;
		snprintf(name, sizeof(name), "hugepages-%ukB/enabled", psize() >> 10 << i);
		thp_write_string(name, (size_t)psize() << i == pmd_size ? "madvise" : "never");
	}
	park_khugepaged(scans);
}

/* Does the first write to an entry that is clean and writable take a fault? */
static bool write_faults_if_clean(void)
{
	const int fd = memfd_create("folio_cow", 0);
	char *page;
	long faults;

	if (fd < 0 || ftruncate(fd, psize()))
		return false;
	page = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (page == MAP_FAILED)
		return false;
	FORCE_READ(*page);
	faults = nr_faults();
	__atomic_store_n(page, 1, __ATOMIC_RELAXED);
	faults = nr_faults() - faults;
	munmap(page, psize());
	return faults;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "--hold"))
		return hold(argv);
	if (getenv("FOLIO_COW_DIR"))
		dir = getenv("FOLIO_COW_DIR");
	kpageflags_fd = open("/proc/kpageflags", O_RDONLY);
	kpagecount_fd = open("/proc/kpagecount", O_RDONLY);
	gup_fd = open(DEBUGFS "gup_test", O_RDWR);
	patched = read_event("thp_cow_reuse ") != NO_EVENT;
	dirty_by_fault = write_faults_if_clean();
	/* NUMA balancing spares a process with a policy of its own its faults. */
	syscall(__NR_set_mempolicy, MPOL_LOCAL, NULL, 0);
	if (!geteuid() && thp_available()) {
		save_knobs();
		set_thp();
	}
	return test_harness_run(argc, argv);
}
