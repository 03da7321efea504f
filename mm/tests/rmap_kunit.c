// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for what the rmap functions do to the word that counts the mappings of
 * a large folio: on folios that are mapped by nothing but the calls made here,
 * and on folios in real page tables.
 */
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/gfp.h>
#include <linux/hugetlb.h>
#include <linux/kthread.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mman.h>
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

/* An MM, a VMA in it, and room for the largest folio at a natural address. */
struct rmap_ctx {
	struct mm_struct *mm;
	struct vm_area_struct *vma;
	unsigned long addr;
	struct folio *folio;
	bool others;	/* not only the creator maps it */
};

static int rmap_test_init(struct kunit *test)
{
	const unsigned long size = PAGE_SIZE << TEST_MAX_ORDER;
	struct rmap_ctx *c = kunit_kzalloc(test, sizeof(*c), GFP_KERNEL);
	unsigned long start;
	int err;

	KUNIT_ASSERT_NOT_NULL(test, c);
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
	/* The deferred split queue wants to know whose folio it is. */
	KUNIT_ASSERT_EQ(test, 0, mem_cgroup_charge(c->folio, c->mm, GFP_KERNEL));
	return c->folio;
}

static void free_folio(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;

	kunit_release_action(test, put_folio, c->folio);
}

#define expect_mapcounts(test, folio, ptes, entire) \
	__expect_mapcounts(test, folio, ptes, entire, __LINE__)

static void __expect_mapcounts(struct kunit *test, const struct folio *folio,
			       unsigned int ptes, unsigned int entire, int line)
{
	const struct folio_mapcounts mc = folio_mapcounts(folio);
	const struct rmap_ctx *c = test->priv;
	const bool mapped = ptes || entire;
	unsigned int creator = 0;

	/* But for those who count it themselves, all mappings are the creator's. */
	if (!c->others && folio->_creator)
		creator = (ptes + entire * folio_nr_pages(folio)) &
			  FOLIO_MAPCOUNTS_CREATOR_MAX;

	if (folio_mapcounts_ptes(mc) == ptes &&
	    folio_mapcounts_entire(mc) == entire &&
	    (c->others || folio_mapcounts_creator(mc) == creator) &&
	    folio_mapcount(folio) == ptes + entire &&
	    folio_entire_mapcount(folio) == entire &&
	    folio_mapped(folio) == mapped)
		return;
	KUNIT_FAIL(test,
		   "line %d, order %u: word %#llx, mapcount %d, entire_mapcount %d, mapped %d; expected ptes %u, entire %u",
		   line, folio_order(folio), mc.word, folio_mapcount(folio),
		   folio_entire_mapcount(folio), folio_mapped(folio), ptes, entire);
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

static const unsigned int orders[] = { 1, 2, 3, 4, 7, TEST_MAX_ORDER };

static void order_desc(const unsigned int *order, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "order %u", *order);
}

KUNIT_ARRAY_PARAM(orders, orders, order_desc);

static unsigned int test_order(struct kunit *test)
{
	return *(const unsigned int *)test->param_value;
}

/* The word is there, aligned, and 0 on every new folio, again and again. */
static void test_new_folio(struct kunit *test)
{
	struct folio *folio;
	int i;

	for (i = 0; i < 3; i++) {
		folio = new_folio(test, test_order(test));
		KUNIT_EXPECT_TRUE(test, IS_ALIGNED((unsigned long)&folio->_mapcounts,
						   sizeof(folio->_mapcounts)));
		KUNIT_EXPECT_EQ(test, folio_mapcounts(folio).word, 0ULL);
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

/* A new anonymous folio, two fork()s, the parts of it unmapped in some order. */
static void test_anon_ptes(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	const unsigned int order = test_order(test);
	const int nr = 1 << order;
	struct folio *folio;
	int i;

	if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && order == TEST_MAX_ORDER)
		kunit_skip(test, "mapped by a PMD: see test_anon_pmd");
	if (order == 1)
		kunit_skip(test, "there are no anonymous folios of order 1");

	folio = new_folio(test, order);
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

/* A mapping that is not there cannot be removed without a complaint. */
static void test_unmap_unmapped(struct kunit *test)
{
	const u64 pte = folio_mapcounts_delta_ptes(1, false);
	const u64 pmd = folio_mapcounts_delta_entire(16, false);
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);

	if (!IS_ENABLED(CONFIG_DEBUG_VM))
		kunit_skip(test, "needs CONFIG_DEBUG_VM");

	map_file(c, 0, 1);
	kunit_warning_suppress(test) {
		__folio_sub_mapcounts(folio, 2 * pte);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
		KUNIT_EXPECT_EQ(test, folio_mapcount(folio), -1);
	}
	__folio_add_mapcounts(folio, 2 * pte);
	kunit_warning_suppress(test) {
		__folio_sub_mapcounts(folio, pmd);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}
	__folio_add_mapcounts(folio, pmd);
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

/* A new THP is mapped by a PMD, which fork() duplicates; then it is split. */
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
		1U << 20, 1U << 30, 1U << 31, (1U << 31) + 1, ~0U,
	};
	struct rmap_ctx *c = test->priv;
	struct folio *folio = new_folio(test, 4);
	int i;

	for (i = 0; i < ARRAY_SIZE(many); i++) {
		const u64 others = folio_mapcounts_delta_ptes(many[i] - 16, false);

		map_file(c, 0, 16);
		atomic64_add(others, &folio->_mapcounts);
		KUNIT_EXPECT_EQ(test, folio_mapcounts_ptes(folio_mapcounts(folio)),
				many[i]);
		KUNIT_EXPECT_EQ(test, folio_entire_mapcount(folio), 0);
		KUNIT_EXPECT_TRUE_MSG(test, folio_mapped(folio), "%u mappings",
				      many[i]);
		atomic64_sub(others, &folio->_mapcounts);
		expect_mapcounts(test, folio, 16, 0);
		unmap_ptes(c, 0, 16);
		expect_mapcounts(test, folio, 0, 0);
	}
}

