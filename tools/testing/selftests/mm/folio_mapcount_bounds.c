// SPDX-License-Identifier: GPL-2.0
/*
 * folio_mapcount_bounds - what happens where a large folio cannot be mapped any more
 *
 * The kernel bounds how many pages are mapped of a large folio, each mapping counted.
 * No test can map one a billion times, but with CONFIG_DEBUG_VM a process can lower the
 * bound for its process group. What is asked for beyond it has to fail cleanly; what has
 * been mapped stays; and it works again when something was unmapped.
 */
#include "kselftest_harness.h"
#include <linux/mman.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/prctl.h>
#include <sys/swap.h>
#include "folio_util.h"

#define PAGES_MAX	"/sys/kernel/debug/folio_mapcounts_pages_max"

static unsigned long pages_max;		/* before */
static size_t size;			/* of a THP */
static unsigned long nr;		/* pages of a THP */
static char *mem;			/* aligned to it, with room for two */
static pid_t child[8];
static int nr_children;
static int pagemap, kpageflags;

static bool set_bound(unsigned long pages)
{
	return !write_sysfs(PAGES_MAX, pages);
}

static uint64_t flags_of(unsigned long pfn)
{
	uint64_t flags = 0;

	pageflags_get(pfn, kpageflags, &flags);
	return flags;
}

FIXTURE(bounds) {};

FIXTURE_SETUP(bounds)
{
	struct thp_settings settings;
	char *area;

	if (!pages_max)
		SKIP(return, "needs root, THPs, and " PAGES_MAX " (CONFIG_DEBUG_VM)");
	ASSERT_TRUE(set_bound(pages_max));
	thp_read_settings(&settings);
	settings.thp_enabled = THP_MADVISE;
	settings.shmem_enabled = SHMEM_ADVISE;
	thp_push_settings(&settings);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	kpageflags = open("/proc/kpageflags", O_RDONLY);
	size = read_pmd_pagesize();
	nr = size / psize();
	area = mmap(NULL, 3 * size, PROT_NONE, MAP_PRIVATE | MAP_ANON, -1, 0);
	ASSERT_NE(area, MAP_FAILED);
	mem = (char *)roundup((uintptr_t)area, size);
}

/* Have a write fault map a THP at mem. Return: whether that worked. */
static bool map_anon(void)
{
	mem = mmap(mem, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0);
	madvise(mem, size, MADV_HUGEPAGE);
	memset(mem, 1, size);
	return check_huge_anon(mem, size, 1, size);
}

static void split_pmd(void)
{
	mprotect(mem, psize(), PROT_READ);
	mprotect(mem, psize(), PROT_READ | PROT_WRITE);
}

/* Fork children that only wait. Return: how many there are. */
static int fork_children(int want)
{
	pid_t pid;
	int i;

	for (i = 0; i < want; i++) {
		pid = fork();
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			alarm(60);
			pause();
		}
		if (pid < 0)
			break;
		child[nr_children++] = pid;
	}
	return i;
}

static void kill_child(void)
{
	kill(child[--nr_children], SIGKILL);
	waitpid(child[nr_children], NULL, 0);
}

FIXTURE_TEARDOWN(bounds)
{
	while (nr_children)
		kill_child();
}

