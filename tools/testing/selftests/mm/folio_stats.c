// SPDX-License-Identifier: GPL-2.0
/*
 * folio_stats - what the statistics say about folios that are shared in part
 *
 * How much memory is mapped (meminfo, memory.stat), whose it is (smaps, pagemap),
 * how often a page is mapped (kpagecount) and whether a folio could be split: to
 * tell that exactly, a kernel needs a count in every page. Others estimate. This
 * program maps memory in a number of typical ways and shows what each interface
 * says, beside the truth, which it computes from the pagemaps of all processes:
 *
 *	 master (observes)			situations[]	how memory is mapped
 *	  | commands	| smaps, pagemap	figures[]	what is looked at
 *	  v over pipes	| of all
 *	 A, B, ... H ---+---> truth, bounds ---> cells: said, true, least, most
 *	  (map memory)			 ^
 *	 meminfo, memory.stat, ... ------+
 *
 * A figure of the machine is the difference between the moment when everything
 * is mapped and the one when all processes have unmapped it; nothing else moves
 * in between. When they are gone as well, all must be as it was before.
 *
 * What a kernel promises depends on how it counts, see enum kernel, and stands
 * in figures[]. Where it promises nothing, its figure is shown and that is all.
 *
 *	folio_stats -- COMMAND
 *
 * runs that command, and fails if the statistics do not come back to where they
 * were before it.
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
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include "kselftest.h"
#include "vm_util.h"
#include "hugepage_settings.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC	0x58465342
#endif

/* As vm_util.h has the others. */
#define KPF_KSM		BIT_ULL(21)

#define CGROUPFS	"/sys/fs/cgroup"
#define KSM_RUN		"/sys/kernel/mm/ksm/run"
#define THP_DIR		"/sys/kernel/mm/transparent_hugepage"

#define NR_WORKERS	8
#define NR_SLOTS	2
#define MAX_STEPS	12
#define MAX_DIRS	4
#define NR_TRIES	4
#define TRY_US		50000
#define NR_MERGES	10
#define DRIFT_TRIES	40
#define DRIFT_US	250000
/* What others on the machine may map or unmap while a command runs, KiB */
#define DRIFT_SLACK	1024
#define REPLY_SECONDS	60
#define TEXT_SIZE	(256 << 10)
#define MTHP_ORDER	4
/* What a step can tell apart; powerpc with 64K pages and 2 MiB huge ones has less. */
#define MIN_PMD_PAGES	64
/* Above this (arm64 with 64K pages: 512 MiB) it would take too long. */
#define MAX_PMD_SIZE	(64UL << 20)

/* How the kernel knows how often the pages of a large folio are mapped */
enum kernel {
	KERNEL_PAGES,		/* a count in each page */
	KERNEL_AVERAGES,	/* one for the folio */
	KERNEL_PACKED,		/* folio->_mapcounts and the creator */
	NR_KERNELS,
};

static const struct {
	const char *option;
	const char *text;
} kernels[] = {
	[KERNEL_PAGES]	  = { "pages", "one in each page" },
	[KERNEL_AVERAGES] = { "averages", "one in each folio" },
	[KERNEL_PACKED]	  = { "packed", "one packed mapcount in each folio" },
};

enum rule {
	SHOW,			/* nothing is promised */
	EXACT,
	BETWEEN,		/* the cell's bounds */
};

enum figure {
	/* As measured, see read_machine() */
	FIG_ANON,
	FIG_MAPPED,
	FIG_ANON_THP,
	FIG_SHMEM_PMD,
	FIG_FILE_PMD,
	FIG_CG_ANON,
	FIG_CG_MAPPED,
	FIG_CG_THP,
	FIG_PARTIAL,
	FIG_DEFERRED,
	NR_MEASURED,
	/* Summed over the processes */
	FIG_PSS = NR_MEASURED,
	FIG_ROLLUP,
	FIG_PRIVATE,
	FIG_EXCLUSIVE,
	FIG_KPAGECOUNT,
	NR_FIGURES,
};

static const struct {
	const char *name;
	const char *unit;
	const char *key;	/* in its file */
	enum rule rule[NR_KERNELS];
} figures[] = {
	[FIG_ANON]	= { "AnonPages", "KiB", "AnonPages:",
			    { EXACT, SHOW, BETWEEN } },
	[FIG_MAPPED]	= { "Mapped", "KiB", "Mapped:",
			    { EXACT, SHOW, BETWEEN } },
	[FIG_ANON_THP]	= { "AnonHugePages", "KiB", "AnonHugePages:",
			    { EXACT, EXACT, EXACT } },
	[FIG_SHMEM_PMD]	= { "ShmemPmdMapped", "KiB", "ShmemPmdMapped:",
			    { EXACT, EXACT, EXACT } },
	[FIG_FILE_PMD]	= { "FilePmdMapped", "KiB", "FilePmdMapped:",
			    { EXACT, EXACT, EXACT } },
	[FIG_CG_ANON]	= { "cgroup:anon", "KiB", "anon ",
			    { EXACT, SHOW, BETWEEN } },
	[FIG_CG_MAPPED]	= { "cgroup:file_mapped", "KiB", "file_mapped ",
			    { EXACT, SHOW, BETWEEN } },
	[FIG_CG_THP]	= { "cgroup:anon_thp", "KiB", "anon_thp ",
			    { EXACT, EXACT, EXACT } },
	[FIG_PARTIAL]	= { "nr_anon_partially_mapped", "folios", NULL,
			    { EXACT, SHOW, BETWEEN } },
	[FIG_DEFERRED]	= { "thp_deferred_split_page", "folios",
			    "thp_deferred_split_page ", { EXACT, SHOW, BETWEEN } },
	[FIG_PSS]	= { "Pss", "KiB", "Pss:", { EXACT, SHOW, BETWEEN } },
	[FIG_ROLLUP]	= { "Pss:smaps_rollup", "KiB", "Pss:",
			    { BETWEEN, BETWEEN, BETWEEN } },
	[FIG_PRIVATE]	= { "Private", "KiB", NULL, { SHOW, SHOW, BETWEEN } },
	[FIG_EXCLUSIVE]	= { "PM_MMAP_EXCLUSIVE", "pages", NULL,
			    { SHOW, SHOW, BETWEEN } },
	[FIG_KPAGECOUNT] = { "kpagecount", "mappings", NULL,
			    { EXACT, SHOW, EXACT } },
};

static const char * const private_keys[] = {
	"Private_Clean:", "Private_Dirty:", "Private_Hugetlb:",
};

/* One figure in one situation */
struct cell {
	bool known;
	long long said;		/* by the kernel */
	long long truth;
	long long least;
	long long most;
	unsigned int rounding;	/* how far off each of the above can be */
	unsigned int off;	/* pages of which something wrong is said */
};

enum op {
	OP_END,
	OP_MAP,			/* anonymous memory: and write to all of it */
	OP_MAP_PTES,		/* a file, never by a PMD */
	OP_MAP_TWICE,		/* and at a second place */
	OP_PTES,		/* split the PMD */
	OP_DROP,
	OP_WRITE,
	OP_FORK,		/* A forks these */
	OP_EXIT,
	OP_MERGE,		/* not a command: KSM merges all */
	OP_UNMAP,		/* the rest is for the master */
};

/* Processes @from to @to do it. Ranges are in 64ths; no length means all. */
struct step {
	enum op op;
	char from;
	char to;
	unsigned char at;
	unsigned char len;
};

enum kind {
	KIND_ANON,
	KIND_KSM,
	KIND_SHMEM,
	KIND_FILE,
	KIND_HUGETLB,
};

