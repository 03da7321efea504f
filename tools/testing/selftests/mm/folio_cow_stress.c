// SPDX-License-Identifier: GPL-2.0
/*
 * Look for a page of a large anonymous folio that is written although it is shared.
 *
 * A tree of processes, each with a few threads, does at random all that maps, unmaps, moves
 * and references pages, over folios that fork() made them share. Each page contains records
 * of who wrote it and when: one generation for each write, counted for all processes. A
 * model in private memory says which record each page has to contain, and where the page is
 * mapped. fork() copies the model together with the pages, so a child knows what to expect.
 *
 * A page is locked in the model by all that changes its contents or its place. Threads that
 * move or unmap pages, or pin them, wait for fork(); but it can come in the middle of a write
 * of another thread. The child can tell right from wrong, because fork() is a consistent cut:
 * what a thread writes before the parent's TLB is flushed reaches the child; its first write
 * that faults waits for the end of fork(). So the child sees the work of each thread up to
 * one point, and a writer makes sure that the model covers the page at each point:
 *
 *	lock the page		alt = new	write records	cur = new, unlock
 *	page: old		old		old and new	new
 *	model: old		old or new	old or new	new
 *
 * Of pinned pages, fork() makes a copy at once. So all threads of a process with pins wait.
 */
#define _GNU_SOURCE
#include <linux/mempolicy.h>
#include <linux/mman.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <time.h>
#include "../../../../mm/gup_test.h"
#include "kselftest.h"
#include "folio_util.h"

#define GUP_TEST		"/sys/kernel/debug/gup_test"
#define SPLIT_FILE		"/sys/kernel/debug/split_huge_pages"
#define NODE1			"/sys/devices/system/node/node1"
#define MAX_PROCS		32
#define MAX_THREADS		8
#define PIN_PAGES		16
#define SPLICE_PAGES		4
#define HOT_PAGES		32
#define MEMORY			(8UL << 20)	/* of each process, or two PMDs */
#define MAX_PMD_SIZE		(64UL << 20)
/* No mmap() without an address comes near, so that holes stay holes. */
#define ARENA_ADDRESS		(sizeof(long) == 8 ? 1ULL << 36 : 0x60000000ULL)

#define PROGRESS_MS		10000
#define TOGGLE_MS		2000
/* Debug kernels in emulators are slow, and reclaim takes its time. */
#define STOP_MS			60000

#define get(p)			__atomic_load_n(p, __ATOMIC_SEQ_CST)
#define set(p, v)		__atomic_store_n(p, v, __ATOMIC_SEQ_CST)
#define inc(p)			__atomic_add_fetch(p, 1, __ATOMIC_SEQ_CST)
#define cas(p, old, new)	__sync_bool_compare_and_swap(p, old, new)

/* Words of 32 bits, which no machine writes in two steps */
struct record {
	uint32_t gen;
	uint32_t uid;
	uint32_t page;
	uint32_t sum;
};

/* They are written in the order of their places in a page: see settle_write(). */
#define NR_RECORDS	3

enum lock { UNLOCKED, LOCKED, WRITING };

/* The model of one page. Generation 0 is a page of zeroes. */
struct entry {
	uint32_t cur;
	uint32_t cur_uid;
	uint32_t alt;		/* of a write in progress */
	uint32_t alt_uid;
	uint32_t loc;		/* the place in the arena where it is mapped */
	uint32_t drops;		/* a pin from before the last one is detached */
	uint8_t lock;
};

/* Pages that a thread has pinned, or sent into a pipe, which keeps references to them */
struct pin {
	int fd[2];		/* [0] only, of gup_test; or of the pipe */
	unsigned int first;
	unsigned int nr;	/* 0: none */
	uint32_t drops[PIN_PAGES];
	struct record sent[SPLICE_PAGES];
};

/* How much of the process an operation needs for itself, see gate(). */
enum gate { SHARED = 1, MAPPINGS, ALL = MAPPINGS };

struct thread {
	unsigned int nr;
	uint64_t rng;
	uint32_t busy;		/* enum gate */
	struct slot *child_slot;
	struct pin pin;
	struct pin splice;
};

/* Private to each process, and copied for its children */
static struct proc {
	uint32_t uid;
	struct slot *slot;	/* NULL in a new child */
	unsigned int main;	/* the thread that reaps */
	int life;		/* operations left */
	uint32_t fork;		/* enum gate */
	bool pinner;		/* else it keeps no pins */
	uint32_t hot;		/* the page from which on most happens */
	struct thread thread[MAX_THREADS];
	char *buffers;
	struct entry entry[];
} *proc;

static __thread struct thread *self;

/* What all processes can read about another */
struct slot {
	int pid;		/* 0: free, -N: reserved by process N */
	uint32_t wild;		/* it forks while its threads go on */
	uint32_t peeks[MAX_THREADS];	/* 1 + the slot whose pages it pins */
};

#define CLEANING		INT_MIN
#define MAX_OPS			32

