// SPDX-License-Identifier: GPL-2.0
/*
 * Check folio->_mapcounts, which says how a large folio is mapped as a whole,
 * against counts of how many PTEs map each of its pages.
 */
#include <kunit/test-bug.h>
#include <linux/cleanup.h>
#include <linux/folio_mapcounts_check.h>
#include <linux/hash.h>
#include <linux/kstrtox.h>
#include <linux/mm.h>
#include <linux/mmdebug.h>
#include <linux/page_ext.h>
#include <linux/ratelimit.h>
#include <linux/sched.h>
#include <linux/spinlock.h>

#undef pr_fmt
#define pr_fmt(fmt)	"folio_mapcounts_check: " fmt

/*
 * What each page has in its page_ext. All of it is 0 while the page is free, and
 * while its folio is split.
 */
struct shadow {
	int ptes;	/* PTEs that map this page; hugetlb: mappings, in page 0 */
	int sum;	/* see below */
};

/*
 * The first page has the sum of the folio's PTEs, the second that of its PMDs, and
 * the third page of each part that a PMD can map, how many PMDs map the part.
 */
#define SUM_PTES	0
#define SUM_PMDS	1
#define PART_PMDS	2
#define PART_NR		BIT(MAPCOUNTS_PMD_ORDER)

/* One change of the mapcounts, for the report. */
struct op {
	unsigned long pfn;
	int ptes, pmds;
	u64 val;
	pid_t pid;
	const void *place, *caller;
};

/*
 * The lock of a folio's bucket covers each change of its mapcounts and their shadow:
 * they agree while no CPU holds it. Each bucket remembers the last operations on its
 * folios.
 */
#define BUCKET_BITS	7
#define NR_OPS		16

static struct bucket {
	raw_spinlock_t lock;
	unsigned int next;
	struct op ops[NR_OPS];
} buckets[1 << BUCKET_BITS] = {
	[0 ... (1 << BUCKET_BITS) - 1] = {
		.lock = __RAW_SPIN_LOCK_UNLOCKED(buckets.lock),
	},
};

/* The first thing that is wrong with a folio. */
struct finding {
	const char *what;	/* NULL: nothing */
	const struct page *page;
	int page_ptes;
	int ptes, pmds;
	u64 val;
};

static bool __folio_mapcounts_check_enabled __initdata =
				IS_ENABLED(CONFIG_FOLIO_MAPCOUNTS_CHECK_ENFORCED);

DEFINE_STATIC_KEY_FALSE(folio_mapcounts_check_key);

static int __init early_folio_mapcounts_check_param(char *buf)
{
	return kstrtobool(buf, &__folio_mapcounts_check_enabled);
}
early_param("folio_mapcounts_check", early_folio_mapcounts_check_param);

static bool __init need_folio_mapcounts_check(void)
{
	return __folio_mapcounts_check_enabled;
}

static void __init init_folio_mapcounts_check(void)
{
	if (__folio_mapcounts_check_enabled)
		static_branch_enable(&folio_mapcounts_check_key);
}

struct page_ext_operations folio_mapcounts_check_ops = {
	.size = sizeof(struct shadow),
	.need = need_folio_mapcounts_check,
	.init = init_folio_mapcounts_check,
	.need_shared_flags = false,
};

static struct bucket *bucket_of(const struct folio *folio)
{
	return &buckets[hash_long(folio_pfn(folio), BUCKET_BITS)];
}

static struct shadow *to_shadow(struct page_ext *page_ext)
{
	return page_ext_data(page_ext, &folio_mapcounts_check_ops);
}

/* NULL for device memory, which has no page_ext, and is not checked. */
static struct shadow *shadow_of(const struct page *page)
{
	struct page_ext *page_ext = page_ext_lookup(page_to_pfn(page));

	return page_ext ? to_shadow(page_ext) : NULL;
}

static void find(struct finding *f, const char *what, const struct page *page,
		 int page_ptes)
{
	if (f->what)
		return;
	f->what = what;
	f->page = page;
	f->page_ptes = page_ptes;
}

static void remember(struct bucket *b, const struct op *op)
{
	b->ops[b->next++ % NR_OPS] = *op;
}

