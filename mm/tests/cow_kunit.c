// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for what a write fault does to a large anonymous folio that is mapped by
 * PTEs: when its pages are reused, and when they have to be copied. The page
 * tables are real ones, of MMs that fork, unmap and exit.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pagewalk.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/sched/sysctl.h>
#include <linux/vmstat.h>

#include "../internal.h"

#define NR_MMS	6
#define TEST_MM	NR_MMS	/* what the others descend from */

struct cow_ctx {
	struct mm_struct *mms[NR_MMS + 1];
	unsigned long addr;		/* of the folio, in all of them */
	unsigned int order;
	unsigned long nr;		/* pages of the folio */
	struct folio *folio;
	/* While a page table is locked */
	struct vm_area_struct *vma;
	spinlock_t *ptl;		/* of the page table */
	struct table_folios tf;		/* of the last walk */
	/* What to restore */
	unsigned long orders_always, orders_inherit;
};

static int cow_test_init(struct kunit *test)
{
	struct cow_ctx *c = kunit_kzalloc(test, sizeof(*c), GFP_KERNEL);
	unsigned long start;

	KUNIT_ASSERT_NOT_NULL(test, c);
	test->priv = c;
	c->orders_always = huge_anon_orders_always;
	c->orders_inherit = huge_anon_orders_inherit;
	if (!has_transparent_hugepage())
		kunit_skip(test, "no huge pages on this machine");

	start = kunit_vm_mmap(test, NULL, 0, 3 * HPAGE_PMD_SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_TRUE(test, start && !IS_ERR_VALUE(start));
	c->addr = ALIGN(start, HPAGE_PMD_SIZE);
	c->mms[TEST_MM] = current->mm;
	/* It is worth compaction. */
	return do_madvise(current->mm, c->addr, 2 * HPAGE_PMD_SIZE, MADV_HUGEPAGE);
}

/* Let write faults map folios of this order; 0 restores the setting. */
static void set_order(struct cow_ctx *c, unsigned int order)
{
	huge_anon_orders_always = order ? BIT(order) : c->orders_always;
	huge_anon_orders_inherit = order ? 0 : c->orders_inherit;
}

static void mm_zap(struct cow_ctx *c, int i, unsigned long first, unsigned long nr)
{
	mmap_read_lock(c->mms[i]);
	zap_vma_range(vma_lookup(c->mms[i], c->addr), c->addr + first * PAGE_SIZE,
		      nr * PAGE_SIZE);
	mmap_read_unlock(c->mms[i]);
}

static void mm_exit(struct cow_ctx *c, int i)
{
	if (c->mms[i])
		mmput(c->mms[i]);
	c->mms[i] = NULL;
}

static void mms_exit(struct cow_ctx *c)
{
	int i;

	for (i = 0; i < NR_MMS; i++)
		mm_exit(c, i);
}

static void cow_test_exit(struct kunit *test)
{
	mms_exit(test->priv);
	set_order(test->priv, 0);
}

static void mm_fork(struct kunit *test, int from, int to)
{
	struct cow_ctx *c = test->priv;
	struct mm_struct *child = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, child);
	child->task_size = c->mms[from]->task_size;
	/* khugepaged does not put an MM with this flag on its list. */
	mm_flags_set(MMF_VM_HUGEPAGE, child);
	c->mms[to] = child;
	KUNIT_ASSERT_EQ(test, 0, dup_mmap(child, c->mms[from]));
}

static void mm_fault(struct kunit *test, int i, unsigned long page, unsigned int flags)
{
	struct cow_ctx *c = test->priv;
	int ret;

	mmap_read_lock(c->mms[i]);
	ret = fixup_user_fault(c->mms[i], c->addr + page * PAGE_SIZE, flags, NULL);
	mmap_read_unlock(c->mms[i]);
	KUNIT_ASSERT_EQ(test, 0, ret);
}

static void mm_write(struct kunit *test, int i, unsigned long page)
{
	mm_fault(test, i, page, FAULT_FLAG_WRITE);
}

