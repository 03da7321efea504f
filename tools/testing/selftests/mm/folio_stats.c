// SPDX-License-Identifier: GPL-2.0
/*
 * folio_stats - what the kernel says about mapped folios
 *
 * Processes map memory in many ways and change that step by step. After each step,
 * every figure that the kernel derives from mapcounts is computed again, from the
 * page tables of all these processes (folio_truth.h), and compared:
 *
 *	scene: steps ---> A, B, C, D, E map, fork, write, exit, then block
 *				|
 *			  their pagemaps ---> truth, bounds ---> cells
 *	figures[]	  smaps, numa_maps, kpagecount, ...   ---^  fine?
 *			  vmstat, memory.stat, THP's sysfs    --/
 *
 * What a kernel promises depends on how it counts, see enum kernel, and stands in
 * figures[]: the truth, something between bounds, or nothing.
 *
 *	FOLIO_STATS_DIRS=DIR:...	where to put files (default: /tmp)
 *	FOLIO_STATS_VERBOSE=1		print all figures after each step
 *	folio_stats -- COMMAND		run it: are the statistics afterwards as before?
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <linux/magic.h>
#include <sys/vfs.h>
#include "kselftest_harness.h"
#define MAX_MAP		(64 * 1024)
#include "folio_truth.h"

#define KPF_REFERENCED	BIT_ULL(2)

#define KSM_RUN		"/sys/kernel/mm/ksm/run"
#define CHILDREN	"BCD"
#define MAX_STEPS	16
#define NR_TRIES	6
#define TRY_US		20000
#define NR_MERGES	10
#define DRIFT_TRIES	40
#define DRIFT_US	250000
/* What others on the machine may map or unmap while a command runs, in pages */
#define DRIFT_SLACK	256
#define MTHP_ORDER	4
/* Keeps our cgroup, to which all others belong. */
#define KEEPER		(MAX_ACTORS - 1)
/* The pages before and behind the end of a folio, in one read of kpagecount */
#define EDGE		8
/* What a step can tell apart; powerpc with 64K pages and 2 MiB huge ones has less. */
#define MIN_PMD_PAGES	64
/* Above this (arm64 with 64K pages: 512 MiB) it would take too long. */
#define MAX_PMD_SIZE	(64UL << 20)

/* How the kernel knows how often the pages of a large folio are mapped */
static enum kernel {
	KERNEL_PAGES,		/* a count in each page */
	KERNEL_AVERAGES,	/* CONFIG_NO_PAGE_MAPCOUNT */
	KERNEL_PACKED,		/* folio->_mapcounts and the creator */
	NR_KERNELS,
} kernel;

enum rule {
	SHOW,			/* nothing is promised */
	EXACT,
	BETWEEN,		/* the cell's bounds */
};

enum figure {
	/* From smaps, as enum smaps; then: */
	FIG_ROLLUP = ALL_SMAPS, FIG_EXCLUSIVE, FIG_KPAGECOUNT, FIG_KPAGEFLAGS, FIG_MAPMAX,
	FIG_CG_ANON, FIG_CG_FILE, FIG_CG_ANON_THP,
	/* Of the machine, as the difference to what it said before the scene */
	FIG_ANON, FIG_FILE, FIG_ANON_THP, FIG_SHMEM_PMD, FIG_FILE_PMD, FIG_NR_ANON, FIG_PARTIAL,
	NR_FIGURES,
};

static const struct {
	const char *name;
	const char *unit;
	enum rule rule[NR_KERNELS];
} figures[NR_FIGURES] = {
	[SMAPS_RSS]		= { "Rss", "KiB", { EXACT, EXACT, EXACT } },
	[SMAPS_PSS]		= { "Pss", "KiB", { EXACT, SHOW, BETWEEN } },
	[SMAPS_PRIVATE]		= { "Private", "KiB", { EXACT, SHOW, BETWEEN } },
	[SMAPS_SHARED]		= { "Shared", "KiB", { EXACT, SHOW, BETWEEN } },
	[SMAPS_PMD]		= { "HugePages,PmdMapped", "KiB", { EXACT, EXACT, EXACT } },
	[SMAPS_HTLB_PRIVATE]	= { "Private_Hugetlb", "KiB", { EXACT, EXACT, EXACT } },
	[SMAPS_HTLB_SHARED]	= { "Shared_Hugetlb", "KiB", { EXACT, EXACT, EXACT } },
	[SMAPS_PRIVATE_DIRTY]	= { "Private_Dirty", "KiB", { EXACT, SHOW, BETWEEN } },
	[SMAPS_SHARED_DIRTY]	= { "Shared_Dirty", "KiB", { EXACT, SHOW, BETWEEN } },
	[SMAPS_PSS_DIRTY]	= { "Pss_Dirty", "KiB", { EXACT, SHOW, BETWEEN } },
	[SMAPS_REFERENCED]	= { "Referenced", "KiB", { EXACT, EXACT, EXACT } },
	[SMAPS_ANON]		= { "Anonymous", "KiB", { EXACT, EXACT, EXACT } },
	[SMAPS_LAZYFREE]	= { "LazyFree", "KiB", { EXACT, EXACT, EXACT } },
	[SMAPS_KSM]		= { "KSM", "KiB", { EXACT, EXACT, EXACT } },
	[SMAPS_SWAP]		= { "Swap", "KiB", { EXACT, EXACT, EXACT } },
	[SMAPS_SWAP_PSS]	= { "SwapPss", "KiB", { EXACT, EXACT, EXACT } },
	[FIG_ROLLUP]		= { "Pss:smaps_rollup", "KiB", { EXACT, EXACT, EXACT } },
	[FIG_EXCLUSIVE]		= { "PM_MMAP_EXCLUSIVE", "pages", { SHOW, SHOW, BETWEEN } },
	[FIG_KPAGECOUNT]	= { "kpagecount", "mappings", { EXACT, SHOW, EXACT } },
	[FIG_KPAGEFLAGS]	= { "kpageflags", "pages", { EXACT, EXACT, EXACT } },
	[FIG_MAPMAX]		= { "mapmax:numa_maps", "", { SHOW, SHOW, EXACT } },
	[FIG_CG_ANON]		= { "cgroup:anon", "pages", { EXACT, SHOW, BETWEEN } },
	[FIG_CG_FILE]		= { "cgroup:file_mapped", "pages", { EXACT, SHOW, BETWEEN } },
	[FIG_CG_ANON_THP]	= { "cgroup:anon_thp", "pages", { EXACT, EXACT, EXACT } },
	[FIG_ANON]		= { "nr_anon_pages", "pages" },
	[FIG_FILE]		= { "nr_mapped", "pages" },
	[FIG_ANON_THP]		= { "nr_anon_thps", "folios", { EXACT, EXACT, EXACT } },
	[FIG_SHMEM_PMD]		= { "nr_shmem_pmdmapped", "folios", { EXACT, EXACT, EXACT } },
	[FIG_FILE_PMD]		= { "nr_file_pmdmapped", "folios", { EXACT, EXACT, EXACT } },
	[FIG_NR_ANON]		= { "nr_anon", "folios", { EXACT, EXACT, EXACT } },
	[FIG_PARTIAL]		= { "nr_anon_partially_mapped", "folios",
				    { EXACT, SHOW, BETWEEN } },
};

