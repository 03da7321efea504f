/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A snapshot of all mappings of the system: what the page tables of all its
 * processes say, folio by folio, and beside it what smaps and /proc/kpage* say.
 * It is consistent only if nothing moves meanwhile: look again if in doubt.
 * To be included after vm_util.h, which has no guard.
 */
#ifndef __FOLIO_MAPCOUNT_TRUTH_H__
#define __FOLIO_MAPCOUNT_TRUTH_H__

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/param.h>

/* As vm_util.h has the others. */
#define KPF_MMAP	BIT_ULL(11)
#define KPF_ANON	BIT_ULL(12)
#define KPF_SWAPBACKED	BIT_ULL(14)
#define KPF_HUGE	BIT_ULL(17)
#define KPF_KSM		BIT_ULL(21)
#define KPF_ZERO_PAGE	BIT_ULL(24)

#define MAX_PROCS	512
#define MAX_VMAS	16384
#define MAX_MAP		(512 * 1024)
#define TEXT_SIZE	(8 << 20)

enum smaps {
	SMAPS_RSS,
	SMAPS_PSS,
	SMAPS_PRIVATE,
	SMAPS_SHARED,
	SMAPS_PMD,
	SMAPS_HTLB_PRIVATE,
	SMAPS_HTLB_SHARED,
	NR_SMAPS,
};

/* A line "KEY VALUE" of a file: the value is added to sum[index]. */
struct key {
	const char *key;
	unsigned int index;
};

static const struct key smaps_keys[] = {
	{ "Rss:", SMAPS_RSS },
	{ "Pss:", SMAPS_PSS },
	{ "Private_Clean:", SMAPS_PRIVATE },
	{ "Private_Dirty:", SMAPS_PRIVATE },
	{ "Shared_Clean:", SMAPS_SHARED },
	{ "Shared_Dirty:", SMAPS_SHARED },
	{ "AnonHugePages:", SMAPS_PMD },
	{ "ShmemPmdMapped:", SMAPS_PMD },
	{ "FilePmdMapped:", SMAPS_PMD },
	{ "Private_Hugetlb:", SMAPS_HTLB_PRIVATE },
	{ "Shared_Hugetlb:", SMAPS_HTLB_SHARED },
};

struct bounds {
	long long lo;
	long long hi;
};

struct vma {
	unsigned long start;
	unsigned long end;
	pid_t pid;
	unsigned short proc;
	bool arena;			/* of the memory that the test maps */
	bool special;			/* maps no folios: [vvar] and the like */
	long long kib[NR_SMAPS];	/* according to the kernel */
	struct bounds sum[NR_SMAPS];	/* for the test, to compare */
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
	__u64 pfn;
	__u64 flags;
	__u64 cgroup;
	unsigned int nr;
	unsigned int first;	/* page in truth.page */
	unsigned int first_map;	/* mapping in truth.map, which is sorted */
	unsigned int nr_map;
	unsigned int mapped;	/* distinct pages */
	unsigned int ptes;
	unsigned int pmds;
	unsigned int least;	/* PTEs of one process, or all others, if these are more */
	bool anon;
};

#define OWNER_MANY	0xffff

struct page {
	__u64 kcount;		/* according to the kernel */
	__u64 kflags;
	unsigned int folio;	/* in truth.folio */
	unsigned int ptes;
	unsigned int pmds;
	unsigned short owner;	/* 1 + the one process that maps it, or OWNER_MANY */
};

static struct truth {
	unsigned int nr_procs;
	struct vma *vma;
	unsigned int nr_vmas;
	struct mapping *map;
	unsigned int nr_map;
	struct page *page;
	unsigned int nr_pages;
	struct folio *folio;
	unsigned int nr_folios;

	unsigned long arena;
	unsigned long arena_size;
	unsigned int block_pages;	/* of a PMD */
	int kpagecount;
	int kpageflags;
	int kpagecgroup;
	DIR *proc;		/* always open, as to free its memory would disturb */
	char *text;
	__u64 *kbuf;
	__u64 *kflags;		/* of the block of pages at flags_pfn */
	__u64 flags_pfn;
} truth;

/* What the kernel says */

