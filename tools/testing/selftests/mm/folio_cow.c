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
 *   efficiency	where the kernel counts COW reuse in /proc/vmstat: no page was
 *		copied, and there were no more faults than windows of pages.
 *
 * A page was copied if its PFN changed. What each page has to contain is known
 * from shadow[], which fork() copies just as it ought to copy the pages.
 *
 * FOLIO_COW_DIR names a directory for the files of some tests, by default the
 * current one. With FOLIO_COW_ROWS, the fork trees print what they measure.
 */
#include "kselftest_harness.h"
#include <linux/io_uring.h>
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include "../../../../mm/gup_test.h"
#include "folio_util.h"

#define MAX_PAGES	2048
#define NR_FOLIOS	4		/* of a size below that of a PMD */
#define MAX_HELD	4		/* pages that a pin or a pipe holds */
#define HELD_FIRST	(r.folio_nr / 2)
#define HELD_NR		MIN(MAX_HELD, r.folio_nr / 2)
#define NR_WRITTEN	MIN(r.nr, 64)	/* enough for all kinds of windows */
#define TIMEOUT		300
#define VMSTAT		"/proc/vmstat"
#define DEBUGFS		"/sys/kernel/debug/"
#define UNPOISON	DEBUGFS "hwpoison/unpoison-pfn"
#define KSM		"/sys/kernel/mm/ksm/"

