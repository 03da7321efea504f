// SPDX-License-Identifier: GPL-2.0
/*
 * folio_mapcount_tour - what the kernel says about mapped folios, checked
 *
 * The tour maps memory in many ways (PMD, PTEs, several folio sizes and types)
 * and changes the mappings step by step: fork, exit, munmap, mremap, mprotect,
 * MADV_DONTNEED, copy on write. After each step it recomputes, from the
 * pagemaps of all its processes, how often each page is mapped, and derives
 * from that what each interface of the kernel ought to say:
 *
 *	 tour (observes)			figures[]
 *	  | commands	| pagemap		  one entry per interface:
 *	  v over pipes	| of all		  where the kernel's figure is,
 *	  A, B, C ------+-------> truth ------->  how to compute it from the
 *	  (map memory)			| compare truth, and how closely the two
 *	  /proc, kpagecount, vmstat ----+	  have to agree
 *
 * A, B and C execute commands and then block, so nothing changes while the tour
 * looks. It fails if any figure disagrees with the truth.
 *
 * figures[] says how closely each interface has to agree: EXACT, or BETWEEN the
 * bounds that the documentation of an estimate promises. There are three rules for
 * each: for a mapcount in each page, for CONFIG_NO_PAGE_MAPCOUNT, and for
 * folio->_mapcounts. The last two estimate; the estimate of the last can be computed.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include "kselftest.h"
#include "vm_util.h"
#include "hugepage_settings.h"

/* As vm_util.h has the others. */
#define KPF_MMAP	BIT_ULL(11)
#define KPF_ANON	BIT_ULL(12)
#define KPF_HUGE	BIT_ULL(17)

#define NR_WORKERS	3
#define NR_PROCS	(NR_WORKERS + 1)	/* and the tour itself */
#define NR_SLOTS	2
#define NR_TRIES	5
#define TRY_US		20000
/* Without /proc/sys/vm/stat_refresh, the kernel folds vmstat each second. */
#define NR_TRIES_FOLD	25
#define TRY_US_FOLD	100000
#define FOLD_US		2000000
#define MAX_VMAS	512
#define MAX_STEPS	16
#define BAR_WIDTH	64
#define SMAPS_SIZE	(512 << 10)
#define MTHP_ORDER	4
/* What a step can tell apart; powerpc with 64K pages and 2 MiB huge ones has less. */
#define MIN_PMD_PAGES	64
/* Above this (arm64 with 64K pages: 512 MiB) a tour would take too long. */
#define MAX_PMD_SIZE	(64UL << 20)
#define PSS_SHIFT	12

enum op {
	OP_END,
	OP_MAP,
	OP_MAP_AGAIN,
	OP_FORK,
	OP_READ,
	OP_WRITE,
	OP_MUNMAP,
	OP_MREMAP,
	OP_PROTECT,
	OP_DONTNEED,
	OP_EXIT,
	OP_EXIT_ALL,
};

static const struct {
	const char *verb;	/* as in "A <verb> 4 KiB at 1 MiB <tail>" */
	const char *tail;
	bool range;
} op_text[] = {
	[OP_MAP]	= { "maps and populates", "", true },
	[OP_MAP_AGAIN]	= { "maps the same file once more", "" },
	[OP_FORK]	= { "forks", "" },
	[OP_READ]	= { "reads", "", true },
	[OP_WRITE]	= { "writes", "", true },
	[OP_MUNMAP]	= { "unmaps", "(munmap)", true },
	[OP_MREMAP]	= { "moves", "elsewhere (mremap)", true },
	[OP_PROTECT]	= { "makes", "read-only (mprotect)", true },
	[OP_DONTNEED]	= { "drops", "(MADV_DONTNEED)", true },
	[OP_EXIT]	= { "exits", "" },
	[OP_EXIT_ALL]	= { "Everything exits", "" },
};

/* Ranges are in 64ths of the scene's memory; no length means one page. */
struct step {
	enum op op;
	char who;
	char child;
	unsigned char at;
	unsigned char len;
	const char *note;
};

enum kind {
	KIND_ANON,
	KIND_SHMEM,
	KIND_FILE,
	KIND_HUGETLB,
};

enum size {
	SIZE_SMALL,		/* 16 base pages */
	SIZE_MTHP,		/* 4 folios of 16 pages */
	SIZE_PMD,
};

struct scene {
	const char *name;
	const char *title;
	enum kind kind;
	enum size size;
	bool ptes;		/* split the PMD right after mapping */
	struct step steps[MAX_STEPS];
};

static const struct scene scenes[] = {
	{
		.name = "small",
		.title = "Small anonymous pages, for comparison",
		.kind = KIND_ANON,
		.size = SIZE_SMALL,
		.steps = {
			{ OP_MAP, 'A', .len = 64,
			  .note = "one PTE for each page, no large folio" },
			{ OP_FORK, 'A', 'B',
			  .note = "fork copies the PTEs; the pages are shared" },
			{ OP_WRITE, 'B', .at = 8,
			  .note = "the page is copied, the original is A's alone" },
			{ OP_MUNMAP, 'A', .at = 48, .len = 16 },
			{ OP_EXIT, 'B' },
			{ OP_EXIT_ALL },
		},
	}, {
		.name = "anon-pmd",
		.title = "An anonymous THP, mapped by a PMD",
		.kind = KIND_ANON,
		.size = SIZE_PMD,
		.steps = {
			{ OP_MAP, 'A', .len = 64,
			  .note = "one entry maps the whole folio" },
			{ OP_FORK, 'A', 'B',
			  .note = "fork copies the PMD: two PMDs map all pages" },
			{ OP_MUNMAP, 'B', .at = 0, .len = 16,
			  .note = "B's PMD splits; A still maps all by its PMD" },
			{ OP_FORK, 'B', 'C',
			  .note = "a grandchild, from PTEs" },
			{ OP_WRITE, 'C', .at = 32,
			  .note = "copy on write of one page" },
			{ OP_PROTECT, 'A', .at = 40,
			  .note = "A's PMD splits in place: it becomes PTEs" },
			{ OP_EXIT, 'B',
			  .note = "the middle of the family goes first" },
			{ OP_MREMAP, 'A', .at = 30, .len = 4,
			  .note = "same pages, other addresses, other VMA" },
			{ OP_DONTNEED, 'C', .at = 48, .len = 8 },
			{ OP_EXIT, 'C',
			  .note = "A is alone again" },
			{ OP_WRITE, 'A', .at = 4, .len = 2,
			  .note = "A is the last owner: reuse or copy, the kernel decides" },
			{ OP_MUNMAP, 'A', .at = 0, .len = 32,
			  .note = "a partially mapped folio" },
			{ OP_EXIT_ALL },
		},
	}, {
		.name = "anon-pte",
		.title = "The same THP, mapped by PTEs",
		.kind = KIND_ANON,
		.size = SIZE_PMD,
		.ptes = true,
		.steps = {
			{ OP_MAP, 'A', .len = 64,
			  .note = "populated by a PMD, then split by mprotect and back" },
			{ OP_FORK, 'A', 'B' },
			{ OP_FORK, 'B', 'C' },
			{ OP_DONTNEED, 'A', .at = 0, .len = 16 },
			{ OP_MUNMAP, 'B', .at = 48, .len = 16 },
			{ OP_WRITE, 'C', .at = 20, .len = 4,
			  .note = "copies a run of pages" },
			{ OP_EXIT, 'A',
			  .note = "the process that created the folio is gone" },
			{ OP_MREMAP, 'C', .at = 30, .len = 4 },
			{ OP_EXIT, 'B',
			  .note = "the grandchild survives them all" },
			{ OP_WRITE, 'C', .at = 56, .len = 8,
			  .note = "the last survivor: reuse or copy, the kernel decides" },
			{ OP_EXIT_ALL },
		},
	}, {
		.name = "mthp",
		.title = "Four folios of 16 pages (mTHP), mapped by PTEs",
		.kind = KIND_ANON,
		.size = SIZE_MTHP,
		.steps = {
			{ OP_MAP, 'A', .len = 64 },
			{ OP_FORK, 'A', 'B' },
			{ OP_WRITE, 'B', .at = 8 },
			{ OP_MREMAP, 'A', .at = 12, .len = 8,
			  .note = "across the border of two folios" },
			{ OP_FORK, 'A', 'C',
			  .note = "copies both VMAs of A" },
			{ OP_MUNMAP, 'B', .at = 24, .len = 16 },
			{ OP_DONTNEED, 'A', .at = 36, .len = 6 },
			{ OP_PROTECT, 'C', .at = 60 },
			{ OP_EXIT, 'A' },
			{ OP_EXIT, 'B' },
			{ OP_WRITE, 'C', .at = 0, .len = 12 },
			{ OP_EXIT_ALL },
		},
	}, {
		.name = "save",
		.title = "A parent that saves its memory by children, as redis does",
		.kind = KIND_ANON,
		.size = SIZE_MTHP,
		.steps = {
			{ OP_MAP, 'A', .len = 64 },
			{ OP_FORK, 'A', 'B' },
			{ OP_WRITE, 'A', .at = 4, .len = 8,
			  .note = "copied, as B still maps the original" },
			{ OP_EXIT, 'B',
			  .note = "saved: nobody maps the originals any more" },
			{ OP_FORK, 'A', 'C',
			  .note = "the next one maps what A has of the folios" },
			{ OP_WRITE, 'A', .at = 20, .len = 20 },
			{ OP_EXIT, 'C' },
			{ OP_FORK, 'A', 'B' },
			{ OP_FORK, 'A', 'C',
			  .note = "two children: how much they have in common is not known" },
			{ OP_EXIT_ALL },
		},
	}, {
		.name = "shmem",
		.title = "A shared memory folio (memfd)",
		.kind = KIND_SHMEM,
		.size = SIZE_PMD,
		.steps = {
			{ OP_MAP, 'A', .len = 64 },
			{ OP_FORK, 'A', 'B',
			  .note = "fork copies no shared file mapping: B faults when it looks" },
			{ OP_READ, 'B', .len = 64,
			  .note = "B maps it by a PMD as well" },
			{ OP_PROTECT, 'A', .at = 40,
			  .note = "a file PMD is not split but dropped: A maps nothing now" },
			{ OP_READ, 'A', .len = 64,
			  .note = "back by PTEs, beside B's PMD" },
			{ OP_MAP_AGAIN, 'A',
			  .note = "twice in one process is not shared, but not once either" },
			{ OP_MUNMAP, 'B', .at = 0, .len = 32,
			  .note = "drops B's PMD, too" },
			{ OP_READ, 'B', .at = 32, .len = 24 },
			{ OP_DONTNEED, 'A', .at = 44, .len = 8 },
			{ OP_EXIT, 'B',
			  .note = "A maps all pages, most of them twice" },
			{ OP_EXIT, 'A' },
			{ OP_EXIT_ALL },
		},
	}, {
		.name = "file",
		.title = "A file in the page cache, mapped MAP_PRIVATE",
		.kind = KIND_FILE,
		.size = SIZE_PMD,
		.steps = {
			{ OP_MAP, 'A', .len = 64,
			  .note = "folios of the size that the file system chose" },
			{ OP_FORK, 'A', 'B' },
			{ OP_READ, 'B', .at = 0, .len = 32 },
			{ OP_WRITE, 'B', .at = 8, .len = 2,
			  .note = "private copies, small and anonymous" },
			{ OP_READ, 'B', .at = 0, .len = 64 },
			{ OP_FORK, 'B', 'C',
			  .note = "with an anonymous page in it, the VMA is copied" },
			{ OP_MAP_AGAIN, 'A' },
			{ OP_MUNMAP, 'A', .at = 16, .len = 8 },
			{ OP_MREMAP, 'C', .at = 30, .len = 4 },
			{ OP_EXIT, 'B' },
			{ OP_EXIT_ALL },
		},
	}, {
		.name = "hugetlb",
		.title = "A hugetlb folio",
		.kind = KIND_HUGETLB,
		.size = SIZE_PMD,
		.steps = {
			{ OP_MAP, 'A', .len = 64 },
			{ OP_FORK, 'A', 'B' },
			{ OP_FORK, 'B', 'C' },
			{ OP_WRITE, 'C', .at = 0,
			  .note = "copies the whole folio" },
			{ OP_EXIT, 'A' },
			{ OP_EXIT, 'B' },
			{ OP_EXIT_ALL },
		},
	},
};

