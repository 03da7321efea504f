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
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/vmstat.h>
#include <asm/tlb.h>

#include "../internal.h"

#define NR		4		/* pages */
#define ORDER		ilog2(NR)
#define SIZE		(NR * PAGE_SIZE)

#define HAS_SPECIAL	IS_ENABLED(CONFIG_ARCH_HAS_PTE_SPECIAL)

/* Which page table entries are copied by fork(), whatever they map. */
#define COPIED		(VM_PFNMAP | VM_MIXEDMAP)
/* VM_SPECIAL, as a constant; and flags that an insertion function may set. */
#define SPECIAL		(VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP)
#define FLAGS		(SPECIAL | VM_DONTDUMP)

struct insertion {
	const char *desc;
	/* The driver: at mmap(), in one of two ways, or at a page fault. */
	vm_flags_t set;
	int (*mmap)(struct vm_area_struct *vma, struct page **pages);
	void (*prepare)(struct vm_area_desc *desc, struct page **pages);
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
	struct page *pages[4];
	struct file *file;
	struct mm_struct *mm;
	unsigned long addr;
	/* before there was a mapping */
	long refs;
	long file_rss;
	long anon_rss;
	long file_mapped;
};

#define __EXPECT(expect, test, a, b)					\
do {									\
	struct kunit *__test = (test);					\
	const struct pfnmap_ctx *__c = __test->priv;			\
									\
	expect(__test, a, b, "%s, %s", kinds[__c->kind],		\
	       __c->private ? "private" : "shared");			\
} while (0)

#define EXPECT(test, a, b)	__EXPECT(KUNIT_EXPECT_EQ_MSG, test, a, b)
#define EXPECT_PTR(test, a, b)	__EXPECT(KUNIT_EXPECT_PTR_EQ_MSG, test, a, b)

static int driver_mmap(struct file *file, struct vm_area_struct *vma);
static int driver_mmap_prepare(struct vm_area_desc *desc);
static vm_fault_t driver_fault(struct vm_fault *vmf);

static const struct file_operations driver_fops = {
	.mmap = driver_mmap,
};

static const struct file_operations driver_prepare_fops = {
	.mmap_prepare = driver_mmap_prepare,
};

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

static int driver_mmap_prepare(struct vm_area_desc *desc)
{
	struct pfnmap_ctx *c = desc->file->private_data;

	c->ins->prepare(desc, c->pages);
	return 0;
}

static vm_fault_t driver_fault(struct vm_fault *vmf)
{
	struct pfnmap_ctx *c = vmf->vma->vm_private_data;

	if (vmf->pgoff >= NR)
		return VM_FAULT_SIGBUS;
	return c->ins->fault(vmf, c->pages[vmf->pgoff]);
}

static int insert_page(struct vm_area_struct *vma, struct page **pages)
{
	int i, err = 0;

	for (i = 0; i < NR && !err; i++)
		err = vm_insert_page(vma, vma->vm_start + i * PAGE_SIZE, pages[i]);
	return err;
}

static int insert_pages(struct vm_area_struct *vma, struct page **pages)
{
	unsigned long num = NR;

	return vm_insert_pages(vma, vma->vm_start, pages, &num);
}

static int map_pages(struct vm_area_struct *vma, struct page **pages)
{
	return vm_map_pages(vma, pages, NR);
}

static int map_pages_zero(struct vm_area_struct *vma, struct page **pages)
{
	return vm_map_pages_zero(vma, pages, NR);
}

static void prepare_pages(struct vm_area_desc *desc, struct page **pages)
{
	mmap_action_map_kernel_pages_full(desc, pages);
}

static int remap(struct vm_area_struct *vma, struct page **pages)
{
	return remap_pfn_range(vma, vma->vm_start, page_to_pfn(pages[0]), SIZE,
			       vma->vm_page_prot);
}

static int remap_half(struct vm_area_struct *vma, struct page **pages)
{
	return remap_pfn_range(vma, vma->vm_start, page_to_pfn(pages[0]), SIZE / 2,
			       vma->vm_page_prot);
}

static void prepare_remap(struct vm_area_desc *desc, struct page **pages)
{
	mmap_action_remap_full(desc, page_to_pfn(pages[0]));
}

