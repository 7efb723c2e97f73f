/*-------------------------------------------------------------------------
 *
 * bus_batch.c
 *	  What an entry of the stream in Redis holds: some events of one sender.
 *
 * What is done once for each entry (by Redis, and for the MAC) costs more than
 * the events themselves, so what waits to be sent goes in one, up to a size.
 *
 * THE TEXT is
 *
 *		2 <sender> <number of the first event> <when it was sent> <events>
 *
 * and of each event
 *
 *		 <kind> <bytes of the channel> <bytes of the text> <channel><text>
 *
 * one behind the other, where <...> are digits up to a space.  Numbers of the
 * events follow each other.  The text of a gap is a bit for each channel hash, and
 * up to where what is missing committed, as hexadecimal digits.  A text comes from a server of the group, which its
 * MAC has shown, but that may run another version, or be broken: nothing is
 * taken for granted when reading.
 *
 * Takes no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "bus_batch.h"

#include "database.h"

#define VERSION			2

/* ---- writing ---- */

static void
add_number(StringInfo buf, uint64 number)
{
	char		digits[24];
	int			at = sizeof(digits);

	digits[--at] = ' ';
	do
	{
		digits[--at] = (char) ('0' + number % 10);
		number /= 10;
	} while (number != 0);
	appendBinaryStringInfo(buf, digits + at, (int) sizeof(digits) - at);
}

void
batch_begin(BatchWriter *batch, uint64 number)
{
	initStringInfo(&batch->events);
	batch->number = number;
	batch->count = 0;
}

void
batch_add(BatchWriter *batch, char kind, BusBytes channel, BusBytes text)
{
	StringInfo	buf = &batch->events;

	Assert(batch->count < BATCH_MAX_EVENTS);
	appendStringInfoCharMacro(buf, kind);
	appendStringInfoCharMacro(buf, ' ');
	add_number(buf, channel.len);
	add_number(buf, text.len);
	appendBinaryStringInfo(buf, channel.data, (int) channel.len);
	appendBinaryStringInfo(buf, text.data, (int) text.len);
	batch->count++;
}

BusBytes
batch_finish(BatchWriter *batch, const char *sender, int64 sent_at)
{
	StringInfoData buf;

	initStringInfo(&buf);
	enlargeStringInfo(&buf, batch->events.len + 128);
	add_number(&buf, VERSION);
	appendBinaryStringInfo(&buf, sender, SD_SENDER_LEN);
	appendStringInfoCharMacro(&buf, ' ');
	add_number(&buf, batch->number);
	add_number(&buf, (uint64) sent_at);
	add_number(&buf, batch->count);
	appendBinaryStringInfo(&buf, batch->events.data, batch->events.len);
	return (BusBytes) {buf.data, (Size) buf.len};
}

/* ---- gaps ---- */

#define CHANNEL_DIGITS	(SD_SKETCH_SIZE / 4)
#define POSITION_DIGITS	(16 + 8 + 16)

BusBytes
gap_text(const BusGap *gap)
{
	char	   *text = palloc(CHANNEL_DIGITS + POSITION_DIGITS + 1);

	for (int i = 0; i < SD_SKETCH_SIZE / 32; i++)
		snprintf(text + 8 * i, 9, "%08x", gap->channels[i]);
	snprintf(text + CHANNEL_DIGITS, POSITION_DIGITS + 1, "%016llx%08x%016llx",
			 (unsigned long long) gap->commit.system, gap->commit.timeline,
			 (unsigned long long) gap->commit.lsn);
	return (BusBytes) {text, CHANNEL_DIGITS + POSITION_DIGITS};
}

/* That many hexadecimal digits; false if they are none. */
static bool
take_hex(const char **at, int n, uint64 *value)
{
	char		digits[17];
	char	   *end;

	memcpy(digits, *at, n);
	digits[n] = '\0';
	*at += n;
	if (strspn(digits, "0123456789abcdef") != (size_t) n)
		return false;
	*value = strtou64(digits, &end, 16);
	return true;
}

