// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests in user space of the packed mapcount of a large folio.
 *
 * The kernel's header is compiled as it is. Random sequences of what rmap does to
 * a folio are applied to the mapcounts, by the deltas of the header, and to a model
 * that remembers how often each MM maps each page. After each operation, all that
 * the header derives from the mapcounts is compared with what the model knows. What
 * comes as a literal number here is not taken from the header on purpose.
 *
 *	folio_mapcounts [-s SEED] [-n SEQUENCES]
 *
 * TEST_P is how many bits index the largest page table, TEST_PMD_ORDER how many
 * index those in use: on ppc64 these are not the same.
 */
#include <limits.h>
#include <pthread.h>
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
#define MAX_STEPS	80

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

/* Say what failed. */
#define EXPECT(expr, want) ({							\
	const s64 got_ = (s64)(expr), want_ = (s64)(want);			\
										\
	if (got_ != want_)							\
		printf("# %s: %lld, not %lld\n", #expr, (long long)got_,	\
		       (long long)want_);					\
	got_ == want_;								\
})

#define CHECK(cond)	EXPECT(!(cond), 0)

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

	return EXPECT(mapcounts_ptes(mc), ptes) && EXPECT(mapcounts_pmds(mc), pmds) &&
	       EXPECT(mapcounts_creator(mc), creator) &&
	       EXPECT(mapcounts_mapped(mc), ptes || pmds || creator) &&
	       EXPECT(mapcounts_entries(mc), ptes + pmds) && EXPECT(mapcounts_pages(mc), pages) &&
	       EXPECT(mapcounts_bound_pages(mc), ptes + (pmds << P)) &&
	       EXPECT(mapcounts_exclusive(mc), ptes + pmds == creator) &&
	       EXPECT(mapcounts_valid(mc), creator <= ptes + pmds) &&
	       estimates_agree(mc, pages, estimate_of(ptes, pmds, 0, nr_pages), nr_pages, false) &&
	       (creator > ptes + pmds ||
		estimates_agree(mc, pages, estimate_of(ptes, pmds, creator, nr_pages),
				nr_pages, true)) &&
	       EXPECT(mapcounts_nr_pmdmapped(mc, nr_pages), min_t(u64, by_pmd, nr_pages)) &&
	       EXPECT(mapcounts_average(mc, nr_pages), (pages + nr_pages - 1) / nr_pages) &&
	       EXPECT(mapcounts_partial(mc, nr_pages), pages > 0 && pages < nr_pages);
}

static bool test_answers(u64 *state)
{
	const unsigned long nr_pages = 2UL << rnd(state, 18);
	const u64 ptes = rnd_value(state, PTES_TOP);
	const u64 pmds = rnd_value(state, rnd(state, 2) ? PMDS_TOP : 3);
	const u64 few = rnd_value(state, 1 << P);
	u64 creator = rnd_value(state, CREATOR_TOP);

	/* Where equal is not likely by chance */
	if (rnd(state, 2))
		creator = (ptes + pmds + rnd(state, 3) - 1) & CREATOR_TOP;
	/* On 32 bit, only what can be mapped at all fits in a long. */
	if (sizeof(long) == 4 && ptes + (pmds << P) + nr_pages > ULONG_MAX)
		return true;
	return answers_agree(ptes, pmds, creator, nr_pages) &&
	       answers_agree(rnd_value(state, 2 * nr_pages), pmds, creator, nr_pages) &&
	       answers_agree(creator, 0, creator, nr_pages) &&
	       answers_agree(creator + rnd_value(state, 2 * nr_pages), 0, creator, nr_pages) &&
	       answers_agree(0, creator % PMDS_TOP, creator % PMDS_TOP, nr_pages) &&
	       /* Nothing is to be accounted when an MM adopts what one table maps. */
	       EXPECT(mapcounts_nr_mapped(make(few, 0, few), nr_pages, true),
		      mapcounts_nr_mapped(make(few, 0, 0), nr_pages, true));
}

static bool delta_adds(u64 delta, u64 before, s64 ptes, s64 pmds, s64 creator)
{
	return EXPECT(before + delta,
		      before + ptes + ((u64)pmds << 31) + ((u64)creator << (62 - P)));
}