/* Shared by the actors */
static struct {
	/* What the writes cost since write_by() set all of this to 0 */
	long moved;		/* pages that were there and are others now */
	long large;		/* of those, the pages of large folios */
	long faults;
	long windows;		/* faults that this takes, if nothing is copied */
	long clean;		/* and those that set the dirty bit of a page */
	uint64_t held[MAX_HELD]; /* what pages contained when a reference was taken */
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
static int gup_fd = -1;
static const char *dir = ".";
static const char *row = "";	/* of the table that the test goes through */

/* Of the test that runs. The macros of the harness want it by this name. */
static struct __test_metadata *_metadata;

static void set_metadata(struct __test_metadata *metadata)
{
	_metadata = metadata;
}

static void skip_row(const char *why)
{
	TH_LOG("%s: skipped: %s", row, why);
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
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	size_t i, n, size;
	uint64_t pfn;

	for (i = 0; i < r.nr; i += n) {
		for (n = 1; i + n < r.nr && at[i + n] == at[i] + n * psize(); n++)
			;
		size = n * sizeof(uint64_t);
		if (pread(fd, &l->ent[i], size, (uintptr_t)at[i] / psize() * sizeof(uint64_t)) !=
		    (ssize_t)size)
			die("pagemap: %s", strerror(errno));
	}
	close(fd);

	for (i = 0; i < r.nr; i += n) {
		pfn = pfn_of(l->ent[i]);
		for (n = 1; pfn && i + n < r.nr && pfn_of(l->ent[i + n]) == pfn + n; n++)
			;
		l->flags[i] = 0;
		size = n * sizeof(uint64_t);
		if (pfn && pread(kpageflags_fd, &l->flags[i], size, pfn * sizeof(uint64_t)) !=
			   (ssize_t)size)
			die("kpageflags: %s", strerror(errno));
	}
}

static size_t count_bits(const uint64_t *word, size_t nr, uint64_t bits)
{
	size_t i, count = 0;

	for (i = 0; i < nr; i++)
		count += !!(word[i] & bits);
	return count;
}

static size_t count_ent(size_t first, size_t nr, uint64_t bits)
{
	static struct look l;

	look(&l);
	return count_bits(l.ent + first, nr, bits);
}

static size_t count_flags(uint64_t bits)
{
	static struct look l;

	look(&l);
	return count_bits(l.flags, r.nr, bits);
}

/* Is page i the first one, or not of the same folio as the one before, or apart? */
static bool starts_run(const struct look *l, size_t first, size_t i)
{
	return i == first || !(l->flags[i] & KPF_COMPOUND_TAIL) ||
	       pfn_of(l->ent[i]) != pfn_of(l->ent[i - 1]) + 1 ||
	       at[i] != at[i - 1] + psize();
}

/* Pages of one folio, side by side: no fault can make more of them writable. */
static size_t nr_runs(const struct look *l)
{
	size_t i, runs = 0;

	for (i = 0; i < r.nr; i++)
		runs += starts_run(l, 0, i);
	return runs;
}

static size_t min_window(void)
{
	return psize() == 4096 ? 16 : 128;
}

/*
 * How many faults it takes to write all pages of all runs in order: each makes a
 * window of entries writable, which grows with what the faults before it did.
 */
static long nr_windows(const struct look *l, size_t first, size_t nr)
{
	size_t i, run = first, end = 0, page, window;
	long windows = 0;

	for (i = first; i < first + nr; i++) {
		page = (uintptr_t)at[i] / psize();
		if (starts_run(l, first, i))
			run = page;
		else if (page < end)
			continue;
		windows++;
		page -= page % min_window();
		for (window = min_window(); page >= run + window && window < 512; window *= 2)
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
	uint64_t *p;
	long faults;
	int pass;

	touch_rseq();
	for (pass = 0; pass < 2; pass++) {
		faults = nr_faults();
		for (i = first; i < end; i++) {
			p = (uint64_t *)at[i];
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
	w->faults += store(first, nr, tag);
	for (i = first; i < first + nr; i++)
		shadow[i] = tag + i;
	look(&after);
	w->moved += nr_differ(&before, &after, first, nr, 0);
	w->large += nr_differ(&before, &after, first, nr, KPF_THP);
	w->windows += nr_windows(&before, first, nr);
	/*
	 * What was swapped in is mapped clean: a fault for each page of it. Its folio
	 * is in the swap cache, or has become dirty when it left that.
	 */
	if (dirty_by_fault)
		w->clean += count_bits(before.flags + first, nr, KPF_SWAPCACHE | KPF_DIRTY);
	return 0;
}

/* Write, and count what this costs alone. */
static void write_by(int who, size_t first, size_t nr)
{
	memset(w, 0, offsetof(typeof(*w), held));
	run(who, op_write, first, nr);
}

static bool is_right(size_t i)
{
	uint64_t *p = (uint64_t *)at[i];

	return FORCE_READ(p[0]) == shadow[i] &&
	       FORCE_READ(p[psize() / sizeof(*p) - 1]) == shadow[i];
}

static long op_wrong(long first, long nr)
{
	long i, wrong = 0;

	for (i = first; i < first + nr; i++)
		wrong += !is_right(i);
	return wrong;
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

static void place(char *mem, size_t first, size_t nr)
{
	size_t i;

	for (i = 0; i < nr; i++)
		at[first + i] = mem + i * psize();
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
	size_t step = r.nr > r.folio_nr ? r.nr / 2 : r.nr;
	static struct look l;
	size_t i;
	char *p;

	munmap(r.area, r.area_size);
	if (mmap(r.area, r.area_size, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_FIXED,
		 -1, 0) == MAP_FAILED)
		return -1;
	place(r.mem, 0, r.nr);
	for (i = 0; i < r.nr; i += step) {
		p = mmap(at[i], step * psize(), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0);
		if (p == MAP_FAILED || madvise(p, step * psize(), MADV_HUGEPAGE))
			return -1;
		store(i, step, 0);
	}
	for (i = 0; i < r.nr; i++)
		shadow[i] = i;
	if (r.ptes && !splits_pmd())
		return -1;
	look(&l);
	for (i = 0; i < r.nr; i += r.folio_nr)
		if (pfn_of(l.ent[i]) % r.folio_nr)
			return -1;
	return nr_runs(&l) == r.nr / r.folio_nr ? 0 : -1;
}

static void map(void)
{
	ASSERT_EQ(op_map(0, 0), 0) TH_LOG("%s: no memory in folios of this size", row);
}

static sigjmp_buf probe_env;

static void probe_handler(int sig)
{
	siglongjmp(probe_env, sig);
}

/* Return: the signal that an access to the page raises, or 0. */
static long op_probe(long i, long write)
{
	uint64_t *p = (uint64_t *)at[i];
	int sig;

	signal(SIGSEGV, probe_handler);
	signal(SIGBUS, probe_handler);
	sig = sigsetjmp(probe_env, 1);
	if (!sig && write)
		__atomic_store_n(p, shadow[i], __ATOMIC_RELAXED);
	else if (!sig)
		FORCE_READ(*p);
	signal(SIGSEGV, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
	return sig;
}

/* What is expected of writes */

static void expect_right(int who)
{
	EXPECT_EQ(run(who, op_wrong, 0, r.nr), 0)
		TH_LOG("%s: actor %d sees wrong data", row, who);
}

/*
 * What a write to everything should have cost. The slack is for faults at the borders of
 * VMAs. Small pages can be copied as long as they are in the LRU cache of another CPU.
 */
static void expect_cost(int who, long copies, long slack)
{
	if (!patched)
		return;
	EXPECT_EQ(w->large, copies) TH_LOG("%s: actor %d copied %ld pages", row, who, w->large);
	if (!copies)
		EXPECT_LE(w->faults, w->windows + w->clean + slack)
			TH_LOG("%s: actor %d took %ld faults", row, who, w->faults);
}

static void expect_reused(int who)
{
	write_by(who, 0, r.nr);
	expect_cost(who, 0, 0);
	expect_right(who);
}

/* Another process still maps the pages. */
static void expect_copied(int who, size_t first, size_t nr)
{
	write_by(who, first, nr);
	EXPECT_EQ(w->moved, (long)nr)
		TH_LOG("%s: actor %d copied %ld of %zu pages", row, who, w->moved, nr);
	expect_right(who);
}

/* SELF and a child had the memory in common, and the child is gone. */
static void fork_and_exit(void)
{
	spawn(SELF, C);
	quit(C);
}

/* What the kernel counts */

struct events {
	long reuse, adopt, batch, copy;
};

static struct events read_events(void)
{
	return (struct events) {
		read_key(VMSTAT, "thp_cow_reuse"), read_key(VMSTAT, "thp_cow_adopt"),
		read_key(VMSTAT, "thp_cow_batch"), read_key(VMSTAT, "thp_cow_copy"),
	};
}

static struct events events_of_write(int who, size_t first, size_t nr)
{
	struct events before = read_events(), after;

	write_by(who, first, nr);
	after = read_events();
	return (struct events) {
		after.reuse - before.reuse, after.adopt - before.adopt,
		after.batch - before.batch, after.copy - before.copy,
	};
}

/* Fixture: anonymous folios, in several sizes */

/* Folios of this size alone, and only for memory that asks for it. */
static bool enable_size(size_t bytes)
{
	unsigned long orders = thp_supported_orders();
	int i, order = sz2ord(bytes, psize());
	char name[64];

	for (i = 0; i < NR_ORDERS; i++) {
		if (!(orders & (1UL << i)))
			continue;
		snprintf(name, sizeof(name), "hugepages-%ukB/enabled", psize() >> 10 << i);
		thp_write_string(name, i == order ? "madvise" : "never");
	}
	return orders & (1UL << order);
}

/* Return: NULL, or why it cannot be tested. */
static const char *prepare(size_t nr, bool ptes)
{
	size_t pmd_size = read_pmd_pagesize();
	size_t pmd_nr = pmd_size / psize();

	if (geteuid())
		return "needs root";
	if (kpageflags_fd < 0)
		return "needs /proc/kpageflags";
	if (!pmd_nr)
		return "no THPs";
	if (!nr && pmd_nr > MAX_PAGES)
		return "a PMD maps too much here";
	if (!enable_size(nr ? nr * psize() : pmd_size))
		return "no folios of this size";

	r.folio_nr = nr ?: pmd_nr;
	r.nr = nr ? NR_FOLIOS * nr : pmd_nr;
	r.ptes = ptes;
	r.area_size = 6 * pmd_size;
	r.area = mmap(NULL, r.area_size, PROT_NONE, MAP_PRIVATE | MAP_ANON, -1, 0);
	w = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANON, -1, 0);
	if (r.area == MAP_FAILED || w == MAP_FAILED)
		return "no address space";
	r.mem = (char *)roundup((uintptr_t)r.area + psize(), pmd_size);
	r.other = r.mem + 2 * pmd_size;
	place(r.mem, 0, r.nr);
	make_actors();
	return NULL;
}

FIXTURE(cow) {};

FIXTURE_VARIANT(cow)
{
	const char *name;
	size_t nr;	/* pages of a folio; 0: as many as a PMD maps */
	bool ptes;
};

FIXTURE_VARIANT_ADD(cow, mthp_4) { .name = "mthp_4", .nr = 4 };
FIXTURE_VARIANT_ADD(cow, mthp_16) { .name = "mthp_16", .nr = 16 };
FIXTURE_VARIANT_ADD(cow, thp_ptes) { .name = "thp_ptes", .ptes = true };
FIXTURE_VARIANT_ADD(cow, thp_pmd) { .name = "thp_pmd" };

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
	cgroup_leave();
}

/*
 * Fork trees: A fills the memory. When the relatives are gone, the process that is
 * left writes to every page, which copies none. Or a relative needs the old contents.
 */
enum { END, FORK, EXIT, UNMAP, EXEC, COPY, REUSE };
enum { D = C + 1, E, F, G };

struct step {
	int op;
	int who;
	int from;		/* its children, when it forks */
	int to;			/* ... or the last actor that takes this step */
};

static const struct tree {
	const char *name;	/* who is gone, in this order: who writes */
	int writer;		/* to every page in the end */
	bool copies;		/* others need the old contents */
	struct step steps[7];
} trees[] = {
	{ "child gone: parent", A, false,
	  { { FORK, A, B }, { EXIT, B } } },
	{ "child unmapped it: parent", A, false,
	  { { FORK, A, B }, { UNMAP, B } } },
	{ "child exec'ed: parent", A, false,
	  { { FORK, A, B }, { EXEC, B } } },
	{ "child copied all: parent", A, false,
	  { { FORK, A, B }, { COPY, B } } },
	{ "parent gone: child", B, false,
	  { { FORK, A, B }, { EXIT, A } } },
	{ "parent copied all: child", B, false,
	  { { FORK, A, B }, { COPY, A } } },
	{ "grandparent, parent gone: grandchild", C, false,
	  { { FORK, A, B }, { FORK, B, C }, { EXIT, A }, { EXIT, B } } },
	{ "parent, grandparent gone: grandchild", C, false,
	  { { FORK, A, B }, { FORK, B, C }, { EXIT, B }, { EXIT, A } } },
	{ "child, grandchild gone: grandparent", A, false,
	  { { FORK, A, B }, { FORK, B, C }, { EXIT, B }, { EXIT, C } } },
	{ "grandparent gone, parent copied: grandchild", C, false,
	  { { FORK, A, B }, { FORK, B, C }, { EXIT, A }, { COPY, B } } },
	/* A new MM is likely to have the address of the one that has just gone. */
	{ "parent, a new child gone: child", B, false,
	  { { FORK, A, B }, { EXIT, A }, { FORK, B, C }, { COPY, C }, { EXIT, C } } },
	{ "parent, grandchild gone after a write: child", B, false,
	  { { FORK, A, B }, { EXIT, A }, { REUSE, B }, { FORK, B, C }, { EXIT, C } } },
	{ "zygote, 5 of 6 children gone: the last one", E, false,
	  { { FORK, A, B, G }, { EXIT, A }, { EXIT, B, .to = D }, { EXIT, F, .to = G } } },
	{ "all 6 children gone: zygote", A, false,
	  { { FORK, A, B, G }, { EXIT, B, .to = G } } },
	{ "child alive: parent", A, true,
	  { { FORK, A, B } } },
	{ "parent alive: child", B, true,
	  { { FORK, A, B } } },
	{ "parent gone, sibling alive: child", C, true,
	  { { FORK, A, B }, { FORK, A, C }, { EXIT, A } } },
};

/* Another program, in memory of its own, answers and then waits. */
static long op_exec(long me, long unused)
{
	char fd[12];

	snprintf(fd, sizeof(fd), "%d", dup(actor[me].reply[1]));
	execl("/proc/self/exe", "folio_cow", "--answer", fd, NULL);
	return -errno;
}

static int answer(int fd)
{
	long ret = 0;

	alarm(TIMEOUT);
	return write(fd, &ret, sizeof(ret)) != sizeof(ret) || pause();
}

/* Which actors map the memory, and who is the creator of the folios */
static unsigned int mapped;
static int creator;

static void do_step(const struct step *step, int who)
{
	int i;

	switch (step->op) {
	case FORK:
		for (i = step->from; i <= MAX(step->from, step->to); i++) {
			spawn(who, i);
			mapped |= 1U << i;
		}
		return;
	case EXIT:
		quit(who);
		break;
	case UNMAP:
		ASSERT_EQ(run(who, op_unmap, 0, 0), 0);
		break;
	case EXEC:
		ASSERT_EQ(run(who, op_exec, who, 0), 0);
		break;
	case COPY:
		expect_copied(who, 0, r.nr);
		return;
	case REUSE:
		expect_reused(who);
		creator = who;
		return;
	}
	mapped &= ~(1U << who);
}

/* Each page becomes writable in a fault, or with a batch; a PMD without any of these. */
static void expect_events(const struct tree *t, const struct events *e)
{
	long adopt = t->writer == creator ? 0 : r.nr / r.folio_nr;
	struct events want = { w->windows - adopt, adopt, r.nr - w->windows, 0 };

	if (is_pmd_mapped())
		want = (struct events) { .adopt = adopt };
	if (t->copies)
		want = (struct events) { .copy = r.nr };
	EXPECT_EQ(memcmp(e, &want, sizeof(want)), 0)
		TH_LOG("%s: reuse %ld, adopt %ld, batch %ld, copy %ld", t->name, e->reuse,
		       e->adopt, e->batch, e->copy);
}

static long op_large(long unused_a, long unused_b)
{
	return count_flags(KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL);
}

static void grow(const struct tree *t, const char *size)
{
	const struct step *step;
	struct events e;
	int who;

	row = t->name;
	spawn(SELF, A);
	ASSERT_EQ(run(A, op_map, 0, 0), 0);
	mapped = 1U << A;
	creator = A;
	for (step = t->steps; step->op; step++) {
		who = step->who;
		do
			do_step(step, who);
		while (step->op != FORK && ++who <= step->to);
	}
	e = events_of_write(t->writer, 0, r.nr);
	if (getenv("FOLIO_COW_ROWS"))
		ksft_print_msg("row\t%s\t%s\t%s\t%zu\t%ld\t%ld\t%ld\t%ld\t%ld\t%ld\n",
			       size, t->name, t->copies ? "copy" : "reuse", r.nr, w->moved,
			       w->faults, e.reuse, e.adopt, e.batch,
			       run(t->writer, op_large, 0, 0));
	if (t->copies)
		EXPECT_EQ(w->moved, (long)r.nr) TH_LOG("%s", t->name);
	if (!t->copies)
		expect_cost(t->writer, 0, 0);
	if (patched)
		expect_events(t, &e);
	for (who = A; who <= G; who++)
		if (mapped & 1U << who)
			expect_right(who);
	kill_actors();
}

TEST_F_TIMEOUT(cow, trees, TIMEOUT)
{
	size_t i;

	op_unmap(0, 0);
	for (i = 0; i < ARRAY_SIZE(trees); i++)
		grow(&trees[i], variant->name);
}

/* Not of anonymous folios */
static void *buffer(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANON, -1, 0);

	if (p == MAP_FAILED)
		die("no memory");
	return p;
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
		expect_copied(one, i + quarter, quarter);
		expect_right(two);
		run(two, op_write, i + quarter, 2 * quarter);
		expect_right(one);
		expect_right(two);
	}
	kill_actors();
}

TEST_F(cow, partial_overlap)
{
	row = "parent, child";
	spawn(SELF, B);
	overlap(SELF, B);
	map();
	row = "child, parent";
	spawn(SELF, B);
	overlap(B, SELF);
	map();
	row = "parent gone";
	spawn(SELF, B);
	spawn(B, C);
	op_unmap(0, 0);
	overlap(B, C);
}

/* References: pins, fixed buffers and pipes hold pages */

static bool take_pin(int flags)
{
	struct pin_longterm_test args = {
		.addr = (uintptr_t)at[HELD_FIRST],
		.size = HELD_NR * psize(),
		.flags = flags,
	};

	return !ioctl(gup_fd, PIN_LONGTERM_TEST_START, &args);
}

static bool read_pin(char *buf, size_t len)
{
	__u64 addr = (uintptr_t)buf;

	return !ioctl(gup_fd, PIN_LONGTERM_TEST_READ, &addr);
}

static void drop_pin(void)
{
	ioctl(gup_fd, PIN_LONGTERM_TEST_STOP);
}

static int ring_fd = -1;

/* A fixed buffer of an io_uring */
static bool take_buffer(int unused)
{
	struct iovec iov = { at[HELD_FIRST], HELD_NR * psize() };
	struct io_uring_params params = {};

	ring_fd = syscall(__NR_io_uring_setup, 4, &params);
	return ring_fd >= 0 &&
	       !syscall(__NR_io_uring_register, ring_fd, IORING_REGISTER_BUFFERS, &iov, 1);
}

static void drop_buffer(void)
{
	close(ring_fd);
	ring_fd = -1;
}

static int pipe_fds[2];

static bool take_pipe(int unused)
{
	struct iovec iov = { at[HELD_FIRST], HELD_NR * psize() };

	return vmsplice(pipe_fds[1], &iov, 1, 0) == (ssize_t)iov.iov_len;
}

static bool read_pipe(char *buf, size_t len)
{
	return read(pipe_fds[0], buf, len) == (ssize_t)len;
}

static const struct holder {
	const char *name;
	bool (*take)(int flags);
	bool (*read)(char *buf, size_t len);	/* what a device sees, if we can tell */
	void (*drop)(void);
	int flags;
	bool pins;		/* The pages stay those of the process. */
} holders[] = {
	{ "R/O pin", take_pin, read_pin, drop_pin, 0, true },
	{ "R/O pin, fast", take_pin, read_pin, drop_pin, PIN_LONGTERM_TEST_FLAG_USE_FAST, true },
	{ "R/W pin", take_pin, read_pin, drop_pin, PIN_LONGTERM_TEST_FLAG_USE_WRITE, true },
	{ "R/W pin, fast", take_pin, read_pin, drop_pin,
	  PIN_LONGTERM_TEST_FLAG_USE_WRITE | PIN_LONGTERM_TEST_FLAG_USE_FAST, true },
	{ "io_uring", take_buffer, NULL, drop_buffer, 0, true },
	{ "pipe", take_pipe, read_pipe },
};

enum { NOBODY = -1 };
enum when { EARLY, SHARED, ALONE };	/* before fork(), after it, or once the child is gone */

/* Who has pages held, and who does not map them any more when the other one writes? */
static const struct holding {
	const char *name;
	enum when when;
	int taker;
	int gone;
	bool unmaps;		/* but lives */
} holdings[] = {
	{ "taken, then forked", EARLY, SELF, NOBODY },
	{ "taken, then forked, child gone", EARLY, SELF, B },
	{ "taken, then forked, parent gone", EARLY, SELF, SELF, true },
	{ "forked, then taken", SHARED, SELF, NOBODY },
	{ "forked, then taken, child gone", SHARED, SELF, B },
	{ "forked, then taken, parent gone", SHARED, SELF, SELF, true },
	{ "taken by the child", SHARED, B, NOBODY },
	/* CVE-2020-29374: what the parent writes must not be seen by the child. */
	{ "taken by the child, which exits", SHARED, B, B },
	{ "taken by the child, which unmaps", SHARED, B, B, true },
	{ "taken by the child, parent gone", SHARED, B, SELF, true },
	{ "taken once the child is gone", ALONE, SELF, B },
};

/* Return: whether the pages could be taken; *w has the pages that this copied. */
static long op_take(long holder, long unused)
{
	static struct look before, after;
	bool done;

	memset(w, 0, sizeof(*w));
	memcpy(w->held, shadow + HELD_FIRST, HELD_NR * sizeof(*w->held));
	look(&before);
	done = holders[holder].take(holders[holder].flags);
	look(&after);
	w->moved = nr_differ(&before, &after, 0, r.nr, 0);
	return done;
}

/* Pages in which the holder does not see what the taker wrote, or what was there before */
static long op_held_differ(long holder, long mine)
{
	const uint64_t *want = mine ? shadow + HELD_FIRST : w->held;
	size_t i, len = HELD_NR * psize();
	char *buf = buffer(len);
	long differ = -1;

	if (!holders[holder].read)
		differ = 0;
	else if (holders[holder].read(buf, len))
		for (i = 0, differ = 0; i < HELD_NR; i++)
			differ += *(uint64_t *)(buf + i * psize()) != want[i] ||
				  ((uint64_t *)(buf + (i + 1) * psize()))[-1] != want[i];
	munmap(buf, len);
	return differ;
}

static long op_let_go(long holder, long unused)
{
	if (holders[holder].drop)
		holders[holder].drop();
	return 0;
}

/* A neighbour first: none of its batch may be held. */
static void write_around(const struct holding *s, int who, bool pinned)
{
	run(who, op_write, HELD_FIRST - 1, 1);
	write_by(who, HELD_FIRST, HELD_NR);
	if (pinned)
		EXPECT_EQ(w->moved, 0) TH_LOG("%s, %s: a pinned page moved", row, s->name);
	run(who, op_write, 0, NR_WRITTEN);
	expect_right(who);
}

static void hold(int holder, const struct holding *s)
{
	const struct holder *h = &holders[holder];
	bool mine = h->pins && s->taker != s->gone, exits = s->gone == B && !s->unmaps;
	int reader = exits ? SELF : s->taker;

	map();
	if (s->when == EARLY)
		ASSERT_TRUE(op_take(holder, 0));
	spawn(SELF, B);
	if (s->when == SHARED)
		ASSERT_TRUE(run(s->taker, op_take, holder, 0));
	if (exits)
		quit(B);
	else if (s->gone != NOBODY)
		run(s->gone, op_unmap, 0, 0);
	if (s->when == ALONE) {
		ASSERT_TRUE(op_take(holder, 0));
		if (patched)
			EXPECT_EQ(w->moved, 0) TH_LOG("%s, %s", row, s->name);
	}
	if (s->gone != SELF)
		write_around(s, SELF, mine && s->taker == SELF);
	if (s->gone != B) {
		expect_right(B);
		write_around(s, B, mine && s->taker == B);
		if (s->gone != SELF)
			expect_right(SELF);
	}
	EXPECT_EQ(run(reader, op_held_differ, holder, mine), 0)
		TH_LOG("%s, %s: the holder sees what it should not", row, s->name);
	run(reader, op_let_go, holder, 0);
	/* Nothing is left of it. */
	if (s->when == ALONE && h->pins) {
		fork_and_exit();
		expect_reused(SELF);
	}
	kill_actors();
}

TEST_F_TIMEOUT(cow, references, TIMEOUT)
{
	size_t i, k;

	ASSERT_EQ(pipe(pipe_fds), 0);
	for (i = 0; i < ARRAY_SIZE(holders); i++) {
		row = holders[i].name;
		map();
		if (!op_take(i, 0)) {
			skip_row("not here");
			continue;
		}
		op_held_differ(i, false);
		op_let_go(i, 0);
		/* Pins in turn: fast and slow ones take the same references. */
		for (k = 0; k < ARRAY_SIZE(holdings); k++)
			if (holders[i].take == take_pipe || i % 2 == k % 2)
				hold(i, &holdings[k]);
	}
}

static int open_file(int flags)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/folio_cow.%d", dir, getpid());
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | flags, 0600);
	if (fd >= 0)
		unlink(path);
	return fd;
}

