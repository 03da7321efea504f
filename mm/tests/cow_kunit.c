// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for what a write fault does to a large anonymous folio that is mapped by
 * PTEs: when its pages are reused, and when they have to be copied. The page
 * tables are real ones, of MMs that fork, unmap and exit.
 */
#include <kunit/test.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pagewalk.h>
#include <linux/pgalloc.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/sched/sysctl.h>

#include "../internal.h"

#define NR_MMS		7
#define NR_FOLIOS	4	/* in one test, one after the other */

/*
 * MM 0 is the test's own; the others descend from it. All have the folio at the
 * same address.
 */
struct cow_ctx {
	struct mm_struct *mms[NR_MMS];
	unsigned long addr;
	unsigned int order;
	unsigned long nr;		/* pages of the folio */
	struct folio *folio;
	/* What to restore */
	unsigned long orders_always, orders_inherit;
};

/*
 * Keep khugepaged from collapsing what a test maps by PTEs: an MM with this flag
 * is on its list already, and is not put there again.
 */
static void hide_from_khugepaged(struct mm_struct *mm)
{
	mm_flags_set(MMF_VM_HUGEPAGE, mm);
}

static int cow_test_init(struct kunit *test)
{
	struct cow_ctx *c = kunit_kzalloc(test, sizeof(*c), GFP_KERNEL);
	unsigned long start;

	KUNIT_ASSERT_NOT_NULL(test, c);
	test->priv = c;
	c->orders_always = huge_anon_orders_always;
	c->orders_inherit = huge_anon_orders_inherit;
	if (!has_transparent_hugepage())
		kunit_skip(test, "no huge pages on this machine");

	start = kunit_vm_mmap(test, NULL, 0, (NR_FOLIOS + 2) * HPAGE_PMD_SIZE,
			      PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_NE(test, start, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR_VALUE(start));
	c->addr = ALIGN(start, HPAGE_PMD_SIZE);
	c->mms[0] = current->mm;
	hide_from_khugepaged(current->mm);
	/* It is worth compaction. */
	return do_madvise(current->mm, c->addr, (NR_FOLIOS + 1) * HPAGE_PMD_SIZE,
			  MADV_HUGEPAGE);
}

/* Let write faults map folios of this order; 0 restores the setting. */
static void set_order(struct cow_ctx *c, unsigned int order)
{
	huge_anon_orders_always = order ? BIT(order) : c->orders_always;
	huge_anon_orders_inherit = order ? 0 : c->orders_inherit;
}

static void mm_zap(struct cow_ctx *c, int i, unsigned long first, unsigned long nr)
{
	VMA_ITERATOR(vmi, c->mms[i], c->addr + first * PAGE_SIZE);
	const unsigned long start = c->addr + first * PAGE_SIZE;
	const unsigned long end = start + nr * PAGE_SIZE;
	struct vm_area_struct *vma;

	mmap_read_lock(c->mms[i]);
	for_each_vma_range(vmi, vma, end)
		zap_vma_range(vma, max(start, vma->vm_start),
			      min(end, vma->vm_end) - max(start, vma->vm_start));
	mmap_read_unlock(c->mms[i]);
}

/* MM 0 lives as long as the test, so only its mappings are zapped. */
static void mm_exit(struct cow_ctx *c, int i)
{
	if (!c->mms[i])
		return;
	if (!i) {
		mm_zap(c, 0, 0, HPAGE_PMD_NR);
		return;
	}
	mmput(c->mms[i]);
	c->mms[i] = NULL;
}

static void mms_exit(struct cow_ctx *c)
{
	int i;

	for (i = 0; i < NR_MMS; i++)
		mm_exit(c, i);
}

static void cow_test_exit(struct kunit *test)
{
	struct cow_ctx *c = test->priv;
	int i;

	for (i = 1; i < NR_MMS; i++)
		mm_exit(c, i);
	set_order(c, 0);
}

static void mm_fork(struct kunit *test, int from, int to)
{
	struct cow_ctx *c = test->priv;
	struct mm_struct *child = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, child);
	child->task_size = c->mms[from]->task_size;
	hide_from_khugepaged(child);
	c->mms[to] = child;
	KUNIT_ASSERT_EQ(test, 0, dup_mmap(child, c->mms[from]));
}

static void mm_fault(struct kunit *test, int i, unsigned long page, unsigned int flags)
{
	struct cow_ctx *c = test->priv;
	int ret;

	mmap_read_lock(c->mms[i]);
	ret = fixup_user_fault(c->mms[i], c->addr + page * PAGE_SIZE, flags, NULL);
	mmap_read_unlock(c->mms[i]);
	KUNIT_ASSERT_EQ(test, 0, ret);
}

static void mm_write(struct kunit *test, int i, unsigned long page)
{
	mm_fault(test, i, page, FAULT_FLAG_WRITE);
}

struct mapping {
	unsigned long pfn;	/* 0: none */
	bool by_pte;
	bool writable;
	bool exclusive;
};

static struct mapping mm_mapping(struct cow_ctx *c, int i, unsigned long page)
{
	const unsigned long addr = c->addr + page * PAGE_SIZE;
	struct mapping m = {};
	struct vm_area_struct *vma;
	struct folio_walk fw;

