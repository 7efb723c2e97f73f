/* Unit tests of src/wire.c and src/wire_read.c. */
/* uses: wire.c wire_read.c */
#include "wire.h"
#include "tap.h"

#include <stdlib.h>

/* ---------- helpers ---------- */

#define HEAD	"{\"subdispatch\":1,\"encoding\":\"UTF8\",\"channel\":\"c\",\"source\":\"publish\",\"timestamp\":5"
#define IMAGE	HEAD ",\"op\":\"UPDATE\",\"schema\":\"s\",\"table\":\"t\""

static const WireColumn two_columns[] = {{"id", "integer"}, {"a \"b\"", "pg_catalog.text"}};
static const char *const new_values[] = {"1", NULL};
static const char *const old_values[] = {"-1", "x\\\"\n\001,\"data\":"};

static Wire
published(void)
{
	Wire		wire = {0};

	wire.encoding = "UTF8";
	wire.channel = "orders,\"data\":{}";
	wire.source = "publish";
	wire.timestamp = INT64_C(-1234567890123456);
	wire.data = "{\"n\": 18446744073709551617, \"data\":1,\"data\":2}";
	wire.data_len = strlen(wire.data);
	return wire;
}

static Wire
changed(void)
{
	Wire		wire = published();

	wire.data = NULL;
	wire.data_len = 0;
	wire.op = "UPDATE";
	wire.schema = "public";
	wire.table = "t";
	wire.ncolumns = 2;
	wire.columns = two_columns;
	wire.row = new_values;
	wire.old = old_values;
	return wire;
}