/* What can happen to the memory around fork() */

static bool have_swap(void)
{
	char buf[512];

	return read_file("/proc/swaps", buf, sizeof(buf)) > 0 && strstr(buf, "\n/");
}

static bool page_out(size_t first, size_t nr)
{
	if (have_swap())
		madvise(at[first], nr * psize(), MADV_PAGEOUT);
	return count_ent(0, r.nr, PM_SWAP);
}

static bool page_out_all(void)
{
	return page_out(0, r.nr);
}

static bool swap_in(void)
{
	return !op_wrong(0, r.nr);
}

/* Shared pages only go when a whole memory cgroup is under pressure. */
static bool swap_out_all(void)
{
	if (have_swap() && cgroup.dir[0])
		put(cgroup_file("memory.reclaim"), "%zu swappiness=max", r.nr * psize());
	return count_ent(0, r.nr, PM_SWAP);
}

static int current_node(void)
{
	int node = -1;

	if (syscall(__NR_move_pages, 0, 1, at, NULL, &node, 0))
		return -1;
	return node;
}

/* Return: a node that the pages are not on, or -1. */
static int other_node(void)
{
	int node = current_node(), other;
	char path[64];

	for (other = 0; node >= 0 && other < 64; other++) {
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d", other);
		if (other != node && !access(path, F_OK))
			return other;
	}
	return -1;
}

