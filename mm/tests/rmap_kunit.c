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
#include <linux/gfp.h>
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
#include <linux/workqueue.h>

#include "../internal.h"

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
#define TEST_MAX_ORDER	HPAGE_PMD_ORDER
#else
#define TEST_MAX_ORDER	9
#endif

/* An MM, a VMA in it, and room for the largest folio at a natural address. */
struct rmap_ctx {
	struct mm_struct *mm;
	struct vm_area_struct *vma;
	unsigned long addr;
	struct folio *folio;
	bool others;	/* not only the creator maps it */
	struct file *file;
	bool special;	/* mmap() of the file maps PFNs */
};

static int rmap_test_init(struct kunit *test)
{
	const unsigned long size = PAGE_SIZE << TEST_MAX_ORDER;
	struct rmap_ctx *c = kunit_kzalloc(test, sizeof(*c), GFP_KERNEL);
	unsigned long start;
	int err;

	KUNIT_ASSERT_NOT_NULL(test, c);
	/* There is no deferred split queue without huge pages. */
	if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && !has_transparent_hugepage())
		kunit_skip(test, "no huge pages on this machine");
	start = kunit_vm_mmap(test, NULL, 0, 3 * size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_NE(test, start, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR_VALUE(start));

	c->mm = current->mm;
	c->addr = ALIGN(start, size);
	mmap_read_lock(c->mm);
	c->vma = vma_lookup(c->mm, c->addr);
	err = c->vma ? anon_vma_prepare(c->vma) : -EFAULT;
	mmap_read_unlock(c->mm);
	KUNIT_ASSERT_EQ(test, err, 0);

	test->priv = c;
	return 0;
}

KUNIT_DEFINE_ACTION_WRAPPER(put_folio, folio_put, struct folio *);

static struct folio *new_folio(struct kunit *test, unsigned int order)
{
	struct rmap_ctx *c = test->priv;

	c->folio = folio_alloc(GFP_HIGHUSER | __GFP_ZERO | __GFP_NOWARN, order);
	if (!c->folio)
		kunit_skip(test, "no free folio of order %u", order);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, put_folio, c->folio));
	/* The deferred split queue is that of the folio's memcg. */
	KUNIT_ASSERT_EQ(test, 0, mem_cgroup_charge(c->folio, c->mm, GFP_KERNEL));
	return c->folio;
}

static void free_folio(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;

	kunit_release_action(test, put_folio, c->folio);
}

#define expect_mapcounts(test, folio, ptes, pmds) \
	__expect_mapcounts(test, folio, ptes, pmds, __LINE__)

static void __expect_mapcounts(struct kunit *test, const struct folio *folio,
			       unsigned int ptes, unsigned int pmds, int line)
{
	const struct folio_mapcounts mc = folio_read_mapcounts(folio);
	const struct rmap_ctx *c = test->priv;
	const bool mapped = ptes || pmds;
	unsigned int creator = 0;

	/* Unless the test itself checks creator, all mappings are the creator's. */
	if (!c->others && folio->_creator)
		creator = (ptes + pmds) & (BIT(MAPCOUNTS_CREATOR_BITS) - 1);

	if (mapcounts_ptes(mc) == ptes &&
	    mapcounts_pmds(mc) == pmds &&
	    (c->others || mapcounts_creator(mc) == creator) &&
	    folio_mapcount(folio) == ptes + pmds &&
	    folio_mapped(folio) == mapped)
		return;
	KUNIT_FAIL(test,
		   "line %d, order %u: mapcounts %#llx, mapcount %d, mapped %d; expected ptes %u, pmds %u",
		   line, folio_order(folio), mc.val, folio_mapcount(folio),
		   folio_mapped(folio), ptes, pmds);
}

/*
 * The lock stands for that of a page table: the statistics want preemption
 * disabled. Each mapping has its reference, taken before and dropped after.
 */
static void map_file(struct rmap_ctx *c, int first, int nr)
{
	folio_ref_add(c->folio, nr);
	folio_lock(c->folio);
	spin_lock(&c->mm->page_table_lock);
	folio_add_file_rmap_ptes(c->folio, folio_page(c->folio, first), nr, c->vma);
	spin_unlock(&c->mm->page_table_lock);
	folio_unlock(c->folio);
}

static void dup_file(struct rmap_ctx *c, int first, int nr)
{
	folio_ref_add(c->folio, nr);
	spin_lock(&c->mm->page_table_lock);
	folio_dup_file_rmap_ptes(c->folio, folio_page(c->folio, first), nr, c->vma);
	spin_unlock(&c->mm->page_table_lock);
}

static void unmap_ptes(struct rmap_ctx *c, int first, int nr)
{
	spin_lock(&c->mm->page_table_lock);
	folio_remove_rmap_ptes(c->folio, folio_page(c->folio, first), nr, c->vma);
	spin_unlock(&c->mm->page_table_lock);
	folio_put_refs(c->folio, nr);
}

/* For tests that write mapcounts which are not what is mapped. */
static void skip_if_checked(struct kunit *test)
{
	if (folio_mapcounts_check_enabled())
		kunit_skip(test, "folio_mapcounts_check would report it");
}

/* 0 stands for TEST_MAX_ORDER: where the MMU is chosen at boot, it is no constant. */
static const unsigned int orders[] = { 1, 2, 3, 4, 7, 0 };

static unsigned int order_of(const unsigned int *param)
{
	return *param ?: TEST_MAX_ORDER;
}

static void order_desc(const unsigned int *param, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "order %u", order_of(param));
}

KUNIT_ARRAY_PARAM(orders, orders, order_desc);

static unsigned int test_order(struct kunit *test)
{
	const unsigned int order = order_of(test->param_value);

	if (order > TEST_MAX_ORDER)
		kunit_skip(test, "larger than what a PMD maps");
	return order;
}

/* The mapcounts are there, aligned, and 0 on every new folio, again and again. */
static void test_new_folio(struct kunit *test)
{
	struct folio *folio;
	int i;

	for (i = 0; i < 3; i++) {
		folio = new_folio(test, test_order(test));
		KUNIT_EXPECT_TRUE(test, IS_ALIGNED((unsigned long)&folio->_mapcounts,
						   sizeof(folio->_mapcounts)));
		KUNIT_EXPECT_EQ(test, folio_read_mapcounts(folio).val, 0ULL);
		expect_mapcounts(test, folio, 0, 0);
		map_file(test->priv, 0, 1);
		expect_mapcounts(test, folio, 1, 0);
		unmap_ptes(test->priv, 0, 1);
		expect_mapcounts(test, folio, 0, 0);
		free_folio(test);
	}
}

/* Every size of a batch: add, dup, and remove in two pieces. */
static void test_file_ptes(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, test_order(test));
	const int nr_pages = folio_nr_pages(folio);
	int nr;

	for (nr = 1; nr <= min(nr_pages, 512); nr++) {
		const int first = nr_pages - nr, half = nr / 2;

		map_file(c, first, nr);
		expect_mapcounts(test, folio, nr, 0);
		dup_file(c, first, nr);
		expect_mapcounts(test, folio, 2 * nr, 0);
		unmap_ptes(c, first, nr);
		expect_mapcounts(test, folio, nr, 0);
		if (half)
			unmap_ptes(c, first, half);
		expect_mapcounts(test, folio, nr - half, 0);
		unmap_ptes(c, first + half, nr - half);
		expect_mapcounts(test, folio, 0, 0);
	}
	KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 1);
}

/* A folio of the size to be tested which folio_add_new_anon_rmap() maps by PTEs. */
static struct folio *new_folio_by_ptes(struct kunit *test)
{
	const unsigned int order = test_order(test);

	if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && order == TEST_MAX_ORDER)
		kunit_skip(test, "PMD-mapped: see test_anon_pmd");
	if (order == 1)
		kunit_skip(test, "there are no anonymous folios of order 1");
	return new_folio(test, order);
}

/* A new anonymous folio, two fork()s, the parts of it unmapped in some order. */
static void test_anon_ptes(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio_by_ptes(test);
	const int nr = folio_nr_pages(folio);
	int i;

	folio_ref_add(folio, 3 * nr);
	spin_lock(&c->mm->page_table_lock);
	folio_add_new_anon_rmap(folio, c->vma, c->addr, RMAP_EXCLUSIVE);
	expect_mapcounts(test, folio, nr, 0);

	raw_write_seqcount_begin(&c->mm->write_protect_seq);
	for (i = 1; i <= 2; i++) {
		KUNIT_EXPECT_EQ(test, 0,
				folio_try_dup_anon_rmap_ptes(folio, &folio->page,
							     nr, c->vma, c->vma));
		expect_mapcounts(test, folio, (1 + i) * nr, 0);
	}
	raw_write_seqcount_end(&c->mm->write_protect_seq);
	for (i = 0; i < nr; i++)
		KUNIT_EXPECT_FALSE(test, PageAnonExclusive(folio_page(folio, i)));
	spin_unlock(&c->mm->page_table_lock);

	unmap_ptes(c, 0, nr);
	unmap_ptes(c, 0, nr / 2);
	expect_mapcounts(test, folio, nr + nr / 2, 0);
	unmap_ptes(c, 0, nr);
	unmap_ptes(c, nr / 2, nr / 2);
	expect_mapcounts(test, folio, 0, 0);
	KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 1);
}

/*
 * Of all flags of all pages, nothing but PG_anon_exclusive has changed: it is set in
 * the pages of the range and clear in the others, or the other way round.
 */
static void expect_exclusive(struct kunit *test, const unsigned long *flags,
			     int first, int nr, bool exclusive)
{
	const struct rmap_ctx *c = test->priv;
	int i;

	for (i = 0; i < folio_nr_pages(c->folio); i++) {
		const bool in = i >= first && i < first + nr;

		KUNIT_EXPECT_EQ(test, folio_page(c->folio, i)->flags.f,
				flags[i] | (in == exclusive ? BIT(PG_anon_exclusive) : 0));
	}
}

/* Pages of a range become exclusive, or cease to be. */
static void test_exclusive(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio_by_ptes(test);
	const int nr = folio_nr_pages(folio);
	unsigned long *flags;
	int first, i;

	flags = kunit_kcalloc(test, nr, sizeof(*flags), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, flags);
	folio_ref_add(folio, nr);
	spin_lock(&c->mm->page_table_lock);
	folio_add_new_anon_rmap(folio, c->vma, c->addr, RMAP_EXCLUSIVE);
	for (i = 0; i < nr; i++) {
		flags[i] = folio_page(folio, i)->flags.f;
		KUNIT_EXPECT_TRUE(test, flags[i] & BIT(PG_anon_exclusive));
		flags[i] &= ~BIT(PG_anon_exclusive);
	}
	folio_clear_pages_anon_exclusive(folio, &folio->page, nr);

	for (first = 0; first < nr; first = first * 2 + 1) {
		const int n = max((nr - first) / 2, 1);

		folio_set_pages_anon_exclusive(folio, folio_page(folio, first), n);
		expect_exclusive(test, flags, first, n, true);
		folio_clear_pages_anon_exclusive(folio, &folio->page, nr);
		expect_exclusive(test, flags, 0, nr, false);

		folio_set_pages_anon_exclusive(folio, &folio->page, nr);
		folio_clear_pages_anon_exclusive(folio, folio_page(folio, first), n);
		expect_exclusive(test, flags, first, n, false);
		folio_clear_pages_anon_exclusive(folio, &folio->page, nr);
	}
	spin_unlock(&c->mm->page_table_lock);
	unmap_ptes(c, 0, nr);
}