static vm_fault_t fault_page(struct vm_fault *vmf, struct page *page)
{
	return vmf_insert_page(vmf->vma, vmf->address, page);
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

static vm_fault_t fault_mixed_mkwrite(struct vm_fault *vmf, struct page *page)
{
	return vmf_insert_mixed_mkwrite(vmf->vma, vmf->address, page_to_pfn(page));
}

static vm_fault_t fault_pfn(struct vm_fault *vmf, struct page *page)
{
	return vmf_insert_pfn(vmf->vma, vmf->address, page_to_pfn(page));
}

static vm_fault_t fault_pfn_prot(struct vm_fault *vmf, struct page *page)
{
	return vmf_insert_pfn_prot(vmf->vma, vmf->address, page_to_pfn(page),
				   vmf->vma->vm_page_prot);
}

static const struct insertion insertions[] = {
	{
		.desc = "vm_insert_page", .mmap = insert_page,
		.flags = VM_MIXEDMAP, .normal = true,
	}, {
		.desc = "vm_insert_pages", .mmap = insert_pages,
		.flags = VM_MIXEDMAP, .normal = true,
	}, {
		.desc = "vm_map_pages", .mmap = map_pages,
		.flags = VM_MIXEDMAP, .normal = true,
	}, {
		.desc = "vm_map_pages_zero", .mmap = map_pages_zero,
		.flags = VM_MIXEDMAP, .normal = true,
	}, {
		.desc = "mmap_action_map_kernel_pages_full", .prepare = prepare_pages,
		.flags = VM_MIXEDMAP, .normal = true,
	}, {
		.desc = "vmf_insert_page", .set = VM_MIXEDMAP, .fault = fault_page,
		.flags = VM_MIXEDMAP, .normal = true,
	}, {
		.desc = "vmf_insert_page_mkwrite", .fault = fault_page_mkwrite,
		.normal = true,
	}, {
		.desc = "vmf_insert_page_mkwrite, VM_MIXEDMAP", .set = VM_MIXEDMAP,
		.fault = fault_page_mkwrite, .flags = VM_MIXEDMAP, .normal = true,
	}, {
		.desc = "fault returns a page", .fault = fault_return,
		.normal = true, .locked = true,
	}, {
		.desc = "vmf_insert_mixed", .set = VM_MIXEDMAP, .fault = fault_mixed,
		.flags = VM_MIXEDMAP, .normal = !HAS_SPECIAL,
	}, {
		.desc = "vmf_insert_mixed_mkwrite", .set = VM_MIXEDMAP,
		.fault = fault_mixed_mkwrite, .flags = VM_MIXEDMAP,
		.normal = !HAS_SPECIAL, .shared_only = true,
	}, {
		.desc = "vmf_insert_pfn", .set = VM_PFNMAP, .fault = fault_pfn,
		.flags = VM_PFNMAP, .shared_only = true,
	}, {
		.desc = "vmf_insert_pfn_prot", .set = VM_PFNMAP,
		.fault = fault_pfn_prot, .flags = VM_PFNMAP, .shared_only = true,
	}, {
		.desc = "remap_pfn_range", .mmap = remap,
		.flags = VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP,
	}, {
		.desc = "mmap_action_remap_full", .prepare = prepare_remap,
		.flags = VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP,
	},
};

KUNIT_ARRAY_PARAM_DESC(insertions, insertions, desc);

static int pfnmap_test_init(struct kunit *test)
{
	struct pfnmap_ctx *c = kunit_kzalloc(test, sizeof(*c), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, c);
	KUNIT_ASSERT_EQ(test, SPECIAL, VM_SPECIAL);
	BUILD_BUG_ON(ARRAY_SIZE(c->pages) < NR);
	test->priv = c;
	KUNIT_ASSERT_EQ(test, 0, kunit_attach_mm());
	c->mm = current->mm;
	return 0;
}

KUNIT_DEFINE_ACTION_WRAPPER(close_file, fput, struct file *);

static void open_driver(struct kunit *test, const struct insertion *ins)
{
	struct pfnmap_ctx *c = test->priv;

	c->ins = ins;
	c->file = anon_inode_create_getfile("[pfnmap_kunit]", ins->prepare ?
					    &driver_prepare_fops : &driver_fops,
					    c, O_RDWR, NULL);
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

/* Pages with contiguous PFNs, each filled with a byte of its own. */
static void new_pages(struct kunit *test, enum kind kind)
{
	struct pfnmap_ctx *c = test->priv;
	struct folio *folio;
	struct page *page;
	int i;

	if (kind == RMAPPABLE) {
		folio = folio_alloc(GFP_KERNEL, ORDER);
		page = folio ? &folio->page : NULL;
	} else {
		page = alloc_pages(GFP_KERNEL | (kind == COMPOUND ? __GFP_COMP : 0),
				   ORDER);
	}
	KUNIT_ASSERT_NOT_NULL(test, page);
	if (kind == SMALL)
		split_page(page, ORDER);

	c->kind = kind;
	for (i = 0; i < NR; i++) {
		c->pages[i] = page + i;
		memset(page_address(page + i), 'a' + i, PAGE_SIZE);
	}
	the_folio(c)->index = 0;
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, put_pages, c));
}

static void free_pages_of(struct kunit *test)
{
	kunit_release_action(test, put_pages, test->priv);
}

static long sum_of_folios(const struct pfnmap_ctx *c, int (*of)(const struct folio *))
{
	long sum = of(the_folio(c));
	int i;

	for (i = 1; i < NR && c->kind == SMALL; i++)
		sum += of(page_folio(c->pages[i]));
	return sum;
}

static int refs_of(const struct folio *folio)
{
	return folio_ref_count(folio);
}

static int mapcount_of(const struct folio *folio)
{
	return folio_mapcount(folio);
}

static long sum_of_file_mapped(struct pglist_data *pgdat)
{
	long sum = atomic_long_read(&pgdat->vm_stat[NR_FILE_MAPPED]);
	int cpu;

	for_each_online_cpu(cpu)
		sum += per_cpu_ptr(pgdat->per_cpu_nodestats,
				   cpu)->vm_node_stat_diff[NR_FILE_MAPPED];
	return sum;
}

/*
 * The exact NR_FILE_MAPPED of the node of the pages. Read it until it is the same
 * twice: a CPU may be folding its part into the node concurrently.
 */
static long nr_file_mapped(const struct pfnmap_ctx *c)
{
	struct pglist_data *pgdat = folio_pgdat(the_folio(c));
	long before, now = sum_of_file_mapped(pgdat);

	do {
		before = now;
		now = sum_of_file_mapped(pgdat);
	} while (now != before);
	return now;
}

