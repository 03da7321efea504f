// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for what the rmap functions do to the packed mapcount of a large folio: on
 * folios that are mapped by nothing but the calls made here, and on folios in real
 * page tables.
 */
#include <kunit/test.h>
#include <linux/anon_inodes.h>
#include <linux/completion.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/kthread.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/pagewalk.h>
#include <linux/prandom.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/uaccess.h>

#include "../internal.h"

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
#define TEST_MAX_ORDER	HPAGE_PMD_ORDER
#else
#define TEST_MAX_ORDER	9
#endif
#define PMD_PAGES	((int)BIT(TEST_MAX_ORDER))

static const enum node_stat_item items[] = {
	NR_FILE_MAPPED, NR_ANON_MAPPED, NR_FILE_PMDMAPPED, NR_SHMEM_PMDMAPPED, NR_ANON_THPS,
};

/* An MM, and how many entries it has for the folio. */
struct test_mm {
	struct mm_struct *mm;
	struct vm_area_struct *vma;
	int ptes, pmds;
};

struct rmap_ctx {
	struct test_mm mms[3];		/* the MM of the test, and two copies */
	unsigned long addr;		/* room in the VMA for the largest folio */
	struct folio *folio;
	struct mm_struct *creator;
	bool queued;			/* for the deferred split shrinker */
	long start[ARRAY_SIZE(items)];	/* statistics without the folio */
	bool miscounted;
	struct mm_struct *children[2];	/* fork()ed, with page tables */
	struct file *file;
	bool special;			/* mmap() of the file maps PFNs */
};

static void *copy_of(struct kunit *test, const void *src, size_t size)
{
	void *copy = kunit_kmalloc(test, size, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, copy);
	return memcpy(copy, src, size);
}

static int rmap_test_init(struct kunit *test)
{
	const unsigned long size = PAGE_SIZE << TEST_MAX_ORDER;
	struct rmap_ctx *c = kunit_kzalloc(test, sizeof(*c), GFP_KERNEL);
	struct test_mm *mm;
	unsigned long start;
	int err;

	KUNIT_ASSERT_NOT_NULL(test, c);
	/* There is no deferred split queue without huge pages. */
	if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && !has_transparent_hugepage())
		kunit_skip(test, "no huge pages on this machine");
	start = kunit_vm_mmap(test, NULL, 0, 3 * size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_NE(test, start, 0);

	c->addr = ALIGN(start, size);
	mmap_read_lock(current->mm);
	c->mms[0].mm = current->mm;
	c->mms[0].vma = vma_lookup(current->mm, c->addr);
	err = c->mms[0].vma ? anon_vma_prepare(c->mms[0].vma) : -EFAULT;
	mmap_read_unlock(current->mm);
	KUNIT_ASSERT_EQ(test, err, 0);

	/* The rmap functions need no more of an MM than this. */
	for (mm = c->mms + 1; mm < c->mms + ARRAY_SIZE(c->mms); mm++) {
		mm->mm = copy_of(test, current->mm, sizeof(*current->mm));
		mm->vma = copy_of(test, c->mms[0].vma, sizeof(*mm->vma));
		mm->vma->vm_mm = mm->mm;
	}
	test->priv = c;
	return 0;
}

static long node_sum(struct pglist_data *pgdat, enum node_stat_item item)
{
	long sum = atomic_long_read(&pgdat->vm_stat[item]);
	int cpu;

	for_each_online_cpu(cpu)
		sum += per_cpu_ptr(pgdat->per_cpu_nodestats, cpu)->vm_node_stat_diff[item];
	return sum;
}

KUNIT_DEFINE_ACTION_WRAPPER(put_folio, folio_put, struct folio *);

static struct folio *new_folio(struct kunit *test, unsigned int order)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = folio_alloc(GFP_HIGHUSER | __GFP_ZERO | __GFP_NOWARN, order);
	int i;

	if (!folio)
		kunit_skip(test, "no free folio of order %u", order);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, put_folio, folio));
	/* The deferred split queue is that of the folio's memcg. */
	KUNIT_ASSERT_EQ(test, 0, mem_cgroup_charge(folio, c->mms[0].mm, GFP_KERNEL));
	c->folio = folio;
	c->creator = NULL;
	c->queued = false;
	if (order) {
		KUNIT_EXPECT_TRUE(test, IS_ALIGNED((unsigned long)&folio->_mapcounts,
						   sizeof(folio->_mapcounts)));
		KUNIT_EXPECT_EQ(test, folio_read_mapcounts(folio).val, 0ULL);
		KUNIT_EXPECT_NULL(test, folio->_creator);
	}
	c->miscounted = false;
	for (i = 0; i < ARRAY_SIZE(items); i++)
		c->start[i] = node_sum(folio_pgdat(folio), items[i]);
	return folio;
}

static void free_folio(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;

	kunit_release_action(test, put_folio, c->folio);
}

enum op {
	NEW = 1, NEW_EXCLUSIVE,	/* folio_add_new_anon_rmap(), by PMDs if it is large enough */
	ADD, DUP, REMOVE,
	ADD_PMD, DUP_PMD, REMOVE_PMD,
	ADOPT,
	SPLIT_PMD,
};

struct step {
	enum op op;
	int mm, first, nr;	/* fork() duplicates entries of MM 0 */
};

static int call_rmap(struct rmap_ctx *c, const struct step *s)
{
	struct vm_area_struct *vma = c->mms[s->mm].vma;
	const unsigned long addr = c->addr + s->first * PAGE_SIZE;
	struct folio *folio = c->folio;
	struct page *page = folio_page(folio, s->first);
	const bool anon = folio_test_anon(folio);

	switch (s->op) {
	case NEW:
	case NEW_EXCLUSIVE:
		folio_add_new_anon_rmap(folio, vma, c->addr,
					s->op == NEW ? RMAP_NONE : RMAP_EXCLUSIVE);
		return 0;
	case ADD:
		if (anon)
			folio_add_anon_rmap_ptes(folio, page, s->nr, vma, addr, RMAP_NONE);
		else
			folio_add_file_rmap_ptes(folio, page, s->nr, vma);
		return 0;
	case DUP:
		if (anon)
			return folio_try_dup_anon_rmap_ptes(folio, page, s->nr, vma,
							    c->mms[0].vma);
		folio_dup_file_rmap_ptes(folio, page, s->nr, vma);
		return 0;
	case REMOVE:
		folio_remove_rmap_ptes(folio, page, s->nr, vma);
		return 0;
	case ADD_PMD:
		if (anon)
			folio_add_anon_rmap_pmd(folio, page, vma, addr, RMAP_NONE);
		else
			folio_add_file_rmap_pmd(folio, page, vma);
		return 0;
	case DUP_PMD:
		if (anon)
			return folio_try_dup_anon_rmap_pmd(folio, page, vma, c->mms[0].vma);
		folio_dup_file_rmap_pmd(folio, page, vma);
		return 0;
	case REMOVE_PMD:
		folio_remove_rmap_pmd(folio, page, vma);
		return 0;
	case ADOPT:
		folio_adopt(folio, vma->vm_mm, folio_mapcount(folio));
		return 0;
	case SPLIT_PMD:
		if (anon) {
			folio_split_anon_rmap_pmd(folio, page, vma, PageAnonExclusive(page) ?
						  RMAP_EXCLUSIVE : RMAP_NONE);
			return 0;
		}
		folio_add_file_rmap_ptes(folio, page, PMD_PAGES, vma);
		folio_remove_rmap_pmd(folio, page, vma);
		return 0;
	}
	return -EINVAL;
}

/* What a step adds to the mapcounts: PTEs for each page, and PMDs */
static const struct {
	int ptes, pmds;
} effects[] = {
	[ADD] = { 1, 0 }, [DUP] = { 1, 0 }, [REMOVE] = { -1, 0 },
	[ADD_PMD] = { 0, 1 }, [DUP_PMD] = { 0, 1 }, [REMOVE_PMD] = { 0, -1 },
	[ADOPT] = { 0, 0 },
	[SPLIT_PMD] = { 0, -1 },
};

