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
 * A page is locked in the model by all that changes its contents or its place. fork() waits
 * for threads that move or unmap pages, or pin them, but not for those that write. The child
 * can tell right from wrong, because fork() is a consistent cut: what a thread writes before
 * the parent's TLB is flushed reaches the child; its first write that faults waits for the
 * end of fork(). So the child sees the work of each thread up to one point. A write that has
 * begun by then, but not ended, has the page locked: the child writes such a page anew.
 *
 * Of pinned pages, fork() makes a copy at once. So only a part of the processes pin pages, or
 * have others do it, and all threads of these wait for fork().
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
#define PROCS			6
#define PINNERS			2
#define THREADS			2
#define PIN_PAGES		16
#define SPLICE_PAGES		4
#define HOT_PAGES		32
#define MEMORY			(8UL << 20)	/* of each process, or two PMDs */
#define MAX_PMD_SIZE		(64UL << 20)
/* No mmap() without an address comes near, so that holes stay holes. */
#define ARENA_ADDRESS		(sizeof(long) == 8 ? 1ULL << 36 : 0x60000000ULL)
/* Debug kernels in emulators are slow, and reclaim takes its time. */
#define STOP_MS			60000

#define get(p)			__atomic_load_n(p, __ATOMIC_SEQ_CST)
#define set(p, v)		__atomic_store_n(p, v, __ATOMIC_SEQ_CST)
#define add(p, v)		__atomic_add_fetch(p, v, __ATOMIC_SEQ_CST)
#define cas(p, old, new)	__sync_bool_compare_and_swap(p, old, new)

struct record {
	uint32_t gen, uid, page, nr;
};

#define NR_RECORDS	3

/* The model of one page. Generation 0 is a page of zeroes. */
struct entry {
	uint32_t gen;
	uint32_t uid;
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

struct thread {
	unsigned int nr;
	uint64_t rng;
	bool busy;		/* with what fork() waits for */
	struct pin pin, splice;
};

/* Private to each process, and copied for its children */
static struct proc {
	uint32_t uid;
	int *slot;
	unsigned int main;	/* the thread that reaps */
	int life;		/* operations left */
	int forking;
	bool pinner;
	uint32_t hot;		/* the page from which on most happens */
	struct thread thread[THREADS];
	char *buffers;
	struct entry entry[];
} *proc;

static __thread struct thread *self;

#define REPORTED	(-1)

static struct shared {
	bool stop;
	int reporter;		/* the first process that finds an error, then REPORTED */
	uint32_t gens, uids, checks, gave_up;
	int bad_status;		/* of a process that died */
	int slot[PROCS];	/* a pid, 0: free, -N: reserved by process N; pinners first */
} *shared;

static struct {
	unsigned int seconds;
	uint64_t seed;
	uint64_t start_ms;
	unsigned long block;	/* bytes */
	unsigned int block_pages;
	unsigned int nr_pages;
	unsigned int shift;	/* the annex has each page once more, so far off */
	unsigned long orders;
	bool swap;
	unsigned int weights;
} global = { .seconds = 5 };

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
	return proc->buffers + (self->nr * PIN_PAGES + page) * psize();
}

static void __noreturn end_process(void)
{
	/* Another thread is about to print what is wrong. */
	while (get(&shared->reporter) == getpid())
		sched_yield();
	cas(proc->slot, getpid(), 0);
	_exit(0);
}

/* End a process that the kernel has refused something for lack of memory. */
static void __noreturn give_up(void)
{
	add(&shared->gave_up, 1);
	end_process();
}

/* Pages and ranges of them */

static bool trylock(unsigned int page)
{
	return cas(&proc->entry[page].lock, 0, 1);
}

static void unlock(unsigned int first, unsigned int nr)
{
	for (; nr; nr--, first++)
		set(&proc->entry[first].lock, 0);
}