struct mapping {
	unsigned long pfn;	/* 0: none */
	bool by_pte;
	bool exclusive;
	bool writable;		/* and exclusive */
};

static struct mapping mm_mapping(struct cow_ctx *c, int i, unsigned long page)
{
	const unsigned long addr = c->addr + page * PAGE_SIZE;
	struct mapping m = {};
	struct vm_area_struct *vma;
	struct folio_walk fw;

	mmap_read_lock(c->mms[i]);
	vma = vma_lookup(c->mms[i], addr);
	if (folio_walk_start(&fw, vma, addr, 0)) {
		m.pfn = page_to_pfn(fw.page);
		m.by_pte = fw.level == FW_LEVEL_PTE;
		m.exclusive = PageAnonExclusive(fw.page);
		m.writable = m.by_pte && m.exclusive && pte_write(fw.pte);
		folio_walk_end(&fw, vma);
	}
	mmap_read_unlock(c->mms[i]);
	return m;
}

/* Does MM @i map this page of the folio? */
static bool mm_maps(struct cow_ctx *c, int i, unsigned long page)
{
	return mm_mapping(c, i, page).pfn == folio_pfn(c->folio) + page;
}

static unsigned long mm_nr_writable(struct cow_ctx *c, int i)
{
	unsigned long page, count = 0;

	for (page = 0; page < c->nr; page++)
		count += mm_maps(c, i, page) && mm_mapping(c, i, page).writable;
	return count;
}

/* Write to the pages of the folio in order, where MM @i cannot yet. All are reused. */
static void mm_write_rest(struct kunit *test, int i)
{
	struct cow_ctx *c = test->priv;
	unsigned long page, nr = 0;

	for (page = 0; page < c->nr; page++) {
		if (!mm_maps(c, i, page))
			continue;
		nr++;
		if (!mm_mapping(c, i, page).writable)
			mm_write(test, i, page);
	}
	KUNIT_EXPECT_EQ_MSG(test, mm_nr_writable(c, i), nr, "order %u", c->order);
}

/* Lock the page table of MM @i, and return the entry of a page. */
static pte_t *lock_ptes(struct kunit *test, int i, unsigned long page)
{
	struct cow_ctx *c = test->priv;
	const unsigned long addr = c->addr + page * PAGE_SIZE;
	pte_t *ptep;

	mmap_read_lock(c->mms[i]);
	c->vma = vma_lookup(c->mms[i], addr);
	ptep = get_locked_pte(c->mms[i], addr, &c->ptl);
	if (!ptep) {
		mmap_read_unlock(c->mms[i]);
		KUNIT_FAIL_AND_ABORT(test, "MM %d has no PTE", i);
	}
	return ptep;
}

static void unlock_ptes(struct cow_ctx *c, int i, pte_t *ptep)
{
	pte_unmap_unlock(ptep, c->ptl);
	mmap_read_unlock(c->mms[i]);
}

/* Move entries to the next page table, as mremap() does. */
static void mm_move(struct kunit *test, int i, unsigned long first, unsigned long nr)
{
	struct cow_ctx *c = test->priv;
	const unsigned long addr = c->addr + first * PAGE_SIZE, size = nr * PAGE_SIZE;

	mmap_write_lock(c->mms[i]);
	PAGETABLE_MOVE(pmc, vma_lookup(c->mms[i], addr), NULL, addr, addr + PMD_SIZE, size);
	pmc.new = pmc.old;
	KUNIT_EXPECT_EQ(test, move_page_tables(&pmc), size);
	mmap_write_unlock(c->mms[i]);
}

static void mm_split_pmd(struct cow_ctx *c, int i)
{
	mmap_read_lock(c->mms[i]);
	split_huge_pmd_address(vma_lookup(c->mms[i], c->addr), c->addr, false);
	mmap_read_unlock(c->mms[i]);
}