/* Call the rmap function with the locks that it wants, and adjust the references. */
static int do_step(struct rmap_ctx *c, const struct step *s)
{
	const int nr_pages = folio_nr_pages(c->folio);
	struct test_mm *mm = &c->mms[s->mm];
	struct mm_struct *mm0 = c->mms[0].mm;
	const bool unmapped = !folio_mapped(c->folio);
	int ptes = s->nr * effects[s->op].ptes, pmds = effects[s->op].pmds, ret;

	if (s->op == NEW || s->op == NEW_EXCLUSIVE) {
		pmds = IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) ? nr_pages / PMD_PAGES : 0;
		ptes = pmds ? 0 : nr_pages;
	}
	if (s->op == SPLIT_PMD)
		ptes = PMD_PAGES;
	if (ptes + pmds > 0)
		folio_ref_add(c->folio, ptes + pmds);
	/* Any lock will do: the statistics want preemption disabled. */
	folio_lock(c->folio);
	spin_lock(&mm0->page_table_lock);
	raw_write_seqcount_begin(&mm0->write_protect_seq);
	ret = call_rmap(c, s);
	raw_write_seqcount_end(&mm0->write_protect_seq);
	spin_unlock(&mm0->page_table_lock);
	folio_unlock(c->folio);
	if (ptes + pmds < 0)
		folio_put_refs(c->folio, -(ptes + pmds));

	mm->ptes += ptes;
	mm->pmds += pmds;
	/* A new anonymous folio is claimed, whether it is rmappable or not. */
	if (unmapped && (s->op <= NEW_EXCLUSIVE || folio_test_large_rmappable(c->folio)) &&
	    !(mm->vma->vm_flags & VM_MIXEDMAP))
		c->creator = mm->mm;
	if (s->op == ADOPT)
		c->creator = mm->mm;
	return ret;
}

static void check_statistics(struct rmap_ctx *c, int pages, int pmds)
{
	const bool anon = folio_test_anon(c->folio);
	const int by_pmd = anon ? 4 : folio_test_swapbacked(c->folio) ? 3 : 2;
	struct pglist_data *pgdat = folio_pgdat(c->folio);

	if (node_sum(pgdat, items[anon]) - c->start[anon] != pages ||
	    node_sum(pgdat, items[by_pmd]) - c->start[by_pmd] != pmds)
		c->miscounted = true;
}

/* Compare all that the kernel says of the folio with the entries of each MM. */
static void check_step(struct kunit *test, const struct step *s)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = c->folio;
	const struct folio_mapcounts mc = folio_read_mapcounts(folio);
	const unsigned long nr_pages = folio_nr_pages(folio);
	/* There is no list in a folio of two pages. */
	const bool listed = folio_test_large_rmappable(folio) && folio_order(folio) > 1;
	unsigned int ptes = 0, pmds = 0, creator = 0, entries, pages, i;
	bool exclusive;
	unsigned int mapped;

	for (i = 0; i < ARRAY_SIZE(c->mms); i++) {
		ptes += c->mms[i].ptes;
		pmds += c->mms[i].pmds;
		if (c->mms[i].mm == c->creator)
			creator = c->mms[i].ptes + c->mms[i].pmds;
	}
	entries = ptes + pmds;
	exclusive = creator == entries;
	pages = ptes + pmds * PMD_PAGES;
	if (folio_test_anon(folio) && (s->op == REMOVE || s->op == REMOVE_PMD) &&
	    pages && pages < nr_pages && listed)
		c->queued = true;
	mapped = pages;
	if (folio_test_anon(folio) && !pmds)
		mapped = max(creator, ptes - creator);
	mapped = min(mapped, nr_pages);
	KUNIT_EXPECT_EQ(test, mapcounts_nr_mapped(mc, nr_pages, folio_test_anon(folio)), mapped);
	check_statistics(c, mapped, min(pmds * PMD_PAGES, nr_pages));

	if (mapcounts_ptes(mc) == ptes && mapcounts_pmds(mc) == pmds &&
	    mapcounts_creator(mc) == creator && folio->_creator == c->creator &&
	    folio_mapcount(folio) == entries && folio_mapped(folio) == !!entries &&
	    folio_ref_count(folio) == 1 + entries && mapcounts_pages(mc) == pages &&
	    mapcounts_exclusive(mc) == exclusive &&
	    folio_maybe_mapped_shared(folio) == (entries > 1 && !exclusive) &&
	    mapcounts_partial(mc, nr_pages) == (pages && pages < nr_pages) &&
	    (!listed ||
	     (folio_test_partially_mapped(folio) == c->queued &&
	      !list_empty(&folio->_deferred_list) == c->queued)))
		return;
	KUNIT_FAIL(test,
		   "order %u, after op %d by MM %d, pages %d + %d: mapcounts %#llx, creator %d, refs %d, shared %d, partially mapped %d; expected ptes %u, pmds %u, creator %u, partially mapped %d",
		   folio_order(folio), s->op, s->mm, s->first, s->nr, mc.val,
		   folio->_creator == c->creator, folio_ref_count(folio),
		   folio_maybe_mapped_shared(folio), folio_test_partially_mapped(folio),
		   ptes, pmds, creator, c->queued);
}

static void step(struct kunit *test, enum op op, int mm, int first, int nr)
{
	const struct step s = { op, mm, first, nr };
	struct rmap_ctx *c = test->priv;
	bool exclusive = op == NEW_EXCLUSIVE;
	int i;

	KUNIT_EXPECT_EQ(test, 0, do_step(c, &s));
	check_step(test, &s);
	if (!folio_test_anon(c->folio) || (op != NEW && op != DUP && op != DUP_PMD &&
					   op != NEW_EXCLUSIVE))
		return;
	for (i = first; i < first + (nr ?: 1); i++)
		KUNIT_EXPECT_EQ(test, PageAnonExclusive(folio_page(c->folio, i)), exclusive);
}

#define expect_mapcounts(test, ptes, pmds) \
	check_mapcounts(test, ptes, pmds, __LINE__)

static void check_mapcounts(struct kunit *test, unsigned int ptes, unsigned int pmds, int line)
{
	const struct folio *folio = ((struct rmap_ctx *)test->priv)->folio;
	const struct folio_mapcounts mc = folio_read_mapcounts(folio);

	if (mapcounts_ptes(mc) != ptes || mapcounts_pmds(mc) != pmds ||
	    folio_mapcount(folio) != ptes + pmds || folio_mapped(folio) != !!(ptes + pmds))
		KUNIT_FAIL(test, "line %d: mapcounts %#llx, expected ptes %u, pmds %u",
			   line, mc.val, ptes, pmds);
}

/* Numbers of pages in a table: those of the folio, half of them, those that a PMD maps */
#define ALL	(-1)
#define HALF	(-2)
#define PMD	(-3)

static int table_nr(const struct folio *folio, int nr)
{
	const int nr_pages = folio_nr_pages(folio);

	return nr == ALL ? nr_pages : nr == HALF ? nr_pages / 2 : nr == PMD ? PMD_PAGES : nr;
}

