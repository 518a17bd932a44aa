"""What one tenant holds in Redis, counted by name: a value that is written again counts once, one that has ended not.

Two keys beside the values, on one node of a cluster: when each value ends, and how large it is. They are counted before
they are written, by every writer, so two of them together do not pass a limit that neither would.
"""

MAX_ENDED = 1000  # taken off in one call, so that it stays short; the rest are counted until the next

RESERVE = f"""
local ends, sizes, ttl_ms, limit = KEYS[1], KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function size_of(name) return tonumber(redis.call('HGET', sizes, name) or 0) end

if redis.call('EXISTS', ends) == 0 then redis.call('DEL', sizes) end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, {MAX_ENDED})) do
    redis.call('HINCRBY', sizes, 'total', 0 - size_of(name))
    redis.call('HDEL', sizes, name)
    redis.call('ZREM', ends, name)
end
local more = 0
for i = 3, #ARGV, 2 do more = more + ARGV[i + 1] - size_of(ARGV[i]) end
if size_of('total') + more > limit then
    local first = redis.call('ZRANGE', ends, 0, 0, 'WITHSCORES')
    return math.max(1, math.ceil((first[2] or now + ttl_ms) - now))
end
redis.call('HINCRBY', sizes, 'total', more)
for i = 3, #ARGV, 2 do
    redis.call('HSET', sizes, ARGV[i], ARGV[i + 1])
    redis.call('ZADD', ends, now + ttl_ms, ARGV[i])
end
redis.call('PEXPIRE', ends, ttl_ms)
redis.call('PEXPIRE', sizes, ttl_ms)
return 0
"""
"""Milliseconds until the first value ends, if there is no room for more; 0 when they have been counted."""


def held_keys(prefix: str) -> tuple[str, str]:
    """Where the values whose keys begin with `prefix` are counted; not under it, so no purge takes them for values."""
    return f"{{{prefix}}}:ends", f"{{{prefix}}}:sizes"