/* A THP of shmem that is mapped at mem by a PMD. Return: its file, or -1. */
static int map_shmem(void)
{
	int fd = memfd_create("bounds", 0);

	if (fd < 0 || ftruncate(fd, size) ||
	    mmap(mem, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		return -1;
	madvise(mem, size, MADV_HUGEPAGE);
	memset(mem, 1, size);
	return check_huge_shmem(mem, size, 1, size) ? fd : -1;
}

/* Map it once more, at an address that is not PMD-aligned. */
static char *map_misaligned(int fd)
{
	char *area = mmap(NULL, 3 * size, PROT_NONE, MAP_PRIVATE | MAP_ANON, -1, 0);
	char *at = (char *)roundup((uintptr_t)area, size) + psize();

	return mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
}

static int populate(char *addr, size_t len)
{
	return madvise(addr, len, MADV_POPULATE_READ);
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

/* This process, three children, and no more. A PMD counts as the PTEs it can become. */
static void fork_to_bound(struct __test_metadata *_metadata, bool pmd)
{
	const long long before = read_key("/proc/meminfo", "MemFree:");
	unsigned long pfn;

	if (!map_anon())
		SKIP(return, "no THP");
	pfn = pagemap_get_pfn(pagemap, mem);
	if (!pmd)
		split_pmd();
	ASSERT_TRUE(set_bound(4 * nr));
	EXPECT_EQ(fork_children(5), 3);
	EXPECT_EQ(errno, ENOMEM);
	/* A PMD was split to try with PTEs. */
	EXPECT_TRUE(check_huge_anon(mem, size, 0, size));
	/* No memory is lost in vain tries. */
	EXPECT_GT(read_key("/proc/meminfo", "MemFree:"), before / 2);

	kill_child();
	EXPECT_EQ(fork_children(2), 1);
	memset(mem, 2, size);
	EXPECT_EQ(mem[size - 1], 2);
	/* No reference is left behind. */
	ASSERT_EQ(munmap(mem, size), 0);
	while (nr_children)
		kill_child();
	EXPECT_FALSE(flags_of(pfn) & KPF_THP);
}

TEST_F(bounds, fork_ptes)
{
	fork_to_bound(_metadata, false);
}

TEST_F(bounds, fork_pmds)
{
	fork_to_bound(_metadata, true);
}

/* One PTE, all that is left of the folio here. */
TEST_F(bounds, fork_one_pte)
{
	if (!map_anon())
		SKIP(return, "no THP");
	split_pmd();
	EXPECT_EQ(fork_children(3), 3);
	ASSERT_EQ(munmap(mem + psize(), size - psize()), 0);
	ASSERT_TRUE(set_bound(3 * nr + 1));
	EXPECT_EQ(fork_children(1), 0);
	EXPECT_EQ(errno, ENOMEM);
	ASSERT_TRUE(set_bound(3 * nr + 2));
	EXPECT_EQ(fork_children(1), 1);
}

/* Faults get SIGBUS; what is mapped can move. */
TEST_F(bounds, shmem_fault)
{
	int fd = map_shmem(), i;
	unsigned long pfn;
	char *map[4];

	if (fd < 0)
		SKIP(return, "no THP of shmem");
	pfn = pagemap_get_pfn(pagemap, mem);
	ASSERT_TRUE(set_bound(4 * nr));
	for (i = 0; i < 4; i++) {
		map[i] = map_misaligned(fd);
		ASSERT_NE(map[i], MAP_FAILED);
	}
	for (i = 0; i < 3; i++)
		EXPECT_EQ(populate(map[i], size), 0);
	EXPECT_EQ(populate(map[3], size), -1);
	EXPECT_EQ(errno, EFAULT);
	EXPECT_EQ(signal_of_read(map[3]), SIGBUS);

	/* mremap() adds no mapping. */
	EXPECT_EQ(mremap(map[0], size, size, MREMAP_MAYMOVE | MREMAP_FIXED, mem + size),
		  mem + size);
	EXPECT_EQ(mem[2 * size - 1], 1);

	/* One page less, one page more */
	EXPECT_EQ(madvise(map[1], psize(), MADV_DONTNEED), 0);
	EXPECT_EQ(populate(map[3], psize()), 0);
	EXPECT_EQ(populate(map[3], 2 * psize()), -1);

	EXPECT_EQ(munmap(map[1], size), 0);
	EXPECT_EQ(populate(map[3], size - psize()), 0);

	/* A PMD instead of PTEs */
	ASSERT_NE(mmap(mem + size, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0), MAP_FAILED);
	ASSERT_TRUE(set_bound(3 * nr));
	EXPECT_EQ(populate(mem + size, size), -1);

	/* No reference is left behind. */
	munmap(mem, 2 * size);
	munmap(map[2], size);
	munmap(map[3], size);
	close(fd);
	EXPECT_FALSE(flags_of(pfn) & KPF_THP);
}

/* The bound is for the process group that lowered it. */
TEST_F(bounds, other_processes)
{
	int status, fd = map_shmem();
	char *map;
	pid_t pid;

	if (fd < 0)
		SKIP(return, "no THP of shmem");
	map = map_misaligned(fd);
	ASSERT_NE(map, MAP_FAILED);
	ASSERT_TRUE(set_bound(nr));
	EXPECT_EQ(populate(map, size), -1);
	pid = fork();
	if (!pid) {
		setpgid(0, 0);
		_exit(!!populate(map, size));
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
}

/* UFFDIO_CONTINUE says that there is no room. */
TEST_F(bounds, userfaultfd)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MINOR_SHMEM };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY), fd = map_shmem();
	struct uffdio_continue cont = {};
	char *map;

	if (fd < 0)
		SKIP(return, "no THP of shmem");
	map = map_misaligned(fd);
	ASSERT_NE(map, MAP_FAILED);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    uffd_register(uffd, map, size, false, false, true))
		SKIP(return, "no minor faults of shmem");

	ASSERT_TRUE(set_bound(nr + 1));
	cont.range.start = (uintptr_t)map;
	cont.range.len = psize();
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), 0);
	cont.range.start += psize();
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), -1);
	EXPECT_EQ(errno, ENOMEM);
	ASSERT_TRUE(set_bound(nr + 2));
	EXPECT_EQ(ioctl(uffd, UFFDIO_CONTINUE, &cont), 0);
}

