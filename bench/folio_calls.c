// SPDX-License-Identifier: GPL-2.0
/*
 * The operations that linux-mm measures changes of the rmap with, under their names, on
 * memory that consists of folios of one size. As root, on a kernel with THPs.
 *
 *	folio_calls [-m MIB] [-r ROUNDS] [-s KIB]... [-o OPERATION]... [-p N] [-t N]
 *		    [-k] [-x PROGRAM] [-j COMMAND]
 *
 * -s and -o select. -k leaves out what takes many page faults or system calls: on User
 * Mode Linux the host takes most of their time. -p, -t: processes, threads that do an
 * operation of will-it-scale or vm-scalability at once (1, 1; 0 leaves them out).
 * PROGRAM is run as it is, COMMAND by a shell.
 *
 * Each line, tab-separated: "calls", operation, KiB of a folio, pte or pmd, tasks (2p:
 * two processes, 2t: two threads), the ns of the shortest round, faults of user space,
 * and "ok" or "mixed": the kernel did not give folios of that size alone.
 *
 * From pte-mapped-folio-benchmarks: munmap, fork, fork-fork (of the child), remap (one
 * mprotect() in each PMD), pte-dontneed (page by page), cow-byte (the child lives),
 * reuse-byte (it has exited), child-reuse-byte (the parent has unmapped). From
 * will-it-scale: page_fault1 to 3, fork1 and mmap1, for a fixed number of iterations.
 * From vm-scalability: anon-cow-seq and -rand, with one write for each page; -mt are
 * threads of one child. The other operations are ours.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB		(1024 * 1024UL)
#define PAGE		4096UL
#define PMD		(2 * MIB)
#define MAX_TASKS	256
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define THP		"/sys/kernel/mm/transparent_hugepage/hugepages-%lukB/"

static const struct layout {
	unsigned long kib;
	bool pmd;
} layouts[] = {
	{ 4, false }, { 16, false }, { 32, false }, { 64, false }, { 128, false },
	{ 256, false }, { 512, false }, { 1024, false }, { 2048, false }, { 2048, true },
};

static size_t bytes = 64 * MIB;

/* What a round measures. Its processes inherit this, and the memory. */
static const struct layout *layout;
static size_t folio_size;
static int nr_tasks;
static bool threads;
static void (*action)(void);
static volatile char *memory;
static int file = -1;

/* What they tell the main process. */
static struct {
	uint64_t ns;
	long faults;
	bool mixed;
	pthread_barrier_t barrier;
	struct task {
		uint64_t begin, end;
		long faults;
	} tasks[MAX_TASKS];
} *shared;

static void check(bool ok, const char *what)
{
	if (!ok)
		err(1, "error: %s, folios of %lu KiB", what, layout ? layout->kib : 0);
}

/* --- memory ---------------------------------------------------------------- */

static bool write_file(const char *path, const char *value)
{
	const int fd = open(path, O_WRONLY);
	const bool ok = fd >= 0 && write(fd, value, strlen(value)) > 0;

	close(fd);
	return ok;
}

/* From now on, new memory consists of folios of that size. */
static void choose_folios(unsigned long kib)
{
	static const char *const names[] = { "enabled", "shmem_enabled" };
	unsigned long size;
	char path[256];
	size_t i;

	for (size = 8; size <= 2048; size *= 2) {
		for (i = 0; i < ARRAY_SIZE(names); i++) {
			snprintf(path, sizeof(path), THP "%s", size, names[i]);
			/* There are no anonymous folios of 8 KiB. */
			check(write_file(path, size == kib ? "always" : "never") || size != kib,
			      path);
		}
	}
	usleep(100000);	/* khugepaged may look what there is, and then sleeps */
}

/* How many folios of that size have been allocated so far. */
static long read_stat(const char *name)
{
	char path[256], value[32] = "";
	int fd;

	snprintf(path, sizeof(path), THP "stats/%s", layout->kib, name);
	fd = open(path, O_RDONLY);
	if (read(fd, value, sizeof(value) - 1) > 0)
		close(fd);
	return atol(value);
}

static void expect_folios(const char *name, long before)
{
	if (layout->kib > 4 && read_stat(name) - before < (long)(bytes / folio_size))
		shared->mixed = true;
}

static void *map(void *at, size_t size, int prot, int flags)
{
	void *mem = mmap(at, size, prot, flags | (file < 0 ? MAP_ANONYMOUS : 0), file, 0);

	check(mem != MAP_FAILED, "mmap");
	return mem;
}

static char *align_pmd(char *mem) { return (char *)(((uintptr_t)mem + PMD - 1) & ~(PMD - 1)); }