/* Return: the status of page 0, by move_pages(). */
static long op_move_pages(long flags, long node)
{
	int nodes[MAX_PAGES], status[MAX_PAGES];
	size_t i;

	for (i = 0; i < r.nr; i++)
		nodes[i] = node;
	if (syscall(__NR_move_pages, 0, r.nr, at, nodes, status, flags) < 0)
		return -errno;
	return status[0];
}

static bool migrate(void)
{
	int node = other_node();

	return node >= 0 && op_move_pages(MPOL_MF_MOVE_ALL, node) == node;
}

static bool split(int order)
{
	static struct look l;

	if (!put(DEBUGFS "split_huge_pages", "%d,0x%lx,0x%lx,%d", getpid(),
		 (unsigned long)r.mem, (unsigned long)r.mem + r.nr * psize(), order))
		return false;
	look(&l);
	return nr_runs(&l) == r.nr >> order;
}

static bool split_to_pages(void)
{
	return split(0);
}

static bool split_to_order2(void)
{
	return r.folio_nr > 4 && split(2);
}

/* As khugepaged does: the caller gets a new folio, the others do not. */
static bool collapse(void)
{
	return !madvise(r.mem, read_pmd_pagesize(), MADV_COLLAPSE);
}

static bool soft_offline(void)
{
	static struct look l;

	look(&l);
	return !access(UNPOISON, W_OK) && !madvise(at[0], psize(), MADV_SOFT_OFFLINE) &&
	       !unpoison_memory(pfn_of(l.ent[0]));
}