/* fork() of a folio that may be pinned: all of the batch is refused, or none. */
static void test_anon_pinned(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 2);
	int ret;

	folio_ref_add(folio, 4);
	spin_lock(&c->mm->page_table_lock);
	folio_add_new_anon_rmap(folio, c->vma, c->addr, RMAP_EXCLUSIVE);
	/* Only the last page of the batch is exclusive: it decides. */
	ClearPageAnonExclusive(folio_page(folio, 0));
	ClearPageAnonExclusive(folio_page(folio, 1));
	ClearPageAnonExclusive(folio_page(folio, 2));
	mm_flags_set(MMF_HAS_PINNED, c->mm);
	folio_ref_add(folio, GUP_PIN_COUNTING_BIAS);
	if (folio_has_pincount(folio))
		atomic_inc(&folio->_pincount);

	raw_write_seqcount_begin(&c->mm->write_protect_seq);
	ret = folio_try_dup_anon_rmap_ptes(folio, &folio->page, 4, c->vma, c->vma);
	raw_write_seqcount_end(&c->mm->write_protect_seq);
	KUNIT_EXPECT_EQ(test, ret, -EBUSY);
	expect_mapcounts(test, folio, 4, 0);
	KUNIT_EXPECT_TRUE(test, PageAnonExclusive(folio_page(folio, 3)));
	spin_unlock(&c->mm->page_table_lock);

	if (folio_has_pincount(folio))
		atomic_dec(&folio->_pincount);
	folio_ref_sub(folio, GUP_PIN_COUNTING_BIAS);
	unmap_ptes(c, 0, 4);
	expect_mapcounts(test, folio, 0, 0);
}

/* Removing a mapping that does not exist warns. */
static void test_unmap_unmapped(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);
	u64 val;

	if (!IS_ENABLED(CONFIG_DEBUG_VM))
		kunit_skip(test, "needs CONFIG_DEBUG_VM");
	skip_if_checked(test);

	map_file(c, 0, 1);
	val = folio_read_mapcounts(folio).val;
	kunit_warning_suppress(test) {
		__folio_add_mapcounts(folio, -2 * MAPCOUNTS_PTE, &folio->page, -2, 0);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
		KUNIT_EXPECT_TRUE(test, folio_mapped(folio));
	}
	atomic64_set(&folio->_mapcounts, val);
	kunit_warning_suppress(test) {
		__folio_add_mapcounts(folio, -MAPCOUNTS_PMD, &folio->page, 0, -1);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}
	atomic64_set(&folio->_mapcounts, val);
	unmap_ptes(c, 0, 1);
	expect_mapcounts(test, folio, 0, 0);
}

static void test_file_pmd(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio;

	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		kunit_skip(test, "needs CONFIG_TRANSPARENT_HUGEPAGE");

	folio = new_folio(test, TEST_MAX_ORDER);
	folio_ref_add(folio, 2);
	folio_lock(folio);
	spin_lock(&c->mm->page_table_lock);
	folio_add_file_rmap_pmd(folio, &folio->page, c->vma);
	expect_mapcounts(test, folio, 0, 1);
	folio_add_file_rmap_pmd(folio, &folio->page, c->vma);
	expect_mapcounts(test, folio, 0, 2);
	spin_unlock(&c->mm->page_table_lock);
	folio_unlock(folio);

	/* PTEs beside the PMDs, as when another process maps only a part */
	map_file(c, 3, 5);
	expect_mapcounts(test, folio, 5, 2);

	spin_lock(&c->mm->page_table_lock);
	folio_remove_rmap_pmd(folio, &folio->page, c->vma);
	expect_mapcounts(test, folio, 5, 1);
	folio_remove_rmap_pmd(folio, &folio->page, c->vma);
	expect_mapcounts(test, folio, 5, 0);
	spin_unlock(&c->mm->page_table_lock);
	folio_put_refs(folio, 2);

	unmap_ptes(c, 3, 5);
	expect_mapcounts(test, folio, 0, 0);
}

/* A new THP is PMD-mapped; fork() duplicates the PMD; then it is split. */
static void test_anon_pmd(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	const int nr = 1 << TEST_MAX_ORDER;
	struct folio *folio;

	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		kunit_skip(test, "needs CONFIG_TRANSPARENT_HUGEPAGE");

	folio = new_folio(test, TEST_MAX_ORDER);
	folio_ref_add(folio, 1 + nr);
	spin_lock(&c->mm->page_table_lock);
	folio_add_new_anon_rmap(folio, c->vma, c->addr, RMAP_EXCLUSIVE);
	expect_mapcounts(test, folio, 0, 1);
	raw_write_seqcount_begin(&c->mm->write_protect_seq);
	KUNIT_EXPECT_EQ(test, 0,
			folio_try_dup_anon_rmap_pmd(folio, &folio->page,
						    c->vma, c->vma));
	raw_write_seqcount_end(&c->mm->write_protect_seq);
	expect_mapcounts(test, folio, 0, 2);

	/* As in a PMD split: PTEs come before the PMD goes. */
	folio_add_anon_rmap_ptes(folio, &folio->page, nr, c->vma, c->addr,
				 RMAP_NONE);
	expect_mapcounts(test, folio, nr, 2);
	folio_remove_rmap_pmd(folio, &folio->page, c->vma);
	expect_mapcounts(test, folio, nr, 1);
	folio_remove_rmap_pmd(folio, &folio->page, c->vma);
	expect_mapcounts(test, folio, nr, 0);
	spin_unlock(&c->mm->page_table_lock);
	folio_put(folio);

	unmap_ptes(c, 0, nr);
	expect_mapcounts(test, folio, 0, 0);
	KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 1);
}

/* A mapping of a hugetlb folio counts 1 among the PTEs, whatever its size. */
static void test_hugetlb(struct kunit *test)
{
#ifdef CONFIG_HUGETLB_PAGE
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, TEST_MAX_ORDER);

	__folio_set_hugetlb(folio);
	hugetlb_add_file_rmap(folio);
	expect_mapcounts(test, folio, 1, 0);
	hugetlb_add_file_rmap(folio);
	expect_mapcounts(test, folio, 2, 0);
	KUNIT_EXPECT_TRUE(test, folio_maybe_mapped_shared(folio));
	hugetlb_remove_rmap(folio);
	KUNIT_EXPECT_FALSE(test, folio_maybe_mapped_shared(folio));
	hugetlb_remove_rmap(folio);
	expect_mapcounts(test, folio, 0, 0);

	hugetlb_add_new_anon_rmap(folio, c->vma, c->addr);
	expect_mapcounts(test, folio, 1, 0);
	KUNIT_EXPECT_TRUE(test, PageAnonExclusive(&folio->page));
	raw_write_seqcount_begin(&c->mm->write_protect_seq);
	KUNIT_EXPECT_EQ(test, 0, hugetlb_try_dup_anon_rmap(folio, c->vma));
	raw_write_seqcount_end(&c->mm->write_protect_seq);
	expect_mapcounts(test, folio, 2, 0);
	KUNIT_EXPECT_FALSE(test, PageAnonExclusive(&folio->page));
	hugetlb_remove_rmap(folio);
	hugetlb_remove_rmap(folio);
	expect_mapcounts(test, folio, 0, 0);
	hugetlb_add_anon_rmap(folio, c->vma, c->addr, RMAP_EXCLUSIVE);
	expect_mapcounts(test, folio, 1, 0);
	hugetlb_remove_rmap(folio);
	expect_mapcounts(test, folio, 0, 0);

	/* It is freed as what it was allocated as. */
	ClearPageAnonExclusive(&folio->page);
	folio->mapping = NULL;
	__folio_clear_hugetlb(folio);
#else
	kunit_skip(test, "needs CONFIG_HUGETLB_PAGE");
#endif
}

/*
 * However many mappings there are, the folio is mapped, and what remains is
 * counted once the others are gone.
 */
static void test_many_mappings(struct kunit *test)
{
	static const unsigned int many[] = {
		1U << 20, 1U << 30, (1U << 30) + 1, ~0U >> 1,
	};
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);
	int i;

	skip_if_checked(test);
	for (i = 0; i < ARRAY_SIZE(many); i++) {
		const u64 others = mapcounts_delta(many[i] - 16, 0, false);

		map_file(c, 0, 16);
		atomic64_add(others, &folio->_mapcounts);
		KUNIT_EXPECT_EQ(test, mapcounts_ptes(folio_read_mapcounts(folio)),
				many[i]);
		KUNIT_EXPECT_EQ(test, mapcounts_pmds(folio_read_mapcounts(folio)), 0);
		KUNIT_EXPECT_TRUE_MSG(test, folio_mapped(folio), "%u mappings",
				      many[i]);
		atomic64_sub(others, &folio->_mapcounts);
		expect_mapcounts(test, folio, 16, 0);
		unmap_ptes(c, 0, 16);
		expect_mapcounts(test, folio, 0, 0);
	}
}

/* A kind of folio, and where its mappings are counted. */
static const struct account_kind {
	const char *desc;
	enum node_stat_item pages, by_pmd;
	bool anon, swapbacked;
} account_kinds[] = {
	{ "file", NR_FILE_MAPPED, NR_FILE_PMDMAPPED },
	{ "shmem", NR_FILE_MAPPED, NR_SHMEM_PMDMAPPED, .swapbacked = true },
	{ "anon", NR_ANON_MAPPED, NR_ANON_THPS, .anon = true },
};

KUNIT_ARRAY_PARAM_DESC(account_kinds, account_kinds, desc);

/* What is mapped, as the counters of the folio's node have it. */
struct mapped {
	long pages;
	long by_pmd;
};

static long node_sum(struct pglist_data *pgdat, enum node_stat_item item)
{
	long sum = atomic_long_read(&pgdat->vm_stat[item]);
	int cpu;

	for_each_online_cpu(cpu)
		sum += per_cpu_ptr(pgdat->per_cpu_nodestats,
				   cpu)->vm_node_stat_diff[item];
	return sum;
}

static struct mapped read_mapped(const struct account_kind *kind,
				 const struct folio *folio)
{
	return (struct mapped){
		.pages = node_sum(folio_pgdat(folio), kind->pages),
		.by_pmd = node_sum(folio_pgdat(folio), kind->by_pmd),
	};
}

enum account_op { NEW, ADD, DUP, REMOVE, ADD_PMD, REMOVE_PMD, SPLIT_PMD };