static void print_counts(const struct finding *f)
{
	const struct folio_mapcounts mc = { f->val };

	pr_warn("page: %d PTEs; folio: %d PTEs, %d PMDs\n", f->page_ptes,
		f->ptes, f->pmds);
	pr_warn("mapcounts %#llx: %u PTEs, %u PMDs, creator %u\n", f->val,
		mapcounts_ptes(mc), mapcounts_pmds(mc),
		mapcounts_creator(mc));
}

static void print_op(const struct op *op)
{
	pr_warn("pfn %#lx: %+d PTEs, %+d PMDs: mapcounts %#llx, by pid %d at %pS from %pS\n",
		op->pfn, op->ptes, op->pmds, op->val, op->pid, op->place,
		op->caller);
}

static void print_ops(const struct folio *folio)
{
	const unsigned long pfn = folio_pfn(folio);
	struct bucket *b = bucket_of(folio);
	struct op op;
	int i;

	pr_warn("the last operations on the folio, the oldest first:\n");
	for (i = 0; i < NR_OPS; i++) {
		scoped_guard(raw_spinlock_irqsave, &b->lock)
			op = b->ops[(b->next + i) % NR_OPS];
		if (op.place && op.pfn - pfn < folio_nr_pages(folio))
			print_op(&op);
	}
}

/*
 * Each later operation on the folio can report the same error: limit the rate, as
 * the first reports matter. KUnit only counts the reports that a test expects.
 */
static void report(const struct folio *folio, const struct finding *f)
{
	static DEFINE_RATELIMIT_STATE(reports, 60 * HZ, 5);
	const bool expected = kunit_is_suppressed_warning(false);

	if (!f->what || (!expected && !__ratelimit(&reports)))
		return;
	WARN(1, pr_fmt("%s: page %#lx of folio %#lx, order %u\n"), f->what,
	     page_to_pfn(f->page), folio_pfn(folio), folio_order(folio));
	if (expected)
		return;
	print_counts(f);
	print_ops(folio);
	dump_page(f->page, f->what);
}

static void add_to_pages(const struct page *page, int ptes, struct finding *f)
{
	const int one = ptes < 0 ? -1 : 1;
	struct page_ext_iter iter;
	struct page_ext *page_ext;

	for_each_page_ext(page, abs(ptes), page_ext, iter) {
		struct shadow *s = to_shadow(page_ext);

		s->ptes += one;
		if (s->ptes < 0)
			find(f, "unmapped a page that is not mapped",
			     page + iter.index, s->ptes);
	}
}

static void add_to_parts(const struct page *page, int pmds, struct finding *f)
{
	const int one = pmds < 0 ? -1 : 1;
	int i;

	for (i = 0; i < abs(pmds); i++, page += PART_NR) {
		struct shadow *s = shadow_of(page + PART_PMDS);

		s->sum += one;
		if (s->sum < 0)
			find(f, "unmapped a PMD that is not mapped", page, s->sum);
	}
}

/* Compare ptes and pmds as one value: ptes can borrow from pmds. Ignore creator. */
static void compare(const struct folio *folio, struct finding *f)
{
	const u64 shadow = mapcounts_delta(f->ptes, f->pmds, false);

	if ((f->val ^ shadow) & ~MAPCOUNTS_CREATOR_MASK)
		find(f, "the mapcounts are not what is mapped", &folio->page,
		     shadow_of(&folio->page)->ptes);
}

static void add_to_folio(struct folio *folio, int ptes, int pmds,
			 struct finding *f)
{
	f->ptes = shadow_of(folio_page(folio, SUM_PTES))->sum += ptes;
	f->pmds = shadow_of(folio_page(folio, SUM_PMDS))->sum += pmds;
	compare(folio, f);
}

/**
 * __folio_mapcounts_check_add - see folio_mapcounts_check_add()
 * @folio:	The large folio
 * @delta:	What to add to the mapcounts
 * @page:	The first page that is mapped or unmapped
 * @ptes:	PTEs added, one for each page from @page on; negative: removed
 * @pmds:	PMDs added, one for each part from @page on; negative: removed
 * @caller:	Address from which the rmap function was called, for reports
 *
 * The time grows with @ptes, not with the size of the folio.
 *
 * Return: what the mapcounts are now.
 */