/* What smaps says, summed over the VMAs of the scene, in KiB. */
enum smaps {
	SUM_RSS,
	SUM_PSS,
	SUM_PRIVATE,
	SUM_SHARED,
	SUM_PMD,
	SUM_HTLB_PRIVATE,
	SUM_HTLB_SHARED,
	NR_SUMS,
};

static const struct {
	const char *key;
	enum smaps sum;
} smaps_keys[] = {
	{ "Rss:", SUM_RSS },
	{ "Pss:", SUM_PSS },
	{ "Private_Clean:", SUM_PRIVATE },
	{ "Private_Dirty:", SUM_PRIVATE },
	{ "Shared_Clean:", SUM_SHARED },
	{ "Shared_Dirty:", SUM_SHARED },
	{ "AnonHugePages:", SUM_PMD },
	{ "ShmemPmdMapped:", SUM_PMD },
	{ "FilePmdMapped:", SUM_PMD },
	{ "Private_Hugetlb:", SUM_HTLB_PRIVATE },
	{ "Shared_Hugetlb:", SUM_HTLB_SHARED },
};

enum vmstat {
	VM_ANON,
	VM_FILE,
	VM_ANON_THP,
	VM_SHMEM_PMD,
	VM_FILE_PMD,
	NR_VM_MAPPED,
	VM_PGFAULT = NR_VM_MAPPED,
	NR_VM,
};

static const char * const vmstat_keys[] = {
	[VM_ANON]	= "nr_anon_pages",
	[VM_FILE]	= "nr_mapped",
	[VM_ANON_THP]	= "nr_anon_transparent_hugepages",
	[VM_SHMEM_PMD]	= "nr_shmem_pmdmapped",
	[VM_FILE_PMD]	= "nr_file_pmdmapped",
	[VM_PGFAULT]	= "pgfault",
};

struct vma {
	unsigned long start;
	unsigned long end;
	unsigned char proc;
	bool scene;		/* part of the scene, not of the program */
	bool special;		/* vdso and the like: not counted as mapped */
	unsigned long kib;	/* resident, to skip the empty ones */
	__u64 pss;		/* fixed point, in the units of the kernel */
	__u64 pss_known;
	__u64 pss_lo;
	__u64 pss_hi;
};

/* One present page table entry, or one page of the many that a PMD maps. */
struct mapping {
	__u64 pfn;
	unsigned long addr;
	unsigned short vma;
	unsigned char proc;
	bool scene;
	bool pmd;
	bool file;
	bool exclusive;		/* according to the kernel: bit 56 */
};

struct folio {
	__u64 pfn;
	unsigned int nr;
	unsigned int first;	/* its first page in snapshot.pages */
	unsigned int pages;	/* distinct ones that are mapped */
	unsigned int ptes;
	unsigned int pmds;
	unsigned int ptes_of[NR_PROCS];
	bool anon;
	/* All in one piece in one page table, which is then here: */
	bool one_table;
	unsigned char proc;
	unsigned long addr;	/* of the first page, mapped or not */
	unsigned long table;
};

/* A page of a folio of the scene, mapped or not. */
struct page {
	__u64 pfn;
	__u64 kcount;
	__u64 kflags;
	unsigned int folio;
	unsigned int ptes;
	unsigned int pmds;
	unsigned char procs;	/* bit mask */
};

/* Everything known at one moment: truth first, then the kernel's view. */
struct snapshot {
	struct mapping *map;
	unsigned int nr_map;
	struct page *pages;
	unsigned int nr_pages;
	struct folio *folios;
	unsigned int nr_folios;
	struct vma vmas[MAX_VMAS];
	unsigned int nr_vmas;
	unsigned int nr_ptes;
	unsigned int nr_pmds;
	long long truth[NR_VM_MAPPED];		/* of the scene */
	long long overhead[NR_VM_MAPPED];	/* of the rest of the tour */

	long long kib[NR_SUMS];
	long long mapmax;
	long long vm[NR_VM];
	long long faults;			/* all that the tour took itself */
	char *text;
	__u64 *kbuf;
};

struct worker {
	pid_t pid;
	int cmd[2];
	int reply[2];
};

struct command {
	enum op op;
	int child;
	size_t off;
	size_t len;
};

struct reply {
	int err;
	pid_t pid;
};

struct result {
	unsigned int ok;
	unsigned int within;
	unsigned int known;
	unsigned int noisy;
	unsigned int differs;
};

static struct tour {
	unsigned long pmd_size;
	unsigned int pmd_pages;
	unsigned int max_map;
	char *arena;
	int kpagecount;
	int kpageflags;
	__u64 zero_pfn;
	bool averages;		/* one count for all pages of a folio */
	bool packed;		/* one packed mapcount for each large folio */
	bool has_numa_maps;
	bool has_refresh;
	bool quiet;
	bool colour;
	const char *dir;
	const char *only;
	int spoil;

	const struct scene *scene;
	size_t size;
	int fd;
	__u64 *orig;		/* the pages that the scene began with */
	unsigned int nr_orig;
	long long others[NR_VM];/* what the rest of the system accounts for */
	long long faults_before;/* and its page faults, one step earlier */
	struct worker workers[NR_WORKERS];
	struct snapshot snap;
} tour = { .spoil = -1, .fd = -1 };

/* Text */

static const char *size_str(char *buf, size_t len, size_t size)
{
	if (size && !(size & ((1UL << 20) - 1)))
		snprintf(buf, len, "%zu MiB", size >> 20);
	else
		snprintf(buf, len, "%zu KiB", size >> 10);
	return buf;
}

static size_t step_offset(const struct step *step)
{
	return tour.size / 64 * step->at & ~((size_t)psize() - 1);
}

static size_t step_length(const struct step *step)
{
	size_t len = tour.size / 64 * step->len & ~((size_t)psize() - 1);

	return len ?: psize();
}

static void step_title(const struct step *step, char *buf, size_t len)
{
	char size[32], off[32], range[80] = "";

	if (step->op == OP_EXIT_ALL) {
		snprintf(buf, len, "%s", op_text[step->op].verb);
		return;
	}
	if (op_text[step->op].range) {
		size_str(size, sizeof(size), step_length(step));
		size_str(off, sizeof(off), step_offset(step));
		if (step->len == 64)
			snprintf(range, sizeof(range), " %s", size);
		else
			snprintf(range, sizeof(range), " %s at %s", size, off);
	} else if (step->op == OP_FORK) {
		snprintf(range, sizeof(range), " %c", step->child);
	}
	snprintf(buf, len, "%c %s%s%s%s", step->who, op_text[step->op].verb,
		 range, *op_text[step->op].tail ? " " : "",
		 op_text[step->op].tail);
}

/* The processes that map memory */