static const struct scenario {
	const char *desc;
	unsigned int orders;	/* bitmap; order 0 stands for TEST_MAX_ORDER, 31 for one more */
	bool pmds;		/* needs PMD mappings */
	bool swapbacked;
	struct step steps[24];	/* the last one unmaps the folio */
} scenario_table[] = {
	{
		.desc = "file: the first MM to map it is the creator",
		.orders = BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(7) | BIT(0),
		.steps = {
			{ ADD,		0, 0, ALL }, { ADD,	1, 0, 1 },
			{ ADD,		0, 1, 1 }, { REMOVE,	1, 0, 1 },
			{ ADD,		1, 0, 2 }, { REMOVE,	0, 0, ALL },
			{ REMOVE,	0, 1, 1 }, { REMOVE,	1, 1, 1 },
			{ REMOVE,	1, 0, 1 }, { ADD,	1, 0, ALL },
			{ DUP,		0, 0, ALL }, { REMOVE,	1, 0, ALL },
			{ REMOVE,	0, 0, HALF }, { REMOVE,	0, HALF, HALF },
		},
	}, {
		.desc = "file: two PMDs and a PTE",
		.orders = BIT(31),
		.pmds = true,
		.steps = {
			{ ADD_PMD,	0 }, { DUP_PMD,		0 }, { REMOVE_PMD,	0 },
			{ ADD_PMD,	0, PMD }, { DUP_PMD,	0, PMD },
			{ REMOVE_PMD,	0, PMD }, { ADD,	0, PMD, 1 },
			{ REMOVE,	0, PMD, 1 }, { REMOVE_PMD,	0 },
			{ REMOVE_PMD,	0, PMD },
		},
	}, {
		.desc = "anon: fork() twice",
		.orders = BIT(2) | BIT(3) | BIT(4) | BIT(7),
		.steps = {
			{ NEW_EXCLUSIVE, 0, 0, ALL }, { DUP,	1, 0, ALL },
			{ DUP,		2, 0, ALL }, { REMOVE,	0, 0, ALL },
			{ REMOVE,	1, 0, HALF }, { REMOVE,	2, 0, ALL },
			{ REMOVE,	1, HALF, HALF },
		},
	}, {
		/* The mapcounts tell at the third step at the earliest. */
		.desc = "anon: partially mapped",
		.orders = BIT(4),
		.steps = {
			{ NEW,		0, 0, ALL }, { DUP,	1, 0, ALL },
			{ REMOVE,	0, 0, HALF }, { REMOVE,	1, 0, HALF },
			{ REMOVE,	0, 15, 1 }, { REMOVE,	1, 15, 1 },
			{ REMOVE,	0, 8, 7 }, { REMOVE,	1, 8, 7 },
		},
	}, {
		.desc = "anon: unmapped as a whole",
		.orders = BIT(4),
		.steps = { { NEW, 0, 0, ALL }, { REMOVE, 0, 0, ALL } },
	}, {
		.desc = "anon: partially mapped once the PMD goes",
		.orders = BIT(0),
		.pmds = true,
		.steps = {
			{ NEW,		0 }, { ADD,		0, 0, 5 }, { REMOVE,	0, 0, 1 },
			{ REMOVE_PMD,	0 }, { REMOVE,		0, 1, 4 },
		},
	}, {
		.desc = "anon: three MMs",
		.orders = BIT(4),
		.steps = {
			{ NEW_EXCLUSIVE, 0, 0, ALL }, { DUP,	1, 0, ALL },
			{ REMOVE,	0, 0, 6 }, { REMOVE,	1, 0, ALL },
			{ DUP,		1, 6, 10 }, { REMOVE,	0, 6, 2 },
			{ REMOVE,	1, 14, 2 }, { DUP,	2, 8, 6 },
			{ REMOVE,	0, 8, 8 }, { REMOVE,	1, 6, 8 },
			{ ADOPT,	2 }, { DUP,		1, 8, 2 },
			{ REMOVE,	2, 8, 5 }, { REMOVE,	2, 13, 1 },
			{ REMOVE,	1, 8, 2 },
		},
#define STEPS(first_op) {						\
			{ first_op,	0 }, { SPLIT_PMD,	0 },	\
			{ REMOVE,	0, 0, ALL },			\
			{ ADD_PMD,	0 }, { REMOVE_PMD,	0 },	\
			{ ADD,		0, 0, 16 }, { DUP,	0, 0, 16 }, \
			{ ADD,		0, 16, 16 }, { REMOVE,	0, 0, 16 }, \
			{ ADD,		0, 0, ALL }, { DUP,	0, 0, ALL }, \
			{ REMOVE,	0, 0, ALL }, { REMOVE,	0, 0, ALL }, \
			{ ADD_PMD,	0 }, { DUP,		0, 0, 8 }, \
			{ ADD_PMD,	0 }, { REMOVE_PMD,	0 },	\
			{ REMOVE_PMD,	0 }, { REMOVE,		0, 0, 8 }, \
			{ REMOVE,	0, 16, 16 }, { REMOVE,	0, 0, 16 }, \
		}
	}, {
		.desc = "file: statistics",
		.orders = BIT(0),
		.pmds = true,
		.steps = STEPS(ADD_PMD),
	}, {
		.desc = "shmem: statistics",
		.orders = BIT(0),
		.pmds = true,
		.swapbacked = true,
		.steps = STEPS(ADD_PMD),
	}, {
		.desc = "anon: statistics",
		.orders = BIT(0),
		.pmds = true,
		.steps = STEPS(NEW),
	},
};

KUNIT_ARRAY_PARAM_DESC(scenario, scenario_table, desc);

static void test_scenario(struct kunit *test)
{
	const struct scenario *sc = test->param_value;
	unsigned long bit, orders = sc->orders;
	struct folio *folio;
	const struct step *s;
	struct rmap_ctx *c = test->priv;
	int tries = 0;

	if (sc->pmds && (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) || TEST_MAX_ORDER < 6))
		kunit_skip(test, "PMDs map nothing, or too little");
again:
	for_each_set_bit(bit, &orders, BITS_PER_LONG) {
		if (bit < 31 && bit > TEST_MAX_ORDER)
			continue;
		folio = new_folio(test, bit == 31 ? TEST_MAX_ORDER + 1 : bit ?: TEST_MAX_ORDER);
		if (sc->swapbacked)
			__folio_set_swapbacked(folio);
		for (s = sc->steps; s->op; s++)
			step(test, s->op, s->mm, table_nr(folio, s->first),
			     table_nr(folio, s->nr));
		free_folio(test);
		/* The counters are those of the node: another task may have mapped a page. */
		if (c->miscounted && tries++ < 10)
			goto again;
	}
	KUNIT_EXPECT_FALSE_MSG(test, c->miscounted, "statistics");
}

/* A mapping of a hugetlb folio counts 1 among the PTEs, whatever its size. */
static void test_hugetlb(struct kunit *test)
{
#ifdef CONFIG_HUGETLB_PAGE
	struct rmap_ctx *c = test->priv;
	struct vm_area_struct *vma = c->mms[0].vma;
	struct folio *folio = new_folio(test, TEST_MAX_ORDER);

	__folio_set_hugetlb(folio);
	hugetlb_add_file_rmap(folio);
	expect_mapcounts(test, 1, 0);
	KUNIT_EXPECT_FALSE(test, folio_maybe_mapped_shared(folio));
	hugetlb_add_file_rmap(folio);
	expect_mapcounts(test, 2, 0);
	KUNIT_EXPECT_TRUE(test, folio_maybe_mapped_shared(folio));
	hugetlb_remove_rmap(folio);
	hugetlb_remove_rmap(folio);
	expect_mapcounts(test, 0, 0);

	hugetlb_add_new_anon_rmap(folio, vma, c->addr);
	expect_mapcounts(test, 1, 0);
	KUNIT_EXPECT_TRUE(test, PageAnonExclusive(&folio->page));
	raw_write_seqcount_begin(&c->mms[0].mm->write_protect_seq);
	KUNIT_EXPECT_EQ(test, 0, hugetlb_try_dup_anon_rmap(folio, vma));
	raw_write_seqcount_end(&c->mms[0].mm->write_protect_seq);
	expect_mapcounts(test, 2, 0);
	KUNIT_EXPECT_FALSE(test, PageAnonExclusive(&folio->page));
	hugetlb_remove_rmap(folio);
	hugetlb_remove_rmap(folio);
	hugetlb_add_anon_rmap(folio, vma, c->addr, RMAP_EXCLUSIVE);
	expect_mapcounts(test, 1, 0);
	hugetlb_remove_rmap(folio);
	expect_mapcounts(test, 0, 0);

	/* It is freed as what it was allocated as. */
	ClearPageAnonExclusive(&folio->page);
	folio->mapping = NULL;
	__folio_clear_hugetlb(folio);
#else
	kunit_skip(test, "needs CONFIG_HUGETLB_PAGE");
#endif
}

/* A PMD counts as the most PTEs that it can be split into. */
static void test_bounds(struct kunit *test)
{
	const u64 max = 1 << 30, pmd_nr = MAX_PTRS_PER_PTE, max_pmds = max / pmd_nr;
	const struct {
		u64 ptes, pmds;
		unsigned int nr;
		bool can_add;
	} table[] = {
		{ 0, 0, 1, true },
		{ max - 16, 0, 16, true },
		{ max - 15, 0, 16, false },
		{ max - pmd_nr - 16, 1, 16, true },
		{ max - pmd_nr - 16, 1, 17, false },
		{ 0, max_pmds - 1, pmd_nr, true },
		{ 1, max_pmds - 1, pmd_nr, false },
		{ 0, max_pmds, 1, false },
		{ max + 99, max_pmds + 99, 1, false },
	};
	struct folio *folio = new_folio(test, 4);
	int i;

	for (i = 0; i < ARRAY_SIZE(table); i++) {
		atomic64_set(&folio->_mapcounts,
			     mapcounts_delta(table[i].ptes, table[i].pmds, false));
		KUNIT_EXPECT_EQ_MSG(test, folio_can_add_rmap(folio, table[i].nr),
				    table[i].can_add, "table[%d]", i);
	}
	atomic64_set(&folio->_mapcounts, 0);
}

/* What drivers insert is never claimed, nor is what is not rmappable. */
static void test_no_claim(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct page *page;

	vm_flags_init(c->mms[1].vma, c->mms[1].vma->vm_flags | VM_MIXEDMAP);
	new_folio(test, 4);
	step(test, ADD, 1, 0, 2);
	step(test, REMOVE, 1, 0, 2);

	page = alloc_pages(GFP_KERNEL | __GFP_COMP, 2);
	KUNIT_ASSERT_NOT_NULL(test, page);
	c->folio = page_folio(page);
	step(test, ADD, 0, 0, 2);
	step(test, REMOVE, 0, 0, 2);
	expect_mapcounts(test, 0, 0);
	__free_pages(page, 2);
}

#define expect_warning(test, wrong) do {				\
	struct kunit *__test = (test);					\
									\
	kunit_warning_suppress(__test) {				\
		wrong;							\
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(__test, 1);	\
	}								\
} while (0)