	mmap_read_lock(c->mms[i]);
	vma = vma_lookup(c->mms[i], addr);
	if (vma && folio_walk_start(&fw, vma, addr, 0)) {
		m.pfn = page_to_pfn(fw.page);
		m.by_pte = fw.level == FW_LEVEL_PTE;
		m.writable = m.by_pte && pte_write(fw.pte);
		m.exclusive = PageAnonExclusive(fw.page);
		folio_walk_end(&fw, vma);
	}
	mmap_read_unlock(c->mms[i]);
	return m;
}

static bool mm_maps(struct cow_ctx *c, int i, unsigned long page)
{
	return mm_mapping(c, i, page).pfn == folio_pfn(c->folio) + page;
}

/* Entries of MM @i that map their page of the folio, with write access. */
static unsigned long mm_nr_writable(struct cow_ctx *c, int i)
{
	unsigned long page, count = 0;

	for (page = 0; page < c->nr; page++) {
		const struct mapping m = mm_mapping(c, i, page);

		count += m.pfn == folio_pfn(c->folio) + page &&
			 m.writable && m.exclusive;
	}
	return count;
}

/* Write to the pages of the folio in order, where MM @i cannot yet. */
static void mm_write_rest(struct kunit *test, int i)
{
	struct cow_ctx *c = test->priv;
	unsigned long page;

	for (page = 0; page < c->nr; page++) {
		if (mm_maps(c, i, page) && !mm_mapping(c, i, page).writable)
			mm_write(test, i, page);
	}
}

static void mm_split_pmd(struct cow_ctx *c, int i)
{
	mmap_read_lock(c->mms[i]);
	split_huge_pmd_address(vma_lookup(c->mms[i], c->addr), c->addr, false);
	mmap_read_unlock(c->mms[i]);
}

/* Let a write fault map one folio of this order, then split the PMD if there is one. */
static void new_folio(struct kunit *test, unsigned int order)
{
	struct cow_ctx *c = test->priv;

	/* Take a place that has no page table yet, so that a PMD can map the folio. */
	c->addr += HPAGE_PMD_SIZE;
	c->order = order;
	c->nr = 1UL << order;
	set_order(c, order);
	mm_write(test, 0, 0);
	set_order(c, 0);

	mm_split_pmd(c, 0);

	c->folio = pfn_folio(mm_mapping(c, 0, 0).pfn);
	if (folio_order(c->folio) != order)
		kunit_skip(test, "the fault did not map a folio of order %u", order);
	KUNIT_ASSERT_TRUE(test, mm_mapping(c, 0, 0).by_pte);
	KUNIT_ASSERT_EQ(test, mm_nr_writable(c, 0), c->nr);
}

/* 0 stands for HPAGE_PMD_ORDER, which is not a constant on all architectures. */
static const unsigned int orders[] = { 2, 4, 0 };

static unsigned int order_of(const unsigned int *param)
{
	return *param ?: HPAGE_PMD_ORDER;
}

static void order_desc(const unsigned int *param, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "order %u", order_of(param));
}

KUNIT_ARRAY_PARAM(orders, orders, order_desc);

static struct cow_ctx *folio_of_param(struct kunit *test)
{
	new_folio(test, order_of(test->param_value));
	return test->priv;
}

/* "a>b": MM a forks MM b; "ax": MM a exits. */
static const struct tree {
	const char *desc;
	const char *steps;
	int writer;
	bool shared;	/* another MM still maps the folio */
} trees[] = {
	{ "child exited",		"0>1 1x", 0 },
	{ "parent exited",		"0>1 0x", 1 },
	{ "grandchild alone",		"0>1 1>2 0x 1x", 2 },
	{ "middle one first",		"0>1 1>2 1x 0x", 2 },
	{ "grandparent alone",		"0>1 1>2 1x 2x", 0 },
	{ "middle one alone",		"0>1 1>2 2x 0x", 1 },
	{ "one of five children",	"0>1 0>2 0>3 0>4 0>5 0x 1x 2x 4x 5x", 3 },
	{ "parent of five children",	"0>1 0>2 0>3 0>4 0>5 5x 1x 2x 4x 3x", 0 },
	{ "forked again",		"0>1 0x 1>2 2x 1>3 1x", 3 },
	{ "child alive",		"0>1", 0, true },
	{ "parent alive",		"0>1", 1, true },
	{ "sibling alive",		"0>1 0>2 0x", 1, true },
	{ "grandparent alive",		"0>1 1>2 1x", 2, true },
	{ "grandchild alive",		"0>1 1>2 0x", 1, true },
	{ "last of five alive",		"0>1 0>2 0>3 0>4 0>5 0x 1x 2x 4x", 3, true },
};

static void tree_desc(const struct tree *tree, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "%s", tree->desc);
}

KUNIT_ARRAY_PARAM(trees, trees, tree_desc);

static void grow_tree(struct kunit *test, const char *steps)
{
	while (*steps) {
		const int who = *steps++ - '0';

		if (*steps++ == '>')
			mm_fork(test, who, *steps++ - '0');
		else
			mm_exit(test->priv, who);
		if (*steps == ' ')
			steps++;
	}
}

/*
 * The last MM that maps the folio reuses all of it. An MM that is not alone copies,
 * and the others keep theirs.
 */