/* Where a PMD could map the beginning. What is around it is not mapped. */
static char *reserve(void)
{
	const size_t size = bytes + 2 * PMD;
	char *raw = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(raw != MAP_FAILED, "mmap");
	munmap(raw, size);
	return align_pmd(raw);
}

static void *page(size_t i) { return (char *)memory + i; }

/* One byte every @step bytes, in the first @part bytes of each @unit */
static void touch_parts(volatile char *mem, size_t step, size_t part, size_t unit)
{
	size_t i;

	for (i = 0; i < bytes; i += step)
		if (i % unit < part)
			mem[i] = 1;
}

static void touch(size_t step) { touch_parts(memory, step, bytes, bytes); }

static void look(void)
{
	size_t i;

	for (i = 0; i < bytes; i += PAGE)
		(void)memory[i];
}

/* Have PTEs map what PMDs do: no PMD can have two protections. */
static void split_pmds(void)
{
	size_t i;

	for (i = 0; i < bytes; i += PMD)
		check(!mprotect(page(i), PAGE, PROT_READ), "mprotect");
}

/* --- processes of a round -------------------------------------------------- */

/* No one writes to it: its readers wait until all others have exited. */
static int life[2];

static void wait_for_close(const int fd[2])
{
	char c;

	close(fd[1]);
	while (read(fd[0], &c, 1) > 0)
		;
}

static void new_pipe(int fd[2]) { check(!pipe(fd), "pipe"); }

static pid_t new_process(void)
{
	const pid_t pid = fork();

	check(pid >= 0, "fork");
	return pid;
}

/* A process that only has memory mapped. */
static void idle(void)
{
	wait_for_close(life);
	_exit(0);
}

static void wait_for(pid_t pid)
{
	int status;

	check(waitpid(pid, &status, 0) == pid && !status, "a child failed");
}

static void fork_and_exit(void)
{
	const pid_t pid = new_process();

	if (!pid)
		_exit(0);
	wait_for(pid);
}

static void *run_task(void *task)
{
	struct task *t = task;
	struct rusage before, after;
	struct timespec begin, end;

	pthread_barrier_wait(&shared->barrier);
	getrusage(RUSAGE_THREAD, &before);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	action();
	clock_gettime(CLOCK_MONOTONIC, &end);
	getrusage(RUSAGE_THREAD, &after);
	t->begin = begin.tv_sec * 1000000000ULL + begin.tv_nsec;
	t->end = end.tv_sec * 1000000000ULL + end.tv_nsec;
	t->faults = after.ru_minflt - before.ru_minflt;
	return NULL;
}

/* From the start of the first task to the end of the last */
static void run_tasks(void)
{
	uint64_t begin = UINT64_MAX, end = 0;
	pthread_t thread[MAX_TASKS];
	pid_t pid[MAX_TASKS];
	struct task *t;
	int i;

	for (i = 0; i < nr_tasks; i++) {
		t = &shared->tasks[i];
		if (nr_tasks == 1) {
			run_task(t);
		} else if (threads) {
			check(!pthread_create(&thread[i], NULL, run_task, t), "pthread_create");
		} else {
			pid[i] = new_process();
			if (!pid[i]) {
				run_task(t);
				_exit(0);
			}
		}
	}
	for (i = 0; i < nr_tasks; i++) {
		if (nr_tasks > 1 && threads)
			pthread_join(thread[i], NULL);
		else if (nr_tasks > 1)
			wait_for(pid[i]);
		t = &shared->tasks[i];
		begin = t->begin < begin ? t->begin : begin;
		end = t->end > end ? t->end : end;
		shared->faults += t->faults;
	}
	shared->ns = end - begin;
}

/* --- what is there before: returns in the process that is measured ----------- */

static void nothing(void) { }

static void populate(void)
{
	const long before = read_stat("anon_fault_alloc");

	memory = map(reserve(), bytes, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_FIXED_NOREPLACE);
	touch(PAGE);
	expect_folios("anon_fault_alloc", before);
	if (layout->kib == 2048 && !layout->pmd) {
		split_pmds();
		check(!mprotect(page(0), bytes, PROT_READ | PROT_WRITE), "mprotect");
	}
}

static void child_lives(void)
{
	populate();
	if (!new_process())
		idle();
	usleep(2000);	/* until it sleeps */
}

static void child_exited(void) { populate(); fork_and_exit(); }

static void in_child(void)
{
	populate();
	if (new_process())
		idle();
	usleep(2000);
}

static void parent_unmapped(void)
{
	int unmapped[2];

	populate();
	new_pipe(unmapped);
	if (new_process()) {
		munmap(page(0), bytes);
		close(unmapped[1]);
		idle();
	}
	wait_for_close(unmapped);
}

