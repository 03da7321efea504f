// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests in user space of the word that counts the mappings of a large folio.
 *
 * The kernel's header is compiled as it is. Random sequences of what rmap does to
 * a folio are applied to a word, by the deltas of the header, and to a model that
 * remembers how often each MM maps each page. After each operation, all that the
 * header derives from the word is compared with what the model knows. A sequence
 * that fails is shrunk before it is printed. What comes as a literal number here
 * is not taken from the header on purpose.
 *
 *	folio_mapcounts [-s SEED] [-n SEQUENCES]
 */
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Another header is a mutant of it: see mutants.sh. */
#ifndef FOLIO_MAPCOUNTS_H
#define FOLIO_MAPCOUNTS_H	"../../../include/linux/folio_mapcounts.h"
#endif
#include FOLIO_MAPCOUNTS_H

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define NR_MMS		4
#define NOBODY		NR_MMS
#define MAX_PAGES	8192
#define MAX_OPS		80

/* What the fields can hold, and where mapping is refused. */
#define PTES_TOP	0xffffffffULL
#define ENTIRE_TOP	0x3ffffULL
#define CREATOR_TOP	0x3fffULL
#define PTES_BOUND	BIT_ULL(30)
#define ENTIRE_BOUND	BIT_ULL(17)

static u64 seed;
static unsigned int nr_sequences = 2000;

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

static struct folio_mapcounts make(u64 ptes, u64 entire, u64 creator)
{
	return (struct folio_mapcounts){
		ptes + (entire << 32) + (creator << 50)
	};
}

/* ------------------------------------------------------------------------- */
/* What is derived from any word, and what is added to it                      */

static bool answers_agree(u64 ptes, u64 entire, u64 creator, unsigned long nr_pages)
{
	const struct folio_mapcounts mc = make(ptes, entire, creator);
	const u64 pages = ptes + entire * nr_pages;
	u64 estimate = ptes < nr_pages ? ptes : nr_pages;

	if (entire)
		estimate = nr_pages;
	return EXPECT(folio_mapcounts_ptes(mc), ptes) &&
	       EXPECT(folio_mapcounts_entire(mc), entire) &&
	       EXPECT(folio_mapcounts_creator(mc), creator) &&
	       EXPECT(folio_mapcounts_mapped(mc), ptes || entire || creator) &&
	       (ptes + entire > INT_MAX ||
		EXPECT(folio_mapcounts_total(mc), ptes + entire)) &&
	       EXPECT(folio_mapcounts_pages(mc, nr_pages), pages) &&
	       EXPECT(folio_mapcounts_creator_only(mc, nr_pages), pages == creator) &&
	       EXPECT(folio_mapcounts_creator_possible(mc, nr_pages),
		      pages > CREATOR_TOP || creator <= pages) &&
	       EXPECT(folio_mapcounts_estimate(mc, nr_pages), estimate) &&
	       EXPECT(folio_mapcounts_partial(mc, nr_pages),
		      !entire && ptes > 0 && ptes < nr_pages);
}

static bool test_answers(u64 *state)
{
	int i;

	for (i = 0; i < 100000; i++) {
		const unsigned long nr_pages = 2UL << rnd(state, 18);
		const u64 ptes = rnd_value(state, PTES_TOP);
		const u64 entire = rnd_value(state, rnd(state, 2) ? ENTIRE_TOP : 3);
		u64 creator = rnd_value(state, CREATOR_TOP);

		/* Where equal is not likely by chance */
		if (rnd(state, 2))
			creator = (ptes + entire * nr_pages + rnd(state, 3) - 1) &
				  CREATOR_TOP;
		if (!answers_agree(ptes, entire, creator, nr_pages) ||
		    !answers_agree(rnd_value(state, 2 * nr_pages), entire, creator,
				   nr_pages) ||
		    !answers_agree(creator, 0, creator, nr_pages))
			return false;
	}
	return true;
}

/* Does adding @delta to a word, and taking it away again, do just what it is to? */
static bool delta_adds(u64 delta, struct folio_mapcounts before, u64 ptes,
		       s64 entire, u64 creator)
{
	struct folio_mapcounts mc = before;

	mc.word += delta;
	return EXPECT(mc.word & PTES_TOP, (before.word & PTES_TOP) + ptes) &&
	       EXPECT(mc.word >> 32 & ENTIRE_TOP,
		      (before.word >> 32 & ENTIRE_TOP) + entire) &&
	       EXPECT(mc.word >> 50, ((before.word >> 50) + creator) & CREATOR_TOP) &&
	       EXPECT(mc.word - delta, before.word);
}