/* Let a write fault map one folio of this order, in a new MM 0. */
static void fault_folio(struct kunit *test, unsigned int order)
{
	struct cow_ctx *c = test->priv;

	mms_exit(c);
	mm_fork(test, TEST_MM, 0);
	c->order = min_t(unsigned int, order, HPAGE_PMD_ORDER);
	c->nr = 1UL << c->order;
	set_order(c, c->order);
	mm_write(test, 0, 0);
	set_order(c, 0);
	c->folio = pfn_folio(mm_mapping(c, 0, 0).pfn);
	if (folio_order(c->folio) != c->order)
		kunit_skip(test, "the fault did not map a folio of order %u", c->order);
}

static void new_folio(struct kunit *test, unsigned int order)
{
	struct cow_ctx *c = test->priv;

	fault_folio(test, order);
	mm_split_pmd(c, 0);
	KUNIT_ASSERT_EQ(test, mm_nr_writable(c, 0), c->nr);
}

static const struct order {
	const char *desc;
	unsigned int order;
} orders[] = {
	{ "order 2", 2 },
	{ "order 4", 4 },
	{ "PMD order", UINT_MAX },
};

KUNIT_ARRAY_PARAM_DESC(orders, orders, desc);

static struct cow_ctx *folio_of_param(struct kunit *test)
{
	new_folio(test, ((const struct order *)test->param_value)->order);
	return test->priv;
}

static void new_pmd(struct kunit *test)
{
	fault_folio(test, HPAGE_PMD_ORDER);
	if (mm_mapping(test->priv, 0, 0).by_pte)
		kunit_skip(test, "the fault did not map a THP");
}

/* How many pages does MM @i map, and no other MM? Look at them under one hold of the PTL. */
static unsigned long mm_nr_exclusive(struct kunit *test, int i)
{
	struct cow_ctx *c = test->priv;
	pte_t *ptep = lock_ptes(test, i, 0), pte;
	unsigned long addr = c->addr, exclusive = 0;
	int n;

	c->tf = (struct table_folios){};
	for (n = 0; n < HPAGE_PMD_NR; n++, addr += PAGE_SIZE) {
		pte = ptep_get(ptep + n);
		if (pte_present(pte))
			exclusive += !folio_maybe_mapped_shared_pte(page_folio(pte_page(pte)),
								    pte_page(pte), c->vma, addr,
								    ptep + n, &c->tf);
	}
	unlock_ptes(c, i, ptep);
	return exclusive;
}

/*
 * What MMs do with the quarters 0 to 3 of a folio, and what comes of it:
 *
 * 0>1	fork: MM 1 comes into being
 * 0x	exit
 * 0-12	unmap quarters 1 to 2
 * 0l	unmap all but one page
 * 0c1	write to the first page of quarter 1, which copies it; 0r1: which reuses it
 * 0u1	unshare it (a longterm pin for reading), which reuses it
 * 0w	write to all that is left, which reuses it
 * 0g	get a reference; 0p: put it
 * 0s	all is seen as shared with another MM; 0e: as exclusive
 * 0/	split the PMD
 * 0m3	move quarter 3 to another page table
 */