/* Removing a mapping that does not exist warns, as does a claim without the folio lock. */
static void test_warnings(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);
	u64 val;

	if (!IS_ENABLED(CONFIG_DEBUG_VM))
		kunit_skip(test, "needs CONFIG_DEBUG_VM");
	if (folio_test_large_rmappable(folio)) {
		folio_get(folio);
		expect_warning(test, scoped_guard(preempt)
			       folio_add_file_rmap_ptes(folio, &folio->page, 1, c->mms[0].vma));
		c->mms[0].ptes = 1;
		c->creator = c->mms[0].mm;
		step(test, REMOVE, 0, 0, 1);
	}
	if (folio_mapcounts_check_enabled())
		return;
	step(test, ADD, 0, 0, 1);
	val = folio_read_mapcounts(folio).val;
	expect_warning(test, __folio_add_mapcounts(folio, -2 * MAPCOUNTS_PTE, &folio->page,
						   -2, 0));
	KUNIT_EXPECT_TRUE(test, folio_mapped(folio));
	atomic64_set(&folio->_mapcounts, val);
	expect_warning(test, __folio_add_mapcounts(folio, -MAPCOUNTS_PMD, &folio->page, 0, -1));
	atomic64_set(&folio->_mapcounts, val);
	step(test, REMOVE, 0, 0, 1);
}

/* Adoption warns if the creator has mappings, or if there are more than were found. */
static void test_adopt_wrong(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);
	struct folio_mapcounts was;

	if (!IS_ENABLED(CONFIG_DEBUG_VM))
		kunit_skip(test, "needs CONFIG_DEBUG_VM");
	step(test, NEW_EXCLUSIVE, 0, 0, 16);
	step(test, DUP, 1, 0, 16);
	/* The creator maps the last page, another MM the last two. */
	step(test, REMOVE, 0, 0, 15);
	step(test, REMOVE, 1, 0, 14);
	folio_lock(folio);

	/* The creator is not gone, though the sum is right. */
	expect_warning(test, folio_adopt(folio, c->mms[1].mm, 2));
	atomic64_sub(2 * MAPCOUNTS_CREATOR, &folio->_mapcounts);
	folio->_creator = c->mms[0].mm;
	folio_unlock(folio);
	step(test, REMOVE, 0, 15, 1);

	/* There is one entry more than was found. */
	folio_lock(folio);
	expect_warning(test, folio_adopt(folio, c->mms[1].mm, 1));
	atomic64_add(MAPCOUNTS_CREATOR, &folio->_mapcounts);
	folio_unlock(folio);
	c->creator = c->mms[1].mm;

	/* The creator has no more entries than there are: this was one of its. */
	expect_warning(test, do_step(c, &(struct step){ REMOVE, 0, 14, 1 }));
	was = folio_read_mapcounts(folio);
	atomic64_sub(MAPCOUNTS_CREATOR, &folio->_mapcounts);
	folio_account_mapcounts(folio, was, folio_read_mapcounts(folio), PGTABLE_LEVEL_PTE);
	c->mms[0].ptes++;
	c->mms[1].ptes--;
	step(test, REMOVE, 1, 15, 1);
}

#define NR_THREADS	4
#define NR_ROUNDS	3000

struct racer {
	struct rmap_ctx *c;
	struct completion done;
	u64 seed;
	bool pmd;
};

/* Maps and unmaps at random; what it has mapped at the end is nothing. */
static int race(void *data)
{
	struct racer *r = data;
	struct vm_area_struct *vma = r->c->mms[0].vma;
	struct folio *folio = r->c->folio;
	const int nr_pages = folio_nr_pages(folio);
	struct rnd_state rnd;
	int i;

	prandom_seed_state(&rnd, r->seed);
	for (i = 0; i < NR_ROUNDS; i++) {
		const u32 v = prandom_u32_state(&rnd);
		const int first = v % nr_pages;
		const int nr = 1 + (v >> 16) % min(nr_pages - first, 16);
		const bool pmd = r->pmd && v & BIT(31);

		folio_ref_add(folio, nr);
		scoped_guard(preempt) {
			if (pmd)
				folio_add_file_rmap_pmd(folio, &folio->page, vma);
			folio_add_file_rmap_ptes(folio, folio_page(folio, first), nr, vma);
		}
		scoped_guard(preempt) {
			folio_remove_rmap_ptes(folio, folio_page(folio, first), nr, vma);
			if (pmd)
				folio_remove_rmap_pmd(folio, &folio->page, vma);
		}
		folio_put_refs(folio, nr);
	}
	complete(&r->done);
	return 0;
}

/*
 * Threads change the mapcounts of a folio concurrently, without a common lock, while one
 * PTE stays mapped. In the end, this PTE is the only mapping.
 */
static void test_race(struct kunit *test)
{
	const unsigned int orders[] = { 1, 4, TEST_MAX_ORDER };
	static struct racer racers[NR_THREADS];
	struct rmap_ctx *c = test->priv;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(orders); i++) {
		new_folio(test, orders[i]);
		step(test, ADD, 0, 0, 1);
		for (j = 0; j < NR_THREADS; j++) {
			racers[j] = (struct racer){
				.c = c, .seed = j + 1,
				.pmd = IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) &&
				       orders[i] == TEST_MAX_ORDER,
			};
			init_completion(&racers[j].done);
			if (IS_ERR(kthread_run(race, &racers[j], "rmap_race/%d", j)))
				break;
		}
		KUNIT_EXPECT_EQ(test, j, NR_THREADS);
		while (j--)
			wait_for_completion(&racers[j].done);
		step(test, REMOVE, 0, 0, 1);
		free_folio(test);
	}
}

struct flags_racer {
	struct folio *folio;
	unsigned long end;	/* jiffies */
	struct completion done;
	int lost;
};

/*
 * Change other flags of these pages while test_exclusive_race() changes
 * PG_anon_exclusive. PG_unevictable is in the byte of PG_hwpoison and exists in all
 * configurations. The first two pages have flags of the folio.
 */
static int race_flags(void *data)
{
	struct flags_racer *r = data;
	bool set = false;
	int i;

	while (set || time_before(jiffies, r->end)) {
		for (i = 0; i < 4; i++) {
			unsigned long *flags = &folio_page(r->folio, i)->flags.f;
			const int bit = i < 2 ? PG_active : PG_unevictable;

			if (set)
				r->lost += !test_and_clear_bit(bit, flags);
			else
				r->lost += test_and_set_bit(bit, flags);
		}
		set = !set;
		cond_resched();
	}
	complete(&r->done);
	return 0;
}

/* Concurrent changes of other flags and of PG_anon_exclusive are not lost. */
static void test_exclusive_race(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 2);
	struct flags_racer r = { .folio = folio, .end = jiffies + HZ / 2 };
	int i, lost = 0;

	BUILD_BUG_ON(PG_unevictable / BITS_PER_BYTE == PG_anon_exclusive / BITS_PER_BYTE);
	step(test, NEW_EXCLUSIVE, 0, 0, 4);
	init_completion(&r.done);
	KUNIT_ASSERT_FALSE(test, IS_ERR(kthread_run(race_flags, &r, "rmap_race_flags")));
	while (time_before(jiffies, r.end)) {
		spin_lock(&c->mms[0].mm->page_table_lock);
		folio_set_pages_anon_exclusive(folio, &folio->page, 4);
		for (i = 0; i < 4; i++)
			lost += !PageAnonExclusive(folio_page(folio, i));
		folio_clear_pages_anon_exclusive(folio, &folio->page, 4);
		for (i = 0; i < 4; i++)
			lost += PageAnonExclusive(folio_page(folio, i));
		spin_unlock(&c->mms[0].mm->page_table_lock);
		cond_resched();
	}
	wait_for_completion(&r.done);
	KUNIT_EXPECT_EQ(test, lost, 0);
	KUNIT_EXPECT_EQ(test, r.lost, 0);
	step(test, REMOVE, 0, 0, 4);
}

/* Add the entries that the page tables of the MM have for each page of the folio. */
static unsigned int count_entries(struct mm_struct *mm, const struct folio *folio,
				  unsigned int *counts)
{
	VMA_ITERATOR(vmi, mm, 0);
	struct vm_area_struct *vma;
	unsigned int sum = 0;
	struct folio_walk fw;
	unsigned long addr;

	mmap_read_lock(mm);
	for_each_vma(vmi, vma) {
		for (addr = vma->vm_start; addr < vma->vm_end; addr += PAGE_SIZE) {
			if (!folio_walk_start(&fw, vma, addr, 0))
				continue;
			if (page_folio(fw.page) == folio) {
				counts[folio_page_idx(folio, fw.page)]++;
				sum++;
			}
			folio_walk_end(&fw, vma);
		}
	}
	mmap_read_unlock(mm);
	return sum;
}

#define GUARD	0xa5a5a5a5

