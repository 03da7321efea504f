// SPDX-License-Identifier: GPL-2.0
/*
 * folio_mapcount_bounds - what happens where a large folio cannot be mapped any
 * more
 *
 * The kernel bounds how many PTEs and PMDs map a large folio. No test can map one
 * a billion times, but with CONFIG_DEBUG_VM the bounds can be lowered, for all
 * folios. What is asked for beyond them has to fail cleanly, or to be done in
 * another way; what has been mapped stays; and it works again when something was
 * unmapped.
 *
 * Other processes must not notice: the bounds are never lowered below what a few
 * processes have of the folios of a file that they all run.
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

#define DEBUGFS		"/sys/kernel/debug/folio_mapcounts/"
#define PTES_MAX	DEBUGFS "ptes_max"
#define ENTIRE_MAX	DEBUGFS "entire_max"

#define NR_CHILDREN	8

FIXTURE(bounds)
{
	unsigned long ptes_max;
	unsigned long entire_max;
	size_t size;			/* of a THP */
	unsigned long nr;		/* pages of a THP */
	char *mem;			/* aligned to it, with room for two */
	pid_t child[NR_CHILDREN];	/* to be killed in the end */
};

FIXTURE_SETUP(bounds)
{
	struct thp_settings settings;
	char *area;

	self->ptes_max = 0;
	if (read_sysfs(PTES_MAX, &self->ptes_max) ||
	    read_sysfs(ENTIRE_MAX, &self->entire_max))
		SKIP(return, "no " DEBUGFS ": needs root and CONFIG_DEBUG_VM");
	if (!thp_available())
		SKIP(return, "no THPs");
	thp_save_settings();
	thp_read_settings(&settings);
	settings.thp_enabled = THP_MADVISE;
	settings.shmem_enabled = SHMEM_ADVISE;
	thp_push_settings(&settings);

	self->size = read_pmd_pagesize();
	self->nr = self->size / psize();
	area = mmap(NULL, 3 * self->size, PROT_NONE, MAP_PRIVATE | MAP_ANON, -1, 0);
	ASSERT_NE(area, MAP_FAILED);
	self->mem = (char *)roundup((uintptr_t)area, self->size);
}

/* In the parent, and *self is shared: the bounds are restored however it ends. */
FIXTURE_TEARDOWN_PARENT(bounds)
{
	if (self->ptes_max) {
		write_sysfs(PTES_MAX, self->ptes_max);
		write_sysfs(ENTIRE_MAX, self->entire_max);
	}
	for (int i = 0; i < NR_CHILDREN; i++) {
		if (self->child[i] > 0)
			kill(self->child[i], SIGKILL);
	}
}

/* Have a write fault map a THP at mem. Return: whether that worked. */
static bool map_anon(FIXTURE_DATA(bounds) *self)
{
	self->mem = mmap(self->mem, self->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0);
	madvise(self->mem, self->size, MADV_HUGEPAGE);
	memset(self->mem, 1, self->size);
	return check_huge_anon(self->mem, self->size, 1, self->size);
}

static void split_pmd(FIXTURE_DATA(bounds) *self)
{
	mprotect(self->mem, psize(), PROT_READ);
	mprotect(self->mem, psize(), PROT_READ | PROT_WRITE);
}

/* Fork children that only wait. Return: how many there are. */
static int fork_children(FIXTURE_DATA(bounds) *self, int nr)
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
		/* Not in the child, which shares *self. */
		self->child[i] = pid;
	}
	return i;
}

static void kill_child(FIXTURE_DATA(bounds) *self, int i)
{
	kill(self->child[i], SIGKILL);
	waitpid(self->child[i], NULL, 0);
	self->child[i] = 0;
}

