// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for the packed mapcount of a large folio: its fields, what is derived from a
 * snapshot, and what each operation adds. Literal numbers are not taken from the
 * header on purpose.
 */
#include <kunit/test.h>
#include <linux/folio_mapcounts.h>
#include <linux/prandom.h>
#include <linux/sizes.h>
#include <linux/string.h>

#define P		ilog2(MAX_PTRS_PER_PTE)
#define PTES_TOP	0x7fffffffU
#define PMDS_TOP	((1U << (31 - P)) - 1)
#define CREATOR_TOP	((4U << P) - 1)

/* Pages that a PMD maps, if the page tables are as large as can be: see PMD_NR. */
#define NR		BIT(P)

/* That is known at boot only on ppc64. */
#define PMD_NR		BIT(MAPCOUNTS_PMD_ORDER)

static struct folio_mapcounts make(u64 ptes, u64 pmds, u64 creator)
{
	return (struct folio_mapcounts){
		.val = ptes | pmds << 31 | creator << (62 - P),
	};
}

/* One snapshot, and the answer to every question about it. */
struct answers {
	const char *desc;
	/* the snapshot */
	u32 ptes, pmds, creator;
	unsigned long nr_pages;
	/* the answers */
	unsigned int entries;
	unsigned long pages, nr_mapped, nr_pmdmapped;
	bool exclusive, partial;
};

static const struct answers answers_table[] = {
	{
		.desc = "unmapped", .nr_pages = 512,
		.exclusive = true,
	}, {
		.desc = "one PTE of the creator", .nr_pages = 512,
		.ptes = 1, .creator = 1,
		.entries = 1, .pages = 1, .nr_mapped = 1,
		.exclusive = true, .partial = true,
	}, {
		.desc = "one PTE of another MM", .nr_pages = 512,
		.ptes = 1,
		.entries = 1, .pages = 1, .nr_mapped = 1,
		.partial = true,
	}, {
		.desc = "order 1, one PTE", .nr_pages = 2,
		.ptes = 1, .creator = 1,
		.entries = 1, .pages = 1, .nr_mapped = 1,
		.exclusive = true, .partial = true,
	}, {
		.desc = "order 1, all PTEs", .nr_pages = 2,
		.ptes = 2, .creator = 2,
		.entries = 2, .pages = 2, .nr_mapped = 2,
		.exclusive = true,
	}, {
		.desc = "all but one PTE", .nr_pages = NR,
		.ptes = NR - 1, .creator = NR - 1,
		.entries = NR - 1, .pages = NR - 1, .nr_mapped = NR - 1,
		.exclusive = true, .partial = true,
	}, {
		.desc = "all PTEs", .nr_pages = NR,
		.ptes = NR, .creator = NR,
		.entries = NR, .pages = NR, .nr_mapped = NR,
		.exclusive = true,
	}, {
		.desc = "all PTEs, and one of another MM", .nr_pages = NR,
		.ptes = NR + 1, .creator = NR,
		.entries = NR + 1, .pages = NR + 1, .nr_mapped = NR,
	}, {
		/* Maybe the same pages twice: that is not certain. */
		.desc = "half and half", .nr_pages = NR,
		.ptes = NR, .creator = NR / 2,
		.entries = NR, .pages = NR, .nr_mapped = NR,
	}, {
		.desc = "PMD of the creator", .nr_pages = NR,
		.pmds = 1, .creator = 1,
		.entries = 1, .pages = NR, .nr_mapped = NR, .nr_pmdmapped = NR,
		.exclusive = true,
	}, {
		.desc = "PMD of another MM", .nr_pages = NR,
		.pmds = 1,
		.entries = 1, .pages = NR, .nr_mapped = NR, .nr_pmdmapped = NR,
	}, {
		.desc = "PMD and one PTE of the creator", .nr_pages = NR,
		.ptes = 1, .pmds = 1, .creator = 2,
		.entries = 2, .pages = NR + 1, .nr_mapped = NR, .nr_pmdmapped = NR,
		.exclusive = true,
	}, {
		.desc = "PMD of the creator, PTE of another MM", .nr_pages = NR,
		.ptes = 1, .pmds = 1, .creator = 1,
		.entries = 2, .pages = NR + 1, .nr_mapped = NR, .nr_pmdmapped = NR,
	}, {
		.desc = "two PMDs, one mapped", .nr_pages = 2 * NR,
		.pmds = 1, .creator = 1,
		.entries = 1, .pages = NR, .nr_mapped = NR, .nr_pmdmapped = NR,
		.exclusive = true, .partial = true,
	}, {
		.desc = "two PMDs, one of them and PTEs", .nr_pages = 2 * NR,
		.ptes = NR - 1, .pmds = 1, .creator = NR,
		.entries = NR, .pages = 2 * NR - 1, .nr_mapped = 2 * NR - 1,
		.nr_pmdmapped = NR, .exclusive = true, .partial = true,
	}, {
		.desc = "two PMDs, both", .nr_pages = 2 * NR,
		.pmds = 2, .creator = 2,
		.entries = 2, .pages = 2 * NR, .nr_mapped = 2 * NR,
		.nr_pmdmapped = 2 * NR, .exclusive = true,
	}, {
		.desc = "two PMDs, both, and a PTE", .nr_pages = 2 * NR,
		.ptes = 1, .pmds = 2, .creator = 3,
		.entries = 3, .pages = 2 * NR + 1, .nr_mapped = 2 * NR,
		.nr_pmdmapped = 2 * NR, .exclusive = true,
	}, {
		.desc = "two PMDs, by PTEs", .nr_pages = 2 * NR,
		.ptes = 2 * NR, .creator = 2 * NR,
		.entries = 2 * NR, .pages = 2 * NR, .nr_mapped = 2 * NR,
		.exclusive = true,
	}, {
		.desc = "the last count that is exact", .nr_pages = NR,
		.ptes = 4 * NR - 1, .creator = 4 * NR - 1,
		.entries = 4 * NR - 1, .pages = 4 * NR - 1, .nr_mapped = NR,
		.exclusive = true,
	}, {
		.desc = "creator wrapped to 0", .nr_pages = NR,
		.ptes = 4 * NR, .creator = 0,
		.entries = 4 * NR, .pages = 4 * NR, .nr_mapped = NR,
	}, {
		.desc = "creator wrapped to 1", .nr_pages = NR,
		.ptes = 4 * NR + 1, .creator = 1,
		.entries = 4 * NR + 1, .pages = 4 * NR + 1, .nr_mapped = NR,
	}, {
		.desc = "ptes at the bound", .nr_pages = NR,
		.ptes = 1U << 30,
		.entries = 1 << 30, .pages = 1 << 30, .nr_mapped = NR,
	}, {
		.desc = "pmds at the bound", .nr_pages = NR,
		.pmds = 1U << (30 - P), .creator = CREATOR_TOP,
		.entries = 1 << (30 - P), .pages = 1 << 30, .nr_mapped = NR,
		.nr_pmdmapped = NR,
	}, {
		.desc = "both fields full", .nr_pages = NR,
		.ptes = PTES_TOP, .pmds = PMDS_TOP,
		.entries = PTES_TOP + PMDS_TOP,
		.pages = PTES_TOP + PMDS_TOP * NR, .nr_mapped = NR, .nr_pmdmapped = NR,
	},
};

