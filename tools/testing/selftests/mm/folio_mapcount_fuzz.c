// SPDX-License-Identifier: GPL-2.0
/*
 * Compare what the kernel says about mapped folios with all page tables.
 *
 * Some processes map, unmap, move, protect, write, pin, swap, split, merge and migrate memory
 * at random: private, shared and file memory and hugetlb, in folios of all sizes. Every few
 * commands, all processes wait. Then each figure that the kernel derives from mapcounts is
 * computed from the page tables of all processes of the system, and compared. Each comparison
 * is with a lower and an upper bound, which are the same where an interface is exact.
 * Older kernels count the mappings of each page. Others know the number of mappings of a
 * folio, and count min(number, pages of the folio) as mapped; of an anonymous one, the
 * mappings of one process or those of all others, whichever are more. Pss is a share of this.
 *
 * Everything begins anew with each episode. Command n of an episode depends on nothing but
 * its seed and n. So a failure can be made small: leave out commands while it still fails.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <sys/uio.h>
#include <time.h>
#include "../../../../mm/gup_test.h"
#include "kselftest.h"
#include "folio_truth.h"

#define KSM_SYSFS	"/sys/kernel/mm/ksm"
#define THP_SYSFS	"/sys/kernel/mm/transparent_hugepage"
#define DEBUGFS		"/sys/kernel/debug/"
#define GUP_TEST	DEBUGFS "gup_test"
#define SPLIT_FILE	DEBUGFS "split_huge_pages"
#define FAIL_NTH	"/proc/self/fail-nth"

#define MAX_WORKERS	8
#define PER_EPISODE	200		/* commands */
#define PER_POINT	4		/* commands between two comparisons */
#define NR_BLOCKS	6		/* of PMD size, in the arena */
#define FILE_BLOCKS	4
#define NR_HUGETLB	16
#define MAX_PMD_SIZE	(64UL << 20)
/* No mmap() without an address comes near. */
#define ARENA_ADDRESS	(sizeof(long) == 8 ? 1ULL << 36 : 0x60000000ULL)
#define PSS_SHIFT	12

#define NR_TRIES	10
/* memory.stat is only up to date after the kernel's periodic flush. */
#define FLUSH_EVERY	32
#define NR_TRIES_FLUSH	250
#define TRY_US		20000
#define SHRINK_S	60

enum figure {
	FIG_KPAGECOUNT, FIG_KPAGEFLAGS, FIG_EXCLUSIVE, FIG_USS,
	/* As enum smaps: */
	FIG_RSS, FIG_PSS, FIG_PRIVATE, FIG_SHARED, FIG_PMD, FIG_HTLB_PRIVATE, FIG_HTLB_SHARED,
	FIG_PSS_SUM,
	/* In vmstat: */
	FIG_ANON, FIG_FILE, FIG_ANON_THP, FIG_SHMEM_PMD, FIG_FILE_PMD,
	/* In memory.stat: */
	FIG_CG_ANON, FIG_CG_FILE, FIG_CG_ANON_THP, NR_FIGURES,
};

static const char * const figures[] = {
	[FIG_KPAGECOUNT]	= "kpagecount of a page",
	[FIG_KPAGEFLAGS]	= "kpageflags mmap, anon",
	[FIG_EXCLUSIVE]		= "pagemap bit 56, exclusive",
	[FIG_USS]		= "smaps Pss of a VMA, from Private to Rss (KiB)",
	[FIG_RSS]		= "smaps Rss of a VMA (KiB)",
	[FIG_PSS]		= "smaps Pss of a VMA (KiB)",
	[FIG_PRIVATE]		= "smaps Private of a VMA (KiB)",
	[FIG_SHARED]		= "smaps Shared of a VMA (KiB)",
	[FIG_PMD]		= "smaps *HugePages, *PmdMapped of a VMA (KiB)",
	[FIG_HTLB_PRIVATE]	= "smaps Private_Hugetlb of a VMA (KiB)",
	[FIG_HTLB_SHARED]	= "smaps Shared_Hugetlb of a VMA (KiB)",
	[FIG_PSS_SUM]		= "sum of all Pss (KiB)",
	[FIG_ANON]		= "vmstat nr_anon_pages",
	[FIG_FILE]		= "vmstat nr_mapped",
	[FIG_ANON_THP]		= "vmstat nr_anon_transparent_hugepages",
	[FIG_SHMEM_PMD]		= "vmstat nr_shmem_pmdmapped",
	[FIG_FILE_PMD]		= "vmstat nr_file_pmdmapped",
	[FIG_CG_ANON]		= "memory.stat anon",
	[FIG_CG_FILE]		= "memory.stat file_mapped",
	[FIG_CG_ANON_THP]	= "memory.stat anon_thp",
};

/* What the kernel counts, and what page tables tell of it */
static bool estimates;		/* the kernel does not count the mappings of each page */
static long long counters[NR_FIGURES];
static struct bounds sums[NR_FIGURES];
static long long pss_lost;	/* at most, in KiB, in all VMAs */
static long long others[NR_FIGURES];	/* what no page table accounts for, before we begin */
static unsigned int compared[NR_FIGURES], differs[NR_FIGURES];

struct command {
	unsigned int nr;	/* in the episode */
	unsigned int op;
	unsigned int who, child;
	unsigned int first, pages;	/* a range of the arena */
	unsigned int arg[3];	/* whatever the operation makes of them */
	unsigned int fail;	/* which allocation of the operation, 0: none */
	bool failed;
	int err;
};

enum file { ANON, SHMEM, DISK, HUGETLB, NR_FILES };

/* Above the flags of mmap(): what op_map() maps */
#define FILE_SHIFT	28