static void test_tree(struct kunit *test)
{
	const struct tree *tree = test->param_value;
	struct cow_ctx *c = test->priv;
	unsigned long page;
	int o, i;

	for (o = 0; o < ARRAY_SIZE(orders); o++) {
		const unsigned int order = order_of(&orders[o]);

		new_folio(test, order);
		grow_tree(test, tree->steps);
		for (page = c->nr / 2; page < c->nr; page += max(c->nr / 4, 1)) {
			mm_write(test, tree->writer, page);
			KUNIT_EXPECT_EQ_MSG(test, !tree->shared,
					    mm_maps(c, tree->writer, page),
					    "order %u, page %lu", order, page);
		}
		if (!tree->shared)
			mm_write_rest(test, tree->writer);
		KUNIT_EXPECT_EQ_MSG(test, tree->shared ? 0 : c->nr,
				    mm_nr_writable(c, tree->writer), "order %u", order);
		/* The writer has adopted the folio. */
		KUNIT_EXPECT_EQ_MSG(test, !tree->shared,
				    folio_is_creator(c->folio, c->mms[tree->writer]) &&
				    !folio_maybe_mapped_shared(c->folio),
				    "order %u", order);
		for (i = 0; i < NR_MMS; i++) {
			if (i && i != tree->writer && c->mms[i])
				KUNIT_EXPECT_TRUE(test, mm_maps(c, i, 0));
		}
		mms_exit(c);
	}
}

/*
 * The folio has as many references and mappings as pages, but is not exclusive: two
 * MMs map a part of it each.
 */
static void test_parts(struct kunit *test)
{
	static const unsigned int quarters[] = { 2, 1, 3 };
	struct cow_ctx *c = folio_of_param(test);
	int i;

	for (i = 0; i < ARRAY_SIZE(quarters); i++) {
		const unsigned long mine = c->nr * quarters[i] / 4;

		if (i)
			new_folio(test, c->order);
		mm_fork(test, 0, 1);
		mm_zap(c, 1, 0, mine);
		mm_zap(c, 0, mine, c->nr - mine);
		KUNIT_EXPECT_EQ(test, folio_mapcount(c->folio), c->nr);
		KUNIT_EXPECT_EQ(test, folio_ref_count(c->folio), c->nr);

		mm_write(test, 0, 0);
		KUNIT_EXPECT_FALSE(test, mm_maps(c, 0, 0));
		KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 0);
		if (mine > 1) {
			mm_write(test, 1, mine);
			KUNIT_EXPECT_FALSE(test, mm_maps(c, 1, mine));
			KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 1), 0);
		}
		mms_exit(c);
	}
}

/* A part that one MM maps is exclusive after the MM with the other part has exited. */
static void test_part_alone(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);

	mm_fork(test, 0, 1);
	mm_zap(c, 1, 0, c->nr / 2);
	mm_zap(c, 0, c->nr / 2, c->nr / 2);
	mm_exit(c, 0);
	mm_write(test, 1, c->nr - 1);
	KUNIT_EXPECT_TRUE(test, mm_maps(c, 1, c->nr - 1));
	mm_write_rest(test, 1);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 1), c->nr / 2);
}

/* A PMD that is the only mapping makes its MM the creator, too. */
static void test_pmd(struct kunit *test)
{
	struct cow_ctx *c = test->priv;

	set_order(c, HPAGE_PMD_ORDER);
	mm_write(test, 0, 0);
	if (mm_mapping(c, 0, 0).by_pte)
		kunit_skip(test, "the fault did not map a THP");
	c->folio = pfn_folio(mm_mapping(c, 0, 0).pfn);
	mm_fork(test, 0, 1);
	KUNIT_EXPECT_TRUE(test, folio_maybe_mapped_shared(c->folio));
	mm_exit(c, 0);
	KUNIT_EXPECT_TRUE(test, folio_is_creator(c->folio, c->mms[0]));
	mm_write(test, 1, 3);
	KUNIT_EXPECT_TRUE(test, folio_is_creator(c->folio, c->mms[1]));
	KUNIT_EXPECT_EQ(test, mapcounts_creator(folio_read_mapcounts(c->folio)), 1);

	mm_split_pmd(c, 1);
	KUNIT_EXPECT_EQ(test, mapcounts_creator(folio_read_mapcounts(c->folio)),
			HPAGE_PMD_NR);
	KUNIT_EXPECT_FALSE(test, folio_maybe_mapped_shared(c->folio));
	mm_fork(test, 1, 2);
	KUNIT_EXPECT_TRUE(test, folio_maybe_mapped_shared(c->folio));
	mm_exit(c, 2);
	KUNIT_EXPECT_FALSE(test, folio_maybe_mapped_shared(c->folio));
}

static pmd_t *alloc_pmd(struct mm_struct *mm, unsigned long addr)
{
	p4d_t *p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);
	pud_t *pud = p4d ? pud_alloc(mm, p4d, addr) : NULL;

	return pud ? pmd_alloc(mm, pud, addr) : NULL;
}

static int map_pmd(struct vm_area_struct *vma, unsigned long addr, struct page *page)
{
	struct mm_struct *mm = vma->vm_mm;
	pmd_t *pmd = alloc_pmd(mm, addr);
	pgtable_t table = pte_alloc_one(mm);
	pmd_t entry = pmd_mkhuge(pfn_pmd(page_to_pfn(page), vma->vm_page_prot));
	spinlock_t *ptl;	/* of the PMD */

	if (!pmd || !table)
		return -ENOMEM;
	ptl = pmd_lock(mm, pmd);
	pgtable_trans_huge_deposit(mm, pmd, table);
	mm_inc_nr_ptes(mm);
	set_pmd_at(mm, addr, pmd, pmd_mkwrite(pmd_mkdirty(pmd_mkyoung(entry)), vma));
	add_mm_counter(mm, MM_ANONPAGES, HPAGE_PMD_NR);
	spin_unlock(ptl);
	return 0;
}