static long rss(struct mm_struct *mm, int member)
{
	return get_mm_counter_sum(mm, member);
}

static void note_counts(struct pfnmap_ctx *c)
{
	c->refs = sum_of_folios(c, refs_of);
	c->file_rss = rss(c->mm, MM_FILEPAGES);
	c->anon_rss = rss(c->mm, MM_ANONPAGES);
	c->file_mapped = nr_file_mapped(c);
}

/*
 * Since note_counts(), this many mappings of the pages came, in any MM, and this
 * many pages of each sort in that of the test. Each mapping has a reference.
 * Where all of the pages are mapped, or none, it is known what NR_FILE_MAPPED
 * should be; once there are processes, they change it as well.
 */
static void expect_counts(struct kunit *test, long mappings, long file, long anon)
{
	const struct pfnmap_ctx *c = test->priv;

	EXPECT(test, sum_of_folios(c, refs_of), c->refs + mappings);
	EXPECT(test, sum_of_folios(c, mapcount_of), mappings);
	EXPECT(test, rss(c->mm, MM_FILEPAGES), c->file_rss + file);
	EXPECT(test, rss(c->mm, MM_ANONPAGES), c->anon_rss + anon);
	if (system_state < SYSTEM_RUNNING && (!mappings || file == NR))
		EXPECT(test, nr_file_mapped(c), c->file_mapped + (mappings ? NR : 0));
	if (c->kind != SMALL && !mappings)
		EXPECT(test, folio_read_mapcounts(the_folio(c)).val, 0ULL);
}

struct entry {
	bool present;
	bool special;
	bool writable;
	unsigned long pfn;
	struct page *page;	/* what vm_normal_page() says */
};

static struct entry get_entry(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma;
	spinlock_t *ptl = NULL;
	struct entry e = {};
	pte_t *ptep, pte;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, addr);
	ptep = vma ? get_locked_pte(mm, addr, &ptl) : NULL;
	if (ptep) {
		pte = ptep_get(ptep);
		if (pte_present(pte)) {
			e.present = true;
			e.special = pte_special(pte);
			e.writable = pte_write(pte);
			e.pfn = pte_pfn(pte);
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

	EXPECT(test, e.present, true);
	EXPECT(test, e.pfn, page_to_pfn(c->pages[i]));
	EXPECT(test, e.special, HAS_SPECIAL && !c->ins->normal);
	EXPECT_PTR(test, e.page, c->ins->normal ? c->pages[i] : NULL);
	EXPECT(test, e.writable, writable);
}

static void expect_entries(struct kunit *test, struct mm_struct *mm, bool writable)
{
	int i;

	for (i = 0; i < NR; i++)
		expect_entry(test, mm, i, writable);
}

static int fault(const struct pfnmap_ctx *c, struct mm_struct *mm, int i,
		 unsigned int flags)
{
	int ret;

	mmap_read_lock(mm);
	ret = fixup_user_fault(mm, c->addr + i * PAGE_SIZE, flags, NULL);
	mmap_read_unlock(mm);
	return ret;
}

static unsigned long map_driver(struct kunit *test, unsigned long size)
{
	const struct pfnmap_ctx *c = test->priv;

	return kunit_vm_mmap(test, c->file, 0, size, PROT_READ | PROT_WRITE,
			     c->private ? MAP_PRIVATE : MAP_SHARED, 0);
}

/* Map the driver's file, and have all entries inserted. */
static void map_all(struct kunit *test, unsigned long size)
{
	struct pfnmap_ctx *c = test->priv;
	int i;

	c->addr = map_driver(test, size);
	KUNIT_ASSERT_NE(test, c->addr, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR_VALUE(c->addr));
	for (i = 0; i < NR && c->ins->fault; i++)
		KUNIT_ASSERT_EQ(test, 0, fault(c, c->mm, i, 0));
}

static vm_flags_t flags_of(const struct pfnmap_ctx *c, struct mm_struct *mm)
{
	vm_flags_t flags;

	mmap_read_lock(mm);
	flags = vma_lookup(mm, c->addr)->vm_flags;
	mmap_read_unlock(mm);
	return flags & FLAGS;
}

static bool is_possible(const struct insertion *ins, enum kind kind, bool private)
{
	if (private && ins->shared_only)
		return false;
	/* In other VMAs it would be claimed, for which it has to be locked. */
	return kind != RMAPPABLE || (ins->flags & COPIED) || ins->locked;
}

/*
 * Have each kind of pages mapped in each kind of mapping, look what @body finds,
 * and see that when they are unmapped all is as it was before.
 */
static void each_mapping(struct kunit *test, void (*body)(struct kunit *test))
{
	struct pfnmap_ctx *c = test->priv;
	enum kind kind;
	int private;

	open_driver(test, test->param_value);
	for (kind = 0; kind < NR_KINDS; kind++) {
		for (private = 0; private <= 1; private++) {
			if (!is_possible(c->ins, kind, private))
				continue;
			new_pages(test, kind);
			note_counts(c);
			c->private = private;
			map_all(test, SIZE);
			body(test);
			EXPECT(test, vm_munmap(c->addr, SIZE), 0);
			expect_counts(test, 0, 0, 0);
			free_pages_of(test);
		}
	}
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
	EXPECT_PTR(test, folio->_creator, (const void *)(claimed ? c->mm : NULL));
	EXPECT(test, folio_maybe_mapped_shared(folio), c->ins->normal && !claimed);
}

/* follow_pfnmap_start() works in VM_IO and VM_PFNMAP VMAs only. */
static void expect_pfn(struct kunit *test, int i, unsigned long pfn, bool special)
{
	const struct pfnmap_ctx *c = test->priv;
	struct follow_pfnmap_args args = { .address = c->addr + i * PAGE_SIZE };
	int ret;

	mmap_read_lock(c->mm);
	args.vma = vma_lookup(c->mm, args.address);
	ret = follow_pfnmap_start(&args);
	if (!ret)
		follow_pfnmap_end(&args);
	mmap_read_unlock(c->mm);

	EXPECT(test, ret, c->ins->flags & (VM_IO | VM_PFNMAP) ? 0 : -EINVAL);
	if (!ret) {
		EXPECT(test, args.pfn, pfn);
		EXPECT(test, args.special, HAS_SPECIAL && special);
	}
}

static void insert_body(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	const int counted = c->ins->normal ? NR : 0;

	EXPECT(test, flags_of(c, c->mm), c->ins->flags);
	expect_entries(test, c->mm, !c->private);
	expect_counts(test, counted, counted, 0);
	expect_creator(test);
	expect_pfn(test, 1, page_to_pfn(c->pages[1]), true);

	/* VM_LOCKED is not set in VMAs with one of the VM_SPECIAL flags. */
	mmap_read_lock(c->mm);
	EXPECT(test, vma_supports_mlock(vma_lookup(c->mm, c->addr)),
	       !(c->ins->flags & SPECIAL));
	mmap_read_unlock(c->mm);

	/* One page that is mapped is not shared, nor are PFNs mapped. */
	EXPECT(test, vm_munmap(c->addr + PAGE_SIZE, SIZE - PAGE_SIZE), 0);
	expect_entry(test, c->mm, 0, !c->private);
	expect_counts(test, !!counted, !!counted, 0);
	EXPECT(test, folio_maybe_mapped_shared(the_folio(c)), false);
}

static void test_insert(struct kunit *test)
{
	each_mapping(test, insert_body);
}

static struct mm_struct *fork_mm(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	struct mm_struct *child = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, child);
	child->task_size = c->mm->task_size;
	KUNIT_ASSERT_EQ(test, 0, dup_mmap(child, c->mm));
	return child;
}

