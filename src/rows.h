/*-------------------------------------------------------------------------
 *
 * rows.h
 *	  Memory for the rows that a reading function returns.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_ROWS_H
#define SD_ROWS_H

#include "fmgr.h"

/* InitMaterializedSRF(), with rows in memory that the next call uses again. */
extern void rows_begin(FunctionCallInfo fcinfo);

#endif							/* SD_ROWS_H */
