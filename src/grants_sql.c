/*-------------------------------------------------------------------------
 *
 * grants_sql.c
 *	  SQL's doors to the grants on channels: grant_channel(), revoke_channel(),
 *	  and the trigger of their table.
 *
 * Nobody but the table's owner may write it.  The functions do so as he, with
 * commands in which every name is qualified; whoever may call them may grant.
 *
 * That the table was changed is found out by its trigger, so that it makes no
 * difference whether a function did it, a superuser or pg_restore.
 *
 * No locks but those of the commands.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "grants.h"
#include "security.h"
#include "shmem.h"
#include "sqlfuncs.h"

PG_FUNCTION_INFO_V1(subdispatch_grant_channel);
PG_FUNCTION_INFO_V1(subdispatch_revoke_channel);
PG_FUNCTION_INFO_V1(subdispatch_channel_grants_changed);

enum
{
	ARG_CHANNEL, ARG_GRANTEE, ARG_PRIVILEGE, ARG_REQUIRED
};

/* ---- arguments ---- */

/* A name, a name followed by ".*", or "*". */
static char *
arg_pattern(FunctionCallInfo fcinfo)
{
	char	   *channel = arg_name(fcinfo, ARG_CHANNEL, "channel");
	char	   *star = strchr(channel, '*');
	Size		len = strlen(channel);

	if (star && len > 1 && (star != channel + len - 1 || len < 3 || star[-1] != '.'))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid channel in a grant: \"%s\"", channel),
				 errdetail("It is no name, no prefix such as \"orders.*\", and not \"*\".")));
	return channel;
}

static Oid
arg_grantee(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(ARG_GRANTEE))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("grantee must not be null"),
				 errhint("PUBLIC is written '-'.")));
	return PG_GETARG_OID(ARG_GRANTEE);
}

static GrantPrivilege
arg_privilege(FunctionCallInfo fcinfo)
{
	char	   *name = arg_name(fcinfo, ARG_PRIVILEGE, "privilege");

	if (strcmp(name, "publish") == 0)
		return GRANT_PUBLISH;
	if (strcmp(name, "subscribe") == 0)
		return GRANT_SUBSCRIBE;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid privilege: \"%s\"", name),
			 errhint("It is one of publish, subscribe.")));
}

static uint32
key_bit(const char *key)
{
	for (int i = 0; i < GRANT_CONTEXT_KEYS; i++)
		if (strcmp(key, grants_context_keys[i]) == 0)
			return 1u << i;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown key \"%s\" in required_context", key),
			 errhint("The keys are user_id, tenant_id, match, federation_id and fields.")));
}

/*
 * Each key once and in one order, so that equal grants are one row.  (Datum) 0
 * if none is required.
 */
