// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests for what Documentation/mm/pfnmap.rst says of the pages and PFNs that a
 * driver inserts into a VMA. The driver is a file whose mmap() or page faults
 * insert the same few pages by each of the functions that there are; the page
 * tables are real ones.
 */
#include <kunit/test.h>
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/shmem_fs.h>
#include <linux/vmstat.h>

#include "../internal.h"

#define NR		4		/* pages */
#define ORDER		ilog2(NR)
#define SIZE		(NR * PAGE_SIZE)

#define HAS_SPECIAL	IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL)

/* Which page table entries are copied by fork(), whatever they map. */
#define COPIED		(VM_PFNMAP | VM_MIXEDMAP)
/* Flags that an insertion function may set. */
#define FLAGS		(VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP | VM_DONTDUMP)

struct insertion {
	const char *desc;
	/* The driver: at mmap(), or at a page fault. */
	vm_flags_t set;
	int (*mmap)(struct vm_area_struct *vma, struct page **pages);
	vm_fault_t (*fault)(struct vm_fault *vmf, struct page *page);
	/* What is to be expected. */
	vm_flags_t flags;	/* of the VMA */
	bool normal;		/* entries of pages that are counted */
	bool shared_only;	/* not in a COW mapping */
	bool locked;		/* the folio is locked when it is mapped */
};

enum kind {
	SMALL,			/* pages that are neighbours, no more */
	COMPOUND,		/* a page that is not rmappable */
	RMAPPABLE,		/* a folio like those of the page cache */
	NR_KINDS,
};

static const char *const kinds[] = { "small", "compound", "rmappable" };

struct pfnmap_ctx {
	const struct insertion *ins;
	enum kind kind;
	bool private;
	struct page *pages[NR];
	struct file *file;
	struct mm_struct *mm;
	unsigned long addr;
	/* before there was a mapping */
	long refs;
	long file_rss;
	long anon_rss;
	u64 preset;		/* of the mapcounts */
	struct kunit_suppressed_warning *suppressed;
};

#define EXPECT(test, a, b)						\
do {									\
	struct kunit *__test = (test);					\
	const struct pfnmap_ctx *__c = __test->priv;			\
									\
	KUNIT_EXPECT_EQ_MSG(__test, a, b, "%s, %s", kinds[__c->kind],	\
			    __c->private ? "private" : "shared");	\
} while (0)

static vm_fault_t driver_fault(struct vm_fault *vmf)
{
	struct pfnmap_ctx *c = vmf->vma->vm_private_data;

	return c->ins->fault(vmf, c->pages[vmf->pgoff]);
}

static const struct vm_operations_struct driver_vm_ops = {
	.fault = driver_fault,
};

static int driver_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct pfnmap_ctx *c = file->private_data;

	vm_flags_set(vma, c->ins->set);
	vma->vm_private_data = c;
	if (c->ins->fault)
		vma->vm_ops = &driver_vm_ops;
	return c->ins->mmap ? c->ins->mmap(vma, c->pages) : 0;
}

static const struct file_operations driver_fops = {
	.mmap = driver_mmap,
};

static int insert_pages(struct vm_area_struct *vma, struct page **pages)
{
	unsigned long num = NR;

	return vm_insert_pages(vma, vma->vm_start, pages, &num);
}

static int remap(struct vm_area_struct *vma, struct page **pages)
{
	return remap_pfn_range(vma, vma->vm_start, page_to_pfn(pages[0]), SIZE,
			       vma->vm_page_prot);
}

static vm_fault_t fault_page_mkwrite(struct vm_fault *vmf, struct page *page)
{
	return vmf_insert_page_mkwrite(vmf, page, vmf->flags & FAULT_FLAG_WRITE);
}

static vm_fault_t fault_return(struct vm_fault *vmf, struct page *page)
{
	get_page(page);
	vmf->page = page;
	return 0;
}