static struct shared {
	uint32_t stop;
	int reporter;		/* the first process that finds an error */
	uint32_t gens;
	uint32_t uids;
	uint32_t counts[MAX_OPS];
	uint32_t checks;
	uint32_t wild_forks;
	uint32_t gave_up;
	uint32_t bad_status;	/* of a process that died */
	struct slot slot[MAX_PROCS];
} *shared;

static struct {
	unsigned int seconds;
	unsigned int procs;
	unsigned int threads;
	uint64_t seed;
} opt = { .seconds = 5, .procs = 6, .threads = 2 };

static struct {
	uint64_t start_ms;
	unsigned long block;	/* bytes */
	unsigned int block_pages;
	unsigned int nr_pages;
	unsigned int shift;	/* the annex has each page once more, so far off */
	unsigned long orders;
	bool swap;
	unsigned int weights;
} global;

/* Small things */

static uint32_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000 - global.start_ms;
}

static unsigned int rnd(unsigned int limit)
{
	return random_below(&self->rng, limit);
}

static char *place_addr(uint32_t place)
{
	return (char *)(uintptr_t)ARENA_ADDRESS + (size_t)place * psize();
}

static char *page_addr(unsigned int page)
{
	return place_addr(get(&proc->entry[page].loc));
}

static char *thread_buffer(unsigned int page)
{
	return proc->buffers + ((size_t)self->nr * PIN_PAGES + page) * psize();
}

static void __noreturn end_process(void)
{
	/* Another thread is about to print what is wrong. */
	while (get(&shared->reporter) == getpid())
		pause();
	cas(&proc->slot->pid, getpid(), 0);
	_exit(0);
}

/* End a process that the kernel has refused something for lack of memory. */
static void __noreturn give_up(void)
{
	inc(&shared->gave_up);
	end_process();
}

/* Records */

static uint32_t checksum(const struct record *r, unsigned int nr)
{
	uint64_t x = (uint64_t)r->gen << 32 | r->uid;

	x = random64(&x) ^ (uint64_t)r->page << 8 ^ nr;
	return random64(&x);
}

static struct record record_of(unsigned int page, unsigned int nr, uint32_t gen, uint32_t uid)
{
	struct record r = { };

	if (gen) {
		r = (struct record) { .gen = gen, .uid = uid, .page = page };
		r.sum = checksum(&r, nr);
	}
	return r;
}

/* Records are at the start, in the middle and at the end of a page. */
static struct record *record_at(char *mem, unsigned int nr)
{
	return (void *)(mem + MIN(nr * psize() / 2, psize() - sizeof(struct record)));
}

/* Word by word, in this order */
static void record_copy(struct record *to, const struct record *from)
{
	set(&to->gen, get(&from->gen));
	set(&to->uid, get(&from->uid));
	set(&to->page, get(&from->page));
	set(&to->sum, get(&from->sum));
}

static struct record record_read(char *mem, unsigned int nr)
{
	struct record copy;

	record_copy(&copy, record_at(mem, nr));
	return copy;
}

static bool record_equal(const struct record *a, const struct record *b)
{
	return !memcmp(a, b, sizeof(*a));
}

static void records_write(char *mem, unsigned int page, uint32_t gen, uint32_t uid)
{
	struct record r;
	unsigned int nr;

	for (nr = 0; nr < NR_RECORDS; nr++) {
		r = record_of(page, nr, gen, uid);
		record_copy(record_at(mem, nr), &r);
	}
}

/* The same, but by the kernel, which takes and drops a pin for it. */
static bool records_send(char *mem, unsigned int page, uint32_t gen, uint32_t uid)
{
	struct iovec local[NR_RECORDS], remote[NR_RECORDS];
	struct record records[NR_RECORDS];
	unsigned int nr;

	for (nr = 0; nr < NR_RECORDS; nr++) {
		records[nr] = record_of(page, nr, gen, uid);
		local[nr] = (struct iovec) { &records[nr], sizeof(struct record) };
		remote[nr] = local[nr];
		remote[nr].iov_base = record_at(mem, nr);
	}
	return process_vm_writev(getpid(), local, NR_RECORDS, remote, NR_RECORDS, 0) ==
	       sizeof(records);
}

static void __noreturn corrupt(unsigned int page, unsigned int nr, const char *how,
			       const struct record *want, const struct record *found)
{
	const char *what = found->gen > want->gen ? "LEAK" : "LOST WRITE";
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	static const struct record zeroes;

	if (!record_equal(found, &zeroes) &&
	    (found->page != page || found->sum != checksum(found, nr)))
		what = "GARBAGE";
	/* The first one stops all others, which may find it, too. */
	set(&shared->stop, 1);
	if (!cas(&shared->reporter, 0, getpid()))
		end_process();
	dprintf(STDOUT_FILENO,
		"# %s, %s, at %u ms: process %u (pid %d), page %u (pfn %#lx, at %p), record %u:\n"
		"#   generation %u by process %u expected, generation %u of page %u by %u found\n",
		what, how, now_ms(), proc->uid, getpid(), page,
		pagemap_get_pfn(fd, page_addr(page)), page_addr(page), nr, want->gen, want->uid,
		found->gen, found->page, found->uid);
	cas(&proc->slot->pid, getpid(), 0);
	_exit(0);
}