static bool test_deltas(u64 *state)
{
	const u64 mc = make(BOUND / 2 + rnd_value(state, BOUND / 2),
			    1 + rnd_value(state, BOUND >> P), rnd_value(state, CREATOR_TOP)).val;
	const long nr = rnd_value(state, BOUND - 1);
	const long pmds = rnd_value(state, (BOUND >> P) - 2);
	const long less = rnd_value(state, BOUND / 2);

	return delta_adds(mapcounts_delta(nr, 0, false), mc, nr, 0, 0) &&
	       delta_adds(mapcounts_delta(nr, 0, true), mc, nr, 0, nr) &&
	       delta_adds(mapcounts_delta(-less, 0, false), mc, -less, 0, 0) &&
	       delta_adds(mapcounts_delta(-less, 0, true), mc, -less, 0, -less) &&
	       delta_adds(mapcounts_delta(0, pmds, false), mc, 0, pmds, 0) &&
	       delta_adds(mapcounts_delta(0, pmds, true), mc, 0, pmds, pmds) &&
	       delta_adds(mapcounts_delta(0, -1, true), mc, 0, -1, -1) &&
	       delta_adds(mapcounts_delta(PMD_NR, -1, false), mc, PMD_NR, -1, 0) &&
	       delta_adds(mapcounts_delta(PMD_NR, -1, true), mc, PMD_NR, -1, (s64)PMD_NR - 1) &&
	       delta_adds(MAPCOUNTS_CREATOR * (unsigned int)nr, mc, 0, 0, nr);
}

/* The fields fill the 64 bits and do not overlap; units, bounds and masks fit. */
static bool test_fields(u64 *state)
{
	(void)state;
	return EXPECT(sizeof(struct folio_mapcounts), 8) && EXPECT(MAPCOUNTS_PTES_MASK, PTES_TOP) &&
	       EXPECT(MAPCOUNTS_PMDS_MASK, PMDS_TOP << 31) &&
	       EXPECT(MAPCOUNTS_CREATOR_MASK, CREATOR_TOP << (62 - P)) &&
	       EXPECT(MAPCOUNTS_PTES_MASK + MAPCOUNTS_PMDS_MASK + MAPCOUNTS_CREATOR_MASK, ~0ULL) &&
	       EXPECT(MAPCOUNTS_PTE, 1) && EXPECT(MAPCOUNTS_PMD, 1ULL << 31) &&
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
	const u64 ptes = BOUND - (pmds << P) + rnd_value(state, (1 << 30) - (1 << 18));
	const u64 more = rnd_value(state, (BOUND >> P) - 1);
	const struct folio_mapcounts mc = make(ptes, pmds + more, 0);

	return EXPECT(mapcounts_bound_pages(make(BOUND - (pmds << P), pmds, 0)),
		      MAPCOUNTS_PAGES_MAX) && EXPECT(mapcounts_ptes(mc), ptes) &&
	       EXPECT(mapcounts_pmds(mc), pmds + more) &&
	       EXPECT(mapcounts_entries(mc), ptes + pmds + more);
}

/* PTEs that are unmapped too often do not leave what looks like an unmapped folio. */
static bool test_underflow(u64 *state)
{
	const u64 ptes = rnd_value(state, 10000);
	const long gone = ptes + 1 + rnd_value(state, BOUND);
	const u64 pmds = rnd_value(state, BOUND >> P);
	struct folio_mapcounts mc = make(ptes, pmds, rnd(state, CREATOR_TOP));

	mc.val += mapcounts_delta(-gone, 0, rnd(state, 2));
	return CHECK(mapcounts_mapped(mc)) && CHECK(mapcounts_ptes(mc) != ptes - gone);
}

/*
 * A PUD counts as the PMDs that it stands for: it is split into these, without a
 * change, and then one of these after the other into PTEs. The creator can have
 * three of them split (if all have as many PTEs), and be known to be the only one.
 */
