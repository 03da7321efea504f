/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_FOLIO_MAPCOUNTS_H
#define _LINUX_FOLIO_MAPCOUNTS_H

#include <linux/bits.h>
#include <linux/build_bug.h>
#include <linux/math.h>
#include <linux/math64.h>
#include <linux/minmax.h>
#include <linux/types.h>

/**
 * DOC: The word that says how a large folio is mapped
 *
 * One 64-bit word in each large folio counts all of its mappings::
 *
 *    63          50 49              32 31                               0
 *   +--------------+------------------+----------------------------------+
 *   | creator : 14 |   entire : 18    |            ptes : 32             |
 *   +--------------+------------------+----------------------------------+
 *
 * ptes:
 *   PTEs that map a page of the folio. Each counts 1, also when it maps a page
 *   that another PTE maps. A mapping of a hugetlb folio counts 1 here, whatever
 *   the size of the folio: there can be many more of these than the next field
 *   could hold.
 * entire:
 *   PMD and PUD entries that map the folio as a whole.
 * creator:
 *   *Pages* mapped by the creator MM, modulo 2^14: a PTE counts 1, an entry
 *   that maps the whole folio counts nr_pages.
 *
 * The word of an unmapped folio is 0.
 *
 * Every change is the addition of one delta, so an atomic add of a delta takes
 * a consistent snapshot to a consistent snapshot, and the value that it returns
 * tells what was before and what is now. These transitions exist::
 *
 *     operation                      ptes       entire  creator, if it is its MM
 *     map n PTEs                     + n                + n
 *     unmap n PTEs                   - n                - n
 *     map a PMD or PUD                          + 1     + nr_pages
 *     unmap a PMD or PUD                        - 1     - nr_pages
 *     split a PMD into PTEs          + nr_pages - 1
 *     adopt the folio                                   + nr_pages mapped
 *
 * What a reader may conclude from one snapshot stands at each function below.
 *
 * Carries: ptes and entire are bounded, see below, so they never carry into the
 * field above them. creator is the field at the top: its carry leaves the word,
 * and as addition is modular the field stays right under later subtractions.
 */

/**
 * DOC: The creator MM of a large folio
 *
 * Each large folio remembers one MM, its creator, and the word counts the pages
 * that this MM maps. The pointer is compared and never followed: the MM may be
 * gone. As long as creator and page mappings are equal, nobody else maps a page.
 *
 * The creator is written, the folio is "claimed", only
 *
 * 1. for a new folio that nobody else can see: folio_add_new_anon_rmap();
 * 2. under the folio lock, while the word is 0: the first mapping after a fault
 *    on the page cache, swap-in or migration;
 * 3. under the folio lock and the lock of the page table that has all mappings
 *    of the folio, so that these are all of one MM: folio_adopt().
 *
 * It is read by whoever adds or removes mappings, to know if these are the
 * creator's. That never races with a claim, because
 *
 * - who adds mappings holds the folio lock (page cache, swap-in, migration); or
 *   holds the lock of a page table that maps the folio already, and which is
 *   thus not 0 in the word and keeps the folio from being adopted in any other
 *   page table (fork, PMD split); or has a new folio;
 * - who removes mappings holds the lock of the page table they are in, likewise.
 *
 * So an MM's mappings are all counted in creator, or none is: the creator cannot
 * change while the folio has mappings that it would have to be recounted for. An
 * MM that is found at the address of a dead creator is in no way special: the
 * dead one has no mappings left, the count is 0, and all mappings of the other
 * will be counted.
 *
 * Never claimed by that, and so not exclusive by this count when mapped more than
 * once: folios that drivers insert (vm_insert_page() and the like take no folio
 * lock), ZONE_DEVICE folios of file systems, and hugetlb folios.
 */

/**
 * struct folio_mapcounts - A snapshot of how a large folio is mapped
 * @word: the fields, to be read through the functions below
 *
 * Questions that are answered from the same snapshot have consistent answers.
 */