struct situation {
	const char *name;
	const char *title;
	enum kind kind;
	bool mthp;		/* four folios of 16 pages, not one of PMD size */
	struct step steps[MAX_STEPS];
};

static const struct situation situations[] = {
	{
		"anon-pmd", "THP by a PMD, 1 process", KIND_ANON,
		.steps = { { OP_MAP, 'A' } },
	}, {
		"anon-pte", "THP by PTEs, 1 process", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_PTES, 'A' } },
	}, {
		"anon-mthp", "folios of 16 pages, 1 process", KIND_ANON, true,
		.steps = { { OP_MAP, 'A' } },
	}, {
		"anon-pmd-2", "THP by PMDs, 2 processes", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B' } },
	}, {
		"anon-pmd-8", "THP by PMDs, 8 processes", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B', 'H' } },
	}, {
		"anon-pte-2", "THP by PTEs, 2 processes", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_PTES, 'A' }, { OP_FORK, 'B' } },
	}, {
		"anon-pte-8", "THP by PTEs, 8 processes", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_PTES, 'A' }, { OP_FORK, 'B', 'H' } },
	}, {
		"anon-mthp-8", "folios of 16 pages, 8 processes", KIND_ANON, true,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B', 'H' } },
	}, {
		"anon-mix", "THP by a PMD, and by PTEs of another", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B' }, { OP_PTES, 'B' } },
	}, {
		"anon-mix-16", "THP by a PMD, 16 of 512 by PTEs of another", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B' },
			   { OP_DROP, 'B', .at = 2, .len = 62 } },
	}, {
		"anon-orphan", "THP by PTEs, parent gone: the child", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_PTES, 'A' }, { OP_FORK, 'B' },
			   { OP_EXIT, 'A' } },
	}, {
		"anon-half", "half of a THP, 1 process", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_DROP, 'A', .at = 32, .len = 32 } },
	}, {
		"anon-halves", "parent one half of a THP, child the other", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B' },
			   { OP_DROP, 'A', .at = 32, .len = 32 },
			   { OP_DROP, 'B', .at = 0, .len = 32 } },
	}, {
		"anon-same-half", "parent and child the same half of a THP", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B' },
			   { OP_DROP, 'A', .at = 32, .len = 32 },
			   { OP_DROP, 'B', .at = 32, .len = 32 } },
	}, {
		"anon-16", "16 of 512 pages of a THP, 1 process", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_DROP, 'A', .at = 2, .len = 62 } },
	}, {
		"anon-16-8", "the same 16 of 512 of a THP, 8 processes", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_DROP, 'A', .at = 2, .len = 62 },
			   { OP_FORK, 'B', 'H' } },
	}, {
		"anon-save", "4th BGSAVE of a parent that writes, 16 pages", KIND_ANON, true,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B' },
			   { OP_WRITE, 'A', .at = 3, .len = 9 }, { OP_EXIT, 'B' },
			   { OP_FORK, 'B' }, { OP_WRITE, 'A', .at = 20, .len = 7 },
			   { OP_EXIT, 'B' }, { OP_FORK, 'B' },
			   { OP_WRITE, 'A', .at = 33, .len = 12 }, { OP_EXIT, 'B' },
			   { OP_FORK, 'B' } },
	}, {
		"anon-save-thp", "2nd BGSAVE of a parent that writes, THP", KIND_ANON,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B' },
			   { OP_WRITE, 'A', .at = 8, .len = 12 }, { OP_EXIT, 'B' },
			   { OP_FORK, 'B' }, { OP_WRITE, 'A', .at = 32, .len = 6 } },
	}, {
		"anon-workers", "4 workers write, and their parent did", KIND_ANON, true,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B' },
			   { OP_WRITE, 'A', .at = 2, .len = 8 }, { OP_EXIT, 'B' },
			   { OP_FORK, 'B', 'E' }, { OP_WRITE, 'B', 'E', .at = 12, .len = 20 } },
	}, {
		"shmem-pmd", "shmem by a PMD, 1 process", KIND_SHMEM,
		.steps = { { OP_MAP, 'A' } },
	}, {
		"shmem-pmd-8", "shmem by PMDs, 8 processes", KIND_SHMEM,
		.steps = { { OP_FORK, 'B', 'H' }, { OP_MAP, 'A', 'H' } },
	}, {
		"shmem-pte", "shmem by PTEs, 1 process", KIND_SHMEM,
		.steps = { { OP_MAP_PTES, 'A' } },
	}, {
		"shmem-pte-8", "shmem by PTEs, 8 processes", KIND_SHMEM,
		.steps = { { OP_FORK, 'B', 'H' }, { OP_MAP_PTES, 'A', 'H' } },
	}, {
		"shmem-mix", "shmem by a PMD, 16 of 512 by PTEs of another", KIND_SHMEM,
		.steps = { { OP_FORK, 'B' }, { OP_MAP, 'A' },
			   { OP_MAP_PTES, 'B', .len = 2 } },
	}, {
		"file", "file, 1 process", KIND_FILE,
		.steps = { { OP_MAP_PTES, 'A' } },
	}, {
		"file-8", "file, 8 processes", KIND_FILE,
		.steps = { { OP_FORK, 'B', 'H' }, { OP_MAP_PTES, 'A', 'H' } },
	}, {
		"file-pmd-2", "file, 2 processes, by PMDs if possible", KIND_FILE,
		.steps = { { OP_FORK, 'B' }, { OP_MAP, 'A', 'B' } },
	}, {
		"file-16", "16 of 512 file pages, 1 process", KIND_FILE,
		.steps = { { OP_MAP_PTES, 'A', .len = 2 } },
	}, {
		"file-16-8", "the same 16 of 512 file pages, 8 processes", KIND_FILE,
		.steps = { { OP_FORK, 'B', 'H' }, { OP_MAP_PTES, 'A', 'H', .len = 2 } },
	}, {
		"file-halves", "one half of a file each, 2 processes", KIND_FILE,
		.steps = { { OP_FORK, 'B' }, { OP_MAP_PTES, 'A', .len = 32 },
			   { OP_MAP_PTES, 'B', .at = 32, .len = 32 } },
	}, {
		"file-twice", "a file twice, 1 process", KIND_FILE,
		.steps = { { OP_MAP_TWICE, 'A' } },
	}, {
		"file-16-twice", "16 of 512 file pages twice, 1 process", KIND_FILE,
		.steps = { { OP_MAP_TWICE, 'A', .len = 2 } },
	}, {
		"ksm", "small pages merged by KSM, 2 processes", KIND_KSM,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B' }, { OP_MERGE } },
	}, {
		"hugetlb", "hugetlb, 1 process", KIND_HUGETLB,
		.steps = { { OP_MAP, 'A' } },
	}, {
		"hugetlb-2", "hugetlb, 2 processes", KIND_HUGETLB,
		.steps = { { OP_MAP, 'A' }, { OP_FORK, 'B' } },
	},
};

/* A present page table entry, or one page of the many that a PMD maps */
struct entry {
	__u64 pfn;
	unsigned char proc;
	bool pmd;
	bool exclusive;		/* says the kernel */
};

struct folio {
	__u64 pfn;
	unsigned int nr;
	unsigned int first;	/* its first page in truth.pages */
	unsigned int ptes;
	unsigned int pmds;
	unsigned int creators;	/* PTEs, of A */
	unsigned int distinct;
	unsigned char procs;	/* bit mask */
	bool anon;
};

struct page {
	unsigned int count;
	unsigned char procs;
	bool pmd;
};