/*
 * Each page of each window gets the count of the page tables of this MM and of its
 * children; nothing is written beside it.
 */
static void check_counts(struct kunit *test, unsigned int pages, int line)
{
	struct rmap_ctx *c = test->priv;
	const unsigned int nr = folio_nr_pages(c->folio);
	const struct {
		unsigned int first, nr;
	} windows[] = { { 0, nr }, { 0, 1 }, { nr - 1, 1 }, { nr / 2 - 1, 2 }, { 1, nr - 2 } };
	unsigned int *truth = kunit_kcalloc(test, nr, sizeof(*truth), GFP_KERNEL);
	unsigned int *counts = kunit_kcalloc(test, nr + 2, sizeof(*counts), GFP_KERNEL);
	unsigned int i, sum;
	int err;

	KUNIT_ASSERT_NOT_NULL(test, truth);
	KUNIT_ASSERT_NOT_NULL(test, counts);
	sum = count_entries(c->mms[0].mm, c->folio, truth);
	for (i = 0; i < ARRAY_SIZE(c->children); i++)
		if (c->children[i])
			sum += count_entries(c->children[i], c->folio, truth);
	KUNIT_EXPECT_EQ_MSG(test, sum, pages, "line %d", line);

	for (i = 0; i < ARRAY_SIZE(windows); i++) {
		const unsigned int first = windows[i].first, n = windows[i].nr;

		memset32(counts, GUARD, nr + 2);
		folio_lock(c->folio);
		err = folio_page_mapcounts(c->folio, first, n, counts + 1);
		folio_unlock(c->folio);
		if (err || counts[0] != GUARD || counts[n + 1] != GUARD ||
		    memcmp(counts + 1, truth + first, n * sizeof(*counts)))
			KUNIT_FAIL(test, "line %d, pages %u + %u: error %d, or wrong counts",
				   line, first, n, err);
	}
	kunit_kfree(test, counts);
	kunit_kfree(test, truth);
}

#define expect_counts(test, pages) \
	check_counts(test, pages, __LINE__)

/* No walk finds as many mappings as folio->_mapcounts has. */
static void expect_no_counts(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	unsigned int count;

	folio_lock(c->folio);
	KUNIT_EXPECT_EQ(test, folio_page_mapcounts(c->folio, 1, 1, &count), -EAGAIN);
	folio_unlock(c->folio);
}

/* /proc/kpagecount says that pages [first, first + nr) are mapped so often. */
#define expect_kpagecount(test, first, nr, count) \
	check_kpagecount(test, first, nr, count, __LINE__)

static void check_kpagecount(struct kunit *test, int first, int nr, u64 count, int line)
{
	struct rmap_ctx *c = test->priv;
	loff_t pos = (folio_pfn(c->folio) + first) * sizeof(u64);
	const ssize_t size = nr * sizeof(u64);
	struct vfsmount *mnt;
	struct file *file;
	u64 __user *buf;
	u64 found = 0;
	int i;

	if (!IS_ENABLED(CONFIG_PROC_PAGE_MONITOR))
		return;
	mnt = kern_mount(get_fs_type("proc"));
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, mnt);
	file = file_open_root_mnt(mnt, "kpagecount", O_RDONLY, 0);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, file);
	buf = (u64 __user *)kunit_vm_mmap(test, NULL, 0, size, PROT_READ | PROT_WRITE,
					  MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_EXPECT_EQ(test, size, vfs_read(file, (char __user *)buf, size, &pos));
	for (i = 0; i < nr; i++) {
		KUNIT_EXPECT_EQ(test, 0, copy_from_user(&found, buf + i, sizeof(found)));
		KUNIT_EXPECT_EQ_MSG(test, found, count, "line %d, page %d", line, first + i);
	}
	fput(file);
	kern_unmount(mnt);
}

static vm_fault_t file_fault(struct vm_fault *vmf)
{
	struct rmap_ctx *c = vmf->vma->vm_file->private_data;

	if (vmf->pgoff >= folio_nr_pages(c->folio))
		return VM_FAULT_SIGBUS;
	folio_lock(c->folio);
	folio_get(c->folio);
	vmf->page = folio_page(c->folio, vmf->pgoff);
	return VM_FAULT_LOCKED;
}

static const struct vm_operations_struct file_vm_ops = {
	.fault = file_fault,
};

static int file_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct rmap_ctx *c = file->private_data;

	if (c->special)
		return remap_pfn_range(vma, vma->vm_start, folio_pfn(c->folio),
				       vma->vm_end - vma->vm_start,
				       vma->vm_page_prot);
	vma->vm_ops = &file_vm_ops;
	return 0;
}

static const struct file_operations file_fops = {
	.mmap = file_mmap,
};

KUNIT_DEFINE_ACTION_WRAPPER(close_file, fput, struct file *);

static void truncate_file(void *data)
{
	struct rmap_ctx *c = data;

	unmap_mapping_range(c->file->f_mapping, 0, 0, 1);
	c->folio->mapping = NULL;
}

/* A file of one folio: for the rmap, it need not be in the page cache. */
static struct folio *new_file(struct kunit *test, unsigned int order)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, order);

	c->file = anon_inode_create_getfile("[rmap_kunit]", &file_fops, c, O_RDONLY, NULL);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, c->file);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, close_file, c->file));
	/* Faults map nothing by PMDs that is not within i_size. */
	i_size_write(file_inode(c->file), folio_size(folio));
	folio->index = 0;
	folio->mapping = c->file->f_mapping;
	folio_mark_uptodate(folio);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, truncate_file, c));
	return folio;
}

/* Map @nr pages of the file, from @first, and read @nr_read of them. */
static void map_pages(struct kunit *test, unsigned long addr, unsigned long first,
		      unsigned long nr, unsigned long nr_read)
{
	struct rmap_ctx *c = test->priv;

	KUNIT_ASSERT_EQ(test, addr,
			vm_mmap(c->file, addr, nr * PAGE_SIZE, PROT_READ,
				MAP_SHARED | MAP_FIXED, first * PAGE_SIZE));
	KUNIT_ASSERT_EQ(test, 0, fault_in_readable((char __user *)addr, nr_read * PAGE_SIZE));
}

/* A file that an MM maps twice, once by a PMD if there are, once by PTEs. */
static void test_counts_file(struct kunit *test)
{
	const int nr = PMD_PAGES;
	const unsigned long size = nr * PAGE_SIZE;
	struct folio *folio = new_file(test, TEST_MAX_ORDER);
	struct rmap_ctx *c = test->priv;

	map_pages(test, c->addr + size, nr / 4, nr / 2, 5);
	expect_counts(test, 5);
	expect_kpagecount(test, 0, nr / 4, 0);
	expect_kpagecount(test, nr / 4, 5, 1);
	/* The walk finds one mapping less, or more, than the mapcounts have. */
	atomic64_add(MAPCOUNTS_PTE, &folio->_mapcounts);
	expect_no_counts(test);
	expect_kpagecount(test, 0, nr, 1);
	atomic64_sub(2 * MAPCOUNTS_PTE, &folio->_mapcounts);
	expect_no_counts(test);
	atomic64_add(MAPCOUNTS_PTE, &folio->_mapcounts);
	map_pages(test, c->addr, 0, nr, nr);
	expect_counts(test, nr + 5);

	/* Special entries are not counted, though the rmap finds their VMA. */
	c->special = true;
	map_pages(test, c->addr + size + size / 2, 0, 4, 0);
	expect_counts(test, nr + 5);

	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr + size + PAGE_SIZE, PAGE_SIZE));
	expect_counts(test, nr + 4);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, size));
	expect_counts(test, 4);
}