/* Never returns to stdio or atexit handlers: those belong to the tour. */
static void worker_init(void)
{
	int i;

	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	signal(SIGQUIT, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Without a writer left, a worker reads EOF should the tour die. */
	for (i = 0; i < NR_WORKERS; i++)
		close(tour.workers[i].cmd[1]);
}

static char *slot(int nr)
{
	return tour.arena + nr * tour.pmd_size;
}

static int worker_mmap(int nr)
{
	int prot = PROT_READ | PROT_WRITE, flags = MAP_FIXED | MAP_PRIVATE;

	switch (tour.scene->kind) {
	case KIND_ANON:
		flags |= MAP_ANONYMOUS;
		break;
	case KIND_HUGETLB:
		flags |= MAP_ANONYMOUS | MAP_HUGETLB;
		break;
	case KIND_SHMEM:
		flags ^= MAP_PRIVATE | MAP_SHARED;
		break;
	case KIND_FILE:
		/* Once private, to copy on write, and then shared. */
		if (nr) {
			flags ^= MAP_PRIVATE | MAP_SHARED;
			prot = PROT_READ;
		}
		break;
	}
	if (mmap(slot(nr), tour.size, prot, flags, tour.fd, 0) == MAP_FAILED)
		return -errno;
	/* Fails without THP, where "small" still works. */
	madvise(slot(nr), tour.size, tour.scene->size == SIZE_SMALL ?
		MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	return 0;
}

static int worker_map(void)
{
	int err = worker_mmap(0);

	if (err)
		return err;
	if (tour.scene->kind == KIND_FILE)
		force_read_pages(slot(0), tour.size / psize(), psize());
	else
		memset(slot(0), 1, tour.size);
	/* A change to one page splits the PMD; the change back keeps PTEs. */
	if (tour.scene->ptes &&
	    (mprotect(slot(0), psize(), PROT_READ) ||
	     mprotect(slot(0), psize(), PROT_READ | PROT_WRITE)))
		return -errno;
	return 0;
}

static int worker_map_again(void)
{
	int err = worker_mmap(1);

	if (!err)
		force_read_pages(slot(1), tour.size / psize(), psize());
	return err;
}

static void worker_write(char *addr, size_t len)
{
	size_t off;

	for (off = 0; off < len; off += psize())
		addr[off] = 2;
}

static int worker_move(char *addr, size_t len)
{
	void *to = slot(1) + (addr - slot(0));

	if (sys_mremap(addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		return -errno;
	return 0;
}

/*
 * All workers are children of the tour, even if another worker forks them: so the
 * tour can wait for each, and the death of B does not signal C.
 */
static pid_t worker_clone(void)
{
	struct clone_args args = { .flags = CLONE_PARENT };

	return syscall(__NR_clone3, &args, sizeof(args));
}

static int worker_do(const struct command *cmd)
{
	char *addr = slot(0) + cmd->off;

	switch (cmd->op) {
	case OP_MAP:
		return worker_map();
	case OP_MAP_AGAIN:
		return worker_map_again();
	case OP_READ:
		force_read_pages(addr, cmd->len / psize(), psize());
		return 0;
	case OP_WRITE:
		worker_write(addr, cmd->len);
		return 0;
	case OP_MREMAP:
		return worker_move(addr, cmd->len);
	case OP_MUNMAP:
		return munmap(addr, cmd->len) ? -errno : 0;
	case OP_PROTECT:
		return mprotect(addr, cmd->len, PROT_READ) ? -errno : 0;
	case OP_DONTNEED:
		return madvise(addr, cmd->len, MADV_DONTNEED) ? -errno : 0;
	default:
		return -EINVAL;
	}
}

static void worker_answer(int self, const struct reply *reply)
{
	if (write(tour.workers[self].reply[1], reply, sizeof(*reply)) !=
	    sizeof(*reply))
		_exit(1);
}

/* The first answer, of a new worker, says that it is ready. */
static __noreturn void worker_run(int self)
{
	struct reply reply = {};
	struct command cmd;

	for (;;) {
		worker_answer(self, &reply);
		if (read(tour.workers[self].cmd[0], &cmd, sizeof(cmd)) != sizeof(cmd) ||
		    cmd.op == OP_EXIT)
			_exit(0);
		memset(&reply, 0, sizeof(reply));
		if (cmd.op == OP_FORK) {
			reply.pid = worker_clone();
			if (!reply.pid) {
				self = cmd.child;
				worker_init();
			} else if (reply.pid < 0) {
				reply.err = -errno;
			}
		} else {
			reply.err = worker_do(&cmd);
		}
	}
}

/* Poll, because a worker that died of SIGBUS will never answer. */
static int worker_reply(struct worker *w, struct reply *reply)
{
	struct pollfd pfd = { .fd = w->reply[0], .events = POLLIN };
	int tries;

	for (tries = 0; tries < 300; tries++) {
		if (poll(&pfd, 1, 100) > 0) {
			if (read(w->reply[0], reply, sizeof(*reply)) != sizeof(*reply))
				return -EIO;
			return reply->err;
		}
		if (w->pid && waitpid(w->pid, NULL, WNOHANG) == w->pid) {
			w->pid = 0;
			return -ECHILD;
		}
	}
	return -ETIMEDOUT;
}

static int worker_tell(struct worker *w, const struct command *cmd)
{
	struct reply reply, child;
	int err;

	if (write(w->cmd[1], cmd, sizeof(*cmd)) != sizeof(*cmd))
		return -errno;
	if (cmd->op == OP_EXIT) {
		waitpid(w->pid, NULL, 0);
		w->pid = 0;
		return 0;
	}
	err = worker_reply(w, &reply);
	if (err || cmd->op != OP_FORK)
		return err;
	tour.workers[cmd->child].pid = reply.pid;
	/* The child answers as well, once it is ready. */
	return worker_reply(&tour.workers[cmd->child], &child);
}

static void workers_exit(void)
{
	const struct command cmd = { .op = OP_EXIT };
	int i;

	for (i = 0; i < NR_WORKERS; i++)
		if (tour.workers[i].pid)
			worker_tell(&tour.workers[i], &cmd);
}

static void worker_first(void)
{
	struct reply ready;
	pid_t pid = fork();

	if (pid < 0)
		ksft_exit_fail_perror("fork");
	if (!pid) {
		worker_init();
		worker_run(0);
	}
	tour.workers[0].pid = pid;
	if (worker_reply(&tour.workers[0], &ready))
		ksft_exit_fail_msg("the first process does not start\n");
}

static int step_do(const struct step *step)
{
	const struct command cmd = {
		.op = step->op,
		.child = step->child - 'A',
		.off = step_offset(step),
		.len = step_length(step),
	};

	if (step->op == OP_EXIT_ALL) {
		workers_exit();
		return 0;
	}
	return worker_tell(&tour.workers[step->who - 'A'], &cmd);
}

/* Reading the kernel's view */

static int proc_open(int proc, const char *name)
{
	char path[64];

	if (proc == NR_WORKERS)
		snprintf(path, sizeof(path), "/proc/self/%s", name);
	else
		snprintf(path, sizeof(path), "/proc/%d/%s",
			 tour.workers[proc].pid, name);
	return open(path, O_RDONLY);
}

/* Returns false if the file is not there; stdio would allocate memory. */
static bool read_text(int fd, char *buf)
{
	size_t len = 0;
	ssize_t ret;

	if (fd < 0)
		return false;
	while ((ret = read(fd, buf + len, SMAPS_SIZE - 1 - len)) > 0)
		len += ret;
	close(fd);
	buf[len] = '\0';
	return ret >= 0 && len;
}

static char *next_line(char **text)
{
	char *line = *text, *end;

	if (!*line)
		return NULL;
	end = strchrnul(line, '\n');
	*text = *end ? end + 1 : end;
	*end = '\0';
	return line;
}

static bool in_scene(unsigned long addr)
{
	return addr - (unsigned long)tour.arena < NR_SLOTS * tour.pmd_size;
}

static struct vma *add_vma(struct snapshot *s, int proc, unsigned long start,
			   unsigned long end, const char *name)
{
	struct vma *vma = &s->vmas[s->nr_vmas++];

	if (s->nr_vmas > MAX_VMAS)
		ksft_exit_fail_msg("more than %d VMAs\n", MAX_VMAS);
	*vma = (struct vma) {
		.start = start,
		.end = end,
		.proc = proc,
		.scene = in_scene(start) && proc != NR_WORKERS,
		.special = name[0] == '[' && name[1] == 'v',
	};
	return vma;
}

static void smaps_value(struct snapshot *s, struct vma *vma, const char *line)
{
	long long kib;
	size_t i, len;

	for (i = 0; i < ARRAY_SIZE(smaps_keys); i++) {
		len = strlen(smaps_keys[i].key);
		if (strncmp(line, smaps_keys[i].key, len))
			continue;
		kib = strtoll(line + len, NULL, 10);
		if (smaps_keys[i].sum == SUM_RSS)
			vma->kib = kib;
		if (vma->scene)
			s->kib[smaps_keys[i].sum] += kib;
	}
}

static void read_smaps(struct snapshot *s, int proc)
{
	char *text = s->text, *line, name[64];
	struct vma *vma = NULL;
	unsigned long start, end;

	if (!read_text(proc_open(proc, "smaps"), s->text))
		ksft_exit_fail_perror("reading smaps");
	while ((line = next_line(&text))) {
		name[0] = '\0';
		if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %63s", &start, &end, name) >= 2)
			vma = add_vma(s, proc, start, end, name);
		else if (vma)
			smaps_value(s, vma, line);
	}
}

/* The file leaves mapmax out where it is 1. */
static void read_numa_maps(struct snapshot *s, int proc)
{
	char *text = s->text, *line, *max;
	long long val;

	if (!tour.has_numa_maps ||
	    !read_text(proc_open(proc, "numa_maps"), s->text))
		return;
	while ((line = next_line(&text))) {
		if (!in_scene(strtoul(line, NULL, 16)) ||
		    !strstr(line, "kernelpagesize_kB="))
			continue;
		max = strstr(line, " mapmax=");
		val = max ? strtoll(max + strlen(" mapmax="), NULL, 10) : 1;
		if (val > s->mapmax)
			s->mapmax = val;
	}
}

/* Per-CPU parts are folded first: reading stat_refresh does that. */
static void read_vmstat(struct snapshot *s)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_RDONLY);
	char *text = s->text, *line, *val;
	int i;

	if (fd >= 0) {
		(void)!read(fd, text, 1);
		close(fd);
	}
	if (!read_text(open("/proc/vmstat", O_RDONLY), text))
		ksft_exit_fail_perror("reading /proc/vmstat");
	while ((line = next_line(&text))) {
		val = strchr(line, ' ');
		if (!val)
			continue;
		*val++ = '\0';
		for (i = 0; i < NR_VM; i++)
			if (!strcmp(line, vmstat_keys[i]))
				s->vm[i] = strtoll(val, NULL, 10);
	}
}

/* Fields 10 and 12, counted from the end of the name in parentheses. */
static long long stat_faults(const char *stat)
{
	unsigned long minor = 0, major = 0;

	stat = strrchr(stat, ')');
	if (stat)
		sscanf(stat, ") %*c %*d %*d %*d %*d %*d %*u %lu %*u %lu",
		       &minor, &major);
	return (long long)minor + major;
}

/*
 * If the system took more page faults than the tour itself, it was not quiet,
 * and system-wide figures may have moved for reasons that are not ours.
 */
static long long own_faults(struct snapshot *s)
{
	struct rusage self, gone;
	long long sum;
	int i;

	getrusage(RUSAGE_SELF, &self);
	getrusage(RUSAGE_CHILDREN, &gone);
	sum = (long long)self.ru_minflt + self.ru_majflt +
	      gone.ru_minflt + gone.ru_majflt;
	for (i = 0; i < NR_WORKERS; i++)
		if (tour.workers[i].pid && read_text(proc_open(i, "stat"), s->text))
			sum += stat_faults(s->text);
	return sum;
}

static void kpage_read(int fd, __u64 pfn, unsigned int nr, __u64 *buf)
{
	ssize_t len = nr * sizeof(*buf);

	if (pread(fd, buf, len, pfn * sizeof(*buf)) != len)
		ksft_exit_fail_msg("reading kpagecount or kpageflags at PFN %#llx failed\n",
				   (unsigned long long)pfn);
}

/* The truth, from all pagemaps */

static void add_mapping(struct snapshot *s, const struct vma *vma,
			unsigned long addr, __u64 entry)
{
	__u64 pfn = PAGEMAP_PFN(entry);

	if (!PAGEMAP_PRESENT(entry) || pfn == tour.zero_pfn)
		return;
	if (s->nr_map == tour.max_map)
		ksft_exit_fail_msg("more than %u pages mapped\n", tour.max_map);
	s->map[s->nr_map++] = (struct mapping) {
		.pfn = pfn,
		.addr = addr,
		.vma = vma - s->vmas,
		.proc = vma->proc,
		.scene = vma->scene,
		.file = entry & PM_FILE,
		.exclusive = entry & PM_MMAP_EXCLUSIVE,
	};
}

static void scan_pagemap(struct snapshot *s, const struct vma *vma, int fd)
{
	unsigned long addr = vma->start;
	unsigned int nr, i;
	ssize_t len;

	while (addr < vma->end) {
		nr = (vma->end - addr) / psize();
		if (nr > tour.pmd_pages)
			nr = tour.pmd_pages;
		len = pread(fd, s->kbuf, nr * sizeof(__u64),
			    (off_t)(addr / psize()) * sizeof(__u64));
		if (len <= 0)
			ksft_exit_fail_perror("reading pagemap");
		nr = len / sizeof(__u64);
		for (i = 0; i < nr; i++, addr += psize())
			add_mapping(s, vma, addr, s->kbuf[i]);
	}
}

/* Only PAGEMAP_SCAN tells which pages a PMD (or a hugetlb entry) maps. */
static void scan_huge(struct snapshot *s, const struct vma *vma, int fd,
		      unsigned int first)
{
	struct page_region vec[16];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = vma->start,
		.end = vma->end,
		.vec = (uintptr_t)vec,
		.vec_len = ARRAY_SIZE(vec),
		.category_mask = PAGE_IS_HUGE | PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_HUGE,
	};
	int nr = ioctl(fd, PAGEMAP_SCAN, &arg);
	unsigned int i;

	if (nr < 0)
		ksft_exit_fail_perror("PAGEMAP_SCAN");
	while (nr--)
		for (i = first; i < s->nr_map; i++)
			if (s->map[i].addr >= vec[nr].start &&
			    s->map[i].addr < vec[nr].end)
				s->map[i].pmd = true;
}

static void scan_proc(struct snapshot *s, int proc)
{
	int fd = proc_open(proc, "pagemap");
	const struct vma *vma;
	unsigned int i, first;

	if (fd < 0)
		ksft_exit_fail_perror("opening pagemap");
	for (i = 0; i < s->nr_vmas; i++) {
		vma = &s->vmas[i];
		/* For the program's own VMAs the kernel is trusted on "empty". */
		if (vma->proc != proc || vma->special ||
		    (!vma->scene && !vma->kib))
			continue;
		first = s->nr_map;
		scan_pagemap(s, vma, fd);
		if (vma->scene)
			scan_huge(s, vma, fd, first);
	}
	close(fd);
}

static int cmp_mapping(const void *a, const void *b)
{
	const struct mapping *x = a, *y = b;

	return x->pfn < y->pfn ? -1 : x->pfn > y->pfn;
}

/* Folios are naturally aligned and, here, never larger than a PMD maps. */
static void find_folio(struct snapshot *s, __u64 pfn, struct folio *folio)
{
	__u64 block = pfn & ~((__u64)tour.pmd_pages - 1);
	unsigned int head = pfn - block, end;

	kpage_read(tour.kpageflags, block, tour.pmd_pages, s->kbuf);
	if (s->kbuf[head] & KPF_COMPOUND_TAIL)
		while (head && !(s->kbuf[head] & KPF_COMPOUND_HEAD))
			head--;
	end = head + 1;
	while (end < tour.pmd_pages && (s->kbuf[end] & KPF_COMPOUND_TAIL))
		end++;
	folio->pfn = block + head;
	folio->nr = end - head;
}

static void add_folio(struct snapshot *s, const struct mapping *m)
{
	struct folio *folio = &s->folios[s->nr_folios];
	struct page *pages = &s->pages[s->nr_pages];
	unsigned int i;

	*folio = (struct folio) {
		.first = s->nr_pages,
		.anon = !m->file,
	};
	find_folio(s, m->pfn, folio);
	if (s->nr_pages + folio->nr > tour.max_map)
		ksft_exit_fail_msg("more than %u pages\n", tour.max_map);
	kpage_read(tour.kpageflags, folio->pfn, folio->nr, s->kbuf);
	for (i = 0; i < folio->nr; i++)
		pages[i] = (struct page) {
			.pfn = folio->pfn + i,
			.kflags = s->kbuf[i],
			.folio = s->nr_folios,
		};
	kpage_read(tour.kpagecount, folio->pfn, folio->nr, s->kbuf);
	for (i = 0; i < folio->nr; i++)
		pages[i].kcount = s->kbuf[i];
	s->nr_pages += folio->nr;
	s->nr_folios++;
}

static struct page *find_page(struct snapshot *s, __u64 pfn)
{
	unsigned int lo = 0, hi = s->nr_folios, mid;
	const struct folio *folio;

	while (lo < hi) {
		mid = (lo + hi) / 2;
		folio = &s->folios[mid];
		if (pfn < folio->pfn)
			hi = mid;
		else if (pfn >= folio->pfn + folio->nr)
			lo = mid + 1;
		else
			return &s->pages[folio->first + (pfn - folio->pfn)];
	}
	return NULL;
}

static void count_table(struct folio *folio, const struct mapping *m)
{
	const unsigned long addr = m->addr - (m->pfn - folio->pfn) * psize();
	const unsigned long table = m->addr & ~(tour.pmd_size - 1);

	if (!folio->ptes && !folio->pmds) {
		folio->one_table = !m->pmd;
		folio->proc = m->proc;
		folio->addr = addr;
		folio->table = table;
	} else if (m->pmd || folio->proc != m->proc || folio->addr != addr ||
		   folio->table != table) {
		folio->one_table = false;
	}
}

static void count_mapping(struct snapshot *s, const struct mapping *m)
{
	struct page *page = find_page(s, m->pfn);
	struct folio *folio;

	if (!page) {
		add_folio(s, m);
		page = find_page(s, m->pfn);
	}
	folio = &s->folios[page->folio];
	count_table(folio, m);
	folio->pages += !page->procs;
	page->procs |= 1 << m->proc;
	page->ptes += !m->pmd;
	page->pmds += m->pmd;
	/* A PMD counts once for its folio, at the first page. */
	folio->ptes += !m->pmd;
	folio->ptes_of[m->proc] += !m->pmd;
	folio->pmds += m->pmd && m->pfn == folio->pfn;
}

static void count_folios(struct snapshot *s)
{
	const enum vmstat pmd_stat[] = {
		[KIND_SHMEM]	= VM_SHMEM_PMD,
		[KIND_FILE]	= VM_FILE_PMD,
	};
	const struct folio *folio;
	unsigned int i;

	for (i = 0; i < s->nr_folios; i++) {
		folio = &s->folios[i];
		s->nr_ptes += folio->ptes;
		s->nr_pmds += folio->pmds;
		/* hugetlb has statistics of its own. */
		if (tour.scene->kind == KIND_HUGETLB)
			continue;
		s->truth[folio->anon ? VM_ANON : VM_FILE] += folio->pages;
		if (folio->pmds)
			s->truth[folio->anon ? VM_ANON_THP :
				 pmd_stat[tour.scene->kind]]++;
	}
}

static void count_all(struct snapshot *s)
{
	const struct mapping *m, *last = NULL;
	unsigned int i;

	qsort(s->map, s->nr_map, sizeof(*s->map), cmp_mapping);
	for (i = 0; i < s->nr_map; i++) {
		m = &s->map[i];
		if (m->scene)
			count_mapping(s, m);
		else if (!last || last->pfn != m->pfn)
			s->overhead[m->file ? VM_FILE : VM_ANON]++;
		last = m;
	}
	count_folios(s);
}

static unsigned int page_count(const struct page *page)
{
	return page->ptes + page->pmds;
}

/*
 * Bounds for a kernel that only knows the average number of mappings of the
 * pages of a folio, however it rounds.
 */
static unsigned int average_lo(const struct snapshot *s, const struct page *page)
{
	const struct folio *folio = &s->folios[page->folio];
	unsigned int avg = folio->ptes / folio->nr + folio->pmds;

	return avg ?: 1;
}

static unsigned int average_hi(const struct snapshot *s, const struct page *page)
{
	const struct folio *folio = &s->folios[page->folio];
	unsigned int avg = (folio->ptes + folio->nr - 1) / folio->nr + folio->pmds;

	return avg ?: 1;
}

/* The same, if @creator is the number of PTEs of the process that created the folio. */
static unsigned int estimate_for(const struct folio *folio, unsigned int creator)
{
	if (folio->pmds)
		return folio->nr;
	return MIN(MAX(creator, folio->ptes - creator), folio->nr);
}

/*
 * What a kernel with folio->_mapcounts takes for the mapped pages of a folio. A
 * creates all anonymous ones. When it does not map the folio any more, any other
 * process or none can be known as the creator.
 */
static unsigned int folio_estimate_hi(const struct folio *folio)
{
	return estimate_for(folio, folio->anon ? folio->ptes_of[0] : 0);
}

static unsigned int folio_estimate_lo(const struct folio *folio)
{
	unsigned int lo = folio_estimate_hi(folio), proc;

	for (proc = 1; folio->anon && !folio->ptes_of[0] && proc < NR_PROCS; proc++)
		lo = MIN(lo, estimate_for(folio, folio->ptes_of[proc]));
	return lo;
}

/* The least that such a kernel must find to be mapped by one process alone. */
static bool surely_alone(const struct snapshot *s, const struct page *page)
{
	const struct folio *folio = &s->folios[page->folio];

	return tour.packed && (folio->one_table || folio->ptes + folio->pmds == 1);
}

/*
 * 32-bit kernels compute the Pss of a folio that has a single reference, from
 * a PMD, in an unsigned long, where PMD size << PSS_SHIFT is 0.
 */
static bool pss_overflows(const struct snapshot *s, const struct page *page)
{
	const struct folio *folio = &s->folios[page->folio];

	return sizeof(long) == 4 && folio->anon && folio->pmds == 1 && !folio->ptes;
}

static void count_pss(struct snapshot *s)
{
	const __u64 one = (__u64)psize() << PSS_SHIFT;
	const struct folio *folio;
	const struct mapping *m;
	const struct page *page;
	__u64 mappings;
	struct vma *vma;
	unsigned int i;

	for (i = 0; i < s->nr_map; i++) {
		m = &s->map[i];
		if (!m->scene || tour.scene->kind == KIND_HUGETLB)
			continue;
		page = find_page(s, m->pfn);
		vma = &s->vmas[m->vma];
		vma->pss += one / page_count(page);
		vma->pss_known += pss_overflows(s, page) ? 0 : one / page_count(page);
		if (!tour.packed) {
			vma->pss_lo += one / average_hi(s, page);
			vma->pss_hi += one / average_lo(s, page);
			continue;
		}
		/* The kernel rounds down, for how many pages at a time is its own. */
		folio = &s->folios[page->folio];
		mappings = folio->ptes + (__u64)folio->pmds * folio->nr;
		vma->pss_lo += one * folio_estimate_lo(folio) / mappings;
		vma->pss_hi += (one * folio_estimate_hi(folio) + mappings - 1) / mappings;
	}
}

static void snapshot_reset(struct snapshot *s)
{
	s->nr_map = 0;
	s->nr_pages = 0;
	s->nr_folios = 0;
	s->nr_vmas = 0;
	s->nr_ptes = 0;
	s->nr_pmds = 0;
	s->mapmax = 0;
	memset(s->truth, 0, sizeof(s->truth));
	memset(s->overhead, 0, sizeof(s->overhead));
	memset(s->kib, 0, sizeof(s->kib));
	memset(s->vm, 0, sizeof(s->vm));
}

static void snapshot_take(struct snapshot *s)
{
	int proc;

	snapshot_reset(s);
	for (proc = 0; proc < NR_PROCS; proc++) {
		if (proc < NR_WORKERS && !tour.workers[proc].pid)
			continue;
		read_smaps(s, proc);
		scan_proc(s, proc);
		if (proc < NR_WORKERS)
			read_numa_maps(s, proc);
	}
	s->faults = own_faults(s);
	read_vmstat(s);
	count_all(s);
	count_pss(s);
}

/* The figures: the kernel's, beside the computed one */

enum rule {
	EXACT,
	BETWEEN,
};

enum verdict {
	V_OK,
	V_WITHIN,	/* not exact, but between the bounds of an estimate */
	V_KNOWN,	/* an inaccuracy of old that is described */
	V_NOISY,	/* others were at work, so it cannot be told */
	V_DIFFERS,
};

static const struct {
	const char *text;
	const char *colour;
} verdicts[] = {
	[V_OK]		= { "ok", "32" },
	[V_WITHIN]	= { "ok, within", "32" },
	[V_KNOWN]	= { "known:", "33" },
	[V_NOISY]	= { "system not quiet", "33" },
	[V_DIFFERS]	= { "DIFFERS", "31" },
};

/* Each count says in how many places the kernel breaks that rule. */
struct reading {
	unsigned int not_exact;
	unsigned int not_known;
	unsigned int not_between;
	bool zero;		/* nothing to see on either side */
	char kernel[40];
	char computed[40];
	char bounds[48];
	char where[80];		/* the first place that differs */
};

struct figure {
	const char *name;
	const char *label;
	const char *unit;
	enum rule rule;
	enum rule rule_average;	/* if tour.averages */
	enum rule rule_packed;	/* with the packed mapcount */
	bool global;		/* other processes may change it */
	int arg;
	void (*read)(struct snapshot *s, const struct figure *f,
		     struct reading *r, int spoil);
	const char *known;
};

struct scalar {
	long long kernel;
	long long exact;
	long long known;
	long long lo;
	long long hi;
};

static void read_scalar(struct reading *r, const struct scalar *v, int spoil)
{
	long long exact = v->exact + spoil;

	r->not_exact = v->kernel != exact;
	r->not_known = v->kernel != v->known + spoil;
	r->not_between = v->kernel < v->lo + spoil || v->kernel > v->hi + spoil;
	r->zero = !v->kernel && !exact;
	snprintf(r->kernel, sizeof(r->kernel), "%lld", v->kernel);
	snprintf(r->computed, sizeof(r->computed), "%lld", exact);
	snprintf(r->bounds, sizeof(r->bounds), " %lld..%lld", v->lo, v->hi);
}

struct range {
	unsigned long long min;
	unsigned long long max;
	unsigned long long sum;
};

static void range_add(struct range *range, unsigned long long val)
{
	if (val < range->min)
		range->min = val;
	if (val > range->max)
		range->max = val;
	range->sum += val;
}

static void range_str(char *buf, size_t len, const struct range *range)
{
	if (range->min == range->max)
		snprintf(buf, len, "%llu each, sum %llu", range->min, range->sum);
	else
		snprintf(buf, len, "%llu..%llu, sum %llu", range->min, range->max,
			 range->sum);
}

/* Compared page by page, over mapped and unmapped pages of the folios. */
static void read_kpagecount(struct snapshot *s, const struct figure *f,
			    struct reading *r, int spoil)
{
	struct range kernel = { .min = ULLONG_MAX }, truth = kernel;
	const struct page *page;
	unsigned int i, exact;

	r->zero = !s->nr_pages;
	for (i = 0; i < s->nr_pages; i++) {
		page = &s->pages[i];
		exact = page_count(page) + (i ? 0 : spoil);
		range_add(&kernel, page->kcount);
		range_add(&truth, exact);
		if (page->kcount == exact)
			continue;
		if (!r->not_exact++)
			snprintf(r->where, sizeof(r->where),
				 "page %u of folio %u: kernel %llu, computed %u",
				 i - s->folios[page->folio].first, page->folio,
				 (unsigned long long)page->kcount, exact);
	}
	r->not_known = r->not_exact;
	range_str(r->kernel, sizeof(r->kernel), &kernel);
	range_str(r->computed, sizeof(r->computed), &truth);
}

static __u64 expected_flags(const struct snapshot *s, const struct page *page)
{
	const struct folio *folio = &s->folios[page->folio];
	__u64 flags = KPF_MMAP;

	if (folio->anon)
		flags |= KPF_ANON;
	if (folio->nr > 1)
		flags |= tour.scene->kind == KIND_HUGETLB ? KPF_HUGE :
			 KPF_THP;
	return flags;
}

/* Every page of a mapped folio is flagged as mapped, also where it is not. */
static void read_kpageflags(struct snapshot *s, const struct figure *f,
			    struct reading *r, int spoil)
{
	const __u64 mask = KPF_MMAP | KPF_ANON |
			      KPF_HUGE | KPF_THP;
	unsigned int i, kernel[3] = {}, truth[3] = {};
	__u64 is, want;

	r->zero = !s->nr_pages;
	for (i = 0; i < s->nr_pages; i++) {
		is = s->pages[i].kflags & mask;
		want = expected_flags(s, &s->pages[i]);
		if (!i && spoil)
			want ^= KPF_MMAP;
		r->not_exact += is != want;
		kernel[0] += !!(is & KPF_MMAP);
		truth[0] += !!(want & KPF_MMAP);
		kernel[1] += !!(is & KPF_ANON);
		truth[1] += !!(want & KPF_ANON);
		kernel[2] += !!(is & (KPF_HUGE | KPF_THP));
		truth[2] += !!(want & (KPF_HUGE | KPF_THP));
	}
	r->not_known = r->not_exact;
	r->not_between = r->not_exact;
	snprintf(r->kernel, sizeof(r->kernel), "%u/%u/%u",
		 kernel[0], kernel[1], kernel[2]);
	snprintf(r->computed, sizeof(r->computed), "%u/%u/%u",
		 truth[0], truth[1], truth[2]);
}

/* For all the pages that a PMD maps, some interfaces look at the first one. */
static unsigned int first_count(struct snapshot *s, const struct mapping *m)
{
	__u64 pfn = m->pfn;

	if (m->pmd)
		pfn &= ~((__u64)tour.pmd_pages - 1);
	return page_count(find_page(s, pfn));
}

static bool only_process(const struct page *page)
{
	return !(page->procs & (page->procs - 1));
}

static void read_exclusive(struct snapshot *s, const struct figure *f,
			   struct reading *r, int spoil)
{
	unsigned int i, kernel = 0, truth = spoil;
	const struct mapping *m;
	const struct page *page;
	bool exact;

	r->not_exact = spoil;
	r->not_known = spoil;
	r->not_between = spoil;
	for (i = 0; i < s->nr_map; i++) {
		m = &s->map[i];
		if (!m->scene)
			continue;
		page = find_page(s, m->pfn);
		exact = page_count(page) == 1;
		kernel += m->exclusive;
		truth += exact;
		r->not_exact += m->exclusive != exact;
		r->not_known += m->exclusive != (first_count(s, m) == 1);
		r->not_between += m->exclusive ? !only_process(page) :
						 surely_alone(s, page);
	}
	r->zero = !kernel && !truth;
	snprintf(r->kernel, sizeof(r->kernel), "%u", kernel);
	snprintf(r->computed, sizeof(r->computed), "%u", truth);
}

/* Whether a sum in smaps includes a mapping, for sure and at the bounds. */
struct includes {
	bool exact;
	bool lo;
	bool hi;
};

static struct includes smaps_includes(struct snapshot *s, enum smaps sum,
				      const struct mapping *m)
{
	const struct page *page = find_page(s, m->pfn);
	bool shared = page_count(page) > 1, alone = only_process(page);
	bool surely = surely_alone(s, page);

	switch (sum) {
	case SUM_PRIVATE:
	case SUM_HTLB_PRIVATE:
		/* An estimate must never call private what others map, too. */
		return (struct includes) { !shared, surely, alone };
	case SUM_SHARED:
	case SUM_HTLB_SHARED:
		return (struct includes) { shared, !alone, !surely };
	case SUM_PMD:
		return (struct includes) { m->pmd, m->pmd, m->pmd };
	default:
		return (struct includes) { true, true, true };
	}
}

static void read_smaps_sum(struct snapshot *s, const struct figure *f,
			   struct reading *r, int spoil)
{
	const bool for_hugetlb = f->arg == SUM_HTLB_PRIVATE || f->arg == SUM_HTLB_SHARED;
	const bool is_hugetlb = tour.scene->kind == KIND_HUGETLB;
	const long long kib = psize() >> 10;
	struct scalar v = { .kernel = s->kib[f->arg] };
	struct includes in;
	unsigned int i;

	for (i = 0; i < s->nr_map; i++) {
		if (!s->map[i].scene || for_hugetlb != is_hugetlb)
			continue;
		in = smaps_includes(s, f->arg, &s->map[i]);
		v.exact += in.exact * kib;
		v.lo += in.lo * kib;
		v.hi += in.hi * kib;
	}
	v.known = v.exact;
	read_scalar(r, &v, spoil);
}

/* smaps rounds down for each VMA. */
static long long pss_kib(__u64 pss)
{
	return pss >> PSS_SHIFT >> 10;
}

/* All of the Pss, of all processes, is what is taken to be mapped. */
static long long pss_sum_kib(const struct snapshot *s)
{
	long long pages = 0;
	unsigned int i;

	for (i = 0; i < s->nr_folios && tour.scene->kind != KIND_HUGETLB; i++)
		pages += folio_estimate_hi(&s->folios[i]);
	return pages * (psize() >> 10);
}

static void read_pss(struct snapshot *s, const struct figure *f,
		     struct reading *r, int spoil)
{
	struct scalar v = { .kernel = s->kib[f->arg] };
	unsigned int i;

	for (i = 0; i < s->nr_vmas; i++) {
		v.exact += pss_kib(s->vmas[i].pss);
		v.known += pss_kib(s->vmas[i].pss_known);
		v.lo += pss_kib(s->vmas[i].pss_lo);
		v.hi += pss_kib(s->vmas[i].pss_hi);
	}
	if (tour.packed) {
		v.exact = pss_sum_kib(s);
		v.known = v.exact;
	}
	read_scalar(r, &v, spoil);
}

/*
 * A process has no more to itself than its share, and that is no more than all that
 * it maps. With a rounded average of the mappings of each page, Pss is not bounded.
 */
static void read_uss(struct snapshot *s, const struct figure *f,
		     struct reading *r, int spoil)
{
	const bool bounded = !tour.averages && (tour.packed || sizeof(long) == 8);
	struct scalar v = {
		.kernel = s->kib[SUM_PSS],
		.lo = bounded ? s->kib[SUM_PRIVATE] : 0,
		.hi = s->kib[SUM_RSS],
	};

	v.exact = MAX(v.lo, MIN(v.hi, v.kernel));
	v.known = v.exact;
	read_scalar(r, &v, spoil);
}

static void read_mapmax(struct snapshot *s, const struct figure *f,
			struct reading *r, int spoil)
{
	struct scalar v = { .kernel = s->mapmax };
	const struct mapping *m;
	const struct page *page;
	unsigned int i;

	for (i = 0; i < s->nr_map; i++) {
		m = &s->map[i];
		if (!m->scene)
			continue;
		page = find_page(s, m->pfn);
		v.exact = MAX(v.exact, page_count(page));
		v.known = MAX(v.known, first_count(s, m));
		v.lo = MAX(v.lo, average_lo(s, page));
		v.hi = MAX(v.hi, average_hi(s, page));
	}
	if (tour.packed) {
		v.exact = v.hi;
		v.known = v.hi;
	}
	if (!tour.has_numa_maps)
		v = (struct scalar) {};
	read_scalar(r, &v, spoil);
}

/*
 * The statistics are system-wide. What others account for was measured before
 * the scene; what the tour's own code, stacks and heap account for is known
 * from their pagemaps. The rest is the scene's.
 */
static void read_global(struct snapshot *s, const struct figure *f,
			struct reading *r, int spoil)
{
	struct scalar v = {
		.kernel = s->vm[f->arg] - tour.others[f->arg] - s->overhead[f->arg],
		.exact = s->truth[f->arg],
		.known = s->truth[f->arg],
		.lo = s->truth[f->arg],
		.hi = s->truth[f->arg],
	};
	const struct folio *folio;
	unsigned int i;

	for (i = 0; i < s->nr_folios; i++) {
		folio = &s->folios[i];
		if (tour.scene->kind == KIND_HUGETLB ||
		    f->arg != (folio->anon ? VM_ANON : VM_FILE))
			continue;
		if (tour.packed) {
			v.lo += (long long)folio_estimate_lo(folio) - folio->pages;
			v.hi += (long long)folio_estimate_hi(folio) - folio->pages;
		} else {
			/* It may count the whole folio if any of it is mapped. */
			v.hi += folio->nr - folio->pages;
		}
	}
	read_scalar(r, &v, spoil);
}

static const char by_first_page[] =
	"of a PMD's pages, this interface asks the first one for all";
static const char pss_overflow[] =
	"32-bit kernels lose the Pss of a PMD in an overflow";

static const struct figure figures[] = {
	{
		.name = "kpagecount", .label = "kpagecount", .unit = "",
		.rule = EXACT, .rule_average = EXACT,
		.read = read_kpagecount,
	}, {
		.name = "kpageflags", .label = "kpageflags mmap/anon/huge", .unit = "pages",
		.rule = EXACT, .rule_average = EXACT,
		.read = read_kpageflags,
	}, {
		.name = "exclusive", .label = "pagemap, bit 56 exclusive", .unit = "entries",
		.rule = EXACT, .rule_average = BETWEEN, .rule_packed = BETWEEN,
		.read = read_exclusive, .known = by_first_page,
	}, {
		.name = "rss", .label = "smaps Rss", .unit = "KiB",
		.rule = EXACT, .rule_average = EXACT,
		.read = read_smaps_sum, .arg = SUM_RSS,
	}, {
		.name = "pss", .label = "smaps Pss", .unit = "KiB",
		.rule = EXACT, .rule_average = BETWEEN, .rule_packed = BETWEEN,
		.read = read_pss, .arg = SUM_PSS, .known = pss_overflow,
	}, {
		.name = "uss", .label = "smaps Private <= Pss <= Rss", .unit = "KiB",
		.rule = EXACT, .rule_average = EXACT, .rule_packed = EXACT,
		.read = read_uss,
	}, {
		.name = "private", .label = "smaps Private", .unit = "KiB",
		.rule = EXACT, .rule_average = BETWEEN, .rule_packed = BETWEEN,
		.read = read_smaps_sum, .arg = SUM_PRIVATE,
	}, {
		.name = "shared", .label = "smaps Shared", .unit = "KiB",
		.rule = EXACT, .rule_average = BETWEEN, .rule_packed = BETWEEN,
		.read = read_smaps_sum, .arg = SUM_SHARED,
	}, {
		.name = "pmd", .label = "smaps *HugePages, *PmdMapped", .unit = "KiB",
		.rule = EXACT, .rule_average = EXACT,
		.read = read_smaps_sum, .arg = SUM_PMD,
	}, {
		.name = "hugetlb-private", .label = "smaps Private_Hugetlb", .unit = "KiB",
		.rule = EXACT, .rule_average = EXACT,
		.read = read_smaps_sum, .arg = SUM_HTLB_PRIVATE,
	}, {
		.name = "hugetlb-shared", .label = "smaps Shared_Hugetlb", .unit = "KiB",
		.rule = EXACT, .rule_average = EXACT,
		.read = read_smaps_sum, .arg = SUM_HTLB_SHARED,
	}, {
		.name = "mapmax", .label = "numa_maps mapmax", .unit = "",
		.rule = EXACT, .rule_average = BETWEEN,
		.read = read_mapmax, .known = by_first_page,
	}, {
		.name = "anon", .label = "vmstat nr_anon_pages", .unit = "pages",
		.rule = EXACT, .rule_average = BETWEEN, .rule_packed = BETWEEN,
		.read = read_global, .arg = VM_ANON, .global = true,
	}, {
		.name = "mapped", .label = "vmstat nr_mapped", .unit = "pages",
		.rule = EXACT, .rule_average = BETWEEN, .rule_packed = BETWEEN,
		.read = read_global, .arg = VM_FILE, .global = true,
	}, {
		.name = "anon-thp", .label = "vmstat nr_anon_trans.._hugepages", .unit = "folios",
		.rule = EXACT, .rule_average = EXACT,
		.read = read_global, .arg = VM_ANON_THP, .global = true,
	}, {
		.name = "shmem-pmd", .label = "vmstat nr_shmem_pmdmapped", .unit = "folios",
		.rule = EXACT, .rule_average = EXACT,
		.read = read_global, .arg = VM_SHMEM_PMD, .global = true,
	}, {
		.name = "file-pmd", .label = "vmstat nr_file_pmdmapped", .unit = "folios",
		.rule = EXACT, .rule_average = EXACT,
		.read = read_global, .arg = VM_FILE_PMD, .global = true,
	},
};

static struct result results[ARRAY_SIZE(figures)];

static enum verdict judge(const struct figure *f, const struct reading *r)
{
	enum rule rule = tour.averages ? f->rule_average :
			 tour.packed ? f->rule_packed : f->rule;

	if (!r->not_exact)
		return V_OK;
	if (rule == BETWEEN && !r->not_between)
		return V_WITHIN;
	if (f->known && !r->not_known)
		return V_KNOWN;
	return V_DIFFERS;
}

/*
 * The kernel counts a fault at once, and the page that it brings only when the
 * counters are folded: this may be seen a step later. So go back two steps.
 */
static long long foreign_faults(const struct snapshot *s)
{
	return s->vm[VM_PGFAULT] - s->faults - tour.faults_before;
}

static void remember_faults(const struct snapshot *s)
{
	tour.faults_before = tour.others[VM_PGFAULT];
	tour.others[VM_PGFAULT] = s->vm[VM_PGFAULT] - s->faults;
}

struct checked {
	struct reading reading[ARRAY_SIZE(figures)];
	enum verdict verdict[ARRAY_SIZE(figures)];
	bool differs;
};

static void check_figures(struct snapshot *s, struct checked *c)
{
	unsigned int i;

	memset(c, 0, sizeof(*c));
	for (i = 0; i < ARRAY_SIZE(figures); i++) {
		figures[i].read(s, &figures[i], &c->reading[i],
				(unsigned int)tour.spoil == i);
		c->verdict[i] = judge(&figures[i], &c->reading[i]);
		if (c->verdict[i] == V_DIFFERS)
			c->differs = true;
	}
}

/* A disturbance must not be held against the steps that follow it. */
static void excuse_noise(struct snapshot *s, struct checked *c)
{
	const struct figure *f;
	unsigned int i;

	c->differs = false;
	for (i = 0; i < ARRAY_SIZE(figures); i++) {
		f = &figures[i];
		if (c->verdict[i] == V_DIFFERS && f->global && foreign_faults(s) &&
		    (unsigned int)tour.spoil != i) {
			c->verdict[i] = V_NOISY;
			tour.others[f->arg] = s->vm[f->arg] - s->overhead[f->arg] -
					      s->truth[f->arg];
		}
		if (c->verdict[i] == V_DIFFERS)
			c->differs = true;
	}
	remember_faults(s);
}

/*
 * The first look may itself disturb what it looks at: the tour copies some of
 * its own pages on write, just after a fork. So look again before complaining.
 */
static void look(struct snapshot *s, struct checked *c)
{
	int tries, nr = tour.has_refresh ? NR_TRIES : NR_TRIES_FOLD;

	for (tries = 0; tries < nr; tries++) {
		if (tries)
			usleep(tour.has_refresh ? TRY_US : TRY_US_FOLD);
		snapshot_take(s);
		check_figures(s, c);
		if (!c->differs)
			break;
	}
	excuse_noise(s, c);
}

/* Printing */

static int cmp_pfn(const void *a, const void *b)
{
	const __u64 *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static bool is_orig(__u64 pfn)
{
	return bsearch(&pfn, tour.orig, tour.nr_orig, sizeof(pfn), cmp_pfn);
}

/* In order of their PFN, as the snapshot has them. */
static void remember_orig(const struct snapshot *s)
{
	unsigned int i;

	tour.nr_orig = 0;
	for (i = 0; i < s->nr_pages; i++)
		tour.orig[tour.nr_orig++] = s->pages[i].pfn;
}

/* How many pages of a cell of the drawing are mapped, and how. */
struct cell {
	unsigned int pmds;
	unsigned int ptes;
	unsigned int copies;
};

static char cell_char(const struct cell *cell, unsigned int pages)
{
	if (cell->pmds)
		return cell->copies ? 'C' : '#';
	if (cell->copies)
		return cell->copies == pages ? 'c' : '+';
	if (cell->ptes)
		return cell->ptes == pages ? '=' : '-';
	return '.';
}

static void draw_bar(const struct snapshot *s, int proc, int nr)
{
	const unsigned int nr_cells = MIN(tour.size / psize(), BAR_WIDTH);
	const unsigned int pages = tour.size / psize() / nr_cells;
	struct cell cells[BAR_WIDTH] = {}, *cell;
	char bar[BAR_WIDTH + 1] = {};
	const struct mapping *m;
	bool any = false;
	unsigned int i;

	for (i = 0; i < s->nr_map; i++) {
		m = &s->map[i];
		if (!m->scene || m->proc != proc ||
		    m->addr - (unsigned long)slot(nr) >= tour.size)
			continue;
		any = true;
		cell = &cells[(m->addr - (unsigned long)slot(nr)) / psize() / pages];
		cell->pmds += m->pmd;
		cell->ptes += !m->pmd;
		cell->copies += !is_orig(m->pfn);
	}
	for (i = 0; i < nr_cells; i++)
		bar[i] = cell_char(&cells[i], pages);
	/* The second slot is only drawn while it is in use. */
	if (any || !nr)
		ksft_print_msg("   %c%c |%s|\n", 'A' + proc, nr ? '\'' : ' ', bar);
}

static void draw(const struct snapshot *s)
{
	unsigned int i, mapped = 0;
	int proc, nr;

	for (proc = 0; proc < NR_WORKERS; proc++)
		for (nr = 0; tour.workers[proc].pid && nr < NR_SLOTS; nr++)
			draw_bar(s, proc, nr);
	for (i = 0; i < s->nr_folios; i++)
		mapped += s->folios[i].pages;
	ksft_print_msg("   page tables: %u %s + %u PTE; mapped: %u of the %u pages in %u folio%s\n",
		       s->nr_pmds,
		       tour.scene->kind == KIND_HUGETLB ? "hugetlb" : "PMD",
		       s->nr_ptes, mapped, s->nr_pages, s->nr_folios,
		       s->nr_folios == 1 ? "" : "s");
}

static void print_row(const struct figure *f, const struct reading *r,
		      enum verdict v)
{
	const char *on = "", *off = "";
	char colour[8];

	if (tour.colour) {
		snprintf(colour, sizeof(colour), "\033[%sm", verdicts[v].colour);
		on = colour;
		off = "\033[0m";
	}
	ksft_print_msg("     %-33s %17s %17s %-7s %s%s%s%s\n", f->label, r->kernel,
		       r->computed, f->unit, on, verdicts[v].text, off,
		       v == V_WITHIN ? r->bounds : "");
	if (v == V_KNOWN)
		ksft_print_msg("       `-- %s\n", f->known);
	if (v == V_DIFFERS && r->where[0])
		ksft_print_msg("       `-- %s\n", r->where);
}

static void print_table(const struct checked *c)
{
	bool header = false;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(figures); i++) {
		if (c->reading[i].zero ||
		    (tour.quiet && c->verdict[i] <= V_WITHIN))
			continue;
		if (!header)
			ksft_print_msg("     %-33s %17s %17s\n", "", "kernel", "computed");
		header = true;
		print_row(&figures[i], &c->reading[i], c->verdict[i]);
	}
}

static void count_results(const struct checked *c)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(figures); i++) {
		results[i].ok += c->verdict[i] == V_OK;
		results[i].within += c->verdict[i] == V_WITHIN;
		results[i].known += c->verdict[i] == V_KNOWN;
		results[i].noisy += c->verdict[i] == V_NOISY;
		results[i].differs += c->verdict[i] == V_DIFFERS;
	}
}