static Datum
arg_required(FunctionCallInfo fcinfo, GrantPrivilege privilege)
{
	Datum	   *keys;
	bool	   *nulls;
	Datum		elements[GRANT_CONTEXT_KEYS];
	int			n;
	uint32		bits = 0;

	if (PG_ARGISNULL(ARG_REQUIRED))
		return (Datum) 0;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_REQUIRED), TEXTOID, -1, false, TYPALIGN_INT,
					  &keys, &nulls, &n);
	if (n > 0 && privilege != GRANT_SUBSCRIBE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("required_context is for the privilege \"subscribe\" only"),
				 errdetail("Who publishes has no security context.")));
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("required_context must not contain nulls")));
		bits |= key_bit(TextDatumGetCString(keys[i]));
	}
	n = 0;
	for (int i = 0; i < GRANT_CONTEXT_KEYS; i++)
		if (bits & (1u << i))
			elements[n++] = CStringGetTextDatum(grants_context_keys[i]);
	if (n == 0)
		return (Datum) 0;
	return PointerGetDatum(construct_array(elements, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/* ---- writing the table ---- */

static Oid
table_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/* Runs a command as the table's owner; returns how many rows it wrote. */
static uint64
write_table(const char *command, int nargs, Oid *types, Datum *values, const char *nulls)
{
	Oid			relid = grants_table();
	Oid			user;
	int			sec_context;
	uint64		n;

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table subdispatch.channel_grants does not exist")));
	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(table_owner(relid),
						   sec_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(command, nargs, types, values, nulls, false, 0) < 0)
		elog(ERROR, "could not write table subdispatch.channel_grants");
	n = SPI_processed;
	SPI_finish();
	SetUserIdAndSecContext(user, sec_context);
	return n;
}

/*
 * Rows of a role that was dropped from another database's session would become
 * those of whoever gets its OID one day: they go at the next occasion.
 */
static void
forget_dropped_roles(void)
{
	(void) write_table("DELETE FROM subdispatch.channel_grants AS g"
					   " WHERE g.grantee::pg_catalog.oid OPERATOR(pg_catalog.<>) 0 AND NOT EXISTS"
					   " (SELECT FROM pg_catalog.pg_authid AS a"
					   " WHERE a.oid OPERATOR(pg_catalog.=) g.grantee::pg_catalog.oid)",
					   0, NULL, NULL, NULL);
}

Datum
subdispatch_grant_channel(PG_FUNCTION_ARGS)
{
	Oid			types[] = {TEXTOID, REGROLEOID, TEXTOID, TEXTARRAYOID};
	Datum		values[4];
	char		nulls[4] = {' ', ' ', ' ', ' '};
	char	   *channel;
	Oid			grantee;
	GrantPrivilege privilege;

	sd_require_preload();
	channel = arg_pattern(fcinfo);
	grantee = arg_grantee(fcinfo);
	privilege = arg_privilege(fcinfo);
	values[0] = CStringGetTextDatum(channel);
	values[1] = ObjectIdGetDatum(grantee);
	values[2] = CStringGetTextDatum(grants_privilege_name(privilege));
	values[3] = arg_required(fcinfo, privilege);
	if (values[3] == (Datum) 0)
		nulls[3] = 'n';
	if (OidIsValid(grantee) && !security_role_exists(grantee))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role with OID %u does not exist", grantee)));

	forget_dropped_roles();
	(void) write_table("INSERT INTO subdispatch.channel_grants"
					   " (channel, grantee, privilege, required_context) VALUES ($1, $2, $3, $4)"
					   " ON CONFLICT DO NOTHING", 4, types, values, nulls);
	PG_RETURN_VOID();
}

Datum
subdispatch_revoke_channel(PG_FUNCTION_ARGS)
{
	Oid			types[] = {TEXTOID, OIDOID, TEXTOID};
	Datum		values[3];
	char	   *channel;
	Oid			grantee;
	const char *privilege;

	sd_require_preload();
	channel = arg_pattern(fcinfo);
	grantee = arg_grantee(fcinfo);
	privilege = grants_privilege_name(arg_privilege(fcinfo));
	values[0] = CStringGetTextDatum(channel);
	values[1] = ObjectIdGetDatum(grantee);
	values[2] = CStringGetTextDatum(privilege);
	if (write_table("DELETE FROM subdispatch.channel_grants"
					" WHERE channel OPERATOR(pg_catalog.=) $1"
					" AND grantee::pg_catalog.oid OPERATOR(pg_catalog.=) $2"
					" AND privilege OPERATOR(pg_catalog.=) $3", 3, types, values, NULL) == 0)
		ereport(WARNING,
				(errcode(ERRCODE_WARNING_PRIVILEGE_NOT_REVOKED),
				 errmsg("there is no such grant on channel \"%s\"", channel),
				 errdetail("What was granted on other channels, prefixes and \"*\", or to other roles, stays.")));
	forget_dropped_roles();
	PG_RETURN_VOID();
}

/* In a session without the library's shared memory there is nobody to tell. */
Datum
subdispatch_channel_grants_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("channel_grants_changed() can only be called as a trigger")));
	if (sd_shared != NULL)
		grants_changed(((TriggerData *) fcinfo->context)->tg_relation);
	return PointerGetDatum(NULL);
}

void
grants_role_dropped(Oid role)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(role)};

	if (!OidIsValid(grants_table()))
		return;
	(void) write_table("DELETE FROM subdispatch.channel_grants"
					   " WHERE grantee::pg_catalog.oid OPERATOR(pg_catalog.=) $1",
					   1, types, values, NULL);
}