static vm_fault_t fault_mixed(struct vm_fault *vmf, struct page *page)
{
	return vmf_insert_mixed(vmf->vma, vmf->address, page_to_pfn(page));
}

static vm_fault_t fault_pfn(struct vm_fault *vmf, struct page *page)
{
	return vmf_insert_pfn(vmf->vma, vmf->address, page_to_pfn(page));
}

static const struct insertion insertions[] = {
	{
		.desc = "vm_insert_pages", .mmap = insert_pages,
		.flags = VM_MIXEDMAP, .normal = true,
	}, {
		.desc = "vmf_insert_page_mkwrite", .fault = fault_page_mkwrite,
		.normal = true,
	}, {
		.desc = "fault returns a page", .fault = fault_return,
		.normal = true, .locked = true,
	}, {
		.desc = "vmf_insert_mixed", .set = VM_MIXEDMAP, .fault = fault_mixed,
		.flags = VM_MIXEDMAP, .normal = !HAS_SPECIAL,
	}, {
		.desc = "vmf_insert_pfn", .set = VM_PFNMAP, .fault = fault_pfn,
		.flags = VM_PFNMAP, .shared_only = true,
	}, {
		.desc = "remap_pfn_range", .mmap = remap,
		.flags = VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP,
	},
};

KUNIT_ARRAY_PARAM_DESC(insertions, insertions, desc);

static int pfnmap_test_init(struct kunit *test)
{
	struct pfnmap_ctx *c = kunit_kzalloc(test, sizeof(*c), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, c);
	test->priv = c;
	KUNIT_ASSERT_EQ(test, 0, kunit_attach_mm());
	c->mm = current->mm;
	return 0;
}

KUNIT_DEFINE_ACTION_WRAPPER(close_file, fput, struct file *);

/* @file: NULL for that of the driver */
static void open_file(struct kunit *test, const struct insertion *ins, struct file *file)
{
	struct pfnmap_ctx *c = test->priv;

	c->ins = ins;
	c->file = file ?: anon_inode_create_getfile("[pfnmap_kunit]", &driver_fops, c,
						    O_RDWR, NULL);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, c->file);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, close_file, c->file));
}

static struct folio *the_folio(const struct pfnmap_ctx *c)
{
	return page_folio(c->pages[0]);
}

static void put_pages(void *data)
{
	struct pfnmap_ctx *c = data;
	int i;

	for (i = 0; i < (c->kind == SMALL ? NR : 1); i++)
		put_page(c->pages[i]);
}

/* Pages with contiguous PFNs */
static void new_pages(struct kunit *test, enum kind kind)
{
	struct pfnmap_ctx *c = test->priv;
	struct page *page = alloc_pages(GFP_KERNEL | (kind == SMALL ? 0 : __GFP_COMP), ORDER);
	int i;

	KUNIT_ASSERT_NOT_NULL(test, page);
	if (kind == SMALL)
		split_page(page, ORDER);
	if (kind == RMAPPABLE)
		folio_set_large_rmappable(page_folio(page));
	c->kind = kind;
	for (i = 0; i < NR; i++)
		c->pages[i] = page + i;
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, put_pages, c));
}

/* The sums of the references and of the mapcounts of all folios */
static void count_folios(const struct pfnmap_ctx *c, long *refs, long *mappings)
{
	struct folio *folio;
	int i;

	*refs = 0;
	*mappings = 0;
	for (i = 0; i < (c->kind == SMALL ? NR : 1); i++) {
		folio = page_folio(c->pages[i]);
		*refs += folio_ref_count(folio);
		*mappings += folio_mapcount(folio);
	}
}

static void note_counts(struct pfnmap_ctx *c)
{
	long mappings;

	count_folios(c, &c->refs, &mappings);
	c->file_rss = get_mm_counter_sum(c->mm, MM_FILEPAGES);
	c->anon_rss = get_mm_counter_sum(c->mm, MM_ANONPAGES);
}

