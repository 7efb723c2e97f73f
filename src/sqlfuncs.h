/*-------------------------------------------------------------------------
 *
 * sqlfuncs.h
 *	  What the SQL functions' files share: arguments and their errors.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_SQLFUNCS_H
#define SD_SQLFUNCS_H

#include "fmgr.h"

#include "subdispatch.h"

/* The text argument, or an error if it is NULL, empty or too long. */
extern char *arg_name(FunctionCallInfo fcinfo, int n, const char *what);
/* A name to look for, of any length; an error only if it is NULL. */
extern char *arg_key(FunctionCallInfo fcinfo, int n, const char *what);
/* As arg_name, but NULL for NULL. */
extern char *arg_optional_name(FunctionCallInfo fcinfo, int n, const char *what);
/* An interval argument as a deadline; 0: does not wait. */
extern TimestampTz arg_deadline(FunctionCallInfo fcinfo, int n);
/* Refuses to wait where nothing may wait: in resolvers, in dispatchers. */
extern void refuse_in_resolver(const char *function);
/*
 * Refuses what takes effect outside of the transaction to policies: they run as
 * the subscriber, but are the table owner's.
 */
extern void refuse_in_policy(void);

#endif							/* SD_SQLFUNCS_H */
