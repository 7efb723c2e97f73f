/*-------------------------------------------------------------------------
 *
 * rights.c
 *	  The settings that belong to an identity: which they may be, and their values.
 *
 * subdispatch.context_settings lists the names of those that may be, as a
 * comma-separated list.  The values are kept with a subscription as a jsonb object
 * of strings, and become SdRights, which security.c puts into force.
 *
 * Names are compared as PostgreSQL does, without regard to case.
 *
 * Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/numeric.h"

#include "security.h"

/* Settings that would undo what security_enter does. */
static const char *const refused_settings[] = {
	"role", "session_authorization", "search_path", "row_security"
};

/* ---- lists of settings ---- */

/*
 * The next name of a comma-separated list: sets *name and *len to it, without
 * the blanks around it (*len may be 0), and returns where to go on, or NULL
 * at the end of the list.
 */
static const char *
next_name(const char *list, const char **name, int *len)
{
	const char *end;

	if (list == NULL)
		return NULL;
	end = strchr(list, ',');
	if (end == NULL)
		end = list + strlen(list);

	*name = list;
	*len = end - list;
	while (*len > 0 && isspace((unsigned char) (*name)[*len - 1]))
		(*len)--;
	while (*len > 0 && isspace((unsigned char) **name))
	{
		(*name)++;
		(*len)--;
	}
	if (*end == '\0' && *len == 0)
		return NULL;
	return *end == ',' ? end + 1 : end;
}

/* Names of settings are compared as PostgreSQL does: without regard to case. */
static bool
name_equals(const char *a, int alen, const char *b, int blen)
{
	return alen == blen && pg_strncasecmp(a, b, alen) == 0;
}

/* How the list spells this name: sets *name and *len, or returns false. */
static bool
find_name(const char *list, const char *key, int keylen, const char **name, int *len)
{
	while ((list = next_name(list, name, len)) != NULL)
	{
		if (name_equals(*name, *len, key, keylen))
			return true;
	}
	return false;
}

bool
security_lists_setting(const char *key)
{
	const char *name;
	int			len;

	return find_name(subdispatch_context_settings, key, strlen(key), &name, &len);
}

/* Letters, digits, _ and $, in parts that are separated by single dots. */
static bool
name_is_valid(const char *name, int len)
{
	bool		start = true;
	int			i;

	for (i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) name[i];

		if (c == '.' && !start)
			start = true;
		else if (isalpha(c) || c == '_' || IS_HIGHBIT_SET(c) ||
				 (!start && (isdigit(c) || c == '$')))
			start = false;
		else
			return false;
	}
	return !start;
}

bool
security_check_context_settings(char **newval, void **extra, GucSource source)
{
	const char *list = *newval;
	const char *name;
	int			len;
	int			i;

	while ((list = next_name(list, &name, &len)) != NULL)
	{
		if (!name_is_valid(name, len))
		{
			GUC_check_errdetail("\"%.*s\" is not a valid name of a setting.", len, name);
			GUC_check_errhint("Separate the names by commas, as in \"app.user_id, app.tenant_id\".");
			return false;
		}
		for (i = 0; i < (int) lengthof(refused_settings); i++)
		{
			const char *refused = refused_settings[i];

			if (name_equals(name, len, refused, strlen(refused)))
			{
				GUC_check_errdetail("\"%s\" is what subdispatch itself sets for each identity.",
									refused);
				return false;
			}
		}
	}
	return true;
}

/* ---- settings as jsonb ---- */

static void
push_pair(JsonbParseState **state, const char *name, int namelen, const char *value, int valuelen)
{
	JsonbValue	v;

	v.type = jbvString;
	v.val.string.val = unconstify(char *, name);
	v.val.string.len = namelen;
	(void) pushJsonbValue(state, WJB_KEY, &v);
	v.val.string.val = unconstify(char *, value);
	v.val.string.len = valuelen;
	(void) pushJsonbValue(state, WJB_VALUE, &v);
}

/*
 * The values that the current user's session has now.  A custom setting that
 * is empty counts as unset: PostgreSQL itself leaves '' behind where a SET
 * LOCAL has ended.  Raises 42501 for a setting that the user may not read.
 */