static const struct key vmstat_keys[] = {
	{ "nr_anon_pages ", FIG_ANON }, { "nr_mapped ", FIG_FILE },
	{ "nr_anon_transparent_hugepages ", FIG_ANON_THP },
	{ "nr_shmem_pmdmapped ", FIG_SHMEM_PMD }, { "nr_file_pmdmapped ", FIG_FILE_PMD },
};

static const struct key memcg_keys[] = {
	{ "anon ", FIG_CG_ANON }, { "file_mapped ", FIG_CG_FILE }, { "anon_thp ", FIG_CG_ANON_THP },
};

/* One figure, after one step */
struct cell {
	long long said, truth;
	struct bounds bounds;
	unsigned int rounding;	/* how much less than that it may say */
	unsigned int wrong;	/* places of which something wrong is said */
	bool unknown;
};

enum kind {
	SMALL, SMALL_SHMEM, KSM,	/* 64 small pages */
	MTHP,				/* four folios of 16 pages */
	THP, SHMEM, PAGECACHE, HUGETLB,	/* PMD size, if possible */
};

enum op {
	END,
	MAP,			/* and write to all of it (anonymous memory), or read it */
	MAP_PTES,		/* a file, never by a PMD */
	TWICE,			/* map the file at a second place as well */
	PTES,			/* split the PMD */
	READ, WRITE, UNMAP,
	MOVE,			/* to the second place */
	PROTECT, DROP, FREE, PAGEOUT,
	FORGET,			/* that these pages were accessed */
	FORK, EXIT,
	MERGE,			/* wait until KSM has */
	JOIN,			/* the cgroup, and fill the file on its account */
};

/* All of @who do it. Ranges are in 64ths; no length means all. */
struct step {
	enum op op;
	const char *who;
	unsigned char at, len;
	const char *to;		/* children */
	const char *label;	/* for scripts/stats: the situation that it leads to */
	bool whole;		/* no folio may be split */
};

static struct {
	unsigned long pmd_size;
	unsigned int pmd_pages;
	char *arena;		/* two slots for the actors, one for SELF */
	ino_t cgroup;
	bool verbose;
	pid_t pid;
	struct total {
		unsigned long checks, wrong;
	} *total;		/* shared with the processes of the tests */
} global;

/* The scene at hand */
static struct {
	enum kind kind;
	const char *dir;
	size_t size;
	int fd;
	unsigned int large, small;	/* folios */
	/* Where toucher has written since MADV_FREE, and accessed memory since FORGET */
	const char *written, *accessed;
	size_t touched;			/* bytes there */
	pid_t toucher;			/* -1: unknown */
	long long counters[NR_FIGURES], before[NR_FIGURES];
	struct cell cells[NR_FIGURES];
} now = { .fd = -1 };

static char *slot(int nr)
{
	return global.arena + nr * global.pmd_size;
}

/* What the actors do */

static size_t step_offset(const struct step *step)
{
	return step->at * (now.size / 64);
}

static size_t step_length(const struct step *step)
{
	return step->len ? step->len * (now.size / 64) : now.size;
}

