/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_FOLIO_MAPCOUNTS_H
#define _LINUX_FOLIO_MAPCOUNTS_H

#include <linux/bits.h>
#include <linux/build_bug.h>
#include <linux/log2.h>
#include <linux/math.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/pgtable.h>
#include <linux/types.h>

/*
 * A snapshot of folio->_mapcounts, the packed mapcount of a large folio. With
 * P = ilog2(MAX_PTRS_PER_PTE):
 *
 *    63             62-P  61-P            31 30                            0
 *   +--------------------+------------------+-------------------------------+
 *   |  creator : P + 2   |  pmds : 31 - P   |           ptes : 31           |
 *   +--------------------+------------------+-------------------------------+
 *
 * ptes, pmds: page table entries that map a part of the folio. A hugetlb mapping
 * counts 1 in ptes. A PUD counts as its PTRS_PER_PMD PMDs; that of a ZONE_DEVICE
 * folio, which is never split, counts 1.
 * creator: how many of these entries belong to the creator MM, modulo 2^(P+2).
 *
 * Documentation/mm/folio_mapcounts.rst has the rules.
 */
struct folio_mapcounts {
	u64 val;
};

#ifdef CONFIG_MMU
#define MAPCOUNTS_PMD_ORDER		PMD_ORDER
#define MAPCOUNTS_MAX_PMD_ORDER		ilog2(MAX_PTRS_PER_PTE)
#else
#define MAPCOUNTS_PMD_ORDER		0
#define MAPCOUNTS_MAX_PMD_ORDER		0
#endif

#define MAPCOUNTS_PTES_OFFSET		0
#define MAPCOUNTS_PTES_BITS		31
#define MAPCOUNTS_PTES_MASK		GENMASK_ULL(MAPCOUNTS_PTES_BITS - 1, 0)

#define MAPCOUNTS_PMDS_OFFSET		(MAPCOUNTS_PTES_OFFSET + MAPCOUNTS_PTES_BITS)
#define MAPCOUNTS_PMDS_BITS		(31 - MAPCOUNTS_MAX_PMD_ORDER)
#define MAPCOUNTS_PMDS_MASK	\
	GENMASK_ULL(MAPCOUNTS_CREATOR_OFFSET - 1, MAPCOUNTS_PMDS_OFFSET)

#define MAPCOUNTS_CREATOR_OFFSET	(MAPCOUNTS_PMDS_OFFSET + MAPCOUNTS_PMDS_BITS)
#define MAPCOUNTS_CREATOR_BITS		(2 + MAPCOUNTS_MAX_PMD_ORDER)
#define MAPCOUNTS_CREATOR_MASK		GENMASK_ULL(63, MAPCOUNTS_CREATOR_OFFSET)

static_assert(MAPCOUNTS_CREATOR_OFFSET + MAPCOUNTS_CREATOR_BITS == 64,
	      "creator must be the top field: it may carry");

/* One unit of each field. */
#define MAPCOUNTS_PTE			BIT_ULL(MAPCOUNTS_PTES_OFFSET)
#define MAPCOUNTS_PMD			BIT_ULL(MAPCOUNTS_PMDS_OFFSET)
#define MAPCOUNTS_CREATOR		BIT_ULL(MAPCOUNTS_CREATOR_OFFSET)

/* The most page mappings of a large folio, see folio_can_add_rmap(). */
#define MAPCOUNTS_PAGES_MAX		BIT(30)

/* What to add to folio->_mapcounts; negative numbers unmap. */
static __always_inline u64 mapcounts_delta(long nr_ptes, long nr_pmds, bool creator)
{
	const u64 c = creator ? MAPCOUNTS_CREATOR : 0;

	return (u64)nr_ptes * (MAPCOUNTS_PTE + c) +
	       (u64)nr_pmds * (MAPCOUNTS_PMD + c);
}

static __always_inline unsigned int mapcounts_ptes(struct folio_mapcounts mc)
{
	return mc.val & MAPCOUNTS_PTES_MASK;
}

static __always_inline unsigned int mapcounts_pmds(struct folio_mapcounts mc)
{
	return (mc.val & MAPCOUNTS_PMDS_MASK) >> MAPCOUNTS_PMDS_OFFSET;
}

