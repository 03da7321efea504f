// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests in user space of the packed mapcount of a large folio.
 *
 * The kernel's header is compiled as it is. Random sequences of what rmap does to
 * a folio are applied to the mapcounts, by the deltas of the header, and to a model
 * that remembers how often each MM maps each page. After each operation, all that
 * the header derives from the mapcounts is compared with what the model knows. What comes as a
 * literal number here is not taken from the header on purpose.
 *
 *	folio_mapcounts [-s SEED] [-n SEQUENCES]
 *
 * TEST_P is how many bits index the largest page table, TEST_PMD_ORDER how many
 * index those in use: on ppc64 these are not the same.
 */
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef TEST_P
#define TEST_P	9
#endif
#ifndef TEST_PMD_ORDER
#define TEST_PMD_ORDER	TEST_P
#endif
#define CONFIG_MMU

/* Another header is a mutant of it: see mutants.sh. */
#ifndef FOLIO_MAPCOUNTS_H
#define FOLIO_MAPCOUNTS_H	"../../../include/linux/folio_mapcounts.h"
#endif
#include FOLIO_MAPCOUNTS_H

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define NR_MMS		4
#define NOBODY		NR_MMS
#define MAX_OPS		80

/* A PMD maps as many pages; a folio has up to four such parts. */
#define P		TEST_P
#define PMD_NR		((unsigned int)BIT(TEST_PMD_ORDER))
#define MAX_PARTS	4
#define MAX_PAGES	(MAX_PARTS * PMD_NR)

/* What the fields can hold, and where mapping is refused. */
#define PTES_TOP	0x7fffffffULL
#define PMDS_TOP	((1ULL << (31 - P)) - 1)
#define CREATOR_TOP	((4ULL << P) - 1)
#define BOUND		BIT_ULL(30)

static u64 seed;
static unsigned int nr_sequences = TEST_PMD_ORDER > 9 ? 500 : 2000;

/* Why the last check failed. */
static __thread char why[400];

static __printf(1, 2) bool fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, sizeof(why), format, args);
	va_end(args);
	return false;
}

#define EXPECT(expr, want) ({							\
	const s64 got_ = (s64)(expr), want_ = (s64)(want);			\
										\
	got_ == want_ || fail("%s: %lld, not %lld", #expr, (long long)got_,	\
			      (long long)want_);				\
})

#define CHECK(cond)	((cond) || fail("not true: %s", #cond))

