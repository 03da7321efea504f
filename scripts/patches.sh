# SPDX-License-Identifier: GPL-2.0
# Sourced by the scripts that turn patches/ and the overlay into commits of
# build/linux, and back.
#
# In build/linux, refs/folio/base is the kernel without the series,
# refs/folio/applied the last commit that patches/ and the overlay are known to
# stand for, and refs/folio/inputs a snapshot of these files at that time.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154	# lib.sh sets ours, the scripts use these

export GIT_CONFIG_GLOBAL=$top/scripts/gitconfig GIT_CONFIG_NOSYSTEM=1
export GIT_LITERAL_PATHSPECS=1 LC_ALL=C
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_EXTERNAL_DIFF GIT_DIFF_OPTS

base=refs/folio/base
applied=refs/folio/applied
inputs=refs/folio/inputs

g() { git -C "$tree" "$@"; }

# The kernel's version, from its Makefile on stdin.
version_of() {
	awk '$2 == "=" && $1 ~ /^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)$/ { v[$1] = $3 }
	     $1 == "NAME" { exit }
	     END { if ("VERSION" in v) print v["VERSION"] "." v["PATCHLEVEL"] "." v["SUBLEVEL"] v["EXTRAVERSION"] }'
}

# Print the overlay's files: all that lies below a directory that the kernel
# has too. scripts/ is ours.
overlay() {	# ROOT
	g ls-tree -d --name-only $base | while read -r dir; do
		if [ "$dir" != scripts ] && [ -d "$1/$dir" ]; then
			(cd "$1" && find "$dir" -type f ! -name '*~' ! -name '.*.sw?')
		fi
	done | sort
}

# Print the id of a git tree of all that the assembled tree is made from: not
# the cover letter, and patches/series without its comments.
snapshot() {	# ROOT
	local index=$tmp/snapshot list
	list=$(overlay "$1" && cd "$1" && find patches MAINTAINERS -maxdepth 1 -type f \
		! -name 0000-cover-letter ! -name '*~' 2>/dev/null) || true
	rm -f "$index"
	[ -z "$list" ] || GIT_INDEX_FILE=$index git -C "$1" --git-dir="$tree/.git" --work-tree=. \
		add -f --pathspec-from-file=- <<<"$list"
	[ ! -e "$1/patches/series" ] ||
		GIT_INDEX_FILE=$index g update-index --add --cacheinfo \
			"100644,$(grep -v '^#' "$1/patches/series" | g hash-object -w --stdin),patches/series"
	GIT_INDEX_FILE=$index g write-tree
}

# Say what build/linux holds that patches/ does not: nothing, or "2 commits and
# 1 changed file".
unrefreshed() {
	local commits files what=()
	[ "$(g rev-parse HEAD)" = "$(g rev-parse $applied)" ] || {
		commits=$(g rev-list --count $applied..HEAD)
		what+=("$commits commit$([ "$commits" = 1 ] || echo s)")
	}
	files=$(changed_files | wc -l)
	[ "$files" -eq 0 ] || what+=("$files changed file$([ "$files" -eq 1 ] || echo s)")
	[ ${#what[@]} -lt 2 ] || what=("${what[0]} and ${what[1]}")
	echo "${what[*]}"
}

changed_files() { g status --porcelain --no-renames --untracked-files=all | cut -c4-; }

# --- patches/series -----------------------------------------------------------

# Set series to the names of the patches in order, brings[PATCH] to the new
# files listed below it, and owner[FILE] to the patch that lists FILE.
read_series() {	# ROOT
	local root=$1 where line n=0 patch='' file
	series=()
	declare -gA brings=() owner=()
	[ -e "$root/patches/series" ] || : >"$tmp/empty"
	while IFS= read -r line || [ -n "$line" ]; do
		n=$((n + 1))
		where=patches/series:$n
		file=${line#"${line%%[![:space:]]*}"}
		file=${file%"${file##*[![:space:]]}"}
		case $line in
		'#'*) ;;
		[[:space:]]*)
			[ -n "$file" ] || continue
			[ -n "$patch" ] || die "$where: $file stands below no patch" "list it below the patch that brings it"
			[ -z "${owner[$file]:-}" ] || die "$where: $file is listed twice" "list it once, below the patch that creates it"
			[ -f "$root/$file" ] || die "$where: $file is missing" "restore it or remove the line"
			owner[$file]=$patch
			brings[$patch]+=$file$'\n'
			;;
		?*)
			patch=$file
			[ -f "$root/patches/$patch" ] || die "$where: patches/$patch is missing" "restore it or remove the line"
			[[ " ${series[*]} " != *" $patch "* ]] || die "$where: $patch is listed twice" "remove one line"
			series+=("$patch")
			;;
		esac
	done <"$([ -e "$root/patches/series" ] && echo "$root/patches/series" || echo "$tmp/empty")"

	while read -r file; do
		[ -n "${owner[$file]:-}" ] ||
			die "$file is in the overlay, but no patch in patches/series brings it" "list it below its patch or move it away"
	done < <(overlay "$root")
	while read -r patch; do
		[[ " ${series[*]} " == *" $patch "* ]] ||
			die "patches/$patch is not in patches/series" "list it there or move it away"
	done < <(cd "$root" && find patches -maxdepth 1 -name '*.patch' -printf '%P\n' 2>/dev/null)
}