/* The rmap does not find what drivers map. */
static void test_counts_driver(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;

	new_folio(test, 4);
	expect_kpagecount(test, 0, 16, 0);
	step(test, ADD, 0, 0, 3);
	expect_no_counts(test);
	/* kpagecount does not wait for the folio lock. */
	folio_lock(c->folio);
	expect_kpagecount(test, 0, 16, 1);
	folio_unlock(c->folio);
	step(test, ADD, 0, 0, 16);
	expect_kpagecount(test, 0, 16, 1);
	step(test, ADD, 0, 0, 8);
	expect_kpagecount(test, 0, 16, 2);
	step(test, REMOVE, 0, 0, 8);
	step(test, REMOVE, 0, 0, 16);
	step(test, REMOVE, 0, 0, 3);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
#define NR_PARTS	2
#define FEW		3

enum mix { BY_PMD, BY_PTES, BY_FEW_PTES, UNMAPPED, NR_MIXES };

/* From BY_PMD or BY_PTES on, have an MM map a part of the folio in another way. */
static enum mix change_part(struct kunit *test, int mm, int part, enum mix from, enum mix to)
{
	const int first = part * PMD_PAGES;

	if (from == BY_PMD && to == UNMAPPED) {
		step(test, REMOVE_PMD, mm, first, 0);
	} else if (from == BY_PMD && to != BY_PMD) {
		step(test, SPLIT_PMD, mm, first, 0);
		from = BY_PTES;
	}
	if (from == BY_PTES && to == UNMAPPED)
		step(test, REMOVE, mm, first, PMD_PAGES);
	else if (from == BY_PTES && to == BY_FEW_PTES)
		step(test, REMOVE, mm, first + FEW, PMD_PAGES - FEW);
	else if (from == BY_FEW_PTES && to == UNMAPPED)
		step(test, REMOVE, mm, first, FEW);
	return to;
}

static void run_mix(struct kunit *test, const int *mix)
{
	struct folio *folio = new_folio(test, TEST_MAX_ORDER + 1);
	int part, i;

	step(test, NEW_EXCLUSIVE, 0, 0, 1);
	KUNIT_EXPECT_TRUE(test, PageAnonExclusive(folio_page(folio, PMD_PAGES)));
	for (part = 0; part < NR_PARTS; part++)
		step(test, DUP_PMD, 1, part * PMD_PAGES, 1);
	for (i = 0; i < 4; i++)
		change_part(test, i / 2, i % 2, BY_PMD, mix[i]);

	/* The last MM that maps the folio adopts it. */
	if (mix[0] == UNMAPPED && mix[1] == UNMAPPED && folio_mapped(folio))
		step(test, ADOPT, 1, 0, 0);

	/* The parts go in the other order. */
	for (part = NR_PARTS - 1; part >= 0; part--)
		for (i = 0; i < 2; i++)
			change_part(test, i, part, mix[2 * i + part], UNMAPPED);
	free_folio(test);
}

/* All ways in which two MMs can map both parts of a folio of two PMDs. */
static void test_two_pmds(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	int i, tries;

	for (i = 0; i < NR_MIXES * NR_MIXES * NR_MIXES * NR_MIXES; i++) {
		const int mix[] = { i % 4, i / 4 % 4, i / 16 % 4, i / 64 };

		for (tries = 0; !tries || (c->miscounted && tries < 10); tries++)
			run_mix(test, mix);
		KUNIT_EXPECT_FALSE_MSG(test, c->miscounted, "statistics, mix %d", i);
	}
}

/* The pages of the part that is split are exclusive then, and no others. */
static void test_two_pmds_exclusive(struct kunit *test)
{
	struct folio *folio;
	int split, i;

	for (split = 0; split < NR_PARTS; split++) {
		folio = new_folio(test, TEST_MAX_ORDER + 1);
		step(test, NEW_EXCLUSIVE, 0, 0, 1);
		step(test, SPLIT_PMD, 0, split * PMD_PAGES, 0);
		for (i = 0; i < NR_PARTS * PMD_PAGES; i++)
			KUNIT_EXPECT_EQ(test, PageAnonExclusive(folio_page(folio, i)),
					i / PMD_PAGES == split || i % PMD_PAGES == 0);
		step(test, REMOVE, 0, split * PMD_PAGES, PMD_PAGES);
		step(test, REMOVE_PMD, 0, !split * PMD_PAGES, 0);
		free_folio(test);
	}
}

/*
 * khugepaged must not collapse what a test maps by PTEs. With this flag set, the MM
 * is not registered, and khugepaged never scans it.
 */
static void hide_from_khugepaged(struct mm_struct *mm)
{
	mm_flags_set(MMF_VM_HUGEPAGE, mm);
}

/* Have a write fault map a THP by a PMD. */
static struct folio *fault_thp(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct mm_struct *mm = c->mms[0].mm;
	struct vm_area_struct *vma;
	struct folio_walk fw;

	hide_from_khugepaged(mm);
	KUNIT_ASSERT_EQ(test, 0, do_madvise(mm, c->addr, HPAGE_PMD_SIZE, MADV_HUGEPAGE));
	KUNIT_ASSERT_EQ(test, 0, put_user(1, (int __user *)c->addr));
	mmap_read_lock(mm);
	vma = vma_lookup(mm, c->addr);
	c->folio = folio_walk_start(&fw, vma, c->addr, 0);
	if (c->folio) {
		folio_get(c->folio);
		folio_walk_end(&fw, vma);
	}
	mmap_read_unlock(mm);
	KUNIT_ASSERT_NOT_NULL(test, c->folio);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, put_folio, c->folio));
	if (fw.level != FW_LEVEL_PMD)
		kunit_skip(test, "the fault did not map a THP");
	return c->folio;
}

static void split_pmd(struct rmap_ctx *c)
{
	struct mm_struct *mm = c->mms[0].mm;

	mmap_read_lock(mm);
	split_huge_pmd_address(vma_lookup(mm, c->addr), c->addr, false);
	mmap_read_unlock(mm);
}

static struct mm_struct *fork_mm(struct kunit *test, int result)
{
	struct rmap_ctx *c = test->priv;
	struct mm_struct *child = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, child);
	child->task_size = c->mms[0].mm->task_size;
	hide_from_khugepaged(child);
	KUNIT_ASSERT_EQ(test, result, dup_mmap(child, c->mms[0].mm));
	return child;
}

/* What the MM does with its THP, and which entries map the folio then. */
static const struct thp_case {
	const char *desc;
	struct {
		enum {
			FORK = 1, EXIT, COW, UNMAP,
			SPLIT, ZAP,
			PROT_NONE_PTE, MIGRATE, MIGRATE_BACK,
		} what;
		int first, nr;		/* the child, or pages */
		int full, more, pmds;	/* full page tables of PTEs, and more PTEs; PMDs */
	} steps[12];
} thp_table[] = {
	{
		.desc = "write to a shared THP",
		.steps = {
			{ FORK,		0, 0,		0, 0, 2 },
			{ COW,		0, 0,		1, -1, 1 },
			{ EXIT,		0, 0,		1, -1, 0 },
			{ UNMAP,	0, ALL,		0, 0, 0 },
		},
	}, {
		.desc = "split, then fork",
		.steps = {
			{ SPLIT,	0, 0,		1, 0, 0 },
			{ FORK,		0, 0,		2, 0, 0 },
			{ UNMAP,	0, 1,		2, -1, 0 },
			{ EXIT,		0, 0,		1, -1, 0 },
			{ UNMAP,	1, 3,		1, -4, 0 },
			{ UNMAP,	0, ALL,		0, 0, 0 },
		},
	}, {
		.desc = "fork, then split",
		.steps = {
			{ FORK,		0, 0,		0, 0, 2 },
			{ SPLIT,	0, 0,		1, 0, 1 },
			{ FORK,		1, 0,		2, 0, 1 },
			{ EXIT,		0, 0,		2, 0, 0 },
			{ ZAP,		0, 16,		2, -16, 0 },
			{ EXIT,		1, 0,		1, -16, 0 },
			{ UNMAP,	0, ALL,		0, 0, 0 },
		},
	}, {
		/* No batch has entries with different protections. */
		.desc = "count several batches, and migration entries",
		.steps = {
			{ FORK,		0, 0,		0, 0, 2 },
			{ SPLIT,	0, 0,		1, 0, 1 },
			{ PROT_NONE_PTE, 20, 0,		1, 0, 1 },
			{ ZAP,		9, 4,		1, -4, 1 },
			{ UNMAP,	0, 3,		1, -7, 1 },
			{ FORK,		1, 0,		2, -14, 1 },
			{ EXIT,		0, 0,		2, -14, 0 },
			{ MIGRATE,	0, 0,		0, 0, 0 },
			{ MIGRATE_BACK,	0, 0,		2, -14, 0 },
			{ EXIT,		1, 0,		1, -7, 0 },
			{ UNMAP,	0, ALL,		0, 0, 0 },
		},
	},
};

KUNIT_ARRAY_PARAM_DESC(thp, thp_table, desc);

/* As NUMA balancing does. The mapping is removed with the MM. */
static void prot_none_pte(struct rmap_ctx *c, unsigned long addr)
{
	struct mm_struct *mm = c->mms[0].mm;
	struct folio_walk fw;

	mmap_read_lock(mm);
	if (folio_walk_start(&fw, vma_lookup(mm, addr), addr, 0)) {
		set_pte_at(mm, addr, fw.ptep, pte_modify(ptep_get(fw.ptep), PAGE_NONE));
		folio_walk_end(&fw, vma_lookup(mm, addr));
	}
	mmap_read_unlock(mm);
}

