// SPDX-License-Identifier: GPL-2.0
/*
 * folio_cow_stress - looks for a page that is written though others share it
 *
 * When a process writes to a page of a large anonymous folio, the kernel may
 * let it write in place only if nobody else maps or references that folio. If
 * the kernel once believes so wrongly, then one process sees the data of
 * another, or loses its own. This program looks for that: a tree of processes
 * of random shape does everything that maps, unmaps, moves and references
 * pages, at random, over folios that fork() made them share.
 *
 *	 master: starts the first process, counts, watches, reports
 *	   |
 *	 process ---fork---> process ---fork---> ...	at most -p at a time
 *	 threads: write, check, drop, move, pin, ...	-T in each
 *	   |  |
 *	   |  +--> memory: each page holds records (generation, writer, page)
 *	   +-----> model: for each page, which record it has to hold, and where
 *		   the page is mapped
 *
 * Each write has a generation of its own, one counter for all processes, so a
 * record says exactly which write it stems from. The model is private memory of
 * small pages: fork() copies it together with what it describes, so that a
 * child knows what to expect.
 *
 * A page is locked, by a byte in the model, for anything that changes its
 * content or its place. But fork() takes no such lock: another thread may be in
 * the middle of a write. That the child can still tell right from wrong comes
 * from fork() being a consistent cut. What a thread writes before the parent's
 * TLB is flushed, at the end of fork(), reaches the child; the first write that
 * comes later, or faults in between, waits until fork() is done, and so does all
 * that the thread does after it. Hence the child sees the work of each thread up
 * to one point, and a writer proceeds so that the model covers the page at every
 * point:
 *
 *	lock the page		alt = new	write records	cur = new, unlock
 *	page: old		old		old and new	new
 *	model: old		old or new	old or new	new
 *
 * The lock byte names the operation, and a child settles what it finds locked:
 * it looks which of both it got. The cut is not consistent for pages that are
 * pinned, as fork() copies those on the spot. While a process has pins, and in
 * some of the other cases, its threads pause for the fork().
 *
 * Data that fits is what the model says, exactly. Anything else is reported as
 *	leak		another process wrote it, after the two were separated
 *	lost write	it is older than what this process, or an ancestor, wrote
 * or as something worse, along with what the processes in question did last.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/param.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include "../../../../mm/gup_test.h"
#include "kselftest.h"
#include "vm_util.h"
#include "hugepage_settings.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT		21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif

#define DEBUGFS			"/sys/kernel/debug"
#define GUP_TEST		DEBUGFS "/gup_test"
#define SPLIT_FILE		DEBUGFS "/split_huge_pages"
#define CGROUPFS		"/sys/fs/cgroup"

#define MAX_PROCS		32
#define MAX_THREADS		8
#define MAX_BLOCKS		64
#define NR_PINS			4
#define PIN_PAGES		16
#define SPLICE_PAGES		4
#define NR_EVENTS		64
#define NR_SHOWN		24
#define NR_LIVES		BIT_ULL(18)
#define REPORT_SIZE		32768
#define NOWHERE			UINT32_MAX
#define MAX_PMD_SIZE		(64UL << 20)
/* Nothing that asks for no address comes near, so that holes stay holes. */
#define ARENA_ADDRESS		(sizeof(long) == 8 ? 1ULL << 36 : 0x60000000ULL)

#define PROGRESS_MS		10000
#define TOGGLE_MS		2000
#define BROKEN_SECONDS		60
/* Debug kernels in emulators are slow, and reclaim takes its time. */
#define STUCK_MS		120000
#define STOP_MS			60000
#define KILL_MS			60000

#define get(p)			__atomic_load_n(p, __ATOMIC_SEQ_CST)
#define set(p, v)		__atomic_store_n(p, v, __ATOMIC_SEQ_CST)
#define inc(p)			__atomic_add_fetch(p, 1, __ATOMIC_SEQ_CST)
#define dec(p)			__atomic_sub_fetch(p, 1, __ATOMIC_SEQ_CST)

/* Also the values of a page's lock; 0 is unlocked. */
enum op {
	OP_NONE,
	OP_WRITE,
	OP_READ,
	OP_DROP,
	OP_RESET,
	OP_MOVE,
	OP_PROTECT,
	OP_FORK,
	OP_PIN,
	OP_SPLICE,
	OP_PEEK,
	OP_MIGRATE,
	OP_SWAP,
	OP_SPLIT,
	OP_COLLAPSE,
	OP_CLEAN,
	OP_KILL,
	OP_EXIT,
	NR_OPS,
};

enum verdict {
	FINE,
	LEAK,
	LOST_WRITE,
	GARBAGE,
	CRASH,
};

static const char * const verdicts[] = {
	[FINE]		= "fine",
	[LEAK]		= "LEAK",
	[LOST_WRITE]	= "LOST WRITE",
	[GARBAGE]	= "GARBAGE",
	[CRASH]		= "CRASH",
};

/* Words of 32 bits, which no machine writes in two steps. */
struct record {
	uint32_t gen;
	uint32_t uid;
	uint32_t page;
	uint32_t sum;
};

/* Where they are in a page. They are written in this order: see settle_write() */
enum { REC_FIRST, REC_RANDOM, REC_MIDDLE, REC_LAST, NR_RECORDS };

/* The model of one page. Generation 0 is a page of zeroes. */
struct entry {
	uint32_t cur;
	uint32_t cur_uid;
	uint32_t alt;		/* what a write in progress makes of it */
	uint32_t alt_uid;
	uint32_t loc;		/* the place in the arena where it is mapped */
	uint32_t to;		/* where a move in progress takes it */
	uint32_t drops;		/* a pin from before the last one is detached */
	uint8_t lock;		/* the operation that holds it */
};

struct pin {
	int fd;
	uint8_t lock;
	uint8_t active;
	unsigned int first;
	unsigned int nr;
	uint32_t drops[PIN_PAGES];
};

/* Pages that a thread has sent into a pipe, which keeps references to them. */
struct splice {
	int fd[2];
	unsigned int first;
	unsigned int nr;
	unsigned int forks;	/* an older pipe is shared with a child */
	uint32_t gen[SPLICE_PAGES];
	uint32_t uid[SPLICE_PAGES];
};

struct thread {
	unsigned int nr;
	uint64_t rng;
	uint32_t busy;
	struct slot *child_slot;
	uint32_t child_uid;
	bool pinned;		/* so were pages of ours, before it forked */
	uint32_t peeked;	/* that of our slot, before it forked */
	struct splice splice;
};

/* Private to each process, and inherited by its children. */
struct proc {
	uint32_t uid;
	struct slot *slot;
	unsigned int main;	/* the thread that reaps */
	int life;		/* operations left */
	uint32_t quiet;		/* the thread that wants all others to pause */
	uint32_t pins;
	uint32_t forks;
	uint32_t away;		/* pages that are not at home */
	bool reports;		/* so none of its threads may end it */
	bool pinner;		/* else it keeps no pins, and its forks run wild */
	uint32_t hot;		/* where most happens: see set_hot() */
	int legacy_fd;		/* the parent's pipe, as it was when we forked */
	uint32_t legacy_gen;
	struct pin pin[NR_PINS];
	struct thread thread[MAX_THREADS];
	char *buffers;
	uint8_t *used;		/* places of the annex */
	struct entry entry[];
};

struct event {
	uint32_t ms;
	uint32_t first;
	uint32_t nr;
	uint32_t arg;
	uint8_t op;
	uint8_t thread;
};

/* What all processes can read about a live one. */
struct slot {
	uint32_t key;		/* 0 free, 2 * uid reserved, 2 * uid + 1 live */
	pid_t pid;
	uint32_t wild;		/* it forks while its threads go on */
	uint32_t peeked;	/* so often have others pinned pages of it */
	uint32_t nr_events;
	struct {
		uint32_t peeks;	/* 1 + the slot whose pages it references */
		uint32_t op;
		uint32_t since;
	} thread[MAX_THREADS];
	struct event event[NR_EVENTS];
};

/* A ring, by uid: the parent of each process, dead ones included. */
struct life {
	uint32_t uid;
	uint32_t parent;
	uint32_t gen;		/* when it was forked */
	pid_t pid;
};

static struct shared {
	uint32_t stop;
	uint32_t verdict;
	uint32_t reporter;	/* set by the first process that finds an error */
	uint32_t report_done;
	uint32_t gens;
	uint32_t uids;
	uint32_t counts[NR_OPS];
	uint32_t checks;
	uint32_t samples;
	uint32_t samples_large;
	uint32_t wild_forks;
	uint32_t kills;
	uint32_t killed;
	uint32_t gave_up;
	uint32_t died_badly;
	size_t report_len;
	char report[REPORT_SIZE];
	struct slot slot[MAX_PROCS];
	struct life life[NR_LIVES];
} *shared;

static struct {
	unsigned int seconds;
	unsigned int procs;
	unsigned int threads;
	unsigned int mib;
	uint64_t seed;
	bool broken;
	enum verdict simulate;
} opt = { .seconds = 20, .procs = 6, .threads = 2, .mib = 8 };

static struct {
	pid_t pid;
	pid_t group;		/* of all others; led by one that only waits */
	uint64_t start_ms;
	unsigned long block;	/* bytes */
	unsigned int block_pages;
	unsigned int nr_pages;
	unsigned int nr_places;	/* as many again: the annex */
	unsigned long orders;
	char *arena;
	int kpageflags;
	bool have[NR_OPS];
	bool mounted;		/* debugfs, by us */
	bool controls;		/* the root cgroup's memory controller, by us */
	char cgroup[64];
	long long anon[2];
} global;

static struct proc *proc;
static __thread struct thread *self;

/* Small things */

static uint32_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000 - global.start_ms;
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static unsigned int rnd(unsigned int limit)
{
	self->rng += 0x9e3779b97f4a7c15ULL;
	return (mix(self->rng) >> 32) % limit;
}

