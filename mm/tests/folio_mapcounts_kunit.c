// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for the word that counts the mappings of a large folio: its fields,
 * what is derived from a snapshot, and what each operation adds.
 */
#include <kunit/test.h>
#include <linux/folio_mapcounts.h>
#include <linux/prandom.h>
#include <linux/sizes.h>
#include <linux/string.h>

#define PTES_TOP	((u32)~0U)
#define ENTIRE_TOP	((1U << FOLIO_MAPCOUNTS_ENTIRE_BITS) - 1)
#define CREATOR_TOP	((1U << FOLIO_MAPCOUNTS_CREATOR_BITS) - 1)

static struct folio_mapcounts make(u64 ptes, u64 entire, u64 creator)
{
	return (struct folio_mapcounts){
		.word = ptes | entire << 32 | creator << 50,
	};
}

/* One snapshot, and the answer to every question about it. */
struct answers {
	const char *desc;
	/* the snapshot */
	u32 ptes, entire, creator;
	unsigned long nr_pages;
	/* the answers */
	int total;
	u64 pages;
	unsigned long estimate;
	bool mapped, creator_only, partial;
};

static const struct answers answers_table[] = {
	{
		.desc = "unmapped", .nr_pages = 512,
		.creator_only = true,
	}, {
		.desc = "one PTE of the creator", .nr_pages = 512,
		.ptes = 1, .creator = 1,
		.total = 1, .pages = 1, .estimate = 1,
		.mapped = true, .creator_only = true, .partial = true,
	}, {
		.desc = "one PTE of another MM", .nr_pages = 512,
		.ptes = 1,
		.total = 1, .pages = 1, .estimate = 1,
		.mapped = true, .partial = true,
	}, {
		.desc = "order 1, one PTE", .nr_pages = 2,
		.ptes = 1, .creator = 1,
		.total = 1, .pages = 1, .estimate = 1,
		.mapped = true, .creator_only = true, .partial = true,
	}, {
		.desc = "order 1, all PTEs", .nr_pages = 2,
		.ptes = 2, .creator = 2,
		.total = 2, .pages = 2, .estimate = 2,
		.mapped = true, .creator_only = true,
	}, {
		.desc = "all but one PTE", .nr_pages = 512,
		.ptes = 511, .creator = 511,
		.total = 511, .pages = 511, .estimate = 511,
		.mapped = true, .creator_only = true, .partial = true,
	}, {
		.desc = "all PTEs", .nr_pages = 512,
		.ptes = 512, .creator = 512,
		.total = 512, .pages = 512, .estimate = 512,
		.mapped = true, .creator_only = true,
	}, {
		.desc = "all PTEs, and one of another MM", .nr_pages = 512,
		.ptes = 513, .creator = 512,
		.total = 513, .pages = 513, .estimate = 512,
		.mapped = true,
	}, {
		/* Maybe the same 256 pages twice: that is not certain. */
		.desc = "half and half", .nr_pages = 512,
		.ptes = 512, .creator = 256,
		.total = 512, .pages = 512, .estimate = 512,
		.mapped = true,
	}, {
		.desc = "PMD of the creator", .nr_pages = 512,
		.entire = 1, .creator = 512,
		.total = 1, .pages = 512, .estimate = 512,
		.mapped = true, .creator_only = true,
	}, {
		.desc = "PMD of another MM", .nr_pages = 512,
		.entire = 1,
		.total = 1, .pages = 512, .estimate = 512,
		.mapped = true,
	}, {
		.desc = "PMD and one PTE of the creator", .nr_pages = 512,
		.ptes = 1, .entire = 1, .creator = 513,
		.total = 2, .pages = 513, .estimate = 512,
		.mapped = true, .creator_only = true,
	}, {
		.desc = "PMD of the creator, PTE of another MM", .nr_pages = 512,
		.ptes = 1, .entire = 1, .creator = 512,
		.total = 2, .pages = 513, .estimate = 512,
		.mapped = true,
	}, {
		/* The most that one MM maps of an anonymous folio: arm64, 64K. */
		.desc = "8192 pages by PTEs", .nr_pages = 8192,
		.ptes = 8192, .creator = 8192,
		.total = 8192, .pages = 8192, .estimate = 8192,
		.mapped = true, .creator_only = true,
	}, {
		.desc = "8192 pages by a PMD", .nr_pages = 8192,
		.entire = 1, .creator = 8192,
		.total = 1, .pages = 8192, .estimate = 8192,
		.mapped = true, .creator_only = true,
	}, {
		.desc = "the last count that is exact", .nr_pages = 8192,
		.ptes = 16383, .creator = 16383,
		.total = 16383, .pages = 16383, .estimate = 8192,
		.mapped = true, .creator_only = true,
	}, {
		.desc = "creator wrapped to 0", .nr_pages = 8192,
		.ptes = 16384, .creator = 0,
		.total = 16384, .pages = 16384, .estimate = 8192,
		.mapped = true,
	}, {
		.desc = "creator wrapped to 0 by PMDs", .nr_pages = 8192,
		.entire = 2, .creator = 0,
		.total = 2, .pages = 16384, .estimate = 8192,
		.mapped = true,
	}, {
		.desc = "creator wrapped to 1", .nr_pages = 8192,
		.ptes = 16385, .creator = 1,
		.total = 16385, .pages = 16385, .estimate = 8192,
		.mapped = true,
	}, {
		.desc = "a PUD of 2^18 pages", .nr_pages = 1UL << 18,
		.entire = 1,
		.total = 1, .pages = 1UL << 18, .estimate = 1UL << 18,
		.mapped = true,
	}, {
		.desc = "ptes at the bound", .nr_pages = 512,
		.ptes = FOLIO_MAPCOUNTS_PTES_MAX,
		.total = 1 << 30, .pages = 1 << 30, .estimate = 512,
		.mapped = true,
	}, {
		.desc = "entire at the bound", .nr_pages = 512,
		.entire = FOLIO_MAPCOUNTS_ENTIRE_MAX,
		.total = 1 << 17, .pages = 1 << 26, .estimate = 512,
		.mapped = true,
	}, {
		.desc = "both at the bound", .nr_pages = 512,
		.ptes = FOLIO_MAPCOUNTS_PTES_MAX,
		.entire = FOLIO_MAPCOUNTS_ENTIRE_MAX, .creator = CREATOR_TOP,
		.total = (1 << 30) + (1 << 17),
		.pages = (1 << 30) + (1 << 26), .estimate = 512,
		.mapped = true,
	}, {
		.desc = "entire full", .nr_pages = 1UL << 18,
		.entire = ENTIRE_TOP,
		.total = ENTIRE_TOP, .pages = (u64)ENTIRE_TOP << 18,
		.estimate = 1UL << 18,
		.mapped = true,
	},
};