static void print_results(void)
{
	const struct result *r;
	unsigned int i, noisy = 0;

	ksft_print_msg("\n");
	ksft_print_msg("All comparisons of the tour:\n");
	ksft_print_msg("     %-33s %8s %8s %8s %8s %8s\n", "", "exact", "within",
		       "known", "noisy", "differ");
	for (i = 0; i < ARRAY_SIZE(figures); i++) {
		r = &results[i];
		ksft_print_msg("     %-33s %8u %8u %8u %8u %8u\n", figures[i].label,
			       r->ok, r->within, r->known, r->noisy, r->differs);
		noisy += r->noisy;
	}
	if (noisy)
		ksft_print_msg("%u system-wide figures not judged: other processes were busy.\n",
			       noisy);
}

/* Scenes */

static size_t scene_size(const struct scene *scene)
{
	switch (scene->size) {
	case SIZE_SMALL:
		return 16 * psize();
	case SIZE_MTHP:
		return (4 * psize()) << MTHP_ORDER;
	default:
		return tour.pmd_size;
	}
}

static const char *open_file(void)
{
	char path[PATH_MAX];
	struct statfs fs;
	char *buf;
	ssize_t len;

	if (!statfs(tour.dir, &fs) && fs.f_type == TMPFS_MAGIC)
		return "a tmpfs has no page cache, give an ext4 or xfs with -d DIR";

	snprintf(path, sizeof(path), "%s/folio_mapcount_tour.XXXXXX", tour.dir);
	tour.fd = mkstemp(path);
	if (tour.fd < 0)
		return "cannot create a file there, give another with -d DIR";
	unlink(path);
	buf = calloc(1, tour.size);
	if (!buf)
		return "no memory";
	/* One write of all, so that the file system can choose large folios. */
	len = write(tour.fd, buf, tour.size);
	free(buf);
	return len == (ssize_t)tour.size && !fsync(tour.fd) ? NULL :
		"cannot write a file there, give another with -d DIR";
}

