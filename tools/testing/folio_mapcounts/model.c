// SPDX-License-Identifier: GPL-2.0-only
/*
 * An exhaustive model of how the creator of a large folio is kept, and of how write
 * faults decide that the folio is exclusive.
 *
 * Tasks of up to three MMs, and one of the system, do what mm/ does to one folio. Each
 * read of the mapcounts, of the creator and of the reference count, each atomic operation,
 * and each lock taken or dropped is one step. All orders of all steps of a scenario are
 * tried, breadth first, so that the trace to an error is as short as can be. The kernel's
 * own header adds to the mapcounts and reads them. must() says what has to be true.
 *
 * Then the same has to find each error of a list that is put into the protocol, and must
 * find nothing when a precaution that only saves work is left out.
 *
 * Not covered: memory ordering, as all tasks see all steps in one order (hence not the
 * barriers, nor that an adoption may not read the mapcounts); pinned pages; entries out
 * of place after mremap(); KSM; page cache folios and what drivers map; more than one
 * folio; a third page table of one MM; migration of PMDs; and what wp_reuse_ptes() does
 * to the entries besides making pages exclusive.
 *
 *	model [ERROR]	(some of its text)
 */
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEST_P		9
#define TEST_PMD_ORDER	9
#define CONFIG_MMU
#include "../../../include/linux/folio_mapcounts.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define NR_MMS		3
#define NR_PAGES	4
#define NR_TASKS	4
#define NOBODY		NR_MMS
#define ALL_MMS		(BIT(NOBODY + 1) - 1)
#define PMD		NR_PAGES	/* its index among an MM's entries */
#define WALK_END	(NR_MMS * NR_PAGES)

/* What an entry is, and sets of that */
enum { NONE, RO, EX, MIG, MIG_EX, SWAP, SWAP_EX };

#define PRESENT		(BIT(RO) | BIT(EX))
#define MIGRATING	(BIT(MIG) | BIT(MIG_EX))
#define SWAPPED		(BIT(SWAP) | BIT(SWAP_EX))
#define EXCLUSIVE	(BIT(EX) | BIT(MIG_EX) | BIT(SWAP_EX))
#define ANYTHING	(PRESENT | MIGRATING | SWAPPED)

/* What a task does next. By letter: write fault, copy, fork, unmap, GUP, and so on */
enum step {
	IDLE, W_VMA, W_PTL, W_WORD, W_CREATOR, W_CACHE, W_CACHE_REFS, W_CACHE_LOCK, W_CACHE_FREE,
	W_CACHE_PUT, W_CACHE_UNLOCK, W_REFS, W_TABLE, W_MM_CREATOR, W_MM_LOCK, W_MM_WORD,
	W_MM_REFS, W_MM_AGAIN, W_MM_UNLOCK, W_OURS, W_ADOPT_LOCK, W_ADOPT_SET, W_ADOPT_ADD,
	W_ADOPT_UNLOCK, W_REUSE, W_UNLOCK,
	C_GET, C_UNLOCK, C_PTL, C_CREATOR, C_SUB, C_DONE, C_PUT, C_PUT_OWN,
	F_VMA, F_CHILD, F_PTL, F_REFS, F_CREATOR, F_ADD, F_SET, F_UNLOCK, F_UNLOCK_CHILD,
	U_VMA, U_PTL, U_CREATOR, U_SUB, U_UNLOCK, U_PUT, G_GET, G_CHECK, G_PUT, G_DROP,
	M_GET, M_LOCK, S_GET, S_CACHE, M_PTL, M_CREATOR, M_SUB, M_PUT_ENTRY, M_UNPTL, M_MOVE,
	R_PTL, R_GET, R_WORD, R_CLAIM, R_CREATOR, R_ADD, R_SET, R_UNPTL, M_UNLOCK, M_PUT,
	I_VMA, I_GET, I_LOCK, I_PTL, I_REFS, I_WORD, I_CLAIM, I_CREATOR, I_ADD, I_SET,
	I_FREE, I_FREE_PUT, I_UNLOCK, I_UNPTL, I_BAD, I_BAD_UNLOCK, I_BAD_PUT,
	H_VMA, H_PTL, H_LOCK, H_GET, H_UNPTL, H_WAIT, H_RELOCK, H_BAD_UNPTL, H_BAD_UNLOCK,
	H_PUT, H_EARLY, H_REFS, H_CREATOR, H_ADOPT_SET, H_ADOPT_ADD, H_REUSE, H_UNLOCK,
	H_DONE, H_SPLIT_UNLOCK, H_SPLIT_UNPTL, P_PTL, P_REFS, P_CREATOR, P_ADD, P_SET, P_UNPTL,
	NR_STEPS, WAIT = NR_STEPS
};

struct task {
	u8 id;			/* its index + 1 */
	u8 mm;			/* whose task it is; NOBODY: the system's */
	u8 left;		/* how many more things it does */
	/* The rest is 0 while it is idle. */
	u8 step;
	u8 page;		/* of the fault, or where a walk is */
	u8 table;		/* 0 or 1; the lock of the PMD is that of 1 */
	u8 pmd;			/* fork, unmap: of the PMD, */
	u8 whole;		/* or else of all of the table, not one page */
	u8 child;
	u8 nr;			/* entries at hand */
	u8 was;			/* what the entry was */
	u8 ours;		/* the creator was this MM when it was read */
	u8 truth;		/* the folio was exclusive when the references were read */
	u8 vma;			/* holds the VMA for reading: table + 1 */
	u8 swap;		/* reclaim, not migration */
	u8 refs;
	u8 spare;		/* references of entries that are cleared, or not yet set */
	u16 mapcounts, again;	/* snapshots */
};

struct state {
	u16 mapcounts;
	u16 alive;			/* MMs, by bit */
	u8 creator, refs;
	u8 lock;			/* id of the task that has the folio locked */
	u8 cache;			/* in the swap cache */
	u8 forking[NR_MMS][2];		/* tables whose VMA is locked for writing */
	u8 ptl[NR_MMS][2];		/* id of the task that has it locked */
	u8 gup[NR_MMS];			/* references that came through an MM's entries */
	u8 entry[NR_MMS][NR_PAGES + 1];
	struct task tasks[NR_TASKS];
};

/* What a scenario lets tasks do. */
enum {
	WRITE = 1, FORK = 2, UNMAP = 4, UNMAP_ONE = 8, MIGRATE = 16, RECLAIM = 32,
	SWAPIN = 64, GUP = 128, SPLIT = 256,
};