static void check(char *mem, unsigned int page, uint32_t gen, uint32_t uid,
		  const char *how)
{
	struct record want, found;
	unsigned int nr;

	for (nr = 0; nr < NR_RECORDS; nr++) {
		want = record_of(page, nr, gen, uid);
		found = record_read(mem, nr);
		if (!record_equal(&want, &found))
			corrupt(page, nr, how, &want, &found);
	}
	inc(&shared->checks);
}

/* Pages and ranges of them */

static bool trylock(unsigned int page, enum lock lock)
{
	return cas(&proc->entry[page].lock, UNLOCKED, lock);
}

static void unlock(unsigned int first, unsigned int nr)
{
	for (; nr; nr--, first++)
		set(&proc->entry[first].lock, UNLOCKED);
}

/* Lock what can be locked from @first on, as far as it is mapped in one piece. */
static unsigned int grab(unsigned int first, unsigned int nr)
{
	const struct entry *e = &proc->entry[first];
	unsigned int i;

	for (i = 0; i < nr && trylock(first + i, LOCKED); i++) {
		if (i && get(&e[i].loc) != get(&e[i - 1].loc) + 1) {
			unlock(first + i, 1);
			break;
		}
	}
	return i;
}

/* One page most of the time; also parts, wholes and more of the usual folios. */
static void pick_range(unsigned int *first, unsigned int *nr, unsigned int max)
{
	static const unsigned int sizes[] = { 1, 1, 1, 2, 4, 16, 64, 512 };

	*first = rnd(4) ? get(&proc->hot) + rnd(HOT_PAGES) : rnd(global.nr_pages);
	*nr = sizes[rnd(ARRAY_SIZE(sizes))];
	if (*nr > 4 && !rnd(4))
		*nr = 1 + rnd(*nr);
	else if (rnd(2))
		*first = *first / *nr * *nr;
	*nr = MIN(*nr, MIN(max, global.nr_pages - *first));
}

/* Write and check */

/* To read generation 0 puts zero pages where large folios belong. So, seldom. */
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
	if (!send || !records_send(page_addr(page), page, gen, proc->uid))
		records_write(page_addr(page), page, gen, proc->uid);
	set(&e->cur_uid, proc->uid);
	set(&e->cur, gen);
}

static void write_range(unsigned int first, unsigned int nr, bool send)
{
	unsigned int i, step = rnd(3) ? 1 : 1 + rnd(16);
	bool look = rnd(2);

	for (i = first; i < first + nr && !get(&shared->stop); i += step) {
		if (!trylock(i, WRITING))
			continue;
		if (look)
			check_page(i, "before a write");
		write_page(i, send);
		unlock(i, 1);
	}
}

static void op_write(unsigned int first, unsigned int nr)
{
	write_range(first, nr, false);
}

static void op_send(unsigned int first, unsigned int nr)
{
	write_range(first, nr, true);
}

static void check_range(unsigned int first, unsigned int nr, const char *how)
{
	for (; nr; nr--, first++) {
		if (!trylock(first, LOCKED))
			continue;
		check_page(first, how);
		unlock(first, 1);
	}
}

static void check_hot(const char *how)
{
	check_range(get(&proc->hot), HOT_PAGES, how);
}

static void op_read(unsigned int first, unsigned int nr)
{
	if (rnd(4))
		check_range(first, nr, "read");
	else
		check_hot("read");
}

/* Drop, move, protect. These pages are locked. */

static void forget_pages(unsigned int first, unsigned int nr)
{
	struct entry *e;

	for (e = &proc->entry[first]; e < &proc->entry[first + nr]; e++) {
		e->drops++;
		e->alt = 0;
		e->cur = 0;
	}
}