/* Continue in a child whose parent, the creator of the folios, has exited. */
static void outlive_creator(void)
{
	int creator[2];

	new_pipe(creator);
	if (new_process())
		_exit(0);
	wait_for_close(creator);
}

static void new_file(void)
{
	const long before = read_stat("shmem_alloc");

	file = memfd_create("folio_calls", 0);
	check(file >= 0 && !ftruncate(file, bytes), "memfd_create");
	memory = map(reserve(), bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE);
	touch(PAGE);
	expect_folios("shmem_alloc", before);
	munmap(page(0), bytes);
}

/* A PMD does not fit where the file begins at 64 KiB. */
static void map_file(void)
{
	new_file();
	memory = map(reserve() + (layout->pmd ? 0 : 16 * PAGE), bytes, PROT_READ,
		     MAP_SHARED | MAP_FIXED_NOREPLACE);
}

/* Twice before: zap_pte_range() need not activate the folios any more. */
static void map_and_look(void)
{
	int i;

	map_file();
	for (i = 0; i < 2; i++) {
		look();
		madvise(page(0), bytes, MADV_DONTNEED);
	}
	look();
}

/*
 * Two children of a creator that has exited map every other page of the first @span
 * bytes of each folio. Only the page table can tell each child that it is not the only
 * one; 3/4 of the folio's range are read where @span is half of it.
 */
static void share(size_t span)
{
	int ready[2];
	size_t i, mine;

	populate();
	new_pipe(ready);
	mine = !new_process();
	if (!mine)
		outlive_creator();
	for (i = 0; i < bytes; i += PAGE)
		if (i % folio_size >= span || i / PAGE % 2 != mine)
			madvise(page(i), PAGE, MADV_DONTNEED);
	if (mine) {
		close(ready[0]);
		close(ready[1]);
		idle();
	}
	wait_for_close(ready);
}

static void share_alternate(void) { share(folio_size); }
static void share_sparse(void) { share(folio_size / 2); }
static void drop_slab(void) { write_file("/proc/sys/vm/drop_caches", "2"); }
static void share_sparse_after_drop(void) { drop_slab(); share_sparse(); }

