"""An OSCORE client of aiocoap that does as it is told: aiocoap_gateway.py BASE-URI FOLDER-OF-THE-CONTEXT

Each line of the standard input is a method and a path, or "observe" and a path. A
JSON object is printed for each response and notification: what it answers, code,
payload in hexadecimal.
"""
import asyncio
import json
import sys

import aiocoap


def tell(what, response):
    print(json.dumps({"step": what, "code": response.code.dotted, "payload": response.payload.hex()}), flush=True)


async def notifications(request, path):
    async for response in request.observation:
        tell("notified " + path, response)


async def main():
    base, folder = sys.argv[1], sys.argv[2]
    client = await aiocoap.Context.create_client_context()
    client.client_credentials.load_from_dict({base + "/*": {"oscore": {"basedir": folder}}})
    loop = asyncio.get_running_loop()
    tasks = []
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        what, path = line.split(" ", 1)
        if what == "observe":
            request = client.request(aiocoap.Message(code=aiocoap.GET, uri=base + path, observe=0))
            tell(line, await asyncio.wait_for(request.response, 20))
            tasks.append(loop.create_task(notifications(request, path)))
            continue
        code = {"get": aiocoap.GET, "put": aiocoap.PUT, "post": aiocoap.POST, "delete": aiocoap.DELETE}[what]
        response = client.request(aiocoap.Message(code=code, uri=base + path)).response
        tell(line, await asyncio.wait_for(response, 20))
    for t in tasks:
        t.cancel()
    await client.shutdown()


asyncio.run(main())
