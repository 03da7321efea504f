// SPDX-License-Identifier: GPL-2.0
/*
 * folio_mapcount_fuzz - random mappings, and what the kernel says about them
 *
 * Some processes map, unmap, move, protect, write, pin, swap, split, merge and
 * migrate memory at random: private, shared and file memory and hugetlb, in
 * folios of all sizes. After every few operations, nobody moves. Then each
 * figure that the kernel derives from mapcounts is computed again, from the
 * page tables of all processes of the system, and compared:
 *
 *	sequence: seed --> draw() --> commands 0, 1, 2, ...
 *	    | sockets			      |
 *	    v				      v at quiescent points
 *	A, B, C ... (at most 8)		snapshot: smaps, pagemap, kpageflags
 *	    fork, exec, exit		      | of all processes
 *					      v
 *			kpagecount, vmstat, memory.stat, ... <--> bounds
 *
 * Each comparison is with a lower and an upper bound, which are the same where
 * an interface is exact. How exact it is depends on the kernel:
 *
 *	exact	 it counts the mappings of each page (the default of older kernels)
 *	estimate it knows the number of mappings of a folio, and counts
 *		 min(number, pages of the folio) as mapped; of an anonymous one,
 *		 the mappings of one process or those of all others, whichever
 *		 are more. Pss is shared out accordingly. kpagecount is exact
 *	average	 the same, but kpagecount and Pss go by a rounded average, and a
 *		 folio may count as a whole
 *
 * A probe finds out, for each figure, unless -m tells.
 *
 * A run consists of episodes, in which everything begins anew. Command n of an
 * episode depends on nothing but its seed and n, so part of an episode can be
 * repeated, and that is how a failure is made small: as long as it still fails,
 * leave commands out.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <getopt.h>
#include <limits.h>
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include "../../../../mm/gup_test.h"
#include "kselftest.h"
#include "vm_util.h"
#include "hugepage_settings.h"
#include "folio_mapcount_truth.h"

#define THP_SYSFS	"/sys/kernel/mm/transparent_hugepage"
#define KSM_SYSFS	"/sys/kernel/mm/ksm"
#define GUP_TEST	"/sys/kernel/debug/gup_test"
#define SPLIT_FILE	"/sys/kernel/debug/split_huge_pages"
#define FAIL_NTH	"/proc/self/fail-nth"
#define CGROUPFS	"/sys/fs/cgroup"

#define MAX_WORKERS	8
#define MAX_LIST	4096
#define NR_BLOCKS	6		/* of PMD size, in the arena */
#define FILE_BLOCKS	4
#define NR_HUGETLB	16
#define MAX_PMD_SIZE	(64UL << 20)
/* Nothing that asks for no address comes near. */
#define ARENA_ADDRESS	(sizeof(long) == 8 ? 1ULL << 36 : 0x60000000ULL)
#define PSS_SHIFT	12

#define NR_TRIES	10
#define TRY_US		20000
/* memory.stat is only up to date after the kernel's periodic flush. */
#define FLUSH_EVERY	32
#define NR_TRIES_FLUSH	50
#define TRY_US_FLUSH	100000
#define STUCK_MS	120000
#define PROGRESS_S	10

enum mode {
	MODE_EXACT,
	MODE_ESTIMATE,
	MODE_AVERAGE,
	NR_MODES,
};

static const char * const mode_names[] = { "exact", "estimate", "average" };

enum figure {
	FIG_KPAGECOUNT,
	FIG_KPAGEFLAGS,
	FIG_EXCLUSIVE,
	FIG_USS,
	FIG_RSS,		/* from here on as enum smaps */
	FIG_PSS,
	FIG_PRIVATE,
	FIG_SHARED,
	FIG_PMD,
	FIG_HTLB_PRIVATE,
	FIG_HTLB_SHARED,
	FIG_PSS_SUM,
	FIG_ANON,
	FIG_FILE,
	FIG_ANON_THP,
	FIG_SHMEM_PMD,
	FIG_FILE_PMD,
	FIG_CG_ANON,
	FIG_CG_FILE,
	FIG_CG_ANON_THP,
	NR_FIGURES,
};

static struct {
	const char *name;
	const char *what;
	enum mode mode;
	unsigned long long compared;
	unsigned long long within;	/* but not exact */
	unsigned int differs;
} figures[] = {
	[FIG_KPAGECOUNT]	= { "kpagecount", "kpagecount of a page" },
	[FIG_KPAGEFLAGS]	= { "kpageflags", "kpageflags mmap, anon" },
	[FIG_EXCLUSIVE]		= { "exclusive", "pagemap bit 56, exclusive" },
	[FIG_USS]		= { "uss", "smaps Pss of a VMA, from Private to Rss (KiB)" },
	[FIG_RSS]		= { "rss", "smaps Rss of a VMA (KiB)" },
	[FIG_PSS]		= { "pss", "smaps Pss of a VMA (KiB)" },
	[FIG_PRIVATE]		= { "private", "smaps Private of a VMA (KiB)" },
	[FIG_SHARED]		= { "shared", "smaps Shared of a VMA (KiB)" },
	[FIG_PMD]		= { "pmd", "smaps *HugePages, *PmdMapped of a VMA (KiB)" },
	[FIG_HTLB_PRIVATE]	= { "hugetlb-private", "smaps Private_Hugetlb of a VMA (KiB)" },
	[FIG_HTLB_SHARED]	= { "hugetlb-shared", "smaps Shared_Hugetlb of a VMA (KiB)" },
	[FIG_PSS_SUM]		= { "pss-sum", "sum of all Pss (KiB)" },
	[FIG_ANON]		= { "anon", "vmstat nr_anon_pages" },
	[FIG_FILE]		= { "mapped", "vmstat nr_mapped" },
	[FIG_ANON_THP]		= { "anon-thp", "vmstat nr_anon_transparent_hugepages" },
	[FIG_SHMEM_PMD]		= { "shmem-pmd", "vmstat nr_shmem_pmdmapped" },
	[FIG_FILE_PMD]		= { "file-pmd", "vmstat nr_file_pmdmapped" },
	[FIG_CG_ANON]		= { "cgroup-anon", "memory.stat anon (pages)" },
	[FIG_CG_FILE]		= { "cgroup-mapped", "memory.stat file_mapped (pages)" },
	[FIG_CG_ANON_THP]	= { "cgroup-anon-thp", "memory.stat anon_thp (pages)" },
};

static const struct key vmstat_keys[] = {
	{ "nr_anon_pages ", FIG_ANON },
	{ "nr_mapped ", FIG_FILE },
	{ "nr_anon_transparent_hugepages ", FIG_ANON_THP },
	{ "nr_shmem_pmdmapped ", FIG_SHMEM_PMD },
	{ "nr_file_pmdmapped ", FIG_FILE_PMD },
};

static const struct key memcg_keys[] = {
	{ "anon ", FIG_CG_ANON },
	{ "file_mapped ", FIG_CG_FILE },
	{ "anon_thp ", FIG_CG_ANON_THP },
};

/* The counters: the kernel's, and what they ought to be */
static long long counters[NR_FIGURES];
static struct bounds sums[NR_FIGURES];
static long long pss_lost;	/* at most, in KiB, in all VMAs */
/* What no page table of a process accounts for, before we begin, in each mode */
static long long others[NR_MODES][NR_FIGURES];

struct command {
	unsigned int nr;	/* in the sequence */
	unsigned int op;
	unsigned int who;
	unsigned int child;
	unsigned int first;	/* a range of pages of the arena */
	unsigned int pages;
	unsigned int arg[3];	/* whatever the operation makes of them */
	unsigned int fail;	/* which allocation of the operation, 0: none */
	int err;
};

struct reply {
	int err;
	bool failed;		/* an allocation has, on request */
	pid_t pid;
};

/* What workers need to know, also after exec(): they read it from a memfd. */
static struct setup {
	unsigned long block;
	unsigned int block_pages;
	unsigned int nr_pages;
	unsigned int nr_nodes;
	unsigned long orders;
	unsigned long shmem_orders;
	int self_fd;
	int shmem_fd;
	int file_fd;
	int hugetlb_fd;
	int to_worker[MAX_WORKERS];
	int to_master[MAX_WORKERS];
} setup = { .shmem_fd = -1, .file_fd = -1, .hugetlb_fd = -1 };

static struct {
	unsigned int seconds;
	unsigned int points;
	unsigned int workers;
	unsigned int per_point;
	unsigned int per_episode;
	unsigned int shrink_seconds;
	uint64_t seed;
	bool concurrent;
	bool fail;
	bool verbose;
	const char *dir;
	const char *list;
	int mode;
	int spoil;
} opt = {
	.seconds = 20, .workers = 4, .per_point = 4, .per_episode = 200,
	.shrink_seconds = 60, .dir = "/tmp", .mode = -1, .spoil = -1,
};

enum seen {
	SEEN_SMALL,
	SEEN_KSM,
	SEEN_LARGE,
	SEEN_UNEVEN,
	SEEN_PMD,
	SEEN_BOTH,
	SEEN_HUGETLB,
	NR_SEEN,
};