/* Both lose a page, and get a new one. */
static bool hwpoison(void)
{
	size_t k = r.folio_nr / 2;
	static struct look l;

	look(&l);
	if (access(UNPOISON, W_OK))
		return false;
	signal(SIGBUS, probe_handler);	/* may say at once what we did */
	if (!sigsetjmp(probe_env, 1) && madvise(at[k], psize(), MADV_HWPOISON))
		return false;
	EXPECT_EQ(op_probe(k, false), SIGBUS);
	EXPECT_EQ(run(B, op_probe, k, true), SIGBUS);
	return !unpoison_memory(pfn_of(l.ent[k])) && !op_drop(k, 1) && !run(B, op_drop, k, 1);
}

/* A device writes into the memory: like a write of the process, only as such. */
static bool read_direct(void)
{
	size_t size = r.nr * psize();
	int fd = open_file(O_DIRECT);
	char *zeroes = buffer(size);
	bool done = fd >= 0 && pwrite(fd, zeroes, size, 0) == (ssize_t)size &&
		    pread(fd, r.mem, size, 0) == (ssize_t)size;

	if (done)
		memset(shadow, 0, sizeof(shadow));
	munmap(zeroes, size);
	close(fd);
	return done;
}

/* Another process writes to our page, by its address here. */
static long op_poke(long pid, long addr)
{
	uint64_t value = ~0ULL;
	struct iovec local = { &value, sizeof(value) };
	struct iovec remote = { (void *)addr, sizeof(value) };

	return process_vm_writev(pid, &local, 1, &remote, 1, 0) != sizeof(value);
}

static bool poke(void)
{
	size_t k = r.folio_nr / 2;

	if (run(B, op_poke, getpid(), (long)at[k]) ||
	    run(B, op_poke, getpid(), (long)(at[k] + psize() - sizeof(uint64_t))))
		return false;
	shadow[k] = ~0ULL;
	return true;
}

