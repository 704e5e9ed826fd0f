-- Counts one event of one entity unless it was counted, and reads the windows that end at its time.
--
-- KEYS times, totals, marker. ARGV: id, time (ms), amount, span that events are kept for (ms), spans of the windows (ms) …
-- An empty amount only reads: nothing is counted or written.
--
-- times  event id → time.
-- totals event id → sum of its hour up to and including it; number of an hour → sum of all before that hour. An event's
--        running sum is the two added, so a late event moves the rest of its hour and the hours after it, not every event.
--        base → sum of what was forgotten; first → time of the first event.
-- marker of the bucket: epoch, since, and writes, which only a server that lost some can count back.
--
-- Sums are 64-bit integers that only the server and the caller add: a Lua number holds 53 bits.
local times, totals, marker = KEYS[1], KEYS[2], KEYS[3]
local id, at, amount, keep = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local hour, counts_it = 3600000, amount ~= ''

local function field(t) return string.format('%d', math.floor(t / hour)) end
local function next_hour(t) return (math.floor(t / hour) + 1) * hour end

-- Adds to a sum; beyond 64 bits it wraps, which leaves differences right.
local function add(name, n)
  if type(redis.pcall('HINCRBY', totals, name, n)) == 'number' then return end
  local turn = n:sub(1, 1) == '-' and '4611686018427387904' or '-4611686018427387904'
  for _, step in ipairs({turn, turn, n, turn, turn}) do redis.call('HINCRBY', totals, name, step) end
end

-- Moves the sums of the events after rank: those of the same hour one by one, later hours each at once.
local function shift(rank)
  local last = redis.call('ZCOUNT', times, '-inf', '(' .. string.format('%d', next_hour(at))) - 1
  for from = rank + 1, last, 1000 do
    for _, other in ipairs(redis.call('ZRANGE', times, from, math.min(from + 999, last))) do add(other, amount) end
  end
  local later = redis.call('ZRANGEBYSCORE', times, next_hour(at), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  while later[1] do
    add(field(later[2]), amount)
    later = redis.call('ZRANGEBYSCORE', times, next_hour(later[2]), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  end
end

-- Gives a new event its sum, and its hour one where it is the first of it. before is the event that precedes it, if any, and
-- sums are that one's.
local function place(before, sums, base)
  local h = field(at)
  if before[1] and field(before[2]) == h then
    redis.call('HSET', totals, id, sums[1])
    add(id, amount)
  else
    redis.call('HSET', totals, id, amount)
    if redis.call('HSETNX', totals, h, sums[2] or base or 0) == 1 and before[1] then add(h, sums[1]) end
  end
end

-- Forgets up to 100 events before a time, which is a full hour: the sums of an hour go all or not at all.
local function evict(horizon)
  local old = redis.call('ZRANGEBYSCORE', times, '-inf', '(' .. string.format('%d', horizon), 'WITHSCORES', 'LIMIT', 0, 100)
  if not old[1] then return end
  local last = redis.call('HMGET', totals, field(old[#old]), old[#old - 1])
  redis.call('HSET', totals, 'base', last[1])
  add('base', last[2])
  local ids, gone = {}, {}
  for i = 1, #old, 2 do
    ids[#ids + 1], gone[#gone + 1] = old[i], old[i]
    if i > 1 and field(old[i + 1]) ~= field(old[i - 1]) then gone[#gone + 1] = field(old[i - 1]) end
  end
  redis.call('ZREM', times, unpack(ids))
  local first = redis.call('ZRANGE', times, 0, 0, 'WITHSCORES')
  if field(first[2]) ~= field(old[#old]) then gone[#gone + 1] = field(old[#old]) end
  redis.call('HDEL', totals, unpack(gone))
end

local newest = redis.call('ZRANGE', times, '-1', '-1', 'WITHSCORES')
local head = redis.call('HMGET', totals, 'first', 'base', newest[1] or 'none', newest[1] and field(newest[2]) or 'none')
local first, base, sums = head[1], head[2], {head[3], head[4]}

-- One key of the two without the other: the server dropped it, and the bucket is unknown until it is rebuilt.
local torn = (newest[1] ~= nil) ~= (first ~= false)
if torn then
  if counts_it then
    redis.call('DEL', times, totals)
    redis.call('HDEL', marker, 'epoch')
  end
  newest, first, base, sums = {}, false, false, {}
end
if counts_it then redis.call('HINCRBY', marker, 'writes', 1) end
local state = redis.call('HMGET', marker, 'epoch', 'since', 'writes')
if torn then state[1] = false end

local horizon = math.floor((math.max(at, tonumber(newest[2] or at)) - keep) / hour) * hour
if counts_it and at < horizon and not base then -- it is left out, and that must be told of every window it would be in
  redis.call('HSET', totals, 'base', '0')
  base = '0'
end
local added = counts_it and at >= horizon and redis.call('ZADD', times, 'NX', ARGV[2], id) == 1
local latest = added and (not newest[1] or tonumber(newest[2]) < at)
if latest then
  place(newest, sums, base)
elseif added then
  local rank, before = redis.call('ZRANK', times, id), {}
  if rank > 0 then
    before = redis.call('ZRANGE', times, rank - 1, rank - 1, 'WITHSCORES')
    sums = redis.call('HMGET', totals, before[1], field(before[2]))
  else
    sums = {}
  end
  place(before, sums, base)
  shift(rank)
end
if counts_it and (not first or at < tonumber(first)) then
  first = ARGV[2]
  redis.call('HSET', totals, 'first', first)
end

-- The running sums up to the windows' ends. Windows grow, so before the oldest event nothing changes any more.
local none, counts, ends, count, empty = {base or '0', '0'}, {}, {}, 1, latest and not newest[1]
local function last_until(t) return redis.call('ZREVRANGEBYSCORE', times, t, '-inf', 'WITHSCORES', 'LIMIT', 0, 1) end
local function running(last) return last[1] and redis.call('HMGET', totals, field(last[2]), last[1]) or none end

ends[1] = running(latest and {id, at} or last_until(ARGV[2]))
for i = 5, #ARGV do
  local start = at - ARGV[i]
  if empty then
    ends[#ends + 1] = none
  elseif latest and tonumber(newest[2]) <= start then
    ends[#ends + 1] = {sums[2], sums[1]}
  else
    local from = string.format('%d', start)
    local last = last_until(from)
    ends[#ends + 1] = running(last)
    empty = not last[1]
    count = redis.call('ZCOUNT', times, '(' .. from, ARGV[2])
  end
  counts[#counts + 1] = count
end

if added then
  if not empty then evict(horizon) end
  redis.call('PEXPIRE', times, ARGV[4])
  redis.call('PEXPIRE', totals, ARGV[4])
end
-- What happened before the horizon is not told any more, once something was forgotten or came too late to be counted.
local lost = (at < horizon or base) and string.format('%d', horizon)
local there = counts_it or redis.call('ZSCORE', times, id)
return {state[1], state[2], lost, state[3], first, counts, ends, there and 1 or 0}
