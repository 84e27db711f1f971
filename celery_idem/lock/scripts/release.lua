-- Delete the key of a lock if it still carries our token, and wake one of those who wait.
-- KEYS: the lock, its bell. ARGV: token, milliseconds for which the bell is kept.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('DEL', KEYS[1])
redis.call('DEL', KEYS[2])
redis.call('RPUSH', KEYS[2], 1)
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