/* Some pages get the same contents, for KSM. To merge more of them takes seconds. */
static bool fill_same(void)
{
	size_t i;

	for (i = 0; i < 8; i++) {
		((uint64_t *)at[i])[0] = 1;
		((uint64_t *)(at[i] + psize()))[-1] = 1;
		shadow[i] = 1;
	}
	return true;
}

static bool merge(void)
{
	bool merged = ksm_get_full_scans() >= 0 &&
		      put(KSM "pages_to_scan", "8") &&
		      put(KSM "sleep_millisecs", "1") &&
		      !madvise(r.mem, 8 * psize(), MADV_MERGEABLE) && !ksm_start();

	put(KSM "run", "0");
	return merged && count_flags(KPF_KSM);
}

/* Two VMAs, one page table */
static bool cut(void)
{
	return !madvise(r.mem, r.folio_nr / 2 * psize(), MADV_SEQUENTIAL);
}

/* Without pte_special(), only entries of the same VMA are known to be the folio's. */
static long cut_copies(void)
{
	return w->large && has_config("CONFIG_MMU") &&
	       !has_config("CONFIG_ARCH_HAS_PTE_SPECIAL") ? w->large : 0;
}

static bool move_to(char *to, size_t first, size_t nr)
{
	if (mremap(at[first], nr * psize(), nr * psize(), MREMAP_MAYMOVE | MREMAP_FIXED,
		   to) != to)
		return false;
	place(to, first, nr);
	return true;
}

static size_t middle_nr(void)
{
	return MIN(32, r.nr / 4);
}

/* Somewhere else, in another page table */
static bool move_middle(void)
{
	return move_to(r.other, (r.nr - middle_nr()) / 2, middle_nr());
}

static long middle_copies(void)
{
	return r.nr > r.folio_nr ? middle_nr() : (r.nr + middle_nr()) / 2 - 1;
}

/* Half of the first folio ends up in the next page table. */
static bool move_across(void)
{
	return move_to(r.other + read_pmd_pagesize() - r.folio_nr / 2 * psize(), 0, r.nr);
}

static long across_copies(void)
{
	return r.folio_nr / 2 - 1;
}

/* Page 0 is copied, page 1 remains of the folio. */
static bool leave_two(void)
{
	size_t i;

	for (i = 0; i < r.nr; i += r.folio_nr)
		op_drop(i + 2, r.folio_nr - 2);
	return true;
}

static long one_copy(void)
{
	return 1;
}

static const struct event {
	const char *name;
	bool (*before)(void);		/* fork(), in the parent */
	bool (*after)(void);
	long (*copies)(void);		/* by the survivor; NULL: none */
	bool creator;			/* The creator copies none. */
	bool any;			/* No statement on how many are copied */
	long slack;
} events[] = {
	{ "swapped out, then forked", page_out_all, NULL, .any = true },
	{ "swapped out, forked, swapped in", page_out_all, swap_in },
	{ "forked, then swapped out", NULL, swap_out_all },
	{ "forked, then migrated", NULL, migrate },
	{ "forked, then split", NULL, split_to_pages },
	{ "forked, then split to order 2", NULL, split_to_order2 },
	{ "forked, then collapsed", NULL, collapse, .any = true },
	{ "forked, then soft offline", NULL, soft_offline },
	{ "forked, then a page lost", NULL, hwpoison },
	{ "forked, then read by O_DIRECT", NULL, read_direct },
	{ "forked, then written by the child", NULL, poke },
	{ "forked, then merged by KSM", fill_same, merge, .any = true },
	{ "two VMAs, then forked", cut, NULL, cut_copies, true, .slack = 8 },
	{ "forked, then two VMAs", NULL, cut, .slack = 8 },
	{ "forked, then moved in part", NULL, move_middle },
	{ "moved in part, then forked", move_middle, NULL, middle_copies, true },
	{ "in two page tables, then forked", move_across, NULL, across_copies, true,
	  .slack = 8 },
	{ "two pages left, then forked", leave_two, NULL, one_copy },
};

/*
 * While both map it, a write copies. Then the child leaves and the parent goes on, or
 * the other way round. Return: whether the event could be had.
 */
static bool happens(const struct event *e, int survivor)
{
	int other = survivor == SELF ? B : SELF;
	long copies;

	map();
	if (e->before && !e->before())
		return false;
	spawn(SELF, B);
	if (e->after && !e->after())
		return false;
	expect_right(other);
	expect_right(survivor);
	write_by(survivor, 0, 1);
	expect_right(survivor);
	expect_right(other);
	if (other == B)
		quit(B);
	else
		op_unmap(0, 0);
	write_by(survivor, 0, r.nr);
	copies = e->copies && (survivor == B || !e->creator) ? e->copies() : 0;
	if (!e->any)
		expect_cost(survivor, copies, e->slack);
	expect_right(survivor);
	return true;
}

TEST_F_TIMEOUT(cow, events, TIMEOUT)
{
	size_t i;

	cgroup_enter("folio_cow");
	for (i = 0; i < ARRAY_SIZE(events); i++) {
		row = events[i].name;
		if (!happens(&events[i], SELF))
			skip_row("it did not happen");
		else
			happens(&events[i], B);
		kill_actors();
	}
}

/* Pages that became writable before they were written: are they dirty then? */
TEST_F(cow, discard_after_reuse)
{
	int lazy;

	if (!have_swap())
		SKIP(return, "no swap");
	for (lazy = 0; lazy < 2; lazy++) {
		map();
		page_out_all();
		EXPECT_EQ(op_wrong(0, r.nr), 0);
		fork_and_exit();
		if (lazy)
			ASSERT_EQ(madvise(r.mem, r.nr * psize(), MADV_FREE), 0);
		op_write(r.nr / 2, 1);
		op_write(0, r.nr);
		page_out_all();
		expect_right(SELF);
	}
}

static long op_mbind(long flags, long node)
{
	unsigned long mask = 1UL << node;

	if (syscall(__NR_mbind, r.mem, r.nr * psize(), MPOL_BIND, &mask, 8 * sizeof(mask), flags))
		return -errno;
	return current_node();
}

/* Who may move a folio to another node? A child asks, while its parent has it or not. */
static const struct move {
	const char *name;
	op_fn move;
	int flags;
	bool alone;
	bool moves;
} moves[] = {
	{ "mbind(), shared", op_mbind, MPOL_MF_MOVE, false, false },
	{ "mbind(), shared, all", op_mbind, MPOL_MF_MOVE_ALL, false, true },
	{ "mbind(), parent gone", op_mbind, MPOL_MF_MOVE, true, true },
	{ "move_pages(), shared", op_move_pages, MPOL_MF_MOVE, false, false },
	{ "move_pages(), shared, all", op_move_pages, MPOL_MF_MOVE_ALL, false, true },
	{ "move_pages(), parent gone", op_move_pages, MPOL_MF_MOVE, true, true },
};

