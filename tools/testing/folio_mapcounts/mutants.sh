#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# See that the tests notice an error in each line of folio_mapcounts.h: make one
# edit of the list below at a time, compile, and run. Prints KTAP: "make mutants".

cd "$(dirname "$0")" || exit
header=../../../include/linux/folio_mapcounts.h
out=${OUTPUT:-.}/mutant
seed=1	# what is found once has to be found always

# Each line has, between tabs: f:function or m:macro, with "mapcounts_" or
# "MAPCOUNTS_" before it; what sed is to do there; and, if that changes
# nothing, why: then the tests still have to pass.
list() {
	cat <<'EOF'
m:PTES_OFFSET	s/0$/1/
m:PTES_BITS	s/31/30/
m:PTES_BITS	s/31/32/
m:PMDS_BITS	s/31/30/
m:PMDS_BITS	s/31/32/
m:PMDS_BITS	s/MAX_PMD_ORDER/PMD_ORDER/
m:PMDS_BITS	s/ - MAP/ + MAP/
m:CREATOR_BITS	s/2 +/1 +/
m:CREATOR_BITS	s/2 +/3 +/
m:CREATOR_BITS	s/MAX_PMD_ORDER/PMD_ORDER/
m:PTES_MASK	s/OFFSET - 1/OFFSET/
m:PTES_MASK	s/OFFSET - 1/OFFSET - 2/
m:PTES_MASK	s/PTES_OFFSET)/PTES_OFFSET + 1)/
m:PMDS_OFFSET	s/ + / - /
m:PMDS_OFFSET	s/PTES_BITS/PMDS_BITS/
m:PMDS_MASK	s/OFFSET - 1/OFFSET/
m:PMDS_MASK	s/OFFSET - 1/OFFSET - 2/
m:PMDS_MASK	s/PMDS_OFFSET)/PMDS_OFFSET - 1)/
m:CREATOR_OFFSET	s/PMDS_BITS/CREATOR_BITS/
m:CREATOR_MASK	s/63/62/
m:CREATOR_MASK	s/CREATOR_OFFSET)/CREATOR_OFFSET + 1)/
m:PTE	s/PTES_OFFSET/PTES_OFFSET + 1/
m:PMD	s/PMDS_OFFSET/PMDS_OFFSET + 1/
m:PMD	s/PMDS_OFFSET/PMDS_OFFSET - 1/
m:CREATOR	s/CREATOR_OFFSET/CREATOR_OFFSET + 1/
m:CREATOR	s/CREATOR_OFFSET/CREATOR_OFFSET - 1/
m:PAGES_MAX	s/30/31/
m:PAGES_MAX	s/30/29/
f:delta	s/creator ? MAP/!creator ? MAP/
f:delta	s/creator ? MAP/true ? MAP/
f:delta	s/_CREATOR : 0/_PMD : 0/
f:delta	s/_CREATOR : 0/_CREATOR : 1/
f:delta	s/(u64)nr_ptes \*/(u64)nr_ptes +/
f:delta	s/(u64)nr_ptes/(u64)(nr_ptes - 1)/
f:delta	s/(u64)nr_ptes/(u16)nr_ptes/
f:delta	s/(u64)nr_ptes/(u32)nr_ptes/
f:delta	s/_PTE + c/_PTE - c/
f:delta	s/_PTE + c/_PTE/
f:delta	s/_PTE + c/_PMD + c/
f:delta	s/c) +$/c) -/
f:delta	s/(u64)nr_pmds \*/(u64)nr_pmds +/
f:delta	s/(u64)nr_pmds/(u64)(nr_pmds - 1)/
f:delta	s/(u64)nr_pmds/(u8)nr_pmds/
f:delta	s/(u64)nr_pmds/(u32)nr_pmds/
f:delta	s/_PMD + c/_PMD - c/
f:delta	s/_PMD + c/_PMD/
f:delta	s/_PMD + c/_PTE + c/
f:ptes	s/PTES_MASK/PMDS_MASK/
f:ptes	s/ & / | /
f:ptes	s/MAPCOUNTS_PTES_MASK/0xffffff/
f:ptes	s/ & MAPCOUNTS_PTES_MASK//
f:pmds	s/PMDS_MASK/CREATOR_MASK/
f:pmds	s/ & MAPCOUNTS_PMDS_MASK//
f:pmds	s/PMDS_OFFSET/PMDS_OFFSET + 1/
f:pmds	s/PMDS_OFFSET/CREATOR_OFFSET/
f:creator	s/CREATOR_OFFSET/CREATOR_OFFSET + 1/
f:creator	s/CREATOR_OFFSET/CREATOR_OFFSET - 1/
f:creator	s/ >> MAPCOUNTS_CREATOR_OFFSET//
f:mapped	s/mc.val/!mc.val/
f:mapped	s/mc.val/mc.val > 1/
f:mapped	s/mc.val/(u32)mc.val/
f:mapped	s/mc.val/mc.val >> 31/
f:entries	s/ptes(mc) +/ptes(mc) -/
f:entries	s/mapcounts_ptes(mc) + //
f:entries	s/ + mapcounts_pmds(mc)//
f:entries	s/pmds(mc)/creator(mc)/
f:pages	s/ptes(mc) +/ptes(mc) -/
f:pages	s/mapcounts_ptes(mc) +/1 +/
f:pages	s/PMD_ORDER/MAX_PMD_ORDER/
f:pages	s/ << MAPCOUNTS_PMD_ORDER//
f:pages	s/pmds(mc)/ptes(mc)/
f:pages	s/(unsigned long)mapcounts_pmds/(u16)mapcounts_pmds/
f:pages	s/(unsigned long)//	the result is less than 2^32
f:bound_pages	s/ptes(mc) +/ptes(mc) -/
f:bound_pages	s/mapcounts_ptes(mc) +/1 +/
f:bound_pages	s/MAX_PMD_ORDER/PMD_ORDER/
f:bound_pages	s/ << MAPCOUNTS_MAX_PMD_ORDER//
f:bound_pages	s/pmds(mc)/ptes(mc)/
f:exclusive	s/==/!=/
f:exclusive	s/==/>=/
f:exclusive	s/==/<=/
f:exclusive	s/entries(mc)/ptes(mc)/
f:exclusive	s/entries(mc)/pages(mc)/
f:exclusive	s/mapcounts_creator(mc)/mapcounts_ptes(mc)/
f:exclusive	s/creator(mc)/creator(mc) + 1/
f:valid	s/<=/</
f:valid	s/<=/==/
f:valid	s/<=/>=/
f:valid	s/entries(mc)/ptes(mc)/
f:valid	s/entries(mc)/pages(mc)/
f:nr_mapped	s/= mapcounts_pages/= mapcounts_entries/
f:nr_mapped	s/= mapcounts_pages/= mapcounts_creator/
f:nr_mapped	s/= mapcounts_pages/= mapcounts_bound_pages/
f:nr_mapped	s/long pages/short pages/
f:nr_mapped	s/long creator/char creator/
f:nr_mapped	s/= anon/= !anon/
f:nr_mapped	s/= anon/= true/
f:nr_mapped	s/= anon/= false/
f:nr_mapped	s/!mapcounts_pmds(mc)/mapcounts_pmds(mc)/
f:nr_mapped	s/ \&\& !mapcounts_pmds(mc)//
f:nr_mapped	s/!mapcounts_pmds(mc)/!mapcounts_ptes(mc)/
f:nr_mapped	s/? mapcounts_creator(mc)/? mapcounts_creator(mc) + 1/
f:nr_mapped	s/? mapcounts_creator(mc)/? mapcounts_ptes(mc)/
f:nr_mapped	s/: 0;/: 1;/
f:nr_mapped	s/: 0;/: mapcounts_creator(mc);/
f:nr_mapped	s/min_t/max_t/
f:nr_mapped	s/t(unsigned long, nr/t(u16, nr/
f:nr_mapped	s/long, nr_pages,/long, nr_pages - 1,/
f:nr_mapped	s/long, nr_pages,/long, nr_pages + 1,/
f:nr_mapped	s/max_t/min_t/
f:nr_mapped	s/t(unsigned long, creator/t(u16, creator/
f:nr_mapped	s/long, creator, /long, 0, /
f:nr_mapped	s/pages - creator/pages/
f:nr_mapped	s/pages - creator/pages + creator/
f:nr_pmdmapped	s/min_t/max_t/
f:nr_pmdmapped	s/t(unsigned long, nr/t(u16, nr/
f:nr_pmdmapped	s/pmds(mc)/entries(mc)/
f:nr_pmdmapped	s/PMD_ORDER/MAX_PMD_ORDER/
f:nr_pmdmapped	s/ << MAPCOUNTS_PMD_ORDER//
f:share	s/= mapcounts_pages(mc)/= mapcounts_entries(mc)/
f:share	s/mapcounts_nr_mapped(mc, nr_pages, anon)/nr_pages/
f:share	s/nr_pages, anon)/nr_pages, !anon)/
f:share	s/nr_pages, anon)/nr_pages, true)/
f:share	s/nr_pages, anon)/nr_pages, false)/
f:share	s/==/<=/	the estimate is at most the pages
f:share	s/==/!=/
f:share	s/return size;/return estimate;/
f:share	s/size \* estimate/size/
f:share	s/size \* estimate, pages/size * pages, estimate/
f:average	s/DIV_ROUND_UP(mapcounts_pages(mc), nr_pages)/mapcounts_pages(mc) \/ nr_pages/
f:average	s/pages(mc)/entries(mc)/
f:partial	s/= mapcounts_pages/= mapcounts_entries/
f:partial	s/= mapcounts_pages/= mapcounts_creator/
f:partial	s/pages \&\& pages/pages || pages/
f:partial	s/pages \&\& pages/pages/
f:partial	s/pages \&\& pages/pages > 1 \&\& pages/
f:partial	s/pages < /pages <= /
f:partial	s/pages < /pages + 1 < /
EOF
}

