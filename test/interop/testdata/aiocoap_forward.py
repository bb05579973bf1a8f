"""A client of aiocoap that knows its proxy: aiocoap_forward.py PROXY-URI ORIGIN-URI

The first request shows that the address receives (Echo). Then what aiocoap's own
tests ask proxies: by Proxy-Scheme and Uri-Host, by Proxy-Uri, in blocks, slow,
observed by two at once.

Prints a JSON object for each step: its name, code and payload.
"""
import asyncio
import json
import sys

import aiocoap
from aiocoap.proxy.client import ProxyForwarder


def tell(step, response):
    print(json.dumps({"step": step, "code": response.code.dotted, "payload": response.payload.decode()}), flush=True)


async def main():
    proxy, origin = sys.argv[1], sys.argv[2]
    client = await aiocoap.Context.create_client_context()
    forward = ProxyForwarder(proxy, client)

    async def do(step, code, path, payload=b"", **options):
        request = aiocoap.Message(code=code, uri=origin + path, payload=payload)
        for name, value in options.items():
            setattr(request.opt, name, value)
        response = await asyncio.wait_for(forward.request(request).response, 15)
        tell(step, response)
        return response

    challenge = await do("echo", aiocoap.GET, "/hello")
    await do("proven", aiocoap.GET, "/hello", echo=challenge.opt.echo)
    await do("get", aiocoap.GET, "/hello?x=1")
    by_uri = aiocoap.Message(code=aiocoap.GET, uri=proxy)
    by_uri.opt.proxy_uri = origin + "/hello?x=2"
    tell("proxy-uri", await asyncio.wait_for(client.request(by_uri).response, 15))
    await do("post", aiocoap.POST, "/upper", b"small")
    await do("missing", aiocoap.GET, "/missing")
    await do("method", aiocoap.PUT, "/hello", b"x")
    await do("block1", aiocoap.POST, "/upper", b"abcdefgh" * 400)
    await do("block2", aiocoap.GET, "/big")
    await do("slow", aiocoap.GET, "/slow")

    watching = []
    for n in 1, 2:
        register = forward.request(aiocoap.Message(code=aiocoap.GET, uri=origin + "/counter", observe=0))
        tell("registered", await asyncio.wait_for(register.response, 15))
        watching.append((register, register.observation.__aiter__()))
    for n in 1, 2:
        await do("count", aiocoap.POST, "/counter")
        for _, notifications in watching:
            tell("notified", await asyncio.wait_for(notifications.__anext__(), 15))
    for register, _ in watching:
        register.observation.cancel()
    await client.shutdown()


asyncio.run(main())
