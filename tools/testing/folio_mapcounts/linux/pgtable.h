/* SPDX-License-Identifier: GPL-2.0-only */
/* What an architecture defines; the Makefile compiles for several of them. */
#define MAX_PTRS_PER_PTE	BIT(TEST_P)
#define PMD_ORDER		TEST_PMD_ORDER
