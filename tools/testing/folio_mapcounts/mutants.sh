#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# See that the tests notice an error in each line of folio_mapcounts.h: make one
# edit of the list below at a time, compile, and run. Prints KTAP: "make mutants".
cd "$(dirname "$0")" || exit
header=../../../include/linux/folio_mapcounts.h
out=${OUTPUT:-.}/mutant
seed=1	# what is found once has to be found always

# Each line has, between tabs: f:function or m:macro, with "mapcounts_" or "MAPCOUNTS_"
# before it; and what sed is to do there, one edit at a time. After "=", an edit
# changes nothing, and the tests have to pass.
list() {
	cat <<'EOF'
m:PTES_OFFSET	s/0$/1/
m:PTES_BITS	s/31/30/	s/31/32/
m:PMDS_BITS	s/31/30/	s/31/32/	s/MAX_PMD_ORDER/PMD_ORDER/	s/ - MAP/ + MAP/
m:CREATOR_BITS	s/2 +/1 +/	s/2 +/3 +/	s/MAX_PMD_ORDER/PMD_ORDER/
m:PTES_MASK	s/BITS - 1/BITS/	s/BITS - 1/BITS - 2/
m:PTES_MASK	s/, 0)/, 1)/
m:PMDS_OFFSET	s/ + / - /	s/PTES_BITS/PMDS_BITS/
m:PMDS_MASK	s/OFFSET - 1/OFFSET/	s/OFFSET - 1/OFFSET - 2/
m:PMDS_MASK	s/PMDS_OFFSET)/PMDS_OFFSET - 1)/
m:CREATOR_OFFSET	s/PMDS_BITS/CREATOR_BITS/
m:CREATOR_MASK	s/63/62/	s/CREATOR_OFFSET)/CREATOR_OFFSET + 1)/
m:PTE	s/PTES_OFFSET/PTES_OFFSET + 1/
m:PMD	s/PMDS_OFFSET/PMDS_OFFSET + 1/	s/PMDS_OFFSET/PMDS_OFFSET - 1/
m:CREATOR	s/CREATOR_OFFSET/CREATOR_OFFSET + 1/	s/CREATOR_OFFSET/CREATOR_OFFSET - 1/
m:PAGES_MAX	s/30/31/	s/30/29/
f:delta	s/creator ? MAP/!creator ? MAP/	s/creator ? MAP/true ? MAP/	s/_CREATOR : 0/_PMD : 0/
f:delta	s/_CREATOR : 0/_CREATOR : 1/	s/(u64)nr_ptes \*/(u64)nr_ptes +/
f:delta	s/(u64)nr_ptes/(u64)(nr_ptes - 1)/	s/(u64)nr_ptes/(u16)nr_ptes/
f:delta	s/(u64)nr_ptes/(u32)nr_ptes/	s/_PTE + c/_PTE - c/	s/_PTE + c/_PTE/
f:delta	s/_PTE + c/_PMD + c/	s/c) +$/c) -/	s/(u64)nr_pmds \*/(u64)nr_pmds +/
f:delta	s/(u64)nr_pmds/(u64)(nr_pmds - 1)/	s/(u64)nr_pmds/(u8)nr_pmds/
f:delta	s/(u64)nr_pmds/(u32)nr_pmds/	s/_PMD + c/_PMD - c/	s/_PMD + c/_PMD/
f:delta	s/_PMD + c/_PTE + c/
f:ptes	s/PTES_MASK/PMDS_MASK/	s/ & / | /	s/MAPCOUNTS_PTES_MASK/0xffffff/
f:ptes	s/ & MAPCOUNTS_PTES_MASK//
f:pmds	s/PMDS_MASK/CREATOR_MASK/	s/ & MAPCOUNTS_PMDS_MASK//
f:pmds	s/PMDS_OFFSET/PMDS_OFFSET + 1/	s/PMDS_OFFSET/CREATOR_OFFSET/
f:creator	s/CREATOR_OFFSET/CREATOR_OFFSET + 1/	s/CREATOR_OFFSET/CREATOR_OFFSET - 1/
f:creator	s/ >> MAPCOUNTS_CREATOR_OFFSET//
f:mapped	s/mc.val/!mc.val/	s/mc.val/mc.val > 1/	s/mc.val/(u32)mc.val/
f:mapped	s/mc.val/mc.val >> 31/
f:entries	s/ptes(mc) +/ptes(mc) -/	s/mapcounts_ptes(mc) + //
f:entries	s/ + mapcounts_pmds(mc)//	s/pmds(mc)/creator(mc)/
f:pages	s/ptes(mc) +/ptes(mc) -/	s/mapcounts_ptes(mc) +/1 +/
f:pages	s/PMD_ORDER/MAX_PMD_ORDER/	s/ << MAPCOUNTS_PMD_ORDER//	s/pmds(mc)/ptes(mc)/
f:pages	s/(unsigned long)mapcounts_pmds/(u16)mapcounts_pmds/
f:bound_pages	s/ptes(mc) +/ptes(mc) -/	s/mapcounts_ptes(mc) +/1 +/
f:bound_pages	s/MAX_PMD_ORDER/PMD_ORDER/	s/ << MAPCOUNTS_MAX_PMD_ORDER//
f:bound_pages	s/pmds(mc)/ptes(mc)/
f:exclusive	s/==/!=/	s/==/>=/	s/==/<=/	s/entries(mc)/ptes(mc)/
f:exclusive	s/entries(mc)/pages(mc)/	s/mapcounts_creator(mc)/mapcounts_ptes(mc)/
f:exclusive	s/creator(mc)/creator(mc) + 1/
f:valid	s/<=/</	s/<=/==/	s/<=/>=/	s/entries(mc)/ptes(mc)/	s/entries(mc)/pages(mc)/
f:nr_mapped	s/= mapcounts_pages/= mapcounts_entries/
f:nr_mapped	s/= mapcounts_pages/= mapcounts_creator/
f:nr_mapped	s/= mapcounts_pages/= mapcounts_bound_pages/	s/long pages/short pages/
f:nr_mapped	s/long creator/char creator/	s/= anon/= !anon/	s/= anon/= true/
f:nr_mapped	s/= anon/= false/	s/!mapcounts_pmds(mc)/mapcounts_pmds(mc)/
f:nr_mapped	s/ \&\& !mapcounts_pmds(mc)//	s/!mapcounts_pmds(mc)/!mapcounts_ptes(mc)/
f:nr_mapped	s/? mapcounts_creator(mc)/? mapcounts_creator(mc) + 1/
f:nr_mapped	s/? mapcounts_creator(mc)/? mapcounts_ptes(mc)/	s/: 0;/: 1;/
f:nr_mapped	s/: 0;/: mapcounts_creator(mc);/	s/min_t/max_t/
f:nr_mapped	s/t(unsigned long, nr/t(u16, nr/	s/long, nr_pages,/long, nr_pages - 1,/
f:nr_mapped	s/long, nr_pages,/long, nr_pages + 1,/	s/max_t/min_t/
f:nr_mapped	s/t(unsigned long, creator/t(u16, creator/	s/long, creator, /long, 0, /
f:nr_mapped	s/pages - creator/pages/	s/pages - creator/pages + creator/
f:nr_pmdmapped	s/min_t/max_t/	s/t(unsigned long, nr/t(u16, nr/	s/pmds(mc)/entries(mc)/
f:nr_pmdmapped	s/PMD_ORDER/MAX_PMD_ORDER/	s/ << MAPCOUNTS_PMD_ORDER//
f:share	s/= mapcounts_pages(mc)/= mapcounts_entries(mc)/
f:share	s/mapcounts_nr_mapped(mc, nr_pages, anon)/nr_pages/
f:share	s/nr_pages, anon)/nr_pages, !anon)/	s/nr_pages, anon)/nr_pages, true)/
f:share	s/nr_pages, anon)/nr_pages, false)/	s/==/!=/	s/return size;/return estimate;/
f:share	s/size \* estimate/size/	s/size \* estimate, pages/size * pages, estimate/
f:average	s/DIV_ROUND_UP(mapcounts_pages(mc), nr_pages)/mapcounts_pages(mc) \/ nr_pages/
f:average	s/pages(mc)/entries(mc)/
f:partial	s/= mapcounts_pages/= mapcounts_entries/
f:partial	s/= mapcounts_pages/= mapcounts_creator/
f:partial	s/pages \&\& pages/pages || pages/	s/pages \&\& pages/pages/
f:partial	s/pages \&\& pages/pages > 1 \&\& pages/	s/pages < /pages <= /
f:partial	s/pages < /pages + 1 < /
f:pages	=s/(unsigned long)//
f:share	=s/==/<=/
EOF
}

