#!/usr/bin/env python3
"""A plugin of age for tests: it "wraps" a file key by XOR with its key's text, and asks for a PIN to unwrap.

By age-plugin.md, and by none of statepipe's code. What it was started with is written to $DEMO_LOG.
"""

import base64
import hashlib
import json
import os
import sys


def b64(data):
    return base64.b64encode(data).rstrip(b"=").decode()


def read():
    words = sys.stdin.readline().split()[1:]
    body = ""
    while True:
        line = sys.stdin.readline().rstrip("\n")
        body += line
        if len(line) < 64:
            return words, base64.b64decode(body + "=" * (-len(body) % 4))


def say(*words, body=b""):
    text = b64(body)
    print("->", *words)
    for at in range(0, len(text) + 1, 64):
        print(text[at : at + 64])
    sys.stdout.flush()


def ask(*words, body=b""):
    say(*words, body=body)
    return read()


def xor(key, data):
    pad = hashlib.sha256(key.encode()).digest()
    return bytes(a ^ b for a, b in zip(data, pad, strict=False))


def main():
    with open(os.environ["DEMO_LOG"], "a") as log:
        print(json.dumps([sys.argv, dict(os.environ)]), file=log)
    behaviour = os.environ.get("DEMO", "")
    heard = []
    while not heard or heard[-1][0][0] != "done":
        heard.append(read())
    if behaviour == "die":
        sys.exit(3)
    if behaviour == "babble":
        print("hello")
        sys.exit(0)
    if behaviour == "fail":
        ask("error", "internal", body=b"the token is not there")
        say("done")
        return
    ask("grease-" + behaviour, "x")
    if sys.argv[1] == "--age-plugin=recipient-v1":
        (file_key,) = (body for words, body in heard if words[0] == "wrap-file-key")
        ask("msg", body=b"please touch the token")
        for words, _ in heard:
            if words[0] == "add-recipient":
                ask("recipient-stanza", "0", "demo", "an-argument", body=xor("demo", file_key) + bytes(80))
    else:
        for words, body in heard:
            if words[0] == "recipient-stanza" and words[2] == "demo":
                answer, pin = ask("request-secret", body=b"PIN")
                if answer[0] == "ok" and pin == b"1234":
                    ask("file-key", "0", body=xor("demo", body[:16]))
    say("done")


main()