static const char *open_memfd(void)
{
	tour.fd = syscall(__NR_memfd_create, "folio_mapcount_tour", 0);
	if (tour.fd < 0)
		return "no memfd_create()";
	return ftruncate(tour.fd, tour.size) ? "cannot size a memfd" : NULL;
}

static bool pmd_fits(void)
{
	size_t size = read_pmd_pagesize();

	return size >= MIN_PMD_PAGES * psize() && size <= MAX_PMD_SIZE;
}

/* Returns why the scene cannot be played, or NULL. */
static const char *scene_prepare(const struct scene *scene)
{
	tour.scene = scene;
	tour.size = scene_size(scene);
	if (scene->kind == KIND_FILE)
		return open_file();
	if (scene->size == SIZE_PMD && !pmd_fits() && thp_available())
		return "a PMD maps too much or too little here";
	if (scene->kind == KIND_HUGETLB)
		return default_huge_page_size() == tour.pmd_size &&
		       hugetlb_setup_default(2) ? NULL :
			"no two hugetlb folios of PMD size to be had";
	if (scene->size != SIZE_SMALL && !thp_available())
		return "no transparent huge pages";
	if (scene->size == SIZE_MTHP && !(thp_supported_orders() & (1UL << MTHP_ORDER)))
		return "no folios of 16 pages here";
	if (scene->kind == KIND_SHMEM)
		return open_memfd();
	return NULL;
}