KUNIT_ARRAY_PARAM_DESC(answers, answers_table, desc);

static void test_answers(struct kunit *test)
{
	const struct answers *a = test->param_value;
	const struct folio_mapcounts mc = make(a->ptes, a->pmds, a->creator);

	KUNIT_EXPECT_EQ(test, mapcounts_ptes(mc), a->ptes);
	KUNIT_EXPECT_EQ(test, mapcounts_pmds(mc), a->pmds);
	KUNIT_EXPECT_EQ(test, mapcounts_creator(mc), a->creator);
	KUNIT_EXPECT_EQ(test, mapcounts_mapped(mc), a->entries > 0);
	KUNIT_EXPECT_EQ(test, mapcounts_entries(mc), a->entries);
	KUNIT_EXPECT_EQ(test, mapcounts_bound_pages(mc), a->pages);
	KUNIT_EXPECT_EQ(test, mapcounts_exclusive(mc), a->exclusive);
	KUNIT_EXPECT_TRUE(test, mapcounts_valid(mc));
	if (a->pmds && PMD_NR != NR)
		kunit_skip(test, "PMDs map fewer pages here");
	KUNIT_EXPECT_EQ(test, mapcounts_pages(mc), a->pages);
	KUNIT_EXPECT_EQ(test, mapcounts_nr_mapped(mc, a->nr_pages, false),
			a->nr_mapped);
	KUNIT_EXPECT_EQ(test, mapcounts_nr_pmdmapped(mc, a->nr_pages),
			a->nr_pmdmapped);
	KUNIT_EXPECT_EQ(test, mapcounts_partial(mc, a->nr_pages), a->partial);
	KUNIT_EXPECT_EQ(test, mapcounts_average(mc, a->nr_pages),
			div64_u64((u64)a->pages + a->nr_pages - 1, a->nr_pages));
}