static void do_anon_op(struct rmap_ctx *c, enum account_op op, int first, int nr)
{
	const unsigned long addr = c->addr + first * PAGE_SIZE;
	struct page *page = folio_page(c->folio, first);

	folio_ref_add(c->folio, nr);
	folio_lock(c->folio);
	spin_lock(&c->mm->page_table_lock);
	raw_write_seqcount_begin(&c->mm->write_protect_seq);
	if (op == NEW)
		folio_add_new_anon_rmap(c->folio, c->vma, addr, RMAP_NONE);
	else if (op == ADD)
		folio_add_anon_rmap_ptes(c->folio, page, nr, c->vma, addr, RMAP_NONE);
	else if (op == ADD_PMD)
		folio_add_anon_rmap_pmd(c->folio, page, c->vma, addr, RMAP_NONE);
	else if (op == SPLIT_PMD)
		folio_split_anon_rmap_pmd(c->folio, page, c->vma, RMAP_NONE);
	else
		WARN_ON(folio_try_dup_anon_rmap_ptes(c->folio, page, nr, c->vma,
						     c->vma));
	raw_write_seqcount_end(&c->mm->write_protect_seq);
	spin_unlock(&c->mm->page_table_lock);
	folio_unlock(c->folio);
}

static void do_account_op(struct rmap_ctx *c, enum account_op op, int first, int nr)
{
	if (folio_test_anon(c->folio) && op != REMOVE && op != REMOVE_PMD)
		return do_anon_op(c, op, first, nr);

	switch (op) {
	case ADD:
		return map_file(c, first, nr);
	case DUP:
		return dup_file(c, first, nr);
	case REMOVE:
		return unmap_ptes(c, first, nr);
	case SPLIT_PMD:		/* comes to the same */
		map_file(c, first, nr);
		break;
	default:
		break;
	}
	folio_lock(c->folio);
	spin_lock(&c->mm->page_table_lock);
	if (op == NEW || op == ADD_PMD)
		folio_add_file_rmap_pmd(c->folio, &c->folio->page, c->vma);
	else
		folio_remove_rmap_pmd(c->folio, &c->folio->page, c->vma);
	spin_unlock(&c->mm->page_table_lock);
	folio_unlock(c->folio);
}

#define ALL	(-1)

static const struct account_step {
	enum account_op op;
	int first, nr;
	int pages, by_pmd;	/* what is to be counted afterwards */
} account_steps[] = {
	{ NEW,		0, 0,		ALL, ALL },
	{ SPLIT_PMD,	0, ALL,		ALL, 0 },
	{ REMOVE,	0, ALL,		0, 0 },
	{ ADD_PMD,	0, 0,		ALL, ALL },
	{ REMOVE_PMD,	0, 0,		0, 0 },
	{ ADD,		0, 16,		16, 0 },
	{ DUP,		0, 16,		32, 0 },	/* of 16, each twice */
	{ ADD,		16, 16,		48, 0 },
	{ REMOVE,	0, 16,		32, 0 },
	{ ADD,		0, ALL,		ALL, 0 },
	{ DUP,		0, ALL,		ALL, 0 },
	{ REMOVE,	0, ALL,		ALL, 0 },
	{ REMOVE,	0, ALL,		32, 0 },
	{ ADD_PMD,	0, 0,		ALL, ALL },
	{ DUP,		0, 8,		ALL, ALL },
	{ ADD_PMD,	0, 0,		ALL, ALL },
	{ REMOVE_PMD,	0, 0,		ALL, ALL },
	{ REMOVE_PMD,	0, 0,		40, 0 },
	{ REMOVE,	0, 8,		32, 0 },
	{ REMOVE,	16, 16,		16, 0 },
	{ REMOVE,	0, 16,		0, 0 },
};

static int step_pages(int nr)
{
	return nr == ALL ? 1 << TEST_MAX_ORDER : nr;
}

/* Take all steps. Return: the first after which the counters are wrong, or -1. */
static int wrong_step(struct rmap_ctx *c, const struct account_kind *kind,
		      struct mapped *wrong)
{
	const struct mapped start = read_mapped(kind, c->folio);
	int i, found = -1;

	if (kind->swapbacked)
		__folio_set_swapbacked(c->folio);

	for (i = 0; i < ARRAY_SIZE(account_steps); i++) {
		const struct account_step *s = &account_steps[i];
		struct mapped m;

		if (kind->anon && s->op == NEW)
			do_anon_op(c, NEW, 0, 0);
		else
			do_account_op(c, s->op, s->first, step_pages(s->nr));
		m = read_mapped(kind, c->folio);
		m.pages -= start.pages;
		m.by_pmd -= start.by_pmd;
		if (found < 0 && (m.pages != step_pages(s->pages) ||
				  m.by_pmd != step_pages(s->by_pmd))) {
			*wrong = m;
			found = i;
		}
	}
	return found;
}

/*
 * The counters follow the estimate. They belong to the node: another task may map
 * a page meanwhile, but not each time.
 */
static void test_account(struct kunit *test)
{
	const struct account_kind *kind = test->param_value;
	struct rmap_ctx *c = test->priv;
	struct mapped wrong;
	int tries, step = 0;

	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		kunit_skip(test, "needs PMD mappings");
	if (TEST_MAX_ORDER < 6)
		kunit_skip(test, "a PMD maps too little for these steps");
	for (tries = 0; tries < 10 && step >= 0; tries++) {
		new_folio(test, TEST_MAX_ORDER);
		step = wrong_step(c, kind, &wrong);
		free_folio(test);
	}
	if (step >= 0)
		KUNIT_FAIL(test, "after step %d: %ld pages, by PMD %ld; expected %d, %d\n",
			   step, wrong.pages, wrong.by_pmd,
			   step_pages(account_steps[step].pages),
			   step_pages(account_steps[step].by_pmd));
}

static void check_queued(struct kunit *test, bool queued, int line)
{
	struct rmap_ctx *c = test->priv;

	KUNIT_EXPECT_EQ_MSG(test, folio_test_partially_mapped(c->folio), queued,
			    "line %d", line);
	KUNIT_EXPECT_EQ_MSG(test, !list_empty(&c->folio->_deferred_list), queued,
			    "line %d", line);
}

#define expect_queued(test, queued) \
	check_queued(test, queued, __LINE__)

/* Unmapping queues a partially mapped folio if the mapcounts can tell. */
static void test_partial(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;

	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		kunit_skip(test, "nothing is split");
	new_folio(test, 4);
	do_anon_op(c, NEW, 0, 16);
	do_anon_op(c, DUP, 0, 16);
	unmap_ptes(c, 0, 8);
	expect_queued(test, false);
	unmap_ptes(c, 0, 8);
	expect_queued(test, false);
	unmap_ptes(c, 15, 1);
	expect_queued(test, true);
	unmap_ptes(c, 15, 1);
	unmap_ptes(c, 8, 7);
	unmap_ptes(c, 8, 7);
	expect_queued(test, true);
	free_folio(test);

	/* What is unmapped as a whole is freed soon. */
	new_folio(test, 4);
	do_anon_op(c, NEW, 0, 16);
	unmap_ptes(c, 0, 16);
	expect_queued(test, false);
	free_folio(test);

	/* The page cache keeps its pages. */
	new_folio(test, 4);
	map_file(c, 0, 16);
	unmap_ptes(c, 0, 1);
	expect_queued(test, false);
	unmap_ptes(c, 1, 15);
}

/* A PMD maps all pages. When it goes, PTEs can be left that do not. */
static void test_partial_pmd(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;

	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		kunit_skip(test, "needs PMD mappings");
	new_folio(test, TEST_MAX_ORDER);
	do_anon_op(c, NEW, 0, 1);
	do_anon_op(c, ADD, 0, 5);
	unmap_ptes(c, 0, 1);
	expect_queued(test, false);
	do_account_op(c, REMOVE_PMD, 0, 0);
	folio_put(c->folio);
	expect_queued(test, true);
	unmap_ptes(c, 1, 4);
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
		{ max - 1, 0, 1, true },
		{ max - 1, 0, 2, false },
		{ max, 0, 1, false },
		{ max - 16, 0, 16, true },
		{ max - 15, 0, 16, false },
		{ max - pmd_nr - 16, 1, 16, true },
		{ max - pmd_nr - 16, 1, 17, false },
		{ 0, max_pmds - 1, pmd_nr, true },
		{ 0, max_pmds - 1, pmd_nr + 1, false },
		{ 1, max_pmds - 1, pmd_nr, false },
		{ 0, max_pmds, 1, false },
		{ max + 99, max_pmds + 99, 1, false },
	};
	struct folio *folio = new_folio(test, 4);
	int i;

	skip_if_checked(test);
	for (i = 0; i < ARRAY_SIZE(table); i++) {
		atomic64_set(&folio->_mapcounts,
			     mapcounts_delta(table[i].ptes, table[i].pmds, false));
		KUNIT_EXPECT_EQ_MSG(test, folio_can_add_rmap(folio, table[i].nr),
				    table[i].can_add, "table[%d]", i);
	}
	atomic64_set(&folio->_mapcounts, 0);
}

/* Two MMs: MM 1 is another one than that of the test. */
static void check_creator(struct kunit *test, unsigned int entries, bool shared, int line)
{
	struct rmap_ctx *c = test->priv;
	const struct folio_mapcounts mc = folio_read_mapcounts(c->folio);

	KUNIT_EXPECT_EQ_MSG(test, mapcounts_creator(mc), entries, "line %d", line);
	KUNIT_EXPECT_EQ_MSG(test, folio_maybe_mapped_shared(c->folio), shared,
			    "line %d", line);
}

#define expect_creator(test, entries, shared) \
	check_creator(test, entries, shared, __LINE__)

static void *copy_of(struct kunit *test, const void *src, size_t size)
{
	void *copy = kunit_kmalloc(test, size, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, copy);
	return memcpy(copy, src, size);
}

/* A VMA of another MM, for what the rmap functions want to know of it. */
static struct rmap_ctx *other_mm(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct rmap_ctx *other = copy_of(test, c, sizeof(*c));
	struct vm_area_struct *vma = copy_of(test, c->vma, sizeof(*c->vma));

	other->mm = copy_of(test, c->mm, sizeof(*c->mm));
	spin_lock_init(&other->mm->page_table_lock);
	vma->vm_mm = other->mm;
	other->vma = vma;
	return other;
}

/* The MM that maps an unmapped folio first becomes its creator. */
static void test_claim(struct kunit *test)
{
	struct rmap_ctx *c = test->priv, *other;
	struct folio *folio = new_folio(test, test_order(test));
	const int nr = folio_nr_pages(folio);

	if (!folio_test_large_rmappable(folio))
		kunit_skip(test, "no folio is rmappable");
	other = other_mm(test);
	KUNIT_EXPECT_NULL(test, folio->_creator);

	map_file(c, 0, nr);
	KUNIT_EXPECT_TRUE(test, folio_is_creator(folio, c->mm));
	expect_creator(test, nr, false);
	map_file(other, 0, 1);
	KUNIT_EXPECT_TRUE(test, folio_is_creator(folio, c->mm));
	expect_creator(test, nr, true);
	map_file(c, 1, 1);
	expect_creator(test, nr + 1, true);
	unmap_ptes(other, 0, 1);
	expect_creator(test, nr + 1, false);

	/* The creator stays while any MM maps the folio. */
	map_file(other, 0, 2);
	unmap_ptes(c, 0, nr);
	unmap_ptes(c, 1, 1);
	expect_creator(test, 0, true);
	KUNIT_EXPECT_TRUE(test, folio_is_creator(folio, c->mm));
	unmap_ptes(other, 1, 1);
	expect_creator(test, 0, false);
	unmap_ptes(other, 0, 1);

	map_file(other, 0, nr);
	KUNIT_EXPECT_TRUE(test, folio_is_creator(folio, other->mm));
	expect_creator(test, nr, false);
	dup_file(c, 0, nr);
	expect_creator(test, nr, true);
	unmap_ptes(other, 0, nr);
	expect_creator(test, 0, true);
	unmap_ptes(c, 0, nr);
	expect_creator(test, 0, false);
	KUNIT_EXPECT_EQ(test, folio_read_mapcounts(folio).val, 0ULL);
}