/* fork() copies entries if the VMA has one of the flags. */
static void fork_body(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	const bool copied = c->ins->flags & COPIED;
	const int counted = c->ins->normal ? NR : 0;
	struct mm_struct *child = fork_mm(test);

	EXPECT(test, flags_of(c, child), c->ins->flags);
	expect_entries(test, c->mm, !c->private);
	if (copied) {
		expect_entries(test, child, !c->private);
		EXPECT(test, rss(child, MM_FILEPAGES), (long)counted);
		expect_counts(test, 2 * counted, counted, 0);
		expect_creator(test);
	} else {
		EXPECT(test, get_entry(child, c->addr).present, false);
		EXPECT(test, rss(child, MM_FILEPAGES), 0L);
		expect_counts(test, counted, counted, 0);
		EXPECT(test, fault(c, child, 0, 0), 0);
		expect_entry(test, child, 0, !c->private);
		EXPECT(test, rss(child, MM_FILEPAGES), 1L);
		expect_counts(test, counted + 1, counted, 0);
	}
	mmput(child);
	expect_counts(test, counted, counted, 0);
}

static void test_fork(struct kunit *test)
{
	each_mapping(test, fork_body);
}

static u8 first_byte(struct page *page)
{
	const u8 *addr = kmap_local_page(page);
	const u8 byte = *addr;

	kunmap_local(addr);
	return byte;
}

/* A page of its own has come in the place of page @i of the driver. */
static void expect_copy(struct kunit *test, int i)
{
	struct pfnmap_ctx *c = test->priv;
	const struct entry e = entry_of(c, i);

	EXPECT(test, e.present, true);
	EXPECT(test, e.special, false);
	KUNIT_ASSERT_NOT_NULL(test, e.page);
	EXPECT(test, !!PageAnon(e.page), true);
	KUNIT_EXPECT_PTR_NE(test, e.page, c->pages[i]);
	EXPECT(test, e.pfn, page_to_pfn(e.page));
	EXPECT(test, first_byte(e.page), (u8)('a' + i));
}

/* A write to a private mapping copies; then fork() copies all entries. */
static void write_body(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	const int last = NR - 1, counted = c->ins->normal ? last : 0;
	struct mm_struct *child;
	struct entry e;
	int i;

	if (!c->private)
		return;
	EXPECT(test, fault(c, c->mm, last, FAULT_FLAG_WRITE), 0);
	expect_copy(test, last);
	e = entry_of(c, last);
	EXPECT(test, e.writable, true);
	expect_counts(test, counted, counted, 1);
	expect_pfn(test, last, e.pfn, false);
	for (i = 0; i < last; i++)
		expect_entry(test, c->mm, i, false);

	EXPECT(test, fault(c, c->mm, last, FAULT_FLAG_WRITE), 0);
	EXPECT(test, entry_of(c, last).pfn, e.pfn);

	child = fork_mm(test);
	for (i = 0; i < last; i++)
		expect_entry(test, child, i, false);
	EXPECT(test, get_entry(child, c->addr + last * PAGE_SIZE).pfn, e.pfn);
	EXPECT(test, get_entry(child, c->addr + last * PAGE_SIZE).writable, false);
	EXPECT(test, entry_of(c, last).writable, false);
	EXPECT(test, rss(child, MM_FILEPAGES), (long)counted);
	EXPECT(test, rss(child, MM_ANONPAGES), 1L);
	expect_counts(test, 2 * counted, counted, 1);
	mmput(child);
	expect_counts(test, counted, counted, 1);
}

