/*-------------------------------------------------------------------------
 *
 * wire.c
 *	  An event as the text that travels between servers: writing.
 *
 * Each event of a server goes this way, so it is written by hand.
 *
 * No locks, no PostgreSQL: can be tested and fuzzed outside of the server.
 *
 *-------------------------------------------------------------------------
 */
#include "wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A text that grows; "text" is NULL when there was no memory. */
typedef struct Buffer
{
	char	   *text;
	size_t		len;
	size_t		size;
} Buffer;

/* Room for n bytes more, and a NUL. */
static bool
make_room(Buffer *buf, size_t n)
{
	size_t		size = buf->size;
	char	   *text;

	if (buf->text == NULL)
		return false;
	if (n < size - buf->len)
		return true;
	while (n >= size - buf->len)
		size *= 2;
	text = realloc(buf->text, size);
	if (text == NULL)
		free(buf->text);
	buf->text = text;
	buf->size = size;
	return text != NULL;
}

static void
add_bytes(Buffer *buf, const char *bytes, size_t n)
{
	if (!make_room(buf, n))
		return;
	memcpy(buf->text + buf->len, bytes, n);
	buf->len += n;
}

static void
add_literal(Buffer *buf, const char *s)
{
	add_bytes(buf, s, strlen(s));
}

/* The letter that stands for the character behind a backslash, 'u' for \u00xx; or 0. */
static char
escape_of(unsigned char c)
{
	switch (c)
	{
		case '"':
		case '\\':
			return (char) c;
		case '\b':
			return 'b';
		case '\f':
			return 'f';
		case '\n':
			return 'n';
		case '\r':
			return 'r';
		case '\t':
			return 't';
		default:
			return c < ' ' ? 'u' : 0;
	}
}

static void
add_escaped(Buffer *buf, unsigned char c, char escape)
{
	static const char digits[] = "0123456789abcdef";
	char		text[6] = {'\\', escape, '0', '0', digits[c >> 4], digits[c & 15]};

	add_bytes(buf, text, escape == 'u' ? 6 : 2);
}

static void
add_quoted(Buffer *buf, const char *s)
{
	const char *plain = s;

	add_bytes(buf, "\"", 1);
	for (; *s; s++)
	{
		char		escape = escape_of((unsigned char) *s);

		if (escape == 0)
			continue;
		add_bytes(buf, plain, (size_t) (s - plain));
		add_escaped(buf, (unsigned char) *s, escape);
		plain = s + 1;
	}
	add_bytes(buf, plain, (size_t) (s - plain));
	add_bytes(buf, "\"", 1);
}

/* key: with all that stands before the value. */
static void
add_string(Buffer *buf, const char *key, const char *s)
{
	if (s == NULL)
		return;
	add_literal(buf, key);
	add_quoted(buf, s);
}

static void
add_int(Buffer *buf, const char *key, int64_t value)
{
	char		digits[24];

	add_literal(buf, key);
	add_bytes(buf, digits, (size_t) snprintf(digits, sizeof(digits), "%" PRId64, value));
}

static void
add_columns(Buffer *buf, const Wire *wire)
{
	add_literal(buf, ",\"columns\":[");
	for (uint32_t i = 0; i < wire->ncolumns; i++)
	{
		add_string(buf, i == 0 ? "[" : ",[", wire->columns[i].name);
		add_string(buf, ",", wire->columns[i].type);
		add_literal(buf, "]");
	}
	add_literal(buf, "]");
}

static void
add_values(Buffer *buf, const char *key, const char *const *values, uint32_t n)
{
	if (values == NULL)
		return;
	add_literal(buf, key);
	for (uint32_t i = 0; i < n; i++)
	{
		if (i > 0)
			add_literal(buf, ",");
		if (values[i] == NULL)
			add_literal(buf, "null");
		else
			add_quoted(buf, values[i]);
	}
	add_literal(buf, "]");
}

static void
add_image(Buffer *buf, const Wire *wire)
{
	if (wire->op == NULL)
		return;
	add_string(buf, ",\"op\":", wire->op);
	add_string(buf, ",\"schema\":", wire->schema);
	add_string(buf, ",\"table\":", wire->table);
	add_columns(buf, wire);
	add_values(buf, ",\"row\":[", wire->row, wire->ncolumns);
	add_values(buf, ",\"old\":[", wire->old, wire->ncolumns);
}

static void
add_commit(Buffer *buf, const Wire *wire)
{
	if (wire->lsn == NULL)
		return;
	add_string(buf, ",\"system\":", wire->system);
	add_int(buf, ",\"timeline\":", wire->timeline);
	add_string(buf, ",\"lsn\":", wire->lsn);
}

char *
wire_format(const Wire *wire, size_t *len)
{
	Buffer		buf = {.size = 512 + wire->data_len};

	buf.text = malloc(buf.size);
	add_int(&buf, "{\"subdispatch\":", WIRE_VERSION);
	add_string(&buf, ",\"encoding\":", wire->encoding);
	add_string(&buf, ",\"channel\":", wire->channel);
	add_string(&buf, ",\"source\":", wire->source);
	add_int(&buf, ",\"timestamp\":", wire->timestamp);
	add_string(&buf, ",\"event_type\":", wire->event_type);
	add_string(&buf, ",\"correlation_id\":", wire->correlation_id);
	add_string(&buf, ",\"federation_id\":", wire->federation_id);
	add_commit(&buf, wire);
	add_image(&buf, wire);
	if (wire->data)
	{
		add_literal(&buf, WIRE_DATA_KEY);
		add_bytes(&buf, wire->data, wire->data_len);
	}
	add_literal(&buf, "}");
	if (buf.text)
		buf.text[buf.len] = '\0';
	*len = buf.len;
	return buf.text;
}