KUNIT_ARRAY_PARAM_DESC(answers, answers_table, desc);

static void test_answers(struct kunit *test)
{
	const struct answers *a = test->param_value;
	const struct folio_mapcounts mc = make(a->ptes, a->entire, a->creator);

	KUNIT_EXPECT_EQ(test, folio_mapcounts_ptes(mc), a->ptes);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_entire(mc), a->entire);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_creator(mc), a->creator);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_mapped(mc), a->mapped);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_total(mc), a->total);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_pages(mc, a->nr_pages), a->pages);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_creator_only(mc, a->nr_pages),
			a->creator_only);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_estimate(mc, a->nr_pages),
			a->estimate);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_partial(mc, a->nr_pages),
			a->partial);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_average(mc, a->nr_pages),
			div64_u64(a->pages + a->nr_pages - 1, a->nr_pages));
	KUNIT_EXPECT_TRUE(test, folio_mapcounts_creator_possible(mc, a->nr_pages));
}

/* What MMs map of one folio, and how many of them map that. */
struct sharing {
	const char *desc;
	unsigned long nr_pages;
	struct { u32 mms, ptes, entire; } map[4];
};

static const struct sharing sharing_table[] = {
	{
		.desc = "unmapped", .nr_pages = 512,
	}, {
		.desc = "one MM, a part", .nr_pages = 512,
		.map = { { 1, 16, 0 } },
	}, {
		.desc = "one MM, a PMD", .nr_pages = 512,
		.map = { { 1, 0, 1 } },
	}, {
		.desc = "3 MMs, all pages", .nr_pages = 512,
		.map = { { 3, 512, 0 } },
	}, {
		.desc = "7 MMs, PMDs", .nr_pages = 512,
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
		.desc = "a PMD and one PTE", .nr_pages = 512,
		.map = { { 1, 0, 1 }, { 1, 1, 0 } },
	}, {
		.desc = "PMDs and PTEs, also of one MM", .nr_pages = 512,
		.map = { { 3, 0, 1 }, { 1, 511, 0 }, { 1, 7, 2 }, { 5, 100, 0 } },
	}, {
		.desc = "unequal parts", .nr_pages = 16,
		.map = { { 1, 1, 0 }, { 1, 15, 0 }, { 1, 16, 0 }, { 1, 3, 0 } },
	}, {
		.desc = "8192 pages", .nr_pages = 8192,
		.map = { { 10, 8192, 0 }, { 10, 0, 1 }, { 3, 77, 0 } },
	},
};