/*
 * A folio twice as large as what a PMD maps. No fault maps one yet. Map it here:
 * the first part by a PMD, the second by PTEs.
 */
static void new_two_pmds(struct kunit *test)
{
	struct cow_ctx *c = test->priv;
	struct mm_struct *mm = c->mms[0];
	struct vm_area_struct *vma;
	int err;

	c->addr += c->nr ? 2 * HPAGE_PMD_SIZE : HPAGE_PMD_SIZE;
	c->nr = 2 * HPAGE_PMD_NR;
	c->folio = folio_alloc(GFP_HIGHUSER_MOVABLE | __GFP_ZERO | __GFP_NOWARN,
			       HPAGE_PMD_ORDER + 1);
	if (!c->folio)
		kunit_skip(test, "no free folio of two PMDs");
	KUNIT_ASSERT_EQ(test, 0, mem_cgroup_charge(c->folio, mm, GFP_KERNEL));
	__folio_mark_uptodate(c->folio);
	folio_get(c->folio);

	mmap_read_lock(mm);
	vma = vma_lookup(mm, c->addr);
	err = anon_vma_prepare(vma);
	if (!err) {
		preempt_disable();
		folio_add_new_anon_rmap(c->folio, vma, c->addr, RMAP_EXCLUSIVE);
		preempt_enable();
		err = map_pmd(vma, c->addr, &c->folio->page) ?:
		      map_pmd(vma, c->addr + HPAGE_PMD_SIZE,
			      folio_page(c->folio, HPAGE_PMD_NR));
		split_huge_pmd_address(vma, c->addr + HPAGE_PMD_SIZE, false);
	}
	mmap_read_unlock(mm);
	KUNIT_ASSERT_EQ(test, err, 0);
	KUNIT_ASSERT_FALSE(test, mm_mapping(c, 0, 0).by_pte);
	KUNIT_ASSERT_EQ(test, mm_nr_writable(c, 0), HPAGE_PMD_NR);
}

/* Does a write to the page copy it? */
static bool mm_copies(struct kunit *test, int i, unsigned long page)
{
	KUNIT_EXPECT_TRUE(test, mm_maps(test->priv, i, page));
	mm_write(test, i, page);
	return !mm_maps(test->priv, i, page);
}

/* A folio is exclusive to its creator by PTEs and PMDs in several page tables. */
static void test_two_pmds(struct kunit *test)
{
	const unsigned long second = HPAGE_PMD_NR;
	struct cow_ctx *c = test->priv;

	new_two_pmds(test);
	mm_fork(test, 0, 1);
	KUNIT_EXPECT_EQ(test, folio_mapcount(c->folio), 2 * (HPAGE_PMD_NR + 1));
	KUNIT_EXPECT_TRUE(test, mm_copies(test, 0, second + 1));
	mm_exit(c, 1);
	KUNIT_EXPECT_FALSE(test, folio_maybe_mapped_shared(c->folio));
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 0);
	KUNIT_EXPECT_FALSE(test, mm_copies(test, 0, second + 2));
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), HPAGE_PMD_NR - 1);
	/* Its PMD is split, and then it has PTEs in two page tables. */
	KUNIT_EXPECT_FALSE(test, mm_copies(test, 0, 3));
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), c->nr - 1);

	/* The other MM has only a PMD. */
	new_two_pmds(test);
	mm_fork(test, 0, 1);
	mm_zap(c, 1, second, HPAGE_PMD_NR);
	KUNIT_EXPECT_TRUE(test, mm_copies(test, 0, second + 1));
	mm_exit(c, 1);
	/* No other MM maps it, but there is one more reference. */
	folio_get(c->folio);
	KUNIT_EXPECT_TRUE(test, mm_copies(test, 0, second + 2));
	folio_put(c->folio);
	KUNIT_EXPECT_FALSE(test, mm_copies(test, 0, second + 3));

	/* An MM that is not the creator cannot tell whose the PMD is. */
	mm_fork(test, 0, 1);
	mm_zap(c, 0, 0, c->nr);
	KUNIT_EXPECT_TRUE(test, mm_copies(test, 1, second + 4));
	mm_exit(c, 1);
}

static bool mm_shared(struct cow_ctx *c, int i, unsigned long page)
{
	const unsigned long addr = c->addr + page * PAGE_SIZE;
	struct table_folios tf = {};
	struct vm_area_struct *vma;
	struct folio *folio;
	struct folio_walk fw;
	bool shared = true;

	mmap_read_lock(c->mms[i]);
	vma = vma_lookup(c->mms[i], addr);
	folio = folio_walk_start(&fw, vma, addr, 0);
	if (folio) {
		shared = folio_maybe_mapped_shared_pte(folio, fw.page, vma, addr,
						       fw.ptep, &tf);
		folio_walk_end(&fw, vma);
	}
	mmap_read_unlock(c->mms[i]);
	return shared;
}

