#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# See that the tests notice an error in each line of folio_mapcounts.h: make one
# edit of the list below at a time, compile, and run. Prints KTAP: "make mutants".

cd "$(dirname "$0")" || exit
header=../../../include/linux/folio_mapcounts.h
out=${OUTPUT:-.}/mutant
seed=1	# what is found once has to be found always

# Each line has, between tabs: f:function or m:macro, with "folio_mapcounts_" or
# "FOLIO_MAPCOUNTS_" before it; what sed is to do there; and, if that changes
# nothing, why: then the tests still have to pass.
list() {
	cat <<'EOF'
m:PTES_OFFSET	s/0$/1/
m:PTES_BITS	s/32/31/
m:PTES_BITS	s/32/33/
m:ENTIRE_BITS	s/18/17/
m:ENTIRE_BITS	s/18/19/
m:CREATOR_BITS	s/14/13/
m:CREATOR_BITS	s/14/15/
m:PTES_MASK	s/OFFSET - 1/OFFSET/
m:PTES_MASK	s/OFFSET - 1/OFFSET - 2/
m:PTES_MASK	s/PTES_OFFSET)/PTES_OFFSET + 1)/
m:ENTIRE_OFFSET	s/ + / - /
m:ENTIRE_OFFSET	s/PTES_BITS/ENTIRE_BITS/
m:ENTIRE_MASK	s/OFFSET - 1/OFFSET/
m:ENTIRE_MASK	s/OFFSET - 1/OFFSET - 2/
m:ENTIRE_MASK	s/ENTIRE_OFFSET)/ENTIRE_OFFSET - 1)/
m:CREATOR_OFFSET	s/ENTIRE_BITS/CREATOR_BITS/
m:CREATOR_MASK	s/63/62/
m:CREATOR_MASK	s/CREATOR_OFFSET)/CREATOR_OFFSET + 1)/
m:PTE	s/PTES_OFFSET/PTES_OFFSET + 1/
m:ENTIRE	s/ENTIRE_OFFSET/ENTIRE_OFFSET + 1/
m:ENTIRE	s/ENTIRE_OFFSET/ENTIRE_OFFSET - 1/
m:CREATOR	s/CREATOR_OFFSET/CREATOR_OFFSET + 1/
m:CREATOR	s/CREATOR_OFFSET/CREATOR_OFFSET - 1/
m:CREATOR_MAX	s/ - 1//
m:CREATOR_MAX	s/BITS) - 1/BITS - 1)/
m:PTES_MAX	s/- 2/- 1/
m:PTES_MAX	s/- 2/- 3/
m:ENTIRE_MAX	s/- 1/- 0/
m:ENTIRE_MAX	s/- 1/- 2/
f:ptes	s/PTES_MASK/ENTIRE_MASK/
f:ptes	s/ & / | /
f:ptes	s/FOLIO_MAPCOUNTS_PTES_MASK/0xffffff/
f:ptes	s/ & FOLIO_MAPCOUNTS_PTES_MASK//	unsigned int has the 32 bits of the field
f:entire	s/ENTIRE_MASK/CREATOR_MASK/
f:entire	s/ & FOLIO_MAPCOUNTS_ENTIRE_MASK//
f:entire	s/ENTIRE_OFFSET/ENTIRE_OFFSET + 1/
f:entire	s/ENTIRE_OFFSET/CREATOR_OFFSET/
f:creator	s/CREATOR_OFFSET/CREATOR_OFFSET + 1/
f:creator	s/CREATOR_OFFSET/CREATOR_OFFSET - 1/
f:creator	s/ >> FOLIO_MAPCOUNTS_CREATOR_OFFSET//
f:mapped	s/mc.word/!mc.word/
f:mapped	s/mc.word/mc.word > 1/
f:mapped	s/mc.word/(u32)mc.word/
f:mapped	s/mc.word/mc.word >> 32/
f:total	s/ + BIT_ULL/ - BIT_ULL/
f:total	s/ + BIT_ULL(.*)//
f:total	s/BITS - 1/BITS/
f:total	s/BITS - 1/BITS - 2/
f:total	s/ptes(mc) +/ptes(mc) -/
f:total	s/(int)folio_mapcounts_ptes(mc) + //
f:total	s/ + folio_mapcounts_entire(unborrowed)//
f:total	s/entire(unborrowed)/entire(mc)/
f:total	s/(int)//	the sum is an unsigned int and becomes the same int
f:pages	s/ptes(mc) +/ptes(mc) -/
f:pages	s/folio_mapcounts_ptes(mc) +/1 +/
f:pages	s/ \* nr_pages/ + nr_pages/
f:pages	s/ \* nr_pages//
f:pages	s/entire(mc) \*/ptes(mc) */
f:pages	s/(u64)//	64 bit: the product is an unsigned long
f:pages	s/(u64)/(u32)/	64 bit: the product is an unsigned long
f:creator_only	s/==/!=/
f:creator_only	s/==/>=/
f:creator_only	s/==/<=/
f:creator_only	s/folio_mapcounts_pages(mc, nr_pages)/folio_mapcounts_ptes(mc)/
f:creator_only	s/nr_pages) ==/nr_pages - 1) ==/
f:creator_only	s/folio_mapcounts_creator(mc)/folio_mapcounts_ptes(mc)/
f:creator_only	s/creator(mc)/creator(mc) + 1/
f:creator_possible	s/<=/</
f:creator_possible	s/<=/==/
f:creator_possible	s/<=/>=/
f:creator_possible	s/nr_pages);/1);/
f:creator_possible	s/folio_mapcounts_pages(mc, nr_pages)/FOLIO_MAPCOUNTS_CREATOR_MAX/
f:estimate	s/if (/if (!/
f:estimate	s/entire(mc))/entire(mc) > 1)/
f:estimate	s/entire(mc))/creator(mc))/
f:estimate	s/return nr_pages/return nr_pages - 1/
f:estimate	s/return nr_pages/return 1/
f:estimate	s/min_t/max_t/
f:estimate	s/unsigned long, f/u16, f/
f:estimate	s/ptes(mc), nr/ptes(mc) + 1, nr/
f:estimate	s/ptes(mc), nr/creator(mc), nr/
f:partial	s/!folio/folio/
f:partial	s/!folio_mapcounts_entire(mc) && //
f:partial	s/) && ptes/) || ptes/
f:partial	s/ptes && ptes/ptes || ptes/
f:partial	s/ptes && ptes/ptes/
f:partial	s/ptes && ptes/ptes > 1 \&\& ptes/
f:partial	s/ptes < /ptes <= /
f:partial	s/ptes < /ptes + 1 < /
f:partial	s/= folio_mapcounts_ptes/= folio_mapcounts_creator/
f:delta_ptes	s/nr_ptes \*/nr_ptes +/
f:delta_ptes	s/nr_ptes \*/(nr_ptes - 1) */
f:delta_ptes	s/nr_ptes \*/(u16)nr_ptes */
f:delta_ptes	s/_PTE +/_PTE -/
f:delta_ptes	s/_PTE +/_ENTIRE +/
f:delta_ptes	s/(creator/(!creator/
f:delta_ptes	s/creator ?/true ?/
f:delta_ptes	s/_CREATOR : 0/_ENTIRE : 0/
f:delta_ptes	s/_CREATOR : 0/_CREATOR : 1/
f:delta_entire	s/_ENTIRE +/_ENTIRE -/
f:delta_entire	s/_ENTIRE +/_PTE +/
f:delta_entire	s/(creator/(!creator/
f:delta_entire	s/creator ?/false ?/
f:delta_entire	s/nr_pages \* //
f:delta_entire	s/nr_pages \*/(nr_pages \& 0x1fff) */
f:delta_entire	s/nr_pages \*/(nr_pages \& 0x3fff) */	the field is modulo 2^14
f:delta_entire	s/CREATOR : 0/CREATOR : 1/
f:delta_split	s/- FOLIO/+ FOLIO/
f:delta_split	s/ - FOLIO_MAPCOUNTS_ENTIRE//
f:delta_split	s/nr_pages \* //
f:delta_split	s/nr_pages \*/(nr_pages - 1) */
f:delta_split	s/_PTE -/_CREATOR -/
f:delta_split	s/_PTE -/_PTE - nr_pages * FOLIO_MAPCOUNTS_CREATOR -/
EOF
}

# The lines of the header that an edit is about, as a sed address.
address() {	# WHERE
	case $1 in
	m:*) printf '%s' "/define FOLIO_MAPCOUNTS_${1#m:}\\b/,/[^\\\\]\$/" ;;
	f:*) printf '%s' "/folio_mapcounts_${1#f:}(\\(struct\\|unsigned\\)/,/^}/" ;;
	esac
}

# What the tests say of the mutant: "survives", or who killed it.
verdict() {
	local failed
	# shellcheck disable=SC2086	# flags are words
	if ! ${CC:-cc} $CFLAGS -w "-DFOLIO_MAPCOUNTS_H=\"$(realpath "$out.h")\"" \
			-o "$out" folio_mapcounts.c >"$out.log" 2>&1; then
		echo "killed by the compiler"
	elif timeout 60 "$out" -s $seed -n 300 >"$out.log" 2>&1; then
		echo survives
	else
		failed=$(sed -n 's/^not ok [0-9]* //p' "$out.log" | paste -sd ' ')
		echo "killed by ${failed:-a crash}"
	fi
}

status=0
n=0
mkdir -p "${OUTPUT:-.}"
printf 'KTAP version 1\n1..%d\n' "$(list | wc -l)"
while IFS=$'\t' read -r where edit reason; do
	n=$((n + 1))
	case "$CFLAGS $reason" in *-m32*"64 bit: "*) reason= ;; esac
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