static void test_write(struct kunit *test)
{
	each_mapping(test, write_body);
}

/* A write fault copies a driver's page even if it has the last reference. */
static void test_never_reused(struct kunit *test)
{
	const struct insertion *ins = test->param_value;
	struct pfnmap_ctx *c = test->priv;
	unsigned long pfns[ARRAY_SIZE(c->pages)];
	struct folio *folio;
	enum kind kind;
	int i;

	if (!ins->normal || ins->shared_only)
		kunit_skip(test, "entries that refer to no page, or no private mapping");
	open_driver(test, ins);
	c->private = true;
	for (kind = 0; kind < NR_KINDS; kind++) {
		if (!is_possible(ins, kind, true))
			continue;
		new_pages(test, kind);
		map_all(test, SIZE);
		folio = the_folio(c);
		for (i = 0; i < NR; i++)
			pfns[i] = page_to_pfn(c->pages[i]);
		free_pages_of(test);
		EXPECT(test, folio_ref_count(folio), folio_mapcount(folio));
		for (i = 0; i < NR; i++) {
			EXPECT(test, fault(c, c->mm, i, FAULT_FLAG_WRITE), 0);
			KUNIT_EXPECT_NE(test, entry_of(c, i).pfn, pfns[i]);
			expect_copy(test, i);
		}
		EXPECT(test, vm_munmap(c->addr, SIZE), 0);
	}
}

/* Pin the page at @i, if GUP allows it, return it in @page, and unpin it. */
static int pin(const struct pfnmap_ctx *c, int i, unsigned int flags, struct page **page)
{
	struct page *pinned = NULL;
	int ret;

	ret = pin_user_pages_fast(c->addr + i * PAGE_SIZE, 1, flags, &pinned);
	*page = NULL;
	if (ret == 1) {
		if (folio_maybe_dma_pinned(page_folio(pinned)))
			*page = pinned;
		unpin_user_page(pinned);
	}
	return ret;
}

static void gup_body(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	const bool refused = c->ins->flags & (VM_IO | VM_PFNMAP);
	const int error = refused ? -EFAULT : -EEXIST;
	const bool fast = IS_ENABLED(CONFIG_HAVE_GUP_FAST) && HAS_SPECIAL;
	struct page *page = NULL;

	EXPECT(test, get_user_page_fast_only(c->addr, 0, &page),
	       c->ins->normal && fast);
	if (page) {
		EXPECT_PTR(test, page, c->pages[0]);
		put_page(page);
	}

	EXPECT(test, pin(c, 0, 0, &page), c->ins->normal ? 1 : error);
	if (c->ins->normal)
		EXPECT_PTR(test, page, c->pages[0]);

	if (!c->private) {
		EXPECT(test, pin(c, 0, FOLL_WRITE | FOLL_LONGTERM, &page),
		       c->ins->normal ? 1 : error);
		if (c->ins->normal)
			EXPECT_PTR(test, page, c->pages[0]);
		return;
	}

	/* FOLL_LONGTERM replaces the page by an anonymous copy. */
	EXPECT(test, pin(c, 0, FOLL_LONGTERM, &page), c->ins->normal ? 1 : error);
	if (c->ins->normal) {
		expect_copy(test, 0);
		EXPECT_PTR(test, page, entry_of(c, 0).page);
	}
	/* FOLL_WRITE copies, too, even from a special entry. */
	EXPECT(test, pin(c, 1, FOLL_WRITE, &page), refused ? -EFAULT : 1);
	if (refused) {
		expect_entry(test, c->mm, 1, false);
	} else {
		expect_copy(test, 1);
		EXPECT_PTR(test, page, entry_of(c, 1).page);
	}
}

static void test_gup(struct kunit *test)
{
	each_mapping(test, gup_body);
}

static const struct advice {
	int behavior;
	vm_flags_t refused;
} advices[] = {
	{ MADV_DONTNEED,	VM_PFNMAP },
	{ MADV_DONTNEED_LOCKED,	VM_PFNMAP },
	{ MADV_COLD,		VM_PFNMAP },
	{ MADV_PAGEOUT,		VM_PFNMAP },
	{ MADV_POPULATE_READ,	VM_IO | VM_PFNMAP },
	{ MADV_POPULATE_WRITE,	VM_IO | VM_PFNMAP },
	{ MADV_DOFORK,		SPECIAL },
	{ MADV_DODUMP,		SPECIAL },
	{ MADV_GUARD_INSTALL,	SPECIAL },
	{ MADV_GUARD_REMOVE,	SPECIAL },
};

/* Except with VM_PFNMAP, MADV_DONTNEED drops entries, even without ->fault(). */
static void madvise_body(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	int i;

	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		if (!(c->ins->flags & advices[i].refused))
			continue;
		KUNIT_EXPECT_EQ_MSG(test, -EINVAL,
				    do_madvise(c->mm, c->addr, SIZE, advices[i].behavior),
				    "behavior %d", advices[i].behavior);
	}
	expect_entries(test, c->mm, !c->private);
	if (c->ins->flags & VM_PFNMAP)
		return;

	EXPECT(test, do_madvise(c->mm, c->addr, SIZE, MADV_DONTNEED), 0);
	for (i = 0; i < NR; i++)
		EXPECT(test, entry_of(c, i).present, false);
	expect_counts(test, 0, 0, 0);
	EXPECT(test, fault(c, c->mm, 0, 0), c->ins->fault ? 0 : -EFAULT);
	if (c->ins->fault)
		expect_entry(test, c->mm, 0, !c->private);
}