TEST_F(cow, numa)
{
	int from, to = other_node();
	const struct move *m;
	long node;

	if (to < 0)
		SKIP(return, "no second node");
	for (m = moves; m < moves + ARRAY_SIZE(moves); m++) {
		row = m->name;
		map();
		from = current_node();
		to = other_node();
		spawn(SELF, B);
		if (m->alone)
			op_unmap(0, 0);
		node = run(B, m->move, m->flags, to);
		if (patched || !m->alone)
			EXPECT_EQ(node, m->moves ? to : m->move == op_mbind ? from : -EACCES)
				TH_LOG("%s", row);
		expect_right(B);
		kill_actors();
	}
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
	return !op_drop(k, 1);
}

static bool set_zero_page(size_t k)
{
	return set_hole(k) && is_right(k);
}

static bool set_guard(size_t k)
{
	shadow[k] = 0;
	return !madvise(at[k], psize(), MADV_GUARD_INSTALL);
}

static bool undo_guard(size_t k)
{
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
	return page_out(k, 1);
}

static bool set_uffd_wp(size_t k)
{
	return uffd_arm(UFFD_FEATURE_SIGBUS, UFFDIO_REGISTER_MODE_WP) && uffd_wp(k, 1, true);
}

static bool undo_uffd_wp(size_t k)
{
	return uffd_wp(k, 1, false) && is_right(k);
}

static bool set_uffd_rwp(size_t k)
{
	return uffd_arm(UFFD_FEATURE_SIGBUS | UFFD_FEATURE_RWP, UFFDIO_REGISTER_MODE_RWP) &&
	       uffd_rwp(k, true);
}

static bool undo_uffd_rwp(size_t k)
{
	return uffd_rwp(k, false) && is_right(k);
}

static const struct state {
	const char *name;
	bool (*set)(size_t k);
	bool (*undo)(size_t k);		/* NULL: nothing to undo */
	int on_read;			/* signals */
	int on_write;
	bool absent;			/* There is no page. */
} states[] = {
	{ "hole", set_hole, .absent = true },
	{ "zero page", set_zero_page },
	{ "guard", set_guard, undo_guard, SIGSEGV, SIGSEGV },
	{ "read-only", set_read_only, undo_mprotect, 0, SIGSEGV },
	{ "inaccessible", set_none, undo_mprotect, SIGSEGV, SIGSEGV },
	{ "swapped", set_swapped, .absent = true },
	{ "uffd-wp", set_uffd_wp, undo_uffd_wp, 0, SIGBUS },
	{ "uffd-rwp", set_uffd_rwp, undo_uffd_rwp, SIGBUS, SIGBUS },
};

static void expect_state(const struct state *s, size_t k)
{
	if (s->on_read)
		EXPECT_EQ(op_probe(k, false), s->on_read) TH_LOG("%s", row);
	if (s->on_write)
		EXPECT_EQ(op_probe(k, true), s->on_write) TH_LOG("%s", row);
	if (s->absent)
		EXPECT_EQ(count_ent(k, 1, PM_PRESENT), 0) TH_LOG("%s", row);
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
	const size_t k = r.folio_nr / 2;

	map();
	if (early && !s->set(k))
		return false;
	fork_and_exit();
	if (!early && !s->set(k))
		return false;
	/* The nearest first, then everything but k */
	write_by(SELF, k - 1, 1);
	expect_state(s, k);
	op_write(k + 1, r.nr - k - 1);
	expect_state(s, k);
	op_write(0, k);
	expect_state(s, k);
	if (patched && s->set != set_swapped) {	/* which splits the folio */
		EXPECT_EQ(w->moved, 0) TH_LOG("%s", row);
		EXPECT_LE(w->faults, w->windows + w->clean) TH_LOG("%s", row);
	}
	EXPECT_TRUE(!s->undo || s->undo(k)) TH_LOG("%s", row);
	expect_right(SELF);
	op_write(0, r.nr);
	expect_right(SELF);
	return true;
}

TEST_F_TIMEOUT(cow, neighbours, TIMEOUT)
{
	const struct state *s;
	int early;

	for (s = states; s < states + ARRAY_SIZE(states); s++) {
		row = s->name;
		for (early = 0; early < 2; early++) {
			if (!neighbour(s, early))
				skip_row("not here");
			if (uffd >= 0)
				close(uffd);
			uffd = -1;
		}
	}
}

/* How far a window goes, by the pages that a fault makes writable beside its own */

static void before_hole(void)
{
	fork_and_exit();
	op_drop(0, 1);
}

static void before_copied(void)
{
	spawn(SELF, C);
	op_write(0, 1);
	quit(C);
}

/* Every other page is writable: the child has had the rest only. */
static void before_alternate(void)
{
	size_t i;

	for (i = 0; i < r.nr; i += 2)
		ASSERT_EQ(madvise(at[i], psize(), MADV_DONTFORK), 0);
	fork_and_exit();
	ASSERT_EQ(madvise(r.mem, r.nr * psize(), MADV_DOFORK), 0);
}

TEST_F(cow, windows)
{
	const long n = min_window();
	const struct {
		const char *name;
		void (*before)(void);
		long first;		/* Then the window behind it is written to. */
		long batch[2];
	} rows[] = {
		{ "grows", fork_and_exit, 0, { n - 1, 2 * n - 1 } },
		{ "a hole before it", before_hole, 1, { n - 2, n - 1 } },
		{ "another page before it", before_copied, 1, { n - 2, n - 1 } },
		{ "every other page", before_alternate, 1, { n / 2 - 1, n - 1 } },
	};
	struct events e;
	size_t i;
	int k;

	if (!patched)
		SKIP(return, "the kernel counts no COW reuse");
	if ((long)r.folio_nr < 4 * n || is_pmd_mapped())
		SKIP(return, "for folios of many windows, that PTEs map");
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		map();
		rows[i].before();
		for (k = 0; k < 2; k++) {
			e = events_of_write(SELF, k ? n + 1 : rows[i].first, 1);
			EXPECT_EQ(e.batch, rows[i].batch[k]) TH_LOG("%s: %d", rows[i].name, k);
			EXPECT_EQ(e.reuse, 1) TH_LOG("%s: %d", rows[i].name, k);
			EXPECT_EQ(w->moved, 0) TH_LOG("%s: %d", rows[i].name, k);
		}
		expect_right(SELF);
	}
}