KUNIT_ARRAY_PARAM_DESC(sharing, sharing_table, desc);

/* Shares add up to the estimate, in bytes with 12 binary places: as in smaps. */
static void test_share(struct kunit *test)
{
	const struct sharing *s = test->param_value;
	const u64 unit = (u64)SZ_64K << 12;
	struct folio_mapcounts mc = {};
	u64 sum = 0, shares = 0, whole;
	int i;

	for (i = 0; i < ARRAY_SIZE(s->map); i++)
		mc.word += s->map[i].mms *
			   make(s->map[i].ptes, s->map[i].entire, 0).word;
	for (i = 0; i < ARRAY_SIZE(s->map); i++) {
		const u64 pages = s->map[i].ptes + s->map[i].entire * s->nr_pages;
		const u64 share = folio_mapcounts_share(mc, s->nr_pages, pages * unit);

		KUNIT_EXPECT_LE(test, share, pages * unit);
		sum += s->map[i].mms * share;
		shares += s->map[i].mms;
	}
	whole = folio_mapcounts_estimate(mc, s->nr_pages) * unit;
	KUNIT_EXPECT_LE(test, sum, whole);
	KUNIT_EXPECT_GE(test, sum + shares, whole);
}

/* The largest product: 8192 PTEs, in a table of 64K pages, of a 16 GiB folio. */
static void test_share_bounds(struct kunit *test)
{
	const unsigned long nr_pages = SZ_16G >> 16;
	const u64 size = (u64)8192 * SZ_64K << 12;

	KUNIT_EXPECT_EQ(test, size, folio_mapcounts_share(make(0, 0, 0), nr_pages, size));
	KUNIT_EXPECT_EQ(test, size, folio_mapcounts_share(make(8192, 0, 0), nr_pages, size));
	KUNIT_EXPECT_EQ(test, size / 2,
			folio_mapcounts_share(make(0, 2, 0), nr_pages, size));
	KUNIT_EXPECT_EQ(test, size >> 12,
			folio_mapcounts_share(make(FOLIO_MAPCOUNTS_PTES_MAX, 0, 0),
					      nr_pages, size));
}

/* Counts of the creator that are certainly wrong, and one that may be right. */
static void test_creator_possible(struct kunit *test)
{
	static const struct {
		unsigned int ptes, entire, creator;
		bool possible;
	} table[] = {
		{ 0, 0, 1 },
		{ 15, 0, 16 },
		{ 3, 1, 20 },
		{ 3, 1, 19, true },
		{ 0, 0, CREATOR_TOP },
		{ CREATOR_TOP + 1, 0, CREATOR_TOP, true },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(table); i++) {
		const struct folio_mapcounts mc =
			make(table[i].ptes, table[i].entire, table[i].creator);

		KUNIT_EXPECT_EQ_MSG(test, table[i].possible,
				    folio_mapcounts_creator_possible(mc, 16),
				    "table[%d]", i);
	}
}

enum op { MAP_PTES, MAP_ENTIRE, SPLIT };

static u64 delta_of(enum op op, unsigned long nr, bool creator)
{
	switch (op) {
	case MAP_PTES:
		return folio_mapcounts_delta_ptes(nr, creator);
	case MAP_ENTIRE:
		return folio_mapcounts_delta_entire(nr, creator);
	default:
		return folio_mapcounts_delta_split(nr);
	}
}

/* One operation and its inverse. */
struct transition {
	const char *desc;
	enum op op;
	unsigned long nr;
	bool creator;
	struct { u32 ptes, entire, creator; } before, after;
};

