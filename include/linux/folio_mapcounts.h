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

/**
 * DOC: The packed mapcount of a large folio
 *
 * folio->_mapcounts counts the page table entries that map a large folio. With
 * P = ilog2(MAX_PTRS_PER_PTE)::
 *
 *    63             62-P  61-P            31 30                            0
 *   +--------------------+------------------+-------------------------------+
 *   |  creator : P + 2   |  pmds : 31 - P   |           ptes : 31           |
 *   +--------------------+------------------+-------------------------------+
 *
 * ptes:
 *   PTEs. A mapping of a hugetlb folio counts 1 here, whatever its size.
 * pmds:
 *   PMDs, each of which maps a PMD-sized, aligned part of the folio. A PUD counts
 *   as the PTRS_PER_PMD PMDs that it stands for, so that splitting it changes
 *   nothing. But a PUD of a ZONE_DEVICE folio counts 1: it is zapped and never
 *   split, and nothing else than PUDs maps that folio.
 * creator:
 *   Entries, PTEs and PMDs alike, that belong to the creator MM, modulo 2^(P+2).
 *
 * Each entry that is counted has one reference to the folio. All fields of an
 * unmapped folio are 0.
 *
 * An operation adds one delta. The atomic addition takes a consistent snapshot
 * to the next one, and returns it. With c = 1 for the creator MM, else 0::
 *
 *     operation                ptes                pmds    creator
 *     map n PTEs               + n                         + c * n
 *     map a PMD                                    + 1     + c
 *     split a PMD              + PTRS_PER_PTE      - 1     + c * (PTRS_PER_PTE - 1)
 *     adopt the folio                                      + ptes + pmds
 *
 * Widths. Mapping is refused above MAPCOUNTS_PAGES_MAX = 2^30 page mappings, of
 * which a PMD counts as 2^P: so at most 2^30 PTEs and 2^(30-P) PMDs. Each field
 * holds about twice as many, for what is added between a check and the addition
 * that follows it. So ptes and pmds never carry. The carry of creator leaves at
 * the top, and subtracting brings it back. ::
 *
 *                                  P   bits of pmds, creator   PMDs at the bound
 *     s390, ppc64 (64 KiB pages)   8          23        10          2^22
 *     4 KiB pages, x86 PAE         9          22        11          2^21
 *     16 KiB pages                11          20        13          2^19
 *     64 KiB pages                13          18        15          2^17
 *
 * On ppc64 the MMU is chosen at boot, and a PMD can map fewer pages than 2^P.
 */

/**
 * DOC: The creator MM of a large folio
 *
 * Each large folio remembers one MM, its creator, and counts the entries of this
 * MM. The pointer is compared and never dereferenced: the MM may be gone. While
 * creator == ptes + pmds, no other MM maps the folio.
 *
 * folio->_creator is written, the folio is "claimed", only
 *
 * 1. for a new folio that nobody else can see: folio_add_new_anon_rmap();
 * 2. under the folio lock, while the folio is unmapped: the first mapping after a
 *    fault on the page cache, swap-in or migration;
 * 3. under the folio lock and the PTL of the page table that has all mappings of
 *    the folio: folio_adopt().
 *
 * Adding and removing mappings reads it. That never races with a claim:
 *
 * - Adding a mapping requires the folio lock (page cache, swap-in, migration); or
 *   the PTL of an existing mapping (fork, PMD split), so that the folio is neither
 *   unmapped nor adopted in another page table; or a new folio.
 * - Removing a mapping requires the PTL of that mapping, likewise.
 *
 * So creator counts all entries of an MM, or none of them. An MM at the address of
 * a dead creator is no special case: the dead MM has no mappings, creator is 0,
 * and all entries of the new MM will be counted.
 *
 * Not claimed, and not exclusive when mapped by more than one entry, are folios
 * that drivers insert (vm_insert_page() takes no folio lock), ZONE_DEVICE folios
 * of file systems, and hugetlb folios.
 */

/**
 * struct folio_mapcounts - A snapshot of how a large folio is mapped
 * @val: the fields, to be read through the functions below
 *
 * What is derived from one snapshot is consistent.
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
#define MAPCOUNTS_PTES_MASK	\
	GENMASK_ULL(MAPCOUNTS_PMDS_OFFSET - 1, MAPCOUNTS_PTES_OFFSET)

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

/* Where mapping is refused: see folio_can_add_rmap(). */
#define MAPCOUNTS_PAGES_MAX		BIT(30)

