/*-------------------------------------------------------------------------
 *
 * guc_secret.h
 *	  The settings that hold secrets.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_GUC_SECRET_H
#define SD_GUC_SECRET_H

#define BUS_KEY_MIN		16		/* bytes */

extern void guc_define_secrets(void);

#endif							/* SD_GUC_SECRET_H */