/*
 * Since note_counts(), this many mappings of the pages came, in any MM, and this
 * many pages of each sort in that of the test. Each mapping has a reference.
 */
static void expect_counts(struct kunit *test, long mappings, long file, long anon)
{
	const struct pfnmap_ctx *c = test->priv;
	long refs, now;

	count_folios(c, &refs, &now);
	EXPECT(test, refs, c->refs + mappings);
	EXPECT(test, now, mappings);
	EXPECT(test, get_mm_counter_sum(c->mm, MM_FILEPAGES), c->file_rss + file);
	EXPECT(test, get_mm_counter_sum(c->mm, MM_ANONPAGES), c->anon_rss + anon);
	if (c->kind != SMALL && !mappings)
		EXPECT(test, folio_read_mapcounts(the_folio(c)).val, 0ULL);
}

struct entry {
	unsigned long pfn;	/* 0: none */
	bool special;
	bool writable;
	struct page *page;	/* what vm_normal_page() says */
};

static struct entry get_entry(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma;
	struct entry e = {};
	spinlock_t *ptl;	/* of the page table */
	pte_t *ptep, pte;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, addr);
	ptep = vma ? get_locked_pte(mm, addr, &ptl) : NULL;
	if (ptep) {
		pte = ptep_get(ptep);
		if (pte_present(pte)) {
			e.pfn = pte_pfn(pte);
			e.special = pte_special(pte);
			e.writable = pte_write(pte);
			e.page = vm_normal_page(vma, addr, pte);
		}
		pte_unmap_unlock(ptep, ptl);
	}
	mmap_read_unlock(mm);
	return e;
}

static struct entry entry_of(const struct pfnmap_ctx *c, int i)
{
	return get_entry(c->mm, c->addr + i * PAGE_SIZE);
}

/* The entry in @mm maps page @i of the driver, as it was inserted. */
static void expect_entry(struct kunit *test, struct mm_struct *mm, int i, bool writable)
{
	const struct pfnmap_ctx *c = test->priv;
	const struct entry e = get_entry(mm, c->addr + i * PAGE_SIZE);

	EXPECT(test, e.pfn, page_to_pfn(c->pages[i]));
	EXPECT(test, e.special, HAS_SPECIAL && !c->ins->normal);
	EXPECT(test, e.page == (c->ins->normal ? c->pages[i] : NULL), true);
	EXPECT(test, e.writable, writable);
}

static void expect_entries(struct kunit *test, struct mm_struct *mm, int nr, bool writable)
{
	while (nr--)
		expect_entry(test, mm, nr, writable);
}

static int fault(const struct pfnmap_ctx *c, struct mm_struct *mm, int i, unsigned int flags)
{
	int ret;

	mmap_read_lock(mm);
	ret = fixup_user_fault(mm, c->addr + i * PAGE_SIZE, flags, NULL);
	mmap_read_unlock(mm);
	return ret;
}

/* Map the file, and have all entries of the driver inserted. */
static void map_all(struct kunit *test, unsigned long size)
{
	struct pfnmap_ctx *c = test->priv;
	int i;

	c->addr = kunit_vm_mmap(test, c->file, 0, size, PROT_READ | PROT_WRITE,
				c->private ? MAP_PRIVATE : MAP_SHARED, 0);
	KUNIT_ASSERT_TRUE(test, c->addr && !IS_ERR_VALUE(c->addr));
	for (i = 0; i < NR && c->ins->fault; i++)
		KUNIT_ASSERT_EQ(test, 0, fault(c, c->mm, i, 0));
}

/* Nothing but the test changes the VMAs. */
static struct vm_area_struct *vma_of(const struct pfnmap_ctx *c)
{
	struct vm_area_struct *vma;

	mmap_read_lock(c->mm);
	vma = vma_lookup(c->mm, c->addr);
	mmap_read_unlock(c->mm);
	return vma;
}