/* The last MM that maps a folio need not write to it to be seen as the only one. */
static void test_shared(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);

	KUNIT_EXPECT_FALSE(test, mm_shared(c, 0, 0));
	mm_fork(test, 0, 1);
	KUNIT_EXPECT_TRUE(test, mm_shared(c, 0, 0));
	KUNIT_EXPECT_TRUE(test, mm_shared(c, 1, c->nr - 1));
	mm_fork(test, 1, 2);
	mm_exit(c, 0);
	KUNIT_EXPECT_TRUE(test, mm_shared(c, 1, 0));
	KUNIT_EXPECT_TRUE(test, mm_shared(c, 2, 0));

	/* As many mappings as pages, of two MMs. */
	mm_zap(c, 1, 0, c->nr / 2);
	mm_zap(c, 2, c->nr / 2, c->nr / 2);
	KUNIT_EXPECT_TRUE(test, mm_shared(c, 1, c->nr - 1));
	KUNIT_EXPECT_TRUE(test, mm_shared(c, 2, 0));
	mm_exit(c, 1);
	KUNIT_EXPECT_TRUE(test, folio_maybe_mapped_shared(c->folio));
	KUNIT_EXPECT_FALSE(test, mm_shared(c, 2, 0));
	KUNIT_EXPECT_FALSE(test, mm_shared(c, 2, c->nr / 2 - 1));
}

/*
 * Look at each page that MM @i maps in the page table of the folio, under one hold of
 * the PTL. Return how many are exclusive; @tf has how many entries were read.
 */
static unsigned long mm_walk_exclusive(struct kunit *test, int i,
				       struct table_folios *tf)
{
	struct cow_ctx *c = test->priv;
	unsigned long page, first = 0, exclusive = 0;
	struct vm_area_struct *vma;
	struct folio_walk fw;
	pte_t pte;

	while (first < HPAGE_PMD_NR - 1 && !mm_mapping(c, i, first).pfn)
		first++;
	*tf = (struct table_folios){};
	mmap_read_lock(c->mms[i]);
	vma = vma_lookup(c->mms[i], c->addr);
	if (!folio_walk_start(&fw, vma, c->addr + first * PAGE_SIZE, 0)) {
		mmap_read_unlock(c->mms[i]);
		KUNIT_FAIL_AND_ABORT(test, "MM %d maps nothing", i);
	}
	for (page = first; page < HPAGE_PMD_NR; page++) {
		pte = ptep_get(fw.ptep + page - first);
		if (pte_present(pte))
			exclusive += !folio_maybe_mapped_shared_pte(page_folio(pte_page(pte)),
						pte_page(pte), vma,
						c->addr + page * PAGE_SIZE,
						fw.ptep + page - first, tf);
	}
	folio_walk_end(&fw, vma);
	mmap_read_unlock(c->mms[i]);
	return exclusive;
}

/* Two MMs map every other page of the first @nr each, so each page is a batch. */
static void test_walk_alternate(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);
	struct table_folios tf;
	unsigned long nr, page;

	for (nr = c->nr; nr >= c->nr / 2; nr -= c->nr / 2) {
		if (nr != c->nr)
			new_folio(test, c->order);
		if (nr != c->nr)
			mm_zap(c, 0, nr, c->nr - nr);
		mm_fork(test, 0, 1);
		mm_fork(test, 0, 2);
		mm_exit(c, 0);
		for (page = 0; page < nr; page++)
			mm_zap(c, 1 + page % 2, page, 1);

		KUNIT_EXPECT_EQ(test, 0, mm_walk_exclusive(test, 2, &tf));
		KUNIT_EXPECT_LE(test, tf.nr_read, nr == c->nr ? 2 : c->nr);
		KUNIT_EXPECT_EQ(test, 0, mm_walk_exclusive(test, 1, &tf));
		KUNIT_EXPECT_LE(test, tf.nr_read, nr == c->nr ? 2 : c->nr);
		mm_exit(c, 1);
		KUNIT_EXPECT_EQ(test, nr / 2, mm_walk_exclusive(test, 2, &tf));
		KUNIT_EXPECT_LE(test, tf.nr_read, nr);
		mms_exit(c);
	}
}

/* MM 2 alone maps the folio. The MM ids do not know: they have had no slot for it. */
static void leave_second_child(struct kunit *test)
{
	mm_fork(test, 0, 1);
	mm_fork(test, 0, 2);
	mm_exit(test->priv, 0);
	mm_exit(test->priv, 1);
}

/* Replace every other part of the folio by a folio of this order. */
static void nest_folios(struct kunit *test, unsigned int order)
{
	struct cow_ctx *c = test->priv;
	const unsigned long nr = 1UL << order;
	unsigned long page;

	set_order(c, order);
	for (page = nr; page < c->nr; page += 2 * nr) {
		mm_zap(c, 0, page, nr);
		mm_write(test, 0, page);
		if (folio_order(pfn_folio(mm_mapping(c, 0, page).pfn)) != order)
			kunit_skip(test, "no folio of order %u", order);
	}
	set_order(c, 0);
}