static const struct scenario {
	const char *name;
	u8 creator, cache;
	bool split;		/* pages 2 and 3 are in another page table, or in the PMD */
	u8 gup[NR_MMS], entry[NR_MMS][NR_PAGES + 1];
	struct { u8 mm, left; u16 may; } tasks[NR_TASKS];
} scenarios[] = {
	{ "a fork tree", .entry = { { EX, EX, EX, EX } },
	  .tasks = { { 0, 3, WRITE | FORK | UNMAP }, { 1, 2, WRITE | FORK | UNMAP },
		     { 2, 2, WRITE | UNMAP | UNMAP_ONE } } },
	{ "two page tables, GUP, and migration",
	  .split = true, .gup = { 0, 1 }, .entry = { { RO, RO, RO, RO } },
	  .tasks = { { 0, 1, WRITE }, { 0, 2, UNMAP_ONE | GUP }, { 1, 1, GUP },
		     { NOBODY, 1, MIGRATE } } },
	{ "two page tables, and two migrations",
	  .split = true, .gup = { 0, 1 }, .entry = { { RO, RO, RO, RO } },
	  .tasks = { { 0, 1, WRITE }, { NOBODY, 2, MIGRATE } } },
	{ "two page tables, and fork", .split = true, .entry = { { RO, RO, RO, RO } },
	  .tasks = { { 0, 2, WRITE | UNMAP }, { 0, 1, FORK }, { 1, 2, WRITE | UNMAP } } },
	{ "the creator has gone",
	  NOBODY, .split = true, .entry = { { RO, RO, RO, RO }, { RO, RO } },
	  .tasks = { { 0, 2, WRITE | UNMAP | UNMAP_ONE }, { 1, 3, WRITE | FORK | UNMAP },
		     { 2, 1, WRITE | UNMAP } } },
	{ "the creator has gone, and migration", 2, .entry = { { RO, RO }, { RO } },
	  .tasks = { { 0, 1, WRITE | UNMAP_ONE }, { 1, 1, WRITE | UNMAP },
		     { 0, 1, WRITE | FORK }, { NOBODY, 1, MIGRATE } } },
	{ "swap-in", 1, .cache = 1, .entry = { { SWAP, SWAP, SWAP, SWAP }, { RO, SWAP } },
	  .tasks = { { 0, 3, WRITE | SWAPIN }, { 1, 2, WRITE | SWAPIN | UNMAP },
		     { 0, 1, SWAPIN | UNMAP_ONE } } },
	{ "reclaim", 1, .entry = { { RO, RO }, { RO } },
	  .tasks = { { 0, 2, WRITE | SWAPIN }, { 1, 1, WRITE | UNMAP },
		     { NOBODY, 1, RECLAIM } } },
	{ "PMDs", .entry = { { [PMD] = EX } },
	  .tasks = { { 0, 3, WRITE | FORK | UNMAP | SPLIT },
		     { 1, 2, WRITE | FORK | UNMAP | SPLIT }, { 2, 1, WRITE | UNMAP } } },
	{ "a PMD that is split meanwhile", NOBODY, .entry = { { [PMD] = RO } },
	  .tasks = { { 0, 1, WRITE }, { 0, 1, SPLIT | FORK }, { 1, 1, WRITE | UNMAP },
		     { NOBODY, 1, MIGRATE } } },
	{ "two PMDs, one by PTEs, and fork",
	  .split = true, .entry = { { RO, RO, [PMD] = RO } },
	  .tasks = { { 0, 2, WRITE | SPLIT | UNMAP_ONE }, { 0, 1, FORK | SPLIT },
		     { 1, 2, WRITE | UNMAP } } },
	{ "two PMDs of two MMs",
	  .split = true, .gup = { 0, 1 }, .entry = { { RO, RO, [PMD] = RO }, { [PMD] = RO } },
	  .tasks = { { 0, 1, WRITE }, { 0, 2, SPLIT | UNMAP_ONE }, { 1, 2, UNMAP | SPLIT | GUP },
		     { NOBODY, 1, MIGRATE } } },
	{ "two PMDs, and the creator has gone",
	  NOBODY, .split = true, .entry = { { RO, RO, [PMD] = RO }, { [PMD] = RO } },
	  .tasks = { { 0, 2, WRITE | UNMAP }, { 0, 1, SPLIT | FORK }, { 1, 1, WRITE | UNMAP } } },
};

static const struct scenario *scenario;
static const char *error;	/* what is wrong with the state at hand */

/* Errors in the protocol: what is wrong; and, if nothing is after all, why. */
static enum {
	NO_ERROR, CLAIM_UNLOCKED, CLAIM_SWAPIN, CLAIM_ALWAYS, ADOPT_NO_ADD, ADOPT_NO_SET,
	ADOPT_LATE, ADOPT_PMD_NO_ADD, TABLE_IS_MAPCOUNTS, TABLE_OLD_REFS, MM_NO_LOCK,
	MM_NO_AGAIN, MM_ANY, CACHE_KEPT, CACHE_COPIED, REUSE_ALL, PMD_ONE_MORE,
	UNMAP_NO_SUB, UNMAP_PUT_FIRST, UNMAP_STALE, FORK_NO_ADD, FORK_PARENT,
	FORK_NO_PTL, FORK_REFS_LATE, FORK_EXCLUSIVE, SPLIT_ORDER, SPLIT_NO_CREATOR,
	SPLIT_REFS_LATE, MIGRATE_NO_SUB, SWAPIN_REFS_LATE, LESS_CREATOR, LESS_REFS,
	LESS_PTES, LESS_PMDS, LESS_WORD, LESS_EXCLUSIVE, MM_NOT_CREATOR,
	MIGRATE_PUT_FIRST, LESS_ADOPT_LOCK, NR_ERRORS
} broken;

#define SAVES	"saves reading the page table"

static const struct {
	const char *text, *why;
} errors[] = {
	[CLAIM_UNLOCKED] = { "migration unlocks the folio before it puts entries back" },
	[CLAIM_SWAPIN] = { "swap-in does not lock the folio" },
	[CLAIM_ALWAYS] = { "to map a mapped folio claims it as well" },
	[ADOPT_NO_ADD] = { "adoption does not count what is mapped" },
	[ADOPT_NO_SET] = { "adoption counts, but does not set the creator" },
	[ADOPT_LATE] = { "adoption after the page table is unlocked" },
	[ADOPT_PMD_NO_ADD] = { "adoption of a PMD does not count it" },
	[TABLE_IS_MAPCOUNTS] = { "as many references as there are entries are enough" },
	[TABLE_OLD_REFS] = { "the references are read before the page table is locked" },
	[MM_NO_LOCK] = { "one MM: the folio is not locked" },
	[MM_NO_AGAIN] = { "one MM: the mapcounts are not read again" },
	[MM_ANY] = { "one MM: all entries are compared, not the creator's" },
	[CACHE_KEPT] = { "reuses a folio that stays in the swap cache" },
	[CACHE_COPIED] = { "copies what is in the swap cache" },
	[REUSE_ALL] = { "makes the pages in the other page table exclusive, too" },
	[PMD_ONE_MORE] = { "one more reference than the PMD's is fine" },
	[UNMAP_NO_SUB] = { "unmap does not subtract" },
	[UNMAP_PUT_FIRST] = { "unmap drops the references, then subtracts" },
	[UNMAP_STALE] = { "unmap compares the creator before it has the lock" },
	[FORK_NO_ADD] = { "fork does not add" },
	[FORK_PARENT] = { "fork compares the creator with the parent" },
	[FORK_NO_PTL] = { "fork does not lock the parent's page table" },
	[FORK_REFS_LATE] = { "fork gets the references at last" },
	[FORK_EXCLUSIVE] = { "fork leaves the parent's pages exclusive" },
	[SPLIT_ORDER] = { "a split subtracts the PMD, then adds the PTEs" },
	[SPLIT_NO_CREATOR] = { "a split leaves the creator count as it was" },
	[SPLIT_REFS_LATE] = { "a split gets the references at last" },
	[MIGRATE_NO_SUB] = { "migration does not subtract" },
	[SWAPIN_REFS_LATE] = { "swap-in gets the references at last" },
	[LESS_CREATOR] = { "does not look at once if the creator has all PTEs", SAVES },
	[LESS_REFS] = { "does not look at once for other references", SAVES },
	[LESS_PTES] = { "does not look if there are more entries than pages", SAVES },
	[LESS_PMDS] = { "does not look at once for PMDs, if it is not the creator", SAVES },
	[LESS_WORD] = { "one MM: reads the mapcounts only after the references" },
	[LESS_EXCLUSIVE] = { "one MM: compares the creator count, whatever others map",
		"a wrong answer takes PTEs in a third page table of the MM" },
	[MM_NOT_CREATOR] = { "one MM: does not look who the creator is",
		"the reference of this MM's entry would be one too many" },
	[MIGRATE_PUT_FIRST] = { "migration drops a reference, then subtracts",
		"the task that compares the two has the folio locked" },
	[LESS_ADOPT_LOCK] = { "adoption without the folio lock",
		"the page table has all references, so the task with the lock has none" },
};

static void must(bool cond, const char *what)
{
	if (!cond && !error)
		error = what;
}

