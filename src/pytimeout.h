/*-------------------------------------------------------------------------
 *
 * pytimeout.h
 *	  Ends Python code that runs inside a PL/Python function.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_PYTIMEOUT_H
#define SD_PYTIMEOUT_H

#include "subdispatch.h"

/*
 * Before user code runs, in a transaction, as the session's own superuser:
 * starts the database's PL/Python, if it has one, and gets hold of it.  Costs
 * nothing once that is done.  Never raises an error; what can't be had is
 * logged, and Python code then can't be ended.
 */
extern void pytimeout_prepare(void);

/* User code begins, or has ended.  After the end no interrupt is left over. */
extern void pytimeout_enter(void);
extern void pytimeout_leave(void);

/*
 * From a signal handler: ends the Python code that runs between enter and
 * leave, if any; otherwise does nothing.  Async-signal-safe.
 */
extern void pytimeout_interrupt(void);

#endif							/* SD_PYTIMEOUT_H */