static bool is_possible(const struct insertion *ins, enum kind kind, bool private)
{
	if (private && ins->shared_only)
		return false;
	/* In other VMAs it would be claimed, for which it has to be locked. */
	return kind != RMAPPABLE || (ins->flags & COPIED) || ins->locked;
}

/* Drivers' folios have no creator, and so are shared if mapped more than once. */
static void expect_creator(struct kunit *test)
{
	const struct pfnmap_ctx *c = test->priv;
	struct folio *folio = the_folio(c);
	const bool claimed = c->ins->locked && folio_test_large(folio) &&
			     folio_test_large_rmappable(folio);

	if (c->kind == SMALL)
		return;
	EXPECT(test, folio->_creator == (claimed ? c->mm : NULL), true);
	EXPECT(test, folio_maybe_mapped_shared(folio),
	       c->ins->normal && (!claimed || folio_mapcount(folio) > NR));
}

/* An rmap walk, as of the page cache, does not count PFNs as mappings. */
static void expect_page_mapcounts(struct kunit *test)
{
	const struct pfnmap_ctx *c = test->priv;
	struct folio *folio = the_folio(c);
	unsigned int counts[NR];

	folio_lock(folio);
	folio->mapping = c->file->f_mapping;
	folio->index = 0;
	EXPECT(test, folio_page_mapcounts(folio, 0, NR, counts), 0);
	folio->mapping = NULL;
	folio_unlock(folio);
	EXPECT(test, counts[1], (unsigned int)c->ins->normal);
}

static void insert_body(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	const int counted = c->ins->normal ? NR : 0;

	EXPECT(test, vma_of(c)->vm_flags & FLAGS, c->ins->flags);
	expect_entries(test, c->mm, NR, !c->private);
	expect_counts(test, counted, counted, 0);
	expect_creator(test);
	if (c->kind == RMAPPABLE && !c->private)
		expect_page_mapcounts(test);

	/* One page that is mapped is not shared, nor are PFNs mapped. */
	EXPECT(test, vm_munmap(c->addr + PAGE_SIZE, SIZE - PAGE_SIZE), 0);
	expect_entry(test, c->mm, 0, !c->private);
	expect_counts(test, !!counted, !!counted, 0);
	EXPECT(test, folio_maybe_mapped_shared(the_folio(c)), false);
}

static struct mm_struct *fork_mm(struct kunit *test, int err)
{
	struct pfnmap_ctx *c = test->priv;
	struct mm_struct *child = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, child);
	child->task_size = c->mm->task_size;
	KUNIT_ASSERT_EQ(test, err, dup_mmap(child, c->mm));
	return child;
}

/* fork() copies entries if the VMA has one of the flags. */
static void fork_body(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	const bool copied = c->ins->flags & COPIED;
	const int counted = c->ins->normal ? NR : 0;
	struct mm_struct *child = fork_mm(test, 0);

	if (copied)
		expect_entries(test, child, NR, !c->private);
	EXPECT(test, !get_entry(child, c->addr).pfn, !copied);
	EXPECT(test, get_mm_counter_sum(child, MM_FILEPAGES), copied ? (long)counted : 0);
	expect_counts(test, copied ? 2 * counted : counted, counted, 0);
	EXPECT(test, copied ? 0 : fault(c, child, 0, 0), 0);
	expect_creator(test);
	mmput(child);
	expect_counts(test, counted, counted, 0);
}

/* An anonymous page has come in the place of page @i of the driver. */
static void expect_copy(struct kunit *test, int i)
{
	struct pfnmap_ctx *c = test->priv;
	const struct entry e = entry_of(c, i);

	KUNIT_ASSERT_NOT_NULL(test, e.page);
	EXPECT(test, !!PageAnon(e.page), true);
	EXPECT(test, e.page != c->pages[i], true);
	EXPECT(test, e.special, false);
}