/*
 * Each write is tracked, and no page that was not written appears as such, not even if
 * it is made writable together with one that was, by fork() or by a fault.
 */
static void tracked(uint64_t bit, bool if_written)
{
	size_t k = r.folio_nr / 2, written;

	EXPECT_EQ(count_ent(0, r.nr, bit), if_written ? 0 : r.nr);
	op_write(0, 1);
	fork_and_exit();
	for (written = 1; written < 4; written++) {
		EXPECT_EQ(count_ent(0, r.nr, bit), if_written ? written : r.nr - written);
		EXPECT_EQ(count_ent(k - 2 + written, 1, bit), !if_written);
		op_write(k - 2 + written, 1);
		EXPECT_EQ(count_ent(k - 2 + written, 1, bit), if_written);
		expect_right(SELF);
	}
	write_by(SELF, 0, r.nr);
	EXPECT_EQ(count_ent(0, r.nr, bit), if_written ? r.nr : 0);
	if (patched)
		EXPECT_EQ(w->moved, 0);
	expect_right(SELF);
}

TEST_F(cow, soft_dirty)
{
	int early;

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty tracking");
	if (is_pmd_mapped())
		SKIP(return, "a PMD has one bit for all");
	for (early = 0; early < 2; early++) {
		map();
		if (!early)
			fork_and_exit();
		clear_softdirty();
		if (early)
			fork_and_exit();
		tracked(PM_SOFT_DIRTY, true);
	}
}

TEST_F(cow, uffd_wp_async)
{
	int early;

	for (early = 0; early < 2; early++) {
		map();
		if (!early)
			fork_and_exit();
		if (!uffd_arm(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
			      UFFDIO_REGISTER_MODE_WP) || !uffd_wp(0, r.nr, true))
			SKIP(return, "no asynchronous write protection");
		if (early)
			fork_and_exit();
		tracked(PM_UFFD_WP, false);
		close(uffd);
	}
}

/* Memory of other kinds, in large folios if these can be had */

static bool fill_file(int fd)
{
	size_t size = r.nr * psize();

	if (fd < 0 || ftruncate(fd, size) ||
	    mmap(r.mem, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != r.mem)
		return false;
	madvise(r.mem, size, MADV_HUGEPAGE);
	place(r.mem, 0, r.nr);
	op_write(0, r.nr);
	return true;
}

/* Return: an fd, of r.nr pages that contain what shadow[] says, or -1. */
static int open_shmem(void)
{
	int fd = memfd_create("folio_cow", MFD_CLOEXEC);

	return fill_file(fd) ? fd : -1;
}

static int open_disk(void)
{
	int fd = open_file(0);

	return fill_file(fd) ? fd : -1;
}

static const struct kind {
	const char *name;
	int (*open)(void);
	int flags;
} kinds[] = {
	{ "shared shmem", open_shmem, MAP_SHARED },
	{ "private shmem", open_shmem, MAP_PRIVATE },
	{ "shared file", open_disk, MAP_SHARED },
	{ "private file", open_disk, MAP_PRIVATE },
};

/* In a private mapping, the first write copies, always. Such copies stay alone. */
static void write_kind(bool private)
{
	struct events e = events_of_write(SELF, 0, r.nr);

	EXPECT_EQ(w->moved, private ? (long)r.nr : 0) TH_LOG("%s", row);
	EXPECT_EQ(count_flags(KPF_ANON), private ? r.nr : 0) TH_LOG("%s", row);
	if (patched)	/* file folios do not count */
		EXPECT_EQ(e.reuse + e.adopt + e.batch + e.copy, 0) TH_LOG("%s", row);
	expect_right(SELF);
	if (private)
		expect_right(B);
	write_by(SELF, 0, r.nr);
	EXPECT_EQ(w->moved, 0) TH_LOG("%s", row);
}

static bool test_kind(const struct kind *k)
{
	const bool private = k->flags == MAP_PRIVATE;
	int fd = k->open();

	if (fd < 0 || mmap(r.mem, r.nr * psize(), PROT_READ | PROT_WRITE, k->flags | MAP_FIXED,
			   fd, 0) != r.mem)
		return false;
	place(r.mem, 0, r.nr);
	expect_right(SELF);
	spawn(SELF, B);
	expect_right(B);	/* fork() leaves out what faults can bring */
	EXPECT_EQ(count_ent(0, r.nr, PM_MMAP_EXCLUSIVE), 0) TH_LOG("%s", row);
	move_middle();
	expect_right(SELF);
	write_kind(private);
	/* Private copies of the parent are shared with its child like any others. */
	spawn(SELF, C);
	if (private)
		expect_copied(SELF, 0, r.nr);
	expect_right(SELF);
	kill_actors();
	close(fd);
	return true;
}

TEST_F_TIMEOUT(cow, kinds, TIMEOUT)
{
	size_t i;

	if (!is_pmd_mapped())
		SKIP(return, "once is enough");
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		row = kinds[i].name;
		op_unmap(0, 0);
		if (!test_kind(&kinds[i]))
			skip_row("not here, try FOLIO_COW_DIR");
	}
}

/* Does the first write to an entry that is clean and writable take a fault? */
static bool write_faults_if_clean(void)
{
	char *page = buffer(psize());
	long faults;

	FORCE_READ(*page);
	faults = nr_faults();
	__atomic_store_n(page, 1, __ATOMIC_RELAXED);
	return nr_faults() - faults;
}

int main(int argc, char **argv)
{
	cpu_set_t cpu = {};

	if (argc == 3 && !strcmp(argv[1], "--answer"))
		return answer(atoi(argv[2]));
	if (getenv("FOLIO_COW_DIR"))
		dir = getenv("FOLIO_COW_DIR");
	kpageflags_fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	gup_fd = open(DEBUGFS "gup_test", O_RDWR | O_CLOEXEC);
	patched = read_key(VMSTAT, "thp_cow_reuse") >= 0;
	dirty_by_fault = write_faults_if_clean();
	/* On one CPU, actors wake up sooner, and no page waits in the LRU cache of another. */
	CPU_SET(sched_getcpu(), &cpu);
	sched_setaffinity(0, sizeof(cpu), &cpu);
	/* NUMA balancing spares a process with a policy of its own its faults. */
	syscall(__NR_set_mempolicy, MPOL_LOCAL, NULL, 0);
	if (!geteuid() && thp_available()) {
		keep(KSM "run");
		keep(KSM "pages_to_scan");
		keep(KSM "sleep_millisecs");
		thp_save_settings();
		thp_write_string("defrag", "madvise");
		thp_write_string("shmem_enabled", "advise");
		park_khugepaged();
	}
	return test_harness_run(argc, argv);
}