struct folio_mapcounts {
	u64 word;
};

#define FOLIO_MAPCOUNTS_PTES_OFFSET	0
#define FOLIO_MAPCOUNTS_PTES_BITS	32
#define FOLIO_MAPCOUNTS_PTES_MASK	\
	GENMASK_ULL(FOLIO_MAPCOUNTS_ENTIRE_OFFSET - 1, FOLIO_MAPCOUNTS_PTES_OFFSET)

#define FOLIO_MAPCOUNTS_ENTIRE_OFFSET	\
	(FOLIO_MAPCOUNTS_PTES_OFFSET + FOLIO_MAPCOUNTS_PTES_BITS)
#define FOLIO_MAPCOUNTS_ENTIRE_BITS	18
#define FOLIO_MAPCOUNTS_ENTIRE_MASK	\
	GENMASK_ULL(FOLIO_MAPCOUNTS_CREATOR_OFFSET - 1, FOLIO_MAPCOUNTS_ENTIRE_OFFSET)

#define FOLIO_MAPCOUNTS_CREATOR_OFFSET	\
	(FOLIO_MAPCOUNTS_ENTIRE_OFFSET + FOLIO_MAPCOUNTS_ENTIRE_BITS)
#define FOLIO_MAPCOUNTS_CREATOR_BITS	14
#define FOLIO_MAPCOUNTS_CREATOR_MASK	\
	GENMASK_ULL(63, FOLIO_MAPCOUNTS_CREATOR_OFFSET)

static_assert(FOLIO_MAPCOUNTS_CREATOR_OFFSET + FOLIO_MAPCOUNTS_CREATOR_BITS == 64,
	      "the creator count must be the top field: it may carry");

/* One unit of each field. */
#define FOLIO_MAPCOUNTS_PTE		BIT_ULL(FOLIO_MAPCOUNTS_PTES_OFFSET)
#define FOLIO_MAPCOUNTS_ENTIRE		BIT_ULL(FOLIO_MAPCOUNTS_ENTIRE_OFFSET)
#define FOLIO_MAPCOUNTS_CREATOR		BIT_ULL(FOLIO_MAPCOUNTS_CREATOR_OFFSET)

/* The creator count is exact as long as no more pages than this are mapped. */
#define FOLIO_MAPCOUNTS_CREATOR_MAX	(BIT(FOLIO_MAPCOUNTS_CREATOR_BITS) - 1)

/*
 * Where mapping is to be refused. A check and the add that follows it are not
 * one step: what others add in between is taken up by a part of each field. For
 * ptes it is one quarter, since folio_mapcounts_total() takes what is above for
 * a negative number; for entire it is one half.
 */
#define FOLIO_MAPCOUNTS_PTES_MAX	BIT(FOLIO_MAPCOUNTS_PTES_BITS - 2)
#define FOLIO_MAPCOUNTS_ENTIRE_MAX	BIT(FOLIO_MAPCOUNTS_ENTIRE_BITS - 1)

/**
 * folio_mapcounts_ptes() - PTEs that map a page of the folio
 * @mc: the snapshot
 *
 * Return: the number of PTEs; for a hugetlb folio, the number of its mappings.
 */
static __always_inline unsigned int folio_mapcounts_ptes(struct folio_mapcounts mc)
{
	return mc.word & FOLIO_MAPCOUNTS_PTES_MASK;
}

/**
 * folio_mapcounts_entire() - PMD and PUD entries that map the whole folio
 * @mc: the snapshot
 *
 * Return: the number of entries; 0 for a hugetlb folio.
 */
static __always_inline unsigned int folio_mapcounts_entire(struct folio_mapcounts mc)
{
	return (mc.word & FOLIO_MAPCOUNTS_ENTIRE_MASK) >>
		FOLIO_MAPCOUNTS_ENTIRE_OFFSET;
}