/* Map new memory at home, instead of what is there. */
static void reset_pages(unsigned int first, unsigned int nr)
{
	const size_t len = (size_t)nr * psize();
	unsigned int i;

	if (mmap(place_addr(first), len, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		give_up();
	madvise(place_addr(first), len, MADV_HUGEPAGE);
	for (i = first; i < first + nr; i++) {
		if (proc->entry[i].loc != i)
			munmap(page_addr(i), psize());
		proc->entry[i].loc = i;
	}
	forget_pages(first, nr);
}

static void drop_pages(unsigned int first, unsigned int nr)
{
	if (madvise(page_addr(first), (size_t)nr * psize(), MADV_DONTNEED))
		give_up();
	forget_pages(first, nr);
}

static void op_drop(unsigned int first, unsigned int nr)
{
	if (rnd(3))
		drop_pages(first, nr);
	else
		reset_pages(first, nr);
}

static void op_protect(unsigned int first, unsigned int nr)
{
	const size_t len = (size_t)nr * psize();
	unsigned int i;

	/* This can make more VMAs than there may be; the change back merges them. */
	mprotect(page_addr(first), len, PROT_READ);
	for (i = 0; i < nr; i++)
		check_page(first + i, "protected");
	if (mprotect(page_addr(first), len, PROT_READ | PROT_WRITE))
		give_up();
}

/* New large folios instead of what all the copies have left of them */
static void op_reset(unsigned int first, unsigned int nr)
{
	unsigned int i, how = rnd(4), tries = 0;

	nr = global.block_pages;
	first = rnd(global.nr_pages / nr) * nr;
	for (i = 0; i < nr; i++) {
		/* All threads lock upwards: no deadlock. */
		while (!trylock(first + i, LOCKED)) {
			if (++tries > 1000) {
				unlock(first, i);
				return;
			}
			sched_yield();
		}
	}
	reset_pages(first, nr);
	for (i = 0; how && i < nr >> (how == 1); i++)
		write_page(first + i, false);
	if (how > 2)
		op_protect(first, 1);	/* from one PMD to PTEs */
	unlock(first, nr);
	set(&proc->hot, first + rnd(nr - HOT_PAGES + 1));
}

/* Home or, seldom, to the annex, so that most pages are at home */
static void op_move(unsigned int first, unsigned int nr)
{
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (rnd(4) ? 0 : MREMAP_DONTUNMAP);
	const bool home = proc->entry[first].loc == first;
	const unsigned int place = home ? first + global.shift : first;
	const size_t len = (size_t)nr * psize();
	char *from = page_addr(first);
	unsigned int i;

	if (home && rnd(8))
		return;
	if (mremap(from, len, len, flags, place_addr(place)) == MAP_FAILED)
		give_up();
	if (flags & MREMAP_DONTUNMAP)
		munmap(from, len);
	for (i = 0; i < nr; i++)
		set(&proc->entry[first + i].loc, place + i);
}

/* References, to locked pages, too */

static void start_pin(struct pin *pin, unsigned int first, unsigned int nr)
{
	struct pin_longterm_test args = {
		.addr = (unsigned long)page_addr(first),
		.size = (size_t)nr * psize(),
		.flags = rnd(4),	/* for write or not, fast or not */
	};

	if (ioctl(pin->fd[0], PIN_LONGTERM_TEST_START, &args)) {
		ioctl(pin->fd[0], PIN_LONGTERM_TEST_STOP);
		return;
	}
	pin->first = first;
	pin->nr = nr;
	while (nr--)
		pin->drops[nr] = proc->entry[first + nr].drops;
}

/* A pinned page stays the one that is mapped: it shows every later write. */
static void check_pin(struct pin *pin)
{
	uint64_t buffer = (unsigned long)thread_buffer(0);
	const struct entry *e;
	bool locked[PIN_PAGES];
	unsigned int i;

	for (i = 0; i < pin->nr; i++)
		locked[i] = trylock(pin->first + i, LOCKED);
	if (ioctl(pin->fd[0], PIN_LONGTERM_TEST_READ, &buffer))
		give_up();
	for (i = 0; i < pin->nr; i++) {
		e = &proc->entry[pin->first + i];
		if (!locked[i])
			continue;
		if (e->drops == pin->drops[i])
			check(thread_buffer(i), pin->first + i, e->cur, e->cur_uid,
			      "through a pin");
		unlock(pin->first + i, 1);
	}
}

static void op_pin(unsigned int first, unsigned int nr)
{
	struct pin *pin = &self->pin;

	if (!proc->pinner)
		return;
	if (!pin->nr) {
		start_pin(pin, first, nr);
		return;
	}
	check_pin(pin);
	if (rnd(2)) {
		ioctl(pin->fd[0], PIN_LONGTERM_TEST_STOP);
		pin->nr = 0;
	}
}

static void close_files(struct pin *s)
{
	close(s->fd[0]);
	close(s->fd[1]);
}

static void open_pipe(struct pin *s)
{
	if (pipe2(s->fd, O_NONBLOCK | O_CLOEXEC))
		give_up();
	s->nr = 0;
}

/* What is there must be as it was sent, or newer and our own. */
static void check_splice(struct pin *s)
{
	const ssize_t len = (ssize_t)s->nr * psize();
	struct record found;
	unsigned int i;

	if (read(s->fd[0], thread_buffer(0), len) != len)
		s->nr = 0;
	for (i = 0; i < s->nr; i++) {
		found = record_read(thread_buffer(i), 0);
		if (!record_equal(&s->sent[i], &found) &&
		    (found.uid != proc->uid || found.gen <= s->sent[i].gen))
			corrupt(s->first + i, 0, "in a pipe", &s->sent[i], &found);
	}
	s->nr = 0;
}

static void op_splice(unsigned int first, unsigned int nr)
{
	struct iovec iov = { page_addr(first), (size_t)nr * psize() };
	struct entry *e = &proc->entry[first];
	struct pin *s = &self->splice;
	unsigned int i;

	if (s->nr) {
		check_splice(s);
		return;
	}
	for (i = 0; i < nr; i++)
		s->sent[i] = record_of(first + i, 0, e[i].cur, e[i].cur_uid);
	if (vmsplice(s->fd[1], &iov, 1, SPLICE_F_NONBLOCK) != (ssize_t)iov.iov_len) {
		/* Part of it may be in there. */
		close_files(s);
		open_pipe(s);
		return;
	}
	s->first = first;
	s->nr = nr;
	/* Only the pipe, and other processes, may now refer to the pages. */
	if (rnd(2))
		drop_pages(first, nr);
}

static struct slot *pick_sibling(void)
{
	struct slot *slot = &shared->slot[rnd(opt.procs)];

	return get(&slot->pid) > 0 ? slot : proc->slot;
}

/* Short-term pins of pages of others, which may be writing or unmapping them */
static void op_peek(unsigned int first, unsigned int nr)
{
	struct iovec from = { rnd(4) ? place_addr(first) : page_addr(first), nr * psize() };
	struct iovec to = { thread_buffer(0), nr * psize() };
	uint32_t *peeks = &proc->slot->peeks[self->nr];
	struct slot *slot = pick_sibling();

	set(peeks, 1 + slot - shared->slot);
	if (!get(&slot->wild))
		process_vm_readv(get(&slot->pid), &to, 1, &from, 1, 0);
	set(peeks, 0);
}

/* What leaves the contents alone: nothing is locked, all may go on meanwhile */

/* Ours or, as likely, another process */
static pid_t pick_pid(void)
{
	pid_t pid = get(&pick_sibling()->pid);

	return rnd(2) && pid > 0 ? pid : getpid();
}

static void op_migrate(unsigned int first, unsigned int nr)
{
	int nodes[64], status[64], node = rnd(2);
	void *pages[64];
	unsigned int i;

	for (i = 0; i < nr; i++) {
		pages[i] = page_addr(first + i);
		nodes[i] = node;
	}
	syscall(__NR_move_pages, pick_pid(), (unsigned long)nr, pages, nodes, status,
		rnd(4) ? MPOL_MF_MOVE_ALL : MPOL_MF_MOVE);
}

static void op_swap(unsigned int first, unsigned int nr)
{
	madvise(page_addr(first), (size_t)nr * psize(), MADV_PAGEOUT);
}

/* No dprintf(): the C library has a list of its files, which fork() finds half changed. */
static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, text, strlen(text)) < 0)
		errno = 0;
	close(fd);
}