static unsigned long nr_cow_copies(void)
{
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	static unsigned long events[NR_VM_EVENT_ITEMS];

	all_vm_events(events);
	return events[THP_COW_COPY];
#else
	return 0;
#endif
}

/*
 * A write to a private mapping copies, even if the entries have all references. Then
 * fork() copies all entries.
 */
static void write_body(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	const int last = NR - 1, counted = c->ins->normal ? last : 0;
	const int ours = c->kind != SMALL && counted;
	const unsigned long copies = nr_cow_copies();
	struct mm_struct *child;
	struct entry e;

	if (!c->private)
		return;
	folio_ref_sub(the_folio(c), ours);
	EXPECT(test, fault(c, c->mm, last, FAULT_FLAG_WRITE), 0);
	folio_ref_add(the_folio(c), ours);
	expect_copy(test, last);
	EXPECT(test, nr_cow_copies(), copies);	/* of anonymous folios */
	e = entry_of(c, last);
	EXPECT(test, e.writable, true);
	expect_counts(test, counted, counted, 1);

	child = fork_mm(test, 0);
	expect_entries(test, child, last, false);
	EXPECT(test, get_entry(child, c->addr + last * PAGE_SIZE).pfn, e.pfn);
	EXPECT(test, get_mm_counter_sum(child, MM_ANONPAGES), 1L);
	expect_counts(test, 2 * counted, counted, 1);
	mmput(child);
	expect_counts(test, counted, counted, 1);
}

/* Pin the page at @i, if GUP allows it, return it in @page, and unpin it. */
static int pin(const struct pfnmap_ctx *c, int i, unsigned int flags, struct page **page)
{
	const int ret = pin_user_pages_fast(c->addr + i * PAGE_SIZE, 1, flags, page);

	if (ret == 1)
		unpin_user_page(*page);
	else
		*page = NULL;
	return ret;
}

static void gup_body(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	const bool refused = c->ins->flags & (VM_IO | VM_PFNMAP);
	const int pinned = c->ins->normal ? 1 : refused ? -EFAULT : -EEXIST;
	struct page *normal = c->ins->normal ? c->pages[0] : NULL;
	struct page *page;

	EXPECT(test, pin(c, 0, 0, &page), pinned);
	EXPECT(test, page == normal, true);
	EXPECT(test, pin(c, 0, FOLL_LONGTERM, &page), pinned);
	if (!c->private) {
		EXPECT(test, page == normal, true);
		return;
	}

	/* FOLL_LONGTERM has replaced the page by an anonymous copy. */
	if (normal) {
		expect_copy(test, 0);
		EXPECT(test, page == entry_of(c, 0).page, true);
	}
	/* FOLL_WRITE copies, too, even from a special entry. */
	EXPECT(test, pin(c, 1, FOLL_WRITE, &page), refused ? -EFAULT : 1);
	if (refused)
		expect_entry(test, c->mm, 1, false);
	else
		expect_copy(test, 1);
}

/*
 * Have each kind of pages mapped in each kind of mapping, look what the test finds, and
 * see that when they are unmapped all is as it was before.
 */
static void test_insertion(struct kunit *test)
{
	static void (*const bodies[])(struct kunit *test) = {
		insert_body, fork_body, write_body, gup_body,
	};
	struct pfnmap_ctx *c = test->priv;
	int i, variant;

	open_file(test, test->param_value, NULL);
	for (variant = 0; variant < 2 * NR_KINDS * ARRAY_SIZE(bodies); variant++) {
		c->private = variant % 2;
		c->kind = variant / 2 % NR_KINDS;
		i = variant / 2 / NR_KINDS;
		if (!is_possible(c->ins, c->kind, c->private))
			continue;
		new_pages(test, c->kind);
		note_counts(c);
		map_all(test, SIZE);
		bodies[i](test);
		EXPECT(test, vm_munmap(c->addr, SIZE), 0);
		expect_counts(test, 0, 0, 0);
		kunit_release_action(test, put_pages, c);
	}
}