/**
 * folio_mapcounts_creator() - Pages mapped by the creator MM
 * @mc: the snapshot
 *
 * Return: the number of page mappings, modulo 2^FOLIO_MAPCOUNTS_CREATOR_BITS.
 */
static __always_inline unsigned int folio_mapcounts_creator(struct folio_mapcounts mc)
{
	return mc.word >> FOLIO_MAPCOUNTS_CREATOR_OFFSET;
}

/**
 * folio_mapcounts_mapped() - Is the folio mapped at all?
 * @mc: the snapshot
 *
 * The whole word is compared: creator counts a subset of what ptes and entire
 * count, so where these are 0 it is 0 as well.
 *
 * Return: true if there is any mapping.
 */
static __always_inline bool folio_mapcounts_mapped(struct folio_mapcounts mc)
{
	return mc.word;
}

/**
 * folio_mapcounts_total() - All mappings of the folio
 * @mc: the snapshot
 *
 * Reads ptes as a signed number and takes back what a negative one borrowed
 * from entire: so unmapping a page once too often gives -1, which callers of
 * folio_mapcount() look for, and not some large number.
 *
 * Return: ptes + entire, in page table entries.
 */
static __always_inline int folio_mapcounts_total(struct folio_mapcounts mc)
{
	const struct folio_mapcounts unborrowed = {
		mc.word + BIT_ULL(FOLIO_MAPCOUNTS_PTES_BITS - 1),
	};

	return (int)folio_mapcounts_ptes(mc) + folio_mapcounts_entire(unborrowed);
}

/**
 * folio_mapcounts_pages() - Page mappings of the folio
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 *
 * Not meant for a hugetlb folio: each of its mappings counts 1 here as well, and
 * maps all of its pages.
 *
 * Return: ptes + entire * nr_pages, in pages. A page that is mapped m times
 * counts m.
 */
static __always_inline u64
folio_mapcounts_pages(struct folio_mapcounts mc, unsigned long nr_pages)
{
	return folio_mapcounts_ptes(mc) +
	       (u64)folio_mapcounts_entire(mc) * nr_pages;
}

/**
 * folio_mapcounts_creator_only() - Is the folio certainly mapped by its creator
 *				    MM alone?
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 *
 * creator is a count modulo 2^14 of some of the page mappings. While there are
 * fewer than 2^14 in all it cannot have wrapped, and equality means that the
 * creator has them all. With 2^14 or more this cannot be told: the answer is
 * false. It is never true when another MM maps a page.
 *
 * Return: true if every page mapping is the creator's; also if there is none.
 */
static __always_inline bool
folio_mapcounts_creator_only(struct folio_mapcounts mc, unsigned long nr_pages)
{
	/* creator <= FOLIO_MAPCOUNTS_CREATOR_MAX, so equality has both. */
	return folio_mapcounts_pages(mc, nr_pages) == folio_mapcounts_creator(mc);
}

/**
 * folio_mapcounts_creator_possible() - Can the creator count be right?
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 *
 * The creator has some of the page mappings, so its count cannot be larger. Where
 * it has wrapped it is smaller still.
 *
 * Return: false if there is certainly an error.
 */
static __always_inline bool
folio_mapcounts_creator_possible(struct folio_mapcounts mc, unsigned long nr_pages)
{
	return folio_mapcounts_creator(mc) <= folio_mapcounts_pages(mc, nr_pages);
}

/**
 * folio_mapcounts_estimate() - Estimate of the distinct pages that are mapped
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 *
 * Exact if no page is mapped twice, if an entry maps the whole folio, and if
 * there is no mapping. Never less than the distinct pages that are mapped: each
 * of these has a PTE of its own unless the whole folio is mapped. Not meant for
 * a hugetlb folio, which is mapped as a whole and has no entire mappings.
 *
 * Return: a number of pages, at most @nr_pages.
 */
static __always_inline unsigned long
folio_mapcounts_estimate(struct folio_mapcounts mc, unsigned long nr_pages)
{
	if (folio_mapcounts_entire(mc))
		return nr_pages;
	return min_t(unsigned long, folio_mapcounts_ptes(mc), nr_pages);
}