/* What drivers insert is never claimed, nor is what is not rmappable. */
static void test_no_claim(struct kunit *test)
{
	struct rmap_ctx *c = test->priv, *driver;
	struct folio *folio = new_folio(test, 4);
	struct page *page;

	driver = other_mm(test);
	vm_flags_init(driver->vma, driver->vma->vm_flags | VM_MIXEDMAP);
	map_file(driver, 0, 2);
	KUNIT_EXPECT_NULL(test, folio->_creator);
	expect_creator(test, 0, true);
	unmap_ptes(driver, 0, 2);

	page = alloc_pages(GFP_KERNEL | __GFP_COMP, 2);
	KUNIT_ASSERT_NOT_NULL(test, page);
	folio = c->folio;
	c->folio = page_folio(page);
	folio_ref_add(c->folio, 2);
	preempt_disable();
	folio_add_file_rmap_ptes(c->folio, page, 2, c->vma);
	preempt_enable();
	KUNIT_EXPECT_NULL(test, c->folio->_creator);
	expect_creator(test, 0, true);
	unmap_ptes(c, 0, 2);
	KUNIT_EXPECT_EQ(test, folio_read_mapcounts(c->folio).val, 0ULL);
	__free_pages(page, 2);
	c->folio = folio;
}

/* The first mapping of an unlocked folio warns. */
static void test_claim_unlocked(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);

	if (!IS_ENABLED(CONFIG_DEBUG_VM) || !folio_test_large_rmappable(folio))
		kunit_skip(test, "needs CONFIG_DEBUG_VM, and rmappable folios");
	folio_ref_add(folio, 1);
	kunit_warning_suppress(test) {
		preempt_disable();
		folio_add_file_rmap_ptes(folio, &folio->page, 1, c->vma);
		preempt_enable();
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}
	unmap_ptes(c, 0, 1);
}

/* One MM creates the folio and maps all of it, and forks: the other one. */
static struct rmap_ctx *map_and_fork(struct kunit *test)
{
	struct rmap_ctx *c = test->priv, *other = other_mm(test);
	const int nr = folio_nr_pages(c->folio);

	folio_ref_add(c->folio, 2 * nr);
	spin_lock(&c->mm->page_table_lock);
	folio_add_new_anon_rmap(c->folio, c->vma, c->addr, RMAP_EXCLUSIVE);
	expect_creator(test, nr, false);
	raw_write_seqcount_begin(&c->mm->write_protect_seq);
	KUNIT_EXPECT_EQ(test, 0,
			folio_try_dup_anon_rmap_ptes(c->folio, &c->folio->page, nr,
						     other->vma, c->vma));
	raw_write_seqcount_end(&c->mm->write_protect_seq);
	spin_unlock(&c->mm->page_table_lock);
	expect_creator(test, nr, true);
	return other;
}

/* Adoption warns if the creator has mappings, or if there are more than were found. */
static void test_adopt_wrong(struct kunit *test)
{
	struct rmap_ctx *c = test->priv, *other;
	const u64 creator = MAPCOUNTS_CREATOR;
	struct folio *folio = new_folio(test, 4);
	struct folio_mapcounts was;

	if (!IS_ENABLED(CONFIG_DEBUG_VM))
		kunit_skip(test, "needs CONFIG_DEBUG_VM");
	other = map_and_fork(test);
	/* The creator maps the last page, another MM the last two. */
	unmap_ptes(c, 0, 15);
	unmap_ptes(other, 0, 14);
	folio_lock(folio);

	/* The creator is not gone, though the sum is right. */
	kunit_warning_suppress(test) {
		folio_adopt(folio, other->mm, 2);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}
	atomic64_sub(2 * creator, &folio->_mapcounts);
	folio->_creator = c->mm;
	unmap_ptes(c, 15, 1);

	/* There is one entry more than was found. */
	kunit_warning_suppress(test) {
		folio_adopt(folio, other->mm, 1);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}
	atomic64_add(creator, &folio->_mapcounts);
	folio_unlock(folio);

	/* The creator has no more entries than there are: this was one of its. */
	kunit_warning_suppress(test) {
		unmap_ptes(c, 14, 1);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}
	was = folio_read_mapcounts(folio);
	atomic64_sub(creator, &folio->_mapcounts);
	folio_account_mapcounts(folio, was, folio_read_mapcounts(folio), PGTABLE_LEVEL_PTE);
	unmap_ptes(other, 15, 1);
	KUNIT_EXPECT_EQ(test, folio_read_mapcounts(folio).val, 0ULL);
}

/* An anonymous folio changes hands when its creator has gone. */
static void test_adopt(struct kunit *test)
{
	struct rmap_ctx *c = test->priv, *other;
	struct folio *folio = new_folio(test, 4);

	if (!folio_test_large_rmappable(folio))
		kunit_skip(test, "no folio is rmappable");
	other = map_and_fork(test);
	unmap_ptes(c, 0, 16);
	unmap_ptes(other, 0, 3);
	expect_creator(test, 0, true);
	folio_lock(folio);
	spin_lock(&other->mm->page_table_lock);
	folio_adopt(folio, other->mm, 13);
	spin_unlock(&other->mm->page_table_lock);
	folio_unlock(folio);
	KUNIT_EXPECT_TRUE(test, folio_is_creator(folio, other->mm));
	expect_creator(test, 13, false);
	unmap_ptes(other, 3, 13);
	KUNIT_EXPECT_EQ(test, folio_read_mapcounts(folio).val, 0ULL);
}

/*
 * MM 0 creates a folio of 16 pages, which MMs 1 and 2 share: who does what, and how
 * many pages count as mapped then.
 */
static const struct {
	enum { CREATE, FORK, UNMAP, ADOPT } op;
	int mm, first, nr, pages;
} share_steps[] = {
	{ CREATE, 0, 0, 16, 16 },
	{ FORK,   1, 0, 16, 16 },
	{ UNMAP,  0, 0, 6, 16 },
	{ UNMAP,  1, 0, 16, 10 },
	{ FORK,   1, 6, 10, 10 },
	{ UNMAP,  0, 6, 2, 10 },
	{ UNMAP,  1, 14, 2, 8 },	/* of 10 */
	{ FORK,   2, 8, 6, 14 },	/* likewise */
	{ UNMAP,  0, 8, 8, 14 },	/* of 8 */
	{ UNMAP,  1, 6, 8, 6 },
	{ ADOPT,  2, 8, 6, 6 },
	{ FORK,   1, 8, 2, 6 },
	{ UNMAP,  2, 8, 5, 2 },		/* of 3 */
	{ UNMAP,  2, 13, 1, 2 },
	{ UNMAP,  1, 8, 2, 0 },
};

/* fork() maps these pages in MM @c, too. */
static void share_fork(struct kunit *test, struct rmap_ctx *c, int first, int nr)
{
	struct rmap_ctx *from = test->priv;

	folio_ref_add(c->folio, nr);
	spin_lock(&from->mm->page_table_lock);
	raw_write_seqcount_begin(&from->mm->write_protect_seq);
	KUNIT_EXPECT_EQ(test, 0,
			folio_try_dup_anon_rmap_ptes(c->folio, folio_page(c->folio, first),
						     nr, c->vma, from->vma));
	raw_write_seqcount_end(&from->mm->write_protect_seq);
	spin_unlock(&from->mm->page_table_lock);
}

static void share_step(struct kunit *test, struct rmap_ctx *c, int step)
{
	const int first = share_steps[step].first, nr = share_steps[step].nr;

	switch (share_steps[step].op) {
	case CREATE:
		return do_anon_op(c, NEW, first, nr);
	case FORK:
		return share_fork(test, c, first, nr);
	case UNMAP:
		return unmap_ptes(c, first, nr);
	case ADOPT:
		folio_lock(c->folio);
		spin_lock(&c->mm->page_table_lock);
		folio_adopt(c->folio, c->mm, nr);
		spin_unlock(&c->mm->page_table_lock);
		folio_unlock(c->folio);
	}
}

/* Takes all steps. Return: the first after which @pages is not the counter, or -1. */
static int wrong_share_step(struct kunit *test, long *pages)
{
	struct folio *folio = new_folio(test, 4);
	struct rmap_ctx *mms[] = { test->priv, other_mm(test), other_mm(test) };
	struct pglist_data *pgdat = folio_pgdat(folio);
	const long start = node_sum(pgdat, NR_ANON_MAPPED);
	int i, found = -1;

	for (i = 0; i < ARRAY_SIZE(share_steps); i++) {
		share_step(test, mms[share_steps[i].mm], i);
		if (found >= 0)
			continue;
		*pages = node_sum(pgdat, NR_ANON_MAPPED) - start;
		if (*pages != share_steps[i].pages)
			found = i;
	}
	free_folio(test);
	return found;
}

/* The estimate for MMs that share a folio. Other tasks may map pages meanwhile. */
static void test_account_shared(struct kunit *test)
{
	int tries, step = 0;
	long pages;

	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		kunit_skip(test, "no anonymous folio is large");
	for (tries = 0; tries < 10 && step >= 0; tries++)
		step = wrong_share_step(test, &pages);
	if (step >= 0)
		KUNIT_FAIL(test, "after step %d: %ld pages, expected %d\n", step, pages,
			   share_steps[step].pages);
}

/* Count, in the page tables of the MM, the entries for each page of the folio. */
static void count_entries(struct mm_struct *mm, const struct folio *folio,
			  unsigned int *counts)
{
	VMA_ITERATOR(vmi, mm, 0);
	struct vm_area_struct *vma;
	struct folio_walk fw;
	unsigned long addr;

	mmap_read_lock(mm);
	for_each_vma(vmi, vma) {
		for (addr = vma->vm_start; addr < vma->vm_end; addr += PAGE_SIZE) {
			if (!folio_walk_start(&fw, vma, addr, 0))
				continue;
			if (page_folio(fw.page) == folio)
				counts[folio_page_idx(folio, fw.page)]++;
			folio_walk_end(&fw, vma);
		}
	}
	mmap_read_unlock(mm);
}

#define GUARD	0xa5a5a5a5

/* Each page of the window gets its true count; nothing is written beside it. */
static void check_window(struct kunit *test, const unsigned int *truth,
			 unsigned long first, unsigned long nr, int line)
{
	struct rmap_ctx *c = test->priv;
	unsigned int *counts = kunit_kmalloc_array(test, nr + 2, sizeof(*counts),
						   GFP_KERNEL);
	unsigned long i;
	int err;

	KUNIT_ASSERT_NOT_NULL(test, counts);
	memset32(counts, GUARD, nr + 2);
	folio_lock(c->folio);
	err = folio_page_mapcounts(c->folio, first, nr, counts + 1);
	folio_unlock(c->folio);
	KUNIT_EXPECT_EQ_MSG(test, err, 0, "line %d", line);
	KUNIT_EXPECT_EQ_MSG(test, counts[0], GUARD, "line %d", line);
	KUNIT_EXPECT_EQ_MSG(test, counts[nr + 1], GUARD, "line %d", line);
	for (i = 0; i < nr && counts[i + 1] == truth[first + i]; i++)
		;
	if (i < nr)
		KUNIT_FAIL(test, "line %d, pages %lu + %lu: page %lu has count %u, expected %u",
			   line, first, nr, first + i, counts[i + 1],
			   truth[first + i]);
	kunit_kfree(test, counts);
}

