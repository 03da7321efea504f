// SPDX-License-Identifier: GPL-2.0-only
/*
 * An exhaustive model of how the creator of a large folio is kept, and of how
 * write faults decide that the folio is exclusive.
 *
 * Tasks of up to three MMs, and one of the system, do what mm/ does to one folio:
 * fault, fork, unmap, migrate, swap out and in, split a PMD, GUP. Each read of
 * the mapcounts, of the creator and of the reference count, each atomic operation,
 * and each lock taken or dropped is one step. Of a scenario, all orders of all steps
 * of all tasks are tried, breadth first, so that a trace to an error is as short
 * as can be. The mapcounts are added to and read by the kernel's own header.
 *
 * A PMD maps all of the folio; or the second half of it, in scenarios where the two
 * halves are mapped by different page tables: the folio is one of two PMDs then.
 *
 * In every state: there are as many references as entries, the creator has no
 * more entries than all have, and what rmap warns of under CONFIG_DEBUG_VM does not
 * happen. When a decision is made to reuse the folio, all references were those
 * of this MM's entries when they were read; and when pages become exclusive, no
 * other MM has an entry for them, or a reference. Whenever no task is in the
 * middle of something, mapcounts, references and creator count are what the page tables
 * say, so nothing is left when these are empty; and an MM that has all mappings
 * and references, in one page table or as the creator, reuses on a write.
 *
 * Then it is tried if the same finds each of a list of errors in the protocol, and
 * finds none in each change that is said to be harmless.
 *
 * What it does not cover: memory ordering, as all tasks see all steps in one order
 * (hence not the barriers, nor that the mapcounts may not be read in an adoption);
 * pages that are pinned; folios in more than one folio's place after mremap() of
 * parts; KSM; page cache folios and what drivers map; more than one folio; a third
 * page table of one MM; migration of PMDs; and what wp_reuse_ptes() does to the
 * entries besides making pages exclusive.
 *
 *	model [ERROR]
 */
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
#define NR_TABLES	(2 * NR_MMS)
#define NOBODY		NR_MMS

/* ------------------------------------------------------------------------- */
/* The state                                                                   */

/* What an entry is. A PMD has the same values. */
enum { NONE, RO, EX, MIG, MIG_EX, SWAP, SWAP_EX };

/* A step: what a task does next. By letter: write fault, copy, fork, and so on. */
enum step {
	IDLE,
	W_VMA, W_PTL, W_WORD, W_CREATOR, W_CACHE, W_CACHE_REFS, W_CACHE_LOCK,
	W_CACHE_FREE, W_CACHE_PUT, W_CACHE_UNLOCK, W_REFS, W_TABLE, W_MM_CREATOR,
	W_MM_LOCK, W_MM_WORD, W_MM_REFS, W_MM_AGAIN, W_MM_UNLOCK, W_OURS,
	W_ADOPT_LOCK, W_ADOPT_SET, W_ADOPT_ADD, W_ADOPT_UNLOCK, W_REUSE, W_UNLOCK,
	C_GET, C_UNLOCK, C_PTL, C_CREATOR, C_SUB, C_DONE, C_PUT, C_PUT_OWN,
	F_VMA, F_CHILD, F_PTL, F_REFS, F_CREATOR, F_ADD, F_SET, F_UNLOCK,
	F_UNLOCK_CHILD,
	U_VMA, U_PTL, U_CREATOR, U_SUB, U_UNLOCK, U_PUT,
	M_GET, M_LOCK,
	S_GET, S_CACHE,
	M_PTL, M_CREATOR, M_SUB, M_PUT_ENTRY, M_UNPTL, M_MOVE,
	R_PTL, R_GET, R_WORD, R_CLAIM, R_CREATOR, R_ADD, R_SET, R_UNPTL,
	M_UNLOCK, M_PUT,
	I_VMA, I_GET, I_LOCK, I_PTL, I_REFS, I_WORD, I_CLAIM, I_CREATOR, I_ADD,
	I_SET, I_FREE, I_FREE_PUT, I_UNLOCK, I_UNPTL, I_BAD, I_BAD_UNLOCK,
	I_BAD_PUT,
	G_GET, G_CHECK, G_PUT, G_DROP,
	H_VMA, H_PTL, H_LOCK, H_GET, H_UNPTL, H_WAIT, H_RELOCK, H_BAD_UNPTL,
	H_BAD_UNLOCK, H_PUT, H_EARLY, H_REFS, H_CREATOR, H_ADOPT_SET, H_ADOPT_ADD,
	H_REUSE, H_UNLOCK, H_DONE, H_SPLIT_UNLOCK, H_SPLIT_UNPTL,
	P_PTL, P_REFS, P_CREATOR, P_ADD, P_SET, P_UNPTL,
	NR_STEPS
};

/* What a trace calls them. */
static const char *const step_text[] = {
	[W_VMA] = "write fault: lock the VMA",
	[W_PTL] = "lock the page table, look at the entry",
	[W_WORD] = "read the mapcounts",
	[W_CREATOR] = "read the creator",
	[W_CACHE] = "in the swap cache?",
	[W_CACHE_REFS] = "read the references",
	[W_CACHE_LOCK] = "trylock the folio",
	[W_CACHE_FREE] = "out of the swap cache, if no entry is swapped",
	[W_CACHE_PUT] = "drop the references of the swap cache",
	[W_CACHE_UNLOCK] = "unlock the folio",
	[W_REFS] = "read the references",
	[W_TABLE] = "count the entries in the table, read the references",
	[W_MM_CREATOR] = "read the creator",
	[W_MM_LOCK] = "trylock the folio",
	[W_MM_WORD] = "read the mapcounts",
	[W_MM_REFS] = "read the references",
	[W_MM_AGAIN] = "read the mapcounts again",
	[W_MM_UNLOCK] = "unlock the folio",
	[W_OURS] = "read the creator",
	[W_ADOPT_LOCK] = "trylock the folio",
	[W_ADOPT_SET] = "set the creator",
	[W_ADOPT_ADD] = "add what the table maps to the mapcounts",
	[W_ADOPT_UNLOCK] = "unlock the folio",
	[W_REUSE] = "make the pages exclusive",
	[W_UNLOCK] = "unlock the page table",
	[C_GET] = "copy: get a reference",
	[C_UNLOCK] = "unlock the page table, copy",
	[C_PTL] = "lock the page table, look at the entry",
	[C_CREATOR] = "clear the entry, read the creator",
	[C_SUB] = "subtract it from the mapcounts",
	[C_DONE] = "unlock the page table",
	[C_PUT] = "drop the reference of the entry",
	[C_PUT_OWN] = "drop the reference",
	[F_VMA] = "fork: lock the VMA for writing",
	[F_CHILD] = "lock the child's page table",
	[F_PTL] = "lock the page table",
	[F_REFS] = "get references",
	[F_CREATOR] = "no page is exclusive now; read the creator",
	[F_ADD] = "add the child's entries to the mapcounts",
	[F_SET] = "set the child's entries",
	[F_UNLOCK] = "unlock the page table",
	[F_UNLOCK_CHILD] = "unlock the child's page table",
	[U_VMA] = "unmap: lock the VMA",
	[U_PTL] = "lock the page table",
	[U_CREATOR] = "clear the entries, read the creator",
	[U_SUB] = "subtract them from the mapcounts",
	[U_UNLOCK] = "unlock the page table",
	[U_PUT] = "drop their references",
	[M_GET] = "migration or reclaim: get a reference",
	[M_LOCK] = "trylock the folio",
	[S_GET] = "get the references of the swap cache",
	[S_CACHE] = "put it into the swap cache",
	[M_PTL] = "lock the page table",
	[M_CREATOR] = "set a migration or swap entry, read the creator",
	[M_SUB] = "subtract it from the mapcounts",
	[M_PUT_ENTRY] = "drop the reference of the entry",
	[M_UNPTL] = "unlock the page table",
	[M_MOVE] = "move to a new folio, if nothing else refers to it",
	[R_PTL] = "put back: lock the page table",
	[R_GET] = "get the reference of an entry",
	[R_WORD] = "read the mapcounts",
	[R_CLAIM] = "claim the folio",
	[R_CREATOR] = "read the creator",
	[R_ADD] = "add it to the mapcounts",
	[R_SET] = "set the entry",
	[R_UNPTL] = "unlock the page table",
	[M_UNLOCK] = "unlock the folio",
	[M_PUT] = "drop the reference",
	[I_VMA] = "swap in: lock the VMA",
	[I_GET] = "get a reference by the swap cache",
	[I_LOCK] = "lock the folio",
	[I_PTL] = "lock the page table, look at the entry",
	[I_REFS] = "get more references",
	[I_WORD] = "read the mapcounts",
	[I_CLAIM] = "claim the folio",
	[I_CREATOR] = "read the creator",
	[I_ADD] = "add the entries to the mapcounts",
	[I_SET] = "set the entries",
	[I_FREE] = "out of the swap cache, if no entry is swapped",
	[I_FREE_PUT] = "drop the references of the swap cache",
	[I_UNLOCK] = "unlock the folio",
	[I_UNPTL] = "unlock the page table",
	[I_BAD] = "unlock the page table: another entry",
	[I_BAD_UNLOCK] = "unlock the folio",
	[I_BAD_PUT] = "drop the reference",
	[G_GET] = "GUP: found the entry; get a reference",
	[G_CHECK] = "look at the entry again",
	[G_PUT] = "drop the reference",
	[G_DROP] = "drop the reference of a GUP",
	[H_VMA] = "write fault on a PMD: lock the VMA",
	[H_PTL] = "lock the PMD, look at it",
	[H_LOCK] = "trylock the folio",
	[H_GET] = "get a reference",
	[H_UNPTL] = "unlock the PMD",
	[H_WAIT] = "lock the folio",
	[H_RELOCK] = "lock the PMD, look at it",
	[H_BAD_UNPTL] = "unlock the PMD: it has changed",
	[H_BAD_UNLOCK] = "unlock the folio",
	[H_PUT] = "drop the reference",
	[H_EARLY] = "read the references",
	[H_REFS] = "read the references, after the swap cache",
	[H_CREATOR] = "read the creator",
	[H_ADOPT_SET] = "set the creator",
	[H_ADOPT_ADD] = "add the PMD to the creator count",
	[H_REUSE] = "make it exclusive",
	[H_UNLOCK] = "unlock the folio",
	[H_DONE] = "unlock the PMD",
	[H_SPLIT_UNLOCK] = "unlock the folio",
	[H_SPLIT_UNPTL] = "unlock the PMD",
	[P_PTL] = "split: lock the PMD",
	[P_REFS] = "get references",
	[P_CREATOR] = "read the creator",
	[P_ADD] = "add PTEs and subtract the PMD",
	[P_SET] = "set the PTEs",
	[P_UNPTL] = "unlock the PMD",
};