/* The state has the mapcounts in 16 bits, each field with one to spare. */
static struct folio_mapcounts unpack(u16 mapcounts)
{
	return (struct folio_mapcounts){
		(mapcounts & 0x1f) * MAPCOUNTS_PTE + (mapcounts >> 5 & 0x7) * MAPCOUNTS_PMD +
		(mapcounts >> 8 & 0x1f) * MAPCOUNTS_CREATOR
	};
}

static u16 pack(struct folio_mapcounts mc)
{
	const u16 mapcounts = mapcounts_ptes(mc) | mapcounts_pmds(mc) << 5 |
			      mapcounts_creator(mc) << 8;

	must(unpack(mapcounts).val == mc.val, "a field of the mapcounts overflows");
	return mapcounts;
}

static unsigned int table_of(unsigned int page)
{
	return scenario->split && page >= 2;
}

static unsigned int end_page(unsigned int table)
{
	return scenario->split ? 2 * table + 2 : NR_PAGES;
}

/* The entries that a fork or unmap is about */
static unsigned int first_entry(const struct task *k)
{
	return k->pmd ? PMD : k->whole ? 2 * k->table : k->page;
}

static unsigned int end_entry(const struct task *k)
{
	return k->whole ? end_page(k->table) : first_entry(k) + 1;
}

/* The pages that a PMD maps */
static unsigned int pmd_first(void)
{
	return scenario->split ? 2 : 0;
}

static unsigned int pmd_nr(void)
{
	return NR_PAGES - pmd_first();
}

static bool is(u8 entry, u8 set)
{
	return set >> entry & 1;
}

/* How many of an MM's entries from @first up to @end are in the set? */
static unsigned int count(const struct state *s, u8 mm, u8 first, u8 end, u8 set)
{
	unsigned int i, nr = 0;

	for (i = first; i < end; i++)
		nr += is(s->entry[mm][i], set);
	return nr;
}

static unsigned int count_table(const struct state *s, u8 mm, u8 table, u8 set)
{
	return count(s, mm, 2 * table, end_page(table), set);
}

/* The entries of an MM, each of which has a reference. */
static unsigned int count_mm(const struct state *s, unsigned int mm)
{
	return count(s, mm, 0, PMD + 1, PRESENT);
}

/* Is there such a PTE of any MM? */
static bool any(const struct state *s, u8 set)
{
	unsigned int mm, nr = 0;

	for (mm = 0; mm < NR_MMS; mm++)
		nr += count(s, mm, 0, NR_PAGES, set);
	return nr;
}

/* The entry that maps a page: a PTE or the PMD */
static u8 entry_of(const struct state *s, unsigned int mm, unsigned int page)
{
	const u8 pte = s->entry[mm][page];

	return pte || page < pmd_first() ? pte : s->entry[mm][PMD];
}

/* Does another MM than this have anything of the page? */
static bool others_have(const struct state *s, unsigned int mm, unsigned int page)
{
	unsigned int other;

	for (other = 0; other < NR_MMS; other++)
		if (other != mm && (entry_of(s, other, page) || s->gup[other]))
			return true;
	return false;
}

/* Are all references those of this MM's entries? No task accesses the page by spare ones. */
static bool exclusive(const struct state *s, unsigned int mm)
{
	unsigned int i, refs = count_mm(s, mm);

	for (i = 0; i < NR_PAGES; i++)
		if (others_have(s, mm, i))
			return false;
	for (i = 0; i < NR_TASKS; i++)
		refs += s->tasks[i].mm == mm ? s->tasks[i].spare : 0;
	return s->refs == refs;
}

/* Errors leave out locks: these are NULL. */
static bool take(u8 *lock, const struct task *k)
{
	if (lock && *lock)
		return false;
	if (lock)
		*lock = k->id;
	return true;
}

static void drop(u8 *lock, const struct task *k)
{
	must(!lock || *lock == k->id, "unlocks what is not locked");
	if (lock)
		*lock = 0;
}

static bool lock_vma(const struct state *s, struct task *k)
{
	k->vma = k->table + 1;
	return !s->forking[k->mm][k->table];
}

static void put(struct state *s, unsigned int nr)
{
	must(s->refs >= nr, "more references dropped than there are");
	s->refs -= nr;
}

/* As __folio_add_mapcounts(), with what it checks. */
static struct folio_mapcounts add(struct state *s, u64 delta)
{
	struct folio_mapcounts mc = unpack(s->mapcounts);

	mc.val += delta;
	must(mapcounts_valid(mc), "the creator has more entries than there are");
	s->mapcounts = pack(mc);
	return mc;
}

static void sub(struct state *s, u64 delta)
{
	const struct folio_mapcounts was = unpack(s->mapcounts), gone = { delta };

	must(mapcounts_ptes(was) >= mapcounts_ptes(gone) &&
	     mapcounts_pmds(was) >= mapcounts_pmds(gone), "more is unmapped than mapped");
	must(mapcounts_creator(was) >= mapcounts_creator(gone),
	     "the creator unmaps more than it has mapped");
	if (!error)
		add(s, -delta);
}

/* As folio_mod_mapcounts(); the creator was compared before. */
static u64 delta_of(const struct state *s, const struct task *k, unsigned int mm, bool pmd)
{
	if (broken == NO_ERROR)
		must(k->ours == (s->creator == mm), "the creator has changed meanwhile");
	return pmd ? mapcounts_delta(0, 1, k->ours) : mapcounts_delta(k->nr, 0, k->ours);
}

/* A task that maps an unmapped folio claims it first. */
static bool claims(const struct state *s)
{
	return !s->mapcounts || broken == CLAIM_ALWAYS;
}

static void claim(struct state *s, const struct task *k, unsigned int mm)
{
	if (broken == NO_ERROR)
		must(s->lock == k->id, "the folio is claimed without its lock");
	s->creator = mm;
}

static bool free_swap(struct state *s)
{
	if (!s->cache || any(s, SWAPPED))
		return false;
	s->cache = 0;
	return true;
}

/* wp_folio_exclusive_ptl() */
static bool one_table(const struct state *s, struct task *k)
{
	const unsigned int refs = broken == TABLE_OLD_REFS ? k->refs : s->refs;

	k->nr = broken == TABLE_IS_MAPCOUNTS ? mapcounts_entries(unpack(k->mapcounts)) :
		count_table(s, k->mm, k->table, PRESENT);
	k->mapcounts = 0;
	k->refs = 0;
	k->truth = exclusive(s, k->mm);
	return k->nr == refs;
}

static void read_again(const struct state *s, struct task *k)
{
	const struct folio_mapcounts mc = unpack(k->mapcounts);

	k->again = broken == MM_NO_AGAIN ? k->mapcounts : s->mapcounts;
	/* Without a PMD to split, entries of this MM only go. */
	if (broken == NO_ERROR || broken == CLAIM_UNLOCKED)
		must(mapcounts_pmds(mc) ||
		     mapcounts_creator(unpack(k->again)) <= mapcounts_creator(mc),
		     "the creator count rises in wp_folio_exclusive_mm()");
}

/* wp_folio_exclusive_mm() */
static bool one_mm(struct task *k)
{
	const struct folio_mapcounts mc = unpack(k->again);

	if ((k->mapcounts != k->again && broken != LESS_WORD) ||
	    (!mapcounts_exclusive(mc) && broken != MM_ANY && broken != LESS_EXCLUSIVE) ||
	    (broken == LESS_EXCLUSIVE ? mapcounts_creator(mc) : mapcounts_entries(mc)) != k->refs)
		return false;
	k->mapcounts = 0;
	k->again = 0;
	k->refs = 0;
	return true;
}

static void adopt(struct state *s, const struct task *k)
{
	struct folio_mapcounts mc;

	if (broken == ADOPT_NO_ADD)
		return;
	mc = add(s, MAPCOUNTS_CREATOR * (unsigned int)k->nr);
	must(mapcounts_creator(mc) == k->nr && mapcounts_exclusive(mc),
	     "adoption of what is not all this MM's");
}