static bool
same(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static bool
same_values(const char *const *a, const char *const *b, uint32_t n)
{
	if (a == NULL || b == NULL)
		return a == b;
	for (uint32_t i = 0; i < n; i++)
		if (!same(a[i], b[i]))
			return false;
	return true;
}

static bool
same_columns(const Wire *a, const Wire *b)
{
	if (a->ncolumns != b->ncolumns)
		return false;
	for (uint32_t i = 0; i < a->ncolumns; i++)
		if (!same(a->columns[i].name, b->columns[i].name) ||
			!same(a->columns[i].type, b->columns[i].type))
			return false;
	return true;
}

static bool
same_wire(const Wire *a, const Wire *b)
{
	return same(a->encoding, b->encoding) && same(a->channel, b->channel) &&
		same(a->source, b->source) && a->timestamp == b->timestamp &&
		same(a->event_type, b->event_type) && same(a->correlation_id, b->correlation_id) &&
		same(a->federation_id, b->federation_id) && same(a->system, b->system) &&
		a->timeline == b->timeline && same(a->lsn, b->lsn) &&
		(a->data == NULL) == (b->data == NULL) && a->data_len == b->data_len &&
		(a->data_len == 0 || memcmp(a->data, b->data, a->data_len) == 0) &&
		same(a->op, b->op) && same(a->schema, b->schema) && same(a->table, b->table) &&
		same_columns(a, b) && same_values(a->row, b->row, a->ncolumns) &&
		same_values(a->old, b->old, a->ncolumns);
}

/* A copy of exactly that size, so that a read beyond it is noticed. */
static const char *
parse(const char *text, size_t len, Wire *wire, char **copy)
{
	*copy = malloc(len ? len : 1);
	if (*copy == NULL)
		abort();
	if (len > 0)
		memcpy(*copy, text, len);
	return wire_parse(*copy, len, wire);
}

static void
comes_back(const Wire *wire, const char *name)
{
	size_t		len;
	char	   *text = wire_format(wire, &len);
	char	   *copy;
	Wire		back;
	const char *why;

	ok(text != NULL && strlen(text) == len, name);
	why = parse(text, len, &back, &copy);
	is_text(why ? why : "", "", name);
	if (why == NULL)
	{
		ok(same_wire(wire, &back), name);
		wire_free(&back);
	}
	free(copy);
	free(text);
}

static void
refused(const char *text, const char *expected)
{
	char	   *copy;
	Wire		wire;
	const char *why = parse(text, strlen(text), &wire, &copy);

	is_text(why ? why : "", expected, text);
	if (why == NULL)
		wire_free(&wire);
	free(copy);
}

/* ---------- tests ---------- */

static void
test_round_trips(void)
{
	Wire		wire = published();

	comes_back(&wire, "an event of publish()");
	wire.event_type = "";
	wire.correlation_id = "\xff\xfe, bytes that are no UTF-8";
	wire.federation_id = "/\b\f\t\\";
	wire.system = "7300000000000000000";
	wire.timeline = UINT32_MAX;
	wire.lsn = "FFFFFFFF/FFFFFFFF";
	comes_back(&wire, "with all members");

	wire = changed();
	comes_back(&wire, "an UPDATE");
	wire.old = NULL;
	comes_back(&wire, "an INSERT");
	wire.row = NULL;
	wire.ncolumns = 0;
	comes_back(&wire, "a TRUNCATE");
	wire.row = new_values;
	comes_back(&wire, "a row without columns");
}

static void
test_refused(void)
{
	static const char not_json[] = "it is not a JSON object as another server writes it";
	static const char members[] = "a member is missing, or has the wrong type";
	static const char table[] = "its row image does not name its table and columns";
	static const char values[] = "its row image does not have a value for each column";
	static const char either[] = "it must have either data or a row image";
	static const char commit[] = "its commit's position is incomplete";

	refused("", not_json);
	refused("{", not_json);
	refused("{}", not_json);
	refused("[1]", not_json);
	refused("null", not_json);
	refused(HEAD ",\"data\":", not_json);
	refused(HEAD ",\"data\":}", not_json);
	refused(HEAD ",\"data\":1", not_json);
	refused(HEAD ",\"x\":\",\"data\":1}", not_json);
	refused(HEAD ",\"data\":1}", "");
	refused(HEAD ",\"unknown\":1,\"data\":1}", "");
	refused(HEAD ",\"x\":[[[[[1]]]]],\"data\":1}", not_json);
	refused(HEAD "}", either);
	refused("{\"subdispatch\":2,\"data\":1}", "it is of a version that this server does not know");
	refused("{\"subdispatch\":\"1\",\"data\":1}", not_json);
	refused("{\"subdispatch\":1,\"data\":1}", members);
	refused(HEAD ",\"event_type\":1,\"data\":1}", members);
	refused(HEAD ",\"event_type\":\"a\\u0000b\",\"data\":1}", members);
	refused(HEAD ",\"timestamp\":1.5,\"data\":1}", members);
	refused(HEAD ",\"lsn\":\"0/1\",\"data\":1}", commit);
	refused(HEAD ",\"lsn\":\"0/1\",\"system\":\"1\",\"timeline\":0,\"data\":1}", commit);
	refused(HEAD ",\"lsn\":\"0/1\",\"system\":\"1\",\"timeline\":4294967296,\"data\":1}", commit);
	refused(HEAD ",\"op\":\"INSERT\",\"data\":1}", either);
	refused(HEAD ",\"op\":\"INSERT\"}", table);
	refused(IMAGE "}", table);
	refused(IMAGE ",\"columns\":{}}", table);
	refused(IMAGE ",\"columns\":[1]}", values);
	refused(IMAGE ",\"columns\":[null]}", values);
	refused(IMAGE ",\"columns\":[[\"a\"]]}", values);
	refused(IMAGE ",\"columns\":[[\"a\",null]]}", values);
	refused(IMAGE ",\"columns\":[[\"a\",\"int\"]],\"row\":[]}", values);
	refused(IMAGE ",\"columns\":[[\"a\",\"int\"]],\"row\":[1]}", values);
	refused(IMAGE ",\"columns\":[[\"a\",\"int\"]],\"row\":[\"1\",\"2\"]}", values);
	refused(IMAGE ",\"columns\":[[\"a\",\"int\"]],\"row\":{}}", values);
	refused(IMAGE ",\"columns\":[[\"a\",\"int\"]],\"row\":[null]}", "");
}

/* JSON as others write it. */
static void
test_json(void)
{
	static const char not_json[] = "it is not a JSON object as another server writes it";
	static const char text[] = " { \"subdispatch\" :1,\n\"encoding\":\"UTF8\",\"channel\":\"a\",\"channel\":\"\\u00e9\\ud83D\\uDe00\\/\\u0041\","
		"\"source\":\"change\",\"timestamp\":-9223372036854775808,\"x\":{\"y\":[-0.1e+5,true,{}],\"\":null},\"op\":\"INSERT\",\"schema\":\"s\","
		"\"table\":\"t\",\"columns\":[ [ \"a\" , \"b\" ] ,[\"\\u0062\",\"\"]],\"row\" : [null , \"\\t\"]}";
	char	   *copy;
	Wire		wire;
	const char *why = parse(text, strlen(text), &wire, &copy);

	is_text(why ? why : "", "", "with spaces, escapes and more");
	if (why == NULL)
	{
		is_text(wire.channel, "\xc3\xa9\xf0\x9f\x98\x80/A", "the last one of two members, decoded");
		ok(wire.timestamp == INT64_MIN, "the lowest number");
		ok(wire.ncolumns == 2 && strcmp(wire.columns[0].type, "b") == 0 &&
		   strcmp(wire.columns[1].name, "b") == 0 && wire.columns[1].type[0] == '\0', "columns");
		ok(wire.row && wire.row[0] == NULL && strcmp(wire.row[1], "\t") == 0 && wire.old == NULL, "values");
		wire_free(&wire);
	}
	free(copy);

	refused(HEAD ",\"x\":\"\\ud83d\",\"data\":1}", not_json);
	refused(HEAD ",\"x\":\"\\ude00\",\"data\":1}", not_json);
	refused(HEAD ",\"x\":\"\\ud83dab\",\"data\":1}", not_json);
	refused(HEAD ",\"x\":\"\\u12g4\",\"data\":1}", not_json);
	refused(HEAD ",\"x\":\"\\x\",\"data\":1}", not_json);
	refused(HEAD ",\"x\":\"\n\",\"data\":1}", not_json);
	refused(HEAD ",\"x\":01,\"data\":1}", not_json);
	refused(HEAD ",\"x\":-,\"data\":1}", not_json);
	refused(HEAD ",\"x\":1.,\"data\":1}", not_json);
	refused(HEAD ",\"x\":1e,\"data\":1}", not_json);
	refused(HEAD ",\"x\":nul,\"data\":1}", not_json);
	refused(HEAD ",\"x\":[1,],\"data\":1}", not_json);
	refused(HEAD ",\"x\":{\"a\"},\"data\":1}", not_json);
	refused(HEAD ",\"x\":{1:1},\"data\":1}", not_json);
	refused(HEAD ",\"x\",\"data\":1}", not_json);
	refused(HEAD "},\"data\":1}", not_json);
	refused(HEAD ",,\"data\":1}", not_json);
	refused(HEAD ",\"op\":\"INSERT\"} ", not_json);
	refused("{\"subdispatch\":1,\"timestamp\":9223372036854775808,\"data\":1}", "a member is missing, or has the wrong type");
}

static void
test_too_many_columns(void)
{
	size_t		room = 100 + strlen(IMAGE) + 2 * (WIRE_MAX_COLUMNS + 1);
	char	   *text = malloc(room);

	strcpy(text, IMAGE ",\"columns\":[");
	for (int i = 0; i <= WIRE_MAX_COLUMNS; i++)
		strcat(text, i ? ",1" : "1");
	strcat(text, "]}");
	refused(text, "its row image has too many columns");
	free(text);
}

/* Damaged texts: whatever is read, is read within the text. */
static void
test_damaged(void)
{
	static const char alphabet[] = "{}[]\",:\\0u \n\xc3\xff" "data";
	Wire		wires[] = {published(), changed()};
	int			read = 0;

	for (int round = 0; round < 50000; round++)
	{
		size_t		len;
		char	   *text = wire_format(&wires[round % 2], &len);
		char	   *copy;
		Wire		back;

		for (uint64_t n = random_below(4) + 1; n > 0; n--)
			text[random_below(len)] = alphabet[random_below(sizeof(alphabet))];
		if (random_below(4) == 0)
			len = random_below(len);
		if (parse(text, len, &back, &copy) == NULL)
		{
			char	   *again;
			size_t		again_len;

			/* what can be read can be written */
			again = wire_format(&back, &again_len);
			read += again != NULL;
			free(again);
			wire_free(&back);
		}
		free(copy);
		free(text);
	}
	ok(read > 1000, "some damaged texts are still events");
}

int
main(void)
{
	test_round_trips();
	test_refused();
	test_json();
	test_too_many_columns();
	test_damaged();
	return done();
}