/* A THP of shmem that is mapped at mem by a PMD. Return: its file, or -1. */
static int map_shmem(FIXTURE_DATA(bounds) *self)
{
	int fd = memfd_create("bounds", 0);

	if (fd < 0 || ftruncate(fd, self->size))
		return -1;
	if (mmap(self->mem, self->size, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		return -1;
	madvise(self->mem, self->size, MADV_HUGEPAGE);
	memset(self->mem, 1, self->size);
	return check_huge_shmem(self->mem, self->size, 1, self->size) ? fd : -1;
}

/* Map it once more, where no PMD fits. */
static char *map_misaligned(FIXTURE_DATA(bounds) *self, int fd)
{
	char *area = mmap(NULL, 3 * self->size, PROT_NONE, MAP_PRIVATE | MAP_ANON, -1, 0);
	char *at = (char *)roundup((uintptr_t)area, self->size) + psize();

	return mmap(at, self->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
}

/* How a process ends that reads there. */
static int signal_of_read(volatile char *addr)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		signal(SIGBUS, SIG_DFL);
		(void)*addr;
		_exit(0);
	}
	waitpid(pid, &status, 0);
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

/* PTEs: this process, three children, and no more. */
TEST_F(bounds, fork_ptes)
{
	if (!map_anon(self))
		SKIP(return, "no THP");
	split_pmd(self);
	ASSERT_EQ(write_sysfs(PTES_MAX, 4 * self->nr), 0);
	EXPECT_EQ(fork_children(self, 5), 3);
	EXPECT_EQ(errno, ENOMEM);

	kill_child(self, 0);
	EXPECT_EQ(fork_children(self, 1), 1);
	EXPECT_EQ(fork(), -1);
	memset(self->mem, 2, self->size);
	EXPECT_EQ(self->mem[self->size - 1], 2);
}

/* PMDs: where there are too many, fork() succeeds, and the PMD is split. */
TEST_F(bounds, fork_pmds)
{
	if (!map_anon(self))
		SKIP(return, "no THP");
	ASSERT_EQ(write_sysfs(ENTIRE_MAX, 4), 0);
	EXPECT_EQ(fork_children(self, 3), 3);
	EXPECT_TRUE(check_huge_anon(self->mem, self->size, 1, self->size));
	EXPECT_EQ(fork_children(self, 1), 1);
	EXPECT_TRUE(check_huge_anon(self->mem, self->size, 0, self->size));
	EXPECT_EQ(self->mem[self->size - 1], 1);
}

/* A PMD counts as the PTEs that it can be split into. */
TEST_F(bounds, fork_pmds_ptes)
{
	if (!map_anon(self))
		SKIP(return, "no THP");
	ASSERT_EQ(write_sysfs(PTES_MAX, 4 * self->nr), 0);
	EXPECT_EQ(fork_children(self, 5), 3);
	EXPECT_EQ(errno, ENOMEM);
	/* It was split to try with PTEs. */
	EXPECT_TRUE(check_huge_anon(self->mem, self->size, 0, self->size));
	kill_child(self, 0);
	EXPECT_EQ(fork_children(self, 1), 1);
}

/* Faults get SIGBUS; what is mapped can move. */
TEST_F(bounds, shmem_fault)
{
	char *map[4];
	int fd, i;

	fd = map_shmem(self);
	if (fd < 0)
		SKIP(return, "no THP of shmem");
	ASSERT_EQ(write_sysfs(PTES_MAX, 4 * self->nr), 0);
	for (i = 0; i < 4; i++) {
		map[i] = map_misaligned(self, fd);
		ASSERT_NE(map[i], MAP_FAILED);
	}
	for (i = 0; i < 3; i++)
		EXPECT_EQ(madvise(map[i], self->size, MADV_POPULATE_READ), 0);
	EXPECT_EQ(madvise(map[3], self->size, MADV_POPULATE_READ), -1);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(signal_of_read(map[3]), SIGBUS);

	/* mremap() adds no mapping. */
	EXPECT_EQ(mremap(map[0], self->size, self->size,
			 MREMAP_MAYMOVE | MREMAP_FIXED, self->mem + self->size),
		  self->mem + self->size);
	EXPECT_EQ(self->mem[2 * self->size - 1], 1);

	/* One page less, one page more */
	EXPECT_EQ(madvise(map[1], psize(), MADV_DONTNEED), 0);
	EXPECT_EQ(madvise(map[3], psize(), MADV_POPULATE_READ), 0);
	EXPECT_EQ(madvise(map[3], 2 * psize(), MADV_POPULATE_READ), -1);

	EXPECT_EQ(munmap(map[1], self->size), 0);
	EXPECT_EQ(madvise(map[3], self->size - psize(), MADV_POPULATE_READ), 0);
}

/* Too many PMDs of shmem: PTEs have to do. */
TEST_F(bounds, shmem_pmds)
{
	char *second = self->mem + self->size;
	int fd = map_shmem(self);

	if (fd < 0)
		SKIP(return, "no THP of shmem");
	ASSERT_EQ(write_sysfs(ENTIRE_MAX, 1), 0);
	ASSERT_EQ(mmap(second, self->size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0), second);
	madvise(second, self->size, MADV_HUGEPAGE);
	EXPECT_EQ(madvise(second, self->size, MADV_POPULATE_READ), 0);
	EXPECT_TRUE(check_huge_shmem(second, self->size, 0, self->size));
	EXPECT_EQ(second[self->size - 1], 1);

	ASSERT_EQ(write_sysfs(ENTIRE_MAX, 2), 0);
	madvise(second, self->size, MADV_DONTNEED);
	EXPECT_EQ(madvise(second, self->size, MADV_POPULATE_READ), 0);
	EXPECT_TRUE(check_huge_shmem(second, self->size, 1, self->size));
}

/* UFFDIO_CONTINUE says that there is no room. */
TEST_F(bounds, userfaultfd)
{
	struct uffdio_continue cont = {};
	int fd, uffd;
	char *map;

	fd = map_shmem(self);
	if (fd < 0)
		SKIP(return, "no THP of shmem");
	map = map_misaligned(self, fd);
	ASSERT_NE(map, MAP_FAILED);
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (uffd < 0)
		SKIP(return, "no userfaultfd");
	if (ioctl(uffd, UFFDIO_API, &(struct uffdio_api){
			.api = UFFD_API, .features = UFFD_FEATURE_MINOR_SHMEM }) ||
	    uffd_register(uffd, map, self->size, false, false, true))
		SKIP(return, "no minor faults of shmem");

	ASSERT_EQ(write_sysfs(PTES_MAX, self->nr + 1), 0);
	cont.range.start = (uintptr_t)map;
	cont.range.len = psize();
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), 0);
	cont.range.start += psize();
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), -1);
	EXPECT_EQ(errno, ENOMEM);
	ASSERT_EQ(write_sysfs(PTES_MAX, self->nr + 2), 0);
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), 0);
}

