/*-------------------------------------------------------------------------
 *
 * jsonc.c
 *	  The little that those who read and write JSON with json-c share.
 *
 * No locks, no PostgreSQL.
 *
 *-------------------------------------------------------------------------
 */
#include "jsonc.h"

bool
jsonc_add(json_object *obj, const char *key, json_object *value)
{
	if (value == NULL)
		return false;
	if (json_object_object_add(obj, key, value) == 0)
		return true;
	json_object_put(value);
	return false;
}

json_object *
jsonc_parse_object(const char *json, size_t len, int max_depth)
{
	json_tokener *tokener = json_tokener_new_ex(max_depth);
	json_object *obj;

	if (tokener == NULL)
		return NULL;
	json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
	obj = json_tokener_parse_ex(tokener, json, (int) len);
	if (obj && (json_tokener_get_error(tokener) != json_tokener_success ||
				json_tokener_get_parse_end(tokener) != len ||
				!json_object_is_type(obj, json_type_object)))
	{
		json_object_put(obj);
		obj = NULL;
	}
	json_tokener_free(tokener);
	return obj;
}