/* Large folios alternate in the table: one in the holes of another, or two orders. */
static void test_walk_nested(struct kunit *test)
{
	struct cow_ctx *c = test->priv;
	struct table_folios tf;

	new_folio(test, HPAGE_PMD_ORDER);
	nest_folios(test, 2);
	leave_second_child(test);
	KUNIT_EXPECT_EQ(test, c->nr, mm_walk_exclusive(test, 2, &tf));
	KUNIT_EXPECT_GE(test, tf.nr_read, c->nr);
	KUNIT_EXPECT_LE(test, tf.nr_read, c->nr + c->nr / 2);
	mm_exit(c, 2);

	/* The limit of what is read is reached: some count as shared. */
	new_folio(test, HPAGE_PMD_ORDER);
	nest_folios(test, 4);
	nest_folios(test, 2);
	leave_second_child(test);
	KUNIT_EXPECT_GT(test, mm_walk_exclusive(test, 2, &tf), 0);
	KUNIT_EXPECT_LE(test, tf.nr_read, 2 * HPAGE_PMD_NR);
	mm_fork(test, 2, 3);
	KUNIT_EXPECT_EQ(test, 0, mm_walk_exclusive(test, 2, &tf));
	KUNIT_EXPECT_LE(test, tf.nr_read, 2 * HPAGE_PMD_NR);
}

/* NUMA balancing samples a folio that only the last child of a fork tree maps. */
static void test_numa_hinting(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);
	unsigned long before = 0, after = 0;
#ifdef CONFIG_NUMA_BALANCING
	const unsigned long end = c->addr + c->nr * PAGE_SIZE;
	const int mode = sysctl_numa_balancing_mode;
	struct vm_area_struct *vma;

	sysctl_numa_balancing_mode = NUMA_BALANCING_NORMAL;
	mm_fork(test, 0, 1);
	mm_fork(test, 0, 2);
	mm_exit(c, 0);
	mmget(c->mms[2]);	/* as if it had threads, so on any node */
	mmap_read_lock(c->mms[2]);
	vma = vma_lookup(c->mms[2], c->addr);
	before = change_prot_numa(vma, c->addr, end);
	mm_exit(c, 1);
	after = change_prot_numa(vma, c->addr, end);
	mmap_read_unlock(c->mms[2]);
	mmput(c->mms[2]);
	sysctl_numa_balancing_mode = mode;
#else
	kunit_skip(test, "no NUMA balancing in this kernel");
#endif
	KUNIT_EXPECT_EQ(test, before, 0);
	KUNIT_EXPECT_EQ(test, after, c->nr);
}

/* If a single page is still mapped, copying it frees the folio. */
static void test_last_page(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);

	mm_fork(test, 0, 1);
	mm_exit(c, 1);
	mm_zap(c, 0, 1, c->nr - 1);
	folio_get(c->folio);
	mm_write(test, 0, 0);
	KUNIT_EXPECT_FALSE(test, mm_maps(c, 0, 0));
	KUNIT_EXPECT_EQ(test, folio_ref_count(c->folio), 1);
	folio_put(c->folio);
}

/* With one more reference, to any of its pages, the folio is not reused. */
static void test_reference(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);

	mm_fork(test, 0, 1);
	mm_exit(c, 1);
	get_page(folio_page(c->folio, c->nr - 1));
	mm_write(test, 0, 0);
	KUNIT_EXPECT_FALSE(test, mm_maps(c, 0, 0));
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 0);
	put_page(folio_page(c->folio, c->nr - 1));

	mm_write(test, 0, 1);
	KUNIT_EXPECT_TRUE(test, mm_maps(c, 0, 1));
	mm_write_rest(test, 0);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), c->nr - 1);
}

/* The folio is exclusive although several VMAs of the MM map it. */
static void test_vmas(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);

	KUNIT_ASSERT_EQ(test, 0, do_madvise(c->mms[0], c->addr + PAGE_SIZE, PAGE_SIZE,
					    MADV_NOHUGEPAGE));
	mm_fork(test, 0, 1);
	mm_exit(c, 1);
	mm_write(test, 0, 1);
	KUNIT_EXPECT_TRUE(test, mm_maps(c, 0, 1));
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 1);
	mm_write(test, 0, 0);
	KUNIT_EXPECT_TRUE(test, mm_maps(c, 0, 0));
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 2);
	mm_write(test, 0, c->nr - 1);
	KUNIT_EXPECT_TRUE(test, mm_maps(c, 0, c->nr - 1));
	mm_write_rest(test, 0);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), c->nr);
}

/* Some entries in between are empty, or map another folio. */
static void test_holes(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);

	mm_fork(test, 0, 1);
	mm_write(test, 0, 1);			/* a copy */
	mm_exit(c, 1);
	mm_zap(c, 0, c->nr - 1, 1);		/* nothing */
	mm_write(test, 0, 0);
	KUNIT_EXPECT_TRUE(test, mm_maps(c, 0, 0));
	KUNIT_EXPECT_FALSE(test, mm_maps(c, 0, 1));
	mm_write_rest(test, 0);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), c->nr - 2);
}

/* Unsharing makes pages exclusive, but not writable. */
static void test_unshare(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);

	mm_fork(test, 0, 1);
	mm_exit(c, 1);
	mm_fault(test, 0, 0, FAULT_FLAG_UNSHARE);
	KUNIT_EXPECT_TRUE(test, mm_maps(c, 0, 0));
	KUNIT_EXPECT_TRUE(test, mm_mapping(c, 0, 0).exclusive);
	KUNIT_EXPECT_TRUE(test, mm_mapping(c, 0, min(c->nr, 16) - 1).exclusive);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 0);
	mm_write(test, 0, 0);
	KUNIT_EXPECT_TRUE(test, mm_maps(c, 0, 0));
}