/* Pages of a large folio that cannot be mapped stay in swap. */
TEST_F(bounds, swap_in)
{
	const size_t size = 65536;
	int pagemap = open("/proc/self/pagemap", O_RDONLY), err;
	struct thp_settings settings = *thp_current_settings();

	settings.hugepages[sz2ord(size, psize())].enabled = THP_MADVISE;
	thp_push_settings(&settings);
	ASSERT_EQ(mprotect(self->mem, size, PROT_READ | PROT_WRITE), 0);
	madvise(self->mem, size, MADV_HUGEPAGE);
	memset(self->mem, 1, size);
	madvise(self->mem, size, MADV_PAGEOUT);
	if (!pagemap_is_swapped(pagemap, self->mem))
		SKIP(return, "no swap");

	/* As low as that for a moment only */
	ASSERT_EQ(write_sysfs(PTES_MAX, 1), 0);
	err = madvise(self->mem, psize(), MADV_POPULATE_READ) ? errno : 0;
	ASSERT_EQ(write_sysfs(PTES_MAX, self->ptes_max), 0);
	EXPECT_EQ(madvise(self->mem, size, MADV_POPULATE_READ), 0);
	EXPECT_EQ(self->mem[size - 1], 1);
	if (!err)
		SKIP(return, "swapped in by small folios");
	EXPECT_EQ(err, EFAULT);
}

/* A hugetlb mapping counts one. */
TEST_F(bounds, hugetlb)
{
	const size_t size = default_huge_page_size();
	const unsigned long nr = 4 * self->nr;
	unsigned long i;
	char *map;
	int fd;

	fd = size ? memfd_create("bounds", MFD_HUGETLB) : -1;
	if (fd < 0 || !hugetlb_free_pages(size) || ftruncate(fd, size))
		SKIP(return, "no hugetlb page");
	ASSERT_EQ(write_sysfs(PTES_MAX, nr), 0);
	for (i = 0; i <= nr; i++) {
		map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		ASSERT_NE(map, MAP_FAILED);
		if (madvise(map, size, MADV_POPULATE_READ))
			break;
	}
	EXPECT_EQ(i, nr);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(signal_of_read(map), SIGBUS);
	ASSERT_EQ(write_sysfs(PTES_MAX, nr + 1), 0);
	EXPECT_EQ(madvise(map, size, MADV_POPULATE_READ), 0);
}

TEST_HARNESS_MAIN