static const struct history {
	const char *desc;
	const char *steps;
	void (*new)(struct kunit *test);	/* NULL: folios of all orders, by PTEs */
} histories[] = {
	/* The last MM that maps the folio reuses all of it. */
	{ "child exited",		"0>1 1x 0r2 0r3 0w" },
	{ "parent exited",		"0>1 0x 1r2 1r3 1w" },
	{ "grandchild alone",		"0>1 1>2 0x 1x 2r2 2w" },
	{ "grandparent alone",		"0>1 1>2 1x 2x 0r2 0w" },
	{ "middle one alone",		"0>1 1>2 2x 0x 1r2 1w" },
	{ "one of five children",	"0>1 0>2 0>3 0>4 0>5 0x 1x 2x 4x 5x 3r2 3w" },
	{ "parent of five children",	"0>1 0>2 0>3 0>4 0>5 5x 1x 2x 4x 3x 0r2 0w" },
	{ "forked again",		"0>1 0x 1>2 2x 1>3 1x 3r2 3w" },
	/* An MM that is not alone copies. */
	{ "child alive",		"0>1 0c2 0c3" },
	{ "parent alive",		"0>1 1c2 1c3" },
	{ "sibling alive",		"0>1 0>2 0x 1c2 1c3" },
	{ "grandparent alive",		"0>1 1>2 1x 2c2 2c3" },
	{ "last of five alive",		"0>1 0>2 0>3 0>4 0>5 0x 1x 2x 4x 3c2 3c3" },
	/* As many references and mappings as pages, but two MMs map a part each. */
	{ "a half each",		"0>1 1-01 0-23 0c0 1c2" },
	{ "a quarter and the rest",	"0>1 1-00 0-13 0c0" },
	{ "three quarters and one",	"0>1 1-02 0-33 0c0 1c3" },
	{ "a half alone",		"0>1 1-01 0-23 0x 1r3 1w" },
	/* Copying the only page that is mapped frees the folio. */
	{ "last page",			"0>1 1x 0l 0c0" },
	{ "reference",			"0>1 1x 0g 0c0 0p 0r1 0w" },
	{ "a copy and a hole",		"0>1 0c1 1x 0-33 0r0 0w" },
	{ "unshare",			"0>1 1x 0u0 0r0 0w" },
	{ "seen as shared",		"0e 0>1 0s 1s 1>2 0x 1s 2s 1-01 2-23 1s 2s 1x 2e" },
	/* Only to its creator can a folio be exclusive by entries in two page tables. */
	{ "two page tables",		"0m3 0>1 0c1 1x 0r2 0w" },
	{ "two page tables of a child",	"0m3 0>1 0x 1c1" },
	{ "PMD of the parent",		"0>1 1/ 1-01 1c2", new_pmd },
	/* A PMD that is the only mapping makes its MM the creator, too. */
	{ "one PMD",			"0>1 0x 1r0 1/ 1r0 1>2 1c3 2x 1r0", new_pmd },
};

KUNIT_ARRAY_PARAM_DESC(histories, histories, desc);

static void run_step(struct kunit *test, const char *step)
{
	struct cow_ctx *c = test->priv;
	const int i = step[0] - '0', arg = step[2] - '0';
	const unsigned long quarter = c->nr / 4, page = arg * quarter;
	bool ok = true;

	if (strchr("cru", step[1])) {
		KUNIT_EXPECT_TRUE(test, mm_maps(c, i, page));
		mm_fault(test, i, page, step[1] == 'u' ? FAULT_FLAG_UNSHARE : FAULT_FLAG_WRITE);
	}
	switch (step[1]) {
	case '>':
		mm_fork(test, i, arg);
		break;
	case 'x':
		mm_exit(c, i);
		break;
	case '-':
		mm_zap(c, i, page, (step[3] - '0' + 1 - arg) * quarter);
		break;
	case 'l':
		mm_zap(c, i, 1, c->nr - 1);
		break;
	case 'c':
		ok = !mm_maps(c, i, page) && !mm_nr_writable(c, i);
		break;
	case 'r':
		ok = mm_maps(c, i, page) && folio_is_creator(c->folio, c->mms[i]) &&
		     !folio_maybe_mapped_shared(c->folio);
		break;
	case 'u':
		ok = mm_maps(c, i, page) && mm_mapping(c, i, page).exclusive &&
		     mm_mapping(c, i, page + min(quarter, 16) - 1).exclusive &&
		     !mm_nr_writable(c, i);
		break;
	case 'w':
		mm_write_rest(test, i);
		break;
	case 'g':
	case 'p':
		folio_ref_add(c->folio, step[1] == 'g' ? 1 : -1);
		break;
	case 's':
	case 'e':
		ok = !mm_nr_exclusive(test, i) == (step[1] == 's');
		break;
	case '/':
		mm_split_pmd(c, i);
		break;
	case 'm':
		mm_move(test, i, page, quarter);
		break;
	}
	KUNIT_EXPECT_TRUE_MSG(test, ok, "order %u, \"%s\"", c->order, step);
}

