// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for the packed mapcount of a large folio: its fields, what is derived from a
 * snapshot, and what each operation adds. Literal numbers are not taken from the
 * header on purpose.
 */
#include <kunit/test.h>
#include <linux/folio_mapcounts.h>
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
static const struct answers {
	const char *desc;
	unsigned long nr_pages;
	u32 ptes, pmds, creator;		/* the snapshot */
	unsigned long nr_mapped, nr_pmdmapped;	/* the answers */
	bool exclusive, partial;
} answers_table[] = {
	{ "unmapped", 512, 0, 0, 0, 0, 0, .exclusive = true },
	{ "one PTE of the creator", 512, 1, 0, 1, 1, 0, .exclusive = true, .partial = true },
	{ "one PTE of another MM", 512, 1, 0, 0, 1, 0, .partial = true },
	{ "order 1, one PTE", 2, 1, 0, 1, 1, 0, .exclusive = true, .partial = true },
	{ "order 1, all PTEs", 2, 2, 0, 2, 2, 0, .exclusive = true },
	{ "all but one PTE", NR, NR - 1, 0, NR - 1, NR - 1, 0, .exclusive = true, .partial = true },
	{ "all PTEs", NR, NR, 0, NR, NR, 0, .exclusive = true },
	{ "all PTEs, and one of another MM", NR, NR + 1, 0, NR, NR, 0 },
	{ "half and half, maybe the same pages", NR, NR, 0, NR / 2, NR, 0 },
	{ "PMD of the creator", NR, 0, 1, 1, NR, NR, .exclusive = true },
	{ "PMD of another MM", NR, 0, 1, 0, NR, NR },
	{ "PMD and one PTE of the creator", NR, 1, 1, 2, NR, NR, .exclusive = true },
	{ "PMD of the creator, PTE of another MM", NR, 1, 1, 1, NR, NR },
	{ "two PMDs, one mapped", 2 * NR, 0, 1, 1, NR, NR, .exclusive = true, .partial = true },
	{ "two PMDs, one of them and PTEs", 2 * NR, NR - 1, 1, NR, 2 * NR - 1, NR,
	  .exclusive = true, .partial = true },
	{ "two PMDs, both", 2 * NR, 0, 2, 2, 2 * NR, 2 * NR, .exclusive = true },
	{ "two PMDs, both, and a PTE", 2 * NR, 1, 2, 3, 2 * NR, 2 * NR, .exclusive = true },
	{ "two PMDs, by PTEs", 2 * NR, 2 * NR, 0, 2 * NR, 2 * NR, 0, .exclusive = true },
	{ "the last count that is exact", NR, 4 * NR - 1, 0, 4 * NR - 1, NR, 0, .exclusive = true },
	{ "creator wrapped to 0", NR, 4 * NR, 0, 0, NR, 0 },
	{ "creator wrapped to 1", NR, 4 * NR + 1, 0, 1, NR, 0 },
	{ "ptes at the bound", NR, 1U << 30, 0, 0, NR, 0 },
	{ "pmds at the bound", NR, 0, 1U << (30 - P), CREATOR_TOP, NR, NR },
	{ "both fields full", NR, PTES_TOP, PMDS_TOP, 0, NR, NR },
};

KUNIT_ARRAY_PARAM_DESC(answers, answers_table, desc);