/* What the creator and the others map of an anonymous folio. */
struct anon_estimate {
	const char *desc;
	unsigned int ptes, pmds, creator;
	unsigned long nr_pages, estimate;
};

static const struct anon_estimate anon_estimate_table[] = {
	{ "unmapped", 0, 0, 0, 16, 0 },
	{ "one page of the creator", 1, 0, 1, 16, 1 },
	{ "one page of another MM", 1, 0, 0, 16, 1 },
	{ "all pages of the creator", 16, 0, 16, 16, 16 },
	{ "parent and child", 32, 0, 16, 16, 16 },
	{ "parent and child, both a part", 20, 0, 10, 16, 10 },
	{ "parent less than child", 18, 0, 8, 16, 10 },
	{ "child less than parent", 18, 0, 10, 16, 10 },
	{ "parent and two children, all a part", 30, 0, 10, 16, 16 },
	{ "two children, few pages", 9, 0, 3, 16, 6 },
	{ "one half each", 16, 0, 8, 16, 8 },
	{ "orphans", 14, 0, 0, 16, 14 },
	{ "many orphans", 140, 0, 0, 16, 16 },
	{ "PMD of another MM, PTE of the creator", 1, 1, 1, NR, NR },
	{ "PMD of the creator, PTE of another MM", 1, 1, 1, NR, NR },
	{ "two PMDs, one of them mapped by two MMs", 0, 2, 1, 4 * NR, 2 * NR },
	{ "the same after both were split", 2 * NR, 0, NR, 4 * NR, NR },
	{ "two PMDs, parent and child, by PTEs", 4 * NR, 0, 2 * NR, 2 * NR, 2 * NR },
	{ "the same, all but one page", 4 * NR - 2, 0, 2 * NR - 1, 2 * NR, 2 * NR - 1 },
	{ "four PMDs by PTEs, creator wrapped to 0", 4 * NR, 0, 0, 4 * NR, 4 * NR },
	{ "more PTEs, creator wrapped to 1", 4 * NR + 1, 0, 1, 8 * NR, 4 * NR },
};

KUNIT_ARRAY_PARAM_DESC(anon_estimate, anon_estimate_table, desc);

static void test_anon_estimate(struct kunit *test)
{
	const struct anon_estimate *a = test->param_value;

	if (a->pmds && PMD_NR != NR)
		kunit_skip(test, "PMDs map fewer pages here");
	KUNIT_EXPECT_EQ(test, a->estimate,
			mapcounts_nr_mapped(make(a->ptes, a->pmds, a->creator),
					    a->nr_pages, true));
}

/* What MMs map of one folio, and how many of them map that. */
struct sharing {
	const char *desc;
	unsigned long nr_pages;		/* 0: as many as 2 PMDs map */
	struct { u32 mms, ptes, pmds; } map[4];
};

static const struct sharing sharing_table[] = {
	{
		.desc = "unmapped",
	}, {
		.desc = "one MM, a part", .nr_pages = 512,
		.map = { { 1, 16, 0 } },
	}, {
		.desc = "one MM, a PMD",
		.map = { { 1, 0, 1 } },
	}, {
		.desc = "3 MMs, all pages", .nr_pages = 512,
		.map = { { 3, 512, 0 } },
	}, {
		.desc = "7 MMs, PMDs",
		.map = { { 7, 0, 1 } },
	}, {
		.desc = "half and half", .nr_pages = 512,
		.map = { { 2, 256, 0 } },
	}, {
		.desc = "8 MMs, few pages", .nr_pages = 512,
		.map = { { 8, 16, 0 } },
	}, {
		.desc = "33 MMs, few pages", .nr_pages = 512,
		.map = { { 33, 16, 0 } },
	}, {
		.desc = "a PMD and one PTE",
		.map = { { 1, 0, 1 }, { 1, 1, 0 } },
	}, {
		.desc = "PMDs and PTEs, also of one MM",
		.map = { { 3, 0, 1 }, { 1, 511, 0 }, { 1, 7, 2 }, { 5, 100, 0 } },
	}, {
		.desc = "unequal parts", .nr_pages = 16,
		.map = { { 1, 1, 0 }, { 1, 15, 0 }, { 1, 16, 0 }, { 1, 3, 0 } },
	}, {
		.desc = "many PTEs",
		.map = { { 10, 8192, 0 }, { 10, 0, 1 }, { 3, 77, 0 } },
	},
};