static const struct transition transitions_table[] = {
	{
		.desc = "first PTE, not the creator",
		.op = MAP_PTES, .nr = 1,
		.after = { 1, 0, 0 },
	}, {
		.desc = "first PTE, the creator",
		.op = MAP_PTES, .nr = 1, .creator = true,
		.after = { 1, 0, 1 },
	}, {
		.desc = "batch of 16",
		.op = MAP_PTES, .nr = 16, .creator = true,
		.before = { 3, 1, 2 }, .after = { 19, 1, 18 },
	}, {
		.desc = "batch of 512",
		.op = MAP_PTES, .nr = 512, .creator = true,
		.after = { 512, 0, 512 },
	}, {
		.desc = "batch of 8192",
		.op = MAP_PTES, .nr = 8192, .creator = true,
		.after = { 8192, 0, 8192 },
	}, {
		.desc = "batch of 512, not the creator",
		.op = MAP_PTES, .nr = 512,
		.before = { 512, 0, 512 }, .after = { 1024, 0, 512 },
	}, {
		.desc = "PMD of the creator",
		.op = MAP_ENTIRE, .nr = 512, .creator = true,
		.after = { 0, 1, 512 },
	}, {
		.desc = "PMD, not the creator",
		.op = MAP_ENTIRE, .nr = 512,
		.before = { 0, 1, 512 }, .after = { 0, 2, 512 },
	}, {
		.desc = "PUD, not the creator",
		.op = MAP_ENTIRE, .nr = 1UL << 18,
		.after = { 0, 1, 0 },
	}, {
		.desc = "split of the creator's PMD",
		.op = SPLIT, .nr = 512,
		.before = { 0, 1, 512 }, .after = { 512, 0, 512 },
	}, {
		.desc = "split of one PMD of two",
		.op = SPLIT, .nr = 512,
		.before = { 7, 2, 519 }, .after = { 519, 1, 519 },
	}, {
		.desc = "creator carries out of the word, by PTEs",
		.op = MAP_PTES, .nr = 4, .creator = true,
		.before = { 16382, 5, 16382 }, .after = { 16386, 5, 2 },
	}, {
		.desc = "creator carries out of the word, by a PMD",
		.op = MAP_ENTIRE, .nr = 8192, .creator = true,
		.before = { 0, 1, 8192 }, .after = { 0, 2, 0 },
	}, {
		.desc = "ptes at the bound leave entire alone",
		.op = MAP_PTES, .nr = 8192,
		.before = { FOLIO_MAPCOUNTS_PTES_MAX, 3, 9 },
		.after = { FOLIO_MAPCOUNTS_PTES_MAX + 8192, 3, 9 },
	}, {
		.desc = "ptes up to the top of the field",
		.op = MAP_PTES, .nr = 1,
		.before = { PTES_TOP - 1, 0, 0 }, .after = { PTES_TOP, 0, 0 },
	}, {
		.desc = "entire at the bound leaves creator alone",
		.op = MAP_ENTIRE, .nr = 512,
		.before = { 3, FOLIO_MAPCOUNTS_ENTIRE_MAX, 9 },
		.after = { 3, FOLIO_MAPCOUNTS_ENTIRE_MAX + 1, 9 },
	}, {
		.desc = "entire up to the top of the field",
		.op = MAP_ENTIRE, .nr = 512,
		.before = { 0, ENTIRE_TOP - 1, 0 }, .after = { 0, ENTIRE_TOP, 0 },
	},
};

KUNIT_ARRAY_PARAM_DESC(transitions, transitions_table, desc);

static void test_transitions(struct kunit *test)
{
	const struct transition *t = test->param_value;
	const u64 delta = delta_of(t->op, t->nr, t->creator);
	struct folio_mapcounts mc = make(t->before.ptes, t->before.entire,
				    t->before.creator);
	const u64 before = mc.word;

	mc.word += delta;
	KUNIT_EXPECT_EQ(test, folio_mapcounts_ptes(mc), t->after.ptes);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_entire(mc), t->after.entire);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_creator(mc), t->after.creator);

	mc.word -= delta;
	KUNIT_EXPECT_EQ(test, mc.word, before);
}