static long map_at(char *addr, const struct step *step)
{
	const bool small = now.kind <= KSM || step->op == MAP_PTES || step->op == TWICE;
	const off_t off = now.fd < 0 ? 0 : step_offset(step);
	const size_t len = step_length(step);
	int flags = now.kind == SHMEM || now.kind == SMALL_SHMEM ? MAP_SHARED : MAP_PRIVATE;

	if (now.fd < 0)
		flags |= MAP_ANONYMOUS;
	if (now.kind == HUGETLB)
		flags |= MAP_HUGETLB;
	if (mmap(addr, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, now.fd, off) == MAP_FAILED)
		return -1;
	madvise(addr, len, small ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	if (now.fd < 0)
		memset(addr, 1, len);
	else
		force_read_pages(addr, len / psize(), psize());
	return now.kind == KSM ? madvise(addr, len, MADV_MERGEABLE) : 0;
}

/* So that the file consists of folios as large as they can be */
static long fill_file(char *addr)
{
	if (now.kind == PAGECACHE) {
		memset(addr, 1, now.size);
		return write(now.fd, addr, now.size) != (ssize_t)now.size || fsync(now.fd);
	}
	if (mmap(addr, now.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, now.fd,
		 0) == MAP_FAILED)
		return -1;
	if (now.kind == SHMEM)
		madvise(addr, now.size, MADV_HUGEPAGE);
	memset(addr, 1, now.size);
	return 0;
}

/* An actor, or the keeper, takes a step. */
static long act(long arg, long unused)
{
	const struct step *step = (const struct step *)arg;
	const size_t len = step_length(step);
	char *addr = slot(0) + step_offset(step), *other = slot(1) + step_offset(step), *end;

	switch (step->op) {
	case MAP:
	case MAP_PTES:
		return map_at(addr, step);
	case TWICE:
		return map_at(other, step);
	case PTES:
		/*
		 * A change to one page splits the PMD; the change back keeps PTEs. arm64 folds
		 * a contpte block again at its last page: MADV_FREE splits a folio in part folded.
		 */
		addr += len - psize();
		return mprotect(addr, psize(), PROT_READ) ?:
		       mprotect(addr, psize(), PROT_READ | PROT_WRITE);
	case READ:
		force_read_pages(addr, len / psize(), psize());
		return 0;
	case WRITE:
		for (end = addr + len; addr < end; addr += psize())
			*addr = 2;
		return 0;
	case UNMAP:
		return munmap(addr, len);
	case MOVE:
		return sys_mremap(addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other ?
			0 : -1;
	case PROTECT:
		return mprotect(addr, len, PROT_READ);
	case DROP:
		return madvise(addr, len, MADV_DONTNEED);
	case FREE:
		return madvise(addr, len, MADV_FREE);
	case PAGEOUT:
		return madvise(addr, len, MADV_PAGEOUT);
	case FORGET:
		return put("/proc/self/clear_refs", "1") ? 0 : -1;
	case JOIN:
		if ((global.cgroup && !put(cgroup_file("cgroup.procs"), "0")) ||
		    (now.fd >= 0 && fill_file(slot(2))))
			return -1;
		return munmap(slot(2), global.pmd_size);
	default:
		return 0;
	}
}

/*
 * memory.stat can be two seconds old, unless there were many changes since: the kernel
 * lets 64 on each CPU pass. So change a lot, in such a way that nothing is different.
 */
static long stir(long unused_a, long unused_b)
{
	const size_t size = 64 * sysconf(_SC_NPROCESSORS_ONLN) * psize();
	char *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memset(mem, 1, size);
	return munmap(mem, size);
}

static const char * const verbs[] = {
	[MAP] = "maps", [MAP_PTES] = "maps by PTEs", [TWICE] = "maps a second time",
	[PTES] = "splits the PMD", [READ] = "reads", [WRITE] = "writes", [UNMAP] = "unmaps",
	[MOVE] = "moves", [PROTECT] = "makes read-only", [DROP] = "drops",
	[FREE] = "gives up by MADV_FREE", [PAGEOUT] = "pages out",
	[FORGET] = "clears the references", [FORK] = "forks", [EXIT] = "exits",
	[MERGE] = "are merged by KSM",
};

static void read_keys(const char *path, const struct key *keys, unsigned int nr)
{
	char *text = truth.text, *line;

	if (!read_text(path))
		die("cannot read %s", path);
	while ((line = next_line(&text)))
		add_value(line, keys, nr, now.counters);
}

static void read_sysfs_thp(unsigned int order)
{
	static const char format[] = "/sys/kernel/mm/transparent_hugepage/hugepages-%lukB/stats/%s";
	unsigned int i;
	char path[128];

	for (i = FIG_NR_ANON; i <= FIG_PARTIAL; i++) {
		snprintf(path, sizeof(path), format, (psize() >> 10) * (1UL << order),
			 figures[i].name);
		if (read_text(path))
			now.counters[i] += strtoll(truth.text, NULL, 10);
	}
}

static void read_counters(void)
{
	unsigned int i;

	memset(now.counters, 0, sizeof(now.counters));
	if (actor[KEEPER].pid)
		run(KEEPER, stir, 0, 0);
	if (global.cgroup)
		read_keys(cgroup_file("memory.stat"), memcg_keys, ARRAY_SIZE(memcg_keys));
	for (i = FIG_CG_ANON; i <= FIG_CG_ANON_THP; i++)
		now.counters[i] /= psize();
	if (!fold_vmstat())
		sleep(2);	/* and then the kernel has done it by itself */
	read_keys("/proc/vmstat", vmstat_keys, ARRAY_SIZE(vmstat_keys));
	read_sysfs_thp(MTHP_ORDER);
	read_sysfs_thp(sz2ord(global.pmd_size, psize()));
}

/* numa_maps leaves mapmax out where it is 1. */
static void read_proc(pid_t pid)
{
	static const struct key key = { "Pss:", FIG_ROLLUP };
	struct cell *cell = &now.cells[FIG_MAPMAX];
	char path[64], *text = truth.text, *line, *max;
	long long value;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	read_keys(path, &key, 1);
	snprintf(path, sizeof(path), "/proc/%d/numa_maps", pid);
	cell->unknown = !read_text(path);
	while ((line = next_line(&text))) {
		if (strtoul(line, NULL, 16) - truth.arena >= truth.arena_size ||
		    !strstr(line, "kernelpagesize_kB="))
			continue;
		max = strstr(line, " mapmax=");
		value = max ? strtoll(max + strlen(" mapmax="), NULL, 10) : 1;
		cell->said = MAX(cell->said, value);
	}
}

/* What it ought to say */

static struct bounds exactly(long long value)
{
	return (struct bounds) { value, value };
}

static long long kib(long long pages)
{
	return pages * (psize() >> 10);
}

static void add_true(unsigned int i, long long value, struct bounds b)
{
	now.cells[i].truth += value;
	now.cells[i].bounds.lo += b.lo;
	now.cells[i].bounds.hi += b.hi;
}

static void add_exact(unsigned int i, long long value)
{
	add_true(i, value, exactly(value));
}

static unsigned int page_count(const struct page *page)
{
	return page->ptes + page->pmds;
}

/* A folio, and what its mappings have in common */
struct view {
	const struct folio *folio;
	unsigned int creators;	/* PTEs, of A, which creates all anonymous folios */
	bool alone;		/* one process has all entries, and the kernel has to see that */
	bool in_full;		/* Pss is Rss */
	struct bounds mapped;	/* pages that the kernel takes for mapped */
};

/*
 * See mapcounts_nr_mapped(): all pages if a PMD maps the folio, else the number of PTEs;
 * for an anonymous folio, the PTEs of the creator or of all other MMs, if more. When A
 * has no PTEs any more, any other process or none can be known as the creator.
 */
static struct bounds estimate(const struct view *v)
{
	const struct folio *folio = v->folio;
	unsigned int most;

	if (folio->nr == 1 || folio->pmds || kernel != KERNEL_PACKED)
		return exactly(folio->pmds ? folio->nr : folio->mapped);
	if (!folio->anon)
		return exactly(MIN(folio->ptes, folio->nr));
	most = MIN(MAX(v->creators, folio->ptes - v->creators), folio->nr);
	return (struct bounds) { v->creators ? most : MIN(folio->least, most), most };
}

static void view_folio(struct view *v, const struct folio *folio)
{
	const struct mapping *m = &truth.map[folio->first_map], *first = m;
	const struct vma *vma = &truth.vma[m->vma];
	bool one_process = true, one_table = true;

	*v = (struct view) { .folio = folio };
	for (; m < first + folio->nr_map; m++) {
		v->creators += !m->pmd && truth.vma[m->vma].pid == actor[A].pid;
		one_process &= truth.vma[m->vma].pid == vma->pid;
		/* Each page at its place, in one page table */
		one_table &= !m->pmd && !((m->addr ^ first->addr) & ~(global.pmd_size - 1)) &&
			     m->addr - first->addr == (m->pfn - first->pfn) * psize();
	}
	v->alone = folio->ptes + folio->pmds == 1 ||
		   (one_process && (one_table || vma->pid == actor[A].pid));
	v->in_full = folio->ptes + (__u64)folio->pmds * folio->nr <= folio->nr;
	v->mapped = estimate(v);
}

static bool is_arena(const struct folio *folio)
{
	return truth.vma[truth.map[folio->first_map].vma].arena;
}

/* Of the machine and of our cgroup */
static void add_folio_counters(const struct view *v)
{
	const struct folio *folio = v->folio;
	const bool ours = global.cgroup && folio->cgroup == global.cgroup;
	const bool partial = folio->mapped < folio->nr;
	/* Else the kernel finds it only under memory pressure. */
	const bool certain = partial && !folio->pmds && folio->ptes < folio->nr;

	/* What the actors have beside the arena is small pages: not to be seen in the figure */
	if (ours && !is_arena(folio))
		now.cells[folio->anon ? FIG_CG_ANON : FIG_CG_FILE].said -= folio->mapped;
	else if (ours)
		add_true(folio->anon ? FIG_CG_ANON : FIG_CG_FILE, folio->mapped, v->mapped);
	if (folio->pmds && folio->anon) {
		add_exact(FIG_ANON_THP, 1);
		add_exact(FIG_CG_ANON_THP, ours * folio->nr);
	} else if (folio->pmds) {
		add_exact(folio->flags & KPF_SWAPBACKED ? FIG_SHMEM_PMD : FIG_FILE_PMD, 1);
	}
	if (folio->anon && folio->nr > 1) {
		add_exact(FIG_NR_ANON, 1);
		add_true(FIG_PARTIAL, partial, (struct bounds) { certain, partial });
	}
}

static bool is_touched(const char *begin, unsigned long addr)
{
	return begin && addr - (unsigned long)begin < now.touched;
}

/* All anonymous memory was written to, and what MADV_FREE has cleaned, again in part. */
static bool is_dirty(const struct folio *folio, const struct mapping *m)
{
	if (folio->flags & KPF_DIRTY)
		return true;
	return folio->anon && (folio->flags & KPF_SWAPBACKED || is_touched(now.written, m->addr));
}

static bool is_young(const struct folio *folio, const struct mapping *m)
{
	return folio->flags & KPF_REFERENCED ||
	       (truth.vma[m->vma].pid == now.toucher && is_touched(now.accessed, m->addr));
}

/* 1 if it has to, can count as private. What another process maps, too, cannot. */
static struct bounds private_bounds(const struct view *v, const struct page *page)
{
	if (v->folio->nr == 1 || now.kind == HUGETLB || kernel != KERNEL_PACKED)
		return exactly(page_count(page) == 1);
	return (struct bounds) { v->alone && v->in_full, page->owner != OWNER_MANY && v->in_full };
}

static void add_private(unsigned int private, unsigned int shared, bool truth, struct bounds b)
{
	add_true(private, kib(truth), (struct bounds) { kib(b.lo), kib(b.hi) });
	add_true(shared, kib(!truth), (struct bounds) { kib(1 - b.hi), kib(1 - b.lo) });
}

/* Return: whether it is dirty. */
static bool add_mapping_figures(const struct view *v, const struct mapping *m)
{
	const struct page *page = &truth.page[m->page];
	const struct folio *folio = v->folio;
	const struct bounds private = private_bounds(v, page);
	const bool once = page_count(page) == 1, dirty = is_dirty(folio, m);
	/* The kernel does not know that all mappings of a small page are of one process. */
	const bool only = folio->nr == 1 ? once : page->owner != OWNER_MANY;

	add_true(FIG_EXCLUSIVE, only, (struct bounds) { v->alone && only, only });
	now.cells[FIG_EXCLUSIVE].said += m->exclusive;
	now.cells[FIG_EXCLUSIVE].wrong += m->exclusive ? !only : v->alone && only;
	if (now.kind == HUGETLB) {
		add_private(SMAPS_HTLB_PRIVATE, SMAPS_HTLB_SHARED, once, private);
		return dirty;
	}
	add_private(SMAPS_PRIVATE, SMAPS_SHARED, once, private);
	if (dirty)
		add_private(SMAPS_PRIVATE_DIRTY, SMAPS_SHARED_DIRTY, once, private);
	add_exact(SMAPS_RSS, kib(1));
	add_exact(SMAPS_PMD, kib(m->pmd));
	add_exact(SMAPS_REFERENCED, kib(is_young(folio, m)));
	add_exact(SMAPS_ANON, kib(folio->anon));
	add_exact(SMAPS_LAZYFREE, kib(folio->anon && !(folio->flags & KPF_SWAPBACKED) && !dirty));
	add_exact(SMAPS_KSM, kib(!!(folio->flags & KPF_KSM)));
	return dirty;
}

/* The share of @nr mappings, of all that a folio has, in what counts as mapped */
static void add_pss(unsigned int i, const struct view *v, unsigned int nr, long long truth)
{
	const unsigned int all = v->folio->nr_map;
	const long long lo = kib(v->mapped.lo) * nr / all;
	const long long hi = (kib(v->mapped.hi) * nr + all - 1) / all;

	add_true(i, truth, (struct bounds) { lo, hi });
}

static void add_mappings(const struct view *v)
{
	const struct folio *folio = v->folio;
	const struct mapping *first = &truth.map[folio->first_map], *m;
	unsigned long long pss_dirty = 0;
	unsigned int dirty = 0, mapmax;

	for (m = first; m < first + folio->nr_map; m++) {
		if (!add_mapping_figures(v, m))
			continue;
		dirty++;
		pss_dirty += kib(1 << 12) / page_count(&truth.page[m->page]);
	}
	if (now.kind != HUGETLB) {
		add_pss(SMAPS_PSS, v, folio->nr_map, kib(folio->mapped));
		add_pss(SMAPS_PSS_DIRTY, v, dirty, (pss_dirty + (1 << 12) - 1) >> 12);
	}
	/* The average, rounded up; each hugetlb mapping covers every page. */
	mapmax = (folio->ptes + folio->nr - 1) / folio->nr + folio->pmds;
	now.cells[FIG_MAPMAX].truth = MAX(now.cells[FIG_MAPMAX].truth, mapmax);
}

/* Every page of a mapped folio is flagged as mapped, also where it is not. */
static void add_pages(const struct folio *folio)
{
	const __u64 mask = KPF_MMAP | KPF_ANON | KPF_HUGE | KPF_THP;
	struct cell *counts = &now.cells[FIG_KPAGECOUNT], *flags = &now.cells[FIG_KPAGEFLAGS];
	const struct page *page = &truth.page[folio->first], *end = page + folio->nr;
	const __u64 want = KPF_MMAP | (folio->anon ? KPF_ANON : 0) |
			   (folio->nr == 1 ? 0 : now.kind == HUGETLB ? KPF_HUGE : KPF_THP);

	for (; page < end; page++) {
		counts->said += page->kcount;
		counts->truth += page_count(page);
		counts->wrong += page->kcount != page_count(page);
		flags->said += (page->kflags & mask) == want;
		flags->truth++;
	}
}

/* To read on behind a folio says the same as to begin there. */
static void read_across(const struct folio *folio)
{
	const __u64 end = folio->pfn + folio->nr;
	__u64 across[2 * EDGE], behind[EDGE];
	unsigned int i;

	if (folio->nr < EDGE)
		return;
	kpage_read(truth.kpagecount, end - EDGE, 2 * EDGE, across);
	kpage_read(truth.kpagecount, end, EDGE, behind);
	now.cells[FIG_KPAGECOUNT].wrong += !!memcmp(across + EDGE, behind, sizeof(behind));
	for (i = 0; i < EDGE; i++)
		now.cells[FIG_KPAGECOUNT].wrong +=
			across[i] != truth.page[folio->first + folio->nr - EDGE + i].kcount;
}

static void add_folio_figures(const struct folio *folio)
{
	struct view v;

	if (folio->flags & KPF_ZERO_PAGE)
		return;
	view_folio(&v, folio);
	if (!(folio->flags & KPF_HUGE))
		add_folio_counters(&v);
	if (!is_arena(folio))
		return;
	now.large += folio->nr > 1;
	now.small += folio->nr == 1;
	add_mappings(&v);
	add_pages(folio);
	read_across(folio);
}

/* No process has more to itself than its share, or a share of more than it maps. */
static void add_vma_figures(const struct vma *vma)
{
	static const unsigned int rounded[] = { SMAPS_PSS, SMAPS_PSS_DIRTY, SMAPS_SWAP_PSS };
	unsigned int i;

	/* All of it is rounded down once, and the parts were each. */
	add_exact(FIG_ROLLUP, vma->kib[SMAPS_PSS] + 1);
	now.cells[FIG_ROLLUP].rounding++;
	if (!vma->arena)
		return;
	for (i = 0; i < ALL_SMAPS; i++)
		now.cells[i].said += vma->kib[i];
	for (i = 0; i < ARRAY_SIZE(rounded); i++)
		now.cells[rounded[i]].rounding++;
	now.cells[SMAPS_PSS].wrong += kernel == KERNEL_PACKED &&
		(vma->kib[SMAPS_PSS] < vma->kib[SMAPS_PRIVATE] ||
		 vma->kib[SMAPS_PSS] > vma->kib[SMAPS_RSS]);
}

/* Fill the cells. */
static void look(void)
{
	const struct vma *vma;
	unsigned int i;

	truth_reset();
	for (i = A; i < MAX_ACTORS; i++)
		if (actor[i].pid)
			scan_proc(actor[i].pid);
	count_all();
	read_counters();
	memset(now.cells, 0, sizeof(now.cells));
	now.large = 0;
	now.small = 0;
	for (i = A; i < MAX_ACTORS; i++)
		if (actor[i].pid)
			read_proc(actor[i].pid);
	for (vma = truth.vma; vma < &truth.vma[truth.nr_vmas]; vma++)
		add_vma_figures(vma);
	for (i = 0; i < truth.nr_folios; i++)
		add_folio_figures(&truth.folio[i]);
	add_exact(SMAPS_SWAP, kib(truth.nr_swap));
	for (i = 0; i < truth.nr_swap; i++)
		add_exact(SMAPS_SWAP_PSS, kib(!i || truth.swap[i] != truth.swap[i - 1]));
	now.cells[FIG_ROLLUP].said = now.counters[FIG_ROLLUP];
	for (i = FIG_CG_ANON; i < NR_FIGURES; i++)
		now.cells[i].said += now.counters[i] - now.before[i];
	for (i = FIG_CG_ANON; i <= FIG_CG_ANON_THP; i++)
		now.cells[i].unknown = !global.cgroup;
	/* The cgroup knows without others on the machine. */
	now.cells[FIG_ANON].unknown = true;
	now.cells[FIG_FILE].unknown = true;
	/* What is swapped out may still be written. */
	now.cells[FIG_NR_ANON].unknown = truth.nr_swap;
	now.cells[FIG_PARTIAL].unknown = truth.nr_swap;
	now.cells[SMAPS_REFERENCED].unknown = now.toucher < 0;
}

static bool within(const struct cell *cell, long long lo, long long hi)
{
	return !cell->wrong && cell->said >= lo - (long long)cell->rounding && cell->said <= hi;
}

static bool is_fine(enum figure i)
{
	const struct cell *cell = &now.cells[i];

	switch (figures[i].rule[kernel]) {
	case EXACT:
		return within(cell, cell->truth, cell->truth);
	case BETWEEN:
		return within(cell, cell->bounds.lo, cell->bounds.hi);
	default:
		return true;
	}
}

static unsigned int count_wrong(void)
{
	unsigned int i, wrong = 0;

	for (i = 0; i < NR_FIGURES; i++)
		wrong += !now.cells[i].unknown && !is_fine(i);
	return wrong;
}

/* For people, and for scripts/stats */
static void print_figures(void)
{
	unsigned int i;

	for (i = 0; i < NR_FIGURES; i++) {
		const struct cell *c = &now.cells[i];
		const bool exact = figures[i].rule[kernel] == EXACT, fine = is_fine(i);

		if (c->unknown || (!c->said && !c->truth) || (fine && !global.verbose))
			continue;
		printf("#   %-24s %8lld %-8s true: %8lld  %s", figures[i].name, c->said,
		       figures[i].unit, c->truth,
		       !fine ? "WRONG" : within(c, c->truth, c->truth) ? "ok" : "differs");
		if (!fine)
			printf(", has to be %lld to %lld", exact ? c->truth : c->bounds.lo,
			       exact ? c->truth : c->bounds.hi);
		if (c->wrong)
			printf(", wrong in %u places", c->wrong);
		printf("\n");
	}
}

/* Compare all figures. Again, if something is wrong: the look may itself change memory. */
static unsigned int check(const char *title)
{
	unsigned int tries, i, wrong = 1;

	for (tries = 0; wrong && tries < NR_TRIES; tries++) {
		if (tries)
			usleep(TRY_US);
		look();
		wrong = count_wrong();
	}
	if (wrong || global.verbose) {
		printf("# %s\n", title);
		print_figures();
	}
	for (i = 0; i < NR_FIGURES; i++)
		global.total->checks += !now.cells[i].unknown && figures[i].rule[kernel] != SHOW;
	global.total->wrong += wrong;
	fflush(stdout);
	return wrong;
}

static bool pmd_fits(void)
{
	size_t size = read_pmd_pagesize();

	return size >= MIN_PMD_PAGES * psize() && size <= MAX_PMD_SIZE;
}

static const char *open_file(void)
{
	char path[PATH_MAX];
	struct statfs fs;

	if (!statfs(now.dir, &fs) && fs.f_type == TMPFS_MAGIC)
		return "a tmpfs has no page cache: FOLIO_STATS_DIRS=(an ext4 or xfs)";
	snprintf(path, sizeof(path), "%s/folio_stats.XXXXXX", now.dir);
	now.fd = mkstemp(path);
	unlink(path);
	return now.fd < 0 ? "cannot create a file: FOLIO_STATS_DIRS=(an ext4 or xfs)" : NULL;
}

static const char *open_memfd(void)
{
	now.fd = syscall(__NR_memfd_create, "folio_stats", 0);
	return now.fd < 0 || ftruncate(now.fd, now.size) ? "no memfd_create()" : NULL;
}

/* Return: why this scene cannot be had, or NULL. */
static const char *prepare(void)
{
	const unsigned long orders = thp_available() ? thp_supported_orders() : 0;

	now.size = now.kind <= MTHP ? 64 * psize() : global.pmd_size;
	now.toucher = -1;
	if (now.kind <= SMALL_SHMEM)
		return now.kind == SMALL ? NULL : open_memfd();
	if (now.kind == KSM)
		return access(KSM_RUN, W_OK) ? "no KSM" : NULL;
	if (now.kind == PAGECACHE)
		return open_file();
	if (now.kind == HUGETLB)
		return default_huge_page_size() == global.pmd_size &&
		       hugetlb_free_default_pages() >= 2 ? NULL :
			"no two hugetlb folios of PMD size to be had";
	if (!orders)
		return "no transparent huge pages";
	if (now.kind == MTHP)
		return orders & (1UL << MTHP_ORDER) ? NULL : "no folios of 16 pages here";
	if (!pmd_fits())
		return "a PMD maps too much or too little here";
	return now.kind == SHMEM ? open_memfd() : NULL;
}

static const char *unfit(void)
{
	unsigned int nr = 0, i;

	if (now.kind <= KSM)
		return NULL;
	for (i = 0; i < truth.nr_folios; i++)
		if (is_arena(&truth.folio[i]))
			nr = MAX(nr, truth.folio[i].nr);
	if (now.kind == PAGECACHE)
		return nr > 1 ? NULL : "no large folios on that file system";
	return nr == (now.kind == MTHP ? 1 << MTHP_ORDER : global.pmd_pages) ? NULL :
		"no folio of that size to be had";
}

/* Afterwards, ksmd rests. */
static const char *merge(void)
{
	int tries;

	look();
	for (tries = 0; now.small > 1 && tries < NR_MERGES; tries++) {
		ksm_start();
		look();
	}
	put(KSM_RUN, "0");
	return now.small > 1 ? "KSM merges too slowly" : NULL;
}

/* Once it answers, it has its own copies of what it writes to. */
static void make_child(int parent, int child)
{
	static const struct step nothing = { END }, join = { JOIN };

	spawn(parent, child);
	if (run(child, act, (long)(child == KEEPER ? &join : &nothing), 0))
		die("cannot join the cgroup, or fill the file");
}

static void do_op(const struct step *step, int who)
{
	const char *to;

	if (step->op == EXIT)
		quit(who);
	for (to = step->to ?: ""; *to; to++)
		make_child(who, A + *to - 'A');
	if (step->op != EXIT && step->op != FORK && run(who, act, (long)step, 0))
		die("%s %s: no", step->who, verbs[step->op]);
	if (step->op != FREE && step->op != FORGET && step->op != WRITE && step->op != READ)
		return;
	now.written = step->op == WRITE ? slot(0) + step_offset(step) : NULL;
	now.accessed = step->op >= FREE ? NULL : slot(0) + step_offset(step);
	now.touched = step_length(step);
	if (step->op == FORGET || now.toucher >= 0)
		now.toucher = actor[who].pid;
}

static void print_title(char *title, size_t size, const char *scene, const struct step *step)
{
	char range[32] = "";

	if (step->len)
		snprintf(range, sizeof(range), " %u to %u of 64", step->at, step->at + step->len);
	snprintf(title, size, "%s: %s %s%s%s%s%s%s", scene, step->who, verbs[step->op], range,
		 step->to ? " " : "", step->to ?: "", step->label ? " == " : "", step->label ?: "");
}

/* Return: why it ends early, or NULL. */
static const char *play(const char *name, const struct step *step, unsigned int *wrong)
{
	const char *why = prepare(), *who;
	unsigned int large, i;
	char title[256];

	if (why)
		return why;
	memset(now.before, 0, sizeof(now.before));
	make_child(SELF, KEEPER);
	make_child(KEEPER, A);
	look();
	for (i = FIG_ANON; i < NR_FIGURES; i++)
		now.before[i] = now.cells[i].said - now.cells[i].truth;
	for (i = 0; i < MAX_STEPS && step->op != END; i++, step++) {
		large = now.large;
		for (who = step->who; step->op != MERGE && *who; who++)
			do_op(step, A + *who - 'A');
		why = step->op == MERGE ? merge() : NULL;
		if (why)
			return why;
		print_title(title, sizeof(title), name, step);
		*wrong += check(title);
		why = i ? NULL : unfit();
		if (why)
			return why;
		if (step->whole && now.large != large) {
			printf("# %s: a folio was split\n", title);
			(*wrong)++;
		}
	}
	return NULL;
}

/* Return: as play(). Afterwards, all has to be as before. */
static const char *play_scene(const char *variant, const struct step *steps, unsigned int *wrong)
{
	char name[64], title[96];
	const char *why;
	int i;

	snprintf(name, sizeof(name), "%s%s%s", variant, now.dir ? ":" : "",
		 now.dir ? basename(now.dir) : "");
	why = play(name, steps, wrong);
	for (i = A; i < KEEPER; i++)
		if (actor[i].pid)
			quit(i);
	if (now.fd >= 0)
		close(now.fd);
	now.fd = -1;
	snprintf(title, sizeof(title), "%s: everything exits", name);
	if (!why)
		*wrong += check(title);
	kill_actors();
	return why;
}

FIXTURE(scene)
{
};

FIXTURE_VARIANT(scene)
{
	const char *name;
	enum kind kind;
	const struct step *steps;
};

FIXTURE_SETUP(scene)
{
	const char *why = truth_setup(global.pmd_pages, (unsigned long)global.arena,
				      2 * global.pmd_size);

	if (why)
		SKIP(return, "%s", why);
	make_actors();
}

FIXTURE_TEARDOWN(scene)
{
}

TEST_F_TIMEOUT(scene, play, 240)
{
	char *dirs = strdup(getenv("FOLIO_STATS_DIRS") ?: "/tmp");
	unsigned int wrong = 0, played = 0;
	const char *why = NULL;

	now.kind = variant->kind;
	now.dir = now.kind == PAGECACHE ? strtok(dirs, ":") : NULL;
	do {
		why = play_scene(variant->name, variant->steps, &wrong);
		played += !why;
		now.dir = now.kind == PAGECACHE ? strtok(NULL, ":") : NULL;
	} while (now.dir);
	EXPECT_EQ(wrong, 0);
	if (!played)
		SKIP(return, "%s", why);
}

#define A_SCENE(_name, _kind, ...) \
	static const struct step _name##_steps[MAX_STEPS] = { __VA_ARGS__ }; \
	FIXTURE_VARIANT_ADD(scene, _name) { #_name, _kind, _name##_steps }

A_SCENE(small, SMALL,
	{ MAP, "A" }, { FORK, "A", .to = "B" }, { WRITE, "B", 8, 1 },
	{ UNMAP, "A", 48, 16 }, { EXIT, "B" });

A_SCENE(small_shmem, SMALL_SHMEM,
	{ MAP, "A" }, { FORK, "A", .to = "B" }, { READ, "B" }, { TWICE, "A" },
	{ UNMAP, "A", 8, 16 }, { EXIT, "B" });

A_SCENE(thp_pmd, THP,
	{ MAP, "A", .label = "THP by a PMD, 1 process" },
	{ FORK, "A", .to = "B", .label = "THP by PMDs, 2 processes" },
	{ FORK, "A", .to = "CD", .label = "THP by PMDs, 4 processes" },
	{ EXIT, "CD" },
	{ PTES, "B", .label = "THP by a PMD, and by PTEs of another" },
	{ UNMAP, "B", 2, 62, .label = "THP by a PMD, 16 of 512 by PTEs of another" });

/* A grandchild from PTEs; the middle of the family goes first. */
A_SCENE(thp_family, THP,
	{ MAP, "A" }, { FORK, "A", .to = "B" }, { UNMAP, "B", 0, 16 },
	{ FORK, "B", .to = "C" }, { WRITE, "C", 32, 1 }, { PROTECT, "A", 40, 1 },
	{ EXIT, "B" }, { MOVE, "A", 30, 4 }, { DROP, "C", 48, 8 }, { EXIT, "C" },
	{ WRITE, "A", 4, 2 }, { UNMAP, "A", 0, 32 });

A_SCENE(thp_pte, THP,
	{ MAP, "A" },
	{ PTES, "A", .label = "THP by PTEs, 1 process" },
	{ FORK, "A", .to = "B", .label = "THP by PTEs, 2 processes" },
	{ FORK, "A", .to = "CD", .label = "THP by PTEs, 4 processes" },
	{ EXIT, "D" }, { DROP, "A", 0, 16 }, { UNMAP, "B", 48, 16 },
	{ WRITE, "C", 20, 4 }, { EXIT, "A" }, { MOVE, "C", 30, 4 }, { EXIT, "B" },
	{ WRITE, "C", 56, 8 });

A_SCENE(thp_orphan, THP,
	{ MAP, "A" }, { PTES, "A" }, { FORK, "A", .to = "B" },
	{ EXIT, "A", .label = "THP by PTEs, parent gone: the child" });

A_SCENE(thp_half, THP,
	{ MAP, "A" },
	{ UNMAP, "A", 32, 32, .label = "half of a THP, 1 process" },
	{ UNMAP, "A", 2, 30, .label = "16 of 512 pages of a THP, 1 process" },
	{ FORK, "A", .to = CHILDREN, .label = "the same 16 of 512 of a THP, 4 processes" });

A_SCENE(thp_halves, THP,
	{ MAP, "A" }, { FORK, "A", .to = "B" }, { UNMAP, "A", 32, 32 },
	{ UNMAP, "B", 0, 32, .label = "parent one half of a THP, child the other" });

A_SCENE(thp_same_half, THP,
	{ MAP, "A" }, { FORK, "A", .to = "B" }, { UNMAP, "A", 32, 32 },
	{ UNMAP, "B", 32, 32, .label = "parent and child the same half of a THP" });

/* Clean and old entries, but some: whole contpte blocks, which have one bit for all */
A_SCENE(thp_lazyfree, THP,
	{ MAP, "A" }, { PTES, "A" }, { FREE, "A" }, { FORGET, "A" },
	{ WRITE, "A", 8, 2 }, { FORK, "A", .to = "B" });

/* To drop, and to read again, leaves zero pages, by special entries. */
A_SCENE(mthp, MTHP,
	{ MAP, "A", .label = "folios of 16 pages, 1 process" },
	{ FORK, "A", .to = CHILDREN, .label = "folios of 16 pages, 4 processes" },
	{ EXIT, "D" }, { WRITE, "B", 8, 1 }, { MOVE, "A", 12, 8 },
	{ FORK, "A", .to = "D" }, { UNMAP, "B", 24, 16 }, { DROP, "A", 36, 6 },
	{ READ, "A", 36, 6 }, { PROTECT, "D", 60, 1 }, { EXIT, "A" }, { EXIT, "B" },
	{ WRITE, "D", 0, 12 });

A_SCENE(mthp_advice, MTHP,
	{ MAP, "A" }, { FORK, "A", .to = "B" }, { FREE, "A", 4, 4, .whole = true },
	{ PAGEOUT, "A", 20, 4, .whole = true }, { EXIT, "A" }, { PAGEOUT, "B", 40, 4 });

A_SCENE(mthp_swap, MTHP,
	{ MAP, "A" }, { PAGEOUT, "A" }, { FORK, "A", .to = "B" },
	{ FORK, "A", .to = "C" });

A_SCENE(mthp_save, MTHP,
	{ MAP, "A" }, { FORK, "A", .to = "B" }, { WRITE, "A", 3, 9 }, { EXIT, "B" },
	{ FORK, "A", .to = "B" }, { WRITE, "A", 20, 7 }, { EXIT, "B" },
	{ FORK, "A", .to = "B" }, { WRITE, "A", 33, 12 }, { EXIT, "B" },
	{ FORK, "A", .to = "B", .label = "4th BGSAVE of a parent that writes, 16 pages" },
	{ FORK, "A", .to = "C" });

A_SCENE(thp_save, THP,
	{ MAP, "A" }, { FORK, "A", .to = "B" }, { WRITE, "A", 8, 12 }, { EXIT, "B" },
	{ FORK, "A", .to = "B" },
	{ WRITE, "A", 32, 6, .label = "2nd BGSAVE of a parent that writes, THP" });

A_SCENE(mthp_workers, MTHP,
	{ MAP, "A" }, { FORK, "A", .to = "B" }, { WRITE, "A", 2, 8 }, { EXIT, "B" },
	{ FORK, "A", .to = "BCDE" },
	{ WRITE, "BCDE", 12, 20, .label = "4 workers write, and their parent did" });

/* To make a part read-only drops the PMD; then back by PTEs, beside B's PMD */
A_SCENE(shmem, SHMEM,
	{ MAP, "A", .label = "shmem by a PMD, 1 process" },
	{ FORK, "A", .to = CHILDREN },
	{ READ, CHILDREN, .label = "shmem by PMDs, 4 processes" },
	{ EXIT, "CD" }, { PROTECT, "A", 40, 1 }, { READ, "A" }, { TWICE, "A" },
	{ UNMAP, "B", 0, 32 }, { READ, "B", 32, 24 }, { DROP, "A", 44, 8 },
	{ EXIT, "B" }, { EXIT, "A" });

A_SCENE(shmem_pte, SHMEM,
	{ MAP_PTES, "A", .label = "shmem by PTEs, 1 process" },
	{ FORK, "A", .to = CHILDREN },
	{ READ, CHILDREN, .label = "shmem by PTEs, 4 processes" });

A_SCENE(shmem_mix, SHMEM,
	{ MAP, "A" }, { FORK, "A", .to = "B" },
	{ MAP_PTES, "B", 0, 2, .label = "shmem by a PMD, 16 of 512 by PTEs of another" });

A_SCENE(file, PAGECACHE,
	{ MAP, "A" }, { FORK, "A", .to = "B" }, { READ, "B", 0, 32 },
	{ WRITE, "B", 8, 2 }, { READ, "B" }, { FORK, "B", .to = "C" }, { TWICE, "A" },
	{ UNMAP, "A", 16, 8 }, { MOVE, "C", 30, 4 }, { EXIT, "B" });

A_SCENE(file_pte, PAGECACHE,
	{ MAP_PTES, "A", .label = "file, 1 process" },
	{ FORK, "A", .to = CHILDREN },
	{ READ, CHILDREN, .label = "file, 4 processes" });

A_SCENE(file_pmd, PAGECACHE,
	{ MAP, "A" }, { FORK, "A", .to = "B" },
	{ READ, "B", .label = "file, 2 processes, by PMDs if possible" });

A_SCENE(file_16, PAGECACHE,
	{ MAP_PTES, "A", 0, 2, .label = "16 of 512 file pages, 1 process" },
	{ FORK, "A", .to = CHILDREN },
	{ READ, CHILDREN, 0, 2, .label = "the same 16 of 512 file pages, 4 processes" });

A_SCENE(file_halves, PAGECACHE,
	{ MAP_PTES, "A", 0, 32 }, { FORK, "A", .to = "B" },
	{ MAP_PTES, "B", 32, 32, .label = "one half of a file each, 2 processes" });

A_SCENE(file_twice, PAGECACHE,
	{ MAP_PTES, "A" },
	{ TWICE, "A", .label = "a file twice, 1 process" });

A_SCENE(file_16_twice, PAGECACHE,
	{ MAP_PTES, "A", 0, 2 },
	{ TWICE, "A", 0, 2, .label = "16 of 512 file pages twice, 1 process" });

A_SCENE(ksm, KSM,
	{ MAP, "A" }, { FORK, "A", .to = "B" },
	{ MERGE, "they", .label = "small pages merged by KSM, 2 processes" });

/* To write to a part copies all of it. */
A_SCENE(hugetlb, HUGETLB,
	{ MAP, "A", .label = "hugetlb, 1 process" },
	{ FORK, "A", .to = "B", .label = "hugetlb, 2 processes" },
	{ FORK, "B", .to = "C" }, { WRITE, "C", 0, 1 }, { EXIT, "A" }, { EXIT, "B" });

static bool drifted(const long long *before)
{
	unsigned int i;

	for (i = FIG_CG_ANON; i < NR_FIGURES; i++)
		if (llabs(now.counters[i] - before[i]) >
		    (i == FIG_ANON || i == FIG_FILE ? DRIFT_SLACK : 0))
			return true;
	return false;
}

/*
 * What the command maps is charged to the cgroup, unless it makes one of its own, and
 * is all unmapped in the end. Of the machine, others map and unmap memory, too.
 */
static int run_command(char **argv)
{
	long long before[NR_FIGURES];
	unsigned int tries = 0, i;
	int status;
	pid_t pid;

	read_counters();
	memcpy(before, now.counters, sizeof(before));
	pid = fork();
	if (!pid) {
		if (!global.cgroup || put(cgroup_file("cgroup.procs"), "0"))
			execvp(argv[0], argv);
		perror(argv[0]);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		die("running the command: %s", strerror(errno));
	for (read_counters(); drifted(before) && ++tries < DRIFT_TRIES; read_counters())
		usleep(DRIFT_US);
	printf("# the statistics are %s before the command\n",
	       tries < DRIFT_TRIES ? "what they were" : "NOT what they were");
	for (i = FIG_CG_ANON; i < NR_FIGURES; i++)
		printf("#   %-24s %10lld before %10lld after%s\n", figures[i].name, before[i],
		       now.counters[i], now.counters[i] == before[i] ? "" : "  <--");
	status = WIFEXITED(status) ? WEXITSTATUS(status) : KSFT_FAIL;
	return status ?: tries < DRIFT_TRIES ? KSFT_PASS : KSFT_FAIL;
}

/* Trusts the configuration, not what the kernel says, which may be wrong. */
static enum kernel find_kernel(void)
{
	if (read_key("/proc/vmstat", "thp_cow_adopt") >= 0)
		return KERNEL_PACKED;
	return has_config("CONFIG_NO_PAGE_MAPCOUNT") ? KERNEL_AVERAGES : KERNEL_PAGES;
}

/* Huge pages on request only, of the sizes of the scenes; no khugepaged. */
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
	park_khugepaged();
}

static void setup_memory(void)
{
	char *mem;

	global.pmd_size = read_pmd_pagesize();
	if (!pmd_fits())
		global.pmd_size = MAX(2UL << 20, MIN_PMD_PAGES * psize());
	global.pmd_pages = global.pmd_size / psize();
	mem = mmap(NULL, 4 * global.pmd_size, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	global.arena = (char *)(((uintptr_t)mem + global.pmd_size - 1) & ~(global.pmd_size - 1));
	/* The slot of SELF is for writing. */
	mprotect(slot(2), global.pmd_size, PROT_READ | PROT_WRITE);
	madvise(slot(2), global.pmd_size, MADV_NOHUGEPAGE);
}

/* The keeper, with all actors, and the command join the cgroup. This process does not stay. */
static void setup_cgroup(void)
{
	struct stat st;

	if (!cgroup_enter("folio_stats"))
		return;
	put(cgroup.home, "0");
	if (!stat(cgroup.dir, &st))
		global.cgroup = st.st_ino;
}

static void finish(void)
{
	if (getpid() != global.pid)
		return;
	cgroup_leave();
	if (global.total->checks)
		printf("# %lu of %lu figures agree\n",
		       global.total->checks - global.total->wrong, global.total->checks);
}

int main(int argc, char **argv)
{
	const bool command = argc > 2 && !strcmp(argv[1], "--");

	if (geteuid())
		ksft_exit_skip("needs root\n");
	global.pid = getpid();
	global.verbose = getenv("FOLIO_STATS_VERBOSE");
	global.total = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			    -1, 0);
	truth.text = alloc_private(TEXT_SIZE);
	kernel = find_kernel();
	/* Fault in all of the program, so that the cgroup is charged for none of it. */
	mlockall(MCL_CURRENT);
	munlockall();
	setup_memory();
	atexit(finish);
	setup_cgroup();
	if (command)
		return run_command(argv + 2);
	keep(KSM_RUN);
	setup_thp();
	hugetlb_setup_default(2);
	return test_harness_run(argc, argv);
}