static void run_steps(struct kunit *test, const char *steps)
{
	for (; steps; steps = strchr(steps, ' ')) {
		steps += *steps == ' ';
		run_step(test, steps);
	}
}

static void test_history(struct kunit *test)
{
	const struct history *history = test->param_value;
	int o;

	if (history->new) {
		history->new(test);
		run_steps(test, history->steps);
		return;
	}
	for (o = 0; o < ARRAY_SIZE(orders); o++) {
		new_folio(test, orders[o].order);
		run_steps(test, history->steps);
	}
}

/* The range of entries ends with the folio or with the page table. */
static void test_range(struct kunit *test)
{
	struct cow_ctx *c = test->priv;
	const unsigned long end = c->addr + PMD_SIZE;
	struct folio_pte_range before, behind;
	struct vm_area_struct *vma;
	pte_t table[16] = {};
	struct page *page;

	new_folio(test, 4);
	page = folio_page(c->folio, 5);
	mmap_read_lock(c->mms[0]);
	vma = vma_lookup(c->mms[0], end);
	before = folio_pte_range(c->folio, page, vma, end - 3 * PAGE_SIZE, table + 5);
	behind = folio_pte_range(c->folio, page, vma, end + 3 * PAGE_SIZE, table + 5);
	mmap_read_unlock(c->mms[0]);
	KUNIT_EXPECT_EQ(test, before.start, end - 8 * PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, before.end, end);
	KUNIT_EXPECT_EQ(test, behind.start, end);
	KUNIT_EXPECT_EQ(test, behind.end, end + 14 * PAGE_SIZE);
}

/* Two MMs map every other page of the first @nr each, so each page is a batch. */
static void test_walk_alternate(struct kunit *test)
{
	struct cow_ctx *c = test->priv;
	unsigned long nr, page;
	int half, i;

	for (half = 0; half <= 1; half++) {
		folio_of_param(test);
		nr = c->nr >> half;
		if (half)
			mm_zap(c, 0, nr, nr);
		run_steps(test, "0>1 0>2 0x");
		for (page = 0; page < nr; page++)
			mm_zap(c, 1 + page % 2, page, 1);

		for (i = 2; i; i--) {
			KUNIT_EXPECT_EQ(test, 0, mm_nr_exclusive(test, i));
			KUNIT_EXPECT_LE(test, c->tf.nr_read, half ? c->nr : 2);
		}
		mm_exit(c, 1);
		KUNIT_EXPECT_EQ(test, nr / 2, mm_nr_exclusive(test, 2));
		KUNIT_EXPECT_LE(test, c->tf.nr_read, nr);
	}
}

/* Replace every other part of the folio by a folio of this order. */
static void nest_folios(struct kunit *test, unsigned int order)
{
	struct cow_ctx *c = test->priv;
	const unsigned long nr = 1UL << order;
	unsigned long page;

	set_order(c, order);
	for (page = nr; page < c->nr; page += 2 * nr) {
		mm_zap(c, 0, page, nr);
		mm_write(test, 0, page);
		if (folio_order(pfn_folio(mm_mapping(c, 0, page).pfn)) != order)
			kunit_skip(test, "no folio of order %u", order);
	}
	set_order(c, 0);
}

