"""A node of aiocoap over tinydtls that does as it is told: aiocoap_node.py BASE-URI IDENTITY KEY

Identity and key are in hexadecimal. Each line of the standard input is "request" or
"observe", a method, options "NUMBER:VALUE,..." and a payload, values in
hexadecimal, "-" for none. A JSON object is printed for each answer and, with the
step "notified", for each notification.
"""
import asyncio
import json
import sys

import aiocoap
from aiocoap.numbers.optionnumbers import OptionNumber


def tell(what, response):
    options = ",".join(f"{int(o.number)}:{o.encode().hex()}" for o in response.opt.option_list())
    print(json.dumps({"step": what, "code": response.code.dotted, "options": options, "payload": response.payload.hex()}), flush=True)


async def notifications(request):
    async for response in request.observation:
        tell("notified", response)


async def main():
    base, identity, key = sys.argv[1], bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
    client = await aiocoap.Context.create_client_context()
    client.client_credentials.load_from_dict({base + "/*": {"dtls": {"psk": key, "client-identity": identity}}})
    loop = asyncio.get_running_loop()
    tasks = []
    held = None  # the association ends when nothing refers to it
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        what, method, options, payload = line.split(" ")
        message = aiocoap.Message(code=getattr(aiocoap, method), uri=base)
        if payload != "-":
            message.payload = bytes.fromhex(payload)
        for option in options.split(",") if options != "-" else []:
            number, value = option.split(":")
            message.opt.add_option(OptionNumber(int(number)).create_option(decode=bytes.fromhex(value)))
        request = client.request(message)
        response = await asyncio.wait_for(request.response, 60)
        held = response.remote
        tell("answer", response)
        if what == "observe":
            tasks.append(loop.create_task(notifications(request)))
    for t in tasks:
        t.cancel()
    await client.shutdown()


asyncio.run(main())
