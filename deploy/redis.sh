#!/bin/sh
# Starts a Redis that keeps what it acknowledges: deploy/redis.sh <data folder> [redis.conf] [options of redis-server ...]
#
# Whoever dies amid a write leaves half a transaction at the end of the log. With `aof-load-truncated yes` Redis (and Valkey before its pull
# request 4342) cuts off the torn command and leaves its transaction's beginning, which the end of the next transaction completes: after one
# more restart half of what was never acknowledged is there, or, where no transaction followed, what was acknowledged since is not. So here
# the log is cut before that transaction by Redis's own tool, what is cut is kept beside it as torn.*, and Redis refuses what is torn still.
#
# Cut is only what looks like one write that did not end. Whatever else is wrong with the log Redis is left to judge.
set -eu

folder=${1:?usage: deploy/redis.sh <data folder> [redis.conf] [options of redis-server ...]}
shift
logs=$folder/appendonlydir
manifest=$logs/appendonly.aof.manifest
most_bytes=67108864

# Two in one folder would write over each other; who was killed here or while rewriting may have left a child that still does.
exec 9<"$folder"
flock -w 60 9 || { echo "$folder belongs to a Redis that is running" >&2; exit 1; }

if [ -f "$manifest" ] && ! found=$(redis-check-aof "$manifest" 2>&1); then
  printf '%s\n' "$found"
  IFS=' ' read -r num_bytes num_good name <<END
$(printf '%s\n' "$found" | sed -n 's/^AOF analyzed: filename=\(.*\), size=.* ok_up_to=\([0-9]*\),.* diff=\([0-9]*\)$/\3 \2 \1/p' | tail -n 1)
END
  case $found in
    *"Unexpected MULTI"*) echo "This log was cut amid a transaction before: run BGREWRITEAOF now, and never --fix." >&2 ;;
    *"Unexpected "* | *"Expected prefix"* | *"format error"*) ;;
    *)
      case $name in
        *.incr.aof)
          if [ "$num_bytes" -lt "$most_bytes" ]; then
            tail -c "$num_bytes" "$logs/$name" >"$folder/torn.$num_good.$name"
            echo y | redis-check-aof --fix "$manifest" || :
          fi
          ;;
      esac
      ;;
  esac
fi

exec redis-server "$@" --dir "$folder" --appenddirname appendonlydir --appendfilename appendonly.aof --save '' --appendonly yes \
  --appendfsync always --no-appendfsync-on-rewrite no --aof-load-truncated no --maxmemory-policy noeviction