/* The fields fill the word, do not overlap, and read back alone. */
static void test_fields(struct kunit *test)
{
	const u64 ptes = FOLIO_MAPCOUNTS_PTES_MASK;
	const u64 entire = FOLIO_MAPCOUNTS_ENTIRE_MASK;
	const u64 creator = FOLIO_MAPCOUNTS_CREATOR_MASK;

	KUNIT_EXPECT_EQ(test, ptes | entire | creator, ~0ULL);
	KUNIT_EXPECT_EQ(test, (ptes & entire) | (ptes & creator) |
			(entire & creator), 0ULL);
	KUNIT_EXPECT_EQ(test, ptes, 0x00000000ffffffffULL);
	KUNIT_EXPECT_EQ(test, entire, 0x0003ffff00000000ULL);
	KUNIT_EXPECT_EQ(test, creator, 0xfffc000000000000ULL);
	KUNIT_EXPECT_EQ(test, make(PTES_TOP, 0, 0).word, ptes);
	KUNIT_EXPECT_EQ(test, make(0, ENTIRE_TOP, 0).word, entire);
	KUNIT_EXPECT_EQ(test, make(0, 0, CREATOR_TOP).word, creator);
	KUNIT_EXPECT_EQ(test, FOLIO_MAPCOUNTS_CREATOR_MAX, (unsigned long)CREATOR_TOP);
}

/* Unmapping once too often must not look like a folio that is mapped a lot. */
static void test_underflow(struct kunit *test)
{
	struct folio_mapcounts mc = make(0, 0, 0);

	mc.word -= folio_mapcounts_delta_ptes(1, false);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_total(mc), -1);
	mc.word -= folio_mapcounts_delta_ptes(1, false);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_total(mc), -2);
	KUNIT_EXPECT_TRUE(test, folio_mapcounts_mapped(mc));

	mc = make(0, 3, 0);
	mc.word -= folio_mapcounts_delta_ptes(2, false);
	KUNIT_EXPECT_EQ(test, folio_mapcounts_total(mc), 1);
}

/*
 * The creator maps more pages than its count can say, one by one, and unmaps
 * them again: never certain of being alone while it cannot know, and right as
 * soon as it can, with and without another MM.
 */
static void test_creator_wrap(struct kunit *test)
{
	const u64 one = folio_mapcounts_delta_ptes(1, true);
	const unsigned long exact = FOLIO_MAPCOUNTS_CREATOR_MAX;
	const unsigned long top = 3 * exact;
	unsigned long i;
	struct folio_mapcounts mc = make(0, 0, 0);

	for (i = 1; i <= top; i++) {
		const bool can_know = i <= exact;

		mc.word += one;
		if (folio_mapcounts_creator_only(mc, 512) != can_know)
			KUNIT_FAIL(test, "up, %lu pages", i);
	}
	/* Another MM comes while the count is wrapped ... */
	mc.word += folio_mapcounts_delta_ptes(1, false);
	for (i = top; i > 1; i--) {
		mc.word -= one;
		if (folio_mapcounts_creator_only(mc, 512))
			KUNIT_FAIL(test, "down, %lu pages and 1 of another MM", i - 1);
	}
	/* ... and goes. */
	mc.word -= folio_mapcounts_delta_ptes(1, false);
	KUNIT_EXPECT_TRUE(test, folio_mapcounts_creator_only(mc, 512));
	KUNIT_EXPECT_EQ(test, mc.word, one);
}

#define MODEL_PAGES	4
#define MODEL_MMS	3
#define MODEL_STEPS	20000
#define MODEL_SEED	20261121

/* What the word stands for: every mapping, by MM (0 is the creator). */
struct model {
	unsigned int pte[MODEL_MMS][MODEL_PAGES];
	unsigned int entire[MODEL_MMS];
	struct folio_mapcounts mc;
};

/* Map or unmap @nr pages from @first on, if they all are mapped. */
static void model_ptes(struct model *m, int mm, int first, int nr, bool map)
{
	const u64 delta = folio_mapcounts_delta_ptes(nr, mm == 0);
	int i;

	for (i = first; !map && i < first + nr; i++)
		if (!m->pte[mm][i])
			return;
	for (i = first; i < first + nr; i++)
		m->pte[mm][i] += map ? 1 : -1;
	m->mc.word += map ? delta : -delta;
}

static void model_entire(struct model *m, int mm, bool map)
{
	const u64 delta = folio_mapcounts_delta_entire(MODEL_PAGES, mm == 0);

	if (!map && !m->entire[mm])
		return;
	m->entire[mm] += map ? 1 : -1;
	m->mc.word += map ? delta : -delta;
}

static void model_split(struct model *m, int mm)
{
	int i;

	if (!m->entire[mm])
		return;
	m->entire[mm]--;
	for (i = 0; i < MODEL_PAGES; i++)
		m->pte[mm][i]++;
	m->mc.word += folio_mapcounts_delta_split(MODEL_PAGES);
}