/* In memory that the workers share with us */
static struct setup {
	unsigned long block;
	unsigned int block_pages, nr_pages, nr_nodes;
	int fd[NR_FILES];	/* that of ANON is -1 */
	struct command history[PER_EPISODE];
} *setup;

static struct {
	unsigned int seconds, workers;
	uint64_t seed;
	bool fail;		/* -F: allocations of half of the commands */
	const char *dir;
} opt = { .seconds = 10, .workers = 4, .dir = "/tmp" };

static struct {
	uint64_t seed;		/* of this episode */
	__u64 cgroup_ino;
	unsigned int nr_history, points, episodes, commands;
	unsigned int failures;	/* of allocations, on request */
} master;

/* The workers: what a command does */

static int held[2] = { -1, -1 };	/* files that keep pages from being freed or moved */
static sigjmp_buf fault_env;

static char *at(unsigned int page)
{
	return (char *)(uintptr_t)ARENA_ADDRESS + (size_t)page * psize();
}

static size_t bytes(const struct command *c)
{
	return (size_t)c->pages * psize();
}

static size_t file_size(void)
{
	return FILE_BLOCKS * setup->block;
}

/* Where in a file the range of the arena is */
static off_t file_offset(const struct command *c)
{
	return (off_t)c->first * psize() % file_size();
}

/* Whole blocks around the range, for what is done to huge pages. */
static void widen(struct command *c)
{
	unsigned int end = c->first + c->pages;

	c->first -= c->first % setup->block_pages;
	c->pages = roundup(end - c->first, setup->block_pages);
}

static int result(long ret)
{
	return ret < 0 ? -errno : 0;
}

/* More often than not where PMDs can map the file. */
static int op_map(struct command *c, int arg)
{
	const enum file file = arg >> FILE_SHIFT;
	const int flags = arg & ((1 << FILE_SHIFT) - 1);
	const bool hugetlb = file == HUGETLB || flags & MAP_HUGETLB;
	off_t off;

	if (hugetlb || c->arg[1] & 4)
		widen(c);
	off = file_offset(c);
	if (!hugetlb && !(c->arg[1] & 3))
		off = (off + (off_t)(c->arg[2] % setup->block_pages) * psize()) % file_size();
	if (mmap(at(c->first), bytes(c), PROT_READ | PROT_WRITE, flags | MAP_FIXED,
		 setup->fd[file], off) == MAP_FAILED)
		return -errno;
	if (c->arg[1] & 24)
		madvise(at(c->first), bytes(c), MADV_HUGEPAGE);
	if (c->arg[1] & 32)
		madvise(at(c->first), bytes(c), c->arg[1] & 64 ? MADV_POPULATE_READ :
			MADV_POPULATE_WRITE);
	return 0;
}