static const char * const seen_names[] = {
	[SEEN_SMALL]	= "small",
	[SEEN_KSM]	= "small, by KSM",
	[SEEN_LARGE]	= "large, each page once",
	[SEEN_UNEVEN]	= "large, other PTEs",
	[SEEN_PMD]	= "large, by PMDs",
	[SEEN_BOTH]	= "large, by PMDs and PTEs",
	[SEEN_HUGETLB]	= "hugetlb",
};

static struct {
	pid_t pid;
	uint64_t start_ms;
	uint64_t seed;		/* of this episode */
	int nr_cpus;
	char cgroup[64];
	__u64 cgroup_ino;
	bool controls;		/* the root cgroup's memory controller, by us */
	unsigned long ksm_sleep;
	unsigned long ksm_pages;
	int cmd_fd[MAX_WORKERS];
	int reply_fd[MAX_WORKERS];
	pid_t worker[MAX_WORKERS];
	bool busy[MAX_WORKERS];
	struct command *doing[MAX_WORKERS];
	struct command *history;
	unsigned int nr_history;
	unsigned int points;
	unsigned int episodes;
	unsigned int commands;
	unsigned int failures;		/* of allocations, on request */
	unsigned int seen[NR_SEEN];
	unsigned int deaths;
	bool hang;
} master;

/* The workers: what a command does */

static int self;
static int pin_fd = -1;
static int pipe_fd[2] = { -1, -1 };
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
	return FILE_BLOCKS * setup.block;
}

/* Whole blocks around the range, for what is done to huge pages. */
static void widen(struct command *c)
{
	unsigned int end = c->first + c->pages;

	c->first -= c->first % setup.block_pages;
	c->pages = (end - c->first + setup.block_pages - 1) / setup.block_pages *
		   setup.block_pages;
}

static int result(long ret)
{
	return ret < 0 ? -errno : 0;
}

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

enum kind {
	KIND_ANON,
	KIND_ANON_SHARED,
	KIND_SHMEM,
	KIND_SHMEM_PRIVATE,
	KIND_FILE,
	KIND_FILE_PRIVATE,
	KIND_HUGETLB,
	KIND_HUGETLB_PRIVATE,
};

static const struct {
	int flags;
	const int *fd;
} kinds[] = {
	[KIND_ANON]		= { MAP_PRIVATE | MAP_ANONYMOUS },
	[KIND_ANON_SHARED]	= { MAP_SHARED | MAP_ANONYMOUS },
	[KIND_SHMEM]		= { MAP_SHARED, &setup.shmem_fd },
	[KIND_SHMEM_PRIVATE]	= { MAP_PRIVATE, &setup.shmem_fd },
	[KIND_FILE]		= { MAP_SHARED, &setup.file_fd },
	[KIND_FILE_PRIVATE]	= { MAP_PRIVATE, &setup.file_fd },
	[KIND_HUGETLB]		= { MAP_SHARED, &setup.hugetlb_fd },
	[KIND_HUGETLB_PRIVATE]	= { MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB },
};

/* More often than not where PMDs can map the file. */
static off_t map_offset(const struct command *c)
{
	off_t off = (off_t)c->first * psize();

	if (!(c->arg[1] & 3))
		off += (off_t)(c->arg[2] % setup.block_pages) * psize();
	return off % file_size();
}

static int op_map(struct command *c, int kind)
{
	const int *fd = kinds[kind].fd;
	off_t off;

	if (kind >= KIND_HUGETLB || c->arg[1] & 4)
		widen(c);
	off = kind == KIND_HUGETLB ? (off_t)c->first * psize() % file_size() : map_offset(c);
	if (mmap(at(c->first), bytes(c), PROT_READ | PROT_WRITE, kinds[kind].flags | MAP_FIXED,
		 fd ? *fd : -1, fd ? off : 0) == MAP_FAILED)
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
	const size_t len = c->arg[0] % 2 ? setup.block : MIN(bytes(c), setup.block);
	int fd = syscall(__NR_memfd_create, "folio_mapcount_fuzz", 0), err = 0;
	char *to;

	widen(c);
	to = at((c->first + setup.block_pages) % setup.nr_pages);
	if (fd < 0 || ftruncate(fd, setup.block) ||
	    mmap(at(c->first), setup.block, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 fd, 0) == MAP_FAILED ||
	    mmap(to, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		err = -errno;
	if (!err) {
		madvise(at(c->first), setup.block, MADV_HUGEPAGE);
		madvise(at(c->first), setup.block, MADV_POPULATE_WRITE);
		madvise(to, len, MADV_POPULATE_READ);
	}
	close(fd);
	return err;
}

static int op_munmap(struct command *c, int arg)
{
	return result(munmap(at(c->first), bytes(c)));
}

/* To anywhere in the arena; old length 0 maps shared memory once more. */
static int op_mremap(struct command *c, int flags)
{
	void *to = at(c->arg[0] % (setup.nr_pages - c->pages + 1));
	size_t old = c->arg[1] % 8 ? bytes(c) : 0;

	if (c->arg[2] & 1)	/* so that the PMDs can be moved */
		to = at((c->first + c->arg[0] % NR_BLOCKS * setup.block_pages) %
			(setup.nr_pages - c->pages + 1));
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

static int op_mlock(struct command *c, int lock)
{
	return result(lock ? mlock(at(c->first), bytes(c)) : munlock(at(c->first), bytes(c)));
}

static void on_fault(int sig)
{
	siglongjmp(fault_env, sig);
}

/*
 * Few different values, so that there is something for KSM. Return: false if
 * that faulted.
 */
static bool touch(char *addr, int value)
{
	if (sigsetjmp(fault_env, 1))
		return false;
	if (value)
		__atomic_store_n(addr, value, __ATOMIC_RELAXED);
	else
		FORCE_READ(*addr);
	return true;
}

/* What is not mapped, or not so, is left out. */
static int op_touch(struct command *c, int write)
{
	const unsigned int steps[] = { 1, 1, 2, 16 };
	unsigned int step = steps[c->arg[0] % ARRAY_SIZE(steps)];
	unsigned int i, faults = 0;

	signal(SIGSEGV, on_fault);
	signal(SIGBUS, on_fault);
	for (i = 0; i < c->pages; i += step) {
		if (!touch(at(c->first + i), write ? 1 + c->arg[1] % 3 : 0)) {
			faults++;
			i += 7 * step;
		}
	}
	signal(SIGSEGV, SIG_DFL);
	signal(SIGBUS, SIG_DFL);
	return faults ? -EFAULT : 0;
}

/* One pin at a time, and one pipe; children do not keep those of a parent. */
static void unpin(void)
{
	int *fd[] = { &pin_fd, &pipe_fd[0], &pipe_fd[1] };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fd); i++) {
		if (*fd[i] >= 0)
			close(*fd[i]);
		*fd[i] = -1;
	}
}

static int op_unpin(struct command *c, int arg)
{
	unpin();
	return 0;
}

static bool maps_private_file(struct command *c)
{
	const unsigned long from = (unsigned long)at(c->first), to = from + bytes(c);
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start, end, inode;
	bool found = false;
	char perms[5];

	while (maps && fscanf(maps, "%lx-%lx %4s %*x %*x:%*x %lu%*[^\n]", &start, &end,
			      perms, &inode) == 4)
		found |= inode && perms[3] == 'p' && start < to && end > from;
	found |= !maps || ferror(maps);	/* at worst */
	if (maps)
		fclose(maps);
	return found;
}

/*
 * Pin private file memory for write: on older kernels, a read-only long-term pin never
 * returns where a PMD maps it, as each unshare fault maps the same PMD again.
 */
static int op_pin(struct command *c, int arg)
{
	struct pin_longterm_test args = {
		.addr = (uintptr_t)at(c->first),
		.size = bytes(c),
		.flags = c->arg[0] & 3,	/* for write or not, fast or not */
	};

	if (maps_private_file(c))
		args.flags |= PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	unpin();
	pin_fd = open(GUP_TEST, O_RDWR | O_CLOEXEC);
	return pin_fd < 0 ? -errno : result(ioctl(pin_fd, PIN_LONGTERM_TEST_START, &args));
}

static int op_splice(struct command *c, int arg)
{
	struct iovec iov = { at(c->first), bytes(c) };

	unpin();
	if (pipe2(pipe_fd, O_NONBLOCK | O_CLOEXEC))
		return -errno;
	return result(vmsplice(pipe_fd[1], &iov, 1, SPLICE_F_NONBLOCK));
}

static int op_migrate(struct command *c, int flags)
{
	static void *pages[1024];
	static int nodes[1024], status[1024];
	unsigned int i, nr = MIN(c->pages, ARRAY_SIZE(pages));

	for (i = 0; i < nr; i++) {
		pages[i] = at(c->first + i);
		nodes[i] = c->arg[0] % setup.nr_nodes;
	}
	return result(syscall(__NR_move_pages, 0, (unsigned long)nr, pages, nodes, status,
			      flags));
}

static int op_migrate_all(struct command *c, int arg)
{
	unsigned long from = 1UL << c->arg[0] % setup.nr_nodes;
	unsigned long to = 1UL << c->arg[1] % setup.nr_nodes;

	return result(syscall(__NR_migrate_pages, 0, 8 * sizeof(long), &from, &to));
}

/* To small folios, as the kernel warns of other orders in the swap cache. */
static int op_split(struct command *c, int arg)
{
	char text[96];

	snprintf(text, sizeof(text), "%d,0x%lx,0x%lx,0", getpid(), (unsigned long)at(c->first),
		 (unsigned long)at(c->first + c->pages));
	return write_text(SPLIT_FILE, text) ? 0 : -errno;
}

/* Merges what is equal. For a limited time, as there may be nothing to scan. */
static int op_ksm(struct command *c, int arg)
{
	long end = ksm_get_full_scans() + 4;
	unsigned int tries;

	if (madvise(at(c->first), bytes(c), MADV_MERGEABLE) ||
	    !write_text(KSM_SYSFS "/run", "1"))
		return -errno;
	for (tries = 0; ksm_get_full_scans() < end && tries < 400; tries++)
		usleep(5000);
	/* Twice, where an allocation fails: it must not go on. */
	return ksm_stop() ? ksm_stop() : 0;
}

static int op_ksm_undo(struct command *c, int arg)
{
	return write_text(KSM_SYSFS "/run", "2") && write_text(KSM_SYSFS "/run", "0") ? 0 :
		-errno;
}

static int op_uffd_move(struct command *c, int arg)
{
	struct uffdio_move move = {
		.dst = (uintptr_t)at(c->arg[0] % (setup.nr_pages - c->pages + 1)),
		.src = (uintptr_t)at(c->first),
		.len = bytes(c),
		.mode = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
	};
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MOVE };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK), err;

	if (uffd < 0)
		return -errno;
	madvise((void *)(uintptr_t)move.dst, move.len, MADV_DONTNEED);
	err = result(ioctl(uffd, UFFDIO_API, &api));
	if (!err)
		err = uffd_register(uffd, (void *)(uintptr_t)move.dst, move.len, true, false,
				    false);
	if (!err)
		err = result(ioctl(uffd, UFFDIO_MOVE, &move));
	close(uffd);
	return err;
}