static void test_thp(struct kunit *test)
{
	const struct thp_case *t = test->param_value;
	struct rmap_ctx *c = test->priv;
	struct folio *folio = fault_thp(test);
	int i;

	for (i = 0; i < ARRAY_SIZE(t->steps) && t->steps[i].what; i++) {
		const int first = t->steps[i].first, pmds = t->steps[i].pmds;
		const unsigned long addr = c->addr + first * PAGE_SIZE;
		const unsigned long size = table_nr(folio, t->steps[i].nr) * PAGE_SIZE;
		const int ptes = t->steps[i].full * HPAGE_PMD_NR + t->steps[i].more;

		switch (t->steps[i].what) {
		case FORK:
			c->children[first] = fork_mm(test, 0);
			break;
		case EXIT:
			mmput(c->children[first]);
			c->children[first] = NULL;
			break;
		case COW:
			KUNIT_EXPECT_EQ(test, 0, put_user(2, (int __user *)addr));
			break;
		case UNMAP:
			KUNIT_EXPECT_EQ(test, 0, vm_munmap(addr, size));
			break;
		case SPLIT:
			split_pmd(c);
			break;
		case ZAP:
			KUNIT_EXPECT_EQ(test, 0, do_madvise(c->mms[0].mm, addr, size,
							    MADV_DONTNEED));
			break;
		case PROT_NONE_PTE:
			prot_none_pte(c, addr);
			break;
		case MIGRATE:
		case MIGRATE_BACK:
			folio_lock(folio);
			if (t->steps[i].what == MIGRATE)
				try_to_migrate(folio, 0);
			else
				remove_migration_ptes(folio, folio, 0);
			folio_unlock(folio);
			break;
		}
		check_mapcounts(test, ptes, pmds, i);
		check_counts(test, ptes + pmds * HPAGE_PMD_NR, i);
	}
}

/* A page that a device has for itself stays mapped, though its entry is not present. */
static void test_device_exclusive(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = fault_thp(test);
	unsigned int counts[2] = {};
	struct page *page;

	if (!IS_ENABLED(CONFIG_DEVICE_PRIVATE))
		kunit_skip(test, "no device-exclusive entries in this kernel");
	split_pmd(c);
	mmap_read_lock(c->mms[0].mm);
	page = make_device_exclusive(c->mms[0].mm, c->addr, c, &folio);
	mmap_read_unlock(c->mms[0].mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(page));
	KUNIT_EXPECT_EQ(test, 0, folio_page_mapcounts(folio, 0, 2, counts));
	KUNIT_EXPECT_EQ(test, counts[0], 1U);
	KUNIT_EXPECT_EQ(test, counts[1], 1U);
	folio_unlock(folio);
	folio_put(folio);
}

/* At the bound, fork() of a PMD, and then of PTEs, fails, and leaves nothing behind. */
static void test_fork_bound(struct kunit *test)
{
	const int nr = HPAGE_PMD_NR;
	const u64 others = MAPCOUNTS_PAGES_MAX - 2 * nr;
	struct folio *folio = fault_thp(test);
	int split;

	if (HPAGE_PMD_NR != MAX_PTRS_PER_PTE)
		kunit_skip(test, "PMDs map fewer pages here");
	for (split = 0; split < 2; split++) {
		/* folio_mapcounts_check would report mappings that do not exist. */
		kunit_warning_suppress(test) {
			struct mm_struct *child;

			atomic64_add(others * MAPCOUNTS_PTE, &folio->_mapcounts);
			child = fork_mm(test, 0);
			expect_mapcounts(test, others + split * 2 * nr, split ? 0 : 2);
			mmput(child);
			atomic64_add(MAPCOUNTS_PTE, &folio->_mapcounts);
			child = fork_mm(test, -ENOMEM);
			mmput(child);
			atomic64_sub((others + 1) * MAPCOUNTS_PTE, &folio->_mapcounts);
		}
		/* The PMD was split to try with PTEs. */
		expect_mapcounts(test, nr, 0);
		KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 1 + nr);
	}
}

/*
 * MMs that share a folio unmap parts of it. Only a walk of the mappings finds out
 * which pages no MM maps any more.
 */
#define LAST		(-4)

static const struct walk_case {
	const char *desc;
	int first[2];		/* page that parent and child unmap, */
	int nr[2];		/* and how many pages */
	bool pmd;		/* a third MM maps the folio by a PMD */
	bool locked;		/* the VMA of the child is mlocked, */
	bool sequential;	/* or reclaim ignores its references */
	int result;
} walk_table[] = {
	{ "nothing" },
	{ "the same half", .nr = { HALF, HALF }, .result = 1 },
	{ "the first page, and one of them more", .nr = { 1, 7 }, .result = 1 },
	{ "ranges that have one page in common", { 2, 9 }, { 8, 20 }, .result = 1 },
	{ "the last page", { LAST, LAST }, { 1, 1 }, .result = 1 },
	{ "the same half, one VMA without recency", .nr = { HALF, HALF },
	  .sequential = true, .result = 1 },
	{ "the same half, one VMA is mlocked", .nr = { HALF, HALF },
	  .locked = true, .result = 1 },
	{ "ranges side by side", { 2, 10 }, { 8, 20 }, .result = -EAGAIN },
	{ "a page, of one", { LAST }, { 1, 0 }, .result = -EAGAIN },
	{ "the same half, a third has a PMD", .nr = { HALF, HALF },
	  .pmd = true, .result = -EAGAIN },
};

KUNIT_ARRAY_PARAM_DESC(walk, walk_table, desc);

static void zap_pages(struct kunit *test, struct mm_struct *mm, int first, int nr)
{
	struct rmap_ctx *c = test->priv;
	unsigned long addr;

	if (first == LAST)
		first = folio_nr_pages(c->folio) - 1;
	addr = c->addr + first * PAGE_SIZE;
	mmap_read_lock(mm);
	if (nr)
		zap_vma_range(vma_lookup(mm, addr), addr, table_nr(c->folio, nr) * PAGE_SIZE);
	mmap_read_unlock(mm);
}

static int walk_partial(struct folio *folio)
{
	int result;

	folio_lock(folio);
	result = folio_walk_partially_mapped(folio);
	folio_unlock(folio);
	return result;
}

static void test_walk_partial(struct kunit *test)
{
	const struct walk_case *t = test->param_value;
	struct mm_struct *child, *third = NULL;
	struct rmap_ctx *c = test->priv;
	struct folio *folio = fault_thp(test);

	if (t->pmd)
		third = fork_mm(test, 0);
	split_pmd(c);
	child = fork_mm(test, 0);
	if (t->sequential)
		KUNIT_EXPECT_EQ(test, 0, do_madvise(child, c->addr, HPAGE_PMD_SIZE,
						    MADV_SEQUENTIAL));
	if (t->locked) {
		mmap_write_lock(child);
		vm_flags_set(vma_lookup(child, c->addr), VM_LOCKED);
		mmap_write_unlock(child);
	}
	zap_pages(test, c->mms[0].mm, t->first[0], t->nr[0]);
	zap_pages(test, child, t->first[1], t->nr[1]);
	if (t->nr[0])
		KUNIT_EXPECT_FALSE(test, list_empty(&folio->_deferred_list));
	KUNIT_EXPECT_EQ(test, t->result, walk_partial(folio));

	if (third) {
		mmput(third);
		KUNIT_EXPECT_EQ(test, 1, walk_partial(folio));
	}
	mmput(child);
}

/* A folio that takes two walks: it need not be anonymous for that. */
static void test_walk_large(struct kunit *test)
{
	struct folio *folio = new_file(test, TEST_MAX_ORDER + 1);
	const int nr = folio_nr_pages(folio);
	struct rmap_ctx *c = test->priv;

	/* Another MM is the creator. */
	step(test, ADD, 1, 0, 1);
	map_pages(test, c->addr, 0, nr, nr);
	do_step(c, &(struct step){ REMOVE, 1, 0, 1 });
	KUNIT_EXPECT_EQ(test, 0, walk_partial(folio));
	zap_pages(test, c->mms[0].mm, LAST, 1);
	KUNIT_EXPECT_EQ(test, 1, walk_partial(folio));
}

/* Every other page is mapped, so that no PTEs are in a batch. */
static void test_walk_bound(struct kunit *test)
{
	const int nr = HPAGE_PMD_NR / 2, max = 2048;
	struct folio *folio = fault_thp(test);
	struct rmap_ctx *c = test->priv;
	struct mm_struct **mms;
	int i;

	mms = kunit_kcalloc(test, max / nr + 1, sizeof(*mms), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, mms);
	split_pmd(c);
	for (i = 0; i < nr; i++)
		zap_pages(test, c->mms[0].mm, 2 * i, 1);
	for (i = 0; (i + 1) * nr <= max; i++) {
		if (i && (i + 1) * (nr + 1) <= max)
			KUNIT_EXPECT_EQ(test, 1, walk_partial(folio));
		mms[i] = fork_mm(test, 0);
	}
	if (!i)
		mms[i++] = fork_mm(test, 0);
	KUNIT_EXPECT_EQ(test, -EAGAIN, walk_partial(folio));
	while (i)
		mmput(mms[--i]);
}