static bool test_deltas(u64 *state)
{
	int i;

	for (i = 0; i < 100000; i++) {
		const struct folio_mapcounts mc =
			make(rnd_value(state, PTES_BOUND),
			     1 + rnd_value(state, ENTIRE_BOUND),
			     rnd_value(state, CREATOR_TOP));
		const unsigned long nr = rnd_value(state, 1 << 30);
		const unsigned long nr_pages = 2UL << rnd(state, 18);

		if (!delta_adds(folio_mapcounts_delta_ptes(nr, false), mc, nr, 0, 0) ||
		    !delta_adds(folio_mapcounts_delta_ptes(nr, true), mc, nr, 0, nr) ||
		    !delta_adds(folio_mapcounts_delta_entire(nr_pages, false), mc, 0, 1, 0) ||
		    !delta_adds(folio_mapcounts_delta_entire(nr_pages, true), mc, 0, 1,
				nr_pages) ||
		    !delta_adds(folio_mapcounts_delta_split(nr_pages), mc, nr_pages, -1, 0) ||
		    !delta_adds(FOLIO_MAPCOUNTS_CREATOR * (unsigned int)nr, mc, 0, 0, nr))
			return false;
	}
	return true;
}

/* The fields fill the word and do not overlap; units, bounds and masks fit. */
static bool test_fields(u64 *state)
{
	(void)state;
	return EXPECT(sizeof(struct folio_mapcounts), 8) &&
	       EXPECT(FOLIO_MAPCOUNTS_PTES_MASK, PTES_TOP) &&
	       EXPECT(FOLIO_MAPCOUNTS_ENTIRE_MASK, ENTIRE_TOP << 32) &&
	       EXPECT(FOLIO_MAPCOUNTS_CREATOR_MASK, CREATOR_TOP << 50) &&
	       EXPECT(FOLIO_MAPCOUNTS_PTE, 1) &&
	       EXPECT(FOLIO_MAPCOUNTS_ENTIRE, 1ULL << 32) &&
	       EXPECT(FOLIO_MAPCOUNTS_CREATOR, 1ULL << 50) &&
	       EXPECT(FOLIO_MAPCOUNTS_PTES_MAX, PTES_BOUND) &&
	       EXPECT(FOLIO_MAPCOUNTS_ENTIRE_MAX, ENTIRE_BOUND) &&
	       EXPECT(FOLIO_MAPCOUNTS_CREATOR_MAX, CREATOR_TOP);
}

/*
 * Where mapping is refused at a bound, what others add between the check and the
 * add has room: 2^30 - 2^18 PTEs, and 2^17 - 1 entire mappings.
 */
static bool test_bounds(u64 *state)
{
	int i;

	for (i = 0; i < 100000; i++) {
		const u64 ptes = FOLIO_MAPCOUNTS_PTES_MAX - 1 +
				 rnd_value(state, (1 << 30) - (1 << 18));
		const u64 entire = FOLIO_MAPCOUNTS_ENTIRE_MAX - 1 +
				   rnd_value(state, 1 << 17);
		const struct folio_mapcounts mc = make(ptes, entire, 0);

		if (!EXPECT(folio_mapcounts_ptes(mc), ptes) ||
		    !EXPECT(folio_mapcounts_entire(mc), entire) ||
		    !EXPECT(folio_mapcounts_total(mc), ptes + entire))
			return false;
	}
	return true;
}

/* PTEs that are unmapped too often give the number that this is below the truth. */
static bool test_underflow(u64 *state)
{
	int i;

	for (i = 0; i < 100000; i++) {
		const u64 ptes = rnd_value(state, 10000);
		const u64 entire = rnd_value(state, ENTIRE_BOUND);
		const u64 gone = ptes + 1 + rnd_value(state, INT_MAX);
		struct folio_mapcounts mc = make(ptes, entire, rnd(state, CREATOR_TOP));

		mc.word -= folio_mapcounts_delta_ptes(gone, rnd(state, 2));
		if (!EXPECT(folio_mapcounts_total(mc), ptes + entire - gone) ||
		    !CHECK(folio_mapcounts_mapped(mc)))
			return false;
	}
	return true;
}

/* ------------------------------------------------------------------------- */
/* The model                                                                   */