static void test_answers(struct kunit *test)
{
	const struct answers *a = test->param_value;
	const struct folio_mapcounts mc = make(a->ptes, a->pmds, a->creator);
	const unsigned long pages = a->ptes + a->pmds * NR;

	KUNIT_EXPECT_EQ(test, mapcounts_ptes(mc), a->ptes);
	KUNIT_EXPECT_EQ(test, mapcounts_pmds(mc), a->pmds);
	KUNIT_EXPECT_EQ(test, mapcounts_creator(mc), a->creator);
	KUNIT_EXPECT_EQ(test, mapcounts_mapped(mc), pages > 0);
	KUNIT_EXPECT_EQ(test, mapcounts_entries(mc), a->ptes + a->pmds);
	KUNIT_EXPECT_EQ(test, mapcounts_bound_pages(mc), pages);
	KUNIT_EXPECT_EQ(test, mapcounts_exclusive(mc), a->exclusive);
	KUNIT_EXPECT_TRUE(test, mapcounts_valid(mc));
	if (a->pmds && PMD_NR != NR)
		kunit_skip(test, "PMDs map fewer pages here");
	KUNIT_EXPECT_EQ(test, mapcounts_pages(mc), pages);
	KUNIT_EXPECT_EQ(test, mapcounts_nr_mapped(mc, a->nr_pages, false), a->nr_mapped);
	KUNIT_EXPECT_EQ(test, mapcounts_nr_pmdmapped(mc, a->nr_pages), a->nr_pmdmapped);
	KUNIT_EXPECT_EQ(test, mapcounts_partial(mc, a->nr_pages), a->partial);
	KUNIT_EXPECT_EQ(test, mapcounts_average(mc, a->nr_pages),
			div64_u64((u64)pages + a->nr_pages - 1, a->nr_pages));
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

	KUNIT_EXPECT_EQ(test, size, mapcounts_share(make(0, 0, 0), nr_pages, false, size));
	KUNIT_EXPECT_EQ(test, size, mapcounts_share(make(8192, 0, 0), nr_pages, false, size));
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

		KUNIT_EXPECT_EQ_MSG(test, table[i].valid, mapcounts_valid(mc), "table[%d]", i);
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
	{ "first PTE, not the creator", 1, 0, false, { 0, 0, 0 }, { 1, 0, 0 } },
	{ "first PTE, the creator", 1, 0, true, { 0, 0, 0 }, { 1, 0, 1 } },
	{ "batch of 3", 3, 0, true, { 3, 1, 2 }, { 6, 1, 5 } },
	{ "all PTEs", NR, 0, true, { 0, 0, 0 }, { NR, 0, NR } },
	{ "all PTEs, not the creator", NR, 0, false, { NR, 0, NR }, { 2 * NR, 0, NR } },
	{ "PMD of the creator", 0, 1, true, { 0, 0, 0 }, { 0, 1, 1 } },
	{ "PMD, not the creator", 0, 1, false, { 0, 1, 1 }, { 0, 2, 1 } },
	{ "PUD of the creator", 0, NR, true, { 0, 0, 0 }, { 0, NR, NR } },
	{ "split of the creator's PMD", NR, -1, true, { 0, 1, 1 }, { NR, 0, NR } },
	{ "split of one PMD of two", NR, -1, true, { 3, 2, 5 }, { NR + 3, 1, NR + 4 } },
	{ "split, not the creator", NR, -1, false, { 3, 2, 2 }, { NR + 3, 1, 2 } },
	{ "creator carries out at the top", 4, 0, true,
	  { 4 * NR - 2, 3, CREATOR_TOP - 1 }, { 4 * NR + 2, 3, 2 } },
	{ "ptes at the bound leave pmds alone", NR, 0, false,
	  { 1U << 30, 3, 3 }, { (1U << 30) + NR, 3, 3 } },
	{ "ptes up to the top of the field", 1, 0, false,
	  { PTES_TOP - 1, 0, 0 }, { PTES_TOP, 0, 0 } },
	{ "pmds at the bound leave creator alone", 0, 1, false,
	  { 3, 1U << (30 - P), 3 }, { 3, (1U << (30 - P)) + 1, 3 } },
	{ "pmds up to the top of the field", 0, 1, false,
	  { 0, PMDS_TOP - 1, 0 }, { 0, PMDS_TOP, 0 } },
};

KUNIT_ARRAY_PARAM_DESC(transitions, transitions_table, desc);

static void test_transitions(struct kunit *test)
{
	const struct transition *t = test->param_value;
	struct folio_mapcounts mc = make(t->before.ptes, t->before.pmds, t->before.creator);
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
	KUNIT_EXPECT_EQ(test, (ptes & pmds) | (ptes & creator) | (pmds & creator), 0ULL);
	KUNIT_EXPECT_EQ(test, make(PTES_TOP, 0, 0).val, ptes);
	KUNIT_EXPECT_EQ(test, make(0, PMDS_TOP, 0).val, pmds);
	KUNIT_EXPECT_EQ(test, make(0, 0, CREATOR_TOP).val, creator);
	/* What a page table can have, three times over, is exact. */
	KUNIT_EXPECT_GE(test, CREATOR_TOP, 3 * NR);
	/* At the bound, all fields are half full at most. */
	KUNIT_EXPECT_EQ(test, mapcounts_bound_pages(make(0, PMDS_TOP / 2 + 1, 0)), 1UL << 30);
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

static struct kunit_case folio_mapcounts_test_cases[] = {
	KUNIT_CASE(test_fields),
	KUNIT_CASE_PARAM(test_answers, answers_gen_params),
	KUNIT_CASE_PARAM(test_anon_estimate, anon_estimate_gen_params),
	KUNIT_CASE_PARAM(test_share, sharing_gen_params),
	KUNIT_CASE(test_share_bounds),
	KUNIT_CASE(test_valid),
	KUNIT_CASE_PARAM(test_transitions, transitions_gen_params),
	KUNIT_CASE(test_creator_wrap),
	{}
};

static struct kunit_suite folio_mapcounts_test_suite = {
	.name = "folio_mapcounts",
	.test_cases = folio_mapcounts_test_cases,
};

kunit_test_suite(folio_mapcounts_test_suite);

MODULE_DESCRIPTION("Tests for the packed mapcount of a large folio");
MODULE_LICENSE("GPL");
