#!/bin/sh
# Starts a Redis that keeps what it acknowledges: deploy/redis.sh <data folder> [options of redis-server ...]
#
# Whoever dies amid a write leaves half a transaction at the end of the log. With `aof-load-truncated yes` Redis 7 cuts off the torn command
# and leaves its transaction's beginning, which the end of the next transaction completes: after one more restart half of what was never
# acknowledged is there, or, where no other followed, what was acknowledged since is not. So Redis's own tool cuts before the transaction,
# and Redis is told to refuse what is torn still.
#
# Left as they are: a log that was cut so before, since the tool would cut off all that followed (Redis reads it; BGREWRITEAOF makes it
# whole), and one of which more is bad than one write has, which is no torn write (Redis refuses it).
set -eu

folder=${1:?usage: deploy/redis.sh <data folder> [options of redis-server ...]}
shift
log=$folder/appendonlydir/appendonly.aof.manifest
most_bytes=67108864

if [ -f "$log" ]; then
  # Who is killed here leaves the tool behind: nobody may write before it has ended.
  exec 9>"$folder/check.lock"
  flock 9
  if ! found=$(redis-check-aof "$log" 2>&1); then
    printf '%s\n' "$found"
    num_bad=$(printf '%s\n' "$found" | sed -n 's/^AOF analyzed: .* diff=\([0-9]*\)$/\1/p' | tail -n 1)
    case $found in
      *"Unexpected MULTI"*) ;;
      *) [ "${num_bad:-$most_bytes}" -ge "$most_bytes" ] || echo y | redis-check-aof --fix "$log" ;;
    esac
  fi
  exec 9>&-
fi

exec redis-server --dir "$folder" --save '' --appendonly yes --appendfsync always --no-appendfsync-on-rewrite no \
  --aof-load-truncated no --maxmemory-policy noeviction "$@"