static int insert_into(const struct pfnmap_ctx *c, int i, struct page *page)
{
	int err;

	mmap_read_lock(c->mm);
	err = vm_insert_page(vma_lookup(c->mm, c->addr), c->addr + i * PAGE_SIZE, page);
	mmap_read_unlock(c->mm);
	return err;
}

/* For tests that insert by themselves */
static const struct insertion mixedmap = { .set = VM_MIXEDMAP }, plain;

/* What vm_insert_page() does not take, and what it does with a zeropage. */
static void test_refused(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;

	open_file(test, &mixedmap, NULL);
	new_pages(test, SMALL);
	note_counts(c);
	c->private = true;
	map_all(test, SIZE);
	/* A page with a type, which is in the place of its mapcount */
	__folio_set_offline(the_folio(c));
	EXPECT(test, insert_into(c, 0, c->pages[0]), -EINVAL);
	EXPECT(test, folio_mapcount(the_folio(c)), 0);
	__folio_clear_offline(the_folio(c));
	EXPECT(test, insert_into(c, 0, c->pages[0]), 0);
	EXPECT(test, insert_into(c, 0, c->pages[1]), -EBUSY);
	expect_counts(test, 1, 1, 0);
	if (!mm_forbids_zeropage(c->mm)) {
		EXPECT(test, insert_into(c, 1, ZERO_PAGE(c->addr)), 0);
		EXPECT(test, entry_of(c, 1).special, HAS_SPECIAL);
		KUNIT_EXPECT_NULL(test, entry_of(c, 1).page);
	}
	expect_counts(test, 1, 1, 0);
	EXPECT(test, vm_munmap(c->addr, SIZE), 0);
}

/* Count more mappings than there are; 0: what there are. */
static void preset_mapcounts(struct kunit *test, u64 val)
{
	struct pfnmap_ctx *c = test->priv;

	/* folio_mapcounts_check reports it. */
	if (val)
		c->suppressed = kunit_start_suppress_warning(test);
	atomic64_add(val - c->preset, &the_folio(c)->_mapcounts);
	c->preset = val;
	if (!val)
		kunit_end_suppress_warning(test, c->suppressed);
}

