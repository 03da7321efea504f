// SPDX-License-Identifier: GPL-2.0
/*
 * folio_mapcount_bounds - what happens where a large folio cannot be mapped any
 * more
 *
 * The kernel bounds how many pages are mapped of a large folio, each mapping counted.
 * No test can map one a billion times, but with CONFIG_DEBUG_VM a process can lower
 * the bound for its process group. What is asked for beyond it has to fail cleanly;
 * what has been mapped stays; and it works again when something was unmapped.
 */
#include "kselftest_harness.h"
#include <fcntl.h>
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include "hugepage_settings.h"
#include "vm_util.h"

#define PAGES_MAX	"/sys/kernel/debug/folio_mapcounts_pages_max"

#define NR_CHILDREN	8

struct bounds {
	unsigned long pages_max;
	size_t size;			/* of a THP */
	unsigned long nr;		/* pages of a THP */
	char *mem;			/* aligned to it, with room for two */
	pid_t child[NR_CHILDREN];	/* to be killed in the end */
	struct thp_settings before;
};

FIXTURE(bounds)
{
	struct bounds b;
};

FIXTURE_SETUP(bounds)
{
	struct bounds *b = &self->b;
	struct thp_settings settings;
	char *area;

	if (access(PAGES_MAX, W_OK))
		SKIP(return, "no " PAGES_MAX ": needs root and CONFIG_DEBUG_VM");
	if (!thp_available())
		SKIP(return, "no THPs");
	thp_read_settings(&b->before);
	settings = b->before;
	ASSERT_EQ(read_sysfs(PAGES_MAX, &b->pages_max), 0);
	settings.thp_enabled = THP_MADVISE;
	settings.shmem_enabled = SHMEM_ADVISE;
	thp_push_settings(&settings);

	b->size = read_pmd_pagesize();
	b->nr = b->size / psize();
	area = mmap(NULL, 3 * b->size, PROT_NONE, MAP_PRIVATE | MAP_ANON, -1, 0);
	ASSERT_NE(area, MAP_FAILED);
	b->mem = (char *)roundup((uintptr_t)area, b->size);
}

/* In the parent, and *b is shared: the bound is restored however it ends. */
FIXTURE_TEARDOWN_PARENT(bounds)
{
	struct bounds *b = &self->b;

	if (b->pages_max) {
		write_sysfs(PAGES_MAX, b->pages_max);
		thp_write_settings(&b->before);
	}
	for (int i = 0; i < NR_CHILDREN; i++) {
		if (b->child[i] > 0)
			kill(b->child[i], SIGKILL);
	}
}

/* Have a write fault map a THP at mem. Return: whether that worked. */
static bool map_anon(struct bounds *b)
{
	b->mem = mmap(b->mem, b->size, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0);
	madvise(b->mem, b->size, MADV_HUGEPAGE);
	memset(b->mem, 1, b->size);
	return check_huge_anon(b->mem, b->size, 1, b->size);
}

static void split_pmd(struct bounds *b)
{
	mprotect(b->mem, psize(), PROT_READ);
	mprotect(b->mem, psize(), PROT_READ | PROT_WRITE);
}

/* Fork children that only wait. Return: how many there are. */
static int fork_children(struct bounds *b, int nr)
{
	const pid_t parent = getpid();
	pid_t pid;
	int i;

	for (i = 0; i < nr; i++) {
		pid = fork();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() == parent)
				pause();
			_exit(0);
		}
		if (pid < 0)
			break;
		/* Not in the child, which shares *b. */
		b->child[i] = pid;
	}
	return i;
}

static void kill_child(struct bounds *b, int i)
{
	kill(b->child[i], SIGKILL);
	waitpid(b->child[i], NULL, 0);
	b->child[i] = 0;
}