/* Large folios alternate in the table: one in the holes of another, or two orders. */
static void test_walk_nested(struct kunit *test)
{
	struct cow_ctx *c = test->priv;
	int three;

	for (three = 0; three <= 1; three++) {
		new_folio(test, HPAGE_PMD_ORDER);
		if (three)
			nest_folios(test, 4);
		nest_folios(test, 2);
		/* MM 2 alone maps the folios. The MM ids have had no slot for it. */
		run_steps(test, "0>1 0>2 0x 1x");
		/* With three, the limit of what is read is reached: some count as shared. */
		KUNIT_EXPECT_GE(test, mm_nr_exclusive(test, 2), three ? 1 : c->nr);
		KUNIT_EXPECT_GE(test, c->tf.nr_read, c->nr);
		KUNIT_EXPECT_LE(test, c->tf.nr_read, three ? 2 * c->nr : c->nr + c->nr / 2);
		mm_fork(test, 2, 3);
		KUNIT_EXPECT_EQ(test, 0, mm_nr_exclusive(test, 2));
		KUNIT_EXPECT_LE(test, c->tf.nr_read, 2 * c->nr);
	}
}

/* NUMA balancing samples a folio that only the last child of a fork tree maps. */
static void test_numa_hinting(struct kunit *test)
{
#ifdef CONFIG_NUMA_BALANCING
	struct cow_ctx *c = folio_of_param(test);
	const unsigned long end = c->addr + c->nr * PAGE_SIZE;
	const int mode = sysctl_numa_balancing_mode;
	struct vm_area_struct *vma;
	int pmd;

	for (pmd = 0; pmd <= (c->order == HPAGE_PMD_ORDER); pmd++) {
		if (pmd)
			new_pmd(test);
		sysctl_numa_balancing_mode = NUMA_BALANCING_NORMAL;
		run_steps(test, "0>1 0>2 0x");
		mmget(c->mms[2]);	/* as if it had threads, so on any node */
		mmap_read_lock(c->mms[2]);
		vma = vma_lookup(c->mms[2], c->addr);
		KUNIT_EXPECT_EQ(test, change_prot_numa(vma, c->addr, end), 0);
		mm_exit(c, 1);
		KUNIT_EXPECT_EQ(test, change_prot_numa(vma, c->addr, end), c->nr);
		mmap_read_unlock(c->mms[2]);
		mmput(c->mms[2]);
		sysctl_numa_balancing_mode = mode;
	}
#else
	kunit_skip(test, "no NUMA balancing in this kernel");
#endif
}

/*
 * The folio is exclusive although several VMAs of the MM map it, to a child that reads
 * its page table if this can tell entries of VM_PFNMAP VMAs apart.
 */
static void test_vmas(struct kunit *test)
{
	struct cow_ctx *c = test->priv;
	int writer;

	for (writer = 0; writer <= IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL); writer++) {
		folio_of_param(test);
		KUNIT_ASSERT_EQ(test, 0, do_madvise(c->mms[0], c->addr + PAGE_SIZE, PAGE_SIZE,
						    MADV_NOHUGEPAGE));
		mm_fork(test, 0, 1);
		mm_exit(c, !writer);
		mm_write(test, writer, 1);
		KUNIT_EXPECT_EQ(test, mm_nr_writable(c, writer), 1);
		mm_write(test, writer, 0);
		KUNIT_EXPECT_EQ(test, mm_nr_writable(c, writer), 2);
		mm_write_rest(test, writer);
	}
}

/* A forced write, as ptrace() makes it, in a VMA without VM_WRITE. */
static void test_forced(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);
	struct mm_struct *mm = c->mms[0];
	struct page *page;

	run_steps(test, "0>1 1x");
	mmap_write_lock(mm);
	vm_flags_clear(vma_lookup(mm, c->addr), VM_WRITE);
	KUNIT_EXPECT_EQ(test, 1, pin_user_pages_remote(mm, c->addr, 1, FOLL_WRITE | FOLL_FORCE,
						       &page, NULL));
	mmap_write_unlock(mm);
	KUNIT_EXPECT_TRUE(test, mm_maps(c, 0, 0));
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 0);
	unpin_user_page(page);
}

static pte_t pte_mkprotnone(pte_t pte)
{
	return pte_modify(pte, PAGE_NONE);
}