/* The words of two MMs: MM 1 is another one than that of the test. */
static void check_creator(struct kunit *test, unsigned int pages, bool shared, int line)
{
	struct rmap_ctx *c = test->priv;
	const struct folio_mapcounts mc = folio_mapcounts(c->folio);

	KUNIT_EXPECT_EQ_MSG(test, folio_mapcounts_creator(mc), pages, "line %d", line);
	KUNIT_EXPECT_EQ_MSG(test, folio_maybe_mapped_shared(c->folio), shared,
			    "line %d", line);
}

#define expect_creator(test, pages, shared) \
	check_creator(test, pages, shared, __LINE__)

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

/* Who maps an unmapped folio first is its creator. */
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

	/* No change while there is a mapping, whosever it is. */
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
	KUNIT_EXPECT_EQ(test, folio_mapcounts(folio).word, 0ULL);
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
	KUNIT_EXPECT_EQ(test, folio_mapcounts(c->folio).word, 0ULL);
	__free_pages(page, 2);
	c->folio = folio;
}

/* The first to map a folio has it locked, or is told. */
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

/* An anonymous folio changes hands when its creator has gone. */
static void test_adopt(struct kunit *test)
{
	struct rmap_ctx *c = test->priv, *other;
	struct folio *folio = new_folio(test, 4);

	if (!folio_test_large_rmappable(folio))
		kunit_skip(test, "no folio is rmappable");
	other = other_mm(test);
	folio_ref_add(folio, 32);
	spin_lock(&c->mm->page_table_lock);
	folio_add_new_anon_rmap(folio, c->vma, c->addr, RMAP_EXCLUSIVE);
	expect_creator(test, 16, false);
	raw_write_seqcount_begin(&c->mm->write_protect_seq);
	KUNIT_EXPECT_EQ(test, 0,
			folio_try_dup_anon_rmap_ptes(folio, &folio->page, 16,
						     other->vma, c->vma));
	raw_write_seqcount_end(&c->mm->write_protect_seq);
	spin_unlock(&c->mm->page_table_lock);
	expect_creator(test, 16, true);

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
	KUNIT_EXPECT_EQ(test, folio_mapcounts(folio).word, 0ULL);
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
 * Several threads change the word of one folio at the same time, without a
 * lock that they share. Nothing may be lost or left over, in the word or in
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

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
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

/* Have a write fault map a THP by a PMD. */
static struct folio *fault_thp(struct kunit *test)
{
	struct rmap_ctx *c = test->priv;
	bool by_pmd = false;

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

/* The same THP is mapped by a PMD here and by PTEs there. */
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

/* At the bound of PMDs, fork() splits the PMD and duplicates PTEs. */
static void test_thp_fork_bound(struct kunit *test)
{
	const u64 one = FOLIO_MAPCOUNTS_ENTIRE;
	const u64 others = (FOLIO_MAPCOUNTS_ENTIRE_MAX - 2) * one;
	struct rmap_ctx *c = test->priv;
	const int nr = HPAGE_PMD_NR;
	struct mm_struct *child, *last;
	struct folio *folio = fault_thp(test);

	c->others = true;
	atomic64_add(others, &folio->_mapcounts);
	last = fork_mm(test);
	expect_mapcounts(test, folio, 0, FOLIO_MAPCOUNTS_ENTIRE_MAX);
	KUNIT_EXPECT_FALSE(test, folio_can_add_entire(folio));

	child = fork_mm(test);
	expect_mapcounts(test, folio, 2 * nr, FOLIO_MAPCOUNTS_ENTIRE_MAX - 1);
	KUNIT_EXPECT_TRUE(test, folio_can_add_entire(folio));
	atomic64_sub(others, &folio->_mapcounts);
	mmput(last);
	mmput(child);
	expect_mapcounts(test, folio, nr, 0);
}
#endif /* CONFIG_TRANSPARENT_HUGEPAGE */

static struct kunit_case rmap_test_cases[] = {
	KUNIT_CASE_PARAM(test_new_folio, orders_gen_params),
	KUNIT_CASE_PARAM(test_file_ptes, orders_gen_params),
	KUNIT_CASE_PARAM(test_anon_ptes, orders_gen_params),
	KUNIT_CASE(test_anon_pinned),
	KUNIT_CASE(test_unmap_unmapped),
	KUNIT_CASE(test_file_pmd),
	KUNIT_CASE(test_anon_pmd),
	KUNIT_CASE(test_hugetlb),
	KUNIT_CASE(test_many_mappings),
	KUNIT_CASE_PARAM(test_claim, orders_gen_params),
	KUNIT_CASE(test_no_claim),
	KUNIT_CASE(test_claim_unlocked),
	KUNIT_CASE(test_adopt),
	KUNIT_CASE_PARAM(test_race, orders_gen_params),
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	KUNIT_CASE(test_thp_split_first),
	KUNIT_CASE(test_thp_fork_first),
	KUNIT_CASE(test_thp_cow),
	KUNIT_CASE(test_thp_fork_bound),
#endif
	{}
};

static struct kunit_suite rmap_test_suite = {
	.name = "rmap",
	.init = rmap_test_init,
	.test_cases = rmap_test_cases,
};

kunit_test_suite(rmap_test_suite);