/* A THP of shmem that is mapped at mem by a PMD. Return: its file, or -1. */
static int map_shmem(struct bounds *b)
{
	int fd = memfd_create("bounds", 0);

	if (fd < 0 || ftruncate(fd, b->size))
		return -1;
	if (mmap(b->mem, b->size, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		return -1;
	madvise(b->mem, b->size, MADV_HUGEPAGE);
	memset(b->mem, 1, b->size);
	return check_huge_shmem(b->mem, b->size, 1, b->size) ? fd : -1;
}

/* Map it once more, at an address that is not PMD-aligned. */
static char *map_misaligned(struct bounds *b, int fd)
{
	char *area = mmap(NULL, 3 * b->size, PROT_NONE, MAP_PRIVATE | MAP_ANON, -1, 0);
	char *at = (char *)roundup((uintptr_t)area, b->size) + psize();

	return mmap(at, b->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
}

/* Return: the signal that ends a process that reads there. */
static int signal_of_read(char *addr)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		signal(SIGBUS, SIG_DFL);
		FORCE_READ(*addr);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

/* PTEs: this process, three children, and no more. */
TEST_F(bounds, fork_ptes)
{
	struct bounds *b = &self->b;

	if (!map_anon(b))
		SKIP(return, "no THP");
	split_pmd(b);
	ASSERT_EQ(write_sysfs(PAGES_MAX, 4 * b->nr), 0);
	EXPECT_EQ(fork_children(b, 5), 3);
	EXPECT_EQ(errno, ENOMEM);

	kill_child(b, 0);
	EXPECT_EQ(fork_children(b, 1), 1);
	EXPECT_EQ(fork(), -1);
	memset(b->mem, 2, b->size);
	EXPECT_EQ(b->mem[b->size - 1], 2);
}

/* One PTE, all that is left of the folio here. */
TEST_F(bounds, fork_one_pte)
{
	struct bounds *b = &self->b;

	if (!map_anon(b))
		SKIP(return, "no THP");
	split_pmd(b);
	EXPECT_EQ(fork_children(b, 3), 3);
	ASSERT_EQ(munmap(b->mem + psize(), b->size - psize()), 0);
	ASSERT_EQ(write_sysfs(PAGES_MAX, 3 * b->nr + 1), 0);
	EXPECT_EQ(fork_children(b, 1), 0);
	EXPECT_EQ(errno, ENOMEM);
	ASSERT_EQ(write_sysfs(PAGES_MAX, 3 * b->nr + 2), 0);
	EXPECT_EQ(fork_children(b, 1), 1);
}

/* A PMD counts as the PTEs that it can be split into. */
TEST_F(bounds, fork_pmds)
{
	struct bounds *b = &self->b;

	if (!map_anon(b))
		SKIP(return, "no THP");
	ASSERT_EQ(write_sysfs(PAGES_MAX, 4 * b->nr), 0);
	EXPECT_EQ(fork_children(b, 5), 3);
	EXPECT_EQ(errno, ENOMEM);
	/* It was split to try with PTEs. */
	EXPECT_TRUE(check_huge_anon(b->mem, b->size, 0, b->size));
	kill_child(b, 0);
	EXPECT_EQ(fork_children(b, 1), 1);
}

/* Faults get SIGBUS; what is mapped can move. */
TEST_F(bounds, shmem_fault)
{
	struct bounds *b = &self->b;
	char *map[4];
	int fd, i;

	fd = map_shmem(b);
	if (fd < 0)
		SKIP(return, "no THP of shmem");
	ASSERT_EQ(write_sysfs(PAGES_MAX, 4 * b->nr), 0);
	for (i = 0; i < 4; i++) {
		map[i] = map_misaligned(b, fd);
		ASSERT_NE(map[i], MAP_FAILED);
	}
	for (i = 0; i < 3; i++)
		EXPECT_EQ(madvise(map[i], b->size, MADV_POPULATE_READ), 0);
	EXPECT_EQ(madvise(map[3], b->size, MADV_POPULATE_READ), -1);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(signal_of_read(map[3]), SIGBUS);

	/* mremap() adds no mapping. */
	EXPECT_EQ(mremap(map[0], b->size, b->size,
			 MREMAP_MAYMOVE | MREMAP_FIXED, b->mem + b->size),
		  b->mem + b->size);
	EXPECT_EQ(b->mem[2 * b->size - 1], 1);

	/* One page less, one page more */
	EXPECT_EQ(madvise(map[1], psize(), MADV_DONTNEED), 0);
	EXPECT_EQ(madvise(map[3], psize(), MADV_POPULATE_READ), 0);
	EXPECT_EQ(madvise(map[3], 2 * psize(), MADV_POPULATE_READ), -1);

	EXPECT_EQ(munmap(map[1], b->size), 0);
	EXPECT_EQ(madvise(map[3], b->size - psize(), MADV_POPULATE_READ), 0);
}

/* The bound is for the process group that lowered it. */
TEST_F(bounds, other_processes)
{
	struct bounds *b = &self->b;
	int status, fd = map_shmem(b);
	char *map;
	pid_t pid;

	if (fd < 0)
		SKIP(return, "no THP of shmem");
	map = map_misaligned(b, fd);
	ASSERT_NE(map, MAP_FAILED);
	ASSERT_EQ(write_sysfs(PAGES_MAX, b->nr), 0);
	EXPECT_EQ(madvise(map, b->size, MADV_POPULATE_READ), -1);
	pid = fork();
	if (!pid) {
		setpgid(0, 0);
		_exit(madvise(map, b->size, MADV_POPULATE_READ) ? 1 : 0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
}

/* UFFDIO_CONTINUE says that there is no room. */
TEST_F(bounds, userfaultfd)
{
	struct bounds *b = &self->b;
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_MINOR_SHMEM,
	};
	struct uffdio_continue cont = {};
	int fd, uffd;
	char *map;

	fd = map_shmem(b);
	if (fd < 0)
		SKIP(return, "no THP of shmem");
	map = map_misaligned(b, fd);
	ASSERT_NE(map, MAP_FAILED);
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (uffd < 0)
		SKIP(return, "no userfaultfd");
	if (ioctl(uffd, UFFDIO_API, &api) ||
	    uffd_register(uffd, map, b->size, false, false, true))
		SKIP(return, "no minor faults of shmem");

	ASSERT_EQ(write_sysfs(PAGES_MAX, b->nr + 1), 0);
	cont.range.start = (uintptr_t)map;
	cont.range.len = psize();
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), 0);
	cont.range.start += psize();
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), -1);
	EXPECT_EQ(errno, ENOMEM);
	ASSERT_EQ(write_sysfs(PAGES_MAX, b->nr + 2), 0);
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), 0);
}