static void move_to(char *to)
{
	memory = mremap(page(0), bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	check(memory != MAP_FAILED, "mremap");
}

/* Each folio is exclusive, but in two page tables: 32 pages at the beginning of its part. */
static void two_tables(void)
{
	size_t i;

	populate();
	outlive_creator();
	for (i = 0; i < bytes; i += MIB)
		madvise(page(i + 32 * PAGE), MIB - 32 * PAGE, MADV_DONTNEED);
	move_to(reserve() + MIB);
}

/* --- what is timed ----------------------------------------------------------- */

static void unmap(void) { munmap(page(0), bytes); }

static void fork_alone(void)
{
	if (!new_process())
		idle();
}

static void dontneed(void) { madvise(page(0), bytes, MADV_DONTNEED); }

static void dontneed_each(void)
{
	size_t i;

	for (i = 0; i < bytes; i += PAGE)
		madvise(page(i), PAGE, MADV_DONTNEED);
}

static void cold(void) { madvise(page(0), bytes, MADV_COLD); }

/* Not a whole page table at once */
static void move(void) { move_to(reserve() + (layout->pmd ? 0 : MIB)); }
static void touch_all(void) { touch(PAGE); }
static void touch_one(void) { touch(folio_size); }
static void touch_eighth(void) { touch(folio_size < 8 * PAGE ? PAGE : folio_size / 8); }

/* All pages, in an order without neighbours: 7919 is a prime. */
static void touch_random(void)
{
	size_t i;

	for (i = 0; i < bytes / PAGE; i++)
		memory[i * 7919 % (bytes / PAGE) * PAGE] = 1;
}

/* What share_sparse() and two_tables() have kept */
static void touch_sparse(void) { touch_parts(memory, 2 * PAGE, folio_size / 2, folio_size); }
static void touch_tables(void) { touch_parts(memory, PAGE, 32 * PAGE, MIB); }

/* The kernel writes to one page of each folio, and may make a whole page table writable. */
static void touch_kernel(void)
{
	const int fd = open("/dev/zero", O_RDONLY);
	size_t i;

	for (i = 0; i < bytes; i += folio_size)
		check(read(fd, page(i), 1) == 1, "/dev/zero");
	close(fd);
}

static void one_kernel(void) { child_exited(); touch_kernel(); }

static void read_smaps(void)
{
	const int fd = open("/proc/self/smaps_rollup", O_RDONLY);
	char buffer[4096];

	while (read(fd, buffer, sizeof(buffer)) > 0)
		;
	close(fd);
}

static void read_pagemap(void)
{
	const int fd = open("/proc/self/pagemap", O_RDONLY);
	const off_t first = (uintptr_t)memory / PAGE;
	uint64_t entry;
	size_t i;

	for (i = 0; i < bytes / PAGE; i++)
		check(pread(fd, &entry, 8, (first + i) * 8) == 8, "pagemap");
	close(fd);
}

static void map_and_touch(int flags)
{
	const size_t size = bytes + (file < 0 ? PMD : 0);
	char *mem = map(NULL, size, PROT_READ | PROT_WRITE, flags);

	touch_parts(file < 0 ? align_pmd(mem) : mem, PAGE, bytes, bytes);
	munmap(mem, size);
}

static void fault_private(void) { map_and_touch(MAP_PRIVATE); }
static void fault_shared(void) { map_and_touch(MAP_SHARED); }

static void fork1(void)
{
	int i;

	for (i = 0; i < 50; i++)
		fork_and_exit();
}

static void mmap1(void)
{
	int i;

	for (i = 0; i < 500; i++)
		munmap(map(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE), bytes);
}

static void run(char *const args[])
{
	const pid_t pid = new_process();

	if (!pid) {
		execv(args[0], args);
		_exit(1);
	}
	wait_for(pid);
}

static char *program[] = { NULL, NULL };
static char *job[] = { "/bin/sh", "-c", NULL, NULL };

/* A program that ends at once, and a job: both with the text of shared libraries */
static void exec_program(void) { run(program); }
static void exec_job(void) { run(job); }

/* --- all of them ------------------------------------------------------------- */

enum {
	SMALL = 1, LARGE = 2, PTE_2M = 4, PMD_2M = 8,	/* layouts that it is for */
	PARTS = LARGE | PTE_2M,
	PTES = SMALL | PARTS,
	ALL = PTES | PMD_2M,
	FAULTED = SMALL | LARGE | PMD_2M,
	PROCESSES = 16, THREADS = 32,			/* as many as -p and -t say */
	TASKS = PROCESSES | THREADS,
	FAULTS = 64,					/* or system calls: many */
};

static const struct op {
	const char *name;
	void (*before)(void);
	void (*action)(void);
	unsigned int flags;
} ops[] = {
	{ "munmap", populate, unmap, ALL },
	{ "fork", populate, fork_alone, ALL },
	{ "fork-fork", in_child, fork_alone, ALL },
	{ "remap", populate, split_pmds, PMD_2M },
	{ "pte-dontneed", populate, dontneed_each, PTES | FAULTS },
	{ "cow-byte", child_lives, touch_all, ALL | FAULTS },
	{ "reuse-byte", child_exited, touch_all, ALL | FAULTS },
	{ "child-reuse-byte", parent_unmapped, touch_all, ALL | FAULTS },
	{ "page_fault1", nothing, fault_private, FAULTED | TASKS | FAULTS },
	{ "page_fault2", new_file, fault_private, PTES | TASKS | FAULTS },
	{ "page_fault3", new_file, fault_shared, FAULTED | TASKS | FAULTS },
	{ "fork1", nothing, fork1, SMALL | TASKS },
	{ "mmap1", nothing, mmap1, SMALL | TASKS },
	{ "anon-cow-seq", in_child, touch_all, ALL | PROCESSES | FAULTS },
	{ "anon-cow-rand", in_child, touch_random, ALL | PROCESSES | FAULTS },
	{ "anon-cow-seq-mt", in_child, touch_all, ALL | THREADS | FAULTS },
	{ "anon-cow-rand-mt", in_child, touch_random, ALL | THREADS | FAULTS },
	{ "dontneed", populate, dontneed, ALL },
	{ "munmap-child", in_child, unmap, ALL },
	{ "mremap", populate, move, ALL },
	{ "smaps_rollup", populate, read_smaps, ALL },
	{ "fault-around", map_file, look, ALL | FAULTS },
	{ "munmap-file", map_and_look, unmap, ALL },
	{ "reuse-one", child_exited, touch_one, PARTS | FAULTS },
	{ "reuse-eighth", child_exited, touch_eighth, PARTS | FAULTS },
	{ "reuse-one-kernel", child_exited, touch_kernel, PARTS | FAULTS },
	{ "fork-after-one-kernel", one_kernel, fork_alone, PARTS },
	{ "cow-vain-shared", share_sparse, touch_sparse, PARTS | FAULTS },
	{ "cow-vain-tables", two_tables, touch_tables, PTE_2M | FAULTS },
	{ "cold-alternate", share_alternate, cold, PTE_2M },
	{ "cold-sparse", share_sparse, cold, PTE_2M },
	{ "smaps_rollup-sparse", share_sparse, read_smaps, PTE_2M },
	{ "pagemap-sparse", share_sparse, read_pagemap, PTE_2M },
	{ "shrink-sparse", share_sparse_after_drop, drop_slab, PTE_2M },
	{ "exec", nothing, exec_program, SMALL },
	{ "job", nothing, exec_job, SMALL },
};

static int rounds = 5, processes = 1, nr_threads = 1;
static bool with_faults = true;

/* Each round is a process of its own. The main one reaps all descendants of these. */
static void measure(const struct op *op, int tasks, bool of_threads)
{
	uint64_t least = UINT64_MAX;
	pthread_barrierattr_t attr;
	char label[16] = "1";
	int i, status;

	if (!tasks)
		return;
	nr_tasks = tasks;
	threads = of_threads;
	action = op->action;
	pthread_barrierattr_init(&attr);
	pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&shared->barrier, &attr, tasks);
	if (op->flags & TASKS)
		snprintf(label, sizeof(label), "%d%c", tasks, threads ? 't' : 'p');
	shared->mixed = false;
	for (i = 0; i < rounds; i++) {
		shared->ns = 0;
		shared->faults = 0;
		if (!new_process()) {
			new_pipe(life);
			op->before();
			run_tasks();
			_exit(0);
		}
		while (wait(&status) > 0)
			check(!status, op->name);
		check(shared->ns, op->name);
		least = shared->ns < least ? shared->ns : least;
	}
	printf("calls\t%s\t%lu\t%s\t%s\t%llu\t%ld\t%s\n", op->name, layout->kib,
	       layout->pmd ? "pmd" : "pte", label, (unsigned long long)least,
	       shared->faults, shared->mixed ? "mixed" : "ok");
	fflush(stdout);
}