# The lines of the header that an edit is about, as a sed address.
address() {	# WHERE
	case $1 in
	m:*) printf '%s' "/define MAPCOUNTS_${1#m:}\\b/,/[^\\\\]\$/" ;;
	f:*) printf '%s' "/mapcounts_${1#f:}(\\(struct\\|long\\)/,/^}/" ;;
	esac
}

# What the tests say of the mutant: "survives", or who killed it. Some lines matter
# only where the page tables in use are smaller than the largest ones.
verdict() {
	local failed size
	for size in "9 -DTEST_PMD_ORDER=9" "8 -DTEST_PMD_ORDER=5"; do
		# shellcheck disable=SC2086	# flags are words
		if ! ${CC:-cc} $CFLAGS -w "-DFOLIO_MAPCOUNTS_H=\"$(realpath "$out.h")\"" \
				-DTEST_P=$size -o "$out" folio_mapcounts.c >"$out.log" 2>&1; then
			echo "killed by the compiler"
			return
		elif ! timeout 60 "$out" -s $seed -n 300 >"$out.log" 2>&1; then
			failed=$(sed -n 's/^not ok [0-9]* //p' "$out.log" | paste -sd ' ')
			echo "killed by ${failed:-a crash}"
			return
		fi
	done
	echo survives
}

status=0
n=0
mkdir -p "${OUTPUT:-.}"
printf 'KTAP version 1\n1..%d\n' "$(list | wc -l)"
while IFS=$'\t' read -r where edit reason; do
	n=$((n + 1))
	sed "$(address "$where") $edit" $header >"$out.h"
	if [ "$(diff $header "$out.h" | grep -c '^>')" -ne 1 ]; then
		result="does not change one line"
	else
		result=$(verdict)
	fi
	case ${reason:+same}$result in
	killed*) echo "ok $n $where $edit" ;;
	samesurvives) echo "ok $n $where $edit (the same: $reason)" ;;
	*)	echo "not ok $n $where $edit"
		status=1 ;;
	esac
	echo "# $result"
done < <(list)
rm -f "$out" "$out.h" "$out.log"
exit $status