/* With swap, to small folios: the kernel warns of other orders in the swap cache. */
static void op_split(unsigned int first, unsigned int nr)
{
	unsigned long addr = (unsigned long)page_addr(first);
	char text[128];

	snprintf(text, sizeof(text), "%d,0x%lx,0x%lx,%d", pick_pid(), addr,
		 addr + nr * psize(), global.swap ? 0 : 2 * rnd(4));
	write_text(SPLIT_FILE, text);
}

static void op_collapse(unsigned int first, unsigned int nr)
{
	madvise(place_addr(first - first % global.block_pages), global.block, MADV_COLLAPSE);
}

/* Soft-dirty: write-protects PTEs of pages that are exclusive and stay so. */
static void op_clean(unsigned int first, unsigned int nr)
{
	write_text("/proc/self/clear_refs", "4");
}

static void op_kill(unsigned int first, unsigned int nr)
{
	pid_t pid = pick_pid();

	if (getpgid(pid) == getpgrp() && !get(&shared->reporter))
		kill(pid, SIGKILL);
}

/* Processes: their slots */

/* The child turns what its parent has reserved into its own. */
static struct slot *reserve_slot(void)
{
	unsigned int i;

	for (i = 0; i < opt.procs; i++)
		if (cas(&shared->slot[i].pid, 0, -getpid()))
			return &shared->slot[i];
	return NULL;
}

static void claim_slot(struct slot *slot, pid_t parent)
{
	if (!cas(&slot->pid, -parent, getpid()))
		_exit(0);
	proc->slot = slot;
	proc->uid = inc(&shared->uids);
}

/* Of killed processes, and of those that were killed before they could fork */
static void free_slots(void)
{
	struct slot *slot;
	int pid;

	for (slot = shared->slot; slot < &shared->slot[opt.procs]; slot++) {
		pid = get(&slot->pid);
		if (!pid || !kill(abs(pid), 0) || !cas(&slot->pid, pid, CLEANING))
			continue;
		memset(slot->peeks, 0, sizeof(slot->peeks));
		slot->wild = 0;
		set(&slot->pid, 0);
	}
}

static void reap(void)
{
	int status;

	while (waitpid(-1, &status, WNOHANG) > 0)
		if (status && status != SIGKILL)
			set(&shared->bad_status, status);
}