/**
 * mapcounts_delta() - The change that an operation makes
 * @nr_ptes: how many more PTEs map a page; negative: fewer
 * @nr_pmds: how many more PMDs map a part of the folio; negative: fewer
 * @creator: whether these are entries of the creator MM
 *
 * Return: what to add to folio->_mapcounts.
 */
static __always_inline u64 mapcounts_delta(long nr_ptes, long nr_pmds, bool creator)
{
	const u64 c = creator ? MAPCOUNTS_CREATOR : 0;

	return (u64)nr_ptes * (MAPCOUNTS_PTE + c) +
	       (u64)nr_pmds * (MAPCOUNTS_PMD + c);
}

/**
 * mapcounts_ptes() - PTEs that map a page of the folio
 * @mc: the snapshot
 *
 * Return: the number of PTEs; for a hugetlb folio, the number of its mappings.
 */
static __always_inline unsigned int mapcounts_ptes(struct folio_mapcounts mc)
{
	return mc.val & MAPCOUNTS_PTES_MASK;
}

/**
 * mapcounts_pmds() - PMDs that map a part of the folio, or all of it
 * @mc: the snapshot
 *
 * Return: the number of PMDs, with PUDs counted as above.
 */
static __always_inline unsigned int mapcounts_pmds(struct folio_mapcounts mc)
{
	return (mc.val & MAPCOUNTS_PMDS_MASK) >> MAPCOUNTS_PMDS_OFFSET;
}

/**
 * mapcounts_creator() - Entries that belong to the creator MM
 * @mc: the snapshot
 *
 * Return: the number of entries, modulo 2^MAPCOUNTS_CREATOR_BITS.
 */
static __always_inline unsigned int mapcounts_creator(struct folio_mapcounts mc)
{
	return mc.val >> MAPCOUNTS_CREATOR_OFFSET;
}

/**
 * mapcounts_mapped() - Is the folio mapped at all?
 * @mc: the snapshot
 *
 * Return: true if there is any mapping.
 */
static __always_inline bool mapcounts_mapped(struct folio_mapcounts mc)
{
	return mc.val;
}

/**
 * mapcounts_entries() - All page table entries that map the folio
 * @mc: the snapshot
 *
 * Return: PTEs and PMDs: there are as many references that belong to mappings.
 */
static __always_inline unsigned int mapcounts_entries(struct folio_mapcounts mc)
{
	return mapcounts_ptes(mc) + mapcounts_pmds(mc);
}

/**
 * mapcounts_pages() - Page mappings of the folio
 * @mc: the snapshot
 *
 * Not for hugetlb folios, nor where ZONE_DEVICE PUDs count 1.
 *
 * Return: how many pages the entries map; a page mapped m times counts m. This is
 * less than 2^32.
 */
static __always_inline unsigned long mapcounts_pages(struct folio_mapcounts mc)
{
	return mapcounts_ptes(mc) +
	       ((unsigned long)mapcounts_pmds(mc) << MAPCOUNTS_PMD_ORDER);
}

/**
 * mapcounts_bound_pages() - What counts against MAPCOUNTS_PAGES_MAX
 * @mc: the snapshot
 *
 * Like mapcounts_pages(), but a PMD counts as the most PTEs that a page table can
 * have: then neither ptes nor pmds exceeds half of its field at the bound.
 *
 * Return: a number of page mappings, less than 2^32.
 */
static __always_inline unsigned long mapcounts_bound_pages(struct folio_mapcounts mc)
{
	return mapcounts_ptes(mc) +
	       ((unsigned long)mapcounts_pmds(mc) << MAPCOUNTS_MAX_PMD_ORDER);
}

/**
 * mapcounts_exclusive() - Is the folio certainly mapped by its creator MM alone?
 * @mc: the snapshot
 *
 * creator can only wrap to less than the entries that it counts. So equality means
 * that the creator has all entries. With 2^MAPCOUNTS_CREATOR_BITS entries or more
 * this is always false: one MM that maps, with 4 KiB pages, a PMD-sized file folio
 * by PTEs in four places, or an anonymous folio of four PMDs by PTEs alone.
 *
 * Return: true if all mappings are the creator's; also if there is none.
 */
static __always_inline bool mapcounts_exclusive(struct folio_mapcounts mc)
{
	return mapcounts_creator(mc) == mapcounts_entries(mc);
}

/**
 * mapcounts_valid() - Can the creator count be right?
 * @mc: the snapshot
 *
 * Return: false if there is certainly an error.
 */