/* A folio that no other process has, in two blocks: all of it in the first */
static int op_map_twice(struct command *c, int arg)
{
	const size_t len = c->arg[0] % 2 ? setup->block : MIN(bytes(c), setup->block);
	char *from, *to;

	widen(c);
	from = at(c->first);
	to = at((c->first + setup->block_pages) % setup->nr_pages);
	if (mmap(from, setup->block, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	madvise(from, setup->block, MADV_HUGEPAGE);
	madvise(from, setup->block, MADV_POPULATE_WRITE);
	if (sys_mremap(from, 0, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
		return -errno;
	return result(madvise(to, len, MADV_POPULATE_READ));
}

/* What takes nothing but a range: munmap() and the like */
static int op_call(struct command *c, int nr)
{
	return result(syscall(nr, at(c->first), bytes(c)));
}

/* To anywhere in the arena; old length 0 maps shared memory once more. */
static int op_mremap(struct command *c, int flags)
{
	void *to = at(c->arg[0] % (setup->nr_pages - c->pages + 1));
	size_t old = c->arg[1] % 8 ? bytes(c) : 0;

	if (c->arg[2] & 1)	/* so that the PMDs can be moved */
		to = at((c->first + c->arg[0] % NR_BLOCKS * setup->block_pages) %
			(setup->nr_pages - c->pages + 1));
	if (flags)
		old = bytes(c);
	return sys_mremap(at(c->first), old, bytes(c), MREMAP_MAYMOVE | MREMAP_FIXED | flags,
			  to) == MAP_FAILED ? -errno : 0;
}

static int op_mprotect(struct command *c, int prot)
{
	return result(mprotect(at(c->first), bytes(c), prot));
}

static int op_madvise(struct command *c, int advice)
{
	if (advice == MADV_COLLAPSE)
		widen(c);
	return result(madvise(at(c->first), bytes(c), advice));
}

static void on_fault(int sig)
{
	siglongjmp(fault_env, sig);
}

/*
 * What is not mapped, or not so, is left out. Few different values, so that there is
 * something for KSM.
 */
static int op_touch(struct command *c, int write)
{
	const unsigned int steps[] = { 1, 1, 2, 16 };
	unsigned int step = steps[c->arg[0] % ARRAY_SIZE(steps)];
	unsigned int i, faults = 0;

	signal(SIGSEGV, on_fault);
	signal(SIGBUS, on_fault);
	for (i = 0; i < c->pages; i += step) {
		if (sigsetjmp(fault_env, 1)) {
			faults++;
			i += 7 * step;
		} else if (write) {
			__atomic_store_n(at(c->first + i), 1 + c->arg[1] % 3, __ATOMIC_RELAXED);
		} else {
			FORCE_READ(*at(c->first + i));
		}
	}
	signal(SIGSEGV, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
	return faults ? -EFAULT : 0;
}

/* One pin at a time, or one pipe; children do not keep those of a parent. */
static int op_unpin(struct command *c, int arg)
{
	close(held[0]);
	close(held[1]);
	held[0] = -1;
	held[1] = -1;
	return 0;
}

/*
 * For write: on older kernels, a read-only long-term pin never returns where a PMD maps a
 * private file, as each unshare fault maps the same PMD again.
 */
static int op_pin(struct command *c, int arg)
{
	struct pin_longterm_test args = {
		.addr = (uintptr_t)at(c->first),
		.size = bytes(c),
		.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE |
			 (c->arg[0] & PIN_LONGTERM_TEST_FLAG_USE_FAST),
	};

	op_unpin(c, 0);
	held[0] = open(GUP_TEST, O_RDWR | O_CLOEXEC);
	return result(held[0] < 0 ? -1 : ioctl(held[0], PIN_LONGTERM_TEST_START, &args));
}

static int op_splice(struct command *c, int arg)
{
	struct iovec iov = { at(c->first), bytes(c) };

	op_unpin(c, 0);
	if (pipe2(held, O_NONBLOCK | O_CLOEXEC))
		return -errno;
	return result(vmsplice(held[1], &iov, 1, SPLICE_F_NONBLOCK));
}

static int op_migrate(struct command *c, int flags)
{
	static void *pages[1024];
	static int nodes[1024], status[1024];
	unsigned int i, nr = MIN(c->pages, ARRAY_SIZE(pages));

	for (i = 0; i < nr; i++) {
		pages[i] = at(c->first + i);
		nodes[i] = c->arg[0] % setup->nr_nodes;
	}
	return result(syscall(__NR_move_pages, 0, (unsigned long)nr, pages, nodes, status, flags));
}

/* To small folios, as the kernel warns of other orders in the swap cache. */
static int op_split(struct command *c, int arg)
{
	return put(SPLIT_FILE, "%d,0x%lx,0x%lx,0", getpid(), (unsigned long)at(c->first),
		   (unsigned long)at(c->first + c->pages)) ? 0 : -errno;
}

/* Merges what is equal. For a limited time, as there may be nothing to scan. */
static int op_ksm(struct command *c, int arg)
{
	long end = ksm_get_full_scans() + 4;
	unsigned int tries;

	if (madvise(at(c->first), bytes(c), MADV_MERGEABLE) || !put(KSM_SYSFS "/run", "1"))
		return -errno;
	for (tries = 0; ksm_get_full_scans() < end && tries < 400; tries++)
		usleep(5000);
	/* Twice, where an allocation fails: it must not go on. */
	return put(KSM_SYSFS "/run", "0") || put(KSM_SYSFS "/run", "0") ? 0 : -errno;
}

static int op_ksm_undo(struct command *c, int arg)
{
	return ksm_stop();
}

static int op_uffd_move(struct command *c, int arg)
{
	char *to = at(c->arg[0] % (setup->nr_pages - c->pages + 1));
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MOVE };
	struct uffdio_move move = {
		.dst = (uintptr_t)to,
		.src = (uintptr_t)at(c->first),
		.len = bytes(c),
		.mode = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK), err = 0;

	madvise(to, bytes(c), MADV_DONTNEED);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    uffd_register(uffd, to, bytes(c), true, false, false) ||
	    ioctl(uffd, UFFDIO_MOVE, &move))
		err = -errno;
	close(uffd);
	return err;
}

static int some_file(const struct command *c)
{
	return setup->fd[SHMEM + c->arg[0] % (NR_FILES - SHMEM)];
}

/* Part of the file goes, and most of the time comes back, empty. */
static int op_truncate(struct command *c, int arg)
{
	int fd = some_file(c), err;
	off_t len = file_offset(c);

	if (fd == setup->fd[HUGETLB])
		len -= len % setup->block;
	err = result(ftruncate(fd, len));
	if (!err && c->arg[1] & 3)
		err = result(ftruncate(fd, file_size()));
	return err;
}

static int op_fallocate(struct command *c, int mode)
{
	return result(fallocate(some_file(c), mode, file_offset(c), bytes(c)));
}

static int op_pwrite(struct command *c, int arg)
{
	static char buf[256 << 10];
	const size_t len = MIN(sizeof(buf), file_size() - file_offset(c));

	memset(buf, c->arg[1], sizeof(buf));
	return result(pwrite(some_file(c), buf, MIN(bytes(c), len), file_offset(c)));
}

/* Which sizes the kernel may choose from, now. Not all of them exist. */
static int op_sizes(struct command *c, int arg)
{
	unsigned int i, kib;
	char path[96];

	for (i = 0; i < NR_ORDERS; i++) {
		kib = (psize() >> 10) << i;
		snprintf(path, sizeof(path), THP_SYSFS "/hugepages-%ukB/enabled", kib);
		put(path, c->arg[0] & 1U << i ? "madvise" : "never");
		snprintf(path, sizeof(path), THP_SYSFS "/hugepages-%ukB/shmem_enabled", kib);
		put(path, c->arg[1] & 1U << i ? "advise" : "never");
	}
	return 0;
}

/* All are children of the master, so that it can wait for each. */
static int op_clone(struct command *c, int arg)
{
	struct clone_args args = { .flags = CLONE_PARENT };
	pid_t pid = syscall(__NR_clone3, &args, sizeof(args));

	if (!pid) {
		op_unpin(c, 0);
		serve(c->child);
	}
	return pid < 0 ? -errno : pid;
}

static int op_leave(struct command *c, int exec)
{
	if (exec)
		execl("/proc/self/exe", "folio_mapcount_fuzz", "--exit", NULL);
	_exit(0);
}

enum special {
	ORDINARY,
	FORK,
	EXIT,		/* where allocations do not fail */
};

#define ADVICE(advice, weight)	{ #advice, op_madvise, MADV_##advice, weight }

static const struct op {
	const char *name;
	int (*run)(struct command *c, int arg);
	int arg;
	unsigned int weight;
	enum special special;
} ops[] = {
	{ "map anon", op_map, MAP_PRIVATE | MAP_ANONYMOUS, 30 },
	{ "map anon shared", op_map, MAP_SHARED | MAP_ANONYMOUS, 4 },
	{ "map shmem", op_map, MAP_SHARED | SHMEM << FILE_SHIFT, 10 },
	{ "map shmem twice", op_map_twice, 0, 6 },
	{ "map shmem private", op_map, MAP_PRIVATE | SHMEM << FILE_SHIFT, 6 },
	{ "map file", op_map, MAP_SHARED | DISK << FILE_SHIFT, 8 },
	{ "map file private", op_map, MAP_PRIVATE | DISK << FILE_SHIFT, 8 },
	{ "map hugetlb", op_map, MAP_SHARED | HUGETLB << FILE_SHIFT, 3 },
	{ "map hugetlb private", op_map, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, 3 },
	{ "write", op_touch, 1, 50 }, { "read", op_touch, 0, 40 },
	{ "fork", op_clone, 0, 40, FORK },
	{ "exit", op_leave, 0, 20, EXIT }, { "exec", op_leave, 1, 4, EXIT },
	{ "munmap", op_call, __NR_munmap, 10 },
	{ "mremap", op_mremap, 0, 24 }, { "mremap, keep", op_mremap, MREMAP_DONTUNMAP, 6 },
	{ "mprotect read", op_mprotect, PROT_READ, 10 },
	{ "mprotect none", op_mprotect, PROT_NONE, 3 },
	{ "mprotect write", op_mprotect, PROT_READ | PROT_WRITE, 16 },
	ADVICE(DONTNEED, 16), ADVICE(FREE, 6), ADVICE(COLD, 6), ADVICE(PAGEOUT, 16),
	ADVICE(COLLAPSE, 16), ADVICE(HUGEPAGE, 8), ADVICE(NOHUGEPAGE, 4),
	ADVICE(POPULATE_READ, 6), ADVICE(POPULATE_WRITE, 6), ADVICE(WILLNEED, 4),
	ADVICE(REMOVE, 4), ADVICE(DONTFORK, 1), ADVICE(DOFORK, 4), ADVICE(WIPEONFORK, 1),
	ADVICE(KEEPONFORK, 4), ADVICE(UNMERGEABLE, 3), ADVICE(GUARD_INSTALL, 2),
	ADVICE(GUARD_REMOVE, 4),
	{ "mlock", op_call, __NR_mlock, 4 }, { "munlock", op_call, __NR_munlock, 6 },
	{ "ksm", op_ksm, 0, 3 }, { "ksm undo", op_ksm_undo, 0, 1 },
	{ "uffd move", op_uffd_move, 0, 12 }, { "split", op_split, 0, 12 },
	{ "move_pages", op_migrate, MPOL_MF_MOVE, 8 },
	{ "move_pages, shared", op_migrate, MPOL_MF_MOVE_ALL, 8 },
	{ "pin", op_pin, 0, 10 }, { "vmsplice", op_splice, 0, 6 }, { "unpin", op_unpin, 0, 10 },
	{ "truncate", op_truncate, 0, 4 },
	{ "punch hole", op_fallocate, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 6 },
	{ "fallocate", op_fallocate, FALLOC_FL_KEEP_SIZE, 4 },
	{ "pwrite", op_pwrite, 0, 8 },
	{ "sizes", op_sizes, 0, 6 },
};

/*
 * In a worker: run a command. Have one allocation of it fail, on request. A page fault that
 * this hits is tried again; exec() would be killed, so it is spared.
 */
static long run_op(long nr, long unused)
{
	struct command *c = &setup->history[nr];
	char left[16] = "";
	int fd, err;

	if (!c->fail)
		return ops[c->op].run(c, ops[c->op].arg);
	fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
	if (fd < 0 || dprintf(fd, "%u", c->fail) < 0)
		_exit(1);
	err = ops[c->op].run(c, ops[c->op].arg);
	c->failed = pread(fd, left, sizeof(left) - 1, 0) > 0 && !atoi(left);
	pwrite(fd, "0", 1, 0);
	close(fd);
	return err;
}

/* The sequence of commands */

static unsigned int draw_op(uint64_t *state)
{
	unsigned int i, pick, sum = 0;

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		sum += ops[i].weight;
	pick = random_below(state, sum);
	for (i = 0; pick >= ops[i].weight; i++)
		pick -= ops[i].weight;
	return i;
}

/* Parts and wholes of the usual folios, often aligned as these are. */
static void draw_range(uint64_t *state, struct command *c)
{
	const unsigned int block = setup->block_pages;
	const unsigned int sizes[] = { 1, 4, 16, block / 8, block / 2, block, block, 2 * block };

	c->first = random_below(state, setup->nr_pages);
	c->pages = MAX(sizes[random_below(state, ARRAY_SIZE(sizes))], 1U);
	if (c->pages > 4 && !random_below(state, 4))
		c->pages = 1 + random_below(state, c->pages);
	else if (random_below(state, 4))
		c->first -= c->first % c->pages;
	c->pages = MIN(c->pages, setup->nr_pages - c->first);
}

/* Nothing but the seed and the number decides. */
static void draw(unsigned int nr, struct command *c)
{
	uint64_t state = master.seed ^ (uint64_t)nr << 32;
	unsigned int i;

	state = random64(&state);
	*c = (struct command) { .nr = nr };
	c->op = draw_op(&state);
	c->who = 1 + random_below(&state, opt.workers);
	c->child = 1 + random_below(&state, opt.workers);
	draw_range(&state, c);
	for (i = 0; i < ARRAY_SIZE(c->arg); i++)
		c->arg[i] = random_below(&state, 1U << 30);
	if (opt.fail && ops[c->op].special < EXIT && random_below(&state, 2))
		c->fail = 1 + random_below(&state, 1U << random_below(&state, 10));
}

static void print_command(const struct command *c)
{
	ksft_print_msg("  %4u %c%c %-20s %4u pages at %#lx, args %u %u %u, fail %u: %s\n", c->nr,
		       '@' + c->who, ops[c->op].special == FORK ? '@' + c->child : ' ',
		       ops[c->op].name, c->pages, (unsigned long)at(c->first), c->arg[0],
		       c->arg[1], c->arg[2], c->fail, c->err < 0 ? strerror(-c->err) : "done");
}

/* The workers: actors 1 to opt.workers, all of them children of the master */

/* A dead one is represented by the next; where all are dead, life begins anew. */
static void choose_worker(struct command *c)
{
	unsigned int i, w;

	for (i = 0; i < opt.workers; i++) {
		w = 1 + (c->who - 1 + i) % opt.workers;
		if (actor[w].pid) {
			c->who = w;
			return;
		}
	}
	spawn(SELF, c->who);
}

static void run_command(unsigned int nr)
{
	struct command *c = &setup->history[master.nr_history];
	enum special special;
	long ret;

	draw(nr, c);
	choose_worker(c);
	special = ops[c->op].special;
	if (special == FORK && actor[c->child].pid)
		return;
	master.commands++;
	send_call(c->who, run_op, master.nr_history++, 0);
	if (special == EXIT) {
		await_end(c->who);
		return;
	}
	ret = wait_reply(c->who);
	c->err = MIN(ret, 0);
	master.failures += c->failed;
	if (ret > 0) {
		actor[c->child].pid = ret;
		actor[c->child].pidfd = syscall(__NR_pidfd_open, actor[c->child].pid, 0);
		if (actor[c->child].pidfd < 0)
			die("pidfd_open: %s", strerror(errno));
	}
}

/* What the figures ought to be */

static struct bounds exactly(long long value)
{
	return (struct bounds) { value, value };
}

static void add_bounds(struct bounds *sum, struct bounds b, long long factor)
{
	sum->lo += b.lo * factor;
	sum->hi += b.hi * factor;
}

static const struct folio *page_folio(const struct page *page)
{
	return &truth.folio[page->folio];
}

static unsigned int page_count(const struct page *page)
{
	return page->ptes + page->pmds;
}

static unsigned long long folio_pages(const struct folio *folio)
{
	return folio->ptes + (unsigned long long)folio->pmds * folio->nr;
}

/*
 * Which process the kernel takes for the creator cannot be seen: it may be any, or
 * none. So there are bounds for an anonymous folio, unless a PMD maps it.
 */
static struct bounds estimate(const struct folio *folio)
{
	struct bounds b = exactly(MIN(folio_pages(folio), folio->nr));

	if (folio->anon && !folio->pmds)
		b.lo = MIN(folio->least, folio->nr);
	return b;
}

/*
 * In units of 2^-12 bytes. 32-bit kernels lose, in an overflow, the Pss of a PMD that is the
 * only mapping.
 */
static struct bounds pss_bounds(const struct page *page)
{
	const __u64 one = (__u64)psize() << PSS_SHIFT;
	const struct folio *folio = page_folio(page);
	struct bounds b = exactly(one / page_count(page));

	if (estimates) {
		b = estimate(folio);
		b.lo = b.lo * one / folio_pages(folio);
		b.hi = (b.hi * one + folio_pages(folio) - 1) / folio_pages(folio);
	}
	if (sizeof(long) == 4 && folio->pmds == 1 && !folio->ptes)
		b.lo = 0;
	return b;
}

/* 1 if a page counts as private. One that another process maps never does. */
static struct bounds private_bounds(const struct page *page)
{
	const struct folio *folio = page_folio(page);

	if (!estimates || folio->flags & KPF_HUGE || folio->nr == 1 ||
	    folio->ptes + folio->pmds == 1)
		return exactly(page_count(page) == 1);
	return (struct bounds) { 0, page->owner != OWNER_MANY };
}

static void sum_mapping(const struct mapping *m)
{
	const struct page *page = &truth.page[m->page];
	const bool hugetlb = page_folio(page)->flags & KPF_HUGE;
	struct bounds private = private_bounds(page);
	struct bounds shared = { 1 - private.hi, 1 - private.lo };
	struct bounds *sum = truth.vma[m->vma].sum;
	const long long kib = psize() >> 10;

	add_bounds(&sum[hugetlb ? SMAPS_HTLB_PRIVATE : SMAPS_PRIVATE], private, kib);
	add_bounds(&sum[hugetlb ? SMAPS_HTLB_SHARED : SMAPS_SHARED], shared, kib);
	if (hugetlb)
		return;
	add_bounds(&sum[SMAPS_RSS], exactly(1), kib);
	add_bounds(&sum[SMAPS_PMD], exactly(m->pmd), kib);
	add_bounds(&sum[SMAPS_PSS], pss_bounds(page), 1);
}

static void sum_folio(const struct folio *folio)
{
	const bool ours = master.cgroup_ino && folio->cgroup == master.cgroup_ino;
	struct bounds mapped = estimates ? estimate(folio) : exactly(folio->mapped);

	if (folio->flags & (KPF_HUGE | KPF_ZERO_PAGE))
		return;
	add_bounds(&sums[folio->anon ? FIG_ANON : FIG_FILE], mapped, 1);
	add_bounds(&sums[folio->anon ? FIG_CG_ANON : FIG_CG_FILE], mapped, ours);
	add_bounds(&sums[FIG_PSS_SUM], mapped, psize() >> 10);
	if (!folio->pmds)
		return;
	if (!folio->anon) {
		add_bounds(&sums[folio->flags & KPF_SWAPBACKED ? FIG_SHMEM_PMD : FIG_FILE_PMD],
			   exactly(1), 1);
	} else {
		add_bounds(&sums[FIG_ANON_THP], exactly(1), 1);
		add_bounds(&sums[FIG_CG_ANON_THP], exactly(folio->nr), ours);
	}
}

static void take_snapshot(void)
{
	enum figure f;

	truth_scan();
	fold_vmstat();
	for (f = FIG_ANON; f < FIG_CG_ANON; f++)
		counters[f] = read_key("/proc/vmstat", figures[f] + strlen("vmstat "));
	for (f = FIG_CG_ANON; f < NR_FIGURES && master.cgroup_ino; f++)
		counters[f] = read_key(cgroup_file("memory.stat"),
				       figures[f] + strlen("memory.stat ")) / psize();
	count_all();
}

/* Comparing */

static struct {
	unsigned int differ;		/* figures */
	unsigned int differ_exact;	/* of these, all but memory.stat */
	bool report;
} judged;

static void print_mismatch(enum figure f, long long kernel, struct bounds b,
			   const struct vma *vma, const struct page *page)
{
	const struct folio *folio = page ? page_folio(page) : NULL;

	ksft_print_msg("MISMATCH: %s: kernel %lld, computed %lld to %lld\n", figures[f], kernel,
		       b.lo, b.hi);
	if (vma)
		ksft_print_msg("  VMA %#lx-%#lx of pid %d\n", vma->start, vma->end, vma->pid);
	if (folio)
		ksft_print_msg("  page %zu of %u, pfn %#llx, flags %#llx, %u PTEs, %u PMDs\n",
			       page - &truth.page[folio->first], folio->nr, folio->pfn,
			       folio->flags, folio->ptes, folio->pmds);
}

/* What does not apply of the last two is NULL: they are for the report. */
static void compare(enum figure f, long long kernel, struct bounds b, const struct vma *vma,
		    const struct page *page)
{
	const bool ok = kernel >= b.lo && kernel <= b.hi;

	if (judged.report) {
		compared[f]++;
		differs[f] += !ok;
	}
	if (ok)
		return;
	if (judged.report && judged.differ < 4)
		print_mismatch(f, kernel, b, vma, page);
	judged.differ++;
	judged.differ_exact += f < FIG_CG_ANON;
}

static void judge_pages(void)
{
	const __u64 mask = KPF_MMAP | KPF_ANON;
	const struct page *page;

	for (page = truth.page; page < &truth.page[truth.nr_pages]; page++) {
		if (page_folio(page)->flags & KPF_ZERO_PAGE)
			continue;
		compare(FIG_KPAGECOUNT, page->kcount, exactly(page_count(page)), NULL, page);
		compare(FIG_KPAGEFLAGS, page->kflags & mask,
			exactly(page_folio(page)->anon ? mask : KPF_MMAP), NULL, page);
	}
}

/* Where pages are counted exactly, a PMD's bit 56 is judged by its first page. */
static void judge_mappings(void)
{
	const struct page *page, *first;
	const struct mapping *m;

	for (m = truth.map; m < &truth.map[truth.nr_map]; m++) {
		page = &truth.page[m->page];
		if (page_folio(page)->flags & KPF_ZERO_PAGE)
			continue;
		first = m->pmd && !estimates ? page - m->pfn % setup->block_pages : page;
		compare(FIG_EXCLUSIVE, m->exclusive, private_bounds(first), &truth.vma[m->vma],
			page);
		sum_mapping(m);
	}
}

/*
 * No process has more to itself than its share, or a share of more than it maps. Where
 * 32-bit kernels lose some, Pss is not bounded from below.
 */
static void judge_vmas(void)
{
	const bool loses = !estimates && sizeof(long) == 4;
	struct vma *vma;
	unsigned int i;

	for (vma = truth.vma; vma < &truth.vma[truth.nr_vmas]; vma++) {
		if (!worth_scanning(vma))
			continue;
		vma->sum[SMAPS_PSS].lo >>= PSS_SHIFT + 10;
		vma->sum[SMAPS_PSS].hi >>= PSS_SHIFT + 10;
		for (i = 0; i < NR_SMAPS; i++)
			compare(FIG_RSS + i, vma->kib[i], vma->sum[i], vma, NULL);
		compare(FIG_USS, vma->kib[SMAPS_PSS],
			(struct bounds) { loses ? 0 : vma->kib[SMAPS_PRIVATE],
					  vma->kib[SMAPS_RSS] }, vma, NULL);
		counters[FIG_PSS_SUM] += vma->kib[SMAPS_PSS];
		pss_lost += 2;	/* it is rounded down */
	}
}

static void judge_counters(bool flushed)
{
	/* What the kernel may hold back of memory.stat, see mem_cgroup_flush_stats() */
	const long long slack = 2 * 64 * sysconf(_SC_NPROCESSORS_ONLN);
	enum figure f;

	/* If the kernel estimates, it uses the same estimate for Pss and what is mapped. */
	if (estimates)
		sums[FIG_PSS_SUM] = exactly((counters[FIG_ANON] - others[FIG_ANON] +
					     counters[FIG_FILE] - others[FIG_FILE]) *
					    (psize() >> 10));
	sums[FIG_PSS_SUM].lo -= pss_lost;
	for (f = FIG_PSS_SUM; f < NR_FIGURES; f++) {
		if (f >= FIG_CG_ANON && !master.cgroup_ino)
			continue;
		if (f >= FIG_CG_ANON && !flushed)
			sums[f] = (struct bounds) { sums[f].lo - slack, sums[f].hi + slack };
		compare(f, counters[f] - others[f], sums[f], NULL, NULL);
	}
}

/* Memory.stat is exact only if @flushed. Only what is to be reported counts in the end. */
static void judge(bool flushed, bool report)
{
	unsigned int i;

	memset(&judged, 0, sizeof(judged));
	judged.report = report;
	memset(sums, 0, sizeof(sums));
	counters[FIG_PSS_SUM] = 0;
	pss_lost = 0;
	for (i = 0; i < truth.nr_vmas; i++)
		memset(truth.vma[i].sum, 0, sizeof(truth.vma[i].sum));
	for (i = 0; i < truth.nr_folios; i++)
		sum_folio(&truth.folio[i]);
	judge_pages();
	judge_mappings();
	judge_vmas();
	judge_counters(flushed);
}

/*
 * Looks again before it complains: a first look may itself disturb, as it may
 * copy pages on write; and what is freed late may be on its way.
 */
static bool look(bool flushed)
{
	unsigned int tries = 0, max;

	do {
		if (tries)
			usleep(TRY_US);
		take_snapshot();
		judge(flushed, false);
		max = flushed && !judged.differ_exact ? NR_TRIES_FLUSH : NR_TRIES;
	} while (judged.differ && ++tries < max);
	return !judged.differ;
}

/* A quiescent point. Return: false if anything differs. */
static bool check(bool quiet)
{
	const bool flushed = !(master.points++ % FLUSH_EVERY), ok = look(flushed);

	if (!quiet)
		judge(flushed, true);
	return ok;
}

/* Episodes */

static int open_memfd(const char *name, unsigned int flags, size_t size)
{
	int fd = syscall(__NR_memfd_create, name, flags);

	if (fd >= 0 && ftruncate(fd, size))
		die("ftruncate: %s", strerror(errno));
	return fd;
}

static int open_file(void)
{
	int fd = open(opt.dir, O_TMPFILE | O_RDWR, 0600);

	/* One write, so that the file system can choose large folios. */
	if (fd < 0 || write(fd, truth.text, setup->block) != (ssize_t)setup->block ||
	    ftruncate(fd, file_size()))
		die("a file, see -d: %s", strerror(errno));
	return fd;
}

/* Return: how many commands it took until something differed; 0: nothing did. */
static unsigned int run_episode(const unsigned int *list, unsigned int nr, bool quiet, time_t end)
{
	struct command all_sizes = { .arg = { -1U, -1U } };
	bool ok = true;
	unsigned int i;

	setup->fd[SHMEM] = open_memfd("folio_mapcount_fuzz", 0, file_size());
	setup->fd[HUGETLB] = open_memfd("folio_mapcount_fuzz", MFD_HUGETLB, file_size());
	setup->fd[DISK] = open_file();
	op_sizes(&all_sizes, 0);
	master.nr_history = 0;
	for (i = 0; i < nr && ok && time(NULL) < end; i++) {
		run_command(list[i]);
		if (i + 1 == nr || (!quiet && (i + 1) % PER_POINT == 0))
			ok = check(quiet);
	}
	kill_actors();
	close(setup->fd[SHMEM]);
	close(setup->fd[HUGETLB]);
	close(setup->fd[DISK]);
	if (ok)
		ok = check(quiet);
	return ok ? 0 : i;
}

/* Leave out halves, quarters, ..., single commands, as long as it differs. */
static void shrink(unsigned int *list, unsigned int nr)
{
	unsigned int part[PER_EPISODE], chunk, from, cut;
	time_t end = time(NULL) + SHRINK_S;

	for (chunk = (nr + 1) / 2; chunk; chunk = chunk > 1 ? (chunk + 1) / 2 : 0) {
		for (from = 0; from < nr && time(NULL) < end;) {
			cut = MIN(chunk, nr - from);
			memcpy(part, list, from * sizeof(*part));
			memcpy(part + from, list + from + cut, (nr - from - cut) * sizeof(*part));
			if (nr > cut && run_episode(part, nr - cut, true, end)) {
				nr -= cut;
				memcpy(list, part, nr * sizeof(*part));
			} else {
				from += cut;
			}
		}
	}
	ksft_print_msg("%u commands are enough:\n", nr);
	if (!run_episode(list, nr, true, LONG_MAX))
		ksft_print_msg("(not every time)\n");
	for (from = 0; from < master.nr_history; from++)
		print_command(&setup->history[from]);
}

/* Until something differs. */
static void run_episodes(void)
{
	unsigned int list[PER_EPISODE], i, nr;
	time_t end = time(NULL) + opt.seconds;

	for (; time(NULL) < end; master.episodes++, master.seed++) {
		for (i = 0; i < PER_EPISODE; i++)
			list[i] = i;
		nr = run_episode(list, PER_EPISODE, false, end);
		if (nr) {
			ksft_print_msg("with -s %llu\n", (unsigned long long)master.seed);
			shrink(list, nr);
			return;
		}
	}
}

/* Set-up */

/* Not before the system has come to rest. */
static void measure_others(void)
{
	long long before[NR_FIGURES];
	unsigned int tries = 0;
	enum figure f;

	do {
		memcpy(before, others, sizeof(before));
		memset(others, 0, sizeof(others));
		usleep(TRY_US);
		take_snapshot();
		judge(false, false);
		for (f = FIG_ANON; f < FIG_CG_ANON; f++)
			others[f] = counters[f] - sums[f].lo;
	} while (memcmp(before, others, sizeof(before)) && ++tries < 10 * NR_TRIES);
}

/* A worker that is not forked by another begins with one area in all of the arena. */
static void setup_memory(void)
{
	const int prot = PROT_READ | PROT_WRITE;
	const char *reason;
	size_t size;

	setup = mmap(NULL, sizeof(*setup), prot, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (setup == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	setup->fd[ANON] = -1;
	setup->block = read_pmd_pagesize();
	if (!setup->block || setup->block > MAX_PMD_SIZE)
		setup->block = 2UL << 20;
	setup->block_pages = setup->block / psize();
	setup->nr_pages = NR_BLOCKS * setup->block_pages;
	setup->nr_nodes = access("/sys/devices/system/node/node1", F_OK) ? 1 : 2;
	size = NR_BLOCKS * setup->block;
	reason = truth_setup(setup->block_pages, ARENA_ADDRESS, size);
	if (reason)
		ksft_exit_skip("%s\n", reason);
	if (!fold_vmstat() || has_config("CONFIG_NO_PAGE_MAPCOUNT"))
		ksft_exit_skip("no stat_refresh, or a kernel that shows averages\n");
	if (mmap(at(0), size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
		 0) != at(0))
		die("the arena: %s", strerror(errno));
	madvise(at(0), size, MADV_HUGEPAGE);
}

/* Works without, too. */
static void setup_cgroup(void)
{
	struct stat st;

	if (cgroup_enter("folio_mapcount_fuzz") && truth.kpagecgroup >= 0 && !stat(cgroup.dir, &st))
		master.cgroup_ino = st.st_ino;
	else
		ksft_print_msg("no cgroup v2, so no memory.stat\n");
}

/* Huge pages on request, and nothing that works in the background. */
static void setup_sysfs(void)
{
	struct thp_settings settings;

	if (thp_available()) {
		thp_save_settings();
		thp_read_settings(&settings);
		settings.thp_enabled = THP_MADVISE;
		settings.thp_defrag = THP_DEFRAG_ALWAYS;
		settings.shmem_enabled = SHMEM_ADVISE;
		settings.khugepaged.scan_sleep_millisecs = 3600 * 1000;
		thp_push_settings(&settings);
	}
	if (!hugetlb_setup_default(NR_HUGETLB))
		ksft_print_msg("few hugetlb pages to be had\n");
	keep(KSM_SYSFS "/pages_to_scan");
	keep(KSM_SYSFS "/sleep_millisecs");
	put(KSM_SYSFS "/pages_to_scan", "100000");
	put(KSM_SYSFS "/sleep_millisecs", "1");
}

/*
 * All allocations may fail, even small ones that may wait; nothing does but what
 * a worker asks for. These settings need no undoing.
 */
static void setup_failures(void)
{
	if (access(FAIL_NTH, W_OK) || !put(DEBUGFS "failslab/ignore-gfp-wait", "N") ||
	    !put(DEBUGFS "failslab/verbose", "0") ||
	    !put(DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N") ||
	    !put(DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N") ||
	    !put(DEBUGFS "fail_page_alloc/min-order", "0") ||
	    !put(DEBUGFS "fail_page_alloc/verbose", "0"))
		ksft_exit_skip("no %s, or not all of Documentation/fault-injection\n", FAIL_NTH);
}

static void parse_options(int argc, char **argv)
{
	int c;

	opt.seed = time(NULL) ^ getpid() << 16;
	while ((c = getopt(argc, argv, "t:s:p:Fd:")) != -1) {
		if (c == 't')
			opt.seconds = atoi(optarg);
		else if (c == 's')
			opt.seed = strtoull(optarg, NULL, 0);
		else if (c == 'p')
			opt.workers = atoi(optarg);
		else if (c == 'F')
			opt.fail = true;
		else if (c == 'd')
			opt.dir = optarg;
		else
			ksft_exit_fail_msg("-t SECONDS -s SEED -p PROCESSES -F -d DIR\n");
	}
	if (opt.workers < 2 || opt.workers > MAX_WORKERS)
		ksft_exit_fail_msg("2 to %u processes\n", MAX_WORKERS);
}

int main(int argc, char **argv)
{
	unsigned int f;

	if (argc == 2 && !strcmp(argv[1], "--exit"))
		return 0;	/* a worker that exec() ends */
	parse_options(argc, argv);
	ksft_print_header();
	setup_memory();
	atexit(cgroup_leave);
	atexit(kill_actors);
	setup_cgroup();
	setup_sysfs();
	if (opt.fail)
		setup_failures();
	ksft_set_plan(NR_FIGURES);
	make_actors();
	estimates = read_key("/proc/vmstat", "thp_cow_adopt") >= 0;
	measure_others();
	master.seed = opt.seed;
	ksft_print_msg("seed %llu, %u processes%s\n", (unsigned long long)opt.seed,
		       opt.workers, estimates ? ", the kernel estimates" : "");
	run_episodes();
	ksft_print_msg("%u commands in %u episodes, %u comparisons, %u allocations failed\n",
		       master.commands, master.episodes, master.points, master.failures);
	for (f = 0; f < NR_FIGURES; f++) {
		if (compared[f])
			ksft_test_result(!differs[f], "%s: %u comparisons\n", figures[f],
					 compared[f]);
		else
			ksft_test_result_skip("%s\n", figures[f]);
	}
	ksft_finished();
}
