-- Keep the key of a lock for so many milliseconds more; set it anew where Redis has lost it.
-- KEYS: the lock. ARGV: token, milliseconds.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
