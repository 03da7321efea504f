// SPDX-License-Identifier: GPL-2.0-only
/* Regression tests for what only the kernel sees of page tables and the rmap. */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/rmap.h>

KUNIT_DEFINE_ACTION_WRAPPER(put_folio, folio_put, struct folio *);

static struct folio *new_folio(struct kunit *test, unsigned int order)
{
	struct folio *folio = folio_alloc(GFP_KERNEL | __GFP_NOWARN, order);

	if (!folio)
		kunit_skip(test, "no free folio of order %u", order);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, put_folio, folio));
	return folio;
}

#define NR_PTES	4

/* set_ptes() maps consecutive pages. */
static void test_set_ptes(struct kunit *test)
{
	struct folio *folio = new_folio(test, ilog2(NR_PTES));
	struct mm_struct *mm;
	spinlock_t *ptl;	/* of the page table */
	unsigned long addr;
	int i, wrong = 0;
	pte_t *pte;

	addr = kunit_vm_mmap(test, NULL, 0, 2 * NR_PTES * PAGE_SIZE, PROT_READ,
			     MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_TRUE(test, addr && !IS_ERR_VALUE(addr));
	addr = ALIGN(addr, NR_PTES * PAGE_SIZE);
	mm = current->mm;
	pte = get_locked_pte(mm, addr, &ptl);
	KUNIT_ASSERT_NOT_NULL(test, pte);
	set_ptes(mm, addr, pte, pfn_pte(folio_pfn(folio), PAGE_READONLY), NR_PTES);
	for (i = 0; i < NR_PTES; i++)
		wrong += pte_pfn(ptep_get_and_clear(mm, addr + i * PAGE_SIZE, pte + i)) !=
			 folio_pfn(folio) + i;
	pte_unmap_unlock(pte, ptl);
	KUNIT_EXPECT_EQ(test, wrong, 0);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/* folio_dup_file_rmap_pmd() adds one mapping of the folio, not one of each page. */
static void test_dup_file_pmd(struct kunit *test)
{
	struct vm_area_struct vma;
	struct folio *folio;
	int mapcount;

	if (!has_transparent_hugepage())
		kunit_skip(test, "no huge pages on this machine");
	folio = new_folio(test, HPAGE_PMD_ORDER);
	KUNIT_ASSERT_EQ(test, 0, kunit_attach_mm());
	vma_init(&vma, current->mm);
	folio_ref_add(folio, 2);
	folio_lock(folio);
	/* Any lock will do for the page table's: no page table maps this. */
	spin_lock(&vma.vm_mm->page_table_lock);
	folio_add_file_rmap_pmd(folio, folio_page(folio, 0), &vma);
	folio_dup_file_rmap_pmd(folio, folio_page(folio, 0), &vma);
	mapcount = folio_mapcount(folio);
	while (mapcount == 2 && folio_mapped(folio))
		folio_remove_rmap_pmd(folio, folio_page(folio, 0), &vma);
	spin_unlock(&vma.vm_mm->page_table_lock);
	folio_unlock(folio);
	/* If it is wrong, the folio keeps references and is not freed. */
	KUNIT_ASSERT_EQ(test, mapcount, 2);
	folio_put_refs(folio, 2);
}
#endif

static struct kunit_case thp_fixes_cases[] = {
	KUNIT_CASE(test_set_ptes),
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	KUNIT_CASE(test_dup_file_pmd),
#endif
	{}
};

static struct kunit_suite thp_fixes_suite = {
	.name = "thp_fixes",
	.test_cases = thp_fixes_cases,
};

kunit_test_suite(thp_fixes_suite);

MODULE_LICENSE("GPL");
