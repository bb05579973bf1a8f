"""An OSCORE server of aiocoap: aiocoap_server.py PORT FOLDER-OF-THE-CONTEXT

Prints "ready" and serves until its input ends.
"""
import asyncio
import sys

import aiocoap
from aiocoap import resource
from aiocoap.credentials import CredentialsMap
from aiocoap.oscore_sitewrapper import OscoreSiteWrapper


class Hello(resource.Resource):
    async def render_get(self, request):
        query = "".join("?" + q for q in request.opt.uri_query)
        secured = isinstance(request.remote, aiocoap.transports.oscore.OSCOREAddress)
        return aiocoap.Message(payload=("hello" + query + (" over OSCORE" if secured else "")).encode(), content_format=0)


class Upper(resource.Resource):
    async def render_post(self, request):
        return aiocoap.Message(code=aiocoap.CHANGED, payload=request.payload.upper())


class Big(resource.Resource):
    async def render_get(self, request):
        return aiocoap.Message(payload=b"0123456789" * 500)


class Slow(resource.Resource):
    async def render_get(self, request):
        await asyncio.sleep(1.5)  # longer than anybody waits before an acknowledgement
        return aiocoap.Message(payload=b"at last")


class Counter(resource.ObservableResource):
    count = 0

    async def render_get(self, request):
        return aiocoap.Message(payload=str(self.count).encode())

    async def render_post(self, request):
        self.count += 1
        self.updated_state()
        return aiocoap.Message(code=aiocoap.CHANGED)


async def main():
    port, folder = int(sys.argv[1]), sys.argv[2]
    site = resource.Site()
    for name, r in ("hello", Hello()), ("upper", Upper()), ("big", Big()), ("slow", Slow()), ("counter", Counter()):
        site.add_resource([name], r)
    credentials = CredentialsMap()
    credentials.load_from_dict({":peer": {"oscore": {"basedir": folder}}})
    server = await aiocoap.Context.create_server_context(
        OscoreSiteWrapper(site, credentials), bind=("127.0.0.1", port), server_credentials=credentials
    )
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.shutdown()


asyncio.run(main())