Jsonb *
security_capture_settings(const char *context_settings)
{
	JsonbParseState *state = NULL;
	const char *list = context_settings;
	const char *name;
	int			len;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	while ((list = next_name(list, &name, &len)) != NULL)
	{
		char	   *key = pnstrdup(name, len);
		const char *value = GetConfigOption(key, true, true);

		if (value == NULL)
			continue;
		if (*value == '\0' && (GetConfigOptionFlags(key, true) & GUC_CUSTOM_PLACEHOLDER))
			continue;
		/* GetConfigOption's result may lie in a buffer that it uses again */
		value = pstrdup(value);
		push_pair(&state, key, len, value, strlen(value));
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* The text of one value, allocated anew; raises 22023 unless it is a scalar. */
static char *
setting_text(const char *name, int namelen, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return pnstrdup(value->val.string.val, value->val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out,
													   NumericGetDatum(value->val.numeric)));
		case jbvBool:
			return pstrdup(value->val.boolean ? "true" : "false");
		default:
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("value of \"%.*s\" in settings must be a string, a number or a boolean",
							namelen, name),
					 errhint("Leave a setting out to have it unset.")));
	}
	return NULL;				/* keep compiler quiet */
}

static void
report_unlisted(const char *key, int keylen, const char *context_settings)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("setting \"%.*s\" cannot be given to a subscription", keylen, key),
			 *context_settings == '\0' ?
			 errdetail("\"%s\" is empty.", "subdispatch.context_settings") :
			 errdetail("\"%s\" lists %s.", "subdispatch.context_settings", context_settings),
			 errhint("A superuser can add it to \"%s\".", "subdispatch.context_settings")));
}

Jsonb *
security_check_settings(Jsonb *settings, const char *context_settings)
{
	JsonbParseState *state = NULL;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	key;
	JsonbValue	value;
	Jsonb	   *result;

	if (!JB_ROOT_IS_OBJECT(settings))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("settings must be a JSON object")));

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	it = JsonbIteratorInit(&settings->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while ((token = JsonbIteratorNext(&it, &key, true)) == WJB_KEY)
	{
		const char *name;
		int			len;
		char	   *text;

		if (!find_name(context_settings, key.val.string.val, key.val.string.len, &name, &len))
			report_unlisted(key.val.string.val, key.val.string.len,
							context_settings ? context_settings : "");
		(void) JsonbIteratorNext(&it, &value, true);
		text = setting_text(name, len, &value);
		push_pair(&state, name, len, text, strlen(text));
	}
	result = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));

	/* spellings that differ by case only have become one key */
	if (JB_ROOT_COUNT(result) != JB_ROOT_COUNT(settings))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a setting is given more than once in settings"),
				 errdetail("Names of settings that differ only in case are the same.")));
	return result;
}

/*
 * The list was another when these were accepted: the subscriber's session or
 * role may have one of its own.
 */
static void
add_unlisted(SdRights *rights, Jsonb *settings, const char *context_settings)
{
	JsonbIterator *it = JsonbIteratorInit(&settings->root);
	JsonbValue	key;
	JsonbValue	value;

	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		const char *name;
		int			len;

		(void) JsonbIteratorNext(&it, &value, true);
		if (find_name(context_settings, key.val.string.val, key.val.string.len, &name, &len))
			continue;
		rights->names[rights->nsettings] = pnstrdup(key.val.string.val, key.val.string.len);
		rights->values[rights->nsettings++] = setting_text(key.val.string.val,
														   key.val.string.len, &value);
	}
}

SdRights *
security_make_rights(Oid role, Jsonb *settings, const char *context_settings)
{
	SdRights   *rights = palloc0(sizeof(SdRights));
	const char *list;
	const char *name;
	int			len;

	rights->role = role;
	for (list = context_settings; (list = next_name(list, &name, &len)) != NULL;)
		rights->nsettings++;
	rights->nsettings += JB_ROOT_COUNT(settings);
	if (rights->nsettings == 0)
		return rights;

	rights->names = palloc0(rights->nsettings * sizeof(char *));
	rights->values = palloc0(rights->nsettings * sizeof(char *));
	rights->nsettings = 0;
	for (list = context_settings; (list = next_name(list, &name, &len)) != NULL;)
	{
		JsonbIterator *it = JsonbIteratorInit(&settings->root);
		JsonbValue	key;
		JsonbValue	value;
		int			n = rights->nsettings++;

		rights->names[n] = pnstrdup(name, len);
		(void) JsonbIteratorNext(&it, &key, true);
		while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
		{
			(void) JsonbIteratorNext(&it, &value, true);
			if (name_equals(name, len, key.val.string.val, key.val.string.len))
				rights->values[n] = setting_text(name, len, &value);
		}
	}
	add_unlisted(rights, settings, context_settings);
	return rights;
}