/* Looks at what the first step got, for that is not always what it asked for. */
static const char *scene_unfit(const struct snapshot *s)
{
	unsigned int nr = 0, i;

	for (i = 0; i < s->nr_folios; i++)
		nr = MAX(nr, s->folios[i].nr);
	if (tour.scene->kind == KIND_FILE)
		return nr > 1 ? NULL :
			"no large folios on that file system, give another with -d DIR";
	if (tour.scene->size == SIZE_PMD && nr != tour.pmd_pages)
		return "no folio of PMD size to be had";
	if (tour.scene->size == SIZE_MTHP && nr != 1 << MTHP_ORDER)
		return "no folio of 16 pages to be had";
	return NULL;
}

static void measure_others(struct snapshot *s)
{
	int i;

	/* Twice: the first one copies, on write, what fork() left shared. */
	snapshot_take(s);
	remember_faults(s);
	usleep(tour.has_refresh ? TRY_US : FOLD_US);
	snapshot_take(s);
	for (i = 0; i < NR_VM_MAPPED; i++)
		tour.others[i] = s->vm[i] - s->overhead[i];
	remember_faults(s);
}

static unsigned int scene_steps(const struct scene *scene)
{
	unsigned int nr = 0;

	while (nr < MAX_STEPS && scene->steps[nr].op != OP_END)
		nr++;
	return nr;
}

