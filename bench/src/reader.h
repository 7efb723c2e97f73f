/*
 * reader.h
 *	  A consumer, in each of the ways that are compared.
 */
#ifndef READER_H
#define READER_H

#include "bench.h"

typedef struct Reader Reader;

/*
 * Ways: notify and redis (as many connections as that, each LISTENing or
 * subscribed), poll and poll_shared (a consumer whose subscriptions were made
 * before), outbox (a table that is polled).  The channel and the consumer are
 * "bench", or what BENCH_NAME in the environment says.
 */
extern Reader *reader_open(const char *way, long connections);

/* Reads what is there, waits at most a second for it; how many deliveries. */
extern long reader_read(Reader *reader);

/* Processor time so far of the backends that the reader is connected to. */
extern int64_t reader_cpu_ns(Reader *reader);

extern void reader_close(Reader *reader);

#endif							/* READER_H */