struct task {
	u8 step;
	u8 mm;			/* whose task it is; NOBODY: the system's */
	u8 left;		/* how many more things it does */
	/* The rest is 0 while it is idle. */
	u8 page;		/* of the fault, or where a walk is */
	u8 table;		/* 0 or 1 */
	u8 child;
	u8 whole;		/* all of the table, not one page */
	u8 nr;			/* entries at hand */
	u8 was;			/* what the entry was */
	u8 ours;		/* the creator was this MM when it was read */
	u8 truth;		/* the folio was exclusive when the references were read */
	u8 vma;			/* holds the VMA for reading: table + 1 */
	u8 swap;		/* reclaim, not migration */
	u8 refs;
	u16 mapcounts, again;	/* snapshots */
};

struct state {
	u16 mapcounts;
	u8 creator, refs;
	u8 lock;			/* the task that has the folio locked, + 1 */
	u8 cache;			/* in the swap cache */
	u8 alive;			/* MMs, by bit */
	u8 forking;			/* tables whose VMA is locked for writing, by bit */
	u8 ptl[NR_TABLES];		/* the task that has it locked, + 1 */
	u8 pmd[NR_MMS];
	u8 gup[NR_MMS];			/* references that came through an MM's entries */
	u8 pte[NR_MMS][NR_PAGES];
	struct task tasks[NR_TASKS];
};

/* What a scenario lets tasks do, by bit. */
enum {
	WRITE = 1, FORK = 2, UNMAP = 4, UNMAP_ONE = 8, MIGRATE = 16, RECLAIM = 32,
	SWAPIN = 64, GUP = 128, SPLIT = 256,
};

struct scenario {
	const char *name;
	bool split;		/* pages 2 and 3 are in another page table, or in a PMD */
	u8 pmd[NR_MMS];
	u8 pte[NR_MMS][NR_PAGES];
	u8 creator, gup[NR_MMS], cache;
	struct { u8 mm, left; u16 may; } tasks[NR_TASKS];
};

static const struct scenario *scenario;
static char error[200];		/* what is wrong with the state at hand */

/* The state has the mapcounts in 16 bits, each field with one to spare. */
static struct folio_mapcounts unpack(u16 mapcounts)
{
	return (struct folio_mapcounts){
		(mapcounts & 0x1f) * MAPCOUNTS_PTE +
		(mapcounts >> 5 & 0x7) * MAPCOUNTS_PMD +
		(mapcounts >> 8 & 0x1f) * MAPCOUNTS_CREATOR
	};
}

static u16 pack(struct folio_mapcounts mc)
{
	const u16 mapcounts = mapcounts_ptes(mc) | mapcounts_pmds(mc) << 5 |
			 mapcounts_creator(mc) << 8;

	if (unpack(mapcounts).val != mc.val)
		snprintf(error, sizeof(error), "the mapcounts are %#llx",
			 (unsigned long long)mc.val);
	return mapcounts;
}

static void must(bool cond, const char *what)
{
	if (!cond && !error[0])
		snprintf(error, sizeof(error), "%s", what);
}

/* ------------------------------------------------------------------------- */
/* Errors in the protocol                                                      */

enum error {
	NO_ERROR, CLAIM_UNLOCKED, CLAIM_SWAPIN, CLAIM_ALWAYS, ADOPT_NO_ADD,
	ADOPT_NO_SET, ADOPT_LATE, ADOPT_PMD_NO_ADD, TABLE_IS_MAPCOUNTS, TABLE_OLD_REFS,
	MM_NO_LOCK, MM_NO_AGAIN, MM_ANY, CACHE_KEPT, CACHE_COPIED, REUSE_ALL,
	PMD_ONE_MORE, UNMAP_NO_SUB, UNMAP_PUT_FIRST, UNMAP_STALE, FORK_NO_ADD,
	FORK_PARENT, FORK_NO_PTL, FORK_REFS_LATE, FORK_EXCLUSIVE, SPLIT_ORDER,
	SPLIT_NO_CREATOR, SPLIT_REFS_LATE, MIGRATE_NO_SUB, SWAPIN_REFS_LATE,
	LESS_CREATOR, LESS_REFS, LESS_PTES, LESS_PMDS, LESS_WORD, LESS_EXCLUSIVE,
	MM_NOT_CREATOR, MIGRATE_PUT_FIRST, LESS_ADOPT_LOCK,
	NR_ERRORS
};

/* What is wrong; and, if nothing is after all, why. */
static const struct {
	const char *name, *text, *why;
} errors[] = {
	[CLAIM_UNLOCKED] = {
		"CLAIM_UNLOCKED",
		"migration unlocks the folio before it puts entries back",
	},
	[CLAIM_SWAPIN] = {
		"CLAIM_SWAPIN",
		"swap-in does not lock the folio",
	},
	[CLAIM_ALWAYS] = {
		"CLAIM_ALWAYS",
		"who maps a mapped folio claims it as well",
	},
	[ADOPT_NO_ADD] = {
		"ADOPT_NO_ADD",
		"adoption does not count what is mapped",
	},
	[ADOPT_NO_SET] = {
		"ADOPT_NO_SET",
		"adoption counts, but does not set the creator",
	},
	[ADOPT_LATE] = {
		"ADOPT_LATE",
		"adoption after the page table is unlocked",
	},
	[ADOPT_PMD_NO_ADD] = {
		"ADOPT_PMD_NO_ADD",
		"adoption of a PMD does not count it",
	},
	[TABLE_IS_MAPCOUNTS] = {
		"TABLE_IS_MAPCOUNTS",
		"as many references as there are entries are enough",
	},
	[TABLE_OLD_REFS] = {
		"TABLE_OLD_REFS",
		"the references are read before the page table is locked",
	},
	[MM_NO_LOCK] = {
		"MM_NO_LOCK",
		"one MM: the folio is not locked",
	},
	[MM_NO_AGAIN] = {
		"MM_NO_AGAIN",
		"one MM: the mapcounts are not read again",
	},
	[MM_ANY] = {
		"MM_ANY",
		"one MM: all entries are compared, not the creator's",
	},
	[CACHE_KEPT] = {
		"CACHE_KEPT",
		"reuses a folio that stays in the swap cache",
	},
	[CACHE_COPIED] = {
		"CACHE_COPIED",
		"copies what is in the swap cache",
	},
	[REUSE_ALL] = {
		"REUSE_ALL",
		"makes the pages in the other page table exclusive, too",
	},
	[PMD_ONE_MORE] = {
		"PMD_ONE_MORE",
		"one more reference than the PMD's is fine",
	},
	[UNMAP_NO_SUB] = {
		"UNMAP_NO_SUB",
		"unmap does not subtract",
	},
	[UNMAP_PUT_FIRST] = {
		"UNMAP_PUT_FIRST",
		"unmap drops the references, then subtracts",
	},
	[UNMAP_STALE] = {
		"UNMAP_STALE",
		"unmap compares the creator before it has the lock",
	},
	[FORK_NO_ADD] = {
		"FORK_NO_ADD",
		"fork does not add",
	},
	[FORK_PARENT] = {
		"FORK_PARENT",
		"fork compares the creator with the parent",
	},
	[FORK_NO_PTL] = {
		"FORK_NO_PTL",
		"fork does not lock the parent's page table",
	},
	[FORK_REFS_LATE] = {
		"FORK_REFS_LATE",
		"fork gets the references at last",
	},
	[FORK_EXCLUSIVE] = {
		"FORK_EXCLUSIVE",
		"fork leaves the parent's pages exclusive",
	},
	[SPLIT_ORDER] = {
		"SPLIT_ORDER",
		"a split subtracts the PMD, then adds the PTEs",
	},
	[SPLIT_NO_CREATOR] = {
		"SPLIT_NO_CREATOR",
		"a split leaves the creator count as it was",
	},
	[SPLIT_REFS_LATE] = {
		"SPLIT_REFS_LATE",
		"a split gets the references at last",
	},
	[MIGRATE_NO_SUB] = {
		"MIGRATE_NO_SUB",
		"migration does not subtract",
	},
	[SWAPIN_REFS_LATE] = {
		"SWAPIN_REFS_LATE",
		"swap-in gets the references at last",
	},
	[LESS_CREATOR] = {
		"LESS_CREATOR",
		"does not look at once if the creator has all PTEs",
		"saves reading the page table",
	},
	[LESS_REFS] = {
		"LESS_REFS",
		"does not look at once for other references",
		"saves reading the page table",
	},
	[LESS_PTES] = {
		"LESS_PTES",
		"does not look if there are more entries than pages",
		"saves reading the page table",
	},
	[LESS_PMDS] = {
		"LESS_PMDS",
		"does not look at once for PMDs, if it is not the creator",
		"saves reading the page table",
	},
	[LESS_WORD] = {
		"LESS_WORD",
		"one MM: reads the mapcounts only after the references",
	},
	[LESS_EXCLUSIVE] = {
		"LESS_EXCLUSIVE",
		"one MM: compares the creator count, whatever others map",
		"a wrong answer takes PTEs in a third page table of the MM",
	},
	[MM_NOT_CREATOR] = {
		"MM_NOT_CREATOR",
		"one MM: does not look who the creator is",
		"the reference of this MM's entry would be one too many",
	},
	[MIGRATE_PUT_FIRST] = {
		"MIGRATE_PUT_FIRST",
		"migration drops a reference, then subtracts",
		"who compares the two has the folio locked",
	},
	[LESS_ADOPT_LOCK] = {
		"LESS_ADOPT_LOCK",
		"adoption without the folio lock",
		"the page table has all references, and so whoever has the lock has none",
	},
};