static char *place_addr(uint32_t place)
{
	return global.arena + (size_t)place * psize();
}

static char *page_addr(unsigned int page)
{
	return place_addr(get(&proc->entry[page].loc));
}

static char *thread_buffer(void)
{
	return proc->buffers + (size_t)self->nr * PIN_PAGES * psize();
}

static struct life *life_of(uint32_t uid)
{
	return &shared->life[uid % NR_LIVES];
}

static void note(enum op op, unsigned int first, unsigned int nr, uint32_t arg)
{
	struct slot *slot = proc->slot;
	struct event *event;

	event = &slot->event[(inc(&slot->nr_events) - 1) % NR_EVENTS];
	event->ms = now_ms();
	event->op = op;
	event->thread = self->nr;
	event->first = first;
	event->nr = nr;
	event->arg = arg;
}

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

/* Ends a process that the kernel has refused something for lack of memory. */
static void __noreturn give_up(void)
{
	inc(&shared->gave_up);
	_exit(0);
}

/* The report, written by the process that fails and printed by the master */

struct op_desc {
	const char *name;
	bool (*run)(void);	/* returns true in a new child */
	unsigned int weight;
};

static const struct op_desc ops[NR_OPS];

static __printf(1, 2) void say(const char *fmt, ...)
{
	size_t left = REPORT_SIZE - shared->report_len;
	va_list args;
	int len;

	va_start(args, fmt);
	len = vsnprintf(shared->report + shared->report_len, left, fmt, args);
	va_end(args);
	if (len > 0)
		shared->report_len += MIN((size_t)len, left - 1);
}

static struct slot *slot_of(uint32_t uid)
{
	unsigned int i;

	for (i = 0; i < opt.procs; i++)
		if (get(&shared->slot[i].key) == 2 * uid + 1)
			return &shared->slot[i];
	return NULL;
}

static void say_process(uint32_t uid)
{
	const struct life *life = life_of(uid);

	say("process %u", uid);
	if (life->uid != uid)
		say(" (long gone)");
	else if (life->parent)
		say(" (pid %d, child of %u since generation %u)", life->pid,
		    life->parent, life->gen);
	else
		say(" (pid %d)", life->pid);
}

/* A star marks what concerned @page. */
static void say_events(uint32_t uid, unsigned int page)
{
	const struct slot *slot = slot_of(uid);
	unsigned int i, nr;

	if (!slot)
		return;
	nr = get(&slot->nr_events);
	say("What process %u did last (ms, thread, operation, pages, detail):\n", uid);
	for (i = nr > NR_SHOWN ? nr - NR_SHOWN : 0; i < nr; i++) {
		const struct event *e = &slot->event[i % NR_EVENTS];

		say("%c %6u %u %-8s %4u +%-3u %u\n",
		    page - e->first < e->nr ? '*' : ' ', e->ms, e->thread,
		    ops[e->op % NR_OPS].name, e->first, e->nr, e->arg);
	}
	for (i = 0; i < opt.threads; i++)
		say("     now %u %s\n", i, ops[get(&slot->thread[i].op) % NR_OPS].name);
}

/* Is this a write by @uid or, before the branch to it, by an ancestor? */
static bool own_history(uint32_t uid, const struct record *record)
{
	uint32_t limit = UINT32_MAX;
	const struct life *life;

	for (; uid; uid = life->parent) {
		if (record->uid == uid)
			return record->gen <= limit;
		life = life_of(uid);
		if (life->uid != uid)
			break;
		limit = MIN(limit, life->gen);
	}
	return false;
}

static uint32_t checksum(const struct record *r, unsigned int nr)
{
	return mix((uint64_t)r->gen << 32 ^ r->uid ^ mix((uint64_t)r->page << 8 ^ nr));
}

static enum verdict judge(unsigned int page, unsigned int nr,
			  const struct record *want, const struct record *found)
{
	static const struct record zeroes;

	if (!memcmp(found, &zeroes, sizeof(zeroes)))
		return LOST_WRITE;
	if (found->page != page || found->sum != checksum(found, nr))
		return GARBAGE;
	if (!own_history(proc->uid, found))
		return LEAK;
	return found->gen > want->gen && want->gen ? GARBAGE : LOST_WRITE;
}

static void say_record(const char *what, const struct record *r, unsigned int nr)
{
	say("%s", what);
	if (!r->gen && !r->uid && !r->page && !r->sum) {
		say("zeroes\n");
		return;
	}
	say("page %u, generation %u, by ", r->page, r->gen);
	say_process(r->uid);
	say("%s\n", r->sum == checksum(r, nr) ? "" : ", wrong checksum");
}

static uint64_t pread64_of(int fd, uint64_t index)
{
	uint64_t value = 0;

	if (fd < 0 || pread(fd, &value, sizeof(value), index * sizeof(value)) != sizeof(value))
		return 0;
	return value;
}

/* What the kernel says of a page: the flags, and those of the page table. */
static uint64_t page_flags(unsigned int page, uint64_t *pagemap)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	*pagemap = pread64_of(fd, (unsigned long)page_addr(page) / psize());
	close(fd);
	return *pagemap & PM_PRESENT ?
		pread64_of(global.kpageflags, PAGEMAP_PFN(*pagemap)) : 0;
}

static void say_page(unsigned int page)
{
	const struct entry *e = &proc->entry[page];
	uint64_t pagemap, flags;

	flags = page_flags(page, &pagemap);
	say("  page %u is mapped at %p (%s), pagemap %#llx, kpageflags %#llx\n",
	    page, page_addr(page), e->loc == page ? "home" : "away",
	    (unsigned long long)pagemap, (unsigned long long)flags);
}

/* The first process that finds an error stops all others, which may find it, too. */
static bool begin_report(enum verdict verdict)
{
	if (inc(&shared->reporter) != 1)
		return false;
	set(&proc->reports, true);
	set(&shared->verdict, verdict);
	set(&shared->stop, 1);
	return true;
}

static void __noreturn wait_for_end(void)
{
	for (;;)
		pause();
}

static void __noreturn corrupt(unsigned int page, unsigned int nr, const char *how,
			       const struct record *want, const struct record *found)
{
	enum verdict verdict = judge(page, nr, want, found);

	if (begin_report(verdict)) {
		say("%s: ", verdicts[verdict]);
		say_process(proc->uid);
		say(", thread %u, %s: page %u, record %u, at %u ms\n", self->nr, how, page,
		    nr, now_ms());
		say_record("  expected: ", want, nr);
		say_record("  found:    ", found, nr);
		say_page(page);
		say_events(proc->uid, page);
		if (found->uid != proc->uid)
			say_events(found->uid, page);
		set(&shared->report_done, 1);
	}
	wait_for_end();
}

static void crash(int sig, siginfo_t *info, void *context)
{
	if (begin_report(CRASH)) {
		say("CRASH: ");
		say_process(proc->uid);
		say(", thread %u: signal %d, code %d, at %p\n", self->nr, sig,
		    info->si_code, info->si_addr);
		say_events(proc->uid, NOWHERE);
		set(&shared->report_done, 1);
	}
	wait_for_end();
}

/* Records */

static size_t record_offset(unsigned int nr, uint32_t gen)
{
	const size_t half = psize() / 2 / sizeof(struct record);
	const size_t index[] = {
		[REC_FIRST]	= 0,
		[REC_RANDOM]	= 1 + mix(gen) % (half - 1),
		[REC_MIDDLE]	= half,
		[REC_LAST]	= 2 * half - 1,
	};

	return index[nr] * sizeof(struct record);
}

static struct record record_of(unsigned int page, unsigned int nr, uint32_t gen,
			       uint32_t uid)
{
	struct record r = { };

	if (gen) {
		r.gen = gen;
		r.uid = uid;
		r.page = page;
		r.sum = checksum(&r, nr);
	}
	return r;
}

static struct record record_read(const char *mem, size_t offset)
{
	const struct record *r = (const void *)(mem + offset);
	struct record copy;

	copy.gen = get(&r->gen);
	copy.uid = get(&r->uid);
	copy.page = get(&r->page);
	copy.sum = get(&r->sum);
	return copy;
}

static void records_write(char *mem, unsigned int page, uint32_t gen, uint32_t uid)
{
	unsigned int nr;

	for (nr = 0; nr < NR_RECORDS; nr++) {
		struct record r = record_of(page, nr, gen, uid);
		struct record *to = (void *)(mem + record_offset(nr, gen));

		set(&to->gen, r.gen);
		set(&to->uid, r.uid);
		set(&to->page, r.page);
		set(&to->sum, r.sum);
	}
}

/* The same, but by the kernel, which takes and drops a pin for it. */
static bool records_send(pid_t pid, char *mem, unsigned int page, uint32_t gen,
			 uint32_t uid)
{
	struct iovec local[NR_RECORDS], remote[NR_RECORDS];
	struct record records[NR_RECORDS];
	unsigned int nr;

	for (nr = 0; nr < NR_RECORDS; nr++) {
		records[nr] = record_of(page, nr, gen, uid);
		local[nr].iov_base = &records[nr];
		local[nr].iov_len = sizeof(struct record);
		remote[nr].iov_base = mem + record_offset(nr, gen);
		remote[nr].iov_len = sizeof(struct record);
	}
	return process_vm_writev(pid, local, NR_RECORDS, remote, NR_RECORDS, 0) ==
	       sizeof(records);
}

static void check(const char *mem, unsigned int page, uint32_t gen, uint32_t uid,
		  const char *how)
{
	unsigned int nr;

	for (nr = 0; nr < NR_RECORDS; nr++) {
		struct record want = record_of(page, nr, gen, uid);
		struct record found = record_read(mem, record_offset(nr, gen));

		if (memcmp(&want, &found, sizeof(want)))
			corrupt(page, nr, how, &want, &found);
	}
	inc(&shared->checks);
}