# Some lines matter only where the page tables in use are smaller than the largest ones.
survives() {
	local size
	for size in "9 -DTEST_PMD_ORDER=9" "8 -DTEST_PMD_ORDER=5"; do
		# shellcheck disable=SC2086	# flags are words
		${CC:-cc} $CFLAGS -w "-DFOLIO_MAPCOUNTS_H=\"$(realpath "$out.h")\"" \
			-DTEST_P=$size -o "$out" folio_mapcounts.c >"$out.log" 2>&1 &&
			timeout 60 "$out" -s $seed -n 300 >"$out.log" 2>&1 || return
	done
}

status=0
n=0
mkdir -p "${OUTPUT:-.}"
printf 'KTAP version 1\n1..%d\n' "$(list | tr -cd '\t' | wc -c)"
while IFS=$'\t' read -r where edits; do
	case $where in	# the lines of the header that the edits are about
	m:*)	address="/define MAPCOUNTS_${where#m:}\\b/,/[^\\\\]\$/" ;;
	f:*)	address="/mapcounts_${where#f:}(\\(struct\\|long\\)/,/^}/" ;;
	esac
	while IFS= read -r edit; do
		n=$((n + 1))
		result="not ok"
		sed "$address ${edit#=}" $header >"$out.h"
		if [ "$(diff $header "$out.h" | grep -c '^>')" -ne 1 ]; then
			echo "# this does not change one line:"
		elif survives; then
			[ "$edit" = "${edit#=}" ] || result=ok
		else
			[ "$edit" != "${edit#=}" ] || result=ok
		fi
		[ "$result" = ok ] || status=1
		echo "$result $n $where $edit"
	done < <(tr '\t' '\n' <<<"$edits")
done < <(list)
rm -f "$out" "$out.h" "$out.log"
exit $status