static __always_inline bool mapcounts_valid(struct folio_mapcounts mc)
{
	return mapcounts_creator(mc) <= mapcounts_entries(mc);
}

/**
 * mapcounts_nr_mapped() - Estimate of the distinct pages that are mapped
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 * @anon: whether the folio is anonymous
 *
 * No snapshot tells which pages are mapped. Each mapped page takes at least one of
 * the page mappings: there are no more distinct pages than mapcounts_pages(), nor
 * more than @nr_pages.
 *
 * Page faults map a file folio, any part of it, in MMs that are not related: all
 * page mappings are taken for distinct pages, up to the whole folio. That is exact
 * if no page is mapped twice, or if all pages are mapped, and never less than the
 * distinct pages. The same holds for an anonymous folio while a PMD maps a part.
 *
 * An anonymous folio that PTEs alone map: the pages that one MM maps are mostly
 * among those that another maps, as fork() gives the child what the parent maps.
 * The creator maps as many distinct pages as it has PTEs, since no MM maps an
 * anonymous page twice. The PTEs of the other MMs are taken for distinct pages. The
 * estimate is the larger of the two numbers, up to the whole folio. It is
 *
 * - exact if one MM maps the folio; if the creator and one other MM do, and one
 *   maps only pages that the other maps, too;
 * - never less than half of the distinct pages, which are at most the sum of the
 *   two numbers. It is half where they are equal, and no page is in both: where
 *   the creator unmaps one half, and its child the other half;
 * - too large only if MMs other than the creator map a page more than once. It is
 *   never more than the PTEs.
 *
 * Where the creator has so many PTEs that its count wraps, those that are missing
 * count as those of other MMs. Then only the bounds hold: half of the distinct
 * pages, the PTEs, and @nr_pages. That takes an anonymous folio of four PMDs.
 *
 * No mapping that is added makes the estimate smaller. Splitting a PMD can. Not for
 * hugetlb folios, nor where ZONE_DEVICE PUDs count 1.
 *
 * Return: a number of pages, at most @nr_pages; 0 only if nothing is mapped.
 */
static __always_inline unsigned long
mapcounts_nr_mapped(struct folio_mapcounts mc, unsigned long nr_pages, bool anon)
{
	const unsigned long pages = mapcounts_pages(mc);
	const unsigned long creator = anon && !mapcounts_pmds(mc) ? mapcounts_creator(mc) : 0;

	return min_t(unsigned long, nr_pages,
		     max_t(unsigned long, creator, pages - creator));
}

/**
 * mapcounts_nr_pmdmapped() - Estimate of the distinct pages that PMDs map
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 *
 * Return: a number of pages, at most @nr_pages; exact for a PMD-sized folio.
 */
static __always_inline unsigned long
mapcounts_nr_pmdmapped(struct folio_mapcounts mc, unsigned long nr_pages)
{
	return min_t(unsigned long, nr_pages,
		     (unsigned long)mapcounts_pmds(mc) << MAPCOUNTS_PMD_ORDER);
}

/**
 * mapcounts_share() - What some of the page mappings stand for
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 * @anon: whether the folio is anonymous
 * @size: what these mappings map, in any unit
 *
 * Divides the estimate evenly among the page mappings. So the shares of all MMs
 * that map the folio add up to the estimate, but for the rounding, which loses
 * less than one unit in each share. For an unmapped folio the result is @size.
 *
 * Return: @size * estimate / pages, rounded down, where the product must be less
 * than 2^64; at most @size.
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

/**
 * mapcounts_average() - Mappings of each page, on average
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 *
 * Return: pages / @nr_pages, rounded up: 0 only if nothing is mapped, and never
 * more than the mappings of the page that has most of them.
 */
static __always_inline unsigned long
mapcounts_average(struct folio_mapcounts mc, unsigned long nr_pages)
{
	return DIV_ROUND_UP(mapcounts_pages(mc), nr_pages);
}

/**
 * mapcounts_partial() - Is the folio certainly mapped in part only?
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 *
 * Not for hugetlb folios.
 *
 * Return: true if some page is mapped and some page is not, certainly. When pages
 * are mapped more than once it can be false for such a folio.
 */
static __always_inline bool
mapcounts_partial(struct folio_mapcounts mc, unsigned long nr_pages)
{
	const unsigned long pages = mapcounts_pages(mc);

	return pages && pages < nr_pages;
}

#endif /* _LINUX_FOLIO_MAPCOUNTS_H */
