"""What a subscription server in Python does: LISTEN, and for each notification make every subscription's message.

    python_fanout.py each|once SUBSCRIPTIONS EVENTS

each: the resolver and json.dumps for every subscription. once: both once, and an envelope for every subscription. The time
is that of one event from the notification being there to all messages being in their queues; one event at a time.
"""

import asyncio
import collections
import json
import sys
import time

import psycopg



def resolver(event, variables):
    return {"order": event["data"]["id"], "total": event["data"]["total"]}


def fan_out_each(event, subscriptions):
    for operation, variables, queue in subscriptions:
        message = {"type": "next", "id": operation, "payload": {"data": resolver(event, variables), "errors": None}}
        queue.append(json.dumps(message))


def fan_out_once(event, subscriptions):
    payload = json.dumps({"data": resolver(event, {}), "errors": None})
    for operation, _, queue in subscriptions:
        queue.append('{"type":"next","id":"' + operation + '","payload":' + payload + "}")


async def main(variant, count, events):
    fan_out = {"each": fan_out_each, "once": fan_out_once}[variant]
    subscriptions = [(f"bench{i}", {}, collections.deque(maxlen=10)) for i in range(count)]
    listener = await psycopg.AsyncConnection.connect("", autocommit=True)
    publisher = await psycopg.AsyncConnection.connect("", autocommit=True)
    await listener.execute("LISTEN bench")
    warm = 1 if events < 20 else 5
    taken = []
    number = 0

    async def publish():
        data = {"id": number, "total": "9.99", "customer": 7}
        await publisher.execute("SELECT pg_notify('bench', %s)", [json.dumps({"channel": "bench", "data": data})])

    await publish()
    async for notification in listener.notifies():
        start = time.perf_counter_ns()
        fan_out(json.loads(notification.payload), subscriptions)
        taken.append(time.perf_counter_ns() - start)
        number += 1
        if number == events + warm:
            break
        await publish()
    assert all(queue for _, _, queue in subscriptions)
    print(json.dumps({"us": sum(taken[warm:]) / events / 1000}))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