# A patch file is "Subject: ...", a blank line, the message, "---", and hunks.
patch_message() { sed -e '/^---$/,$d' -e '1s/^Subject: //' "$1"; }
patch_hunks() { sed '1,/^---$/d' "$1"; }

# --- our entry in the kernel's MAINTAINERS --------------------------------------

# A section starts with a title: the line before the first "M:", "S:" and so on.

# Print the sections of NEW whose titles OLD does not have.
new_sections() {	# OLD NEW
	awk '
	FNR == 1 { file++; prev = ""; title = "" }
	/^[A-Z]:[\t ]/ && title == "" { title = prev; if (file == 1) old[title]; else if (!(title in old)) { print sep title; sep = "\n"; show = 1 } }
	/^$/ { title = ""; show = 0 }
	show { print }
	{ prev = $0 }' "$1" "$2"
}

# Print MAINTAINERS with ENTRY at its alphabetical place: where the fewest
# titles stand on the wrong side, since the kernel has some out of order.
insert_section() {	# MAINTAINERS ENTRY
	awk '
	function after(t) { return t == "THE REST" || toupper(t) > toupper(ours) }
	NR == FNR { entry[++n] = $0; if (NR == 1) ours = $0; next }
	{ line[++lines] = $0 }
	/^[A-Z]:[\t ]/ && !titled { titled = 1; at[++titles] = lines - 1; late[titles] = after(line[lines - 1]) }
	/^$/ { titled = 0 }
	END {
		for (i = 1; i <= titles; i++)
			early += !late[i]
		best = wrong = early	# ours before all
		place = 1
		for (i = 1; i <= titles; i++) {
			wrong += late[i] ? 1 : -1
			if (wrong < best) { best = wrong; place = i + 1 }
		}
		for (i = 1; i <= lines; i++) {
			if (i == at[place]) {
				for (j = 1; j <= n; j++)
					print entry[j]
				print ""
			}
			print line[i]
		}
	}' "$2" "$1"
}

# --- assembling -----------------------------------------------------------------