/**
 * folio_mapcounts_share() - What some of the page mappings stand for
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 * @size: what these mappings map, in any unit
 *
 * Divides the estimate evenly among the page mappings. So the shares of all who
 * map the folio add up to the estimate, but for the rounding, which loses less
 * than one unit in each share. A folio that is not mapped has nothing to share:
 * the result is @size, and no division by 0.
 *
 * Return: @size * estimate / pages, rounded down, where the product must be less
 * than 2^64; at most @size.
 */
static __always_inline u64
folio_mapcounts_share(struct folio_mapcounts mc, unsigned long nr_pages, u64 size)
{
	const u64 pages = folio_mapcounts_pages(mc, nr_pages);
	const u64 estimate = folio_mapcounts_estimate(mc, nr_pages);

	if (likely(pages == estimate))
		return size;
	return div64_u64(size * estimate, pages);
}

/**
 * folio_mapcounts_average() - Mappings of each page, on average
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 *
 * Rounded up: 0 only if nothing is mapped, and yet never more than the mappings
 * of the page that has most of them.
 *
 * Return: pages / @nr_pages, rounded up.
 */
static __always_inline unsigned long
folio_mapcounts_average(struct folio_mapcounts mc, unsigned long nr_pages)
{
	return folio_mapcounts_entire(mc) +
	       DIV_ROUND_UP((unsigned long)folio_mapcounts_ptes(mc), nr_pages);
}

/**
 * folio_mapcounts_partial() - Is the folio certainly mapped in part only?
 * @mc: the snapshot
 * @nr_pages: pages in the folio
 *
 * Not meant for a hugetlb folio, which is never mapped in part.
 *
 * Return: true if some page is mapped and some page is not, certainly. When
 * pages are mapped more than once it can be false for such a folio.
 */
static __always_inline bool
folio_mapcounts_partial(struct folio_mapcounts mc, unsigned long nr_pages)
{
	const unsigned int ptes = folio_mapcounts_ptes(mc);

	return !folio_mapcounts_entire(mc) && ptes && ptes < nr_pages;
}

/**
 * folio_mapcounts_delta_ptes() - The delta of mapping pages by PTEs
 * @nr_ptes: how many PTEs
 * @creator: whether they belong to the creator MM
 *
 * Return: what to add to the word to map, and to subtract to unmap.
 */
static __always_inline u64
folio_mapcounts_delta_ptes(unsigned long nr_ptes, bool creator)
{
	/* nr_ptes carries out of the creator field at the top: see above. */
	return nr_ptes * (FOLIO_MAPCOUNTS_PTE +
			  (creator ? FOLIO_MAPCOUNTS_CREATOR : 0));
}

/**
 * folio_mapcounts_delta_entire() - The delta of mapping the whole folio once
 * @nr_pages: pages in the folio
 * @creator: whether the PMD or PUD entry belongs to the creator MM
 *
 * Return: what to add to the word to map, and to subtract to unmap.
 */
static __always_inline u64
folio_mapcounts_delta_entire(unsigned long nr_pages, bool creator)
{
	return FOLIO_MAPCOUNTS_ENTIRE +
	       (creator ? nr_pages * FOLIO_MAPCOUNTS_CREATOR : 0);
}

/**
 * folio_mapcounts_delta_split() - The delta of splitting a PMD into PTEs
 * @nr_pages: pages in the folio, which the PMD maps and then the PTEs map
 *
 * The same MM maps the same pages before and after: its part of the creator
 * count cancels, whether it is the creator or not.
 *
 * Return: what to add to the word.
 */
static __always_inline u64 folio_mapcounts_delta_split(unsigned long nr_pages)
{
	return nr_pages * FOLIO_MAPCOUNTS_PTE - FOLIO_MAPCOUNTS_ENTIRE;
}

#endif /* _LINUX_FOLIO_MAPCOUNTS_H */