/* Returns false if the file is not there; stdio would allocate memory. */
static bool read_text(const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t ret = -1;
	size_t len = 0;

	while (fd >= 0 && (ret = read(fd, truth.text + len, TEXT_SIZE - 1 - len)) > 0)
		len += ret;
	if (fd >= 0)
		close(fd);
	truth.text[len] = '\0';
	return ret >= 0;
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

static void add_value(const char *line, const struct key *keys, unsigned int nr, long long *sum)
{
	unsigned int i;
	size_t len;

	for (i = 0; i < nr; i++) {
		len = strlen(keys[i].key);
		if (!strncmp(line, keys[i].key, len))
			sum[keys[i].index] += strtoll(line + len, NULL, 10);
	}
}

static struct vma *add_vma(pid_t pid, const char *line)
{
	struct vma *vma = &truth.vma[truth.nr_vmas++];
	char name[64] = "";

	if (truth.nr_vmas > MAX_VMAS)
		ksft_exit_skip("too much is mapped on this system\n");
	memset(vma, 0, sizeof(*vma));
	if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %63s", &vma->start, &vma->end, name) < 2)
		ksft_exit_fail_msg("cannot parse smaps: %s\n", line);
	vma->pid = pid;
	vma->proc = truth.nr_procs;
	vma->arena = vma->start - truth.arena < truth.arena_size;
	vma->special = !strncmp(name, "[vv", 3) || !strncmp(name, "[vs", 3);
	return vma;
}

static void read_smaps(pid_t pid)
{
	char path[64], *text = truth.text, *line;
	struct vma *vma = NULL;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	if (!read_text(path))
		return;
	while ((line = next_line(&text))) {
		if (!isupper(line[0])) {
			vma = add_vma(pid, line);
			continue;
		}
		add_value(line, smaps_keys, ARRAY_SIZE(smaps_keys), vma->kib);
		if (!strncmp(line, "VmFlags:", 8) && strstr(line, " pf"))
			vma->special = true;
	}
}

static void kpage_read(int fd, __u64 pfn, unsigned int nr, __u64 *buf)
{
	ssize_t len = nr * sizeof(*buf);

	memset(buf, 0, len);
	if (fd >= 0 && pread(fd, buf, len, pfn * sizeof(*buf)) < 0)
		ksft_exit_fail_perror("reading /proc/kpage*");
}

/* What the page tables say */

static void add_mapping(const struct vma *vma, unsigned long addr, __u64 entry)
{
	if (!PAGEMAP_PRESENT(entry))
		return;
	if (truth.nr_map == MAX_MAP)
		ksft_exit_skip("too much is mapped on this system\n");
	truth.map[truth.nr_map++] = (struct mapping) {
		.pfn = PAGEMAP_PFN(entry),
		.addr = addr,
		.vma = vma - truth.vma,
		.file = entry & PM_FILE,
		.exclusive = entry & PM_MMAP_EXCLUSIVE,
	};
}

static void scan_pagemap(const struct vma *vma, int fd)
{
	unsigned long addr = vma->start;
	unsigned int nr, i;
	ssize_t len;

	while (addr < vma->end) {
		nr = MIN((vma->end - addr) / psize(), truth.block_pages);
		len = pread(fd, truth.kbuf, nr * sizeof(__u64),
			    (off_t)(addr / psize()) * sizeof(__u64));
		if (len <= 0)
			return;	/* the process is gone, so there will be another look */
		nr = len / sizeof(__u64);
		for (i = 0; i < nr; i++, addr += psize())
			add_mapping(vma, addr, truth.kbuf[i]);
	}
}

/* Only PAGEMAP_SCAN tells which pages a PMD (or a hugetlb entry) maps. */
static void scan_huge(const struct vma *vma, int fd, unsigned int first)
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
		if (r < nr && truth.map[first].addr >= vec[r].start)
			truth.map[first].pmd = true;
	}
}

/* Of the memory that is not the test's, the kernel is trusted on "empty". */
static bool worth_scanning(const struct vma *vma)
{
	return !vma->special && (vma->arena || vma->kib[SMAPS_RSS] ||
				 vma->kib[SMAPS_HTLB_PRIVATE] || vma->kib[SMAPS_HTLB_SHARED]);
}

static void scan_proc(pid_t pid, unsigned int first_vma)
{
	const struct vma *vma;
	unsigned int first;
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return;
	for (vma = &truth.vma[first_vma]; vma < &truth.vma[truth.nr_vmas]; vma++) {
		if (!worth_scanning(vma))
			continue;
		first = truth.nr_map;
		scan_pagemap(vma, fd);
		if (vma->arena || vma->kib[SMAPS_PMD])
			scan_huge(vma, fd, first);
	}
	close(fd);
}

static void scan_all(void)
{
	struct dirent *entry;
	unsigned int first;
	pid_t pid;

	rewinddir(truth.proc);
	while ((entry = readdir(truth.proc))) {
		if (!isdigit(entry->d_name[0]))
			continue;
		if (truth.nr_procs == MAX_PROCS)
			ksft_exit_skip("too many processes on this system\n");
		pid = atoi(entry->d_name);
		first = truth.nr_vmas;
		read_smaps(pid);
		if (truth.nr_vmas == first)
			continue;	/* a kernel thread */
		scan_proc(pid, first);
		truth.nr_procs++;
	}
}