/* The true counts are those in the page tables of this MM and of @other, if any. */
static void check_counts(struct kunit *test, struct mm_struct *other,
			 unsigned int pages, int line)
{
	struct rmap_ctx *c = test->priv;
	const unsigned long nr = folio_nr_pages(c->folio);
	unsigned int *truth = kunit_kcalloc(test, nr, sizeof(*truth), GFP_KERNEL);
	unsigned int i, sum = 0;

	KUNIT_ASSERT_NOT_NULL(test, truth);
	count_entries(c->mm, c->folio, truth);
	if (other)
		count_entries(other, c->folio, truth);
	for (i = 0; i < nr; i++)
		sum += truth[i];
	KUNIT_EXPECT_EQ_MSG(test, sum, pages, "line %d", line);

	check_window(test, truth, 0, nr, line);
	check_window(test, truth, 0, 1, line);
	check_window(test, truth, nr - 1, 1, line);
	check_window(test, truth, nr / 2 - 1, 2, line);
	check_window(test, truth, 1, nr - 2, line);
	kunit_kfree(test, truth);
}

#define expect_counts(test, other, pages) \
	check_counts(test, other, pages, __LINE__)

/* No walk finds as many mappings as folio->_mapcounts has. */
static void expect_no_counts(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	unsigned int count;

	folio_lock(c->folio);
	KUNIT_EXPECT_EQ(test, folio_page_mapcounts(c->folio, 1, 1, &count), -EAGAIN);
	folio_unlock(c->folio);
}

static ssize_t read_file_at(struct vfsmount *mnt, const char *name,
			    unsigned long buf, size_t size, loff_t pos)
{
	struct file *file = file_open_root_mnt(mnt, name, O_RDONLY, 0);
	ssize_t ret;

	if (IS_ERR(file))
		return PTR_ERR(file);
	ret = vfs_read(file, (char __user *)buf, size, &pos);
	fput(file);
	return ret;
}

/* Returns what /proc/kpagecount says of the folio's pages, or NULL. */
static u64 *read_kpagecount(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	const size_t size = folio_nr_pages(c->folio) * sizeof(u64);
	const loff_t pos = folio_pfn(c->folio) * sizeof(u64);
	u64 *counts = kunit_kzalloc(test, size, GFP_KERNEL);
	struct vfsmount *mnt = kern_mount(get_fs_type("proc"));
	unsigned long buf = vm_mmap(NULL, 0, size, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, 0);

	KUNIT_EXPECT_NOT_ERR_OR_NULL(test, mnt);
	KUNIT_EXPECT_FALSE(test, IS_ERR_VALUE(buf));
	if (IS_ERR_OR_NULL(mnt) || IS_ERR_VALUE(buf))
		return NULL;
	KUNIT_EXPECT_EQ(test, size, read_file_at(mnt, "kpagecount", buf, size, pos));
	KUNIT_EXPECT_EQ(test, 0, copy_from_user(counts, (void __user *)buf, size));
	kern_unmount(mnt);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(buf, size));
	return counts;
}

/* /proc/kpagecount says that pages [first, first + nr) are mapped so often. */
#define expect_kpagecount(test, first, nr, count) \
	check_kpagecount(test, first, nr, count, __LINE__)

static void check_kpagecount(struct kunit *test, int first, int nr, u64 count, int line)
{
	const u64 *counts;
	int i;

	if (!IS_ENABLED(CONFIG_PROC_PAGE_MONITOR))
		return;
	counts = read_kpagecount(test);
	for (i = first; counts && i < first + nr; i++) {
		if (counts[i] == count)
			continue;
		KUNIT_FAIL(test, "line %d: page %d has count %llu, expected %llu",
			   line, i, counts[i], count);
		return;
	}
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
static void new_file(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, TEST_MAX_ORDER);

	c->file = anon_inode_create_getfile("[rmap_kunit]", &file_fops, c,
					    O_RDONLY, NULL);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, c->file);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, close_file, c->file));
	/* Faults map nothing by PMDs that is not within i_size. */
	i_size_write(file_inode(c->file), folio_size(folio));
	folio->index = 0;
	folio->mapping = c->file->f_mapping;
	folio_mark_uptodate(folio);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, truncate_file, c));
}

/* Map @nr pages of the file, from @first, and read @nr_read of them. */
static void map_pages(struct kunit *test, unsigned long addr, unsigned long first,
		      unsigned long nr, unsigned long nr_read)
{
	struct rmap_ctx *c = test->priv;

	KUNIT_ASSERT_EQ(test, addr,
			vm_mmap(c->file, addr, nr * PAGE_SIZE, PROT_READ,
				MAP_SHARED | MAP_FIXED, first * PAGE_SIZE));
	KUNIT_ASSERT_EQ(test, 0,
			fault_in_readable((char __user *)addr, nr_read * PAGE_SIZE));
}

/* A file that an MM maps twice, once by a PMD if there are, once by PTEs. */
static void test_counts_file(struct kunit *test)
{
	const int nr = 1 << TEST_MAX_ORDER;
	const unsigned long size = PAGE_SIZE << TEST_MAX_ORDER;
	struct rmap_ctx *c = test->priv;

	new_file(test);
	expect_counts(test, NULL, 0);
	map_pages(test, c->addr + size, nr / 4, nr / 2, 5);
	expect_counts(test, NULL, 5);
	expect_kpagecount(test, 0, nr / 4, 0);
	expect_kpagecount(test, nr / 4, 5, 1);
	/* No walk finds a mapping that only the mapcounts have. */
	atomic64_add(MAPCOUNTS_PTE, &c->folio->_mapcounts);
	expect_no_counts(test);
	expect_kpagecount(test, 0, nr, 1);
	atomic64_sub(MAPCOUNTS_PTE, &c->folio->_mapcounts);
	map_pages(test, c->addr, 0, nr, nr);
	expect_counts(test, NULL, nr + 5);

	/* Special entries are not counted, though the rmap finds their VMA. */
	c->special = true;
	map_pages(test, c->addr + size + size / 2, 0, 4, 0);
	expect_counts(test, NULL, nr + 5);

	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, size));
	expect_counts(test, NULL, 5);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr + size + PAGE_SIZE, PAGE_SIZE));
	expect_counts(test, NULL, 4);
}

/* The rmap does not find what drivers map. */
static void test_counts_driver(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;

	new_folio(test, 4);
	expect_kpagecount(test, 0, 16, 0);
	map_file(c, 0, 3);
	expect_no_counts(test);
	expect_kpagecount(test, 0, 16, 1);
	map_file(c, 0, 16);
	expect_kpagecount(test, 0, 16, 1);
	map_file(c, 0, 16);
	expect_kpagecount(test, 0, 16, 2);
	unmap_ptes(c, 0, 16);
	unmap_ptes(c, 0, 16);
	unmap_ptes(c, 0, 3);
	expect_kpagecount(test, 0, 16, 0);
}

struct late_unlock {
	struct delayed_work work;
	struct folio *folio;
};

static void late_unlock(struct work_struct *work)
{
	folio_unlock(container_of(work, struct late_unlock, work.work)->folio);
}

/* Reading kpagecount does not wait until the folio is unlocked, here after 3 s. */
static void test_counts_locked(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct late_unlock late;

	if (!IS_ENABLED(CONFIG_PROC_PAGE_MONITOR))
		kunit_skip(test, "no kpagecount");
	late.folio = new_folio(test, 4);
	map_file(c, 0, 3);
	INIT_DELAYED_WORK_ONSTACK(&late.work, late_unlock);
	folio_lock(c->folio);
	schedule_delayed_work(&late.work, 3 * HZ);
	expect_kpagecount(test, 0, 16, 1);
	if (cancel_delayed_work_sync(&late.work))
		folio_unlock(c->folio);
	else
		KUNIT_FAIL(test, "waited for the folio lock");
	destroy_delayed_work_on_stack(&late.work);
	unmap_ptes(c, 0, 3);
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
	struct rmap_ctx *c = r->c;
	const int nr_pages = folio_nr_pages(c->folio);
	struct rnd_state rnd;
	int i;

	prandom_seed_state(&rnd, r->seed);
	for (i = 0; i < NR_ROUNDS; i++) {
		const u32 v = prandom_u32_state(&rnd);
		const int first = v % nr_pages;
		const int nr = 1 + (v >> 16) % min(nr_pages - first, 16);

		folio_ref_add(c->folio, nr);
		preempt_disable();
		if (r->pmd && v & BIT(31))
			folio_add_file_rmap_pmd(c->folio, &c->folio->page, c->vma);
		folio_add_file_rmap_ptes(c->folio, folio_page(c->folio, first),
					 nr, c->vma);
		preempt_enable();

		preempt_disable();
		folio_remove_rmap_ptes(c->folio, folio_page(c->folio, first),
				       nr, c->vma);
		if (r->pmd && v & BIT(31))
			folio_remove_rmap_pmd(c->folio, &c->folio->page, c->vma);
		preempt_enable();
		folio_put_refs(c->folio, nr);
	}
	complete(&r->done);
	return 0;
}

/*
 * Several threads change the mapcounts of one folio at the same time, without a
 * lock that they share. Nothing may be lost or left over, in the mapcounts or in
 * what is derived from the differences: the folio is mapped by one PTE that
 * stays, and afterwards by this one alone.
 */
static void test_race(struct kunit *test)
{
	static struct racer racers[NR_THREADS];
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, test_order(test));
	const bool pmd = IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) &&
			 test_order(test) == TEST_MAX_ORDER;
	int i, started = 0;

	map_file(c, 0, 1);
	for (i = 0; i < NR_THREADS; i++) {
		struct task_struct *task;

		racers[i] = (struct racer){ .c = c, .seed = i + 1, .pmd = pmd };
		init_completion(&racers[i].done);
		task = kthread_run(race, &racers[i], "rmap_race/%d", i);
		if (IS_ERR(task))
			break;
		started++;
	}
	KUNIT_EXPECT_EQ(test, started, NR_THREADS);
	for (i = 0; i < started; i++)
		wait_for_completion(&racers[i].done);

	expect_mapcounts(test, folio, 1, 0);
	unmap_ptes(c, 0, 1);
	expect_mapcounts(test, folio, 0, 0);
	KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 1);
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
	struct task_struct *task;
	int i, lost = 0;

	folio_ref_add(folio, 4);
	spin_lock(&c->mm->page_table_lock);
	folio_add_new_anon_rmap(folio, c->vma, c->addr, RMAP_EXCLUSIVE);
	spin_unlock(&c->mm->page_table_lock);

	BUILD_BUG_ON(PG_unevictable / BITS_PER_BYTE == PG_anon_exclusive / BITS_PER_BYTE);
	init_completion(&r.done);
	task = kthread_run(race_flags, &r, "rmap_race_flags");
	KUNIT_ASSERT_FALSE(test, IS_ERR(task));
	while (time_before(jiffies, r.end)) {
		spin_lock(&c->mm->page_table_lock);
		folio_set_pages_anon_exclusive(folio, &folio->page, 4);
		for (i = 0; i < 4; i++)
			lost += !PageAnonExclusive(folio_page(folio, i));
		folio_clear_pages_anon_exclusive(folio, &folio->page, 4);
		for (i = 0; i < 4; i++)
			lost += PageAnonExclusive(folio_page(folio, i));
		spin_unlock(&c->mm->page_table_lock);
		cond_resched();
	}
	wait_for_completion(&r.done);
	KUNIT_EXPECT_EQ(test, lost, 0);
	KUNIT_EXPECT_EQ(test, r.lost, 0);
	unmap_ptes(c, 0, 4);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/*
 * A folio of two PMDs, mapped by two MMs: MM 0 is the creator. Each MM has each of
 * the two parts in one of these ways.
 */