/* A forced write, as ptrace() makes it, in a VMA without VM_WRITE. */
static void test_forced(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);
	struct mm_struct *mm = c->mms[0];
	struct vm_area_struct *vma;
	struct page *page;

	mm_fork(test, 0, 1);
	mm_exit(c, 1);
	mmap_write_lock(mm);
	vma = vma_lookup(mm, c->addr);
	vm_flags_clear(vma, VM_WRITE);
	KUNIT_EXPECT_EQ(test, 1, pin_user_pages_remote(mm, c->addr, 1, FOLL_WRITE | FOLL_FORCE,
						       &page, NULL));
	vm_flags_set(vma, VM_WRITE);
	mmap_write_unlock(mm);
	KUNIT_EXPECT_TRUE(test, mm_maps(c, 0, 0));
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 0);
	unpin_user_page(page);
}

static pte_t make_protnone(pte_t pte)
{
	return pte_modify(pte, PAGE_NONE);
}

static pte_t make_clean(pte_t pte)
{
	return pte_mkclean(pte);
}

static pte_t make_old(pte_t pte)
{
	return pte_mkold(pte);
}

static pte_t make_soft_clean(pte_t pte)
{
	return pte_clear_soft_dirty(pte);
}

static const struct entry {
	const char *desc;
	pte_t (*make)(pte_t pte);
	bool kept;	/* it needs a write fault of its own */
	bool possible;
} entries[] = {
	{ "NUMA hinting", make_protnone, true, IS_ENABLED(CONFIG_NUMA_BALANCING) },
	{ "soft-dirty", make_soft_clean, true, IS_ENABLED(CONFIG_MEM_SOFT_DIRTY) },
	{ "clean", make_clean, false, true },
	{ "old", make_old, false, true },
};

static void entry_desc(const struct entry *entry, char *desc)
{
	snprintf(desc, KUNIT_PARAM_DESC_SIZE, "%s", entry->desc);
}

KUNIT_ARRAY_PARAM(entries, entries, entry_desc);

/* Change the entry of a page, and return what it was. */
static pte_t change_entry(struct kunit *test, unsigned long page,
			  pte_t (*make)(pte_t pte))
{
	struct cow_ctx *c = test->priv;
	const unsigned long addr = c->addr + page * PAGE_SIZE;
	struct vm_area_struct *vma;
	struct folio_walk fw = {};
	pte_t pte;

	mmap_write_lock(c->mms[0]);
	vma = vma_lookup(c->mms[0], addr);
	vma_start_write(vma);
	if (folio_walk_start(&fw, vma, addr, 0)) {
		if (make) {
			pte = ptep_modify_prot_start(vma, addr, fw.ptep);
			ptep_modify_prot_commit(vma, addr, fw.ptep, pte, make(pte));
		}
		folio_walk_end(&fw, vma);
	}
	flush_tlb_page(vma, addr);
	mmap_write_unlock(c->mms[0]);
	return fw.pte;
}

/* A batch leaves out an entry that needs a write fault of its own. */
static void test_entry(struct kunit *test)
{
	const struct entry *entry = test->param_value;
	struct cow_ctx *c = test->priv;
	pte_t before, after;

	if (!entry->possible)
		kunit_skip(test, "not in this kernel");
	new_folio(test, 4);
	mm_fork(test, 0, 1);
	mm_exit(c, 1);
	mmap_write_lock(c->mms[0]);
	vm_flags_clear(vma_lookup(c->mms[0], c->addr), VM_SOFTDIRTY);
	mmap_write_unlock(c->mms[0]);

	change_entry(test, 5, entry->make);
	before = change_entry(test, 5, NULL);
	mm_write(test, 0, 8);
	after = change_entry(test, 5, NULL);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 16 - entry->kept);
	KUNIT_EXPECT_EQ(test, pte_dirty(before), pte_dirty(after));
	KUNIT_EXPECT_EQ(test, pte_soft_dirty(before), pte_soft_dirty(after));
	KUNIT_EXPECT_EQ(test, pte_protnone(before), pte_protnone(after));

	mm_write(test, 0, 5);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 16);
}

/* Entries of MM @i that are part of a contpte block. */
static unsigned long mm_nr_contpte(struct cow_ctx *c, int i)
{
	unsigned long count = 0;
#ifdef CONFIG_ARM64_CONTPTE
	struct vm_area_struct *vma;
	struct folio_walk fw;
	unsigned long page;

	mmap_read_lock(c->mms[i]);
	vma = vma_lookup(c->mms[i], c->addr);
	for (page = 0; page < c->nr; page++) {
		if (!folio_walk_start(&fw, vma, c->addr + page * PAGE_SIZE, 0))
			continue;
		count += fw.level == FW_LEVEL_PTE && pte_cont(__ptep_get(fw.ptep));
		folio_walk_end(&fw, vma);
	}
	mmap_read_unlock(c->mms[i]);
#endif
	return count;
}

