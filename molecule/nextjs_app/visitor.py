"""Visit both front ends again and again until a file appears, and say how many answers were not whole: visitor.py STOP-FILE."""

import collections
import http.client
import json
import pathlib
import sys
import threading
import time

STOP = pathlib.Path(sys.argv[1])
SITES = {"student": 3001, "admin": 3002}


def visit(name, port, seen):
    """Ask one front end again and again, each time with a new connection. One visit in eight is a slow one."""
    while not STOP.exists():
        # The deployment needs processors as well.
        time.sleep(0.02)
        seen["visits"] += 1
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/slow" if seen["visits"] % 8 == 0 else "/", headers={"Host": f"{name}.lms.test"})
            answer = connection.getresponse()
            body = answer.read().decode()
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            seen[f"failed: {error!r}"] += 1
            continue
        seen[body.split()[-1] if answer.status == 200 else f"failed: {answer.status}"] += 1


def main():
    """Visit each front end with several threads."""
    seen = {name: collections.Counter() for name in SITES}
    threads = [threading.Thread(target=visit, args=(name, port, seen[name])) for name, port in SITES.items() for _thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps(seen))


main()