static bool test_pud(u64 *state)
{
	const unsigned long nr = 1UL << P, nr_pages = nr * PMD_NR;
	struct folio_mapcounts mc = {};
	unsigned long split;

	(void)state;
	mc.val += mapcounts_delta(0, nr, true);
	for (split = 0; split <= nr; split++) {
		const u64 entries = nr + split * (PMD_NR - 1);

		if (!answers_agree(split * PMD_NR, nr - split, entries & CREATOR_TOP, nr_pages) ||
		    !EXPECT(mc.val, make(split * PMD_NR, nr - split, entries & CREATOR_TOP).val) ||
		    !EXPECT(mapcounts_exclusive(mc), entries <= CREATOR_TOP))
			return false;
		mc.val += mapcounts_delta(PMD_NR, -1, true);
	}
	return true;
}

/* The model */

/* What is mapped, as often as it is: PTEs by page, and behind these PMDs by part */
struct model {
	unsigned int nr_pages;
	unsigned int creator;				/* an MM, or NOBODY */
	u32 map[NR_MMS][MAX_PAGES + MAX_PARTS];
	struct folio_mapcounts mc;			/* what is to stand for that */
};

/* What counting every mapping gives. */
struct truth {
	u64 ptes, pmds, pages, creator;
	unsigned int distinct;			/* pages that are mapped */
	unsigned int creators, others;		/* PTEs of the creator, and of other MMs */
	bool twice;				/* some page is mapped twice */
	bool parties_twice;			/* of the creator, or of the others */
};

static u64 count(const struct model *m, unsigned int mm, unsigned int first, unsigned int nr)
{
	u64 sum = 0;

	while (nr--)
		sum += m->map[mm][first++];
	return sum;
}

static struct truth count_all(const struct model *m)
{
	struct truth t = {};
	unsigned int mm, i;