static void test_madvise(struct kunit *test)
{
	each_mapping(test, madvise_body);
}

static int set_writable(const struct pfnmap_ctx *c, bool writable)
{
	VMA_ITERATOR(vmi, c->mm, c->addr);
	struct vm_area_struct *vma, *prev = NULL;
	struct mmu_gather tlb;
	vm_flags_t flags;
	int err;

	mmap_write_lock(c->mm);
	vma = vma_lookup(c->mm, c->addr);
	flags = vma->vm_flags & ~VM_WRITE;
	tlb_gather_mmu(&tlb, c->mm);
	err = mprotect_fixup(&vmi, &tlb, vma, &prev, vma->vm_start, vma->vm_end,
			     writable ? flags | VM_WRITE : flags);
	tlb_finish_mmu(&tlb);
	mmap_write_unlock(c->mm);
	return err;
}

/* mprotect() changes the protection, and never lets a COW mapping write. */
static void mprotect_body(struct kunit *test)
{
	struct pfnmap_ctx *c = test->priv;
	const int counted = c->ins->normal ? NR : 0;

	EXPECT(test, set_writable(c, false), 0);
	expect_entries(test, c->mm, false);
	EXPECT(test, set_writable(c, true), 0);
	expect_entries(test, c->mm, !c->private);
	expect_counts(test, counted, counted, 0);
}

static void test_mprotect(struct kunit *test)
{
	each_mapping(test, mprotect_body);
}

static int insert_into(const struct pfnmap_ctx *c, unsigned long addr, struct page *page)
{
	int err;

	mmap_read_lock(c->mm);
	err = vm_insert_page(vma_lookup(c->mm, c->addr), addr, page);
	mmap_read_unlock(c->mm);
	return err;
}

static struct page *page_of_kmalloc(struct kunit *test, size_t size)
{
	void *p = kunit_kmalloc(test, size, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, p);
	return virt_to_page(p);
}

/* What vm_insert_page() does not take, and what it does with a zeropage. */
static void test_refused(struct kunit *test)
{
	static const struct insertion nothing = { .set = VM_MIXEDMAP };
	struct pfnmap_ctx *c = test->priv;
	struct page *anon = NULL;
	unsigned long addr;
	struct entry e;

	addr = kunit_vm_mmap(test, NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_NE(test, addr, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR_VALUE(addr));
	KUNIT_ASSERT_EQ(test, 1, get_user_pages_fast(addr, 1, FOLL_WRITE, &anon));

	open_driver(test, &nothing);
	new_pages(test, SMALL);
	note_counts(c);
	map_all(test, SIZE);
	KUNIT_EXPECT_EQ(test, -EINVAL, insert_into(c, c->addr, anon));
	put_page(anon);
	KUNIT_EXPECT_EQ(test, -EINVAL,
			insert_into(c, c->addr, page_of_kmalloc(test, 64)));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			insert_into(c, c->addr,
				    page_of_kmalloc(test, 2 * KMALLOC_MAX_CACHE_SIZE)));
	KUNIT_EXPECT_EQ(test, -EINVAL, insert_into(c, c->addr, ZERO_PAGE(c->addr)));
	KUNIT_EXPECT_EQ(test, -EFAULT, insert_into(c, c->addr + SIZE, c->pages[0]));
	expect_counts(test, 0, 0, 0);
	KUNIT_EXPECT_EQ(test, 0, insert_into(c, c->addr, c->pages[0]));
	KUNIT_EXPECT_EQ(test, -EBUSY, insert_into(c, c->addr, c->pages[1]));
	expect_counts(test, 1, 1, 0);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, SIZE));

	c->private = true;
	map_all(test, SIZE);
	if (!mm_forbids_zeropage(c->mm)) {
		KUNIT_EXPECT_EQ(test, 0, insert_into(c, c->addr, ZERO_PAGE(c->addr)));
		e = entry_of(c, 0);
		KUNIT_EXPECT_TRUE(test, e.present);
		KUNIT_EXPECT_EQ(test, e.special, HAS_SPECIAL);
		KUNIT_EXPECT_NULL(test, e.page);
	}
	expect_counts(test, 0, 0, 0);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, SIZE));
}

/* At the bound of mappings, vm_insert_page() fails. */
static void test_ptes_bound(struct kunit *test)
{
	static const struct insertion nothing = { .set = VM_MIXEDMAP };
	const u64 others = (MAPCOUNTS_PAGES_MAX - 1) * MAPCOUNTS_PTE;
	struct pfnmap_ctx *c = test->priv;
	struct folio *folio;

	if (folio_mapcounts_check_enabled())
		kunit_skip(test, "folio_mapcounts_check would report it");
	open_driver(test, &nothing);
	new_pages(test, COMPOUND);
	folio = the_folio(c);
	note_counts(c);
	map_all(test, SIZE);
	atomic64_add(others, &folio->_mapcounts);
	KUNIT_EXPECT_EQ(test, 0, insert_into(c, c->addr, c->pages[0]));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			insert_into(c, c->addr + PAGE_SIZE, c->pages[1]));
	atomic64_sub(others, &folio->_mapcounts);
	KUNIT_EXPECT_EQ(test, 0, insert_into(c, c->addr + PAGE_SIZE, c->pages[1]));
	KUNIT_EXPECT_EQ(test, folio_mapcount(folio), 2);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, SIZE));
	KUNIT_EXPECT_EQ(test, refs_of(folio), 1);
}