static int some_file(const struct command *c)
{
	const int fd[] = { setup.shmem_fd, setup.file_fd, setup.hugetlb_fd };

	return fd[c->arg[0] % ARRAY_SIZE(fd)];
}

/* Part of the file goes, and most of the time comes back, empty. */
static int op_truncate(struct command *c, int arg)
{
	int fd = some_file(c), err;
	off_t len = (off_t)c->first * psize() % file_size();

	if (fd == setup.hugetlb_fd)
		len -= len % setup.block;
	err = result(ftruncate(fd, len));
	if (!err && c->arg[1] & 3)
		err = result(ftruncate(fd, file_size()));
	return err;
}

static int op_fallocate(struct command *c, int mode)
{
	off_t off = (off_t)c->first * psize() % file_size();

	return result(fallocate(some_file(c), mode, off, bytes(c)));
}

static int op_pwrite(struct command *c, int arg)
{
	static char buf[256 << 10];
	off_t off = (off_t)c->first * psize() % file_size();
	size_t len = MIN(bytes(c), MIN(sizeof(buf), (size_t)(file_size() - off)));

	memset(buf, c->arg[1], sizeof(buf));
	return result(pwrite(some_file(c), buf, len, off));
}

/* Which sizes the kernel may choose from, now. */
static void set_sizes(unsigned long anon, unsigned long shmem)
{
	char path[128];
	unsigned int i;

	for (i = 0; i < NR_ORDERS; i++) {
		snprintf(path, sizeof(path), THP_SYSFS "/hugepages-%ukB/enabled",
			 (psize() >> 10) << i);
		if (setup.orders & 1UL << i)
			write_text(path, anon & 1UL << i ? "madvise" : "never");
		snprintf(path, sizeof(path), THP_SYSFS "/hugepages-%ukB/shmem_enabled",
			 (psize() >> 10) << i);
		if (setup.shmem_orders & 1UL << i)
			write_text(path, shmem & 1UL << i ? "advise" : "never");
	}
}

static int op_sizes(struct command *c, int arg)
{
	set_sizes(c->arg[0], c->arg[1]);
	return 0;
}

static int op_exec(struct command *c, int arg)
{
	char slot[16], fd[16];
	char *argv[5] = { "folio_mapcount_fuzz", "--worker", slot, fd, NULL };

	snprintf(slot, sizeof(slot), "%d", self);
	snprintf(fd, sizeof(fd), "%d", setup.self_fd);
	execv("/proc/self/exe", argv);
	return -errno;
}

/* All are children of the master, so that it can wait for each. */
static int op_fork(struct command *c, int arg)
{
	struct clone_args args = { .flags = CLONE_PARENT };
	pid_t pid = syscall(__NR_clone3, &args, sizeof(args));

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		self = c->child;
		unpin();
	}
	return pid < 0 ? -errno : pid;
}

static int op_exit(struct command *c, int arg)
{
	_exit(0);
}

enum special {
	ORDINARY,
	FORK,
	EXIT,		/* from here on, allocations do not fail */
	EXEC,
};

static const struct op {
	const char *name;
	int (*run)(struct command *c, int arg);
	int arg;
	unsigned int weight;
	enum special special;
} ops[] = {
	{ "map anon", op_map, KIND_ANON, 30 },
	{ "map anon shared", op_map, KIND_ANON_SHARED, 4 },
	{ "map shmem", op_map, KIND_SHMEM, 10 },
	{ "map shmem twice", op_map_twice, 0, 6 },
	{ "map shmem private", op_map, KIND_SHMEM_PRIVATE, 6 },
	{ "map file", op_map, KIND_FILE, 8 },
	{ "map file private", op_map, KIND_FILE_PRIVATE, 8 },
	{ "map hugetlb", op_map, KIND_HUGETLB, 3 },
	{ "map hugetlb private", op_map, KIND_HUGETLB_PRIVATE, 3 },
	{ "write", op_touch, 1, 50 },
	{ "read", op_touch, 0, 40 },
	{ "fork", op_fork, 0, 40, FORK },
	{ "exit", op_exit, 0, 20, EXIT },
	{ "exec", op_exec, 0, 4, EXEC },
	{ "munmap", op_munmap, 0, 10 },
	{ "mremap", op_mremap, 0, 24 },
	{ "mremap, keep", op_mremap, MREMAP_DONTUNMAP, 6 },
	{ "mprotect read", op_mprotect, PROT_READ, 10 },
	{ "mprotect none", op_mprotect, PROT_NONE, 3 },
	{ "mprotect write", op_mprotect, PROT_READ | PROT_WRITE, 16 },
	{ "dontneed", op_madvise, MADV_DONTNEED, 16 },
	{ "free", op_madvise, MADV_FREE, 6 },
	{ "cold", op_madvise, MADV_COLD, 6 },
	{ "pageout", op_madvise, MADV_PAGEOUT, 16 },
	{ "collapse", op_madvise, MADV_COLLAPSE, 16 },
	{ "hugepage", op_madvise, MADV_HUGEPAGE, 8 },
	{ "nohugepage", op_madvise, MADV_NOHUGEPAGE, 4 },
	{ "populate read", op_madvise, MADV_POPULATE_READ, 6 },
	{ "populate write", op_madvise, MADV_POPULATE_WRITE, 6 },
	{ "willneed", op_madvise, MADV_WILLNEED, 4 },
	{ "remove", op_madvise, MADV_REMOVE, 4 },
	{ "dontfork", op_madvise, MADV_DONTFORK, 1 },
	{ "dofork", op_madvise, MADV_DOFORK, 4 },
	{ "wipeonfork", op_madvise, MADV_WIPEONFORK, 1 },
	{ "keeponfork", op_madvise, MADV_KEEPONFORK, 4 },
	{ "unmergeable", op_madvise, MADV_UNMERGEABLE, 3 },
	{ "guard install", op_madvise, MADV_GUARD_INSTALL, 2 },
	{ "guard remove", op_madvise, MADV_GUARD_REMOVE, 4 },
	{ "mlock", op_mlock, 1, 4 },
	{ "munlock", op_mlock, 0, 6 },
	{ "ksm", op_ksm, 0, 3 },
	{ "ksm undo", op_ksm_undo, 0, 1 },
	{ "uffd move", op_uffd_move, 0, 12 },
	{ "split", op_split, 0, 12 },
	{ "move_pages", op_migrate, MPOL_MF_MOVE, 8 },
	{ "move_pages, shared", op_migrate, MPOL_MF_MOVE_ALL, 8 },
	{ "migrate_pages", op_migrate_all, 0, 3 },
	{ "pin", op_pin, 0, 10 },
	{ "vmsplice", op_splice, 0, 6 },
	{ "unpin", op_unpin, 0, 10 },
	{ "truncate", op_truncate, 0, 4 },
	{ "punch hole", op_fallocate, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 6 },
	{ "fallocate", op_fallocate, FALLOC_FL_KEEP_SIZE, 4 },
	{ "pwrite", op_pwrite, 0, 8 },
	{ "sizes", op_sizes, 0, 6 },
};