static void reuse(struct state *s, const struct task *k)
{
	unsigned int page;

	must(k->truth, "taken, though there were other references");
	for (page = 0; page < NR_PAGES; page++) {
		if (s->entry[k->mm][page] != RO ||
		    (table_of(page) != k->table && broken != REUSE_ALL))
			continue;
		must(!others_have(s, k->mm, page), "taken is a page that another MM has");
		s->entry[k->mm][page] = EX;
	}
}

static unsigned int count_here(const struct state *s, const struct task *k)
{
	return count(s, k->mm, first_entry(k), end_entry(k), PRESENT);
}

/* Clear the entries that the task is about. */
static void clear(struct state *s, struct task *k)
{
	k->nr = count_here(s, k);
	k->spare = k->nr;
	memset(&s->entry[k->mm][first_entry(k)], NONE, end_entry(k) - first_entry(k));
}

/* Change those of them that are @from. */
static void change(struct state *s, const struct task *k, u8 from, u8 to)
{
	unsigned int i;

	for (i = first_entry(k); i < end_entry(k); i++)
		if (s->entry[k->mm][i] == from)
			s->entry[k->mm][i] = to;
}

static bool fork_lock_vma(struct state *s, const struct task *k)
{
	unsigned int i;

	for (i = 0; i < NR_TASKS; i++)
		if (s->tasks[i].mm == k->mm && s->tasks[i].vma == k->table + 1)
			return false;
	s->forking[k->mm][k->table] = 1;
	if (!scenario->split)
		s->forking[k->mm][!k->table] = 1;
	return true;
}

static void fork_set(struct state *s, const struct task *k)
{
	const unsigned int first = first_entry(k);

	change(s, k, MIG_EX, MIG);
	change(s, k, SWAP_EX, SWAP);
	memcpy(&s->entry[k->child][first], &s->entry[k->mm][first], end_entry(k) - first);
}

static enum step fork_next(struct state *s, struct task *k)
{
	k->nr = 0;
	k->ours = 0;
	if (k->pmd && !s->entry[k->child][PMD]) {
		/* It was split meanwhile. */
		k->pmd = 0;
		k->whole = 1;
		k->table = scenario->split;
		return F_CHILD;
	}
	if (scenario->split && !k->table) {
		k->table = 1;
		k->pmd = is(s->entry[k->mm][PMD], PRESENT);
		k->whole = !k->pmd;
		return F_VMA;
	}
	memset(s->forking[k->mm], 0, sizeof(s->forking[k->mm]));
	s->alive |= 1 << k->child;
	return IDLE;
}

/* Migration and reclaim walk all MMs' pages. */
static u8 *walk_entry(struct state *s, const struct task *k)
{
	return &s->entry[k->page / NR_PAGES][k->page % NR_PAGES];
}

static u8 *walk_ptl(struct state *s, const struct task *k)
{
	return &s->ptl[k->page / NR_PAGES][table_of(k->page % NR_PAGES)];
}

/* Go on to the next entry of the set, if there is one; or else to the last of this table. */
static bool walk_to(struct state *s, struct task *k, u8 set, bool in_table)
{
	const unsigned int page = k->page % NR_PAGES, last = end_page(table_of(page)) - 1;
	const unsigned int end = in_table ? k->page - page + last : WALK_END;

	while (k->page < end && !is(*walk_entry(s, k), set))
		k->page++;
	return k->page < WALK_END && is(*walk_entry(s, k), set);
}

/* On to the next table */
static void walk_unlock(struct state *s, struct task *k)
{
	drop(walk_ptl(s, k), k);
	k->page++;
	k->nr = 0;
	k->ours = 0;
}

/* Swap in all pages at once, if all are swapped alike and in one table. */
static bool swapin_all(const struct state *s, struct task *k)
{
	k->whole = !scenario->split && count(s, k->mm, 0, NR_PAGES, BIT(k->was)) == NR_PAGES;
	k->nr = k->whole ? NR_PAGES : 1;
	return k->whole;
}

/* Return: whether that was all. SPLIT_ORDER subtracts, then adds and can claim the folio. */
static bool split_add(struct state *s, struct task *k)
{
	const bool was = k->was;

	if (broken != SPLIT_ORDER) {
		add(s, delta_of(s, k, k->mm, false) - delta_of(s, k, k->mm, true));
		return true;
	}
	k->was = 1;
	if (was && claims(s))
		claim(s, k, k->mm);
	k->ours = was ? s->creator == k->mm : k->ours;
	if (was)
		add(s, mapcounts_delta(k->nr, 0, k->ours));
	else
		sub(s, delta_of(s, k, k->mm, true));
	return was;
}

static void split_set(struct state *s, struct task *k)
{
	memset(&s->entry[k->mm][pmd_first()], s->entry[k->mm][PMD], pmd_nr());
	s->entry[k->mm][PMD] = NONE;
	k->spare = 0;
	s->refs += broken == SPLIT_REFS_LATE ? pmd_nr() - 1 : 0;
}

/*
 * What happens in a step, and the step after it; or WAIT. "pick" is the choice in a step
 * that has two ways to go on.
 */
static const char *step_text[NR_STEPS];		/* of the steps that were taken */
static unsigned int pick;

/* What is left of a write fault that copies */
static void forget(struct task *k)
{
	*k = (struct task){ .id = k->id, .mm = k->mm, .left = k->left, .page = k->page,
			    .table = k->table, .vma = k->vma };
}

#define STEP(id, text, ...)	case id: step_text[k->step] = text; next = (__VA_ARGS__); break

static enum step step_mm(struct state *s, struct task *k)
{
	const unsigned int mm = k->mm;
	u8 *pte = &s->entry[mm][k->page], *pmd = &s->entry[mm][PMD], *lock = &s->lock;
	u8 *ptl = &s->ptl[mm][k->table], *child_ptl = &s->ptl[k->child][k->table];
	u8 *fork_ptl = broken == FORK_NO_PTL ? NULL : ptl;
	u8 *swapin_lock = broken == CLAIM_SWAPIN ? NULL : lock;
	const struct folio_mapcounts mc = unpack(k->step == W_WORD ? s->mapcounts : k->mapcounts);
	const unsigned int entries = mapcounts_entries(mc);
	const unsigned int pmd_refs = broken == PMD_ONE_MORE ? 2 : 1;
	const bool ours = s->creator == mm;
	enum step next = WAIT;