KUNIT_ARRAY_PARAM_DESC(sharing, sharing_table, desc);

/* Shares add up to the estimate, in bytes with 12 binary places: as in smaps. */
static void check_share(struct kunit *test, struct folio_mapcounts mc, bool anon)
{
	const struct sharing *s = test->param_value;
	const unsigned long nr_pages = s->nr_pages ?: 2 * PMD_NR;
	const u64 unit = (u64)SZ_64K << 12;
	u64 sum = 0, shares = 0, whole;
	int i;

	for (i = 0; i < ARRAY_SIZE(s->map); i++) {
		const u64 pages = s->map[i].ptes + s->map[i].pmds * PMD_NR;
		const u64 share = mapcounts_share(mc, nr_pages, anon, pages * unit);

		KUNIT_EXPECT_LE(test, share, pages * unit);
		sum += s->map[i].mms * share;
		shares += s->map[i].mms;
	}
	whole = mapcounts_nr_mapped(mc, nr_pages, anon) * unit;
	KUNIT_EXPECT_LE(test, sum, whole);
	KUNIT_EXPECT_GE(test, sum + shares, whole);
}

/* Whether there is no creator, or it is one of the first MMs */
static void test_share(struct kunit *test)
{
	const struct sharing *s = test->param_value;
	const u32 creator = s->map[0].ptes + s->map[0].pmds;
	struct folio_mapcounts mc = {};
	int i;

	for (i = 0; i < ARRAY_SIZE(s->map); i++)
		mc.val += s->map[i].mms *
			  make(s->map[i].ptes, s->map[i].pmds, 0).val;
	check_share(test, mc, false);
	check_share(test, mc, true);
	mc.val += MAPCOUNTS_CREATOR * creator;
	check_share(test, mc, false);
	check_share(test, mc, true);
}

/* The largest product: 8192 PTEs, in a table of 64K pages, of a 16 GiB folio. */
static void test_share_bounds(struct kunit *test)
{
	const unsigned long nr_pages = SZ_16G >> 16;
	const u64 size = (u64)8192 * SZ_64K << 12;

	KUNIT_EXPECT_EQ(test, size,
			mapcounts_share(make(0, 0, 0), nr_pages, false, size));
	KUNIT_EXPECT_EQ(test, size,
			mapcounts_share(make(8192, 0, 0), nr_pages, false, size));
	KUNIT_EXPECT_EQ(test, size / 2,
			mapcounts_share(make(2 * nr_pages, 0, 0), nr_pages, false, size));
	KUNIT_EXPECT_EQ(test, size >> 12,
			mapcounts_share(make(MAPCOUNTS_PAGES_MAX, 0, 0),
					nr_pages, false, size));
}

/* Counts of the creator that are certainly wrong, and those that may be right. */
static void test_valid(struct kunit *test)
{
	static const struct {
		unsigned int ptes, pmds, creator;
		bool valid;
	} table[] = {
		{ 0, 0, 1 },
		{ 15, 0, 16 },
		{ 15, 1, 17 },
		{ 3, 1, 4, true },
		{ 0, 0, CREATOR_TOP },
		{ CREATOR_TOP + 1, 0, CREATOR_TOP, true },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(table); i++) {
		const struct folio_mapcounts mc =
			make(table[i].ptes, table[i].pmds, table[i].creator);

		KUNIT_EXPECT_EQ_MSG(test, table[i].valid, mapcounts_valid(mc),
				    "table[%d]", i);
	}
}

/* One operation and its inverse. */
struct transition {
	const char *desc;
	long nr_ptes, nr_pmds;
	bool creator;
	struct { u32 ptes, pmds, creator; } before, after;
};