static struct {
	struct entry *entries;
	struct page *pages;
	struct folio *folios;
	unsigned int nr_entries;
	unsigned int nr_pages;
	unsigned int nr_folios;
	unsigned int max;	/* of each of these */
} truth;

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

static struct {
	const char *dirs[MAX_DIRS];
	unsigned int nr_dirs;
	const char *only;
	bool quiet;
	bool raw;
	char **command;
	enum kernel kernel;
} opt = { .kernel = NR_KERNELS };

static struct {
	unsigned long pmd_size;
	unsigned int pmd_pages;
	char *arena;		/* two slots for workers, one for the master */
	char *stir;
	size_t stir_size;
	char *text;
	__u64 *buf;
	int kpagecount;
	int kpageflags;
	unsigned long orders;	/* of anonymous folios */
	pid_t pid;
	char home[256];		/* our cgroup before */
	char cgroup[64];
	bool controls;		/* the root cgroup's memory controller, by us */
	int ksm_run;
	struct worker workers[NR_WORKERS];
} global = { .ksm_run = -1 };

/* The situation at hand */
static struct {
	const struct situation *situation;
	const char *dir;
	char name[64];
	size_t size;
	int fd;
	bool noisy;		/* others map and unmap memory */
	unsigned int vmas;	/* seen in smaps */
	unsigned int wrong;
	bool drifted;
	long long before[NR_MEASURED];
	long long after[NR_MEASURED];
	struct cell cells[NR_FIGURES];
} now = { .fd = -1 };

/* Files */

/* Returns false if the file is not there; stdio would allocate memory. */
static bool read_text(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t ret;

	if (fd < 0)
		return false;
	while ((ret = read(fd, global.text + len, TEXT_SIZE - 1 - len)) > 0)
		len += ret;
	close(fd);
	global.text[len] = '\0';
	return ret >= 0 && len;
}

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
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

/* Is this "KEY value"? Then adds the value. */
static bool add_value(const char *line, const char *key, long long *sum)
{
	size_t len = strlen(key);

	if (strncmp(line, key, len))
		return false;
	*sum += strtoll(line + len, NULL, 10);
	return true;
}

static const char *proc_path(int proc, const char *name)
{
	static char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", global.workers[proc].pid, name);
	return path;
}

/* Fault in what the program may ever touch, but not the memory of situations. */
static void prefault(void)
{
	static char maps[32 << 10];
	char *text = maps, *line, perms[5];
	int fd = open("/proc/self/maps", O_RDONLY);
	unsigned long start, end;
	size_t len = 0;
	ssize_t ret;

	while ((ret = read(fd, maps + len, sizeof(maps) - 1 - len)) > 0)
		len += ret;
	close(fd);
	maps[len] = '\0';
	while ((line = next_line(&text))) {
		if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) != 3 ||
		    perms[0] != 'r' ||
		    start - (unsigned long)global.arena < (NR_SLOTS + 1) * global.pmd_size)
			continue;
		/* Fails for special mappings, which are not counted either. */
		madvise((void *)start, end - start, perms[1] == 'w' ?
			MADV_POPULATE_WRITE : MADV_POPULATE_READ);
	}
}

/* The processes that map memory */

static char *slot(int nr)
{
	return global.arena + nr * global.pmd_size;
}