static const struct entry {
	const char *desc;
	pte_t (*make)(pte_t pte);
	bool kept;	/* not by a write to another page */
	bool possible;
} entries[] = {
	{ "NUMA hinting", pte_mkprotnone, true, IS_ENABLED(CONFIG_NUMA_BALANCING) },
	{ "soft-dirty", pte_clear_soft_dirty, true, IS_ENABLED(CONFIG_MEM_SOFT_DIRTY) },
	{ "special", pte_mkspecial, true, IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL) },
	{ "clean", pte_mkclean, false, true },
	{ "old", pte_mkold, false, true },
};

KUNIT_ARRAY_PARAM_DESC(entries, entries, desc);

/* Return the entry of a page of MM 0, after it was set to @new, unless that is NULL. */
static pte_t set_entry(struct kunit *test, unsigned long page, const pte_t *new)
{
	struct cow_ctx *c = test->priv;
	const unsigned long addr = c->addr + page * PAGE_SIZE;
	pte_t *ptep = lock_ptes(test, 0, page);
	pte_t pte = ptep_get(ptep);

	if (new) {
		pte = ptep_modify_prot_start(c->vma, addr, ptep);
		ptep_modify_prot_commit(c->vma, addr, ptep, pte, *new);
		pte = ptep_get(ptep);
		flush_tlb_page(c->vma, addr);
	}
	unlock_ptes(c, 0, ptep);
	return pte;
}

/* A batch leaves out an entry that needs a write fault of its own. */
static void test_entry(struct kunit *test)
{
	const struct entry *entry = test->param_value;
	struct cow_ctx *c = test->priv;
	pte_t old, before, after;

	if (!entry->possible)
		kunit_skip(test, "not in this kernel");
	new_folio(test, 4);
	run_steps(test, "0>1 1x");
	mmap_write_lock(c->mms[0]);
	vm_flags_clear(vma_lookup(c->mms[0], c->addr), VM_SOFTDIRTY);
	mmap_write_unlock(c->mms[0]);

	old = set_entry(test, 5, NULL);
	after = entry->make(old);
	before = set_entry(test, 5, &after);
	mm_write(test, 0, 8);
	after = set_entry(test, 5, NULL);
	KUNIT_EXPECT_EQ(test, pte_write(after), !entry->kept);
	KUNIT_EXPECT_EQ(test, pte_dirty(before), pte_dirty(after));
	KUNIT_EXPECT_EQ(test, pte_soft_dirty(before), pte_soft_dirty(after));
	KUNIT_EXPECT_EQ(test, pte_protnone(before), pte_protnone(after));
	if (pte_special(after))
		set_entry(test, 5, &old);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), 16 - entry->kept);
	mm_write_rest(test, 0);
}

/* Entries of MM @i that are part of a contpte block. */
static unsigned long mm_nr_contpte(struct kunit *test, int i)
{
	unsigned long count = 0;
#ifdef CONFIG_ARM64_CONTPTE
	struct cow_ctx *c = test->priv;
	pte_t *ptep = lock_ptes(test, i, 0);
	unsigned long page;

	for (page = 0; page < c->nr; page++)
		count += pte_valid_cont(__ptep_get(ptep + page));
	unlock_ptes(c, i, ptep);
#endif
	return count;
}

/*
 * The contpte blocks of arm64 stay folded. A block that MM 0 has unfolded is not folded:
 * this would need break-before-make.
 */
static void test_contpte(struct kunit *test)
{
	struct cow_ctx *c = test->priv;
	unsigned long folded;
	pte_t pte, readonly;
	int writer;

	for (writer = 1; writer >= 0; writer--) {
		folio_of_param(test);
		if (mm_nr_contpte(test, 0) != c->nr)
			kunit_skip(test, "entries of this folio are not folded");
		if (!writer) {
			pte = set_entry(test, 3, NULL);
			readonly = pte_wrprotect(pte);
			set_entry(test, 3, &readonly);
			set_entry(test, 3, &pte);
		}
		folded = mm_nr_contpte(test, 0);
		KUNIT_EXPECT_EQ(test, folded == c->nr, writer);
		mm_fork(test, 0, 1);
		KUNIT_EXPECT_EQ(test, mm_nr_contpte(test, 0), folded);
		mm_exit(c, !writer);
		mm_write(test, writer, 3);
		KUNIT_EXPECT_EQ(test, mm_nr_contpte(test, writer), folded);
		mm_write_rest(test, writer);
		KUNIT_EXPECT_EQ(test, mm_nr_contpte(test, writer), folded);
	}
}