	switch (k->step) {
	/* Write faults: __wp_can_reuse_large_anon_folio() */
	STEP(W_VMA, "write fault: lock the VMA",
	     k->refs = broken == TABLE_OLD_REFS ? s->refs : 0, lock_vma(s, k) ? W_PTL : WAIT);
	STEP(W_PTL, "lock the page table, look at the entry",
	     !take(ptl, k) ? WAIT : *pte == RO ? W_WORD : W_UNLOCK);
	STEP(W_WORD, "read the mapcounts", k->mapcounts = s->mapcounts,
	     entries <= 1 || (entries > NR_PAGES && broken != LESS_PTES) ? C_GET :
	     broken == LESS_CREATOR || broken == MM_ANY ? W_CACHE : W_CREATOR);
	STEP(W_CREATOR, "read the creator",
	     (ours ? !mapcounts_exclusive(mc) :
	      mapcounts_pmds(mc) && broken != LESS_PMDS) ? C_GET : W_CACHE);
	STEP(W_CACHE, "in the swap cache?",
	     !s->cache ? W_REFS : broken == CACHE_COPIED ? C_GET : W_CACHE_REFS);
	STEP(W_CACHE_REFS, "read the references", s->refs != entries + NR_PAGES ? C_GET :
	     broken == CACHE_KEPT ? (k->truth = true, W_REUSE) : W_CACHE_LOCK);
	STEP(W_CACHE_LOCK, "trylock the folio", take(lock, k) ? W_CACHE_FREE : C_GET);
	STEP(W_CACHE_FREE, "out of the swap cache, if no entry is swapped",
	     free_swap(s) ? W_CACHE_PUT : W_CACHE_UNLOCK);
	STEP(W_CACHE_PUT, "drop the references of the swap cache",
	     put(s, NR_PAGES), W_CACHE_UNLOCK);
	STEP(W_CACHE_UNLOCK, "unlock the folio", drop(lock, k), W_REFS);
	STEP(W_REFS, "read the references",
	     s->refs != entries && broken != LESS_REFS && broken != MM_ANY ? C_GET : W_TABLE);
	STEP(W_TABLE, "count the entries in the table, read the references",
	     one_table(s, k) ? W_OURS : W_MM_CREATOR);

	STEP(W_MM_CREATOR, "read the creator", !ours && broken != MM_NOT_CREATOR ? C_GET :
	     broken == MM_NO_LOCK ? W_MM_WORD : W_MM_LOCK);
	STEP(W_MM_LOCK, "trylock the folio", take(lock, k) ? W_MM_WORD : C_GET);
	STEP(W_MM_WORD, "read the mapcounts", k->mapcounts = s->mapcounts, W_MM_REFS);
	STEP(W_MM_REFS, "read the references",
	     k->refs = s->refs, k->truth = exclusive(s, mm), W_MM_AGAIN);
	STEP(W_MM_AGAIN, "read the mapcounts again", read_again(s, k), W_MM_UNLOCK);
	STEP(W_MM_UNLOCK, "unlock the folio",
	     drop(broken == MM_NO_LOCK ? NULL : lock, k), one_mm(k) ? W_OURS : C_GET);

	STEP(W_OURS, "read the creator",
	     ours ? W_REUSE : (*ptl = broken == ADOPT_LATE ? 0 : *ptl,
					   broken == LESS_ADOPT_LOCK ? W_ADOPT_SET : W_ADOPT_LOCK));
	STEP(W_ADOPT_LOCK, "trylock the folio", take(lock, k) ? W_ADOPT_SET : W_REUSE);
	STEP(W_ADOPT_SET, "set the creator",
	     s->creator = broken == ADOPT_NO_SET ? s->creator : mm, W_ADOPT_ADD);
	STEP(W_ADOPT_ADD, "add what the table maps to the mapcounts",
	     adopt(s, k), broken == LESS_ADOPT_LOCK ? W_REUSE : W_ADOPT_UNLOCK);
	STEP(W_ADOPT_UNLOCK, "unlock the folio", drop(lock, k), W_REUSE);
	STEP(W_REUSE, "make the pages exclusive", reuse(s, k), W_UNLOCK);
	STEP(W_UNLOCK, "unlock the page table",
	     drop(broken == ADOPT_LATE && *ptl != k->id ? NULL : ptl, k), IDLE);

	/* wp_page_copy() */
	STEP(C_GET, "copy: get a reference", forget(k), s->refs++, C_UNLOCK);
	STEP(C_UNLOCK, "unlock the page table, copy", drop(ptl, k), C_PTL);
	STEP(C_PTL, "lock the page table, look at the entry",
	     !take(ptl, k) ? WAIT : *pte == RO ? C_CREATOR : C_DONE);
	STEP(C_CREATOR, "clear the entry, read the creator", clear(s, k), k->ours = ours, C_SUB);
	STEP(C_SUB, "subtract it from the mapcounts", sub(s, delta_of(s, k, mm, false)), C_DONE);
	STEP(C_DONE, "unlock the page table", drop(ptl, k), k->nr ? C_PUT : C_PUT_OWN);
	STEP(C_PUT, "drop the reference of the entry", put(s, 1), k->spare = 0, C_PUT_OWN);
	STEP(C_PUT_OWN, "drop the reference", put(s, 1), IDLE);

	/* copy_present_ptes(), copy_huge_pmd() */
	STEP(F_VMA, "fork: lock the VMA for writing", fork_lock_vma(s, k) ? F_CHILD : WAIT);
	STEP(F_CHILD, "lock the child's page table", take(child_ptl, k) ? F_PTL : WAIT);
	STEP(F_PTL, "lock the page table",
	     k->nr = count_here(s, k), !take(fork_ptl, k) ? WAIT : k->nr ? F_REFS : F_SET);
	STEP(F_REFS, "get references", s->refs += broken == FORK_REFS_LATE ? 0 : k->nr, F_CREATOR);
	STEP(F_CREATOR, "no page is exclusive now; read the creator",
	     change(s, k, broken == FORK_EXCLUSIVE ? RO : EX, RO),
	     k->ours = s->creator == (broken == FORK_PARENT ? mm : k->child), F_ADD);
	STEP(F_ADD, "add the child's entries to the mapcounts",
	     add(s, broken == FORK_NO_ADD ? 0 : delta_of(s, k, k->child, k->pmd)), F_SET);
	STEP(F_SET, "set the child's entries", fork_set(s, k), F_UNLOCK);
	STEP(F_UNLOCK, "unlock the page table", drop(fork_ptl, k), F_UNLOCK_CHILD);
	STEP(F_UNLOCK_CHILD, "unlock the child's page table",
	     s->refs += broken == FORK_REFS_LATE ? k->nr : 0, drop(child_ptl, k), fork_next(s, k));

	/* zap_present_ptes(), zap_huge_pmd() */
	STEP(U_VMA, "unmap: lock the VMA",
	     k->ours = broken == UNMAP_STALE && ours, lock_vma(s, k) ? U_PTL : WAIT);
	STEP(U_PTL, "lock the page table", take(ptl, k) ? U_CREATOR : WAIT);
	STEP(U_CREATOR, "clear the entries, read the creator",
	     clear(s, k), k->ours = broken == UNMAP_STALE ? k->ours : ours,
	     !k->nr ? U_UNLOCK : broken == UNMAP_PUT_FIRST ? U_PUT : U_SUB);
	STEP(U_SUB, "subtract them from the mapcounts",
	     sub(s, broken == UNMAP_NO_SUB ? 0 : delta_of(s, k, mm, k->pmd)), U_UNLOCK);
	STEP(U_UNLOCK, "unlock the page table", drop(ptl, k), k->spare ? U_PUT : IDLE);
	STEP(U_PUT, "drop their references",
	     put(s, k->spare), k->spare = 0, broken == UNMAP_PUT_FIRST ? U_SUB : IDLE);

	/* GUP-fast */
	STEP(G_GET, "GUP: found the entry; get a reference", s->refs++, G_CHECK);
	STEP(G_CHECK, "look at the entry again", *pte != k->was ? G_PUT : (s->gup[mm]++, IDLE));
	STEP(G_PUT, "drop the reference", put(s, 1), IDLE);
	STEP(G_DROP, "drop the reference of a GUP", put(s, 1), s->gup[mm]--, IDLE);

	/* do_swap_page() */
	STEP(I_VMA, "swap in: lock the VMA", lock_vma(s, k) ? I_GET : WAIT);
	STEP(I_GET, "get a reference by the swap cache",
	     k->was = *pte, !s->cache || !is(*pte, SWAPPED) ? IDLE :
	     (s->refs++, swapin_lock ? I_LOCK : I_PTL));
	STEP(I_LOCK, "lock the folio", !take(lock, k) ? WAIT : s->cache ? I_PTL : I_BAD_UNLOCK);
	STEP(I_PTL, "lock the page table, look at the entry",
	     !take(ptl, k) ? WAIT : *pte != k->was ? I_BAD : swapin_all(s, k) ? I_REFS : I_WORD);
	STEP(I_REFS, "get more references",
	     s->refs += broken == SWAPIN_REFS_LATE ? 0 : k->nr - 1, I_WORD);
	STEP(I_WORD, "read the mapcounts", claims(s) ? I_CLAIM : I_CREATOR);
	STEP(I_CLAIM, "claim the folio", claim(s, k, mm), I_CREATOR);
	STEP(I_CREATOR, "read the creator", k->ours = ours, I_ADD);
	STEP(I_ADD, "add the entries to the mapcounts", add(s, delta_of(s, k, mm, false)), I_SET);
	STEP(I_SET, "set the entries", change(s, k, k->was, k->was - (SWAP - RO)), I_FREE);
	/* Whether do_swap_page() tries that depends on much. */
	STEP(I_FREE, "out of the swap cache, if no entry is swapped",
	     !pick ? I_UNLOCK : free_swap(s) ? I_FREE_PUT : WAIT);
	STEP(I_FREE_PUT, "drop the references of the swap cache", put(s, NR_PAGES), I_UNLOCK);
	STEP(I_UNLOCK, "unlock the folio",
	     s->refs += broken == SWAPIN_REFS_LATE ? k->nr - 1 : 0, drop(swapin_lock, k), I_UNPTL);
	STEP(I_UNPTL, "unlock the page table", drop(ptl, k), IDLE);
	STEP(I_BAD, "unlock the page table: another entry",
	     drop(ptl, k), swapin_lock ? I_BAD_UNLOCK : I_BAD_PUT);
	STEP(I_BAD_UNLOCK, "unlock the folio", drop(lock, k), I_BAD_PUT);
	STEP(I_BAD_PUT, "drop the reference", put(s, 1), IDLE);

	/* do_huge_pmd_wp_page() */
	STEP(H_VMA, "write fault on a PMD: lock the VMA", lock_vma(s, k) ? H_PTL : WAIT);
	STEP(H_PTL, "lock the PMD, look at it",
	     !take(ptl, k) ? WAIT : *pmd == RO ? H_LOCK : H_DONE);
	STEP(H_LOCK, "trylock the folio", take(lock, k) ? H_EARLY : H_GET);
	STEP(H_GET, "get a reference", s->refs++, H_UNPTL);
	STEP(H_UNPTL, "unlock the PMD", drop(ptl, k), H_WAIT);
	STEP(H_WAIT, "lock the folio", take(lock, k) ? H_RELOCK : WAIT);
	STEP(H_RELOCK, "lock the PMD, look at it",
	     k->nr = *pmd == RO, !take(ptl, k) ? WAIT : k->nr ? H_PUT : H_BAD_UNPTL);
	STEP(H_BAD_UNPTL, "unlock the PMD: it has changed", drop(ptl, k), H_BAD_UNLOCK);
	STEP(H_BAD_UNLOCK, "unlock the folio", drop(lock, k), H_PUT);
	STEP(H_PUT, "drop the reference", put(s, 1), k->nr ? H_EARLY : IDLE);
	STEP(H_EARLY, "read the references", s->refs > pmd_refs ? H_SPLIT_UNLOCK : H_REFS);
	STEP(H_REFS, "read the references, after the swap cache",
	     k->truth = exclusive(s, mm), s->refs > pmd_refs ? H_SPLIT_UNLOCK : H_CREATOR);
	STEP(H_CREATOR, "read the creator", ours ? H_REUSE : H_ADOPT_SET);
	STEP(H_ADOPT_SET, "set the creator", s->creator = mm, H_ADOPT_ADD);
	STEP(H_ADOPT_ADD, "add the PMD to the creator count",
	     add(s, broken == ADOPT_PMD_NO_ADD ? 0 : MAPCOUNTS_CREATOR), H_REUSE);
	STEP(H_REUSE, "make it exclusive",
	     must(k->truth, "taken, though there were other references"), *pmd = EX, H_UNLOCK);
	STEP(H_UNLOCK, "unlock the folio", drop(lock, k), H_DONE);
	STEP(H_DONE, "unlock the PMD", drop(ptl, k), IDLE);
	STEP(H_SPLIT_UNLOCK, "unlock the folio", drop(lock, k), H_SPLIT_UNPTL);
	STEP(H_SPLIT_UNPTL, "unlock the PMD", drop(ptl, k), k->truth = 0, P_PTL);

	/* __split_huge_pmd_locked() */
	STEP(P_PTL, "split: lock the PMD",
	     !take(ptl, k) ? WAIT : is(*pmd, PRESENT) ? P_REFS : P_UNPTL);
	STEP(P_REFS, "get references", k->spare = broken == SPLIT_REFS_LATE ? 0 : pmd_nr() - 1,
	     s->refs += k->spare, P_CREATOR);
	STEP(P_CREATOR, "read the creator",
	     k->nr = pmd_nr(), k->ours = ours && broken != SPLIT_NO_CREATOR, P_ADD);
	STEP(P_ADD, "add PTEs and subtract the PMD", split_add(s, k) ? P_SET : P_ADD);
	STEP(P_SET, "set the PTEs", split_set(s, k), P_UNPTL);
	STEP(P_UNPTL, "unlock the PMD", drop(ptl, k), IDLE);
	}
	return next;
}