static __always_inline unsigned int mapcounts_creator(struct folio_mapcounts mc)
{
	return mc.val >> MAPCOUNTS_CREATOR_OFFSET;
}

static __always_inline bool mapcounts_mapped(struct folio_mapcounts mc)
{
	return mc.val;
}

/* The number of entries that map the folio. Each has one reference. */
static __always_inline unsigned int mapcounts_entries(struct folio_mapcounts mc)
{
	return mapcounts_ptes(mc) + mapcounts_pmds(mc);
}

/* A page that is mapped m times counts m. Less than 2^32. Not for hugetlb. */
static __always_inline unsigned long mapcounts_pages(struct folio_mapcounts mc)
{
	return mapcounts_ptes(mc) +
	       ((unsigned long)mapcounts_pmds(mc) << MAPCOUNTS_PMD_ORDER);
}

/*
 * What counts against MAPCOUNTS_PAGES_MAX: a PMD counts as the most PTEs that a page
 * table can have. So neither ptes nor pmds exceeds half of its field at the bound.
 */
static __always_inline unsigned long mapcounts_bound_pages(struct folio_mapcounts mc)
{
	return mapcounts_ptes(mc) +
	       ((unsigned long)mapcounts_pmds(mc) << MAPCOUNTS_MAX_PMD_ORDER);
}

/*
 * True only if all entries are the creator's: a count that wraps is less than them.
 * Always false from 2^MAPCOUNTS_CREATOR_BITS entries on.
 */
static __always_inline bool mapcounts_exclusive(struct folio_mapcounts mc)
{
	return mapcounts_creator(mc) == mapcounts_entries(mc);
}

static __always_inline bool mapcounts_valid(struct folio_mapcounts mc)
{
	return mapcounts_creator(mc) <= mapcounts_entries(mc);
}

/*
 * Estimate of the distinct pages that are mapped. File folios and folios with PMDs: the
 * number of page mappings, never too low. Anonymous folios with PTEs only: the PTEs of
 * the creator or of all other MMs, whichever are more, as fork() gives the child what
 * the parent maps. This is at least half of the distinct pages.
 */
static __always_inline unsigned long
mapcounts_nr_mapped(struct folio_mapcounts mc, unsigned long nr_pages, bool anon)
{
	const unsigned long pages = mapcounts_pages(mc);
	const unsigned long creator = anon && !mapcounts_pmds(mc) ? mapcounts_creator(mc) : 0;

	return min_t(unsigned long, nr_pages,
		     max_t(unsigned long, creator, pages - creator));
}

static __always_inline unsigned long
mapcounts_nr_pmdmapped(struct folio_mapcounts mc, unsigned long nr_pages)
{
	return min_t(unsigned long, nr_pages,
		     (unsigned long)mapcounts_pmds(mc) << MAPCOUNTS_PMD_ORDER);
}

/*
 * The share of mappings of @size, in any unit, if the estimate is divided evenly among
 * all page mappings. @size * nr_pages must be less than 2^64.
 */
static __always_inline u64
mapcounts_share(struct folio_mapcounts mc, unsigned long nr_pages, bool anon,
		u64 size)
{
	const unsigned long pages = mapcounts_pages(mc);
	const unsigned long estimate = mapcounts_nr_mapped(mc, nr_pages, anon);

	if (likely(pages == estimate))
		return size;
	return div_u64(size * estimate, pages);
}

/* Rounded up: some page has at least as many mappings. */
static __always_inline unsigned long
mapcounts_average(struct folio_mapcounts mc, unsigned long nr_pages)
{
	return DIV_ROUND_UP(mapcounts_pages(mc), nr_pages);
}

/* True only if some page is mapped and some page is not. Not for hugetlb. */
static __always_inline bool
mapcounts_partial(struct folio_mapcounts mc, unsigned long nr_pages)
{
	const unsigned long pages = mapcounts_pages(mc);

	return pages && pages < nr_pages;
}

#endif /* _LINUX_FOLIO_MAPCOUNTS_H */