/* At the bound of mappings, vm_insert_page() and fork() fail, and leave no reference. */
static void test_ptes_bound(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;

	open_file(test, &mixedmap, NULL);
	new_pages(test, COMPOUND);
	note_counts(c);
	map_all(test, SIZE);
	preset_mapcounts(test, (MAPCOUNTS_PAGES_MAX - 1) * MAPCOUNTS_PTE);
	EXPECT(test, insert_into(c, 0, c->pages[0]), 0);
	EXPECT(test, insert_into(c, 1, c->pages[1]), -EINVAL);
	mmput(fork_mm(test, -ENOMEM));
	preset_mapcounts(test, 0);
	expect_counts(test, 1, 1, 0);
	EXPECT(test, insert_into(c, 1, c->pages[1]), 0);
	expect_counts(test, 2, 2, 0);
	EXPECT(test, vm_munmap(c->addr, SIZE), 0);
	expect_counts(test, 0, 0, 0);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/* Nor does a fault on a file, which begins with a fault-around. */
static void test_fault_bound(struct kunit *test)
{
	struct file *file = shmem_file_setup("pfnmap_kunit", SIZE, EMPTY_VMA_FLAGS);
	struct pfnmap_ctx *c = test->priv;
	struct folio *folio;

	new_pages(test, RMAPPABLE);
	open_file(test, &plain, file);
	mapping_set_large_folios(file->f_mapping);
	folio = the_folio(c);
	KUNIT_ASSERT_EQ(test, 0, filemap_add_folio(file->f_mapping, folio, 0, GFP_KERNEL));
	folio_mark_uptodate(folio);
	folio_unlock(folio);
	lru_add_drain_all();
	note_counts(c);

	map_all(test, SIZE);
	preset_mapcounts(test, MAPCOUNTS_PAGES_MAX * MAPCOUNTS_PTE);
	EXPECT(test, fault(c, c->mm, 0, 0), -EFAULT);
	preset_mapcounts(test, 0);
	expect_counts(test, 0, 0, 0);
	EXPECT(test, fault(c, c->mm, 0, 0), 0);
	EXPECT(test, entry_of(c, 0).page == c->pages[0], true);
	EXPECT(test, vm_munmap(c->addr, SIZE), 0);
}

#define HAS_PMD_SPECIAL	IS_ENABLED(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP)

static pmd_t *alloc_pmd(struct mm_struct *mm, unsigned long addr)
{
	p4d_t *p4d = p4d_alloc(mm, pgd_offset(mm, addr), addr);
	pud_t *pud = p4d ? pud_alloc(mm, p4d, addr) : NULL;

	return pud ? pmd_alloc(mm, pud, addr) : NULL;
}

static pmd_t get_pmd(struct mm_struct *mm, unsigned long addr)
{
	pmd_t *pmdp, pmd = __pmd(0);

	mmap_read_lock(mm);
	pmdp = mm_find_pmd(mm, addr);
	if (pmdp)
		pmd = pmdp_get_lockless(pmdp);
	mmap_read_unlock(mm);
	return pmd;
}

static vm_fault_t insert_pmd(struct pfnmap_ctx *c, struct folio *folio, bool by_folio)
{
	struct vm_fault vmf = {
		.vma = vma_of(c),
		.address = c->addr,
		.pmd = alloc_pmd(c->mm, c->addr),
	};
	vm_fault_t ret = VM_FAULT_OOM;

	mmap_read_lock(c->mm);
	if (vmf.pmd && by_folio)
		ret = vmf_insert_folio_pmd(&vmf, folio, false);
	else if (vmf.pmd)
		ret = vmf_insert_pfn_pmd(&vmf, folio_pfn(folio), false);
	mmap_read_unlock(c->mm);
	return ret;
}

/* Have a PMD map a compound page, which has no other references than ours. */
static struct folio *map_pmd(struct kunit *test, bool by_folio)
{
	struct pfnmap_ctx *c = test->priv;
	struct page *page;

	if (!has_transparent_hugepage())
		kunit_skip(test, "no huge pages on this machine");
	page = alloc_pages(GFP_KERNEL | __GFP_COMP | __GFP_NOWARN, HPAGE_PMD_ORDER);
	if (!page)
		kunit_skip(test, "no free huge page");
	c->kind = COMPOUND;
	c->pages[0] = page;
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, put_pages, c));
	note_counts(c);

	map_all(test, 2 * HPAGE_PMD_SIZE);
	c->addr = ALIGN(c->addr, HPAGE_PMD_SIZE);
	KUNIT_ASSERT_TRUE(test, insert_pmd(c, page_folio(page), by_folio) == VM_FAULT_NOPAGE);
	KUNIT_ASSERT_TRUE(test, pmd_leaf(get_pmd(c->mm, c->addr)));
	return page_folio(page);
}

static void expect_pmd_counts(struct kunit *test, int mappings)
{
	struct folio *folio = the_folio(test->priv);

	expect_counts(test, mappings, mappings * (long)HPAGE_PMD_NR, 0);
	EXPECT(test, mapcounts_pmds(folio_read_mapcounts(folio)), (unsigned int)mappings);
	EXPECT(test, !folio->_creator && !folio_maybe_mapped_shared(folio), true);
}

static const struct insertion pmds[] = {
	{ .desc = "PFNs", .set = VM_PFNMAP },	/* None is counted. */
	{ .desc = "folio", .normal = true },	/* It is counted once, and needs no flag. */
};

KUNIT_ARRAY_PARAM_DESC(pmds, pmds, desc);