struct model {
	unsigned int nr_pages;
	unsigned int creator;			/* an MM, or NOBODY */
	u32 pte[NR_MMS][MAX_PAGES];		/* PTEs of an MM that map a page */
	u32 entire[NR_MMS];			/* entries of an MM that map it all */
	struct folio_mapcounts mc;		/* what is to stand for that */
};

/* What counting every mapping gives. */
struct truth {
	u64 ptes, entire, pages, creator;
	unsigned int distinct;			/* pages that are mapped */
	bool twice;				/* some page has more than one PTE */
};

static u64 count_ptes(const struct model *m, unsigned int mm, unsigned int first,
		      unsigned int nr)
{
	u64 count = 0;

	while (nr--)
		count += m->pte[mm][first++];
	return count;
}

static struct truth count_all(const struct model *m)
{
	struct truth t = {};
	unsigned int mm, i;

	for (mm = 0; mm < NR_MMS; mm++) {
		const u64 ptes = count_ptes(m, mm, 0, m->nr_pages);
		const u64 pages = ptes + (u64)m->entire[mm] * m->nr_pages;

		t.ptes += ptes;
		t.entire += m->entire[mm];
		t.pages += pages;
		if (mm == m->creator)
			t.creator = pages;
	}
	for (i = 0; i < m->nr_pages; i++) {
		u64 here = 0;

		for (mm = 0; mm < NR_MMS; mm++)
			here += m->pte[mm][i];
		t.distinct += here || t.entire;
		t.twice |= here > 1;
	}
	return t;
}

/* Everything that the header answers, against the truth or what bounds it. */
static bool model_agrees(const struct model *m)
{
	const struct truth t = count_all(m);
	const unsigned long nr_pages = m->nr_pages;
	const struct folio_mapcounts mc = m->mc;
	const unsigned long estimate = folio_mapcounts_estimate(mc, nr_pages);
	const bool partial = folio_mapcounts_partial(mc, nr_pages);
	const bool in_part = t.distinct > 0 && t.distinct < nr_pages;

	return EXPECT(folio_mapcounts_ptes(mc), t.ptes) &&
	       EXPECT(folio_mapcounts_entire(mc), t.entire) &&
	       EXPECT(folio_mapcounts_creator(mc), t.creator % (1 << 14)) &&
	       EXPECT(folio_mapcounts_mapped(mc), t.pages > 0) &&
	       EXPECT(folio_mapcounts_total(mc), t.ptes + t.entire) &&
	       EXPECT(folio_mapcounts_pages(mc, nr_pages), t.pages) &&
	       EXPECT(folio_mapcounts_creator_only(mc, nr_pages),
		      t.pages == t.creator && t.pages < 1 << 14) &&
	       CHECK(folio_mapcounts_creator_possible(mc, nr_pages)) &&
	       CHECK(estimate >= t.distinct && estimate <= nr_pages) &&
	       CHECK(estimate <= t.pages) &&
	       CHECK(estimate == t.distinct || (t.twice && !t.entire)) &&
	       CHECK(!partial || in_part) &&
	       CHECK(partial == in_part || t.twice);
}

/* Set for the test of the shrinking: batches of 3 or more are unmapped wrongly. */
static bool sabotage;

static void change_ptes(struct model *m, unsigned int mm, unsigned int first,
			unsigned int nr, u32 times, bool map)
{
	const bool creator = mm == m->creator;
	u64 delta = folio_mapcounts_delta_ptes((unsigned long)nr * times, creator);
	unsigned int i;

	for (i = first; i < first + nr; i++)
		m->pte[mm][i] += map ? times : -times;
	if (sabotage && !map && creator && nr >= 3)
		delta -= 1ULL << 50;
	m->mc.word += map ? delta : -delta;
}

static void change_entire(struct model *m, unsigned int mm, u32 times, bool map)
{
	const u64 delta = folio_mapcounts_delta_entire(m->nr_pages, mm == m->creator);

	m->entire[mm] += map ? times : -times;
	while (times--)
		m->mc.word += map ? delta : -delta;
}

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
	change_entire(m, by, m->entire[mm], map);
}

static bool room_for_ptes(const struct model *m, u64 more)
{
	return (m->mc.word & PTES_TOP) < PTES_BOUND && more <= PTES_BOUND / 2;
}

static bool room_for_entire(const struct model *m, u64 more)
{
	return (m->mc.word >> 32 & ENTIRE_TOP) < ENTIRE_BOUND &&
	       more <= ENTIRE_BOUND / 2;
}

/* ------------------------------------------------------------------------- */
/* The operations                                                              */