/*
 * Pages of a large folio that cannot be mapped stay in swap, by a fault and by swapoff().
 * A child keeps the folio in the swap cache.
 */
TEST_F(bounds, swap_in)
{
	const size_t size = 16 * psize();
	struct thp_settings settings = *thp_current_settings();
	char swaps[4096] = "", *device;
	int err;

	settings.hugepages[sz2ord(size, psize())].enabled = THP_MADVISE;
	thp_push_settings(&settings);
	ASSERT_EQ(mprotect(mem, size, PROT_READ | PROT_WRITE), 0);
	madvise(mem, size, MADV_HUGEPAGE);
	memset(mem, 1, size);
	madvise(mem, size, MADV_PAGEOUT);
	if (!pagemap_is_swapped(pagemap, mem))
		SKIP(return, "no swap");
	ASSERT_EQ(fork_children(1), 1);

	ASSERT_TRUE(set_bound(1));
	err = populate(mem, psize()) ? errno : 0;
	ASSERT_TRUE(set_bound(pages_max));
	EXPECT_EQ(populate(mem, size), 0);
	EXPECT_EQ(mem[size - 1], 1);
	if (!err && !(flags_of(pagemap_get_pfn(pagemap, mem)) & KPF_THP))
		SKIP(return, "swapped in by small folios");
	EXPECT_EQ(err, EFAULT);

	/* Of the one swap device there is, if it is one */
	read_file("/proc/swaps", swaps, sizeof(swaps));
	device = strtok(strchr(swaps, '\n') ?: swaps, "\n ");
	if (!device || !strtok(NULL, "\n") || strtok(NULL, "\n"))
		return;
	ASSERT_TRUE(set_bound(16));
	err = swapoff(device) ? errno : 0;
	if (!err)
		swapon(device, 0);
	EXPECT_EQ(err, ENOMEM);
}

/*
 * Map the first page of a hugetlb file of two as often as the bound, which is set to
 * that, allows. Return: the last mapping, which has failed, or NULL: there is no page.
 */
static char *map_hugetlb(struct __test_metadata *_metadata, unsigned long *most, int *fd)
{
	const size_t size = default_huge_page_size();
	/* 32-bit address space has room for few. */
	const unsigned long room = size ? -1UL / 4 / size : 0;
	unsigned long i;
	char *map;

	*most = 4 * nr < room ? 4 * nr : room;
	*fd = size ? memfd_create("bounds", MFD_HUGETLB) : -1;
	if (*fd < 0 || !hugetlb_free_pages(size) || ftruncate(*fd, 2 * size))
		return NULL;
	ASSERT_TRUE(set_bound(*most));
	for (i = 0; i <= *most; i++) {
		map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
		ASSERT_NE(map, MAP_FAILED);
		if (populate(map, size))
			break;
	}
	EXPECT_EQ(i, *most);
	EXPECT_EQ(errno, EFAULT);
	return map;
}

/* A hugetlb mapping counts one. fork() copies it if something private was written there. */
TEST_F(bounds, hugetlb)
{
	const size_t size = default_huge_page_size();
	unsigned long most;
	int fd;
	char *map = map_hugetlb(_metadata, &most, &fd);

	if (!map)
		SKIP(return, "no hugetlb page");
	EXPECT_EQ(signal_of_read(map), SIGBUS);
	ASSERT_TRUE(set_bound(most + 1));
	EXPECT_EQ(populate(map, size), 0);

	map = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (map == MAP_FAILED)
		SKIP(return, "too few hugetlb pages");
	ASSERT_TRUE(set_bound(most + 2));
	ASSERT_EQ(populate(map, size), 0);
	ASSERT_EQ(madvise(map + size, size, MADV_POPULATE_WRITE), 0);
	EXPECT_EQ(fork_children(1), 0);
	EXPECT_EQ(errno, ENOMEM);
	ASSERT_TRUE(set_bound(most + 3));
	EXPECT_EQ(fork_children(1), 1);
}

int main(int argc, char **argv)
{
	if (!access(PAGES_MAX, W_OK) && thp_available() && !read_sysfs(PAGES_MAX, &pages_max)) {
		keep(PAGES_MAX);
		thp_save_settings();
	}
	return test_harness_run(argc, argv);
}