static void model_step(struct model *m, struct rnd_state *rnd)
{
	const u32 r = prandom_u32_state(rnd);
	const int mm = r % MODEL_MMS, first = (r >> 8) % MODEL_PAGES;
	const int nr = 1 + (r >> 16) % (MODEL_PAGES - first);

	/* More is unmapped than mapped, so that small counts are common. */
	switch ((r >> 24) % 8) {
	case 0 ... 1:
		return model_ptes(m, mm, first, nr, true);
	case 2 ... 4:
		return model_ptes(m, mm, first, nr, false);
	case 5:
		return model_entire(m, mm, true);
	case 6:
		return model_entire(m, mm, false);
	default:
		return model_split(m, mm);
	}
}

/* The truth, from every mapping, against the answers from the word. */
static bool model_agrees(const struct model *m)
{
	unsigned int total = 0, pages = 0, creator = 0, distinct = 0;
	unsigned long estimate;
	bool twice = false, entire = false;
	int mm, i;

	for (mm = 0; mm < MODEL_MMS; mm++) {
		unsigned int here = m->entire[mm] * MODEL_PAGES;

		total += m->entire[mm];
		entire |= m->entire[mm];
		for (i = 0; i < MODEL_PAGES; i++) {
			total += m->pte[mm][i];
			here += m->pte[mm][i];
		}
		pages += here;
		if (mm == 0)
			creator = here;
	}
	for (i = 0; i < MODEL_PAGES; i++) {
		unsigned int n = 0;

		for (mm = 0; mm < MODEL_MMS; mm++)
			n += m->pte[mm][i];
		distinct += n || entire;
		twice |= n > 1;
	}

	estimate = folio_mapcounts_estimate(m->mc, MODEL_PAGES);
	return folio_mapcounts_total(m->mc) == total &&
	       folio_mapcounts_mapped(m->mc) == (total > 0) &&
	       folio_mapcounts_pages(m->mc, MODEL_PAGES) == pages &&
	       folio_mapcounts_creator_only(m->mc, MODEL_PAGES) == (pages == creator) &&
	       estimate >= distinct && estimate <= MODEL_PAGES &&
	       (twice || estimate == distinct) &&
	       /* certain only: true implies it, and where it can be told it is. */
	       (!folio_mapcounts_partial(m->mc, MODEL_PAGES) ||
		(distinct > 0 && distinct < MODEL_PAGES)) &&
	       (twice || folio_mapcounts_partial(m->mc, MODEL_PAGES) ==
			 (distinct > 0 && distinct < MODEL_PAGES));
}

static void test_model(struct kunit *test)
{
	struct model *m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);
	struct rnd_state rnd;
	int step, mm, i;

	KUNIT_ASSERT_NOT_NULL(test, m);
	prandom_seed_state(&rnd, MODEL_SEED);
	for (step = 0; step < MODEL_STEPS; step++) {
		model_step(m, &rnd);
		if (!model_agrees(m)) {
			KUNIT_FAIL(test, "step %d from seed %d: word %#llx",
				   step, MODEL_SEED, m->mc.word);
			return;
		}
	}

	/* Everything is unmapped in the end, and nothing may be left over. */
	for (mm = 0; mm < MODEL_MMS; mm++) {
		while (m->entire[mm])
			model_entire(m, mm, false);
		for (i = 0; i < MODEL_PAGES; i++)
			while (m->pte[mm][i])
				model_ptes(m, mm, i, 1, false);
	}
	KUNIT_EXPECT_EQ(test, m->mc.word, 0ULL);
}

static struct kunit_case folio_mapcounts_test_cases[] = {
	KUNIT_CASE(test_fields),
	KUNIT_CASE_PARAM(test_answers, answers_gen_params),
	KUNIT_CASE_PARAM(test_share, sharing_gen_params),
	KUNIT_CASE(test_share_bounds),
	KUNIT_CASE(test_creator_possible),
	KUNIT_CASE_PARAM(test_transitions, transitions_gen_params),
	KUNIT_CASE(test_underflow),
	KUNIT_CASE(test_creator_wrap),
	KUNIT_CASE(test_model),
	{}
};

static struct kunit_suite folio_mapcounts_test_suite = {
	.name = "folio_mapcounts",
	.test_cases = folio_mapcounts_test_cases,
};

kunit_test_suite(folio_mapcounts_test_suite);

MODULE_DESCRIPTION("Tests for the word that counts the mappings of a large folio");
MODULE_LICENSE("GPL");