static struct {
	unsigned int run;
	unsigned int ok;
} op_counts[ARRAY_SIZE(ops)];

/*
 * Has one allocation of the operation fail. A page fault that this hits is tried
 * again; exec() would be killed, so it is spared.
 */
static int run_failing(struct command *c, bool *failed)
{
	int fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC), err;
	char left[16] = "";

	if (fd < 0 || dprintf(fd, "%u", c->fail) < 0)
		_exit(1);
	err = ops[c->op].run(c, ops[c->op].arg);
	if (self == (int)c->who) {	/* and no child of that */
		*failed = pread(fd, left, sizeof(left) - 1, 0) > 0 && !atoi(left);
		pwrite(fd, "0", 1, 0);
	}
	close(fd);
	return err;
}

/* The first answer, of a new worker, says that it is ready. */
static void __noreturn worker_run(void)
{
	struct reply reply = {};
	struct command c;

	for (;;) {
		if (write(setup.to_master[self], &reply, sizeof(reply)) != sizeof(reply) ||
		    read(setup.to_worker[self], &c, sizeof(c)) != sizeof(c))
			_exit(1);
		memset(&reply, 0, sizeof(reply));
		reply.err = c.fail ? run_failing(&c, &reply.failed) :
			    ops[c.op].run(&c, ops[c.op].arg);
		if (reply.err > 0) {
			reply.pid = reply.err;
			reply.err = 0;
		}
	}
}

/* A worker that is not forked begins with one area in all of the arena. */
static void __noreturn worker_main(char **argv)
{
	self = atoi(argv[2]);
	setup.self_fd = atoi(argv[3]);
	if (pread(setup.self_fd, &setup, sizeof(setup), 0) != sizeof(setup))
		_exit(1);
	if (mmap(at(0), setup.nr_pages * psize(), PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at(0))
		_exit(1);
	madvise(at(0), setup.nr_pages * psize(), MADV_HUGEPAGE);
	worker_run();
}

/* The sequence of commands */

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static unsigned int rnd(uint64_t *state, unsigned int limit)
{
	*state += 0x9e3779b97f4a7c15ULL;
	return (mix(*state) >> 32) % limit;
}

static unsigned int draw_op(uint64_t *state)
{
	unsigned int i, sum = 0;
	int pick;

	for (i = 0; i < ARRAY_SIZE(ops); i++)
		sum += ops[i].weight;
	pick = rnd(state, sum);
	for (i = 0; pick >= (int)ops[i].weight; i++)
		pick -= ops[i].weight;
	return i;
}

/* Parts and wholes of the usual folios, often aligned as these are. */
static void draw_range(uint64_t *state, struct command *c)
{
	const unsigned int block = setup.block_pages;
	const unsigned int sizes[] = { 1, 4, 16, block / 8, block / 2, block, block, 2 * block };

	c->first = rnd(state, setup.nr_pages);
	c->pages = MAX(sizes[rnd(state, ARRAY_SIZE(sizes))], 1U);
	if (c->pages > 4 && !rnd(state, 4))
		c->pages = 1 + rnd(state, c->pages);
	else if (rnd(state, 4))
		c->first -= c->first % c->pages;
	c->pages = MIN(c->pages, setup.nr_pages - c->first);
}

/* Nothing but the seed and the number decides. */
static void draw(unsigned int nr, struct command *c)
{
	uint64_t state = mix(master.seed ^ mix(nr + 1));
	unsigned int i;

	memset(c, 0, sizeof(*c));
	c->nr = nr;
	c->op = draw_op(&state);
	c->who = rnd(&state, opt.workers);
	c->child = rnd(&state, opt.workers);
	draw_range(&state, c);
	for (i = 0; i < ARRAY_SIZE(c->arg); i++)
		c->arg[i] = rnd(&state, 1U << 30);
	if (opt.fail && ops[c->op].special < EXIT && rnd(&state, 2))
		c->fail = 1 + rnd(&state, 1U << rnd(&state, 10));
}

static void print_command(const struct command *c, const char *mark)
{
	char fail[32] = "";

	if (c->fail)
		snprintf(fail, sizeof(fail), ", allocation %u fails", c->fail);
	ksft_print_msg("  %s %4u %c%c %-20s %4u pages at %#lx, args %u %u %u%s: %s\n", mark, c->nr,
		       'A' + c->who, ops[c->op].special == FORK ? 'A' + c->child : ' ',
		       ops[c->op].name, c->pages, (unsigned long)at(c->first), c->arg[0],
		       c->arg[1], c->arg[2], fail, c->err ? strerror(-c->err) : "done");
}

/* Telling the workers */

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000 - master.start_ms;
}

static void worker_free(int w)
{
	master.worker[w] = 0;
	master.busy[w] = false;
	master.doing[w] = NULL;
}

/* SIGKILL comes from the OOM killer, and is no failure. */
static void worker_died(int w)
{
	int status;

	if (waitpid(master.worker[w], &status, 0) == master.worker[w] &&
	    WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) {
		ksft_print_msg("process %c died of signal %d\n", 'A' + w, WTERMSIG(status));
		if (master.doing[w])
			print_command(master.doing[w], "!");
		master.deaths++;
	}
	worker_free(w);
}

static bool worker_gone(int w)
{
	siginfo_t info = {};

	return !waitid(P_PID, master.worker[w], &info, WEXITED | WNOHANG | WNOWAIT) &&
	       info.si_pid;
}

/* Polls, because one that died of SIGBUS will never answer. */
static bool worker_reply(int w, struct reply *reply)
{
	struct pollfd pfd = { .fd = master.reply_fd[w], .events = POLLIN };
	uint64_t start = now_ms();

	while (now_ms() - start < STUCK_MS) {
		if (poll(&pfd, 1, 100) > 0)
			return read(pfd.fd, reply, sizeof(*reply)) == sizeof(*reply);
		if (worker_gone(w) && !poll(&pfd, 1, 0))
			return false;
	}
	ksft_print_msg("process %c hangs:\n", 'A' + w);
	if (master.doing[w])
		print_command(master.doing[w], "!");
	master.hang = true;
	kill(master.worker[w], SIGKILL);
	return false;
}

static void worker_wait(int w)
{
	struct command *c = master.doing[w];
	struct reply reply, ready;

	if (!master.busy[w])
		return;
	if (!worker_reply(w, &reply)) {
		worker_died(w);
		return;
	}
	master.busy[w] = false;
	master.doing[w] = NULL;
	if (!c)
		return;
	c->err = reply.err;
	op_counts[c->op].ok += !reply.err;
	master.failures += reply.failed;
	if (reply.pid) {
		master.worker[c->child] = reply.pid;
		if (!worker_reply(c->child, &ready))
			worker_died(c->child);
	}
}

static void wait_all(void)
{
	unsigned int w;

	for (w = 0; w < opt.workers; w++)
		worker_wait(w);
}

/* By exec(), so that it shares no memory with us, in a cgroup of its own. */
static void worker_start(int w)
{
	struct command none = {};
	char path[96];
	pid_t pid = fork();

	if (pid < 0)
		ksft_exit_fail_perror("fork");
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		self = w;
		snprintf(path, sizeof(path), "%s/cgroup.procs", master.cgroup);
		if (master.cgroup[0] && !write_text(path, "0"))
			_exit(1);
		op_exec(&none, 0);
		_exit(1);
	}
	master.worker[w] = pid;
	master.busy[w] = true;
	worker_wait(w);
	if (!master.worker[w])
		ksft_exit_fail_msg("process %c does not start\n", 'A' + w);
}

static void worker_tell(int w, struct command *c)
{
	worker_wait(w);
	if (write(master.cmd_fd[w], c, sizeof(*c)) != sizeof(*c))
		ksft_exit_fail_perror("write to a process");
	master.busy[w] = true;
	master.doing[w] = c;
}

static void worker_exit(int w)
{
	static struct command leave;

	while (ops[leave.op].special != EXIT)
		leave.op++;
	worker_tell(w, &leave);
	waitpid(master.worker[w], NULL, 0);
	worker_free(w);
}

/* A dead one is represented by the next; where all are dead, life begins anew. */
static void choose_worker(struct command *c)
{
	unsigned int i, w;

	for (i = 0; i < opt.workers; i++) {
		w = (c->who + i) % opt.workers;
		worker_wait(w);
		if (master.worker[w]) {
			c->who = w;
			return;
		}
	}
	worker_start(c->who);
}