/* The contpte blocks of arm64 stay folded. */
static void test_contpte(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);

	if (mm_nr_contpte(c, 0) != c->nr)
		kunit_skip(test, "entries of this folio are not folded");
	mm_fork(test, 0, 1);
	KUNIT_EXPECT_EQ(test, mm_nr_contpte(c, 0), c->nr);
	mm_exit(c, 0);
	mm_write(test, 1, 3);
	KUNIT_EXPECT_EQ(test, mm_nr_contpte(c, 1), c->nr);
	mm_write_rest(test, 1);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 1), c->nr);
	KUNIT_EXPECT_EQ(test, mm_nr_contpte(c, 1), c->nr);
}

/* An unfolded contpte block is not folded: this would need break-before-make. */
static void test_contpte_unfolded(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);
	unsigned long folded;

	if (mm_nr_contpte(c, 0) != c->nr)
		kunit_skip(test, "entries of this folio are not folded");
	change_entry(test, 3, pte_wrprotect);
	change_entry(test, 3, pte_mkwrite_novma);
	folded = mm_nr_contpte(c, 0);
	KUNIT_EXPECT_LT(test, folded, c->nr);
	mm_fork(test, 0, 1);
	mm_exit(c, 1);
	mm_write_rest(test, 0);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), c->nr);
	KUNIT_EXPECT_EQ(test, mm_nr_contpte(c, 0), folded);
}

/* The window of a write fault grows for a writer that continues where it ends. */
static void test_window(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);
	const unsigned int user_write = FAULT_FLAG_WRITE | FAULT_FLAG_USER;
	const unsigned long min = IS_ENABLED(CONFIG_PAGE_SIZE_4KB) ? 16 : 128;
	unsigned long last, sum = 0, faults = 0;

	mm_fork(test, 0, 1);
	mm_exit(c, 1);
	/* At the end of the folio, with no writable entry before the window */
	last = min(c->nr, min);
	mm_fault(test, 0, c->nr - 1, user_write);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), last);

	for (; sum < c->nr - last && faults < c->nr; faults++) {
		mm_fault(test, 0, sum, user_write);
		sum = mm_nr_writable(c, 0) - last;
	}
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), c->nr);
	if (c->nr > min)
		KUNIT_EXPECT_LE(test, faults, ilog2(c->nr / min) + 1 + c->nr / 512);

	/* GUP gets the largest window at once. */
	mm_fork(test, 0, 1);
	mm_exit(c, 1);
	mm_write(test, 0, 0);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), min(c->nr, 512));
}

/*
 * How long a write fault takes that copies the page without reading entries; that
 * reads them and copies the page, as another MM maps the other half of the folio;
 * that reuses the page. The times are printed, not checked.
 */
static void test_cost(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);
	const unsigned long half = c->nr / 2;
	u64 copy, vain, reuse;
	unsigned long page;

	mm_fork(test, 0, 1);
	mm_zap(c, 0, half, half);
	copy = ktime_get_ns();
	for (page = 0; page < half / 2; page++)
		mm_write(test, 0, page);
	copy = ktime_get_ns() - copy;
	mms_exit(c);

	new_folio(test, c->order);
	mm_fork(test, 0, 1);
	mm_zap(c, 0, half, half);
	mm_zap(c, 1, 0, half);
	vain = ktime_get_ns();
	for (page = half; page < half + half / 2; page++)
		mm_write(test, 1, page);
	vain = ktime_get_ns() - vain;
	mms_exit(c);

	new_folio(test, c->order);
	mm_fork(test, 0, 1);
	mm_exit(c, 1);
	reuse = ktime_get_ns();
	mm_write(test, 0, 0);
	reuse = ktime_get_ns() - reuse;

	kunit_info(test, "order %u, ns: a copy %llu, a copy after reading entries %llu; reuse %llu\n",
		   c->order, div64_ul(copy, half / 2), div64_ul(vain, half / 2), reuse);
}

static struct kunit_case cow_test_cases[] = {
	KUNIT_CASE_PARAM(test_tree, trees_gen_params),
	KUNIT_CASE_PARAM(test_parts, orders_gen_params),
	KUNIT_CASE_PARAM(test_part_alone, orders_gen_params),
	KUNIT_CASE(test_pmd),
	KUNIT_CASE(test_two_pmds),
	KUNIT_CASE_PARAM(test_shared, orders_gen_params),
	KUNIT_CASE_PARAM(test_walk_alternate, orders_gen_params),
	KUNIT_CASE(test_walk_nested),
	KUNIT_CASE_PARAM(test_numa_hinting, orders_gen_params),
	KUNIT_CASE_PARAM(test_last_page, orders_gen_params),
	KUNIT_CASE_PARAM(test_reference, orders_gen_params),
	KUNIT_CASE_PARAM(test_vmas, orders_gen_params),
	KUNIT_CASE_PARAM(test_holes, orders_gen_params),
	KUNIT_CASE_PARAM(test_unshare, orders_gen_params),
	KUNIT_CASE_PARAM(test_forced, orders_gen_params),
	KUNIT_CASE_PARAM(test_entry, entries_gen_params),
	KUNIT_CASE_PARAM(test_contpte, orders_gen_params),
	KUNIT_CASE_PARAM(test_contpte_unfolded, orders_gen_params),
	KUNIT_CASE_PARAM(test_window, orders_gen_params),
	KUNIT_CASE_PARAM(test_cost, orders_gen_params),
	{}
};

static struct kunit_suite cow_test_suite = {
	.name = "cow",
	.init = cow_test_init,
	.exit = cow_test_exit,
	.test_cases = cow_test_cases,
};

kunit_test_suite(cow_test_suite);
