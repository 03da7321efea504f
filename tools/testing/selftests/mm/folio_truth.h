/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A snapshot of all mappings of some or all processes: what their page tables say, folio
 * by folio, and beside it what smaps and /proc/kpage* say. It is consistent only if
 * nothing moves meanwhile: look again if in doubt.
 */
#ifndef __FOLIO_TRUTH_H__
#define __FOLIO_TRUTH_H__

#include <ctype.h>
#include <dirent.h>
#include <malloc.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include "folio_util.h"

/* Of all processes of a system; for a few, a program can do with less. */
#ifndef MAX_MAP
#define MAX_MAP		(512 * 1024)
#endif
#define MAX_VMAS	(MAX_MAP / 32)
#define MAX_PROCS	512
#define TEXT_SIZE	(16 * MAX_MAP)

enum smaps {
	SMAPS_RSS, SMAPS_PSS, SMAPS_PRIVATE, SMAPS_SHARED, SMAPS_PMD, SMAPS_HTLB_PRIVATE,
	SMAPS_HTLB_SHARED, NR_SMAPS,
	/* Beyond what page tables say: */
	SMAPS_PRIVATE_DIRTY = NR_SMAPS, SMAPS_SHARED_DIRTY, SMAPS_PSS_DIRTY, SMAPS_REFERENCED,
	SMAPS_ANON, SMAPS_LAZYFREE, SMAPS_KSM, SMAPS_SWAP, SMAPS_SWAP_PSS, ALL_SMAPS,
};

/* A line "KEY VALUE" of a file: the value is added to sum[index]. */
struct key {
	const char *key;
	unsigned int index;
};

static const struct key smaps_keys[] = {
	{ "Rss:", SMAPS_RSS }, { "Pss:", SMAPS_PSS }, { "Pss_Dirty:", SMAPS_PSS_DIRTY },
	{ "Private_Clean:", SMAPS_PRIVATE }, { "Private_Dirty:", SMAPS_PRIVATE },
	{ "Shared_Clean:", SMAPS_SHARED }, { "Shared_Dirty:", SMAPS_SHARED },
	{ "Private_Dirty:", SMAPS_PRIVATE_DIRTY }, { "Shared_Dirty:", SMAPS_SHARED_DIRTY },
	{ "AnonHugePages:", SMAPS_PMD }, { "ShmemPmdMapped:", SMAPS_PMD },
	{ "FilePmdMapped:", SMAPS_PMD }, { "Private_Hugetlb:", SMAPS_HTLB_PRIVATE },
	{ "Shared_Hugetlb:", SMAPS_HTLB_SHARED }, { "Referenced:", SMAPS_REFERENCED },
	{ "Anonymous:", SMAPS_ANON }, { "LazyFree:", SMAPS_LAZYFREE }, { "KSM:", SMAPS_KSM },
	{ "Swap:", SMAPS_SWAP }, { "SwapPss:", SMAPS_SWAP_PSS },
};

struct bounds {
	long long lo, hi;
};

struct vma {
	unsigned long start, end;
	pid_t pid;
	unsigned short proc;
	bool arena;			/* of the memory that the test maps */
	bool special;			/* maps no folios: [vvar] and the like */
	long long kib[ALL_SMAPS];	/* according to the kernel */
	struct bounds sum[ALL_SMAPS];	/* for the test, to compare */
};

/* One present page table entry, or one page of the many that a PMD maps. */
struct mapping {
	__u64 pfn;
	unsigned long addr;
	unsigned int page;	/* in truth.page */
	unsigned short vma;	/* in truth.vma */
	bool pmd;		/* or a hugetlb entry */
	bool file;
	bool exclusive;		/* according to the kernel: bit 56 */
};

struct folio {
	__u64 pfn, flags, cgroup;
	unsigned int nr, ptes, pmds;
	unsigned int mapped;	/* distinct pages */
	unsigned int first;	/* page in truth.page */
	unsigned int first_map;	/* mapping in truth.map, which is sorted */
	unsigned int nr_map;
	unsigned int least;	/* PTEs of one process, or all others, if these are more */
	bool anon;
};

#define OWNER_MANY	0xffff

struct page {
	__u64 kcount, kflags;	/* according to the kernel */
	unsigned int folio;	/* in truth.folio */
	unsigned int ptes, pmds;
	unsigned short owner;	/* 1 + the one process that maps it, or OWNER_MANY */
};