/* Pages of a large folio that cannot be mapped stay in swap. */
TEST_F(bounds, swap_in)
{
	struct bounds *b = &self->b;
	const size_t size = 16 * psize();
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	int kpageflags = open("/proc/kpageflags", O_RDONLY), err;
	uint64_t flags = 0;
	struct thp_settings settings = *thp_current_settings();

	settings.hugepages[sz2ord(size, psize())].enabled = THP_MADVISE;
	thp_push_settings(&settings);
	ASSERT_EQ(mprotect(b->mem, size, PROT_READ | PROT_WRITE), 0);
	madvise(b->mem, size, MADV_HUGEPAGE);
	memset(b->mem, 1, size);
	madvise(b->mem, size, MADV_PAGEOUT);
	if (!pagemap_is_swapped(pagemap, b->mem))
		SKIP(return, "no swap");

	ASSERT_EQ(write_sysfs(PAGES_MAX, 1), 0);
	err = madvise(b->mem, psize(), MADV_POPULATE_READ) ? errno : 0;
	ASSERT_EQ(write_sysfs(PAGES_MAX, b->pages_max), 0);
	EXPECT_EQ(madvise(b->mem, size, MADV_POPULATE_READ), 0);
	EXPECT_EQ(b->mem[size - 1], 1);
	pageflags_get(pagemap_get_pfn(pagemap, b->mem), kpageflags, &flags);
	if (!err && !(flags & KPF_THP))
		SKIP(return, "swapped in by small folios");
	EXPECT_EQ(err, EFAULT);
}

/*
 * Map the first page of a hugetlb file of two as often as the bound, which is set to
 * that, allows. Return: the last mapping, which has failed, or NULL: there is no
 * hugetlb page.
 */
static char *map_hugetlb(struct __test_metadata *_metadata, struct bounds *b,
			 unsigned long *nr, int *fd)
{
	const size_t size = default_huge_page_size();
	/* 32-bit address space has room for few. */
	const unsigned long most = size ? -1UL / 4 / size : 0;
	unsigned long i;
	char *map;

	*nr = 4 * b->nr < most ? 4 * b->nr : most;
	*fd = size ? memfd_create("bounds", MFD_HUGETLB) : -1;
	if (*fd < 0 || !hugetlb_free_pages(size) || ftruncate(*fd, 2 * size))
		return NULL;
	ASSERT_EQ(write_sysfs(PAGES_MAX, *nr), 0);
	for (i = 0; i <= *nr; i++) {
		map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
		ASSERT_NE(map, MAP_FAILED);
		if (madvise(map, size, MADV_POPULATE_READ))
			break;
	}
	EXPECT_EQ(i, *nr);
	EXPECT_EQ(errno, EFAULT);
	return map;
}

/* A hugetlb mapping counts one. */
TEST_F(bounds, hugetlb)
{
	unsigned long nr;
	int fd;
	char *map = map_hugetlb(_metadata, &self->b, &nr, &fd);

	if (!map)
		SKIP(return, "no hugetlb page");
	EXPECT_EQ(signal_of_read(map), SIGBUS);
	ASSERT_EQ(write_sysfs(PAGES_MAX, nr + 1), 0);
	EXPECT_EQ(madvise(map, default_huge_page_size(), MADV_POPULATE_READ), 0);
}

/* fork() copies the entry of a private mapping in which something was written. */
TEST_F(bounds, fork_hugetlb)
{
	struct bounds *b = &self->b;
	const size_t size = default_huge_page_size();
	unsigned long nr;
	char *map;
	int fd;

	if (!map_hugetlb(_metadata, b, &nr, &fd))
		SKIP(return, "no hugetlb page");
	map = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (map == MAP_FAILED)
		SKIP(return, "too few hugetlb pages");
	ASSERT_EQ(write_sysfs(PAGES_MAX, nr + 1), 0);
	ASSERT_EQ(madvise(map, size, MADV_POPULATE_READ), 0);
	ASSERT_EQ(madvise(map + size, size, MADV_POPULATE_WRITE), 0);
	EXPECT_EQ(fork_children(b, 1), 0);
	EXPECT_EQ(errno, ENOMEM);
	ASSERT_EQ(write_sysfs(PAGES_MAX, nr + 2), 0);
	EXPECT_EQ(fork_children(b, 1), 1);
}

TEST_HARNESS_MAIN