/* Selected are all, or those in @only, which ends with NULL. */
static bool selected(const char *name, char **only)
{
	const bool all = !*only;

	while (*only && strcmp(*only, name))
		only++;
	return all || *only;
}

static void measure_layout(char **only)
{
	const unsigned int flag = layout->pmd ? PMD_2M : layout->kib == 2048 ? PTE_2M :
				  layout->kib == 4 ? SMALL : LARGE;
	const struct op *op;

	folio_size = layout->kib * 1024;
	choose_folios(layout->kib);
	for (op = ops; op < ops + ARRAY_SIZE(ops); op++) {
		if (!(op->flags & flag) || !selected(op->name, only) ||
		    (op->flags & FAULTS && !with_faults) ||
		    (op->action == exec_program && !program[0]) ||
		    (op->action == exec_job && !job[2]))
			continue;
		if (op->flags & PROCESSES || !(op->flags & TASKS))
			measure(op, op->flags & TASKS ? processes : 1, false);
		if (op->flags & THREADS)
			measure(op, nr_threads, true);
	}
}

int main(int argc, char **argv)
{
	char *only_ops[64] = { NULL }, *only_sizes[64] = { NULL }, kib[16];
	size_t nr_ops = 0, nr_sizes = 0;
	int opt;

	while ((opt = getopt(argc, argv, "m:r:s:o:p:t:kx:j:")) != -1) {
		const int n = optarg ? atoi(optarg) : 0;

		if (opt == 'm' && n > 0 && n % 2 == 0)
			bytes = n * MIB;
		else if (opt == 'r' && n > 0)
			rounds = n;
		else if (opt == 's' && nr_sizes < 63)
			only_sizes[nr_sizes++] = optarg;
		else if (opt == 'o' && nr_ops < 63)
			only_ops[nr_ops++] = optarg;
		else if (opt == 'p' && n >= 0 && n <= MAX_TASKS)
			processes = n;
		else if (opt == 't' && n >= 0 && n <= MAX_TASKS)
			nr_threads = n;
		else if (opt == 'k')
			with_faults = false;
		else if (opt == 'x')
			program[0] = optarg;
		else if (opt == 'j')
			job[2] = optarg;
		else
			return fprintf(stderr, "usage: see the head of folio_calls.c\n"), 2;
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	check(shared != MAP_FAILED && !prctl(PR_SET_CHILD_SUBREAPER, 1), "set-up");
	for (layout = layouts; layout < layouts + ARRAY_SIZE(layouts); layout++) {
		snprintf(kib, sizeof(kib), "%lu", layout->kib);
		if (selected(kib, only_sizes))
			measure_layout(only_ops);
	}
	return 0;
}
