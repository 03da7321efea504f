/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_FOLIO_MAPCOUNTS_CHECK_H
#define _LINUX_FOLIO_MAPCOUNTS_CHECK_H

/*
 * Count the PTEs that map each page of a large folio, and check folio->_mapcounts
 * against these counts: see Documentation/mm/folio_mapcounts_check.rst.
 */
#include <linux/atomic.h>
#include <linux/instruction_pointer.h>
#include <linux/jump_label.h>
#include <linux/page-flags.h>

struct page_ext_operations;

#ifdef CONFIG_FOLIO_MAPCOUNTS_CHECK
extern struct page_ext_operations folio_mapcounts_check_ops;
DECLARE_STATIC_KEY_FALSE(folio_mapcounts_check_key);

static __always_inline bool folio_mapcounts_check_enabled(void)
{
	return static_branch_unlikely(&folio_mapcounts_check_key);
}
#else
static __always_inline bool folio_mapcounts_check_enabled(void)
{
	return false;
}
#endif

/* Without CONFIG_FOLIO_MAPCOUNTS_CHECK, no call of these remains. */
u64 __folio_mapcounts_check_add(struct folio *folio, u64 delta,
				const struct page *page, int ptes, int pmds,
				unsigned long caller);
void __folio_mapcounts_check(struct folio *folio, int most);
void __folio_mapcounts_check_exclusive(struct folio *folio,
				       const struct page *page, int nr_pages);
void __folio_mapcounts_check_free(struct page *page, unsigned int order);

/**
 * folio_mapcounts_check_add - add to the mapcounts of a large folio, checked
 * @folio:	The large folio
 * @delta:	What to add to the mapcounts
 * @page:	The first page that is mapped or unmapped
 * @ptes:	PTEs added, one for each page from @page on; negative: removed
 * @pmds:	PMDs added, one for each part from @page on; negative: removed
 *
 * Return: what the mapcounts are now.
 */
static __always_inline u64
folio_mapcounts_check_add(struct folio *folio, u64 delta,
			  const struct page *page, int ptes, int pmds)
{
	if (folio_mapcounts_check_enabled())
		return __folio_mapcounts_check_add(folio, delta, page, ptes,
						   pmds, _RET_IP_);
	return atomic64_add_return(delta, &folio->_mapcounts);
}

/**
 * folio_mapcounts_check_set - set the mapcounts of a new large folio, checked
 * @folio:	The large folio, which no other task can find yet
 * @val:	What to set the mapcounts to
 * @ptes:	PTEs, one for each page from the first on
 * @pmds:	PMDs, one for each part from the first on
 */
static __always_inline void
folio_mapcounts_check_set(struct folio *folio, u64 val, int ptes, int pmds)
{
	atomic64_set(&folio->_mapcounts, val);
	if (folio_mapcounts_check_enabled())
		__folio_mapcounts_check_add(folio, 0, &folio->page, ptes,
					    pmds, _RET_IP_);
}

/**
 * folio_mapcounts_check_reuse - no page of a folio may be mapped twice
 * @folio:	The folio that a write fault reuses or adopts
 *
 * Context: The caller holds the PTL of the page table with all mappings.
 */
static inline void folio_mapcounts_check_reuse(struct folio *folio)
{
	if (folio_mapcounts_check_enabled() && folio_test_large(folio))
		__folio_mapcounts_check(folio, 1);
}

/**
 * folio_mapcounts_check_unmapped - no page of a folio may be mapped
 * @folio:	The folio, which is to be split or migrated
 *
 * Context: No MM can map the folio.
 */
static inline void folio_mapcounts_check_unmapped(struct folio *folio)
{
	if (folio_mapcounts_check_enabled() && folio_test_large(folio))
		__folio_mapcounts_check(folio, 0);
}

/**
 * folio_mapcounts_check_exclusive - pages must be mapped once
 * @folio:	The folio
 * @page:	The first page that is, or becomes, PageAnonExclusive
 * @nr_pages:	How many pages, from @page on
 *
 * Context: The caller holds the PTL of the mappings.
 */
static __always_inline void
folio_mapcounts_check_exclusive(struct folio *folio, const struct page *page,
				int nr_pages)
{
	if (folio_mapcounts_check_enabled() && folio_test_large(folio))
		__folio_mapcounts_check_exclusive(folio, page, nr_pages);
}

/**
 * folio_mapcounts_check_free - no page that is freed may be mapped
 * @page:	The first page
 * @order:	How many: 2^@order pages, a folio or not
 *
 * Context: Any. The caller has the last reference.
 */
static inline void folio_mapcounts_check_free(struct page *page, unsigned int order)
{
	if (folio_mapcounts_check_enabled())
		__folio_mapcounts_check_free(page, order);
}

#endif /* _LINUX_FOLIO_MAPCOUNTS_CHECK_H */
