# shellcheck shell=sh
# Keeps one throwaway pgpool-II. Arguments: the program and its configuration, in which @dir@ stands for its directory.
#
# Prints the directory it made. When its input ends, because the pooler was dropped or because the test process died of
# anything at all, it stops pgpool and removes the directory. pgpool is many processes, which do not end with the first.

umask 077
dir=$(mktemp -d "${TMPDIR:-/tmp}/trl-pgpool.XXXXXX" 2>/dev/null || mktemp -d /tmp/trl-pgpool.XXXXXX) || exit
printf '%s' "$2" | sed "s|@dir@|$dir|g" >"$dir/pgpool.conf"
touch "$dir/none"

"$1" -n -f "$dir/pgpool.conf" -F "$dir/none" -a "$dir/none" -k "$dir/none" </dev/null >"$dir/log" 2>&1 &
pgpool=$!

# All are in the process group of this script.
remove() {
    kill -s INT "$pgpool" 2>/dev/null && wait "$pgpool"
    rm -rf "$dir"
    kill -s KILL 0
}

trap remove EXIT
trap exit HUP TERM
trap '' INT

echo "$dir"
read -r _