/* splitmix64: every seed will do. */
static u64 rnd_next(u64 *state)
{
	u64 z = (*state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static u64 rnd(u64 *state, u64 below)
{
	return rnd_next(state) % below;
}

/* Small, huge or close to a power of two: where errors live. */
static u64 rnd_value(u64 *state, u64 top)
{
	u64 near = 1ULL << rnd(state, 32);

	switch (rnd(state, 4)) {
	case 0:
		return rnd(state, 1 + min_t(u64, top, 20));
	case 1:
		return top - rnd(state, 1 + min_t(u64, top, 20));
	case 2:
		near += rnd(state, 5) - 2;
		return near <= top ? near : top;
	default:
		return rnd(state, top + 1);
	}
}

static struct folio_mapcounts make(u64 ptes, u64 pmds, u64 creator)
{
	return (struct folio_mapcounts){
		ptes + (pmds << 31) + (creator << (62 - P))
	};
}

/* What is derived from any mapcounts, and what is added to them */

/* @creator is what is counted of an anonymous folio; 0 for a file folio. */
static u64 estimate_of(u64 ptes, u64 pmds, u64 creator, unsigned long nr_pages)
{
	u64 most = ptes + pmds * PMD_NR;

	if (!pmds)
		most = creator > ptes - creator ? creator : ptes - creator;
	return most < nr_pages ? most : nr_pages;
}

static bool estimates_agree(struct folio_mapcounts mc, u64 pages, u64 mapped,
			    unsigned long nr_pages, bool anon)
{
	return EXPECT(mapcounts_nr_mapped(mc, nr_pages, anon), mapped) &&
	       EXPECT(mapcounts_share(mc, nr_pages, anon, 1ULL << 32),
		      pages ? (mapped << 32) / pages : 1ULL << 32);
}

static bool answers_agree(u64 ptes, u64 pmds, u64 creator, unsigned long nr_pages)
{
	const struct folio_mapcounts mc = make(ptes, pmds, creator);
	const u64 by_pmd = pmds * PMD_NR, pages = ptes + by_pmd;

	return EXPECT(mapcounts_ptes(mc), ptes) &&
	       EXPECT(mapcounts_pmds(mc), pmds) &&
	       EXPECT(mapcounts_creator(mc), creator) &&
	       EXPECT(mapcounts_mapped(mc), ptes || pmds || creator) &&
	       EXPECT(mapcounts_entries(mc), ptes + pmds) &&
	       EXPECT(mapcounts_pages(mc), pages) &&
	       EXPECT(mapcounts_bound_pages(mc), ptes + (pmds << P)) &&
	       EXPECT(mapcounts_exclusive(mc), ptes + pmds == creator) &&
	       EXPECT(mapcounts_valid(mc), creator <= ptes + pmds) &&
	       estimates_agree(mc, pages, estimate_of(ptes, pmds, 0, nr_pages),
			       nr_pages, false) &&
	       (creator > ptes + pmds ||
		estimates_agree(mc, pages, estimate_of(ptes, pmds, creator, nr_pages),
				nr_pages, true)) &&
	       EXPECT(mapcounts_nr_pmdmapped(mc, nr_pages),
		      by_pmd < nr_pages ? by_pmd : nr_pages) &&
	       EXPECT(mapcounts_average(mc, nr_pages), (pages + nr_pages - 1) / nr_pages) &&
	       EXPECT(mapcounts_partial(mc, nr_pages), pages > 0 && pages < nr_pages);
}

static bool test_answers(u64 *state)
{
	const unsigned long nr_pages = 2UL << rnd(state, 18);
	const u64 ptes = rnd_value(state, PTES_TOP);
	const u64 pmds = rnd_value(state, rnd(state, 2) ? PMDS_TOP : 3);
	u64 creator = rnd_value(state, CREATOR_TOP);

	/* Where equal is not likely by chance */
	if (rnd(state, 2))
		creator = (ptes + pmds + rnd(state, 3) - 1) & CREATOR_TOP;
	/* On 32 bit, only what can be mapped at all fits in a long. */
	if (sizeof(long) == 4 && ptes + (pmds << P) + nr_pages > ULONG_MAX)
		return true;
	if (!answers_agree(ptes, pmds, creator, nr_pages) ||
	    !answers_agree(rnd_value(state, 2 * nr_pages), pmds, creator,
			   nr_pages) ||
	    !answers_agree(creator, 0, creator, nr_pages) ||
	    !answers_agree(creator + rnd_value(state, 2 * nr_pages), 0, creator,
			   nr_pages) ||
	    !answers_agree(0, creator % PMDS_TOP, creator % PMDS_TOP, nr_pages))
		return false;
	return true;
}

/* What one page table has: nothing is to be accounted when an MM adopts the folio. */
static bool test_adopt(u64 *state)
{
	const unsigned long nr_pages = 2UL << rnd(state, 18);
	const u64 ptes = rnd_value(state, 1 << P);
	const u64 pmds = rnd(state, 2) ? rnd_value(state, (1 << P) - ptes) : 0;

	if (!EXPECT(mapcounts_nr_mapped(make(ptes, pmds, ptes + pmds), nr_pages, true),
		    mapcounts_nr_mapped(make(ptes, pmds, 0), nr_pages, true)))
		return false;
	return true;
}

/* Adding @delta and subtracting it again changes the fields as expected. */
static bool delta_adds(u64 delta, struct folio_mapcounts before, s64 ptes,
		       s64 pmds, s64 creator)
{
	struct folio_mapcounts mc = before;

	mc.val += delta;
	return EXPECT(mc.val & PTES_TOP, (before.val & PTES_TOP) + ptes) &&
	       EXPECT(mc.val >> 31 & PMDS_TOP, (before.val >> 31 & PMDS_TOP) + pmds) &&
	       EXPECT(mc.val >> (62 - P),
		      ((before.val >> (62 - P)) + creator) & CREATOR_TOP) &&
	       EXPECT(mc.val - delta, before.val);
}

static bool test_deltas(u64 *state)
{
	const struct folio_mapcounts mc =
		make(BOUND / 2 + rnd_value(state, BOUND / 2),
		     1 + rnd_value(state, BOUND >> P),
		     rnd_value(state, CREATOR_TOP));
	const long nr = rnd_value(state, BOUND - 1);
	const long pmds = rnd_value(state, (BOUND >> P) - 2);
	const long less = rnd_value(state, BOUND / 2);

	if (!delta_adds(mapcounts_delta(nr, 0, false), mc, nr, 0, 0) ||
	    !delta_adds(mapcounts_delta(nr, 0, true), mc, nr, 0, nr) ||
	    !delta_adds(mapcounts_delta(-less, 0, false), mc, -less, 0, 0) ||
	    !delta_adds(mapcounts_delta(-less, 0, true), mc, -less, 0, -less) ||
	    !delta_adds(mapcounts_delta(0, pmds, false), mc, 0, pmds, 0) ||
	    !delta_adds(mapcounts_delta(0, pmds, true), mc, 0, pmds, pmds) ||
	    !delta_adds(mapcounts_delta(0, -1, true), mc, 0, -1, -1) ||
	    !delta_adds(mapcounts_delta(PMD_NR, -1, false), mc, PMD_NR, -1, 0) ||
	    !delta_adds(mapcounts_delta(PMD_NR, -1, true), mc, PMD_NR, -1,
			(s64)PMD_NR - 1) ||
	    !delta_adds(MAPCOUNTS_CREATOR * (unsigned int)nr, mc, 0, 0, nr))
		return false;
	return true;
}

/* The fields fill the 64 bits and do not overlap; units, bounds and masks fit. */
static bool test_fields(u64 *state)
{
	(void)state;
	return EXPECT(sizeof(struct folio_mapcounts), 8) &&
	       EXPECT(MAPCOUNTS_PTES_MASK, PTES_TOP) &&
	       EXPECT(MAPCOUNTS_PMDS_MASK, PMDS_TOP << 31) &&
	       EXPECT(MAPCOUNTS_CREATOR_MASK, CREATOR_TOP << (62 - P)) &&
	       EXPECT(MAPCOUNTS_PTES_MASK + MAPCOUNTS_PMDS_MASK + MAPCOUNTS_CREATOR_MASK,
		      ~0ULL) &&
	       EXPECT(MAPCOUNTS_PTE, 1) &&
	       EXPECT(MAPCOUNTS_PMD, 1ULL << 31) &&
	       EXPECT(MAPCOUNTS_CREATOR, 1ULL << (62 - P)) &&
	       EXPECT(MAPCOUNTS_PAGES_MAX, BOUND);
}

/*
 * Where mapping is refused, what others add between the check and the addition has
 * room: 2^30 - 2^18 PTEs, and all but one of as many PMDs as there can be.
 */
static bool test_bounds(u64 *state)
{
	const u64 pmds = rnd_value(state, BOUND >> P);
	const u64 ptes = BOUND - (pmds << P) +
			 rnd_value(state, (1 << 30) - (1 << 18));
	const u64 more = rnd_value(state, (BOUND >> P) - 1);
	const struct folio_mapcounts mc = make(ptes, pmds + more, 0);

	if (!EXPECT(mapcounts_bound_pages(make(BOUND - (pmds << P), pmds, 0)),
		    MAPCOUNTS_PAGES_MAX) ||
	    !EXPECT(mapcounts_ptes(mc), ptes) ||
	    !EXPECT(mapcounts_pmds(mc), pmds + more) ||
	    !EXPECT(mapcounts_entries(mc), ptes + pmds + more))
		return false;
	return true;
}

/* PTEs that are unmapped too often do not leave what looks like an unmapped folio. */
static bool test_underflow(u64 *state)
{
	const u64 ptes = rnd_value(state, 10000);
	const long gone = ptes + 1 + rnd_value(state, BOUND);
	struct folio_mapcounts mc = make(ptes, rnd_value(state, BOUND >> P),
					 rnd(state, CREATOR_TOP));

	mc.val += mapcounts_delta(-gone, 0, rnd(state, 2));
	if (!CHECK(mapcounts_mapped(mc)) ||
	    !CHECK(mapcounts_ptes(mc) != ptes - gone))
		return false;
	return true;
}

/*
 * A PUD counts as the PMDs that it stands for: it is split into these, without a
 * change, and then one of these after the other into PTEs. The creator can have
 * three of them split, and be known to be the only one.
 */
static bool test_pud(u64 *state)
{
	const unsigned long nr = 1UL << P, nr_pages = nr * PMD_NR;
	const bool full = nr == PMD_NR;	/* as many PTEs as there can be */
	struct folio_mapcounts mc = {};
	unsigned long split;

	(void)state;
	mc.val += mapcounts_delta(0, nr, true);
	for (split = 0; split <= nr; split++) {
		const u64 entries = nr + split * (PMD_NR - 1);

		if (!EXPECT(mapcounts_entries(mc), entries) ||
		    !EXPECT(mapcounts_pmds(mc), nr - split) ||
		    !EXPECT(mapcounts_pages(mc), nr_pages) ||
		    !EXPECT(mapcounts_nr_mapped(mc, nr_pages, false), nr_pages) ||
		    !EXPECT(mapcounts_nr_mapped(mc, nr_pages, true), nr_pages) ||
		    !EXPECT(mapcounts_nr_pmdmapped(mc, nr_pages),
			    (nr - split) * PMD_NR) ||
		    !EXPECT(mapcounts_partial(mc, nr_pages), false) ||
		    !EXPECT(mapcounts_exclusive(mc), entries <= CREATOR_TOP))
			return false;
		if (full && !EXPECT(mapcounts_exclusive(mc), split <= 3))
			return false;
		mc.val += mapcounts_delta(PMD_NR, -1, true);
	}
	return true;
}

/* The model */

struct model {
	unsigned int nr_pages;
	unsigned int creator;			/* an MM, or NOBODY */
	u32 pte[NR_MMS][MAX_PAGES];		/* PTEs of an MM that map a page */
	u32 pmd[NR_MMS][MAX_PARTS];		/* PMDs of an MM that map a part */
	struct folio_mapcounts mc;		/* what is to stand for that */
};

/* What counting every mapping gives. */
struct truth {
	u64 ptes, pmds, pages, creator;
	unsigned int distinct;			/* pages that are mapped */
	unsigned int creators, others;		/* PTEs of the creator, and of other MMs */
	bool twice;				/* some page is mapped twice */
	bool parties_twice;			/* of the creator, or of the others */
};

static unsigned int nr_parts(const struct model *m)
{
	return m->nr_pages / PMD_NR;
}

static u64 count_ptes(const struct model *m, unsigned int mm, unsigned int first,
		      unsigned int nr)
{
	u64 count = 0;

	while (nr--)
		count += m->pte[mm][first++];
	return count;
}

static u64 count_pmds(const struct model *m, unsigned int mm)
{
	unsigned int part;
	u64 count = 0;

	for (part = 0; part < nr_parts(m); part++)
		count += m->pmd[mm][part];
	return count;
}

static struct truth count_all(const struct model *m)
{
	struct truth t = {};
	unsigned int mm, i;

	for (mm = 0; mm < NR_MMS; mm++) {
		const u64 ptes = count_ptes(m, mm, 0, m->nr_pages);
		const u64 pmds = count_pmds(m, mm);

		t.ptes += ptes;
		t.pmds += pmds;
		t.pages += ptes + pmds * PMD_NR;
		if (mm == m->creator)
			t.creator = ptes + pmds;
	}
	for (i = 0; i < m->nr_pages; i++) {
		const u64 creator = m->creator == NOBODY ? 0 : m->pte[m->creator][i];
		u64 here = 0;

		for (mm = 0; mm < NR_MMS; mm++)
			here += m->pte[mm][i];
		t.creators += creator > 0;
		t.others += here > creator;
		t.parties_twice |= creator > 1 || here - creator > 1;
		for (mm = 0; mm < NR_MMS; mm++)
			here += m->pmd[mm][i / PMD_NR];
		t.distinct += here > 0;
		t.twice |= here > 1;
	}
	return t;
}

/* The estimate for an anonymous folio */
static bool anon_agrees(const struct model *m, const struct truth *t)
{
	const unsigned long estimate = mapcounts_nr_mapped(m->mc, m->nr_pages, true);

	return EXPECT(estimate, estimate_of(t->ptes, t->pmds, t->creator & CREATOR_TOP,
					    m->nr_pages)) &&
	       CHECK(2 * estimate >= t->distinct && estimate <= m->nr_pages) &&
	       CHECK(estimate <= t->pages && (estimate || !t->distinct)) &&
	       (t->pmds || t->parties_twice ||
		EXPECT(estimate, t->creators > t->others ? t->creators : t->others));
}

/* Everything that the header answers, against the truth or what bounds it. */
static bool model_agrees(const struct model *m)
{
	const struct truth t = count_all(m);
	const unsigned long nr_pages = m->nr_pages;
	const struct folio_mapcounts mc = m->mc;
	const unsigned long estimate = mapcounts_nr_mapped(mc, nr_pages, false);
	const bool partial = mapcounts_partial(mc, nr_pages);
	const bool in_part = t.distinct > 0 && t.distinct < nr_pages;
	const u64 entries = t.ptes + t.pmds;

	return EXPECT(mapcounts_ptes(mc), t.ptes) &&
	       EXPECT(mapcounts_pmds(mc), t.pmds) &&
	       EXPECT(mapcounts_creator(mc), t.creator & CREATOR_TOP) &&
	       EXPECT(mapcounts_mapped(mc), entries > 0) &&
	       EXPECT(mapcounts_entries(mc), entries) &&
	       EXPECT(mapcounts_pages(mc), t.pages) &&
	       EXPECT(mapcounts_exclusive(mc),
		      entries == t.creator && entries <= CREATOR_TOP) &&
	       CHECK(mapcounts_valid(mc)) &&
	       EXPECT(mapcounts_nr_pmdmapped(mc, nr_pages),
		      min_t(u64, t.pmds * PMD_NR, nr_pages)) &&
	       CHECK(estimate >= t.distinct && estimate <= nr_pages) &&
	       CHECK(estimate <= t.pages) &&
	       CHECK(estimate == t.distinct || t.twice) &&
	       anon_agrees(m, &t) &&
	       CHECK(!partial || in_part) &&
	       CHECK(partial == in_part || t.twice);
}

static void change_ptes(struct model *m, unsigned int mm, unsigned int first,
			unsigned int nr, u32 times, bool map)
{
	const long all = (long)nr * times;
	unsigned int i;

	for (i = first; i < first + nr; i++)
		m->pte[mm][i] += map ? times : -times;
	m->mc.val += mapcounts_delta(map ? all : -all, 0, mm == m->creator);
}

static void change_pmd(struct model *m, unsigned int mm, unsigned int part,
		       u32 times, bool map)
{
	m->pmd[mm][part] += map ? times : -times;
	while (times--)
		m->mc.val += mapcounts_delta(0, map ? 1 : -1, mm == m->creator);
}

/* Map or unmap for MM @by what @mm maps. */
static void change_all(struct model *m, unsigned int mm, unsigned int by, bool map)
{
	unsigned int i, nr;

	/* By batches of pages that are mapped the same number of times */
	for (i = 0; i < m->nr_pages; i += nr) {
		for (nr = 1; i + nr < m->nr_pages; nr++)
			if (m->pte[mm][i + nr] != m->pte[mm][i])
				break;
		if (m->pte[mm][i])
			change_ptes(m, by, i, nr, m->pte[mm][i], map);
	}
	for (i = 0; i < nr_parts(m); i++)
		change_pmd(m, by, i, m->pmd[mm][i], map);
}

static bool room_for(const struct model *m, u64 ptes, u64 pmds)
{
	const u64 more = ptes + (pmds << P);

	return (m->mc.val & PTES_TOP) + ((m->mc.val >> 31 & PMDS_TOP) << P) <= BOUND &&
	       more <= BOUND / 2;
}

/* The operations */

enum kind {
	MAP_PTES, UNMAP_PTES, MAP_PMD, UNMAP_PMD, FORK, SPLIT, SPLIT_IN_TWO,
	ADOPT, EXIT, NR_KINDS
};

/* Each can be applied to any model. It does nothing where there is nothing to do. */
struct op {
	enum kind kind;
	unsigned int mm, child;
	unsigned int first, nr;		/* pages */
	unsigned int times;		/* in how many places that MM maps them */
	unsigned int claim;		/* 0: as drivers, who do not claim the folio */
};

struct sequence {
	unsigned int nr_pages, nr;
	struct op ops[MAX_OPS];
};

static void claim(struct model *m, const struct op *op)
{
	if (!m->mc.val && op->claim)
		m->creator = op->mm;
}

static void apply_ptes(struct model *m, const struct op *op)
{
	const unsigned int first = op->first % m->nr_pages;
	const unsigned int nr = min_t(unsigned int, op->nr, m->nr_pages - first);
	u32 times = op->times;
	unsigned int i;

	if (op->kind == MAP_PTES) {
		if (!room_for(m, (u64)nr * times, 0))
			return;
		claim(m, op);
		change_ptes(m, op->mm, first, nr, times, true);
		return;
	}
	for (i = first; i < first + nr; i++)
		times = min_t(u32, times, m->pte[op->mm][i]);
	change_ptes(m, op->mm, first, nr, times, false);
}

static void apply_pmd(struct model *m, const struct op *op)
{
	const unsigned int part = op->first % m->nr_pages / PMD_NR;

	if (part >= nr_parts(m))
		return;
	if (op->kind == UNMAP_PMD) {
		change_pmd(m, op->mm, part, min_t(u32, op->times, m->pmd[op->mm][part]),
			   false);
	} else if (room_for(m, 0, op->times)) {
		claim(m, op);
		change_pmd(m, op->mm, part, op->times, true);
	}
}

static void apply_split(struct model *m, const struct op *op)
{
	const unsigned int part = op->first % m->nr_pages / PMD_NR;
	unsigned int i;

	if (!m->pmd[op->mm][part] || !room_for(m, PMD_NR, 0))
		return;
	if (op->kind == SPLIT_IN_TWO) {
		change_ptes(m, op->mm, part * PMD_NR, PMD_NR, 1, true);
		change_pmd(m, op->mm, part, 1, false);
		return;
	}
	m->pmd[op->mm][part]--;
	for (i = 0; i < PMD_NR; i++)
		m->pte[op->mm][part * PMD_NR + i]++;
	m->mc.val += mapcounts_delta(PMD_NR, -1, op->mm == m->creator);
}

static void apply_fork(struct model *m, const struct op *op)
{
	if (op->mm != op->child &&
	    room_for(m, count_ptes(m, op->mm, 0, m->nr_pages), count_pmds(m, op->mm)))
		change_all(m, op->mm, op->child, true);
}

static void apply_adopt(struct model *m, const struct op *op)
{
	const u64 entries = count_ptes(m, op->mm, 0, m->nr_pages) +
			    count_pmds(m, op->mm);
	const struct truth t = count_all(m);

	if (m->creator == op->mm || !entries || entries != t.ptes + t.pmds)
		return;
	m->creator = op->mm;
	m->mc.val += MAPCOUNTS_CREATOR * (unsigned int)entries;
}

static void apply(struct model *m, const struct op *op)
{
	switch (op->kind) {
	case MAP_PTES:
	case UNMAP_PTES:
		return apply_ptes(m, op);
	case MAP_PMD:
	case UNMAP_PMD:
		return apply_pmd(m, op);
	case FORK:
		return apply_fork(m, op);
	case SPLIT:
	case SPLIT_IN_TWO:
		return apply_split(m, op);
	case ADOPT:
		return apply_adopt(m, op);
	default:
		return change_all(m, op->mm, op->mm, false);
	}
}

/* Sequences of them */

/* Apply a sequence to an empty model. If that fails, @at is the operation. */
static bool run(const struct sequence *s, unsigned int *at)
{
	static struct model m;
	unsigned int mm;

	memset(&m, 0, sizeof(m));
	m.nr_pages = s->nr_pages;
	m.creator = NOBODY;
	for (*at = 0; *at < s->nr; ++*at) {
		apply(&m, &s->ops[*at]);
		if (!model_agrees(&m))
			return false;
	}
	for (mm = 0; mm < NR_MMS; mm++)
		change_all(&m, mm, mm, false);
	return model_agrees(&m) && EXPECT(m.mc.val, 0);
}

static void op_generate(struct op *op, u64 *state, unsigned int nr_pages)
{
	/* More is unmapped than mapped, so that small counts are common. */
	static const enum kind kinds[] = {
		MAP_PTES, MAP_PTES, MAP_PTES, UNMAP_PTES, UNMAP_PTES, UNMAP_PTES,
		UNMAP_PTES, MAP_PMD, UNMAP_PMD, FORK, FORK, SPLIT, SPLIT_IN_TWO,
		ADOPT, EXIT, EXIT,
	};

	op->kind = kinds[rnd(state, ARRAY_SIZE(kinds))];
	op->mm = rnd(state, NR_MMS);
	op->child = rnd(state, NR_MMS);
	op->first = rnd(state, 2) ? rnd(state, nr_pages) : 0;
	op->nr = rnd(state, 2) ? nr_pages : 1 + rnd(state, nr_pages);
	op->times = rnd(state, 8) ? 1 : 1U << rnd(state, 20);
	op->claim = rnd(state, 8) > 0;
}

static void generate(struct sequence *s, u64 *state)
{
	static const unsigned char orders[] = {
		1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, TEST_PMD_ORDER, TEST_PMD_ORDER,
		TEST_PMD_ORDER + 1, TEST_PMD_ORDER + 1, TEST_PMD_ORDER + 2,
	};
	unsigned int i;

	memset(s, 0, sizeof(*s));
	s->nr_pages = 1U << orders[rnd(state, ARRAY_SIZE(orders))];
	s->nr = 1 + rnd(state, MAX_OPS);
	for (i = 0; i < s->nr; i++)
		op_generate(&s->ops[i], state, s->nr_pages);
}

static bool test_sequences(u64 *state)
{
	static const char *const kind_name[] = {
		"map", "unmap", "map PMD", "unmap PMD", "fork", "split", "split in two",
		"adopt", "exit"
	};
	static struct sequence s;
	const struct op *op;
	unsigned int i, at;

	for (i = 0; i < nr_sequences; i++) {
		generate(&s, state);
		if (!run(&s, &at)) {
			printf("# sequence %u, a folio of %u pages:\n", i, s.nr_pages);
			for (op = s.ops; op <= &s.ops[at] && op < &s.ops[s.nr]; op++)
				printf("#   %s MM %u -> %u, %u pages at %u, %u times, claim %u\n",
				       kind_name[op->kind], op->mm, op->child, op->nr,
				       op->first, op->times, op->claim);
			return false;
		}
	}
	return true;
}

/* Several processors */

#define NR_WORKERS	4
#define WORKER_STEPS	50000
#define WORKER_PTES	16
#define WORKER_PMDS	100
#define WORKER_PAGES	(2 * PMD_NR)

static u64 shared_mapcounts;

/* Two threads of the creator, MM 0, and one each of MMs 1 and 2. */
struct worker {
	pthread_t thread;
	unsigned int mm;
	u64 random;
	u64 ptes, pmds;			/* what it has mapped */
	s64 estimate, anon, mapped;	/* sums of the differences that it saw */
	bool ok;
	char why[sizeof(why)];
};

/* @w has just changed its mappings by @delta: does the result include them? */
static bool worker_sees(struct worker *w, struct folio_mapcounts now, u64 delta)
{
	const struct folio_mapcounts before = { now.val - delta };
	const u64 entries = w->ptes + w->pmds;

	w->estimate += mapcounts_nr_mapped(now, WORKER_PAGES, false);
	w->estimate -= mapcounts_nr_mapped(before, WORKER_PAGES, false);
	w->anon += mapcounts_nr_mapped(now, WORKER_PAGES, true);
	w->anon -= mapcounts_nr_mapped(before, WORKER_PAGES, true);
	w->mapped += mapcounts_mapped(now);
	w->mapped -= mapcounts_mapped(before);
	return CHECK(mapcounts_valid(now)) &&
	       CHECK(mapcounts_ptes(now) >= w->ptes) &&
	       CHECK(mapcounts_pmds(now) >= w->pmds) &&
	       CHECK(mapcounts_entries(now) >= entries) &&
	       CHECK(w->mm || mapcounts_creator(now) >= entries) &&
	       CHECK(!w->mm || !entries || !mapcounts_exclusive(now));
}

static bool worker_change(struct worker *w, long nr_ptes, long nr_pmds)
{
	const u64 delta = mapcounts_delta(nr_ptes, nr_pmds, !w->mm);
	struct folio_mapcounts now;

	now.val = __atomic_add_fetch(&shared_mapcounts, delta, __ATOMIC_SEQ_CST);
	w->ptes += nr_ptes;
	w->pmds += nr_pmds;
	return worker_sees(w, now, delta);
}

static void *worker_run(void *arg)
{
	struct worker *w = arg;
	int i;

	w->ok = true;
	for (i = 0; w->ok && i < WORKER_STEPS; i++) {
		const bool map = rnd(&w->random, 2);
		const long ptes = rnd(&w->random, (map ? WORKER_PTES : w->ptes) + 1);

		if (rnd(&w->random, 4))
			w->ok = worker_change(w, map ? ptes : -ptes, 0);
		else if (map ? w->pmds < WORKER_PMDS : w->pmds > 0)
			w->ok = worker_change(w, 0, map ? 1 : -1);
	}
	if (w->ok)
		w->ok = worker_change(w, -(long)w->ptes, -(long)w->pmds);
	strcpy(w->why, why);
	return NULL;
}

/*
 * Whatever the order: nobody sees fields that contradict each other, the sums of
 * the differences that all saw are the difference between the end and the
 * beginning, and nothing is left.
 */
static bool test_concurrent(u64 *state)
{
	static struct worker workers[NR_WORKERS];
	s64 estimate = 0, anon = 0, mapped = 0;
	bool ok = true;
	int i;

	shared_mapcounts = 0;
	for (i = 0; i < NR_WORKERS; i++) {
		workers[i] = (struct worker){
			.mm = i / 2 + i / 3, .random = rnd_next(state)
		};
		if (pthread_create(&workers[i].thread, NULL, worker_run, &workers[i]))
			return fail("no thread");
	}
	for (i = 0; i < NR_WORKERS; i++) {
		pthread_join(workers[i].thread, NULL);
		estimate += workers[i].estimate;
		anon += workers[i].anon;
		mapped += workers[i].mapped;
		if (!workers[i].ok)
			ok = fail("MM %u: %s", workers[i].mm, workers[i].why);
	}
	return ok && EXPECT(shared_mapcounts, 0) && EXPECT(estimate, 0) &&
	       EXPECT(anon, 0) && EXPECT(mapped, 0);
}

static const struct {
	const char *name;
	bool (*run)(u64 *state);
	unsigned int times;
} tests[] = {
	{ "fields", test_fields },
	{ "answers", test_answers, 100000 },
	{ "adopt", test_adopt, 100000 },
	{ "deltas", test_deltas, 100000 },
	{ "bounds", test_bounds, 100000 },
	{ "underflow", test_underflow, 100000 },
	{ "pud", test_pud },
	{ "sequences", test_sequences },
	{ "concurrent", test_concurrent },
};

int main(int argc, char **argv)
{
	const unsigned int nr = ARRAY_SIZE(tests);
	unsigned int i, failed = 0;
	int c;

	seed = (u64)time(NULL) << 20 ^ getpid();
	while ((c = getopt(argc, argv, "s:n:")) != -1) {
		if (c == 's') {
			seed = strtoull(optarg, NULL, 0);
		} else if (c == 'n') {
			nr_sequences = strtoul(optarg, NULL, 0);
		} else {
			fprintf(stderr, "usage: %s [-s SEED] [-n SEQUENCES]\n", argv[0]);
			return 2;
		}
	}

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("KTAP version 1\n1..%u\n# seed %llu\n", nr, (unsigned long long)seed);
	for (i = 0; i < nr; i++) {
		u64 state = seed;
		unsigned int left = tests[i].times;
		bool ok;

		do
			ok = tests[i].run(&state);
		while (ok && left-- > 1);
		if (!ok)
			printf("# %s\n", why);
		printf("%sok %u %s\n", ok ? "" : "not ", i + 1, tests[i].name);
		failed += !ok;
	}
	return failed > 0;
}