/* Pages and ranges of them */

static bool trylock(unsigned int page, enum op op)
{
	uint8_t unlocked = OP_NONE;

	return __atomic_compare_exchange_n(&proc->entry[page].lock, &unlocked, op,
					   false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void unlock(unsigned int first, unsigned int nr)
{
	for (; nr; nr--, first++)
		set(&proc->entry[first].lock, OP_NONE);
}

/* Locks what it can get from @first on, as far as it is mapped in one piece. */
static unsigned int grab(unsigned int first, unsigned int nr, enum op op)
{
	const struct entry *e = &proc->entry[first];
	unsigned int i;

	for (i = 0; i < nr; i++) {
		if (!trylock(first + i, op))
			break;
		if (i && get(&e[i].loc) != get(&e[i - 1].loc) + 1) {
			unlock(first + i, 1);
			break;
		}
	}
	return i;
}

/* Locks all, wherever they are. Everybody does so upwards: no deadlock. */
static bool grab_all(unsigned int first, unsigned int nr, enum op op)
{
	unsigned int i, tries = 0;

	for (i = 0; i < nr; i++) {
		while (!trylock(first + i, op)) {
			if (++tries > 1000 || get(&shared->stop)) {
				unlock(first, i);
				return false;
			}
			sched_yield();
		}
	}
	return true;
}

/*
 * Where a process does most of its work, and its children do, too: a small part
 * of [@first, @first + @nr). One word, for threads that read it meanwhile.
 */
static void set_hot(unsigned int first, unsigned int nr)
{
	unsigned int size = 16U << rnd(4);

	/* MIN() would draw twice. */
	size = MIN(size, nr);
	set(&proc->hot, (first + rnd(nr / size) * size) << 8 | size);
}

/* Empty before the first set_hot(). */
static unsigned int get_hot(unsigned int *first)
{
	uint32_t hot = get(&proc->hot);

	*first = hot >> 8;
	return hot & 0xff;
}

static unsigned int pick_page(void)
{
	unsigned int first, nr = get_hot(&first);

	return nr && rnd(4) ? first + rnd(nr) : rnd(global.nr_pages);
}

/* One page most of the time; also parts, wholes and more of the usual folios. */
static void pick_range(unsigned int *first, unsigned int *nr, unsigned int max)
{
	static const unsigned int sizes[] = { 1, 1, 1, 2, 4, 16, 64, 512 };

	*first = pick_page();
	*nr = sizes[rnd(ARRAY_SIZE(sizes))];
	if (*nr > 4 && !rnd(4))
		*nr = 1 + rnd(*nr);
	else if (rnd(2))
		*first = *first / *nr * *nr;
	*nr = MIN(*nr, MIN(max, global.nr_pages - *first));
}

/*
 * Pins and forks keep apart: a thread that pins waits for no fork(), it just
 * does something else, and fork() has its way around.
 */
static bool may_pin(void)
{
	inc(&proc->pins);
	if (!get(&proc->slot->wild))
		return true;
	dec(&proc->pins);
	return false;
}

static void unpinned(void)
{
	dec(&proc->pins);
}

/* Write and check */

/* Gen 0: reading would put zero pages where large folios belong. So, seldom. */
static void check_page(unsigned int page, const char *how)
{
	const struct entry *e = &proc->entry[page];

	if (e->cur || !rnd(16))
		check(page_addr(page), page, e->cur, e->cur_uid, how);
}

static void write_page(unsigned int page, bool send)
{
	struct entry *e = &proc->entry[page];
	uint32_t gen = inc(&shared->gens);

	set(&e->alt_uid, proc->uid);
	set(&e->alt, gen);
	if (!send || !records_send(getpid(), page_addr(page), page, gen, proc->uid))
		records_write(page_addr(page), page, gen, proc->uid);
	set(&e->cur_uid, proc->uid);
	set(&e->cur, gen);
}

static bool op_write(void)
{
	bool send = !rnd(16) && may_pin(), look = rnd(2);
	unsigned int first, nr, i, step = rnd(3) ? 1 : 1 + rnd(16), wrote = 0;

	pick_range(&first, &nr, global.nr_pages);
	for (i = 0; i < nr && !get(&shared->stop); i += step) {
		if (!trylock(first + i, OP_WRITE))
			continue;
		if (look)
			check_page(first + i, "before a write");
		write_page(first + i, send);
		unlock(first + i, 1);
		wrote++;
	}
	if (send)
		unpinned();
	note(OP_WRITE, first, nr, wrote);
	return false;
}

static void check_range(unsigned int first, unsigned int nr, const char *how)
{
	for (; nr; nr--, first++) {
		if (!trylock(first, OP_READ))
			continue;
		check_page(first, how);
		unlock(first, 1);
	}
}

static void check_hot(const char *how)
{
	unsigned int first, nr = get_hot(&first);

	check_range(first, nr, how);
}

static void sample_page(unsigned int page)
{
	uint64_t pagemap, flags = page_flags(page, &pagemap);

	if (!(pagemap & PM_PRESENT))
		return;
	inc(&shared->samples);
	if (flags & KPF_THP)
		inc(&shared->samples_large);
}

static bool op_read(void)
{
	unsigned int first, nr;

	if (rnd(4))
		pick_range(&first, &nr, global.nr_pages);
	else
		nr = get_hot(&first);
	check_range(first, nr, "check");
	if (!rnd(8))
		sample_page(first);
	note(OP_READ, first, nr, 0);
	return false;
}

/* Drop, move, protect */

static bool is_mapped(uint32_t place)
{
	unsigned char vec;

	return !mincore(place_addr(place), psize(), &vec);
}

/* Maps new memory at home, instead of what may be there. */
static void map_home(unsigned int first, unsigned int nr)
{
	char *addr = place_addr(first);
	size_t len = (size_t)nr * psize();

	if (mmap(addr, len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		give_up();
	madvise(addr, len, MADV_HUGEPAGE);
}

static void leave_place(uint32_t place)
{
	if (place >= global.nr_pages) {
		set(&proc->used[place - global.nr_pages], 0);
		dec(&proc->away);
	}
}

/* For pages locked with OP_RESET; a child, too, just does it all over. */
static void reset_pages(unsigned int first, unsigned int nr)
{
	struct entry *e;
	unsigned int i;

	for (i = first; i < first + nr; i++) {
		e = &proc->entry[i];
		if (e->loc == i)
			continue;
		munmap(place_addr(e->loc), psize());
		leave_place(e->loc);
		set(&e->loc, i);
	}
	map_home(first, nr);
	for (i = first; i < first + nr; i++) {
		e = &proc->entry[i];
		set(&e->drops, e->drops + 1);
		set(&e->alt, 0);
		set(&e->cur, 0);
	}
}

/* In a child, or after a failure: was it dropped? */
static void settle_drop(unsigned int page)
{
	struct entry *e = &proc->entry[page];

	if (!record_read(page_addr(page), 0).gen)
		set(&e->cur, 0);
	set(&e->alt, e->cur);
	check(page_addr(page), page, e->cur, e->cur_uid, "dropped or not");
	set(&e->drops, e->drops + 1);
}

/* For pages locked with OP_DROP. */
static void drop_pages(unsigned int first, unsigned int nr)
{
	unsigned int i;
	int err;

	for (i = first; i < first + nr; i++)
		set(&proc->entry[i].alt, 0);
	err = madvise(page_addr(first), (size_t)nr * psize(), MADV_DONTNEED);
	for (i = first; i < first + nr; i++) {
		if (err) {
			settle_drop(i);
			continue;
		}
		set(&proc->entry[i].drops, proc->entry[i].drops + 1);
		set(&proc->entry[i].cur, 0);
	}
}

static bool op_drop(void)
{
	bool reset = !rnd(3);
	unsigned int first, nr;

	pick_range(&first, &nr, 64);
	nr = grab(first, nr, reset ? OP_RESET : OP_DROP);
	if (!nr)
		return false;
	if (reset)
		reset_pages(first, nr);
	else
		drop_pages(first, nr);
	unlock(first, nr);
	note(OP_DROP, first, nr, reset);
	return false;
}

static void protect_pages(unsigned int first, unsigned int nr, int prot)
{
	/* More VMAs than may be: the change back merges them. */
	if (mprotect(page_addr(first), (size_t)nr * psize(), prot) && prot & PROT_WRITE)
		give_up();
}

/* Fresh large folios instead of what all the copying has left of them. */
static bool op_reset(void)
{
	unsigned int block = rnd(global.nr_pages / global.block_pages), i;
	unsigned int first = block * global.block_pages, how = rnd(4);

	if (!grab_all(first, global.block_pages, OP_RESET))
		return false;
	reset_pages(first, global.block_pages);
	unlock(first, global.block_pages);
	for (i = 0; how && i < global.block_pages >> (how == 1); i++) {
		if (!trylock(first + i, OP_WRITE))
			continue;
		write_page(first + i, false);
		unlock(first + i, 1);
	}
	/* From one PMD to PTEs */
	if (how > 2 && grab(first, 1, OP_PROTECT)) {
		protect_pages(first, 1, PROT_READ);
		protect_pages(first, 1, PROT_READ | PROT_WRITE);
		unlock(first, 1);
	}
	set_hot(first, global.block_pages);
	note(OP_RESET, first, global.block_pages, how);
	return false;
}

/* A free range of the annex, or NOWHERE. */
static uint32_t alloc_places(unsigned int nr)
{
	unsigned int annex = global.nr_places - global.nr_pages;
	unsigned int first = rnd(annex - nr + 1), i;
	uint8_t unused;

	for (i = 0; i < nr; i++) {
		unused = 0;
		if (!__atomic_compare_exchange_n(&proc->used[first + i], &unused, 1, false,
						 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			break;
		inc(&proc->away);
	}
	if (i == nr)
		return global.nr_pages + first;
	while (i--)
		leave_place(global.nr_pages + first + i);
	return NOWHERE;
}

static void finish_move(unsigned int page)
{
	struct entry *e = &proc->entry[page];
	uint32_t from = e->loc;

	set(&e->loc, e->to);
	set(&e->to, NOWHERE);
	leave_place(from);
}

/*
 * In a child, or after a failure: did the page go? The place to go to was not
 * mapped before, so that tells.
 */
static void settle_move(unsigned int page)
{
	struct entry *e = &proc->entry[page];

	if (e->to == NOWHERE)
		return;
	if (is_mapped(e->to)) {
		if (e->loc != e->to)
			munmap(place_addr(e->loc), psize());
		finish_move(page);
	} else {
		leave_place(e->to);
		set(&e->to, NOWHERE);
	}
}

/* For pages locked with OP_MOVE, mapped in one piece. */
static void move_to(unsigned int first, unsigned int nr, uint32_t place)
{
	bool keep = !rnd(4), moved;
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (keep ? MREMAP_DONTUNMAP : 0);
	size_t len = (size_t)nr * psize();
	char *from = page_addr(first);
	unsigned int i;

	for (i = 0; i < nr; i++)
		set(&proc->entry[first + i].to, place + i);
	moved = mremap(from, len, len, flags, place_addr(place)) != MAP_FAILED;
	if (moved && keep)
		munmap(from, len);
	for (i = 0; i < nr; i++) {
		if (moved)
			finish_move(first + i);
		else
			settle_move(first + i);
	}
}

static bool op_move(void)
{
	unsigned int first, nr, i;
	uint32_t place;

	pick_range(&first, &nr, 32);
	/* With many pages away, look for one to bring back. */
	for (i = 0; get(&proc->away) > global.nr_pages / 8 && i < 256; i++)
		if (get(&proc->entry[first].loc) == first)
			first = rnd(global.nr_pages);
	nr = grab(first, MIN(nr, global.nr_pages - first), OP_MOVE);
	if (!nr)
		return false;
	place = proc->entry[first].loc == first ? alloc_places(nr) : first;
	if (place != NOWHERE)
		move_to(first, nr, place);
	unlock(first, nr);
	note(OP_MOVE, first, nr, place);
	return false;
}

static bool op_protect(void)
{
	unsigned int first, nr, i;

	pick_range(&first, &nr, 4);
	nr = grab(first, nr, OP_PROTECT);
	if (!nr)
		return false;
	protect_pages(first, nr, PROT_READ);
	for (i = 0; i < nr; i++)
		check_page(first + i, "protected");
	protect_pages(first, nr, PROT_READ | PROT_WRITE);
	unlock(first, nr);
	note(OP_PROTECT, first, nr, 0);
	return false;
}

/* References */

/* A pinned page stays the one that is mapped: it shows every later write. */
static void check_pin(struct pin *pin)
{
	uint64_t buffer = (unsigned long)thread_buffer();
	bool locked[PIN_PAGES];
	unsigned int i;

	for (i = 0; i < pin->nr; i++)
		locked[i] = trylock(pin->first + i, OP_READ);
	if (ioctl(pin->fd, PIN_LONGTERM_TEST_READ, &buffer))
		give_up();
	for (i = 0; i < pin->nr; i++) {
		const struct entry *e = &proc->entry[pin->first + i];

		if (!locked[i])
			continue;
		if (e->drops == pin->drops[i])
			check(thread_buffer() + (size_t)i * psize(), pin->first + i,
			      e->cur, e->cur_uid, "through a pin");
		unlock(pin->first + i, 1);
	}
}

static void start_pin(struct pin *pin)
{
	struct pin_longterm_test args = { };
	unsigned int i;

	pick_range(&pin->first, &pin->nr, PIN_PAGES);
	if (!may_pin())
		return;
	pin->nr = grab(pin->first, pin->nr, OP_PIN);
	args.addr = (unsigned long)page_addr(pin->first);
	args.size = (size_t)pin->nr * psize();
	args.flags = rnd(4);	/* for write or not, fast or not */
	if (pin->nr && !ioctl(pin->fd, PIN_LONGTERM_TEST_START, &args)) {
		for (i = 0; i < pin->nr; i++)
			pin->drops[i] = proc->entry[pin->first + i].drops;
		pin->active = 1;
	} else {
		ioctl(pin->fd, PIN_LONGTERM_TEST_STOP);
		unpinned();
	}
	unlock(pin->first, pin->nr);
	note(OP_PIN, pin->first, pin->nr, args.flags);
}

static bool op_pin(void)
{
	struct pin *pin = &proc->pin[rnd(NR_PINS)];
	uint8_t unlocked = 0;

	if (pin->fd < 0 || !proc->pinner ||
	    !__atomic_compare_exchange_n(&pin->lock, &unlocked, 1, false,
					 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return false;
	if (!pin->active) {
		start_pin(pin);
	} else {
		check_pin(pin);
		/* Not for long: a process with pins has to pause for its forks. */
		if (rnd(2)) {
			ioctl(pin->fd, PIN_LONGTERM_TEST_STOP);
			pin->active = 0;
			unpinned();
			note(OP_PIN, pin->first, pin->nr, 99);
		}
	}
	set(&pin->lock, 0);
	return false;
}

static void open_pipe(struct splice *s)
{
	if (pipe2(s->fd, O_NONBLOCK | O_CLOEXEC))
		give_up();
	s->nr = 0;
	s->forks = get(&proc->forks);
}

/* What is there must be as it was sent, or newer and our own. */
static void check_splice(struct splice *s)
{
	struct record want, found;
	const char *mem;
	unsigned int i;

	if (read(s->fd[0], thread_buffer(), (size_t)s->nr * psize()) ==
	    (ssize_t)((size_t)s->nr * psize())) {
		for (i = 0; i < s->nr; i++) {
			mem = thread_buffer() + (size_t)i * psize();
			found = record_read(mem, 0);
			want = record_of(s->first + i, 0, s->gen[i], s->uid[i]);
			if (!memcmp(&want, &found, sizeof(want)) ||
			    (found.uid == proc->uid && found.gen > want.gen))
				continue;
			corrupt(s->first + i, 0, "in a pipe", &want, &found);
		}
		inc(&shared->checks);
	}
	s->nr = 0;
}

/*
 * What our parent had in a pipe when we were forked can never be newer: fork()
 * made us share that page, so what the parent writes goes to a copy. Unless the
 * page belonged to a folio that was pinned: then fork() copied it for us, the
 * parent goes on to write to it in place, and it is right that the pipe shows
 * that. See pins_at_fork().
 */
static void check_legacy(void)
{
	int fd = __atomic_exchange_n(&proc->legacy_fd, -1, __ATOMIC_SEQ_CST);
	struct record found, want = { };
	ssize_t len;
	size_t at;

	if (fd < 0)
		return;
	len = read(fd, thread_buffer(), SPLICE_PAGES * psize());
	for (at = 0; len > 0 && at + psize() <= (size_t)len; at += psize()) {
		found = record_read(thread_buffer(), at);
		if (found.gen > proc->legacy_gen && found.page < global.nr_pages)
			corrupt(found.page, 0, "in a parent's pipe, from after the fork",
				&want, &found);
		inc(&shared->checks);
	}
	close(fd);
}

static void renew_pipe(struct splice *s)
{
	close(s->fd[0]);
	close(s->fd[1]);
	open_pipe(s);
}

/* Locks pages, and remembers what is in them. */
static void grab_splice(struct splice *s)
{
	unsigned int i;

	pick_range(&s->first, &s->nr, SPLICE_PAGES);
	s->nr = grab(s->first, s->nr, OP_DROP);
	for (i = 0; i < s->nr; i++) {
		struct entry *e = &proc->entry[s->first + i];

		s->gen[i] = e->cur;
		s->uid[i] = e->cur_uid;
	}
}

static void start_splice(struct splice *s)
{
	struct iovec iov;

	if (s->forks != get(&proc->forks))
		renew_pipe(s);
	grab_splice(s);
	iov.iov_base = page_addr(s->first);
	iov.iov_len = (size_t)s->nr * psize();
	if (s->nr && vmsplice(s->fd[1], &iov, 1, SPLICE_F_NONBLOCK) == (ssize_t)iov.iov_len) {
		/* Only the pipe, and other processes, may now refer to the pages. */
		if (rnd(2))
			drop_pages(s->first, s->nr);
		unlock(s->first, s->nr);
	} else {
		unlock(s->first, s->nr);
		renew_pipe(s);	/* part of it may be in there */
	}
}

static bool op_splice(void)
{
	struct splice *s = &self->splice;

	if (!rnd(4))
		check_legacy();
	if (!may_pin())
		return false;
	if (s->nr)
		check_splice(s);
	else
		start_splice(s);
	unpinned();
	note(OP_SPLICE, s->first, s->nr, 0);
	return false;
}

static struct slot *pick_sibling(void)
{
	struct slot *slot = &shared->slot[rnd(opt.procs)];

	return get(&slot->key) & 1 && get(&slot->pid) > 0 ? slot : NULL;
}

/* Short-term pins of pages of others, who may be writing or unmapping them. */
static bool op_peek(void)
{
	struct slot *slot = pick_sibling();
	unsigned int first, nr;
	struct iovec to, from;

	if (!slot || slot == proc->slot)
		return false;
	pick_range(&first, &nr, PIN_PAGES);
	to.iov_base = thread_buffer();
	from.iov_base = rnd(4) ? place_addr(first) : page_addr(first);
	to.iov_len = nr * psize();
	from.iov_len = to.iov_len;
	set(&proc->slot->thread[self->nr].peeks, 1 + slot - shared->slot);
	if (!get(&slot->wild)) {
		inc(&slot->peeked);	/* before the pin: see pins_at_fork() */
		process_vm_readv(get(&slot->pid), &to, 1, &from, 1, 0);
	}
	set(&proc->slot->thread[self->nr].peeks, 0);
	note(OP_PEEK, first, nr, get(&slot->key) / 2);
	return false;
}

/* What leaves the content alone: nothing is locked, all may go on meanwhile. */

/* A range of ours or, as likely, at the same place in another process. */
static pid_t pick_any(char **addr, unsigned int *nr)
{
	struct slot *slot = rnd(2) ? pick_sibling() : NULL;
	unsigned int first;

	pick_range(&first, nr, 64);
	*addr = page_addr(first);
	return slot ? get(&slot->pid) : getpid();
}

static bool op_migrate(void)
{
	int nodes[64], status[64], node = rnd(2);
	void *pages[64];
	unsigned int nr, i;
	char *addr;
	pid_t pid = pick_any(&addr, &nr);

	for (i = 0; i < nr; i++) {
		pages[i] = addr + (size_t)i * psize();
		nodes[i] = node;
	}
	syscall(__NR_move_pages, pid, (unsigned long)nr, pages, nodes, status,
		rnd(4) ? MPOL_MF_MOVE_ALL : MPOL_MF_MOVE);
	note(OP_MIGRATE, (addr - global.arena) / psize(), nr, pid);
	return false;
}

static bool op_swap(void)
{
	unsigned int first, nr;

	pick_range(&first, &nr, 64);
	madvise(page_addr(first), (size_t)nr * psize(), MADV_PAGEOUT);
	note(OP_SWAP, first, nr, 0);
	return false;
}

/* With swap, to small folios: the kernel warns of other orders in the swap cache. */
static bool op_split(void)
{
	static const int orders[] = { 0, 0, 2, 4, 6 };
	const int order = global.have[OP_SWAP] ? 0 : orders[rnd(ARRAY_SIZE(orders))];
	char text[128], *addr;
	unsigned int nr;
	pid_t pid = pick_any(&addr, &nr);
	int fd = open(SPLIT_FILE, O_WRONLY | O_CLOEXEC);
	int len = snprintf(text, sizeof(text), "%d,0x%lx,0x%lx,%d", pid,
			   (unsigned long)addr,
			   (unsigned long)addr + (size_t)nr * psize(), order);

	if (fd < 0)
		return false;
	/* Often there is nothing to split. */
	if (write(fd, text, len) != len)
		errno = 0;
	close(fd);
	note(OP_SPLIT, (addr - global.arena) / psize(), nr, pid);
	return false;
}

static bool op_collapse(void)
{
	unsigned int block = rnd(global.nr_pages / global.block_pages);
	unsigned int first = block * global.block_pages;

	madvise(place_addr(first), global.block, MADV_COLLAPSE);
	note(OP_COLLAPSE, first, global.block_pages, 0);
	return false;
}

/* Soft-dirty: makes PTEs read-only that are exclusive and stay so. */
static bool op_clean(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	if (write(fd, "4", 1) != 1)
		errno = 0;
	close(fd);
	note(OP_CLEAN, 0, 0, 0);
	return false;
}

/* Processes: their slots */

/*
 * The child turns its reservation into a life. It dies if the reservation is gone:
 * reaping the parent frees what the parent had reserved and not yet used.
 */
static struct slot *reserve_slot(uint32_t parent, uint32_t *uid)
{
	struct life *life;
	uint32_t none;
	unsigned int i;

	for (i = 0; i < opt.procs && get(&shared->slot[i].key); i++)
		;
	if (i == opt.procs)
		return NULL;
	*uid = inc(&shared->uids);
	life = life_of(*uid);
	life->parent = parent;
	life->pid = 0;
	life->gen = UINT32_MAX;
	set(&life->uid, *uid);
	for (i = 0; i < opt.procs; i++) {
		none = 0;
		if (__atomic_compare_exchange_n(&shared->slot[i].key, &none, 2 * *uid, false,
						__ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return &shared->slot[i];
	}
	return NULL;
}

static void free_slot(struct slot *slot, uint32_t key)
{
	unsigned int i;

	set(&slot->pid, 0);
	set(&slot->wild, 0);
	for (i = 0; i < MAX_THREADS; i++) {
		set(&slot->thread[i].peeks, 0);
		set(&slot->thread[i].op, OP_NONE);
	}
	__atomic_compare_exchange_n(&slot->key, &key, 0, false, __ATOMIC_SEQ_CST,
				    __ATOMIC_SEQ_CST);
}

static void free_slots_of(pid_t pid)
{
	uint32_t key, dead = 0;
	unsigned int i;

	for (i = 0; i < opt.procs; i++) {
		key = get(&shared->slot[i].key);
		if (key & 1 && get(&shared->slot[i].pid) == pid) {
			dead = key / 2;
			free_slot(&shared->slot[i], key);
		}
	}
	for (i = 0; dead && i < opt.procs; i++) {
		key = get(&shared->slot[i].key);
		if (key && !(key & 1) && life_of(key / 2)->parent == dead)
			free_slot(&shared->slot[i], key);
	}
}

static void claim_slot(struct slot *slot, uint32_t uid)
{
	uint32_t key = 2 * uid;

	if (!__atomic_compare_exchange_n(&slot->key, &key, 2 * uid + 1, false,
					 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		_exit(0);
	set(&slot->nr_events, 0);
	set(&life_of(uid)->pid, getpid());
	set(&slot->pid, getpid());
	proc->slot = slot;
	proc->uid = uid;
}

/*
 * The slot goes before the zombie does: who finds a pid in a slot can rely on
 * it being that process, or nobody.
 */
static bool reap(void)
{
	siginfo_t info = { };

	if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) || !info.si_pid)
		return false;
	free_slots_of(info.si_pid);
	if (info.si_pid == global.group)
		;	/* it only ends when all do */
	else if (info.si_code == CLD_EXITED ? info.si_status : info.si_status != SIGKILL)
		inc(&shared->died_badly);
	else if (info.si_code != CLD_EXITED)
		inc(&shared->killed);
	return waitpid(info.si_pid, NULL, WNOHANG) > 0;
}

/* Processes: what a child does first */

static bool one_of(uint32_t word, uint32_t a, uint32_t b)
{
	return word == a || word == b;
}

/*
 * A write that fork() came between. Records are written in order: with the
 * last of them, the write is complete; without a word of the first, it had not
 * begun. Anything in between the child completes.
 */
static void settle_write(unsigned int page)
{
	static const unsigned int fixed[] = { REC_FIRST, REC_MIDDLE, REC_LAST };
	struct entry *e = &proc->entry[page];
	struct record old, new, found;
	char *mem = page_addr(page);
	bool began = false;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fixed); i++) {
		old = record_of(page, fixed[i], e->cur, e->cur_uid);
		new = record_of(page, fixed[i], e->alt, e->alt_uid);
		found = record_read(mem, record_offset(fixed[i], 0));
		if (!one_of(found.gen, old.gen, new.gen) ||
		    !one_of(found.uid, old.uid, new.uid) ||
		    !one_of(found.page, old.page, new.page) ||
		    !one_of(found.sum, old.sum, new.sum))
			corrupt(page, fixed[i], "written while forking", &new, &found);
		if (memcmp(&found, &old, sizeof(old)))
			began = true;
	}
	if (began) {
		if (memcmp(&found, &new, sizeof(new)))
			records_write(mem, page, e->alt, e->alt_uid);
		set(&e->cur_uid, e->alt_uid);
		set(&e->cur, e->alt);
	}
	check(mem, page, e->cur, e->cur_uid, "after forking while written");
}

/* Returns how many pages it settled: all of a reset at once. */
static unsigned int settle_pages(unsigned int first)
{
	struct entry *e = &proc->entry[first];
	unsigned int nr = 1;

	switch (e->lock) {
	case OP_WRITE:
		if (e->alt != e->cur)
			settle_write(first);
		break;
	case OP_DROP:
		if (e->alt != e->cur)
			settle_drop(first);
		break;
	case OP_RESET:
		while (first + nr < global.nr_pages && e[nr].lock == OP_RESET)
			nr++;
		reset_pages(first, nr);
		break;
	case OP_MOVE:
		settle_move(first);
		break;
	case OP_PROTECT:
		protect_pages(first, 1, PROT_READ | PROT_WRITE);
		break;
	}
	unlock(first, nr);
	return nr;
}

static void settle(void)
{
	unsigned int i;

	for (i = 0; i < global.nr_pages; i += settle_pages(i))
		;
	/* The other threads may have been about to change these. */
	memset(proc->used, 0, global.nr_places - global.nr_pages);
	proc->away = 0;
	for (i = 0; i < global.nr_pages; i++) {
		if (proc->entry[i].loc == i)
			continue;
		proc->used[proc->entry[i].loc - global.nr_pages] = 1;
		proc->away++;
	}
}

static void open_files(void)
{
	unsigned int i;

	for (i = 0; i < NR_PINS; i++) {
		proc->pin[i] = (struct pin){ .fd = -1 };
		if (global.have[OP_PIN])
			proc->pin[i].fd = open(GUP_TEST, O_RDWR | O_CLOEXEC);
	}
	for (i = 0; i < opt.threads; i++)
		open_pipe(&proc->thread[i].splice);
}

/*
 * May a page of our parent, in @slot, have been pinned while it forked us? Its own
 * pins stayed what they were: its threads paused, or it was wild and had none.
 * Others can begin to peek at any time, but they count that before they pin:
 *
 *	parent				other			child
 *	note peeked; who peeks?		peeks = parent		peeked as noted?
 *	fork()				peeked++, pin
 *
 * The parent sees a process that peeks already. A process that peeks later, but
 * early enough for fork() to see the pin, raises the count before the child looks.
 */
static bool pins_at_fork(const struct slot *slot)
{
	return self->pinned || get(&slot->peeked) != self->peeked;
}

/*
 * Pins and pipes are the parent's. One pipe we keep, to look into it later, if we
 * can tell what has to be in there.
 */
static void close_files(bool keep)
{
	unsigned int i;

	if (proc->legacy_fd >= 0)
		close(proc->legacy_fd);
	proc->legacy_fd = -1;
	for (i = 0; i < NR_PINS; i++)
		if (proc->pin[i].fd >= 0)
			close(proc->pin[i].fd);
	for (i = 0; i < opt.threads; i++) {
		struct splice *s = &proc->thread[i].splice;

		close(s->fd[1]);
		if (keep && s->nr && proc->legacy_fd < 0)
			proc->legacy_fd = s->fd[0];
		else
			close(s->fd[0]);
	}
	proc->legacy_gen = get(&shared->gens);
}

static void pick_life(void)
{
	static const int lives[] = { 10, 50, 200, 1000 };

	proc->life = 1 + rnd(lives[rnd(ARRAY_SIZE(lives))]);
}

static void seed_thread(unsigned int nr)
{
	struct thread *thread = &proc->thread[nr];

	thread->nr = nr;
	thread->busy = 0;
	thread->rng = mix(opt.seed ^ mix((uint64_t)proc->uid << 8 ^ nr));
}

/* Common to all processes: the first ones, and those that they fork. */
static void begin_process(void)
{
	unsigned int i;

	alarm(opt.seconds + 300);	/* a last resort */
	for (i = 0; i < opt.threads; i++)
		seed_thread(i);
	proc->main = self->nr;
	proc->quiet = 0;
	proc->pins = 0;
	proc->forks = 0;
	proc->pinner = !rnd(3);
	pick_life();
	open_files();
}

static void begin_child(void)
{
	const bool keep = !pins_at_fork(proc->slot);

	claim_slot(self->child_slot, self->child_uid);
	settle();
	close_files(keep);
	begin_process();
	note(OP_FORK, 0, 0, life_of(proc->uid)->parent);
	if (rnd(2))
		check_hot("first look of a child");
}

/* Processes: fork, exit */

static bool others_busy(void)
{
	unsigned int i;

	for (i = 0; i < opt.threads; i++)
		if (i != self->nr && get(&proc->thread[i].busy))
			return true;
	return false;
}

/* Has the other threads pause between two operations. */
static bool quiesce(void)
{
	uint32_t nobody = 0, start = now_ms();

	if (!__atomic_compare_exchange_n(&proc->quiet, &nobody, self->nr + 1, false,
					 __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return false;
	while (others_busy()) {
		if (get(&shared->stop) || now_ms() - start > 5000) {
			set(&proc->quiet, 0);
			return false;
		}
		sched_yield();
	}
	return true;
}

static bool someone_peeks(void)
{
	uint32_t me = 1 + proc->slot - shared->slot;
	unsigned int i, j;

	for (i = 0; i < opt.procs; i++)
		for (j = 0; j < opt.threads; j++)
			if (get(&shared->slot[i].thread[j].peeks) == me)
				return true;
	return false;
}

/* For pins_at_fork(), just before. */
static void note_pins(void)
{
	self->peeked = get(&proc->slot->peeked);
	self->pinned = get(&proc->pins) || someone_peeks();
}

static bool begin_wild_fork(void)
{
	inc(&proc->slot->wild);
	if (rnd(4) && !get(&proc->pins) && !someone_peeks())
		return true;
	dec(&proc->slot->wild);
	return false;
}

static bool fork_process(void)
{
	bool wild = begin_wild_fork();
	pid_t pid = -1;

	if (wild || quiesce()) {
		if (rnd(2))
			set_hot(0, global.nr_pages);
		inc(&proc->forks);
		set(&life_of(self->child_uid)->gen, get(&shared->gens));
		note_pins();
		pid = fork();
		if (!pid)
			return true;
		if (wild)
			dec(&proc->slot->wild);
		else
			set(&proc->quiet, 0);
	}
	if (pid < 0) {
		free_slot(self->child_slot, 2 * self->child_uid);
	} else {
		note(OP_FORK, wild, 0, self->child_uid);
		if (wild)
			inc(&shared->wild_forks);
	}
	return false;
}

static bool op_fork(void)
{
	if (get(&shared->stop))
		return false;
	self->child_slot = reserve_slot(proc->uid, &self->child_uid);
	if (!self->child_slot)
		return op_write();
	if (fork_process())
		return true;
	/* Parents die early, too. */
	if (!rnd(4))
		set(&proc->life, rnd(30));
	else if (rnd(2))
		check_hot("after a fork");
	return false;
}

static void __noreturn exit_process(void)
{
	if (!rnd(4) || get(&shared->stop))
		check_range(0, global.nr_pages, "before exit");
	note(OP_EXIT, 0, 0, 0);
	if (get(&proc->reports))
		wait_for_end();
	if (rnd(2)) {
		inc(&shared->kills);
		kill(getpid(), SIGKILL);
	}
	_exit(0);
}

/* Only children, of which none can be replaced by another with that pid. */
static bool op_kill(void)
{
	struct slot *slot = pick_sibling();

	if (slot && life_of(get(&slot->key) / 2)->parent == proc->uid) {
		inc(&shared->kills);
		note(OP_KILL, 0, 0, get(&slot->key) / 2);
		kill(get(&slot->pid), SIGKILL);
	}
	return false;
}

/* Simulated faults: what a broken kernel would do */

static void simulate_leak(void)
{
	struct slot *slot = pick_sibling();
	unsigned int page = pick_page();

	if (slot && slot != proc->slot)
		records_send(get(&slot->pid), place_addr(page), page,
			     inc(&shared->gens), proc->uid);
}

static void simulate_lost_write(void)
{
	unsigned int page = pick_page();
	uint32_t gen, uid;

	if (!trylock(page, OP_WRITE))
		return;
	gen = proc->entry[page].cur;
	uid = proc->entry[page].cur_uid;
	if (gen) {
		write_page(page, false);
		records_write(page_addr(page), page, gen, uid);
	}
	unlock(page, 1);
}

static void simulate(void)
{
	if (opt.simulate == LEAK)
		simulate_leak();
	else if (opt.simulate == LOST_WRITE)
		simulate_lost_write();
}

/* Threads */

static const struct op_desc ops[NR_OPS] = {
	[OP_NONE]	= { "none" },
	[OP_WRITE]	= { "write",	op_write,	320 },
	[OP_READ]	= { "check",	op_read,	140 },
	[OP_DROP]	= { "drop",	op_drop,	 60 },
	[OP_RESET]	= { "reset",	op_reset,	 15 },
	[OP_MOVE]	= { "move",	op_move,	 40 },
	[OP_PROTECT]	= { "protect",	op_protect,	 40 },
	[OP_FORK]	= { "fork",	op_fork,	 80 },
	[OP_PIN]	= { "pin",	op_pin,		 60 },
	[OP_SPLICE]	= { "splice",	op_splice,	 60 },
	[OP_PEEK]	= { "peek",	op_peek,	 30 },
	[OP_MIGRATE]	= { "migrate",	op_migrate,	  8 },
	[OP_SWAP]	= { "swap",	op_swap,	 10 },
	[OP_SPLIT]	= { "split",	op_split,	  8 },
	[OP_COLLAPSE]	= { "collapse",	op_collapse,	 10 },
	[OP_CLEAN]	= { "clean",	op_clean,	  5 },
	[OP_KILL]	= { "kill",	op_kill,	  3 },
	[OP_EXIT]	= { "exit" },
};

static enum op pick_op(void)
{
	unsigned int total = 0, at;
	enum op op;

	for (op = 0; op < NR_OPS; op++)
		if (global.have[op])
			total += ops[op].weight;
	at = rnd(total);
	for (op = 0; op < NR_OPS; op++) {
		if (!global.have[op])
			continue;
		if (at < ops[op].weight)
			break;
		at -= ops[op].weight;
	}
	return op;
}

/* Between two operations: another thread may ask for a pause. */
static void become_busy(void)
{
	for (;;) {
		set(&self->busy, 1);
		if (!get(&proc->quiet))
			return;
		set(&self->busy, 0);
		sched_yield();
	}
}

static bool time_is_up(void)
{
	return get(&shared->stop) || now_ms() > opt.seconds * 1000 + STOP_MS ||
	       __atomic_sub_fetch(&proc->life, 1, __ATOMIC_SEQ_CST) < 0;
}

/* Returns in a child that it has forked. */
static void work(void)
{
	struct slot *slot = proc->slot;
	enum op op;

	for (;;) {
		become_busy();
		if (time_is_up())
			exit_process();
		op = pick_op();
		set(&slot->thread[self->nr].since, now_ms());
		set(&slot->thread[self->nr].op, op);
		if (ops[op].run())
			return;
		inc(&shared->counts[op]);
		set(&slot->thread[self->nr].op, OP_NONE);
		if (opt.simulate && !rnd(200))
			simulate();
		if (self->nr == proc->main)
			while (reap())
				;
		set(&self->busy, 0);
	}
}

static void run_process(void);

static void *run_thread(void *arg)
{
	self = arg;
	work();
	begin_child();
	run_process();
	return NULL;
}

/* Starts the other threads and is one itself. Never returns. */
static void run_process(void)
{
	pthread_attr_t attr;
	pthread_t thread;
	unsigned int i;

	for (;;) {
		pthread_attr_init(&attr);
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
		pthread_attr_setstacksize(&attr, 256 << 10);
		for (i = 0; i < opt.threads; i++)
			if (i != self->nr &&
			    pthread_create(&thread, &attr, run_thread, &proc->thread[i]))
				give_up();
		pthread_attr_destroy(&attr);
		work();
		begin_child();
	}
}

static void join_cgroup(void)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/cgroup.procs", global.cgroup);
	if (global.cgroup[0] && !write_text(path, "0"))
		give_up();
}

static void handle_signals(void)
{
	static const int sigs[] = { SIGTERM, SIGINT, SIGHUP, SIGQUIT };
	struct sigaction action = { .sa_sigaction = crash, .sa_flags = SA_SIGINFO };
	unsigned int i;

	/* The master's handlers restore the settings: not our business. */
	for (i = 0; i < ARRAY_SIZE(sigs); i++)
		signal(sigs[i], SIG_DFL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

static void __noreturn run_first_process(struct slot *slot, uint32_t uid)
{
	unsigned int i;

	setpgid(0, global.group);
	handle_signals();
	self = &proc->thread[0];
	claim_slot(slot, uid);
	join_cgroup();
	proc->legacy_fd = -1;
	begin_process();
	for (i = 0; i < global.nr_pages; i++) {
		proc->entry[i].loc = i;
		proc->entry[i].to = NOWHERE;
	}
	map_home(0, global.nr_pages);
	run_process();
	_exit(0);
}

/* Master */

static unsigned int nr_live(void)
{
	unsigned int i, nr = 0;

	for (i = 0; i < opt.procs; i++)
		nr += !!get(&shared->slot[i].key);
	return nr;
}

static void start_first_process(void)
{
	struct slot *slot;
	uint32_t uid;
	pid_t pid;

	slot = reserve_slot(0, &uid);
	if (!slot)
		return;
	pid = fork();
	if (!pid)
		run_first_process(slot, uid);
	if (pid < 0)
		free_slot(slot, 2 * uid);
}

static long long read_vmstat(const char *name)
{
	static char text[65536];
	char key[80], *at;
	int fd = open("/proc/vmstat", O_RDONLY);
	ssize_t len = read(fd, text, sizeof(text) - 1);

	close(fd);
	if (len <= 0)
		return -1;
	text[len] = '\0';
	snprintf(key, sizeof(key), "\n%s ", name);
	at = strstr(text, key);
	return at ? strtoll(at + strlen(key), NULL, 10) : -1;
}

static const char * const events[] = {
	"thp_cow_reuse", "thp_cow_adopt", "thp_cow_batch", "thp_cow_copy",
	"thp_fault_alloc", "thp_split_pmd", "thp_split_page", "thp_collapse_alloc",
	"thp_migration_success", "pgmigrate_success", "pswpout", "pswpin",
};

static long long events_before[ARRAY_SIZE(events)];

static void print_progress(void)
{
	char line[1024];
	unsigned int i;
	int len = 0;

	for (i = 0; i < NR_OPS; i++)
		if (ops[i].run && global.have[i])
			len += snprintf(line + len, sizeof(line) - len, " %s %u",
					ops[i].name, get(&shared->counts[i]));
	ksft_print_msg("%u s: %u live of %u, %u wild forks, %u pages checked:%s\n",
		       now_ms() / 1000, nr_live(), get(&shared->uids),
		       get(&shared->wild_forks), get(&shared->checks), line);
	for (i = 0, len = 0; i < ARRAY_SIZE(events); i++) {
		long long now = read_vmstat(events[i]);

		if (now >= 0)
			len += snprintf(line + len, sizeof(line) - len, " %s %lld",
					events[i], now - events_before[i]);
	}
	ksft_print_msg("     %u %% in large folios;%s\n", get(&shared->samples_large) *
		       100 / MAX(get(&shared->samples), 1U), line);
}

/* Which sizes the kernel may choose from changes all the time. */
static void toggle_sizes(void)
{
	unsigned int i;
	char name[64];

	for (i = 0; i < NR_ORDERS; i++) {
		if (!(global.orders & (1UL << i)))
			continue;
		snprintf(name, sizeof(name), "hugepages-%ukB/enabled", (psize() >> 10) << i);
		thp_write_string(name, rnd(3) ? "madvise" : "never");
	}
}

static void print_stuck(const struct slot *slot, unsigned int thread)
{
	char path[64], line[256];
	FILE *file;

	ksft_print_msg("STUCK: process %u (pid %d), thread %u, in %s for %u s\n",
		       get(&slot->key) / 2, get(&slot->pid), thread,
		       ops[get(&slot->thread[thread].op) % NR_OPS].name,
		       (now_ms() - get(&slot->thread[thread].since)) / 1000);
	snprintf(path, sizeof(path), "/proc/%d/stack", get(&slot->pid));
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file))
		ksft_print_msg("  %s", line);
	if (file)
		fclose(file);
}

/* Who has been in one operation for so long? Whatever the others do meanwhile. */
static bool find_stuck(unsigned int ms)
{
	bool found = false;
	unsigned int i, j;

	for (i = 0; i < opt.procs; i++) {
		struct slot *slot = &shared->slot[i];

		for (j = 0; j < opt.threads; j++) {
			uint32_t since = get(&slot->thread[j].since), now = now_ms();

			if (!get(&slot->thread[j].op) || now < since || now - since < ms)
				continue;
			print_stuck(slot, j);
			found = true;
		}
	}
	return found;
}

/* Returns false if something hangs. */
static bool run_processes(unsigned int ms)
{
	uint32_t start = now_ms(), progress = start, toggle = start, now;

	while ((now = now_ms()) - start < ms && !get(&shared->stop)) {
		if (!nr_live() || (nr_live() < opt.procs / 2 && !rnd(50)))
			start_first_process();
		while (reap())
			;
		if (now - toggle > TOGGLE_MS) {
			toggle_sizes();
			toggle = now;
		}
		if (now - progress > PROGRESS_MS) {
			print_progress();
			progress = now;
			if (find_stuck(STUCK_MS))
				return false;
		}
		usleep(20000);
	}
	return true;
}

static void wait_processes(unsigned int ms)
{
	uint32_t start = now_ms();

	while (now_ms() - start < ms && nr_live()) {
		if (!reap())
			usleep(10000);
	}
}

/* Returns false if a process is left. */
static bool kill_processes(unsigned int ms)
{
	uint32_t start = now_ms();

	if (global.group <= 0)
		return true;
	kill(-global.group, SIGKILL);
	while (now_ms() - start < ms) {
		if (reap())
			continue;
		if (waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD) {
			global.group = 0;
			return true;
		}
		usleep(10000);
	}
	return false;
}

/* Returns false if something hangs. */
static bool stop_processes(void)
{
	uint32_t start = now_ms();
	bool hang;

	set(&shared->stop, 1);
	if (!get(&shared->reporter))
		wait_processes(STOP_MS);
	while (get(&shared->reporter) && !get(&shared->report_done) &&
	       now_ms() - start < 10000)
		usleep(10000);
	hang = !get(&shared->reporter) && nr_live();
	if (hang)
		find_stuck(0);
	return kill_processes(KILL_MS) && !hang;
}

static void print_report(void)
{
	char *line = shared->report, *end;

	while ((end = strchr(line, '\n'))) {
		*end = '\0';
		ksft_print_msg("%s\n", line);
		line = end + 1;
	}
	ksft_print_msg("seed %llu, after %u s\n", (unsigned long long)opt.seed,
		       now_ms() / 1000);
}

/* Statistics: what was mapped and is gone must not stay accounted for */

static const char * const anon_names[] = {
	"nr_anon_pages", "nr_anon_transparent_hugepages",
};

/* How far off they may be: others on this machine use memory, too. */
static long long anon_slack(unsigned int i)
{
	return i ? 2 : (4 << 20) / psize();
}

static void refresh_vmstat(void)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_RDONLY);
	char c;

	if (fd < 0) {
		sleep(2);	/* the kernel folds each second */
		return;
	}
	if (read(fd, &c, 1) < 0)
		ksft_print_msg("stat_refresh: %s\n", strerror(errno));
	close(fd);
}

/* Bytes that all our processes have mapped together, or -1 if unknown. */
static long long read_cgroup_anon(void)
{
	long long anon = -1;
	char path[128], line[128];
	FILE *file;

	if (!global.cgroup[0])
		return -1;
	snprintf(path, sizeof(path), "%s/memory.stat", global.cgroup);
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "anon %lld", &anon) == 1)
			break;
	if (file)
		fclose(file);
	return anon;
}

static void measure_anon(long long anon[2])
{
	unsigned int i;

	refresh_vmstat();
	for (i = 0; i < ARRAY_SIZE(anon_names); i++)
		anon[i] = read_vmstat(anon_names[i]);
}

static bool anon_is_back(const long long anon[2])
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(anon_names); i++)
		if (llabs(anon[i] - global.anon[i]) > anon_slack(i))
			return false;
	return true;
}

static void judge_statistics(long long ours, bool back, bool noise)
{
	static const char name[] = "the statistics return to where they were";

	if (ours >= 0)
		ksft_test_result(!ours, "%s\n", name);
	else if (noise && !back)
		ksft_test_result_skip("%s: others use memory, and there is no cgroup\n", name);
	else
		ksft_test_result(back, "%s\n", name);
}

/*
 * Statistics of the machine, and of our cgroup if there are cgroups. Then only those
 * of the cgroup count, as other processes change those of the machine.
 */
static void test_statistics(void)
{
	long long anon[2], ours, least = LLONG_MAX, most = 0;
	unsigned int i, tries = 0;
	bool back;

	do {
		if (tries)
			usleep(500000);
		measure_anon(anon);
		least = MIN(least, anon[0]);
		most = MAX(most, anon[0]);
		back = anon_is_back(anon);
		ours = read_cgroup_anon();
	} while ((!back || ours > 0) && ++tries < 20);
	for (i = 0; i < ARRAY_SIZE(anon_names); i++)
		ksft_print_msg("%s: %lld before, %lld after\n", anon_names[i],
			       global.anon[i], anon[i]);
	if (ours >= 0)
		ksft_print_msg("anon memory of the processes' cgroup: %lld bytes\n", ours);
	judge_statistics(ours, back, most - least > anon_slack(0));
}

/* Set-up */

/* A cgroup for the processes, to see their statistics alone. Optional. */
static void setup_cgroup(void)
{
	char text[256] = "";
	int fd = open(CGROUPFS "/cgroup.subtree_control", O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	close(fd);
	if (!strstr(text, "memory"))
		global.controls = write_text(CGROUPFS "/cgroup.subtree_control", "+memory");
	snprintf(global.cgroup, sizeof(global.cgroup), CGROUPFS "/folio_cow_stress.%d",
		 getpid());
	if (mkdir(global.cgroup, 0755) || read_cgroup_anon() < 0) {
		rmdir(global.cgroup);
		global.cgroup[0] = '\0';
	}
}

/* Restores the settings of the machine, however the test ends. */
static void restore(void)
{
	if (getpid() != global.pid)
		return;
	kill_processes(5000);
	if (global.cgroup[0])
		rmdir(global.cgroup);
	if (global.controls)
		write_text(CGROUPFS "/cgroup.subtree_control", "-memory");
	if (global.mounted)
		umount(DEBUGFS);
}

static void *alloc(size_t size, int flags)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);

	if (mem == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	/* Small pages, whatever becomes of the large ones */
	madvise(mem, size, MADV_NOHUGEPAGE);
	return mem;
}

static void setup_memory(void)
{
	size_t bytes;

	global.block = read_pmd_pagesize();
	if (!global.block || global.block > MAX_PMD_SIZE)
		global.block = 2UL << 20;
	bytes = MIN(MAX((size_t)opt.mib << 20, 2 * global.block), MAX_BLOCKS * global.block);
	global.block_pages = global.block / psize();
	global.nr_pages = bytes / global.block * global.block_pages;
	global.nr_places = 2 * global.nr_pages;
	bytes = (size_t)global.nr_places * psize();
	global.arena = mmap((void *)(uintptr_t)ARENA_ADDRESS, bytes, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
			    MAP_FIXED_NOREPLACE, -1, 0);
	if (global.arena != (void *)(uintptr_t)ARENA_ADDRESS)
		ksft_exit_fail_msg("the address of the arena is taken\n");
	munmap(global.arena, bytes);
	shared = alloc(sizeof(*shared), MAP_SHARED | MAP_NORESERVE);
	proc = alloc(sizeof(*proc) + global.nr_pages * sizeof(struct entry), MAP_PRIVATE);
	proc->used = alloc(global.nr_places - global.nr_pages, MAP_PRIVATE);
	proc->buffers = alloc((size_t)MAX_THREADS * PIN_PAGES * psize(), MAP_PRIVATE);
	self = &proc->thread[0];
	self->rng = opt.seed;
}

static bool has_swap(void)
{
	FILE *swaps = fopen("/proc/swaps", "r");
	unsigned int lines = 0;
	char line[256];

	while (swaps && fgets(line, sizeof(line), swaps))
		lines++;
	if (swaps)
		fclose(swaps);
	return lines > 1;
}

static void setup_ops(void)
{
	unsigned int op;

	if (access(SPLIT_FILE, F_OK))
		global.mounted = !mount("debugfs", DEBUGFS, "debugfs", 0, NULL);
	for (op = 0; op < NR_OPS; op++)
		global.have[op] = ops[op].run;
	global.have[OP_PIN] = !access(GUP_TEST, R_OK | W_OK);
	global.have[OP_SPLIT] = !access(SPLIT_FILE, W_OK);
	global.have[OP_MIGRATE] = !access("/sys/devices/system/node/node1", F_OK);
	global.have[OP_SWAP] = has_swap();
	global.have[OP_CLEAN] = softdirty_supported();
	for (op = 0; op < NR_OPS; op++)
		if (ops[op].run && !global.have[op])
			ksft_print_msg("cannot %s here\n", ops[op].name);
	global.kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
}

/* khugepaged shall be busy, too. */
static void setup_thp(void)
{
	struct thp_settings settings;
	int i;

	thp_save_settings();
	thp_read_settings(&settings);
	settings.thp_enabled = THP_MADVISE;
	settings.thp_defrag = THP_DEFRAG_ALWAYS;
	settings.khugepaged.scan_sleep_millisecs = 100;
	settings.khugepaged.alloc_sleep_millisecs = 100;
	for (i = 0; i < NR_ORDERS; i++)
		settings.hugepages[i].enabled = THP_NEVER;
	global.orders = 1UL << sz2ord(global.block, psize()) | 1UL << 4 | 1UL << 2;
	global.orders &= thp_supported_orders();
	for (i = 0; i < NR_ORDERS; i++)
		if (global.orders & (1UL << i))
			settings.hugepages[i].enabled = THP_MADVISE;
	thp_push_settings(&settings);
}

/* Only waits: meanwhile, no other process gets its process group. */
static void setup_group(void)
{
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	global.group = fork();
	if (!global.group) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setpgid(0, 0);
		for (;;)
			pause();
	}
	if (global.group < 0)
		ksft_exit_fail_perror("fork");
	setpgid(global.group, global.group);
}

static void usage(void)
{
	printf("Usage: folio_cow_stress [options]\n"
	       "Share large folios among processes at random and look for foreign data.\n"
	       "  -t SECONDS       how long (default: %u)\n"
	       "  -p PROCESSES     at most so many at a time (default: %u, at most %u)\n"
	       "  -T THREADS       in each process (default: %u, at most %u)\n"
	       "  -m MIB           memory of each process (default: %u)\n"
	       "  -s SEED          random seed, from an earlier run's output\n"
	       "  --broken         this kernel takes shared folios for exclusive: succeed\n"
	       "                   if that is noticed, within %u s\n"
	       "  --simulate KIND  leak or lost: do that behind a process's back, and\n"
	       "                   succeed if it is noticed\n"
	       "Needs root. Exit status: 0 fine, 1 not, 4 skipped.\n",
	       opt.seconds, opt.procs, MAX_PROCS, opt.threads, MAX_THREADS, opt.mib,
	       BROKEN_SECONDS);
}

static unsigned int parse_number(const char *text, unsigned int max)
{
	char *end;
	unsigned long value = strtoul(text, &end, 0);

	if (*end || !value || value > max) {
		fprintf(stderr, "folio_cow_stress: no number from 1 to %u: %s\n", max, text);
		exit(KSFT_FAIL);
	}
	return value;
}

static enum verdict parse_verdict(const char *name)
{
	if (!strcmp(name, "leak"))
		return LEAK;
	if (!strcmp(name, "lost"))
		return LOST_WRITE;
	fprintf(stderr, "folio_cow_stress: no simulation \"%s\", see -h\n", name);
	exit(KSFT_FAIL);
}

static void parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "broken", no_argument, NULL, 'b' },
		{ "simulate", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	opt.seed = mix(time(NULL) ^ (uint64_t)getpid() << 32) >> 32;
	while ((c = getopt_long(argc, argv, "hm:p:s:t:T:", options, NULL)) != -1) {
		switch (c) {
		case 'm':
			opt.mib = parse_number(optarg, 128);
			break;
		case 'p':
			opt.procs = parse_number(optarg, MAX_PROCS);
			break;
		case 's':
			opt.seed = strtoull(optarg, NULL, 0);
			break;
		case 't':
			opt.seconds = parse_number(optarg, 100000);
			break;
		case 'T':
			opt.threads = parse_number(optarg, MAX_THREADS);
			break;
		case 'b':
			opt.broken = true;
			break;
		case 'S':
			opt.simulate = parse_verdict(optarg);
			break;
		default:
			usage();
			exit(c == 'h' ? KSFT_PASS : KSFT_FAIL);
		}
	}
	if (opt.broken)
		opt.seconds = MIN(opt.seconds, BROKEN_SECONDS);
}

static void setup(void)
{
	struct timespec ts;
	unsigned int i;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	global.start_ms = ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
	global.pid = getpid();
	if (geteuid())
		ksft_exit_skip("needs root\n");
	if (!thp_available())
		ksft_exit_skip("no transparent huge pages\n");
	setup_memory();
	atexit(restore);
	setup_ops();
	ksft_set_plan(opt.broken || opt.simulate ? 2 : 3);
	setup_thp();
	for (i = 0; i < ARRAY_SIZE(events); i++)
		events_before[i] = read_vmstat(events[i]);
	setup_group();
	setup_cgroup();
	measure_anon(global.anon);
}

static void test_corruption(void)
{
	enum verdict verdict = get(&shared->verdict);

	if (verdict)
		print_report();
	if (opt.broken)
		ksft_test_result(verdict == LEAK || verdict == LOST_WRITE,
				 "a kernel that takes shared folios for exclusive is found out\n");
	else if (opt.simulate)
		ksft_test_result(verdict == opt.simulate, "a simulated %s is found out\n",
				 verdicts[opt.simulate]);
	else
		ksft_test_result(!verdict, "every page shows what its process wrote\n");
}

int main(int argc, char **argv)
{
	bool hang;

	parse_options(argc, argv);
	ksft_print_header();
	setup();
	ksft_print_msg("seed %llu; %u s, %u processes with %u threads, %u pages each\n",
		       (unsigned long long)opt.seed, opt.seconds, opt.procs, opt.threads,
		       global.nr_pages);
	hang = !run_processes(opt.seconds * 1000);
	hang |= !stop_processes();
	print_progress();
	if (!get(&shared->verdict) && !hang && get(&shared->kills) < get(&shared->killed))
		ksft_print_msg("%u killed by somebody else: out of memory?\n",
			       get(&shared->killed) - get(&shared->kills));
	if (get(&shared->gave_up))
		ksft_print_msg("%u gave up, for lack of memory\n", get(&shared->gave_up));
	test_corruption();
	ksft_test_result(!hang && !get(&shared->died_badly),
			 "%u processes ended as they should\n", get(&shared->uids));
	if (!opt.broken && !opt.simulate) {
		if (get(&shared->verdict) || hang)
			ksft_test_result_skip("statistics: the test was cut short\n");
		else
			test_statistics();
	}
	ksft_finished();
}