static const struct transition transitions_table[] = {
	{
		.desc = "first PTE, not the creator",
		.nr_ptes = 1,
		.after = { 1, 0, 0 },
	}, {
		.desc = "first PTE, the creator",
		.nr_ptes = 1, .creator = true,
		.after = { 1, 0, 1 },
	}, {
		.desc = "batch of 3",
		.nr_ptes = 3, .creator = true,
		.before = { 3, 1, 2 }, .after = { 6, 1, 5 },
	}, {
		.desc = "all PTEs",
		.nr_ptes = NR, .creator = true,
		.after = { NR, 0, NR },
	}, {
		.desc = "all PTEs, not the creator",
		.nr_ptes = NR,
		.before = { NR, 0, NR }, .after = { 2 * NR, 0, NR },
	}, {
		.desc = "PMD of the creator",
		.nr_pmds = 1, .creator = true,
		.after = { 0, 1, 1 },
	}, {
		.desc = "PMD, not the creator",
		.nr_pmds = 1,
		.before = { 0, 1, 1 }, .after = { 0, 2, 1 },
	}, {
		.desc = "PUD of the creator",
		.nr_pmds = NR, .creator = true,
		.after = { 0, NR, NR },
	}, {
		.desc = "split of the creator's PMD",
		.nr_ptes = NR, .nr_pmds = -1, .creator = true,
		.before = { 0, 1, 1 }, .after = { NR, 0, NR },
	}, {
		.desc = "split of one PMD of two",
		.nr_ptes = NR, .nr_pmds = -1, .creator = true,
		.before = { 3, 2, 5 }, .after = { NR + 3, 1, NR + 4 },
	}, {
		.desc = "split, not the creator",
		.nr_ptes = NR, .nr_pmds = -1,
		.before = { 3, 2, 2 }, .after = { NR + 3, 1, 2 },
	}, {
		.desc = "creator carries out at the top",
		.nr_ptes = 4, .creator = true,
		.before = { 4 * NR - 2, 3, CREATOR_TOP - 1 },
		.after = { 4 * NR + 2, 3, 2 },
	}, {
		.desc = "ptes at the bound leave pmds alone",
		.nr_ptes = NR,
		.before = { 1U << 30, 3, 3 }, .after = { (1U << 30) + NR, 3, 3 },
	}, {
		.desc = "ptes up to the top of the field",
		.nr_ptes = 1,
		.before = { PTES_TOP - 1, 0, 0 }, .after = { PTES_TOP, 0, 0 },
	}, {
		.desc = "pmds at the bound leave creator alone",
		.nr_pmds = 1,
		.before = { 3, 1U << (30 - P), 3 },
		.after = { 3, (1U << (30 - P)) + 1, 3 },
	}, {
		.desc = "pmds up to the top of the field",
		.nr_pmds = 1,
		.before = { 0, PMDS_TOP - 1, 0 }, .after = { 0, PMDS_TOP, 0 },
	},
};

KUNIT_ARRAY_PARAM_DESC(transitions, transitions_table, desc);

static void test_transitions(struct kunit *test)
{
	const struct transition *t = test->param_value;
	struct folio_mapcounts mc = make(t->before.ptes, t->before.pmds,
				    t->before.creator);
	const u64 before = mc.val;

	mc.val += mapcounts_delta(t->nr_ptes, t->nr_pmds, t->creator);
	KUNIT_EXPECT_EQ(test, mapcounts_ptes(mc), t->after.ptes);
	KUNIT_EXPECT_EQ(test, mapcounts_pmds(mc), t->after.pmds);
	KUNIT_EXPECT_EQ(test, mapcounts_creator(mc), t->after.creator);

	mc.val += mapcounts_delta(-t->nr_ptes, -t->nr_pmds, t->creator);
	KUNIT_EXPECT_EQ(test, mc.val, before);
}

/* The fields fill the packed mapcount, do not overlap, and read back alone. */
static void test_fields(struct kunit *test)
{
	const u64 ptes = MAPCOUNTS_PTES_MASK;
	const u64 pmds = MAPCOUNTS_PMDS_MASK;
	const u64 creator = MAPCOUNTS_CREATOR_MASK;

	KUNIT_EXPECT_EQ(test, ptes | pmds | creator, ~0ULL);
	KUNIT_EXPECT_EQ(test, (ptes & pmds) | (ptes & creator) |
			(pmds & creator), 0ULL);
	KUNIT_EXPECT_EQ(test, make(PTES_TOP, 0, 0).val, ptes);
	KUNIT_EXPECT_EQ(test, make(0, PMDS_TOP, 0).val, pmds);
	KUNIT_EXPECT_EQ(test, make(0, 0, CREATOR_TOP).val, creator);
	/* What a page table can have, three times over, is exact. */
	KUNIT_EXPECT_GE(test, CREATOR_TOP, 3 * NR);
	/* At the bound, all fields are half full at most. */
	KUNIT_EXPECT_EQ(test, mapcounts_bound_pages(make(0, PMDS_TOP / 2 + 1, 0)),
			1UL << 30);
	KUNIT_EXPECT_GE(test, NR, PMD_NR);
}

