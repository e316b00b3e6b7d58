"""Visit a site without a pause, over connections that are kept and over new ones, and tell what came of each request.

No request is sent twice: what a client loses here is lost. It ends when the file is there and enough requests were sent.

Usage: load.py HOST FILE
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys
import threading
import time
from collections import Counter
from pathlib import Path

HOST, STOP = sys.argv[1], Path(sys.argv[2])
VISITORS, LEAST, MOST, LONGEST = 12, 4200, 30000, 300.0

context = ssl.create_default_context(cafile="/etc/ssl/lms/authority.pem")
end = time.monotonic() + LONGEST
sent: Counter[str] = Counter()
failed: Counter[str] = Counter()
servers: Counter[str] = Counter()
lock = threading.Lock()


def goes_on() -> bool:
    """Say whether there is more to send."""
    return sent.total() < MOST and time.monotonic() < end and (sent.total() < LEAST or not STOP.exists())


def visit(kind: str, method: str) -> None:
    """Be one visitor."""
    connection = http.client.HTTPSConnection(HOST, 443, timeout=20, context=context)
    while goes_on():
        server, failure = "", ""
        try:
            connection.request(method, "/load")
            answer = connection.getresponse()
            answer.read()
            server, failure = answer.getheader("X-Server", ""), "" if answer.status == 200 else f"status {answer.status}"
        except (OSError, http.client.HTTPException) as error:
            failure = type(error).__name__
        if failure or kind == "new":
            connection.close()
        with lock:
            sent[kind] += 1
            if failure:
                failed[f"{kind} {method}: {failure}"] += 1
            else:
                servers[server] += 1


threads = [
    threading.Thread(target=visit, args=[kind, method])
    for kind in ("kept", "new")
    for method in ("GET", "POST")
    for _visitor in range(VISITORS // 4)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.stdout.write(json.dumps({"sent": sent, "failed": failed, "servers": servers}))
