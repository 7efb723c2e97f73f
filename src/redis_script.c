/*-------------------------------------------------------------------------
 *
 * redis_script.c
 *	  What runs inside Redis, and the names of things there.
 *
 * KEYS.  Of a database "app", with the default prefix:
 *
 *	  subdispatch:{app}:events	the stream.  An entry has some events of one
 *		sender, whose ids follow each other; its own id is <id of the last>-0, so
 *		that what comes after an event is what Redis has after that id.  Its
 *		fields are, always in this order:
 *			p	the id of the event before them in the stream, 0 for the first
 *			b	the events, see bus_batch.c and event_wire.c
 *			m	the MAC of these, see bus_mac.c
 *	  subdispatch:{app}:state	a hash:
 *			prev	the id of the last event
 *			floor	ids must not be lower, where a server has said so
 *			count	how many events, and how many entries, ever were added
 *			marks	both of these as they were from time to time, to trim by
 *			s:<sender>	the number of its last event, and when it came (s)
 *
 * One stream for a database, not one for each channel: '*' has one order, as it
 * must; each server reads with one command, whatever it subscribes to; a
 * transaction is added as a whole; and ids come from one counter.  The price
 * is that each server reads all events of the group.  What each entry costs is
 * shared by its events, which is why senders wait for one another's reply before
 * they send a small one (redis_send.c).
 *
 * TRIMMING goes by events, of which an entry has one or many: whenever a
 * sixteenth of the maximal length has been added, where the stream then ends is
 * marked, and what is before the last mark that has enough behind it is removed.
 *
 * IDS are max(last + 1, now in us by Redis's clock, what servers say is used
 * up).  The last keeps them rising when Redis has lost its data, or its clock
 * goes back.  Who can write to Redis may have added entries with ids far in the
 * future; such are refused, and the sender says so.
 *
 * ONCE.  A sender whose connection breaks does not know what has arrived, and
 * sends again what was not acknowledged.  The script keeps each sender's last
 * number, and adds only what follows it; the reply tells the number, whether or
 * not anything was added, and the sender goes on behind it.  If Redis has lost
 * what it had acknowledged (it was started with older data), what follows that
 * is added: readers see that something is missing.
 *
 * A script runs alone.  If Redis is out of memory it says so at the first
 * command that writes, and not afterwards, so a batch is added as a whole.
 *
 *-------------------------------------------------------------------------
 */
#include "redis_script.h"

/* A day: clocks may differ, but not that much. */
#define FUTURE	"86400000000"

/*
 * KEYS: stream, state.
 * ARGV: sender, floor, maximal length, number of the first event, number of the
 *		 last one that was acknowledged, how many events, the events, their MAC.
 * Returns the number of the sender's last event that Redis has.
 */
const char *const script_send =
"local state = redis.call('HMGET', KEYS[2], 'prev', 'floor', 'count', 's:' .. ARGV[1])\n"
"local time = redis.call('TIME')\n"
"local now = time[1] * 1000000 + time[2]\n"
"local first = tonumber(ARGV[4])\n"
"local n = tonumber(ARGV[6])\n"
"local seen = state[4] and tonumber(string.match(state[4], '^%d+'))\n"
"local has = math.max(seen or 0, tonumber(ARGV[5]))\n"
"if first ~= has + 1 then return string.format('%.0f', has) end\n"
"local prev = tonumber(state[1] or '0')\n"
"local id = math.max(prev + 1, tonumber(state[2] or '0'), tonumber(ARGV[2]), now) + n - 1\n"
"local function add()\n"
"  if id > now + " FUTURE " then\n"
"    return redis.error_reply('SUBDISPATCH event ids in the stream are more than a day ahead of time')\n"
"  end\n"
"  return redis.pcall('XADD', KEYS[1], string.format('%.0f-0', id), 'p', string.format('%.0f', prev),\n"
"    'b', ARGV[7], 'm', ARGV[8])\n"
"end\n"
"local added = add()\n"
"if type(added) == 'table' and added.err and string.find(added.err, 'equal or smaller') then\n"
"  local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)\n"
"  if top[1] then id = tonumber(string.match(top[1][1], '^%d+')) + n end\n"
"  added = add()\n"
"end\n"
"if type(added) == 'table' and added.err then return added end\n"
"local events, entries = string.match(state[3] or '0 0', '^(%d+) (%d+)$')\n"
"local step = math.max(1, math.floor(ARGV[3] / 16))\n"
"local crossed = math.floor((events + n) / step) > math.floor(events / step)\n"
"events = events + n\n"
"entries = entries + 1\n"
"redis.call('HSET', KEYS[2], 'prev', string.format('%.0f', id), 'count', string.format('%.0f %.0f', events, entries),\n"
"  's:' .. ARGV[1], string.format('%.0f %.0f', first + n - 1, time[1]))\n"
"if crossed then\n"
"  local marks = {}\n"
"  local before\n"
"  for e, k in string.gmatch(redis.call('HGET', KEYS[2], 'marks') or '', '(%d+):(%d+)') do\n"
"    if events - e >= tonumber(ARGV[3]) then before = k else table.insert(marks, e .. ':' .. k) end\n"
"  end\n"
"  table.insert(marks, string.format('%.0f:%.0f', events, entries))\n"
"  redis.call('HSET', KEYS[2], 'marks', table.concat(marks, ' '))\n"
"  if before then redis.call('XTRIM', KEYS[1], 'MAXLEN', string.format('%.0f', entries - before)) end\n"
"end\n"
"if not seen and redis.call('HLEN', KEYS[2]) > 200 then\n"
"  local all = redis.call('HGETALL', KEYS[2])\n"
"  for i = 1, #all, 2 do\n"
"    local came = string.match(all[i], '^s:') and string.match(all[i + 1], '^%d+ (%d+)$')\n"
"    if came and tonumber(came) < time[1] - 30 * 86400 then\n"
"      redis.call('HDEL', KEYS[2], all[i])\n"
"    end\n"
"  end\n"
"end\n"
"return string.format('%.0f', first + n - 1)\n";

/*
 * KEYS: stream, state.
 * ARGV: floor.
 * Returns the id of the stream's last event, that of its last entry (also if it is
 * not one of ours), now in us, then each sender's name and number.
 */
const char *const script_hello =
"local state = redis.call('HMGET', KEYS[2], 'prev', 'floor')\n"
"local time = redis.call('TIME')\n"
"local now = time[1] * 1000000 + time[2]\n"
"local floor = tonumber(ARGV[1])\n"
"if floor > now + " FUTURE " then\n"
"  return redis.error_reply('SUBDISPATCH this server has event ids more than a day ahead of the clock of Redis')\n"
"end\n"
"local prev = state[1] or '0'\n"
"if floor > now and floor > tonumber(prev) + 1 and floor > tonumber(state[2] or '0') then\n"
"  redis.call('HSET', KEYS[2], 'floor', ARGV[1])\n"
"end\n"
"local top = '0'\n"
"local info = redis.pcall('XINFO', 'STREAM', KEYS[1])\n"
"for i = 1, #info, 2 do\n"
"  if info[i] == 'last-generated-id' then top = string.match(info[i + 1], '^%d+') end\n"
"end\n"
"local result = {prev, top, string.format('%.0f', now)}\n"
"local all = redis.call('HGETALL', KEYS[2])\n"
"for i = 1, #all, 2 do\n"
"  local sender = string.match(all[i], '^s:(%x+)$')\n"
"  if sender then\n"
"    table.insert(result, sender)\n"
"    table.insert(result, string.match(all[i + 1], '^%d+'))\n"
"  end\n"
"end\n"
"return result\n";