/* try_to_migrate_one(), try_to_unmap_one(), remove_migration_pte() */
static enum step step_migrate(struct state *s, struct task *k)
{
	const bool put_first = broken == MIGRATE_PUT_FIRST;
	const unsigned int mm = k->page / NR_PAGES;
	u8 *lock = &s->lock;
	enum step next = WAIT;

	switch (k->step) {
	STEP(M_GET, "migration or reclaim: get a reference", s->refs++, M_LOCK);
	STEP(M_LOCK, "trylock the folio",
	     !take(lock, k) ? M_PUT : k->swap && !s->cache ? S_GET : M_PTL);
	STEP(S_GET, "get the references of the swap cache", s->refs += NR_PAGES, S_CACHE);
	STEP(S_CACHE, "put it into the swap cache", s->cache = 1, M_PTL);
	STEP(M_PTL, "lock the page table, or give up",
	     pick == 0 ? (k->page = 0, k->swap ? M_UNLOCK : R_PTL) :
	     !walk_to(s, k, PRESENT, false) ? (k->page = 0, k->swap ? M_UNLOCK : M_MOVE) :
	     take(walk_ptl(s, k), k) ? M_CREATOR : WAIT);
	STEP(M_CREATOR, "set a migration or swap entry, read the creator",
	     !walk_to(s, k, PRESENT, true) ? M_UNPTL :
	     (*walk_entry(s, k) += (k->swap ? SWAP : MIG) - RO,
	      k->nr = 1, k->ours = s->creator == k->page / NR_PAGES,
	      put_first ? M_PUT_ENTRY : M_SUB));
	STEP(M_SUB, "subtract it from the mapcounts",
	     sub(s, broken == MIGRATE_NO_SUB ? 0 : delta_of(s, k, mm, false)),
	     put_first ? M_CREATOR : M_PUT_ENTRY);
	STEP(M_PUT_ENTRY, "drop the reference of the entry",
	     put(s, 1), put_first ? M_SUB : M_CREATOR);
	STEP(M_UNPTL, "unlock the page table", walk_unlock(s, k), M_PTL);
	/* What is new is the folio; the entries will be of that. */
	STEP(M_MOVE, "move to a new folio, if nothing else refers to it",
	     s->creator = !s->mapcounts && s->refs == 1 + s->cache * NR_PAGES ? NOBODY : s->creator,
	     R_PTL);
	STEP(R_PTL, "put back: lock the page table",
	     drop(broken == CLAIM_UNLOCKED && *lock == k->id ? lock : NULL, k),
	     !walk_to(s, k, MIGRATING, false) ? (broken == CLAIM_UNLOCKED ? M_PUT : M_UNLOCK) :
	     take(walk_ptl(s, k), k) ? R_GET : WAIT);
	STEP(R_GET, "get the reference of an entry",
	     !walk_to(s, k, MIGRATING, true) ? R_UNPTL : (s->refs++, R_WORD));
	STEP(R_WORD, "read the mapcounts", claims(s) ? R_CLAIM : R_CREATOR);
	STEP(R_CLAIM, "claim the folio", claim(s, k, mm), R_CREATOR);
	STEP(R_CREATOR, "read the creator", k->nr = 1, k->ours = s->creator == mm, R_ADD);
	STEP(R_ADD, "add it to the mapcounts", add(s, delta_of(s, k, mm, false)), R_SET);
	STEP(R_SET, "set the entry", *walk_entry(s, k) -= MIG - RO, R_GET);
	STEP(R_UNPTL, "unlock the page table", walk_unlock(s, k), R_PTL);
	STEP(M_UNLOCK, "unlock the folio", drop(lock, k), k->page = 0, M_PUT);
	STEP(M_PUT, "drop the reference", put(s, 1), IDLE);
	}
	return next;
}