static void skip_steps(const struct scene *scene, unsigned int from,
		       const char *why)
{
	char title[128];
	unsigned int i;

	for (i = from; i < scene_steps(scene); i++) {
		step_title(&scene->steps[i], title, sizeof(title));
		ksft_test_result_skip("%s: %s (%s)\n", scene->name, title, why);
	}
}

static void print_scene(const struct scene *scene)
{
	const bool hugetlb = scene->kind == KIND_HUGETLB;
	char size[32];

	ksft_print_msg("\n");
	ksft_print_msg("==== %s: %s ====\n", scene->name, scene->title);
	ksft_print_msg("\n");
	size_str(size, sizeof(size),
		 MAX(scene_size(scene) / BAR_WIDTH, (size_t)psize()));
	ksft_print_msg("   one cell is %s:  %s  . nothing\n", size, hugetlb ?
		       "# mapped by a hugetlb entry  C so, but a copy" :
		       "# mapped by a PMD  = by PTEs  - some  c copies  + some");
}

/* Returns why the rest of the scene cannot be played, or NULL. */
static const char *play_step(const struct scene *scene, unsigned int nr)
{
	const struct step *step = &scene->steps[nr];
	static struct checked c;
	const char *why = NULL;
	char title[128];
	int err;

	step_title(step, title, sizeof(title));
	err = step_do(step);
	if (err)
		ksft_exit_fail_msg("%s: %s: %s\n", scene->name, title, strerror(-err));
	look(&tour.snap, &c);
	if (step->op == OP_MAP) {
		remember_orig(&tour.snap);
		why = scene_unfit(&tour.snap);
		if (why)
			return why;
	}
	ksft_print_msg("\n");
	ksft_print_msg("%u. %s\n", nr + 1, title);
	if (step->note)
		ksft_print_msg("   (%s)\n", step->note);
	draw(&tour.snap);
	print_table(&c);
	count_results(&c);
	ksft_test_result(!c.differs, "%s: %s\n", scene->name, title);
	return NULL;
}