enum mix { BY_PMD, BY_PTES, BY_FEW_PTES, UNMAPPED, NR_MIXES };

#define NR_PARTS	2
#define FEW		3

struct two_pmds {
	struct rmap_ctx *c[2];		/* by MM */
	enum mix mix[2][NR_PARTS];
	struct mapped start;
};

static const struct account_kind *anon_kind = &account_kinds[2];

/* What the mapcounts have to be, and the statistics. */
static void check_two_pmds(struct kunit *test, const struct two_pmds *t, int line)
{
	const unsigned int ptes_of[] = { 0, HPAGE_PMD_NR, FEW, 0 };
	struct folio *folio = t->c[0]->folio;
	const unsigned long nr_pages = NR_PARTS * HPAGE_PMD_NR;
	const struct folio_mapcounts mc = folio_read_mapcounts(folio);
	const struct mapped now = read_mapped(anon_kind, folio);
	unsigned int ptes = 0, pmds = 0, creator = 0, entries, pages, mapped;
	bool exclusive;
	int mm, part;

	for (mm = 0; mm < 2; mm++) {
		for (part = 0; part < NR_PARTS; part++) {
			const enum mix mix = t->mix[mm][part];

			ptes += ptes_of[mix];
			pmds += mix == BY_PMD;
			if (!mm)
				creator += ptes_of[mix] + (mix == BY_PMD);
		}
	}
	if (folio_is_creator(folio, t->c[1]->mm))
		creator = ptes + pmds - creator;
	entries = ptes + pmds;
	pages = ptes + pmds * HPAGE_PMD_NR;
	exclusive = creator == entries;
	mapped = min(pmds ? pages : max(creator, ptes - creator), nr_pages);

	if (mapcounts_ptes(mc) == ptes && mapcounts_pmds(mc) == pmds &&
	    mapcounts_creator(mc) == creator &&
	    folio_mapcount(folio) == entries &&
	    folio_mapped(folio) == !!entries &&
	    folio_ref_count(folio) == 1 + entries &&
	    mapcounts_pages(mc) == pages &&
	    mapcounts_exclusive(mc) == exclusive &&
	    folio_maybe_mapped_shared(folio) == (entries > 1 && creator != entries) &&
	    mapcounts_nr_mapped(mc, nr_pages, true) == mapped &&
	    mapcounts_partial(mc, nr_pages) == (pages && pages < nr_pages) &&
	    now.pages - t->start.pages == mapped &&
	    now.by_pmd - t->start.by_pmd == min(pmds * HPAGE_PMD_NR, nr_pages))
		return;
	KUNIT_FAIL(test,
		   "line %d, MM 0 has %d %d, MM 1 has %d %d: mapcounts %#llx, refs %d, shared %d, mapped %ld, by PMDs %ld; expected ptes %u, pmds %u, creator %u",
		   line, t->mix[0][0], t->mix[0][1], t->mix[1][0], t->mix[1][1],
		   mc.val, folio_ref_count(folio), folio_maybe_mapped_shared(folio),
		   now.pages - t->start.pages, now.by_pmd - t->start.by_pmd,
		   ptes, pmds, creator);
}

/* The creator maps both parts by PMDs, and forks the other MM. */
static void new_two_pmds(struct kunit *test, struct two_pmds *t)
{
	struct rmap_ctx *c = t->c[0];
	struct folio *folio = new_folio(test, HPAGE_PMD_ORDER + 1);
	struct page *second = folio_page(folio, HPAGE_PMD_NR);

	t->c[1]->folio = folio;
	t->start = read_mapped(anon_kind, folio);
	memset(t->mix, 0, sizeof(t->mix));
	t->mix[1][0] = UNMAPPED;
	t->mix[1][1] = UNMAPPED;
	folio_ref_add(folio, NR_PARTS);
	spin_lock(&c->mm->page_table_lock);
	folio_add_new_anon_rmap(folio, c->vma, c->addr, RMAP_EXCLUSIVE);
	spin_unlock(&c->mm->page_table_lock);
	check_two_pmds(test, t, __LINE__);
	KUNIT_EXPECT_TRUE(test, PageAnonExclusive(&folio->page));
	KUNIT_EXPECT_TRUE(test, PageAnonExclusive(second));
}

static void fork_two_pmds(struct kunit *test, struct two_pmds *t)
{
	struct rmap_ctx *c = t->c[0], *other = t->c[1];
	int part, err = 0;

	for (part = 0; part < NR_PARTS; part++) {
		struct page *page = folio_page(c->folio, part * HPAGE_PMD_NR);

		folio_get(c->folio);
		spin_lock(&c->mm->page_table_lock);
		raw_write_seqcount_begin(&c->mm->write_protect_seq);
		err |= folio_try_dup_anon_rmap_pmd(c->folio, page, other->vma, c->vma);
		raw_write_seqcount_end(&c->mm->write_protect_seq);
		spin_unlock(&c->mm->page_table_lock);
		t->mix[1][part] = BY_PMD;
		check_two_pmds(test, t, __LINE__);
		KUNIT_EXPECT_FALSE(test, PageAnonExclusive(page));
	}
	KUNIT_EXPECT_EQ(test, err, 0);
}

static void split_part(struct rmap_ctx *c, int part, rmap_t flags)
{
	struct page *page = folio_page(c->folio, part * HPAGE_PMD_NR);

	folio_ref_add(c->folio, HPAGE_PMD_NR - 1);
	spin_lock(&c->mm->page_table_lock);
	folio_split_anon_rmap_pmd(c->folio, page, c->vma, flags);
	spin_unlock(&c->mm->page_table_lock);
}

/* From BY_PMD or BY_PTES on, have an MM map a part in another way. */
static void change_part(struct kunit *test, struct two_pmds *t, int mm, int part,
			enum mix to)
{
	const int first = part * HPAGE_PMD_NR;
	struct rmap_ctx *c = t->c[mm];

	if (t->mix[mm][part] == BY_PMD && to == UNMAPPED) {
		spin_lock(&c->mm->page_table_lock);
		folio_remove_rmap_pmd(c->folio, folio_page(c->folio, first), c->vma);
		spin_unlock(&c->mm->page_table_lock);
		folio_put(c->folio);
	} else if (t->mix[mm][part] == BY_PMD && to != BY_PMD) {
		split_part(c, part, RMAP_NONE);
		t->mix[mm][part] = BY_PTES;
		check_two_pmds(test, t, __LINE__);
	}
	if (t->mix[mm][part] == BY_PTES && to != BY_PTES)
		unmap_ptes(c, first + (to == UNMAPPED ? 0 : FEW),
			   HPAGE_PMD_NR - (to == UNMAPPED ? 0 : FEW));
	if (t->mix[mm][part] == BY_FEW_PTES && to == UNMAPPED)
		unmap_ptes(c, first, FEW);
	t->mix[mm][part] = to;
	check_two_pmds(test, t, __LINE__);
}

/* All mixes that one MM, or two, can have of both parts, and the way to these. */
static void test_two_pmds(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct two_pmds t = { .c = { c, other_mm(test) } };
	int i, mm, part;

	for (i = 0; i < NR_MIXES * NR_MIXES * NR_MIXES * NR_MIXES; i++) {
		const int mix[] = { i % 4, i / 4 % 4, i / 16 % 4, i / 64 };

		new_two_pmds(test, &t);
		fork_two_pmds(test, &t);
		for (mm = 0; mm < 2; mm++)
			for (part = 0; part < NR_PARTS; part++)
				change_part(test, &t, mm, part, mix[2 * mm + part]);

		/* The last to have it adopts it. */
		if (mix[0] == UNMAPPED && mix[1] == UNMAPPED && i != 255) {
			folio_lock(c->folio);
			spin_lock(&t.c[1]->mm->page_table_lock);
			folio_adopt(c->folio, t.c[1]->mm, folio_mapcount(c->folio));
			spin_unlock(&t.c[1]->mm->page_table_lock);
			folio_unlock(c->folio);
			check_two_pmds(test, &t, __LINE__);
		}

		/* The parts of it go in the other order. */
		for (part = NR_PARTS - 1; part >= 0; part--)
			for (mm = 0; mm < 2; mm++)
				change_part(test, &t, mm, part, UNMAPPED);
		KUNIT_EXPECT_EQ(test, folio_read_mapcounts(c->folio).val, 0ULL);
		free_folio(test);
	}
}

/* The pages of the part that is split are exclusive then, and no others. */
static void test_two_pmds_exclusive(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct two_pmds t = { .c = { c, other_mm(test) } };
	int split, i;

	for (split = 0; split < NR_PARTS; split++) {
		new_two_pmds(test, &t);
		split_part(c, split, RMAP_EXCLUSIVE);
		t.mix[0][split] = BY_PTES;
		check_two_pmds(test, &t, __LINE__);
		for (i = 0; i < NR_PARTS * HPAGE_PMD_NR; i++) {
			const bool exclusive = i / HPAGE_PMD_NR == split ||
					       i % HPAGE_PMD_NR == 0;

			if (PageAnonExclusive(folio_page(c->folio, i)) != exclusive)
				KUNIT_FAIL(test, "page %d: exclusive %d", i, !exclusive);
		}
		change_part(test, &t, 0, 0, UNMAPPED);
		change_part(test, &t, 0, 1, UNMAPPED);
		free_folio(test);
	}
}