/* What an idle task can do: start @new if this is the option that is picked. */
static bool option(struct task *k, bool possible, enum step step, struct task new)
{
	if (!possible || pick--)
		return false;
	new.id = k->id;
	new.mm = k->mm;
	new.left = k->left - 1;
	new.step = step;
	*k = new;
	return true;
}

static bool empty(const struct state *s, unsigned int mm)
{
	return !count(s, mm, 0, PMD + 1, ANYTHING);
}

/* Is a task of these MMs, by bit, in an operation? */
static bool busy(const struct state *s, unsigned int mms)
{
	unsigned int i;

	for (i = 0; i < NR_TASKS; i++)
		if (mms & 1 << s->tasks[i].mm && s->tasks[i].step != IDLE)
			return true;
	return false;
}

/* Is the MM in a fork, as the parent or the child? */
static bool in_fork(const struct state *s, unsigned int mm)
{
	const struct task *k;

	for (k = s->tasks; k < s->tasks + NR_TASKS; k++)
		if (k->child && (k->mm == mm || k->child == mm))
			return true;
	return false;
}

static bool start_page(const struct state *s, struct task *k, u16 may, unsigned int page)
{
	const struct task at = { .page = page, .table = table_of(page) };
	const u8 pte = s->entry[k->mm][page];
	const struct task gup = { .page = page, .table = table_of(page), .was = pte };

	return option(k, may & WRITE && pte == RO, W_VMA, at) ||
	       option(k, may & SWAPIN && is(pte, SWAPPED), I_VMA, at) ||
	       option(k, may & UNMAP_ONE && pte, U_VMA, at) ||
	       option(k, may & GUP && is(pte, PRESENT) && s->gup[k->mm] < 2, G_GET, gup);
}

static bool start_fork(const struct state *s, struct task *k)
{
	const bool pmd = !scenario->split && is(s->entry[k->mm][PMD], PRESENT);
	unsigned int child;

	if (empty(s, k->mm) || in_fork(s, k->mm))
		return false;
	for (child = k->mm + 1; child < NR_MMS; child++) {
		struct task new = { .pmd = pmd, .whole = !pmd, .table = pmd, .child = child };

		if (option(k, !(s->alive & 1 << child) && !in_fork(s, child), F_VMA, new))
			return true;
	}
	return false;
}

/* Of the pages that are alike, the first in each table will do. */
static bool start_mm(const struct state *s, struct task *k, u16 may)
{
	const struct task of_pmd = { .pmd = 1, .table = 1 };
	const u8 *pte = s->entry[k->mm], pmd = pte[PMD];
	unsigned int page;

	if (option(k, may & GUP && s->gup[k->mm], G_DROP, (struct task){}))
		return true;
	if (!(s->alive & 1 << k->mm))
		return false;
	for (page = 0; page < NR_PAGES; page = end_page(table_of(page))) {
		struct task new = { .whole = 1, .table = table_of(page) };

		if (option(k, may & UNMAP && count_table(s, k->mm, new.table, ANYTHING),
			   U_VMA, new))
			return true;
	}
	if (option(k, may & UNMAP && pmd, U_VMA, of_pmd))
		return true;
	for (page = 0; page < NR_PAGES; page++) {
		const bool alike = page != 2 * table_of(page) && pte[page] == pte[page - 1];

		if (!alike && start_page(s, k, may, page))
			return true;
	}
	return option(k, may & WRITE && pmd == RO, H_VMA, (struct task){ .table = 1 }) ||
	       option(k, may & SPLIT && is(pmd, PRESENT), P_PTL, (struct task){ .table = 1 }) ||
	       (may & FORK && start_fork(s, k));
}

static bool start(struct state *s, struct task *k)
{
	const u16 may = scenario->tasks[k->id - 1].may;

	if (!k->left)
		return false;
	if (k->mm == NOBODY)
		return option(k, may & MIGRATE, M_GET, (struct task){}) ||
		       option(k, may & RECLAIM, M_GET, (struct task){ .swap = 1 });
	if (start_mm(s, k, may))
		return true;
	/* An MM that is empty can exit, and the next child can have its address. */
	if (k->mm && s->alive & 1 << k->mm && empty(s, k->mm) && !busy(s, 1 << k->mm) && !pick--) {
		s->alive &= ~(1 << k->mm);
		k->left--;
		return true;
	}
	return false;
}

/* One step of one task. False if it has to wait, or has no such choice. */
static bool step(struct state *s, unsigned int t, unsigned int choice)
{
	struct task *k = &s->tasks[t];
	const u8 at = k->step;

	pick = choice;
	if (at == IDLE)
		return start(s, k);
	if (pick > (at == M_PTL || at == I_FREE))
		return false;
	k->step = k->mm == NOBODY ? step_migrate(s, k) : step_mm(s, k);
	if (k->step == IDLE)
		*k = (struct task){ .id = k->id, .mm = k->mm, .left = k->left };
	return k->step != WAIT;
}

/* What has to be true */

static void check_exclusive(const struct state *s)
{
	unsigned int i, other;

	for (i = 0; i < WALK_END; i++) {
		const unsigned int mm = i / NR_PAGES, page = i % NR_PAGES;
		const u8 entry = entry_of(s, mm, page);

		for (other = 0; other < NR_MMS && is(entry, EXCLUSIVE); other++)
			must(other == mm || !entry_of(s, other, page),
			     "an exclusive page that another MM has");
	}
}

/* A write to the page, while no other task does anything: does it reuse the page? */
static bool write_reuses(const struct state *s, unsigned int mm, unsigned int page)
{
	struct state alone = *s;
	struct task *k = &alone.tasks[0];
	bool pmd;

	/* Where the PMD is split instead, the fault is repeated. */
	do {
		pmd = !alone.entry[mm][page];
		*k = (struct task){ .id = 1, .mm = mm, .page = page,
				    .table = pmd || table_of(page), .step = pmd ? H_VMA : W_VMA };
		while (k->step != IDLE && !error)
			if (!step(&alone, 0, 0))
				return false;
	} while (pmd && alone.entry[mm][page] && !error);
	return entry_of(&alone, mm, page) == EX;
}

/* If one MM has all of it, in one table or as the creator, it does not copy. */
static void check_heir(const struct state *s, unsigned int mm)
{
	const unsigned int refs = count_mm(s, mm);
	const bool both = scenario->split && count_table(s, mm, 0, PRESENT) &&
			  (count_table(s, mm, 1, PRESENT) || s->entry[mm][PMD]);
	unsigned int page;

	/* The last entry is copied, so that the folio can be freed. */
	if (s->refs != refs + s->cache * NR_PAGES || any(s, SWAPPED) ||
	    (!s->entry[mm][PMD] && refs < 2) || (s->creator != mm && both))
		return;
	for (page = 0; page < NR_PAGES; page++)
		if (entry_of(s, mm, page) == RO)
			must(write_reuses(s, mm, page),
			     "one MM has the folio for itself, and copies it");
}

