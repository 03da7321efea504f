# SPDX-License-Identifier: GPL-2.0
# Sourced by the scripts that turn patches/ into commits of build/linux, and back.
#
# In build/linux, refs/folio/base is the kernel without patches, and each folder
# patches/<n>-<name> is a branch <n>-<name> that ends at its last patch. Where the
# branches were when patches/ last held the same is below refs/folio/series.
# refs/folio/inputs is a snapshot of all that refresh writes, at that time.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154	# lib.sh sets ours, the scripts use these

unset "${!GIT_@}"	# the user's own
export GIT_CONFIG_GLOBAL=$top/scripts/gitconfig GIT_CONFIG_NOSYSTEM=1
export GIT_LITERAL_PATHSPECS=1 LC_ALL=C

base=refs/folio/base
series=refs/folio/series
inputs=refs/folio/inputs

g() { git -C "$tree" "$@"; }

# --- what is there --------------------------------------------------------------

# Print "name commit" for each branch of a series, in order; the default is
# build/linux and its branches.
tips() {	# NAMESPACE GIT-TREE
	git -C "${2:-$tree}" for-each-ref --format='%(refname:lstrip=-1) %(objectname)' "${1:-refs/heads}/[1-9]-*"
}

# Print the name on the last line of what tips prints.
last_of() { tail -n 1 <<<"$1" | cut -d ' ' -f 1; }

need_series() {
	[ -z "${SERIES:-}" ] || [ -d "$top/patches/$SERIES" ] ||
		die "there is no SERIES=$SERIES" "there are: $(cd "$top/patches" && find [1-9]-* -maxdepth 0 2>/dev/null | paste -sd ' ')"
}

changed_files() { g status --porcelain --no-renames --untracked-files=all | cut -c4-; }
rebasing() { [ -n "$(find "$(g rev-parse --absolute-git-dir)" -maxdepth 1 -name 'rebase-*')" ]; }

# Print the branches that are not where patches/ has them.
moved() { comm -23 <(tips) <(tips $series) | cut -d ' ' -f 1 | paste -sd ' '; }

# Say what build/linux holds that patches/ does not: nothing, or "2 commits, 1 file".
unrefreshed() {
	local commits files what=()
	commits=$(g rev-list --count HEAD --branches='[1-9]-*' --not $base --glob=$series)
	files=$(changed_files | wc -l)
	[ "$commits" -eq 0 ] || what+=("$commits commit$([ "$commits" -eq 1 ] || echo s)")
	[ "$commits" -ne 0 ] || [ -z "$(moved)" ] || what+=("moved: $(moved)")
	[ "$files" -eq 0 ] || what+=("$files file$([ "$files" -eq 1 ] || echo s)")
	! rebasing || what+=("an unfinished rebase")
	printf '%s\n' "${what[@]}" | paste -sd , | sed 's/,/, /g'
}

# Print every file that refresh writes, or would remove: the mails, and all that
# lies below a directory that the kernel has too. scripts/ is ours.
written() {	# ROOT
	local dirs
	mapfile -t dirs < <(g ls-tree -d --name-only $base | grep -vx scripts)
	cd "$1" || return
	find patches/[1-9]-* -name '*.patch' ! -name 0000-cover-letter.patch 2>/dev/null || true
	find MAINTAINERS "${dirs[@]}" -type f ! -name '*~' ! -name '.*.sw?' 2>/dev/null || true
}

# Print the id of a git tree of these files.
snapshot() {	# ROOT
	local -x GIT_INDEX_FILE=$tmp/snapshot
	rm -f "$GIT_INDEX_FILE"
	(written "$1") | git -C "$1" --git-dir="$tree/.git" --work-tree=. update-index --add --stdin
	g write-tree
}

# --- assembling -----------------------------------------------------------------

# Run a command that makes commits: the same input gives the same ids, whatever
# build/linux has in a configuration of its own.
dated() {
	local date name email
	date=$(g log -1 --format='%ct +0000' $base)
	name=$(git config -f "$GIT_CONFIG_GLOBAL" user.name) email=$(git config -f "$GIT_CONFIG_GLOBAL" user.email)
	GIT_AUTHOR_NAME=$name GIT_AUTHOR_EMAIL=$email GIT_AUTHOR_DATE=$date \
	GIT_COMMITTER_NAME=$name GIT_COMMITTER_EMAIL=$email GIT_COMMITTER_DATE=$date "$@"
}

# Make a commit of each mail below ROOT/patches, on refs/folio/base, without index
# and working tree of build/linux. Set assembled, as tips would print it.
assemble() {	# ROOT
	local folder mail tip tree_id subject
	local -x GIT_INDEX_FILE=$tmp/assemble
	assembled=''
	tip=$(g rev-parse $base)
	g read-tree $base
	for folder in "$1"/patches/[1-9]-*/; do
		[ -d "$folder" ] || continue
		for mail in "$folder"*.patch; do
			[ -e "$mail" ] && [ "${mail##*/}" != 0000-cover-letter.patch ] || continue
			g mailinfo -k "$tmp/body" "$tmp/diff" <"$mail" >"$tmp/headers"
			subject=$(sed -n 's/^Subject: //p' "$tmp/headers")
			[ -n "$subject" ] || die "${mail#"$1/"} has no subject" "begin it with Subject: and a blank line"
			g apply --cached --whitespace=nowarn "$tmp/diff" 2>"$tmp/errors" || {
				die_if_full
				die "${mail#"$1/"} does not apply to $(g config folio.origin): $(sed -n '/^error: /{s///p;q}' "$tmp/errors")" \
					"build/linux is unchanged; correct the mail, or use the kernel that BASE names as tested"
			}
			tree_id=$(g write-tree)
			tip=$(printf '%s\n' "$subject" '' | cat - "$tmp/body" | git stripspace | g commit-tree "$tree_id" -p "$tip")
		done
		assembled+=${assembled:+$'\n'}"$(basename "$folder") $tip"
	done
}

# Print commands for update-ref that leave TIPS, and no others, in NAMESPACE.
moves() {	# NAMESPACE TIPS
	comm -13 <(cut -d ' ' -f 1 <<<"$2") <(tips "$1" | cut -d ' ' -f 1) | sed "s|.*|delete $1/&|"
	sed -n "s|\(.*\) |update $1/\1 |p" <<<"$2"
}

# --- mail -------------------------------------------------------------------------

# Make a git tree that borrows the objects of build/linux, but no configuration of
# the user's.
borrow() {	# DIRECTORY
	git init -q --template= "$1"
	mkdir -p "$1/.git/objects/info" "$1/.git/info"
	echo "$tree/.git/objects" >"$1/.git/objects/info/alternates"
	echo '*.[ch] diff=cpp' >"$1/.git/info/attributes"	# as the kernel's
	[ ! -e "$tree/.git/shallow" ] || cp "$tree/.git/shallow" "$1/.git/"
}

# Make $tmp/mail, a tree with the branches of NAMESPACE, whose commits are made
# again: without Signed-off-by, by whom the environment says.
recommit() {	# NAMESPACE
	local name id from tip commit
	borrow "$tmp/mail"
	from=$(g rev-parse $base) tip=$(g rev-parse $base)
	while read -r name id; do
		for commit in $(g rev-list --reverse "$from..$id"); do
			tip=$(g log -1 --format=%B "$commit" | sed '/^Signed-off-by: /d' | git stripspace |
				git -C "$tmp/mail" commit-tree "$commit^{tree}" -p "$tip")
		done
		git -C "$tmp/mail" update-ref "refs/heads/$name" "$tip"
		from=$id
	done < <(tips "$1")
}