static void play_scene(const struct scene *scene)
{
	const char *why;
	unsigned int i;

	print_scene(scene);
	why = scene_prepare(scene);
	if (why) {
		skip_steps(scene, 0, why);
	} else {
		worker_first();
		measure_others(&tour.snap);
		for (i = 0; i < scene_steps(scene) && !why; i++)
			why = play_step(scene, i);
		if (why)
			skip_steps(scene, i - 1, why);
		workers_exit();
	}
	if (tour.fd >= 0)
		close(tour.fd);
	tour.fd = -1;
}

/* Set-up */

/* For the tour alone: what workers do not inherit, they cannot disturb. */
static void *alloc_private(size_t size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	madvise(mem, size, MADV_NOHUGEPAGE);
	if (madvise(mem, size, MADV_DONTFORK))
		ksft_exit_fail_perror("MADV_DONTFORK");
	memset(mem, 0, size);
	return mem;
}

static void setup_memory(void)
{
	struct snapshot *s = &tour.snap;
	char *mem;

	tour.pmd_size = read_pmd_pagesize();
	if (!pmd_fits())
		tour.pmd_size = MAX(2UL << 20, MIN_PMD_PAGES * psize());
	tour.pmd_pages = tour.pmd_size / psize();
	tour.max_map = 16 * tour.pmd_pages + 16384;
	mem = mmap(NULL, (NR_SLOTS + 1) * tour.pmd_size, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	tour.arena = (char *)(((uintptr_t)mem + tour.pmd_size - 1) &
			      ~(tour.pmd_size - 1));
	s->map = alloc_private(tour.max_map * sizeof(*s->map));
	s->pages = alloc_private(tour.max_map * sizeof(*s->pages));
	s->folios = alloc_private(tour.max_map * sizeof(*s->folios));
	s->kbuf = alloc_private(tour.pmd_size);
	s->text = alloc_private(SMAPS_SIZE);
	tour.orig = alloc_private(tour.max_map * sizeof(*tour.orig));
}

/*
 * Fault in everything that the program may ever touch. What then changes in
 * its own memory is copies of anonymous pages, which are all counted.
 */
static void setup_prefault(void)
{
	char *text = tour.snap.text, *line, perms[5];
	unsigned long start, end;

	if (!read_text(open("/proc/self/maps", O_RDONLY), text))
		ksft_exit_fail_perror("reading /proc/self/maps");
	while ((line = next_line(&text))) {
		if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) != 3 ||
		    perms[0] != 'r')
			continue;
		/* Fails for special mappings, which are not counted either. */
		madvise((void *)start, end - start, perms[1] == 'w' ?
			MADV_POPULATE_WRITE : MADV_POPULATE_READ);
	}
}

static void setup_zero_pfn(void)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	char *mem = mmap(NULL, psize(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);

	if (fd < 0 || mem == MAP_FAILED)
		ksft_exit_fail_perror("reading pagemap");
	FORCE_READ(*mem);
	tour.zero_pfn = pagemap_get_pfn(fd, mem);
	munmap(mem, psize());
	close(fd);
}

static void setup_workers(void)
{
	int i;

	for (i = 0; i < NR_WORKERS; i++)
		if (pipe(tour.workers[i].cmd) || pipe(tour.workers[i].reply))
			ksft_exit_fail_perror("pipe");
}

/*
 * khugepaged sleeps as long as it was told to only while there is a process that
 * it could look at. The first one to come after none wakes it, and this would be
 * a scene. So let it look at this process, which stays to the end. An area without
 * an anon_vma would not be among what it looks at.
 */
static void park_khugepaged(unsigned long scans)
{
	char *mem = mmap(NULL, 2 * tour.pmd_size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int i;

	if (mem == MAP_FAILED)
		return;
	*mem = 1;
	madvise(mem, 2 * tour.pmd_size, MADV_DONTNEED);
	madvise(mem, 2 * tour.pmd_size, MADV_HUGEPAGE);
	mprotect(mem, 2 * tour.pmd_size, PROT_NONE);
	for (i = 0; i < 100 && thp_read_num("khugepaged/full_scans") == scans; i++)
		usleep(20000);
}

/* Huge pages on request only, of the sizes of the scenes; no khugepaged. */
static void setup_thp(void)
{
	struct thp_settings settings;
	int pmd = sz2ord(tour.pmd_size, psize()), i;
	unsigned long scans;

	if (!thp_available())
		return;
	scans = thp_read_num("khugepaged/full_scans");
	thp_save_settings();
	thp_read_settings(&settings);
	settings.thp_enabled = THP_MADVISE;
	settings.thp_defrag = THP_DEFRAG_ALWAYS;
	settings.shmem_enabled = SHMEM_ADVISE;
	settings.khugepaged.scan_sleep_millisecs = 3600 * 1000;
	for (i = 0; i < NR_ORDERS; i++) {
		settings.hugepages[i].enabled = THP_NEVER;
		settings.shmem_hugepages[i].enabled = SHMEM_NEVER;
	}
	if (pmd_fits()) {
		settings.hugepages[pmd].enabled = THP_INHERIT;
		settings.shmem_hugepages[pmd].enabled = SHMEM_INHERIT;
	}
	settings.hugepages[MTHP_ORDER].enabled = THP_MADVISE;
	thp_push_settings(&settings);
	park_khugepaged(scans);
}

/*
 * Trusts the configuration where it can be read. Guessing from what the kernel
 * says would excuse a kernel that should be exact, and is not.
 */
static void setup_averages(void)
{
	static const char read_config[] =
		"{ zcat /proc/config.gz || cat /boot/config-$(uname -r); } 2>/dev/null";
	FILE *config = popen(read_config, "r");
	char line[256];

	if (!config)
		return;
	while (fgets(line, sizeof(line), config))
		if (!strncmp(line, "CONFIG_NO_PAGE_MAP", strlen("CONFIG_NO_PAGE_MAP")))
			tour.averages = true;
	pclose(config);
}

/* Takes a kernel with this event for one with folio->_mapcounts. */
static void setup_packed(void)
{
	FILE *vmstat = fopen("/proc/vmstat", "r");
	char line[256];

	if (!vmstat)
		return;
	while (fgets(line, sizeof(line), vmstat))
		if (!strncmp(line, "thp_cow_adopt ", strlen("thp_cow_adopt ")))
			tour.packed = true;
	fclose(vmstat);
}

static void setup_kernel(void)
{
	tour.kpagecount = open("/proc/kpagecount", O_RDONLY);
	tour.kpageflags = open("/proc/kpageflags", O_RDONLY);
	if (tour.kpagecount < 0 || tour.kpageflags < 0)
		ksft_exit_skip("%s\n", geteuid() ?
			       "needs root: only root may read /proc/kpagecount" :
			       "no /proc/kpagecount (CONFIG_PROC_PAGE_MONITOR)");
	tour.has_refresh = !access("/proc/sys/vm/stat_refresh", R_OK);
	tour.has_numa_maps = !access("/proc/self/numa_maps", R_OK);
	tour.colour = isatty(STDOUT_FILENO);
	setup_averages();
	setup_packed();
}

static void usage(void)
{
	unsigned int i;

	printf("Usage: folio_mapcount_tour [-h] [-q] [-d DIR] [-s SCENE] [-x FIGURE]\n"
	       "Map memory in many ways and check what the kernel says about it.\n"
	       "  -d DIR     where to put a file for the scene \"file\" (default: /tmp)\n"
	       "  -q         print only the figures that are not exact\n"
	       "  -s SCENE   play only this scene:");
	for (i = 0; i < ARRAY_SIZE(scenes); i++)
		printf(" %s", scenes[i].name);
	printf("\n  -x FIGURE  spoil what is computed for this one, to see the tour fail:\n"
	       "            ");
	for (i = 0; i < ARRAY_SIZE(figures); i++)
		printf(" %s%s", figures[i].name, i == 7 ? "\n            " : "");
	printf("\nNeeds root. Exit status: 0 all agree, 1 some differ, 4 skipped.\n");
}

static bool known_scene(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(scenes); i++)
		if (!strcmp(scenes[i].name, name))
			return true;
	return false;
}

static int find_figure(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(figures); i++)
		if (!strcmp(figures[i].name, name))
			return i;
	return -1;
}

static void __noreturn bad_option(const char *what, const char *value)
{
	fprintf(stderr, "folio_mapcount_tour: no %s \"%s\", see -h\n", what, value);
	exit(KSFT_FAIL);
}

static void parse_options(int argc, char **argv)
{
	int opt;

	tour.dir = "/tmp";
	while ((opt = getopt(argc, argv, "hqd:s:x:")) != -1) {
		switch (opt) {
		case 'h':
			usage();
			exit(KSFT_PASS);
		case 'q':
			tour.quiet = true;
			break;
		case 'd':
			tour.dir = optarg;
			break;
		case 's':
			tour.only = optarg;
			if (!known_scene(optarg))
				bad_option("scene", optarg);
			break;
		case 'x':
			tour.spoil = find_figure(optarg);
			if (tour.spoil < 0)
				bad_option("figure", optarg);
			break;
		default:
			exit(KSFT_FAIL);
		}
	}
}

static bool selected(const struct scene *scene)
{
	return !tour.only || !strcmp(tour.only, scene->name);
}

static void print_intro(void)
{
	struct utsname uts;

	uname(&uts);
	ksft_print_msg("A tour of mapped folios on Linux %s %s\n", uts.release,
		       uts.machine);
	ksft_print_msg("Mappings of each page: %s\n", tour.averages ?
		       "averages, compared with bounds" :
		       tour.packed ? "what the packed mapcount tells" :
		       "exact");
	ksft_print_msg("Processes A, B and C map memory. All figures are sums over the three.\n");
	if (!tour.has_refresh)
		ksft_print_msg("Slow: without CONFIG_PROC_SYSCTL, vmstat takes time to settle.\n");
	ksft_print_msg("Figures that are 0 on both sides are compared, but not printed.\n");
}

int main(int argc, char **argv)
{
	unsigned int i, plan = 0;

	parse_options(argc, argv);
	ksft_print_header();
	setup_kernel();
	for (i = 0; i < ARRAY_SIZE(scenes); i++)
		if (selected(&scenes[i]))
			plan += scene_steps(&scenes[i]);
	ksft_set_plan(plan);
	setup_memory();
	setup_zero_pfn();
	setup_workers();
	setup_thp();
	print_intro();
	setup_prefault();
	for (i = 0; i < ARRAY_SIZE(scenes); i++)
		if (selected(&scenes[i]))
			play_scene(&scenes[i]);
	print_results();
	ksft_finished();
}
