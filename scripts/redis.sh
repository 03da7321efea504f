# SPDX-License-Identifier: GPL-2.0
# Sourced by the scripts that run redis inside a guest.
# shellcheck shell=bash

socket=/tmp/redis.sock
cli() { redis-cli -s $socket "$@"; }

# With $1 values of 1000 bytes; it saves them in /tmp/redis when it is told to.
start_redis() {
	mkdir -p /tmp/redis
	redis-server --port 0 --unixsocket $socket --dir /tmp/redis --save '' --appendonly no \
		--disable-thp no --enable-debug-command local --daemonize yes \
		--logfile /tmp/redis/log >/dev/null
	for _ in {1..300}; do
		if cli ping >/dev/null 2>&1; then break; fi
		sleep 0.1
	done
	cli debug populate "$1" key: 1000 >/dev/null
}

# Overwrite $2 of the $1 values at random, without a change of their size.
write_load() { redis-benchmark -s $socket -q -t set -r "$1" -n "$2" -d 1000 -P 16 >/dev/null; }

# Saves in a child: start that, and wait for it. The status tells if all is saved.
save() { cli bgsave >/dev/null; }
saved() {
	while cli info persistence | grep -q '^rdb_bgsave_in_progress:1'; do sleep 0.2; done
	cli info persistence | grep -q '^rdb_last_bgsave_status:ok'
}