/* Processes: what a child does first */

/*
 * A write that fork() came between. Records are written in order: with the last of them, the
 * write is complete; without a word of the first, it had not begun. The child completes
 * anything in between.
 */
static void settle_write(unsigned int page)
{
	struct entry *e = &proc->entry[page];
	struct record old, new, found;
	char *mem = page_addr(page);
	bool began = false;
	unsigned int i;

	for (i = 0; i < NR_RECORDS; i++) {
		old = record_of(page, i, e->cur, e->cur_uid);
		new = record_of(page, i, e->alt, e->alt_uid);
		found = record_read(mem, i);
		if ((found.gen != old.gen && found.gen != new.gen) ||
		    (found.uid != old.uid && found.uid != new.uid) ||
		    (found.page != old.page && found.page != new.page) ||
		    (found.sum != old.sum && found.sum != new.sum))
			corrupt(page, i, "written while forking", &new, &found);
		began |= !record_equal(&found, &old);
	}
	if (began) {
		if (!record_equal(&found, &new))
			records_write(mem, page, e->alt, e->alt_uid);
		e->cur_uid = e->alt_uid;
		e->cur = e->alt;
	}
	check(mem, page, e->cur, e->cur_uid, "after forking while written");
}

/* Common to all processes: the first ones, and those that they fork. */
static void begin_process(void)
{
	static const int lives[] = { 10, 50, 200, 1000 };
	struct thread *t;

	alarm(opt.seconds + 300);	/* a last resort */
	for (t = proc->thread; t < &proc->thread[opt.threads]; t++) {
		t->nr = t - proc->thread;
		t->busy = 0;
		t->rng = opt.seed + ((uint64_t)proc->uid << 32 | t->nr << 16);
		t->pin = (struct pin) { { open(GUP_TEST, O_RDWR | O_CLOEXEC), -1 } };
		open_pipe(&t->splice);
	}
	proc->main = self->nr;
	proc->fork = 0;
	proc->pinner = !rnd(3);
	proc->life = 1 + rnd(lives[rnd(ARRAY_SIZE(lives))]);
}

/* Pins and pipes are the parent's. */
static void begin_child(void)
{
	unsigned int i;

	claim_slot(self->child_slot, getppid());
	for (i = 0; i < opt.threads; i++) {
		close_files(&proc->thread[i].pin);
		close_files(&proc->thread[i].splice);
	}
	for (i = 0; i < global.nr_pages; i++) {
		if (proc->entry[i].lock == WRITING && proc->entry[i].alt != proc->entry[i].cur)
			settle_write(i);
		unlock(i, 1);
	}
	begin_process();
	if (rnd(2))
		check_hot("first look of a child");
}

/* Processes: fork, exit */

/*
 * A thread passes the gate with @busy if fork() with @fork lets it: not to change mappings
 * while there is a fork(), or nothing at all.
 */
static bool gate(uint32_t fork, uint32_t busy)
{
	return !fork || !busy || fork + busy <= 2;
}

static bool others_busy(void)
{
	unsigned int i;

	for (i = 0; i < opt.threads; i++)
		if (i != self->nr && !gate(proc->fork, get(&proc->thread[i].busy)))
			return true;
	return false;
}

static bool someone_peeks(void)
{
	uint32_t me = 1 + proc->slot - shared->slot;
	unsigned int i, j;

	for (i = 0; i < opt.procs; i++)
		for (j = 0; j < opt.threads; j++)
			if (get(&shared->slot[i].peeks[j]) == me)
				return true;
	return false;
}

/* Without pins, fork() may come in the middle of writes of other threads. */
static pid_t do_fork(void)
{
	pid_t pid = -1;

	if (!cas(&proc->fork, 0, ALL))
		return -1;
	if (!proc->pinner && rnd(4)) {
		set(&proc->slot->wild, 1);
		if (!someone_peeks())
			set(&proc->fork, SHARED);
	}
	while (others_busy() && !get(&shared->stop))
		sched_yield();
	if (rnd(2))
		set(&proc->hot, rnd(global.nr_pages - HOT_PAGES + 1));
	if (!get(&shared->stop))
		pid = fork();
	if (pid && proc->fork == SHARED)
		inc(&shared->wild_forks);
	if (pid) {
		set(&proc->slot->wild, 0);
		set(&proc->fork, 0);
	}
	return pid;
}

static void op_child(unsigned int first, unsigned int nr)
{
	pid_t pid;

	self->child_slot = reserve_slot();
	if (!self->child_slot) {
		op_write(first, nr);
		return;
	}
	pid = do_fork();
	if (!pid)
		proc->slot = NULL;
	else if (pid < 0)
		set(&self->child_slot->pid, 0);
	else if (!rnd(4))	/* Parents die early, too. */
		set(&proc->life, rnd(30));
	else if (rnd(2))
		check_hot("after a fork");
}

/* Threads */