static struct truth {
	struct vma *vma;
	struct mapping *map;
	struct page *page;
	struct folio *folio;
	__u64 *swap;		/* entries in the arena, sorted */
	unsigned int nr_procs, nr_vmas, nr_map, nr_pages, nr_folios, nr_swap;

	unsigned long arena, arena_size;
	unsigned int block_pages;	/* of a PMD */
	int kpagecount, kpageflags, kpagecgroup;
	DIR *proc;		/* always open, as to free its memory would disturb */
	char *text;
	__u64 *kbuf;
	__u64 *kflags, flags_pfn;	/* of the block of pages there */
} truth;

static inline void check_room(unsigned int nr, unsigned int max)
{
	if (nr <= max)
		return;
	ksft_print_msg("too much is mapped on this system\n");
	fflush(stdout);
	_exit(KSFT_SKIP);
}

/* Returns false if the file is not there; stdio would allocate memory. */
static inline bool read_text(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t ret;

	while ((ret = read(fd, truth.text + len, TEXT_SIZE - 1 - len)) > 0)
		len += ret;
	close(fd);
	truth.text[len] = '\0';
	return ret >= 0;
}

static inline char *next_line(char **text)
{
	char *line = strsep(text, "\n");

	return line && *line ? line : NULL;
}

static inline void add_value(const char *line, const struct key *keys, unsigned int nr,
			     long long *sum)
{
	unsigned int i;
	size_t len;

	for (i = 0; i < nr; i++) {
		len = strlen(keys[i].key);
		if (*line == *keys[i].key && !strncmp(line, keys[i].key, len))
			sum[keys[i].index] += strtoll(line + len, NULL, 10);
	}
}

static inline struct vma *add_vma(pid_t pid, const char *line)
{
	struct vma *vma = &truth.vma[truth.nr_vmas++];

	check_room(truth.nr_vmas, MAX_VMAS);
	*vma = (struct vma) { .pid = pid, .proc = truth.nr_procs };
	if (sscanf(line, "%lx-%lx", &vma->start, &vma->end) < 2)
		die("cannot parse smaps: %s", line);
	vma->arena = vma->start - truth.arena < truth.arena_size;
	vma->special = strstr(line, " [vv") || strstr(line, " [vs");
	return vma;
}

static inline void read_smaps(pid_t pid)
{
	char path[64], *text = truth.text, *line;
	struct vma *vma = NULL;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	if (!read_text(path))
		return;
	while ((line = next_line(&text))) {
		if (!isupper(line[0]))
			vma = add_vma(pid, line);
		else
			add_value(line, smaps_keys, ARRAY_SIZE(smaps_keys), vma->kib);
		if (!strncmp(line, "VmFlags:", 8) && strstr(line, " pf"))
			vma->special = true;
	}
}

static inline void kpage_read(int fd, __u64 pfn, unsigned int nr, __u64 *buf)
{
	memset(buf, 0, nr * sizeof(*buf));
	if (fd >= 0 && pread(fd, buf, nr * sizeof(*buf), pfn * sizeof(*buf)) < 0)
		die("reading /proc/kpage*: %s", strerror(errno));
}

static inline void add_mapping(const struct vma *vma, unsigned long addr, __u64 entry)
{
	if (vma->arena && entry & PM_SWAP) {
		check_room(truth.nr_swap + 1, MAX_MAP);
		truth.swap[truth.nr_swap++] = entry & ((1ULL << 55) - 1);
	}
	if (!PAGEMAP_PRESENT(entry))
		return;
	check_room(truth.nr_map + 1, MAX_MAP);
	truth.map[truth.nr_map++] = (struct mapping) {
		.pfn = PAGEMAP_PFN(entry),
		.addr = addr,
		.vma = vma - truth.vma,
		.file = entry & PM_FILE,
		.exclusive = entry & PM_MMAP_EXCLUSIVE,
	};
}

static inline void scan_pagemap(const struct vma *vma, int fd)
{
	unsigned long addr = vma->start;
	unsigned int nr, i;
	ssize_t len = 1;

	/* If the process is gone, there will be another look. */
	for (; addr < vma->end && len > 0; addr += nr * psize()) {
		nr = MIN((vma->end - addr) / psize(), truth.block_pages);
		len = pread(fd, truth.kbuf, nr * sizeof(__u64),
			    (off_t)(addr / psize()) * sizeof(__u64));
		for (i = 0; i < nr && i * (ssize_t)sizeof(__u64) < len; i++)
			add_mapping(vma, addr + i * psize(), truth.kbuf[i]);
	}
}

