"""The Resource Directory of aiocoap: aiocoap_rd.py PORT

Prints "ready" and serves until its input ends.
"""
import asyncio
import sys

from aiocoap.cli import rd


async def main():
    directory = rd.Main(args=["--bind", "127.0.0.1:" + sys.argv[1]])
    await directory.initializing
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await directory.shutdown()


asyncio.run(main())