static struct op {
	const char *name;
	void (*run)(unsigned int first, unsigned int nr);
	unsigned int weight;
	enum gate gate;
	unsigned int max;	/* pages; 0: as many as are drawn */
	bool lock;		/* these pages */
	const char *needs;
} ops[MAX_OPS] = {
	{ "write", op_write, 300, SHARED },
	{ "send", op_send, 20, MAPPINGS },
	{ "read", op_read, 140, SHARED },
	{ "drop", op_drop, 60, MAPPINGS, 64, true },
	{ "reset", op_reset, 15, MAPPINGS },
	{ "move", op_move, 120, MAPPINGS, 32, true },
	{ "protect", op_protect, 40, MAPPINGS, 4, true },
	{ "fork", op_child, 80, SHARED },
	{ "pin", op_pin, 60, MAPPINGS, PIN_PAGES, true, GUP_TEST },
	{ "splice", op_splice, 60, MAPPINGS, SPLICE_PAGES, true },
	{ "peek", op_peek, 30, SHARED, PIN_PAGES },
	{ "migrate", op_migrate, 8, SHARED, 64, false, NODE1 },
	{ "swap", op_swap, 10, SHARED, 64 },
	{ "split", op_split, 8, SHARED, 64, false, SPLIT_FILE },
	{ "collapse", op_collapse, 10, SHARED },
	{ "clean", op_clean, 5, SHARED },
	{ "kill", op_kill, 2, SHARED },
};

static struct op *pick_op(void)
{
	struct op *op = ops;
	unsigned int at;

	for (at = rnd(global.weights); at >= op->weight; op++)
		at -= op->weight;
	return op;
}

static void pass_gate(enum gate busy)
{
	for (;;) {
		set(&self->busy, busy);
		if (gate(get(&proc->fork), busy))
			return;
		set(&self->busy, 0);
		sched_yield();
	}
}

/* The time, for processes whose master was killed */
static bool time_is_up(void)
{
	return get(&shared->stop) || now_ms() > opt.seconds * 1000 + STOP_MS ||
	       __atomic_sub_fetch(&proc->life, 1, __ATOMIC_SEQ_CST) < 0;
}

/* Return: in a child that this thread has forked. */
static void work(void)
{
	unsigned int first, nr;
	struct op *op;

	while (!time_is_up()) {
		op = pick_op();
		pass_gate(op->gate);
		pick_range(&first, &nr, op->max ?: global.nr_pages);
		if (op->lock)
			nr = grab(first, nr);
		if (nr)
			op->run(first, nr);
		if (!proc->slot)
			return;
		if (op->lock)
			unlock(first, nr);
		set(&self->busy, 0);
		inc(&shared->counts[op - ops]);
		if (self->nr == proc->main)
			reap();
	}
	if (!rnd(4) || get(&shared->stop))
		check_range(0, global.nr_pages, "before exit");
	end_process();
}

/* Also in children that this thread forks: there, it starts the others. */
static void *run_thread(void *thread)
{
	pthread_attr_t attr;
	pthread_t id;
	unsigned int i;

	self = thread;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 256 << 10);
	for (;;) {
		work();
		begin_child();
		for (i = 0; i < opt.threads; i++)
			if (i != self->nr &&
			    pthread_create(&id, &attr, run_thread, &proc->thread[i]))
				give_up();
	}
}

static void __noreturn run_first_process(struct slot *slot)
{
	unsigned int i;

	claim_slot(slot, getppid());
	begin_process();
	global.shift = global.nr_pages + rnd(2) * rnd(global.block_pages);
	for (i = 0; i < global.nr_pages; i++)
		proc->entry[i].loc = i;
	reset_pages(0, global.nr_pages);
	run_thread(self);
	_exit(0);
}

/* Master */

static unsigned int nr_live(void)
{
	unsigned int i, nr = 0;

	reap();
	free_slots();
	for (i = 0; i < opt.procs; i++)
		nr += !!get(&shared->slot[i].pid);
	return nr;
}

static void start_first_process(void)
{
	struct slot *slot = reserve_slot();

	if (slot && !fork())
		run_first_process(slot);
}

static void print_progress(void)
{
	unsigned int i;

	ksft_print_msg("%u s, %u of %u processes, %u pages checked, %u forks while written:",
		       now_ms() / 1000, nr_live(), get(&shared->uids), get(&shared->checks),
		       get(&shared->wild_forks));
	for (i = 0; ops[i].run; i++)
		printf(" %s %u", ops[i].name, get(&shared->counts[i]));
	printf("\n");
	fflush(stdout);
}

/* The kernel chooses from other sizes all the time. */
static void toggle_sizes(unsigned long orders, unsigned int odds)
{
	char name[64];

	for (; orders; orders &= orders - 1) {
		snprintf(name, sizeof(name), "hugepages-%ukB/enabled",
			 (psize() >> 10) << __builtin_ctzl(orders));
		thp_write_string(name, rnd(odds) ? "madvise" : "never");
	}
}