static enum error broken;

static bool is_broken(enum error e)
{
	return broken == e;
}

/* ------------------------------------------------------------------------- */
/* What steps are made of                                                      */

static unsigned int table_of(unsigned int page)
{
	return scenario->split && page >= 2;
}

static unsigned int first_page(unsigned int table)
{
	return 2 * table;
}

static unsigned int end_page(unsigned int table)
{
	return scenario->split ? 2 * table + 2 : NR_PAGES;
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

static bool present(u8 entry)
{
	return entry == RO || entry == EX;
}

static bool swapped(u8 entry)
{
	return entry == SWAP || entry == SWAP_EX;
}

static bool migrating(u8 entry)
{
	return entry == MIG || entry == MIG_EX;
}

static unsigned int count_table(const struct state *s, unsigned int mm, unsigned int table)
{
	unsigned int page, count = 0;

	for (page = first_page(table); page < end_page(table); page++)
		count += present(s->pte[mm][page]);
	return count;
}

/* The entries of an MM, each of which has a reference. */
static unsigned int count_mm(const struct state *s, unsigned int mm)
{
	unsigned int page, count = present(s->pmd[mm]);

	for (page = 0; page < NR_PAGES; page++)
		count += present(s->pte[mm][page]);
	return count;
}

static unsigned int count_swapped(const struct state *s)
{
	unsigned int mm, page, count = 0;

	for (mm = 0; mm < NR_MMS; mm++)
		for (page = 0; page < NR_PAGES; page++)
			count += swapped(s->pte[mm][page]);
	return count;
}

static bool by_pmd(const struct state *s, unsigned int mm, unsigned int page)
{
	return s->pmd[mm] && page >= pmd_first();
}

/* Does another MM than this have anything of the page? */
static bool others_have(const struct state *s, unsigned int mm, unsigned int page)
{
	unsigned int other;

	for (other = 0; other < NR_MMS; other++)
		if (other != mm && (s->pte[other][page] || by_pmd(s, other, page) ||
				    s->gup[other]))
			return true;
	return false;
}

/*
 * The references of entries that tasks of this MM have cleared and not dropped yet,
 * or got for PTEs that are to replace a PMD: the mapcounts may or may not count these
 * entries, and nobody else reads or writes the page by them.
 */
static unsigned int count_cleared(const struct state *s, unsigned int mm)
{
	unsigned int i, count = 0;

	for (i = 0; i < NR_TASKS; i++) {
		const struct task *k = &s->tasks[i];
		const bool unmaps = k->step >= U_SUB && k->step <= U_PUT;

		if (k->mm == mm && ((unmaps && !is_broken(UNMAP_PUT_FIRST)) ||
				    k->step == U_PUT ||
				    (k->step >= C_SUB && k->step <= C_PUT)))
			count += k->nr;
		if (k->mm == mm && k->step >= P_CREATOR && k->step <= P_SET &&
		    !is_broken(SPLIT_REFS_LATE))
			count += pmd_nr() - 1;
	}
	return count;
}

/* Are all references those of this MM's entries, at this moment? */
static bool exclusive(const struct state *s, unsigned int mm)
{
	unsigned int page;

	for (page = 0; page < NR_PAGES; page++)
		if (others_have(s, mm, page))
			return false;
	return s->refs == count_mm(s, mm) + count_cleared(s, mm);
}

static bool take(u8 *lock, unsigned int t)
{
	if (*lock)
		return false;
	*lock = t + 1;
	return true;
}

static void drop(u8 *lock, unsigned int t)
{
	must(*lock == t + 1, "unlocks what is not locked");
	*lock = 0;
}

static void get(struct state *s, unsigned int nr)
{
	s->refs += nr;
}

static void put(struct state *s, unsigned int nr)
{
	must(s->refs >= nr, "more references dropped than there are");
	s->refs -= nr;
}

/* As __folio_add_mapcounts(), with what it checks. */
static struct folio_mapcounts word_add(struct state *s, u64 delta)
{
	struct folio_mapcounts mc = unpack(s->mapcounts);

	mc.val += delta;
	must(mapcounts_valid(mc), "the creator has more entries than there are");
	s->mapcounts = pack(mc);
	return mc;
}

static void word_sub(struct state *s, u64 delta)
{
	const struct folio_mapcounts was = unpack(s->mapcounts), gone = { delta };

	must(mapcounts_ptes(was) >= mapcounts_ptes(gone) &&
	     mapcounts_pmds(was) >= mapcounts_pmds(gone),
	     "more is unmapped than mapped");
	must(mapcounts_creator(was) >= mapcounts_creator(gone),
	     "the creator unmaps more than it has mapped");
	if (!error[0])
		word_add(s, -delta);
}

/* As folio_mod_mapcounts(); the creator was compared before. */
static u64 delta_of(const struct state *s, const struct task *k, unsigned int mm, bool pmd)
{
	if (broken == NO_ERROR)
		must(k->ours == (s->creator == mm), "the creator has changed meanwhile");
	return pmd ? mapcounts_delta(0, 1, k->ours) : mapcounts_delta(k->nr, 0, k->ours);
}

/* A task that maps an unmapped folio claims it first. Returns the next step. */
static enum step claim_or(const struct state *s, enum step claim, enum step other)
{
	return !s->mapcounts || is_broken(CLAIM_ALWAYS) ? claim : other;
}

static void claim(struct state *s, unsigned int t, unsigned int mm)
{
	if (broken == NO_ERROR)
		must(s->lock == t + 1, "the folio is claimed without its lock");
	s->creator = mm;
}

static bool free_swap(struct state *s)
{
	if (!s->cache || count_swapped(s))
		return false;
	s->cache = 0;
	return true;
}

static void done(struct task *k)
{
	*k = (struct task){ .mm = k->mm, .left = k->left };
}

/* Step to what comes next. Every function of a step returns that it was possible. */
static bool to(struct task *k, enum step step)
{
	k->step = step;
	return true;
}

/* ------------------------------------------------------------------------- */
/* A write fault on a PTE: __wp_can_reuse_large_anon_folio()                   */

static void reuse(struct state *s, struct task *k)
{
	unsigned int page;

	must(k->truth, "taken, though there were other references");
	for (page = 0; page < NR_PAGES; page++) {
		if (s->pte[k->mm][page] != RO ||
		    (table_of(page) != k->table && !is_broken(REUSE_ALL)))
			continue;
		must(!others_have(s, k->mm, page), "taken is a page that another MM has");
		s->pte[k->mm][page] = EX;
	}
}

static bool step_adopt(struct state *s, unsigned int t, struct task *k)
{
	struct folio_mapcounts mc;

	switch (k->step) {
	case W_OURS:
		if (s->creator == k->mm)
			return to(k, W_REUSE);
		if (is_broken(ADOPT_LATE))
			s->ptl[2 * k->mm + k->table] = 0;
		return to(k, is_broken(LESS_ADOPT_LOCK) ? W_ADOPT_SET : W_ADOPT_LOCK);
	case W_ADOPT_LOCK:
		return to(k, take(&s->lock, t) ? W_ADOPT_SET : W_REUSE);
	case W_ADOPT_SET:
		if (!is_broken(ADOPT_NO_SET))
			s->creator = k->mm;
		return to(k, W_ADOPT_ADD);
	case W_ADOPT_ADD:
		if (!is_broken(ADOPT_NO_ADD)) {
			mc = word_add(s, MAPCOUNTS_CREATOR * (unsigned int)k->nr);
			must(mapcounts_creator(mc) == k->nr &&
			     mapcounts_exclusive(mc),
			     "adoption of what is not all this MM's");
		}
		return to(k, is_broken(LESS_ADOPT_LOCK) ? W_REUSE : W_ADOPT_UNLOCK);
	default:
		drop(&s->lock, t);
		return to(k, W_REUSE);
	}
}

static bool in_one_mm(const struct task *k)
{
	const struct folio_mapcounts before = unpack(k->mapcounts), after = unpack(k->again);

	if (is_broken(MM_ANY))
		return k->mapcounts == k->again && mapcounts_entries(before) == k->refs;
	if (is_broken(LESS_EXCLUSIVE))
		return k->mapcounts == k->again && mapcounts_creator(before) == k->refs;
	if (is_broken(LESS_WORD))
		return mapcounts_exclusive(after) && mapcounts_creator(after) == k->refs;
	return k->mapcounts == k->again && mapcounts_exclusive(before) &&
	       mapcounts_entries(before) == k->refs;
}

/* wp_folio_exclusive_mm() */
static bool step_one_mm(struct state *s, unsigned int t, struct task *k)
{
	switch (k->step) {
	case W_MM_CREATOR:
		if (s->creator != k->mm && !is_broken(MM_NOT_CREATOR))
			return to(k, C_GET);
		return to(k, is_broken(MM_NO_LOCK) ? W_MM_WORD : W_MM_LOCK);
	case W_MM_LOCK:
		return to(k, take(&s->lock, t) ? W_MM_WORD : C_GET);
	case W_MM_WORD:
		k->mapcounts = s->mapcounts;
		return to(k, W_MM_REFS);
	case W_MM_REFS:
		k->refs = s->refs;
		k->truth = exclusive(s, k->mm);
		return to(k, W_MM_AGAIN);
	case W_MM_AGAIN:
		k->again = is_broken(MM_NO_AGAIN) ? k->mapcounts : s->mapcounts;
		/* Without a PMD to split, entries of this MM only go. */
		if (broken == NO_ERROR || is_broken(CLAIM_UNLOCKED))
			must(mapcounts_pmds(unpack(k->mapcounts)) ||
			     mapcounts_creator(unpack(k->again)) <=
			     mapcounts_creator(unpack(k->mapcounts)),
			     "the creator count rises in wp_folio_exclusive_mm()");
		return to(k, W_MM_UNLOCK);
	default:
		if (!is_broken(MM_NO_LOCK))
			drop(&s->lock, t);
		if (!in_one_mm(k))
			return to(k, C_GET);
		k->mapcounts = 0;
		k->again = 0;
		k->refs = 0;
		return to(k, W_OURS);
	}
}

static bool step_write_cache(struct state *s, unsigned int t, struct task *k)
{
	switch (k->step) {
	case W_CACHE:
		if (s->cache && is_broken(CACHE_COPIED))
			return to(k, C_GET);
		return to(k, s->cache ? W_CACHE_REFS : W_REFS);
	case W_CACHE_REFS:
		if (s->refs != mapcounts_entries(unpack(k->mapcounts)) + NR_PAGES)
			return to(k, C_GET);
		if (is_broken(CACHE_KEPT)) {
			k->truth = true;
			return to(k, W_REUSE);
		}
		return to(k, W_CACHE_LOCK);
	case W_CACHE_LOCK:
		return to(k, take(&s->lock, t) ? W_CACHE_FREE : C_GET);
	case W_CACHE_FREE:
		return to(k, free_swap(s) ? W_CACHE_PUT : W_CACHE_UNLOCK);
	case W_CACHE_PUT:
		put(s, NR_PAGES);
		return to(k, W_CACHE_UNLOCK);
	default:
		drop(&s->lock, t);
		return to(k, W_REFS);
	}
}

static bool step_write_word(struct state *s, struct task *k)
{
	const struct folio_mapcounts mc = unpack(s->mapcounts);

	k->mapcounts = s->mapcounts;
	if (mapcounts_entries(mc) <= 1 ||
	    (mapcounts_entries(mc) > NR_PAGES && !is_broken(LESS_PTES)))
		return to(k, C_GET);
	return to(k, is_broken(LESS_CREATOR) || is_broken(MM_ANY) ? W_CACHE : W_CREATOR);
}

/* wp_folio_exclusive_ptl() */
static bool step_one_table(struct state *s, struct task *k)
{
	const unsigned int refs = is_broken(TABLE_OLD_REFS) ? k->refs : s->refs;

	k->nr = is_broken(TABLE_IS_MAPCOUNTS) ? mapcounts_entries(unpack(k->mapcounts)) :
		count_table(s, k->mm, k->table);
	k->mapcounts = 0;
	k->refs = 0;
	k->truth = exclusive(s, k->mm);
	return to(k, k->nr == refs ? W_OURS : W_MM_CREATOR);
}

static bool step_write(struct state *s, unsigned int t, struct task *k)
{
	u8 *ptl = &s->ptl[2 * k->mm + k->table];

	switch (k->step) {
	case W_VMA:
		if (s->forking & 1 << (2 * k->mm + k->table))
			return false;
		k->vma = k->table + 1;
		if (is_broken(TABLE_OLD_REFS))
			k->refs = s->refs;
		return to(k, W_PTL);
	case W_PTL:
		if (!take(ptl, t))
			return false;
		return to(k, s->pte[k->mm][k->page] == RO ? W_WORD : W_UNLOCK);
	case W_WORD:
		return step_write_word(s, k);
	case W_CREATOR:
		if (s->creator == k->mm ? !mapcounts_exclusive(unpack(k->mapcounts)) :
		    mapcounts_pmds(unpack(k->mapcounts)) && !is_broken(LESS_PMDS))
			return to(k, C_GET);
		return to(k, W_CACHE);
	case W_REFS:
		if (s->refs != mapcounts_entries(unpack(k->mapcounts)) &&
		    !is_broken(LESS_REFS) && !is_broken(MM_ANY))
			return to(k, C_GET);
		return to(k, W_TABLE);
	case W_TABLE:
		return step_one_table(s, k);
	case W_REUSE:
		reuse(s, k);
		return to(k, W_UNLOCK);
	default:
		if (!is_broken(ADOPT_LATE))
			drop(ptl, t);
		else if (*ptl == t + 1)
			*ptl = 0;
		done(k);
		return true;
	}
}

/* wp_page_copy() */
static bool step_copy(struct state *s, unsigned int t, struct task *k)
{
	u8 *ptl = &s->ptl[2 * k->mm + k->table];

	switch (k->step) {
	case C_GET:
		*k = (struct task){ .mm = k->mm, .left = k->left, .page = k->page,
				    .table = k->table, .vma = k->vma };
		get(s, 1);
		return to(k, C_UNLOCK);
	case C_UNLOCK:
		drop(ptl, t);
		return to(k, C_PTL);
	case C_PTL:
		if (!take(ptl, t))
			return false;
		return to(k, s->pte[k->mm][k->page] == RO ? C_CREATOR : C_DONE);
	case C_CREATOR:
		s->pte[k->mm][k->page] = NONE;
		k->nr = 1;
		k->ours = s->creator == k->mm;
		return to(k, C_SUB);
	case C_SUB:
		word_sub(s, delta_of(s, k, k->mm, false));
		return to(k, C_DONE);
	case C_DONE:
		drop(ptl, t);
		return to(k, k->nr ? C_PUT : C_PUT_OWN);
	case C_PUT:
		put(s, 1);
		return to(k, C_PUT_OWN);
	default:
		put(s, 1);
		done(k);
		return true;
	}
}

/* ------------------------------------------------------------------------- */
/* fork(): copy_present_ptes(), copy_nonpresent_pte(), copy_huge_pmd()         */

/* "whole" says that it is about the PMD; its lock is that of table 1. */
static void fork_set(struct state *s, struct task *k)
{
	unsigned int page;

	if (k->whole) {
		s->pmd[k->child] = s->pmd[k->mm];
		return;
	}
	for (page = first_page(k->table); page < end_page(k->table); page++) {
		u8 *entry = &s->pte[k->mm][page];

		if (*entry == MIG_EX || *entry == SWAP_EX)
			*entry -= MIG_EX - MIG;
		s->pte[k->child][page] = *entry;
	}
}

static void fork_share(struct state *s, struct task *k)
{
	unsigned int page;

	if (is_broken(FORK_EXCLUSIVE))
		return;
	if (k->whole && s->pmd[k->mm] == EX)
		s->pmd[k->mm] = RO;
	for (page = first_page(k->table); !k->whole && page < end_page(k->table); page++)
		if (s->pte[k->mm][page] == EX)
			s->pte[k->mm][page] = RO;
}

static bool fork_end_table(struct state *s, unsigned int t, struct task *k)
{
	if (is_broken(FORK_REFS_LATE))
		get(s, k->nr);
	drop(&s->ptl[2 * k->child + k->table], t);
	k->nr = 0;
	k->ours = 0;
	if (k->whole && !s->pmd[k->child]) {
		/* It was split meanwhile. */
		k->whole = 0;
		k->table = scenario->split;
		return to(k, F_CHILD);
	}
	if (scenario->split && !k->table) {
		k->table = 1;
		k->whole = present(s->pmd[k->mm]);
		return to(k, F_VMA);
	}
	s->forking &= ~(3 << 2 * k->mm);
	s->alive |= 1 << k->child;
	done(k);
	return true;
}

static bool fork_vma(struct state *s, struct task *k)
{
	unsigned int i;

	for (i = 0; i < NR_TASKS; i++)
		if (s->tasks[i].mm == k->mm && s->tasks[i].vma == k->table + 1)
			return false;
	s->forking |= 1 << (2 * k->mm + k->table);
	if (!scenario->split)
		s->forking |= 3 << 2 * k->mm;
	return to(k, F_CHILD);
}

static bool step_fork(struct state *s, unsigned int t, struct task *k)
{
	u8 *ptl = &s->ptl[2 * k->mm + k->table];

	switch (k->step) {
	case F_VMA:
		return fork_vma(s, k);
	case F_CHILD:
		return take(&s->ptl[2 * k->child + k->table], t) && to(k, F_PTL);
	case F_PTL:
		if (!is_broken(FORK_NO_PTL) && !take(ptl, t))
			return false;
		k->nr = k->whole ? present(s->pmd[k->mm]) : count_table(s, k->mm, k->table);
		return to(k, k->nr ? F_REFS : F_SET);
	case F_REFS:
		if (!is_broken(FORK_REFS_LATE))
			get(s, k->nr);
		return to(k, F_CREATOR);
	case F_CREATOR:
		fork_share(s, k);
		k->ours = s->creator == (is_broken(FORK_PARENT) ? k->mm : k->child);
		return to(k, F_ADD);
	case F_ADD:
		if (!is_broken(FORK_NO_ADD))
			word_add(s, delta_of(s, k, k->child, k->whole));
		return to(k, F_SET);
	case F_SET:
		fork_set(s, k);
		return to(k, F_UNLOCK);
	case F_UNLOCK:
		if (!is_broken(FORK_NO_PTL))
			drop(ptl, t);
		return to(k, F_UNLOCK_CHILD);
	default:
		return fork_end_table(s, t, k);
	}
}

/* ------------------------------------------------------------------------- */
/* zap_present_ptes(), zap_huge_pmd(): "was" says that it is about the PMD     */

static void unmap_clear(struct state *s, struct task *k)
{
	unsigned int page;

	k->nr = 0;
	if (k->was) {
		k->nr = present(s->pmd[k->mm]);
		s->pmd[k->mm] = NONE;
		return;
	}
	for (page = first_page(k->table); page < end_page(k->table); page++) {
		if (!k->whole && page != k->page)
			continue;
		k->nr += present(s->pte[k->mm][page]);
		s->pte[k->mm][page] = NONE;
	}
}

static bool step_unmap(struct state *s, unsigned int t, struct task *k)
{
	u8 *ptl = &s->ptl[2 * k->mm + k->table];

	switch (k->step) {
	case U_VMA:
		if (s->forking & 1 << (2 * k->mm + k->table))
			return false;
		k->vma = k->table + 1;
		if (is_broken(UNMAP_STALE))
			k->ours = s->creator == k->mm;
		return to(k, U_PTL);
	case U_PTL:
		return take(ptl, t) && to(k, U_CREATOR);
	case U_CREATOR:
		unmap_clear(s, k);
		if (!is_broken(UNMAP_STALE))
			k->ours = s->creator == k->mm;
		if (is_broken(UNMAP_PUT_FIRST))
			return to(k, k->nr ? U_PUT : U_UNLOCK);
		return to(k, k->nr ? U_SUB : U_UNLOCK);
	case U_SUB:
		if (!is_broken(UNMAP_NO_SUB))
			word_sub(s, delta_of(s, k, k->mm, k->was));
		return to(k, U_UNLOCK);
	case U_UNLOCK:
		drop(ptl, t);
		if (k->nr && !is_broken(UNMAP_PUT_FIRST))
			return to(k, U_PUT);
		done(k);
		return true;
	default:
		put(s, k->nr);
		if (is_broken(UNMAP_PUT_FIRST))
			return to(k, U_SUB);
		done(k);
		return true;
	}
}

/* ------------------------------------------------------------------------- */
/* The system: migration and reclaim. "page" counts through all MMs' pages.     */

static u8 *walk_entry(struct state *s, const struct task *k)
{
	return &s->pte[k->page / NR_PAGES][k->page % NR_PAGES];
}

static u8 *walk_ptl(struct state *s, const struct task *k)
{
	return &s->ptl[2 * (k->page / NR_PAGES) + table_of(k->page % NR_PAGES)];
}

/* Go on to the next entry for which @is holds; in the same table if @table. */
static bool walk_to(struct state *s, struct task *k, bool (*is)(u8), bool table)
{
	const u8 *ptl = walk_ptl(s, k);

	for (; k->page < NR_MMS * NR_PAGES; k->page++) {
		if (table && walk_ptl(s, k) != ptl) {
			k->page--;
			return false;
		}
		if (is(*walk_entry(s, k)))
			return true;
	}
	if (table)
		k->page--;
	return false;
}

/* To the beginning of the next table. */
static void walk_next_table(struct state *s, struct task *k)
{
	const u8 *ptl = walk_ptl(s, k);

	while (k->page < NR_MMS * NR_PAGES && walk_ptl(s, k) == ptl)
		k->page++;
}

/* try_to_migrate_one(), try_to_unmap_one() */
static bool step_walk(struct state *s, unsigned int t, struct task *k, unsigned int pick)
{
	const unsigned int mm = k->page / NR_PAGES;
	u8 *entry;

	switch (k->step) {
	case M_PTL:
		/* It can give up at any time. */
		if (pick == 1)
			k->page = NR_MMS * NR_PAGES;
		if (pick > 1 || (pick == 1 && k->page == 0))
			return false;
		if (!walk_to(s, k, present, false)) {
			k->page = 0;
			return to(k, k->swap ? M_UNLOCK : pick ? R_PTL : M_MOVE);
		}
		return take(walk_ptl(s, k), t) && to(k, M_CREATOR);
	case M_CREATOR:
		if (!walk_to(s, k, present, true))
			return to(k, M_UNPTL);
		entry = walk_entry(s, k);
		*entry += (k->swap ? SWAP : MIG) - RO;
		k->nr = 1;
		k->ours = s->creator == k->page / NR_PAGES;
		return to(k, is_broken(MIGRATE_PUT_FIRST) ? M_PUT_ENTRY : M_SUB);
	case M_SUB:
		if (!is_broken(MIGRATE_NO_SUB))
			word_sub(s, delta_of(s, k, mm, false));
		return to(k, is_broken(MIGRATE_PUT_FIRST) ? M_CREATOR : M_PUT_ENTRY);
	case M_PUT_ENTRY:
		put(s, 1);
		return to(k, is_broken(MIGRATE_PUT_FIRST) ? M_SUB : M_CREATOR);
	default:
		drop(walk_ptl(s, k), t);
		walk_next_table(s, k);
		k->nr = 0;
		k->ours = 0;
		return to(k, M_PTL);
	}
}

/* remove_migration_pte() */
static bool step_put_back(struct state *s, unsigned int t, struct task *k)
{
	const unsigned int mm = k->page / NR_PAGES;
	u8 *entry;

	switch (k->step) {
	case R_PTL:
		if (is_broken(CLAIM_UNLOCKED) && s->lock == t + 1)
			s->lock = 0;
		if (!walk_to(s, k, migrating, false))
			return to(k, is_broken(CLAIM_UNLOCKED) ? M_PUT : M_UNLOCK);
		return take(walk_ptl(s, k), t) && to(k, R_GET);
	case R_GET:
		if (!walk_to(s, k, migrating, true))
			return to(k, R_UNPTL);
		get(s, 1);
		return to(k, R_WORD);
	case R_WORD:
		return to(k, claim_or(s, R_CLAIM, R_CREATOR));
	case R_CLAIM:
		claim(s, t, mm);
		return to(k, R_CREATOR);
	case R_CREATOR:
		k->nr = 1;
		k->ours = s->creator == mm;
		return to(k, R_ADD);
	case R_ADD:
		word_add(s, delta_of(s, k, mm, false));
		return to(k, R_SET);
	case R_SET:
		entry = walk_entry(s, k);
		*entry -= MIG - RO;
		return to(k, R_GET);
	default:
		drop(walk_ptl(s, k), t);
		walk_next_table(s, k);
		k->nr = 0;
		k->ours = 0;
		return to(k, R_PTL);
	}
}

static bool step_migrate(struct state *s, unsigned int t, struct task *k)
{
	switch (k->step) {
	case M_GET:
		get(s, 1);
		return to(k, M_LOCK);
	case M_LOCK:
		if (!take(&s->lock, t))
			return to(k, M_PUT);
		return to(k, k->swap && !s->cache ? S_GET : M_PTL);
	case S_GET:
		get(s, NR_PAGES);
		return to(k, S_CACHE);
	case S_CACHE:
		s->cache = 1;
		return to(k, M_PTL);
	case M_MOVE:
		/* What is new is the folio; the entries will be of that. */
		if (!s->mapcounts && s->refs == 1 + s->cache * NR_PAGES)
			s->creator = NOBODY;
		return to(k, R_PTL);
	case M_UNLOCK:
		drop(&s->lock, t);
		k->page = 0;
		return to(k, M_PUT);
	default:
		put(s, 1);
		done(k);
		return true;
	}
}

/* ------------------------------------------------------------------------- */
/* do_swap_page()                                                              */

static void swapin_set(struct state *s, struct task *k)
{
	unsigned int page;

	for (page = 0; page < NR_PAGES; page++)
		if (k->whole || page == k->page)
			s->pte[k->mm][page] -= SWAP - RO;
}

/* All pages at once, if all are swapped alike and in one table. */
static void swapin_batch(const struct state *s, struct task *k)
{
	unsigned int page;

	k->whole = !scenario->split;
	for (page = 0; page < NR_PAGES; page++)
		k->whole &= s->pte[k->mm][page] == k->was;
	k->nr = k->whole ? NR_PAGES : 1;
}

static bool step_swapin_map(struct state *s, unsigned int t, struct task *k,
			    unsigned int pick)
{
	switch (k->step) {
	case I_REFS:
		if (!is_broken(SWAPIN_REFS_LATE))
			get(s, k->nr - 1);
		return to(k, I_WORD);
	case I_WORD:
		return to(k, claim_or(s, I_CLAIM, I_CREATOR));
	case I_CLAIM:
		claim(s, t, k->mm);
		return to(k, I_CREATOR);
	case I_CREATOR:
		k->ours = s->creator == k->mm;
		return to(k, I_ADD);
	case I_ADD:
		word_add(s, delta_of(s, k, k->mm, false));
		return to(k, I_SET);
	case I_SET:
		swapin_set(s, k);
		return to(k, I_FREE);
	case I_FREE:
		/* If it should try to free it depends on much. */
		if (pick)
			return pick == 1 && free_swap(s) && to(k, I_FREE_PUT);
		return to(k, I_UNLOCK);
	case I_FREE_PUT:
		put(s, NR_PAGES);
		return to(k, I_UNLOCK);
	case I_UNLOCK:
		if (is_broken(SWAPIN_REFS_LATE))
			get(s, k->nr - 1);
		if (!is_broken(CLAIM_SWAPIN))
			drop(&s->lock, t);
		return to(k, I_UNPTL);
	default:
		drop(&s->ptl[2 * k->mm + k->table], t);
		done(k);
		return true;
	}
}

static bool step_swapin(struct state *s, unsigned int t, struct task *k)
{
	switch (k->step) {
	case I_VMA:
		if (s->forking & 1 << (2 * k->mm + k->table))
			return false;
		k->vma = k->table + 1;
		return to(k, I_GET);
	case I_GET:
		k->was = s->pte[k->mm][k->page];
		if (!s->cache || !swapped(k->was)) {
			done(k);
			return true;
		}
		get(s, 1);
		return to(k, is_broken(CLAIM_SWAPIN) ? I_PTL : I_LOCK);
	case I_LOCK:
		if (!take(&s->lock, t))
			return false;
		return to(k, s->cache ? I_PTL : I_BAD_UNLOCK);
	case I_PTL:
		if (!take(&s->ptl[2 * k->mm + k->table], t))
			return false;
		if (s->pte[k->mm][k->page] != k->was)
			return to(k, I_BAD);
		swapin_batch(s, k);
		return to(k, k->nr > 1 ? I_REFS : I_WORD);
	case I_BAD:
		drop(&s->ptl[2 * k->mm + k->table], t);
		return to(k, is_broken(CLAIM_SWAPIN) ? I_BAD_PUT : I_BAD_UNLOCK);
	case I_BAD_UNLOCK:
		drop(&s->lock, t);
		return to(k, I_BAD_PUT);
	default:
		put(s, 1);
		done(k);
		return true;
	}
}

/* ------------------------------------------------------------------------- */
/* GUP-fast: it takes no lock, and looks at the entry again                    */

static bool step_gup(struct state *s, struct task *k)
{
	switch (k->step) {
	case G_GET:
		get(s, 1);
		return to(k, G_CHECK);
	case G_CHECK:
		if (s->pte[k->mm][k->page] != k->was)
			return to(k, G_PUT);
		s->gup[k->mm]++;
		break;
	case G_PUT:
		put(s, 1);
		break;
	default:
		put(s, 1);
		s->gup[k->mm]--;
	}
	done(k);
	return true;
}

/* ------------------------------------------------------------------------- */
/* PMDs: do_huge_pmd_wp_page(), __split_huge_pmd_locked()                      */

static bool step_pmd_lock(struct state *s, unsigned int t, struct task *k)
{
	u8 *ptl = &s->ptl[2 * k->mm + 1];

	switch (k->step) {
	case H_VMA:
		if (s->forking & 2 << 2 * k->mm)
			return false;
		k->vma = 2;
		return to(k, H_PTL);
	case H_PTL:
		if (!take(ptl, t))
			return false;
		return to(k, s->pmd[k->mm] == RO ? H_LOCK : H_DONE);
	case H_LOCK:
		return to(k, take(&s->lock, t) ? H_EARLY : H_GET);
	case H_GET:
		get(s, 1);
		return to(k, H_UNPTL);
	case H_UNPTL:
		drop(ptl, t);
		return to(k, H_WAIT);
	case H_WAIT:
		return take(&s->lock, t) && to(k, H_RELOCK);
	case H_RELOCK:
		if (!take(ptl, t))
			return false;
		k->nr = s->pmd[k->mm] == RO;
		return to(k, k->nr ? H_PUT : H_BAD_UNPTL);
	case H_BAD_UNPTL:
		drop(ptl, t);
		return to(k, H_BAD_UNLOCK);
	case H_BAD_UNLOCK:
		drop(&s->lock, t);
		return to(k, H_PUT);
	default:
		put(s, 1);
		if (k->nr)
			return to(k, H_EARLY);
		done(k);
		return true;
	}
}

static bool step_pmd_write(struct state *s, unsigned int t, struct task *k)
{
	const unsigned int mine = is_broken(PMD_ONE_MORE) ? 2 : 1;

	switch (k->step) {
	case H_EARLY:
		return to(k, s->refs > mine ? H_SPLIT_UNLOCK : H_REFS);
	case H_REFS:
		k->truth = exclusive(s, k->mm);
		return to(k, s->refs <= mine ? H_CREATOR : H_SPLIT_UNLOCK);
	case H_CREATOR:
		return to(k, s->creator == k->mm ? H_REUSE : H_ADOPT_SET);
	case H_ADOPT_SET:
		s->creator = k->mm;
		return to(k, H_ADOPT_ADD);
	case H_ADOPT_ADD:
		if (!is_broken(ADOPT_PMD_NO_ADD))
			word_add(s, MAPCOUNTS_CREATOR);
		return to(k, H_REUSE);
	case H_REUSE:
		must(k->truth, "taken, though there were other references");
		s->pmd[k->mm] = EX;
		return to(k, H_UNLOCK);
	case H_UNLOCK:
		drop(&s->lock, t);
		return to(k, H_DONE);
	case H_DONE:
		drop(&s->ptl[2 * k->mm + 1], t);
		done(k);
		return true;
	case H_SPLIT_UNLOCK:
		drop(&s->lock, t);
		return to(k, H_SPLIT_UNPTL);
	default:
		drop(&s->ptl[2 * k->mm + 1], t);
		k->truth = 0;
		return to(k, P_PTL);
	}
}

/* What the error adds after a step that subtracts the PMD: it can claim the folio. */
static void split_late(struct state *s, unsigned int t, struct task *k)
{
	if (claim_or(s, P_PTL, P_CREATOR) == P_PTL)
		claim(s, t, k->mm);
	k->ours = s->creator == k->mm;
	word_add(s, mapcounts_delta(k->nr, 0, k->ours));
}

static bool step_split(struct state *s, unsigned int t, struct task *k)
{
	u8 *ptl = &s->ptl[2 * k->mm + 1];

	switch (k->step) {
	case P_PTL:
		if (!take(ptl, t))
			return false;
		return to(k, present(s->pmd[k->mm]) ? P_REFS : P_UNPTL);
	case P_REFS:
		if (!is_broken(SPLIT_REFS_LATE))
			get(s, pmd_nr() - 1);
		return to(k, P_CREATOR);
	case P_CREATOR:
		k->nr = pmd_nr();
		k->ours = s->creator == k->mm && !is_broken(SPLIT_NO_CREATOR);
		return to(k, P_ADD);
	case P_ADD:
		if (is_broken(SPLIT_ORDER) && !k->was) {
			word_sub(s, delta_of(s, k, k->mm, true));
			k->was = 1;
			return to(k, P_ADD);
		}
		if (is_broken(SPLIT_ORDER))
			split_late(s, t, k);
		else
			word_add(s, delta_of(s, k, k->mm, false) -
				    delta_of(s, k, k->mm, true));
		return to(k, P_SET);
	case P_SET:
		memset(&s->pte[k->mm][pmd_first()], s->pmd[k->mm], pmd_nr());
		s->pmd[k->mm] = NONE;
		if (is_broken(SPLIT_REFS_LATE))
			get(s, pmd_nr() - 1);
		return to(k, P_UNPTL);
	default:
		drop(ptl, t);
		done(k);
		return true;
	}
}

/* ------------------------------------------------------------------------- */
/* What an idle task can start                                                 */

static bool busy(const struct state *s, unsigned int mm)
{
	unsigned int i;

	for (i = 0; i < NR_TASKS; i++)
		if (s->tasks[i].mm == mm && s->tasks[i].step != IDLE)
			return true;
	return false;
}

/* Is the MM in a fork, as the parent or the child? */
static bool forking(const struct state *s, unsigned int mm)
{
	unsigned int i;

	for (i = 0; i < NR_TASKS; i++) {
		const struct task *k = &s->tasks[i];

		if (k->step >= F_VMA && k->step <= F_UNLOCK_CHILD &&
		    (k->mm == mm || k->child == mm))
			return true;
	}
	return false;
}

static bool empty(const struct state *s, unsigned int mm)
{
	unsigned int page;

	for (page = 0; page < NR_PAGES; page++)
		if (s->pte[mm][page])
			return false;
	return !s->pmd[mm];
}

/* Counts down to the option that is picked. */
static unsigned int options;

static bool option(bool possible)
{
	return possible && options-- == 0;
}

static bool start_page(const struct state *s, struct task *k, u16 may, unsigned int page)
{
	const u8 entry = s->pte[k->mm][page];

	k->page = page;
	k->table = table_of(page);
	k->was = 0;
	if (option(may & WRITE && entry == RO))
		return to(k, W_VMA);
	if (option(may & SWAPIN && swapped(entry)))
		return to(k, I_VMA);
	if (option(may & UNMAP_ONE && entry))
		return to(k, U_VMA);
	k->was = entry;
	if (option(may & GUP && present(entry) && s->gup[k->mm] < 2))
		return to(k, G_GET);
	return false;
}

static bool any_entry(const struct state *s, unsigned int mm, unsigned int table)
{
	unsigned int page;

	for (page = first_page(table); page < end_page(table); page++)
		if (s->pte[mm][page])
			return true;
	return false;
}

static bool start_unmap(const struct state *s, struct task *k, u16 may)
{
	unsigned int page;

	k->whole = 1;
	for (page = 0; page < NR_PAGES; page = end_page(k->table)) {
		k->table = table_of(page);
		if (option(may & UNMAP && any_entry(s, k->mm, k->table)))
			return to(k, U_VMA);
	}
	k->table = 1;
	k->was = 1;
	if (option(may & UNMAP && s->pmd[k->mm]))
		return to(k, U_VMA);
	k->table = 0;
	k->whole = 0;
	k->was = 0;
	return false;
}

/* Of the pages that are alike, the first in each table will do. */
static bool start_mm(struct state *s, struct task *k, u16 may)
{
	unsigned int page;

	if (option(may & GUP && s->gup[k->mm]))
		return to(k, G_DROP);
	if (!(s->alive & 1 << k->mm))
		return false;
	if (start_unmap(s, k, may))
		return true;
	for (page = 0; page < NR_PAGES; page++) {
		if (page != first_page(table_of(page)) &&
		    s->pte[k->mm][page] == s->pte[k->mm][page - 1])
			continue;
		if (start_page(s, k, may, page))
			return true;
	}
	k->page = 0;
	k->table = 0;
	k->was = 0;
	if (option(may & WRITE && s->pmd[k->mm] == RO))
		return to(k, H_VMA);
	if (option(may & SPLIT && present(s->pmd[k->mm])))
		return to(k, P_PTL);
	k->whole = !scenario->split && present(s->pmd[k->mm]);
	k->table = k->whole;
	for (k->child = k->mm + 1; k->child < NR_MMS; k->child++)
		if (option(may & FORK && !empty(s, k->mm) && !forking(s, k->mm) &&
			   !(s->alive & 1 << k->child) && !forking(s, k->child)))
			return to(k, F_VMA);
	return false;
}

static bool start(struct state *s, unsigned int t, struct task *k, unsigned int pick)
{
	const u16 may = scenario->tasks[t].may;

	if (!k->left)
		return false;
	k->left--;
	options = pick;
	if (k->mm == NOBODY) {
		k->swap = 0;
		if (option(may & MIGRATE))
			return to(k, M_GET);
		k->swap = 1;
		return option(may & RECLAIM) && to(k, M_GET);
	}
	if (start_mm(s, k, may))
		return true;
	/* An MM that is empty can exit, and the next child can have its address. */
	if (option(k->mm && s->alive & 1 << k->mm && empty(s, k->mm) && !busy(s, k->mm))) {
		s->alive &= ~(1 << k->mm);
		done(k);
		return true;
	}
	return false;
}

/* One step of one task. False if it has to wait, or has no such choice. */
static bool step(struct state *s, unsigned int t, unsigned int pick)
{
	struct task *k = &s->tasks[t];
	const enum step at = k->step;

	if (at == IDLE)
		return start(s, t, k, pick);
	if (at == M_PTL || (at >= M_CREATOR && at <= M_UNPTL))
		return (pick == 0 || at == M_PTL) && step_walk(s, t, k, pick);
	if (at >= I_REFS && at <= I_UNPTL)
		return (pick == 0 || at == I_FREE) && step_swapin_map(s, t, k, pick);
	if (pick)
		return false;
	if (at >= W_CACHE && at <= W_CACHE_UNLOCK)
		return step_write_cache(s, t, k);
	if (at >= W_MM_CREATOR && at <= W_MM_UNLOCK)
		return step_one_mm(s, t, k);
	if (at >= W_OURS && at <= W_ADOPT_UNLOCK)
		return step_adopt(s, t, k);
	if (at <= W_UNLOCK)
		return step_write(s, t, k);
	if (at <= C_PUT_OWN)
		return step_copy(s, t, k);
	if (at <= F_UNLOCK_CHILD)
		return step_fork(s, t, k);
	if (at <= U_PUT)
		return step_unmap(s, t, k);
	if (at >= R_PTL && at <= R_UNPTL)
		return step_put_back(s, t, k);
	if (at <= M_PUT)
		return step_migrate(s, t, k);
	if (at <= I_BAD_PUT)
		return step_swapin(s, t, k);
	if (at <= G_DROP)
		return step_gup(s, k);
	if (at <= H_PUT && at != H_EARLY)
		return step_pmd_lock(s, t, k);
	if (at <= H_SPLIT_UNPTL)
		return step_pmd_write(s, t, k);
	return step_split(s, t, k);
}

/* ------------------------------------------------------------------------- */
/* What has to be true                                                         */

static void check_exclusive(const struct state *s)
{
	unsigned int mm, other, page;

	for (mm = 0; mm < NR_MMS; mm++)
		for (page = 0; page < NR_PAGES; page++) {
			const u8 entry = s->pte[mm][page];

			if (entry != EX && entry != MIG_EX && entry != SWAP_EX &&
			    !(by_pmd(s, mm, page) && s->pmd[mm] == EX))
				continue;
			for (other = 0; other < NR_MMS; other++)
				must(other == mm || (!s->pte[other][page] &&
						     !by_pmd(s, other, page)),
				     "an exclusive page that another MM has");
		}
}

static void check_references(const struct state *s)
{
	unsigned int mm, refs = s->cache * NR_PAGES;

	for (mm = 0; mm < NR_MMS; mm++)
		refs += count_mm(s, mm) + s->gup[mm];
	must(s->refs >= refs, "fewer references than entries");
	must(s->refs || !s->mapcounts, "freed, though the mapcounts are not 0");
}

/* A write to the page, while no other task does anything: is it not a copy? */
static bool write_reuses(const struct state *s, unsigned int mm, unsigned int page)
{
	struct state alone = *s;
	bool pmd;

	/* Where the PMD is split instead, the fault is repeated. */
	do {
		pmd = by_pmd(&alone, mm, page);
		alone.tasks[0] = (struct task){
			.mm = mm, .page = page, .table = table_of(page),
			.step = pmd ? H_VMA : W_VMA,
		};
		do {
			if (!step(&alone, 0, 0))
				return false;
		} while (alone.tasks[0].step != IDLE && !error[0]);
		if (by_pmd(&alone, mm, page))
			return alone.pmd[mm] == EX;
	} while (pmd && !error[0]);
	return alone.pte[mm][page] == EX;
}

/* If one MM has all of it, in one table or as the creator, it does not copy. */
static void check_heir(const struct state *s, unsigned int mm)
{
	const unsigned int refs = count_mm(s, mm);
	const bool both = scenario->split && count_table(s, mm, 0) &&
			  (count_table(s, mm, 1) || s->pmd[mm]);
	unsigned int page;

	/* The last entry is copied, so that the folio can be freed. */
	if (s->refs != refs + s->cache * NR_PAGES || count_swapped(s) ||
	    (!s->pmd[mm] && refs < 2) || (s->creator != mm && both))
		return;
	for (page = 0; page < NR_PAGES; page++)
		if (s->pte[mm][page] == RO ||
		    (by_pmd(s, mm, page) && s->pmd[mm] == RO))
			must(write_reuses(s, mm, page),
			     "one MM has the folio for itself, and copies it");
}

static void check_idle(const struct state *s)
{
	unsigned int mm, page, refs = s->cache * NR_PAGES, ptes = 0, pmds = 0;
	unsigned int creator = 0;
	const struct folio_mapcounts mc = unpack(s->mapcounts);

	for (mm = 0; mm < NR_MMS; mm++) {
		const unsigned int pmd = present(s->pmd[mm]);
		const unsigned int mapped = count_mm(s, mm) - pmd;

		ptes += mapped;
		pmds += pmd;
		refs += mapped + pmd + s->gup[mm];
		if (mm == s->creator)
			creator = mapped + pmd;
		for (page = 0; page < NR_PAGES; page++)
			must(!migrating(s->pte[mm][page]), "a migration entry is left");
	}
	must(mapcounts_ptes(mc) == ptes, "idle, and ptes is wrong");
	must(mapcounts_pmds(mc) == pmds, "idle, and pmds is wrong");
	must(mapcounts_creator(mc) == creator, "idle, and the creator count is wrong");
	must(s->refs == refs, "idle, and the reference count is wrong");
	for (mm = 0; mm < NR_MMS && !error[0]; mm++)
		check_heir(s, mm);
}

static bool all_idle(const struct state *s)
{
	unsigned int i;

	for (i = 0; i < NR_TASKS; i++)
		if (s->tasks[i].step != IDLE)
			return false;
	return true;
}

static void check(const struct state *s)
{
	check_references(s);
	if (broken == NO_ERROR || is_broken(FORK_EXCLUSIVE))
		check_exclusive(s);
	if (!error[0] && all_idle(s))
		check_idle(s);
}

/* ------------------------------------------------------------------------- */
/* All orders of all steps                                                     */

#define MAX_STATES	(12u << 20)
#define HASH_BITS	25

static struct {
	struct state *states;
	u32 *parents;		/* the state that it was reached from */
	u8 *moves;		/* by which task */
	u32 *hash;		/* index + 1 */
	u32 nr;
	u64 transitions;
} seen;

static u64 visited[NR_STEPS];

static u32 hash_of(const struct state *s)
{
	const u8 *bytes = (const u8 *)s;
	u64 h = 0xcbf29ce484222325ULL;
	unsigned int i;

	for (i = 0; i < sizeof(*s); i += 8) {
		u64 part = 0;

		memcpy(&part, bytes + i, sizeof(*s) - i < 8 ? sizeof(*s) - i : 8);
		h = (h ^ part) * 0x9e3779b97f4a7c15ULL;
		h ^= h >> 29;
	}
	return h >> (64 - HASH_BITS);
}

/* Remember a state. Returns if it is new. */
static bool remember(const struct state *s, u32 parent, u8 move)
{
	u32 h = hash_of(s);

	for (; seen.hash[h]; h = (h + 1) & ((1u << HASH_BITS) - 1))
		if (!memcmp(&seen.states[seen.hash[h] - 1], s, sizeof(*s)))
			return false;
	if (seen.nr == MAX_STATES) {
		snprintf(error, sizeof(error), "more than %u states", MAX_STATES);
		return false;
	}
	seen.states[seen.nr] = *s;
	seen.parents[seen.nr] = parent;
	seen.moves[seen.nr] = move;
	seen.hash[h] = ++seen.nr;
	return true;
}

static void print_state(const struct state *s)
{
	static const char names[] = "ABC-";
	const struct folio_mapcounts mc = unpack(s->mapcounts);
	unsigned int mm, page;

	printf("refs %2u ptes %u pmds %u creator %u (%c) ", s->refs,
	       mapcounts_ptes(mc), mapcounts_pmds(mc),
	       mapcounts_creator(mc), names[s->creator]);
	for (mm = 0; mm < NR_MMS; mm++) {
		printf(" %c:", names[mm]);
		for (page = 0; page < NR_PAGES; page++)
			putchar(".rxmMsS"[s->pte[mm][page]]);
		if (s->pmd[mm])
			printf("+%c", ".RX"[s->pmd[mm]]);
	}
	putchar('\n');
}

static void print_trace(u32 at)
{
	const struct state *s = &seen.states[at];
	const u8 t = seen.moves[at];
	enum step step;

	if (seen.parents[at] == at) {
		printf("# %-62s", "at first");
	} else {
		print_trace(seen.parents[at]);
		step = seen.states[seen.parents[at]].tasks[t].step;
		if (step == IDLE)
			return;
		printf("# %c%u %-59s", "ABCS"[s->tasks[t].mm], t, step_text[step]);
	}
	print_state(s);
}

static void begin(const struct scenario *sc)
{
	struct state s = { .creator = sc->creator, .cache = sc->cache };
	unsigned int mm, i;
	u64 mapcounts = 0;

	scenario = sc;
	memset(seen.hash, 0, sizeof(*seen.hash) << HASH_BITS);
	seen.nr = 0;
	seen.transitions = 0;
	memcpy(s.pmd, sc->pmd, sizeof(s.pmd));
	memcpy(s.pte, sc->pte, sizeof(s.pte));
	memcpy(s.gup, sc->gup, sizeof(s.gup));
	s.refs = s.cache * NR_PAGES;
	for (mm = 0; mm < NR_MMS; mm++) {
		const unsigned int pmds = present(s.pmd[mm]), ptes = count_mm(&s, mm) - pmds;

		s.refs += ptes + pmds + s.gup[mm];
		mapcounts += mapcounts_delta(ptes, pmds, mm == s.creator);
		s.alive |= !empty(&s, mm) << mm;
	}
	s.mapcounts = pack((struct folio_mapcounts){ mapcounts });
	for (i = 0; i < NR_TASKS; i++) {
		s.tasks[i].mm = sc->tasks[i].may ? sc->tasks[i].mm : NOBODY;
		s.tasks[i].left = sc->tasks[i].left;
	}
	check(&s);
	remember(&s, 0, 0);
}

/* All steps from one state. False if one of them leads to an error. */
static bool expand(u32 at)
{
	unsigned int t, pick, moved = 0;

	for (t = 0; t < NR_TASKS; t++) {
		for (pick = 0;; pick++) {
			struct state next = seen.states[at];

			if (!step(&next, t, pick)) {
				/* A task that waits for a PTL can give up. */
				if (!pick && next.tasks[t].step == M_PTL)
					continue;
				break;
			}
			visited[seen.states[at].tasks[t].step]++;
			seen.transitions++;
			moved++;
			if (!error[0])
				check(&next);
			if (remember(&next, at, t) || !error[0]) {
				if (!error[0])
					continue;
			}
			return false;
		}
	}
	/* Freed, the folio is of no interest. */
	if (!moved && seen.states[at].refs && !all_idle(&seen.states[at])) {
		snprintf(error, sizeof(error), "a deadlock");
		return false;
	}
	return true;
}

static bool explore(const struct scenario *sc)
{
	u32 at;

	error[0] = 0;
	begin(sc);
	for (at = 0; at < seen.nr && !error[0]; at++)
		if (seen.states[at].refs && !expand(at))
			break;
	return !error[0];
}

static const struct scenario scenarios[] = {
	{
		.name = "a fork tree",
		.pte = { { EX, EX, EX, EX } },
		.tasks = {
			{ 0, 3, WRITE | FORK | UNMAP },
			{ 1, 2, WRITE | FORK | UNMAP },
			{ 2, 2, WRITE | UNMAP | UNMAP_ONE },
		},
	}, {
		.name = "two page tables, GUP, and who migrates",
		.split = true,
		.pte = { { RO, RO, RO, RO } },
		.gup = { 0, 1 },
		.tasks = {
			{ 0, 1, WRITE },
			{ 0, 2, UNMAP_ONE | GUP },
			{ 1, 1, GUP },
			{ NOBODY, 1, MIGRATE },
		},
	}, {
		.name = "two page tables, and who migrates twice",
		.split = true,
		.pte = { { RO, RO, RO, RO } },
		.gup = { 0, 1 },
		.tasks = {
			{ 0, 1, WRITE },
			{ NOBODY, 2, MIGRATE },
		},
	}, {
		.name = "two page tables, and fork",
		.split = true,
		.pte = { { RO, RO, RO, RO } },
		.tasks = {
			{ 0, 2, WRITE | UNMAP },
			{ 0, 1, FORK },
			{ 1, 2, WRITE | UNMAP },
		},
	}, {
		.name = "the creator has gone",
		.split = true,
		.creator = NOBODY,
		.pte = { { RO, RO, RO, RO }, { RO, RO } },
		.tasks = {
			{ 0, 2, WRITE | UNMAP | UNMAP_ONE },
			{ 1, 3, WRITE | FORK | UNMAP },
			{ 2, 1, WRITE | UNMAP },
		},
	}, {
		.name = "the creator has gone, and who migrates",
		.creator = 2,
		.pte = { { RO, RO }, { RO } },
		.tasks = {
			{ 0, 1, WRITE | UNMAP_ONE },
			{ 1, 1, WRITE | UNMAP },
			{ 0, 1, WRITE | FORK },
			{ NOBODY, 1, MIGRATE },
		},
	}, {
		.name = "swap-in",
		.creator = 1,
		.cache = 1,
		.pte = { { SWAP, SWAP, SWAP, SWAP }, { RO, SWAP } },
		.tasks = {
			{ 0, 3, WRITE | SWAPIN },
			{ 1, 2, WRITE | SWAPIN | UNMAP },
			{ 0, 1, SWAPIN | UNMAP_ONE },
		},
	}, {
		.name = "reclaim",
		.creator = 1,
		.pte = { { RO, RO }, { RO } },
		.tasks = {
			{ 0, 2, WRITE | SWAPIN },
			{ 1, 1, WRITE | UNMAP },
			{ NOBODY, 1, RECLAIM },
		},
	}, {
		.name = "PMDs",
		.pmd = { EX },
		.tasks = {
			{ 0, 3, WRITE | FORK | UNMAP | SPLIT },
			{ 1, 2, WRITE | FORK | UNMAP | SPLIT },
			{ 2, 1, WRITE | UNMAP },
		},
	}, {
		.name = "a PMD that is split meanwhile",
		.creator = NOBODY,
		.pmd = { RO },
		.tasks = {
			{ 0, 1, WRITE },
			{ 0, 1, SPLIT | FORK },
			{ 1, 1, WRITE | UNMAP },
			{ NOBODY, 1, MIGRATE },
		},
	}, {
		.name = "two PMDs, one by PTEs, and fork",
		.split = true,
		.pmd = { RO },
		.pte = { { RO, RO } },
		.tasks = {
			{ 0, 2, WRITE | SPLIT | UNMAP_ONE },
			{ 0, 1, FORK | SPLIT },
			{ 1, 2, WRITE | UNMAP },
		},
	}, {
		.name = "two PMDs of two MMs",
		.split = true,
		.pmd = { RO, RO },
		.pte = { { RO, RO } },
		.gup = { 0, 1 },
		.tasks = {
			{ 0, 1, WRITE },
			{ 0, 2, SPLIT | UNMAP_ONE },
			{ 1, 2, UNMAP | SPLIT | GUP },
			{ NOBODY, 1, MIGRATE },
		},
	}, {
		.name = "two PMDs, and the creator has gone",
		.split = true,
		.creator = NOBODY,
		.pmd = { RO, RO },
		.pte = { { RO, RO } },
		.tasks = {
			{ 0, 2, WRITE | UNMAP },
			{ 0, 1, SPLIT | FORK },
			{ 1, 1, WRITE | UNMAP },
		},
	},
};

static void allocate(void)
{
	seen.states = malloc(sizeof(*seen.states) * MAX_STATES);
	seen.parents = malloc(sizeof(*seen.parents) * MAX_STATES);
	seen.moves = malloc(sizeof(*seen.moves) * MAX_STATES);
	seen.hash = malloc(sizeof(*seen.hash) << HASH_BITS);
	if (!seen.states || !seen.parents || !seen.moves || !seen.hash) {
		fprintf(stderr, "no memory\n");
		exit(1);
	}
}

static unsigned int result_nr, failures;

static void result(bool ok, const char *what, const char *name)
{
	failures += !ok;
	printf("%sok %u %s%s\n", ok ? "" : "not ", ++result_nr, what, name);
	fflush(stdout);
}

static void run_scenarios(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(scenarios); i++) {
		const bool ok = explore(&scenarios[i]);

		if (!ok) {
			print_trace(seen.nr - 1);
			printf("# %s\n", error);
		}
		printf("# %u states, %llu steps\n", seen.nr,
		       (unsigned long long)seen.transitions);
		result(ok, "scenario: ", scenarios[i].name);
	}
}