/* Two PMDs and one PTE are 3 entries, and one page more than the PMDs map. */
static void test_two_pmds_file(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, HPAGE_PMD_ORDER + 1);
	const int nr_pages = folio_nr_pages(folio);
	const struct mapped start = read_mapped(&account_kinds[0], folio);
	struct folio_mapcounts mc;
	struct mapped now;
	int part;

	for (part = 0; part < NR_PARTS; part++) {
		struct page *page = folio_page(folio, part * HPAGE_PMD_NR);

		folio_ref_add(folio, 2);
		folio_lock(folio);
		spin_lock(&c->mm->page_table_lock);
		folio_add_file_rmap_pmd(folio, page, c->vma);
		folio_dup_file_rmap_pmd(folio, page, c->vma);
		folio_remove_rmap_pmd(folio, page, c->vma);
		spin_unlock(&c->mm->page_table_lock);
		folio_unlock(folio);
		folio_put(folio);
	}
	map_file(c, HPAGE_PMD_NR + 1, 1);
	expect_mapcounts(test, folio, 1, 2);
	mc = folio_read_mapcounts(folio);
	KUNIT_EXPECT_EQ(test, folio_mapcount(folio), 3);
	KUNIT_EXPECT_EQ(test, mapcounts_pages(mc), 2 * HPAGE_PMD_NR + 1);
	KUNIT_EXPECT_EQ(test, mapcounts_average(mc, nr_pages), 2);
	KUNIT_EXPECT_FALSE(test, folio_maybe_mapped_shared(folio));
	now = read_mapped(&account_kinds[0], folio);
	KUNIT_EXPECT_EQ(test, now.pages - start.pages, nr_pages);
	KUNIT_EXPECT_EQ(test, now.by_pmd - start.by_pmd, nr_pages);

	unmap_ptes(c, HPAGE_PMD_NR + 1, 1);
	for (part = 0; part < NR_PARTS; part++) {
		spin_lock(&c->mm->page_table_lock);
		folio_remove_rmap_pmd(folio, folio_page(folio, part * HPAGE_PMD_NR),
				      c->vma);
		spin_unlock(&c->mm->page_table_lock);
		folio_put(folio);
	}
	expect_mapcounts(test, folio, 0, 0);
	now = read_mapped(&account_kinds[0], folio);
	KUNIT_EXPECT_EQ(test, now.pages, start.pages);
	KUNIT_EXPECT_EQ(test, now.by_pmd, start.by_pmd);
}

/* The folio that is mapped at the start of the range, with a reference. */
static struct folio *mapped_folio(struct kunit *test, bool *by_pmd)
{
	struct rmap_ctx *c = test->priv;
	struct folio_walk fw;
	struct folio *folio;

	mmap_read_lock(c->mm);
	c->vma = vma_lookup(c->mm, c->addr);
	folio = folio_walk_start(&fw, c->vma, c->addr, 0);
	if (folio) {
		folio_get(folio);
		*by_pmd = fw.level == FW_LEVEL_PMD;
		folio_walk_end(&fw, c->vma);
	}
	mmap_read_unlock(c->mm);
	return folio;
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
	bool by_pmd = false;

	hide_from_khugepaged(c->mm);
	KUNIT_ASSERT_EQ(test, 0, do_madvise(c->mm, c->addr, HPAGE_PMD_SIZE,
					    MADV_HUGEPAGE));
	KUNIT_ASSERT_EQ(test, 0, put_user(1, (int __user *)c->addr));
	c->folio = mapped_folio(test, &by_pmd);
	KUNIT_ASSERT_NOT_NULL(test, c->folio);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, put_folio, c->folio));
	if (!by_pmd)
		kunit_skip(test, "the fault did not map a THP");
	return c->folio;
}

static void split_pmd(struct rmap_ctx *c)
{
	mmap_read_lock(c->mm);
	split_huge_pmd_address(vma_lookup(c->mm, c->addr), c->addr, false);
	mmap_read_unlock(c->mm);
}

static struct mm_struct *fork_mm(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct mm_struct *child = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, child);
	child->task_size = c->mm->task_size;
	hide_from_khugepaged(child);
	KUNIT_ASSERT_EQ(test, 0, dup_mmap(child, c->mm));
	return child;
}

/* Page tables: fault, fork, exit of the child, PMD split, munmap of parts. */
static void test_thp_split_first(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	const int nr = HPAGE_PMD_NR;
	struct mm_struct *child;
	struct folio *folio = fault_thp(test);

	c->others = true;
	expect_mapcounts(test, folio, 0, 1);
	split_pmd(c);
	expect_mapcounts(test, folio, nr, 0);

	child = fork_mm(test);
	expect_mapcounts(test, folio, 2 * nr, 0);

	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, PAGE_SIZE));
	expect_mapcounts(test, folio, 2 * nr - 1, 0);
	mmput(child);
	expect_mapcounts(test, folio, nr - 1, 0);

	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr + PAGE_SIZE, 3 * PAGE_SIZE));
	expect_mapcounts(test, folio, nr - 4, 0);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, HPAGE_PMD_SIZE));
	expect_mapcounts(test, folio, 0, 0);
}

/* One MM has a THP PMD-mapped, another one PTE-mapped. */
static void test_thp_fork_first(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	const int nr = HPAGE_PMD_NR;
	struct mm_struct *child, *other;
	struct folio *folio = fault_thp(test);

	c->others = true;
	child = fork_mm(test);
	expect_mapcounts(test, folio, 0, 2);
	split_pmd(c);
	expect_mapcounts(test, folio, nr, 1);
	other = fork_mm(test);
	expect_mapcounts(test, folio, 2 * nr, 1);

	mmput(child);
	expect_mapcounts(test, folio, 2 * nr, 0);
	KUNIT_EXPECT_EQ(test, 0, do_madvise(c->mm, c->addr, HPAGE_PMD_SIZE / 2,
					    MADV_DONTNEED));
	expect_mapcounts(test, folio, nr + nr / 2, 0);
	mmput(other);
	expect_mapcounts(test, folio, nr / 2, 0);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, HPAGE_PMD_SIZE));
	expect_mapcounts(test, folio, 0, 0);
}

/* A write to a shared THP splits its PMD and copies one page. */
static void test_thp_cow(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	const int nr = HPAGE_PMD_NR;
	struct mm_struct *child;
	struct folio *folio = fault_thp(test);

	c->others = true;
	child = fork_mm(test);
	KUNIT_ASSERT_EQ(test, 0, put_user(2, (int __user *)c->addr));
	expect_mapcounts(test, folio, nr - 1, 1);
	mmput(child);
	expect_mapcounts(test, folio, nr - 1, 0);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, HPAGE_PMD_SIZE));
	expect_mapcounts(test, folio, 0, 0);
}

/* At the bound, fork() of a PMD fails, and leaves nothing behind. */
static void test_thp_fork_pmd_bound(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	const u64 others = MAPCOUNTS_PAGES_MAX - 2 * HPAGE_PMD_NR;
	struct folio *folio = fault_thp(test);
	struct mm_struct *child;

	skip_if_checked(test);
	if (HPAGE_PMD_NR != MAX_PTRS_PER_PTE)
		kunit_skip(test, "PMDs map fewer pages here");
	c->others = true;
	atomic64_add(others * MAPCOUNTS_PTE, &folio->_mapcounts);
	child = fork_mm(test);
	expect_mapcounts(test, folio, others, 2);
	mmput(child);

	child = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, child);
	atomic64_add(MAPCOUNTS_PTE, &folio->_mapcounts);
	child->task_size = c->mm->task_size;
	KUNIT_EXPECT_EQ(test, -ENOMEM, dup_mmap(child, c->mm));
	mmput(child);
	atomic64_sub((others + 1) * MAPCOUNTS_PTE, &folio->_mapcounts);
	/* It was split to try with PTEs. */
	expect_mapcounts(test, folio, HPAGE_PMD_NR, 0);
	KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 1 + HPAGE_PMD_NR);
}

/* At the bound of PTEs, fork() fails, and leaves nothing behind. */
static void test_thp_fork_ptes_bound(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	const int nr = HPAGE_PMD_NR;
	const u64 others = MAPCOUNTS_PAGES_MAX - 2 * nr;
	struct folio *folio = fault_thp(test);
	struct mm_struct *child;

	skip_if_checked(test);
	child = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, child);
	c->others = true;
	split_pmd(c);
	atomic64_add((others + 1) * MAPCOUNTS_PTE, &folio->_mapcounts);
	child->task_size = c->mm->task_size;
	KUNIT_EXPECT_EQ(test, -ENOMEM, dup_mmap(child, c->mm));
	mmput(child);
	expect_mapcounts(test, folio, others + 1 + nr, 0);
	KUNIT_EXPECT_EQ(test, folio_ref_count(folio), 1 + nr);

	atomic64_sub(MAPCOUNTS_PTE, &folio->_mapcounts);
	child = fork_mm(test);
	expect_mapcounts(test, folio, MAPCOUNTS_PAGES_MAX, 0);
	atomic64_sub(others * MAPCOUNTS_PTE, &folio->_mapcounts);
	mmput(child);
	expect_mapcounts(test, folio, nr, 0);
}

/* Two MMs: PMDs, then a PMD and PTEs, then fewer PTEs. */
static void test_counts_anon(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	const int nr = HPAGE_PMD_NR;
	struct mm_struct *child;

	fault_thp(test);
	expect_counts(test, NULL, nr);
	child = fork_mm(test);
	expect_counts(test, child, 2 * nr);
	split_pmd(c);
	expect_counts(test, child, 2 * nr);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, 3 * PAGE_SIZE));
	expect_counts(test, child, 2 * nr - 3);
	KUNIT_EXPECT_EQ(test, 0, do_madvise(c->mm, c->addr + 9 * PAGE_SIZE,
					    4 * PAGE_SIZE, MADV_DONTNEED));
	expect_counts(test, child, 2 * nr - 7);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, HPAGE_PMD_SIZE));
	expect_counts(test, child, nr);
	mmput(child);
	expect_counts(test, NULL, 0);
}

/* Migration entries do not count. */
static void test_counts_migration(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	const int nr = HPAGE_PMD_NR;
	struct mm_struct *child;
	struct folio *folio;

	if (!IS_ENABLED(CONFIG_MIGRATION))
		kunit_skip(test, "needs CONFIG_MIGRATION");
	folio = fault_thp(test);
	split_pmd(c);
	child = fork_mm(test);
	folio_lock(folio);
	try_to_migrate(folio, 0);
	folio_unlock(folio);
	expect_counts(test, child, 0);
	folio_lock(folio);
	remove_migration_ptes(folio, folio, 0);
	folio_unlock(folio);
	expect_counts(test, child, 2 * nr);
	mmput(child);
	expect_counts(test, NULL, nr);
}

/*
 * MMs that share a folio unmap parts of it. Only a walk of the mappings finds out
 * which pages no MM maps any more.
 */
#define HALF		(-1)
#define LAST		(-1)

static const struct walk_case {
	const char *desc;
	int first[2];		/* page that parent and child unmap, */
	int nr[2];		/* and how many pages */
	bool pmd;		/* a third MM maps the folio by a PMD */
	bool locked;		/* the VMA of the child is mlocked, */
	bool sequential;	/* or reclaim ignores its references */
	int result;
} walk_table[] = {
	{
		.desc = "nothing",
	}, {
		.desc = "the same half",
		.nr = { HALF, HALF },
		.result = 1,
	}, {
		.desc = "the first page, and one of them more",
		.nr = { 1, 7 },
		.result = 1,
	}, {
		.desc = "ranges that have one page in common",
		.first = { 2, 9 },
		.nr = { 8, 20 },
		.result = 1,
	}, {
		.desc = "the last page",
		.first = { LAST, LAST },
		.nr = { 1, 1 },
		.result = 1,
	}, {
		.desc = "the same half, one VMA without recency",
		.nr = { HALF, HALF },
		.sequential = true,
		.result = 1,
	}, {
		.desc = "the same half, one VMA is mlocked",
		.nr = { HALF, HALF },
		.locked = true,
		.result = 1,
	}, {
		.desc = "ranges side by side",
		.first = { 2, 10 },
		.nr = { 8, 20 },
		.result = -EAGAIN,
	}, {
		.desc = "a page, of one",
		.first = { LAST },
		.nr = { 1, 0 },
		.result = -EAGAIN,
	}, {
		.desc = "the same half, a third has a PMD",
		.nr = { HALF, HALF },
		.pmd = true,
		.result = -EAGAIN,
	},
};