/* Only PAGEMAP_SCAN tells which pages a PMD (or a hugetlb entry) maps. */
static inline void scan_huge(const struct vma *vma, int fd, unsigned int first)
{
	struct page_region vec[64];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = vma->start,
		.end = vma->end,
		.vec = (uintptr_t)vec,
		.vec_len = ARRAY_SIZE(vec),
		.category_mask = PAGE_IS_HUGE | PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_HUGE,
	};
	int nr = ioctl(fd, PAGEMAP_SCAN, &arg), r = 0;

	for (; r < nr && first < truth.nr_map; first++) {
		while (r < nr && truth.map[first].addr >= vec[r].end)
			r++;
		truth.map[first].pmd = r < nr && truth.map[first].addr >= vec[r].start;
	}
}

/* Of the memory that is not the test's, the kernel is trusted on "empty". */
static inline bool worth_scanning(const struct vma *vma)
{
	return !vma->special && (vma->arena || vma->kib[SMAPS_RSS] ||
				 vma->kib[SMAPS_HTLB_PRIVATE] || vma->kib[SMAPS_HTLB_SHARED]);
}

/* Add a process to the snapshot. */
static inline void scan_proc(pid_t pid)
{
	const struct vma *vma = &truth.vma[truth.nr_vmas];
	unsigned int first;
	char path[64];
	int fd;

	check_room(truth.nr_procs + 1, MAX_PROCS);
	read_smaps(pid);
	if (vma == &truth.vma[truth.nr_vmas])
		return;		/* a kernel thread */
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	for (; vma < &truth.vma[truth.nr_vmas]; vma++) {
		if (!worth_scanning(vma))
			continue;
		first = truth.nr_map;
		scan_pagemap(vma, fd);
		if (vma->arena || vma->kib[SMAPS_PMD])
			scan_huge(vma, fd, first);
	}
	close(fd);
	truth.nr_procs++;
}

/* Begin a new snapshot. */
static inline void truth_reset(void)
{
	truth.nr_procs = 0;
	truth.nr_vmas = 0;
	truth.nr_map = 0;
	truth.nr_pages = 0;
	truth.nr_folios = 0;
	truth.nr_swap = 0;
	truth.flags_pfn = -1;
}

/* A new snapshot, of all processes of the system */
static inline void truth_scan(void)
{
	struct dirent *entry;

	truth_reset();
	rewinddir(truth.proc);
	while ((entry = readdir(truth.proc)))
		if (isdigit(entry->d_name[0]))
			scan_proc(atoi(entry->d_name));
}

static inline int cmp_mapping(const void *a, const void *b)
{
	const struct mapping *x = a, *y = b;

	return x->pfn == y->pfn ? x->vma - y->vma : x->pfn < y->pfn ? -1 : 1;
}

static inline int cmp_swap(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(__u64));	/* in any order, but the same ones together */
}

/* Folios are naturally aligned and, here, never larger than a PMD maps. */
static inline void find_folio(__u64 pfn, struct folio *folio)
{
	__u64 block = pfn & ~((__u64)truth.block_pages - 1);
	unsigned int head = pfn - block, end;

	kpage_read(truth.kpageflags, pfn, 1, &folio->flags);
	folio->pfn = pfn;
	folio->nr = 1;
	if (!(folio->flags & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL)))
		return;
	if (truth.flags_pfn != block)
		kpage_read(truth.kpageflags, block, truth.block_pages, truth.kflags);
	truth.flags_pfn = block;
	while (head && (truth.kflags[head] & KPF_COMPOUND_TAIL))
		head--;
	end = head + 1;
	while (end < truth.block_pages && (truth.kflags[end] & KPF_COMPOUND_TAIL))
		end++;
	folio->pfn = block + head;
	folio->nr = end - head;
	folio->flags = truth.kflags[head];
}