static pgoff_t pgoff_of(const struct pfnmap_ctx *c)
{
	pgoff_t pgoff;

	mmap_read_lock(c->mm);
	pgoff = vma_start_pgoff(vma_lookup(c->mm, c->addr));
	mmap_read_unlock(c->mm);
	return pgoff;
}

/* A COW mapping of PFNs is all of a VMA, whose offset is the first of them. */
static void test_remap_offset(struct kunit *test)
{
	static const struct insertion half = { .mmap = remap_half };
	static const struct insertion whole = { .mmap = remap };
	struct pfnmap_ctx *c = test->priv;
	unsigned long pfn;

	new_pages(test, SMALL);
	pfn = page_to_pfn(c->pages[0]);

	open_driver(test, &half);
	map_all(test, SIZE);
	KUNIT_EXPECT_EQ(test, pgoff_of(c), 0);
	expect_entry(test, c->mm, NR / 2 - 1, true);
	KUNIT_EXPECT_FALSE(test, entry_of(c, NR / 2).present);
	KUNIT_EXPECT_EQ(test, fault(c, c->mm, NR / 2, 0), -EFAULT);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, SIZE));

	c->private = true;
	KUNIT_EXPECT_EQ(test, map_driver(test, SIZE), (unsigned long)-EINVAL);

	open_driver(test, &whole);
	map_all(test, SIZE);
	KUNIT_EXPECT_EQ(test, pgoff_of(c), pfn);
	/* unmap_mapping_pages() finds these entries by PFN, not by file offset. */
	unmap_mapping_pages(c->file->f_mapping, 0, NR, true);
	expect_entries(test, c->mm, false);
	unmap_mapping_pages(c->file->f_mapping, pfn + 1, 1, true);
	expect_entry(test, c->mm, 0, false);
	KUNIT_EXPECT_FALSE(test, entry_of(c, 1).present);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, SIZE));

	c->private = false;
	map_all(test, SIZE);
	KUNIT_EXPECT_EQ(test, pgoff_of(c), 0);
	unmap_mapping_pages(c->file->f_mapping, 1, 1, true);
	expect_entry(test, c->mm, 0, true);
	KUNIT_EXPECT_FALSE(test, entry_of(c, 1).present);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, SIZE));
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
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

static struct page *normal_page_pmd(const struct pfnmap_ctx *c)
{
	struct page *page;

	mmap_read_lock(c->mm);
	page = vm_normal_page_pmd(vma_lookup(c->mm, c->addr), c->addr,
				  *mm_find_pmd(c->mm, c->addr));
	mmap_read_unlock(c->mm);
	return page;
}

static vm_fault_t __insert_pmd(struct vm_area_struct *vma, unsigned long addr,
			       struct folio *folio, bool by_folio)
{
	struct vm_fault vmf = {
		.vma = vma,
		.address = addr,
		.pmd = alloc_pmd(vma->vm_mm, addr),
	};

	if (!vmf.pmd)
		return VM_FAULT_OOM;
	if (by_folio)
		return vmf_insert_folio_pmd(&vmf, folio, false);
	return vmf_insert_pfn_pmd(&vmf, folio_pfn(folio), false);
}

static vm_fault_t insert_pmd(struct pfnmap_ctx *c, struct folio *folio, bool by_folio)
{
	vm_fault_t ret;

	mmap_read_lock(c->mm);
	ret = __insert_pmd(vma_lookup(c->mm, c->addr), c->addr, folio, by_folio);
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
	struct pfnmap_ctx *c = test->priv;
	struct folio *folio = the_folio(c);

	EXPECT(test, folio_ref_count(folio), (int)c->refs + mappings);
	EXPECT(test, mapcounts_pmds(folio_read_mapcounts(folio)), (unsigned int)mappings);
	EXPECT(test, folio_mapcount(folio), mappings);
	EXPECT(test, rss(c->mm, MM_FILEPAGES), c->file_rss + mappings * HPAGE_PMD_NR);
	EXPECT_PTR(test, folio->_creator, (const void *)NULL);
	EXPECT(test, folio_maybe_mapped_shared(folio), false);
}

/* A PMD maps PFNs: nothing is counted. */
static void test_pfn_pmd(struct kunit *test)
{
	static const struct insertion pfnmap = { .set = VM_PFNMAP };
	struct pfnmap_ctx *c = test->priv;
	struct page *page = NULL;
	struct mm_struct *child;
	struct folio *folio;
	pmd_t pmd;

	open_driver(test, &pfnmap);
	folio = map_pmd(test, false);
	pmd = get_pmd(c->mm, c->addr);
	KUNIT_EXPECT_EQ(test, pmd_pfn(pmd), folio_pfn(folio));
	KUNIT_EXPECT_EQ(test, !!pmd_special(pmd), HAS_PMD_SPECIAL);
	KUNIT_EXPECT_NULL(test, normal_page_pmd(c));
	expect_pmd_counts(test, 0);
	/* Without a special bit, fast GUP would pin the PFN. */
	if (HAS_PMD_SPECIAL || !IS_ENABLED(CONFIG_HAVE_GUP_FAST))
		KUNIT_EXPECT_EQ(test, -EFAULT, pin(c, 1, 0, &page));

	/* fork() copies it, if it has a special bit. */
	child = fork_mm(test);
	pmd = get_pmd(child, c->addr);
	KUNIT_EXPECT_EQ(test, pmd_none(pmd), !HAS_PMD_SPECIAL);
	if (!pmd_none(pmd))
		KUNIT_EXPECT_EQ(test, pmd_pfn(pmd), folio_pfn(folio));
	expect_pmd_counts(test, 0);
	mmput(child);

	/* A PMD of PFNs cannot be split: unmapping a part unmaps all. */
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, PAGE_SIZE));
	KUNIT_EXPECT_FALSE(test, entry_of(c, 1).present);
	expect_pmd_counts(test, 0);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, HPAGE_PMD_SIZE));
}