static void run_command(unsigned int nr)
{
	struct command *c = &master.history[master.nr_history++];
	enum special special;

	draw(nr, c);
	choose_worker(c);
	special = ops[c->op].special;
	master.commands++;
	if (special == FORK) {
		worker_wait(c->child);
		if (master.worker[c->child]) {
			c->err = -EBUSY;
			return;
		}
	}
	op_counts[c->op].run++;
	if (special == EXIT) {
		op_counts[c->op].ok++;
		worker_exit(c->who);
		return;
	}
	worker_tell(c->who, c);
	if (!opt.concurrent || special == FORK)
		worker_wait(c->who);
	if (opt.verbose)
		print_command(c, " ");
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

static bool is_hugetlb(const struct folio *folio)
{
	return folio->flags & KPF_HUGE;
}

static unsigned int page_count(const struct page *page)
{
	return page->ptes + page->pmds;
}

/* Whichever way the kernel rounds the average; at least 1. */
static struct bounds average(const struct folio *folio)
{
	struct bounds b = {
		.lo = folio->ptes / folio->nr + folio->pmds,
		.hi = (folio->ptes + folio->nr - 1) / folio->nr + folio->pmds,
	};

	b.lo = MAX(b.lo, 1);
	return b;
}

static struct bounds count_bounds(const struct page *page)
{
	if (figures[FIG_KPAGECOUNT].mode == MODE_AVERAGE && !is_hugetlb(page_folio(page)))
		return average(page_folio(page));
	return exactly(page_count(page));
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

/* How many pages of the folio count as mapped. */
static struct bounds mapped_bounds(const struct folio *folio, enum mode mode)
{
	switch (mode) {
	case MODE_EXACT:
		return exactly(folio->mapped);
	case MODE_ESTIMATE:
		return estimate(folio);
	default:
		return (struct bounds) { folio->mapped, folio->nr };
	}
}

/*
 * In units of 2^-12 bytes. 32-bit kernels lose, in an overflow, the Pss of a
 * PMD that is the only mapping.
 */
static struct bounds pss_bounds(const struct page *page)
{
	const __u64 one = (__u64)psize() << PSS_SHIFT;
	const struct folio *folio = page_folio(page);
	struct bounds b = average(folio);

	switch (figures[FIG_PSS].mode) {
	case MODE_EXACT:
		b = exactly(one / page_count(page));
		break;
	case MODE_ESTIMATE:
		b = estimate(folio);
		b.lo = b.lo * one / folio_pages(folio);
		b.hi = (b.hi * one + folio_pages(folio) - 1) / folio_pages(folio);
		break;
	default:
		b = (struct bounds) { one / b.hi, one / b.lo };
	}
	if (sizeof(long) == 4 && folio->pmds == 1 && !folio->ptes)
		b.lo = 0;
	return b;
}

/* 1 if a page counts as private. One that another process maps never does. */
static struct bounds private_bounds(const struct page *page, enum mode mode)
{
	const struct folio *folio = page_folio(page);

	if (mode == MODE_EXACT || is_hugetlb(folio) || folio->nr == 1 ||
	    folio->ptes + folio->pmds == 1)
		return exactly(page_count(page) == 1);
	return (struct bounds) { 0, page->owner != OWNER_MANY };
}

/* Where pages are counted exactly, a PMD is judged by its first page. */
static struct bounds exclusive_bounds(const struct mapping *m)
{
	const struct page *page = &truth.page[m->page];

	if (m->pmd && figures[FIG_EXCLUSIVE].mode == MODE_EXACT)
		page -= m->pfn % setup.block_pages;
	return private_bounds(page, figures[FIG_EXCLUSIVE].mode);
}

static void sum_mapping(const struct mapping *m)
{
	const struct page *page = &truth.page[m->page];
	const bool hugetlb = is_hugetlb(page_folio(page));
	struct bounds private = private_bounds(page, figures[FIG_PRIVATE].mode);
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
	struct bounds mapped = mapped_bounds(folio, figures[FIG_ANON].mode);

	if (is_hugetlb(folio) || folio->flags & KPF_ZERO_PAGE)
		return;
	add_bounds(&sums[folio->anon ? FIG_ANON : FIG_FILE], mapped, 1);
	add_bounds(&sums[folio->anon ? FIG_CG_ANON : FIG_CG_FILE], mapped, ours);
	add_bounds(&sums[FIG_PSS_SUM], mapped_bounds(folio, figures[FIG_PSS].mode),
		   psize() >> 10);
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

/* What the counters are */

static void read_keys(const char *path, const struct key *keys, unsigned int nr)
{
	char *text = truth.text, *line;

	if (!read_text(path))
		return;
	while ((line = next_line(&text)))
		add_value(line, keys, nr, counters);
}

/* Adds up the parts of each CPU: reading this file does that. */
static void fold_vmstat(void)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_RDONLY);
	char c;

	if (fd < 0 || read(fd, &c, 1) < 0)
		ksft_exit_skip("cannot read /proc/sys/vm/stat_refresh\n");
	close(fd);
}

static void take_snapshot(void)
{
	char path[96];
	enum figure f;

	memset(counters, 0, sizeof(counters));
	truth_scan();
	fold_vmstat();
	read_keys("/proc/vmstat", vmstat_keys, ARRAY_SIZE(vmstat_keys));
	snprintf(path, sizeof(path), "%s/memory.stat", master.cgroup);
	if (master.cgroup_ino)
		read_keys(path, memcg_keys, ARRAY_SIZE(memcg_keys));
	for (f = FIG_CG_ANON; f < NR_FIGURES; f++)
		counters[f] /= psize();
	count_all();
}

/* Telling what differs */

static struct {
	unsigned long long compared[NR_FIGURES];
	unsigned long long within[NR_FIGURES];
	unsigned int differs[NR_FIGURES];
	unsigned int total;
	bool verbose;
} judged;

static const char *vma_owner(const struct vma *vma)
{
	static char name[32];
	unsigned int w;

	snprintf(name, sizeof(name), "pid %d", vma->pid);
	for (w = 0; w < opt.workers; w++)
		if (master.worker[w] == vma->pid)
			snprintf(name, sizeof(name), "%c", 'A' + w);
	return name;
}

/* The mapping that continues this one in both the folio and the VMA. */
static const struct mapping *neighbour(const struct folio *folio, const struct mapping *m,
				       int delta)
{
	const struct mapping *first = &truth.map[folio->first_map], *n;

	for (n = first; n < first + folio->nr_map; n++)
		if (n->pfn == m->pfn + delta && n->vma == m->vma && n->pmd == m->pmd &&
		    n->addr == m->addr + (long)delta * psize() && n->exclusive == m->exclusive)
			return n;
	return NULL;
}

static void print_folio(const struct folio *folio)
{
	const struct mapping *first = &truth.map[folio->first_map], *m, *last, *next;

	ksft_print_msg("  folio at pfn %#llx: %u pages, flags %#llx, %u PTEs, %u %s, %u mapped\n",
		       folio->pfn, folio->nr, folio->flags, folio->ptes, folio->pmds,
		       is_hugetlb(folio) ? "hugetlb" : "PMDs", folio->mapped);
	for (m = first; m < first + folio->nr_map; m++) {
		if (neighbour(folio, m, -1))
			continue;
		for (last = m; (next = neighbour(folio, last, 1)); last = next)
			;
		ksft_print_msg("    %s maps pages %llu to %llu at %#lx by %s%s\n",
			       vma_owner(&truth.vma[m->vma]), m->pfn - folio->pfn,
			       last->pfn - folio->pfn, m->addr, m->pmd ? "PMD" : "PTE",
			       m->exclusive ? ", exclusive" : "");
	}
}

/* Some of its folios. */
static void print_vma(const struct vma *vma)
{
	const struct folio *folio, *last = NULL;
	unsigned int i, shown = 0;

	ksft_print_msg("  VMA %#lx-%#lx of %s\n", vma->start, vma->end, vma_owner(vma));
	for (i = 0; i < truth.nr_map && shown < 4; i++) {
		folio = page_folio(&truth.page[truth.map[i].page]);
		if (truth.map[i].vma != vma - truth.vma || folio == last)
			continue;
		print_folio(folio);
		last = folio;
		shown++;
	}
}

static bool concerns(const struct command *c, const struct folio *folio)
{
	const struct mapping *m = &truth.map[folio->first_map];
	unsigned int i;

	if (ops[c->op].special)
		return true;
	for (i = 0; i < folio->nr_map; i++)
		if (m[i].addr - (unsigned long)at(c->first) < bytes(c))
			return true;
	return false;
}

static void print_history(const struct folio *folio)
{
	unsigned int i = master.nr_history > 24 ? master.nr_history - 24 : 0;

	ksft_print_msg("  last commands%s:\n",
		       folio ? " (* where the folio is mapped now; forks, exits, execs)" : "");
	for (; i < master.nr_history; i++)
		print_command(&master.history[i],
			      folio && concerns(&master.history[i], folio) ? "*" : " ");
}

static void print_mismatch(enum figure f, long long kernel, struct bounds b,
			   const struct vma *vma, const struct page *page)
{
	const struct folio *folio = page ? page_folio(page) : NULL;

	ksft_print_msg("MISMATCH: %s: kernel %lld, computed %lld to %lld\n", figures[f].what,
		       kernel, b.lo, b.hi);
	if (page) {
		ksft_print_msg("  page %zu of the folio%s%s\n",
			       page - &truth.page[folio->first], vma ? ", in " : "",
			       vma ? vma_owner(vma) : "");
		print_folio(folio);
	} else if (vma) {
		print_vma(vma);
	}
	print_history(folio);
}

/* Comparing */

/* What does not apply of the last two is NULL: they are for the report. */
static void compare(enum figure f, long long kernel, struct bounds b, const struct vma *vma,
		    const struct page *page)
{
	/* The self-check: one wrong result in each snapshot */
	if (opt.spoil == (int)f && !judged.compared[f])
		b = exactly(b.hi + 1);
	judged.compared[f]++;
	judged.within[f] += b.lo != b.hi;
	if (kernel >= b.lo && kernel <= b.hi)
		return;
	judged.differs[f]++;
	if (judged.verbose && judged.total < 4)
		print_mismatch(f, kernel, b, vma, page);
	judged.total++;
}

static void judge_pages(void)
{
	const __u64 mask = KPF_MMAP | KPF_ANON;
	const struct page *page;

	for (page = truth.page; page < &truth.page[truth.nr_pages]; page++) {
		if (page_folio(page)->flags & KPF_ZERO_PAGE)
			continue;
		compare(FIG_KPAGECOUNT, page->kcount, count_bounds(page), NULL, page);
		compare(FIG_KPAGEFLAGS, page->kflags & mask,
			exactly(page_folio(page)->anon ? mask : KPF_MMAP), NULL, page);
	}
}

static void judge_mappings(void)
{
	const struct mapping *m;
	const struct page *page;

	for (m = truth.map; m < &truth.map[truth.nr_map]; m++) {
		page = &truth.page[m->page];
		if (page_folio(page)->flags & KPF_ZERO_PAGE)
			continue;
		compare(FIG_EXCLUSIVE, m->exclusive, exclusive_bounds(m), &truth.vma[m->vma], page);
		sum_mapping(m);
	}
}

/*
 * No process has more to itself than its share, or a share of more than it maps.
 * With averages, or where 32-bit kernels lose some, Pss is not bounded from below.
 */
static struct bounds uss_bounds(const struct vma *vma)
{
	const enum mode mode = figures[FIG_PSS].mode;
	const bool bounded = mode == MODE_ESTIMATE ||
			     (mode == MODE_EXACT && sizeof(long) == 8);

	return (struct bounds) { bounded ? vma->kib[SMAPS_PRIVATE] : 0, vma->kib[SMAPS_RSS] };
}

static void judge_vmas(void)
{
	struct vma *vma;
	unsigned int i;

	for (vma = truth.vma; vma < &truth.vma[truth.nr_vmas]; vma++) {
		if (!worth_scanning(vma))
			continue;
		vma->sum[SMAPS_PSS].lo >>= PSS_SHIFT + 10;
		vma->sum[SMAPS_PSS].hi >>= PSS_SHIFT + 10;
		for (i = 0; i < NR_SMAPS; i++)
			compare(FIG_RSS + i, vma->kib[i], vma->sum[i], vma, NULL);
		compare(FIG_USS, vma->kib[SMAPS_PSS], uss_bounds(vma), vma, NULL);
		counters[FIG_PSS_SUM] += vma->kib[SMAPS_PSS];
		pss_lost += 2;	/* it is rounded down */
	}
}

/*
 * The sum of all Pss is what counts as mapped: if the kernel estimates, it uses the
 * same estimate for both.
 */
static struct bounds pss_sum_bounds(void)
{
	const long long *other = others[MODE_ESTIMATE];
	struct bounds b = sums[FIG_PSS_SUM];

	if (figures[FIG_PSS].mode != MODE_ESTIMATE || figures[FIG_ANON].mode != MODE_ESTIMATE)
		return b;
	b.hi = (counters[FIG_ANON] - other[FIG_ANON] + counters[FIG_FILE] - other[FIG_FILE]) *
	       (psize() >> 10);
	b.lo = b.hi;
	return b;
}

static void judge_counters(bool flushed)
{
	/* What the kernel may hold back of memory.stat, see mem_cgroup_flush_stats() */
	const long long slack = 2 * 64 * master.nr_cpus;
	struct bounds b;
	enum figure f;

	for (f = FIG_PSS_SUM; f < NR_FIGURES; f++) {
		b = f == FIG_PSS_SUM ? pss_sum_bounds() : sums[f];
		if (f == FIG_PSS_SUM && figures[FIG_PSS].mode == MODE_AVERAGE)
			continue;
		if (f >= FIG_CG_ANON && !master.cgroup_ino)
			continue;
		if (f == FIG_PSS_SUM)
			b.lo -= pss_lost;
		if (f >= FIG_CG_ANON && !flushed)
			b = (struct bounds) { b.lo - slack, b.hi + slack };
		compare(f, counters[f] - others[figures[f].mode][f], b, NULL, NULL);
	}
}

/* Memory.stat is exact only if @flushed. */
static void judge(bool flushed, bool verbose)
{
	unsigned int i;

	memset(&judged, 0, sizeof(judged));
	judged.verbose = verbose;
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

static bool only_memcg_differs(void)
{
	enum figure f;

	for (f = 0; f < FIG_CG_ANON; f++)
		if (judged.differs[f])
			return false;
	return true;
}

/*
 * Looks again before it complains: a first look may itself disturb, as it may
 * copy pages on write; and what is freed late may be on its way.
 */
static bool look(bool flushed)
{
	unsigned int tries = 0, max = NR_TRIES;

	do {
		if (tries)
			usleep(max == NR_TRIES ? TRY_US : TRY_US_FLUSH);
		take_snapshot();
		judge(flushed, false);
		max = flushed && only_memcg_differs() ? NR_TRIES_FLUSH : NR_TRIES;
	} while (judged.total && ++tries < max);
	return !judged.total;
}

static enum seen seen_as(const struct folio *folio)
{
	if (is_hugetlb(folio))
		return SEEN_HUGETLB;
	if (folio->nr == 1)
		return folio->flags & KPF_KSM ? SEEN_KSM : SEEN_SMALL;
	if (folio->pmds)
		return folio->ptes ? SEEN_BOTH : SEEN_PMD;
	return folio->ptes == folio->nr && folio->mapped == folio->nr ? SEEN_LARGE : SEEN_UNEVEN;
}

/* A quiescent point. Returns false if anything differs. */
static bool check(bool quiet)
{
	bool flushed = !(master.points++ % FLUSH_EVERY), ok;
	unsigned int i;

	wait_all();
	ok = look(flushed);
	if (!ok && quiet)
		return false;
	if (!ok)
		judge(flushed, true);
	for (i = 0; i < truth.nr_folios; i++)
		master.seen[seen_as(&truth.folio[i])]++;
	for (i = 0; i < NR_FIGURES; i++) {
		figures[i].compared += judged.compared[i];
		figures[i].within += judged.within[i];
		figures[i].differs += judged.differs[i];
	}
	return ok;
}

/* Episodes */

static int open_memfd(const char *name, unsigned int flags, size_t size)
{
	int fd = syscall(__NR_memfd_create, name, flags);

	if (fd >= 0 && ftruncate(fd, size))
		ksft_exit_fail_perror("ftruncate");
	return fd;
}

static int open_file(void)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/folio_mapcount_fuzz.XXXXXX", opt.dir);
	fd = mkstemp(path);
	if (fd < 0)
		ksft_exit_fail_perror("a file for -d");
	unlink(path);
	/* One write, so that the file system can choose large folios. */
	if (write(fd, truth.text, setup.block) != (ssize_t)setup.block ||
	    ftruncate(fd, file_size()))
		ksft_exit_fail_perror("writing a file, see -d");
	return fd;
}

static void begin_episode(void)
{
	setup.shmem_fd = open_memfd("folio_mapcount_fuzz", 0, file_size());
	setup.hugetlb_fd = open_memfd("folio_mapcount_fuzz", MFD_HUGETLB, file_size());
	setup.file_fd = open_file();
	set_sizes(-1UL, -1UL);
	if (pwrite(setup.self_fd, &setup, sizeof(setup), 0) != sizeof(setup))
		ksft_exit_fail_perror("memfd");
	master.nr_history = 0;
}

static void end_episode(void)
{
	unsigned int w;

	wait_all();
	for (w = 0; w < opt.workers; w++)
		if (master.worker[w])
			worker_exit(w);
	close(setup.shmem_fd);
	close(setup.file_fd);
	if (setup.hugetlb_fd >= 0)
		close(setup.hugetlb_fd);
}

static bool time_is_up(void)
{
	return opt.points ? master.points >= opt.points : now_ms() >= opt.seconds * 1000ULL;
}

/* Returns how many commands it took until something differed; 0: nothing did. */
static unsigned int run_episode(const unsigned int *list, unsigned int nr)
{
	bool ok = true;
	unsigned int i;

	begin_episode();
	for (i = 0; i < nr && ok && !master.hang && !time_is_up(); i++) {
		run_command(list[i]);
		if ((i + 1) % opt.per_point == 0 || i + 1 == nr)
			ok = check(false);
	}
	end_episode();
	if (ok)
		ok = check(false);
	return ok ? 0 : i;
}

/* The same for a part of it, comparing only at the end, and silently. */
static bool still_differs(const unsigned int *list, unsigned int nr)
{
	unsigned int i;
	bool ok;

	begin_episode();
	for (i = 0; i < nr && !master.hang; i++)
		run_command(list[i]);
	ok = check(true);
	end_episode();
	return !(ok && check(true));
}

/* Leaves out halves, quarters, ..., single commands, as long as it differs. */
static unsigned int shrink(unsigned int *list, unsigned int nr)
{
	static unsigned int part[MAX_LIST];
	uint64_t end = now_ms() + opt.shrink_seconds * 1000ULL;
	unsigned int chunk, from, cut;

	for (chunk = (nr + 1) / 2; chunk; chunk = chunk > 1 ? (chunk + 1) / 2 : 0) {
		for (from = 0; from < nr && now_ms() < end && !master.hang;) {
			cut = MIN(chunk, nr - from);
			memcpy(part, list, from * sizeof(*part));
			memcpy(part + from, list + from + cut, (nr - from - cut) * sizeof(*part));
			if (nr > cut && still_differs(part, nr - cut)) {
				nr -= cut;
				memcpy(list, part, nr * sizeof(*part));
			} else {
				from += cut;
			}
		}
	}
	return nr;
}

static void print_list(const unsigned int *list, unsigned int nr)
{
	unsigned int i;

	ksft_print_msg("To repeat these %u commands: -s %llu -p %u%s -o ", nr,
		       (unsigned long long)master.seed, opt.workers, opt.fail ? " -F" : "");
	for (i = 0; i < nr; i++)
		printf("%s%u", i ? "," : "", list[i]);
	printf("\n");
}

/* Tells how to repeat what was found, and looks for a short way. */
static void explain(unsigned int *list, unsigned int nr)
{
	print_list(list, nr);
	if (!opt.shrink_seconds || master.hang)
		return;
	ksft_print_msg("Looking for less, for at most %u s\n", opt.shrink_seconds);
	opt.concurrent = false;
	if (!still_differs(list, nr)) {
		ksft_print_msg("It does not happen again\n");
		return;
	}
	nr = shrink(list, nr);
	ksft_print_msg("%u commands are enough:\n", nr);
	print_list(list, nr);
	opt.verbose = true;
	still_differs(list, nr);
}

static void print_progress(void)
{
	static uint64_t last;

	if (now_ms() - last < PROGRESS_S * 1000)
		return;
	last = now_ms();
	ksft_print_msg("%4llu s: %u episodes, %u commands, compared at %u points\n",
		       (unsigned long long)last / 1000, master.episodes, master.commands,
		       master.points);
}

/* Until something differs. */
static void run_episodes(void)
{
	static unsigned int list[MAX_LIST];
	unsigned int i, nr;

	for (; !time_is_up() && !master.hang; master.episodes++, master.seed++) {
		for (i = 0; i < opt.per_episode; i++)
			list[i] = i;
		nr = run_episode(list, opt.per_episode);
		if (nr) {
			explain(list, nr);
			return;
		}
		print_progress();
	}
}

static void run_list(void)
{
	static unsigned int list[MAX_LIST];
	const char *text = opt.list;
	unsigned int nr = 0;
	char *end;

	for (; *text && nr < MAX_LIST; text = *end ? end + 1 : end) {
		list[nr++] = strtoul(text, &end, 0);
		if (end == text || (*end && *end != ','))
			ksft_exit_fail_msg("-o wants numbers and commas\n");
	}
	opt.verbose = true;
	run_episode(list, nr);
}

/* The probe: three folios, of which three processes map parts */

static void unmap_parts(unsigned int who)
{
	/* In eighths of the folio. What is left tells the three modes apart. */
	static const unsigned int parts[3][3] = { { 8, 4, 2 }, { 2, 2, 2 }, { 4, 0, 0 } };
	const unsigned int block = setup.block_pages;
	unsigned int i, keep;

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		keep = block / 8 * parts[i][who];
		if (keep < block)
			munmap(at(i * block + keep), (block - keep) * psize());
	}
}