static void check_visited(void)
{
	unsigned int i;
	bool ok = true;

	for (i = 0; i < NR_STEPS; i++) {
		if (visited[i])
			continue;
		printf("# never: %s\n", step_text[i]);
		ok = false;
	}
	result(ok, "each step has been taken", "");
}

/* Each error is found in some scenario; but what only saves work is not missed. */
static void run_error(enum error e)
{
	unsigned int i;

	broken = e;
	for (i = 0; i < ARRAY_SIZE(scenarios); i++)
		if (!explore(&scenarios[i]))
			break;
	broken = NO_ERROR;
	if (i < ARRAY_SIZE(scenarios)) {
		print_trace(seen.nr - 1);
		printf("# %s (%s)\n", error, scenarios[i].name);
	}
	if (errors[e].why)
		printf("# since %s\n", errors[e].why);
	result((i < ARRAY_SIZE(scenarios)) == !errors[e].why,
	       errors[e].why ? "harmless: " : "error: ", errors[e].text);
}

int main(int argc, char **argv)
{
	unsigned int e;

	setvbuf(stdout, NULL, _IOLBF, 0);
	allocate();
	if (argc > 1) {
		for (e = NO_ERROR + 1; e < NR_ERRORS; e++)
			if (!strcmp(argv[1], errors[e].name))
				run_error(e);
		return failures > 0;
	}
	printf("KTAP version 1\n1..%zu\n", ARRAY_SIZE(scenarios) + 1 + NR_ERRORS - 1);
	run_scenarios();
	check_visited();
	for (e = NO_ERROR + 1; e < NR_ERRORS; e++)
		run_error(e);
	return failures > 0;
}