KUNIT_ARRAY_PARAM_DESC(walk, walk_table, desc);

static void zap_pages(struct kunit *test, struct mm_struct *mm, int first, int nr)
{
	struct rmap_ctx *c = test->priv;
	unsigned long addr;

	if (first == LAST)
		first = HPAGE_PMD_NR - 1;
	if (nr == HALF)
		nr = HPAGE_PMD_NR / 2;
	addr = c->addr + first * PAGE_SIZE;
	mmap_read_lock(mm);
	if (nr)
		zap_vma_range(vma_lookup(mm, addr), addr, nr * PAGE_SIZE);
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
		third = fork_mm(test);
	split_pmd(c);
	child = fork_mm(test);
	if (t->sequential)
		KUNIT_EXPECT_EQ(test, 0, do_madvise(child, c->addr, HPAGE_PMD_SIZE,
						    MADV_SEQUENTIAL));
	if (t->locked) {
		mmap_write_lock(child);
		vm_flags_set(vma_lookup(child, c->addr), VM_LOCKED);
		mmap_write_unlock(child);
	}
	zap_pages(test, c->mm, t->first[0], t->nr[0]);
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

/* No process maps more than one page, and all map the same one. */
static void test_walk_one_page(struct kunit *test)
{
	const int nr = min(HPAGE_PMD_NR, 512);
	struct folio *folio = fault_thp(test);
	struct rmap_ctx *c = test->priv;
	struct mm_struct **mms;
	int i;

	mms = kunit_kcalloc(test, nr, sizeof(*mms), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, mms);
	split_pmd(c);
	zap_pages(test, c->mm, 0, 7);
	zap_pages(test, c->mm, 8, HPAGE_PMD_NR - 8);
	c->others = true;
	for (i = 1; i < nr; i++)
		mms[i] = fork_mm(test);
	expect_mapcounts(test, folio, nr, 0);
	KUNIT_EXPECT_EQ(test, 1, walk_partial(folio));
	for (i = 1; i < nr; i++)
		mmput(mms[i]);
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
		zap_pages(test, c->mm, 2 * i, 1);
	for (i = 0; (i + 1) * nr <= max; i++) {
		if (i && (i + 1) * (nr + 1) <= max)
			KUNIT_EXPECT_EQ(test, 1, walk_partial(folio));
		mms[i] = fork_mm(test);
	}
	if (!i)
		mms[i++] = fork_mm(test);
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
	child = fork_mm(test);
	other = fork_mm(test);
	KUNIT_EXPECT_EQ(test, 0, put_user(1, (int __user *)c->addr));
	zap_pages(test, other, 0, HPAGE_PMD_NR);
	mmput(other);
	other = fork_mm(test);
	mmput(other);
	KUNIT_EXPECT_TRUE(test, list_empty(&folio->_deferred_list));

	zap_pages(test, c->mm, 0, HALF);
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
#define expect_report(test, wrong) do {					\
	struct kunit *__test = (test);					\
									\
	kunit_warning_suppress(__test) {				\
		wrong;							\
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(__test, 1);	\
	}								\
} while (0)

static int check_test_init(struct kunit *test)
{
	if (!folio_mapcounts_check_enabled())
		kunit_skip(test, "needs folio_mapcounts_check=on");
	return rmap_test_init(test);
}

/* The mapcounts are right, but it is another page that is unmapped. */
static void test_check_wrong_page(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);

	map_file(c, 2, 4);
	expect_report(test, unmap_ptes(c, 5, 2));
	expect_mapcounts(test, folio, 2, 0);
	/* Have the page mapped that was not. */
	map_file(c, 6, 1);
	unmap_ptes(c, 2, 3);
	expect_mapcounts(test, folio, 0, 0);
}

/* The delta is too small for what is mapped: a batch, and a PTE with a PMD. */
static void test_check_wrong_delta(struct kunit *test)
{
	const u64 one = MAPCOUNTS_PTE;
	struct folio *folio = new_folio(test, TEST_MAX_ORDER);

	expect_report(test, folio_mapcounts_check_add(folio, one, &folio->page, 2, 0));
	folio_mapcounts_check_add(folio, -one, &folio->page, -2, 0);
	expect_report(test, folio_mapcounts_check_add(folio, one, &folio->page, 1, 1));
	folio_mapcounts_check_add(folio, -one, &folio->page, -1, -1);
	expect_mapcounts(test, folio, 0, 0);
}

/* Overwritten mapcounts are reported by the next addition, and by the next reuse. */
static void test_check_overwritten(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);

	map_file(c, 0, 16);
	atomic64_inc(&folio->_mapcounts);
	expect_report(test, map_file(c, 3, 1));
	expect_report(test, unmap_ptes(c, 3, 1));
	expect_report(test, folio_mapcounts_check_reuse(folio));
	atomic64_dec(&folio->_mapcounts);
	folio_mapcounts_check_reuse(folio);
	unmap_ptes(c, 0, 16);
}

/* A folio with a page that is mapped twice must not be reused. */
static void test_check_reuse(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);

	map_file(c, 0, 15);
	folio_mapcounts_check_reuse(folio);
	map_file(c, 14, 1);
	expect_report(test, folio_mapcounts_check_reuse(folio));
	unmap_ptes(c, 14, 1);
	folio_mapcounts_check_reuse(folio);
	unmap_ptes(c, 0, 15);
}

/* A page that becomes exclusive must be mapped exactly once. */
static void test_check_exclusive(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);
	struct page *page = &folio->page;
	int i;

	folio_ref_add(folio, 18);
	folio_lock(folio);
	spin_lock(&c->mm->page_table_lock);
	folio_add_new_anon_rmap(folio, c->vma, c->addr, RMAP_EXCLUSIVE);
	folio_mapcounts_check_exclusive(folio, page, 16);
	for (i = 0; i < 16; i++)
		ClearPageAnonExclusive(page + i);
	folio_add_anon_rmap_pte(folio, page + 1, c->vma, c->addr + PAGE_SIZE,
				RMAP_NONE);
	folio_mapcounts_check_exclusive(folio, page + 2, 14);
	spin_unlock(&c->mm->page_table_lock);

	/* KUnit allocates memory to expect a report: lock within. */
	expect_report(test,
		      scoped_guard(spinlock, &c->mm->page_table_lock)
			      folio_add_anon_rmap_pte(folio, page, c->vma, c->addr,
						      RMAP_EXCLUSIVE));
	ClearPageAnonExclusive(page);
	folio_unlock(folio);

	unmap_ptes(c, 0, 16);
	expect_report(test, folio_mapcounts_check_exclusive(folio, page, 3));
	unmap_ptes(c, 0, 2);
}

/* No PTE or PMD may map a folio that is split or migrated. */
static void test_check_unmapped(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, TEST_MAX_ORDER);

	folio_mapcounts_check_unmapped(folio);
	map_file(c, folio_nr_pages(folio) - 1, 1);
	expect_report(test, folio_mapcounts_check_unmapped(folio));
	unmap_ptes(c, folio_nr_pages(folio) - 1, 1);
	folio_mapcounts_check_unmapped(folio);
	if (!IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE))
		return;
	do_account_op(c, ADD_PMD, 0, 0);
	expect_report(test, folio_mapcounts_check_unmapped(folio));
	do_account_op(c, REMOVE_PMD, 0, 0);
	folio_mapcounts_check_unmapped(folio);
}

/* The mapcounts say that nothing is mapped, but one page is still. */
static void test_check_free(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);

	map_file(c, 3, 1);
	expect_report(test, unmap_ptes(c, 4, 1));
	expect_mapcounts(test, folio, 0, 0);
	expect_report(test, free_folio(test));
	/* The next user of the pages is not affected. */
	new_folio(test, 4);
	map_file(c, 0, 16);
	unmap_ptes(c, 0, 16);
}

/* Small folios are not checked, and cause no report. */
static void test_check_small(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 0);

	map_file(c, 0, 1);
	folio_mapcounts_check_reuse(folio);
	folio_mapcounts_check_unmapped(folio);
	folio_mapcounts_check_exclusive(folio, &folio->page, 1);
	unmap_ptes(c, 0, 1);
}

static struct kunit_case check_test_cases[] = {
	KUNIT_CASE(test_check_wrong_page),
	KUNIT_CASE(test_check_wrong_delta),
	KUNIT_CASE(test_check_overwritten),
	KUNIT_CASE(test_check_reuse),
	KUNIT_CASE(test_check_exclusive),
	KUNIT_CASE(test_check_unmapped),
	KUNIT_CASE(test_check_free),
	KUNIT_CASE(test_check_small),
	{}
};

static struct kunit_suite check_test_suite = {
	.name = "folio_mapcounts_check",
	.init = check_test_init,
	.test_cases = check_test_cases,
};

static struct kunit_case rmap_test_cases[] = {
	KUNIT_CASE_PARAM(test_new_folio, orders_gen_params),
	KUNIT_CASE_PARAM(test_file_ptes, orders_gen_params),
	KUNIT_CASE_PARAM(test_anon_ptes, orders_gen_params),
	KUNIT_CASE(test_anon_pinned),
	KUNIT_CASE_PARAM(test_exclusive, orders_gen_params),
	KUNIT_CASE(test_unmap_unmapped),
	KUNIT_CASE(test_file_pmd),
	KUNIT_CASE(test_anon_pmd),
	KUNIT_CASE(test_hugetlb),
	KUNIT_CASE(test_many_mappings),
	KUNIT_CASE(test_bounds),
	KUNIT_CASE_PARAM(test_account, account_kinds_gen_params),
	KUNIT_CASE(test_partial),
	KUNIT_CASE(test_partial_pmd),
	KUNIT_CASE_PARAM(test_claim, orders_gen_params),
	KUNIT_CASE(test_no_claim),
	KUNIT_CASE(test_claim_unlocked),
	KUNIT_CASE(test_adopt_wrong),
	KUNIT_CASE(test_adopt),
	KUNIT_CASE(test_account_shared),
	KUNIT_CASE(test_counts_file),
	KUNIT_CASE(test_counts_driver),
	KUNIT_CASE(test_counts_locked),
	KUNIT_CASE_PARAM(test_race, orders_gen_params),
	KUNIT_CASE(test_exclusive_race),
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	KUNIT_CASE(test_two_pmds),
	KUNIT_CASE(test_two_pmds_exclusive),
	KUNIT_CASE(test_two_pmds_file),
	KUNIT_CASE(test_thp_split_first),
	KUNIT_CASE(test_thp_fork_first),
	KUNIT_CASE(test_thp_cow),
	KUNIT_CASE(test_thp_fork_pmd_bound),
	KUNIT_CASE(test_thp_fork_ptes_bound),
	KUNIT_CASE(test_counts_anon),
	KUNIT_CASE(test_counts_migration),
	KUNIT_CASE_PARAM(test_walk_partial, walk_gen_params),
	KUNIT_CASE(test_walk_one_page),
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