# Name the patch, the file and the hunk that "git apply" complained about.
does_not_apply() {	# PATCH ERRORS
	local patch=$1 file line hunk what
	die_if_full
	what=$(sed -n 's/^error: patch failed: //p' "$2" | head -n 1)
	if [ -n "$what" ]; then
		file=${what%:*}
		line=${what##*:}
		hunk=$(patch_hunks "$patch" | awk -v file="$file" -v line="$line" '
			/^diff --git / { on = $3 == "a/" file; n = 0 }
			on && /^@@ / { n++; split($2, at, /[-,]/); if (at[2] == line) { print n; exit } }')
		what="$file, hunk ${hunk:-?} (its line $line)"
	else
		what=$(sed -n 's/^error: //p' "$2" | head -n 1)
	fi
	die "patches/${patch##*/} does not apply to Linux $(g show $base:Makefile | version_of): $what" \
		"build/linux is unchanged; correct the patch, or use the kernel that BASE names as tested"
}

# The overlay holds the final contents of new files, while a patch brings what a
# file is at that point. Undo the hunks of later patches, last patch first, and
# leave the listing for each patch's new files in $tmp/new.PATCH.
unwind() {	# ROOT
	local root=$1 i patch file mode args
	local -x GIT_INDEX_FILE=$tmp/unwind
	rm -f "$GIT_INDEX_FILE"
	for file in "${!owner[@]}"; do
		[ "$file" != MAINTAINERS ] || continue
		mode=100644
		[ ! -x "$root/$file" ] || mode=100755
		printf '%s %s\t%s\n' $mode "$(g hash-object -w --no-filters "$root/$file")" "$file"
	done | g update-index --index-info
	for ((i = ${#series[@]} - 1; i >= 0; i--)); do
		patch=${series[i]}
		mapfile -t args < <(printf '%s' "${brings[$patch]:-}")
		: >"$tmp/new.$patch"
		if [ ${#args[@]} -gt 0 ]; then
			g ls-files -s -- "${args[@]}" >"$tmp/new.$patch"
			printf '%s\n' "${args[@]}" | g update-index --force-remove --stdin
		fi
		patch_hunks "$root/patches/$patch" >"$tmp/hunks"
		mapfile -t args < <(comm -12 <(sed -n 's/^+++ b\///p; s/^diff --git a\/.* b\///p' "$tmp/hunks" | sort -u) <(g ls-files | sort))
		[ ${#args[@]} -gt 0 ] || continue
		g apply --cached -R "${args[@]/#/--include=}" "$tmp/hunks" 2>"$tmp/errors" || {
			die_if_full
			cat "$tmp/errors" >&2
			die "patches/$patch: its hunks do not lead to what the overlay has as ${args[*]}" \
				"the overlay holds a new file as it is after the last patch; correct one of the two"
		}
	done
}

# Make a commit for each patch on refs/folio/base, touching neither index nor
# working tree, and set tip. Same files, same base: same commit ids.
assemble() {	# ROOT
	local root=$1 patch files have tree_id
	local -x GIT_AUTHOR_DATE GIT_COMMITTER_DATE
	read_series "$root"
	mapfile -t files < <(printf '%s\n' "${!owner[@]}" | grep -vx -e MAINTAINERS -e '' | sort)
	if [ ${#files[@]} -gt 0 ]; then
		have=$(g ls-tree --name-only $base -- "${files[@]}" | head -n 1)
		[ -z "$have" ] || die "$have is in the overlay, but Linux $(g show $base:Makefile | version_of) already has it" \
			"turn ours into hunks against the kernel's file"
	fi
	unwind "$root"

	GIT_AUTHOR_DATE=$(g log -1 --format='%ct +0000' $base)
	GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE
	local -x GIT_INDEX_FILE=$tmp/assemble
	g read-tree $base
	tip=$(g rev-parse $base)
	for patch in "${series[@]}"; do
		if [ "${owner[MAINTAINERS]:-}" = "$patch" ]; then
			g show :MAINTAINERS >"$tmp/MAINTAINERS"
			insert_section "$tmp/MAINTAINERS" "$root/MAINTAINERS" >"$tmp/MAINTAINERS.new"
			printf '100644 %s\tMAINTAINERS\n' "$(g hash-object -w --no-filters "$tmp/MAINTAINERS.new")" >>"$tmp/new.$patch"
		fi
		[ ! -s "$tmp/new.$patch" ] || g update-index --index-info <"$tmp/new.$patch"
		patch_hunks "$root/patches/$patch" >"$tmp/hunks"
		! grep -q '^diff --git ' "$tmp/hunks" ||
			g apply --cached --whitespace=nowarn "$tmp/hunks" 2>"$tmp/errors" ||
			does_not_apply "$root/patches/$patch" "$tmp/errors"
		tree_id=$(g write-tree)
		tip=$(patch_message "$root/patches/$patch" | git stripspace | g commit-tree "$tree_id" -p "$tip")
	done
}

# --- mail -------------------------------------------------------------------------

# Make a git tree that borrows the objects of build/linux, which stays as it is.
borrow() {	# DIRECTORY
	git init -q --template= "$1"
	mkdir -p "$1/.git/objects/info"
	echo "$tree/.git/objects" >"$1/.git/objects/info/alternates"
	[ ! -e "$tree/.git/shallow" ] || cp "$tree/.git/shallow" "$1/.git/"
}

# Write the series as mails from the sender into DIRECTORY.
write_mails() {	# DIRECTORY NAME EMAIL FORMAT-PATCH-OPTION...
	local directory=$1 commit mail=$tmp/mail cover='no cover letter yet'
	local -x GIT_AUTHOR_NAME=$2 GIT_AUTHOR_EMAIL=$3 GIT_COMMITTER_NAME=$2 GIT_COMMITTER_EMAIL=$3
	shift 3
	borrow "$mail"
	tip=$(g rev-parse $base)
	for commit in $(g rev-list --reverse $base..$applied); do
		tip=$(g log -1 --format=%B "$commit" | git -C "$mail" commit-tree "$(g rev-parse "$commit^{tree}")" -p "$tip")
	done
	git -C "$mail" update-ref refs/heads/series "$tip"
	# A base commit that scripts/base made tells nobody anything.
	[ "$(g log -1 --format=%ce $base)" = apply@localhost ] || set -- --base="$(g rev-parse $base)" "$@"
	[ ! -s "$top/patches/0000-cover-letter" ] || cover=$(cat "$top/patches/0000-cover-letter")
	git -C "$mail" -c branch.series.description="$cover" format-patch -q --zero-commit --cover-letter \
		--cover-from-description=subject -o "$directory" "$@" "$(g rev-parse $base)..series"
}
