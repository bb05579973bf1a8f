"""A member of an OSCORE group on aiocoap's Security Contexts: aiocoap_group.py server|client

The keying material comes as one line of JSON on standard input. A server prints
{"port": N} and answers until its input ends: a request for /group in group mode,
one for /pairwise in pairwise mode, each with what it read. A client sends one
request in each mode for each of those, and prints what it was answered.
"""
import json
import socket
import sys
import threading

from aiocoap import CHANGED, CON, POST, Message, oscore
from aiocoap.numbers.types import ACK, NON

LIMIT = 10  # seconds for an answer


class P256Agreement(oscore.ECDSA_SHA256_P256):
    """The key agreement on P-256, which aiocoap has under the number of ES256."""

    value = -27


def context(config):
    def of(table, value):
        return next(a for a in table.values() if a.value == value)

    member = config["member"]
    sign = of(oscore.algorithms_countersign, config["sign_alg"])
    private = bytes.fromhex(member["private"])
    if config["sign_alg"] == -7:
        x, y = bytes.fromhex(member["x"]), bytes.fromhex(member["y"])
        private = sign.from_private_parts(x, y, private)
    if config["sign_alg"] == -7:
        agreement = P256Agreement()
    else:
        agreement = of(oscore.algorithms_staticstatic, config["ecdh_alg"])
    return oscore.SimpleGroupContext(
        alg_aead=of(oscore.algorithms, config["alg"]),
        hashfun=oscore.hashfunctions["sha256"],
        alg_signature=sign,
        alg_group_enc=of(oscore.algorithms, config["gp_enc_alg"]),
        alg_pairwise_key_agreement=agreement,
        group_id=bytes.fromhex(config["gid"]),
        master_secret=bytes.fromhex(config["ms"]),
        master_salt=bytes.fromhex(config["salt"]),
        sender_id=bytes.fromhex(member["sid"]),
        private_key=private,
        sender_auth_cred=bytes.fromhex(member["cred"]),
        peers={bytes.fromhex(p["sid"]): bytes.fromhex(p["cred"]) for p in config["peers"]},
        group_manager_cred=bytes.fromhex(config["gm_cred"]),
    )


def tell(**what):
    print(json.dumps(what), flush=True)


def server(group, config):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    hear = [sock]
    if "multicast" in config:
        many = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        many.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        many.bind((config["multicast"], config["multicast_port"]))
        here = socket.inet_aton(config["multicast"]) + socket.inet_aton("127.0.0.1")
        many.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, here)
        hear.append(many)
    tell(port=sock.getsockname()[1])

    def loop(heard):
        while True:
            raw, client = heard.recvfrom(65535)
            outer = Message.decode(raw)
            try:
                unprotected = oscore.verify_start(outer)
                peer = group.get_oscore_context_for(unprotected)
                mode = "group" if oscore.COSE_COUNTERSIGNATURE0 in unprotected else "pairwise"
                request, request_id = peer.unprotect(outer)
            except Exception as e:
                print("request refused:", repr(e), file=sys.stderr)
                continue
            plain = Message(code=CHANGED, payload=f"{mode} {peer.recipient_id.hex()} {request.payload.decode()}".encode())
            by = group if request.opt.uri_path == ("group",) else group.pairwise_for(peer.recipient_id)
            response, _ = by.protect(plain, request_id)
            response.mtype = ACK if outer.mtype == CON else NON
            response.mid, response.token = outer.mid, outer.token
            sock.sendto(response.encode(), client)

    for heard in hear:
        threading.Thread(target=loop, args=(heard,), daemon=True).start()
    sys.stdin.read()


def client(group, config):
    mid = 100
    for target in config.get("targets", [config]):
        mid = ask(group, target, mid)


def ask(group, config, mid):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(LIMIT)
    to = bytes.fromhex(config["to"])
    for mode in "group", "pairwise":
        for path in "group", "pairwise":
            mid += 1
            by = group if mode == "group" else group.pairwise_for(to)
            plain = Message(code=POST, uri_path=(path,), payload=f"by {mode}".encode())
            request, request_id = by.protect(plain)
            request.mtype, request.mid, request.token = CON, mid, mid.to_bytes(2, "big")
            sock.sendto(request.encode(), ("127.0.0.1", config["ports"][path]))
            outer = Message.decode(sock.recv(65535))
            unprotected = oscore.verify_start(outer)
            answered = "group" if oscore.COSE_COUNTERSIGNATURE0 in unprotected else "pairwise"
            response, _ = by.context_from_response(unprotected).unprotect(outer, request_id)
            tell(request=mode, path=path, response=answered, payload=response.payload.decode())
    return mid


config = json.loads(sys.stdin.readline())
if sys.argv[1] == "server":
    server(context(config), config)
else:
    client(context(config), config)