/* What queues the folio for the shrinker, and what does the shrinker do with it? */
static void test_shrink_partial(struct kunit *test)
{
	struct folio *folio = fault_thp(test);
	struct rmap_ctx *c = test->priv;
	struct mm_struct *child, *other;

	/* It is in the queue from the start, in case that it is underused. */
	drop_slab();
	KUNIT_EXPECT_TRUE(test, list_empty(&folio->_deferred_list));

	split_pmd(c);
	child = fork_mm(test, 0);
	other = fork_mm(test, 0);
	KUNIT_EXPECT_EQ(test, 0, put_user(1, (int __user *)c->addr));
	zap_pages(test, other, 0, ALL);
	mmput(other);
	other = fork_mm(test, 0);
	mmput(other);
	KUNIT_EXPECT_TRUE(test, list_empty(&folio->_deferred_list));

	zap_pages(test, c->mms[0].mm, 0, HALF);
	KUNIT_EXPECT_FALSE(test, list_empty(&folio->_deferred_list));
	drop_slab();
	KUNIT_EXPECT_FALSE(test, list_empty(&folio->_deferred_list));
	KUNIT_EXPECT_FALSE(test, folio_test_partially_mapped(folio));

	/* The reference of the test keeps it from being split. */
	zap_pages(test, child, 0, HALF);
	KUNIT_EXPECT_FALSE(test, folio_test_partially_mapped(folio));
	drop_slab();
	KUNIT_EXPECT_FALSE(test, list_empty(&folio->_deferred_list));
	KUNIT_EXPECT_TRUE(test, folio_test_partially_mapped(folio));
	mmput(child);
}
#endif /* CONFIG_TRANSPARENT_HUGEPAGE */

/*
 * What folio_mapcounts_check reports: each test does one thing wrong, which the
 * check must see at once, and once. What is right in the same test it must let
 * pass: a warning that is not expected fails the run.
 */
static int check_test_init(struct kunit *test)
{
	if (!folio_mapcounts_check_enabled())
		kunit_skip(test, "needs folio_mapcounts_check=on");
	return rmap_test_init(test);
}

static void map_ptes(struct kunit *test, int first, int nr)
{
	KUNIT_EXPECT_EQ(test, 0, do_step(test->priv, &(struct step){ ADD, 0, first, nr }));
}

static void unmap_ptes(struct kunit *test, int first, int nr)
{
	KUNIT_EXPECT_EQ(test, 0, do_step(test->priv, &(struct step){ REMOVE, 0, first, nr }));
}

/* The mapcounts are right, but it is another page that is unmapped. */
static void test_check_wrong_page(struct kunit *test)
{
	new_folio(test, 4);
	map_ptes(test, 2, 4);
	expect_warning(test, unmap_ptes(test, 5, 2));
	/* Have the page mapped that was not. */
	map_ptes(test, 6, 1);
	unmap_ptes(test, 2, 3);
	expect_mapcounts(test, 0, 0);
}

/* The delta is too small for what is mapped: a batch, and a PTE with a PMD. */
static void test_check_wrong_delta(struct kunit *test)
{
	const u64 one = MAPCOUNTS_PTE;
	struct folio *folio = new_folio(test, TEST_MAX_ORDER);

	expect_warning(test, folio_mapcounts_check_add(folio, one, &folio->page, 2, 0));
	folio_mapcounts_check_add(folio, -one, &folio->page, -2, 0);
	expect_warning(test, folio_mapcounts_check_add(folio, one, &folio->page, 1, 1));
	folio_mapcounts_check_add(folio, -one, &folio->page, -1, -1);
	expect_mapcounts(test, 0, 0);
}

/*
 * Overwritten mapcounts are reported by the next addition, and by the next reuse; and a
 * page that is mapped twice by the next reuse.
 */
static void test_check_reuse(struct kunit *test)
{
	struct folio *folio = new_folio(test, 4);

	map_ptes(test, 0, 16);
	atomic64_inc(&folio->_mapcounts);
	expect_warning(test, map_ptes(test, 3, 1));
	expect_warning(test, unmap_ptes(test, 3, 1));
	expect_warning(test, folio_mapcounts_check_reuse(folio));
	atomic64_dec(&folio->_mapcounts);
	folio_mapcounts_check_reuse(folio);
	unmap_ptes(test, 15, 1);
	map_ptes(test, 14, 1);
	expect_warning(test, folio_mapcounts_check_reuse(folio));
	unmap_ptes(test, 14, 1);
	unmap_ptes(test, 0, 15);
}

/* A page that becomes exclusive must be mapped exactly once. */
static void test_check_exclusive(struct kunit *test)
{
	struct folio *folio = new_folio(test, 4);
	struct rmap_ctx *c = test->priv;
	struct page *page = &folio->page;

	step(test, NEW, 0, 0, 16);
	folio_mapcounts_check_exclusive(folio, page, 16);
	map_ptes(test, 1, 1);
	folio_mapcounts_check_exclusive(folio, page + 2, 14);
	folio_get(folio);
	folio_lock(folio);
	/* KUnit allocates memory to expect a report: lock within. */
	expect_warning(test, scoped_guard(spinlock, &c->mms[0].mm->page_table_lock)
		       folio_add_anon_rmap_pte(folio, page, c->mms[0].vma, c->addr,
					       RMAP_EXCLUSIVE));
	ClearPageAnonExclusive(page);
	folio_unlock(folio);
	unmap_ptes(test, 0, 16);
	expect_warning(test, folio_mapcounts_check_exclusive(folio, page, 3));
	unmap_ptes(test, 0, 2);
}

/* No PTE or PMD may map a folio that is split or migrated. */
static void test_check_unmapped(struct kunit *test)
{
	struct folio *folio = new_folio(test, TEST_MAX_ORDER);
	const int last = folio_nr_pages(folio) - 1;

	folio_mapcounts_check_unmapped(folio);
	map_ptes(test, last, 1);
	expect_warning(test, folio_mapcounts_check_unmapped(folio));
	unmap_ptes(test, last, 1);
	folio_mapcounts_check_unmapped(folio);
	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		return;
	step(test, ADD_PMD, 0, 0, 0);
	expect_warning(test, folio_mapcounts_check_unmapped(folio));
	step(test, REMOVE_PMD, 0, 0, 0);
}

/* The mapcounts say that nothing is mapped, but one page is still. */
static void test_check_free(struct kunit *test)
{
	new_folio(test, 4);
	map_ptes(test, 3, 1);
	expect_warning(test, unmap_ptes(test, 4, 1));
	expect_mapcounts(test, 0, 0);
	expect_warning(test, free_folio(test));
	/* The next user of the pages is not affected. */
	new_folio(test, 4);
	map_ptes(test, 0, 16);
	unmap_ptes(test, 0, 16);
}

static struct kunit_case check_test_cases[] = {
	KUNIT_CASE(test_check_wrong_page),
	KUNIT_CASE(test_check_wrong_delta),
	KUNIT_CASE(test_check_reuse),
	KUNIT_CASE(test_check_exclusive),
	KUNIT_CASE(test_check_unmapped),
	KUNIT_CASE(test_check_free),
	{}
};

static struct kunit_suite check_test_suite = {
	.name = "folio_mapcounts_check",
	.init = check_test_init,
	.test_cases = check_test_cases,
};

static struct kunit_case rmap_test_cases[] = {
	KUNIT_CASE_PARAM(test_scenario, scenario_gen_params),
	KUNIT_CASE(test_hugetlb),
	KUNIT_CASE(test_bounds),
	KUNIT_CASE(test_no_claim),
	KUNIT_CASE(test_warnings),
	KUNIT_CASE(test_adopt_wrong),
	KUNIT_CASE(test_race),
	KUNIT_CASE(test_exclusive_race),
	KUNIT_CASE(test_counts_file),
	KUNIT_CASE(test_counts_driver),
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	KUNIT_CASE(test_two_pmds),
	KUNIT_CASE(test_two_pmds_exclusive),
	KUNIT_CASE_PARAM(test_thp, thp_gen_params),
	KUNIT_CASE(test_device_exclusive),
	KUNIT_CASE(test_fork_bound),
	KUNIT_CASE_PARAM(test_walk_partial, walk_gen_params),
	KUNIT_CASE(test_walk_large),
	KUNIT_CASE(test_walk_bound),
	KUNIT_CASE(test_shrink_partial),
#endif
	{}
};

static struct kunit_suite rmap_test_suite = {
	.name = "rmap",
	.init = rmap_test_init,
	.test_cases = rmap_test_cases,
};

kunit_test_suites(&rmap_test_suite, &check_test_suite);