static int map_file(char *addr, size_t off, size_t len, bool ptes)
{
	if (mmap(addr + off, len, PROT_READ, MAP_SHARED | MAP_FIXED, now.fd, off) == MAP_FAILED)
		return -errno;
	madvise(addr + off, len, ptes ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	force_read_pages(addr + off, len / psize(), psize());
	return 0;
}

static int map_anon(void)
{
	int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS;
	const enum kind kind = now.situation->kind;

	if (kind == KIND_HUGETLB)
		flags |= MAP_HUGETLB;
	if (mmap(slot(0), now.size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
		return -errno;
	if (kind == KIND_ANON)
		madvise(slot(0), now.size, MADV_HUGEPAGE);
	if (kind == KIND_KSM && (madvise(slot(0), now.size, MADV_NOHUGEPAGE) ||
				 madvise(slot(0), now.size, MADV_MERGEABLE)))
		return -errno;
	memset(slot(0), 1, now.size);
	return 0;
}

/* A change to one page splits the PMD; the change back keeps PTEs. */
static int split_pmd(void)
{
	if (mprotect(slot(0), psize(), PROT_READ) ||
	    mprotect(slot(0), psize(), PROT_READ | PROT_WRITE))
		return -errno;
	return 0;
}

static int worker_do(const struct command *cmd)
{
	switch (cmd->op) {
	case OP_MAP:
		if (now.fd < 0)
			return map_anon();
		return map_file(slot(0), cmd->off, cmd->len, false);
	case OP_MAP_PTES:
		return map_file(slot(0), cmd->off, cmd->len, true);
	case OP_MAP_TWICE:
		return map_file(slot(0), cmd->off, cmd->len, true) ?:
		       map_file(slot(1), cmd->off, cmd->len, true);
	case OP_PTES:
		return split_pmd();
	case OP_WRITE:
		memset(slot(0) + cmd->off, 2, cmd->len);
		return 0;
	case OP_DROP:
		return munmap(slot(0) + cmd->off, cmd->len) ? -errno : 0;
	case OP_UNMAP:
		return munmap(slot(0), NR_SLOTS * global.pmd_size) ? -errno : 0;
	default:
		return -EINVAL;
	}
}

/*
 * All workers are children of the master, even if another worker forks them: so the
 * master can wait for each, and the death of A does not signal B.
 */
static pid_t worker_clone(void)
{
	struct clone_args args = { .flags = CLONE_PARENT };

	return syscall(__NR_clone3, &args, sizeof(args));
}

/*
 * What a worker has of its own is private and faulted in from here on, so it
 * does not matter what the others have done with their copies. Never returns to
 * stdio or atexit handlers, which are the master's.
 */
static void worker_init(void)
{
	int i;

	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	signal(SIGQUIT, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Without a writer left, a worker reads EOF should the master die. */
	for (i = 0; i < NR_WORKERS; i++)
		close(global.workers[i].cmd[1]);
	prefault();
}

/* The first answer, of a new worker, says that it is ready. */
static __noreturn void worker_run(int self)
{
	struct reply reply = {};
	struct command cmd;

	for (;;) {
		if (write(global.workers[self].reply[1], &reply, sizeof(reply)) != sizeof(reply) ||
		    read(global.workers[self].cmd[0], &cmd, sizeof(cmd)) != sizeof(cmd) ||
		    cmd.op == OP_EXIT)
			_exit(0);
		reply = (struct reply){};
		if (cmd.op != OP_FORK) {
			reply.err = worker_do(&cmd);
			continue;
		}
		reply.pid = worker_clone();
		if (!reply.pid) {
			self = cmd.child;
			worker_init();
		} else if (reply.pid < 0) {
			reply.err = -errno;
		}
	}
}

/* Poll, because a worker that died of SIGBUS will never answer. */
static int worker_reply(struct worker *w, struct reply *reply)
{
	struct pollfd pfd = { .fd = w->reply[0], .events = POLLIN };
	int tries;

	for (tries = 0; tries < 10 * REPLY_SECONDS; tries++) {
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
	global.workers[cmd->child].pid = reply.pid;
	/* The child answers as well, once it is ready. */
	return worker_reply(&global.workers[cmd->child], &child);
}

static void tell_all(enum op op)
{
	const struct command cmd = { .op = op };
	int i;

	for (i = 0; i < NR_WORKERS; i++)
		if (global.workers[i].pid && worker_tell(&global.workers[i], &cmd))
			ksft_exit_fail_msg("a process does not do what it has to\n");
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
	global.workers[0].pid = pid;
	if (worker_reply(&global.workers[0], &ready))
		ksft_exit_fail_msg("the first process does not start\n");
}

/* KSM */

static bool all_are(int proc, unsigned long pfn)
{
	int fd = open(proc_path(proc, "pagemap"), O_RDONLY | O_CLOEXEC);
	bool are = fd >= 0;
	size_t off;

	for (off = 0; are && off < now.size; off += psize())
		are = pagemap_get_pfn(fd, slot(0) + off) == pfn;
	close(fd);
	return are;
}

static bool all_merged(void)
{
	int fd = open(proc_path(0, "pagemap"), O_RDONLY | O_CLOEXEC), i;
	unsigned long first = pagemap_get_pfn(fd, slot(0));
	uint64_t flags = 0;

	close(fd);
	for (i = 0; i < NR_WORKERS; i++)
		if (global.workers[i].pid && !all_are(i, first))
			return false;
	return !pageflags_get(first, global.kpageflags, &flags) && flags & KPF_KSM;
}

/* Afterwards, ksmd rests. */
static int merge(void)
{
	int tries, err = 0;

	for (tries = 0; !err && !all_merged(); tries++)
		err = tries < NR_MERGES ? ksm_start() : -EAGAIN;
	write_text(KSM_RUN, "0");
	return err;
}

static void restore_ksm(void)
{
	if (global.ksm_run >= 0)
		write_num(KSM_RUN, global.ksm_run);
	global.ksm_run = -1;
}

/* What each step does */

static int step_do(const struct step *step)
{
	const size_t unit = now.size / 64;
	struct command cmd = {
		.op = step->op,
		.off = step->at * unit,
		.len = step->len ? step->len * unit : now.size,
	};
	int who, err = 0;

	if (step->op == OP_MERGE)
		return merge();
	for (who = step->from - 'A'; !err && who <= MAX(step->from, step->to) - 'A'; who++) {
		cmd.child = who;
		err = worker_tell(&global.workers[step->op == OP_FORK ? 0 : who], &cmd);
	}
	return err;
}

/* What the kernel says of the machine and of our cgroup */

/*
 * memory.stat can be two seconds old, unless there were many changes since. So
 * change a lot, in such a way that nothing is different.
 */
static void stir(void)
{
	memset(global.stir, 1, global.stir_size);
	madvise(global.stir, global.stir_size, MADV_DONTNEED);
}

static void read_keys(const char *path, enum figure from, enum figure to, long long *values,
		      unsigned int unit)
{
	char *text = global.text, *line;
	long long sum;
	unsigned int i;

	if (!read_text(path))
		ksft_exit_fail_perror(path);
	while ((line = next_line(&text))) {
		for (i = from; i <= to; i++) {
			sum = 0;
			if (add_value(line, figures[i].key, &sum))
				values[i] = sum / unit;
		}
	}
}

static long long read_partial(void)
{
	static const char name[] = THP_DIR "/hugepages-%lukB/stats/nr_anon_partially_mapped";
	long long sum = 0;
	char path[128];
	unsigned int i;

	for (i = 0; i < NR_ORDERS; i++) {
		snprintf(path, sizeof(path), name, (psize() >> 10) * (1UL << i));
		if (global.orders & (1UL << i) && read_text(path))
			sum += strtoll(global.text, NULL, 10);
	}
	return sum;
}

static void read_machine(long long *values)
{
	char path[128], byte;
	int fd;

	memset(values, 0, NR_MEASURED * sizeof(*values));
	if (global.cgroup[0]) {
		stir();
		snprintf(path, sizeof(path), "%s/memory.stat", global.cgroup);
		read_keys(path, FIG_CG_ANON, FIG_CG_THP, values, 1024);
	}
	/* Per-CPU parts are folded first: reading this does that. */
	fd = open("/proc/sys/vm/stat_refresh", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, &byte, 1) < 0)
		sleep(2);	/* and then the kernel has done it by itself */
	close(fd);
	read_keys("/proc/meminfo", FIG_ANON, FIG_FILE_PMD, values, 1);
	read_keys("/proc/vmstat", FIG_DEFERRED, FIG_DEFERRED, values, 1);
	values[FIG_PARTIAL] = read_partial();
}

static bool figure_known(enum figure i)
{
	if (i >= FIG_CG_ANON && i <= FIG_CG_THP)
		return global.cgroup[0];
	if (i == FIG_ANON || i == FIG_MAPPED)
		return !now.noisy;
	return true;
}

/* When nothing of ours moves, does anything? Others rarely have large folios. */
static void listen(const long long *values)
{
	long long later[NR_MEASURED];

	usleep(TRY_US);
	read_machine(later);
	now.noisy = values[FIG_ANON] != later[FIG_ANON] ||
		    values[FIG_MAPPED] != later[FIG_MAPPED];
}

/* Of the processes */

static bool in_slots(unsigned long addr)
{
	return addr - (unsigned long)global.arena < NR_SLOTS * global.pmd_size;
}

static void read_smaps(int proc)
{
	struct cell *cells = now.cells;
	char *text = global.text, *line;
	unsigned long start, end;
	bool ours = false;
	unsigned int i;

	if (!read_text(proc_path(proc, "smaps")))
		ksft_exit_fail_perror("reading smaps");
	while ((line = next_line(&text))) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
			ours = in_slots(start);
			now.vmas += ours;
		} else if (ours) {
			add_value(line, figures[FIG_PSS].key, &cells[FIG_PSS].said);
			for (i = 0; i < ARRAY_SIZE(private_keys); i++)
				add_value(line, private_keys[i], &cells[FIG_PRIVATE].said);
		}
	}
}

static long long sum_rollups(void)
{
	char *text, *line;
	long long sum = 0;
	int i;

	for (i = 0; i < NR_WORKERS; i++) {
		if (!global.workers[i].pid)
			continue;
		if (!read_text(proc_path(i, "smaps_rollup")))
			ksft_exit_fail_perror("reading smaps_rollup");
		text = global.text;
		while ((line = next_line(&text)))
			add_value(line, figures[FIG_ROLLUP].key, &sum);
	}
	return sum;
}

/* The truth, from all pagemaps */

static void kpage_read(int fd, __u64 pfn, unsigned int nr)
{
	const ssize_t len = nr * sizeof(__u64);

	if (pread(fd, global.buf, len, pfn * sizeof(__u64)) != len)
		ksft_exit_fail_msg("reading kpagecount or kpageflags at PFN %#llx failed\n",
				   (unsigned long long)pfn);
}

static void check_room(unsigned int nr)
{
	if (nr > truth.max)
		ksft_exit_fail_msg("more than %u pages\n", truth.max);
}

/* Folios are naturally aligned and, here, never larger than a PMD maps. */
static void add_folio(__u64 pfn)
{
	const __u64 block = pfn & ~((__u64)global.pmd_pages - 1);
	unsigned int head = pfn - block, end;
	struct folio *folio;

	kpage_read(global.kpageflags, block, global.pmd_pages);
	if (global.buf[head] & KPF_COMPOUND_TAIL)
		while (head && !(global.buf[head] & KPF_COMPOUND_HEAD))
			head--;
	end = head + 1;
	while (end < global.pmd_pages && global.buf[end] & KPF_COMPOUND_TAIL)
		end++;
	check_room(truth.nr_pages + end - head);
	folio = &truth.folios[truth.nr_folios++];
	*folio = (struct folio) {
		.pfn = block + head,
		.nr = end - head,
		.first = truth.nr_pages,
		.anon = now.fd < 0,
	};
	memset(&truth.pages[truth.nr_pages], 0, folio->nr * sizeof(struct page));
	truth.nr_pages += folio->nr;
}

static struct folio *find_folio(__u64 pfn)
{
	static unsigned int last;
	unsigned int i;

	for (i = 0; i < truth.nr_folios; i++) {
		struct folio *folio = &truth.folios[(last + i) % truth.nr_folios];

		if (pfn - folio->pfn < folio->nr) {
			last = folio - truth.folios;
			return folio;
		}
	}
	return NULL;
}

static struct page *find_page(const struct entry *entry, struct folio **folio)
{
	*folio = find_folio(entry->pfn);
	return &truth.pages[(*folio)->first + (entry->pfn - (*folio)->pfn)];
}

/* Only PAGEMAP_SCAN tells which pages a PMD (or a hugetlb entry) maps. */
static bool mapped_by_pmd(int fd, char *addr)
{
	struct page_region vec;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)addr,
		.end = (uintptr_t)addr + psize(),
		.vec = (uintptr_t)&vec,
		.vec_len = 1,
		.category_mask = PAGE_IS_HUGE | PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_HUGE,
	};
	int nr = ioctl(fd, PAGEMAP_SCAN, &arg);

	if (nr < 0)
		ksft_exit_fail_perror("PAGEMAP_SCAN");
	return nr;
}

