/*-------------------------------------------------------------------------
 *
 * context.c
 *	  The five modules of the security context.
 *
 * Every check fails closed: a field that the event lacks, a value of another
 * type or an object that is none equals nothing.  Values are compared as
 * filters compare them: numbers exactly and as numbers, strings by bytes.
 *
 * No locks, no catalogs; but for want of memory the per-event functions raise no
 * errors.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/numeric.h"

#include "context.h"
#include "database.h"

/* ---- small things ---- */

static bool
get(JsonbContainer *object, const char *key, int len, JsonbValue *value)
{
	return JsonContainerIsObject(object) &&
		getKeyJsonValueFromContainer(object, key, len, value) != NULL;
}

static bool
get_member(Jsonb *context, const char *key, JsonbValue *value)
{
	return get(&context->root, key, strlen(key), value);
}

static bool
is_scalar(const JsonbValue *value)
{
	return value->type == jbvString || value->type == jbvNumeric || value->type == jbvBool;
}

static bool
equal_scalars(const JsonbValue *a, const JsonbValue *b)
{
	if (a->type != b->type)
		return false;
	switch (a->type)
	{
		case jbvString:
			return a->val.string.len == b->val.string.len &&
				memcmp(a->val.string.val, b->val.string.val, a->val.string.len) == 0;
		case jbvNumeric:
			return DatumGetBool(DirectFunctionCall2(numeric_eq,
													NumericGetDatum(a->val.numeric),
													NumericGetDatum(b->val.numeric)));
		case jbvBool:
			return a->val.boolean == b->val.boolean;
		default:
			return false;
	}
}

/* ---- at subscribe() ---- */

static void
wrong_value(const char *key, const char *wanted)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"%s\" in security_context must be %s", key, wanted)));
}

static void
check_match(const JsonbValue *value)
{
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;

	if (value->type != jbvBinary || !JsonContainerIsObject(value->val.binary.data))
		wrong_value("match", "an object of fields and values");
	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
		if (token == WJB_VALUE && !is_scalar(&v))
			wrong_value("match", "an object of fields and values, which are strings, numbers or booleans");
}

static void
check_fields(const JsonbValue *value)
{
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;

	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		wrong_value("fields", "an array of field names");
	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
		if (token == WJB_ELEM && v.type != jbvString)
			wrong_value("fields", "an array of field names");
}

static void
check_member(const char *key, const JsonbValue *value)
{
	if (strcmp(key, "user_id") == 0 || strcmp(key, "tenant_id") == 0)
	{
		if (!is_scalar(value))
			wrong_value(key, "a string, a number or a boolean");
	}
	else if (strcmp(key, "federation_id") == 0)
	{
		if (value->type != jbvString)
			wrong_value(key, "a string");
	}
	else if (strcmp(key, "match") == 0)
		check_match(value);
	else if (strcmp(key, "fields") == 0)
		check_fields(value);
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown key \"%s\" in security_context", key),
				 errhint("The keys are user_id, tenant_id, match, federation_id and fields.")));
}

void
context_check(Jsonb *context)
{
	JsonbIterator *it = JsonbIteratorInit(&context->root);
	JsonbValue	key;
	JsonbValue	value;

	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&it, &value, true);
		check_member(pnstrdup(key.val.string.val, key.val.string.len), &value);
	}
}

static void
check_scope_of(Jsonb *variables, const char *key, int len, const JsonbValue *mine)
{
	JsonbValue	asked;
	SdDatabase *db;

	if (!get(&variables->root, key, len, &asked) || equal_scalars(&asked, mine))
		return;
	db = database_get(true, true);
	if (db)
		stats_add(&db->stats, SD_STAT_DENIED_SCOPE, 1);
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("\"%.*s\" in variables is not the security context's", len, key)));
}

void
context_check_scope(Jsonb *context, Jsonb *variables)
{
	JsonbValue	value;
	JsonbValue	key;

	if (get_member(context, "user_id", &value))
		check_scope_of(variables, "user_id", 7, &value);
	if (get_member(context, "tenant_id", &value))
		check_scope_of(variables, "tenant_id", 9, &value);
	if (get_member(context, "match", &value))
	{
		JsonbIterator *it = JsonbIteratorInit(value.val.binary.data);

		(void) JsonbIteratorNext(&it, &key, true);
		while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
		{
			JsonbValue	mine;

			(void) JsonbIteratorNext(&it, &mine, true);
			check_scope_of(variables, key.val.string.val, key.val.string.len, &mine);
		}
	}
}

char *
context_user_key(Jsonb *context)
{
	JsonbValue	value;

	if (!get_member(context, "user_id", &value))
		return NULL;
	switch (value.type)
	{
		case jbvString:
			return psprintf("s%.*s", value.val.string.len, value.val.string.val);
		case jbvNumeric:
			/* 1 and 1.0 are one user */
			return psprintf("n%s", numeric_normalize(value.val.numeric));
		default:
			return pstrdup(value.val.boolean ? "bt" : "bf");
	}
}

/* ---- for every event ---- */

static bool
field_equals(JsonbContainer *object, const char *key, int len, const JsonbValue *mine)
{
	JsonbValue	its;

	return get(object, key, len, &its) && equal_scalars(&its, mine);
}

bool
context_passes(Jsonb *context, JsonbContainer *object, SdCounter *denied)
{
	JsonbValue	value;
	JsonbValue	key;

	*denied = SD_STAT_DENIED_ROW_FILTER;
	if (get_member(context, "user_id", &value) && !field_equals(object, "user_id", 7, &value))
		return false;
	*denied = SD_STAT_DENIED_TENANT;
	if (get_member(context, "tenant_id", &value) && !field_equals(object, "tenant_id", 9, &value))
		return false;
	if (get_member(context, "match", &value))
	{
		JsonbIterator *it = JsonbIteratorInit(value.val.binary.data);

		(void) JsonbIteratorNext(&it, &key, true);
		while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
		{
			JsonbValue	mine;

			(void) JsonbIteratorNext(&it, &mine, true);
			if (!field_equals(object, key.val.string.val, key.val.string.len, &mine))
				return false;
		}
	}
	return true;
}

bool
context_passes_federation(Jsonb *context, const char *federation_id)
{
	JsonbValue	value;

	if (!get_member(context, "federation_id", &value))
		return true;
	return federation_id && strlen(federation_id) == (size_t) value.val.string.len &&
		memcmp(federation_id, value.val.string.val, value.val.string.len) == 0;
}

bool
context_has_fields(Jsonb *context)
{
	JsonbValue	value;

	return get_member(context, "fields", &value);
}

static bool
shows_field(Jsonb *context, const char *name, int len)
{
	JsonbValue	fields;
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;

	if (!get_member(context, "fields", &fields))
		return true;
	it = JsonbIteratorInit(fields.val.binary.data);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
		if (token == WJB_ELEM && v.type == jbvString && v.val.string.len == len &&
			memcmp(v.val.string.val, name, len) == 0)
			return true;
	return false;
}

Jsonb *
context_visible_fields(Jsonb *context, Jsonb *object)
{
	JsonbParseState *state = NULL;
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;

	if (!context_has_fields(context))
		return object;
	if (!JB_ROOT_IS_OBJECT(object))
		return NULL;
	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	it = JsonbIteratorInit(&object->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&it, &value, true);
		if (!shows_field(context, key.val.string.val, key.val.string.len))
			continue;
		(void) pushJsonbValue(&state, WJB_KEY, &key);
		(void) pushJsonbValue(&state, WJB_VALUE, &value);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}