enum kind {
	MAP_PTES, UNMAP_PTES, MAP_ENTIRE, UNMAP_ENTIRE, FORK, SPLIT, SPLIT_IN_TWO,
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

static void op_print(const struct op *op)
{
	printf("#   MM %u ", op->mm);
	switch (op->kind) {
	case MAP_PTES:
	case UNMAP_PTES:
		printf("%s %u PTEs from page %u on", op->kind == MAP_PTES ? "maps" : "unmaps",
		       op->nr, op->first);
		break;
	case MAP_ENTIRE:
	case UNMAP_ENTIRE:
		printf("%s all by a PMD", op->kind == MAP_ENTIRE ? "maps" : "unmaps");
		break;
	case FORK:
		printf("forks MM %u", op->child);
		break;
	case SPLIT:
	case SPLIT_IN_TWO:
		printf("splits a PMD, by %s", op->kind == SPLIT ? "one add" : "two adds");
		break;
	case ADOPT:
		printf("adopts the folio, if it is the only one to map it");
		break;
	default:
		printf("exits");
	}
	if (op->kind <= UNMAP_ENTIRE && op->times != 1)
		printf(", in %u places", op->times);
	if ((op->kind == MAP_PTES || op->kind == MAP_ENTIRE) && !op->claim)
		printf(", as a driver");
	printf("\n");
}

static void claim(struct model *m, const struct op *op)
{
	if (!m->mc.word && op->claim)
		m->creator = op->mm;
}

static void apply_ptes(struct model *m, const struct op *op)
{
	const unsigned int first = op->first % m->nr_pages;
	const unsigned int nr = min_t(unsigned int, op->nr, m->nr_pages - first);
	u32 times = op->times;
	unsigned int i;

	if (op->kind == MAP_PTES) {
		if (!room_for_ptes(m, (u64)nr * times))
			return;
		claim(m, op);
		change_ptes(m, op->mm, first, nr, times, true);
		return;
	}
	for (i = first; i < first + nr; i++)
		times = min_t(u32, times, m->pte[op->mm][i]);
	change_ptes(m, op->mm, first, nr, times, false);
}

static void apply_entire(struct model *m, const struct op *op)
{
	if (op->kind == UNMAP_ENTIRE) {
		change_entire(m, op->mm, min_t(u32, op->times, m->entire[op->mm]), false);
	} else if (room_for_entire(m, op->times)) {
		claim(m, op);
		change_entire(m, op->mm, op->times, true);
	}
}

static void apply_split(struct model *m, const struct op *op)
{
	unsigned int i;

	if (!m->entire[op->mm] || !room_for_ptes(m, m->nr_pages))
		return;
	if (op->kind == SPLIT_IN_TWO) {
		change_ptes(m, op->mm, 0, m->nr_pages, 1, true);
		change_entire(m, op->mm, 1, false);
		return;
	}
	m->entire[op->mm]--;
	for (i = 0; i < m->nr_pages; i++)
		m->pte[op->mm][i]++;
	m->mc.word += folio_mapcounts_delta_split(m->nr_pages);
}

static void apply_fork(struct model *m, const struct op *op)
{
	if (op->mm != op->child &&
	    room_for_ptes(m, count_ptes(m, op->mm, 0, m->nr_pages)) &&
	    room_for_entire(m, m->entire[op->mm]))
		change_all(m, op->mm, op->child, true);
}

static void apply_adopt(struct model *m, const struct op *op)
{
	const u64 pages = count_ptes(m, op->mm, 0, m->nr_pages) +
			  (u64)m->entire[op->mm] * m->nr_pages;

	if (m->creator == op->mm || !pages || pages != count_all(m).pages)
		return;
	m->creator = op->mm;
	m->mc.word += FOLIO_MAPCOUNTS_CREATOR * (unsigned int)pages;
}

static void apply(struct model *m, const struct op *op)
{
	switch (op->kind) {
	case MAP_PTES:
	case UNMAP_PTES:
		return apply_ptes(m, op);
	case MAP_ENTIRE:
	case UNMAP_ENTIRE:
		return apply_entire(m, op);
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

/* ------------------------------------------------------------------------- */
/* Sequences of them                                                           */

/* A failure in the model at hand is of the operation that this says. */
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
	return model_agrees(&m) && EXPECT(m.mc.word, 0);
}

static bool fails(const struct sequence *s)
{
	unsigned int at;

	return !run(s, &at);
}

static void op_generate(struct op *op, u64 *state, unsigned int nr_pages)
{
	/* More is unmapped than mapped, so that small counts are common. */
	static const enum kind kinds[] = {
		MAP_PTES, MAP_PTES, MAP_PTES, UNMAP_PTES, UNMAP_PTES, UNMAP_PTES,
		UNMAP_PTES, MAP_ENTIRE, UNMAP_ENTIRE, FORK, FORK, SPLIT, SPLIT_IN_TWO,
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
		1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 5, 6, 9, 9, 13
	};
	unsigned int i;

	memset(s, 0, sizeof(*s));
	s->nr_pages = 1U << orders[rnd(state, ARRAY_SIZE(orders))];
	s->nr = 1 + rnd(state, MAX_OPS);
	for (i = 0; i < s->nr; i++)
		op_generate(&s->ops[i], state, s->nr_pages);
}

/* Leave out operations, many at once at first, as long as it fails without. */
static bool shrink_length(struct sequence *s)
{
	unsigned int chunk, at;
	bool shrunk = false;

	for (chunk = s->nr; chunk; chunk /= 2) {
		for (at = 0; at + chunk <= s->nr;) {
			struct sequence less = *s;

			less.nr -= chunk;
			memmove(&less.ops[at], &less.ops[at + chunk],
				(less.nr - at) * sizeof(less.ops[0]));
			if (fails(&less)) {
				*s = less;
				shrunk = true;
			} else {
				at += chunk;
			}
		}
	}
	return shrunk;
}

static bool shrink_to(struct sequence *s, unsigned int *field, unsigned int value)
{
	const unsigned int was = *field;

	if (value >= was)
		return false;
	*field = value;
	if (fails(s))
		return true;
	*field = was;
	return false;
}

static bool shrink_number(struct sequence *s, unsigned int *field, unsigned int least)
{
	bool shrunk = shrink_to(s, field, least);
	int bit;

	for (bit = 31; bit >= 0; bit--)
		if ((*field & ~(1U << bit)) >= least)
			shrunk |= shrink_to(s, field, *field & ~(1U << bit));
	if (*field > least)
		shrunk |= shrink_to(s, field, *field - 1);
	return shrunk;
}

/* Have one MM do what another did. */
static bool shrink_mms(struct sequence *s)
{
	unsigned int mm, i;
	bool shrunk = false;

	for (mm = 1; mm < NR_MMS; mm++) {
		struct sequence less = *s;

		for (i = 0; i < s->nr; i++) {
			less.ops[i].mm -= less.ops[i].mm >= mm;
			less.ops[i].child -= less.ops[i].child >= mm;
		}
		if (memcmp(&less, s, sizeof(less)) && fails(&less)) {
			*s = less;
			shrunk = true;
		}
	}
	return shrunk;
}

/* Make a sequence that fails as short and plain as can be. */
static void shrink(struct sequence *s)
{
	bool shrunk;
	unsigned int i;

	do {
		shrunk = shrink_length(s);
		shrunk |= shrink_mms(s);
		while (s->nr_pages > 2 && shrink_to(s, &s->nr_pages, s->nr_pages / 2))
			shrunk = true;
		for (i = 0; i < s->nr; i++) {
			struct op *op = &s->ops[i];

			shrunk |= shrink_number(s, &op->times, 1);
			shrunk |= shrink_number(s, &op->nr, 1);
			shrunk |= shrink_number(s, &op->first, 0);
		}
	} while (shrunk);
}

static void report(struct sequence *s)
{
	unsigned int i, at;

	shrink(s);
	run(s, &at);
	printf("# a folio of %u pages:\n", s->nr_pages);
	for (i = 0; i < s->nr; i++)
		op_print(&s->ops[i]);
	printf("# and then%s:\n", at < s->nr ? "" : ", all unmapped");
}

static bool test_sequences(u64 *state)
{
	static struct sequence s;
	unsigned int i;

	for (i = 0; i < nr_sequences; i++) {
		generate(&s, state);
		if (fails(&s)) {
			report(&s);
			return false;
		}
	}
	return true;
}

/* Nothing can be left out, and there is not much. */
static bool is_least(const struct sequence *s)
{
	unsigned int i;

	for (i = 0; i < s->nr; i++) {
		struct sequence less = *s;

		less.nr--;
		memmove(&less.ops[i], &less.ops[i + 1],
			(less.nr - i) * sizeof(less.ops[0]));
		if (fails(&less))
			return fail("operation %u is superfluous", i);
	}
	return CHECK(s->nr >= 1 && s->nr <= 3) && EXPECT(s->nr_pages, 4);
}

static bool test_shrinking(u64 *state)
{
	static struct sequence s;
	unsigned int found = 0, i;
	bool ok = true;

	sabotage = true;
	for (i = 0; ok && i < 100; i++) {
		generate(&s, state);
		if (s.nr_pages > 64 || !fails(&s))
			continue;
		found++;
		shrink(&s);
		ok = is_least(&s);
	}
	sabotage = false;
	return ok && CHECK(found > 10);
}

/* ------------------------------------------------------------------------- */
/* Several processors                                                          */

#define NR_WORKERS	4
#define WORKER_STEPS	50000
#define WORKER_PAGES	16

static u64 shared_word;

/* Two threads of the creator, MM 0, and one each of MMs 1 and 2. */
struct worker {
	pthread_t thread;
	unsigned int mm;
	u64 random;
	u64 ptes, entire;		/* what it has mapped */
	s64 estimate, mapped;		/* sums of the differences that it saw */
	bool ok;
	char why[sizeof(why)];
};

/* @w has just changed its mappings by @delta: is what the add returned so? */
static bool worker_sees(struct worker *w, struct folio_mapcounts now, u64 delta)
{
	const struct folio_mapcounts before = { now.word - delta };
	const u64 pages = w->ptes + w->entire * WORKER_PAGES;

	w->estimate += folio_mapcounts_estimate(now, WORKER_PAGES);
	w->estimate -= folio_mapcounts_estimate(before, WORKER_PAGES);
	w->mapped += folio_mapcounts_mapped(now);
	w->mapped -= folio_mapcounts_mapped(before);
	return CHECK(folio_mapcounts_creator_possible(now, WORKER_PAGES)) &&
	       CHECK(folio_mapcounts_ptes(now) >= w->ptes) &&
	       CHECK(folio_mapcounts_entire(now) >= w->entire) &&
	       CHECK(folio_mapcounts_pages(now, WORKER_PAGES) >= pages) &&
	       CHECK(w->mm || folio_mapcounts_creator(now) >= pages) &&
	       CHECK(!w->mm || !pages ||
		     !folio_mapcounts_creator_only(now, WORKER_PAGES));
}

static bool worker_change(struct worker *w, u64 nr_ptes, u64 nr_entire, bool map)
{
	u64 delta = folio_mapcounts_delta_ptes(nr_ptes, !w->mm) +
		    nr_entire * folio_mapcounts_delta_entire(WORKER_PAGES, !w->mm);
	struct folio_mapcounts now;

	if (!map)
		delta = -delta;
	now.word = __atomic_add_fetch(&shared_word, delta, __ATOMIC_SEQ_CST);
	w->ptes += map ? nr_ptes : -nr_ptes;
	w->entire += map ? nr_entire : -nr_entire;
	return worker_sees(w, now, delta);
}

static void *worker_run(void *arg)
{
	struct worker *w = arg;
	int i;

	w->ok = true;
	for (i = 0; w->ok && i < WORKER_STEPS; i++) {
		const bool map = rnd(&w->random, 2);
		const u64 ptes = rnd(&w->random, (map ? WORKER_PAGES : w->ptes) + 1);

		if (rnd(&w->random, 4))
			w->ok = worker_change(w, ptes, 0, map);
		else if (map || w->entire)
			w->ok = worker_change(w, 0, 1, map);
	}
	if (w->ok)
		w->ok = worker_change(w, w->ptes, w->entire, false);
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
	s64 estimate = 0, mapped = 0;
	bool ok = true;
	int i;

	shared_word = 0;
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
		mapped += workers[i].mapped;
		if (!workers[i].ok)
			ok = fail("MM %u: %s", workers[i].mm, workers[i].why);
	}
	return ok && EXPECT(shared_word, 0) && EXPECT(estimate, 0) && EXPECT(mapped, 0);
}

static const struct {
	const char *name;
	bool (*run)(u64 *state);
} tests[] = {
	{ "fields", test_fields },
	{ "answers", test_answers },
	{ "deltas", test_deltas },
	{ "bounds", test_bounds },
	{ "underflow", test_underflow },
	{ "sequences", test_sequences },
	{ "shrinking", test_shrinking },
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
		const bool ok = tests[i].run(&state);

		if (!ok)
			printf("# %s\n", why);
		printf("%sok %u %s\n", ok ? "" : "not ", i + 1, tests[i].name);
		failed += !ok;
	}
	return failed > 0;
}
