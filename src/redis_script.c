/*-------------------------------------------------------------------------
 *
 * redis_script.c
 *	  What runs inside Redis, and the names of things there.
 *
 * KEYS.  Of a database "app", with the default prefix:
 *
 *	  subdispatch:{app}:events	the stream.  Of each entry the id is <event id>-0,
 *		and the fields are, always in this order:
 *			p	the id of the event before it in the stream, 0 for the first
 *			s	the sender: 32 hexadecimal digits, new with each start of a server
 *			n	the number that the sender gave it: from 1 on without a gap
 *			t	when it was sent, in us of the Unix epoch by the sender's clock
 *			k	"e" for an event, "g" for the news that some are missing
 *			c	its channel
 *			e	the event, see event_wire.c; or which are missing
 *			m	the MAC of all this but p, see bus_mac.c
 *	  subdispatch:{app}:state	a hash:
 *			prev	the id of the last event
 *			floor	ids must not be lower, where a server has said so
 *			s:<sender>	the number of its last event, and when it came (s)
 *
 * One stream for a database, not one for each channel: '*' has one order, as it
 * must; each server reads with one command, whatever it subscribes to; a
 * transaction is added as a whole; and ids come from one counter.  The price
 * is that each server reads all events of the group.  It was measured: to read,
 * check and pass over an event that nobody subscribes to takes a server 5 us of
 * processor time, to link one for its dispatchers 12 to 19, and to add one takes
 * Redis 13: what Redis can take in, a server can read.
 *
 * IDS are max(last + 1, now in us by Redis's clock, what servers say is used
 * up).  The last keeps them rising when Redis has lost its data, or its clock
 * goes back.  Who can write to Redis may have added entries with ids far in the
 * future; such are refused, and the sender says so.
 *
 * ONCE.  A sender whose connection breaks does not know what has arrived, and
 * sends again what was not acknowledged.  The script keeps each sender's last
 * number: what it has is passed over, and what does not follow it is refused
 * (commands sent one behind the other may not all have failed).
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
 * ARGV: sender, floor, maximal length, first number, then for each event
 *		 when it was sent, its kind, channel, text, MAC.
 * Returns the id of the last event of the stream.
 */
const char *const script_send =
"local state = redis.call('HMGET', KEYS[2], 'prev', 'floor', 's:' .. ARGV[1])\n"
"local time = redis.call('TIME')\n"
"local now = time[1] * 1000000 + time[2]\n"
"local first = tonumber(ARGV[4])\n"
"local seen = state[3] and tonumber(string.match(state[3], '^%d+'))\n"
"if seen and first > seen + 1 then\n"
"  return redis.error_reply('SUBDISPATCH events before these are missing')\n"
"end\n"
"local prev = tonumber(state[1] or '0')\n"
"local id = math.max(prev + 1, tonumber(state[2] or '0'), tonumber(ARGV[2]), now)\n"
"local after = first + (#ARGV - 4) / 5\n"
"local number = first\n"
"if seen then number = math.max(first, seen + 1) end\n"
"local failed\n"
"local function add()\n"
"  local i = 5 + (number - first) * 5\n"
"  if id > now + " FUTURE " then\n"
"    return redis.error_reply('SUBDISPATCH event ids in the stream are more than a day ahead of time')\n"
"  end\n"
"  return redis.pcall('XADD', KEYS[1], string.format('%.0f-0', id), 'p', string.format('%.0f', prev),\n"
"    's', ARGV[1], 'n', string.format('%.0f', number), 't', ARGV[i], 'k', ARGV[i + 1],\n"
"    'c', ARGV[i + 2], 'e', ARGV[i + 3], 'm', ARGV[i + 4])\n"
"end\n"
"local begin = number\n"
"while number < after do\n"
"  local added = add()\n"
"  if type(added) == 'table' and added.err and string.find(added.err, 'equal or smaller') then\n"
"    local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)\n"
"    if top[1] then id = tonumber(string.match(top[1][1], '^%d+')) + 1 end\n"
"    added = add()\n"
"  end\n"
"  if type(added) == 'table' and added.err then\n"
"    failed = added\n"
"    break\n"
"  end\n"
"  prev = id\n"
"  id = id + 1\n"
"  number = number + 1\n"
"end\n"
"if number > begin then\n"
"  redis.call('HSET', KEYS[2], 'prev', string.format('%.0f', prev),\n"
"    's:' .. ARGV[1], string.format('%.0f %.0f', number - 1, time[1]))\n"
"  redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[3])\n"
"  if not seen and redis.call('HLEN', KEYS[2]) > 200 then\n"
"    local all = redis.call('HGETALL', KEYS[2])\n"
"    for i = 1, #all, 2 do\n"
"      local came = string.match(all[i + 1], '^%d+ (%d+)$')\n"
"      if came and tonumber(came) < time[1] - 30 * 86400 then\n"
"        redis.call('HDEL', KEYS[2], all[i])\n"
"      end\n"
"    end\n"
"  end\n"
"end\n"
"return failed or string.format('%.0f', prev)\n";

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