/* Writes of MM 0 in user mode, not by GUP */
static unsigned long nr_writable_after(struct kunit *test, unsigned long page)
{
	mm_fault(test, 0, page, FAULT_FLAG_WRITE | FAULT_FLAG_USER);
	return mm_nr_writable(test->priv, 0);
}

static unsigned long nr_batched(void)
{
	static unsigned long events[NR_VM_EVENT_ITEMS];

	all_vm_events(events);
	return events[THP_COW_BATCH];
}

/* The window of a write fault grows for a writer that continues where it ends. */
static void test_window(struct kunit *test)
{
	struct cow_ctx *c = folio_of_param(test);
	const unsigned long min = IS_ENABLED(CONFIG_PAGE_SIZE_4KB) ? 16 : 128;
	const unsigned long max = min(c->nr, 512);
	unsigned long last, batched, sum = 0, faults = 0;

	run_steps(test, "0>1 1x");
	/* At the end of the folio, with no writable entry before the window */
	last = nr_writable_after(test, c->nr - 1);
	KUNIT_EXPECT_EQ(test, last, min(c->nr, min));
	for (; sum < c->nr - last && faults < c->nr; faults++)
		sum = nr_writable_after(test, sum) - last;
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), c->nr);
	if (c->nr > min)
		KUNIT_EXPECT_LE(test, faults, ilog2(c->nr / min) + 1 + c->nr / 512);

	/* GUP gets the largest window at once, which has writable entries here. */
	run_steps(test, "0>1 1x");
	batched = nr_batched();
	nr_writable_after(test, 0);
	mm_write(test, 0, max - 1);
	KUNIT_EXPECT_EQ(test, mm_nr_writable(c, 0), max);
	if (IS_ENABLED(CONFIG_VM_EVENT_COUNTERS))
		KUNIT_EXPECT_EQ(test, nr_batched() - batched, max - (max > min ? 2 : 1));

	/* A copy and a hole before the window do not let it grow. */
	if (c->nr < 8 * min)
		return;
	mm_fork(test, 0, 1);
	mm_write(test, 0, min);
	mm_exit(c, 1);
	KUNIT_EXPECT_EQ(test, nr_writable_after(test, 2 * min), min);
	KUNIT_EXPECT_EQ(test, nr_writable_after(test, 4 * min), 2 * min);
	KUNIT_EXPECT_EQ(test, nr_writable_after(test, 5 * min), 4 * min);
}

static struct kunit_case cow_test_cases[] = {
	KUNIT_CASE_PARAM(test_history, histories_gen_params),
	KUNIT_CASE(test_range),
	KUNIT_CASE_PARAM(test_walk_alternate, orders_gen_params),
	KUNIT_CASE(test_walk_nested),
	KUNIT_CASE_PARAM(test_numa_hinting, orders_gen_params),
	KUNIT_CASE_PARAM(test_vmas, orders_gen_params),
	KUNIT_CASE_PARAM(test_forced, orders_gen_params),
	KUNIT_CASE_PARAM(test_entry, entries_gen_params),
	KUNIT_CASE_PARAM(test_contpte, orders_gen_params),
	KUNIT_CASE_PARAM(test_window, orders_gen_params),
	{}
};

static struct kunit_suite cow_test_suite = {
	.name = "cow",
	.init = cow_test_init,
	.exit = cow_test_exit,
	.test_cases = cow_test_cases,
};

kunit_test_suite(cow_test_suite);
