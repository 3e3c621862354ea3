# shellcheck shell=sh
# Keeps one throwaway PostgreSQL. Argument: the directory of the server's programs.
#
# Prints the directory it made, then answers each request line (init, lead, follow PORT DIR, start PORT, promote,
# stop MODE) with an exit status on a line of its own. When its input ends, because the cluster was dropped or because
# the test process died of anything at all, it stops the server and removes the directory. As every step runs in here,
# one after the other, there is no moment at which the end of the test process can leave a half-made or half-started
# server behind.

programs=$1
dir=$(mktemp -d "${TMPDIR:-/tmp}/trl-cluster.XXXXXX" 2>/dev/null || mktemp -d /tmp/trl-cluster.XXXXXX) || exit
data=$dir/data

# The programs get neither the requests nor the answers' pipe: the server would keep it open.
run() {
    program=$programs/$1
    shift
    "$program" "$@" </dev/null >>"$dir/keeper.log" 2>&1
}

# A crash of the machine costs nothing here, so nothing waits for the disk.
init() {
    run initdb --no-sync --auth=trust --username=postgres --encoding=UTF8 --locale=C --pgdata="$data" &&
        cat >>"$data/postgresql.conf" <<END
listen_addresses = '127.0.0.1'
unix_socket_directories = '$dir'
max_connections = 300
shared_buffers = 16MB
fsync = off
synchronous_commit = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
log_line_prefix = '%m [%p] %d '
password_encryption = 'scram-sha-256'
END
}

# What a primary needs to have standbys; the later of two settings counts. initdb has already run with this number of
# senders, below which no standby starts. Not every distribution of PostgreSQL has pg_basebackup, so a standby begins as
# a copy of the primary before its first start, and reads all WAL since then.
lead() {
    cat >>"$data/postgresql.conf" <<END &&
wal_level = replica
max_wal_senders = 10
wal_keep_size = 1GB
END
        cp -R "$data" "$dir/base"
}

# In place of init: a standby of the primary on the given port, whose keeper has the given directory.
follow() {
    cp -R "$2/base" "$data" &&
        cat >>"$data/postgresql.conf" <<END &&
unix_socket_directories = '$dir'
primary_conninfo = 'host=127.0.0.1 port=$1 user=postgres'
END
        touch "$data/standby.signal"
}

start() {
    run pg_ctl start --wait --timeout=30 --pgdata="$data" --log="$dir/server.log" --options="-p $1"
}

promote() {
    run pg_ctl promote --wait --timeout=30 --pgdata="$data"
}

stop() {
    run pg_ctl stop --wait --timeout=30 --pgdata="$data" --mode="$1"
}

remove() {
    stop immediate
    rm -rf "$dir"
}

trap remove EXIT
trap exit HUP INT TERM

# In a subshell: an answer that nobody reads any more ends the subshell, not the keeper.
answer() {
    (echo "$1")
}

answer "$dir"
while read -r verb argument more; do
    case $verb in
    init) init ;;
    lead) lead ;;
    follow) follow "$argument" "$more" ;;
    start) start "$argument" ;;
    promote) promote ;;
    stop) stop "$argument" ;;
    *) false ;;
    esac
    answer "$?"
done
