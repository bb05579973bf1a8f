"""An OSCORE client of aiocoap that a proxy stands before: aiocoap_proxied.py
BASE-URI FOLDER-OF-THE-CONTEXT

The proxy wants an Echo value before it forwards for an address. aiocoap returns
those of servers only, so a request without OSCORE does it once.

Prints a JSON object for each step: its name, code and payload.
"""
import asyncio
import json
import sys

import aiocoap


def tell(step, response):
    print(json.dumps({"step": step, "code": response.code.dotted, "payload": response.payload.decode()}), flush=True)


async def main():
    base, folder = sys.argv[1], sys.argv[2]
    client = await aiocoap.Context.create_client_context()

    plain = aiocoap.Message(code=aiocoap.GET, uri=base + "/hello")
    challenge = await asyncio.wait_for(client.request(plain).response, 10)
    tell("echo", challenge)
    again = aiocoap.Message(code=aiocoap.GET, uri=base + "/hello")
    again.opt.echo = challenge.opt.echo
    await asyncio.wait_for(client.request(again).response, 10)

    client.client_credentials.load_from_dict({base + "/*": {"oscore": {"basedir": folder}}})

    async def do(step, code, path, payload=b""):
        request = aiocoap.Message(code=code, uri=base + path, payload=payload)
        tell(step, await asyncio.wait_for(client.request(request).response, 10))

    await do("get", aiocoap.GET, "/hello?x=1")
    await do("post", aiocoap.POST, "/upper", b"small")
    await do("put missing", aiocoap.PUT, "/missing", b"x")
    await do("block1", aiocoap.POST, "/upper", b"abcdefgh" * 400)
    await do("block2", aiocoap.GET, "/big")

    register = client.request(aiocoap.Message(code=aiocoap.GET, uri=base + "/counter", observe=0))
    tell("registered", await asyncio.wait_for(register.response, 10))
    notifications = register.observation.__aiter__()
    for n in 1, 2, 3:
        await do("count", aiocoap.POST, "/counter")
        tell("notified", await asyncio.wait_for(notifications.__anext__(), 10))
    register.observation.cancel()
    await client.shutdown()


asyncio.run(main())
