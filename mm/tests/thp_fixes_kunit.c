// SPDX-License-Identifier: GPL-2.0-only
/* Regression tests for what only the kernel sees of page tables and the rmap. */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/rmap.h>

/* An empty VMA, and an aligned address in it that has room for @size bytes */
static struct vm_area_struct *new_vma(struct kunit *test, unsigned long size,
				      unsigned long *addr)
{
	unsigned long start = kunit_vm_mmap(test, NULL, 0, 2 * size, PROT_READ,
					    MAP_PRIVATE | MAP_ANONYMOUS, 0);
	struct vm_area_struct *vma;

	KUNIT_ASSERT_TRUE(test, start && !IS_ERR_VALUE(start));
	*addr = ALIGN(start, size);
	mmap_read_lock(current->mm);
	vma = vma_lookup(current->mm, *addr);
	mmap_read_unlock(current->mm);
	KUNIT_ASSERT_NOT_NULL(test, vma);
	return vma;
}

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
	unsigned long addr, pfns[NR_PTES];
	struct vm_area_struct *vma;
	struct mm_struct *mm;
	spinlock_t *ptl;	/* of the page table */
	pte_t *pte;
	int i;

	vma = new_vma(test, NR_PTES * PAGE_SIZE, &addr);
	mm = vma->vm_mm;
	pte = get_locked_pte(mm, addr, &ptl);
	KUNIT_ASSERT_NOT_NULL(test, pte);
	set_ptes(mm, addr, pte, pfn_pte(folio_pfn(folio), vma->vm_page_prot), NR_PTES);
	for (i = 0; i < NR_PTES; i++)
		pfns[i] = pte_pfn(ptep_get_and_clear(mm, addr + i * PAGE_SIZE, pte + i));
	pte_unmap_unlock(pte, ptl);

	for (i = 0; i < NR_PTES; i++)
		KUNIT_EXPECT_EQ_MSG(test, pfns[i], folio_pfn(folio) + i, "entry %d", i);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/* folio_dup_file_rmap_pmd() adds one mapping of the folio, not one of each page. */
static void test_dup_file_pmd(struct kunit *test)
{
	struct vm_area_struct *vma;
	struct folio *folio;
	unsigned long addr;

	if (!has_transparent_hugepage())
		kunit_skip(test, "no huge pages on this machine");
	folio = new_folio(test, HPAGE_PMD_ORDER);
	vma = new_vma(test, PAGE_SIZE, &addr);

	/* Any lock will do for the page table's: no page table maps this. */
	folio_ref_add(folio, 2);
	folio_lock(folio);
	spin_lock(&vma->vm_mm->page_table_lock);
	folio_add_file_rmap_pmd(folio, folio_page(folio, 0), vma);
	folio_dup_file_rmap_pmd(folio, folio_page(folio, 0), vma);
	spin_unlock(&vma->vm_mm->page_table_lock);
	folio_unlock(folio);
	/* If it is wrong, the folio keeps its references and is not freed. */
	KUNIT_ASSERT_EQ(test, folio_mapcount(folio), 2);

	spin_lock(&vma->vm_mm->page_table_lock);
	folio_remove_rmap_pmd(folio, folio_page(folio, 0), vma);
	folio_remove_rmap_pmd(folio, folio_page(folio, 0), vma);
	spin_unlock(&vma->vm_mm->page_table_lock);
	KUNIT_EXPECT_FALSE(test, folio_mapped(folio));
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