void
gap_read(BusGap *gap, BusBytes text)
{
	const char *at = text.data;
	uint64		value[3] = {0};
	bool		good = text.len == CHANNEL_DIGITS + POSITION_DIGITS;

	for (int i = 0; i < SD_SKETCH_SIZE / 32 && good; i++)
	{
		good = take_hex(&at, 8, &value[0]);
		gap->channels[i] = (uint32) value[0];
	}
	good = good && take_hex(&at, 16, &value[0]) && take_hex(&at, 8, &value[1]) && take_hex(&at, 16, &value[2]);
	if (good)
	{
		gap->commit.system = value[0];
		gap->commit.timeline = (TimeLineID) value[1];
		gap->commit.lsn = (XLogRecPtr) value[2];
		return;
	}
	memset(gap, 0, sizeof(BusGap));
	memset(gap->channels, 0xff, sizeof(gap->channels));
}

/* ---- reading ---- */

bool
bus_number(const char *s, Size len, uint64 *value)
{
	uint64		n = 0;

	if (len == 0 || len > 18)
		return false;
	for (Size i = 0; i < len; i++)
	{
		if (s[i] < '0' || s[i] > '9')
			return false;
		n = n * 10 + (uint64) (s[i] - '0');
	}
	*value = n;
	return true;
}

/* Digits up to a space, which is passed. */
static bool
take_number(BatchReader *batch, uint64 *value)
{
	const char *space = memchr(batch->at, ' ', Min((Size) (batch->end - batch->at), 19));

	if (space == NULL || !bus_number(batch->at, (Size) (space - batch->at), value))
		return false;
	batch->at = space + 1;
	return true;
}

static bool
take_bytes(BatchReader *batch, Size len, BusBytes *bytes)
{
	if (len > (Size) (batch->end - batch->at))
		return false;
	bytes->data = batch->at;
	bytes->len = len;
	batch->at += len;
	return true;
}

static bool
take_head(BatchReader *batch)
{
	uint64		sent_at;
	uint64		count;
	BusBytes	space;

	if (!take_bytes(batch, SD_SENDER_LEN, &batch->next.sender) ||
		!take_bytes(batch, 1, &space) || *space.data != ' ' ||
		!take_number(batch, &batch->next.number) || !take_number(batch, &sent_at) ||
		!take_number(batch, &count) || count == 0 || count > BATCH_MAX_EVENTS)
		return false;
	batch->next.sent_at = (int64) sent_at;
	batch->count = (uint32) count;
	return true;
}

/* Reads one event into "next", but for its number. */
static bool
take_event(BatchReader *batch)
{
	BusEntry   *entry = &batch->next;
	BusBytes	kind;
	uint64		channel_len;
	uint64		text_len;

	if (!take_bytes(batch, 2, &kind) || kind.data[1] != ' ' ||
		!take_number(batch, &channel_len) || !take_number(batch, &text_len) ||
		!take_bytes(batch, channel_len, &entry->channel) ||
		!take_bytes(batch, text_len, &entry->text))
		return false;
	entry->kind = kind.data[0];
	return true;
}

const char *
batch_open(BatchReader *batch, BusBytes text)
{
	uint64		version;
	const char *first;

	batch->at = text.data;
	batch->end = text.data + text.len;
	if (!take_number(batch, &version))
		return "it is no batch of events";
	if (version != VERSION)
		return "it is of a version that this server does not know";
	if (!take_head(batch))
		return "it is no batch of events";
	first = batch->at;
	for (uint32 i = 0; i < batch->count; i++)
		if (!take_event(batch))
			return "an event of it is incomplete";
	if (batch->at != batch->end)
		return "it has more than its events";
	batch->at = first;
	return NULL;
}

void
batch_next(BatchReader *batch, BusEntry *entry)
{
	bool		there = take_event(batch);

	Assert(there);
	(void) there;
	*entry = batch->next;
	batch->next.number++;
}