static void scan_slot(int proc, int fd, char *addr)
{
	const ssize_t len = global.pmd_pages * sizeof(__u64);
	const unsigned int first = truth.nr_entries;
	const bool pmd = mapped_by_pmd(fd, addr);
	unsigned int i;

	check_room(truth.nr_entries + global.pmd_pages);
	if (pread(fd, global.buf, len, (uintptr_t)addr / psize() * sizeof(__u64)) != len)
		ksft_exit_fail_perror("reading pagemap");
	for (i = 0; i < global.pmd_pages; i++) {
		if (!PAGEMAP_PRESENT(global.buf[i]))
			continue;
		truth.entries[truth.nr_entries++] = (struct entry) {
			.pfn = PAGEMAP_PFN(global.buf[i]),
			.proc = proc,
			.pmd = pmd,
			.exclusive = global.buf[i] & PM_MMAP_EXCLUSIVE,
		};
	}
	for (i = first; i < truth.nr_entries; i++)
		if (!find_folio(truth.entries[i].pfn))
			add_folio(truth.entries[i].pfn);
}

static void scan_all(void)
{
	int proc, nr, fd;

	truth.nr_entries = 0;
	truth.nr_pages = 0;
	truth.nr_folios = 0;
	for (proc = 0; proc < NR_WORKERS; proc++) {
		if (!global.workers[proc].pid)
			continue;
		fd = open(proc_path(proc, "pagemap"), O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			ksft_exit_fail_perror("opening pagemap");
		for (nr = 0; nr < NR_SLOTS; nr++)
			scan_slot(proc, fd, slot(nr));
		close(fd);
	}
}

static void count_mappings(void)
{
	const struct entry *entry;
	struct folio *folio;
	struct page *page;
	unsigned int i;

	for (i = 0; i < truth.nr_entries; i++) {
		entry = &truth.entries[i];
		page = find_page(entry, &folio);
		folio->distinct += !page->count;
		page->count++;
		page->procs |= 1 << entry->proc;
		folio->procs |= 1 << entry->proc;
		/* A PMD counts once for its folio, at the first page. */
		folio->ptes += !entry->pmd;
		folio->creators += !entry->pmd && !entry->proc;
		folio->pmds += entry->pmd && entry->pfn == folio->pfn;
	}
}

/* The cells: what is said, what is true, and what bounds there are */

static bool one_bit(unsigned int mask)
{
	return !(mask & (mask - 1));
}

static long long kib(unsigned long long pages)
{
	return pages * (psize() >> 10);
}

static void add_true(enum figure i, long long least, long long value, long long most)
{
	now.cells[i].least += least;
	now.cells[i].truth += value;
	now.cells[i].most += most;
}

/*
 * See mapcounts_nr_mapped(): all pages if a PMD maps the folio, else the number of
 * PTEs; for an anonymous folio, the PTEs of the creator or of all other MMs, if more.
 */
static unsigned int estimate(const struct folio *folio)
{
	const unsigned int creators = folio->anon ? folio->creators : 0;

	if (folio->pmds)
		return folio->nr;
	return MIN(MAX(creators, folio->ptes - creators), folio->nr);
}

static void count_mapped(const struct folio *folio)
{
	const long long value = kib(folio->distinct), said = kib(estimate(folio));

	add_true(folio->anon ? FIG_ANON : FIG_MAPPED, said, value, said);
	add_true(folio->anon ? FIG_CG_ANON : FIG_CG_MAPPED, said, value, said);
	add_true(FIG_PSS, 0, value, 0);
}

static void count_pmds(const struct folio *folio)
{
	const long long size = folio->pmds ? kib(folio->nr) : 0;

	if (folio->anon) {
		add_true(FIG_ANON_THP, size, size, size);
		add_true(FIG_CG_THP, size, size, size);
	} else {
		add_true(now.situation->kind == KIND_SHMEM ? FIG_SHMEM_PMD : FIG_FILE_PMD,
			 size, size, size);
	}
}

/* A part of an anonymous folio could be freed, if the folio were split. */
static void count_partial(const struct folio *folio)
{
	const bool partial = folio->anon && folio->distinct < folio->nr;
	const bool certain = partial && !folio->pmds && folio->ptes < folio->nr;

	add_true(FIG_PARTIAL, certain, partial, partial);
	if (folio->nr == global.pmd_pages)
		add_true(FIG_DEFERRED, certain, partial, partial);
}

/*
 * What only one process maps may be called private, what others map may not. It
 * has to be called private if nobody else maps any other page of the folio. In
 * smaps, it may not if there are more mappings than pages: Pss is less then.
 */
static void count_private(const struct entry *entry)
{
	struct folio *folio;
	struct page *page = find_page(entry, &folio);
	const bool private = one_bit(page->procs), certain = one_bit(folio->procs);
	const bool in_full = folio->ptes + folio->pmds * folio->nr <= folio->nr;

	add_true(FIG_PRIVATE, kib(certain && in_full), kib(page->count == 1),
		 kib(private && in_full));
	add_true(FIG_EXCLUSIVE, certain, private, private);
	now.cells[FIG_EXCLUSIVE].said += entry->exclusive;
	now.cells[FIG_EXCLUSIVE].off += entry->exclusive && !private;
}

static void count_kpagecount(const struct folio *folio)
{
	struct cell *cell = &now.cells[FIG_KPAGECOUNT];
	unsigned int i;

	kpage_read(global.kpagecount, folio->pfn, folio->nr);
	for (i = 0; i < folio->nr; i++) {
		cell->said += global.buf[i];
		cell->truth += truth.pages[folio->first + i].count;
		cell->off += global.buf[i] != truth.pages[folio->first + i].count;
	}
}

static void look_at_processes(void)
{
	unsigned int i;

	memset(now.cells, 0, sizeof(now.cells));
	now.vmas = 0;
	for (i = 0; i < NR_WORKERS; i++)
		if (global.workers[i].pid)
			read_smaps(i);
	scan_all();
	count_mappings();
	for (i = 0; i < truth.nr_folios; i++) {
		count_kpagecount(&truth.folios[i]);
		/* hugetlb has statistics of its own. */
		if (now.situation->kind == KIND_HUGETLB)
			continue;
		count_mapped(&truth.folios[i]);
		count_pmds(&truth.folios[i]);
		count_partial(&truth.folios[i]);
	}
	for (i = 0; i < truth.nr_entries; i++)
		count_private(&truth.entries[i]);
}

/* Of all processes, Pss has to give what the machine says is mapped. */
static void bound_pss(void)
{
	struct cell *cells = now.cells, *pss = &cells[FIG_PSS], *rollup = &cells[FIG_ROLLUP];

	pss->least = cells[now.noisy ? FIG_CG_ANON : FIG_ANON].said +
		     cells[now.noisy ? FIG_CG_MAPPED : FIG_MAPPED].said;
	pss->most = pss->least;
	pss->rounding = now.vmas;	/* each is rounded down to KiB */
	rollup->truth = pss->truth;
	rollup->least = pss->said;
	rollup->most = pss->said;
	rollup->rounding = now.vmas + NR_WORKERS;
}

/* Judgement */

static bool between(const struct cell *cell, long long least, long long most)
{
	return cell->said >= least - (long long)cell->rounding &&
	       cell->said <= most + (long long)cell->rounding;
}

static bool cell_true(const struct cell *cell)
{
	return !cell->off && between(cell, cell->truth, cell->truth);
}

static bool cell_fine(enum figure i)
{
	const struct cell *cell = &now.cells[i];

	switch (figures[i].rule[opt.kernel]) {
	case EXACT:
		return cell_true(cell);
	case BETWEEN:
		return !cell->off && between(cell, cell->least, cell->most);
	default:
		return true;
	}
}

static void judge(void)
{
	unsigned int i;

	now.wrong = 0;
	for (i = 0; i < NR_FIGURES; i++)
		now.wrong += now.cells[i].known && !cell_fine(i);
}

/* How a situation goes */

static const char *open_file(void)
{
	char path[PATH_MAX];
	struct statfs fs;
	ssize_t len;

	if (!statfs(now.dir, &fs) && fs.f_type == TMPFS_MAGIC)
		return "a tmpfs has no page cache, give an ext4 or xfs with -d DIR";
	snprintf(path, sizeof(path), "%s/folio_stats.XXXXXX", now.dir);
	now.fd = mkstemp(path);
	if (now.fd < 0)
		return "cannot create a file there, give another with -d DIR";
	unlink(path);
	/* One write of all, so that the file system can choose large folios. */
	memset(slot(NR_SLOTS), 1, now.size);
	len = write(now.fd, slot(NR_SLOTS), now.size);
	madvise(slot(NR_SLOTS), now.size, MADV_DONTNEED);
	return len == (ssize_t)now.size && !fsync(now.fd) ? NULL :
		"cannot write a file there, give another with -d DIR";
}

/* The master maps it first, so that it is one folio. */
static const char *open_memfd(void)
{
	char *addr = slot(NR_SLOTS);

	now.fd = syscall(__NR_memfd_create, "folio_stats", 0);
	if (now.fd < 0 || ftruncate(now.fd, now.size))
		return "no memfd_create()";
	if (mmap(addr, now.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		 now.fd, 0) == MAP_FAILED)
		return "cannot map a memfd";
	madvise(addr, now.size, MADV_HUGEPAGE);
	memset(addr, 1, now.size);
	if (mmap(addr, now.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS |
		 MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	return NULL;
}

static const char *prepare_ksm(void)
{
	if (access(KSM_RUN, W_OK))
		return "no KSM";
	global.ksm_run = read_num(KSM_RUN);
	return NULL;
}

static bool pmd_fits(void)
{
	size_t size = read_pmd_pagesize();

	return size >= MIN_PMD_PAGES * psize() && size <= MAX_PMD_SIZE;
}

/* Returns why this situation cannot be had, or NULL. */
static const char *prepare(void)
{
	const struct situation *s = now.situation;

	now.size = s->mthp ? (4 * psize()) << MTHP_ORDER : global.pmd_size;
	if (s->kind == KIND_KSM) {
		now.size = 64 * psize();
		return prepare_ksm();
	}
	if (s->kind == KIND_FILE)
		return open_file();
	if (!s->mthp && !pmd_fits() && thp_available())
		return "a PMD maps too much or too little here";
	if (s->kind == KIND_HUGETLB)
		return default_huge_page_size() == global.pmd_size &&
		       hugetlb_setup_default(2) ? NULL :
			"no two hugetlb folios of PMD size to be had";
	if (!global.orders)
		return "no transparent huge pages";
	if (s->mthp && !(global.orders & (1UL << MTHP_ORDER)))
		return "no folios of 16 pages here";
	return s->kind == KIND_SHMEM ? open_memfd() : NULL;
}

static const char *unfit(void)
{
	const struct situation *s = now.situation;
	unsigned int nr = 0, i;

	for (i = 0; i < truth.nr_folios; i++)
		nr = MAX(nr, truth.folios[i].nr);
	if (s->kind == KIND_KSM)
		return NULL;
	if (s->kind == KIND_FILE)
		return nr > 1 ? NULL :
			"no large folios on that file system, give another with -d DIR";
	if (nr != (s->mthp ? 1 << MTHP_ORDER : global.pmd_pages))
		return "no folio of that size to be had";
	return NULL;
}

static const char *take_steps(void)
{
	const struct step *steps = now.situation->steps;
	unsigned int i;
	int err;

	for (i = 0; i < MAX_STEPS && steps[i].op != OP_END; i++) {
		err = step_do(&steps[i]);
		if (err && steps[i].op == OP_MERGE)
			return "KSM merges too slowly";
		if (err)
			ksft_exit_fail_msg("%s, step %u: %s\n", now.name, i, strerror(-err));
	}
	return NULL;
}

/* Fills the cells; returns why that cannot be done, or NULL. */
static const char *play(void)
{
	long long before[NR_MEASURED], mapped[NR_MEASURED], unmapped[NR_MEASURED];
	long long rollup;
	const char *why;
	unsigned int i;

	worker_first();
	read_machine(before);
	why = take_steps();
	if (why)
		return why;
	read_machine(mapped);
	rollup = sum_rollups();
	look_at_processes();
	why = unfit();
	if (why)
		return why;
	tell_all(OP_UNMAP);
	read_machine(unmapped);
	listen(unmapped);
	if (now.noisy && !global.cgroup[0])
		return "others map and unmap memory, and there is no cgroup to be had";
	for (i = 0; i < NR_FIGURES; i++)
		now.cells[i].known = figure_known(i);
	for (i = 0; i < NR_MEASURED; i++)
		now.cells[i].said = mapped[i] - unmapped[i];
	/* It counts events, and others follow. */
	now.cells[FIG_DEFERRED].said = mapped[FIG_DEFERRED] - before[FIG_DEFERRED];
	now.cells[FIG_ROLLUP].said = rollup - sum_rollups();
	bound_pss();
	return NULL;
}

/* Drift: the figures that have to come back */

static bool drifts(enum figure i)
{
	return i != FIG_DEFERRED && figure_known(i);
}

static bool drifted(const long long *before, const long long *after, long long slack)
{
	unsigned int i;

	for (i = 0; i < NR_MEASURED; i++) {
		const bool others = i == FIG_ANON || i == FIG_MAPPED;

		if (drifts(i) && llabs(after[i] - before[i]) > (others ? slack : 0))
			return true;
	}
	return false;
}

static void print_drift(const long long *before, const long long *after)
{
	unsigned int i;

	for (i = 0; i < NR_MEASURED; i++)
		if (drifts(i))
			ksft_print_msg("  %-26s %10lld before %10lld after%s\n", figures[i].name,
				       before[i], after[i],
				       before[i] == after[i] ? "" : "  <--");
}

/* Output */

static void print_cells(void)
{
	unsigned int i;

	for (i = 0; i < NR_FIGURES; i++) {
		const struct cell *c = &now.cells[i];
		const bool fine = cell_fine(i), exact = cell_true(c);

		if (!c->known || (opt.quiet && fine) || (exact && !c->said && !c->truth))
			continue;
		ksft_print_msg("  %-26s %8lld %-8s truth %8lld%s", figures[i].name, c->said,
			       figures[i].unit, c->truth, exact ? "" : "  differs");
		if (c->off)
			printf(", wrong for %u pages", c->off);
		if (!fine)
			printf("  <-- has to be %lld to %lld",
			       figures[i].rule[opt.kernel] == EXACT ? c->truth : c->least,
			       figures[i].rule[opt.kernel] == EXACT ? c->truth : c->most);
		printf("\n");
	}
}

/* For scripts: situation, title, figure, unit, said, truth, verdict */
static void print_raw(void)
{
	unsigned int i;

	for (i = 0; i < NR_FIGURES; i++) {
		const struct cell *c = &now.cells[i];

		if (!c->known)
			continue;
		printf("# row\t%s\t%s\t%s\t%s\t%lld\t%lld\t%s\n", now.name,
		       now.situation->title, figures[i].name, figures[i].unit, c->said, c->truth,
		       !cell_fine(i) ? "wrong" : cell_true(c) ? "true" : "differs");
	}
}

static void clean_up(void)
{
	tell_all(OP_EXIT);
	restore_ksm();
	if (now.fd >= 0)
		close(now.fd);
	now.fd = -1;
}

/* Returns why that cannot be done, or NULL. */
static const char *play_once(void)
{
	const char *why = prepare();
	unsigned int tries = 0;

	read_machine(now.before);
	if (!why)
		why = play();
	clean_up();
	if (!why)
		judge();
	/* Another process may drop the last reference, which dequeues the folio. */
	do {
		if (tries)
			usleep(TRY_US);
		read_machine(now.after);
		now.drifted = drifted(now.before, now.after, 0);
	} while (now.drifted && ++tries < NR_TRIES);
	return why;
}

/* Again if something is wrong, for others on the machine might be busy. */
static void play_situation(void)
{
	const char *title = now.situation->title, *why;
	unsigned int tries = 0;

	do {
		now.noisy = false;
		now.wrong = 0;
		why = play_once();
	} while ((now.noisy || now.wrong || now.drifted) && ++tries < NR_TRIES);

	if (why) {
		ksft_test_result_skip("%s: %s (%s)\n", now.name, title, why);
		ksft_test_result_skip("%s: back where it was (%s)\n", now.name, why);
		return;
	}
	if (!opt.quiet || now.wrong)
		ksft_print_msg("%s: %s%s\n", now.name, title, now.noisy ?
			       "; others use memory, so only of the cgroup:" : "");
	print_cells();
	if (opt.raw)
		print_raw();
	ksft_test_result(!now.wrong, "%s: %s\n", now.name, title);
	if (now.drifted)
		print_drift(now.before, now.after);
	ksft_test_result(!now.drifted, "%s: back where it was\n", now.name);
}

static const char *dir_name(unsigned int nr)
{
	static char name[16];
	struct statfs fs;

	if (!statfs(opt.dirs[nr], &fs) && fs.f_type == EXT4_SUPER_MAGIC)
		return "ext4";
	if (!statfs(opt.dirs[nr], &fs) && fs.f_type == XFS_SUPER_MAGIC)
		return "xfs";
	snprintf(name, sizeof(name), "dir%u", nr);
	return name;
}

static void play_all(void)
{
	unsigned int i, nr;

	for (i = 0; i < ARRAY_SIZE(situations); i++) {
		now.situation = &situations[i];
		for (nr = 0; nr < opt.nr_dirs; nr++) {
			now.dir = opt.dirs[nr];
			snprintf(now.name, sizeof(now.name), "%s", now.situation->name);
			if (now.situation->kind == KIND_FILE)
				snprintf(now.name, sizeof(now.name), "%s:%s",
					 now.situation->name, dir_name(nr));
			else if (nr)
				break;
			if (!opt.only || !strcmp(opt.only, now.situation->name))
				play_situation();
		}
	}
}

static unsigned int plan(void)
{
	unsigned int i, nr = 0;

	for (i = 0; i < ARRAY_SIZE(situations); i++)
		if (!opt.only || !strcmp(opt.only, situations[i].name))
			nr += situations[i].kind == KIND_FILE ? opt.nr_dirs : 1;
	return 2 * nr;
}

/* A command, and what is left of it in the statistics */

static void __noreturn run_command(void)
{
	long long before[NR_MEASURED], after[NR_MEASURED];
	unsigned int tries = 0;
	int status;
	pid_t pid;

	read_machine(before);
	pid = fork();
	if (!pid) {
		execvp(opt.command[0], opt.command);
		perror(opt.command[0]);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		ksft_exit_fail_perror("running the command");
	/*
	 * What the command mapped was all charged to our cgroup, unless it has
	 * one of its own, and is unmapped; so these have to be what they were.
	 * Of the machine, others also map and unmap memory, but no large folios.
	 */
	do {
		if (tries)
			usleep(DRIFT_US);
		read_machine(after);
	} while (drifted(before, after, DRIFT_SLACK) && ++tries < DRIFT_TRIES);
	ksft_print_msg("the statistics are %s before the command\n",
		       tries < DRIFT_TRIES ? "what they were" : "NOT what they were");
	print_drift(before, after);
	status = WIFEXITED(status) ? WEXITSTATUS(status) : KSFT_FAIL;
	exit(status ?: tries < DRIFT_TRIES ? status : KSFT_FAIL);
}

/* Set-up */

static bool join_cgroup(const char *path)
{
	char file[PATH_MAX], pid[16];

	snprintf(file, sizeof(file), "%s/cgroup.procs", path);
	snprintf(pid, sizeof(pid), "%d", getpid());
	return write_text(file, pid);
}

/* Back to the original cgroup */
static void leave_cgroup(void)
{
	if (!global.cgroup[0])
		return;
	join_cgroup(global.home);
	rmdir(global.cgroup);
	global.cgroup[0] = '\0';
}

static bool make_cgroup(void)
{
	char *line, *text = global.text, stat[128];

	if (!read_text("/proc/self/cgroup"))
		return false;
	while ((line = next_line(&text)))
		if (!strncmp(line, "0::", 3))
			snprintf(global.home, sizeof(global.home), CGROUPFS "%s", line + 3);
	/* Empty, it reads as nothing. */
	if (!read_text(CGROUPFS "/cgroup.subtree_control") || !strstr(global.text, "memory"))
		global.controls = write_text(CGROUPFS "/cgroup.subtree_control", "+memory");
	snprintf(stat, sizeof(stat), "%s/memory.stat", global.cgroup);
	return !mkdir(global.cgroup, 0755) && !access(stat, R_OK) && join_cgroup(global.cgroup);
}

/*
 * A cgroup of our own, for its statistics alone. Works without, too. What we have
 * so far is charged to the cgroup that we come from, and a copy of it, made when we
 * write after some fork(), would be charged to the new one: so begin again there.
 */
static void setup_cgroup(char **argv)
{
	const char *home = getenv("FOLIO_STATS_HOME");

	snprintf(global.cgroup, sizeof(global.cgroup), CGROUPFS "/folio_stats.%d", getpid());
	if (home) {
		global.controls = home[0] == '+';
		snprintf(global.home, sizeof(global.home), "%s", home + 1);
		unsetenv("FOLIO_STATS_HOME");
		return;
	}
	if (make_cgroup()) {
		snprintf(global.text, TEXT_SIZE, "%c%s", global.controls ? '+' : '=',
			 global.home);
		setenv("FOLIO_STATS_HOME", global.text, 1);
		execv("/proc/self/exe", argv);
	}
	leave_cgroup();
}

/* Restores the settings of the machine, however the test ends. */
static void restore(void)
{
	int i;

	if (getpid() != global.pid)
		return;
	for (i = 0; i < NR_WORKERS; i++) {
		if (global.workers[i].pid) {
			kill(global.workers[i].pid, SIGKILL);
			waitpid(global.workers[i].pid, NULL, 0);
		}
	}
	restore_ksm();
	leave_cgroup();
	if (global.controls)
		write_text(CGROUPFS "/cgroup.subtree_control", "-memory");
}

/* For the master alone: what workers do not inherit, they cannot disturb. */
static void *alloc_private(size_t size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	madvise(mem, size, MADV_NOHUGEPAGE);
	if (madvise(mem, size, MADV_DONTFORK))
		ksft_exit_fail_perror("MADV_DONTFORK");
	memset(mem, 0, size);
	return mem;
}

static void setup_arena(void)
{
	char *mem = mmap(NULL, (NR_SLOTS + 2) * global.pmd_size, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (mem == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	global.arena = (char *)(((uintptr_t)mem + global.pmd_size - 1) & ~(global.pmd_size - 1));
	/* The master's slot, unlike the others, is for writing. */
	if (mprotect(slot(NR_SLOTS), global.pmd_size, PROT_READ | PROT_WRITE))
		ksft_exit_fail_perror("mprotect");
	madvise(slot(NR_SLOTS), global.pmd_size, MADV_NOHUGEPAGE);
}

static void setup_memory(void)
{
	global.orders = thp_available() ? thp_supported_orders() : 0;
	global.pmd_size = read_pmd_pagesize();
	if (!pmd_fits())
		global.pmd_size = MAX(2UL << 20, MIN_PMD_PAGES * psize());
	global.pmd_pages = global.pmd_size / psize();
	setup_arena();
	truth.max = NR_SLOTS * NR_WORKERS * global.pmd_pages;
	truth.entries = alloc_private(truth.max * sizeof(*truth.entries));
	truth.pages = alloc_private(truth.max * sizeof(*truth.pages));
	truth.folios = alloc_private(truth.max * sizeof(*truth.folios));
	global.buf = alloc_private(global.pmd_pages * sizeof(*global.buf));
	global.text = alloc_private(TEXT_SIZE);
	/* The kernel lets 64 changes on each CPU pass. */
	global.stir_size = 2 * 64 * sysconf(_SC_NPROCESSORS_ONLN) * psize();
	global.stir = alloc_private(global.stir_size);
	madvise(global.stir, global.stir_size, MADV_DONTNEED);
}

static void setup_workers(void)
{
	int i;

	for (i = 0; i < NR_WORKERS; i++)
		if (pipe(global.workers[i].cmd) || pipe(global.workers[i].reply))
			ksft_exit_fail_perror("pipe");
}

/* Huge pages on request only, of the sizes of the situations; no khugepaged. */
static void setup_thp(void)
{
	int pmd = sz2ord(global.pmd_size, psize()), i;
	struct thp_settings settings;

	if (!thp_available())
		return;
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
}

/*
 * Trusts the configuration where it can be read. Guessing from what the kernel
 * says would excuse a kernel that should be right, and is not.
 */
static enum kernel find_kernel(void)
{
	static const char read_config[] =
		"{ zcat /proc/config.gz || cat /boot/config-$(uname -r); } 2>/dev/null";
	FILE *config = popen(read_config, "r");
	enum kernel kernel = KERNEL_PACKED;
	char line[256];

	while (config && fgets(line, sizeof(line), config)) {
		if (!strncmp(line, "CONFIG_PAGE_MAP", strlen("CONFIG_PAGE_MAP")))
			kernel = KERNEL_PAGES;
		if (!strncmp(line, "CONFIG_NO_PAGE_MAP", strlen("CONFIG_NO_PAGE_MAP")))
			kernel = KERNEL_AVERAGES;
	}
	if (config)
		pclose(config);
	return kernel;
}

static void setup_kernel(void)
{
	if (geteuid())
		ksft_exit_skip("needs root\n");
	global.kpagecount = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
	global.kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (global.kpagecount < 0 || global.kpageflags < 0)
		ksft_exit_skip("no /proc/kpagecount (CONFIG_PROC_PAGE_MONITOR)\n");
	if (opt.kernel == NR_KERNELS)
		opt.kernel = find_kernel();
}

static void usage(void)
{
	unsigned int i;

	printf("Usage: folio_stats [options] [-- COMMAND [ARGUMENT]...]\n"
	       "Map memory in many ways and show what the statistics say, beside the truth.\n"
	       "With a COMMAND, run it and see if they come back to where they were.\n"
	       "  -d DIR     where to put files; can be repeated (default: /tmp)\n"
	       "  -k KERNEL  expect what such a kernel promises: pages, averages, packed\n"
	       "             (default: as its configuration says)\n"
	       "  -q         print only what is wrong\n"
	       "  -r         print lines for scripts as well\n"
	       "  -s NAME    only this situation:");
	for (i = 0; i < ARRAY_SIZE(situations); i++)
		printf("%s%s", i % 6 ? " " : "\n               ", situations[i].name);
	printf("\nNeeds root. Exit status: 0 fine, 1 not, 4 skipped.\n");
}

static void __noreturn bad_option(const char *what, const char *value)
{
	fprintf(stderr, "folio_stats: no %s \"%s\", see -h\n", what, value);
	exit(KSFT_FAIL);
}

static enum kernel parse_kernel(const char *name)
{
	unsigned int i;

	for (i = 0; i < NR_KERNELS; i++)
		if (!strcmp(kernels[i].option, name))
			return i;
	bad_option("kernel", name);
}

static const char *parse_situation(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(situations); i++)
		if (!strcmp(situations[i].name, name))
			return name;
	bad_option("situation", name);
}

static void parse_options(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "+d:hk:qrs:")) != -1) {
		switch (c) {
		case 'd':
			if (opt.nr_dirs == MAX_DIRS)
				bad_option("room for directory", optarg);
			opt.dirs[opt.nr_dirs++] = optarg;
			break;
		case 'k':
			opt.kernel = parse_kernel(optarg);
			break;
		case 'q':
			opt.quiet = true;
			break;
		case 'r':
			opt.raw = true;
			break;
		case 's':
			opt.only = parse_situation(optarg);
			break;
		default:
			usage();
			exit(c == 'h' ? KSFT_PASS : KSFT_FAIL);
		}
	}
	if (!opt.nr_dirs)
		opt.dirs[opt.nr_dirs++] = "/tmp";
	if (optind < argc)
		opt.command = argv + optind;
}

int main(int argc, char **argv)
{
	parse_options(argc, argv);
	setup_memory();
	setup_cgroup(argv);
	global.pid = getpid();
	atexit(restore);
	if (!opt.command)
		ksft_print_header();
	setup_kernel();
	setup_workers();
	if (opt.command) {
		prefault();
		run_command();
	}
	setup_thp();
	ksft_set_plan(plan());
	ksft_print_msg("counts of mappings: %s%s\n", kernels[opt.kernel].text,
		       global.cgroup[0] ? "" : "; no cgroup to be had");
	prefault();
	play_all();
	ksft_finished();
}