/*
 * The creator maps by more entries than its count can say, one by one, and unmaps
 * them again: never certain of being alone while it cannot know, and right as
 * soon as it can, with and without another MM.
 */
static void test_creator_wrap(struct kunit *test)
{
	const u64 one = mapcounts_delta(1, 0, true);
	const unsigned long exact = CREATOR_TOP;
	const unsigned long top = 3 * exact;
	unsigned long i;
	struct folio_mapcounts mc = make(0, 0, 0);

	for (i = 1; i <= top; i++) {
		const bool can_know = i <= exact;

		mc.val += one;
		if (mapcounts_exclusive(mc) != can_know)
			KUNIT_FAIL(test, "up, %lu pages", i);
	}
	/* Another MM comes while the count is wrapped ... */
	mc.val += mapcounts_delta(1, 0, false);
	for (i = top; i > 1; i--) {
		mc.val -= one;
		if (mapcounts_exclusive(mc))
			KUNIT_FAIL(test, "down, %lu pages and 1 of another MM", i - 1);
	}
	/* ... and goes. */
	mc.val -= mapcounts_delta(1, 0, false);
	KUNIT_EXPECT_TRUE(test, mapcounts_exclusive(mc));
	KUNIT_EXPECT_EQ(test, mc.val, one);
}

#define MODEL_PARTS	2
#define MODEL_MMS	3
#define MODEL_STEPS	20000
#define MODEL_SEED	20261121

/*
 * What the mapcounts stand for: every mapping, by MM (0 is the creator), of a folio
 * of two PMDs. All pages of a part are alike but for the first ones.
 */
struct model {
	unsigned int pte[MODEL_MMS][MODEL_PARTS][4];	/* of pages 0, 1, 2; and of all others */
	unsigned int pmd[MODEL_MMS][MODEL_PARTS];
	struct folio_mapcounts mc;
};

/* How many pages the elements of pte[][] stand for. */
static unsigned int model_nr(int i)
{
	return i < 3 ? 1 : PMD_NR - 3;
}

static unsigned int model_sum(int first, int end)
{
	unsigned int sum = 0;

	while (first < end)
		sum += model_nr(first++);
	return sum;
}

/* Map or unmap pages, if they all are mapped. */
static void model_ptes(struct model *m, int mm, int part, int first, int end, bool map)
{
	const long nr = model_sum(first, end);
	int i;

	for (i = first; !map && i < end; i++)
		if (!m->pte[mm][part][i])
			return;
	for (i = first; i < end; i++)
		m->pte[mm][part][i] += map ? 1 : -1;
	m->mc.val += mapcounts_delta(map ? nr : -nr, 0, mm == 0);
}

static void model_pmd(struct model *m, int mm, int part, bool map)
{
	if (!map && !m->pmd[mm][part])
		return;
	m->pmd[mm][part] += map ? 1 : -1;
	m->mc.val += mapcounts_delta(0, map ? 1 : -1, mm == 0);
}

static void model_split(struct model *m, int mm, int part)
{
	int i;

	if (!m->pmd[mm][part])
		return;
	m->pmd[mm][part]--;
	for (i = 0; i < 4; i++)
		m->pte[mm][part][i]++;
	m->mc.val += mapcounts_delta(PMD_NR, -1, mm == 0);
}

static void model_step(struct model *m, struct rnd_state *rnd)
{
	const u32 r = prandom_u32_state(rnd);
	const int mm = r % MODEL_MMS, first = (r >> 8) % 4;
	const int part = (r >> 12) % MODEL_PARTS;
	const int end = first + 1 + (r >> 16) % (4 - first);

	/* More is unmapped than mapped, so that small counts are common. */
	switch ((r >> 24) % 8) {
	case 0 ... 1:
		return model_ptes(m, mm, part, first, end, true);
	case 2 ... 4:
		return model_ptes(m, mm, part, first, end, false);
	case 5:
		return model_pmd(m, mm, part, true);
	case 6:
		return model_pmd(m, mm, part, false);
	default:
		return model_split(m, mm, part);
	}
}

