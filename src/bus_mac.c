/*-------------------------------------------------------------------------
 *
 * bus_mac.c
 *	  What makes an entry of a stream one of this group's: its MAC.
 *
 * HMAC-SHA-256 with subdispatch.bus_key over everything that the sender said,
 * and the stream that it was said on.  Each part is preceded by its length, so
 * that no two entries have the same bytes.  What Redis adds cannot be in it, so who can write to Redis can give
 * entries other ids, leave some out and send some again; redis_read.c tells
 * what of that is noticed.
 *
 * Takes no lock.
 *
 *-------------------------------------------------------------------------
 */
#include "bus_mac.h"

#include "common/hmac.h"
#include "common/sha2.h"
#include "port/pg_bswap.h"
#include "utils/resowner.h"

#define CONTEXT		"subdispatch bus 2"

static bool
add(pg_hmac_ctx *ctx, const void *data, Size len)
{
	uint64		n = pg_hton64((uint64) len);

	return pg_hmac_update(ctx, (const uint8 *) &n, sizeof(n)) == 0 &&
		pg_hmac_update(ctx, data, len) == 0;
}

static void
to_hex(const uint8 *bytes, Size n, char *hex)
{
	static const char digits[] = "0123456789abcdef";

	for (Size i = 0; i < n; i++)
	{
		*hex++ = digits[bytes[i] >> 4];
		*hex++ = digits[bytes[i] & 15];
	}
	*hex = '\0';
}

/*
 * One for the life of the process: with its own resource owner, or it would end
 * with the transaction.
 */
static pg_hmac_ctx *
context(void)
{
	static pg_hmac_ctx *ctx = NULL;
	ResourceOwner old = CurrentResourceOwner;

	if (ctx != NULL)
		return ctx;
	CurrentResourceOwner = ResourceOwnerCreate(NULL, "subdispatch MAC");
	PG_TRY();
	{
		ctx = pg_hmac_create(PG_SHA256);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = old;
	}
	PG_END_TRY();
	return ctx;
}

void
bus_mac(BusBytes batch, const char *stream, const char *key, char *hex)
{
	pg_hmac_ctx *ctx = context();
	uint8		mac[PG_SHA256_DIGEST_LENGTH];
	bool		ok = false;

	StaticAssertStmt(BUS_MAC_HEX == 2 * PG_SHA256_DIGEST_LENGTH, "digits of a MAC");
	if (ctx != NULL)
		ok = pg_hmac_init(ctx, (const uint8 *) key, strlen(key)) == 0 &&
			add(ctx, CONTEXT, strlen(CONTEXT)) &&
			add(ctx, stream, strlen(stream)) &&
			add(ctx, batch.data, batch.len) &&
			pg_hmac_final(ctx, mac, sizeof(mac)) == 0;
	if (!ok)
		elog(ERROR, "could not compute the MAC of an entry");
	to_hex(mac, sizeof(mac), hex);
}

bool
bus_mac_equal(const char *a, const char *b)
{
	uint8		different = 0;

	for (int i = 0; i < BUS_MAC_HEX; i++)
		different |= (uint8) a[i] ^ (uint8) b[i];
	return different == 0;
}