/* Both, folio by folio */

static int cmp_mapping(const void *a, const void *b)
{
	const struct mapping *x = a, *y = b;

	if (x->pfn != y->pfn)
		return x->pfn < y->pfn ? -1 : 1;
	return (int)x->vma - (int)y->vma;
}

/* Folios are naturally aligned and, here, never larger than a PMD maps. */
static void find_folio(__u64 pfn, struct folio *folio)
{
	__u64 block = pfn & ~((__u64)truth.block_pages - 1);
	unsigned int head = pfn - block, end;

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

static struct folio *add_folio(const struct mapping *m)
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
	if (truth.nr_pages + folio->nr > MAX_MAP)
		ksft_exit_skip("too much is mapped on this system\n");
	kpage_read(truth.kpagecgroup, folio->pfn, 1, &folio->cgroup);
	kpage_read(truth.kpagecount, folio->pfn, folio->nr, truth.kbuf);
	for (i = 0; i < folio->nr; i++)
		page[i] = (struct page) {
			.kcount = truth.kbuf[i],
			.kflags = truth.kflags[folio->pfn - truth.flags_pfn + i],
			.folio = truth.nr_folios,
		};
	truth.nr_pages += folio->nr;
	truth.nr_folios++;
	return folio;
}

static void count_mapping(struct mapping *m, struct folio *folio)
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
static unsigned int count_least(const struct folio *folio)
{
	const struct mapping *first = &truth.map[folio->first_map], *m;
	const struct mapping *end = first + folio->nr_map;
	static unsigned int ptes_of[MAX_PROCS];
	unsigned int least = folio->ptes, nr;

	for (m = first; m < end; m++)
		ptes_of[truth.vma[m->vma].proc] = 0;
	for (m = first; m < end; m++)
		ptes_of[truth.vma[m->vma].proc] += !m->pmd;
	for (m = first; m < end; m++) {
		nr = ptes_of[truth.vma[m->vma].proc];
		least = MIN(least, MAX(nr, folio->ptes - nr));
	}
	return least;
}

static void count_all(void)
{
	struct folio *folio = NULL;
	unsigned int i;

	qsort(truth.map, truth.nr_map, sizeof(*truth.map), cmp_mapping);
	for (i = 0; i < truth.nr_map; i++) {
		if (!folio || truth.map[i].pfn >= folio->pfn + folio->nr)
			folio = add_folio(&truth.map[i]);
		count_mapping(&truth.map[i], folio);
	}
	for (i = 0; i < truth.nr_folios; i++)
		truth.folio[i].least = count_least(&truth.folio[i]);
}

static void truth_scan(void)
{
	truth.nr_procs = 0;
	truth.nr_vmas = 0;
	truth.nr_map = 0;
	truth.nr_pages = 0;
	truth.nr_folios = 0;
	truth.flags_pfn = -1;
	scan_all();
}

/* For the test alone: what children do not inherit, they cannot disturb. */
static void *alloc_private(size_t size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	madvise(mem, size, MADV_NOHUGEPAGE);
	madvise(mem, size, MADV_DONTFORK);
	return mem;
}

/* All memory that the test maps is in one range of addresses, the arena. */
static void truth_setup(unsigned int block_pages, unsigned long arena, unsigned long arena_size)
{
	truth.block_pages = block_pages;
	truth.arena = arena;
	truth.arena_size = arena_size;
	truth.vma = alloc_private(MAX_VMAS * sizeof(*truth.vma));
	truth.map = alloc_private(MAX_MAP * sizeof(*truth.map));
	truth.page = alloc_private(MAX_MAP * sizeof(*truth.page));
	truth.folio = alloc_private(MAX_MAP * sizeof(*truth.folio));
	truth.text = alloc_private(TEXT_SIZE);
	truth.kbuf = alloc_private(block_pages * sizeof(__u64));
	truth.kflags = alloc_private(block_pages * sizeof(__u64));
	truth.proc = opendir("/proc");
	if (!truth.proc)
		ksft_exit_fail_perror("/proc");
	truth.kpagecount = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
	truth.kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	truth.kpagecgroup = open("/proc/kpagecgroup", O_RDONLY | O_CLOEXEC);
	if (truth.kpagecount < 0 || truth.kpageflags < 0)
		ksft_exit_skip("%s\n", geteuid() ? "needs root" :
			       "no /proc/kpagecount (CONFIG_PROC_PAGE_MONITOR)");
}

#endif /* __FOLIO_MAPCOUNT_TRUTH_H__ */