static void test_pmd(struct kunit *test)
{
	const struct insertion *ins = test->param_value;
	const bool normal = ins->normal, special = HAS_PMD_SPECIAL && !normal;
	struct pfnmap_ctx *c = test->priv;
	struct page *page = NULL;
	struct mm_struct *child;
	struct folio *folio;
	pmd_t pmd;

	open_file(test, ins, NULL);
	folio = map_pmd(test, normal);
	pmd = get_pmd(c->mm, c->addr);
	EXPECT(test, pmd_pfn(pmd), folio_pfn(folio));
	EXPECT(test, !!pmd_special(pmd), special);
	EXPECT(test, vm_normal_page_pmd(vma_of(c), c->addr, pmd) == &folio->page, normal);
	EXPECT(test, vma_of(c)->vm_flags & FLAGS, ins->set);
	expect_pmd_counts(test, normal);
	/* Without a special bit, fast GUP would pin the PFN. */
	if (normal || special || !IS_ENABLED(CONFIG_HAVE_GUP_FAST)) {
		EXPECT(test, pin(c, 1, 0, &page), normal ? 1 : -EFAULT);
		EXPECT(test, page == folio_page(folio, 1), normal);
	}

	/* fork() copies a special PMD, and leaves that of a folio to a fault. */
	child = fork_mm(test, 0);
	pmd = get_pmd(child, c->addr);
	EXPECT(test, pmd_none(pmd), !special);
	if (special)
		EXPECT(test, pmd_pfn(pmd), folio_pfn(folio));
	expect_pmd_counts(test, normal);
	mmput(child);

	/* The PMD cannot be split: unmapping a part unmaps all. */
	EXPECT(test, vm_munmap(c->addr, PAGE_SIZE), 0);
	EXPECT(test, entry_of(c, 1).pfn, 0UL);
	expect_pmd_counts(test, 0);
	EXPECT(test, vm_munmap(c->addr, HPAGE_PMD_SIZE), 0);
}

/* A PMD is refused at the bound, and it is for the caller to try with PTEs. */
static void test_pmd_bound(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	struct folio *folio;

	open_file(test, &plain, NULL);
	folio = map_pmd(test, true);
	KUNIT_EXPECT_EQ(test, 0, do_madvise(c->mm, c->addr, HPAGE_PMD_SIZE, MADV_DONTNEED));

	preset_mapcounts(test, (MAPCOUNTS_PAGES_MAX - HPAGE_PMD_NR + 1) * MAPCOUNTS_PTE);
	KUNIT_EXPECT_TRUE(test, insert_pmd(c, folio, true) == VM_FAULT_FALLBACK);
	KUNIT_EXPECT_TRUE(test, pmd_none(get_pmd(c->mm, c->addr)));
	preset_mapcounts(test, 0);
	expect_pmd_counts(test, 0);

	KUNIT_EXPECT_TRUE(test, insert_pmd(c, folio, true) == VM_FAULT_NOPAGE);
	expect_pmd_counts(test, 1);
	EXPECT(test, vm_munmap(c->addr, HPAGE_PMD_SIZE), 0);
}
#endif /* CONFIG_TRANSPARENT_HUGEPAGE */

static struct kunit_case pfnmap_test_cases[] = {
	KUNIT_CASE_PARAM(test_insertion, insertions_gen_params),
	KUNIT_CASE(test_refused),
	KUNIT_CASE(test_ptes_bound),
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	KUNIT_CASE(test_fault_bound),
	KUNIT_CASE_PARAM(test_pmd, pmds_gen_params),
	KUNIT_CASE(test_pmd_bound),
#endif
	{}
};

static struct kunit_suite pfnmap_test_suite = {
	.name = "pfnmap",
	.init = pfnmap_test_init,
	.test_cases = pfnmap_test_cases,
};

kunit_test_suite(pfnmap_test_suite);