/* Return: false if something hangs. */
static bool run_processes(void)
{
	uint32_t progress = 0, toggle = 0, now;
	unsigned int nr;

	while ((now = now_ms()) < opt.seconds * 1000 && !get(&shared->stop)) {
		nr = nr_live();
		if (!nr || (nr < opt.procs / 2 && !rnd(50)))
			start_first_process();
		if (now - toggle > TOGGLE_MS) {
			toggle_sizes(global.orders, 3);
			toggle = now;
		}
		if (now - progress > PROGRESS_MS) {
			print_progress();
			progress = now;
		}
		usleep(20000);
	}
	set(&shared->stop, 1);
	for (now = now_ms(); nr_live() && now_ms() - now < STOP_MS;)
		usleep(10000);
	for (nr = 0; nr < opt.procs; nr++)
		if (get(&shared->slot[nr].pid) > 0)
			kill(shared->slot[nr].pid, SIGKILL);
	return now_ms() - now < STOP_MS;
}

/* Set-up */

/* Of small pages, whatever becomes of the large ones */
static void *alloc(size_t size, int flags)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);

	if (mem == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	madvise(mem, size, MADV_NOHUGEPAGE);
	return mem;
}

static void setup_memory(void)
{
	size_t len;

	global.block = read_pmd_pagesize();
	if (!global.block || global.block > MAX_PMD_SIZE)
		global.block = 2UL << 20;
	global.block_pages = global.block / psize();
	global.nr_pages = MAX(MEMORY / global.block, 2) * global.block_pages;
	len = (size_t)(2 * global.nr_pages + global.block_pages) * psize();
	if (mmap(place_addr(0), len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
		 MAP_FIXED_NOREPLACE, -1, 0) != place_addr(0))
		ksft_exit_fail_msg("the address of the arena is taken\n");
	munmap(place_addr(0), len);
	shared = alloc(sizeof(*shared), MAP_SHARED);
	proc = alloc(sizeof(*proc) + global.nr_pages * sizeof(struct entry), MAP_PRIVATE);
	proc->buffers = alloc((size_t)MAX_THREADS * PIN_PAGES * psize(), MAP_PRIVATE);
	self = &proc->thread[0];
	self->rng = opt.seed;
}

static void setup_ops(void)
{
	char swaps[4096];
	struct op *op;

	global.swap = read_file("/proc/swaps", swaps, sizeof(swaps)) > 0 &&
		      strchr(swaps, '\n')[1];
	for (op = ops; op->run; op++) {
		if ((op->needs && access(op->needs, F_OK)) ||
		    (op->run == op_swap && !global.swap) ||
		    (op->run == op_clean && !softdirty_supported())) {
			ksft_print_msg("cannot %s here\n", op->name);
			op->weight = 0;
		}
		global.weights += op->weight;
	}
}

/* khugepaged shall be busy, too. */
static void setup_thp(void)
{
	thp_save_settings();
	thp_write_string("enabled", "madvise");
	thp_write_string("defrag", "always");
	thp_write_num("khugepaged/scan_sleep_millisecs", 100);
	thp_write_num("khugepaged/alloc_sleep_millisecs", 100);
	toggle_sizes(thp_supported_orders(), 1);
	global.orders = 1UL << sz2ord(global.block, psize()) | 1UL << 4 | 1UL << 2;
	global.orders &= thp_supported_orders();
	toggle_sizes(global.orders, 100);
}

static void parse_options(int argc, char **argv)
{
	int c;

	opt.seed = time(NULL) ^ getpid() << 16;
	while ((c = getopt(argc, argv, "t:p:T:s:")) != -1) {
		if (c == 't')
			opt.seconds = atoi(optarg);
		else if (c == 'p')
			opt.procs = MIN(atoi(optarg), MAX_PROCS);
		else if (c == 'T')
			opt.threads = MIN(atoi(optarg), MAX_THREADS);
		else if (c == 's')
			opt.seed = strtoull(optarg, NULL, 0);
		else
			ksft_exit_fail_msg("[-t SECONDS] [-p PROCESSES] [-T THREADS] [-s SEED]\n");
	}
}

int main(int argc, char **argv)
{
	bool done;

	parse_options(argc, argv);
	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("needs root\n");
	if (!thp_available())
		ksft_exit_skip("no transparent huge pages\n");
	ksft_set_plan(2);
	global.start_ms = now_ms();
	setup_memory();
	setup_ops();
	setup_thp();
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	ksft_print_msg("seed %llu: %u s, %u processes with %u threads, %u pages each\n",
		       (unsigned long long)opt.seed, opt.seconds, opt.procs, opt.threads,
		       global.nr_pages);
	done = run_processes();
	print_progress();
	ksft_test_result(!shared->reporter, "every page shows what its process wrote\n");
	ksft_test_result(done && !shared->bad_status,
			 "%u processes ended, %u for lack of memory, status %#x\n",
			 shared->uids, shared->gave_up, shared->bad_status);
	ksft_finished();
}