/* A PMD maps a folio: it is counted, once, and none of the flags is needed. */
static void test_folio_pmd(struct kunit *test)
{
	static const struct insertion plain = {};
	struct pfnmap_ctx *c = test->priv;
	struct page *page = NULL;
	struct mm_struct *child;
	struct folio *folio;

	open_driver(test, &plain);
	folio = map_pmd(test, true);
	KUNIT_EXPECT_FALSE(test, pmd_special(get_pmd(c->mm, c->addr)));
	KUNIT_EXPECT_PTR_EQ(test, normal_page_pmd(c), &folio->page);
	KUNIT_EXPECT_EQ(test, flags_of(c, c->mm), 0);
	expect_pmd_counts(test, 1);
	KUNIT_EXPECT_EQ(test, 1, pin(c, 1, 0, &page));
	KUNIT_EXPECT_PTR_EQ(test, page, folio_page(folio, 1));

	child = fork_mm(test);
	KUNIT_EXPECT_TRUE(test, pmd_none(get_pmd(child, c->addr)));
	expect_pmd_counts(test, 1);
	mmput(child);

	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, PAGE_SIZE));
	KUNIT_EXPECT_FALSE(test, entry_of(c, 1).present);
	expect_pmd_counts(test, 0);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, HPAGE_PMD_SIZE));
}

/*
 * A PMD is refused at the bound, and it is for the caller to try with PTEs. Device
 * DAX cannot: its folios have at least 2^17 PMDs before.
 */
static void test_pmd_bound(struct kunit *test)
{
	static const struct insertion plain = {};
	const u64 nr_pmds = MAPCOUNTS_PAGES_MAX >> MAPCOUNTS_MAX_PMD_ORDER;
	const u64 others = MAPCOUNTS_PAGES_MAX * MAPCOUNTS_PTE;
	struct pfnmap_ctx *c = test->priv;
	struct folio *folio;

	if (folio_mapcounts_check_enabled())
		kunit_skip(test, "folio_mapcounts_check would report it");
	open_driver(test, &plain);
	folio = map_pmd(test, true);
	KUNIT_EXPECT_EQ(test, 0, do_madvise(c->mm, c->addr, HPAGE_PMD_SIZE, MADV_DONTNEED));
	expect_pmd_counts(test, 0);

	atomic64_add(others, &folio->_mapcounts);
	KUNIT_EXPECT_TRUE(test, insert_pmd(c, folio, true) == VM_FAULT_FALLBACK);
	KUNIT_EXPECT_TRUE(test, pmd_none(get_pmd(c->mm, c->addr)));
	atomic64_sub(others, &folio->_mapcounts);
	expect_pmd_counts(test, 0);

	KUNIT_EXPECT_GE(test, nr_pmds, BIT(17));
	atomic64_add((nr_pmds - 1) * MAPCOUNTS_PMD, &folio->_mapcounts);
	KUNIT_EXPECT_TRUE(test, insert_pmd(c, folio, true) == VM_FAULT_NOPAGE);
	KUNIT_EXPECT_EQ(test, 0, do_madvise(c->mm, c->addr, HPAGE_PMD_SIZE, MADV_DONTNEED));
	atomic64_sub((nr_pmds - 1) * MAPCOUNTS_PMD, &folio->_mapcounts);
	expect_pmd_counts(test, 0);

	KUNIT_EXPECT_TRUE(test, insert_pmd(c, folio, true) == VM_FAULT_NOPAGE);
	expect_pmd_counts(test, 1);
	KUNIT_EXPECT_EQ(test, 0, vm_munmap(c->addr, HPAGE_PMD_SIZE));
}
#endif /* CONFIG_TRANSPARENT_HUGEPAGE */

static struct kunit_case pfnmap_test_cases[] = {
	KUNIT_CASE_PARAM(test_insert, insertions_gen_params),
	KUNIT_CASE_PARAM(test_fork, insertions_gen_params),
	KUNIT_CASE_PARAM(test_write, insertions_gen_params),
	KUNIT_CASE_PARAM(test_never_reused, insertions_gen_params),
	KUNIT_CASE_PARAM(test_gup, insertions_gen_params),
	KUNIT_CASE_PARAM(test_madvise, insertions_gen_params),
	KUNIT_CASE_PARAM(test_mprotect, insertions_gen_params),
	KUNIT_CASE(test_refused),
	KUNIT_CASE(test_ptes_bound),
	KUNIT_CASE(test_remap_offset),
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
	KUNIT_CASE(test_pfn_pmd),
	KUNIT_CASE(test_folio_pmd),
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