static void check(const struct state *s)
{
	unsigned int mm, refs = s->cache * NR_PAGES, ptes = 0, pmds = 0, creator = 0;
	const struct folio_mapcounts mc = unpack(s->mapcounts);

	for (mm = 0; mm < NR_MMS; mm++) {
		const unsigned int entries = count_mm(s, mm), pmd = is(s->entry[mm][PMD], PRESENT);

		ptes += entries - pmd;
		pmds += pmd;
		refs += entries + s->gup[mm];
		creator += mm == s->creator ? entries : 0;
	}
	must(s->refs >= refs, "fewer references than entries");
	must(s->refs || !s->mapcounts, "freed, though the mapcounts are not 0");
	if (broken == NO_ERROR || broken == FORK_EXCLUSIVE)
		check_exclusive(s);
	if (error || busy(s, ALL_MMS))
		return;
	must(!any(s, MIGRATING), "a migration entry is left");
	must(mapcounts_ptes(mc) == ptes, "idle, and ptes is wrong");
	must(mapcounts_pmds(mc) == pmds, "idle, and pmds is wrong");
	must(mapcounts_creator(mc) == creator, "idle, and the creator count is wrong");
	must(s->refs == refs, "idle, and the reference count is wrong");
	for (mm = 0; mm < NR_MMS && !error; mm++)
		check_heir(s, mm);
}

#define MAX_STATES	(12u << 20)
#define HASH_BITS	25
#define HASH_SIZE	BIT(HASH_BITS)

/* All states so far, in the order they were reached, and a hash set of them */
static struct node {
	struct state state;
	u32 parent;		/* the state that it was reached from, */
	u8 task;		/* and by which task */
} *nodes;
static u32 *hash;		/* index + 1 */
static u32 nr_nodes;
static unsigned long nr_transitions;

static u32 hash_of(const struct state *s)
{
	const u16 *p = (const u16 *)s, *end = (const u16 *)(s + 1);
	u64 h = 0xcbf29ce484222325ULL;

	for (; p < end; p++) {
		h = (h ^ *p) * 0x9e3779b97f4a7c15ULL;
		h ^= h >> 29;
	}
	return h >> (64 - HASH_BITS);
}

static void remember(const struct state *s, u32 parent, u8 task)
{
	u32 h = hash_of(s);

	for (; hash[h]; h = (h + 1) % HASH_SIZE)
		if (!memcmp(&nodes[hash[h] - 1].state, s, sizeof(*s)))
			return;
	must(nr_nodes < MAX_STATES, "too many states");
	if (nr_nodes == MAX_STATES)
		return;
	nodes[nr_nodes] = (struct node){ *s, parent, task };
	hash[h] = ++nr_nodes;
}

static void begin(const struct scenario *sc)
{
	struct state s = { .creator = sc->creator, .cache = sc->cache };
	unsigned int mm, i;
	u64 mapcounts = 0;

	error = NULL;
	scenario = sc;
	memset(hash, 0, HASH_SIZE * sizeof(*hash));
	nr_nodes = 0;
	nr_transitions = 0;
	memcpy(s.entry, sc->entry, sizeof(s.entry));
	memcpy(s.gup, sc->gup, sizeof(s.gup));
	s.refs = s.cache * NR_PAGES;
	for (mm = 0; mm < NR_MMS; mm++) {
		const unsigned int pmds = is(s.entry[mm][PMD], PRESENT), entries = count_mm(&s, mm);

		s.refs += entries + s.gup[mm];
		mapcounts += mapcounts_delta(entries - pmds, pmds, mm == s.creator);
		s.alive |= !empty(&s, mm) << mm;
	}
	s.mapcounts = pack((struct folio_mapcounts){ mapcounts });
	for (i = 0; i < NR_TASKS; i++)
		s.tasks[i] = (struct task){ .id = i + 1, .left = sc->tasks[i].left,
			.mm = sc->tasks[i].may ? sc->tasks[i].mm : NOBODY };
	check(&s);
	remember(&s, 0, 0);
}

static void print_state(const struct state *s)
{
	const struct folio_mapcounts mc = unpack(s->mapcounts);
	unsigned int mm, page;

	printf("refs %2u ptes %u pmds %u creator %u (%c) ", s->refs, mapcounts_ptes(mc),
	       mapcounts_pmds(mc), mapcounts_creator(mc), "ABC-"[s->creator]);
	for (mm = 0; mm < NR_MMS; mm++) {
		printf(" %c:", "ABC"[mm]);
		for (page = 0; page < NR_PAGES; page++)
			putchar(".rxmMsS"[s->entry[mm][page]]);
		if (s->entry[mm][PMD])
			printf("+%c", ".RX"[s->entry[mm][PMD]]);
	}
	putchar('\n');
}

static void print_trace(u32 at)
{
	const struct node *node = &nodes[at];
	const struct task *was = &nodes[node->parent].state.tasks[node->task];

	if (at)
		print_trace(node->parent);
	if (at && was->step == IDLE)
		return;
	printf("# %c%u %-59s", "ABCS"[was->mm], node->task, at ? step_text[was->step] : "at first");
	print_state(&node->state);
}

/* All steps from one state, up to an error */
static void expand(u32 at)
{
	unsigned int t, choice, moved = 0;

	for (t = 0; t < NR_TASKS; t++) {
		for (choice = 0; !error; choice++) {
			struct state next = nodes[at].state;

			if (!step(&next, t, choice))
				break;
			moved++;
			check(&next);
			remember(&next, at, t);
		}
	}
	nr_transitions += moved;
	must(moved || !busy(&nodes[at].state, ALL_MMS), "a deadlock");
}

/* Freed, the folio is of no interest. */
static bool explore(const struct scenario *sc)
{
	u32 at;

	begin(sc);
	for (at = 0; at < nr_nodes && !error; at++)
		if (nodes[at].state.refs)
			expand(at);
	if (error) {
		print_trace(nr_nodes - 1);
		printf("# %s (%s)\n", error, sc->name);
	}
	return !error;
}

static unsigned int result_nr, failures;

static void result(bool ok, const char *what, const char *name)
{
	failures += !ok;
	printf("%sok %u %s%s\n", ok ? "" : "not ", ++result_nr, what, name);
}

static void run_scenarios(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(scenarios); i++) {
		const bool ok = explore(&scenarios[i]);

		printf("# %u states, %lu steps\n", nr_nodes, nr_transitions);
		result(ok, "scenario: ", scenarios[i].name);
	}
	for (i = 1; i < NR_STEPS && step_text[i]; i++)
		;
	if (i < NR_STEPS)
		printf("# never: step %u, after: %s\n", i, step_text[i - 1]);
	result(i == NR_STEPS, "each step has been taken", "");
}

/* A scenario finds each error, unless there is a reason why it is none. */
static void run_error(unsigned int e)
{
	const char *why = errors[e].why;
	unsigned int i = 0;

	broken = e;
	while (i < ARRAY_SIZE(scenarios) && explore(&scenarios[i]))
		i++;
	if (why)
		printf("# since %s\n", why);
	result((i < ARRAY_SIZE(scenarios)) == !why, why ? "harmless: " : "error: ", errors[e].text);
}

int main(int argc, char **argv)
{
	bool known = argc == 1;
	unsigned int e;

	setvbuf(stdout, NULL, _IOLBF, 0);
	nodes = malloc(sizeof(*nodes) * MAX_STATES);
	hash = malloc(sizeof(*hash) * HASH_SIZE);
	if (!nodes || !hash)
		err(1, "malloc");
	if (argc == 1) {
		printf("KTAP version 1\n1..%zu\n", ARRAY_SIZE(scenarios) + NR_ERRORS);
		run_scenarios();
	}
	for (e = NO_ERROR + 1; e < NR_ERRORS; e++) {
		if (argc == 1 || strstr(errors[e].text, argv[1])) {
			run_error(e);
			known = true;
		}
	}
	if (!known)
		errx(2, "no error is called \"%s\"", argv[1]);
	return failures > 0;
}