/* Lock what can be locked from @first on, as far as it is mapped in one piece. */
static unsigned int grab(unsigned int first, unsigned int nr)
{
	const struct entry *e = &proc->entry[first];
	unsigned int i;

	for (i = 0; i < nr && trylock(first + i); i++) {
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

/* Records, in locked pages */

/* What a page has to contain there */
static struct record record_of(unsigned int page, unsigned int nr)
{
	const struct entry *e = &proc->entry[page];

	return e->gen ? (struct record) { e->gen, e->uid, page, nr } : (struct record) { };
}

/* Records are at the start, in the middle and at the end of a page. */
static struct record *record_at(char *mem, unsigned int nr)
{
	return (void *)(mem + MIN(nr * psize() / 2, psize() - sizeof(struct record)));
}

static bool record_equal(const struct record *a, const struct record *b)
{
	return !memcmp(a, b, sizeof(*a));
}

static void __noreturn corrupt(unsigned int page, const char *how, const struct record *want,
			       const struct record *found)
{
	const char *what = found->gen > want->gen ? "LEAK" : "LOST WRITE";
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (found->gen && found->page != page)
		what = "GARBAGE";
	/* The first one stops all others, which may find it, too. */
	set(&shared->stop, true);
	if (!cas(&shared->reporter, 0, getpid()))
		end_process();
	dprintf(STDOUT_FILENO,
		"# %s, %s, at %u ms: process %u (pid %d), page %u (pfn %#lx, at %p), record %u:\n"
		"#   generation %u by process %u expected, generation %u of page %u by %u found\n",
		what, how, now_ms(), proc->uid, getpid(), page,
		pagemap_get_pfn(fd, page_addr(page)), page_addr(page), want->nr, want->gen,
		want->uid, found->gen, found->page, found->uid);
	set(&shared->reporter, REPORTED);
	end_process();
}

static void check(char *mem, unsigned int page, const char *how)
{
	struct record want, found;
	unsigned int nr;

	for (nr = 0; nr < NR_RECORDS; nr++) {
		want = record_of(page, nr);
		found = *record_at(mem, nr);
		if (!record_equal(&want, &found))
			corrupt(page, how, &want, &found);
	}
	add(&shared->checks, 1);
}

/* To read generation 0 puts zero pages where large folios belong. So, seldom. */
static void check_page(unsigned int page, const char *how)
{
	if (proc->entry[page].gen || !rnd(16))
		check(page_addr(page), page, how);
}

/* With @send, have the kernel do it, which takes and drops a pin. */
static void write_page(unsigned int page, bool send)
{
	struct iovec local[NR_RECORDS], remote[NR_RECORDS];
	struct record records[NR_RECORDS];
	char *mem = page_addr(page);
	unsigned int nr;

	proc->entry[page].gen = add(&shared->gens, 1);
	proc->entry[page].uid = proc->uid;
	for (nr = 0; nr < NR_RECORDS; nr++) {
		records[nr] = record_of(page, nr);
		local[nr] = (struct iovec) { &records[nr], sizeof(struct record) };
		remote[nr] = (struct iovec) { record_at(mem, nr), sizeof(struct record) };
	}
	if (send && process_vm_writev(getpid(), local, NR_RECORDS, remote, NR_RECORDS, 0) ==
		    sizeof(records))
		return;
	for (nr = 0; nr < NR_RECORDS; nr++)
		*record_at(mem, nr) = records[nr];
}

/* Write and check */

static void write_range(unsigned int first, unsigned int nr, bool send)
{
	unsigned int i, step = rnd(3) ? 1 : 1 + rnd(16);
	bool look = rnd(2);

	for (i = first; i < first + nr && !get(&shared->stop); i += step) {
		if (!trylock(i))
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
		if (!trylock(first))
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
	for (; nr; nr--, first++) {
		proc->entry[first].drops++;
		proc->entry[first].gen = 0;
	}
}

/* Map new memory at home, instead of what is there. */
static void reset_pages(unsigned int first, unsigned int nr)
{
	unsigned int i;

	if (mmap(place_addr(first), nr * psize(), PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		give_up();
	madvise(place_addr(first), nr * psize(), MADV_HUGEPAGE);
	for (i = first; i < first + nr; i++) {
		if (proc->entry[i].loc != i)
			munmap(page_addr(i), psize());
		set(&proc->entry[i].loc, i);
	}
	forget_pages(first, nr);
}

static void drop_pages(unsigned int first, unsigned int nr)
{
	if (madvise(page_addr(first), nr * psize(), MADV_DONTNEED))
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
	unsigned int i;

	/* This can make more VMAs than there may be; the change back merges them. */
	mprotect(page_addr(first), nr * psize(), PROT_READ);
	for (i = 0; i < nr; i++)
		check_page(first + i, "protected");
	if (mprotect(page_addr(first), nr * psize(), PROT_READ | PROT_WRITE))
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
		while (!trylock(first + i)) {
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
	const size_t len = nr * psize();
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

static void open_pipe(struct pin *pin)
{
	if (pipe2(pin->fd, O_NONBLOCK | O_CLOEXEC))
		give_up();
	pin->nr = 0;
}

/*
 * A pinned page stays the one that is mapped: it shows every later write. What is in a pipe
 * must be as it was sent, or newer and our own.
 */
static void check_pin(struct pin *pin)
{
	const bool piped = pin->fd[1] >= 0;
	uint64_t buffer = (unsigned long)thread_buffer(0);
	const ssize_t len = pin->nr * psize();
	const struct record *sent, *found;
	bool locked[PIN_PAGES];
	unsigned int i, page;

	for (i = 0; i < pin->nr; i++)
		locked[i] = trylock(pin->first + i);
	if (piped ? read(pin->fd[0], thread_buffer(0), len) != len :
		    ioctl(pin->fd[0], PIN_LONGTERM_TEST_READ, &buffer))
		give_up();
	for (i = 0; i < pin->nr; i++) {
		if (!locked[i])
			continue;
		page = pin->first + i;
		sent = &pin->sent[i];
		found = record_at(thread_buffer(i), 0);
		if (!piped && proc->entry[page].drops == pin->drops[i])
			check(thread_buffer(i), page, "through a pin");
		if (piped && !record_equal(sent, found) &&
		    (found->page != page || found->uid != proc->uid || found->gen <= sent->gen))
			corrupt(page, "in a pipe", sent, found);
		unlock(page, 1);
	}
}

static void op_pin(unsigned int first, unsigned int nr)
{
	struct pin_longterm_test args = {
		.addr = (unsigned long)page_addr(first),
		.size = nr * psize(),
		.flags = rnd(4),	/* for write or not, fast or not */
	};
	struct pin *pin = &self->pin;
	unsigned int i;

	if (!proc->pinner)
		return;
	if (pin->nr) {
		check_pin(pin);
		if (rnd(2))
			return;
	} else if (!ioctl(pin->fd[0], PIN_LONGTERM_TEST_START, &args)) {
		pin->first = first;
		pin->nr = nr;
		for (i = 0; i < nr; i++)
			pin->drops[i] = proc->entry[first + i].drops;
		return;
	}
	ioctl(pin->fd[0], PIN_LONGTERM_TEST_STOP);
	pin->nr = 0;
}

static void op_splice(unsigned int first, unsigned int nr)
{
	struct iovec iov = { page_addr(first), nr * psize() };
	struct pin *pin = &self->splice;
	unsigned int i;

	if (pin->nr) {
		check_pin(pin);
		pin->nr = 0;
		return;
	}
	for (i = 0; i < nr; i++)
		pin->sent[i] = record_of(first + i, 0);
	if (vmsplice(pin->fd[1], &iov, 1, SPLICE_F_NONBLOCK) != (ssize_t)iov.iov_len) {
		/* Part of it may be in there. */
		close(pin->fd[0]);
		close(pin->fd[1]);
		open_pipe(pin);
		return;
	}
	pin->first = first;
	pin->nr = nr;
	/* Only the pipe, and other processes, may now refer to the pages. */
	if (rnd(2))
		drop_pages(first, nr);
}

/* Short-term pins of pages of others, which may be writing or unmapping them */
static void op_peek(unsigned int first, unsigned int nr)
{
	struct iovec from = { rnd(4) ? place_addr(first) : page_addr(first), nr * psize() };
	struct iovec to = { thread_buffer(0), nr * psize() };
	pid_t pid = get(&shared->slot[rnd(PINNERS)]);

	if (pid > 0)
		process_vm_readv(pid, &to, 1, &from, 1, 0);
}

/* What leaves the contents alone: nothing is locked, all may go on meanwhile */

/* Ours or, as likely, another process */
static pid_t pick_pid(void)
{
	pid_t pid = get(&shared->slot[rnd(PROCS)]);

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
	madvise(page_addr(first), nr * psize(), MADV_PAGEOUT);
}

/* No put(): the C library has a list of its files, which fork() finds half changed. */
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

/* Processes */

static void *run_thread(void *thread);

/* The child turns what its parent has reserved into its own. */
static int *reserve_slot(void)
{
	unsigned int i;

	for (i = 0; i < PROCS; i++)
		if (cas(&shared->slot[i], 0, -getpid()))
			return &shared->slot[i];
	return NULL;
}

static void reap(void)
{
	int status;

	while (waitpid(-1, &status, WNOHANG) > 0)
		if (status && status != SIGKILL)
			set(&shared->bad_status, status);
}

/* What a process does first. The pins and pipes that are open are its parent's. */
static void begin_process(int *slot)
{
	static const int lives[] = { 10, 50, 200, 1000 };
	struct thread *t;
	pthread_t id;
	unsigned int i;

	if (!cas(slot, -getppid(), getpid()))
		_exit(0);
	syscall(__NR_close_range, STDERR_FILENO + 1, ~0U, 0);
	alarm(global.seconds + 300);	/* a last resort */
	proc->slot = slot;
	proc->uid = add(&shared->uids, 1);
	proc->pinner = slot < &shared->slot[PINNERS];
	proc->main = self->nr;
	proc->forking = 0;
	for (t = proc->thread; t < &proc->thread[THREADS]; t++) {
		t->nr = t - proc->thread;
		t->busy = false;
		t->rng = global.seed + ((uint64_t)proc->uid << 32 | t->nr << 16);
		t->pin = (struct pin) { { open(GUP_TEST, O_RDWR | O_CLOEXEC), -1 } };
		open_pipe(&t->splice);
	}
	proc->life = 1 + rnd(lives[rnd(ARRAY_SIZE(lives))]);
	for (i = 0; i < global.nr_pages; i++) {
		if (proc->entry[i].lock)
			write_page(i, false);
		unlock(i, 1);
	}
	if (rnd(2))
		check_hot("first look of a child");
	for (t = proc->thread; t < &proc->thread[THREADS]; t++)
		if (t != self && pthread_create(&id, NULL, run_thread, t))
			give_up();
}

static bool others_busy(void)
{
	struct thread *t;

	for (t = proc->thread; t < &proc->thread[THREADS]; t++)
		if (t != self && get(&t->busy))
			return true;
	return false;
}

static void op_child(unsigned int first, unsigned int nr)
{
	int *slot = reserve_slot();
	pid_t pid = -1;

	if (!slot || !cas(&proc->forking, 0, 1)) {
		if (slot)
			set(slot, 0);
		op_write(first, nr);
		return;
	}
	while (others_busy() && !get(&shared->stop))
		sched_yield();
	if (rnd(2))
		set(&proc->hot, rnd(global.nr_pages - HOT_PAGES + 1));
	if (!get(&shared->stop))
		pid = fork();
	if (!pid) {
		begin_process(slot);
		return;
	}
	set(&proc->forking, 0);
	if (pid < 0)
		set(slot, 0);
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
	bool gate;		/* fork() waits for it */
	unsigned int max;	/* pages; 0: as many as are drawn */
	bool lock;		/* these pages */
	const char *needs;
} ops[] = {
	{ "write", op_write, 300 },
	{ "send", op_send, 20, true },
	{ "read", op_read, 140 },
	{ "drop", op_drop, 60, true, 64, true },
	{ "reset", op_reset, 15, true },
	{ "move", op_move, 120, true, 32, true },
	{ "protect", op_protect, 40, true, 4, true },
	{ "fork", op_child, 80 },
	{ "pin", op_pin, 60, true, PIN_PAGES, true, GUP_TEST },
	{ "splice", op_splice, 60, true, SPLICE_PAGES, true },
	{ "peek", op_peek, 30, false, PIN_PAGES },
	{ "migrate", op_migrate, 8, false, 64, false, NODE1 },
	{ "swap", op_swap, 10, false, 64 },
	{ "split", op_split, 8, false, 64, false, SPLIT_FILE },
	{ "collapse", op_collapse, 10 },
	{ "clean", op_clean, 5 },
	{ "kill", op_kill, 2 },
};

static struct op *pick_op(void)
{
	struct op *op = ops;
	unsigned int at;

	for (at = rnd(global.weights); at >= op->weight; op++)
		at -= op->weight;
	return op;
}

static void pass_gate(void)
{
	set(&self->busy, true);
	while (get(&proc->forking)) {
		set(&self->busy, false);
		sched_yield();
		set(&self->busy, true);
	}
}

/* It goes on in the children that it forks. */
static void *run_thread(void *thread)
{
	unsigned int first, nr;
	struct op *op;

	self = thread;
	/* The time, for processes whose master was killed */
	while (!get(&shared->stop) && now_ms() < global.seconds * 1000 + STOP_MS &&
	       add(&proc->life, -1) >= 0) {
		op = pick_op();
		if (op->gate || proc->pinner)
			pass_gate();
		pick_range(&first, &nr, op->max ?: global.nr_pages);
		if (op->lock)
			nr = grab(first, nr);
		if (nr)
			op->run(first, nr);
		if (op->lock)
			unlock(first, nr);
		set(&self->busy, false);
		if (self->nr == proc->main)
			reap();
	}
	if (!rnd(4) || get(&shared->stop))
		check_range(0, global.nr_pages, "before exit");
	end_process();
}

/* Master */

/* Frees the slots of killed processes, and of those whose parent was killed before fork(). */
static unsigned int nr_live(void)
{
	unsigned int i, nr = 0;
	int pid;

	reap();
	for (i = 0; i < PROCS; i++) {
		pid = get(&shared->slot[i]);
		if (pid && kill(abs(pid), 0))
			cas(&shared->slot[i], pid, 0);
		nr += !!get(&shared->slot[i]);
	}
	return nr;
}

static void start_first_process(void)
{
	int *slot = reserve_slot();

	global.shift = global.nr_pages + rnd(2) * rnd(global.block_pages);
	if (slot && !fork()) {
		begin_process(slot);
		run_thread(self);
	}
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
	unsigned int nr, round;
	uint32_t end;

	for (round = 1; now_ms() < global.seconds * 1000 && !get(&shared->stop); round++) {
		nr = nr_live();
		if (!nr || (nr < PROCS / 2 && !rnd(50)))
			start_first_process();
		if (round % 100 == 0)
			toggle_sizes(global.orders, 3);
		if (round % 500 == 0)
			ksft_print_msg("%u s, %u of %u processes, %u pages checked\n",
				       now_ms() / 1000, nr, get(&shared->uids),
				       get(&shared->checks));
		usleep(20000);
	}
	set(&shared->stop, true);
	end = now_ms() + STOP_MS;
	while (nr_live() && now_ms() < end)
		usleep(10000);
	for (nr = 0; nr < PROCS; nr++)
		if (get(&shared->slot[nr]) > 0)
			kill(shared->slot[nr], SIGKILL);
	return now_ms() < end;
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
	unsigned int i;
	size_t len;

	global.block = read_pmd_pagesize();
	if (!global.block || global.block > MAX_PMD_SIZE)
		global.block = 2UL << 20;
	global.block_pages = global.block / psize();
	global.nr_pages = MAX(MEMORY / global.block, 2) * global.block_pages;
	len = (2 * global.nr_pages + global.block_pages) * psize();
	if (mmap(place_addr(0), len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
		 MAP_FIXED_NOREPLACE, -1, 0) != place_addr(0))
		ksft_exit_fail_msg("the address of the arena is taken\n");
	munmap(place_addr(0), len);
	shared = alloc(sizeof(*shared), MAP_SHARED);
	proc = alloc(sizeof(*proc) + global.nr_pages * sizeof(struct entry), MAP_PRIVATE);
	proc->buffers = alloc(THREADS * PIN_PAGES * psize(), MAP_PRIVATE);
	for (i = 0; i < global.nr_pages; i++)
		proc->entry[i].loc = i;
	reset_pages(0, global.nr_pages);
	self = &proc->thread[0];
	self->rng = global.seed;
}

static void setup_ops(void)
{
	char swaps[4096];
	struct op *op;

	global.swap = read_file("/proc/swaps", swaps, sizeof(swaps)) > 0 && strchr(swaps, '\n')[1];
	for (op = ops; op < &ops[ARRAY_SIZE(ops)]; op++) {
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

int main(int argc, char **argv)
{
	bool done;
	int c;

	global.seed = time(NULL) ^ getpid() << 16;
	while ((c = getopt(argc, argv, "t:s:")) != -1) {
		if (c == 't')
			global.seconds = atoi(optarg);
		else if (c == 's')
			global.seed = strtoull(optarg, NULL, 0);
		else
			ksft_exit_fail_msg("[-t SECONDS] [-s SEED]\n");
	}
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
		       (unsigned long long)global.seed, global.seconds, PROCS, THREADS,
		       global.nr_pages);
	done = run_processes();
	ksft_test_result(!shared->reporter, "every page shows what its process wrote (%u looks)\n",
			 shared->checks);
	ksft_test_result(done && !shared->bad_status,
			 "%u processes ended, %u for lack of memory, status %#x\n",
			 shared->uids, shared->gave_up, shared->bad_status);
	ksft_finished();
}