static inline struct folio *add_folio(const struct mapping *m)
{
	struct folio *folio = &truth.folio[truth.nr_folios];
	struct page *page = &truth.page[truth.nr_pages];
	unsigned int i;

	*folio = (struct folio) {
		.first = truth.nr_pages,
		.first_map = m - truth.map,
		.anon = !m->file,
	};
	find_folio(m->pfn, folio);
	check_room(truth.nr_pages + folio->nr, MAX_MAP);
	kpage_read(truth.kpagecgroup, folio->pfn, 1, &folio->cgroup);
	kpage_read(truth.kpagecount, folio->pfn, folio->nr, truth.kbuf);
	for (i = 0; i < folio->nr; i++)
		page[i] = (struct page) {
			.kcount = truth.kbuf[i],
			.kflags = folio->nr == 1 ? folio->flags :
				  truth.kflags[folio->pfn - truth.flags_pfn + i],
			.folio = truth.nr_folios,
		};
	truth.nr_pages += folio->nr;
	truth.nr_folios++;
	return folio;
}

static inline void count_mapping(struct mapping *m, struct folio *folio)
{
	struct page *page = &truth.page[folio->first + (m->pfn - folio->pfn)];
	const unsigned int owner = truth.vma[m->vma].proc + 1;

	m->page = page - truth.page;
	folio->nr_map++;
	folio->mapped += !page->owner;
	page->owner = page->owner && page->owner != owner ? OWNER_MANY : owner;
	page->ptes += !m->pmd;
	page->pmds += m->pmd;
	/* A PMD counts once for its folio, at the first page. */
	folio->ptes += !m->pmd;
	folio->pmds += m->pmd && m->pfn == folio->pfn;
}

/* Whichever process this one may be: the least of what there can be */
static inline void count_least(struct folio *folio)
{
	const struct mapping *m = &truth.map[folio->first_map], *end = m + folio->nr_map;
	unsigned int ptes_of[MAX_PROCS] = {}, i;

	for (; m < end; m++)
		ptes_of[truth.vma[m->vma].proc] += !m->pmd;
	folio->least = folio->ptes;
	for (i = 0; i < truth.nr_procs; i++)
		folio->least = MIN(folio->least, MAX(ptes_of[i], folio->ptes - ptes_of[i]));
}

/* After the scan: sort it all by folios. */
static inline void count_all(void)
{
	struct folio *folio = NULL;
	unsigned int i;

	qsort(truth.swap, truth.nr_swap, sizeof(*truth.swap), cmp_swap);
	qsort(truth.map, truth.nr_map, sizeof(*truth.map), cmp_mapping);
	for (i = 0; i < truth.nr_map; i++) {
		if (!folio || truth.map[i].pfn >= folio->pfn + folio->nr)
			folio = add_folio(&truth.map[i]);
		count_mapping(&truth.map[i], folio);
	}
	for (i = 0; i < truth.nr_folios; i++)
		count_least(&truth.folio[i]);
}

/* For the test alone: what children do not inherit, they cannot disturb. */
static inline void *alloc_private(size_t size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	madvise(mem, size, MADV_NOHUGEPAGE);
	madvise(mem, size, MADV_DONTFORK);
	return mem;
}

/*
 * All memory that the test maps is in one range of addresses, the arena.
 * Return: why there can be no snapshots, or NULL.
 */
static inline const char *truth_setup(unsigned int block_pages, unsigned long arena,
				      unsigned long arena_size)
{
	mallopt(M_MMAP_THRESHOLD, psize());	/* so that nothing of qsort()'s memory stays */
	truth.block_pages = block_pages;
	truth.arena = arena;
	truth.arena_size = arena_size;
	truth.vma = alloc_private(MAX_VMAS * sizeof(*truth.vma));
	truth.map = alloc_private(MAX_MAP * sizeof(*truth.map));
	truth.page = alloc_private(MAX_MAP * sizeof(*truth.page));
	truth.folio = alloc_private(MAX_MAP * sizeof(*truth.folio));
	truth.swap = alloc_private(MAX_MAP * sizeof(*truth.swap));
	truth.text = alloc_private(TEXT_SIZE);
	truth.kbuf = alloc_private(2 * block_pages * sizeof(__u64));
	truth.kflags = truth.kbuf + block_pages;
	truth.proc = opendir("/proc");
	truth.kpagecount = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
	truth.kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	truth.kpagecgroup = open("/proc/kpagecgroup", O_RDONLY | O_CLOEXEC);
	if (geteuid())
		return "needs root";
	return truth.proc && truth.kpagecount >= 0 && truth.kpageflags >= 0 ? NULL :
		"no /proc/kpagecount (CONFIG_PROC_PAGE_MONITOR)";
}

#endif /* __FOLIO_TRUTH_H__ */