u64 __folio_mapcounts_check_add(struct folio *folio, u64 delta,
				const struct page *page, int ptes, int pmds,
				unsigned long caller)
{
	struct bucket *b = bucket_of(folio);
	struct finding f = {};

	scoped_guard(raw_spinlock_irqsave, &b->lock) {
		guard(rcu)();
		f.val = atomic64_add_return(delta, &folio->_mapcounts);
		if (!shadow_of(&folio->page))
			break;
		remember(b, &(struct op){
			.pfn = page_to_pfn(page), .ptes = ptes, .pmds = pmds,
			.val = f.val, .pid = current->pid,
			.place = (void *)_RET_IP_, .caller = (void *)caller,
		});
		add_to_pages(page, ptes, &f);
		add_to_parts(page, pmds, &f);
		add_to_folio(folio, ptes, pmds, &f);
	}
	report(folio, &f);
	return f.val;
}

/* PMDs that map the part of the folio that has the page */
static int pmds_of(const struct folio *folio, const struct page *page)
{
	const unsigned long part = ALIGN_DOWN(folio_page_idx(folio, page), PART_NR);

	return shadow_of(folio_page(folio, part + PART_PMDS))->sum;
}

/* Return how many PTEs map the pages. Each page must have @least to @most mappings. */
static int check_pages(const struct folio *folio, const struct page *page,
		       int nr_pages, int least, int most, struct finding *f)
{
	struct page_ext_iter iter;
	struct page_ext *page_ext;
	int sum = 0;

	for_each_page_ext(page, nr_pages, page_ext, iter) {
		const int ptes = to_shadow(page_ext)->ptes;
		const int maps = ptes +
			(f->pmds ? pmds_of(folio, page + iter.index) : 0);

		sum += ptes;
		if (maps < least)
			find(f, "a page is not mapped", page + iter.index, ptes);
		if (maps > most)
			find(f, most ? "a page is mapped more than once" :
				       "a page is still mapped",
			     page + iter.index, ptes);
	}
	return sum;
}

/**
 * __folio_mapcounts_check - check all pages of a large folio
 * @folio:	The large folio
 * @most:	How many mappings a page may have
 *
 * The mapcounts must be the sums of PTEs and PMDs.
 */
void __folio_mapcounts_check(struct folio *folio, int most)
{
	struct finding f = {};

	scoped_guard(raw_spinlock_irqsave, &bucket_of(folio)->lock) {
		guard(rcu)();
		if (!shadow_of(&folio->page))
			break;
		f.val = atomic64_read(&folio->_mapcounts);
		f.pmds = shadow_of(folio_page(folio, SUM_PMDS))->sum;
		f.ptes = check_pages(folio, &folio->page, folio_nr_pages(folio), 0,
				     most, &f);
		compare(folio, &f);
	}
	report(folio, &f);
}

/**
 * __folio_mapcounts_check_exclusive - see folio_mapcounts_check_exclusive()
 * @folio:	The large folio
 * @page:	The first page that has to be mapped exactly once
 * @nr_pages:	How many pages, from @page on
 */
void __folio_mapcounts_check_exclusive(struct folio *folio,
				       const struct page *page, int nr_pages)
{
	struct finding f = {};

	scoped_guard(raw_spinlock_irqsave, &bucket_of(folio)->lock) {
		guard(rcu)();
		if (!shadow_of(&folio->page))
			break;
		f.val = atomic64_read(&folio->_mapcounts);
		f.ptes = shadow_of(folio_page(folio, SUM_PTES))->sum;
		f.pmds = shadow_of(folio_page(folio, SUM_PMDS))->sum;
		check_pages(folio, page, nr_pages, 1, 1, &f);
	}
	report(folio, &f);
}

/**
 * __folio_mapcounts_check_free - see folio_mapcounts_check_free()
 * @page:	The first page
 * @order:	How many: 2^@order pages
 *
 * Resets all counts, so that an error does not affect the next user of the pages.
 */
void __folio_mapcounts_check_free(struct page *page, unsigned int order)
{
	struct folio *folio = page_folio(page);
	struct page_ext_iter iter;
	struct page_ext *page_ext;
	struct finding f = {};

	if (folio_test_large(folio))
		f.val = atomic64_read(&folio->_mapcounts);
	scoped_guard(rcu) {
		for_each_page_ext(page, 1 << order, page_ext, iter) {
			struct shadow *s = to_shadow(page_ext);

			if (s->ptes || s->sum)
				find(&f, "freed with mappings", page + iter.index,
				     s->ptes);
			*s = (struct shadow){};
		}
	}
	report(folio, &f);
}