	for (mm = 0; mm < NR_MMS; mm++) {
		const u64 ptes = count(m, mm, 0, m->nr_pages);
		const u64 pmds = count(m, mm, MAX_PAGES, m->nr_pages / PMD_NR);

		t.ptes += ptes;
		t.pmds += pmds;
		t.creator += mm == m->creator ? ptes + pmds : 0;
	}
	t.pages = t.ptes + t.pmds * PMD_NR;
	for (i = 0; i < m->nr_pages; i++) {
		const u64 creator = m->creator == NOBODY ? 0 : m->map[m->creator][i];
		u64 here = 0;

		for (mm = 0; mm < NR_MMS; mm++)
			here += m->map[mm][i];
		t.creators += creator > 0;
		t.others += here > creator;
		t.parties_twice |= creator > 1 || here - creator > 1;
		for (mm = 0; mm < NR_MMS; mm++)
			here += m->map[mm][MAX_PAGES + i / PMD_NR];
		t.distinct += here > 0;
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
	const unsigned long file = mapcounts_nr_mapped(mc, nr_pages, false);
	const unsigned long anon = mapcounts_nr_mapped(mc, nr_pages, true);
	const bool partial = mapcounts_partial(mc, nr_pages);
	const bool in_part = t.distinct > 0 && t.distinct < nr_pages;

	return EXPECT(mc.val, make(t.ptes, t.pmds, t.creator & CREATOR_TOP).val) &&
	       answers_agree(t.ptes, t.pmds, t.creator & CREATOR_TOP, nr_pages) &&
	       EXPECT(mapcounts_exclusive(mc),
		      t.ptes + t.pmds == t.creator && t.creator <= CREATOR_TOP) &&
	       CHECK(mapcounts_valid(mc)) &&
	       CHECK(file >= t.distinct && file <= nr_pages && file <= t.pages) &&
	       CHECK(file == t.distinct || t.twice) &&
	       CHECK(2 * anon >= t.distinct && anon <= nr_pages && anon <= t.pages) &&
	       (t.pmds || t.parties_twice ||
		EXPECT(anon, t.creators > t.others ? t.creators : t.others)) &&
	       CHECK(!partial || in_part) && CHECK(partial == in_part || t.twice);
}

/* Map, or unmap if @times is negative. */
static void change(struct model *m, unsigned int mm, unsigned int first, unsigned int nr,
		   long times)
{
	const long all = nr * times;
	const bool pmd = first >= MAX_PAGES;
	unsigned int i;

	for (i = first; i < first + nr; i++)
		m->map[mm][i] += times;
	m->mc.val += mapcounts_delta(pmd ? 0 : all, pmd ? all : 0, mm == m->creator);
}

/* Map or unmap for MM @by what @mm maps. */
static void change_all(struct model *m, unsigned int mm, unsigned int by, int sign)
{
	unsigned int i;

	for (i = 0; i < MAX_PAGES + m->nr_pages / PMD_NR; i++)
		if (m->map[mm][i])
			change(m, by, i, 1, sign * (long)m->map[mm][i]);
}

static bool room_for(const struct model *m, u64 ptes, u64 pmds)
{
	return (m->mc.val & PTES_TOP) + ((m->mc.val >> 31 & PMDS_TOP) << P) <= BOUND &&
	       ptes + (pmds << P) <= BOUND / 2;
}

/* Map or unmap some pages, or a part by a PMD; as drivers do, who do not claim the folio. */
static void step_map(struct model *m, u64 *state, unsigned int mm, bool pmd, bool map)
{
	const bool claim = rnd(state, 8) > 0;
	unsigned int first = rnd(state, 2) ? rnd(state, m->nr_pages) : 0;
	unsigned int nr = rnd(state, 2) ? m->nr_pages : 1 + rnd(state, m->nr_pages);
	u32 times = rnd(state, 8) ? 1 : 1U << rnd(state, 20);
	unsigned int i;

	nr = min_t(unsigned int, nr, m->nr_pages - first);
	if (pmd) {
		if (m->nr_pages < PMD_NR)
			return;
		first = MAX_PAGES + first / PMD_NR;
		nr = 1;
	}
	if (map) {
		if (!room_for(m, pmd ? 0 : (u64)nr * times, pmd ? times : 0))
			return;
		if (!m->mc.val && claim)
			m->creator = mm;
		change(m, mm, first, nr, times);
		return;
	}
	for (i = first; i < first + nr; i++)
		times = min_t(u32, times, m->map[mm][i]);
	change(m, mm, first, nr, -(long)times);
}

static void step_adopt(struct model *m, unsigned int mm)
{
	const u64 entries = count(m, mm, 0, MAX_PAGES + m->nr_pages / PMD_NR);
	const struct truth t = count_all(m);

	if (m->creator == mm || !entries || entries != t.ptes + t.pmds)
		return;
	m->creator = mm;
	m->mc.val += MAPCOUNTS_CREATOR * (unsigned int)entries;
}

/* Does nothing where there is nothing to do. */
static void step(struct model *m, u64 *state)
{
	const unsigned int mm = rnd(state, NR_MMS), child = rnd(state, NR_MMS);
	const unsigned int part = rnd(state, m->nr_pages) / PMD_NR;

	/* More is unmapped than mapped, so that small counts are common. */
	switch (rnd(state, 16)) {
	case 0 ... 2:
		return step_map(m, state, mm, false, true);
	case 3 ... 6:
		return step_map(m, state, mm, false, false);
	case 7:
		return step_map(m, state, mm, true, true);
	case 8:
		return step_map(m, state, mm, true, false);
	case 9 ... 10:	/* fork */
		if (mm != child && room_for(m, count(m, mm, 0, m->nr_pages),
					    count(m, mm, MAX_PAGES, m->nr_pages / PMD_NR)))
			change_all(m, mm, child, 1);
		return;
	case 11 ... 12:	/* split */
		if (m->map[mm][MAX_PAGES + part] && room_for(m, PMD_NR, 0)) {
			change(m, mm, part * PMD_NR, PMD_NR, 1);
			change(m, mm, MAX_PAGES + part, 1, -1);
		}
		return;
	case 13:
		return step_adopt(m, mm);
	default:	/* exit */
		return change_all(m, mm, mm, -1);
	}
}

/* Random steps from an unmapped folio, and back to that */
static bool test_sequences(u64 *state)
{
	static const unsigned char orders[] = {
		1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, TEST_PMD_ORDER, TEST_PMD_ORDER,
		TEST_PMD_ORDER + 1, TEST_PMD_ORDER + 1, TEST_PMD_ORDER + 2,
	};
	static struct model m;
	unsigned int mm, nr = 1 + rnd(state, MAX_STEPS);

	memset(&m, 0, sizeof(m));
	m.nr_pages = 1U << orders[rnd(state, ARRAY_SIZE(orders))];
	m.creator = NOBODY;
	while (nr--) {
		step(&m, state);
		if (!model_agrees(&m))
			return false;
	}
	for (mm = 0; mm < NR_MMS; mm++)
		change_all(&m, mm, mm, -1);
	return model_agrees(&m) && EXPECT(m.mc.val, 0);
}

/* Several processors */

#define NR_WORKERS	4
#define WORKER_STEPS	50000

static u64 shared_mapcounts;

/* Two threads of the creator, MM 0, and one each of MMs 1 and 2. */
struct worker {
	pthread_t thread;
	unsigned int mm;
	u64 random, ptes, pmds;		/* what it has mapped */
	bool ok;
};

/* Change its mappings: does the result include them? */
static bool worker_change(struct worker *w, long ptes, long pmds)
{
	const u64 delta = mapcounts_delta(ptes, pmds, !w->mm);
	const struct folio_mapcounts now = {
		__atomic_add_fetch(&shared_mapcounts, delta, __ATOMIC_SEQ_CST)
	};
	const u64 entries = (w->ptes += ptes) + (w->pmds += pmds);

	return CHECK(mapcounts_valid(now)) &&
	       CHECK(mapcounts_ptes(now) >= w->ptes && mapcounts_pmds(now) >= w->pmds) &&
	       CHECK(w->mm || mapcounts_creator(now) >= entries) &&
	       CHECK(!w->mm || !entries || !mapcounts_exclusive(now));
}

static void *worker_run(void *arg)
{
	struct worker *w = arg;
	int i;

	for (i = 0; w->ok && i < WORKER_STEPS; i++) {
		const bool map = rnd(&w->random, 2);
		const long ptes = rnd(&w->random, map ? 17 : w->ptes + 1);
		const long pmds = rnd(&w->random, map ? 3 : w->pmds + 1);

		w->ok = worker_change(w, map ? ptes : -ptes, map ? pmds : -pmds);
	}
	w->ok = w->ok && worker_change(w, -(long)w->ptes, -(long)w->pmds);
	return NULL;
}

/* Nobody sees fields that contradict each other, and nothing is left. */
static bool test_concurrent(u64 *state)
{
	struct worker workers[NR_WORKERS];
	bool ok = true;
	int i;

	for (i = 0; i < NR_WORKERS; i++) {
		workers[i] = (struct worker){
			.mm = i / 2 + i / 3, .random = rnd_next(state), .ok = true
		};
		if (pthread_create(&workers[i].thread, NULL, worker_run, &workers[i]))
			return false;
	}
	while (i--) {
		pthread_join(workers[i].thread, NULL);
		ok &= workers[i].ok;
	}
	return ok && EXPECT(shared_mapcounts, 0);
}

static const struct {
	const char *name;
	bool (*run)(u64 *state);
	unsigned int times;
} tests[] = {
	{ "fields", test_fields },
	{ "answers", test_answers, 100000 },
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
		if (c == 's')
			seed = strtoull(optarg, NULL, 0);
		else if (c == 'n')
			nr_sequences = strtoul(optarg, NULL, 0);
		else
			return 2;
	}

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("KTAP version 1\n1..%u\n# seed %llu\n", nr, (unsigned long long)seed);
	for (i = 0; i < nr; i++) {
		u64 state = seed;
		unsigned int left = tests[i].run == test_sequences ? nr_sequences :
								    tests[i].times;
		bool ok;

		do
			ok = tests[i].run(&state);
		while (ok && left-- > 1);
		printf("%sok %u %s\n", ok ? "" : "not ", i + 1, tests[i].name);
		failed += !ok;
	}
	return failed > 0;
}