/* The truth, from every mapping, against the answers from the mapcounts. */
static bool model_agrees(const struct model *m)
{
	const unsigned long nr_pages = MODEL_PARTS * PMD_NR;
	unsigned long entries = 0, pages = 0, creator = 0, distinct = 0, estimate;
	unsigned long by_pmd = 0, anon;
	bool twice = false;
	int mm, part, i;

	for (part = 0; part < MODEL_PARTS; part++) {
		unsigned int pmds = 0;

		for (mm = 0; mm < MODEL_MMS; mm++)
			pmds += m->pmd[mm][part];
		creator += m->pmd[0][part];
		entries += pmds;
		pages += pmds * PMD_NR;
		by_pmd += pmds * PMD_NR;
		for (i = 0; i < 4; i++) {
			unsigned int ptes = 0;

			for (mm = 0; mm < MODEL_MMS; mm++)
				ptes += m->pte[mm][part][i];
			creator += m->pte[0][part][i] * model_nr(i);
			entries += ptes * model_nr(i);
			pages += ptes * model_nr(i);
			distinct += (ptes || pmds) * model_nr(i);
			twice |= ptes + pmds > 1;
		}
	}

	estimate = mapcounts_nr_mapped(m->mc, nr_pages, false);
	anon = mapcounts_nr_mapped(m->mc, nr_pages, true);
	return mapcounts_entries(m->mc) == entries &&
	       mapcounts_mapped(m->mc) == (entries > 0) &&
	       mapcounts_pages(m->mc) == pages &&
	       mapcounts_exclusive(m->mc) ==
			(entries == creator && entries <= CREATOR_TOP) &&
	       mapcounts_nr_pmdmapped(m->mc, nr_pages) == min(by_pmd, nr_pages) &&
	       estimate >= distinct && estimate <= nr_pages &&
	       (twice || estimate == distinct) &&
	       anon <= estimate && 2 * anon >= distinct &&
	       /* certain only: true implies it, and where it can be told it is. */
	       (!mapcounts_partial(m->mc, nr_pages) ||
		(distinct > 0 && distinct < nr_pages)) &&
	       (twice || mapcounts_partial(m->mc, nr_pages) ==
			 (distinct > 0 && distinct < nr_pages));
}

static void test_model(struct kunit *test)
{
	struct model *m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);
	struct rnd_state rnd;
	int step, mm, part, i;

	KUNIT_ASSERT_NOT_NULL(test, m);
	prandom_seed_state(&rnd, MODEL_SEED);
	for (step = 0; step < MODEL_STEPS; step++) {
		model_step(m, &rnd);
		if (!model_agrees(m)) {
			KUNIT_FAIL(test, "step %d from seed %d: mapcounts %#llx",
				   step, MODEL_SEED, m->mc.val);
			return;
		}
	}

	/* Everything is unmapped in the end, and nothing may be left over. */
	for (mm = 0; mm < MODEL_MMS; mm++) {
		for (part = 0; part < MODEL_PARTS; part++) {
			while (m->pmd[mm][part])
				model_pmd(m, mm, part, false);
			for (i = 0; i < 4; i++)
				while (m->pte[mm][part][i])
					model_ptes(m, mm, part, i, i + 1, false);
		}
	}
	KUNIT_EXPECT_EQ(test, m->mc.val, 0ULL);
}

static struct kunit_case folio_mapcounts_test_cases[] = {
	KUNIT_CASE(test_fields),
	KUNIT_CASE_PARAM(test_answers, answers_gen_params),
	KUNIT_CASE_PARAM(test_anon_estimate, anon_estimate_gen_params),
	KUNIT_CASE_PARAM(test_share, sharing_gen_params),
	KUNIT_CASE(test_share_bounds),
	KUNIT_CASE(test_valid),
	KUNIT_CASE_PARAM(test_transitions, transitions_gen_params),
	KUNIT_CASE(test_creator_wrap),
	KUNIT_CASE(test_model),
	{}
};

static struct kunit_suite folio_mapcounts_test_suite = {
	.name = "folio_mapcounts",
	.test_cases = folio_mapcounts_test_cases,
};

kunit_test_suite(folio_mapcounts_test_suite);

MODULE_DESCRIPTION("Tests for the packed mapcount of a large folio");
MODULE_LICENSE("GPL");