static pid_t probe_child(unsigned int who, int ready)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	unmap_parts(who);
	if (write(ready, "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

static void judge_all_modes(void)
{
	enum mode mode;
	enum figure f;

	take_snapshot();
	for (mode = 0; mode < NR_MODES; mode++) {
		for (f = 0; f < NR_FIGURES; f++)
			figures[f].mode = mode;
		judge(false, false);
		for (f = FIG_ANON; f < FIG_CG_ANON; f++)
			others[mode][f] = counters[f] - sums[f].lo;
	}
}

/* Not before the system has come to rest. */
static void measure_others(void)
{
	long long before[NR_MODES][NR_FIGURES];
	unsigned int tries = 0;

	do {
		memcpy(before, others, sizeof(before));
		usleep(TRY_US);
		judge_all_modes();
	} while (memcmp(before, others, sizeof(before)) && ++tries < 10 * NR_TRIES);
	ksft_print_msg("not in any page table: %lld anonymous, %lld file pages\n",
		       others[MODE_EXACT][FIG_ANON], others[MODE_EXACT][FIG_FILE]);
}

/* The first mode, from exact on, in which all comparisons hold; else exact. */
static void choose_modes(void)
{
	bool found[NR_FIGURES] = {};
	unsigned int mode;
	enum figure f;

	for (mode = 0; mode <= NR_MODES; mode++) {
		for (f = 0; f < NR_FIGURES; f++)
			if (!found[f])
				figures[f].mode = mode % NR_MODES;
		if (mode < NR_MODES)
			look(false);
		for (f = 0; f < NR_FIGURES; f++)
			found[f] |= !judged.differs[f];
	}
	for (f = FIG_FILE; f < NR_FIGURES; f++)
		figures[f].mode = figures[FIG_ANON].mode;
}

static void probe(void)
{
	const size_t len = 3 * setup.block;
	pid_t pid[3] = {};
	int ready[2], who;
	char c;

	if (pipe(ready) || mmap(at(0), len, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at(0))
		ksft_exit_fail_perror("mmap");
	set_sizes(-1UL, -1UL);
	madvise(at(0), len, MADV_HUGEPAGE);
	memset(at(0), 1, len);
	/* The first one is still whole afterwards, but mapped by PTEs. */
	mprotect(at(1), psize(), PROT_READ);
	for (who = 1; who < 3; who++) {
		pid[who] = probe_child(who, ready[1]);
		if (pid[who] < 0 || read(ready[0], &c, 1) != 1)
			ksft_exit_fail_perror("fork");
	}
	unmap_parts(0);
	choose_modes();
	for (who = 1; who < 3; who++) {
		kill(pid[who], SIGKILL);
		waitpid(pid[who], NULL, 0);
	}
	munmap(at(0), len);
	close(ready[0]);
	close(ready[1]);
}

static void setup_modes(void)
{
	unsigned int f, mode;

	measure_others();
	if (opt.mode < 0)
		probe();
	for (f = 0; opt.mode >= 0 && f < NR_FIGURES; f++)
		figures[f].mode = opt.mode;
	for (mode = 0; mode < NR_MODES; mode++) {
		ksft_print_msg("%s:", mode_names[mode]);
		for (f = 0; f < NR_FIGURES; f++)
			if (figures[f].mode == mode)
				printf(" %s", figures[f].name);
		printf("\n");
	}
}

/* Set-up */

static void setup_memory(void)
{
	setup.block = read_pmd_pagesize();
	if (!setup.block || setup.block > MAX_PMD_SIZE)
		setup.block = 2UL << 20;
	setup.block_pages = setup.block / psize();
	setup.nr_pages = NR_BLOCKS * setup.block_pages;
	setup.nr_nodes = access("/sys/devices/system/node/node1", F_OK) ? 1 : 2;
	master.nr_cpus = sysconf(_SC_NPROCESSORS_ONLN);
	master.history = alloc_private(MAX_LIST * sizeof(*master.history));
	truth_setup(setup.block_pages, ARENA_ADDRESS, NR_BLOCKS * setup.block);
}

/* Works without, too. */
static void setup_cgroup(void)
{
	struct stat st;

	if (read_text(CGROUPFS "/cgroup.subtree_control") && !strstr(truth.text, "memory"))
		master.controls = write_text(CGROUPFS "/cgroup.subtree_control", "+memory");
	snprintf(master.cgroup, sizeof(master.cgroup), CGROUPFS "/folio_mapcount_fuzz.%d",
		 getpid());
	if (mkdir(master.cgroup, 0755))
		master.cgroup[0] = '\0';
	else if (!stat(master.cgroup, &st) && truth.kpagecgroup >= 0)
		master.cgroup_ino = st.st_ino;
	if (!master.cgroup_ino)
		ksft_print_msg("no cgroup v2, so no memory.stat\n");
}

/* Restores the settings of the machine, however the test ends. */
static void restore(void)
{
	unsigned int w, tries;

	if (getpid() != master.pid)
		return;
	for (w = 0; w < MAX_WORKERS; w++) {
		if (!master.worker[w])
			continue;
		kill(master.worker[w], SIGKILL);
		waitpid(master.worker[w], NULL, 0);
	}
	for (tries = 0; master.cgroup[0] && rmdir(master.cgroup) && tries < 50; tries++)
		usleep(20000);
	if (master.controls)
		write_text(CGROUPFS "/cgroup.subtree_control", "-memory");
	if (!master.ksm_pages)
		return;
	write_num(KSM_SYSFS "/pages_to_scan", master.ksm_pages);
	write_num(KSM_SYSFS "/sleep_millisecs", master.ksm_sleep);
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
		setup.orders = thp_supported_orders();
		setup.shmem_orders = thp_shmem_supported_orders();
	}
	if (!hugetlb_setup_default(NR_HUGETLB))
		ksft_print_msg("few hugetlb pages to be had\n");
	if (!access(KSM_SYSFS "/run", W_OK)) {
		master.ksm_pages = read_num(KSM_SYSFS "/pages_to_scan");
		master.ksm_sleep = read_num(KSM_SYSFS "/sleep_millisecs");
		write_num(KSM_SYSFS "/pages_to_scan", 100000);
		write_num(KSM_SYSFS "/sleep_millisecs", 1);
	}
}

/*
 * All allocations may fail, even small ones that may wait; nothing does but what
 * a worker asks for. These settings need no undoing.
 */
static void setup_failures(void)
{
	static const char * const settings[][2] = {
		{ "failslab/ignore-gfp-wait", "N" },
		{ "failslab/verbose", "0" },
		{ "fail_page_alloc/ignore-gfp-wait", "N" },
		{ "fail_page_alloc/ignore-gfp-highmem", "N" },
		{ "fail_page_alloc/min-order", "0" },
		{ "fail_page_alloc/verbose", "0" },
	};
	char path[96];
	unsigned int i;

	if (access(FAIL_NTH, W_OK))
		ksft_exit_skip("no %s: see Documentation/fault-injection\n", FAIL_NTH);
	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s", settings[i][0]);
		if (!write_text(path, settings[i][1]))
			ksft_exit_skip("cannot set %s\n", path);
	}
}

/* Close-on-exec: a worker reads EOF when the master is gone. */
static void setup_pipes(void)
{
	int cmd[2], reply[2];
	unsigned int w;

	for (w = 0; w < opt.workers; w++) {
		if (pipe(cmd) || pipe(reply))
			ksft_exit_fail_perror("pipe");
		setup.to_worker[w] = cmd[0];
		setup.to_master[w] = reply[1];
		master.cmd_fd[w] = cmd[1];
		master.reply_fd[w] = reply[0];
		fcntl(cmd[1], F_SETFD, FD_CLOEXEC);
		fcntl(reply[0], F_SETFD, FD_CLOEXEC);
	}
	setup.self_fd = open_memfd("folio_mapcount_fuzz setup", 0, psize());
	if (setup.self_fd < 0)
		ksft_exit_fail_perror("memfd_create");
}

/* Options */

static void usage(void)
{
	unsigned int i;

	printf("Usage: folio_mapcount_fuzz [options]\n"
	       "Map memory at random, and compare what the kernel says with all page tables.\n"
	       "  -t SECONDS   how long (default: %u)\n"
	       "  -n POINTS    or for so many comparisons of everything\n"
	       "  -s SEED      random seed, from an earlier run's output\n"
	       "  -o LIST      only these commands of the one episode with that seed\n"
	       "  -p PROCESSES 2 to %u (default: %u)\n"
	       "  -r COMMANDS  between comparisons (default: %u)\n"
	       "  -e COMMANDS  in an episode (default: %u, at most %u)\n"
	       "  -c           processes act concurrently between the comparisons\n"
	       "  -F           have allocations of half of the commands fail\n"
	       "  -m MODE      what the kernel promises: exact, estimate or average\n"
	       "               (default: find out)\n"
	       "  -d DIR       where to put a file (default: %s)\n"
	       "  -S SECONDS   for making a failure small (default: %u, 0: do not)\n"
	       "  -v           print every command\n"
	       "  -B FIGURE    spoil what is computed for this one, to see the test fail:\n"
	       "              ", opt.seconds, MAX_WORKERS, opt.workers, opt.per_point,
	       opt.per_episode, MAX_LIST, opt.dir, opt.shrink_seconds);
	for (i = 0; i < NR_FIGURES; i++)
		printf(" %s%s", figures[i].name, i % 6 == 5 ? "\n              " : "");
	printf("\nNeeds root. Exit status: 0 all agree, 1 some differ, 4 skipped.\n");
}

static void __noreturn bad_option(const char *what, const char *value)
{
	fprintf(stderr, "folio_mapcount_fuzz: no %s: %s, see -h\n", what, value);
	exit(KSFT_FAIL);
}

static unsigned int parse_number(unsigned int min, unsigned int max)
{
	char *end;
	unsigned long value = strtoul(optarg, &end, 0);

	if (!*optarg || *end || value < min || value > max)
		bad_option("such number", optarg);
	return value;
}

static int parse_mode(void)
{
	int i;

	for (i = 0; i < NR_MODES; i++)
		if (!strcmp(mode_names[i], optarg))
			return i;
	bad_option("mode", optarg);
}

static int parse_figure(void)
{
	int i;

	for (i = 0; i < NR_FIGURES; i++)
		if (!strcmp(figures[i].name, optarg))
			return i;
	bad_option("figure", optarg);
}

static void parse_option(int c)
{
	switch (c) {
	case 't':
		opt.seconds = parse_number(1, 1000000);
		break;
	case 'n':
		opt.points = parse_number(1, INT_MAX);
		break;
	case 's':
		opt.seed = strtoull(optarg, NULL, 0);
		break;
	case 'o':
		opt.list = optarg;
		break;
	case 'p':
		opt.workers = parse_number(2, MAX_WORKERS);
		break;
	case 'r':
		opt.per_point = parse_number(1, MAX_LIST);
		break;
	case 'e':
		opt.per_episode = parse_number(1, MAX_LIST);
		break;
	case 'c':
		opt.concurrent = true;
		break;
	case 'F':
		opt.fail = true;
		break;
	case 'm':
		opt.mode = parse_mode();
		break;
	case 'd':
		opt.dir = optarg;
		break;
	case 'S':
		opt.shrink_seconds = parse_number(0, 1000000);
		break;
	case 'v':
		opt.verbose = true;
		break;
	case 'B':
		opt.spoil = parse_figure();
		break;
	default:
		usage();
		exit(c == 'h' ? KSFT_PASS : KSFT_FAIL);
	}
}

static void print_summary(void)
{
	unsigned int i;

	ksft_print_msg("%u commands in %u episodes, compared at %u points. Done of tried:\n",
		       master.commands, master.episodes, master.points);
	for (i = 0; i < ARRAY_SIZE(ops); i++)
		ksft_print_msg("  %-20s %6u of %u\n", ops[i].name, op_counts[i].ok,
			       op_counts[i].run);
	if (opt.fail)
		ksft_print_msg("%u allocations failed, as they were to.\n", master.failures);
	ksft_print_msg("Folios looked at:\n");
	for (i = 0; i < NR_SEEN; i++)
		ksft_print_msg("  %-25s %u\n", seen_names[i], master.seen[i]);
}

static void print_results(void)
{
	unsigned int f;

	for (f = 0; f < NR_FIGURES; f++) {
		if (!figures[f].compared)
			ksft_test_result_skip("%s: not compared\n", figures[f].what);
		else
			ksft_test_result(!figures[f].differs,
					 "%s: %llu comparisons, %llu of them with bounds\n",
					 figures[f].what, figures[f].compared, figures[f].within);
	}
	ksft_test_result(!master.hang && !master.deaths, "processes end as they should\n");
}

int main(int argc, char **argv)
{
	int c;

	if (argc == 4 && !strcmp(argv[1], "--worker"))
		worker_main(argv);
	master.pid = getpid();
	opt.seed = mix(time(NULL) ^ (uint64_t)getpid() << 32) >> 32;
	while ((c = getopt(argc, argv, "t:n:s:o:p:r:e:cFm:d:S:vB:h")) != -1)
		parse_option(c);
	ksft_print_header();
	ksft_set_plan(NR_FIGURES + 1);
	setup_memory();
	atexit(restore);
	setup_cgroup();
	setup_sysfs();
	if (opt.fail)
		setup_failures();
	setup_pipes();
	setup_modes();
	master.start_ms = now_ms();
	master.seed = opt.seed;
	ksft_print_msg("seed %llu; %u processes%s%s\n", (unsigned long long)opt.seed,
		       opt.workers, opt.concurrent ? ", concurrently" : "",
		       opt.fail ? ", allocations fail" : "");
	if (opt.list)
		run_list();
	else
		run_episodes();
	print_summary();
	print_results();
	ksft_finished();
}
